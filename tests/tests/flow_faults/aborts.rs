//! Clients that give up at every stage of a connection on a flow, and what is left of them.
//!
//! The kubelet is a far end that does what its clients' first bytes say. The pool is as large as it
//! may become, so that the number of descriptors at rest is the same before and after.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxymux_testkit::wait::eventually_async;
use proxymux_tests::{
    doors::{Door, at_master, start_with_both_doors},
    far_target::far_target,
    faults::{
        Slack,
        aborts::{Targets, storm},
        dispenser, holdings_at_rest, settle,
    },
};
use tokio::time::sleep;

use crate::stage::{VERIFIED, direct, goes_by, metrics, reverse};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aborts_on_flows_leave_nothing_behind() -> Result<()> {
    for (builder, path) in [(reverse(), "reverse"), (direct(), "direct")] {
        let mode = if path == "direct" { "mode: ebpf\n" } else { "" };
        let builder = builder
            .master_lines(format!("{VERIFIED}flow-pool: 64\n"))
            .agent_lines(format!("{mode}kubelet-addr: 10.0.10.10:20250\n"));
        let cluster = start_with_both_doors(builder)?;
        let far_end = dispenser(&cluster, 0)?;
        goes_by(&cluster, 0, path).await?;
        let targets = Targets {
            dispenser: far_target(&cluster, 0),
            nobody: format!("{}:20999", cluster.node_name(0)),
        };
        let run = |door: Door, count, seed| {
            let api = door.api(&cluster)?;
            at_master(&cluster, storm(&api, &targets, count, seed))
                .with_context(|| format!("{path}, {door}"))
        };
        let at_rest = async || {
            eventually_async(SETTLE, async || far_end.open() == 0).await;
            eventually_async(SETTLE, async || {
                let metrics = metrics(&cluster, 0).await;
                metrics.is_ok_and(|metrics| metrics.get("proxymux_master_flows_idle") == 64.0)
            })
            .await;
            sleep(REST).await;
        };

        // What it takes to be warm is no leak.
        run(Door::Unix, WARM_UP, 1)?;
        run(Door::Tcp, WARM_UP, 2)?;
        at_rest().await;
        let before = holdings_at_rest(&cluster).await?;
        run(Door::Unix, ABORTS, 3)?;
        run(Door::Tcp, ABORTS, 4)?;
        at_rest().await;

        for (name, now) in settle(&cluster, &before, SLACK, SETTLE).await? {
            eprintln!("{path}: {name}: {now}");
        }
        let metrics = metrics(&cluster, 0).await?;
        let opened = format!("proxymux_master_streams_opened_total{{path=\"{path}\"}}");
        ensure!(
            metrics.get(&opened) > (ABORTS / 2) as f64,
            "only {} connections went by {path}",
            metrics.get(&opened)
        );
        for (sample, open) in metrics.beginning_with("proxymux_master_streams_open{") {
            ensure!(open == 0.0, "{sample} {open}");
        }
        assert_eq!(metrics.get("proxymux_master_pipes{state=\"held\"}"), 0.0);
    }
    Ok(())
}

const WARM_UP: usize = 1_000;
/// At each door, so that there are 20,000 in all.
const ABORTS: usize = 5_000;
/// Ends are passed on within a second.
const REST: Duration = Duration::from_secs(3);
/// How long what is left of the last connections may take to go away.
const SETTLE: Duration = Duration::from_secs(20);
/// An allocator's own.
const SLACK: Slack = Slack {
    rss_kib: 6 * 1024,
    threads: 2,
};
