//! How the node gets to its masters, and what its kernel drops of what they send.
//!
//! The second way is a second device towards the same router. Owns the proof that what the check
//! warns of drops packets: a master dials the node, and the kernel counts.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use proxymux_testkit::{
    cluster::Cluster,
    netns::{Host, Reach},
    wait::eventually,
};
use proxymux_tests::{
    admin::{at_agent, status},
    limits::SOON,
};
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};

use crate::seen::check;

#[test]
fn each_way_of_having_no_route_to_a_master_is_told() -> Result<()> {
    let mut cluster = Cluster::builder().build()?;
    cluster.start_master(0)?;
    let config = cluster.agent_config(0)?;
    let host = cluster.node(0);
    let master = cluster.topology().master().ipv4().to_string();
    let seen = check(&cluster, &config)?;
    seen.fine("master route");
    let way = "is reached by ens3 from 10.0.10.10, next hop 10.0.10.1";
    assert!(seen.text("master route").contains(way), "{seen}");

    for kind in ["unreachable", "prohibit", "blackhole"] {
        host.ip(&["route", "add", kind, &master])?;
        let seen = check(&cluster, &config)?;
        assert_eq!(seen.code, Some(1), "{seen}");
        seen.broken("master route", "error", kind, &format!("type {kind}"));
        seen.broken("master tcp", "error", &master, "");
        host.ip(&["route", "del", kind, &master])?;
    }
    host.ip(&["route", "del", "default"])?;
    let seen = check(&cluster, &config)?;
    seen.broken("master route", "error", "no route there", "default route");

    // As it is told.
    host.ip(&["route", "add", &master, "via", "10.0.10.1"])?;
    let seen = check(&cluster, &config)?;
    seen.fine("master route");
    seen.fine("master tcp");
    Ok(())
}

#[test]
fn a_bind_addr_that_cannot_be_the_source_is_told_with_one_that_can() -> Result<()> {
    let mut cluster = Cluster::builder().build()?;
    cluster.start_master(0)?;
    let config = cluster.agent_config(0)?;
    let bound_to = |ip: &str| config.replace("bind-addr: 10.0.10.10", &format!("bind-addr: {ip}"));
    let fix = "set `bind-addr: 10.0.10.10`";

    let seen = check(&cluster, &bound_to("10.9.9.9"))?;
    let nobodys = "no device of this node has bind-addr 10.9.9.9";
    seen.broken("master route", "error", nobodys, fix);
    let seen = check(&cluster, &bound_to("127.0.0.1"))?;
    seen.broken("master route", "error", "refuses that source", fix);
    check(&cluster, &config)?.fine("master route");

    // A rule may leave out that source alone.
    let host = cluster.node(0);
    host.ip(&["addr", "add", "10.0.10.77/24", "dev", "ens3"])?;
    let rule = ["from", "10.0.10.10", "prohibit"];
    host.ip(&[&["rule", "add"], &rule[..]].concat())?;
    let seen = check(&cluster, &config)?;
    let ruled = "not from bind-addr 10.0.10.10";
    seen.broken("master route", "error", ruled, "ip rule");
    check(&cluster, &bound_to("10.0.10.77"))?.fine("master route");
    host.ip(&[&["rule", "del"], &rule[..]].concat())?;
    check(&cluster, &config)?.fine("master route");
    Ok(())
}

#[test]
fn a_way_that_does_not_leave_by_the_device_of_steering_is_told() -> Result<()> {
    let mut cluster = Cluster::builder().reach(Reach::Routed).build()?;
    cluster.start_master(0)?;
    second_way(&cluster)?;
    let config = cluster.agent_config(0)?;
    let config = config.replace("bind-addr: 10.0.10.10", "bind-addr: 10.0.20.10");

    let seen = check(&cluster, &config)?;

    seen.fine("master tcp");
    let found = "reached by eth1 from 10.0.20.10, next hop 10.0.20.1, not by ens3";
    seen.broken("master route", "warning", found, "set `net-inf: eth1`");
    check(&cluster, &format!("{config}mode: userspace\n"))?.fine("master route");
    let named = config.replace("net-inf: ens3", "net-inf: eth1");
    let seen = check(&cluster, &named)?;
    seen.fine("master route");
    assert!(!seen.text("master route").contains("ens3"), "{seen}");
    // Masters dial the private address then, which is on the device.
    let free = config.replace("bind-addr: 10.0.20.10\n", "");
    let seen = check(&cluster, &free)?;
    seen.fine("master route");
    let note = "right if masters' connections to 10.0.10.10 come by ens3";
    assert!(seen.text("master route").contains(note), "{seen}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strict_reverse_path_filter_is_told_where_it_drops_what_masters_dial() -> Result<()> {
    let mut cluster = Cluster::builder().reach(Reach::Routed).build()?;
    cluster.start_master(0)?;
    second_way(&cluster)?;
    let config = cluster.agent_config(0)?;
    let config = config.replace("bind-addr: 10.0.10.10\n", "");
    cluster.start_agent_with(0, &config)?;
    cluster.wait_for_sessions()?;
    let node = cluster.node(0);
    check(&cluster, &config)?.fine("rp_filter");
    assert!(is_answered(&cluster), "the node can be dialled");

    // Of the device's own setting and the one for all, the larger is in force.
    for setting in ["all", "ens3"] {
        let setting = format!("net.ipv4.conf.{setting}.rp_filter");
        node.sysctl(&setting, "1")?;
        let before = (dropped(node)?, assigned(&cluster).await?);

        let seen = check(&cluster, &config)?;

        assert_eq!(seen.errors(), 0, "{seen}");
        let found = "what 192.0.2.10 sends to 10.0.10.10 is dropped";
        let fix = "`sysctl -w net.ipv4.conf.ens3.rp_filter=2`";
        seen.broken("rp_filter", "warning", found, fix);
        seen.broken(
            "rp_filter",
            "warning",
            "the way back is by eth1",
            "ip route",
        );
        // It is true: and the session, which comes by the other device, does not notice.
        assert!(!is_answered(&cluster), "{setting}");
        assert!(dropped(node)? > before.0, "{setting}");
        // The programs see it before the filter does.
        assert!(assigned(&cluster).await? > before.1, "{setting}");
        seen.fine("master accepts");
        assert!(!check(&cluster, &format!("{config}mode: userspace\n"))?.has("rp_filter"));

        node.sysctl("net.ipv4.conf.ens3.rp_filter", "2")?;
        check(&cluster, &config)?.fine("rp_filter");
        assert!(is_answered(&cluster), "{setting} undone");
        node.sysctl(&setting, "0")?;
        node.sysctl("net.ipv4.conf.ens3.rp_filter", "0")?;
    }

    // The other fix. With two next hops, one of which is the device, the filter lets pass too.
    node.sysctl("net.ipv4.conf.ens3.rp_filter", "1")?;
    let hops = "nexthop via 10.0.20.1 nexthop via 10.0.10.1";
    for way in [hops, "via 10.0.10.1"] {
        route_to_masters(node, way)?;
        check(&cluster, &config)?.fine("rp_filter");
        eventually(SOON, || is_answered(&cluster));
    }
    Ok(())
}

/// A second device of the node, and the way to the masters by it.
fn second_way(cluster: &Cluster) -> Result<()> {
    let (node, router) = (cluster.node(0), cluster.topology().router());
    let device = [
        "link", "add", "eth1", "type", "veth", "peer", "name", "second",
    ];
    node.ip(&[&device[..], &["netns", router.namespace()]].concat())?;
    for (host, name, address) in [
        (node, "eth1", "10.0.20.10/24"),
        (router, "second", "10.0.20.1/24"),
    ] {
        host.ip(&["addr", "add", address, "dev", name])?;
        host.ip(&["link", "set", name, "up"])?;
    }
    route_to_masters(node, "via 10.0.20.1")
}

fn route_to_masters(node: &Host, way: &str) -> Result<()> {
    let way: Vec<_> = way.split(' ').collect();
    node.ip(&[&["route", "replace", "192.0.2.0/24"], &way[..]].concat())?;
    Ok(())
}

/// Whether a master that dials the node's kubelet gets an answer of its kernel.
fn is_answered(cluster: &Cluster) -> bool {
    let at = SocketAddr::from((cluster.node(0).ipv4(), 10250));
    let dialled = async move { timeout(SILENCE, TcpStream::connect(at)).await };
    matches!(cluster.topology().master().block_on(dialled), Ok(Ok(_)))
}

/// How many connections the programs have given to the agent.
async fn assigned(cluster: &Cluster) -> Result<u64> {
    let status = status(&at_agent(cluster, 0)).await?;
    let counters = status.pointer("/steering/counters");
    let counters = counters.and_then(Value::as_array).into_iter().flatten();
    let mut counters = counters.filter(|counter| counter["verdict"] == "assigned");
    let counter = counters.next().context("the agent steers")?;
    counter["packets"].as_u64().context("a number")
}

/// How many packets the reverse path filters of a host have dropped.
fn dropped(host: &Host) -> Result<u64> {
    let output = host.command("cat").arg("/proc/net/netstat").output()?;
    let text = String::from_utf8(output.stdout)?;
    // A line of names, and one of their values.
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = lines.next().zip(lines.next()).context("TcpExt")?;
    let mut pairs = names.split(' ').zip(values.split(' '));
    let found = pairs.find(|(name, _)| *name == "IPReversePathFilter");
    let (_, value) = found.context("this kernel counts what the filter drops")?;
    Ok(value.parse()?)
}

/// A connection within one machine stands in milliseconds, even a busy one; the first packet is
/// repeated after a second.
const SILENCE: Duration = Duration::from_millis(2500);
