//! Where connections go whose target is no node.
//!
//! Owns the operator's list of address ranges and which entry of it decides. Leaves to the
//! gateway what follows from the decision, and nodes to `claims`, which is asked first.
//! Read [`Routes::decide`]. Names are not looked up here: a target that is a name has no address.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::{Route, Via};

/// The list of `routes:`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Routes {
    /// The longest prefix first; among equals as they were listed. So the first match decides.
    routes: Vec<Route>,
}

impl Routes {
    /// Routes from the configuration's list.
    pub(crate) fn new(list: impl IntoIterator<Item = Route>) -> Self {
        let mut routes: Vec<_> = list
            .into_iter()
            .map(|route| Route {
                net: canonical(route.net),
                ..route
            })
            .collect();
        // The sort is stable.
        routes.sort_by_key(|route| std::cmp::Reverse(route.net.prefix_len()));
        Self { routes }
    }

    /// The way to `address`: that of the longest prefix which holds it, of equals the one listed
    /// first. [`Via::Refuse`] if none does, as an API server that reaches more than the operator
    /// wrote down would be a surprise.
    pub(crate) fn decide(&self, address: IpAddr) -> Via {
        let address = address.to_canonical();
        let found = self
            .routes
            .iter()
            .find(|route| route.net.contains(&address));
        found.map_or(Via::Refuse, |route| route.via)
    }
}

/// The range of IPv4 addresses that an IPv4-mapped IPv6 range stands for, as targets have it.
pub(crate) fn canonical(net: IpNet) -> IpNet {
    let IpNet::V6(v6) = net else { return net };
    let mapped = v6.addr().to_ipv4_mapped();
    let prefix = v6.prefix_len().checked_sub(MAPPED_PREFIX_LEN);
    match (mapped, prefix) {
        (Some(address), Some(prefix)) => {
            IpNet::new(address.into(), prefix).expect("the prefix is at most 128 - 96")
        }
        _ => net,
    }
}

/// `::ffff:0:0/96` holds the IPv4-mapped addresses (RFC 4291, section 2.5.5.2).
const MAPPED_PREFIX_LEN: u8 = 96;

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(list: &[(&str, Via)]) -> Routes {
        Routes::new(list.iter().map(|&(net, via)| Route {
            net: net.parse().unwrap(),
            via,
        }))
    }

    fn decide(routes: &Routes, address: &str) -> Via {
        routes.decide(address.parse().unwrap())
    }

    #[test]
    fn what_is_not_listed_is_refused() {
        assert_eq!(decide(&Routes::default(), "10.0.0.1"), Via::Refuse);
        let routes = routes(&[("10.96.0.0/12", Via::Direct)]);
        assert_eq!(decide(&routes, "10.112.0.1"), Via::Refuse);
        assert_eq!(decide(&routes, "fd00::1"), Via::Refuse);
    }

    #[test]
    fn the_longest_prefix_wins_wherever_it_is_listed() {
        let list = [
            ("10.0.0.0/8", Via::Direct),
            ("10.244.0.0/16", Via::Node),
            ("10.244.9.9/32", Via::Refuse),
        ];
        let mut reversed = list;
        reversed.reverse();
        for routes in [routes(&list), routes(&reversed)] {
            assert_eq!(decide(&routes, "10.1.2.3"), Via::Direct);
            assert_eq!(decide(&routes, "10.244.9.8"), Via::Node);
            assert_eq!(decide(&routes, "10.244.9.9"), Via::Refuse);
        }
    }

    #[test]
    fn the_first_of_equals_wins() {
        let routes = routes(&[
            ("10.244.0.0/16", Via::Node),
            ("10.244.77.0/16", Via::Refuse),
            ("10.244.0.0/16", Via::Direct),
        ]);
        assert_eq!(decide(&routes, "10.244.77.1"), Via::Node);
    }

    #[test]
    fn everything_can_be_sent_one_way_in_both_families() {
        let routes = routes(&[("0.0.0.0/0", Via::Direct), ("::/0", Via::Node)]);
        assert_eq!(decide(&routes, "192.0.2.1"), Via::Direct);
        assert_eq!(decide(&routes, "2001:db8::1"), Via::Node);
    }

    #[test]
    fn mapped_addresses_are_the_addresses_they_stand_for() {
        let plain = routes(&[("10.96.0.0/12", Via::Direct)]);
        assert_eq!(decide(&plain, "::ffff:10.96.0.1"), Via::Direct);
        let mapped = routes(&[("::ffff:10.96.0.0/108", Via::Direct)]);
        assert_eq!(decide(&mapped, "10.96.0.1"), Via::Direct);
        assert_eq!(decide(&mapped, "10.112.0.1"), Via::Refuse);
    }
}
