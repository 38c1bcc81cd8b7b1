//! More connections at once than there are flows: the session takes those that find none.
//!
//! They are opened a hundred at a time and held, so that what there is of flows is used up; then
//! each is asked for something. Nobody waits for a flow, and the access log says why a connection
//! has none.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use proxymux_tests::{
    access::access_lines,
    limits::{SOON, within},
};
use proxymux_transport::limits::raise_open_files;
use tokio::task::JoinSet;

use crate::stage::{VERIFIED, counts, goes_by, metrics, reverse};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_openings_than_idle_flows_succeed_by_the_session() -> Result<()> {
    let reasons = crowd("flow-pool: 4\n", 4).await?;
    // Those that come while the pool is filled again find some.
    ensure!(reasons.get("no-flow") > Some(&(CROWD / 4)), "{reasons:?}");
    ensure!(!reasons.contains_key("limit"), "{reasons:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_connections_than_a_node_may_have_flows_go_by_the_session() -> Result<()> {
    let lines = format!("flow-pool: 64\nmax-flows-per-node: {FLOWS}\n");
    let reasons = crowd(&lines, FLOWS).await?;
    let flows = reasons.get("").copied().unwrap_or_default();
    ensure!(flows <= FLOWS, "{flows} flows of {FLOWS}: {reasons:?}");
    ensure!(reasons.get("limit") > Some(&(CROWD / 2)), "{reasons:?}");
    Ok(())
}

/// How many of a crowd's connections went by the session for which reason; those that had a flow
/// are under no word.
async fn crowd(lines: &str, ready: usize) -> Result<BTreeMap<String, usize>> {
    raise_open_files();
    let mut cluster = reverse()
        .master_lines(format!("{VERIFIED}{lines}"))
        .start()?;
    goes_by(&cluster, 0, "reverse").await?;
    let least = ready.min(64) as f64;
    counts(&cluster, "proxymux_master_flows_idle", least).await?;
    let (api, target) = (cluster.api()?, cluster.target(0));

    let mut held = Vec::new();
    while held.len() < CROWD {
        let mut opening = JoinSet::new();
        for _ in 0..AT_ONCE {
            let (api, target) = (api.clone(), target.clone());
            opening
                .spawn(async move { within(SOON, "connect", api.connect_kubelet(&target)).await });
        }
        while let Some(opened) = opening.join_next().await {
            held.push(opened??);
        }
    }
    let mut asking = JoinSet::new();
    for mut connection in held {
        asking.spawn(async move { within(SOON, "healthz", connection.get("/healthz")).await });
    }
    while let Some(reply) = asking.join_next().await {
        assert_eq!(reply??.status, 200);
    }

    let mut reasons = BTreeMap::new();
    for line in access_lines(cluster.master(0), CROWD).await? {
        let reason = match line.text("path") {
            Some("reverse") => "",
            Some("session") => line.text("path.reason").unwrap_or("no reason"),
            _ => "another path",
        };
        *reasons.entry(reason.to_owned()).or_default() += 1;
    }
    eprintln!("{reasons:?}");
    // A flow that is slow on a busy machine is none that is missing.
    let expected = ["", "no-flow", "limit", "slow"];
    let others = reasons
        .keys()
        .filter(|reason| !expected.contains(&reason.as_str()));
    ensure!(others.count() == 0, "{reasons:?}");
    for (sample, open) in metrics(&cluster, 0)
        .await?
        .beginning_with("proxymux_master_streams_open{")
    {
        ensure!(open == 0.0, "{sample} {open}");
    }
    // What was used up is there again.
    goes_by(&cluster, 0, "reverse").await?;
    Ok(reasons)
}

const CROWD: usize = 300;
/// Fewer than the dials that a master lets wait for one node.
const AT_ONCE: usize = 100;
const FLOWS: usize = 20;
