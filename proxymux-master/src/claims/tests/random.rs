//! Rules that hold whatever happens in whatever order.
//!
//! Lists of operations run against the table and against a model that knows only who registered
//! with what and when it left; proof is judged here anew, from the rules and not from the code.

use super::*;

const NODES: [&str; 4] = ["a", "b", "c", "10.0.0.1"];
const ADDRESSES: [&str; 4] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"];

#[derive(Clone, Debug)]
enum Operation {
    Register {
        node: &'static str,
        facts: Facts,
    },
    Unregister {
        node: &'static str,
    },
    Wait {
        seconds: u64,
    },
    Expire,
    Listed {
        entries: Vec<(&'static str, &'static str)>,
    },
}

#[derive(Clone, Debug)]
struct Facts {
    ip_sans: Vec<IpAddr>,
    claims: Vec<IpAddr>,
    source: IpAddr,
}

#[derive(Clone, Debug)]
struct Seen {
    facts: Facts,
    away_since: Option<Instant>,
}

struct Model {
    table: Table,
    nodes: BTreeMap<NodeName, Seen>,
    listed: BTreeMap<IpAddr, NodeName>,
    /// What each node with a session was told last.
    told: BTreeMap<NodeName, Addresses>,
}

/// As strong as it is late in the alphabet of the rules: source, certificate, list.
fn strength(model: &Model, node: &NodeName, address: IpAddr) -> Option<u8> {
    let seen = model.nodes.get(node)?;
    let named = node.as_ip() == Some(address);
    let listed = model.listed.get(&address);
    if listed == Some(node) {
        return Some(3);
    }
    if listed.is_some() || !(named || seen.facts.claims.contains(&address)) {
        return None;
    }
    if named || seen.facts.ip_sans.contains(&address) {
        return Some(2);
    }
    let shared = model.nodes.iter().any(|(other, with)| {
        other != node && with.away_since.is_none() && with.facts.source == address
    });
    let alone = seen.away_since.is_some() || !shared;
    (seen.facts.source == address && alone).then_some(1)
}

impl Model {
    fn run(&mut self, operation: Operation) {
        let before: Vec<_> = ADDRESSES
            .map(|a| (ip(a), self.table.claims.holder(ip(a)).cloned()))
            .into();
        let now = self.table.now;
        let changes = match operation {
            Operation::Register { node, facts } => {
                self.forget_expired();
                let node = name(node);
                let evidence = Evidence {
                    ip_sans: &facts.ip_sans,
                    claims: &facts.claims,
                    allow: &[],
                    source: facts.source,
                };
                let outcome = self.table.claims.register(&node, evidence, now);
                self.nodes.insert(
                    node.clone(),
                    Seen {
                        facts,
                        away_since: None,
                    },
                );
                self.told.insert(node, outcome.addresses);
                outcome.changes
            }
            Operation::Unregister { node } => {
                let node = name(node);
                if let Some(seen) = self.nodes.get_mut(&node) {
                    seen.away_since.get_or_insert(now);
                }
                self.told.remove(&node);
                self.table.claims.unregister(&node, now)
            }
            Operation::Wait { seconds } => {
                self.table.now += Duration::from_secs(seconds);
                return;
            }
            Operation::Expire => {
                self.forget_expired();
                self.table.claims.expire(now)
            }
            Operation::Listed { entries } => {
                self.listed = entries.iter().map(|(a, n)| (ip(a), name(n))).collect();
                let entries = self
                    .listed
                    .iter()
                    .map(|(a, n)| (n.clone(), vec![(*a).into()]));
                let list = NodeList::new(entries).unwrap();
                let policy = if self.listed.is_empty() {
                    Policy::Declared
                } else {
                    Policy::Listed(list)
                };
                self.table.claims.replace_policy(policy)
            }
        };
        for change in changes {
            let known = self.told.insert(change.node.clone(), change.addresses);
            assert!(
                known.is_some(),
                "{} has no session to be told on",
                change.node
            );
        }
        self.check();
        for (address, holder) in before {
            self.check_patience(address, holder);
        }
    }

    fn forget_expired(&mut self) {
        let now = self.table.now;
        self.nodes.retain(|_, seen| {
            seen.away_since
                .is_none_or(|left| now < left + ADDRESS_RETENTION)
        });
    }

    fn check(&self) {
        for address in ADDRESSES.map(ip) {
            let holder = self.table.claims.holder(address);
            let granted: Vec<_> = self
                .told
                .iter()
                .filter(|(_, told)| told.granted.contains(&address))
                .map(|(node, _)| node)
                .collect();
            assert!(granted.len() <= 1, "{address} was granted to {granted:?}");
            assert!(
                granted.iter().all(|node| Some(*node) == holder),
                "{address}: {granted:?}"
            );

            let strongest = self
                .nodes
                .iter()
                .filter(|(_, seen)| seen.away_since.is_none())
                .filter_map(|(node, _)| strength(self, node, address))
                .max();
            let held = holder.and_then(|holder| strength(self, holder, address));
            let never_seen = holder.is_some_and(|holder| !self.nodes.contains_key(holder));
            if never_seen {
                assert_eq!(holder, self.listed.get(&address));
            } else {
                assert_eq!(
                    holder.is_some(),
                    held.is_some(),
                    "{address}: {holder:?} has no proof"
                );
                assert!(
                    held >= strongest,
                    "{address}: {holder:?} holds it against a stronger proof"
                );
            }
        }
        for (node, told) in &self.told {
            // Nobody has to ask: what was told last is what holds.
            assert_eq!(
                Some(told),
                self.table.claims.addresses(node).as_ref(),
                "{node}"
            );
            for refusal in &told.refused {
                assert!((1..=MAX_REASON_LEN).contains(&refusal.reason.len()));
            }
        }
    }

    /// One that is away and can still prove it lost the address only to something stronger.
    fn check_patience(&self, address: IpAddr, before: Option<NodeName>) {
        let Some(before) = before else { return };
        let away = self
            .nodes
            .get(&before)
            .is_some_and(|seen| seen.away_since.is_some());
        let after = self.table.claims.holder(address);
        if !away || after == Some(&before) {
            return;
        }
        if let Some(own) = strength(self, &before, address) {
            let other = after.and_then(|after| strength(self, after, address));
            assert!(
                other > Some(own),
                "{address} went from {before} to {after:?}"
            );
        }
    }
}

fn addresses() -> impl Strategy<Value = Vec<IpAddr>> {
    proptest::sample::subsequence(ADDRESSES.map(ip).to_vec(), 0..=ADDRESSES.len())
}

fn operation() -> impl Strategy<Value = Operation> {
    let node = || proptest::sample::select(&NODES[..]);
    let address = || proptest::sample::select(&ADDRESSES[..]);
    let source = prop_oneof![address().prop_map(ip), Just(ip("192.0.2.1"))];
    let facts = (addresses(), addresses(), source).prop_map(|(ip_sans, claims, source)| Facts {
        ip_sans,
        claims,
        source,
    });
    prop_oneof![
        6 => (node(), facts).prop_map(|(node, facts)| Operation::Register { node, facts }),
        4 => node().prop_map(|node| Operation::Unregister { node }),
        2 => (0_u64..2400).prop_map(|seconds| Operation::Wait { seconds }),
        2 => Just(Operation::Expire),
        1 => proptest::collection::vec((address(), node()), 0..3)
            .prop_map(|entries| Operation::Listed { entries }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]
    #[test]
    fn the_rules_hold_after_any_operations(
        operations in proptest::collection::vec(operation(), 1..40),
    ) {
        let mut model = Model {
            table: Table::declared(),
            nodes: BTreeMap::new(),
            listed: BTreeMap::new(),
            told: BTreeMap::new(),
        };
        for operation in operations {
            model.run(operation);
        }
    }
}
