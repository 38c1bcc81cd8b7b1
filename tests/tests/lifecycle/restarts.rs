//! Restarts in order, which nobody is to notice.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use proxymux_testkit::cluster::Cluster;
use proxymux_tests::{
    access::access_line_with,
    asking::Asking,
    events::{complaints, wait_for_message, with_message},
    following::Following,
    limits::{SOON, within},
};
use tokio::time::sleep;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_an_agent_is_restarted() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let asking = Asking::start(&cluster.api()?, &cluster.target(0));

    for _ in 0..RESTARTS {
        sleep(BETWEEN).await;
        let agent = cluster.agent(0);
        agent.signal(Signal::SIGTERM)?;
        ensure!(agent.wait(SOON)?.success(), "{:?}", agent.lines());
        assert_eq!(complaints(agent, 0), []);
        let mark = cluster.master(0).mark();
        cluster.start_agent(0)?;
        wait_for_message(cluster.master(0), mark, SOON, "session up")?;
    }
    sleep(BETWEEN).await;

    let answers = asking.stop().await?;
    assert_eq!(answers.failures, [""; 0], "{answers:?}");
    assert!(answers.good > 50, "{answers:?}");
    assert_eq!(complaints(cluster.master(0), 0), []);
    Ok(())
}

/// An update that starts the new agent while the old one still has streams.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_an_agent_drains_the_next_one_takes_new_requests() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    let following = Following::start(&api, &target).await?;
    let asking = Asking::start(&api, &target);

    cluster.agent(0).signal(Signal::SIGTERM)?;
    let config = cluster.agent_config(0)?;
    let mut next = cluster.spawn_agent(0, "next-agent.yaml", &config)?;
    next.wait_for_line("session up", SOON)?;
    sleep(BETWEEN).await;

    let answers = asking.stop().await?;
    assert_eq!(answers.failures, [""; 0], "{answers:?}");
    access_line_with(&next, |line| line.text("outcome") == Some("done")).await?;
    following.goes_on().await?;
    drop(following);
    assert_eq!(cluster.agent(0).wait(SOON)?.code(), Some(0));
    assert_eq!(complaints(cluster.agent(0), 0), []);
    // Its admin address is the draining one's until that has ended.
    let of_next = complaints(&next, 0);
    let messages: Vec<_> = of_next.iter().map(|event| &*event.message).collect();
    assert_eq!(messages, ["no admin address, trying on"]);
    assert_eq!(complaints(cluster.master(0), 0), []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_that_is_under_way_is_whole_after_its_agents_end() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    let mut downloads = tokio::task::JoinSet::new();
    for seed in 0..4 {
        let (api, target) = (api.clone(), target.clone());
        downloads.spawn(async move {
            api.get_pattern(&target, &format!("/bytes?n={DOWNLOAD}&seed={seed}"), seed)
                .await
        });
    }
    while cluster.kubelet(0).stats().requests < 4 {
        sleep(Duration::from_millis(5)).await;
    }

    cluster.agent(0).signal(Signal::SIGTERM)?;

    while let Some(download) = downloads.join_next().await {
        assert_eq!(download??, DOWNLOAD);
    }
    assert_eq!(cluster.agent(0).wait(SOON)?.code(), Some(0));
    assert_eq!(complaints(cluster.agent(0), 0), []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_masters_restart_agents_are_back_and_requests_wait_for_them() -> Result<()> {
    let lines = "connect-budget: 15s";
    let mut cluster = Cluster::builder().nodes(2).master_lines(lines).start()?;
    let api = cluster.api()?;
    let marks = [cluster.agent(0).mark(), cluster.agent(1).mark()];

    let master = cluster.master(0);
    master.signal(Signal::SIGTERM)?;
    ensure!(master.wait(SOON)?.success(), "{:?}", master.lines());
    cluster.start_master(0)?;

    for (node, mark) in marks.into_iter().enumerate() {
        let target = cluster.target(node);
        let reply = within(SOON, "ask", api.get(&target, "/healthz")).await?;
        assert_eq!(reply.status, 200);
        wait_for_message(cluster.agent(node), mark, SOON, "session up")?;
        let agent = cluster.agent(node);
        assert_eq!(
            with_message(agent, "session lost"),
            [],
            "it was told before"
        );
    }
    Ok(())
}

const RESTARTS: usize = 3;
const BETWEEN: Duration = Duration::from_millis(500);
/// Seconds on this way, so that it is under way when the signal comes.
const DOWNLOAD: u64 = 64 << 20;
