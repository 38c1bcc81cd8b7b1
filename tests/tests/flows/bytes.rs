//! Payload on fast paths, byte for byte.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxymux_testkit::{
    apiserver::ApiServer,
    cluster::Cluster,
    far_end::{Closer, Driven, Script, drive_record},
    pattern::{Digest, Pattern},
    process::LogEvent,
    wait::eventually,
};
use proxymux_tests::{
    access::access_lines,
    admin,
    doors::{DOORS, Door, at_master, start_with_both_doors},
    far_target::{far_target, scripted_far_end},
    fast_paths::{FAST_PATHS, FastPath},
    limits::{SOON, within},
    random_chunks::RandomChunks,
};
use tokio::task::JoinSet;

#[test]
fn eight_transfers_of_a_gibibyte_each_way_in_all_are_byte_exact_on_the_reverse_path() -> Result<()>
{
    transfers(FastPath::Reverse, Door::Unix)
}

#[test]
fn eight_transfers_of_a_gibibyte_each_way_in_all_are_byte_exact_on_the_direct_path() -> Result<()> {
    transfers(FastPath::Direct, Door::Unix)
}

/// There the master copies on the client's side, and the agent still splices.
#[test]
fn transfers_through_the_tcp_door_are_byte_exact() -> Result<()> {
    transfers(FastPath::Reverse, Door::Tcp)
}

#[test]
fn small_and_odd_pieces_are_byte_exact() -> Result<()> {
    for path in FAST_PATHS {
        let cluster = start_with_both_doors(path.builder_for_far_end())?;
        let far_end = scripted_far_end(&cluster, 0)?;
        let target = far_target(&cluster, 0);
        at_master(&cluster, path.is_taken(&cluster))?;
        // Each size at the far end, with a page's and a pipe's edges and one byte beside them.
        let sizes = [1, 2, 3, 1460, 4095, 4096, 4097, 65_521];
        for door in DOORS {
            let api = door.api(&cluster)?;
            let scripts: Vec<_> = (0_u64..)
                .zip(sizes)
                .flat_map(|(seed, size)| {
                    let script = Script::duplex(20_000 + 100 * size as u64, seed);
                    let script = script.in_chunks_of(size);
                    [script.clone(), script.closed_first_by(Closer::FarEnd)]
                })
                .collect();
            at_master(&cluster, drive_all(&api, &target, &scripts, 7))?;
        }
        let all = 2 * DOORS.len() * sizes.len();
        eventually(SOON, || far_end.outcomes().len() == all);
        for outcome in far_end.outcomes() {
            assert!(outcome.is_clean(), "{outcome}");
        }
    }
    Ok(())
}

/// The TLS of kube-apiserver and kubelet, which the fast paths are made for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_inside_real_tls_are_byte_exact() -> Result<()> {
    const BYTES: u64 = 64 << 20;
    for path in FAST_PATHS {
        let mut cluster = path.builder().start()?;
        path.is_taken(&cluster).await?;
        let (api, target) = (cluster.api()?, cluster.target(0));

        let body = format!("/bytes?n={BYTES}&seed=5");
        let down = api.get_pattern(&target, &body, 5);
        assert_eq!(within(LIMIT, "download", down).await?, BYTES);
        let up = api.post_pattern(&target, "/sink", BYTES, 6);
        let reply = within(LIMIT, "upload", up).await?;
        let expected = format!("received={BYTES} digest={:016x}\n", digest(6, BYTES));
        assert_eq!(reply.text(), expected);

        let lines = access_lines(cluster.master(0), 2).await?;
        for line in lines
            .iter()
            .chain(&access_lines(cluster.agent(0), 2).await?)
        {
            assert_eq!(line.text("path"), Some(path.as_str()), "{line:#?}");
        }
    }
    Ok(())
}

/// Of the first bytes of a stream.
fn digest(seed: u64, bytes: u64) -> u64 {
    let (pattern, mut digest) = (Pattern::new(seed), Digest::default());
    for offset in (0..bytes).step_by(PIECE) {
        digest.update(pattern.at(offset, PIECE));
    }
    digest.finish()
}

/// Eight transfers at once, all in one cluster; half of them are ended first by the client.
fn transfers(path: FastPath, door: Door) -> Result<()> {
    let mut cluster = start_with_both_doors(path.builder_for_far_end())?;
    let far_end = scripted_far_end(&cluster, 0)?;
    let (api, target) = (door.api(&cluster)?, far_target(&cluster, 0));
    at_master(&cluster, path.is_taken(&cluster))?;
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let scripts: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            let closer = if number % 2 == 0 {
                Closer::Client
            } else {
                Closer::FarEnd
            };
            let script = Script::duplex(BYTES, seed.wrapping_add(2 * number));
            let size = random.usize(2048..65_521);
            script.closed_first_by(closer).in_chunks_of(size)
        })
        .collect();

    let driven = at_master(&cluster, drive_all(&api, &target, &scripts, seed));
    let driven = driven.with_context(|| format!("seed {seed}"))?;

    for driven in driven {
        assert_eq!((driven.sent, driven.received), (BYTES, BYTES));
    }
    eventually(SOON, || far_end.outcomes().len() == scripts.len());
    for outcome in far_end.outcomes() {
        assert!(outcome.is_clean(), "{outcome}");
        assert_eq!((outcome.sent, outcome.received), (BYTES, BYTES));
    }
    check_logs(&mut cluster, path, &scripts)?;
    check_counters(&cluster, path, door)
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
            let driven = within(LIMIT, "transfer", drive_record(pieces, &script)).await;
            driven.with_context(|| script.to_string())
        });
    }
    let mut all = Vec::new();
    while let Some(driven) = transfers.join_next().await {
        all.push(driven??);
    }
    Ok(all)
}

/// Both ends have counted every byte of every transfer, on this path, and found its end in order.
fn check_logs(cluster: &mut Cluster, path: FastPath, scripts: &[Script]) -> Result<()> {
    let machine = cluster.topology().master().clone();
    let at_master = machine.block_on(access_lines(cluster.master(0), scripts.len()))?;
    let at_agent = machine.block_on(access_lines(cluster.agent(0), scripts.len()))?;
    let mut expected: Vec<_> = scripts.iter().map(counts).collect();
    expected.sort_unstable();
    for lines in [at_master, at_agent] {
        let mut counted: Vec<_> = lines.iter().map(counted).collect();
        counted.sort_unstable();
        ensure!(counted == expected, "counted {counted:?}, not {expected:?}");
        for line in lines {
            assert_eq!(line.text("path"), Some(path.as_str()), "{line:#?}");
            assert_eq!(line.text("outcome"), Some("done"), "{line:#?}");
        }
    }
    Ok(())
}

fn counted(line: &LogEvent) -> (Option<u64>, Option<u64>) {
    let number = |field| line.number(field);
    (number("bytes_to_target"), number("bytes_from_target"))
}

/// What a transfer comes to: the record goes to the target, and the report of a far end whose
/// client was first comes from it.
fn counts(script: &Script) -> (Option<u64>, Option<u64>) {
    let record = script.record().len() as u64;
    let client_first = script.clone().closed_first_by(Closer::Client) == *script;
    let report = if client_first {
        format!("ok received={BYTES}\n").len() as u64
    } else {
        0
    };
    (Some(record + BYTES), Some(report + BYTES))
}

/// The counters agree, and say that no payload went through the agent's memory, nor through the
/// master's unless it had to take it out of TLS.
fn check_counters(cluster: &Cluster, path: FastPath, door: Door) -> Result<()> {
    let [master, agent] = at_master(cluster, async {
        let master = admin::scrape(&admin::at_master(cluster)).await?;
        anyhow::Ok([master, admin::scrape(&admin::at_agent(cluster, 0)).await?])
    })?;
    let all = CONNECTIONS as f64;
    for (metrics, daemon) in [(&master, "master"), (&agent, "agent")] {
        let path = path.as_str();
        let opened = format!("proxymux_{daemon}_streams_opened_total{{path=\"{path}\"}}");
        assert_eq!(metrics.get(&opened), all, "{}", metrics.text);
        let by_session = format!("proxymux_{daemon}_streams_opened_total{{path=\"session\"}}");
        assert_eq!(metrics.get(&by_session), 0.0, "{}", metrics.text);
        let moved = format!(
            "proxymux_{daemon}_relayed_bytes_total{{path=\"{path}\",direction=\"to-target\"}}"
        );
        assert!(metrics.get(&moved) > all * BYTES as f64, "{}", metrics.text);
    }
    assert_eq!(agent.get("proxymux_agent_spliced_relays_total"), all);
    if door == Door::Unix {
        assert_eq!(master.get("proxymux_master_spliced_relays_total"), all);
    }
    // Idle pipes are few, and none is held.
    let held = "proxymux_agent_pipes{state=\"held\"}";
    assert_eq!(agent.get(held), 0.0, "{}", agent.text);
    Ok(())
}

const CONNECTIONS: u64 = 8;
const BYTES: u64 = 128 << 20;

/// A part of what bodies inside TLS have.
const PIECE: usize = 32 << 10;

/// Below the limit at which the runner ends the test, so that the test says which transfer hangs.
const LIMIT: Duration = Duration::from_secs(200);
