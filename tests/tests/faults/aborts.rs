//! Clients that give up at every stage of a connection, and what is left of them: nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxymux_testkit::{cluster::Cluster, wait::eventually_async};
use proxymux_tests::{
    doors::{Door, at_master, start_with_both_doors},
    far_target::far_target,
    faults::{
        Slack,
        aborts::{Targets, storm},
        dispenser, holdings, settle,
    },
};
use tokio::time::{Instant, sleep};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_aborts_leave_nothing_behind() -> Result<()> {
    let seed = crate::seed()?;
    let builder = Cluster::builder().verbosity("info");
    let cluster = start_with_both_doors(builder.agent_lines(ALLOW))?;
    let far_end = dispenser(&cluster, 0)?;
    let targets = Targets {
        dispenser: far_target(&cluster, 0),
        nobody: NOBODY.to_owned(),
    };
    let run = |door: Door, count, seed| {
        let api = door.api(&cluster)?;
        at_master(&cluster, storm(&api, &targets, count, seed)).with_context(|| format!("{door}"))
    };

    // What it takes to be warm is no leak.
    run(Door::Unix, WARM_UP, seed)?;
    run(Door::Tcp, WARM_UP, seed)?;
    eventually_async(SETTLE, async || far_end.open() == 0).await;
    sleep(REST).await;
    let before = holdings(&cluster).await?;
    for round in 1..=ROUNDS {
        let began = Instant::now();
        run(Door::Unix, UNIX, seed + 2 * round)?;
        run(Door::Tcp, TCP, seed + 2 * round + 1)?;
        eprintln!(
            "round {round}: {} aborts in {:?}",
            UNIX + TCP,
            began.elapsed()
        );
        eventually_async(SETTLE, async || far_end.open() == 0).await;
        let now = settle(&cluster, &before, SLACK, SETTLE).await;
        let now = now.with_context(|| format!("round {round}, seed {seed}"))?;
        for (name, now) in now {
            eprintln!("{name}: {now}");
        }
    }
    let panics = |line: &str| line.contains("panic");
    for daemon in cluster.all_daemons() {
        let count = daemon.count_lines(panics);
        ensure!(count == 0, "{} has panicked", daemon.name());
    }
    Ok(())
}

/// The far end, and addresses at which there is nobody.
const ALLOW: &str = "allow: [ { cidr: 10.0.10.0/24, ports: 20000-20999 } ]";
const NOBODY: &str = "10.0.10.77:20001";

/// At each door. Allocators of several threads take a while to have all that they ever need.
const WARM_UP: usize = 5_000;
const ROUNDS: u64 = 4;
/// In each round.
const UNIX: usize = 4_000;
const TCP: usize = 1_000;

/// Ends are passed on within a second.
const REST: Duration = Duration::from_secs(3);
/// How long what is left of the last connections may take to go away.
const SETTLE: Duration = Duration::from_secs(15);
/// An allocator's own.
const SLACK: Slack = Slack {
    rss_kib: 4 * 1024,
    threads: 2,
};
