//! Deaths and silence: who notices, how soon, and that all comes back by itself.

use std::time::Duration;

use anyhow::{Context, Result};
use proxymux_testkit::cluster::Cluster;
use proxymux_tests::{
    access::access_line_with,
    events::{complaints, since, wait_for_message},
    following::Following,
    limits::{SOON, within},
    refusals::refused,
};
use tokio::time::{Instant, sleep};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_an_agent_is_killed_its_streams_break_and_the_next_agent_serves() -> Result<()> {
    let lines = "connect-budget: 15s";
    let mut cluster = Cluster::builder().master_lines(lines).start()?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    let following = Following::start(&api, &target).await?;

    cluster.agent(0).kill()?;

    // Its kernel says so at once; a silent death would take 15 s to notice.
    following.breaks(Duration::from_secs(8)).await?;
    let lost = wait_for_message(cluster.master(0), 0, SOON, "session lost")?;
    assert_eq!(lost.level, "WARN");
    assert_eq!(lost.number("streams"), Some(1), "{lost:?}");
    let line = access_line_with(cluster.master(0), |l| l.message == "connection closed").await?;
    assert_eq!(line.text("outcome"), Some("session-lost"));
    assert_eq!(line.text("error"), Some("session ended"));

    // Who asks meanwhile waits.
    let asked = tokio::spawn({
        let (api, target) = (api.clone(), target.clone());
        async move { api.get(&target, "/healthz").await }
    });
    sleep(Duration::from_millis(500)).await;
    cluster.start_agent(0)?;
    let reply = within(SOON, "who asked before", async {
        asked.await.context("task")?.context("ask")
    });
    assert_eq!(reply.await?.status, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_master_is_down_an_agent_says_so_once_and_goes_on_trying() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    let following = Following::start(&api, &target).await?;
    let mark = cluster.agent(0).mark();

    cluster.master(0).kill()?;

    following.breaks(SOON).await?;
    sleep(DOWN).await;
    let said = complaints(cluster.agent(0), mark);
    let words: Vec<_> = said.iter().map(|event| event.message.as_str()).collect();
    assert_eq!(words, ["session lost", "no session"], "{said:#?}");
    let cut = said.first().and_then(|event| event.number("streams"));
    assert_eq!(cut, Some(1), "the log that was followed: {said:#?}");
    let next = said.last().and_then(|event| event.number("retry_in_ms"));
    assert!(next.is_some_and(|next| next <= 30_000), "{said:#?}");
    let tries = since(cluster.agent(0), mark);
    let tries = tries
        .iter()
        .filter(|event| event.message == "still no session");
    let tries = tries.count();
    assert!((2..40).contains(&tries), "{tries} more tries in {DOWN:?}");

    cluster.start_master(0)?;
    let started = Instant::now();
    wait_for_message(cluster.agent(0), mark, BACK_LIMIT, "session up")?;
    eprintln!("session is back {:?} after the master", started.elapsed());
    let reply = within(SOON, "ask", api.get(&target, "/healthz")).await?;
    assert_eq!(reply.status, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_between_the_ends_is_noticed_by_both_and_callers_are_told() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    let following = Following::start(&api, &target).await?;
    let (at_agent, at_master) = (cluster.agent(0).mark(), cluster.master(0).mark());

    cluster.topology().silence(cluster.node(0))?;
    let silent = Instant::now();

    // Who asks before it has been noticed is answered within the budget of 8 s.
    let early = refused(&api, &target, BUDGET_LIMIT).await?;
    assert_eq!(early.code, 504, "{early:?}");
    let lost = wait_for_message(cluster.master(0), at_master, NOTICE_LIMIT, "session lost")?;
    eprintln!(
        "the master noticed {:?} after the last packet",
        silent.elapsed()
    );
    assert!(
        lost.text("reason").unwrap_or_default().contains("silent"),
        "{lost:?}"
    );
    let lost = wait_for_message(cluster.agent(0), at_agent, NOTICE_LIMIT, "session lost")?;
    eprintln!(
        "both had noticed {:?} after the last packet",
        silent.elapsed()
    );
    assert!(
        lost.text("reason").unwrap_or_default().contains("silent"),
        "{lost:?}"
    );
    assert!(silent.elapsed() < NOTICE_LIMIT, "{:?}", silent.elapsed());
    following.breaks(SOON).await?;
    let late = refused(&api, &target, BUDGET_LIMIT).await?;
    assert_eq!(late.code, 503, "{late:?}");
    let reason = format!("node {} has no session; last seen", cluster.node_name(0));
    assert!(late.reason.starts_with(&reason), "{late:?}");

    cluster.topology().restore(cluster.node(0))?;
    let restored = Instant::now();
    wait_for_message(cluster.agent(0), at_agent, BACK_LIMIT, "session up")?;
    eprintln!("session is back {:?} after the silence", restored.elapsed());
    let reply = within(SOON, "ask", api.get(&target, "/healthz")).await?;
    assert_eq!(reply.status, 200);
    let said = complaints(cluster.agent(0), at_agent);
    assert!(said.len() <= 3, "{said:#?}");
    // A link that is dead loses small packets, too.
    let small = cluster.agent(0).count_lines("small segments");
    assert_eq!(small, 0, "the agent blames the size of packets");
    Ok(())
}

/// How long the master is away.
const DOWN: Duration = Duration::from_secs(22);
/// An agent looks at least every 5 s for a master that was away; a margin for a busy machine.
const BACK_LIMIT: Duration = Duration::from_secs(10);
/// 15 s of silence, a second until the next look, a margin for a busy machine.
const NOTICE_LIMIT: Duration = Duration::from_secs(25);
/// The budget, and a margin for a busy machine.
const BUDGET_LIMIT: Duration = Duration::from_secs(14);
