//! Much data through the tunnel, and what becomes of it when one side gives up.
//!
//! The far end and the test make and check the same stream of bytes, each on its own, so that
//! one lost, doubled or misplaced byte is found and located. The volumes are for optimised
//! daemons; `cargo xtask test` builds them so. `resets` is what happens in the middle.

// A test's root file looks for its modules beside itself, where each would be a test of its own.
#[path = "bulk/resets.rs"]
mod resets;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxymux_testkit::{
    apiserver::ApiServer,
    cluster::Cluster,
    far_end::{Closer, Driven, Script, drive},
    wait::eventually,
};
use proxymux_tests::{
    access::{Closed, DONE, access_lines},
    doors::{DOORS, Door, at_master, start_with_both_doors},
    far_target::{ALLOW, far_target, scripted_far_end},
    limits::{SOON, within},
    random_chunks::RandomChunks,
};
use tokio::{task::JoinSet, time::Instant};

#[test]
fn eight_bodies_of_a_gibibyte_each_way_at_once_are_byte_exact() -> Result<()> {
    transfer(Door::Unix, 1 << 30)
}

#[test]
fn bodies_through_the_tcp_door_are_byte_exact() -> Result<()> {
    transfer(Door::Tcp, 64 << 20)
}

#[test]
fn small_and_odd_pieces_are_byte_exact() -> Result<()> {
    let cluster = start_with_both_doors(Cluster::builder().agent_lines(ALLOW))?;
    let far_end = scripted_far_end(&cluster, 0)?;
    let target = far_target(&cluster, 0);
    // Each size at the far end, with a chunk's and a window's edges and one byte beside them.
    let sizes = [1, 2, 3, 1460, 4095, 16_383, 16_384, 16_385, 65_521];
    for door in DOORS {
        let api = door.api(&cluster)?;
        let scripts: Vec<_> = (0_u64..)
            .zip(sizes)
            .flat_map(|(seed, size)| {
                let bytes = 20_000 + 100 * size as u64;
                let script = Script::duplex(bytes, seed).in_chunks_of(size);
                [script.clone(), script.closed_first_by(Closer::FarEnd)]
            })
            .collect();
        at_master(&cluster, drive_all(&api, &target, &scripts, 7))?;
    }

    eventually(SOON, || {
        far_end.outcomes().len() == 2 * DOORS.len() * sizes.len()
    });
    for outcome in far_end.outcomes() {
        assert!(outcome.is_clean(), "{outcome}");
    }
    Ok(())
}

/// Eight transfers at once, each of so many bytes in each direction; half of them are ended first
/// by the client, the others by the target.
fn transfer(door: Door, bytes: u64) -> Result<()> {
    let mut cluster = start_with_both_doors(Cluster::builder().agent_lines(ALLOW))?;
    let far_end = scripted_far_end(&cluster, 0)?;
    let (api, target) = (door.api(&cluster)?, far_target(&cluster, 0));
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let scripts = scripts(seed, bytes);

    let began = Instant::now();
    let driven = at_master(&cluster, drive_all(&api, &target, &scripts, seed));
    let driven = driven.with_context(|| format!("seed {seed}"))?;
    let took = began.elapsed();

    for driven in driven {
        assert_eq!((driven.sent, driven.received), (bytes, bytes));
    }
    eventually(SOON, || far_end.outcomes().len() == scripts.len());
    for outcome in far_end.outcomes() {
        assert!(outcome.is_clean(), "{outcome}");
        assert_eq!((outcome.sent, outcome.received), (bytes, bytes));
    }
    check_access_logs(&mut cluster, door, &scripts, bytes)?;
    print_rate(&mut cluster, took, 2 * bytes * CONNECTIONS)
}

fn scripts(seed: u64, bytes: u64) -> Vec<Script> {
    let mut random = fastrand::Rng::with_seed(seed);
    let closers = [Closer::Client, Closer::FarEnd].into_iter().cycle();
    (0..CONNECTIONS)
        .zip(closers)
        .map(|(number, closer)| {
            // The client's pieces reach down to single bytes. A far end that wrote a gibibyte in
            // such would mostly measure system calls.
            let size = random.usize(2048..65_521);
            let script = Script::duplex(bytes, seed.wrapping_add(2 * number));
            script.closed_first_by(closer).in_chunks_of(size)
        })
        .collect()
}

/// Plays all scripts at once, in pieces of random size.
async fn drive_all(
    api: &ApiServer,
    target: &str,
    scripts: &[Script],
    seed: u64,
) -> Result<Vec<Driven>> {
    let mut transfers = JoinSet::new();
    for (number, script) in (0..).zip(scripts.iter().cloned()) {
        let (api, target) = (api.clone(), target.to_owned());
        transfers.spawn(async move {
            let tunnel = within(SOON, "connect", api.connect(&target)).await?;
            let pieces = RandomChunks::new(tunnel, seed.wrapping_add(2 * number));
            let driven = within(LIMIT, "transfer", drive(pieces, &script)).await;
            driven.with_context(|| script.to_string())
        });
    }
    let mut all = Vec::new();
    while let Some(driven) = transfers.join_next().await {
        all.push(driven??);
    }
    Ok(all)
}

/// Both ends have counted every byte of every transfer.
fn check_access_logs(
    cluster: &mut Cluster,
    door: Door,
    scripts: &[Script],
    bytes: u64,
) -> Result<()> {
    let machine = cluster.topology().master().clone();
    let (node, target) = (cluster.node_name(0), far_target(cluster, 0));
    let at_master = machine.block_on(access_lines(cluster.master(0), scripts.len()))?;
    let at_agent = machine.block_on(access_lines(cluster.agent(0), scripts.len()))?;
    let mut expected: Vec<_> = scripts.iter().map(|script| counts(script, bytes)).collect();
    expected.sort_unstable();

    for (lines, peer) in [
        (at_master, door.peer(cluster)),
        (at_agent, cluster.master_addr(0)),
    ] {
        let mut counted = Vec::new();
        for line in lines {
            let expected = Closed {
                node: &node,
                target: &target,
                peer: &peer,
                bytes_to_target: None,
                bytes_from_target: None,
                outcomes: DONE,
            };
            expected.check(&line)?;
            counted.push((
                line.number("bytes_to_target"),
                line.number("bytes_from_target"),
            ));
        }
        counted.sort_unstable();
        ensure!(
            counted == expected,
            "counted {counted:?}, expected {expected:?}"
        );
    }
    Ok(())
}

/// What a transfer comes to: the script's own line goes to the target, and the report of a far
/// end whose client was first comes from it.
fn counts(script: &Script, bytes: u64) -> (Option<u64>, Option<u64>) {
    let line = format!("{script}\n").len() as u64;
    let client_first = script.clone().closed_first_by(Closer::Client) == *script;
    let report = if client_first {
        format!("ok received={bytes}\n").len() as u64
    } else {
        0
    };
    (Some(line + bytes), Some(report + bytes))
}

fn print_rate(cluster: &mut Cluster, took: Duration, bytes: u64) -> Result<()> {
    let usages = [cluster.master(0).usage()?, cluster.agent(0).usage()?];
    let gibibytes = bytes as f64 / f64::from(1 << 30);
    eprintln!(
        "{gibibytes:.1} GiB in {took:.1?}: {:.2} GiB/s",
        gibibytes / took.as_secs_f64()
    );
    for (name, usage) in ["master", "agent"].into_iter().zip(usages) {
        let per_gibibyte = usage.cpu.as_secs_f64() / gibibytes;
        let resident = usage.rss_bytes >> 20;
        eprintln!("{name}: {per_gibibyte:.2} s of CPU per GiB, {resident} MiB resident");
    }
    Ok(())
}

const CONNECTIONS: u64 = 8;

/// Below the limit at which the runner ends the test, so that the test says which transfer hangs.
const LIMIT: Duration = Duration::from_secs(270);
