//! What `auto` chooses on this kernel, and that it works.

use std::env;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use proxymux_tests::{
    events::wait_for_message,
    limits::SOON,
    visitors::{Family, Holder},
};

use crate::stage::{self, Stage};

#[test]
fn auto_takes_what_the_kernel_has_steers_and_survives_its_own_death() -> Result<()> {
    let expected = attachment()?;
    let mut stage = stage::build(1, "")?;
    stage::steer_on(&mut stage, "ens3")?;
    assert_chosen(&mut stage, expected)?;
    assert!(stage.count("assigned")? >= 2.0);

    stage.cluster.agent(0).kill()?;
    for family in Family::ALL {
        assert_eq!(stage.visit(family)?, Holder::Kubelet, "{family:?}");
    }

    stage::steer_on(&mut stage, "ens3")?;
    assert_chosen(&mut stage, expected)?;
    let agent = stage.cluster.agent(0);
    agent.signal(Signal::SIGTERM)?;
    assert_eq!(agent.wait(SOON)?.code(), Some(0));
    assert_eq!(filters(&stage)?, 0, "nothing is left");
    Ok(())
}

fn assert_chosen(stage: &mut Stage, expected: &str) -> Result<()> {
    let agent = stage.cluster.agent(0);
    let chosen = wait_for_message(agent, 0, SOON, "mode chosen")?;
    assert_eq!(chosen.text("mode"), Some("ebpf"), "{chosen:?}");
    let attached = wait_for_message(agent, 0, SOON, "program attached")?;
    assert_eq!(attached.text("attach"), Some(expected), "{attached:?}");
    let by_netlink = usize::from(expected == "netlink");
    assert_eq!(filters(stage)?, by_netlink, "one program at most");
    Ok(())
}

/// How many of our filters `tc` shows; it does not know TCX.
fn filters(stage: &Stage) -> Result<usize> {
    let shown = stage
        .node()
        .tc(&["filter", "show", "dev", "ens3", "ingress"])?;
    Ok(shown.matches("handle 0x70786d75").count())
}

/// TCX is in Linux 6.6 and later.
fn attachment() -> Result<&'static str> {
    let kernel = env::var("PROXYMUX_VM_KERNEL")
        .context("PROXYMUX_VM_KERNEL is not set; run these tests with `cargo xtask vm`")?;
    match kernel.as_str() {
        "5.10" | "6.1" => Ok("netlink"),
        "6.12" => Ok("tcx"),
        other => bail!("what `auto` chooses on {other} is not written down here"),
    }
}
