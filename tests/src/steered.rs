//! A node that steers, and clients on the control plane's machine whose connections it steers.
//!
//! No master runs: what is steered is relayed to the kubelet without one. [`Stage`] is what tests
//! of steering begin with, on this machine's kernel and in the guests; [`attach_kinds`] are the
//! ways of attaching that the kernel has. How a node is guarded is with the tests of that.

use anyhow::{Context, Result, bail};
use nix::{errno::Errno, net::if_::if_nametoindex};
use proxymux_common::user::tcx_ingress;
use proxymux_testkit::{
    cluster::Cluster,
    netns::{Host, Reach},
};
use tokio::time::Instant;

use crate::{
    admin::{at_agent, scrape},
    limits::SOON,
    visitors::{Family, Holder, Visitors},
};

/// A node, its kubelet and its agent, and the clients on the control plane's machine.
#[derive(Debug)]
pub struct Stage {
    // Dropped first: its thread is on a machine of the cluster.
    /// The clients.
    pub visitors: Visitors,
    /// The machines.
    pub cluster: Cluster,
}

/// Whose connections are steered: those of the control plane's machine, in both families.
pub const SOURCES: &str = "steer-from: [ 192.0.2.10/32, \"2001:db8::10/128\" ]\n";

/// The ways of attaching that this kernel has, as `attach` takes them. TCX came with Linux 6.6.
///
/// # Errors
///
/// The kernel does not even say that it has no TCX.
pub fn attach_kinds() -> Result<&'static [&'static str]> {
    let loopback = if_nametoindex("lo").context("the loopback device")?;
    match tcx_ingress(loopback) {
        Ok(_) => Ok(&["tcx", "netlink"]),
        Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => Ok(&["netlink"]),
        Err(error) => Err(error).context("cannot ask for a TCX chain"),
    }
}

impl Stage {
    /// A node whose agent has these lines of configuration; it does not run yet.
    ///
    /// # Errors
    ///
    /// A machine or its certificates could not be made.
    pub fn with_lines(lines: &str) -> Result<Self> {
        Self::of_nodes(1, lines)
    }

    /// The same with so many nodes, of which only the first has an agent.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn of_nodes(nodes: u8, lines: &str) -> Result<Self> {
        let cluster = Cluster::builder()
            .nodes(nodes)
            .reach(Reach::Routed)
            .verbosity("info")
            .agent_lines(lines)
            .build()?;
        Ok(Self {
            visitors: Visitors::on(cluster.topology().master(), &cluster)?,
            cluster,
        })
    }

    /// Starts the agent and waits until it steers both families.
    ///
    /// # Errors
    ///
    /// It does not.
    pub fn start_agent(&mut self) -> Result<()> {
        let config = self.cluster.agent_config(0)?;
        self.start_agent_with(&config)
    }

    /// The same with another configuration.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn start_agent_with(&mut self, config: &str) -> Result<()> {
        self.cluster.start_agent_with(0, config)?;
        Family::ALL
            .into_iter()
            .try_for_each(|family| self.comes_to(family, Holder::Agent))
    }

    /// The node.
    pub fn node(&self) -> &Host {
        self.cluster.node(0)
    }

    /// Connects, asks for something, and says who had the connection.
    ///
    /// # Errors
    ///
    /// There is no answer.
    pub fn visit(&self, family: Family) -> Result<Holder> {
        let mut visit = self.visitors.visit(self.node(), family)?;
        visit.ask()?;
        visit.holder(self.node())
    }

    /// Visits again and again, each of which must succeed, until one is served by `holder`.
    ///
    /// # Errors
    ///
    /// A visit failed, or `holder` does not come.
    pub fn comes_to(&self, family: Family, holder: Holder) -> Result<()> {
        let deadline = Instant::now() + SOON;
        loop {
            let seen = self.visit(family)?;
            if seen == holder {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("{family:?} is still served by {seen:?}, expected {holder:?}");
            }
        }
    }

    /// How many packets have had this verdict.
    ///
    /// # Errors
    ///
    /// The agent does not tell.
    pub fn count(&self, verdict: &str) -> Result<f64> {
        let sample = format!("proxymux_agent_steering_packets_total{{verdict=\"{verdict}\"}}");
        self.metric(&sample)
    }

    /// A metric of the agent.
    ///
    /// # Errors
    ///
    /// The agent does not tell, or has no such sample.
    pub fn metric(&self, sample: &str) -> Result<f64> {
        let at = at_agent(&self.cluster, 0);
        let metrics = self.node().block_on(scrape(&at))?;
        let number = metrics.get(sample);
        Some(number)
            .filter(|number| !number.is_nan())
            .with_context(|| format!("{sample} in:\n{}", metrics.text))
    }

    /// Whether the agent reports that what was assigned did not come to it.
    ///
    /// # Errors
    ///
    /// The agent does not tell.
    pub fn drifts(&self) -> Result<bool> {
        Ok(self.metric("proxymux_agent_steering_drift")? > 0.0)
    }
}
