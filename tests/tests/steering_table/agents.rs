//! Agents that die or hang, and address families that have no agent.

use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use proxymux_testkit::wait::eventually;
use proxymux_tests::visitors::{Family, Holder};

use crate::stage::{self, attach_kinds};

#[test]
fn with_a_killed_agent_the_kubelet_answers_at_once() -> Result<()> {
    for attach in attach_kinds()? {
        let mut stage = stage::start(attach)?;

        stage.cluster.agent(0).kill()?;

        for family in [Family::V4, Family::V6, Family::V4, Family::V6] {
            assert_eq!(stage.visit(family)?, Holder::Kubelet, "{attach} {family:?}");
        }
        stage.start_agent()?;
    }
    Ok(())
}

/// As long as its heartbeat is fresh, connections wait for it.
#[test]
fn with_a_stopped_agent_the_kubelet_answers_within_seconds() -> Result<()> {
    for attach in attach_kinds()? {
        let mut stage = stage::start(attach)?;

        stage.cluster.agent(0).signal(Signal::SIGSTOP)?;

        for family in Family::ALL {
            eventually(EXPIRED, || {
                let taken = stage.visitors.who_takes(stage.node(), family);
                taken.is_ok_and(|holder| holder == Holder::Kubelet)
            });
            assert_eq!(stage.visit(family)?, Holder::Kubelet, "{attach} {family:?}");
        }
        stage.cluster.agent(0).signal(Signal::SIGCONT)?;
        for family in Family::ALL {
            stage.comes_to(family, Holder::Agent)?;
        }
    }
    Ok(())
}

/// A heartbeat lives for 5 s, an attempt takes a second, and the machine may be busy.
const EXPIRED: Duration = Duration::from_secs(8);

#[test]
fn only_sources_that_are_named_are_steered() -> Result<()> {
    let mut stage = stage::build_with("auto", "steer-from: [ 192.0.2.10/32 ]\n")?;
    stage.cluster.start_agent(0)?;
    stage.comes_to(Family::V4, Holder::Agent)?;

    assert_eq!(stage.visit(Family::V6)?, Holder::Kubelet);

    assert!(stage.count("passed")? > 0.0);
    assert_eq!(stage.count("no-listener")?, 0.0);
    Ok(())
}
