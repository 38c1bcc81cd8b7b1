//! The master's configuration.
//!
//! Owns the master's settings: what the file may say (`RawConfig`, in `raw`), what is usable
//! ([`Config`]), and the road from one to the other (`checked`); and the file of node addresses
//! that it may name ([`NodeAddressFile`]). Reading YAML and reporting mistakes with their lines
//! is left to `proxymux_transport::config_file`.
//!
//! Unknown keys are refused: the file is written for us, and a misspelt limit is no limit.
//! `docs/configuration.md` describes every key.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use proxymux_proto::TargetAddr;
use proxymux_transport::config_file::{
    ConfigError, Document, UnknownKeys, Warning,
    values::{
        AdminAddr, AutoOff, ByteSize, Choice as _, EffectiveSettings, FlowBuffer, LogFormat,
        show_duration_or_off,
    },
};

use self::raw::RawConfig;
pub use self::{
    node_addresses::NodeAddressFile,
    values::{FrontDoor, Kubeconfig, KubeletCertificates, NodeAddresses, Route, Via},
};

mod checked;
mod node_addresses;
mod raw;
mod values;

/// What the master runs with. Every value is usable; defaults are filled in.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Where agents come in.
    pub listen: SocketAddr,
    /// The certificate shown to agents, and those that it leads through.
    pub cert: PathBuf,
    /// The private key of [`Config::cert`].
    pub key: PathBuf,
    /// The certificates that an agent's must lead to.
    pub client_ca: PathBuf,
    /// The cluster that an agent which has one must have too.
    pub cluster_id: Option<String>,
    /// Where kube-apiserver comes in; at least one, no two at the same place.
    pub front_doors: Vec<FrontDoor>,
    /// What makes an address lead to a node.
    pub node_addresses: NodeAddresses,
    /// What happens to targets that are no node; no two for the same network.
    pub routes: Vec<Route>,
    /// Within which time every CONNECT is answered.
    pub connect_budget: Duration,
    /// How long a relayed connection may be silent; `None` is for ever.
    pub idle_timeout: Option<Duration>,
    /// How long open connections may go on after the master was told to stop.
    pub drain_deadline: Duration,
    /// Whether this master takes over from one that runs, and lets another take over from it.
    pub takeover: bool,
    /// Where masters meet to do so.
    pub takeover_socket: PathBuf,
    /// How many connections may be relayed over one session at a time.
    pub max_streams_per_node: NonZeroU32,
    /// How many of them may be waiting for the node's answer.
    pub max_pending_dials_per_node: NonZeroU32,
    /// How many sessions there may be.
    pub max_sessions: NonZeroU32,
    /// How many TLS handshakes with agents may run at the same time.
    pub max_handshakes: NonZeroU32,
    /// How many agents may register within a second.
    pub max_registrations_per_second: NonZeroU32,
    /// What the streams of one session may hold in memory.
    pub max_memory_per_session: ByteSize,
    /// What all streams, and requests that wait for one, may hold in memory.
    pub max_memory: ByteSize,
    /// The most bytes that a CONNECT request's header may have.
    pub max_connect_header: ByteSize,
    /// How long a request's header may take, unless [`Config::connect_budget`] is shorter.
    pub connect_header_timeout: Duration,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// Whether kube-apiserver checks kubelets' certificates itself.
    pub kubelet_certificates: KubeletCertificates,
    /// Whether fast paths may be used.
    pub fast_path: AutoOff,
    /// Whether nodes are dialled where that works.
    pub direct: AutoOff,
    /// How many idle flows each agent keeps ready without load; 0 means no flows at all.
    pub flow_pool: u32,
    /// How many flows one node may have at a time.
    pub max_flows_per_node: NonZeroU32,
    /// What the kernel may hold for each direction of a flow.
    pub flow_buffer: FlowBuffer,
    /// Whether flows are relayed through pipes.
    pub splice: AutoOff,
    /// Where agents dial flows, if not where their session goes.
    pub advertise: Option<TargetAddr>,
    /// From which addresses nodes are dialled; empty means from that of each session.
    pub dials_from: Vec<IpAddr>,
    /// Where administration requests come in.
    pub admin: AdminAddr,
}

impl Config {
    /// Reads the configuration from a file.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or parsed, or with all the mistakes in it.
    pub fn load(path: &Path) -> Result<(Self, Vec<Warning>), ConfigError> {
        Self::from_document(Document::load(path)?)
    }

    /// Reads the configuration from text; `file` is the name that mistakes in it will carry.
    ///
    /// # Errors
    ///
    /// When the text cannot be parsed, or with all the mistakes in it.
    pub fn parse(text: &str, file: &str) -> Result<(Self, Vec<Warning>), ConfigError> {
        Self::from_document(Document::parse(text, file)?)
    }

    fn from_document(document: Document) -> Result<(Self, Vec<Warning>), ConfigError> {
        document.read(raw::KEYS, UnknownKeys::Refuse, |root, mistakes| {
            RawConfig::read(root, mistakes).check(mistakes)
        })
    }

    /// Every setting as it is in force, by its key, for the log line at start-up.
    #[must_use]
    pub fn settings(&self) -> EffectiveSettings {
        let mut settings = EffectiveSettings::default();
        settings
            .add("listen", self.listen)
            .add("cert", self.cert.display())
            .add("key", self.key.display())
            .add("client-ca", self.client_ca.display())
            .add("cluster-id", self.cluster_id.as_deref().unwrap_or("any"))
            .add_list("front-doors", &self.front_doors)
            .add("node-addresses", &self.node_addresses)
            .add_list("routes", &self.routes)
            .add(
                "connect-budget",
                show_duration_or_off(Some(self.connect_budget)),
            )
            .add("idle-timeout", show_duration_or_off(self.idle_timeout))
            .add(
                "drain-deadline",
                show_duration_or_off(Some(self.drain_deadline)),
            )
            .add("takeover", self.takeover)
            .add("takeover-socket", self.takeover_socket.display())
            .add("max-streams-per-node", self.max_streams_per_node)
            .add(
                "max-pending-dials-per-node",
                self.max_pending_dials_per_node,
            )
            .add("max-sessions", self.max_sessions)
            .add("max-handshakes", self.max_handshakes)
            .add(
                "max-registrations-per-second",
                self.max_registrations_per_second,
            )
            .add("max-memory-per-session", self.max_memory_per_session)
            .add("max-memory", self.max_memory)
            .add("max-connect-header", self.max_connect_header)
            .add(
                "connect-header-timeout",
                show_duration_or_off(Some(self.connect_header_timeout)),
            )
            .add("log-format", self.log_format.word())
            .add("kubelet-certificates", self.kubelet_certificates.word())
            .add("fast-path", self.fast_path.word())
            .add("direct", self.direct.word())
            .add("flow-pool", self.flow_pool)
            .add("max-flows-per-node", self.max_flows_per_node)
            .add("flow-buffer", self.flow_buffer)
            .add("splice", self.splice.word());
        match &self.advertise {
            Some(advertise) => settings.add("advertise", advertise),
            None => settings.add("advertise", "where the session came in"),
        };
        settings
            .add_list("dials-from", &self.dials_from)
            .add("admin", &self.admin);
        settings
    }
}

#[cfg(test)]
mod tests;
