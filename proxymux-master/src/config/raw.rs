//! The master's configuration as its file has it.
//!
//! Owns the list of keys and the YAML type of each. Whether a value makes sense, and what an
//! absent one means, is decided in `checked`.

use proxymux_transport::config_file::{Entry, Mistakes, Section, Setting, UnknownKeys};

/// The master's file: a mirror of its keys, in the order in which `docs/configuration.md` has
/// them.
#[derive(Debug)]
pub(super) struct RawConfig {
    pub(super) listen: Setting<String>,
    pub(super) cert: Setting<String>,
    pub(super) key: Setting<String>,
    pub(super) client_ca: Setting<String>,
    pub(super) cluster_id: Setting<String>,
    pub(super) front_doors: Setting<Vec<Setting<RawFrontDoor>>>,
    pub(super) node_addresses: RawNodeAddresses,
    pub(super) routes: Setting<Vec<Setting<RawRoute>>>,
    pub(super) connect_budget: Setting<String>,
    pub(super) idle_timeout: Setting<String>,
    pub(super) drain_deadline: Setting<String>,
    pub(super) takeover: Setting<String>,
    pub(super) takeover_socket: Setting<String>,
    pub(super) max_streams_per_node: Setting<u64>,
    pub(super) max_pending_dials_per_node: Setting<u64>,
    pub(super) max_sessions: Setting<u64>,
    pub(super) max_handshakes: Setting<u64>,
    pub(super) max_registrations_per_second: Setting<u64>,
    pub(super) max_memory_per_session: Setting<String>,
    pub(super) max_memory: Setting<String>,
    pub(super) max_connect_header: Setting<String>,
    pub(super) connect_header_timeout: Setting<String>,
    pub(super) log_format: Setting<String>,
    pub(super) kubelet_certificates: Setting<String>,
    pub(super) fast_path: Setting<String>,
    pub(super) direct: Setting<String>,
    pub(super) flow_pool: Setting<u64>,
    pub(super) max_flows_per_node: Setting<u64>,
    pub(super) flow_buffer: Setting<String>,
    pub(super) splice: Setting<String>,
    pub(super) advertise: Setting<String>,
    pub(super) dials_from: Setting<Vec<Setting<String>>>,
    pub(super) admin: Setting<String>,
}

/// One item of `front-doors`.
#[derive(Debug)]
pub(super) struct RawFrontDoor {
    pub(super) unix: Setting<String>,
    pub(super) mode: Setting<String>,
    pub(super) listen: Setting<String>,
    pub(super) cert: Setting<String>,
    pub(super) key: Setting<String>,
    pub(super) client_ca: Setting<String>,
    pub(super) client_names: Setting<Vec<Setting<String>>>,
}

/// `node-addresses`, which is a word or a mapping.
#[derive(Debug)]
pub(super) enum RawNodeAddresses {
    Word(Setting<String>),
    Source(Box<Setting<RawNodeSource>>),
}

/// `node-addresses` where it is a mapping.
#[derive(Debug)]
pub(super) struct RawNodeSource {
    pub(super) file: Setting<String>,
    pub(super) kubernetes: Setting<RawKubernetes>,
}

/// `node-addresses.kubernetes`.
#[derive(Debug)]
pub(super) struct RawKubernetes {
    pub(super) kubeconfig: Setting<String>,
}

/// One item of `routes`.
#[derive(Debug)]
pub(super) struct RawRoute {
    pub(super) cidr: Setting<String>,
    pub(super) via: Setting<String>,
}

/// Every top-level key.
pub(super) const KEYS: &[&str] = &[
    "listen",
    "cert",
    "key",
    "client-ca",
    "cluster-id",
    "front-doors",
    "node-addresses",
    "routes",
    "connect-budget",
    "idle-timeout",
    "drain-deadline",
    "takeover",
    "takeover-socket",
    "max-streams-per-node",
    "max-pending-dials-per-node",
    "max-sessions",
    "max-handshakes",
    "max-registrations-per-second",
    "max-memory-per-session",
    "max-memory",
    "max-connect-header",
    "connect-header-timeout",
    "log-format",
    "kubelet-certificates",
    "fast-path",
    "direct",
    "flow-pool",
    "max-flows-per-node",
    "flow-buffer",
    "splice",
    "advertise",
    "dials-from",
    "admin",
];

/// The keys of an item of `front-doors`.
pub(super) const DOOR_KEYS: &[&str] = &[
    "unix",
    "mode",
    "listen",
    "cert",
    "key",
    "client-ca",
    "client-names",
];

/// What `node-addresses` may be.
pub(super) const NODE_ADDRESSES: &str =
    "declared, kubernetes, {file: PATH} or {kubernetes: {kubeconfig: PATH}}";

/// The keys of `node-addresses` where it is a mapping.
pub(super) const SOURCE_KEYS: &[&str] = &["file", "kubernetes"];

/// The keys of `node-addresses.kubernetes`.
pub(super) const KUBERNETES_KEYS: &[&str] = &["kubeconfig"];

/// The keys of an item of `routes`.
pub(super) const ROUTE_KEYS: &[&str] = &["cidr", "via"];

impl RawConfig {
    pub(super) fn read(root: &mut Section, m: &mut Mistakes) -> Self {
        Self {
            listen: root.take("listen").text(AN_ADDRESS, m),
            cert: root.take("cert").text(A_PATH, m),
            key: root.take("key").text(A_PATH, m),
            client_ca: root.take("client-ca").text(A_PATH, m),
            cluster_id: root
                .take("cluster-id")
                .text("a string, write it in quotes", m),
            front_doors: root
                .take("front-doors")
                .list("a list of doors", m, RawFrontDoor::read),
            node_addresses: RawNodeAddresses::read(root.take("node-addresses"), m),
            routes: root
                .take("routes")
                .list("a list of {cidr, via}", m, RawRoute::read),
            connect_budget: root.take("connect-budget").text("a duration such as 8s", m),
            idle_timeout: root
                .take("idle-timeout")
                .text("a duration such as 10m, or off", m),
            drain_deadline: root
                .take("drain-deadline")
                .text("a duration such as 30s", m),
            takeover: root.take("takeover").scalar("true or false", m),
            takeover_socket: root.take("takeover-socket").text(A_PATH, m),
            max_streams_per_node: root.take("max-streams-per-node").number(A_NUMBER, m),
            max_pending_dials_per_node: root.take("max-pending-dials-per-node").number(A_NUMBER, m),
            max_sessions: root.take("max-sessions").number(A_NUMBER, m),
            max_handshakes: root.take("max-handshakes").number(A_NUMBER, m),
            max_registrations_per_second: root
                .take("max-registrations-per-second")
                .number(A_NUMBER, m),
            max_memory_per_session: root.take("max-memory-per-session").text(A_SIZE, m),
            max_memory: root.take("max-memory").text(A_SIZE, m),
            max_connect_header: root.take("max-connect-header").text(A_SIZE, m),
            connect_header_timeout: root
                .take("connect-header-timeout")
                .text("a duration such as 5s", m),
            log_format: root.take("log-format").text("text or json", m),
            kubelet_certificates: root
                .take("kubelet-certificates")
                .text("unverified or verified", m),
            fast_path: root.take("fast-path").text("auto or off", m),
            direct: root.take("direct").text("auto or off", m),
            flow_pool: root.take("flow-pool").number(A_NUMBER, m),
            max_flows_per_node: root.take("max-flows-per-node").number(A_NUMBER, m),
            flow_buffer: root
                .take("flow-buffer")
                .text("auto, or a size such as 256KiB", m),
            splice: root.take("splice").text("auto or off", m),
            advertise: root.take("advertise").text("HOST:PORT", m),
            dials_from: root.take("dials-from").texts("a list of IP addresses", m),
            admin: root
                .take("admin")
                .text("unix:/PATH, or a loopback address and port", m),
        }
    }
}

impl RawFrontDoor {
    fn read(item: Entry, m: &mut Mistakes) -> Setting<Self> {
        let expected = "{unix, mode} or {listen, cert, key, client-ca, client-names}";
        item.mapping(DOOR_KEYS, UnknownKeys::Refuse, expected, m, |door, m| {
            Self {
                unix: door.take("unix").text(A_PATH, m),
                mode: door
                    .take("mode")
                    .text("octal digits in quotes, such as \"0660\"", m),
                listen: door.take("listen").text(AN_ADDRESS, m),
                cert: door.take("cert").text(A_PATH, m),
                key: door.take("key").text(A_PATH, m),
                client_ca: door.take("client-ca").text(A_PATH, m),
                client_names: door.take("client-names").texts("a list of names", m),
            }
        })
    }
}

impl RawNodeAddresses {
    fn read(entry: Entry, m: &mut Mistakes) -> Self {
        let expected = NODE_ADDRESSES;
        if !entry.is_mapping() {
            return Self::Word(entry.text(expected, m));
        }
        let refuse = UnknownKeys::Refuse;
        let source = entry.mapping(SOURCE_KEYS, refuse, expected, m, |source, m| {
            let kubernetes = source.take("kubernetes");
            RawNodeSource {
                file: source.take("file").text(A_PATH, m),
                kubernetes: kubernetes.mapping(
                    KUBERNETES_KEYS,
                    refuse,
                    "{kubeconfig: PATH}",
                    m,
                    |kubernetes, m| RawKubernetes {
                        kubeconfig: kubernetes.take("kubeconfig").text(A_PATH, m),
                    },
                ),
            }
        });
        Self::Source(Box::new(source))
    }
}

impl RawRoute {
    fn read(item: Entry, m: &mut Mistakes) -> Setting<Self> {
        item.mapping(
            ROUTE_KEYS,
            UnknownKeys::Refuse,
            "{cidr, via}",
            m,
            |route, m| Self {
                cidr: route.take("cidr").text("a network such as 10.96.0.0/12", m),
                via: route.take("via").text("direct, node or refuse", m),
            },
        )
    }
}

const A_PATH: &str = "an absolute path";
const AN_ADDRESS: &str = "an IP address and port such as 0.0.0.0:12250";
const A_SIZE: &str = "a size such as 64MiB";
const A_NUMBER: &str = "a whole number";
