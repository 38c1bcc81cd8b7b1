//! `proxymux-master perf`, measuring a real agent by every path that there is.

use anyhow::Result;
use proxymux_testkit::{cluster::Cluster, wait::eventually};
use proxymux_tests::limits::SOON;
use serde_json::Value;

use crate::commands::{MASTER, run};

const VERIFIED: &str = "kubelet-certificates: verified\n";

fn measure(cluster: &Cluster, path: &str) -> Result<Value> {
    let node = format!("--node={}", cluster.node_name(0));
    let path = format!("--path={path}");
    let printed = run(
        cluster,
        MASTER,
        &["perf", &node, &path, "--seconds=1", "--json"],
    )?;
    assert_eq!(printed.code, Some(0), "{printed:?}");
    Ok(serde_json::from_str(&printed.stdout)?)
}

#[test]
fn every_path_that_there_is_gets_figures_and_the_others_a_reason() -> Result<()> {
    let cluster = Cluster::builder().master_lines(VERIFIED).start()?;
    eventually(SOON, || {
        run(&cluster, MASTER, &["nodes", "--json"])
            .is_ok_and(|printed| printed.stdout.contains("\"idle_flows\": 4"))
    });

    let state = measure(&cluster, "all")?;

    for (at, path) in ["session", "reverse"].into_iter().enumerate() {
        let of = &state["paths"][at];
        assert_eq!(of["path"], path);
        assert_eq!(of["problem"], Value::Null, "{of}");
        for figure in [
            "open_p50_us",
            "open_p99_us",
            "request_p50_us",
            "request_p99_us",
            "download_gib_per_s",
            "download_master_cpu_s_per_gib",
            "download_agent_cpu_s_per_gib",
            "upload_gib_per_s",
            "upload_master_cpu_s_per_gib",
            "upload_agent_cpu_s_per_gib",
        ] {
            assert!(
                of[figure].as_f64().is_some_and(|f| f > 0.0),
                "{figure}: {of}"
            );
        }
    }
    assert_eq!(state["paths"][2]["path"], "direct");
    // The node is behind a NAT: it steers if the kernel can, and is not found.
    let problem = state["paths"][2]["problem"].as_str().unwrap_or_default();
    let expected = ["not usable now: unproven", "not usable now: not-steered"];
    assert!(expected.contains(&problem), "{state}");
    Ok(())
}

#[test]
fn an_agent_that_is_not_to_be_measured_says_so() -> Result<()> {
    let cluster = Cluster::builder().agent_lines("perf: off\n").start()?;
    let state = measure(&cluster, "session")?;
    let expected = format!(
        "node {} lets no master measure: its configuration has perf: off",
        cluster.node_name(0)
    );
    assert_eq!(state["paths"][0]["problem"], expected);
    Ok(())
}

#[test]
fn orders_for_unknown_nodes_and_for_no_time_are_refused() -> Result<()> {
    let cluster = Cluster::started()?;
    let node = format!("--node={}", cluster.node_name(0));
    let unknown = run(&cluster, MASTER, &["perf", "--node=10.0.10.99"])?;
    assert_eq!(unknown.code, Some(1));
    assert!(
        unknown.stderr.contains("node 10.0.10.99 has no session"),
        "{unknown:?}"
    );
    let bad = run(&cluster, MASTER, &["perf", &node, "--seconds=0"])?;
    assert_eq!(bad.code, Some(2), "{bad:?}");
    Ok(())
}
