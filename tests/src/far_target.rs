//! A far end on a node, as a target that the node's agent may dial besides its kubelet.
//!
//! It checks every byte, which a kubelet does not. It is a target of `allow:`, so a cluster that
//! wants one is built with [`ALLOW`]; what comes after the dial is the same for all targets.

use anyhow::Result;
use proxymux_testkit::{
    cluster::Cluster,
    far_end::{FarEnd, Script},
    netns::Running,
};

/// The line for the agents that makes [`far_target`] a target.
pub const ALLOW: &str = "allow: [ { cidr: 10.0.10.0/24, ports: 20000-20999 } ]";

/// What to ask for to reach the far end of a node.
pub fn far_target(cluster: &Cluster, node: usize) -> String {
    format!("{}:{PORT}", cluster.node_name(node))
}

/// Starts a far end on a node that does what each client's first line says.
///
/// # Errors
///
/// It could not listen.
pub fn scripted_far_end(cluster: &Cluster, node: usize) -> Result<Running<FarEnd>> {
    cluster
        .node(node)
        .run(|| async { Ok(FarEnd::scripted(("::", PORT)).await?) })
}

/// Starts a far end on a node that does the same with every client.
///
/// # Errors
///
/// It could not listen.
pub fn fixed_far_end(cluster: &Cluster, node: usize, script: Script) -> Result<Running<FarEnd>> {
    let start = || async { Ok(FarEnd::fixed(("::", PORT), script).await?) };
    cluster.node(node).run(start)
}

pub(crate) const PORT: u16 = 20_250;
