//! From what the file says to what the master can use.
//!
//! Owns every default, every bound and every rule between keys. It never stops at a mistake: a
//! `Refused` stands for a value that was already reported, and only at the very end does it
//! decide.

use std::{
    collections::HashSet,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    path::PathBuf,
    time::Duration,
};

use proxymux_proto::{DEFAULT_SESSION_PORT, MAX_FLOW_POOL};
use proxymux_transport::config_file::{
    Mistakes, Refused, Setting,
    values::{self, AdminAddr, ByteSize, FlowBuffer, ValueError},
};

use super::{
    Config, FrontDoor, Kubeconfig, NodeAddresses, Route,
    raw::{NODE_ADDRESSES, RawConfig, RawFrontDoor, RawNodeAddresses, RawNodeSource, RawRoute},
    values::{DECLARED, DEFAULT_KUBECONFIG, KUBERNETES, advertise, client_name},
};

impl RawConfig {
    /// The settings in force, if there is no mistake in any.
    pub(super) fn check(&self, m: &mut Mistakes) -> Result<Config, Refused> {
        let mut taken = Taken::default();
        let listen = self.listen.or(DEFAULT_LISTEN, m, |text| {
            let addr = values::listen_addr(text)?;
            Ok::<_, ValueError>(addr)
        });
        if let Ok(listen) = listen {
            taken.0.push(("listen".to_owned(), Spot::Tcp(listen)));
        }
        let admin = self.admin(m, &mut taken);
        let front_doors = self.front_doors(m, &mut taken);
        let takeover = self.takeover.or(false, m, |text| match text.as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err("must be true or false"),
        });
        let default = PathBuf::from(DEFAULT_TAKEOVER_SOCKET);
        let takeover_socket = self.takeover_socket.or(default, m, |text| {
            let path = values::socket_path(text)?;
            taken.claim("takeover-socket", Spot::Unix(path.clone()))?;
            Ok::<_, PlaceError>(path)
        });
        let cert = self.cert.required(m, |text| values::path(text));
        let key = self.key.required(m, |text| values::path(text));
        let client_ca = self.client_ca.required(m, |text| values::path(text));
        let cluster_id = self.cluster_id.optional(m, |text| values::label(text));
        let node_addresses = self.node_addresses.check(m);
        let routes = self.routes(m);
        let connect_budget = self.connect_budget.or(DEFAULT_CONNECT_BUDGET, m, |text| {
            values::duration(text, &(Duration::from_millis(100)..=Duration::from_mins(1)))
        });
        let idle_timeout = self.idle_timeout.or(None, m, |text| {
            values::duration_or_off(
                text,
                &(Duration::from_secs(1)..=Duration::from_hours(24 * 30)),
            )
        });
        let drain_deadline = self.drain_deadline.or(DEFAULT_DRAIN_DEADLINE, m, |text| {
            values::duration(text, &(Duration::from_secs(1)..=Duration::from_hours(1)))
        });
        let max_streams_per_node = self.max_streams_per_node.or(DEFAULT_STREAMS, m, |&number| {
            values::count(number, MAX_STREAMS)
        });
        let max_pending_dials_per_node =
            self.max_pending_dials_per_node
                .or(DEFAULT_PENDING_DIALS, m, |&number| {
                    values::count(number, MAX_PENDING_DIALS)
                });
        let max_sessions = self.max_sessions.or(DEFAULT_SESSIONS, m, |&number| {
            values::count(number, MAX_SESSIONS)
        });
        let max_handshakes = self.max_handshakes.or(DEFAULT_HANDSHAKES, m, |&number| {
            values::count(number, MAX_HANDSHAKES)
        });
        let max_registrations_per_second =
            self.max_registrations_per_second
                .or(DEFAULT_REGISTRATIONS, m, |&number| {
                    values::count(number, MAX_REGISTRATIONS)
                });
        let max_memory_per_session =
            self.max_memory_per_session
                .or(DEFAULT_MEMORY_PER_SESSION, m, |text| {
                    values::size(text, &(MIN_MEMORY..=MAX_MEMORY))
                });
        let max_memory = self.max_memory.or(DEFAULT_MEMORY, m, |text| {
            values::size(text, &(MIN_MEMORY..=MAX_MEMORY))
        });
        let max_connect_header = self.max_connect_header.or(DEFAULT_HEADER, m, |text| {
            values::size(text, &(ByteSize::kib(1)..=ByteSize::kib(64)))
        });
        let connect_header_timeout =
            self.connect_header_timeout
                .or(DEFAULT_HEADER_TIMEOUT, m, |text| {
                    values::duration(text, &(Duration::from_millis(100)..=Duration::from_mins(1)))
                });
        let log_format = choice(&self.log_format, m);
        let kubelet_certificates = choice(&self.kubelet_certificates, m);
        let fast_path = choice(&self.fast_path, m);
        let direct = choice(&self.direct, m);
        let flow_pool = self.flow_pool.or(DEFAULT_FLOW_POOL, m, |&number| {
            count_or_none(number, MAX_FLOW_POOL)
        });
        let of_streams = *max_streams_per_node.as_ref().unwrap_or(&DEFAULT_STREAMS);
        let max_flows_per_node = self
            .max_flows_per_node
            .or(of_streams, m, |&number| values::count(number, MAX_STREAMS));
        let flow_buffer = self
            .flow_buffer
            .or(FlowBuffer::default(), m, |text| values::flow_buffer(text));
        let splice = choice(&self.splice, m);
        let advertise = self.advertise.optional(m, |text| advertise(text));
        let dials_from = self.dials_from(m);
        Ok(Config {
            listen: listen?,
            cert: cert?,
            key: key?,
            client_ca: client_ca?,
            cluster_id: cluster_id?,
            front_doors: front_doors?,
            node_addresses: node_addresses?,
            routes: routes?,
            connect_budget: connect_budget?,
            idle_timeout: idle_timeout?,
            drain_deadline: drain_deadline?,
            takeover: takeover?,
            takeover_socket: takeover_socket?,
            max_streams_per_node: max_streams_per_node?,
            max_pending_dials_per_node: max_pending_dials_per_node?,
            max_sessions: max_sessions?,
            max_handshakes: max_handshakes?,
            max_registrations_per_second: max_registrations_per_second?,
            max_memory_per_session: max_memory_per_session?,
            max_memory: max_memory?,
            max_connect_header: max_connect_header?,
            connect_header_timeout: connect_header_timeout?,
            log_format: log_format?,
            kubelet_certificates: kubelet_certificates?,
            fast_path: fast_path?,
            direct: direct?,
            flow_pool: flow_pool?,
            max_flows_per_node: max_flows_per_node?,
            flow_buffer: flow_buffer?,
            splice: splice?,
            advertise: advertise?,
            dials_from: dials_from?,
            admin: admin?,
        })
    }

    fn admin(&self, m: &mut Mistakes, taken: &mut Taken) -> Result<AdminAddr, Refused> {
        self.admin
            .or(AdminAddr::Unix(DEFAULT_ADMIN_SOCKET.into()), m, |text| {
                let admin = values::admin_addr(text)?;
                taken.claim(
                    "admin",
                    match &admin {
                        AdminAddr::Tcp(addr) => Spot::Tcp(*addr),
                        AdminAddr::Unix(path) => Spot::Unix(path.clone()),
                    },
                )?;
                Ok::<_, PlaceError>(admin)
            })
    }

    fn front_doors(&self, m: &mut Mistakes, taken: &mut Taken) -> Result<Vec<FrontDoor>, Refused> {
        let mut index = 0;
        let doors = self.front_doors.each_setting(m, |item, m| {
            let name = format!("front-doors[{index}]");
            index += 1;
            item.present(m)?.check(item, &name, m, taken)
        })?;
        if !doors.is_empty() {
            return Ok(doors);
        }
        if self.front_doors.is_set() {
            let problem = "must have at least one door; without the key there is the default one";
            return Err(self.front_doors.refuse(m, problem));
        }
        Ok(vec![FrontDoor::Unix {
            path: DEFAULT_DOOR.into(),
            mode: DEFAULT_DOOR_MODE,
        }])
    }

    fn dials_from(&self, m: &mut Mistakes) -> Result<Vec<IpAddr>, Refused> {
        let ips = self.dials_from.each(m, |text| values::node_ip(text))?;
        if ips.len() > MAX_DIALS_FROM {
            let problem = format!(
                "must list at most {MAX_DIALS_FROM} addresses, has {}",
                ips.len()
            );
            return Err(self.dials_from.refuse(m, problem));
        }
        Ok(ips)
    }

    fn routes(&self, m: &mut Mistakes) -> Result<Vec<Route>, Refused> {
        let mut seen = HashSet::new();
        self.routes.each_setting(m, |item, m| {
            let raw: &RawRoute = item.present(m)?;
            let net = raw.cidr.required(m, |text| values::cidr_or_ip(text));
            let via = raw.via.required(m, |text| values::choice(text));
            let route = Route {
                net: net?,
                via: via?,
            };
            if seen.insert(route.net) {
                Ok(route)
            } else {
                Err(raw.cidr.refuse(m, "is listed twice"))
            }
        })
    }
}

impl RawFrontDoor {
    fn check(
        &self,
        item: &Setting<Self>,
        name: &str,
        m: &mut Mistakes,
        taken: &mut Taken,
    ) -> Result<FrontDoor, Refused> {
        match (self.unix.is_set(), self.listen.is_set()) {
            (true, true) => Err(item.refuse(m, "must have unix or listen, not both")),
            (false, false) => Err(item.refuse(m, "must have unix or listen")),
            (true, false) => self.check_unix(name, m, taken),
            (false, true) => self.check_tcp(name, m, taken),
        }
    }

    fn check_unix(
        &self,
        name: &str,
        m: &mut Mistakes,
        taken: &mut Taken,
    ) -> Result<FrontDoor, Refused> {
        let path = self.unix.required(m, |text| {
            let path = values::socket_path(text)?;
            taken.claim(name, Spot::Unix(path.clone()))?;
            Ok::<_, PlaceError>(path)
        });
        let mode = self
            .mode
            .or(DEFAULT_DOOR_MODE, m, |text| values::unix_mode(text));
        if matches!(mode, Ok(mode) if mode & WORLD_WRITABLE != 0) {
            self.mode
                .warn(m, "lets every process on this host reach every kubelet");
        }
        let misplaced = [&self.cert, &self.key, &self.client_ca].map(|setting| {
            if setting.is_set() {
                Err(setting.refuse(m, ONLY_TCP))
            } else {
                Ok(())
            }
        });
        let names = match self.client_names.is_set() {
            true => Err(self.client_names.refuse(m, ONLY_TCP)),
            false => Ok(()),
        };
        let [cert, key, client_ca] = misplaced;
        cert.and(key).and(client_ca).and(names)?;
        Ok(FrontDoor::Unix {
            path: path?,
            mode: mode?,
        })
    }

    fn check_tcp(
        &self,
        name: &str,
        m: &mut Mistakes,
        taken: &mut Taken,
    ) -> Result<FrontDoor, Refused> {
        let listen = self.listen.required(m, |text| {
            let addr = values::listen_addr(text)?;
            taken.claim(name, Spot::Tcp(addr))?;
            Ok::<_, PlaceError>(addr)
        });
        let cert = self.cert.required(m, |text| values::path(text));
        let key = self.key.required(m, |text| values::path(text));
        let client_ca = self.client_ca.required(m, |text| values::path(text));
        let client_names = self.client_names.each(m, |text| client_name(text));
        if matches!(&client_names, Ok(names) if names.is_empty()) {
            let problem = "must name at least one client: whoever comes in reaches every kubelet";
            return Err(self.client_names.refuse(m, problem));
        }
        if self.mode.is_set() {
            return Err(self
                .mode
                .refuse(m, "belongs to a door with unix, this one has listen"));
        }
        Ok(FrontDoor::Tcp {
            listen: listen?,
            cert: cert?,
            key: key?,
            client_ca: client_ca?,
            client_names: client_names?,
        })
    }
}

impl RawNodeAddresses {
    fn check(&self, m: &mut Mistakes) -> Result<NodeAddresses, Refused> {
        match self {
            Self::Word(word) => word.or(NodeAddresses::Declared, m, |text| match text.as_str() {
                DECLARED => Ok(NodeAddresses::Declared),
                KUBERNETES => Ok(NodeAddresses::Kubernetes(Kubeconfig::InClusterOr(
                    DEFAULT_KUBECONFIG.into(),
                ))),
                _ => Err(format!("must be {NODE_ADDRESSES}")),
            }),
            Self::Source(source) => source.present(m)?.check(source, m),
        }
    }
}

impl RawNodeSource {
    fn check(&self, item: &Setting<Self>, m: &mut Mistakes) -> Result<NodeAddresses, Refused> {
        let file = self.file.optional(m, |text| values::path(text));
        let kubernetes = if self.kubernetes.is_set() {
            match self.kubernetes.present(m) {
                Ok(kubernetes) => kubernetes
                    .kubeconfig
                    .required(m, |text| values::path(text))
                    .map(Some),
                Err(refused) => Err(refused),
            }
        } else {
            Ok(None)
        };
        match (file?, kubernetes?) {
            (Some(path), None) => Ok(NodeAddresses::File(path)),
            (None, Some(path)) => Ok(NodeAddresses::Kubernetes(Kubeconfig::File(path))),
            (Some(_), Some(_)) => {
                let problem = "belongs to no node-addresses with file, expected one of the two";
                Err(self.kubernetes.refuse(m, problem))
            }
            (None, None) => Err(item.refuse(m, format!("must be {NODE_ADDRESSES}"))),
        }
    }
}

/// The places that listeners have so far, each with the key that says so.
#[derive(Debug, Default)]
struct Taken(Vec<(String, Spot)>);

#[derive(Debug, PartialEq)]
enum Spot {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Why a listener cannot be where the file says.
#[derive(Debug)]
enum PlaceError {
    Value(ValueError),
    Taken { by: String },
}

impl Taken {
    /// Takes a place for the listener that `key` describes.
    fn claim(&mut self, key: &str, spot: Spot) -> Result<(), PlaceError> {
        if let Some((by, _)) = self.0.iter().find(|(_, other)| other.collides(&spot)) {
            return Err(PlaceError::Taken { by: by.clone() });
        }
        self.0.push((key.to_owned(), spot));
        Ok(())
    }
}

impl Spot {
    /// Whether the kernel would refuse to have both.
    fn collides(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unix(a), Self::Unix(b)) => a == b,
            (Self::Tcp(a), Self::Tcp(b)) => {
                let any = |ip: IpAddr, other: IpAddr| {
                    ip.is_unspecified() && (ip.is_ipv6() || other.is_ipv4())
                };
                let ips = a.ip() == b.ip() || any(a.ip(), b.ip()) || any(b.ip(), a.ip());
                // Port 0 is a different port each time.
                a.port() == b.port() && a.port() != 0 && ips
            }
            (Self::Tcp(_), Self::Unix(_)) | (Self::Unix(_), Self::Tcp(_)) => false,
        }
    }
}

impl From<ValueError> for PlaceError {
    fn from(error: ValueError) -> Self {
        Self::Value(error)
    }
}

impl fmt::Display for PlaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(error) => error.fmt(f),
            Self::Taken { by } => write!(f, "is already taken by {by}"),
        }
    }
}

/// A number that may be 0.
fn count_or_none(number: u64, max: u32) -> Result<u32, ValueError> {
    let small = u32::try_from(number).ok().filter(|&small| small <= max);
    small.ok_or(ValueError::OutOfRange { min: 0, max })
}

fn choice<T: values::Choice + Default>(
    setting: &Setting<String>,
    m: &mut Mistakes,
) -> Result<T, Refused> {
    setting.or(T::default(), m, |text| values::choice(text))
}

const ONLY_TCP: &str = "belongs to a door with listen, this one has unix";

const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), DEFAULT_SESSION_PORT);
const DEFAULT_DOOR: &str = "/run/proxymux/egress.sock";
const DEFAULT_TAKEOVER_SOCKET: &str = "/run/proxymux/takeover.sock";
const DEFAULT_ADMIN_SOCKET: &str = "/run/proxymux/master.sock";

/// For the group that kube-apiserver is in, where it does not run as root.
const DEFAULT_DOOR_MODE: u32 = 0o660;
const WORLD_WRITABLE: u32 = 0o002;

/// kube-apiserver waits for ever, its user does not.
const DEFAULT_CONNECT_BUDGET: Duration = Duration::from_secs(8);

/// What Kubernetes gives a pod that is told to stop.
const DEFAULT_DRAIN_DEADLINE: Duration = Duration::from_secs(30);

/// Ten times what a busy node was seen to have.
const DEFAULT_STREAMS: NonZeroU32 = NonZeroU32::new(1024).expect("1024 is not 0");
/// With 256 KiB of window each, 4 GiB of a peer's data in flight.
const MAX_STREAMS: u32 = 16_384;

/// What a person with `kubectl` opens at once, and no more descriptors than that: 1,600 nodes have
/// 6,400 on the master.
const DEFAULT_FLOW_POOL: u32 = 4;

/// The multiplexer blocks new streams at 256 unacknowledged ones; this stays below.
const DEFAULT_PENDING_DIALS: NonZeroU32 = NonZeroU32::new(128).expect("128 is not 0");
const MAX_PENDING_DIALS: u32 = 200;

/// Twice the 5,000 nodes that Kubernetes is made for: each may have a session that finishes its
/// streams beside the one that has replaced it.
const DEFAULT_SESSIONS: NonZeroU32 = NonZeroU32::new(10_000).expect("10,000 is not 0");
/// One descriptor each, of the million that a process may usually be given at most.
const MAX_SESSIONS: u32 = 100_000;

/// A handshake is 2 ms of work or so, and otherwise waits for the other side. With so many at once
/// a single processor is busy also where agents are 100 ms away, and none waits for the processor
/// for more than a small part of the 5 s that it has.
const DEFAULT_HANDSHAKES: NonZeroU32 = NonZeroU32::new(64).expect("64 is not 0");
const MAX_HANDSHAKES: u32 = 1024;

/// Half a second of one processor's work. A thousand agents are back after some 8 s, within the
/// 15 s for which requests wait for them, and 5,000 after some 40 s.
const DEFAULT_REGISTRATIONS: NonZeroU32 = NonZeroU32::new(250).expect("250 is not 0");
const MAX_REGISTRATIONS: u32 = 10_000;

/// kube-apiserver sends under 400 bytes; this leaves room for clients that add headers.
const DEFAULT_HEADER: ByteSize = ByteSize::kib(16);

/// Clients send the header in one piece.
const DEFAULT_HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// 256 streams of which each has a whole window of 256 KiB waiting; a node with 100 readers that
/// stall needs 25 MiB.
const DEFAULT_MEMORY_PER_SESSION: ByteSize = ByteSize::mib(64);

/// Eight nodes at the limit of one, or 2,000 stalled readers anywhere: far more than a control
/// plane has that works. Sessions themselves come on top.
const DEFAULT_MEMORY: ByteSize = ByteSize::mib(512);

/// A few windows: less would be no tunnel.
const MIN_MEMORY: ByteSize = ByteSize::mib(4);
/// Agents steer no more sources than these, of all masters together.
const MAX_DIALS_FROM: usize = 16;

const MAX_MEMORY: ByteSize = ByteSize::gib(1024);
