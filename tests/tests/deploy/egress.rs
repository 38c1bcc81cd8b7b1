//! The routes and the list of nodes that stand beside the egress selector, as kube-apiserver
//! meets them: a webhook by its service, a pod, a kubelet, and what nobody has listed.
//!
//! The files are the samples as they are; their third node has the name of the testkit's first.

use std::fs;

use anyhow::{Context, Result};
use proxymux_testkit::{
    cluster::Cluster,
    far_end::FarEnd,
    netns::{Host, Running},
};
use proxymux_tests::{
    access::access_line_with,
    limits::{SOON, within},
    refusals::refused,
};

use crate::yaml::deploy;

/// A listener at an address that the host gets for it.
fn listener(host: &Host, address: &str, port: u16) -> Result<Running<FarEnd>> {
    host.ip(&["address", "add", &format!("{address}/32"), "dev", "lo"])?;
    let at = format!("{address}:{port}");
    host.run(|| async { Ok(FarEnd::scripted(at).await?) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_services_and_pods_are_reached_by_the_sample_s_routes() -> Result<()> {
    let sample = fs::read_to_string(deploy("kubernetes/master/static-pod/master.yaml"))?;
    let (_, routes) = sample.split_once("\nroutes:\n").context("routes")?;
    let list = deploy("kubernetes/master/static-pod/node-addresses.yaml");
    let mut cluster = Cluster::builder().build()?;
    assert_eq!(cluster.node_name(0), "10.0.10.10", "the sample has it");
    let config = format!(
        "{}connect-budget: 2s\nnode-addresses: {{ file: {} }}\nroutes:\n{routes}",
        cluster.master_config(0)?,
        list.display()
    );
    cluster.start_master_with(0, &config)?;
    cluster.master(0).wait_for_line("master is up", SOON)?;
    let allow = "allow: [ { cidr: 10.244.2.0/24 } ]\n";
    let config = format!("{}{allow}", cluster.agent_config(0)?);
    cluster.start_agent_with(0, &config)?;
    cluster.wait_for_sessions()?;
    let service = listener(cluster.topology().router(), "10.96.5.5", 443)?;
    let pod = listener(cluster.node(0), "10.244.2.5", 9443)?;

    let api = cluster.api()?;
    for (far_end, path) in [(&service, "route"), (&pod, "session")] {
        let target = far_end.local_addr().to_string();
        let tunnel = within(SOON, &target, api.connect(&target)).await?;
        drop(tunnel);
        let is_it =
            |line: &proxymux_testkit::process::LogEvent| line.text("target") == Some(&*target);
        let line = access_line_with(cluster.master(0), is_it).await?;
        assert_eq!(line.text("path"), Some(path), "{line:?}");
    }
    let reply = within(SOON, "ask", api.get(&cluster.target(0), "/healthz")).await?;
    assert_eq!(reply.status, 200);
    // A pod of a node that is not there, and an address that no route holds.
    for (target, reason) in [
        (
            "10.244.1.5:9443",
            "node 10.0.10.3 has no session; never seen",
        ),
        ("198.51.100.1:443", "no route to 198.51.100.1:443: "),
    ] {
        let answer = refused(&api, target, SOON).await?;
        assert_eq!(answer.code, 503, "{answer:?}");
        assert!(answer.reason.starts_with(reason), "{answer:?}");
    }
    Ok(())
}
