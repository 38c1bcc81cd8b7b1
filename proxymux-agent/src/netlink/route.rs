//! What the kernel would do with a packet: where it would send one, whether it would take one.
//!
//! Owns the question (`ip route get`) and reading its answer. It is asked of the same code of the
//! kernel that packets go through, so that rules, several next hops and reverse path filters count
//! as they do for those. Anybody may ask. What an answer means for the agent is in `check`.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{ACK, Message, ask, attribute, number};

/// Where a packet goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Route {
    pub(crate) kind: Kind,
    /// The device that it leaves by; loopback for an address of this host.
    pub(crate) device: u32,
    /// None where the address is on the link.
    pub(crate) gateway: Option<IpAddr>,
    /// The source address that it gets, or that was asked for.
    pub(crate) source: Option<IpAddr>,
}

/// To whom.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// One other host.
    Unicast,
    /// This host.
    Local,
    /// Broadcast, multicast and what else no connection can be made to.
    Other,
}

/// How a packet to this address leaves, with the given source address if there is one.
///
/// # Errors
///
/// `ENETUNREACH` without a route, `EHOSTUNREACH`, `EACCES` and `EINVAL` from one of the types
/// unreachable, prohibit and blackhole; of IPv4 `EINVAL` also for a source that cannot be one.
pub(crate) fn to(to: IpAddr, from: Option<IpAddr>) -> io::Result<Route> {
    let mut found = None;
    ask(RTM_GETROUTE, ACK, &question(to, from, None), |message| {
        found = Some(answer(message));
    })?;
    let mut route = found.ok_or(io::ErrorKind::UnexpectedEof)?;
    route.source = from.or(route.source);
    Ok(route)
}

/// Whether the kernel takes a packet that comes in by this device; for reverse path filters this
/// holds for IPv4 alone.
///
/// # Errors
///
/// Where it would be dropped; which number there is for it differs between kernels.
#[cfg(feature = "ebpf")]
pub(crate) fn comes_in(to: IpAddr, from: IpAddr, by: u32) -> io::Result<()> {
    let question = question(to, Some(from), Some(by));
    ask(RTM_GETROUTE, ACK, &question, |_| {})
}

/// `struct rtmsg` and its attributes.
fn question(to: IpAddr, from: Option<IpAddr>, by: Option<u32>) -> Vec<u8> {
    let family = if to.is_ipv4() { AF_INET } else { AF_INET6 };
    let bits = if to.is_ipv4() { 32 } else { 128 };
    let mut all = vec![family, bits, if from.is_some() { bits } else { 0 }];
    all.resize(RTMSG_LEN, 0);
    let addresses = [(RTA_DST, Some(to)), (RTA_SRC, from)];
    for (kind, address) in addresses {
        match address {
            Some(IpAddr::V4(ip)) => add(&mut all, kind, &ip.octets()),
            Some(IpAddr::V6(ip)) => add(&mut all, kind, &ip.octets()),
            None => {}
        }
    }
    if let Some(device) = by {
        add(&mut all, RTA_IIF, &device.to_ne_bytes());
    }
    all
}

/// Every value here fills its words.
fn add(all: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap_or_default();
    all.extend(length.to_ne_bytes());
    all.extend(kind.to_ne_bytes());
    all.extend(value);
}

fn answer(message: &Message<'_>) -> Route {
    let [_, _, _, kind] = message.number(4).to_ne_bytes();
    let attributes = message.attributes(RTMSG_LEN);
    let value = |kind| attribute(attributes, kind);
    // `RTA_VIA` is a next hop of the other family, with that family in front.
    let via = value(RTA_VIA).and_then(|via| via.get(2..));
    Route {
        kind: match kind {
            RTN_UNICAST => Kind::Unicast,
            RTN_LOCAL => Kind::Local,
            _ => Kind::Other,
        },
        device: value(RTA_OIF).map_or(0, |index| number(index, 0)),
        gateway: value(RTA_GATEWAY).or(via).and_then(ip),
        source: value(RTA_PREFSRC).and_then(ip),
    }
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(octets).map(Ipv4Addr::from);
    let v6 = || <[u8; 16]>::try_from(octets).map(Ipv6Addr::from);
    v4().map(IpAddr::V4).or_else(|_| v6().map(IpAddr::V6)).ok()
}

const RTM_GETROUTE: u16 = 26;
const RTMSG_LEN: usize = 12;
const ATTRIBUTE_HEADER: usize = 4;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;

const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_IIF: u16 = 3;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_VIA: u16 = 18;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_leads_to_itself_by_loopback() {
        let loopback = nix::net::if_::if_nametoindex("lo").unwrap();
        let own = IpAddr::from([127, 0, 0, 2]);

        let route = to(own, None).unwrap();

        assert_eq!((route.kind, route.device), (Kind::Local, loopback));
        assert!(route.source.is_some_and(|ip| ip.is_loopback()), "{route:?}");
        let from = IpAddr::from([127, 0, 0, 3]);
        assert_eq!(to(own, Some(from)).unwrap().source, Some(from));
    }

    #[test]
    fn a_source_that_this_host_does_not_have_is_refused() {
        let nobodys = IpAddr::from([192, 0, 2, 1]);
        assert!(to(IpAddr::from([127, 0, 0, 2]), Some(nobodys)).is_err());
    }

    #[test]
    fn next_hop_and_source_are_read_for_both_families() {
        let mut all = vec![AF_INET, 32, 0, 0, 254, 0, 0, RTN_UNICAST, 0, 0, 0, 0];
        add(&mut all, RTA_OIF, &7_u32.to_ne_bytes());
        add(&mut all, RTA_GATEWAY, &[10, 0, 10, 1]);
        add(&mut all, RTA_PREFSRC, &[10, 0, 10, 10]);
        let route = Route {
            kind: Kind::Unicast,
            device: 7,
            gateway: Some([10, 0, 10, 1].into()),
            source: Some([10, 0, 10, 10].into()),
        };
        assert_eq!(answer(&Message(&all)), route);

        all.truncate(RTMSG_LEN);
        let next = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
        let mut via = vec![AF_INET6, 0];
        via.extend(next.octets());
        add(&mut all, RTA_VIA, &via);
        assert_eq!(answer(&Message(&all)).gateway, Some(next.into()));
    }

    #[test]
    fn an_answer_that_is_cut_off_leads_nowhere() {
        let route = answer(&Message(&[]));
        assert_eq!((route.kind, route.gateway), (Kind::Other, None));
    }

    /// The length of an attribute is not padded here, as all values are whole words.
    #[test]
    fn the_question_is_as_long_as_its_attributes_say() {
        let to = Ipv6Addr::LOCALHOST.into();
        let all = question(to, Some(to), Some(1));
        assert_eq!(all.len(), RTMSG_LEN + 20 + 20 + 8);
        assert_eq!(all.get(..3), Some(&[AF_INET6, 128, 128][..]));
    }
}
