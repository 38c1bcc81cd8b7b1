//! What scrapes of both ends say before, during and after traffic.
//!
//! Counters count each thing once, gauges return to where they were, and no label tells who
//! talks to whom.

use anyhow::Result;
use proxymux_testkit::{cluster::Cluster, far_end::Script, wait::eventually_async};
use proxymux_tests::{
    access::access_lines,
    admin::{Metrics, at_agent, at_master, scrape},
    far_target::{ALLOW, far_target, scripted_far_end},
    following::Following,
    limits::{SOON, within},
    refusals::refused,
};
use tokio::io::AsyncWriteExt;

const FROM_TARGET: &str = r#"relayed_bytes_total{path="session",direction="from-target"}"#;
const TO_TARGET: &str = r#"relayed_bytes_total{path="session",direction="to-target"}"#;
const OPEN: &str = r#"streams_open{path="session"}"#;
const DONE: &str = r#"streams_closed_total{path="session",outcome="done"}"#;
const BLOCKED: &str = "oldest_blocked_stream_seconds";

/// The numbers of one sample at both ends, the master's first.
fn both([master, agent]: &[Metrics; 2], sample: &str) -> [f64; 2] {
    [
        master.get(&format!("proxymux_master_{sample}")),
        agent.get(&format!("proxymux_agent_{sample}")),
    ]
}

async fn scrape_both(cluster: &Cluster) -> Result<[Metrics; 2]> {
    Ok([
        scrape(&at_master(cluster)).await?,
        scrape(&at_agent(cluster, 0)).await?,
    ])
}

/// Waits until a sample has these numbers at both ends.
async fn until_both(cluster: &Cluster, sample: &str, expected: f64) {
    eventually_async(SOON, async || match scrape_both(cluster).await {
        Ok(metrics) => both(&metrics, sample) == [expected; 2],
        Err(_) => false,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_followed_log_shows_while_it_runs_and_nothing_stays_open_after_it() -> Result<()> {
    let cluster = Cluster::started()?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    let before = scrape_both(&cluster).await?;
    assert_eq!(both(&before, OPEN), [0.0; 2]);
    assert_eq!(both(&before, "sessions_open"), [1.0; 2]);
    assert_eq!(both(&before, FROM_TARGET), [0.0; 2]);

    let following = Following::start(&api, &target).await?;
    let during = scrape_both(&cluster).await?;
    following.goes_on().await?;
    let later = scrape_both(&cluster).await?;

    assert_eq!(both(&during, OPEN), [1.0; 2]);
    for end in [0, 1] {
        let moved = |metrics| both(metrics, FROM_TARGET).into_iter().nth(end);
        assert!(moved(&during) > Some(0.0), "bytes of an open stream");
        assert!(moved(&later) > moved(&during), "and they grow");
    }
    drop(following);
    until_both(&cluster, OPEN, 0.0).await;
    let after = scrape_both(&cluster).await?;
    assert_eq!(
        both(&after, r#"streams_opened_total{path="session"}"#),
        [1.0; 2]
    );
    let closed = r#"streams_closed_total{path="session""#;
    for (metrics, program) in after.iter().zip(["proxymux_master_", "proxymux_agent_"]) {
        let name = format!("{program}{closed}");
        let all: f64 = metrics
            .beginning_with(&name)
            .map(|(_, number)| number)
            .sum();
        assert_eq!(all, 1.0, "closed once, for one reason");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_counted_once_with_all_their_bytes_and_times() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    for _ in 0..5 {
        let reply = within(SOON, "healthz", api.get(&target, "/healthz")).await?;
        assert_eq!(reply.status, 200);
    }
    // A client does not take all of what is sent as it leaves, so the ends may differ.
    let logs = [
        access_lines(cluster.master(0), 5).await?,
        access_lines(cluster.agent(0), 5).await?,
    ];
    until_both(&cluster, DONE, 5.0).await;

    let metrics = scrape_both(&cluster).await?;

    for (sample, field) in [
        (TO_TARGET, "bytes_to_target"),
        (FROM_TARGET, "bytes_from_target"),
    ] {
        let logged = logs.each_ref().map(|lines| {
            let numbers = lines.iter().filter_map(|line| line.number(field));
            f64::from(u32::try_from(numbers.sum::<u64>()).unwrap_or(u32::MAX))
        });
        assert_eq!(both(&metrics, sample), logged, "{sample}");
    }
    let [master, agent] = &metrics;
    assert_eq!(
        master.get("proxymux_master_open_duration_seconds_count"),
        5.0
    );
    assert_eq!(agent.get("proxymux_agent_dial_duration_seconds_count"), 5.0);
    for sample in ["resident_memory_bytes", "open_fds"] {
        let numbers = both(&metrics, sample);
        assert!(
            numbers.iter().all(|number| *number > 0.0),
            "{sample}: {numbers:?}"
        );
    }
    // The first ping is answered a moment after a session is up.
    eventually_async(SOON, async || match scrape_both(&cluster).await {
        Ok(metrics) => {
            let answered = both(&metrics, "session_rtt_seconds_count");
            answered.iter().all(|count| *count >= 1.0)
        }
        Err(_) => false,
    })
    .await;
    assert_eq!(both(&metrics, "tasks_panicked_total"), [0.0; 2]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_counted_by_reason_and_open_nothing() -> Result<()> {
    let cluster = Cluster::started()?;
    let (api, name) = (cluster.api()?, cluster.node_name(0));

    refused(&api, &format!("{name}:22"), SOON).await?;
    refused(&api, &format!("{name}:22"), SOON).await?;

    let [master, agent] = scrape_both(&cluster).await?;
    let at_master = r#"proxymux_master_requests_refused_total{reason="forbidden"}"#;
    let at_agent = r#"proxymux_agent_streams_refused_total{reason="not-allowed"}"#;
    assert_eq!((master.get(at_master), agent.get(at_agent)), (2.0, 2.0));
    assert_eq!(
        both(&[master, agent], r#"streams_opened_total{path="session"}"#),
        [0.0; 2]
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stalls_is_seen_for_as_long_as_it_does() -> Result<()> {
    let cluster = Cluster::builder().agent_lines(ALLOW).start()?;
    let _far_end = scripted_far_end(&cluster, 0)?;
    let (api, target) = (cluster.api()?, far_target(&cluster, 0));
    let mut tunnel = within(SOON, "connect", api.connect(&target)).await?;
    assert_eq!(both(&scrape_both(&cluster).await?, BLOCKED), [0.0; 2]);

    let script = Script::source(1 << 30, 1);
    tunnel.write_all(format!("{script}\n").as_bytes()).await?;

    // The master's client is not read, and so the agent's stream gets no credit.
    eventually_async(SOON, async || match scrape_both(&cluster).await {
        Ok(metrics) => both(&metrics, BLOCKED).iter().all(|seconds| *seconds > 1.0),
        Err(_) => false,
    })
    .await;
    drop(tunnel);
    until_both(&cluster, BLOCKED, 0.0).await;
    until_both(&cluster, OPEN, 0.0).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_label_says_who_talks_to_whom() -> Result<()> {
    let cluster = Cluster::builder().nodes(2).agent_lines(ALLOW).start()?;
    let api = cluster.api()?;
    for node in 0..2 {
        within(SOON, "healthz", api.get(&cluster.target(node), "/healthz")).await?;
    }
    refused(&api, &far_target(&cluster, 0), SOON).await?;
    let topology = cluster.topology();
    let hosts = topology.masters().iter().chain(topology.nodes());
    let mut told: Vec<_> = hosts
        .flat_map(|host| host.addresses())
        .map(|address| address.to_string())
        .collect();
    told.extend(["12250", "10250", "20250", "ocid1"].map(str::to_owned));

    let mut scrapes = Vec::from(scrape_both(&cluster).await?);
    scrapes.push(scrape(&at_agent(&cluster, 1)).await?);

    for scrape in scrapes {
        for line in scrape.text.lines() {
            // A number may look like anything.
            let names = line.rsplit_once(' ').map_or(line, |(names, _)| names);
            let found = told.iter().find(|word| names.contains(word.as_str()));
            assert_eq!(found, None, "{line}");
        }
    }
    Ok(())
}
