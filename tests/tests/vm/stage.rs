//! A node in the guest whose agent may choose everything by itself.

use anyhow::Result;
use proxymux_testkit::netns::Host;
use proxymux_tests::steered::SOURCES;
pub(crate) use proxymux_tests::steered::Stage;

/// A node with more lines of configuration, and so many in all; its agent does not run yet.
pub(crate) fn build(nodes: u8, lines: &str) -> Result<Stage> {
    Stage::of_nodes(nodes, &format!("mode: auto\n{SOURCES}{lines}"))
}

/// Starts the agent on a device and waits until it steers both families.
pub(crate) fn steer_on(stage: &mut Stage, device: &str) -> Result<()> {
    let config = stage.cluster.agent_config(0)?;
    let config = config.replace("net-inf: ens3\n", &format!("net-inf: {device}\n"));
    stage.start_agent_with(&config)
}

pub(crate) fn router(stage: &Stage) -> &Host {
    stage.cluster.topology().router()
}

/// Runs `ip` with the words of each line.
pub(crate) fn ip(host: &Host, lines: &[&str]) -> Result<()> {
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        host.ip(&words)?;
    }
    Ok(())
}
