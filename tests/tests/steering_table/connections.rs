//! Connections that steering must leave alone, and ports that it must leave free.

use anyhow::{Context, Result};
use proxymux_testkit::{cluster::Cluster, wait::eventually};
use proxymux_tests::{
    limits::SOON,
    visitors::{Family, Holder},
};

use crate::stage::{self, Stage, attach_kinds};

#[test]
fn a_connection_from_before_stays_with_the_kubelet() -> Result<()> {
    for attach in attach_kinds()? {
        let mut stage = stage::build(attach)?;
        let host = stage.cluster.topology().master().clone();
        let early = proxymux_tests::visitors::Visitors::on(&host, &stage.cluster)?;
        let node = stage.node().clone();
        let mut visits = Vec::new();
        for family in Family::ALL {
            visits.push(early.visit(&node, family)?);
        }

        stage.start_agent()?;

        for visit in &mut visits {
            visit.ask().context(attach)?;
            assert_eq!(visit.holder(&node)?, Holder::Kubelet, "{attach}");
        }
        assert!(stage.count("connected")? > 0.0, "its packets are counted");
    }
    Ok(())
}

#[test]
fn a_kubelet_can_restart_while_a_steered_connection_lives() -> Result<()> {
    let mut stage = stage::start("netlink")?;
    let host = stage.cluster.topology().master().clone();
    let other = proxymux_tests::visitors::Visitors::on(&host, &stage.cluster)?;
    let node = stage.node().clone();
    for family in Family::ALL {
        let mut visit = other.visit(&node, family)?;
        visit.ask()?;
        assert_eq!(visit.holder(&node)?, Holder::Agent);

        // Fails if the port cannot be bound while the agent has a connection there.
        restart_kubelet(&mut stage.cluster)?;

        stage.comes_to(family, Holder::Agent)?;
    }
    Ok(())
}

fn restart_kubelet(cluster: &mut Cluster) -> Result<()> {
    cluster.stop_kubelet(0);
    cluster.start_kubelet(0)
}

#[test]
fn a_port_that_was_closed_a_moment_ago_is_answered_by_the_kubelet() -> Result<()> {
    let mut stage = stage::build("netlink")?;
    let node = stage.node().clone();
    for family in Family::ALL {
        stage.visitors.speak_plainly(PORT, &node, family)?;
        eventually(SOON, || waiting(&stage, PORT));
    }
    stage.start_agent()?;

    for family in Family::ALL {
        let mut visit = stage.visitors.visit_from(PORT, &node, family)?;
        visit.ask()?;
        let holder = visit.holder(&node)?;
        assert_eq!(holder, Holder::Kubelet, "{family:?} has no hanging client");
    }
    Ok(())
}

/// Whether the node remembers a connection from this port that it has closed itself.
fn waiting(stage: &Stage, port: u16) -> bool {
    let mut command = stage.node().command("ss");
    command.args(["-Htn", "state", "time-wait"]);
    let output = command.output();
    output.is_ok_and(|output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().any(|line| line.contains(&format!(":{port}")))
    })
}

/// Below those that the kernel gives out by itself.
const PORT: u16 = 20_001;
