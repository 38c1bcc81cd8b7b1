//! How this node gets to each master: device, next hop and source address, as the kernel says.
//!
//! Owns what each answer means, and whether what masters dial comes by where steering looks. Leaves
//! whether anybody answers there to `master`, and the way of what comes in to `reverse_path`.
//! Routes of a VRF are not looked at: the agent does not bind to devices.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
};

use nix::{errno::Errno, net::if_::if_indextoname};
use proxymux_transport::command::Report;

use crate::{
    config::Config,
    netlink::route::{self, Kind, Route},
};

/// The way to each of these addresses, which may need the kernel's answer: it blocks.
pub(super) fn look(config: &Config, masters: &BTreeSet<SocketAddr>) -> Report {
    let mut report = Report::default();
    let nic = nic(config);
    for at in masters {
        tell(&mut report, *at, &Asked::of(at.ip(), config), nic.as_ref());
    }
    report
}

/// The address that masters dial when they dial this node, as far as the configuration says.
#[cfg(feature = "ebpf")]
pub(super) fn dialled(config: &Config) -> Option<IpAddr> {
    let all = [
        config.bind_addr,
        config.private_ip_address,
        Some(config.kubelet_addr.ip()),
    ];
    let mut usable = all.into_iter().flatten().filter(|ip| !ip.is_loopback());
    usable.next()
}

/// The name of a device, or its number if it has gone meanwhile.
pub(super) fn device(index: u32) -> String {
    let name = if_indextoname(index).ok();
    let name = name.and_then(|name| name.into_string().ok());
    // Of a number that no device has, nix makes an empty name.
    let name = name.filter(|name| !name.is_empty());
    name.unwrap_or_else(|| format!("device {index}"))
}

/// What the kernel has said of the way to one address.
#[derive(Debug)]
struct Asked {
    /// From whatever source address the kernel takes.
    free: io::Result<Route>,
    /// From `bind-addr`.
    bound: Option<Bound>,
}

#[derive(Debug)]
struct Bound {
    from: IpAddr,
    /// Whether this host has that address.
    own: bool,
    route: io::Result<Route>,
}

/// Where steering looks, and what of it matters to routes.
#[derive(Clone, Debug)]
struct Nic {
    index: u32,
    name: String,
    /// What masters dial, and which device has it.
    dialled: Option<(IpAddr, Option<String>)>,
}

impl Asked {
    fn of(master: IpAddr, config: &Config) -> Self {
        let master = master.to_canonical();
        let from = config.bind_addr;
        let from = from.filter(|from| from.is_ipv4() == master.is_ipv4());
        Self {
            free: route::to(master, None),
            bound: from.map(|from| Bound {
                from,
                own: route::to(from, None).is_ok_and(|route| route.kind == Kind::Local),
                route: route::to(master, Some(from)),
            }),
        }
    }
}

fn tell(report: &mut Report, at: SocketAddr, asked: &Asked, nic: Option<&Nic>) {
    let taken = match &asked.bound {
        None => &asked.free,
        Some(bound) => {
            if let Some((found, fix)) = unusable(at, bound, &asked.free) {
                report.error(ROUTE, found, fix);
                // Without any route that is to be mended as well.
                if asked.free.is_ok() {
                    return;
                }
            }
            if bound.own { &bound.route } else { &asked.free }
        }
    };
    match taken {
        Ok(route) => match route.kind {
            Kind::Unicast => leaves(report, at, route, nic),
            Kind::Local => report.ok(ROUTE, format!("{at} is at this node itself")),
            Kind::Other => report.error(
                ROUTE,
                format!("{at} is a broadcast or multicast address here"),
                "correct the host of server-addr",
            ),
        },
        Err(error) => none(report, at, error),
    }
}

/// Why `bind-addr` cannot be the source address towards a master.
fn unusable(at: SocketAddr, bound: &Bound, free: &io::Result<Route>) -> Option<(String, String)> {
    let Bound { from, own, route } = bound;
    let instead = free.as_ref().ok().and_then(|route| route.source);
    let instead = instead.map_or_else(
        || "set bind-addr to an address of this node (`ip -br addr`)".to_owned(),
        |ip| {
            format!(
                "set `bind-addr: {ip}`, which the kernel would take towards {}",
                at.ip()
            )
        },
    );
    if !own {
        return Some((
            format!("{at}: no device of this node has bind-addr {from}"),
            format!("{instead}, or take it out; or give {from} to a device"),
        ));
    }
    // Without any route it is not for bind-addr that there is none from there.
    let (Err(error), true) = (route, free.is_ok()) else {
        return None;
    };
    let why = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EINVAL) => "the kernel or a rule refuses that source".to_owned(),
        _ => why(error),
    };
    Some((
        format!("{at}: there is a way, but not from bind-addr {from}: {why}"),
        format!(
            "{instead}, or take it out; or see the rules for that source: `ip rule`, `{} get {} \
             from {from}`",
            ip_route(at.ip()),
            at.ip()
        ),
    ))
}

fn leaves(report: &mut Report, at: SocketAddr, route: &Route, nic: Option<&Nic>) {
    let by = device(route.device);
    let from = route.source.map(|ip| format!(" from {ip}"));
    let next = route.gateway.map(|ip| format!(", next hop {ip}"));
    let way = format!(
        "{at} is reached by {by}{}{}",
        from.unwrap_or_default(),
        next.unwrap_or_default()
    );
    let Some(nic) = nic.filter(|nic| nic.index != route.device) else {
        report.ok(ROUTE, way);
        return;
    };
    let Nic { name, dialled, .. } = nic;
    match dialled {
        Some((ip, holder)) if holder.as_ref() != Some(name) => {
            let instead = holder.as_ref().unwrap_or(&by);
            report.warning(
                ROUTE,
                format!(
                    "{way}, not by {name}, where steering looks; sessions work, and what masters \
                     dial to {ip} is not steered, since {name} does not have that address"
                ),
                format!(
                    "set `net-inf: {instead}`; or set bind-addr and private-ip-address to those of \
                     {name}, if masters reach this node by it"
                ),
            );
        }
        dialled => {
            let ip = dialled.as_ref().map(|(ip, _)| ip.to_string());
            report.ok(
                ROUTE,
                format!(
                    "{way}, not by {name}, where steering looks: right if masters' connections to \
                     {} come by {name}; if they come by {by}, set `net-inf: {by}`",
                    ip.as_deref().unwrap_or("the kubelet")
                ),
            );
        }
    }
}

/// There is no way at all.
fn none(report: &mut Report, at: SocketAddr, error: &io::Error) {
    let (ip, command) = (at.ip(), ip_route(at.ip()));
    let own = format!("give {ip} a route of its own: `{command} add {ip} via ROUTER`");
    let typed = |kind: &str| {
        format!("see which: `{command} show table all type {kind}`, `ip rule`; delete it, or {own}")
    };
    let fix = match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
        Errno::ENETUNREACH => format!(
            "see why the default route is missing (`{command}`, `ip rule`: DHCP, cloud-init, a VPN), \
             or {own}"
        ),
        Errno::EHOSTUNREACH => typed("unreachable"),
        Errno::EACCES => typed("prohibit"),
        Errno::EINVAL => typed("blackhole"),
        _ => format!("see what `{command} get {ip}` says"),
    };
    report.error(ROUTE, format!("{at}: {}", why(error)), fix);
}

/// What an error of the kernel says of a route.
fn why(error: &io::Error) -> String {
    match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
        Errno::ENETUNREACH => "this node has no route there".to_owned(),
        Errno::EHOSTUNREACH => {
            "a route or rule of type unreachable refuses what is sent there".to_owned()
        }
        Errno::EACCES => "a route or rule of type prohibit refuses what is sent there".to_owned(),
        Errno::EINVAL => {
            "a route or rule of type blackhole throws away what is sent there".to_owned()
        }
        _ => format!("the kernel does not say how it is reached: {error}"),
    }
}

fn ip_route(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() {
        "ip route"
    } else {
        "ip -6 route"
    }
}

/// Where steering looks, if it is to look anywhere; what is wrong with it is told by `nic`.
#[cfg(feature = "ebpf")]
fn nic(config: &Config) -> Option<Nic> {
    use crate::{config::Mode, netlink::links::links, steering::places::addresses};

    if config.mode == Mode::Userspace {
        return None;
    }
    let addresses = addresses().ok()?;
    let holder = |ip: IpAddr| {
        let mut holders = addresses.iter().filter(|(_, held)| *held == ip);
        holders.next().map(|(name, _)| name.clone())
    };
    let name = config.net_inf.as_ref().map(ToString::to_string);
    let name = name.or_else(|| config.private_ip_address.and_then(holder))?;
    let link = links().ok()?.into_iter().find(|link| link.name == name)?;
    Some(Nic {
        index: link.index,
        name,
        dialled: dialled(config).map(|ip| (ip, holder(ip))),
    })
}

/// Without programs there is no device that they look at.
#[cfg(not(feature = "ebpf"))]
fn nic(_: &Config) -> Option<Nic> {
    None
}

pub(super) const ROUTE: &str = "master route";

#[cfg(test)]
mod tests {
    use proxymux_transport::command::Level;

    use super::*;

    fn at() -> SocketAddr {
        "192.0.2.10:12250".parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// By a device that is not there, and so keeps its number for a name.
    fn route(device: u32, source: &str) -> Route {
        Route {
            kind: Kind::Unicast,
            device,
            gateway: Some(ip("10.0.10.1")),
            source: Some(ip(source)),
        }
    }

    fn refused(errno: Errno) -> io::Error {
        io::Error::from_raw_os_error(errno as i32)
    }

    fn told(asked: &Asked, nic: Option<&Nic>) -> Vec<(Level, String, String)> {
        let mut report = Report::default();
        tell(&mut report, at(), asked, nic);
        let findings = report.findings().iter();
        let all = findings.map(|f| (f.level, f.found.clone(), f.fix.clone().unwrap_or_default()));
        all.collect()
    }

    fn one(asked: &Asked, nic: Option<&Nic>) -> (Level, String, String) {
        let mut all = told(asked, nic);
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    fn free(free: io::Result<Route>) -> Asked {
        Asked { free, bound: None }
    }

    fn nic(index: u32, dialled: &str, holder: Option<&str>) -> Nic {
        Nic {
            index,
            name: "ens3".to_owned(),
            dialled: Some((ip(dialled), holder.map(ToOwned::to_owned))),
        }
    }

    const GONE: u32 = 0x7fff_fff0;

    #[test]
    fn a_route_is_told_with_device_source_and_next_hop() {
        let (level, found, _) = one(&free(Ok(route(GONE, "10.0.10.10"))), None);
        assert_eq!(level, Level::Ok);
        let by = format!("device {GONE} from 10.0.10.10, next hop 10.0.10.1");
        assert_eq!(found, format!("192.0.2.10:12250 is reached by {by}"));
    }

    #[test]
    fn each_way_of_having_no_route_says_what_to_look_for() {
        for (errno, word, fix) in [
            (Errno::ENETUNREACH, "has no route there", "default route"),
            (Errno::EHOSTUNREACH, "unreachable", "type unreachable"),
            (Errno::EACCES, "prohibit", "type prohibit"),
            (Errno::EINVAL, "blackhole", "type blackhole"),
        ] {
            let (level, found, told) = one(&free(Err(refused(errno))), None);
            assert_eq!(level, Level::Error);
            assert!(found.contains(word), "{found}");
            assert!(told.contains(fix), "{told}");
        }
        let (_, found, fix) = one(&free(Err(refused(Errno::ENOBUFS))), None);
        assert!(found.contains("does not say"), "{found}");
        assert!(fix.contains("ip route get 192.0.2.10"), "{fix}");
    }

    #[test]
    fn a_bind_addr_of_nobodys_names_the_one_to_take_instead() {
        let asked = |free| Asked {
            free,
            bound: Some(Bound {
                from: ip("10.9.9.9"),
                own: false,
                route: Err(refused(Errno::EINVAL)),
            }),
        };
        let (level, found, fix) = one(&asked(Ok(route(GONE, "10.0.10.10"))), None);
        assert_eq!(level, Level::Error);
        assert!(found.contains("has bind-addr 10.9.9.9"), "{found}");
        assert!(fix.contains("set `bind-addr: 10.0.10.10`"), "{fix}");
        // Both are to be mended where there is no route either.
        let both = told(&asked(Err(refused(Errno::ENETUNREACH))), None);
        assert!(
            matches!(both.as_slice(), [
            (Level::Error, bind, _), (Level::Error, route, _)
        ] if bind.contains("bind-addr") && route.contains("no route")),
            "{both:?}"
        );
    }

    #[test]
    fn a_way_that_is_not_there_for_bind_addr_alone_is_told_as_such() {
        let asked = |free, bound| Asked {
            free,
            bound: Some(Bound {
                from: ip("10.0.10.10"),
                own: true,
                route: bound,
            }),
        };
        let unreachable = || Err(refused(Errno::ENETUNREACH));
        let ruled = asked(Ok(route(GONE, "10.0.20.10")), unreachable());
        let (level, found, fix) = one(&ruled, None);
        assert_eq!(level, Level::Error);
        assert!(found.contains("not from bind-addr 10.0.10.10"), "{found}");
        assert!(fix.contains("ip rule"), "{fix}");
        // A rule may as well give that source the only route that there is.
        let (level, found, _) = one(&asked(unreachable(), Ok(route(GONE, "10.0.10.10"))), None);
        assert_eq!(level, Level::Ok, "{found}");
        // Without a route from anywhere nothing is said of bind-addr.
        let (_, found, _) = one(&asked(unreachable(), unreachable()), None);
        assert!(!found.contains("bind-addr"), "{found}");
    }

    #[test]
    fn a_loopback_bind_addr_is_refused_by_the_kernel_and_not_by_a_blackhole() {
        let asked = Asked {
            free: Ok(route(GONE, "10.0.10.10")),
            bound: Some(Bound {
                from: ip("127.0.0.1"),
                own: true,
                route: Err(refused(Errno::EINVAL)),
            }),
        };
        let (level, found, fix) = one(&asked, None);
        assert_eq!(level, Level::Error);
        assert!(found.contains("refuses that source"), "{found}");
        assert!(fix.contains("set `bind-addr: 10.0.10.10`"), "{fix}");
    }

    #[test]
    fn another_device_than_steering_looks_at_matters_if_masters_dial_that_one() {
        let elsewhere = free(Ok(route(GONE, "10.0.20.10")));
        let (level, found, fix) = one(&elsewhere, Some(&nic(2, "10.0.20.10", Some("eth1"))));
        assert_eq!(level, Level::Warning);
        assert!(found.contains("to 10.0.20.10 is not steered"), "{found}");
        assert!(fix.contains("set `net-inf: eth1`"), "{fix}");
        // An address of loopback is reached by the device that leads to the master.
        let (_, _, fix) = one(&elsewhere, Some(&nic(2, "10.255.0.1", None)));
        assert!(fix.contains(&format!("`net-inf: device {GONE}`")), "{fix}");
        let (level, found, _) = one(&elsewhere, Some(&nic(2, "10.0.10.10", Some("ens3"))));
        assert_eq!(level, Level::Ok);
        assert!(
            found.contains("connections to 10.0.10.10 come by ens3"),
            "{found}"
        );
        let (level, found, _) = one(&elsewhere, Some(&nic(GONE, "10.0.10.10", Some("ens3"))));
        assert_eq!(level, Level::Ok);
        assert!(!found.contains("ens3"), "{found}");
    }

    #[test]
    fn this_node_itself_is_fine_and_a_broadcast_address_is_not() {
        let mut own = route(1, "127.0.0.1");
        own.kind = Kind::Local;
        assert_eq!(
            one(&free(Ok(own)), Some(&nic(2, "10.0.10.10", None))).0,
            Level::Ok
        );
        own.kind = Kind::Other;
        let (level, found, _) = one(&free(Ok(own)), None);
        assert_eq!(level, Level::Error);
        assert!(found.contains("broadcast"), "{found}");
    }
}
