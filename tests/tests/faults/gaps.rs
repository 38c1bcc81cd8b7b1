//! A gap in the middle of a transfer on a flow, shorter than what a session outlives.
//!
//! A download and an upload go on at a pace that a person would not call fast, so that the gap is
//! in their middle; both must move again within the time that is promised for sessions, and be
//! whole at the end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use proxymux_testkit::{apiserver::Tunnel, far_end::Script, pattern::Pattern};
use proxymux_tests::{
    events::with_message,
    far_target::{far_target, scripted_far_end},
    fast_paths::FastPath,
    limits::{SOON, within},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep},
};

use crate::links::{MOVES_AGAIN, SHORT_GAP, kernel_limits_retransmissions};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_costs_a_flow_of_the_reverse_path_little_more_than_the_gap() -> Result<()> {
    outlives_a_gap(FastPath::Reverse).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_costs_a_flow_of_the_direct_path_little_more_than_the_gap() -> Result<()> {
    outlives_a_gap(FastPath::Direct).await
}

async fn outlives_a_gap(path: FastPath) -> Result<()> {
    let mut cluster = path.builder_for_far_end().start()?;
    let _far_end = scripted_far_end(&cluster, 0)?;
    path.is_taken(&cluster).await?;
    let (api, target) = (cluster.api()?, far_target(&cluster, 0));
    let moved = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
    let [down, up] = moved.clone();
    let tunnel = within(SOON, "connect", api.connect(&target)).await?;
    let download = tokio::spawn(download(tunnel, down));
    let tunnel = within(SOON, "connect", api.connect(&target)).await?;
    let upload = tokio::spawn(upload(tunnel, up));
    for moved in &moved {
        reaches(moved, SOME, SOON).await?;
    }

    cluster.topology().silence(cluster.node(0))?;
    sleep(SHORT_GAP).await;
    let before = moved.each_ref().map(|moved| moved.load(Ordering::Relaxed));
    cluster.topology().restore(cluster.node(0))?;
    let mended = Instant::now();

    for ((moved, before), what) in moved.iter().zip(before).zip(["download", "upload"]) {
        ensure!(before < TOTAL, "{what} was over before the gap was");
        reaches(moved, before + 1, SOON).await?;
        let back = mended.elapsed();
        eprintln!("{what} goes on {back:?} after a gap of {SHORT_GAP:?}");
        if kernel_limits_retransmissions()? {
            ensure!(back < MOVES_AGAIN, "{what} stood still for {back:?}");
        }
    }
    within(2 * SOON, "download", async { download.await? }).await?;
    within(2 * SOON, "upload", async { upload.await? }).await?;
    let by_path = |daemon: &proxymux_testkit::process::Daemon| {
        let lines = with_message(daemon, "connection closed");
        let on_path = lines
            .iter()
            .filter(|l| l.text("path") == Some(path.as_str()));
        on_path.count()
    };
    let master = cluster.master(0);
    assert_eq!(with_message(master, "session lost"), []);
    let deadline = Instant::now() + SOON;
    while by_path(master) < 2 {
        ensure!(Instant::now() < deadline, "not both were on a flow");
        sleep(POLL).await;
    }
    Ok(())
}

/// Gets a stream, and checks every byte of it and that it ends where it should.
async fn download(mut tunnel: Tunnel, moved: Arc<AtomicU64>) -> Result<()> {
    tunnel.write_all(&Script::source(TOTAL, 1).record()).await?;
    tunnel.flush().await?;
    let mut verifier = Pattern::new(1).verifier();
    let mut buffer = vec![0; PIECE];
    loop {
        let length = tunnel.read(&mut buffer).await?;
        if length == 0 {
            ensure!(verifier.offset() == TOTAL, "ended at {}", verifier.offset());
            return Ok(());
        }
        verifier.check(buffer.get(..length).context("what was read")?)?;
        moved.store(verifier.offset(), Ordering::Relaxed);
        sleep(PACE.mul_f64(length as f64 / PIECE as f64)).await;
    }
}

/// Sends a stream, of which the far end says whether it was whole.
async fn upload(mut tunnel: Tunnel, moved: Arc<AtomicU64>) -> Result<()> {
    tunnel.write_all(&Script::sink(TOTAL, 2).record()).await?;
    let pattern = Pattern::new(2);
    let mut sent = 0;
    while sent < TOTAL {
        let piece = pattern.at(sent, PIECE);
        tunnel.write_all(piece).await?;
        tunnel.flush().await?;
        sent += piece.len() as u64;
        moved.store(sent, Ordering::Relaxed);
        sleep(PACE).await;
    }
    tunnel.shutdown().await?;
    let mut report = String::new();
    tunnel.read_to_string(&mut report).await?;
    let whole = format!("ok received={TOTAL}\n");
    ensure!(report == whole, "{report:?} instead of {whole:?}");
    Ok(())
}

async fn reaches(moved: &AtomicU64, least: u64, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    while moved.load(Ordering::Relaxed) < least {
        ensure!(Instant::now() < deadline, "stands still below {least}");
        sleep(POLL).await;
    }
    Ok(())
}

/// Far more than what waits on the way, at some 15 MiB a second.
const TOTAL: u64 = 1000 * PIECE as u64;
const PIECE: usize = 50_000;
const PACE: Duration = Duration::from_millis(3);

/// From here on a transfer is in its middle.
const SOME: u64 = TOTAL / 10;

const POLL: Duration = Duration::from_millis(10);
