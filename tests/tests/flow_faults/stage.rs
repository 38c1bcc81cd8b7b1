//! A cluster whose daemons use fast paths, and what the master says of them.
//!
//! Firewall rules are put on the master's machine, where the flows of both directions pass. They
//! look at flags and ports and not at the state of a connection: a firewall that begins to track in
//! the middle takes what stands for new.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use proxymux_testkit::{
    cluster::{Cluster, ClusterBuilder},
    netns::{Host, Reach},
    process::LogEvent,
};
use proxymux_tests::{
    access::access_lines_now,
    admin::{Metrics, scrape, status},
    limits::SOON,
};
use proxymux_transport::config_file::values::AdminAddr;
use tokio::time::{Instant, sleep};

/// What makes a master use flows.
pub(crate) const VERIFIED: &str = "kubelet-certificates: verified\n";

/// Nodes behind a NAT, which only the reverse path reaches.
pub(crate) fn reverse() -> ClusterBuilder {
    Cluster::builder().master_lines(VERIFIED).verbosity("info")
}

/// Nodes that can be dialled and whose agents steer.
pub(crate) fn direct() -> ClusterBuilder {
    reverse().reach(Reach::Routed).agent_lines("mode: ebpf\n")
}

/// Where a master answers.
fn admin(cluster: &Cluster, master: usize) -> AdminAddr {
    AdminAddr::Unix(cluster.dir().join(format!("master-{master}.admin")))
}

/// A master's metrics.
pub(crate) async fn metrics(cluster: &Cluster, master: usize) -> Result<Metrics> {
    scrape(&admin(cluster, master)).await
}

/// Waits until a master would send a connection to the first node this way.
pub(crate) async fn goes_by(cluster: &Cluster, master: usize, path: &str) -> Result<()> {
    let deadline = Instant::now() + 2 * SOON;
    loop {
        let said = status(&admin(cluster, master)).await?;
        let session = said
            .pointer("/nodes/0/session")
            .context("a node with a session")?;
        if session.pointer("/path").and_then(|now| now.as_str()) == Some(path) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("connections do not go by {path}: {session:#}");
        }
        sleep(POLL).await;
    }
}

/// Waits until a sample of the first master is at least so much.
pub(crate) async fn counts(cluster: &Cluster, sample: &str, least: f64) -> Result<()> {
    let deadline = Instant::now() + SOON;
    loop {
        let metrics = metrics(cluster, 0).await?;
        if metrics.get(sample) >= least {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("{sample} is {}, expected {least}", metrics.get(sample));
        }
        sleep(POLL).await;
    }
}

/// The lines of the first master's access log since there were `before`.
pub(crate) fn lines_since(cluster: &mut Cluster, before: usize) -> Vec<LogEvent> {
    access_lines_now(cluster.master(0)).split_off(before)
}

/// How many of these connections went this way.
pub(crate) fn by_path(lines: &[LogEvent], path: &str) -> usize {
    let on_path = lines.iter().filter(|line| line.text("path") == Some(path));
    on_path.count()
}

/// Drops what matches at the master's machine, until [`open_again`].
pub(crate) fn block(cluster: &Cluster, hook: &str, matches: &str) -> Result<()> {
    drop_at(cluster.topology().master(), hook, matches)
}

/// Drops what matches at a machine.
pub(crate) fn drop_at(host: &Host, hook: &str, matches: &str) -> Result<()> {
    host.nft(&format!(
        "table inet blocked_{hook} {{\n\
         chain it {{\n\
         type filter hook {hook} priority 0; policy accept;\n\
         {matches} drop\n\
         }}\n\
         }}\n"
    ))
}

/// Lets pass again what [`block`] has dropped.
pub(crate) fn open_again(cluster: &Cluster, hook: &str) -> Result<()> {
    let master = cluster.topology().master();
    master.nft(&format!("delete table inet blocked_{hook}"))
}

const POLL: Duration = Duration::from_millis(50);
