//! How many agents come in, and how fast.

use std::time::Duration;

use anyhow::Result;
use proxymux_testkit::cluster::Cluster;
use proxymux_tests::{
    events::{complaints, wait_for, wait_for_message, with_message},
    limits::{SOON, within},
    rogue::RogueHost,
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_beyond_the_limit_of_sessions_is_told_why_and_when_to_return() -> Result<()> {
    let mut cluster = Cluster::builder()
        .nodes(2)
        .master_lines("max-sessions: 1")
        .build()?;
    cluster.start_master(0)?;
    cluster.start_agent(0)?;
    wait_for_message(cluster.agent(0), 0, SOON, "session up")?;

    cluster.start_agent(1)?;

    let refused = wait_for_message(cluster.agent(1), 0, SOON, "no session")?;
    assert_eq!(refused.text("code"), Some("busy"), "{refused:?}");
    let reason = "master has 1 sessions, its limit is max-sessions";
    assert_eq!(refused.text("reason"), Some(reason), "{refused:?}");
    let told = "too many agents, some are told to come back later";
    let told = wait_for_message(cluster.master(0), 0, SOON, told)?;
    assert_eq!(told.text("key"), Some("max-sessions"), "{told:?}");
    let api = cluster.api()?;
    let reply = within(SOON, "ask", api.get(&cluster.target(0), "/healthz")).await?;
    assert_eq!(reply.status, 200, "the one that was there is served");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_are_not_gone_on_with_keep_no_agent_out() -> Result<()> {
    let mut cluster = Cluster::builder()
        .nodes(2)
        .master_lines("max-handshakes: 1")
        .build()?;
    cluster.start_master(0)?;
    let strangers = RogueHost::on(&cluster, cluster.node(1))?;
    let master = cluster.master_addr(0).parse()?;
    let mut halting: Vec<TcpStream> = Vec::new();
    for _ in 0..5 {
        let mut stranger = strangers.connect(master).await?;
        // The first byte of a TLS record, so that it gets its turn.
        stranger.write_all(&[22]).await?;
        halting.push(stranger);
    }

    cluster.start_agent(0)?;

    // Each of the strangers has a turn of a second and is not waited for longer.
    wait_for_message(cluster.agent(0), 0, SOON, "session up")?;
    let failed = with_message(cluster.agent(0), "no session");
    assert!(
        failed.is_empty(),
        "the first attempt was enough: {failed:?}"
    );
    drop(halting);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_refused_again_and_again_does_not_fill_the_masters_log() -> Result<()> {
    let mut cluster = Cluster::builder()
        .master_lines("cluster-id: ours")
        .agent_lines("cluster-id: theirs")
        .build()?;
    cluster.start_master(0)?;
    cluster.start_agent(0)?;

    let mut mark = 0;
    for _ in 0..4 {
        wait_for_message(cluster.master(0), mark, ATTEMPTS, "session refused")?;
        mark = cluster.master(0).mark();
    }

    let told = complaints(cluster.master(0), 0);
    let refusals = told.iter().filter(|e| e.message == "session refused");
    assert_eq!(refusals.count(), 1, "{told:?}");
    // The agent says it once as well.
    let said = wait_for(cluster.agent(0), 0, SOON, |e| e.level == "ERROR")?;
    assert_eq!(said.text("code"), Some("cluster"), "{said:?}");
    Ok(())
}

/// Time for an agent's backoff, which is up to half a minute after many attempts.
const ATTEMPTS: Duration = Duration::from_secs(40);
