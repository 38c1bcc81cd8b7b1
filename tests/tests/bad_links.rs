//! Links that are bad and not broken: slow ones under load, and ones that lose packets.
//!
//! A session on such a link is as good as the link is. It must not be taken for a dead one, nor
//! for one that needs small segments, whatever queues or is sent again. Silence is `lifecycle`,
//! packets of a certain size that never pass are `path_mtu`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use proxymux_testkit::{apiserver::ApiServer, cluster::Cluster, netns::Towards};
use proxymux_tests::{
    access::access_line_with,
    events::{complaints, with_message},
    limits::within,
};
use proxymux_transport::{admin::fetch, config_file::values::AdminAddr};
use tokio::time::{Instant, sleep};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_link_that_is_saturated_for_a_minute_keeps_its_session() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    let admins = ["agent-0.admin", "master-0.admin"].map(|socket| cluster.dir().join(socket));
    for towards in BOTH {
        cluster.topology().shape(towards, "2mbit")?;
    }
    let answered_before = answered_pings(&admins).await?;

    // More than fits into the minute, both ways at once.
    let path = format!("/bytes?n={ENDLESS}&seed={SEED}");
    let down = tokio::spawn({
        let (api, target) = (api.clone(), target.clone());
        async move { api.get_pattern(&target, &path, SEED).await.map(drop) }
    });
    let up = tokio::spawn({
        let (api, target) = (api.clone(), target.clone());
        async move {
            let sent = api.post_pattern(&target, "/sink", ENDLESS, SEED).await;
            sent.map(drop)
        }
    });
    let slowest = others_are_served(&api, &target, SATURATED).await?;
    eprintln!("the slowest request beside the load took {slowest:?}");
    ensure!(!down.is_finished() && !up.is_finished(), "a transfer broke");
    let answered = answered_pings(&admins).await?;
    down.abort();
    up.abort();

    // It was a load: 250 kB/s each way have room for 15 MB.
    for field in ["bytes_from_target", "bytes_to_target"] {
        let line = access_line_with(cluster.master(0), |line| {
            line.number(field).is_some_and(|bytes| bytes > A_LOAD)
        });
        let line = line
            .await
            .with_context(|| format!("{field} beyond {A_LOAD}"))?;
        eprintln!("{field}: {:?}", line.number(field));
    }
    for (end, (before, after)) in admins.iter().zip(answered_before.iter().zip(answered)) {
        // One is sent each 5 s, and waits behind what is queued.
        let answered = after - before;
        ensure!(
            answered >= 6,
            "{}: {answered} pings answered",
            end.display()
        );
    }
    assert_eq!(with_message(cluster.agent(0), "session up").len(), 1);
    assert_eq!(with_message(cluster.master(0), "session up").len(), 1);
    assert_eq!(cluster.agent(0).count_lines("stands still"), 0);
    assert_eq!(complaints(cluster.agent(0), 0), []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_loses_two_packets_of_a_hundred_one_way_carries_a_large_body() -> Result<()> {
    for towards in BOTH {
        let mut cluster = Cluster::started()?;
        let (api, target) = (cluster.api()?, cluster.target(0));
        cluster.topology().lose(towards, 2)?;

        let began = Instant::now();
        let path = format!("/bytes?n={LARGE}&seed={SEED}");
        let got = within(LOSSY, "download", api.get_pattern(&target, &path, SEED)).await?;
        eprintln!("{towards:?}: {LARGE} bytes in {:?}", began.elapsed());

        assert_eq!(got, LARGE);
        assert_eq!(with_message(cluster.agent(0), "session up").len(), 1);
        assert_eq!(complaints(cluster.agent(0), 0), []);
    }
    Ok(())
}

/// Asks for something small again and again for so long; returns the longest that one took.
async fn others_are_served(api: &ApiServer, target: &str, time: Duration) -> Result<Duration> {
    let until = Instant::now() + time;
    let mut slowest = Duration::ZERO;
    while Instant::now() < until {
        let asked = Instant::now();
        let reply = within(GENEROUS, "a small request", api.get(target, "/healthz")).await?;
        ensure!(reply.status == 200, "{reply:?}");
        slowest = slowest.max(asked.elapsed());
        sleep(BETWEEN).await;
    }
    Ok(slowest)
}

/// How many pings the agent's and the master's peer have answered.
async fn answered_pings(admins: &[PathBuf; 2]) -> Result<[u64; 2]> {
    let [agent, master] = admins;
    Ok([
        answered(agent, "proxymux-agent", "proxymux_agent").await?,
        answered(master, "proxymux-master", "proxymux_master").await?,
    ])
}

async fn answered(admin: &Path, daemon: &'static str, prefix: &str) -> Result<u64> {
    let reply = fetch(&AdminAddr::Unix(admin.to_owned()), daemon, "/metrics").await?;
    let name = format!("{prefix}_session_rtt_seconds_count ");
    let count = reply.body.lines().find_map(|line| line.strip_prefix(&name));
    let count = count.with_context(|| format!("no {name}in:\n{}", reply.body))?;
    count.parse().with_context(|| format!("{name}{count}"))
}

const BOTH: [Towards; 2] = [Towards::Masters, Towards::Nodes];
const SEED: u64 = 2000;
const ENDLESS: u64 = 1 << 30;
const LARGE: u64 = 32 << 20;

/// For so long the link is saturated.
const SATURATED: Duration = Duration::from_secs(60);

/// A third of what the link carries in that time; handshakes, acknowledgements and small requests
/// have their part.
const A_LOAD: u64 = 5_000_000;

const BETWEEN: Duration = Duration::from_secs(2);

/// A small request has some five round trips, each of which waits behind up to half a second of
/// what is queued, in either direction.
const GENEROUS: Duration = Duration::from_secs(30);

/// Seconds on a machine that has nothing else to do.
const LOSSY: Duration = Duration::from_secs(60);
