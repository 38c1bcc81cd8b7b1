//! Whether a strict reverse path filter drops what masters send to the device that steering is on.
//!
//! Owns finding out whose packets those are, and asking the kernel whether it would take them: it
//! answers with the code that filters packets, so that rules and several next hops count. Only a
//! filter on IPv4 is a setting; those of netfilter are rules, for `firewall`.
//! Read [`look`]. Of a network one address is looked at, or those of the masters in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv4Net};
use proxymux_transport::command::Report;
use serde_json::Value;

use super::route::{device, dialled};
use crate::{
    config::Config,
    netlink::{
        links::Link,
        route::{self, Kind},
    },
    steering::places::addresses,
};

/// Asks for each address from which connections are steered.
pub(super) fn look(
    report: &mut Report,
    config: &Config,
    nic: &Link,
    masters: &BTreeSet<IpAddr>,
    status: Option<&Value>,
) {
    let name = &nic.name;
    if nic.master.is_some() {
        report.ok(
            RP_FILTER,
            format!("not looked at, as {name} is part of another device"),
        );
        return;
    }
    let Some(filter) = filter(name) else {
        report.warning(
            RP_FILTER,
            format!("cannot be read for {name}"),
            "see `sysctl net.ipv4.conf | grep -w rp_filter` on the node; 1 drops what would be \
             answered by another device",
        );
        return;
    };
    if filter != STRICT {
        let how = if filter == 0 { "off" } else { "loose" };
        report.ok(RP_FILTER, format!("{how} ({filter}) on {name}"));
        return;
    }
    let Some(own) = own(config, name) else {
        report.ok(
            RP_FILTER,
            format!("strict on {name}, which has no IPv4 address"),
        );
        return;
    };
    let mut dropped: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in sources(config, masters, status) {
        if let Some(back) = would_drop(own, source, nic.index) {
            dropped.entry(back).or_default().push(source.to_string());
        }
    }
    if dropped.is_empty() {
        report.ok(
            RP_FILTER,
            format!("strict (1) on {name}, and takes what masters send to {own}"),
        );
    }
    for (back, sources) in dropped {
        let sources = sources.join(", ");
        report.warning(
            RP_FILTER,
            format!(
                "strict (1) on {name}: what {sources} sends to {own} is dropped there without a \
                 word, as the way back is {back}; that holds for direct and steered connections, \
                 and for sessions from {own}"
            ),
            format!(
                "`sysctl -w net.ipv4.conf.{}.rp_filter=2`, and in /etc/sysctl.d to last; or lead \
                 the way back by {name} (`ip route get {} from {own}`)",
                // For sysctl a dot parts names, and a slash stands for one in a name.
                name.replace('.', "/"),
                sources.split(',').next().unwrap_or_default(),
            ),
        );
    }
}

/// What is in force on a device: the larger number of its own setting and the one for all.
fn filter(name: &str) -> Option<u8> {
    let read = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"));
        text.ok()?.trim().parse::<u8>().ok()
    };
    Some(read("all")?.max(read(name)?))
}

/// The address of the device that masters dial.
fn own(config: &Config, name: &str) -> Option<Ipv4Addr> {
    let all = addresses().ok()?;
    let held = all.into_iter().filter(|(holder, _)| holder == name);
    let held: Vec<Ipv4Addr> = held
        .filter_map(|(_, ip)| match ip {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        })
        .collect();
    let wanted = [dialled(config), config.private_ip_address];
    let mut wanted = wanted.into_iter().flatten();
    let wanted = wanted.find_map(|ip| held.iter().find(|held| IpAddr::V4(**held) == ip));
    wanted.or(held.first()).copied()
}

/// Where the way back leads, if the kernel would drop what comes from there.
fn would_drop(own: Ipv4Addr, source: Ipv4Addr, nic: u32) -> Option<String> {
    if route::comes_in(own.into(), source.into(), nic).is_ok() {
        return None;
    }
    match route::to(source.into(), Some(own.into())) {
        // What comes from this host does not come by a device.
        Ok(route) if route.kind != Kind::Unicast => None,
        // Then it is refused for another reason, such as a source that is nobody's.
        Ok(route) if route.device == nic => None,
        Ok(route) => Some(format!("by {}", device(route.device))),
        Err(_) => Some("nowhere".to_owned()),
    }
}

/// Whose connections are steered: what is configured, or the masters and what the running agent
/// was told by them.
fn sources(
    config: &Config,
    masters: &BTreeSet<IpAddr>,
    status: Option<&Value>,
) -> BTreeSet<Ipv4Addr> {
    let masters: BTreeSet<Ipv4Addr> = masters.iter().filter_map(|ip| v4(*ip)).collect();
    let told = status.and_then(|status| status.pointer("/steering/steer_from"));
    let told = told.and_then(Value::as_array).into_iter().flatten();
    let told = told.filter_map(|net| net.as_str()?.parse().ok());
    let (nets, mut all): (Vec<IpNet>, _) = match config.steer_from.as_slice() {
        [] => (told.collect(), masters.clone()),
        configured => (configured.to_vec(), BTreeSet::new()),
    };
    for net in nets {
        if let IpNet::V4(net) = net {
            all.extend(those_of(net, &masters));
        }
    }
    all
}

/// The masters in a network, or else one address of it.
fn those_of(net: Ipv4Net, masters: &BTreeSet<Ipv4Addr>) -> BTreeSet<Ipv4Addr> {
    let known: BTreeSet<_> = masters.iter().filter(|ip| net.contains(*ip)).collect();
    match known.is_empty() {
        true => net.hosts().take(1).collect(),
        false => known.into_iter().copied().collect(),
    }
}

fn v4(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip.to_canonical() {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

const RP_FILTER: &str = "rp_filter";

const STRICT: u8 = 1;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(lines: &str) -> Config {
        let file = format!(
            "node-name: worker-1\nserver-addr: https://192.0.2.10\n\
             private-ip-address: 10.0.10.10\n{lines}"
        );
        Config::parse(&file, "test.yaml").unwrap().0
    }

    fn found(lines: &str, masters: &[&str], status: Option<&Value>) -> Vec<String> {
        let masters = masters.iter().map(|ip| ip.parse().unwrap()).collect();
        let all = sources(&config(lines), &masters, status);
        all.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_masters_and_what_they_have_named_are_sources() {
        let masters = ["192.0.2.10", "2001:db8::10", "::ffff:192.0.2.11"];
        assert_eq!(found("", &masters, None), ["192.0.2.10", "192.0.2.11"]);
        let status = json!({
            "steering": { "steer_from": ["192.0.2.10/32", "198.51.100.1/32", "2001:db8::1/128"] },
        });
        let all = found("", &["192.0.2.10"], Some(&status));
        assert_eq!(all, ["192.0.2.10", "198.51.100.1"]);
        let userspace = json!({ "steering": null });
        assert_eq!(found("", &["192.0.2.10"], Some(&userspace)), ["192.0.2.10"]);
    }

    #[test]
    fn of_a_configured_network_the_masters_are_looked_at_or_else_one_address() {
        let status = json!({ "steering": { "steer_from": ["198.51.100.1/32"] } });
        let lines = "steer-from: [ 192.0.2.0/24, 203.0.113.0/24, 203.0.113.77 ]\n";
        let all = found(lines, &["192.0.2.10", "192.0.2.11"], Some(&status));
        let expected = ["192.0.2.10", "192.0.2.11", "203.0.113.1", "203.0.113.77"];
        assert_eq!(all, expected);
        // Of everybody, those that are known.
        let all = found("steer-from: [ 0.0.0.0/0 ]\n", &["192.0.2.10"], None);
        assert_eq!(all, ["192.0.2.10"]);
    }

    #[test]
    fn the_filter_of_a_device_that_is_not_there_cannot_be_read() {
        assert!(filter("lo").is_some());
        assert_eq!(filter("nosuch0"), None);
    }

    #[test]
    fn what_comes_from_this_host_itself_is_not_looked_at() {
        let loopback = nix::net::if_::if_nametoindex("lo").unwrap();
        let own = Ipv4Addr::LOCALHOST;
        assert_eq!(would_drop(own, own, loopback), None);
    }
}
