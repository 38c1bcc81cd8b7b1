//! What Node objects say about who has which address.
//!
//! Owns the table of all nodes that the API server knows, cut down to what proves something
//! ([`NodeObject`]), and what to make of two of them that say the same. Leaves getting the objects
//! to `kubernetes`, and weighing them against certificates and sessions to `claims`.
//!
//! A kubelet writes its own node's addresses, so that what only one object says is proof, and what
//! two say is none: no node takes another's address by writing it down.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    net::IpAddr,
};

use ipnet::IpNet;
use proxymux_proto::NodeName;

/// What a Node object proves.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct NodeObject {
    /// The addresses under which others reach the node, each once.
    pub(crate) addresses: Vec<IpAddr>,
    /// The names under which they do, besides its own; each once.
    pub(crate) names: Vec<NodeName>,
    /// The networks of its pods; each once.
    pub(crate) pod_cidrs: Vec<IpNet>,
    /// Where its kubelet listens.
    pub(crate) kubelet_port: Option<u16>,
}

/// All Node objects, as far as they prove something.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct NodeObjects {
    nodes: HashMap<NodeName, NodeObject>,
    /// The nodes whose objects have an address, or one of the others. No entry is empty.
    addresses: HashMap<IpAddr, Vec<NodeName>>,
    names: HashMap<NodeName, Vec<NodeName>>,
    ranges: HashMap<IpNet, Vec<NodeName>>,
    /// How many of `ranges` have such a prefix: there are few lengths and many ranges.
    prefixes: HashMap<u8, usize>,
}

/// What became of a Node object: its new form, or nothing if it was deleted.
pub(crate) type ObjectChange = (NodeName, Option<NodeObject>);

impl NodeObjects {
    /// Takes note of a change, and says which addresses it is about.
    pub(super) fn set(&mut self, name: &NodeName, object: Option<NodeObject>) -> BTreeSet<IpAddr> {
        let mut touched = BTreeSet::new();
        if let Some(before) = self.nodes.remove(name) {
            touched.extend(before.addresses.iter().copied());
            self.remove(name, &before);
        }
        if let Some(object) = object {
            touched.extend(object.addresses.iter().copied());
            self.insert(name, &object);
            self.nodes.insert(name.clone(), object);
        }
        touched
    }

    /// What has to change so that these are all.
    pub(super) fn differences(&self, all: HashMap<NodeName, NodeObject>) -> Vec<ObjectChange> {
        let gone = self.nodes.keys().filter(|name| !all.contains_key(*name));
        let mut changes: Vec<_> = gone.map(|name| (name.clone(), None)).collect();
        let new = all
            .into_iter()
            .filter(|(name, object)| self.nodes.get(name) != Some(object));
        changes.extend(new.map(|(name, object)| (name, Some(object))));
        changes
    }

    /// Whether a change is none.
    pub(super) fn has(&self, name: &NodeName, object: Option<&NodeObject>) -> bool {
        self.nodes.get(name) == object
    }

    pub(super) fn get(&self, name: &NodeName) -> Option<&NodeObject> {
        self.nodes.get(name)
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The one node whose object has the address.
    pub(super) fn owner(&self, address: IpAddr) -> Option<&NodeName> {
        only(self.addresses.get(&address)?)
    }

    /// The nodes whose objects have the address, if there are several.
    pub(super) fn rivals(&self, address: IpAddr) -> &[NodeName] {
        let all = self.addresses.get(&address).map_or(&[][..], Vec::as_slice);
        if all.len() > 1 { all } else { &[] }
    }

    /// The one node that a name leads to: the node that is called so, else the one whose object
    /// has it among its names.
    pub(super) fn named(&self, name: &NodeName) -> Option<&NodeName> {
        if let Some((own, _)) = self.nodes.get_key_value(name) {
            return Some(own);
        }
        only(self.names.get(name)?)
    }

    /// The nodes whose pods' networks hold the address. More than one is a mistake of the cluster,
    /// even where one network lies inside the other.
    pub(super) fn range_owners(&self, address: IpAddr) -> BTreeSet<&NodeName> {
        let nets = self
            .prefixes
            .keys()
            .filter_map(|prefix| IpNet::new(address, *prefix).ok());
        nets.filter_map(|net| self.ranges.get(&net.trunc()))
            .flatten()
            .collect()
    }

    fn insert(&mut self, name: &NodeName, object: &NodeObject) {
        for address in &object.addresses {
            add(&mut self.addresses, *address, name);
        }
        for other in &object.names {
            add(&mut self.names, other.clone(), name);
        }
        for net in &object.pod_cidrs {
            if add(&mut self.ranges, *net, name) {
                *self.prefixes.entry(net.prefix_len()).or_default() += 1;
            }
        }
    }

    fn remove(&mut self, name: &NodeName, object: &NodeObject) {
        for address in &object.addresses {
            take(&mut self.addresses, address, name);
        }
        for other in &object.names {
            take(&mut self.names, other, name);
        }
        for net in &object.pod_cidrs {
            if take(&mut self.ranges, net, name)
                && let Some(count) = self.prefixes.get_mut(&net.prefix_len())
            {
                *count -= 1;
                if *count == 0 {
                    self.prefixes.remove(&net.prefix_len());
                }
            }
        }
    }
}

fn only(owners: &[NodeName]) -> Option<&NodeName> {
    match owners {
        [owner] => Some(owner),
        _ => None,
    }
}

/// Whether the key is new.
fn add<K: Eq + Hash>(map: &mut HashMap<K, Vec<NodeName>>, key: K, name: &NodeName) -> bool {
    let owners = map.entry(key).or_default();
    owners.push(name.clone());
    owners.len() == 1
}

/// Whether the key is gone.
fn take<K: Eq + Hash>(map: &mut HashMap<K, Vec<NodeName>>, key: &K, name: &NodeName) -> bool {
    let Some(owners) = map.get_mut(key) else {
        return false;
    };
    owners.retain(|owner| owner != name);
    let is_gone = owners.is_empty();
    if is_gone {
        map.remove(key);
    }
    is_gone
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NodeName {
        NodeName::parse(text).unwrap()
    }

    fn object(addresses: &[&str], names: &[&str], nets: &[&str]) -> NodeObject {
        NodeObject {
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            names: names.iter().map(|n| name(n)).collect(),
            pod_cidrs: nets.iter().map(|n| n.parse().unwrap()).collect(),
            kubelet_port: None,
        }
    }

    fn objects(all: &[(&str, NodeObject)]) -> NodeObjects {
        let mut objects = NodeObjects::default();
        for (node, object) in all {
            objects.set(&name(node), Some(object.clone()));
        }
        objects
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_two_objects_say_proves_nothing_until_one_is_gone() {
        let mut objects = objects(&[
            ("a", object(&["10.0.0.1"], &["a.example"], &[])),
            ("b", object(&["10.0.0.1", "10.0.0.2"], &["a.example"], &[])),
        ]);
        assert_eq!(objects.owner(ip("10.0.0.1")), None);
        assert_eq!(objects.rivals(ip("10.0.0.1")), [name("a"), name("b")]);
        assert_eq!(objects.named(&name("a.example")), None);
        assert_eq!(objects.owner(ip("10.0.0.2")), Some(&name("b")));
        assert_eq!(objects.rivals(ip("10.0.0.2")), [] as [NodeName; 0]);

        let touched = objects.set(&name("b"), None);

        assert_eq!(touched, BTreeSet::from([ip("10.0.0.1"), ip("10.0.0.2")]));
        assert_eq!(objects.owner(ip("10.0.0.1")), Some(&name("a")));
        assert_eq!(objects.named(&name("a.example")), Some(&name("a")));
        assert_eq!(objects.owner(ip("10.0.0.2")), None);
    }

    #[test]
    fn a_nodes_own_name_is_nobody_elses() {
        let objects = objects(&[
            ("a", object(&[], &[], &[])),
            ("b", object(&[], &["a", "c"], &[])),
        ]);
        assert_eq!(objects.named(&name("a")), Some(&name("a")));
        assert_eq!(objects.named(&name("c")), Some(&name("b")));
        assert_eq!(objects.named(&name("d")), None);
    }

    #[test]
    fn networks_that_overlap_have_all_their_nodes_as_owners() {
        let mut objects = objects(&[
            ("a", object(&[], &[], &["10.244.1.0/24", "fd00:1::/64"])),
            ("b", object(&[], &[], &["10.244.2.0/24"])),
            ("c", object(&[], &[], &["10.244.2.128/25"])),
        ]);
        let owners = |objects: &NodeObjects, address: &str| -> Vec<String> {
            let found = objects.range_owners(ip(address));
            found.into_iter().map(ToString::to_string).collect()
        };
        assert_eq!(owners(&objects, "10.244.1.9"), ["a"]);
        assert_eq!(owners(&objects, "fd00:1::9"), ["a"]);
        assert_eq!(owners(&objects, "10.244.2.9"), ["b"]);
        assert_eq!(owners(&objects, "10.244.2.200"), ["b", "c"]);
        assert_eq!(owners(&objects, "10.244.3.9"), [] as [&str; 0]);

        objects.set(&name("c"), None);

        assert_eq!(owners(&objects, "10.244.2.200"), ["b"]);
        assert!(!objects.prefixes.contains_key(&25), "{objects:?}");
    }

    #[test]
    fn only_what_differs_is_a_change() {
        let objects = objects(&[
            ("a", object(&["10.0.0.1"], &[], &[])),
            ("b", object(&["10.0.0.2"], &[], &[])),
            ("c", object(&["10.0.0.3"], &[], &[])),
        ]);
        let all = HashMap::from([
            (name("a"), object(&["10.0.0.1"], &[], &[])),
            (name("b"), object(&["10.0.0.22"], &[], &[])),
            (name("d"), object(&[], &[], &[])),
        ]);
        let mut changes = objects.differences(all);
        changes.sort_by(|one, other| one.0.cmp(&other.0));
        let changed: Vec<_> = changes
            .iter()
            .map(|(name, object)| (name.as_str(), object.is_some()))
            .collect();
        assert_eq!(changed, [("b", true), ("c", false), ("d", true)]);
    }

    #[test]
    fn an_object_that_comes_and_goes_leaves_nothing() {
        let mut table = objects(&[]);
        let (node, full) = (
            name("a"),
            object(&["10.0.0.1"], &["x.example"], &["10.244.1.0/24"]),
        );
        table.set(&node, Some(full.clone()));
        assert!(table.has(&node, Some(&full)));
        table.set(&node, None);
        assert_eq!(table, NodeObjects::default());
        assert!(table.has(&node, None));
    }
}
