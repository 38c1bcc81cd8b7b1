//! Links that go away without a word, and come back.
//!
//! No end is sent, so both ends have nothing but silence to go by. Limits are those that users
//! are promised, with a margin for a busy machine.

use std::time::Duration;

use anyhow::{Result, ensure};
use proxymux_testkit::{cluster::Cluster, netns::Host};
use proxymux_tests::{
    events::{since, wait_for_message},
    following::Following,
    limits::{SOON, within},
    refusals::refused,
};
use tokio::time::{Instant, sleep};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nodes_link_that_goes_down_is_noticed_and_back_within_seconds() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let node = cluster.node(0).clone();
    gone_and_back(&mut cluster, Link::Interface(node)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_masters_link_that_goes_down_is_noticed_and_back_within_seconds() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let master = cluster.topology().master().clone();
    gone_and_back(&mut cluster, Link::Interface(master)).await
}

/// Here no end has a reason to believe that its own link is at fault, and an agent's attempts to
/// connect hang instead of failing at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_way_that_swallows_everything_is_noticed_and_back_within_seconds() -> Result<()> {
    let mut cluster = Cluster::started()?;
    gone_and_back(&mut cluster, Link::Way).await
}

/// The kernel doubles its pause between two attempts to get a packet through, so that without our
/// limit it would wait for six more seconds when the gap is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_that_a_session_outlives_costs_it_little_more_than_the_gap() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    let following = Following::start(&api, &target).await?;
    let (at_agent, at_master) = (cluster.agent(0).mark(), cluster.master(0).mark());

    Link::Way.cut(&cluster)?;
    sleep(SHORT_GAP).await;
    Link::Way.mend(&cluster)?;
    let mended = Instant::now();
    let lines = following.lines();
    while following.lines() == lines {
        ensure!(mended.elapsed() < SOON, "the log stands still");
        sleep(Duration::from_millis(10)).await;
    }
    let back = mended.elapsed();

    eprintln!("the log goes on {back:?} after a gap of {SHORT_GAP:?}");
    if kernel_limits_retransmissions()? {
        assert!(back < MOVES_AGAIN, "{back:?}");
    }
    following.goes_on().await?;
    let mut said = since(cluster.agent(0), at_agent);
    said.extend(since(cluster.master(0), at_master));
    said.retain(|event| event.message == "session lost");
    assert_eq!(said, []);
    Ok(())
}

/// What is taken away.
#[derive(Clone, Debug)]
enum Link {
    /// The interface of one host, which then has no route.
    Interface(Host),
    /// Everything between the node and its master.
    Way,
}

impl Link {
    fn cut(&self, cluster: &Cluster) -> Result<()> {
        match self {
            Self::Interface(host) => host.link_down(),
            Self::Way => cluster.topology().silence(cluster.node(0)),
        }
    }

    fn mend(&self, cluster: &Cluster) -> Result<()> {
        match self {
            Self::Interface(host) => host.link_up(),
            Self::Way => cluster.topology().restore(cluster.node(0)),
        }
    }
}

async fn gone_and_back(cluster: &mut Cluster, link: Link) -> Result<()> {
    let (api, target) = (cluster.api()?, cluster.target(0));
    let following = Following::start(&api, &target).await?;
    let (at_agent, at_master) = (cluster.agent(0).mark(), cluster.master(0).mark());

    link.cut(cluster)?;
    let cut = Instant::now();

    // Nobody knows yet; the answer comes when the budget of 8 s is spent.
    let early = refused(&api, &target, BUDGET_LIMIT).await?;
    assert_eq!(early.code, 504, "{early:?}");
    let lost = wait_for_message(cluster.master(0), at_master, NOTICED, "session lost")?;
    let master_noticed = cut.elapsed();
    let reason = lost.text("reason").unwrap_or_default();
    assert!(reason.contains("silent"), "{lost:?}");
    let lost = wait_for_message(cluster.agent(0), at_agent, NOTICED, "session lost")?;
    let agent_noticed = cut.elapsed();
    let reason = lost.text("reason").unwrap_or_default();
    assert!(reason.contains("silent"), "{lost:?}");
    eprintln!("noticed: master {master_noticed:?}, agent {agent_noticed:?} after the cut");
    assert!(master_noticed < NOTICED, "{master_noticed:?}");
    assert!(agent_noticed < NOTICED, "{agent_noticed:?}");
    following.breaks(SOON).await?;
    let late = refused(&api, &target, BUDGET_LIMIT).await?;
    assert_eq!(late.code, 503, "{late:?}");

    // Long enough for any pause between attempts to have grown to its limit.
    sleep(LONG_GAP).await;
    let mark = cluster.agent(0).mark();
    link.mend(cluster)?;
    let mended = Instant::now();
    wait_for_message(cluster.agent(0), mark, SOON, "session up")?;
    let back = mended.elapsed();
    eprintln!("session is back {back:?} after the link");
    assert!(back < BACK, "{back:?}");
    let reply = within(SOON, "ask", api.get(&target, "/healthz")).await?;
    assert_eq!(reply.status, 200);
    Ok(())
}

/// Before Linux 6.15 the kernel cannot be told.
pub(crate) fn kernel_limits_retransmissions() -> Result<bool> {
    let version = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = version
        .split(['.', '-', '+'])
        .map_while(|n| n.trim().parse::<u32>().ok());
    let version = (numbers.next(), numbers.next());
    Ok(version >= (Some(6), Some(15)))
}

/// Promised are 17 s: 15 s of silence, a second until the next look, one to act.
const NOTICED: Duration = Duration::from_secs(20);

/// Promised are 5 s.
const BACK: Duration = Duration::from_secs(7);

/// Promised are 3 s.
pub(crate) const MOVES_AGAIN: Duration = Duration::from_millis(4_500);

/// The budget of a request, and a margin for a busy machine.
const BUDGET_LIMIT: Duration = Duration::from_secs(14);

const LONG_GAP: Duration = Duration::from_secs(10);

/// The kernel's attempts lie 0.2, 0.6, 1.4, 3 and 6.2 s after the first packet that was lost, the
/// next is at 12.6 s.
pub(crate) const SHORT_GAP: Duration = Duration::from_millis(6_800);
