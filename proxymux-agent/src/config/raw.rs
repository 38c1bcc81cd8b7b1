//! The agent's configuration as its file has it.
//!
//! Owns the list of keys and the YAML type of each. Whether a value makes sense, and what an
//! absent one means, is decided in `checked`.

use proxymux_transport::config_file::{Entry, Mistakes, Section, Setting, UnknownKeys};

/// The agent's file: a mirror of its keys, in the order in which `docs/configuration.md` has
/// them.
#[derive(Debug)]
pub(super) struct RawConfig {
    pub(super) node_name: Setting<String>,
    pub(super) node_id: Setting<String>,
    pub(super) cluster_id: Setting<String>,
    /// By their keys.
    pub(super) labels: Vec<(&'static str, Setting<String>)>,
    pub(super) server_addr: Setting<Vec<Setting<String>>>,
    pub(super) server_name: Setting<String>,
    pub(super) expect_masters: Setting<u64>,
    pub(super) net_inf: Setting<String>,
    pub(super) private_ip_address: Setting<String>,
    pub(super) public_ip_address: Setting<String>,
    pub(super) bind_addr: Setting<String>,
    pub(super) kubelet_addr: Setting<String>,
    pub(super) cert_path: Setting<String>,
    pub(super) client_cert: Setting<String>,
    pub(super) client_key: Setting<String>,
    pub(super) ca_file: Setting<String>,
    pub(super) allow: Setting<Vec<Setting<RawAllow>>>,
    pub(super) idle_timeout: Setting<String>,
    pub(super) drain_deadline: Setting<String>,
    pub(super) dial_timeout: Setting<String>,
    pub(super) max_memory_per_session: Setting<String>,
    pub(super) max_memory: Setting<String>,
    pub(super) log_format: Setting<String>,
    pub(super) mode: Setting<String>,
    pub(super) fast_path: Setting<String>,
    pub(super) flow_buffer: Setting<String>,
    pub(super) splice: Setting<String>,
    pub(super) perf: Setting<String>,
    pub(super) steer_from: Setting<Vec<Setting<String>>>,
    pub(super) steer_plain: Setting<String>,
    pub(super) guard: Setting<String>,
    pub(super) guard_allow: Setting<Vec<Setting<String>>>,
    pub(super) guard_inf: Setting<Vec<Setting<String>>>,
    pub(super) attach: Setting<String>,
    pub(super) steer_priority: Setting<u64>,
    pub(super) admin: Setting<String>,
}

/// One item of `allow`.
#[derive(Debug)]
pub(super) struct RawAllow {
    pub(super) cidr: Setting<String>,
    /// A number or a range, as text.
    pub(super) ports: Setting<String>,
}

/// Every top-level key.
pub(super) const KEYS: &[&str] = &[
    "node-name",
    "node-id",
    "cluster-id",
    "tm-id",
    "tenancy-id",
    "oci-realm",
    "server-addr",
    "server-name",
    "expect-masters",
    "net-inf",
    "private-ip-address",
    "public-ip-address",
    "bind-addr",
    "kubelet-addr",
    "cert-path",
    "client-cert",
    "client-key",
    "ca-file",
    "allow",
    "idle-timeout",
    "drain-deadline",
    "dial-timeout",
    "max-memory-per-session",
    "max-memory",
    "log-format",
    "mode",
    "fast-path",
    "flow-buffer",
    "splice",
    "perf",
    "steer-from",
    "steer-plain",
    "guard",
    "guard-allow",
    "guard-inf",
    "attach",
    "steer-priority",
    "admin",
];

/// The keys that are only shown to people.
pub(super) const LABEL_KEYS: &[&str] = &["tm-id", "tenancy-id", "oci-realm"];

/// The keys of an item of `allow`.
pub(super) const ALLOW_KEYS: &[&str] = &["cidr", "ports"];

impl RawConfig {
    pub(super) fn read(root: &mut Section, m: &mut Mistakes) -> Self {
        let labels = LABEL_KEYS
            .iter()
            .map(|key| (*key, root.take(key).scalar(A_STRING, m)));
        Self {
            labels: labels.collect(),
            node_name: root.take("node-name").text(A_STRING, m),
            node_id: root.take("node-id").scalar(A_STRING, m),
            cluster_id: root.take("cluster-id").text(A_STRING, m),
            server_addr: root
                .take("server-addr")
                .text_or_texts("https://HOST:PORT, or a list of these", m),
            server_name: root
                .take("server-name")
                .text("a DNS name or an IP address", m),
            expect_masters: root.take("expect-masters").number("a whole number", m),
            net_inf: root
                .take("net-inf")
                .text("the name of a network interface", m),
            private_ip_address: root.take("private-ip-address").text(AN_IP, m),
            public_ip_address: root.take("public-ip-address").text(AN_IP, m),
            bind_addr: root.take("bind-addr").text(AN_IP, m),
            kubelet_addr: root.take("kubelet-addr").text("an IP address and port", m),
            cert_path: root.take("cert-path").text(A_PATH, m),
            client_cert: root.take("client-cert").text(A_PATH, m),
            client_key: root.take("client-key").text(A_PATH, m),
            ca_file: root.take("ca-file").text(A_PATH, m),
            allow: root
                .take("allow")
                .list("a list of {cidr, ports}", m, RawAllow::read),
            idle_timeout: root
                .take("idle-timeout")
                .text("a duration such as 10m, or off", m),
            drain_deadline: root
                .take("drain-deadline")
                .text("a duration such as 30s", m),
            dial_timeout: root.take("dial-timeout").text("a duration such as 5s", m),
            max_memory_per_session: root.take("max-memory-per-session").text(A_SIZE, m),
            max_memory: root.take("max-memory").text(A_SIZE, m),
            log_format: root.take("log-format").text("text or json", m),
            mode: root.take("mode").text("auto, ebpf or userspace", m),
            fast_path: root.take("fast-path").text("auto or off", m),
            flow_buffer: root
                .take("flow-buffer")
                .text("auto, or a size such as 256KiB", m),
            splice: root.take("splice").text("auto or off", m),
            perf: root.take("perf").text("on or off", m),
            steer_from: root.take("steer-from").texts("a list of networks", m),
            steer_plain: root.take("steer-plain").text("relay or refuse", m),
            guard: root.take("guard").text("off, audit or enforce", m),
            guard_allow: root.take("guard-allow").texts("a list of networks", m),
            guard_inf: root
                .take("guard-inf")
                .texts("a list of network interfaces", m),
            attach: root.take("attach").text("auto, tcx or netlink", m),
            steer_priority: root.take("steer-priority").number("a whole number", m),
            admin: root
                .take("admin")
                .text("unix:/PATH, or a loopback address and port", m),
        }
    }
}

impl RawAllow {
    fn read(item: Entry, m: &mut Mistakes) -> Setting<Self> {
        // Refused here and not warned about: only we know this key, and a misspelt `ports`
        // would open every port.
        item.mapping(
            ALLOW_KEYS,
            UnknownKeys::Refuse,
            "{cidr, ports}",
            m,
            |range, m| Self {
                cidr: range
                    .take("cidr")
                    .text("a network such as 10.244.2.0/24", m),
                ports: range
                    .take("ports")
                    .scalar("a port or a range such as \"1-65535\"", m),
            },
        )
    }
}

const A_STRING: &str = "a string, write it in quotes";
const A_PATH: &str = "an absolute path";
const AN_IP: &str = "an IPv4 or IPv6 address";

const A_SIZE: &str = "a size such as 64MiB";
