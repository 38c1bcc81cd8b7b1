//! From what the file says to what the agent can use.
//!
//! Owns every default, every bound and every rule between keys. It never stops at a mistake: a
//! `Refused` stands for a value that was already reported, and only at the very end does it
//! decide.

use std::{collections::HashSet, net::IpAddr, net::SocketAddr, num::NonZeroU32, time::Duration};

use ipnet::IpNet;
use proxymux_proto::{AllowedRange, DEFAULT_KUBELET_PORT, MAX_ALLOWED_RANGES, NodeName};
use proxymux_transport::config_file::{
    Mistakes, Refused, Setting,
    values::{self, AdminAddr, ByteSize, FlowBuffer, ValueError},
};
use rustls::pki_types::ServerName;

use super::{
    ClientIdentity, Config, Guard, InterfaceName, Mode, ServerAddr, ServerAddrError,
    raw::{RawAllow, RawConfig},
};

impl RawConfig {
    /// The settings in force, if there is no mistake in any.
    pub(super) fn check(&self, m: &mut Mistakes) -> Result<Config, Refused> {
        let node_name = self.node_name.required(m, |text| NodeName::parse(text));
        let node_id = self.node_id.optional(m, |text| values::label(text));
        let cluster_id = self.cluster_id.optional(m, |text| values::label(text));
        let labels = self.labels(m);
        let server_addrs = self.server_addrs(m);
        let server_name = self
            .server_name
            .optional(m, |text| values::server_name(text));
        let expect_masters = self
            .expect_masters
            .or(NonZeroU32::MIN, m, |&n| values::count(n, MAX_MASTERS));
        let net_inf = self.net_inf.optional(m, |text| InterfaceName::parse(text));
        let private_ip_address = self
            .private_ip_address
            .optional(m, |text| values::node_ip(text));
        let public_ip_address = self
            .public_ip_address
            .optional(m, |text| values::node_ip(text));
        let bind_addr = self.bind_addr(m, &server_addrs);
        let kubelet_addr = self.kubelet_addr(m, &private_ip_address);
        let client_identity = self.client_identity(m);
        let ca_file = self
            .ca_file
            .or(DEFAULT_CA_FILE.into(), m, |text| values::path(text));
        let allow = self.allow(m);
        let idle_timeout = self.idle_timeout.or(None, m, |text| {
            values::duration_or_off(
                text,
                &(Duration::from_secs(1)..=Duration::from_hours(24 * 30)),
            )
        });
        let drain_deadline = self.drain_deadline.or(DEFAULT_DRAIN_DEADLINE, m, |text| {
            values::duration(text, &(Duration::from_secs(1)..=Duration::from_hours(1)))
        });
        let dial_timeout = self.dial_timeout.or(DEFAULT_DIAL_TIMEOUT, m, |text| {
            values::duration(text, &(Duration::from_millis(100)..=Duration::from_mins(5)))
        });
        let max_memory_per_session =
            self.max_memory_per_session
                .or(DEFAULT_MEMORY_PER_SESSION, m, |text| {
                    values::size(text, &(MIN_MEMORY..=MAX_MEMORY))
                });
        let max_memory = self.max_memory.or(DEFAULT_MEMORY, m, |text| {
            values::size(text, &(MIN_MEMORY..=MAX_MEMORY))
        });
        let log_format = choice(&self.log_format, m);
        let mode = choice(&self.mode, m);
        let fast_path = choice(&self.fast_path, m);
        let flow_buffer = self
            .flow_buffer
            .or(FlowBuffer::default(), m, |text| values::flow_buffer(text));
        let splice = choice(&self.splice, m);
        let perf = choice(&self.perf, m);
        let steer_from = self.steer_from(m);
        let steer_plain = choice(&self.steer_plain, m);
        let guard_allow = self.guard_allow.each(m, |text| values::cidr_or_ip(text));
        let guard = self.guard(m, &mode, &guard_allow);
        let guard_inf = self.guard_inf.each(m, |text| InterfaceName::parse(text));
        let attach = choice(&self.attach, m);
        let steer_priority = self
            .steer_priority
            .or(NonZeroU32::MIN, m, |&n| values::count(n, MAX_PRIORITY));
        let admin = self
            .admin
            .or(AdminAddr::Unix(DEFAULT_ADMIN_SOCKET.into()), m, |text| {
                values::admin_addr(text)
            });
        Ok(Config {
            node_name: node_name?,
            node_id: node_id?,
            cluster_id: cluster_id?,
            labels: labels?,
            server_addrs: server_addrs?,
            server_name: server_name?,
            expect_masters: expect_masters?,
            net_inf: net_inf?,
            private_ip_address: private_ip_address?,
            public_ip_address: public_ip_address?,
            bind_addr: bind_addr?,
            kubelet_addr: kubelet_addr?,
            client_identity: client_identity?,
            ca_file: ca_file?,
            allow: allow?,
            mode: mode?,
            fast_path: fast_path?,
            flow_buffer: flow_buffer?,
            splice: splice?,
            perf: perf?,
            steer_from: steer_from?,
            steer_plain: steer_plain?,
            guard: guard?,
            guard_allow: guard_allow?,
            guard_inf: guard_inf?,
            attach: attach?,
            steer_priority: u16::try_from(steer_priority?.get()).unwrap_or(u16::MAX),
            admin: admin?,
            max_memory_per_session: max_memory_per_session?,
            max_memory: max_memory?,
            log_format: log_format?,
            idle_timeout: idle_timeout?,
            drain_deadline: drain_deadline?,
            dial_timeout: dial_timeout?,
        })
    }

    fn labels(
        &self,
        m: &mut Mistakes,
    ) -> Result<std::collections::BTreeMap<String, String>, Refused> {
        let mut checked = Vec::new();
        for (key, setting) in &self.labels {
            checked.push((key, setting.optional(m, |text| values::label(text))));
        }
        let present = checked.into_iter().filter_map(|(key, label)| {
            label
                .transpose()
                .map(|label| Ok(((*key).to_owned(), label?)))
        });
        present.collect()
    }

    fn server_addrs(&self, m: &mut Mistakes) -> Result<Vec<ServerAddr>, Refused> {
        let mut seen = HashSet::new();
        let addrs = self.server_addr.each(m, |text| {
            let addr = ServerAddr::parse(text)?;
            if seen.insert(addr.to_string().to_ascii_lowercase()) {
                Ok(addr)
            } else {
                Err(ServerAddrError::Twice)
            }
        })?;
        match addrs.len() {
            0 => Err(self.server_addr.refuse(m, "must be set")),
            len if len > MAX_SERVER_ADDRS => {
                let problem = format!("must list at most {MAX_SERVER_ADDRS} masters, has {len}");
                Err(self.server_addr.refuse(m, problem))
            }
            _ => Ok(addrs),
        }
    }

    fn bind_addr(
        &self,
        m: &mut Mistakes,
        servers: &Result<Vec<ServerAddr>, Refused>,
    ) -> Result<Option<IpAddr>, Refused> {
        let ip = self.bind_addr.optional(m, |text| bind_ip(text))?.flatten();
        if let (Some(ip), Ok(servers)) = (ip, servers) {
            // A name may have addresses of either family, so only addresses are proof.
            let unreachable = servers.iter().all(|server| match server.host() {
                ServerName::IpAddress(host) => IpAddr::from(*host).is_ipv4() != ip.is_ipv4(),
                _ => false,
            });
            if unreachable {
                return Err(self
                    .bind_addr
                    .refuse(m, "must be of the IP version of server-addr"));
            }
        }
        Ok(ip)
    }

    fn kubelet_addr(
        &self,
        m: &mut Mistakes,
        private_ip: &Result<Option<IpAddr>, Refused>,
    ) -> Result<SocketAddr, Refused> {
        if let Some(addr) = self.kubelet_addr.optional(m, |text| kubelet_addr(text))? {
            return Ok(addr);
        }
        match private_ip {
            Ok(Some(ip)) => Ok(SocketAddr::new(*ip, DEFAULT_KUBELET_PORT)),
            Ok(None) => Err(self
                .kubelet_addr
                .refuse(m, "must be set where private-ip-address is not")),
            Err(refused) => Err(*refused),
        }
    }

    fn client_identity(&self, m: &mut Mistakes) -> Result<ClientIdentity, Refused> {
        let dir = self
            .cert_path
            .or(DEFAULT_CERT_PATH.into(), m, |text| values::path(text));
        let cert = self.client_cert.optional(m, |text| values::path(text));
        let key = self.client_key.optional(m, |text| values::path(text));
        if self.client_key.is_set() && !self.client_cert.is_set() {
            return Err(self.client_key.refuse(m, "must come with client-cert"));
        }
        let (dir, cert, key) = (dir?, cert?, key?);
        Ok(match cert {
            Some(cert) => ClientIdentity::Files {
                key: key.unwrap_or_else(|| cert.clone()),
                cert,
            },
            None => ClientIdentity::Directory(dir),
        })
    }

    fn allow(&self, m: &mut Mistakes) -> Result<Vec<AllowedRange>, Refused> {
        let ranges = self
            .allow
            .each_setting(m, |item, m| item.present(m)?.check(m))?;
        if ranges.len() > MAX_ALLOWED_RANGES {
            let problem = format!(
                "must list at most {MAX_ALLOWED_RANGES} ranges, has {}",
                ranges.len()
            );
            return Err(self.allow.refuse(m, problem));
        }
        Ok(ranges)
    }

    fn steer_from(&self, m: &mut Mistakes) -> Result<Vec<IpNet>, Refused> {
        let nets = self.steer_from.each(m, |text| values::cidr_or_ip(text))?;
        if nets.len() > MAX_STEER_FROM {
            let problem = format!(
                "must list at most {MAX_STEER_FROM} networks, has {}",
                nets.len()
            );
            return Err(self.steer_from.refuse(m, problem));
        }
        Ok(nets)
    }

    fn guard(
        &self,
        m: &mut Mistakes,
        mode: &Result<Mode, Refused>,
        allowed: &Result<Vec<IpNet>, Refused>,
    ) -> Result<Guard, Refused> {
        let guard = choice(&self.guard, m)?;
        if guard != Guard::Off && matches!(mode, Ok(Mode::Userspace)) {
            return Err(self
                .guard
                .refuse(m, "must be off in mode userspace, which has no eBPF"));
        }
        if guard == Guard::Enforce && matches!(allowed, Ok(nets) if nets.is_empty()) {
            let problem = "must come with guard-allow, try audit first to learn who connects";
            return Err(self.guard.refuse(m, problem));
        }
        Ok(guard)
    }
}

impl RawAllow {
    fn check(&self, m: &mut Mistakes) -> Result<AllowedRange, Refused> {
        let net = self.cidr.required(m, |text| values::cidr_or_ip(text));
        let ports = self
            .ports
            .or(1..=u16::MAX, m, |text| values::port_range(text));
        Ok(AllowedRange {
            net: net?,
            ports: ports?,
        })
    }
}

fn choice<T: values::Choice + Default>(
    setting: &Setting<String>,
    m: &mut Mistakes,
) -> Result<T, Refused> {
    setting.or(T::default(), m, |text| values::choice(text))
}

/// The address to bind to; the unspecified one stands for any.
fn bind_ip(text: &str) -> Result<Option<IpAddr>, ValueError> {
    match values::ip(text)? {
        ip if ip.is_unspecified() => Ok(None),
        ip if ip.is_loopback() => Ok(Some(ip)),
        _ => values::node_ip(text).map(Some),
    }
}

/// The kubelet's address, which may be a loopback one: only this agent dials it.
fn kubelet_addr(text: &str) -> Result<SocketAddr, ValueError> {
    let addr = values::socket_addr(text, Some(DEFAULT_KUBELET_PORT))?;
    if !addr.ip().is_loopback() {
        values::node_ip(&addr.ip().to_string())?;
    }
    Ok(addr)
}

const DEFAULT_CERT_PATH: &str = "/var/lib/kubelet/pki";
const DEFAULT_CA_FILE: &str = "/etc/kubernetes/ca.crt";
const DEFAULT_ADMIN_SOCKET: &str = "/run/proxymux/agent.sock";

/// What Kubernetes gives a pod that is told to stop.
const DEFAULT_DRAIN_DEADLINE: Duration = Duration::from_secs(30);

/// Below the 8 s within which a master answers, so that the reason gets through.
const DEFAULT_DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Each costs a session, and steering knows the masters' addresses by a list of this length.
const MAX_MASTERS: u32 = 16;
const MAX_SERVER_ADDRS: usize = 16;
const MAX_STEER_FROM: usize = 16;

/// The kernel has 16 bits for it.
const MAX_PRIORITY: u32 = 65_535;

/// 256 streams of which each has a whole window of 256 KiB waiting; a node with 100 readers that
/// stall needs 25 MiB.
const DEFAULT_MEMORY_PER_SESSION: ByteSize = ByteSize::mib(64);

/// As much as one session may have: an agent mostly has one master, or one that matters.
const DEFAULT_MEMORY: ByteSize = ByteSize::mib(64);

/// A few windows: less would be no tunnel.
const MIN_MEMORY: ByteSize = ByteSize::mib(4);
const MAX_MEMORY: ByteSize = ByteSize::gib(1024);
