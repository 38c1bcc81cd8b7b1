//! Under which names and addresses a node's kubelet is found.
//!
//! Owns the spellings of one node and the proof that an address needs. Targets that are no kubelet,
//! and what `allow:` and `routes:` make of them, are tests of their own.

use std::fs;

use anyhow::Result;
use proxymux_testkit::{
    cluster::Cluster,
    kubelet::{Kubelet, KubeletConfig},
    netns::Running,
    pki::Leaf,
};
use proxymux_tests::{
    access::{access_lines, only_access_lines},
    doors::refused,
    limits::{SOON, within},
};

#[tokio::test]
async fn an_ipv6_address_leads_to_the_node_that_has_it_in_its_certificate() -> Result<()> {
    let mut cluster = Cluster::builder().build()?;
    let name = cluster.node_name(0);
    let leaf = Leaf::node_client(&name).names([IPV6]);
    let issued = cluster.pki().ca().issue(&leaf)?;
    cluster.pki().install_node_client(&name, &issued)?;
    start_claiming_ipv6(&mut cluster, "")?;

    let target = format!("[{IPV6}]:10250");
    let reply = within(SOON, "healthz", cluster.api()?.get(&target, "/healthz")).await?;

    assert_eq!(reply.text(), "ok");
    for line in only_access_lines(&mut cluster, 0).await? {
        assert_eq!(line.text("target"), Some(target.as_str()), "{line:#?}");
        assert_eq!(line.text("node"), Some(name.as_str()), "{line:#?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_ipv6_address_leads_to_the_node_that_it_is_listed_for() -> Result<()> {
    let mut cluster = Cluster::builder().build()?;
    let list = cluster.dir().join("nodes.yaml");
    fs::write(&list, format!("{}: [ \"{IPV6}\" ]\n", cluster.node_name(0)))?;
    let line = format!("node-addresses: {{ file: {} }}", list.display());
    start_claiming_ipv6(&mut cluster, &line)?;

    let target = format!("[{}]:10250", IPV6.to_uppercase());
    let reply = within(SOON, "healthz", cluster.api()?.get(&target, "/healthz")).await?;

    assert_eq!(reply.text(), "ok");
    Ok(())
}

#[tokio::test]
async fn an_ipv6_address_that_is_only_claimed_leads_nowhere() -> Result<()> {
    let mut cluster = Cluster::builder().build()?;
    start_claiming_ipv6(&mut cluster, "connect-budget: 1s")?;

    let target = format!("[{IPV6}]:10250");
    let answer = refused(&cluster.api()?, &target).await?.to_string();

    let expected = format!("503 no route to {target}: no node has this address");
    assert!(answer.ends_with(&expected), "{answer}");
    let event = cluster.agent(0).wait_for_event(SOON, |event| {
        event.message == "address does not lead to this node" && event.text("address") == Some(IPV6)
    })?;
    assert_eq!(event.level, "WARN");
    let reason = event.text("reason").unwrap_or_default();
    assert!(reason.starts_with("not proven: "), "{reason}");
    Ok(())
}

#[tokio::test]
async fn a_node_is_found_by_its_name_in_any_case() -> Result<()> {
    let mut cluster = Cluster::builder().build()?;
    cluster.stop_kubelet(0);
    let _kubelet = kubelet(&cluster, "worker-1.example", 10_250)?;
    let certificate = cluster.pki().node_client("worker-1.example")?;
    let unnamed = format!("node-name: {}", cluster.node_name(0));
    let config = cluster
        .agent_config(0)?
        .replace(&unnamed, "node-name: Worker-1.Example");
    let config = format!("{config}client-cert: {}\n", certificate.cert.display());
    cluster.start_master(0)?;
    cluster.start_agent_with(0, &config)?;
    cluster.wait_for_sessions()?;
    let api = cluster.api()?;

    for name in ["worker-1.example", "WORKER-1.EXAMPLE", "Worker-1.eXample"] {
        let target = format!("{name}:10250");
        let reply = within(SOON, name, api.get(&target, "/healthz")).await?;
        assert_eq!(reply.text(), "ok", "{name}");
    }
    for line in access_lines(cluster.agent(0), 3).await? {
        assert_eq!(line.text("node"), Some("worker-1.example"), "{line:#?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_kubelet_on_another_port_is_reached_there_and_only_there() -> Result<()> {
    let cluster = Cluster::builder()
        .agent_lines("kubelet-addr: \"10.0.10.10:20250\"")
        .start()?;
    let name = cluster.node_name(0);
    let other = kubelet(&cluster, &name, 20_250)?;
    let api = cluster.api()?;

    let reply = within(SOON, "healthz", api.get("10.0.10.10:20250", "/healthz")).await?;
    let usual = refused(&api, "10.0.10.10:10250").await?;

    assert_eq!(reply.text(), "ok");
    assert_eq!(other.stats().requests, 1);
    assert_eq!(usual.code(), Some(403), "{usual}");
    assert_eq!(cluster.kubelet(0).stats().connections_accepted, 0);
    Ok(())
}

#[tokio::test]
async fn a_kubelet_on_loopback_is_reached_under_the_nodes_own_address() -> Result<()> {
    let mut cluster = Cluster::builder()
        .agent_lines("kubelet-addr: \"127.0.0.1:10250\"")
        .start()?;
    let (api, target) = (cluster.api()?, cluster.target(0));

    // The certificate is checked against the name that was asked for, not the address dialled.
    let reply = within(SOON, "healthz", api.get(&target, "/healthz")).await?;

    assert_eq!(reply.text(), "ok");
    only_access_lines(&mut cluster, 0).await?;
    Ok(())
}

/// Starts master and agent with the node claiming its IPv6 address too.
fn start_claiming_ipv6(cluster: &mut Cluster, master_line: &str) -> Result<()> {
    let config = format!("{}{master_line}\n", cluster.master_config(0)?);
    cluster
        .start_master_with(0, &config)?
        .wait_for_line("master is up", SOON)?;
    let claim = format!("public-ip-address: \"{IPV6}\"");
    let config = cluster
        .agent_config(0)?
        .replace("public-ip-address: ", &claim);
    cluster.start_agent_with(0, &config)?;
    cluster.wait_for_sessions()
}

/// A kubelet on the node, under another name or port than the cluster's own.
fn kubelet(cluster: &Cluster, name: &str, port: u16) -> Result<Running<Kubelet>> {
    let host = cluster.node(0);
    let serving = cluster.pki().kubelet_serving(name, &host.addresses())?;
    let listen = (std::net::Ipv6Addr::UNSPECIFIED, port).into();
    let config = KubeletConfig::new(listen, serving, cluster.pki().ca_file());
    host.run(|| Kubelet::start(config))
}

/// The first node's.
const IPV6: &str = "fd00:10::10";
