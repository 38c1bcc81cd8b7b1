//! One side gives up in the middle of a flow: the other must not take that for an end.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use proxymux_testkit::{
    apiserver::Tunnel,
    cluster::Cluster,
    far_end::{FarEnd, Outcome, Script, drive_record},
    netns::Running,
    pattern::Pattern,
    wait::eventually,
};
use proxymux_tests::{
    access::only_access_lines,
    doors::{DOORS, Door, at_master, start_with_both_doors},
    far_target::{far_target, scripted_far_end},
    fast_paths::{FAST_PATHS, FastPath},
    limits::{SOON, within},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

#[test]
fn a_target_that_resets_in_the_middle_resets_the_client() -> Result<()> {
    for (path, door) in everywhere() {
        let (mut cluster, far_end) = cluster(path)?;
        let (api, target) = (door.api(&cluster)?, far_target(&cluster, 0));
        let script = Script::Reset { after: MIDDLE };

        let driven = at_master(&cluster, async {
            let tunnel = within(SOON, "connect", api.connect(&target)).await?;
            anyhow::Ok(timeout(SOON, drive_record(tunnel, &script)).await?)
        })?;

        match door {
            Door::Tcp => assert_eq!(driven?.sent, MIDDLE),
            // A Unix socket knows no reset. The client's own TLS tells it that the end is none.
            Door::Unix => {
                let error = driven.expect_err("a Unix socket cannot be reset");
                assert_eq!(error.to_string(), "an end of stream instead of a reset");
            }
        }
        let outcome = only_outcome(&far_end);
        assert!(outcome.is_clean(), "{outcome}");
        check_logs(&mut cluster, path, "peer-reset", "reset")?;
    }
    Ok(())
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_download_resets_the_target() -> Result<()> {
    for (path, door) in everywhere() {
        let (mut cluster, far_end) = cluster(path)?;
        let (api, target) = (door.api(&cluster)?, far_target(&cluster, 0));
        let script = Script::source(1 << 40, 3);

        at_master(&cluster, async {
            let mut tunnel = within(SOON, "connect", api.connect(&target)).await?;
            tunnel.write_all(&script.record()).await?;
            within(SOON, "download", download(&mut tunnel, 3)).await?;
            anyhow::Ok(tunnel.abort()?)
        })?;

        let outcome = only_outcome(&far_end);
        assert_reset(&outcome);
        assert!(outcome.sent >= MIDDLE, "{outcome}");
        check_logs(&mut cluster, path, "reset", "peer-reset")?;
    }
    Ok(())
}

#[test]
fn an_agent_that_dies_in_the_middle_resets_both_ends() -> Result<()> {
    for (path, door) in everywhere() {
        let (mut cluster, far_end) = cluster(path)?;
        let (api, target) = (door.api(&cluster)?, far_target(&cluster, 0));
        let machine = cluster.topology().master().runtime()?;
        let script = Script::source(1 << 40, 5);
        let mut tunnel = machine.block_on(async move {
            let mut tunnel = within(SOON, "connect", api.connect(&target)).await?;
            tunnel.write_all(&script.record()).await?;
            within(SOON, "download", download(&mut tunnel, 5)).await?;
            anyhow::Ok(tunnel)
        })?;

        cluster.agent(0).kill()?;

        let ended = machine.block_on(async move {
            // What had got through before is still delivered.
            let mut buffer = vec![0; 64 * 1024];
            let reading = async {
                while tunnel.read(&mut buffer).await? > 0 {}
                std::io::Result::Ok(())
            };
            timeout(SOON, reading).await
        });
        let ended = ended.context("the client was not told")?;
        if door == Door::Tcp {
            let error = ended.expect_err("an end instead of a reset");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
        }
        assert_reset(&only_outcome(&far_end));
    }
    Ok(())
}

/// Its master's sessions and flows go on until they are done, and then it ends.
#[test]
fn an_agent_that_drains_lets_a_flow_finish() -> Result<()> {
    for path in FAST_PATHS {
        let (mut cluster, far_end) = cluster(path)?;
        let (api, target) = (Door::Tcp.api(&cluster)?, far_target(&cluster, 0));
        let machine = cluster.topology().master().runtime()?;
        let mut tunnel = machine.block_on(async move {
            let mut tunnel = within(SOON, "connect", api.connect(&target)).await?;
            tunnel.write_all(&Script::echo(MIDDLE, 6).record()).await?;
            within(SOON, "echo", echo(&mut tunnel, 6, 0)).await?;
            anyhow::Ok(tunnel)
        })?;
        let mark = cluster.agent(0).mark();

        cluster.agent(0).signal(Signal::SIGTERM)?;
        let agent = cluster.agent(0);
        agent.wait_for_line_after(mark, "draining, a second signal ends at once", SOON)?;
        machine.block_on(async move {
            within(SOON, "echo", echo(&mut tunnel, 6, PIECE as u64)).await?;
            tunnel.shutdown().await?;
            let mut rest = Vec::new();
            let end = within(SOON, "the end", tunnel.read_to_end(&mut rest)).await?;
            ensure!(end == 0, "{end} bytes too many");
            Ok(())
        })?;

        let outcome = only_outcome(&far_end);
        assert_eq!(outcome.received, 2 * PIECE as u64, "{outcome}");
        let status = cluster.agent(0).wait(SOON)?;
        assert!(status.success(), "{status:?}");
    }
    Ok(())
}

fn everywhere() -> impl Iterator<Item = (FastPath, Door)> {
    let each = |path: FastPath| DOORS.into_iter().map(move |door| (path, door));
    FAST_PATHS.into_iter().flat_map(each)
}

fn cluster(path: FastPath) -> Result<(Cluster, Running<FarEnd>)> {
    let cluster = start_with_both_doors(path.builder_for_far_end())?;
    let far_end = scripted_far_end(&cluster, 0)?;
    at_master(&cluster, path.is_taken(&cluster))?;
    Ok((cluster, far_end))
}

/// Sends and gets back one piece of a stream.
async fn echo(tunnel: &mut Tunnel, seed: u64, offset: u64) -> Result<()> {
    let pattern = Pattern::new(seed);
    let piece = pattern.at(offset, PIECE);
    tunnel.write_all(piece).await?;
    tunnel.flush().await?;
    let mut buffer = vec![0; PIECE];
    tunnel.read_exact(&mut buffer).await?;
    ensure!(buffer == piece, "another piece came back");
    Ok(())
}

/// Gets the first bytes of a stream.
async fn download(tunnel: &mut Tunnel, seed: u64) -> Result<()> {
    let mut verifier = Pattern::new(seed).verifier();
    let mut buffer = vec![0; PIECE];
    while verifier.offset() < MIDDLE {
        let length = tunnel.read(&mut buffer).await?;
        ensure!(length > 0, "ended after {} bytes", verifier.offset());
        verifier.check(buffer.get(..length).unwrap_or_default())?;
    }
    Ok(())
}

fn only_outcome(far_end: &Running<FarEnd>) -> Outcome {
    eventually(SOON, || far_end.outcomes().len() == 1);
    far_end.outcomes().remove(0)
}

/// The far end saw its connection fail, and no end of the stream.
fn assert_reset(outcome: &Outcome) {
    let problem = outcome.problem.as_deref().unwrap_or_default();
    let reset = problem.contains("Connection reset") || problem.contains("Broken pipe");
    assert!(reset, "{outcome}");
}

/// How the only connection ended, in the logs of both ends.
fn check_logs(
    cluster: &mut Cluster,
    path: FastPath,
    at_master: &str,
    at_agent: &str,
) -> Result<()> {
    let machine = cluster.topology().master().clone();
    let lines = machine.block_on(only_access_lines(cluster, 0))?;
    for (line, expected) in lines.iter().zip([at_master, at_agent]) {
        assert_eq!(line.text("outcome"), Some(expected), "{line:#?}");
        assert_eq!(line.text("path"), Some(path.as_str()), "{line:#?}");
    }
    Ok(())
}

/// Enough to have filled and emptied every buffer on the way several times.
const MIDDLE: u64 = 5_000_000;
const PIECE: usize = 50_000;
