//! One side gives up in the middle: the other must not take that for an end.
//!
//! Over TCP a reset is passed on. A Unix socket knows none, so there the connection is closed, the
//! TLS inside notices that its end is missing, and the access logs say what it was.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxymux_testkit::{
    apiserver::Tunnel,
    cluster::Cluster,
    far_end::{FarEnd, Outcome, Script, drive},
    netns::Running,
    pattern::Pattern,
    wait::eventually,
};
use proxymux_tests::{
    access::{only_access_line, only_access_lines},
    doors::{DOORS, Door, at_master, start_with_both_doors},
    far_target::{ALLOW, far_target, scripted_far_end},
    limits::{SOON, within},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

#[test]
fn a_target_that_resets_in_the_middle_resets_the_client() -> Result<()> {
    for door in DOORS {
        let (mut cluster, far_end) = cluster()?;
        let (api, target) = (door.api(&cluster)?, far_target(&cluster, 0));
        let script = Script::Reset { after: MIDDLE };

        let driven = at_master(&cluster, async {
            let tunnel = within(SOON, "connect", api.connect(&target)).await?;
            anyhow::Ok(timeout(SOON, drive(tunnel, &script)).await?)
        })?;

        match door {
            Door::Tcp => assert_eq!(driven?.sent, MIDDLE),
            // A Unix socket knows no reset. The client's own TLS tells it that the end is none.
            Door::Unix => {
                let error = driven
                    .expect_err("a Unix socket cannot be reset")
                    .to_string();
                assert_eq!(error, "an end of stream instead of a reset");
            }
        }
        let outcome = only_outcome(&far_end);
        assert!(outcome.is_clean(), "{outcome}");
        check_logs(&mut cluster, "peer-reset", "reset")?;
    }
    Ok(())
}

#[test]
fn a_client_that_resets_in_the_middle_of_an_upload_resets_the_target() -> Result<()> {
    // Over TCP: closing a Unix socket ends the client's direction in order, whatever was going
    // on, and it is the client's own TLS that tells the target of an end which is none.
    let (mut cluster, far_end) = cluster()?;
    let (api, target) = (Door::Tcp.api(&cluster)?, far_target(&cluster, 0));
    let script = Script::echo(1 << 40, 2);

    at_master(&cluster, async {
        let mut tunnel = within(SOON, "connect", api.connect(&target)).await?;
        tunnel.write_all(format!("{script}\n").as_bytes()).await?;
        within(SOON, "echo", echo(&mut tunnel, 2)).await?;
        // Something is on its way both ways when it leaves.
        tunnel.write_all(Pattern::new(2).at(MIDDLE, PIECE)).await?;
        anyhow::Ok(tunnel.abort()?)
    })?;

    assert_reset(&only_outcome(&far_end));
    check_logs(&mut cluster, "reset", "peer-reset")
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_download_resets_the_target() -> Result<()> {
    for door in DOORS {
        let (mut cluster, far_end) = cluster()?;
        let (api, target) = (door.api(&cluster)?, far_target(&cluster, 0));
        let script = Script::source(1 << 40, 3);

        at_master(&cluster, async {
            let mut tunnel = within(SOON, "connect", api.connect(&target)).await?;
            tunnel.write_all(format!("{script}\n").as_bytes()).await?;
            within(SOON, "download", download(&mut tunnel, 3)).await?;
            anyhow::Ok(tunnel.abort()?)
        })?;

        let outcome = only_outcome(&far_end);
        assert_reset(&outcome);
        assert!(outcome.sent >= MIDDLE, "{outcome}");
        check_logs(&mut cluster, "reset", "peer-reset")?;
    }
    Ok(())
}

#[test]
fn a_client_that_closes_while_the_target_is_silent_is_noticed() -> Result<()> {
    // Not over TCP, where a close and a half-close look the same until something is sent.
    let (mut cluster, far_end) = cluster()?;
    let (api, target) = (cluster.api()?, far_target(&cluster, 0));

    at_master(&cluster, async {
        let mut tunnel = within(SOON, "connect", api.connect(&target)).await?;
        within(SOON, "hole", drive(&mut tunnel, &Script::Hole)).await
    })?;

    check_logs(&mut cluster, "reset", "peer-reset")?;
    assert_eq!(far_end.accepted(), 1);
    Ok(())
}

#[test]
fn a_target_that_dies_in_the_middle_of_an_upload_does_not_leave_its_client_waiting() -> Result<()> {
    for door in DOORS {
        let (mut cluster, far_end) = cluster()?;
        let (api, target) = (door.api(&cluster)?, far_target(&cluster, 0));
        let script = Script::Hole;

        at_master(&cluster, async {
            let mut tunnel = within(SOON, "connect", api.connect(&target)).await?;
            within(SOON, "hole", drive(&mut tunnel, &script)).await?;
            let full = fill(&mut tunnel).await?;
            ensure!(full > 100_000, "{full} bytes fill everything on the way");
            // What it has not read makes the kernel reset its connection.
            drop(far_end);

            let mut rest = Vec::new();
            let end = within(SOON, "end", async {
                anyhow::Ok(tunnel.read_to_end(&mut rest).await)
            });
            match (door, end.await?) {
                (Door::Unix, _) => {}
                (Door::Tcp, Err(error)) => {
                    ensure!(
                        error.kind() == std::io::ErrorKind::ConnectionReset,
                        "{error}"
                    );
                }
                (Door::Tcp, Ok(_)) => anyhow::bail!("an end instead of a reset"),
            }
            Ok(())
        })?;

        check_logs(&mut cluster, "peer-reset", "reset")?;
    }
    Ok(())
}

#[test]
fn an_agent_that_dies_in_the_middle_resets_both_ends() -> Result<()> {
    for door in DOORS {
        let (mut cluster, far_end) = cluster()?;
        let (api, target) = (door.api(&cluster)?, far_target(&cluster, 0));
        let machine = cluster.topology().master().runtime()?;
        let script = Script::source(1 << 40, 5);
        let tunnel = machine.block_on(async move {
            let mut tunnel = within(SOON, "connect", api.connect(&target)).await?;
            tunnel.write_all(format!("{script}\n").as_bytes()).await?;
            within(SOON, "download", download(&mut tunnel, 5)).await?;
            anyhow::Ok(tunnel)
        })?;

        cluster.agent(0).kill()?;

        let ended = machine.block_on(async move {
            // What had got through before is still delivered.
            let mut tunnel = tunnel;
            let mut buffer = vec![0; 64 * 1024];
            let reading = async {
                while tunnel.read(&mut buffer).await? > 0 {}
                std::io::Result::Ok(())
            };
            timeout(SOON, reading).await
        });
        let ended = ended.context("the client was not told")?;
        match door {
            Door::Unix => {}
            Door::Tcp => {
                let error = ended.expect_err("an end instead of a reset");
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
            }
        }
        assert_reset(&only_outcome(&far_end));
        let line = cluster
            .node(0)
            .clone()
            .block_on(only_access_line(cluster.master(0)))?;
        assert_eq!(line.text("outcome"), Some("session-lost"), "{line:#?}");
    }
    Ok(())
}

fn cluster() -> Result<(Cluster, Running<FarEnd>)> {
    let cluster = start_with_both_doors(Cluster::builder().agent_lines(ALLOW))?;
    let far_end = scripted_far_end(&cluster, 0)?;
    Ok((cluster, far_end))
}

/// Sends and gets back the first bytes of a stream.
async fn echo(tunnel: &mut Tunnel, seed: u64) -> Result<()> {
    let (pattern, mut verifier) = (Pattern::new(seed), Pattern::new(seed).verifier());
    let mut buffer = vec![0; PIECE];
    while verifier.offset() < MIDDLE {
        tunnel
            .write_all(pattern.at(verifier.offset(), PIECE))
            .await?;
        tunnel.flush().await?;
        tunnel.read_exact(&mut buffer).await?;
        verifier.check(&buffer)?;
    }
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

/// Sends until nothing more is taken, and returns how much was.
async fn fill(tunnel: &mut Tunnel) -> Result<u64> {
    let piece = vec![7; PIECE];
    let mut sent = 0;
    while let Ok(written) = timeout(FULL_AFTER, tunnel.write(&piece)).await {
        sent += written? as u64;
    }
    Ok(sent)
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
fn check_logs(cluster: &mut Cluster, at_master: &str, at_agent: &str) -> Result<()> {
    let machine = cluster.topology().master().clone();
    let lines = machine.block_on(only_access_lines(cluster, 0))?;
    for (line, expected) in lines.iter().zip([at_master, at_agent]) {
        assert_eq!(line.text("outcome"), Some(expected), "{line:#?}");
    }
    Ok(())
}

/// Enough to have filled and emptied every buffer on the way several times.
const MIDDLE: u64 = 5_000_000;
const PIECE: usize = 50_000;

/// How long a full connection takes nothing before it counts as one.
const FULL_AFTER: Duration = Duration::from_millis(700);
