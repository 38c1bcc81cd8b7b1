//! Which node an address leads to.
//!
//! Owns the table of holders: who claims an address, what proves the claim, and who gets it when
//! several do. Leaves to callers who a node is (its certificate says so), telling agents what has
//! changed for them, and what to do about an address that nobody holds.
//! Read [`Claims`] first; what a node is told is in `node`, what an operator can list in `policy`.
//!
//! An agent's word proves nothing. Nobody gets an address because its holder is away for a while,
//! and a claim that is refused now is granted when it can be. No IO and no clock: callers say what
//! time it is, and call [`Claims::expire`] now and then.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

use proxymux_proto::{Addresses, AllowedRange, MAX_ADDRESSES, NodeName};
use tokio::time::Instant;

mod node;
mod objects;
mod policy;

use self::node::{Node, Proof, Verdict};
pub(crate) use self::objects::{NodeObject, NodeObjects, ObjectChange};
pub(crate) use self::policy::{NodeList, NodeListError, Policy};

/// Every claim of every node, and who holds what.
#[derive(Debug)]
pub(crate) struct Claims {
    policy: Policy,
    /// The nodes with a session, and those that had one less than [`ADDRESS_RETENTION`] ago.
    nodes: BTreeMap<NodeName, Node>,
    /// Which of `nodes` ask for an address. No entry is empty.
    claimants: HashMap<IpAddr, Claimants>,
    /// Which nodes have a session from an address. No set is empty.
    sources: HashMap<IpAddr, BTreeSet<NodeName>>,
    /// What was decided about each address that somebody asks for.
    standings: HashMap<IpAddr, Standing>,
    /// The nodes without a session, by the time since when.
    away: BTreeSet<(Instant, NodeName)>,
    next_turn: u64,
}

/// The nodes that ask for an address.
#[derive(Debug, Default)]
struct Claimants {
    all: BTreeSet<NodeName>,
    /// Those of them whose certificate names it.
    certified: BTreeSet<NodeName>,
}

/// What a claimant is told about an address depends on this, on the claimant itself and on the
/// policy. While it stays the same nobody has to be told anything, so that the nodes of a fleet
/// behind one address come and go without a message to all the others each time.
#[derive(Debug, Eq, PartialEq)]
struct Standing {
    holder: Option<Holder>,
    /// Who has a session from it; `None` for more than two.
    sources: Option<Vec<NodeName>>,
    /// Whose Node objects have it, if there are several: the first two.
    rivals: Vec<NodeName>,
}

#[derive(Debug, Eq, PartialEq)]
struct Holder {
    node: NodeName,
    /// `None` if the address is listed for it.
    proof: Option<Proof>,
}

/// What is known about a node when it registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Evidence<'a> {
    /// The IP addresses among the subject alternative names of its certificate.
    pub ip_sans: &'a [IpAddr],
    /// The addresses that its agent claims.
    pub claims: &'a [IpAddr],
    /// The targets beside its kubelet that its agent dials.
    pub allow: &'a [AllowedRange],
    /// Where its session comes from.
    pub source: IpAddr,
}

/// What a registration led to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Outcome {
    /// For the node that registered.
    pub addresses: Addresses,
    /// For others.
    pub changes: Vec<Change>,
}

/// A node with a session is to be told something new about its addresses.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Change {
    /// Who.
    pub node: NodeName,
    /// Everything that holds from now on.
    pub addresses: Addresses,
}

/// Why no node is known to reach an address that is not its own.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum NoRangeHolder {
    /// No range of the list holds the address, or there is no list.
    #[error("no node is listed for {address}")]
    NotListed { address: IpAddr },
    /// No Node object has a network of pods that holds the address.
    #[error("no Node object has {address} in its podCIDRs")]
    NoPodNetwork { address: IpAddr },
    /// Two of them have.
    #[error("the Node objects of {one} and {other} both have {address} in their podCIDRs")]
    TwoPodNetworks {
        address: IpAddr,
        one: NodeName,
        other: NodeName,
    },
    /// The agent of the node that it lies behind does not dial it.
    #[error("{address} is behind node {node}, but its agent does not allow port {port} there")]
    NotAllowed {
        node: NodeName,
        address: IpAddr,
        port: u16,
    },
}

impl Claims {
    /// An empty table.
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            policy,
            nodes: BTreeMap::new(),
            claimants: HashMap::new(),
            sources: HashMap::new(),
            standings: HashMap::new(),
            away: BTreeSet::new(),
            next_turn: 0,
        }
    }

    /// Notes that a node has registered, for the first time or again; what was known about it
    /// before counts no more.
    pub(crate) fn register(
        &mut self,
        node: &NodeName,
        evidence: Evidence<'_>,
        now: Instant,
    ) -> Outcome {
        let mut changed = self.forget_expired(now);
        let mut touched = BTreeSet::new();
        let before = self.remove(node, &mut touched);
        let turn = match before {
            Some(before) if before.away_since.is_none() => before.turn,
            _ => {
                self.next_turn += 1;
                self.next_turn
            }
        };
        self.insert(node, Node::new(node, evidence, turn), &mut touched);
        changed.append(&mut self.settle(&touched, BTreeSet::from([node.clone()])));
        changed.remove(node);
        Outcome {
            addresses: self.addresses(node).unwrap_or_default(),
            changes: self.changes(changed),
        }
    }

    /// Notes that a node's last session has ended. It keeps what it holds for
    /// [`ADDRESS_RETENTION`].
    pub(crate) fn unregister(&mut self, node: &NodeName, now: Instant) -> Vec<Change> {
        let Some(known) = self
            .nodes
            .get_mut(node)
            .filter(|known| known.away_since.is_none())
        else {
            return Vec::new();
        };
        known.away_since = Some(now);
        let source = known.source;
        let touched = known.asked.iter().copied().chain([source]).collect();
        self.away.insert((now, node.clone()));
        self.remove_source(source, node);
        let changed = self.settle(&touched, BTreeSet::new());
        self.changes(changed)
    }

    /// Forgets the nodes that have been away for too long.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<Change> {
        let changed = self.forget_expired(now);
        self.changes(changed)
    }

    /// Goes by another policy from now on, for all that is known already.
    pub(crate) fn replace_policy(&mut self, policy: Policy) -> Vec<Change> {
        self.policy = policy;
        let mut touched = BTreeSet::new();
        let names: BTreeSet<_> = self.nodes.keys().cloned().collect();
        for name in &names {
            if let Some(node) = self.remove(name, &mut touched) {
                self.insert(name, node, &mut touched);
            }
        }
        let changed = self.settle(&touched, names);
        self.changes(changed)
    }

    /// Takes note of what has become of Node objects. Nothing happens under another policy.
    pub(crate) fn update_objects(&mut self, updates: Vec<ObjectChange>) -> Vec<Change> {
        let mut touched = BTreeSet::new();
        let mut names = BTreeSet::new();
        for (name, object) in updates {
            let Policy::Objects(objects) = &mut self.policy else {
                return Vec::new();
            };
            if objects.has(&name, object.as_ref()) {
                continue;
            }
            touched.append(&mut objects.set(&name, object));
            if let Some(node) = self.remove(&name, &mut touched) {
                self.insert(&name, node, &mut touched);
                names.insert(name);
            }
        }
        let changed = self.settle(&touched, names);
        self.changes(changed)
    }

    /// The same with all Node objects that there are: those which are not among them are gone.
    pub(crate) fn replace_objects(&mut self, all: HashMap<NodeName, NodeObject>) -> Vec<Change> {
        let Some(objects) = self.policy.objects() else {
            return Vec::new();
        };
        let updates = objects.differences(all);
        self.update_objects(updates)
    }

    /// A node's Node object, as far as it proves something.
    pub(crate) fn object(&self, node: &NodeName) -> Option<&NodeObject> {
        self.policy.objects()?.get(node)
    }

    /// How many Node objects are known.
    pub(crate) fn objects(&self) -> usize {
        self.policy.objects().map_or(0, NodeObjects::len)
    }

    /// The node that a name leads to by what Node objects say.
    pub(crate) fn named(&self, name: &NodeName) -> Option<&NodeName> {
        self.policy.objects()?.named(name)
    }

    /// Whether a node's agent knows this address as one of its node's.
    pub(crate) fn is_known_to(&self, node: &NodeName, address: IpAddr) -> bool {
        let node = self.nodes.get(node);
        node.is_some_and(|node| node.knows(address.to_canonical()))
    }

    /// The node to which an address leads. It may have no session, and if it is listed, or in a
    /// Node object, it may never have had one.
    pub(crate) fn holder(&self, address: IpAddr) -> Option<&NodeName> {
        let address = address.to_canonical();
        if let Some(owner) = self.policy.listed_owner(address) {
            return Some(owner);
        }
        match self.standings.get(&address) {
            Some(standing) => standing.holder.as_ref().map(|holder| &holder.node),
            // Nobody asks for it.
            None => self.policy.object_owner(address),
        }
    }

    /// The node that reaches an address which is not its own: a list or Node objects say which,
    /// and the agent must allow it. An agent that has not registered yet is taken to.
    pub(crate) fn range_holder(
        &self,
        address: IpAddr,
        port: u16,
    ) -> Result<&NodeName, NoRangeHolder> {
        let address = address.to_canonical();
        let name = self.policy.range_owner(address)?;
        let allows = self
            .nodes
            .get(name)
            .is_none_or(|node| node.allows(address, port));
        if allows {
            Ok(name)
        } else {
            Err(NoRangeHolder::NotAllowed {
                node: name.clone(),
                address,
                port,
            })
        }
    }

    /// What a node with a session was told last about its addresses.
    pub(crate) fn addresses(&self, node: &NodeName) -> Option<Addresses> {
        self.nodes.get(node).map(Node::addresses)
    }

    fn forget_expired(&mut self, now: Instant) -> BTreeSet<NodeName> {
        let mut touched = BTreeSet::new();
        while let Some((since, name)) = self.away.first().cloned()
            && since + ADDRESS_RETENTION <= now
        {
            self.remove(&name, &mut touched);
        }
        self.settle(&touched, BTreeSet::new())
    }

    fn remove(&mut self, name: &NodeName, touched: &mut BTreeSet<IpAddr>) -> Option<Node> {
        let node = self.nodes.remove(name)?;
        for address in &node.asked {
            self.remove_claimant(*address, name);
            touched.insert(*address);
        }
        match node.away_since {
            Some(since) => {
                self.away.remove(&(since, name.clone()));
            }
            None => self.remove_source(node.source, name),
        }
        touched.insert(node.source);
        Some(node)
    }

    fn remove_claimant(&mut self, address: IpAddr, name: &NodeName) {
        if let Some(claimants) = self.claimants.get_mut(&address) {
            claimants.all.remove(name);
            claimants.certified.remove(name);
            if claimants.all.is_empty() {
                self.claimants.remove(&address);
            }
        }
    }

    fn remove_source(&mut self, source: IpAddr, name: &NodeName) {
        if let Some(names) = self.sources.get_mut(&source) {
            names.remove(name);
            if names.is_empty() {
                self.sources.remove(&source);
            }
        }
    }

    fn insert(&mut self, name: &NodeName, mut node: Node, touched: &mut BTreeSet<IpAddr>) {
        let listed = self.policy.addresses_of(name).iter().copied();
        let mut seen = BTreeSet::new();
        node.asked = node
            .named
            .into_iter()
            .chain(listed)
            .chain(node.claims.iter().copied())
            .collect();
        node.asked.retain(|address| seen.insert(*address));
        node.ignored = None;
        if node.asked.len() > MAX_ADDRESSES {
            let mut beyond = node.asked.split_off(MAX_ADDRESSES - 1);
            // What is listed for the node leads to it, whether it hears of it or not.
            beyond.retain(|address| {
                let owner = self.policy.listed_owner(*address);
                owner.or_else(|| self.policy.object_owner(*address)) != Some(name)
            });
            node.ignored = beyond.first().map(|first| (beyond.len(), *first));
        }
        for address in &node.asked {
            let claimants = self.claimants.entry(*address).or_default();
            claimants.all.insert(name.clone());
            if node.is_certified(*address) {
                claimants.certified.insert(name.clone());
            }
        }
        touched.extend(node.asked.iter().copied());
        match node.away_since {
            Some(since) => {
                self.away.insert((since, name.clone()));
            }
            None => {
                let sources = self.sources.entry(node.source).or_default();
                sources.insert(name.clone());
            }
        }
        touched.insert(node.source);
        self.nodes.insert(name.clone(), node);
    }

    /// Decides anew who holds these addresses. Of the nodes that are affected, by that or in some
    /// other way, returns those with a session for which something is different now.
    fn settle(
        &mut self,
        touched: &BTreeSet<IpAddr>,
        mut affected: BTreeSet<NodeName>,
    ) -> BTreeSet<NodeName> {
        for address in touched {
            let Some(claimants) = self.claimants.get(address) else {
                self.standings.remove(address);
                continue;
            };
            let sources = self.sources.get(address);
            let sources = sources.map_or_else(Vec::new, |s| s.iter().take(3).cloned().collect());
            let standing = Standing {
                holder: self.decide(*address, claimants),
                sources: Some(sources).filter(|sources| sources.len() <= 2),
                rivals: self
                    .policy
                    .rivals(*address)
                    .iter()
                    .take(2)
                    .cloned()
                    .collect(),
            };
            if self.standings.get(address) != Some(&standing) {
                affected.extend(claimants.all.iter().cloned());
                self.standings.insert(*address, standing);
            }
        }
        affected.retain(|name| self.tell(name));
        affected
    }

    /// Who is to hold an address, of those who ask for it. Looks only at those who have a proof:
    /// a claim that nothing proves costs nobody's time.
    fn decide(&self, address: IpAddr, claimants: &Claimants) -> Option<Holder> {
        if let Some(owner) = self.policy.listed_owner(address) {
            let node = owner.clone();
            return Some(Holder { node, proof: None });
        }
        if !is_of_one_host(address) {
            return None;
        }
        let holder = self.holder(address);
        let by_certificate = self.first_certified(claimants, holder);
        let (name, proof) = if let Some(name) = by_certificate {
            (name, Proof::Certificate)
        } else if let Some(name) = self.policy.object_owner(address) {
            (name, Proof::NodeObject)
        } else {
            (self.by_source(address, claimants, holder)?, Proof::Source)
        };
        Some(Holder {
            node: name.clone(),
            proof: Some(proof),
        })
    }

    /// Of those whose certificate names the address: the holder, else the first who came.
    fn first_certified<'a>(
        &self,
        claimants: &'a Claimants,
        holder: Option<&NodeName>,
    ) -> Option<&'a NodeName> {
        let known = claimants.certified.iter().filter_map(|name| {
            let node = self.nodes.get(name)?;
            let holds = holder == Some(name);
            // One that is away keeps what it has, and gets nothing new.
            (holds || node.away_since.is_none()).then_some(((holds, Reverse(node.turn)), name))
        });
        known.max().map(|(_, name)| name)
    }

    /// The one whose session proves that it has the address.
    fn by_source<'a>(
        &'a self,
        address: IpAddr,
        claimants: &Claimants,
        holder: Option<&'a NodeName>,
    ) -> Option<&'a NodeName> {
        // What a session has proved is not disproved by who comes from there after it has ended.
        let absent = holder.filter(|name| {
            let node = self.nodes.get(name);
            node.is_some_and(|node| node.away_since.is_some() && node.source == address)
        });
        let alone = || self.sources.get(&address).filter(|s| s.len() == 1)?.first();
        // Where several Node objects have the address, it is that of one of them.
        let rivals = self.policy.rivals(address);
        let claims = |name: &&NodeName| {
            claimants.all.contains(*name) && (rivals.is_empty() || rivals.contains(*name))
        };
        absent.filter(claims).or_else(alone).filter(claims)
    }

    /// Notes what a node is told now. Whether that is new, and there is a session to say it on.
    fn tell(&mut self, name: &NodeName) -> bool {
        let Some(node) = self.nodes.get(name) else {
            return false;
        };
        let news: Vec<_> = node
            .asked
            .iter()
            .map(|address| (*address, self.verdict(name, node, *address)))
            .collect();
        let Some(node) = self.nodes.get_mut(name) else {
            return false;
        };
        let is_new = node.told != news;
        node.told = news;
        is_new && node.away_since.is_none()
    }

    fn verdict(&self, name: &NodeName, node: &Node, address: IpAddr) -> Verdict {
        let standing = self.standings.get(&address);
        let holder = standing.and_then(|standing| standing.holder.as_ref());
        let sources = standing.and_then(|standing| standing.sources.as_ref());
        let sharer = match sources {
            Some(sources) => sources
                .iter()
                .find(|other| *other != name)
                .map(|o| Some(o.clone())),
            None => Some(None),
        };
        let sharer = sharer.filter(|_| node.source == address);
        let rivals = standing.map_or(&[][..], |standing| &standing.rivals);
        let rival = rivals
            .iter()
            .find(|other| *other != name)
            .filter(|_| self.policy.addresses_of(name).contains(&address));
        let is_proven = node.is_certified(address)
            || self.policy.object_owner(address) == Some(name)
            || (node.source == address && sharer.is_none());
        match (holder, sharer) {
            (Some(holder), _) if holder.node == *name => Verdict::Granted,
            (Some(Holder { node, proof: None }), _) => Verdict::ListedFor(node.clone()),
            _ if !is_of_one_host(address) => Verdict::Unusable,
            (
                Some(Holder {
                    node,
                    proof: Some(proof),
                }),
                _,
            ) if is_proven => Verdict::HeldBy(node.clone(), *proof),
            (_, Some(other)) => Verdict::SharedWith(other),
            (_, None) => match rival {
                Some(other) => Verdict::ListedTwice(other.clone()),
                None => Verdict::Unproven(self.policy.other_proof()),
            },
        }
    }

    fn changes(&self, changed: BTreeSet<NodeName>) -> Vec<Change> {
        changed
            .into_iter()
            .filter_map(|node| {
                let addresses = self.addresses(&node)?;
                Some(Change { node, addresses })
            })
            .collect()
    }
}

/// Whether an address can tell one host from others.
fn is_of_one_host(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || is_broadcast)
}

/// How long a node that is away keeps its addresses.
///
/// An hour is longer than a kernel update with a reboot and checks of file systems and firmware
/// takes, so that nobody who claims the same address meanwhile gets a rebooting node's traffic.
/// It is short enough that an address which a cloud has given to a new machine works the same day.
pub(crate) const ADDRESS_RETENTION: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests;
