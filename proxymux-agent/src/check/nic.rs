//! The device that steering needs: whether it is there and up, whether it is the right one, and
//! what others have on it.
//!
//! Owns the judgement ([`judge`]), on links and addresses that the kernel has listed. A device that
//! is part of a bridge or a bond, or that carries VLANs, is up and fast and yet the wrong one: the
//! one to name instead is found here.

use std::net::IpAddr;

use proxymux_transport::command::{Report, text};
use serde_json::Value;

use super::steering::Need;
use crate::{
    config::{Attach, Config},
    netlink::links::{Link, links},
    steering::{Device, chain::others, places::addresses},
};

/// The device that steering is to be on, if it is there.
pub(super) fn look(
    report: &mut Report,
    need: Need,
    config: &Config,
    status: Option<&Value>,
) -> Option<Link> {
    let (links, addresses) = match (links(), addresses()) {
        (Ok(links), Ok(addresses)) => (links, addresses),
        (Err(error), _) => {
            report.warning(NIC, format!("cannot be listed: {error}"), LOOK);
            return None;
        }
        (_, Err(error)) => {
            report.warning(NIC, format!("addresses cannot be listed: {error}"), LOOK);
            return None;
        }
    };
    let wanted = Wanted {
        name: config.net_inf.as_ref().map(ToString::to_string),
        address: config.private_ip_address,
    };
    let host = Host { links, addresses };
    let link = judge(report, need, &wanted, &host)?;
    programs(report, config, &link, status);
    Some(link)
}

/// What the configuration says of the device.
#[derive(Debug, Default)]
struct Wanted {
    name: Option<String>,
    address: Option<IpAddr>,
}

/// What the kernel says of all.
#[derive(Debug, Default)]
struct Host {
    links: Vec<Link>,
    /// The device of each address.
    addresses: Vec<(String, IpAddr)>,
}

fn judge(report: &mut Report, need: Need, wanted: &Wanted, host: &Host) -> Option<Link> {
    let holder = wanted.address.and_then(|ip| host.holder(ip));
    let Some(name) = wanted.name.as_deref() else {
        let Some(holder) = holder else {
            let (found, fix) = match wanted.address {
                None => (
                    "neither net-inf nor private-ip-address is set".to_owned(),
                    "set net-inf to the device that the masters' packets come by (`ip route`)",
                ),
                Some(ip) => (format!("no device has private-ip-address {ip}"), NO_HOLDER),
            };
            need.lacks(report, NIC, &found, fix);
            return None;
        };
        return Some(state(report, need, holder, wanted, host));
    };
    let Some(link) = host.links.iter().find(|link| link.name == name) else {
        let fix = match holder {
            Some(holder) => format!(
                "set `net-inf: {}`, which has the node's address",
                holder.name
            ),
            None => "correct net-inf; `ip -br addr` lists the devices of this node".to_owned(),
        };
        need.lacks(report, NIC, &format!("{name} does not exist"), &fix);
        return None;
    };
    Some(state(report, need, link, wanted, host))
}

/// One that is there.
fn state(report: &mut Report, need: Need, link: &Link, wanted: &Wanted, host: &Host) -> Link {
    let name = &link.name;
    if !link.up {
        need.lacks(
            report,
            NIC,
            &format!("{name} is down"),
            &format!("bring it up: `ip link set dev {name} up`"),
        );
    } else if !link.carrier {
        need.lacks(
            report,
            NIC,
            &format!("{name} is up, and nothing is at its other end (no carrier)"),
            &format!("see cable, switch port or virtual switch: `ip link show {name}`"),
        );
    }
    if let Some(ip) = wanted.address
        && host.holder(ip).is_none()
    {
        need.lacks(
            report,
            NIC,
            &format!("no device has private-ip-address {ip}"),
            NO_HOLDER,
        );
    }
    match host.instead_of(link, wanted) {
        Some((what, other)) => need.lacks(
            report,
            NIC,
            &format!("{name} {what}"),
            &format!("set `net-inf: {other}`"),
        ),
        None if link.up && link.carrier => {
            let own = host.addresses_of(name);
            let own = if own.is_empty() {
                "no address".to_owned()
            } else {
                own.join(", ")
            };
            report.ok(NIC, format!("{name} is up, MTU {}, with {own}", link.mtu));
        }
        None => {}
    }
    link.clone()
}

impl Host {
    fn holder(&self, ip: IpAddr) -> Option<&Link> {
        let (name, _) = self.addresses.iter().find(|(_, held)| *held == ip)?;
        self.links.iter().find(|link| link.name == *name)
    }

    fn addresses_of(&self, name: &str) -> Vec<String> {
        let held = self.addresses.iter().filter(|(holder, _)| holder == name);
        held.map(|(_, ip)| ip.to_string()).collect()
    }

    /// What is wrong with a device, and which one it should be.
    fn instead_of(&self, link: &Link, wanted: &Wanted) -> Option<(String, String)> {
        let master = link
            .master
            .and_then(|index| self.links.iter().find(|l| l.index == index));
        if let Some(master) = master {
            let what = match master.kind.as_deref() {
                Some("bridge") => "is a port of the bridge",
                Some("bond") => "is part of the bond",
                Some("team") => "is part of the team",
                // A VRF leaves a device its address and its packets.
                Some(_) | None => return None,
            };
            return Some((
                format!("{what} {}, which has the node's packets", master.name),
                master.name.clone(),
            ));
        }
        let holder = wanted.address.and_then(|ip| self.holder(ip))?;
        if holder.index == link.index {
            return None;
        }
        if holder.parent == Some(link.index) && holder.kind.as_deref() == Some("vlan") {
            return Some((
                format!(
                    "carries the VLAN device {}, which has the node's address; frames with a tag \
                     are not looked into",
                    holder.name
                ),
                holder.name.clone(),
            ));
        }
        let ip = wanted.address?;
        Some((
            format!(
                "does not have the node's address {ip}, which is on {}",
                holder.name
            ),
            holder.name.clone(),
        ))
    }
}

/// What others have on the device.
fn programs(report: &mut Report, config: &Config, link: &Link, status: Option<&Value>) {
    let places = status.and_then(|status| status.get("attachments"));
    let places = places.and_then(Value::as_array).into_iter().flatten();
    let mut ours = places.filter(|place| text(place, "/device") == link.name);
    if let Some(place) = ours.next() {
        let position = text(place, "/position");
        let (program, how) = (text(place, "/program"), text(place, "/attach"));
        let found = format!("{program} is on {} by {how}, {position}", link.name);
        if position == FIRST {
            report.ok(PROGRAMS, found);
        } else {
            report.warning(PROGRAMS, found, IN_FRONT);
        }
        return;
    }
    let device = Device {
        name: link.name.clone(),
        index: link.index,
    };
    // Where the kernel has no TCX it cannot be asked for either.
    let tcx =
        config.attach != Attach::Netlink && proxymux_common::user::tcx_ingress(link.index).is_ok();
    match others(&device, tcx, config.steer_priority) {
        Ok(others) if others.is_empty() => {
            report.ok(PROGRAMS, format!("{} has none of others", link.name));
        }
        Ok(others) => {
            let names = |before| {
                let those = others.iter().filter(|other| other.before == before);
                those
                    .map(|other| other.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            if others.iter().any(|other| other.before) {
                report.warning(
                    PROGRAMS,
                    format!(
                        "on {} there would be before ours: {}",
                        link.name,
                        names(true)
                    ),
                    IN_FRONT,
                );
            } else {
                report.ok(
                    PROGRAMS,
                    format!("on {} ours come before: {}", link.name, names(false)),
                );
            }
        }
        Err(error) => report.warning(PROGRAMS, format!("cannot be listed: {error}"), LOOK),
    }
}

const NIC: &str = "nic";
const PROGRAMS: &str = "tc programs";

/// As the running agent says it.
const FIRST: &str = "first";

const IN_FRONT: &str = "one that does not pass packets on hides them from ours: see \
     `proxymux-agent explain`, take it off (`tc filter show dev NIC ingress`, `bpftool net`), set \
     `attach: tcx`, or a lower steer-priority";

const NO_HOLDER: &str = "correct private-ip-address, or give the address to the device (`ip addr`)";

const LOOK: &str = "see `ip -details link`";

#[cfg(test)]
mod tests {
    use proxymux_transport::command::Level;

    use super::*;

    fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: kind.map(ToOwned::to_owned),
            mtu: 1500,
            up: true,
            carrier: true,
            ..Link::default()
        }
    }

    fn told(name: Option<&str>, address: Option<&str>, host: &Host) -> (Level, String, String) {
        let wanted = Wanted {
            name: name.map(ToOwned::to_owned),
            address: address.map(|ip| ip.parse().unwrap()),
        };
        let mut report = Report::default();
        judge(&mut report, Need::Required, &wanted, host);
        let [finding] = report.findings() else {
            panic!("{report:?}");
        };
        let fix = finding.fix.clone().unwrap_or_default();
        (finding.level, finding.found.clone(), fix)
    }

    /// A node with its address on one of these.
    fn host(links: &[Link], holder: &str) -> Host {
        Host {
            links: links.to_vec(),
            addresses: vec![(holder.to_owned(), "10.0.10.10".parse().unwrap())],
        }
    }

    const NODE: Option<&str> = Some("10.0.10.10");

    #[test]
    fn the_device_with_the_nodes_address_is_fine() {
        let host = host(&[link(2, "ens3", None)], "ens3");
        for name in [Some("ens3"), None] {
            let (level, found, _) = told(name, NODE, &host);
            assert_eq!(level, Level::Ok);
            assert_eq!(found, "ens3 is up, MTU 1500, with 10.0.10.10");
        }
    }

    #[test]
    fn one_that_is_not_there_or_not_up_says_what_to_do() {
        let mut down = link(2, "ens3", None);
        down.up = false;
        let mut idle = link(3, "ens4", None);
        idle.carrier = false;
        let host = host(&[down, idle, link(4, "ens5", None)], "ens5");
        let (level, found, fix) = told(Some("eth0"), NODE, &host);
        assert_eq!(
            (level, found.as_str()),
            (Level::Error, "eth0 does not exist")
        );
        assert!(fix.contains("`net-inf: ens5`"), "{fix}");
        let (_, found, fix) = told(Some("ens3"), None, &host);
        assert_eq!(found, "ens3 is down");
        assert!(fix.contains("ip link set dev ens3 up"), "{fix}");
        let (_, found, _) = told(Some("ens4"), None, &host);
        assert!(found.contains("no carrier"), "{found}");
        let (_, found, fix) = told(None, None, &host);
        assert!(found.contains("neither net-inf"), "{found}");
        assert!(fix.contains("set net-inf"), "{fix}");
        let (_, found, _) = told(None, Some("10.9.9.9"), &host);
        assert!(found.contains("no device has"), "{found}");
    }

    #[test]
    fn parts_of_bridges_bonds_and_vlans_name_the_device_to_take_instead() {
        for (kind, what) in [
            ("bridge", "a port of the bridge"),
            ("bond", "part of the bond"),
        ] {
            let mut part = link(2, "ens3", None);
            part.master = Some(9);
            let host = host(&[part, link(9, "over0", Some(kind))], "over0");
            let (level, found, fix) = told(Some("ens3"), NODE, &host);
            assert_eq!(level, Level::Error);
            assert!(found.contains(what), "{found}");
            assert_eq!(fix, "set `net-inf: over0`");
        }
        let mut vlan = link(9, "ens3.7", Some("vlan"));
        vlan.parent = Some(2);
        let host = host(&[link(2, "ens3", None), vlan], "ens3.7");
        let (_, found, fix) = told(Some("ens3"), NODE, &host);
        assert!(found.contains("carries the VLAN device ens3.7"), "{found}");
        assert_eq!(fix, "set `net-inf: ens3.7`");
    }

    #[test]
    fn an_address_that_no_device_has_is_told_beside_the_device() {
        let host = host(&[link(2, "ens3", None)], "ens3");
        let wanted = Wanted {
            name: Some("ens3".to_owned()),
            address: Some("10.9.9.9".parse().unwrap()),
        };
        let mut report = Report::default();
        judge(&mut report, Need::Wanted, &wanted, &host);
        let levels: Vec<_> = report.findings().iter().map(|f| f.level).collect();
        assert_eq!(levels, [Level::Warning, Level::Ok], "{report:?}");
    }

    #[test]
    fn a_vrf_leaves_its_device_the_packets() {
        let mut part = link(2, "ens3", None);
        part.master = Some(9);
        let host = host(&[part, link(9, "vrf0", Some("vrf"))], "ens3");
        assert_eq!(told(Some("ens3"), NODE, &host).0, Level::Ok);
    }
}
