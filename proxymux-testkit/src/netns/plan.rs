//! Names, addresses and commands of a topology, as text; nothing here touches the system.
//!
//! The numbers are those of a real private subnet: jumbo frames on the node's own link, by default
//! 1500 beyond the router. One host on a side hangs on a plain veth; several share a bridge, which
//! is what makes them neighbours of one subnet.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Host, Reach, Towards};

/// The node side's subnet has room for this many: 10.0.10.10 to 10.0.10.99.
pub const MAX_NODES: u8 = 90;
/// 192.0.2.10 to 192.0.2.99.
pub const MAX_MASTERS: u8 = 90;

/// Everything a topology consists of.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) masters: Vec<HostPlan>,
    pub(super) router: HostPlan,
    pub(super) nodes: Vec<HostPlan>,
    sides: [Side; 2],
}

impl Towards {
    fn side(self) -> &'static Side {
        match self {
            Self::Masters => &MASTER_SIDE,
            Self::Nodes => &NODE_SIDE,
        }
    }

    /// The router's interface that it sends to.
    pub(super) fn router_interface(self) -> &'static str {
        self.side().router_interface
    }
}

/// One host: its namespace, what is on its interfaces, where it sends the rest.
#[derive(Clone, Debug)]
pub(super) struct HostPlan {
    pub(super) name: String,
    pub(super) namespace: String,
    /// The first is the one that [`Host::interface`] and the host's addresses speak of.
    pub(super) interfaces: Vec<Interface>,
    pub(super) forwards: bool,
}

/// An interface with addresses.
#[derive(Clone, Debug)]
pub(super) struct Interface {
    pub(super) name: &'static str,
    pub(super) ipv4: Ipv4Addr,
    pub(super) ipv6: Ipv6Addr,
    pub(super) gateway: Option<(Ipv4Addr, Ipv6Addr)>,
    pub(super) mtu: u16,
    /// The veths behind it, if it is a bridge.
    ports: Vec<String>,
}

impl Plan {
    /// `master_mtu` is that of the links on the masters' side.
    pub(super) fn new(prefix: &str, masters: u8, nodes: u8, master_mtu: u16) -> Self {
        let master_side = Side {
            mtu: master_mtu,
            ..MASTER_SIDE
        };
        let router = HostPlan {
            name: "router".to_owned(),
            namespace: format!("{prefix}-router"),
            interfaces: vec![
                master_side.router_interface(masters),
                NODE_SIDE.router_interface(nodes),
            ],
            forwards: true,
        };
        Self {
            masters: (0..masters)
                .map(|index| master_side.host(prefix, index, masters))
                .collect(),
            router,
            nodes: (0..nodes)
                .map(|index| NODE_SIDE.host(prefix, index, nodes))
                .collect(),
            sides: [master_side, NODE_SIDE],
        }
    }

    pub(super) fn hosts(&self) -> impl Iterator<Item = &HostPlan> {
        self.masters.iter().chain([&self.router]).chain(&self.nodes)
    }

    /// The `ip` commands that make namespaces, veths and bridges.
    pub(super) fn creation(&self) -> Vec<String> {
        let router = &self.router.namespace;
        let mut lines: Vec<String> = self
            .hosts()
            .map(|host| format!("netns add {}", host.namespace))
            .collect();
        let hosts = [&self.masters, &self.nodes];
        for (side, hosts) in self.sides.iter().zip(hosts) {
            for (index, host) in (0_u8..).zip(hosts) {
                let Side { interface, mtu, .. } = side;
                let port = side.router_port(index, hosts.len() > 1);
                lines.push(format!(
                    "link add name {interface} mtu {mtu} netns {} type veth \
                     peer name {port} mtu {mtu} netns {router}",
                    host.namespace
                ));
            }
            if hosts.len() > 1 {
                lines.push(format!(
                    "link add name {} netns {router} type bridge",
                    side.router_interface
                ));
            }
        }
        lines
    }
}

impl HostPlan {
    /// The `ip -n` commands that bring the host up.
    pub(super) fn configuration(&self) -> Vec<String> {
        let mut lines = vec!["link set lo up".to_owned()];
        for interface in &self.interfaces {
            let Interface { name, mtu, .. } = interface;
            for port in &interface.ports {
                lines.push(format!("link set {port} master {name} up"));
            }
            lines.push(format!("link set {name} mtu {mtu} up"));
            lines.extend(interface.addressing());
        }
        lines
    }
}

impl Interface {
    /// Addresses and default routes; the kernel forgets some of them when the link goes down.
    pub(super) fn addressing(&self) -> Vec<String> {
        let Self {
            name, ipv4, ipv6, ..
        } = self;
        let mut lines = vec![
            format!("addr replace {ipv4}/24 dev {name}"),
            // Without nodad an IPv6 address cannot be bound for its first second.
            format!("addr replace {ipv6}/64 dev {name} nodad"),
        ];
        if let Some((gateway4, gateway6)) = self.gateway {
            lines.push(format!("route replace default via {gateway4} dev {name}"));
            lines.push(format!("route replace default via {gateway6} dev {name}"));
        }
        lines
    }
}

/// Ruleset of the router for a reach; replaces the one before as a whole.
pub(super) fn reach_ruleset(reach: Reach) -> String {
    let (tcp, other) = match reach {
        // A reset works at once. An ICMP answer that comes back while connect(2) still holds the
        // socket, as it does over a veth, only counts when the SYN is repeated a second later.
        Reach::Nat => (
            "reject with tcp reset",
            "reject with icmpx type admin-prohibited",
        ),
        Reach::SilentNat => ("drop", "drop"),
        Reach::Routed => return replace_table(REACH_TABLE, ""),
    };
    let wan = MASTER_SIDE.router_interface;
    replace_table(
        REACH_TABLE,
        &format!(
            "chain forwarding {{\n\
               type filter hook forward priority 0; policy accept;\n\
               iifname \"{wan}\" ct state new meta l4proto tcp {tcp}\n\
               iifname \"{wan}\" ct state new {other}\n\
               iifname \"{wan}\" ct state invalid drop\n\
             }}\n\
             chain source_nat {{\n\
               type nat hook postrouting priority 100; policy accept;\n\
               oifname \"{wan}\" masquerade\n\
             }}\n"
        ),
    )
}

/// The arguments of the `ip` commands that make the router forward no larger packets to one side.
///
/// A route's locked MTU counts when a packet is forwarded (`ip_dst_mtu_maybe_forward` and its
/// sister for IPv6), so that one side alone can be narrow, as no link's MTU is.
pub(super) fn narrow_routes(towards: Towards, mtu: u16) -> [String; 2] {
    let side = towards.side();
    let (ipv4, ipv6) = (side.ipv4(0), side.ipv6(0));
    let (own, dev) = (side.ipv4(ROUTER), side.router_interface);
    [
        format!(
            "route replace {ipv4}/24 dev {dev} proto kernel scope link src {own} mtu lock {mtu}"
        ),
        format!("-6 route replace {ipv6}/64 dev {dev} proto kernel metric 256 mtu lock {mtu}"),
    ]
}

/// Ruleset of a router that forgets to say that a packet was too large; or, undone, says so.
pub(super) fn too_big_ruleset(said: bool) -> String {
    let content = "chain answers {\n\
                     type filter hook output priority 0; policy accept;\n\
                     icmp type destination-unreachable icmp code frag-needed drop\n\
                     icmpv6 type packet-too-big drop\n\
                   }\n";
    replace_table(TOO_BIG_TABLE, if said { "" } else { content })
}

/// Ruleset of a router that loses this many of a hundred packets at random, one way.
pub(super) fn loss_ruleset(towards: Towards, percent: u8) -> String {
    let dev = towards.side().router_interface;
    let content = format!(
        "chain forwarding {{\n\
           type filter hook forward priority -20; policy accept;\n\
           oifname \"{dev}\" numgen random mod 100 < {percent} drop\n\
         }}\n"
    );
    replace_table(LOSS_TABLE, &content)
}

/// Ruleset that drops everything of a host; forwarding sees its own addresses in both directions,
/// whatever the NAT does.
pub(super) fn silence_ruleset(host: &Host) -> String {
    let (ipv4, ipv6) = (host.ipv4(), host.ipv6());
    replace_table(
        &silence_table(host),
        &format!(
            "chain forwarding {{\n\
               type filter hook forward priority -10; policy accept;\n\
               ip saddr {ipv4} drop\n\
               ip daddr {ipv4} drop\n\
               ip6 saddr {ipv6} drop\n\
               ip6 daddr {ipv6} drop\n\
             }}\n"
        ),
    )
}

/// Ruleset that undoes [`silence_ruleset`], also when there is nothing to undo.
pub(super) fn restore_ruleset(host: &Host) -> String {
    replace_table(&silence_table(host), "")
}

fn silence_table(host: &Host) -> String {
    format!("silence_{}", host.name())
}

/// One transaction: a table must exist before it can be deleted.
fn replace_table(name: &str, content: &str) -> String {
    format!("table inet {name} {{}}\ndelete table inet {name}\ntable inet {name} {{\n{content}}}\n")
}

/// What the hosts on one side of the router have in common.
#[derive(Debug)]
struct Side {
    /// Name of a host, in front of its number.
    role: &'static str,
    /// The host's end of the link.
    interface: &'static str,
    /// The router's end.
    router_interface: &'static str,
    mtu: u16,
    network4: [u8; 3],
    network6: Ipv6Addr,
}

impl Side {
    fn host(&self, prefix: &str, index: u8, of: u8) -> HostPlan {
        let name = if of == 1 {
            self.role.to_owned()
        } else {
            format!("{}{index}", self.role)
        };
        let number = FIRST_HOST.saturating_add(index);
        HostPlan {
            namespace: format!("{prefix}-{name}"),
            name,
            interfaces: vec![Interface {
                name: self.interface,
                ipv4: self.ipv4(number),
                ipv6: self.ipv6(number),
                gateway: Some((self.ipv4(ROUTER), self.ipv6(ROUTER))),
                mtu: self.mtu,
                ports: Vec::new(),
            }],
            forwards: false,
        }
    }

    fn router_interface(&self, hosts: u8) -> Interface {
        let ports = if hosts > 1 {
            (0..hosts)
                .map(|index| self.router_port(index, true))
                .collect()
        } else {
            Vec::new()
        };
        Interface {
            name: self.router_interface,
            ipv4: self.ipv4(ROUTER),
            ipv6: self.ipv6(ROUTER),
            gateway: None,
            mtu: self.mtu,
            ports,
        }
    }

    /// The router's end of one veth; on a bridge it is only a port.
    fn router_port(&self, index: u8, bridged: bool) -> String {
        if bridged {
            format!("{}{index}", self.role)
        } else {
            self.router_interface.to_owned()
        }
    }

    fn ipv4(&self, number: u8) -> Ipv4Addr {
        let [a, b, c] = self.network4;
        Ipv4Addr::new(a, b, c, number)
    }

    /// The host part reads like the IPv4 one, so ::10 is 0x10.
    fn ipv6(&self, number: u8) -> Ipv6Addr {
        let digits = u16::from(number / 10) * 16 + u16::from(number % 10);
        Ipv6Addr::from_bits(self.network6.to_bits() | u128::from(digits))
    }
}

const NODE_SIDE: Side = Side {
    role: "node",
    interface: "ens3",
    router_interface: "nodes",
    mtu: JUMBO_MTU,
    network4: [10, 0, 10],
    network6: Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 0),
};

const MASTER_SIDE: Side = Side {
    role: "master",
    interface: "eth0",
    router_interface: "wan",
    mtu: MASTER_MTU,
    network4: [192, 0, 2],
    network6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0),
};

const ROUTER: u8 = 1;
const FIRST_HOST: u8 = 10;
const REACH_TABLE: &str = "reach";
const LOSS_TABLE: &str = "loss";
const TOO_BIG_TABLE: &str = "too_big";

/// That of the links on the masters' side, unless asked for otherwise.
pub(super) const MASTER_MTU: u16 = 1500;

/// What the node's link has, too.
pub(super) const JUMBO_MTU: u16 = 9000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_interface_name_fits_the_kernel_limit() {
        for (masters, nodes) in [(1, 1), (MAX_MASTERS, MAX_NODES)] {
            let plan = Plan::new("pxm-4194304-4294967295", masters, nodes, MASTER_MTU);
            for interface in plan.hosts().flat_map(|host| &host.interfaces) {
                assert!(interface.name.len() <= 15, "{}", interface.name);
                for port in &interface.ports {
                    assert!(port.len() <= 15, "{port}");
                }
            }
        }
    }

    #[test]
    fn addresses_count_up_and_read_alike_in_both_families() {
        let plan = Plan::new("p", 1, MAX_NODES, MASTER_MTU);
        let addresses = |index: usize| {
            let interface = &plan.nodes[index].interfaces[0];
            (interface.ipv4.to_string(), interface.ipv6.to_string())
        };
        assert_eq!(
            addresses(0),
            ("10.0.10.10".to_owned(), "fd00:10::10".to_owned())
        );
        assert_eq!(
            addresses(1),
            ("10.0.10.11".to_owned(), "fd00:10::11".to_owned())
        );
        assert_eq!(
            addresses(89),
            ("10.0.10.99".to_owned(), "fd00:10::99".to_owned())
        );
    }

    #[test]
    fn a_single_host_has_a_plain_veth_and_several_share_a_bridge() {
        let single = Plan::new("p", 1, 1, MASTER_MTU).creation().join("\n");
        assert!(
            single.contains("peer name nodes mtu 9000 netns p-router"),
            "{single}"
        );
        assert!(!single.contains("bridge"), "{single}");
        let several = Plan::new("p", 1, 2, MASTER_MTU).creation().join("\n");
        assert!(
            several.contains("peer name node1 mtu 9000 netns p-router"),
            "{several}"
        );
        assert!(
            several.contains("link add name nodes netns p-router type bridge"),
            "{several}"
        );
    }
}
