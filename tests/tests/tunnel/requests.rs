//! Requests to kubelets that are answered.
//!
//! Owns what kube-apiserver's users do: metrics, logs, exec, bodies of every form, alone and many at
//! once. Leaves targets that are not the usual one to `targets`, and what goes wrong to `failures`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxymux_testkit::{
    apiserver::{ApiServer, FrontDoor, RequestError},
    cluster::Cluster,
    kubelet::{exec_trailer, log_line, log_line_number},
    pattern::{Digest, Pattern},
    pki::{Authority, Leaf, Usage},
    process::LogEvent,
    wait::eventually_async,
};
use proxymux_tests::{
    access::{CLIENT_CLOSED, Closed, access_lines, only_access_line, only_access_lines},
    latency::Latencies,
    limits::{SOON, within},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::Instant,
};

#[tokio::test]
async fn a_kubelet_that_cannot_be_dialled_answers_through_its_session() -> Result<()> {
    let cluster = Cluster::started()?;
    let (api, target) = (cluster.api()?, cluster.target(0));

    let reply = within(SOON, "healthz", api.get(&target, "/healthz")).await?;

    assert_eq!((reply.status, reply.text().as_str()), (200, "ok"));
    assert_eq!(cluster.kubelet(0).stats().requests, 1);
    let direct = ApiServer::new(FrontDoor::Transparent)?;
    let dialled = cluster
        .topology()
        .master()
        .block_on(direct.connect(&target));
    assert!(
        dialled.is_err(),
        "the master can dial the node: the test proves nothing"
    );
    Ok(())
}

#[tokio::test]
async fn metrics_are_the_same_bytes_as_without_the_tunnel() -> Result<()> {
    let cluster = Cluster::started()?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    let direct = direct_api(&cluster)?;
    let expected = cluster.node(0).block_on(direct.get(&target, "/metrics"))?;
    assert!(
        expected.body.len() >= 4 << 20,
        "{} bytes",
        expected.body.len()
    );

    let reply = within(SOON, "metrics", api.get(&target, "/metrics")).await?;

    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.headers.get("content-type"),
        expected.headers.get("content-type")
    );
    assert_eq!(reply.body.len(), expected.body.len());
    assert!(reply.body == expected.body, "the bodies differ");
    Ok(())
}

#[tokio::test]
async fn a_log_is_read_to_its_end_and_its_tail_alone() -> Result<()> {
    let cluster = Cluster::started()?;
    let (api, target) = (cluster.api()?, cluster.target(0));

    let all = within(SOON, "whole log", api.get(&target, LOG))
        .await?
        .text();
    let tail = format!("{LOG}?tailLines=7");
    let tail = within(SOON, "tail", api.get(&target, &tail)).await?.text();

    let expected: String = (1..=1000)
        .map(|number| log_line(CONTAINER, number, 80) + "\n")
        .collect();
    assert_eq!(all, expected);
    assert_eq!(tail.lines().count(), 7);
    assert!(expected.ends_with(&tail), "{tail}");
    Ok(())
}

#[tokio::test]
async fn a_followed_log_arrives_line_by_line_as_it_is_written() -> Result<()> {
    let cluster = Cluster::started()?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    let follow = format!("{LOG}?follow=true&tailLines=5");
    let mut lines = within(SOON, "log", api.get_stream(&target, &follow)).await?;
    let mut next = async || -> Result<u64> {
        let line = within(SOON, "next line", lines.next_line())
            .await?
            .context("log ended")?;
        log_line_number(&line).with_context(|| format!("line {line:?}"))
    };
    for expected in 996..=1000 {
        assert_eq!(next().await?, expected, "history");
    }

    assert_eq!(next().await?, 1001);
    let (first, mut late) = (Instant::now(), Latencies::default());
    for age in 1..=30 {
        assert_eq!(next().await?, 1001 + u64::from(age));
        late.add(first.elapsed().saturating_sub(WRITTEN_EVERY * age));
    }
    // A tunnel that collects what it carries would deliver dozens of lines at once.
    assert!(
        late.percentile(50) < WRITTEN_EVERY * 3,
        "lines are late by {late}"
    );
    Ok(())
}

#[tokio::test]
async fn a_client_that_stops_following_a_log_ends_it_at_the_kubelet() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    let follow = format!("{LOG}?follow=true");
    let mut lines = within(SOON, "log", api.get_stream(&target, &follow)).await?;
    within(SOON, "first line", lines.next_line()).await?;
    assert_eq!(cluster.kubelet(0).stats().logs_followed, 1);

    drop(lines);

    eventually_async(SOON, async || {
        cluster.kubelet(0).stats().connections_open == 0
    })
    .await;
    assert_eq!(cluster.kubelet(0).stats().logs_followed, 0);
    only_access_lines(&mut cluster, 0).await?;
    for events in [cluster.master(0).events(), cluster.agent(0).events()] {
        let troubles: Vec<_> = events.iter().filter(|event| is_trouble(event)).collect();
        assert!(troubles.is_empty(), "{troubles:#?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_exec_echoes_until_the_client_ends_and_then_ends_itself() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    let exec = within(SOON, "exec", api.exec(&target, EXEC)).await?;
    let (mut output, mut input) = tokio::io::split(exec);
    let sent = Pattern::new(3).at(0, 50_000).repeat(20);

    let talk = async {
        let writing = async {
            input.write_all(&sent).await?;
            input.shutdown().await
        };
        let mut received = Vec::new();
        let reading = output.read_to_end(&mut received);
        tokio::try_join!(writing, reading)?;
        std::io::Result::Ok(received)
    };
    let received = within(SOON, "echo", talk).await?;

    let mut digest = Digest::default();
    digest.update(&sent);
    let trailer = exec_trailer(&digest);
    assert_eq!(received.len(), sent.len() + trailer.len());
    assert!(received.starts_with(&sent), "the echo differs");
    // Written after the client's end had got through, so this direction outlived the other.
    assert!(
        received.ends_with(trailer.as_bytes()),
        "the kubelet did not see all"
    );
    for line in only_access_lines(&mut cluster, 0).await? {
        assert_eq!(line.text("outcome"), Some("done"), "{line:#?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_exec_is_answered_while_the_client_is_silent() -> Result<()> {
    let cluster = Cluster::started()?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    let mut exec = within(SOON, "exec", api.exec(&target, EXEC)).await?;

    // As a person types: nothing more is sent until the answer is there.
    for key in *b"ls -l\r" {
        within(SOON, "key", exec.write_all(&[key])).await?;
        within(SOON, "key", exec.flush()).await?;
        assert_eq!(within(SOON, "echo of a key", exec.read_u8()).await?, key);
    }
    Ok(())
}

#[tokio::test]
async fn bodies_arrive_whole_with_a_length_and_in_chunks() -> Result<()> {
    let cluster = Cluster::started()?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    for (suffix, length) in [("", Some("10")), ("&chunked=true", None)] {
        let small = format!("/bytes?n=10&seed=4{suffix}");
        let large = format!("/bytes?n={}&seed=5{suffix}", 8 << 20);

        let head = within(SOON, "small body", api.get(&target, &small)).await?;
        let checked = within(SOON, "large body", api.get_pattern(&target, &large, 5)).await?;

        let header = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
        assert_eq!(header("content-length"), length);
        assert_eq!(header("transfer-encoding").is_some(), length.is_none());
        assert_eq!(&head.body[..], Pattern::new(4).at(0, 10));
        assert_eq!(checked, 8 << 20, "{suffix}");
    }
    Ok(())
}

#[tokio::test]
async fn a_large_body_is_posted_whole() -> Result<()> {
    let cluster = Cluster::started()?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    let bytes: u64 = 48 << 20;
    let (pattern, mut digest) = (Pattern::new(9), Digest::default());
    while digest.length() < bytes {
        let left = usize::try_from(bytes - digest.length())?;
        digest.update(pattern.at(digest.length(), left));
    }

    let reply = within(
        SOON * 3,
        "sink",
        api.post_pattern(&target, "/sink", bytes, 9),
    )
    .await?;

    let expected = format!("received={bytes} digest={:016x}\n", digest.finish());
    assert_eq!((reply.status, reply.text()), (200, expected));
    Ok(())
}

#[tokio::test]
async fn a_connection_carries_one_request_after_another() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let (api, target) = (cluster.api()?, cluster.target(0));

    let mut connection = within(SOON, "dial", api.connect_kubelet(&target)).await?;
    for _ in 0..20 {
        let reply = within(SOON, "healthz", connection.get("/healthz")).await?;
        assert_eq!(reply.status, 200);
    }
    drop(connection);

    only_access_line(cluster.master(0)).await?;
    assert_eq!(cluster.kubelet(0).stats().requests, 20);
    assert_eq!(cluster.kubelet(0).stats().connections_accepted, 1);
    Ok(())
}

#[tokio::test]
async fn tls_is_between_the_client_and_the_kubelet() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let (dir, target) = (cluster.dir().to_owned(), cluster.target(0));
    let stranger = Authority::new("another-ca")?;
    let another_ca = dir.join("another-ca.crt");
    std::fs::write(&another_ca, stranger.pem())?;
    let good = cluster.pki().apiserver_kubelet_client()?;
    let nobody = Leaf::new("nobody")
        .organisations(["system:nobody"])
        .usages([Usage::Client]);
    let forbidden = cluster.pki().pair("apiserver/nobody", &nobody)?;
    let door = FrontDoor::Unix(cluster.socket(0));
    let distrusts = ApiServer::new(door.clone())?.with_kubelet_client(&another_ca, &good)?;
    let is_nobody =
        ApiServer::new(door)?.with_kubelet_client(cluster.pki().ca_file(), &forbidden)?;

    let distrusted = within(SOON, "connect", async {
        anyhow::Ok(distrusts.connect_kubelet(&target).await)
    });
    let distrusted = distrusted.await?;
    let forbidden = within(SOON, "healthz", is_nobody.get(&target, "/healthz")).await?;

    // The tunnel was opened: it is the client that does not want this kubelet, or the reverse.
    assert!(
        matches!(distrusted, Err(RequestError::Tls { .. })),
        "{distrusted:?}"
    );
    assert_eq!(forbidden.status, 403, "{}", forbidden.text());
    for line in access_lines(cluster.master(0), 2).await? {
        assert_eq!(line.message, "connection closed", "{line:#?}");
    }
    Ok(())
}

#[tokio::test]
async fn interleaved_requests_reach_the_kubelet_that_they_are_for() -> Result<()> {
    let mut cluster = Cluster::builder().nodes(3).start()?;
    let api = cluster.api()?;
    let mut requests = JoinSet::new();

    for _ in 0..20 {
        for node in 0..3 {
            let (api, target) = (api.clone(), cluster.target(node));
            // The kubelet's certificate is for its own address only.
            requests.spawn(async move { api.get(&target, "/healthz").await });
        }
    }

    while let Some(reply) = within(SOON, "request", async {
        requests.join_next().await.transpose()
    })
    .await?
    {
        assert_eq!(reply?.status, 200);
    }
    for node in 0..3 {
        assert_eq!(cluster.kubelet(node).stats().requests, 20, "node {node}");
        let (name, target) = (cluster.node_name(node), cluster.target(node));
        let expected = Closed {
            node: &name,
            target: &target,
            peer: &cluster.master_addr(0),
            bytes_to_target: None,
            bytes_from_target: None,
            outcomes: CLIENT_CLOSED,
        };
        for line in access_lines(cluster.agent(node), 20).await? {
            expected.check(&line)?;
        }
    }
    access_lines(cluster.master(0), 60).await?;
    Ok(())
}

#[tokio::test]
async fn a_hundred_connections_at_once_are_all_served() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    let mut dials = JoinSet::new();
    for _ in 0..100 {
        let (api, target) = (api.clone(), target.clone());
        dials.spawn(async move { api.connect_kubelet(&target).await });
    }
    let mut connections = Vec::new();
    while let Some(dialled) = dials.join_next().await {
        connections.push(dialled??);
    }
    assert_eq!(cluster.kubelet(0).stats().connections_open, 100);

    let mut requests = JoinSet::new();
    for (number, mut connection) in (0_u64..).zip(connections) {
        requests.spawn(async move {
            let bytes = 10_000 + number;
            let path = format!("/bytes?n={bytes}&seed={number}");
            let reply = connection.get(&path).await?;
            let mut verifier = Pattern::new(number).verifier();
            verifier.check(&reply.body)?;
            ensure!(verifier.offset() == bytes, "{} bytes", verifier.offset());
            anyhow::Ok(())
        });
    }
    while let Some(answered) = requests.join_next().await {
        answered??;
    }

    access_lines(cluster.master(0), 100).await?;
    let mut lines = access_lines(cluster.agent(0), 100).await?;
    lines.retain(|line| line.text("outcome") != Some("done"));
    assert!(lines.len() < 20, "most are ended in order, but {lines:#?}");
    for line in lines {
        let outcome = line.text("outcome").unwrap_or_default();
        assert!(CLIENT_CLOSED.contains(&outcome), "{line:#?}");
    }
    Ok(())
}

/// kube-apiserver as it would be if it could dial nodes.
fn direct_api(cluster: &Cluster) -> Result<ApiServer> {
    let client = cluster.pki().apiserver_kubelet_client()?;
    ApiServer::new(FrontDoor::Transparent)?.with_kubelet_client(cluster.pki().ca_file(), &client)
}

/// What no client's ordinary leaving may cause.
fn is_trouble(event: &LogEvent) -> bool {
    // A node is told which of its addresses do not lead to it, which is so behind a NAT.
    let about_addresses = event.message == "address does not lead to this node";
    matches!(event.level.as_str(), "WARN" | "ERROR") && !about_addresses
}

const CONTAINER: &str = "kube-system/kube-flannel-ds-h9cm9/kube-flannel";
const LOG: &str = "/containerLogs/kube-system/kube-flannel-ds-h9cm9/kube-flannel";
const EXEC: &str = "/exec/kube-system/kube-flannel-ds-h9cm9/kube-flannel";

/// How often the kubelet stand-in writes a line while somebody follows.
const WRITTEN_EVERY: Duration = Duration::from_millis(100);
