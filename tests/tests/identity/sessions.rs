//! Several sessions of one node: the newer counts, and the older ones end as they should.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use proxymux_testkit::{cluster::Cluster, process::Daemon};
use proxymux_tests::{
    access::{access_line_with, access_lines_now},
    events::{since, wait_for_message, with_message},
    following::Following,
    limits::{SOON, within},
};
use tokio::time::Instant;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_session_takes_over_and_a_dead_older_ones_streams_break() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let api = cluster.api()?;
    let following = Following::start(&api, &cluster.target(0)).await?;

    cluster.agent(0).signal(Signal::SIGSTOP)?;
    let newer = second_agent(&cluster)?;

    let error = following.breaks(SOON).await?;
    assert!(error.contains("HTTP with"), "{error}");
    let reply = within(SOON, "ask", api.get(&cluster.target(0), "/healthz")).await?;
    assert_eq!(reply.status, 200);
    access_line_with(&newer, |line| line.text("outcome") == Some("done")).await?;
    wait_for_message(cluster.master(0), 0, SOON, "session superseded")?;
    let cut = access_line_with(cluster.master(0), |line| {
        line.text("outcome") != Some("done")
    });
    assert_eq!(cut.await?.text("outcome"), Some("session-lost"));

    // The frozen one wakes up, finds out, and does not take its place back.
    let (mark, at_master) = (cluster.agent(0).mark(), cluster.master(0).mark());
    cluster.agent(0).signal(Signal::SIGCONT)?;
    let refused = wait_for_message(cluster.agent(0), mark, SOON, "registration refused")?;
    assert_eq!(refused.text("code"), Some("superseded"));
    let again = with_message(cluster.master(0), "session superseded");
    assert_eq!(again.len(), 1, "{again:?}");
    let refused = since(cluster.master(0), at_master);
    assert!(
        refused.iter().any(|e| e.message == "session refused"),
        "{refused:?}"
    );
    within(SOON, "ask", api.get(&cluster.target(0), "/healthz")).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_older_sessions_streams_run_on_until_they_end() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let api = cluster.api()?;
    let following = Following::start(&api, &cluster.target(0)).await?;

    let newer = second_agent(&cluster)?;

    wait_for_message(
        cluster.agent(0),
        0,
        SOON,
        "another agent with this node's certificate has taken over",
    )?;
    for _ in 0..3 {
        within(SOON, "ask", api.get(&cluster.target(0), "/healthz")).await?;
    }
    let asked_newer = access_line_with(&newer, |_| access_lines_now(&newer).len() == 3);
    asked_newer.await?;
    following.goes_on().await?;
    assert_eq!(
        access_lines_now(cluster.agent(0)),
        [],
        "nothing new by the old one"
    );

    drop(following);
    let closed = wait_for_message(cluster.agent(0), 0, SOON, "session ended")?;
    assert_eq!(closed.number("streams"), Some(0), "{closed:?}");
    Ok(())
}

/// The evicted agent stays away for 30 to 60 s, comes back, and is refused: hence the length.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_agents_with_one_certificate_do_not_evict_each_other_in_a_circle() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let api = cluster.api()?;

    let mut newer = second_agent(&cluster)?;

    let told = wait_for_message(
        cluster.agent(0),
        0,
        SOON,
        "another agent with this node's certificate has taken over",
    )?;
    assert_eq!(
        (told.level.as_str(), told.text("code")),
        ("ERROR", Some("superseded"))
    );
    let said = wait_for_message(
        cluster.master(0),
        0,
        SOON,
        "two agents use this node's certificate, the newer one has taken over",
    )?;
    assert_eq!(said.level, "ERROR");
    let old = said.text("old_peer").context("address of the old")?;
    let new = said.text("new_peer").context("address of the new")?;
    assert_ne!(old, new);
    let reason = told.text("reason").unwrap_or_default();
    assert!(reason.contains(old) && reason.contains(new), "{reason}");

    let evicted = Instant::now();
    let ups = with_message(cluster.agent(0), "session up").len();
    let mark = cluster.agent(0).mark();
    let refused = wait_for_message(cluster.agent(0), mark, RETURN_LIMIT, "registration refused")?;
    assert_eq!(
        (refused.level.as_str(), refused.text("code")),
        ("ERROR", Some("superseded"))
    );
    assert!(evicted.elapsed() >= STAY_AWAY, "{:?}", evicted.elapsed());
    let retry = refused.number("retry_in_ms").context("the next try")?;
    assert!((30_000..=60_000).contains(&retry), "{retry} ms");
    within(SOON, "ask", api.get(&cluster.target(0), "/healthz")).await?;

    assert_eq!(with_message(cluster.agent(0), "session up").len(), ups);
    assert_eq!(with_message(&newer, "session up").len(), 1);
    assert_eq!(with_message(&newer, "session ended"), []);
    assert_eq!(
        with_message(cluster.master(0), "session superseded").len(),
        1
    );
    assert!(newer.is_running()?);
    Ok(())
}

/// A second agent on the first node, with the same certificate: a copy of the machine's disk, or
/// a DaemonSet that was installed twice. Returns when it has its session.
fn second_agent(cluster: &Cluster) -> Result<Daemon> {
    let config = cluster.agent_config(0)?;
    let mut agent = cluster.spawn_agent(0, "second-agent.yaml", &config)?;
    agent.wait_for_line("session up", SOON)?;
    Ok(agent)
}

/// 30 s from the moment when it is told, which is a little before this test reads of it.
const STAY_AWAY: Duration = Duration::from_secs(28);

/// The longest an evicted agent stays away, and a margin for a busy machine.
const RETURN_LIMIT: Duration = Duration::from_secs(80);
