//! Processes that die without a word, at any moment, under load.
//!
//! The seed decides who is killed and when; it is printed, and `PROXYMUX_SEED` sets it.

use std::time::Duration;

use anyhow::{Context, Result};
use fastrand::Rng;
use proxymux_testkit::cluster::Cluster;
use proxymux_tests::faults::{HANG, Load, Slack, Stage, Victim, holdings, settle};
use tokio::time::{Instant, sleep};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_deaths_under_load_cost_only_the_requests_of_their_victims() -> Result<()> {
    let seed = crate::seed()?;
    let mut random = Rng::with_seed(seed);
    let builder = Cluster::builder().nodes(NODES).verbosity("info");
    let mut stage = Stage::start(builder, crate::KUBELET)?;
    // What a daemon holds after its first work is what it is to hold after the last.
    let targets = stage.targets();
    let load = Load::start(&stage.api, &targets, USERS, random.u64(..));
    sleep(WARM_UP).await;
    let quiet = load.stop().await?;
    assert_eq!(quiet.failed.len(), 0, "{:?}", quiet.failed);
    sleep(REST).await;
    let before = holdings(&stage.cluster).await?;

    let load = Load::start(&stage.api, &targets, USERS, random.u64(..));
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    for death in 1..=DEATHS {
        sleep(BETWEEN.mul_f64(random.f64())).await;
        let victim = Victim::any(&mut random, targets.len());
        let back = stage
            .kill(victim, AWAY.mul_f64(random.f64()), BACK)
            .await
            .with_context(|| format!("death {death}, seed {seed}"))?;
        slowest = slowest.max(back);
    }
    sleep(BETWEEN).await;
    let report = load.stop().await?;

    eprintln!(
        "{DEATHS} deaths in {:?}: {} requests served, {} failed, the slowest after {:?}; \
         all nodes served again after {slowest:?} at most",
        began.elapsed(),
        report.good,
        report.failed.len(),
        report.slowest_failure,
    );
    report
        .check(&stage.windows)
        .with_context(|| format!("seed {seed}"))?;
    assert!(report.slowest_failure < HANG);
    assert!(report.good > 500 && report.failed.len() > 20, "{report:?}");
    let now = settle(&stage.cluster, &before, SLACK, SETTLE).await;
    let now = now.with_context(|| format!("seed {seed}"))?;
    for ((name, now), (_, before)) in now.iter().zip(&before) {
        eprintln!("{name}: before {before}; now {now}");
    }
    Ok(())
}

const NODES: u8 = 2;
const USERS: usize = 4;
const DEATHS: usize = 50;

/// Long enough for each kind of request.
const WARM_UP: Duration = Duration::from_secs(6);
/// Ends are passed on within a second.
const REST: Duration = Duration::from_secs(3);
/// The longest time between two deaths.
const BETWEEN: Duration = Duration::from_millis(800);
/// The longest time until the next process is started.
const AWAY: Duration = Duration::from_millis(600);
/// An agent looks every 5 s for its master; a margin for a busy machine.
const BACK: Duration = Duration::from_secs(20);
/// How long what is left of the last requests may take to go away.
const SETTLE: Duration = Duration::from_secs(15);
/// An allocator's own, which depends on how many requests met.
const SLACK: Slack = Slack {
    rss_kib: 16 * 1024,
    threads: 2,
};
