//! As many nodes as Kubernetes is made for: how soon the master knows them, and what they cost it.
//!
//! Objects have the size of real ones, since most of what costs time is skipped in them. The figures
//! are printed, and bounded so that a machine under load stays within.

use std::time::Duration;

use anyhow::{Context, Result};
use proxymux_testkit::{node_api::NodeFields, wait::eventually};
use proxymux_tests::{
    admin::{at_master, status},
    events::{complaints, wait_for_message},
    limits::SOON,
};
use tokio::time::Instant;

use super::node_stage::{EXTERNAL, GRANTED, Stage, USER};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_nodes_are_known_soon_and_cost_little() -> Result<()> {
    let mut stage = Stage::new(1)?;
    stage.set(0, &[]);
    for i in 1..NODES {
        let (high, low) = (i / 250, i % 250);
        let name = format!("10.64.{high}.{low}");
        let external = format!("203.0.{high}.{low}");
        let name_in_dns = format!("worker-{i}.nodes.example");
        let fields = NodeFields::with_addresses([
            ("InternalIP", &*name),
            ("Hostname", &*name),
            ("ExternalIP", &*external),
            ("InternalDNS", &*name_in_dns),
        ]);
        let pods = format!("10.{}.{low}.0/24", 100 + high);
        stage.store.set(&name, &fields.pod_cidrs(&[&pods]));
    }
    let kubeconfig = stage.cluster.dir().join("kubeconfig");
    stage.write_kubeconfig(&kubeconfig, USER)?;
    stage.start_master_with(&kubeconfig, "")?;
    stage.start_agents(1)?;
    let before = stage.cluster.master(0).usage()?;

    let mut config = stage.api_config()?;
    config.page = 500;
    let host = stage.cluster.topology().master().clone();
    stage.start_api_at(&host, config)?;
    eventually(SOON, || stage.stats().lists == 1);
    let began = Instant::now();
    wait_for_message(
        stage.cluster.master(0),
        0,
        READ_LIMIT,
        "node objects are read",
    )?;
    let took = began.elapsed();
    eventually(SOON, || stage.stats().watches == 1);

    let after = stage.cluster.master(0).usage()?;
    let grown = after.rss_bytes.saturating_sub(before.rss_bytes);
    let cpu = after.cpu.saturating_sub(before.cpu);
    println!(
        "{NODES} nodes: read within {took:?}, {cpu:?} of processor time; memory {} KiB before, {} KiB after",
        before.rss_bytes >> 10,
        after.rss_bytes >> 10
    );
    assert!(grown < GROWTH_LIMIT, "{grown} bytes for {NODES} nodes");
    let shown = status(&at_master(&stage.cluster)).await?;
    assert_eq!(shown["node_addresses"]["objects"], NODES, "{shown}");

    // One of them changes: that comes by the watch.
    let began = Instant::now();
    stage.set(0, &[EXTERNAL]);
    stage.told(0, 0, GRANTED, EXTERNAL)?;
    println!("a change reached the agent within {:?}", began.elapsed());
    let stats = stage.stats();
    let pages = u64::try_from(NODES / 100).context("pages")? - 1;
    assert_eq!((stats.lists, stats.pages), (1, pages), "{stats:?}");
    assert_eq!(stats.watches, 1, "{stats:?}");
    let complaints = complaints(stage.cluster.master(0), 0);
    let beyond = complaints
        .iter()
        .filter(|event| event.message != "node objects are not known yet");
    assert_eq!(beyond.count(), 0, "the API server was not there at first");
    Ok(())
}

/// What Kubernetes is made for.
const NODES: usize = 5000;

/// It takes a second or two when the machine is idle, and most of that to make the objects.
const READ_LIMIT: Duration = Duration::from_secs(60);

const GROWTH_LIMIT: u64 = 64 << 20;
