//! Agents that die, and address families that have no agent.

use anyhow::Result;
use proxymux_tests::visitors::{Family, Holder};

use crate::stage::{ATTACH, Stage};

#[test]
fn with_a_killed_agent_the_kubelet_answers_at_once() -> Result<()> {
    for attach in ATTACH {
        let mut stage = Stage::start(attach)?;

        stage.cluster.agent(0).kill()?;

        for family in [Family::V4, Family::V6, Family::V4, Family::V6] {
            assert_eq!(stage.visit(family)?, Holder::Kubelet, "{attach} {family:?}");
        }
        stage.start_agent()?;
    }
    Ok(())
}

#[test]
fn only_sources_that_are_named_are_steered() -> Result<()> {
    let mut stage = Stage::build_with("tcx", "steer-from: [ 192.0.2.10/32 ]\n")?;
    stage.cluster.start_agent(0)?;
    stage.comes_to(Family::V4, Holder::Agent)?;

    assert_eq!(stage.visit(Family::V6)?, Holder::Kubelet);

    assert!(stage.count("passed")? > 0.0);
    assert_eq!(stage.count("no-listener")?, 0.0);
    Ok(())
}
