//! A reader that stalls is only slow: it costs nobody else anything, and it is not killed.
//!
//! Clients that ask for a log and do not read it are ordinary, and so is a kubelet that takes its
//! time. Latencies are compared with those of a cluster beside it that has no such clients, asked
//! in turns, so that whatever else the machine does shows in both.

use std::time::Duration;

use anyhow::{Result, ensure};
use proxymux_testkit::{
    apiserver::{ApiServer, Tunnel},
    cluster::Cluster,
    far_end::{FarEnd, Script, drive},
    netns::Running,
    pattern::Pattern,
};
use proxymux_tests::{
    access::access_lines,
    doors::{DOORS, at_master, start_with_both_doors},
    far_target::{ALLOW, far_target, scripted_far_end},
    latency::Latencies,
    limits::{SOON, within},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::{Instant, sleep, timeout},
};

#[tokio::test]
async fn a_stalled_reader_does_not_slow_another_stream_of_its_node() -> Result<()> {
    let (cluster, _far_end) = cluster()?;
    let (api, target) = (cluster.api()?, far_target(&cluster, 0));
    let download = async || {
        let began = Instant::now();
        let tunnel = within(SOON, "connect", api.connect(&target)).await?;
        within(
            SOON,
            "download",
            drive(tunnel, &Script::source(16 << 20, 1)),
        )
        .await?;
        anyhow::Ok(began.elapsed())
    };
    let mut alone = Latencies::default();
    let mut beside = Latencies::default();

    // In turns, because the speed of the machine changes.
    for _ in 0..10 {
        alone.add(download().await?);
        let stalled = stalled_download(&api, &target).await?;
        beside.add(download().await?);
        drop(stalled);
    }

    eprintln!("alone:                   {alone}\nbeside a stalled reader: {beside}");
    let limit = alone.percentile(50) * 2;
    assert!(
        beside.percentile(50) < limit,
        "slowed from {alone} to {beside}"
    );
    Ok(())
}

#[tokio::test]
async fn a_hundred_stalled_readers_do_not_delay_requests_to_their_node() -> Result<()> {
    let (crowded, _far_end) = cluster()?;
    let (quiet, _) = cluster()?;
    let (api, quiet_api) = (crowded.api()?, quiet.api()?);
    let (target, quiet_target) = (crowded.target(0), quiet.target(0));
    let stalled = stalled_downloads(&api, &far_target(&crowded, 0), 100).await?;

    let mut at_quiet = Latencies::default();
    let mut at_crowded = Latencies::default();
    for _ in 0..400 {
        at_quiet.add(timed_healthz(&quiet_api, &quiet_target).await?);
        at_crowded.add(timed_healthz(&api, &target).await?);
    }

    eprintln!("quiet:   {at_quiet}\ncrowded: {at_crowded}");
    // A few requests of four hundred meet whatever else the machine does: they get more room.
    for (percent, factor) in [(50, 2), (99, 3)] {
        let (quiet, crowded) = (at_quiet.percentile(percent), at_crowded.percentile(percent));
        let limit = quiet * factor + Duration::from_millis(10);
        assert!(
            crowded < limit,
            "p{percent} is {crowded:?}, without stalled readers {quiet:?}"
        );
    }
    assert_eq!(stalled.len(), 100);
    Ok(())
}

#[test]
fn a_reader_that_stalls_for_20_s_gets_every_byte_when_it_goes_on() -> Result<()> {
    let mut cluster = start_with_both_doors(Cluster::builder().agent_lines(ALLOW))?;
    let _far_end = scripted_far_end(&cluster, 0)?;
    let node = cluster.node(0).runtime()?;
    let listener = node.block_on(TcpListener::bind("[::]:20251"))?;
    let slow_target = format!("{}:20251", cluster.node_name(0));
    let target = far_target(&cluster, 0);
    let apis = [DOORS[0].api(&cluster)?, DOORS[1].api(&cluster)?];

    // A client at either door stalls, and so does a target, all in the same 20 s.
    let taken = node.spawn(take_with_stall(listener));
    let (first, second, given) = at_master(&cluster, async {
        tokio::try_join!(
            download_with_stall(&apis[0], &target),
            download_with_stall(&apis[1], &target),
            upload(&apis[0], &slow_target),
        )
    })?;
    let taken = node.block_on(within(SOON, "slow target", taken))??;

    assert_eq!([first, second, given, taken], [BYTES; 4]);
    let machine = cluster.topology().master().clone();
    let lines = machine.block_on(access_lines(cluster.master(0), 3))?;
    for line in lines {
        assert_eq!(line.text("outcome"), Some("done"), "{line:#?}");
        assert!(
            line.number("duration_ms").is_some_and(|ms| ms >= 20_000),
            "{line:#?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn stalled_streams_take_a_bounded_amount_of_memory() -> Result<()> {
    let (mut cluster, far_end) = cluster()?;
    let (api, target) = (cluster.api()?, far_target(&cluster, 0));
    let before = resident(&mut cluster)?;
    let downloads = stalled_downloads(&api, &target, 100).await?;
    settle(&mut cluster).await?;
    let with_downloads = resident(&mut cluster)?;

    let mut uploads = Vec::new();
    for _ in 0..100 {
        let mut tunnel = within(SOON, "connect", api.connect(&target)).await?;
        within(SOON, "hole", drive(&mut tunnel, &Script::Hole)).await?;
        uploads.push(tunnel);
    }
    let piece = vec![7; 64 * 1024];
    let mut filled: u64 = 0;
    for tunnel in &mut uploads {
        while let Ok(written) = timeout(FULL_AFTER, tunnel.write(&piece)).await {
            filled += written? as u64;
        }
    }
    settle(&mut cluster).await?;
    let with_both = resident(&mut cluster)?;

    eprintln!("MiB resident, master and agent: at rest {before:?}, with 100 stalled downloads");
    eprintln!("{with_downloads:?}, with 100 stalled uploads besides {with_both:?}");
    eprintln!(
        "{:.1} MiB taken from each upload",
        filled as f64 / 100.0 / f64::from(1 << 20)
    );
    // A window is 256 KiB, and the receiving side of a stream may have to keep one: 25 MiB for
    // each hundred. What a sender keeps is at most one chunk of 16 KiB.
    for resident in with_both {
        assert!(
            resident < 64,
            "{with_both:?} MiB, expected less than 64 each"
        );
    }
    assert_eq!(far_end.open(), 200);
    drop((downloads, uploads));
    Ok(())
}

fn cluster() -> Result<(Cluster, Running<FarEnd>)> {
    let cluster = Cluster::builder().agent_lines(ALLOW).start()?;
    let far_end = scripted_far_end(&cluster, 0)?;
    Ok((cluster, far_end))
}

/// A client that asks for much and reads nothing.
async fn stalled_download(api: &ApiServer, target: &str) -> Result<Tunnel> {
    let mut tunnel = within(SOON, "connect", api.connect(target)).await?;
    tunnel
        .write_all(format!("{}\n", Script::source(1 << 40, 1)).as_bytes())
        .await?;
    // What has come so far shows that it flows; then it stops where the windows are full.
    within(SOON, "first byte", tunnel.read_u8()).await?;
    Ok(tunnel)
}

async fn stalled_downloads(api: &ApiServer, target: &str, count: usize) -> Result<Vec<Tunnel>> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(stalled_download(api, target).await?);
    }
    Ok(all)
}

async fn timed_healthz(api: &ApiServer, target: &str) -> Result<Duration> {
    let began = Instant::now();
    let reply = within(SOON, "healthz", api.get(target, "/healthz")).await?;
    ensure!(reply.text() == "ok", "healthz: {}", reply.text());
    Ok(began.elapsed())
}

/// Reads a stream with a pause in it that is longer than any limit of ours.
async fn download_with_stall(api: &ApiServer, target: &str) -> Result<u64> {
    let mut tunnel = within(SOON, "connect", api.connect(target)).await?;
    tunnel
        .write_all(format!("{}\n", Script::source(BYTES, 4)).as_bytes())
        .await?;
    let taken = take(&mut tunnel).await?;
    tunnel.shutdown().await?;
    Ok(taken)
}

async fn take_with_stall(listener: TcpListener) -> Result<u64> {
    let (mut connection, _) = within(SOON, "accept", listener.accept()).await?;
    take(&mut connection).await
}

/// Reads a piece, then nothing for 20 s, then the rest, and checks all of it.
async fn take(reader: &mut (impl AsyncReadExt + Unpin)) -> Result<u64> {
    let mut verifier = Pattern::new(4).verifier();
    let mut buffer = vec![0; 64 * 1024];
    let mut stalled = false;
    loop {
        let length = within(SOON, "more", reader.read(&mut buffer)).await?;
        if length == 0 {
            return Ok(verifier.offset());
        }
        verifier.check(buffer.get(..length).unwrap_or_default())?;
        if verifier.offset() > 1_000_000 && !stalled {
            stalled = true;
            sleep(STALL).await;
        }
    }
}

async fn upload(api: &ApiServer, target: &str) -> Result<u64> {
    let mut tunnel = within(SOON, "connect", api.connect(target)).await?;
    let pattern = Pattern::new(4);
    let mut sent = 0;
    while sent < BYTES {
        let piece = pattern.at(sent, usize::try_from(BYTES - sent)?);
        within(STALL + SOON, "room", tunnel.write_all(piece)).await?;
        sent += piece.len() as u64;
    }
    tunnel.shutdown().await?;
    let mut rest = Vec::new();
    within(STALL + SOON, "end", tunnel.read_to_end(&mut rest)).await?;
    ensure!(
        rest.is_empty(),
        "{} bytes from a target that sends none",
        rest.len()
    );
    Ok(sent)
}

/// Waits until both daemons have nothing more to do.
async fn settle(cluster: &mut Cluster) -> Result<()> {
    let settled = async {
        loop {
            let before = cpu(cluster)?;
            sleep(Duration::from_millis(500)).await;
            if cpu(cluster)? - before <= Duration::from_millis(20) {
                return anyhow::Ok(());
            }
        }
    };
    within(SOON * 3, "daemons at rest", settled).await
}

fn cpu(cluster: &mut Cluster) -> Result<Duration> {
    Ok(cluster.master(0).usage()?.cpu + cluster.agent(0).usage()?.cpu)
}

/// MiB of master and agent.
fn resident(cluster: &mut Cluster) -> Result<[u64; 2]> {
    let bytes = [
        cluster.master(0).usage()?.rss_bytes,
        cluster.agent(0).usage()?.rss_bytes,
    ];
    Ok(bytes.map(|bytes| bytes >> 20))
}

const BYTES: u64 = 8 << 20;

/// Longer than a session without life is kept (15 s) and longer than it takes to declare a
/// connection dead whose keep-alive probes are not answered.
const STALL: Duration = Duration::from_secs(20);

/// How long a full connection takes nothing before it counts as one.
const FULL_AFTER: Duration = Duration::from_millis(100);
