//! A node in the guest, and clients on the control plane's machine.

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

/// A node, its kubelet and its agent. No master runs: what is steered needs none.
#[derive(Debug)]
pub(crate) struct Stage {
    // Dropped first: its thread is on a machine of the cluster.
    visitors: Visitors,
    pub(crate) cluster: Cluster,
}

impl Stage {
    /// A node whose agent may choose everything; it does not run yet.
    pub(crate) fn build() -> Result<Self> {
        Self::of(1, "")
    }

    /// The same with a second node and more lines of configuration.
    pub(crate) fn build_with(lines: &str) -> Result<Self> {
        Self::of(2, lines)
    }

    fn of(nodes: u8, lines: &str) -> Result<Self> {
        let sources = "steer-from: [ 192.0.2.10/32, \"2001:db8::10/128\" ]\n";
        let cluster = Cluster::builder()
            .nodes(nodes)
            .reach(Reach::Routed)
            .verbosity("info")
            .agent_lines(format!("mode: auto\n{sources}{lines}"))
            .build()?;
        Ok(Self {
            visitors: Visitors::on(cluster.topology().master(), &cluster)?,
            cluster,
        })
    }

    /// Starts the agent on a device and waits until it steers both families.
    pub(crate) fn steer_on(&mut self, device: &str) -> Result<()> {
        let config = self.cluster.agent_config(0)?;
        let config = config.replace("net-inf: ens3\n", &format!("net-inf: {device}\n"));
        self.cluster.start_agent_with(0, &config)?;
        for family in Family::ALL {
            self.comes_to(family, Holder::Agent)?;
        }
        Ok(())
    }

    pub(crate) fn node(&self) -> &Host {
        self.cluster.node(0)
    }

    pub(crate) fn router(&self) -> &Host {
        self.cluster.topology().router()
    }

    /// Connects, asks for something, and says who had the connection.
    pub(crate) fn visit(&self, family: Family) -> Result<Holder> {
        let mut visit = self.visitors.visit(self.node(), family)?;
        visit.ask()?;
        visit.holder(self.node())
    }

    /// Visits again and again, each of which must succeed, until one is served by `holder`.
    fn comes_to(&self, family: Family, holder: Holder) -> Result<()> {
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
        let at = at_agent(&self.cluster, 0);
        let metrics = self.node().block_on(scrape(&at))?;
        Some(metrics.get(&sample))
            .filter(|number| !number.is_nan())
            .with_context(|| format!("{sample} in:\n{}", metrics.text))
    }
}

/// Runs `ip` with the words of each line.
pub(crate) fn ip(host: &Host, lines: &[&str]) -> Result<()> {
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        host.ip(&words)?;
    }
    Ok(())
}
