//! The end of a daemon by signal.

use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use proxymux_testkit::{
    cluster::Cluster,
    far_end::{FarEnd, Script},
    wait::eventually,
};
use proxymux_tests::{
    access::access_line_with,
    asking::Asking,
    etc_hosts::Resolver,
    events::{complaints, wait_for_message, with_message},
    following::Following,
    limits::{SOON, within},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_without_streams_ends_at_once() -> Result<()> {
    let mut cluster = Cluster::started()?;
    within(
        SOON,
        "ask",
        cluster.api()?.get(&cluster.target(0), "/healthz"),
    )
    .await?;

    let agent = cluster.agent(0);
    agent.signal(Signal::SIGTERM)?;

    // Its drain deadline is 30 s, as always.
    assert_eq!(agent.wait(AT_ONCE)?.code(), Some(0));
    assert_eq!(with_message(agent, "agent ends").len(), 1);
    let ended = wait_for_message(cluster.master(0), 0, SOON, "session ended")?;
    assert_eq!(ended.text("reason"), Some("all streams have ended"));
    assert_eq!(complaints(cluster.agent(0), 0), []);
    assert_eq!(complaints(cluster.master(0), 0), []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agents_streams_go_on_until_its_drain_is_out_of_time() -> Result<()> {
    let mut cluster = Cluster::builder().agent_lines(DRAIN_LINE).start()?;
    let following = Following::start(&cluster.api()?, &cluster.target(0)).await?;

    let told = Instant::now();
    cluster.agent(0).signal(Signal::SIGTERM)?;

    wait_for_message(cluster.master(0), 0, SOON, "agent waits for a successor")?;
    following.goes_on().await?;
    assert!(cluster.agent(0).is_running()?);
    following.breaks(DRAIN + SOON).await?;
    assert!(
        told.elapsed() >= DRAIN,
        "cut off after {:?}",
        told.elapsed()
    );
    assert_eq!(cluster.agent(0).wait(SOON)?.code(), Some(0));
    let cut = wait_for_message(
        cluster.agent(0),
        0,
        SOON,
        "streams cut off, drain is out of time",
    )?;
    assert_eq!(cut.number("cut"), Some(1));
    let line = access_line_with(cluster.agent(0), |_| true).await?;
    assert_eq!(line.text("outcome"), Some("drain"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_ends_with_its_last_stream() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let following = Following::start(&cluster.api()?, &cluster.target(0)).await?;
    cluster.agent(0).signal(Signal::SIGTERM)?;
    following.goes_on().await?;

    drop(following);

    assert_eq!(cluster.agent(0).wait(AT_ONCE)?.code(), Some(0));
    assert_eq!(complaints(cluster.agent(0), 0), []);
    Ok(())
}

#[test]
fn ends_that_do_not_hear_each_other_end_at_once_too() -> Result<()> {
    let mut cluster = Cluster::started()?;
    cluster.topology().silence(cluster.node(0))?;

    cluster.agent(0).signal(Signal::SIGTERM)?;
    cluster.master(0).signal(Signal::SIGTERM)?;

    assert_eq!(cluster.agent(0).wait(AT_ONCE)?.code(), Some(0));
    assert_eq!(cluster.master(0).wait(AT_ONCE)?.code(), Some(0));
    Ok(())
}

#[test]
fn an_agent_that_waits_for_a_name_server_ends_at_once() -> Result<()> {
    let mut cluster = Cluster::builder()
        .agent_lines("server-addr: https://masters.example")
        .build()?;
    let silent = cluster.topology().router().clone();
    silent.nft(
        "table inet silence {\n\
         chain input {\n\
           type filter hook input priority 0;\n\
           udp dport 53 counter drop\n\
         }\n\
         }\n",
    )?;
    let _resolver = Resolver::new(cluster.node(0), silent.ipv4().into())?;
    let agent = cluster.start_agent(0)?;
    eventually(SOON, || {
        let asked = silent
            .command("nft")
            .args(["list", "chain", "inet", "silence", "input"])
            .output();
        let asked = asked.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        asked.is_ok_and(|rules| rules.contains("counter packets") && !rules.contains("packets 0"))
    });

    agent.signal(Signal::SIGTERM)?;

    assert_eq!(agent.wait(AT_ONCE)?.code(), Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_an_agent_at_once() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let following = Following::start(&cluster.api()?, &cluster.target(0)).await?;
    let agent = cluster.agent(0);
    agent.signal(Signal::SIGTERM)?;
    agent.wait_for_line("draining, a second signal ends at once", SOON)?;

    agent.signal(Signal::SIGINT)?;

    assert_eq!(agent.wait(AT_ONCE)?.code(), Some(1));
    let last = agent.lines().pop().unwrap_or_default();
    assert_eq!(last, "proxymux-agent: ended at once by a second signal");
    following.breaks(SOON).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_without_connections_ends_at_once() -> Result<()> {
    let mut cluster = Cluster::started()?;
    within(
        SOON,
        "ask",
        cluster.api()?.get(&cluster.target(0), "/healthz"),
    )
    .await?;

    let master = cluster.master(0);
    master.signal(Signal::SIGTERM)?;

    assert_eq!(master.wait(AT_ONCE)?.code(), Some(0));
    assert_eq!(with_message(master, "master ends").len(), 1);
    assert_eq!(complaints(cluster.master(0), 0), []);
    assert!(
        !cluster.socket(0).exists(),
        "the socket goes with the master"
    );
    wait_for_message(cluster.agent(0), 0, SOON, "master drains the session")?;
    assert_eq!(with_message(cluster.agent(0), "session lost"), []);
    assert!(cluster.agent(0).is_running()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_masters_connections_go_on_until_its_drain_is_out_of_time() -> Result<()> {
    let mut cluster = Cluster::builder().master_lines(DRAIN_LINE).start()?;
    let api = cluster.api()?;
    let following = Following::start(&api, &cluster.target(0)).await?;

    let told = Instant::now();
    cluster.master(0).signal(Signal::SIGTERM)?;

    wait_for_message(cluster.agent(0), 0, SOON, "master drains the session")?;
    following.goes_on().await?;
    assert!(cluster.master(0).is_running()?);
    assert!(
        api.connect(&cluster.target(0)).await.is_err(),
        "nothing new is taken"
    );
    following.breaks(DRAIN + SOON).await?;
    assert!(
        told.elapsed() >= DRAIN,
        "cut off after {:?}",
        told.elapsed()
    );
    assert_eq!(cluster.master(0).wait(SOON)?.code(), Some(0));
    let line = access_line_with(cluster.master(0), |l| l.message == "connection closed").await?;
    assert_eq!(line.text("outcome"), Some("drain"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_a_master_has_dialled_itself_have_the_same_deadline() -> Result<()> {
    let lines = format!("{DRAIN_LINE}\nroutes: [ {{ cidr: 192.0.2.1/32, via: direct }} ]");
    let mut cluster = Cluster::builder().master_lines(lines).start()?;
    let router = cluster.topology().router();
    let far_end =
        router.run(|| async { Ok(FarEnd::fixed("192.0.2.1:30000", Script::Hole).await?) })?;
    let mut tunnel = within(SOON, "connect", cluster.api()?.connect("192.0.2.1:30000")).await?;
    tunnel.write_all(b"in the hole").await?;

    let told = Instant::now();
    cluster.master(0).signal(Signal::SIGTERM)?;

    let read = within(DRAIN + SOON, "the end", tunnel.read(&mut [0; 16])).await;
    assert!(
        told.elapsed() >= DRAIN,
        "cut off after {:?}: {read:?}",
        told.elapsed()
    );
    assert_eq!(cluster.master(0).wait(SOON)?.code(), Some(0));
    let line = access_line_with(cluster.master(0), |l| l.message == "connection closed").await?;
    assert_eq!(
        (line.text("path"), line.text("outcome")),
        (Some("route"), Some("drain"))
    );
    assert_eq!(far_end.accepted(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_a_master_at_once() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let following = Following::start(&cluster.api()?, &cluster.target(0)).await?;
    let master = cluster.master(0);
    master.signal(Signal::SIGINT)?;
    master.wait_for_line("draining, a second signal ends at once", SOON)?;

    master.signal(Signal::SIGTERM)?;

    assert_eq!(master.wait(AT_ONCE)?.code(), Some(1));
    let last = master.lines().pop().unwrap_or_default();
    assert_eq!(last, "proxymux-master: ended at once by a second signal");
    following.breaks(SOON).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_one_master_drains_the_other_serves_the_same_node_without_a_gap() -> Result<()> {
    let mut cluster = Cluster::builder()
        .masters(2)
        .master_lines(DRAIN_LINE)
        .start()?;
    let target = cluster.target(0);
    let following = Following::start(&cluster.api_of(0)?, &target).await?;
    let asking = Asking::start(&cluster.api_of(1)?, &target);
    let mark = cluster.agent(0).mark();

    let told = Instant::now();
    cluster.master(0).signal(Signal::SIGTERM)?;

    wait_for_message(cluster.agent(0), mark, SOON, "master drains the session")?;
    following.breaks(DRAIN + SOON).await?;
    assert!(told.elapsed() >= DRAIN);
    let master = cluster.master(0);
    assert_eq!(master.wait(SOON)?.code(), Some(0));
    let begun = wait_for_message(master, 0, SOON, "drain begins, listeners are closed")?;
    assert_eq!(
        (begun.number("open"), begun.number("deadline_s")),
        (Some(1), Some(4))
    );
    let over = wait_for_message(master, 0, SOON, "drain is over")?;
    assert_eq!(
        (over.number("ended"), over.number("cut")),
        (Some(0), Some(1))
    );
    let answers = asking.stop().await?;
    assert_eq!(answers.failures, [""; 0], "{answers:?}");
    assert!(answers.good > 20, "{answers:?}");
    Ok(())
}

const DRAIN_LINE: &str = "drain-deadline: 4s";
const DRAIN: Duration = Duration::from_secs(4);
/// Milliseconds on an idle machine; far less than any deadline that could be meant instead.
const AT_ONCE: Duration = Duration::from_secs(10);
