//! What may be asked for: this node's kubelet, what `allow:` adds, and what `routes:` says about
//! targets that are no node.
//!
//! A refusal is the answer to one request: it has the cause in the line that the user sees, and
//! neither the session nor any other stream notices it.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use proxymux_testkit::{
    apiserver::ApiServer,
    cluster::Cluster,
    far_end::{Closer, FarEnd, Script, drive},
    netns::{Host, Running},
};
use proxymux_tests::{
    access::{access_line_with, access_lines},
    events::{complaints, wait_for_message, with_message},
    following::Following,
    limits::{SOON, within},
    refusals::{Refused, refused},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_kubelets_port_of_the_node_itself_is_dialled_by_default() -> Result<()> {
    // The operator's list leads an address to the node that its agent knows nothing of: there it is
    // asked for its kubelet by the node's name, and for anything else in vain.
    let mut cluster = cluster(1, "10.0.10.10: [ 10.0.10.10, 10.0.10.99 ]\n", "")?;
    cluster.start_agent(0)?;
    cluster.wait_for_sessions()?;
    let api = cluster.api()?;
    let following = Following::start(&api, &cluster.target(0)).await?;
    let name = cluster.node_name(0);

    for target in ["10.0.10.10:22", "10.0.10.10:10255", "10.0.10.99:10255"] {
        let answer = refused(&api, target, SOON).await?;
        let reason = format!("target {target} is not allowed by the configuration of node {name}");
        assert_eq!(answer, Refused { code: 403, reason });
    }

    following.goes_on().await?;
    within(SOON, "ask", api.get(&cluster.target(0), "/healthz")).await?;
    drop(within(SOON, "connect", api.connect("10.0.10.99:10250")).await?);
    let lines = access_lines(cluster.agent(0), 5).await?;
    let dialled = lines
        .iter()
        .filter(|line| line.message == "connection closed")
        .map(|line| line.text("target").map(str::to_owned));
    assert_eq!(
        dialled.collect::<Vec<_>>(),
        vec![Some(cluster.target(0)), Some(format!("{name}:10250"))]
    );
    let refusals = lines
        .iter()
        .filter(|line| line.message == "connection refused");
    let reasons: Vec<_> = refusals.filter_map(|line| line.text("reason")).collect();
    assert_eq!(reasons, ["not-allowed"; 3]);
    assert_eq!(with_message(cluster.master(0), "session up").len(), 1);
    assert_eq!(complaints(cluster.agent(0), 0), []);
    assert_eq!(complaints(cluster.master(0), 0), []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_allow_names_is_reached_through_the_node_that_has_the_range() -> Result<()> {
    let list = "10.0.10.10: [ 10.0.10.10, 10.244.1.0/24, 10.244.2.0/24, \"fd00:244::/64\" ]\n";
    let lines =
        "routes: [ { cidr: 10.244.0.0/16, via: node }, { cidr: \"fd00:244::/32\", via: node } ]\n";
    let mut cluster = cluster(2, list, lines)?;
    let config = cluster.agent_config(0)?;
    cluster.start_agent_with(0, &format!("{config}{ALLOW}\n"))?;
    cluster.agent(0).wait_for_line("session up", SOON)?;
    // A pod of the node itself, one behind another machine of the node's network, and one that is
    // asked for by its IPv6 address.
    let (node, beside) = (cluster.node(0), cluster.node(1));
    let own = pod(node, "10.244.1.5/32", "10.244.1.5:20000")?;
    let own6 = pod(node, "fd00:244::5/128", "[fd00:244::5]:20000")?;
    let behind = pod(beside, "10.244.2.5/32", "10.244.2.5:20050")?;
    node.ip(&[
        "route",
        "add",
        "10.244.2.0/24",
        "via",
        &beside.ipv4().to_string(),
    ])?;
    let api = cluster.api()?;

    for far_end in [&own, &own6, &behind] {
        let target = far_end.local_addr().to_string();
        exact_both_ways(&api, &target, far_end).await?;
        let line =
            access_line_with(cluster.master(0), |l| l.text("target") == Some(&*target)).await?;
        assert_eq!(line.text("node"), Some("10.0.10.10"));
        assert_eq!(line.text("path"), Some("session"));
    }

    // Outside of its ports, outside of its ranges, and where nobody listens.
    let outside_ports = refused(&api, "10.244.1.5:20100", SOON).await?;
    let reason = "no route to 10.244.1.5:20100: 10.244.1.5 is behind node 10.0.10.10, but its agent \
                  does not allow port 20100 there";
    assert_eq!((outside_ports.code, &*outside_ports.reason), (503, reason));
    let of_nobody = refused(&api, "10.244.3.5:20000", SOON).await?;
    let reason = "no route to 10.244.3.5:20000: no node is listed for 10.244.3.5";
    assert_eq!((of_nobody.code, &*of_nobody.reason), (503, reason));
    let closed = refused(&api, "10.244.1.5:20001", SOON).await?;
    let reason = "node 10.0.10.10 cannot connect to target at 10.244.1.5:20001: connection refused";
    assert_eq!(closed.code, 502);
    assert!(
        closed.reason.to_lowercase().starts_with(reason),
        "{}",
        closed.reason
    );
    within(SOON, "ask", api.get(&cluster.target(0), "/healthz")).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_routed_directly_is_dialled_by_the_master() -> Result<()> {
    let lines = "routes: [ { cidr: 192.0.2.0/24, via: direct } ]\n";
    let mut cluster = cluster(1, "{}\n", lines)?;
    let router = cluster.topology().router();
    router.nft(
        "table inet holes {\n\
         chain input {\n\
           type filter hook input priority 0;\n\
           tcp dport 30002 drop\n\
         }\n\
         }\n",
    )?;
    let far_end = router.run(|| async { Ok(FarEnd::scripted("192.0.2.1:30000").await?) })?;
    let api = cluster.api()?;

    exact_both_ways(&api, "192.0.2.1:30000", &far_end).await?;

    let line = access_line_with(cluster.master(0), |l| l.text("path") == Some("route")).await?;
    assert_eq!(line.message, "connection closed");
    assert_eq!(line.text("target"), Some("192.0.2.1:30000"));
    assert_eq!(line.text("outcome"), Some("done"));
    let sent = line.number("bytes_to_target").context("bytes_to_target")?;
    let received = line
        .number("bytes_from_target")
        .context("bytes_from_target")?;
    assert!(sent > BYTES && received > BYTES, "{line:?}");

    let closed = refused(&api, "192.0.2.1:30001", SOON).await?;
    let reason = "master cannot connect to target 192.0.2.1:30001: connection refused";
    assert_eq!((closed.code, &*closed.reason), (502, reason));
    let silent = refused(&api, "192.0.2.1:30002", SOON).await?;
    let reason = "target 192.0.2.1:30002 did not answer within the budget";
    assert_eq!((silent.code, &*silent.reason), (504, reason));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_resets_breaks_the_clients_connection_too() -> Result<()> {
    let lines = "routes: [ { cidr: 192.0.2.0/24, via: direct } ]\n";
    let mut cluster = cluster(1, "{}\n", lines)?;
    let router = cluster.topology().router();
    let far_end = router.run(|| async { Ok(FarEnd::scripted("192.0.2.1:30000").await?) })?;
    let api = cluster.api()?;

    let tunnel = within(SOON, "connect", api.connect("192.0.2.1:30000")).await?;
    // On a Unix socket a reset is a plain end; the access log knows the difference.
    let driven = within(SOON, "be reset", async {
        Ok::<_, anyhow::Error>(drive(tunnel, &Script::Reset { after: 1000 }).await)
    });
    assert!(driven.await?.is_err());

    assert!(far_end.outcomes().iter().all(|outcome| outcome.is_clean()));
    let line = access_line_with(cluster.master(0), |l| l.text("path") == Some("route")).await?;
    assert_eq!(line.text("outcome"), Some("peer-reset"), "{line:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_node_and_has_no_route_is_refused_with_the_cause() -> Result<()> {
    let lines =
        "routes: [ { cidr: 192.0.2.0/24, via: direct }, { cidr: 192.0.2.1/32, via: refuse } ]\n";
    let mut cluster = cluster(1, "{}\n", lines)?;
    let router = cluster.topology().router();
    let far_end = router.run(|| async { Ok(FarEnd::scripted("192.0.2.1:30000").await?) })?;
    let api = cluster.api()?;
    let cases = [
        (
            "198.51.100.1:443",
            "no route to 198.51.100.1:443: no node has this address",
        ),
        (
            "192.0.2.1:30000",
            "no route to 192.0.2.1:30000: no node has this address",
        ),
        (
            "no-such-node:10250",
            "no route to no-such-node:10250: no node has this name",
        ),
        (
            "[fd00:10::77]:10250",
            "no route to [fd00:10::77]:10250: no node has this address",
        ),
    ];

    for (target, reason) in cases {
        let answer = refused(&api, target, SOON).await?;
        assert_eq!((answer.code, &*answer.reason), (503, reason));
    }

    assert_eq!(far_end.accepted(), 0);
    wait_for_message(cluster.master(0), 0, SOON, "connection refused")?;
    let lines = access_lines(cluster.master(0), cases.len()).await?;
    assert!(
        lines.iter().all(|line| line.number("status") == Some(503)),
        "{lines:?}"
    );
    assert!(
        lines.iter().all(|line| line.text("path") == Some("none")),
        "{lines:?}"
    );
    Ok(())
}

/// A cluster whose master runs with this list of node addresses and these lines besides.
///
/// In its first seconds a master waits for nodes that may still come, for as long as it may: the
/// budget is short, so that a refusal comes soon.
fn cluster(nodes: u8, list: &str, lines: &str) -> Result<Cluster> {
    let mut cluster = Cluster::builder().nodes(nodes).build()?;
    let file = cluster.dir().join("nodes.yaml");
    fs::write(&file, list)?;
    let config = cluster.master_config(0)?;
    let file = file.display();
    let config = format!("{config}node-addresses: {{ file: {file} }}\nconnect-budget: 2s\n{lines}");
    cluster
        .start_master_with(0, &config)?
        .wait_for_line("master is up", SOON)?;
    Ok(cluster)
}

/// A far end at an address of its own on a host.
fn pod(host: &Host, address: &str, listen: &str) -> Result<Running<FarEnd>> {
    host.ip(&["addr", "add", address, "dev", "lo"])?;
    let listen = listen.to_owned();
    host.run(|| async { Ok(FarEnd::scripted(listen).await?) })
}

/// Sends and receives megabytes, with either end closing first.
async fn exact_both_ways(api: &ApiServer, target: &str, far_end: &FarEnd) -> Result<()> {
    for closer in [Closer::Client, Closer::FarEnd] {
        let script = Script::duplex(BYTES, 7).closed_first_by(closer);
        let tunnel = within(SOON, "connect", api.connect(target)).await?;
        let driven = within(TRANSFER, "transfer", drive(tunnel, &script)).await?;
        assert_eq!(
            (driven.sent, driven.received),
            (BYTES, BYTES),
            "{target} {closer:?}"
        );
    }
    let outcomes = far_end.outcomes();
    assert!(
        outcomes.iter().all(|outcome| outcome.is_clean()),
        "{target}: {outcomes:?}"
    );
    Ok(())
}

const ALLOW: &str = "allow:\n\
    - { cidr: 10.244.1.0/24, ports: 20000-20099 }\n\
    - { cidr: 10.244.2.0/24, ports: 20050 }\n\
    - { cidr: 10.244.3.0/24 }\n\
    - { cidr: \"fd00:244::/64\", ports: \"20000\" }";

const BYTES: u64 = 2 << 20;
const TRANSFER: Duration = Duration::from_secs(60);
