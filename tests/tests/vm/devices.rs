//! Devices between the wire and the node's addresses.

use anyhow::Result;
use proxymux_tests::visitors::{Family, Holder};

use crate::stage::{self, Stage, ip, router};

/// A real VLAN device takes the tag from the frame before the program sees it.
#[test]
fn frames_of_a_vlan_pass_ens3_as_they_are_and_are_counted() -> Result<()> {
    let mut stage = stage::build(1, "")?;
    vlan(&stage)?;
    stage::steer_on(&mut stage, "ens3")?;
    // The answers need not come the same way.
    ip(router(&stage), &["route replace 10.0.10.10/32 dev nodes.7"])?;
    let (opaque, assigned) = (stage.count("opaque")?, stage.count("assigned")?);

    let holder = stage.visit(Family::V4)?;

    assert_eq!(holder, Holder::Kubelet);
    assert!(stage.count("opaque")? > opaque);
    assert_eq!(stage.count("assigned")?, assigned);
    ip(router(&stage), &["route del 10.0.10.10/32 dev nodes.7"])?;
    assert_eq!(stage.visit(Family::V4)?, Holder::Agent, "without the tag");
    Ok(())
}

#[test]
fn a_vlan_device_steers() -> Result<()> {
    let mut stage = stage::build(1, "")?;
    vlan(&stage)?;
    ip(router(&stage), &["addr flush dev nodes"])?;
    ip(
        router(&stage),
        &[
            "addr add 10.0.10.1/24 dev nodes.7",
            "addr add fd00:10::1/64 dev nodes.7 nodad",
        ],
    )?;
    move_addresses(&stage, "ens3.7")?;

    stage::steer_on(&mut stage, "ens3.7")?;

    assert!(stage.count("assigned")? >= 2.0);
    Ok(())
}

#[test]
fn a_bond_steers() -> Result<()> {
    let mut stage = stage::build(1, "")?;
    ip(
        stage.node(),
        &[
            "link add bond0 type bond mode active-backup miimon 100",
            "link set ens3 down",
            "link set ens3 master bond0",
            "link set bond0 up",
        ],
    )?;
    move_addresses(&stage, "bond0")?;

    stage::steer_on(&mut stage, "bond0")?;

    assert!(stage.count("assigned")? >= 2.0);
    Ok(())
}

/// VLAN 7 on the link between router and node.
fn vlan(stage: &Stage) -> Result<()> {
    for (host, device) in [(stage.node(), "ens3"), (router(stage), "nodes")] {
        let add = format!("link add link {device} name {device}.7 type vlan id 7");
        ip(host, &[&add, &format!("link set {device}.7 up")])?;
    }
    Ok(())
}

/// Gives the node's addresses on ens3 to another device.
fn move_addresses(stage: &Stage, device: &str) -> Result<()> {
    let lines = [
        "addr flush dev ens3".to_owned(),
        format!("addr add 10.0.10.10/24 dev {device}"),
        format!("addr add fd00:10::10/64 dev {device} nodad"),
        format!("route replace default via 10.0.10.1 dev {device}"),
        format!("route replace default via fd00:10::1 dev {device}"),
    ];
    ip(stage.node(), &lines.each_ref().map(String::as_str))
}
