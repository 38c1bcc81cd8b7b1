//! The guard of the kubelet's port, attached in the way that this kernel has.

use anyhow::Result;
use proxymux_testkit::wait::eventually;
use proxymux_tests::{
    limits::SOON,
    visitors::{Family, Visitors},
};

use crate::stage;

#[test]
fn a_stranger_is_kept_out_until_the_agent_is_dead() -> Result<()> {
    let guard = "guard: enforce\nguard-allow: [ 10.0.10.99/32 ]\n";
    let mut stage = stage::build(2, guard)?;
    let stranger = stage.cluster.node(1);
    let stranger = Visitors::on(stranger, &stage.cluster)?;
    stage::steer_on(&mut stage, "ens3")?;

    for family in Family::ALL {
        assert!(!stranger.is_answered(stage.node(), family), "{family:?}");
    }
    assert!(stage.count("dropped")? >= 2.0);

    stage.cluster.agent(0).kill()?;

    for family in Family::ALL {
        eventually(SOON, || stranger.is_answered(stage.node(), family));
    }
    Ok(())
}
