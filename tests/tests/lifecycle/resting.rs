//! An agent that nobody wants anything new of for a while.

use std::time::Duration;

use anyhow::Result;
use proxymux_testkit::{cluster::Cluster, wait::eventually};
use proxymux_tests::{
    following::Following,
    limits::{SOON, within},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_at_rest_gives_up_most_of_its_program_and_serves_as_before() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    // A log that is followed does not keep it from resting, and is not harmed by it.
    let following = Following::start(&api, &target).await?;
    let used = cluster.agent(0).usage()?;

    eventually(A_WHILE, || {
        let now = cluster.agent(0).usage();
        now.is_ok_and(|now| now.rss_file_bytes < used.rss_file_bytes * 2 / 3)
    });

    let rests = cluster.agent(0).usage()?;
    for (when, usage) in [("at work", used), ("at rest", rests)] {
        let [all, files] = [usage.rss_bytes, usage.rss_file_bytes].map(|bytes| bytes >> 10);
        eprintln!("{when}: {all} KiB resident, {files} of files");
    }
    following.goes_on().await?;
    let reply = within(SOON, "ask", api.get(&target, "/healthz")).await?;
    assert_eq!(reply.status, 200);
    Ok(())
}

/// Twice what the agent takes to notice that it is at rest, and then some.
const A_WHILE: Duration = Duration::from_secs(60);
