//! A node that steers, and clients on the machine whose connections it steers.
//!
//! No master runs: what is steered is relayed to the kubelet without one. The program is the
//! silent one, as on most nodes, and is attached in the way that a test asks for.

use anyhow::{Context, Result, bail};
use proxymux_testkit::{
    cluster::Cluster,
    netns::{Host, Reach},
};
use proxymux_tests::{
    admin::{at_agent, scrape},
    limits::SOON,
    visitors::{Family, Holder, Visitors},
};
use tokio::time::Instant;

/// A node, its kubelet and its agent, and the clients on the control plane's machine.
#[derive(Debug)]
pub(crate) struct Stage {
    // Dropped first: its thread is on a machine of the cluster.
    pub(crate) visitors: Visitors,
    pub(crate) cluster: Cluster,
}

/// The ways of attaching, each of which a kernel of today has.
pub(crate) const ATTACH: [&str; 2] = ["tcx", "netlink"];

/// Whose connections are steered: those of the control plane's machine, in both families.
pub(crate) const SOURCES: &str = "steer-from: [ 192.0.2.10/32, \"2001:db8::10/128\" ]\n";

impl Stage {
    /// A node with this line of configuration on attaching; its agent does not run yet.
    pub(crate) fn build(attach: &str) -> Result<Self> {
        Self::build_with(attach, SOURCES)
    }

    /// The same with other lines in the place of [`SOURCES`].
    pub(crate) fn build_with(attach: &str, lines: &str) -> Result<Self> {
        let cluster = Cluster::builder()
            .reach(Reach::Routed)
            .verbosity("info")
            .agent_lines(format!("mode: ebpf\nattach: {attach}\n{lines}"))
            .build()?;
        Ok(Self {
            visitors: Visitors::on(cluster.topology().master(), &cluster)?,
            cluster,
        })
    }

    /// A node whose agent steers both families.
    pub(crate) fn start(attach: &str) -> Result<Self> {
        let mut stage = Self::build(attach)?;
        stage.start_agent()?;
        Ok(stage)
    }

    /// Starts the agent and waits until it steers.
    pub(crate) fn start_agent(&mut self) -> Result<()> {
        self.cluster.start_agent(0)?;
        Family::ALL
            .into_iter()
            .try_for_each(|family| self.comes_to(family, Holder::Agent))
    }

    pub(crate) fn node(&self) -> &Host {
        self.cluster.node(0)
    }

    /// Connects, asks for something, and says who had the connection.
    pub(crate) fn visit(&self, family: Family) -> Result<Holder> {
        let mut visit = self.visitors.visit(self.node(), family)?;
        visit.ask()?;
        visit.holder(self.node())
    }

    /// Visits again and again, each of which must succeed, until one is served by `holder`.
    pub(crate) fn comes_to(&self, family: Family, holder: Holder) -> Result<()> {
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
    pub(crate) fn count(&self, verdict: &str) -> Result<f64> {
        let sample = format!("proxymux_agent_steering_packets_total{{verdict=\"{verdict}\"}}");
        self.metric(&sample)
    }

    /// A metric of the agent.
    pub(crate) fn metric(&self, sample: &str) -> Result<f64> {
        let at = at_agent(&self.cluster, 0);
        let metrics = self.node().block_on(scrape(&at))?;
        let number = metrics.get(sample);
        Some(number)
            .filter(|number| !number.is_nan())
            .with_context(|| format!("{sample} in:\n{}", metrics.text))
    }

    /// Whether the agent reports that what was assigned did not come to it.
    pub(crate) fn drifts(&self) -> Result<bool> {
        Ok(self.metric("proxymux_agent_steering_drift")? > 0.0)
    }
}
