//! Processes that die without a word, at any moment, under load.
//!
//! The seed decides who is killed and when; it is printed, and `PROXYMUX_SEED` sets it.

use std::time::Duration;

use anyhow::{Context, Result};
use fastrand::Rng;
use proxymux_testkit::{cluster::Cluster, wait::eventually_async};
use proxymux_tests::{
    admin::{at_master, scrape},
    fast_paths::FastPath,
    faults::{HANG, Load, Slack, Stage, Victim, holdings, settle},
};
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deaths_on_the_session_path_hang_nobody_and_lose_no_byte_in_silence() -> Result<()> {
    each_process_dies(None).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deaths_on_the_reverse_path_hang_nobody_and_lose_no_byte_in_silence() -> Result<()> {
    each_process_dies(Some(FastPath::Reverse)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deaths_on_the_direct_path_hang_nobody_and_lose_no_byte_in_silence() -> Result<()> {
    each_process_dies(Some(FastPath::Direct)).await
}

/// Kills agent, master and kubelet in turn while the path is in use. What each holds afterwards is
/// what it held before.
async fn each_process_dies(path: Option<FastPath>) -> Result<()> {
    let seed = crate::seed()?;
    let mut random = Rng::with_seed(seed);
    let usual = || Cluster::builder().verbosity("info");
    let builder = path.map_or_else(usual, |path| path.builder().master_lines(FLOWS));
    let mut stage = Stage::start(builder, crate::KUBELET)?;
    let targets = stage.targets();
    in_use(&stage, path).await?;
    let load = Load::start(&stage.api, &targets, USERS_OF_ONE, random.u64(..));
    sleep(SHORT_WARM_UP).await;
    let quiet = load.stop().await?;
    assert_eq!(quiet.failed.len(), 0, "{:?}", quiet.failed);
    sleep(REST).await;
    in_use(&stage, path).await?;
    let before = holdings(&stage.cluster).await?;

    let load = Load::start(&stage.api, &targets, USERS_OF_ONE, random.u64(..));
    for victim in [Victim::Agent(0), Victim::Master, Victim::Kubelet(0)] {
        in_use(&stage, path).await?;
        sleep(BETWEEN).await;
        let away = AWAY.mul_f64(random.f64());
        let back = stage.kill(victim, away, BACK).await;
        let back = back.with_context(|| format!("seed {seed}"))?;
        eprintln!("{victim}: served again after {back:?}");
    }
    sleep(BETWEEN).await;
    let report = load.stop().await?;

    let (good, failed) = (report.good, report.failed.len());
    eprintln!("{good} requests served, {failed} failed");
    report
        .check(&stage.windows)
        .with_context(|| format!("seed {seed}"))?;
    assert!(report.slowest_failure < HANG);
    assert!(good > 50 && failed > 2, "{report:?}");
    if let Some(path) = path {
        let path = path.as_str();
        let opened = format!("proxymux_master_streams_opened_total{{path=\"{path}\"}}");
        let used = scrape(&at_master(&stage.cluster)).await?.get(&opened);
        assert!(used > 10.0, "{used} connections went by {path}");
    }
    in_use(&stage, path).await?;
    let now = settle(&stage.cluster, &before, SLACK, SETTLE).await;
    let now = now.with_context(|| format!("seed {seed}"))?;
    for ((name, now), (_, before)) in now.iter().zip(&before) {
        eprintln!("{name}: before {before}; now {now}");
    }
    Ok(())
}

/// Waits until connections go this way, and as many idle flows are there as ever will be.
async fn in_use(stage: &Stage, path: Option<FastPath>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    path.is_taken(&stage.cluster).await?;
    let idle = "proxymux_master_flows_idle";
    let at = at_master(&stage.cluster);
    eventually_async(BACK, async || {
        let metrics = scrape(&at).await;
        metrics.is_ok_and(|metrics| metrics.get(idle) >= POOL / 2.0)
    })
    .await;
    Ok(())
}

/// As many flows are kept without load as with it, so that what is held at rest is the same.
const FLOWS: &str = "kubelet-certificates: verified\nflow-pool: 64\n";
const POOL: f64 = 64.0;
const USERS_OF_ONE: usize = 6;
const SHORT_WARM_UP: Duration = Duration::from_secs(2);

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
