//! What the operator says about who has which address.
//!
//! Owns where proof comes from besides certificates and sessions ([`Policy`]), and the list of
//! nodes and their addresses in its checked form. Leaves reading it to the configuration, Node
//! objects to `objects`, and weighing both against what nodes claim to `claims`.
//! What is listed for a node belongs to it, whatever certificates say.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;
use proxymux_proto::{MAX_ADDRESSES, NodeName};

use super::{NoRangeHolder, objects::NodeObjects};
use crate::routes::canonical;

/// What proves a claim.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Policy {
    /// Certificates and the sources of sessions.
    Declared,
    /// The same, and before them a list.
    Listed(NodeList),
    /// The same, and between them what the API server says.
    Objects(NodeObjects),
}

/// What an operator can do so that an address is proven, besides a certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum OtherProof {
    Nothing,
    List,
    NodeObject,
}

/// Which addresses and ranges belong to which node.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct NodeList {
    owners: HashMap<IpAddr, NodeName>,
    /// At most [`MAX_ADDRESSES`] for each node.
    addresses: BTreeMap<NodeName, Vec<IpAddr>>,
    /// The longest prefix first, and no range twice.
    ranges: Vec<(IpNet, NodeName)>,
}

/// What is wrong with a list.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum NodeListError {
    /// Two nodes for one address or range.
    #[error("{net} is listed for node {first} and for node {second}, expected one of them")]
    Twice {
        net: IpNet,
        first: NodeName,
        second: NodeName,
    },
    /// More than a node can be told about.
    #[error("node {node} is listed with {count} addresses, expected at most {MAX_ADDRESSES}")]
    TooMany { node: NodeName, count: usize },
}

impl Policy {
    /// The node that an address is listed for: it is that node's, whatever else is proven.
    pub(super) fn listed_owner(&self, address: IpAddr) -> Option<&NodeName> {
        match self {
            Self::Listed(list) => list.owners.get(&address),
            Self::Declared | Self::Objects(_) => None,
        }
    }

    /// The only node whose Node object has an address.
    pub(super) fn object_owner(&self, address: IpAddr) -> Option<&NodeName> {
        self.objects()?.owner(address)
    }

    /// The nodes whose Node objects have an address, if there are several.
    pub(super) fn rivals(&self, address: IpAddr) -> &[NodeName] {
        self.objects()
            .map_or(&[], |objects| objects.rivals(address))
    }

    /// The addresses that are listed for a node, or that its Node object has.
    pub(super) fn addresses_of(&self, node: &NodeName) -> &[IpAddr] {
        match self {
            Self::Declared => &[],
            Self::Listed(list) => list.addresses.get(node).map_or(&[], Vec::as_slice),
            Self::Objects(objects) => objects.get(node).map_or(&[], |object| &object.addresses),
        }
    }

    /// The node that an address lies behind: of the listed ranges that hold it the smallest one
    /// says which, of the networks of pods there may be only one.
    ///
    /// # Errors
    ///
    /// When nothing says it.
    pub(super) fn range_owner(&self, address: IpAddr) -> Result<&NodeName, NoRangeHolder> {
        match self {
            Self::Declared => Err(NoRangeHolder::NotListed { address }),
            Self::Listed(list) => list
                .ranges
                .iter()
                .find(|(net, _)| net.contains(&address))
                .map(|(_, node)| node)
                .ok_or(NoRangeHolder::NotListed { address }),
            Self::Objects(objects) => {
                let mut owners = objects.range_owners(address).into_iter();
                let owner = owners.next();
                let owner = owner.ok_or(NoRangeHolder::NoPodNetwork { address })?;
                match owners.next() {
                    None => Ok(owner),
                    Some(other) => Err(NoRangeHolder::TwoPodNetworks {
                        address,
                        one: owner.clone(),
                        other: other.clone(),
                    }),
                }
            }
        }
    }

    pub(super) fn other_proof(&self) -> OtherProof {
        match self {
            Self::Declared => OtherProof::Nothing,
            Self::Listed(_) => OtherProof::List,
            Self::Objects(_) => OtherProof::NodeObject,
        }
    }

    pub(super) fn objects(&self) -> Option<&NodeObjects> {
        match self {
            Self::Declared | Self::Listed(_) => None,
            Self::Objects(objects) => Some(objects),
        }
    }
}

impl NodeList {
    /// A list from its entries. A range of one address is that address.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub(crate) fn new(
        entries: impl IntoIterator<Item = (NodeName, Vec<IpNet>)>,
    ) -> Result<Self, Vec<NodeListError>> {
        let mut list = Self::default();
        let mut owners = BTreeMap::new();
        let mut errors = Vec::new();
        for (node, nets) in entries {
            for net in nets {
                let net = canonical(net).trunc();
                let first = owners.entry(net).or_insert_with(|| node.clone()).clone();
                if first != node {
                    errors.push(NodeListError::Twice {
                        net,
                        first,
                        second: node.clone(),
                    });
                }
            }
        }
        for (net, node) in owners {
            if net.prefix_len() == net.max_prefix_len() {
                list.addresses
                    .entry(node.clone())
                    .or_default()
                    .push(net.addr());
                list.owners.insert(net.addr(), node);
            } else {
                list.ranges.push((net, node));
            }
        }
        list.ranges
            .sort_by_key(|(net, _)| std::cmp::Reverse(net.prefix_len()));
        for (node, addresses) in &list.addresses {
            if addresses.len() > MAX_ADDRESSES {
                let (node, count) = (node.clone(), addresses.len());
                errors.push(NodeListError::TooMany { node, count });
            }
        }
        if errors.is_empty() {
            Ok(list)
        } else {
            Err(errors)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NodeName {
        NodeName::parse(text).unwrap()
    }

    fn list(entries: &[(&str, &[&str])]) -> Result<NodeList, Vec<NodeListError>> {
        let parse = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect();
        NodeList::new(entries.iter().map(|(node, nets)| (name(node), parse(nets))))
    }

    #[test]
    fn addresses_and_ranges_are_told_apart() {
        let list = list(&[
            (
                "a",
                &["10.0.0.1/32", "::ffff:10.0.0.2/128", "10.244.1.0/24"],
            ),
            ("b", &["fd00::1/128", "10.244.0.0/16"]),
        ]);
        let policy = Policy::Listed(list.unwrap());
        let owner = |address: &str| {
            policy
                .listed_owner(address.parse().unwrap())
                .map(NodeName::as_str)
        };
        let range_owner = |address: &str| {
            policy
                .range_owner(address.parse().unwrap())
                .ok()
                .map(NodeName::as_str)
        };

        assert_eq!(owner("10.0.0.1"), Some("a"));
        assert_eq!(owner("10.0.0.2"), Some("a"));
        assert_eq!(owner("fd00::1"), Some("b"));
        assert_eq!(owner("10.244.1.1"), None);
        assert_eq!(range_owner("10.244.1.1"), Some("a"));
        assert_eq!(range_owner("10.244.2.1"), Some("b"));
        assert_eq!(range_owner("10.0.0.1"), None);
        assert_eq!(policy.addresses_of(&name("a")).len(), 2);
        assert_eq!(policy.addresses_of(&name("c")), [] as [IpAddr; 0]);
    }

    #[test]
    fn one_address_or_range_for_two_nodes_is_an_error_and_all_are_reported() {
        let errors = list(&[
            ("a", &["10.0.0.1/32", "10.0.0.1/32", "10.244.1.0/24"]),
            ("b", &["10.244.1.77/24", "10.0.0.1/32"]),
        ])
        .unwrap_err();
        let said: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "10.244.1.0/24 is listed for node a and for node b, expected one of them",
                "10.0.0.1/32 is listed for node a and for node b, expected one of them",
            ]
        );
    }

    #[test]
    fn a_node_cannot_be_listed_with_more_than_it_can_be_told() {
        let nets = (0..65)
            .map(|i| format!("10.0.0.{i}/32").parse().unwrap())
            .collect();
        let errors = NodeList::new([(name("a"), nets)]).unwrap_err();
        assert_eq!(
            errors.first().map(ToString::to_string).unwrap(),
            "node a is listed with 65 addresses, expected at most 64"
        );
    }
}
