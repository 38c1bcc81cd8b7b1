//! Clusters whose connections to the kubelet take a fast path.
//!
//! The far end that checks every byte is at [`far_target`](crate::far_target::far_target) here too,
//! and stands there as the node's kubelet, since flows lead to nothing else; it is asked in a
//! record of TLS ([`Script::record`](proxymux_testkit::far_end::Script::record)).

use std::time::Duration;

use anyhow::{Context, Result, bail};
use proxymux_testkit::{
    cluster::{Cluster, ClusterBuilder},
    netns::Reach,
};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::{
    admin::{at_master, status},
    far_target::PORT,
    limits::SOON,
};

/// A path beside the session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FastPath {
    /// Nodes are behind a NAT and dial their master.
    Reverse,
    /// The master dials the node, whose agent steers.
    Direct,
}

/// Both, for tests that hold for either.
pub const FAST_PATHS: [FastPath; 2] = [FastPath::Reverse, FastPath::Direct];

impl FastPath {
    /// As the access log has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reverse => "reverse",
            Self::Direct => "direct",
        }
    }

    /// A cluster in which this is the best path there is.
    pub fn builder(self) -> ClusterBuilder {
        let builder = Cluster::builder()
            .master_lines(format!(
                "kubelet-certificates: verified\nflow-pool: {READY}\n"
            ))
            .verbosity("info");
        match self {
            Self::Reverse => builder,
            Self::Direct => builder.reach(Reach::Routed).agent_lines("mode: ebpf\n"),
        }
    }

    /// The same with the far end in the place of the first node's kubelet.
    pub fn builder_for_far_end(self) -> ClusterBuilder {
        let kubelet = format!("kubelet-addr: 10.0.10.10:{PORT}\n");
        match self {
            Self::Reverse => self.builder().agent_lines(kubelet),
            Self::Direct => self.builder().agent_lines(format!("mode: ebpf\n{kubelet}")),
        }
    }

    /// Waits until the master would send several connections to the first node this way.
    ///
    /// # Errors
    ///
    /// It does not.
    pub async fn is_taken(self, cluster: &Cluster) -> Result<()> {
        let deadline = Instant::now() + 2 * SOON;
        loop {
            let said = status(&at_master(cluster)).await?;
            let session = said.pointer("/nodes/0/session");
            let session = session.context("a node with a session")?;
            let path = session.pointer("/path").and_then(|path| path.as_str());
            let ready = session.pointer("/idle_flows").and_then(Value::as_u64);
            if path == Some(self.as_str()) && (self == Self::Direct || ready >= Some(READY)) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("connections do not go by {}: {session:#}", self.as_str());
            }
            sleep(POLL).await;
        }
    }
}

/// How many flows are kept ready: enough for all connections of a test at once.
const READY: u64 = 16;

const POLL: Duration = Duration::from_millis(50);
