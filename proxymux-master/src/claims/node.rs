//! One node's claims, and what it is told about them.
//!
//! Owns what is known about a node, the reasons for which an address does not lead to it, and
//! their words. Leaves the decision to `claims`, which sees all nodes.

use std::net::IpAddr;

use proxymux_proto::{
    AddressRefusal, Addresses, AllowedRange, MAX_ADDRESSES, MAX_REASON_LEN, NodeName, printable,
};
use tokio::time::Instant;

use super::{Evidence, policy::OtherProof};

#[derive(Debug)]
pub(super) struct Node {
    /// The address that is its name.
    pub(super) named: Option<IpAddr>,
    pub(super) ip_sans: Vec<IpAddr>,
    /// What the agent claims.
    pub(super) claims: Vec<IpAddr>,
    pub(super) allow: Vec<AllowedRange>,
    /// Where its session comes from, or came from.
    pub(super) source: IpAddr,
    /// When its last session ended; `None` while it has one.
    pub(super) away_since: Option<Instant>,
    /// Who came later has a higher one. Of equal claimants the first gets an address.
    pub(super) turn: u64,
    /// The addresses that it asks for: its name, what is listed for it or stands in its Node
    /// object, its claims. Each once, and with those in `ignored` no more than it can be told about.
    pub(super) asked: Vec<IpAddr>,
    /// How many claims were too many, and the first of them.
    pub(super) ignored: Option<(usize, IpAddr)>,
    /// What it was told last, or would have been if it had a session.
    pub(super) told: Vec<(IpAddr, Verdict)>,
}

/// What proves a claim, the weakest first. An address that is listed for a node is not weighed at
/// all, it is that node's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Proof {
    /// The session comes from that address, and no other node's does.
    Source,
    /// Its Node object has it, and no other node's does.
    NodeObject,
    /// The certificate names it.
    Certificate,
}

/// What a node is told about an address that it asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    Granted,
    /// No address of a single host.
    Unusable,
    ListedFor(NodeName),
    HeldBy(NodeName, Proof),
    /// The session comes from it, but so does that of one other node, or those of several.
    SharedWith(Option<NodeName>),
    /// Its Node object has the address, but so does that of another node.
    ListedTwice(NodeName),
    Unproven(OtherProof),
}

impl Node {
    pub(super) fn new(name: &NodeName, evidence: Evidence<'_>, turn: u64) -> Self {
        Self {
            named: name.as_ip().map(|ip| ip.to_canonical()),
            ip_sans: evidence.ip_sans.iter().map(IpAddr::to_canonical).collect(),
            claims: evidence.claims.iter().map(IpAddr::to_canonical).collect(),
            allow: evidence.allow.to_vec(),
            source: evidence.source.to_canonical(),
            away_since: None,
            turn,
            asked: Vec::new(),
            ignored: None,
            told: Vec::new(),
        }
    }

    pub(super) fn is_certified(&self, address: IpAddr) -> bool {
        self.named == Some(address) || self.ip_sans.contains(&address)
    }

    /// Whether its agent knows this address as one of its node's.
    pub(super) fn knows(&self, address: IpAddr) -> bool {
        self.named == Some(address) || self.claims.contains(&address)
    }

    pub(super) fn allows(&self, address: IpAddr, port: u16) -> bool {
        self.allow
            .iter()
            .any(|r| r.net.contains(&address) && r.ports.contains(&port))
    }

    pub(super) fn addresses(&self) -> Addresses {
        let mut addresses = Addresses::default();
        for (address, verdict) in &self.told {
            match verdict.reason(self.source) {
                None => addresses.granted.push(*address),
                Some(reason) => addresses.refused.push(refusal(*address, &reason)),
            }
        }
        if let Some((count, first)) = self.ignored {
            let reason =
                format!("one of {count} too many, expected at most {MAX_ADDRESSES} in all");
            addresses.refused.push(refusal(first, &reason));
        }
        addresses
    }
}

impl Verdict {
    /// Why the address does not lead to the node; `None` if it does.
    fn reason(&self, source: IpAddr) -> Option<String> {
        Some(match self {
            Self::Granted => return None,
            Self::Unusable => "not the address of a single host".to_owned(),
            Self::ListedFor(node) => format!("listed for node {node}"),
            Self::HeldBy(node, Proof::Certificate) => {
                format!("held by node {node}, whose certificate names it")
            }
            Self::HeldBy(node, Proof::Source) => {
                format!("held by node {node}, whose session comes from it")
            }
            Self::HeldBy(node, Proof::NodeObject) => {
                format!("held by node {node}, whose Node object has it")
            }
            Self::ListedTwice(node) => {
                format!("the Node object of node {node} has it too, expected one of them")
            }
            Self::SharedWith(Some(node)) => {
                format!("the session comes from it, but so does that of node {node}")
            }
            Self::SharedWith(None) => {
                "the session comes from it, but so do those of several other nodes".to_owned()
            }
            Self::Unproven(other) => {
                let other = match other {
                    OtherProof::Nothing => "",
                    OtherProof::List => "a place in the list of node addresses, ",
                    OtherProof::NodeObject => "a place in its Node object, ",
                };
                format!(
                    "not proven: expected {other}an IP address in the certificate or the session's \
                     source, which is {source}"
                )
            }
        })
    }
}

fn refusal(address: IpAddr, reason: &str) -> AddressRefusal {
    AddressRefusal {
        address,
        reason: printable(reason, MAX_REASON_LEN),
    }
}
