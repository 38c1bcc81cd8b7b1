//! A way that is gone without a word, and readers that stall on one that is not.
//!
//! Nothing is sent on an idle flow but keep-alives, and to a stalled reader nothing but questions
//! after its window, which a way that is gone does not answer: what ends both is the death of the
//! session and the lease after it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxymux_testkit::{
    apiserver::Tunnel,
    cluster::Cluster,
    far_end::{FarEnd, Script},
    netns::Running,
    pattern::Pattern,
    wait::eventually,
};
use proxymux_tests::{
    access::access_lines_now,
    doors::{Door, at_master, start_with_both_doors},
    far_target::{far_target, scripted_far_end},
    fast_paths::{FAST_PATHS, FastPath},
    limits::{SOON, within},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::Runtime,
    time::{Instant, sleep, timeout},
};

#[test]
fn a_way_that_is_gone_ends_idle_and_stalled_flows_within_35_seconds() -> Result<()> {
    for path in FAST_PATHS {
        let (mut cluster, far_end) = cluster(path)?;
        let machine = cluster.topology().master().runtime()?;
        let (api, target) = (Door::Tcp.api(&cluster)?, far_target(&cluster, 0));
        let (mut idle, stalled) = machine.block_on(async move {
            let mut idle = within(SOON, "connect", api.connect(&target)).await?;
            idle.write_all(&Script::echo(1 << 40, 1).record()).await?;
            within(SOON, "echo", echo(&mut idle, 1, 0)).await?;
            let stalled = stall(within(SOON, "connect", api.connect(&target)).await?, 2).await?;
            anyhow::Ok((idle, stalled))
        })?;

        cluster.topology().silence(cluster.node(0))?;
        let cut = Instant::now();

        // The client that waits is told.
        let ended = machine.block_on(async move {
            let ended = timeout(GONE, idle.read(&mut [0])).await;
            (ended, stalled)
        });
        let (idle_ended, mut stalled) = ended;
        idle_ended.context("the idle client was not told")?.ok();
        // And so does each daemon of both, whatever its neighbour can still be told.
        for daemon in ["master", "agent"] {
            loop {
                let daemon = match daemon {
                    "master" => cluster.master(0),
                    _ => cluster.agent(0),
                };
                let lines = access_lines_now(daemon);
                if lines.len() >= 2 {
                    let outcomes: Vec<_> = lines.iter().map(|l| l.text("outcome")).collect();
                    eprintln!("{}: {outcomes:?} after {:?}", daemon.name(), cut.elapsed());
                    break;
                }
                ensure!(cut.elapsed() < GONE, "{}: {lines:#?}", daemon.name());
                machine.block_on(async { sleep(Duration::from_millis(50)).await });
            }
        }
        ensure!(cut.elapsed() < GONE, "took {:?}", cut.elapsed());
        eventually(SOON, || far_end.outcomes().len() == 2);
        let read = machine.block_on(async move {
            let mut rest = Vec::new();
            let read = within(SOON, "the end", async {
                anyhow::Ok(stalled.read_to_end(&mut rest).await.is_err())
            });
            read.await
        })?;
        assert!(read, "an end instead of a reset");
    }
    Ok(())
}

/// Far longer than keep-alive, the session's liveness and the lease together.
#[test]
fn a_reader_that_stalls_on_a_way_that_stands_is_only_slow() -> Result<()> {
    let mut all = Vec::new();
    for path in FAST_PATHS {
        let (cluster, far_end) = cluster(path)?;
        let machine = cluster.topology().master().runtime()?;
        let (api, target) = (cluster.api()?, far_target(&cluster, 0));
        let stalled = machine.block_on(async move {
            stall(within(SOON, "connect", api.connect(&target)).await?, 3).await
        })?;
        all.push((cluster, far_end, machine, stalled));
    }
    Runtime::new()?.block_on(async { sleep(STALLED).await });
    for (mut cluster, far_end, machine, mut stalled) in all {
        let _stalled = machine.block_on(async move {
            let mut verifier = Pattern::new(3).verifier();
            let mut buffer = vec![0; 64 * 1024];
            while verifier.offset() < MUCH {
                let n = within(SOON, "more", stalled.read(&mut buffer)).await?;
                ensure!(n > 0, "ended after {} bytes", verifier.offset());
                verifier.check(buffer.get(..n).unwrap_or_default())?;
            }
            anyhow::Ok(stalled)
        })?;
        assert_eq!(far_end.outcomes().len(), 0);
        for daemon in [
            access_lines_now(cluster.master(0)),
            access_lines_now(cluster.agent(0)),
        ] {
            assert!(daemon.is_empty(), "{daemon:#?}");
        }
    }
    Ok(())
}

fn cluster(path: FastPath) -> Result<(Cluster, Running<FarEnd>)> {
    let cluster = start_with_both_doors(path.builder_for_far_end())?;
    let far_end = scripted_far_end(&cluster, 0)?;
    at_master(&cluster, path.is_taken(&cluster))?;
    Ok((cluster, far_end))
}

/// A download that nobody reads, once every buffer on the way is full.
async fn stall(mut tunnel: Tunnel, seed: u64) -> Result<Tunnel> {
    tunnel
        .write_all(&Script::source(1 << 40, seed).record())
        .await?;
    tunnel.flush().await?;
    sleep(FULL_AFTER).await;
    Ok(tunnel)
}

async fn echo(tunnel: &mut Tunnel, seed: u64, offset: u64) -> Result<()> {
    let pattern = Pattern::new(seed);
    let piece = pattern.at(offset, 1000);
    tunnel.write_all(piece).await?;
    tunnel.flush().await?;
    let mut buffer = [0; 1000];
    tunnel.read_exact(&mut buffer).await?;
    ensure!(buffer == piece, "another piece came back");
    Ok(())
}

/// What users are promised.
const GONE: Duration = Duration::from_secs(35);

const STALLED: Duration = Duration::from_mins(2);

const FULL_AFTER: Duration = Duration::from_secs(2);

/// Far more than what waits on the way.
const MUCH: u64 = 20_000_000;
