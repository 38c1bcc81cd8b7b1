//! Paths that are taken away while users ask without a pause.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxymux_testkit::{cluster::Cluster, process::LogEvent};
use proxymux_tests::{
    access::{access_line_with, access_lines_now},
    asking::Asking,
    limits::{SOON, within},
};
use tokio::time::{Instant, sleep, timeout};

use crate::stage::{
    block, by_path, counts, direct, drop_at, goes_by, lines_since, open_again, reverse,
};

/// New connections to kubelets, and to the port for agents.
const DIALS_TO_KUBELETS: &str = "tcp dport 10250 tcp flags & (syn | ack) == syn";
const DIALS_OF_AGENTS: &str = "tcp dport 12250 tcp flags & (syn | ack) == syn";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn direct_then_reverse_then_the_session_and_nobody_is_turned_away() -> Result<()> {
    let mut cluster = direct().start()?;
    goes_by(&cluster, 0, "direct").await?;
    let asking = Asking::start(&cluster.api()?, &cluster.target(0));

    let lines = phase(&mut cluster).await;
    ensure!(by_path(&lines, "direct") > 0, "none is direct: {lines:#?}");

    block(&cluster, "output", DIALS_TO_KUBELETS)?;
    goes_by(&cluster, 0, "reverse").await?;
    let lines = phase(&mut cluster).await;
    ensure!(
        by_path(&lines, "reverse") > 0,
        "none is reverse: {lines:#?}"
    );
    ensure!(by_path(&lines, "direct") == 0, "still direct: {lines:#?}");

    block(&cluster, "input", DIALS_OF_AGENTS)?;
    goes_by(&cluster, 0, "session").await?;
    let lines = phase(&mut cluster).await;
    ensure!(by_path(&lines, "session") == lines.len(), "{lines:#?}");

    open_again(&cluster, "input")?;
    goes_by(&cluster, 0, "reverse").await?;
    open_again(&cluster, "output")?;
    goes_by(&cluster, 0, "direct").await?;
    let lines = phase(&mut cluster).await;
    ensure!(by_path(&lines, "direct") > 0, "none is direct: {lines:#?}");

    let answers = asking.stop().await?;
    eprintln!(
        "{} answers, the slowest after {:?}",
        answers.good, answers.slowest
    );
    assert_eq!(answers.failures, Vec::<String>::new());
    ensure!(answers.good > 100, "only {} answers", answers.good);
    Ok(())
}

/// What users get for two seconds.
async fn phase(cluster: &mut Cluster) -> Vec<LogEvent> {
    // Those that are under way began before.
    sleep(Duration::from_millis(500)).await;
    let before = access_lines_now(cluster.master(0)).len();
    sleep(Duration::from_secs(2)).await;
    lines_since(cluster, before)
}

/// As a NAT does that forgets connections: what is idle is dead, and nobody was told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_flows_that_died_without_a_word_cost_a_moment_and_no_request() -> Result<()> {
    let mut cluster = reverse().start()?;
    goes_by(&cluster, 0, "reverse").await?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    counts(&cluster, "proxymux_master_flows_idle", 4.0).await?;
    let session = session_port(&cluster).await?;
    let before = access_lines_now(cluster.master(0)).len();

    // All flows are silenced; the session is not.
    let of_flows = format!("tcp dport 12250 tcp sport != {session}");
    block(&cluster, "input", &of_flows)?;
    for _ in 0..6 {
        let reply = within(SOON, "healthz", api.get(&target, "/healthz")).await?;
        assert_eq!(reply.status, 200);
    }

    sleep(Duration::from_millis(500)).await;
    let lines = lines_since(&mut cluster, before);
    ensure!(by_path(&lines, "session") == lines.len(), "{lines:#?}");
    let slow = lines
        .iter()
        .any(|line| line.text("path.reason") == Some("slow"));
    ensure!(slow, "no flow was found to be slow: {lines:#?}");

    open_again(&cluster, "input")?;
    goes_by(&cluster, 0, "reverse").await
}

/// Keep-alive does not find this, since something is under way: the request itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_on_a_flow_whose_packets_vanish_ends_within_a_minute() -> Result<()> {
    for way in [Way::OwnFirewall, Way::Router] {
        vanishing(way).await?;
    }
    Ok(())
}

/// Where packets vanish. The kernel takes a firewall of its own for a peer that takes nothing.
#[derive(Clone, Copy, Debug)]
enum Way {
    OwnFirewall,
    Router,
}

async fn vanishing(way: Way) -> Result<()> {
    let mut cluster = direct().start()?;
    goes_by(&cluster, 0, "direct").await?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    let connecting = api.connect_kubelet(&target);
    let mut connection = within(SOON, "connect", connecting).await?;
    within(SOON, "healthz", connection.get("/healthz")).await?;

    // Both ways, or the agent's keep-alive would tell with a reset.
    match way {
        Way::OwnFirewall => {
            block(&cluster, "output", "tcp dport 10250")?;
            block(&cluster, "input", "tcp sport 10250")?;
        }
        Way::Router => {
            let router = cluster.topology().router();
            drop_at(router, "forward", "meta l4proto tcp th dport 10250")?;
            drop_at(router, "postrouting", "meta l4proto tcp th sport 10250")?;
        }
    }
    let asked = Instant::now();
    let answer = timeout(Duration::from_secs(60), connection.get("/healthz")).await;

    let answer = answer.context("the request hangs")?;
    ensure!(answer.is_err(), "{answer:?}");
    eprintln!("{way:?}: the request ended after {:?}", asked.elapsed());
    // Others have long gone by other ways.
    let reply = within(SOON, "healthz", api.get(&target, "/healthz")).await?;
    assert_eq!(reply.status, 200);
    let outcome = |line: &LogEvent| line.text("outcome") == Some("peer-reset");
    let line = access_line_with(cluster.master(0), outcome).await?;
    let error = line.text("error").unwrap_or_default();
    ensure!(error.starts_with("nothing was acknowledged"), "{line:#?}");
    Ok(())
}

/// The port from which the agent's session comes, as the master sees it.
async fn session_port(cluster: &Cluster) -> Result<u16> {
    let status = proxymux_tests::admin::status(&proxymux_tests::admin::at_master(cluster)).await?;
    let peer = status.pointer("/nodes/0/session/peer");
    let peer = peer.and_then(|peer| peer.as_str()).unwrap_or_default();
    Ok(peer.parse::<std::net::SocketAddr>()?.port())
}
