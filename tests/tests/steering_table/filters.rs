//! What comes after the program and undoes what it did: filters, NAT, bridges.
//!
//! None of it is overridden. The agent compares what was assigned with what it accepted, and says
//! that they differ.

use anyhow::Result;
use proxymux_testkit::wait::eventually;
use proxymux_tests::{
    limits::SOON,
    visitors::{Family, Holder},
};

use crate::stage;

#[test]
fn what_a_firewall_drops_stays_dropped_and_is_reported() -> Result<()> {
    let stage = stage::start("netlink")?;
    assert!(!stage.drifts()?);
    stage.node().nft(&chain(
        "type filter hook input priority 0; tcp dport 10250 drop;",
    ))?;

    for family in Family::ALL {
        let answered = stage.visitors.is_answered(stage.node(), family);
        assert!(!answered, "{family:?} gets past the firewall");
    }

    eventually(SOON, || {
        stage.visitors.is_answered(stage.node(), Family::V4);
        stage.drifts().is_ok_and(|drifts| drifts)
    });
    stage
        .node()
        .nft("table inet filters {}\ndelete table inet filters\n")?;
    stage.comes_to(Family::V4, Holder::Agent)
}

#[test]
fn a_port_that_is_redirected_is_reported() -> Result<()> {
    let stage = stage::start("netlink")?;
    stage.node().nft(&chain(
        "type nat hook prerouting priority dstnat; tcp dport 10250 redirect to :10251;",
    ))?;

    eventually(SOON, || {
        stage.visitors.is_answered(stage.node(), Family::V4);
        stage.drifts().is_ok_and(|drifts| drifts)
    });
    Ok(())
}

#[test]
fn behind_bridge_netfilter_the_kubelet_answers_and_it_is_reported() -> Result<()> {
    let mut stage = stage::build("netlink")?;
    let node = stage.node();
    let setting = "net.bridge.bridge-nf-call-iptables";
    if let Err(error) = node.sysctl(setting, "1") {
        eprintln!("skipped: this kernel has no bridge netfilter: {error:#}");
        return Ok(());
    }
    let (address, gateway) = (format!("{}/24", node.ipv4()), "10.0.10.1");
    for line in [
        "link add br0 type bridge",
        &format!("addr del {address} dev ens3"),
        "link set ens3 master br0",
        "link set br0 mtu 9000 up",
        &format!("addr add {address} dev br0"),
        &format!("route add default via {gateway} dev br0"),
    ] {
        node.ip(&line.split(' ').collect::<Vec<_>>())?;
    }
    // Its rules are asked only where there are any.
    node.nft(&chain("type nat hook prerouting priority dstnat;"))?;
    stage.cluster.start_agent(0)?;
    stage.cluster.agent(0).wait_for_line("mode chosen", SOON)?;

    eventually(SOON, || {
        stage
            .visit(Family::V4)
            .is_ok_and(|holder| holder == Holder::Kubelet)
            && stage.drifts().is_ok_and(|drifts| drifts)
    });
    Ok(())
}

fn chain(rules: &str) -> String {
    format!("table inet filters {{ chain rules {{ {rules} }}; }}\n")
}
