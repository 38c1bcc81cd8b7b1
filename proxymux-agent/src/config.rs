//! The agent's configuration.
//!
//! Owns the agent's settings: what the file may say (`RawConfig`, in `raw`), what is usable
//! ([`Config`]), and the road from one to the other (`checked`). Reading YAML and reporting
//! mistakes with their lines is left to `proxymux_transport::config_file`.
//!
//! The file is written by somebody else's bootstrap, for another program: keys that we do not
//! know are warned about and otherwise ignored. `docs/configuration.md` describes every key.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use proxymux_proto::{AllowedRange, NodeName};
use proxymux_transport::config_file::{
    ConfigError, Document, UnknownKeys, Warning,
    values::{
        AdminAddr, AutoOff, ByteSize, Choice as _, EffectiveSettings, FlowBuffer, LogFormat,
        show_duration_or_off,
    },
};
use rustls::pki_types::ServerName;

use self::raw::RawConfig;
pub use self::values::{
    Attach, ClientIdentity, Guard, InterfaceName, Mode, OnOff, ServerAddr, ServerAddrError,
    SteerPlain,
};

mod checked;
mod raw;
mod values;

/// What the agent runs with. Every value is usable; defaults are filled in.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The node's name, which the certificate must carry too.
    pub node_name: NodeName,
    /// The provider's id of the machine, shown to people.
    pub node_id: Option<String>,
    /// The cluster that a master which has one must have too.
    pub cluster_id: Option<String>,
    /// Keys of the file that mean nothing to us and are shown to people, by their key.
    pub labels: BTreeMap<String, String>,
    /// The masters; at least one.
    pub server_addrs: Vec<ServerAddr>,
    /// The name to expect in the master's certificate, if not the host of its address.
    pub server_name: Option<ServerName<'static>>,
    /// How many different masters to hold sessions with.
    pub expect_masters: NonZeroU32,
    /// The network interface on which kubelet-bound traffic arrives.
    pub net_inf: Option<InterfaceName>,
    /// The node's address in the cluster's network.
    pub private_ip_address: Option<IpAddr>,
    /// The node's address in the world.
    pub public_ip_address: Option<IpAddr>,
    /// The source address of sessions and flows; `None` lets the kernel choose.
    pub bind_addr: Option<IpAddr>,
    /// Where this node's kubelet is dialled.
    pub kubelet_addr: SocketAddr,
    /// Where the client certificate and its key are.
    pub client_identity: ClientIdentity,
    /// The certificates that the master's must lead to.
    pub ca_file: PathBuf,
    /// Targets besides the kubelet that may be dialled.
    pub allow: Vec<AllowedRange>,
    /// How much of the kernel's help to use.
    pub mode: Mode,
    /// Whether fast paths may be used.
    pub fast_path: AutoOff,
    /// What the kernel may hold for each direction of a flow, and of its kubelet's connection.
    pub flow_buffer: FlowBuffer,
    /// Whether the payload of plain connections stays in the kernel.
    pub splice: AutoOff,
    /// Whether masters may measure the paths to this node.
    pub perf: OnOff,
    /// Whose kubelet-bound traffic is steered; empty means the masters'.
    pub steer_from: Vec<IpNet>,
    /// What happens to a steered connection that is no flow.
    pub steer_plain: SteerPlain,
    /// What happens to kubelet-bound connections from elsewhere.
    pub guard: Guard,
    /// Who may connect to the kubelet under [`Guard::Enforce`], besides the masters.
    pub guard_allow: Vec<IpNet>,
    /// The interfaces that the guard watches; empty means [`Config::net_inf`].
    pub guard_inf: Vec<InterfaceName>,
    /// How programs are attached to interfaces.
    pub attach: Attach,
    /// The priority of our filter among others; not 0. Only where it is attached by netlink.
    pub steer_priority: u16,
    /// Where administration requests come in.
    pub admin: AdminAddr,
    /// What the streams of one session may hold in memory.
    pub max_memory_per_session: ByteSize,
    /// What all streams may hold in memory.
    pub max_memory: ByteSize,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// How long a relayed connection may be silent; `None` is for ever.
    pub idle_timeout: Option<Duration>,
    /// How long open streams may go on after the agent was told to stop.
    pub drain_deadline: Duration,
    /// How long connecting to the kubelet or another target may take.
    pub dial_timeout: Duration,
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
        document.read(raw::KEYS, UnknownKeys::Warn, |root, mistakes| {
            RawConfig::read(root, mistakes).check(mistakes)
        })
    }

    /// The addresses under which the agent asks the master to let its node be reached:
    /// `private-ip-address`, `bind-addr` and `public-ip-address`, each once.
    ///
    /// A loopback `bind-addr`, as in a test on one machine, is none of them: it leads to every
    /// node.
    #[must_use]
    pub fn claimed_addresses(&self) -> Vec<IpAddr> {
        let bind = self.bind_addr.filter(|ip| !ip.is_loopback());
        let mut claimed = Vec::new();
        for ip in [self.private_ip_address, bind, self.public_ip_address]
            .into_iter()
            .flatten()
        {
            if !claimed.contains(&ip) {
                claimed.push(ip);
            }
        }
        claimed
    }

    /// The address at which masters are told to find the kubelet.
    #[must_use]
    pub fn registered_kubelet(&self) -> Option<IpAddr> {
        self.bind_addr.or(self.private_ip_address)
    }

    /// Whether this agent is to have flows, if its masters want any. Pure userspace is the session
    /// path alone.
    #[must_use]
    pub fn uses_flows(&self) -> bool {
        self.fast_path == AutoOff::Auto && self.mode != Mode::Userspace
    }

    /// The name that the certificate of the master at `server` must have.
    #[must_use]
    pub fn expected_name<'a>(&'a self, server: &'a ServerAddr) -> &'a ServerName<'static> {
        self.server_name.as_ref().unwrap_or(server.host())
    }

    /// Every setting as it is in force, by its key, for the log line at start-up.
    #[must_use]
    pub fn settings(&self) -> EffectiveSettings {
        let mut settings = EffectiveSettings::default();
        settings.add("node-name", &self.node_name);
        for (key, id) in [("node-id", &self.node_id), ("cluster-id", &self.cluster_id)] {
            settings.add(key, id.as_deref().unwrap_or(NONE));
        }
        for key in raw::LABEL_KEYS {
            settings.add(key, self.labels.get(*key).map_or(NONE, String::as_str));
        }
        settings
            .add_list("server-addr", &self.server_addrs)
            .add(
                "server-name",
                self.server_name
                    .as_ref()
                    .map_or("host of server-addr".into(), |n| n.to_str()),
            )
            .add("expect-masters", self.expect_masters)
            .add(
                "net-inf",
                self.net_inf.as_ref().map_or(NONE, InterfaceName::as_str),
            )
            .add("private-ip-address", show_ip(self.private_ip_address, NONE))
            .add("public-ip-address", show_ip(self.public_ip_address, NONE))
            .add("bind-addr", show_ip(self.bind_addr, "any"))
            .add("kubelet-addr", self.kubelet_addr);
        match &self.client_identity {
            ClientIdentity::Directory(path) => settings.add("cert-path", path.display()),
            ClientIdentity::Files { cert, key } => settings
                .add("client-cert", cert.display())
                .add("client-key", key.display()),
        };
        let allow = self.allow.iter().map(|range| {
            format!(
                "{}:{}-{}",
                range.net,
                range.ports.start(),
                range.ports.end()
            )
        });
        settings
            .add("ca-file", self.ca_file.display())
            .add_list("allow", allow)
            .add("mode", self.mode.word())
            .add("fast-path", self.fast_path.word())
            .add("flow-buffer", self.flow_buffer)
            .add("splice", self.splice.word())
            .add("perf", self.perf.word())
            .add_list("steer-from", &self.steer_from)
            .add("steer-plain", self.steer_plain.word())
            .add("guard", self.guard.word())
            .add_list("guard-allow", &self.guard_allow)
            .add_list("guard-inf", &self.guard_inf)
            .add("attach", self.attach.word())
            .add("steer-priority", self.steer_priority)
            .add("admin", &self.admin)
            .add("log-format", self.log_format.word())
            .add("idle-timeout", show_duration_or_off(self.idle_timeout))
            .add(
                "drain-deadline",
                show_duration_or_off(Some(self.drain_deadline)),
            )
            .add(
                "dial-timeout",
                show_duration_or_off(Some(self.dial_timeout)),
            )
            .add("max-memory-per-session", self.max_memory_per_session)
            .add("max-memory", self.max_memory);
        settings
    }
}

fn show_ip(ip: Option<IpAddr>, absent: &str) -> String {
    ip.map_or_else(|| absent.to_owned(), |ip| ip.to_string())
}

/// How the log shows a setting that has no value.
const NONE: &str = "none";

#[cfg(test)]
mod tests;
