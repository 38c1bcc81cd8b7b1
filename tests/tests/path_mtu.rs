//! A path that loses large packets without a word, because the ICMP messages that should tell
//! their senders are dropped.
//!
//! Both ends have an MTU of 9000, and the router forwards no more than 1500 bytes, in one
//! direction or both, from the start or from some moment on. Small packets always pass, so that
//! everything looks well until somebody reads a log. Nothing may hang for long, and the agent's
//! log must say why it did.

use std::time::Duration;

use anyhow::{Context, Result};
use proxymux_testkit::{
    cluster::Cluster,
    netns::Towards,
    process::{Daemon, LogEvent},
};
use proxymux_tests::{
    events::{complaints, since, wait_for_message, with_message},
    limits::{SOON, within},
};
use tokio::time::{Instant, timeout};

#[tokio::test]
async fn a_narrow_path_that_says_so_needs_no_help() -> Result<()> {
    let mut cluster = Cluster::builder().jumbo().build()?;
    for towards in BOTH {
        cluster.topology().narrow(towards, NARROW)?;
    }
    start(&mut cluster)?;

    transfers_complete(&cluster).await?;

    assert_eq!(with_message(cluster.agent(0), "session up").len(), 1);
    assert_eq!(complaints(cluster.agent(0), 0), []);
    Ok(())
}

#[tokio::test]
async fn a_path_that_is_wide_has_large_segments() -> Result<()> {
    let mut cluster = Cluster::builder().jumbo().start()?;

    transfers_complete(&cluster).await?;

    let sockets = cluster.node(0).command("ss").args(["-tni"]).output()?;
    let sockets = String::from_utf8_lossy(&sockets.stdout).into_owned();
    assert!(sockets.contains(" mss:8948 "), "{sockets}");
    assert_eq!(complaints(cluster.agent(0), 0), []);
    Ok(())
}

#[tokio::test]
async fn a_path_that_loses_large_packets_both_ways_is_found_before_the_first_request() -> Result<()>
{
    let mut cluster = Cluster::builder().jumbo().build()?;
    lose_large_packets(&cluster, &BOTH)?;

    let warning = small_segments_from_the_start(&mut cluster).await?;

    // Of two directions the agent sees the one that its own bytes do not get through.
    assert_eq!(warning.text("direction"), Some("to the master"));
    Ok(())
}

#[tokio::test]
async fn a_path_that_loses_large_packets_to_the_master_is_found_before_the_first_request()
-> Result<()> {
    let mut cluster = Cluster::builder().jumbo().build()?;
    lose_large_packets(&cluster, &[Towards::Masters])?;

    let warning = small_segments_from_the_start(&mut cluster).await?;

    assert_eq!(warning.text("direction"), Some("to the master"));
    Ok(())
}

#[tokio::test]
async fn a_path_that_loses_large_packets_from_the_master_is_found_before_the_first_request()
-> Result<()> {
    let mut cluster = Cluster::builder().jumbo().build()?;
    lose_large_packets(&cluster, &[Towards::Nodes])?;

    let warning = small_segments_from_the_start(&mut cluster).await?;

    assert_eq!(warning.text("direction"), Some("from the master"));
    Ok(())
}

#[tokio::test]
async fn a_handshake_that_is_too_large_for_the_path_is_done_with_small_segments() -> Result<()> {
    let mut cluster = Cluster::builder().jumbo().build()?;
    // So many names make the master's certificate larger than a packet may be.
    let address = cluster.topology().master().ipv4().to_string();
    let mut names = vec![address];
    names.extend((0..100).map(|number| format!("master-{number}.control-plane.example")));
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    cluster.pki().master(&names)?;
    lose_large_packets(&cluster, &[Towards::Nodes])?;

    let warning = small_segments_from_the_start(&mut cluster).await?;

    assert_eq!(warning.text("direction"), Some("from the master"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_whose_large_packets_to_the_master_begin_to_be_lost_is_replaced() -> Result<()> {
    let mut cluster = Cluster::builder().jumbo().start()?;
    lose_large_packets(&cluster, &[Towards::Masters])?;

    let (api, target) = (cluster.api()?, cluster.target(0));
    let stuck = async move { api.get_pattern(&target, &download(), SEED).await.map(drop) };
    let warning = small_segments_while(&mut cluster, stuck).await?;

    assert_eq!(warning.text("direction"), Some("to the master"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_whose_large_packets_from_the_master_begin_to_be_lost_is_replaced() -> Result<()>
{
    let mut cluster = Cluster::builder().jumbo().start()?;
    lose_large_packets(&cluster, &[Towards::Nodes])?;

    let (api, target) = (cluster.api()?, cluster.target(0));
    let stuck = async move {
        api.post_pattern(&target, "/sink", LARGE, SEED)
            .await
            .map(drop)
    };
    let warning = small_segments_while(&mut cluster, stuck).await?;

    assert_eq!(warning.text("direction"), Some("from the master"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_was_mended_has_large_segments_again() -> Result<()> {
    let mut cluster = Cluster::builder().jumbo().build()?;
    lose_large_packets(&cluster, &BOTH)?;
    small_segments_from_the_start(&mut cluster).await?;
    let mark = cluster.agent(0).mark();

    cluster.topology().say_too_big(true)?;

    // Large ones are tried again after a minute.
    wait_for_message(
        cluster.agent(0),
        mark,
        TRIAL_LIMIT,
        "large packets pass again",
    )?;
    wait_for_message(cluster.agent(0), mark, SOON, "session up")?;
    transfers_complete(&cluster).await?;
    assert_eq!(complaints(cluster.agent(0), mark), []);
    Ok(())
}

fn start(cluster: &mut Cluster) -> Result<()> {
    cluster.start_master(0)?;
    cluster.start_agent(0)?;
    cluster.wait_for_sessions()
}

fn lose_large_packets(cluster: &Cluster, ways: &[Towards]) -> Result<()> {
    cluster.topology().say_too_big(false)?;
    for towards in ways {
        cluster.topology().narrow(*towards, NARROW)?;
    }
    Ok(())
}

/// Starts the daemons, which must find the loss by themselves, and returns what the agent says.
async fn small_segments_from_the_start(cluster: &mut Cluster) -> Result<LogEvent> {
    cluster.start_master(0)?;
    cluster.start_agent(0)?;
    let started = Instant::now();
    let warning = the_warning(cluster.agent(0), 0)?;
    wait_for_message(cluster.agent(0), 0, SOON, "session up")?;
    eprintln!("small segments {:?} after the start", started.elapsed());

    transfers_complete(cluster).await?;
    assert_eq!(with_message(cluster.agent(0), "session up").len(), 1);
    Ok(warning)
}

/// Waits for the agent to find the loss while a transfer is stuck, and returns what it says. Who
/// waits for the transfer is told, and the next one completes.
async fn small_segments_while<E: Send + 'static>(
    cluster: &mut Cluster,
    stuck: impl Future<Output = Result<(), E>> + Send + 'static,
) -> Result<LogEvent> {
    let mark = cluster.agent(0).mark();
    let began = Instant::now();
    let stuck = tokio::spawn(stuck);

    let warning = the_warning(cluster.agent(0), mark)?;
    eprintln!("small segments {:?} after the loss", began.elapsed());
    wait_for_message(cluster.agent(0), mark, SOON, "session up")?;
    transfers_complete(cluster).await?;

    let ended = timeout(SOON, stuck).await.context("the transfer hangs")?;
    eprintln!("the transfer broke {:?} after the loss", began.elapsed());
    assert!(ended?.is_err(), "the transfer got through");
    let lowered = since(cluster.agent(0), mark);
    let lowered = lowered.iter().filter(|event| event.message == LOST);
    assert_eq!(lowered.count(), 1);
    Ok(warning)
}

/// The one line that says what is wrong and how to mend it.
fn the_warning(agent: &mut Daemon, mark: usize) -> Result<LogEvent> {
    let warning = wait_for_message(agent, mark, NOTICE_LIMIT, LOST)?;
    assert_eq!(warning.level, "WARN");
    let fix = warning.text("fix").context("how to mend it")?;
    assert!(fix.contains("ICMP") && fix.contains("MTU"), "{fix}");
    Ok(warning)
}

/// A large body each way, at once.
async fn transfers_complete(cluster: &Cluster) -> Result<()> {
    let (api, target) = (cluster.api()?, cluster.target(0));
    let path = download();
    let down = within(SOON, "download", api.get_pattern(&target, &path, SEED));
    let up = within(
        SOON,
        "upload",
        api.post_pattern(&target, "/sink", LARGE, SEED),
    );
    let (down, up) = tokio::try_join!(down, up)?;
    assert_eq!((down, up.status), (LARGE, 200));
    Ok(())
}

fn download() -> String {
    format!("/bytes?n={LARGE}&seed={SEED}")
}

const BOTH: [Towards; 2] = [Towards::Masters, Towards::Nodes];
const NARROW: u16 = 1500;
const LARGE: u64 = 8 << 20;
const SEED: u64 = 9000;
const LOST: &str = "large packets are lost on the way, session has small segments";

/// 15 s is what is promised; the rest is for a busy machine.
const NOTICE_LIMIT: Duration = Duration::from_secs(18);

/// A minute, and up to 9 s for a trial that begins at a bad moment.
const TRIAL_LIMIT: Duration = Duration::from_secs(80);
