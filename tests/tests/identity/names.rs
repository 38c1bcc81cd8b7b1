//! What a node may call itself, and which addresses lead to it.

use std::fs;

use anyhow::{Result, bail, ensure};
use nix::sys::signal::Signal;
use proxymux_testkit::{
    cluster::Cluster,
    pki::Leaf,
    process::{Daemon, LogEvent},
};
use proxymux_tests::{
    access::{access_line_with, access_lines_now},
    events::{wait_for, wait_for_message, with_message},
    following::Following,
    limits::{SOON, within},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_another_nodes_name_is_refused_and_its_owner_does_not_notice() -> Result<()> {
    let mut cluster = Cluster::builder().nodes(2).build()?;
    cluster.start_master(0)?;
    cluster.start_agent(0)?;
    cluster.wait_for_sessions()?;
    let (victim, thief) = (cluster.node_name(0), cluster.node_name(1));
    let api = cluster.api()?;
    let following = Following::start(&api, &cluster.target(0)).await?;

    let config = cluster.agent_config(1)?;
    let own_name = format!("node-name: {thief}");
    ensure!(config.contains(&own_name), "{config}");
    let config = config.replace(&own_name, &format!("node-name: {victim}"));
    cluster.start_agent_with(1, &config)?;

    let refused = wait_for_message(cluster.agent(1), 0, SOON, "registration refused")?;
    let said = wait_for_message(cluster.master(0), 0, SOON, "session refused")?;
    let reason = format!("agent registers as node {victim}, its certificate is for node {thief}");
    for event in [&refused, &said] {
        assert_eq!(event.text("code"), Some("identity"), "{event:?}");
        assert_eq!(event.text("reason"), Some(&*reason), "{event:?}");
    }
    following.goes_on().await?;
    let reply = within(
        SOON,
        "ask the victim",
        api.get(&cluster.target(0), "/healthz"),
    )
    .await?;
    assert_eq!(reply.status, 200);
    assert_eq!(cluster.kubelet(1).stats().connections_accepted, 0);
    assert_eq!(with_message(cluster.master(0), "session up").len(), 1);
    assert_eq!(with_message(cluster.agent(0), "session up").len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_of_another_node_needs_proof_that_counts_more() -> Result<()> {
    let mut cluster = two_nodes_with_a_thief()?;
    let stolen = cluster.node_name(0);
    let api = cluster.api()?;
    let following = Following::start(&api, &cluster.target(0)).await?;

    // Claimed, and refused. The session stays: the node is there by its name, and by the address
    // that its certificate proves.
    let refused = wait_for(cluster.agent(1), 0, SOON, |e| is_about(e, REFUSED, &stolen))?;
    let reason = refused.text("reason").unwrap_or_default();
    assert!(
        reason.starts_with("not proven: expected a place in the list"),
        "{reason}"
    );
    let own = cluster.node_name(1);
    wait_for(cluster.agent(1), 0, SOON, |e| is_about(e, GRANTED, &own))?;
    drop(within(SOON, "ask by name", api.connect("worker-1:10250")).await?);
    drop(within(SOON, "ask by address", api.connect(&cluster.target(1))).await?);
    within(
        SOON,
        "ask the owner",
        api.get(&cluster.target(0), "/healthz"),
    )
    .await?;
    let target = cluster.target(0);
    let nodes = asked_nodes(cluster.master(0), &target);
    assert!(nodes.iter().all(|node| *node == stolen), "{nodes:?}");

    // Proof of the operator counts more than a certificate.
    let mark = cluster.agent(0).mark();
    fs::write(
        cluster.dir().join(NODE_LIST),
        format!("worker-1: [ {stolen} ]\n"),
    )?;
    wait_for(cluster.agent(1), 0, SOON, |e| is_about(e, GRANTED, &stolen))?;
    let lost = wait_for(cluster.agent(0), mark, SOON, |e| {
        is_about(e, REFUSED, &stolen)
    })?;
    assert_eq!(lost.text("reason"), Some("listed for node worker-1"));
    let target = cluster.target(0);
    drop(within(SOON, "ask for the address", api.connect(&target)).await?);
    access_line_with(cluster.master(0), |line| {
        line.text("target") == Some(&*target) && line.text("node") == Some("worker-1")
    })
    .await?;
    following.goes_on().await?;

    // And back.
    fs::write(cluster.dir().join(NODE_LIST), "{}\n")?;
    wait_for(cluster.agent(0), mark, SOON, |e| {
        is_about(e, GRANTED, &stolen)
    })?;
    within(SOON, "ask the owner", api.get(&target, "/healthz")).await?;
    following.goes_on().await?;
    assert_eq!(with_message(cluster.agent(0), "session up").len(), 1);
    assert_eq!(with_message(cluster.agent(1), "session up").len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_stays_its_owners_while_that_is_away() -> Result<()> {
    let mut cluster = two_nodes_with_a_thief()?;
    let stolen = cluster.node_name(0);
    let api = cluster.api()?;

    let owner = cluster.agent(0);
    owner.signal(Signal::SIGTERM)?;
    assert!(owner.wait(SOON)?.success());
    // Another round of registration, in case that is when an address changes hands.
    cluster.agent(1).kill()?;
    let config = cluster.agent_config(1)?;
    cluster.start_agent_with(1, &thiefs_config(&config, &stolen))?;
    wait_for(cluster.agent(1), 0, SOON, |e| is_about(e, REFUSED, &stolen))?;

    let refused = within(SOON, "an answer", async {
        Ok::<_, anyhow::Error>(api.connect(&cluster.target(0)).await)
    })
    .await?;
    let Err(refused) = refused else {
        bail!("connected to a node that is away");
    };
    assert_eq!(refused.code(), Some(503), "{refused}");
    let said = refused.to_string();
    assert!(
        said.contains(&format!("node {stolen} has no session; last seen")),
        "{said}"
    );
    assert_eq!(cluster.kubelet(1).stats().connections_accepted, 0);

    let mark = cluster.master(0).mark();
    cluster.start_agent(0)?;
    wait_for_message(cluster.master(0), mark, SOON, "session up")?;
    within(
        SOON,
        "ask the owner",
        api.get(&cluster.target(0), "/healthz"),
    )
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused_by_a_reason_with_both_names() -> Result<()> {
    let mut cluster = Cluster::builder()
        .master_lines("cluster-id: cluster-a")
        .agent_lines("cluster-id: cluster-b")
        .build()?;
    cluster.start_master(0)?;
    cluster.start_agent(0)?;

    let refused = wait_for_message(cluster.agent(0), 0, SOON, "registration refused")?;
    let said = wait_for_message(cluster.master(0), 0, SOON, "session refused")?;
    for event in [refused, said] {
        assert_eq!(event.text("code"), Some("cluster"), "{event:?}");
        let reason = event.text("reason").unwrap_or_default();
        assert_eq!(
            reason,
            "agent is of cluster cluster-b, this master of cluster cluster-a"
        );
    }
    Ok(())
}

/// Node 0 as always. Node 1 is `worker-1`, has its own address in its certificate, and claims
/// node 0's besides. The list of node addresses is empty at first.
fn two_nodes_with_a_thief() -> Result<Cluster> {
    let mut cluster = Cluster::builder().nodes(2).build()?;
    let list = cluster.dir().join(NODE_LIST);
    fs::write(&list, "{}\n")?;
    let config = cluster.master_config(0)?;
    let lines = format!(
        "node-addresses: {{ file: {} }}\nconnect-budget: 2s\n",
        list.display()
    );
    let master = cluster.start_master_with(0, &format!("{config}{lines}"))?;
    master.wait_for_line("master is up", SOON)?;
    cluster.start_agent(0)?;
    cluster.wait_for_sessions()?;

    let leaf = Leaf::node_client("worker-1").names([cluster.node_name(1)]);
    let issued = cluster.pki().ca().issue(&leaf)?;
    cluster
        .pki()
        .install_node_client(&cluster.node_name(1), &issued)?;
    let config = cluster.agent_config(1)?;
    cluster.start_agent_with(1, &thiefs_config(&config, &cluster.node_name(0)))?;
    cluster.wait_for_sessions()?;
    Ok(cluster)
}

fn thiefs_config(config: &str, stolen: &str) -> String {
    let name = config.lines().find(|line| line.starts_with("node-name:"));
    config
        .replace(name.unwrap_or_default(), "node-name: worker-1")
        .replace(
            "public-ip-address: \n",
            &format!("public-ip-address: {stolen}\n"),
        )
}

/// The nodes that were asked for a target so far, from the lines about finished connections.
fn asked_nodes(master: &Daemon, target: &str) -> Vec<String> {
    let lines = access_lines_now(master);
    let lines = lines
        .iter()
        .filter(|line| line.text("target") == Some(target));
    lines
        .filter_map(|line| line.text("node").map(str::to_owned))
        .collect()
}

fn is_about(event: &LogEvent, message: &str, address: &str) -> bool {
    event.message == message && event.text("address") == Some(address)
}

const NODE_LIST: &str = "nodes.yaml";
const GRANTED: &str = "address leads to this node";
const REFUSED: &str = "address does not lead to this node";
