//! Daemons that hang without dying: their kernels still answer, they do not.
//!
//! A stopped process stands for every kind of hang. Its kernel goes on acknowledging what it is
//! sent, so only the protocol's own answers tell.

use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use proxymux_testkit::cluster::Cluster;
use proxymux_tests::{
    events::wait_for_message,
    following::Following,
    limits::{SOON, within},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_hangs_is_given_up_and_comes_back_by_itself() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    let following = Following::start(&api, &target).await?;
    let mark = cluster.agent(0).mark();

    cluster.agent(0).signal(Signal::SIGSTOP)?;

    let lost = wait_for_message(cluster.master(0), 0, NOTICED, "session lost")?;
    let reason = lost.text("reason").unwrap_or_default();
    assert!(reason.starts_with("peer is silent for 1"), "{reason}");
    following.breaks(SOON).await?;

    cluster.agent(0).signal(Signal::SIGCONT)?;

    wait_for_message(cluster.agent(0), mark, BACK, "session up")?;
    let reply = within(SOON, "ask", api.get(&target, "/healthz")).await?;
    assert_eq!(reply.status, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_hangs_is_given_up_by_its_agents() -> Result<()> {
    let mut cluster = Cluster::started()?;

    cluster.master(0).signal(Signal::SIGSTOP)?;

    let lost = wait_for_message(cluster.agent(0), 0, NOTICED, "session lost")?;
    let reason = lost.text("reason").unwrap_or_default();
    assert!(reason.starts_with("peer is silent for 1"), "{reason}");
    cluster.master(0).signal(Signal::SIGCONT)?;
    Ok(())
}

/// 15 s without a sign, a second for the tick, and a machine under load.
const NOTICED: Duration = Duration::from_secs(30);

/// The longest pause between two attempts, and the attempt.
const BACK: Duration = Duration::from_secs(45);
