//! Who gets an address: one case per rule, then rules that hold after any list of operations.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proxymux_proto::{ControlMessage, FrameDecoder, MAX_REASON_LEN};

use super::*;

mod objects;
mod random;

/// A table with a clock, and short ways to say things.
struct Table {
    claims: Claims,
    now: Instant,
}

/// What a node registers with, in texts.
#[derive(Clone, Copy, Default)]
struct Said {
    sans: &'static [&'static str],
    claims: &'static [&'static str],
    source: &'static str,
}

impl Table {
    fn new(policy: Policy) -> Self {
        Self {
            claims: Claims::new(policy),
            now: Instant::now(),
        }
    }

    fn declared() -> Self {
        Self::new(Policy::Declared)
    }

    fn register(&mut self, node: &str, said: Said) -> Outcome {
        let (ip_sans, claims) = (ips(said.sans), ips(said.claims));
        let evidence = Evidence {
            ip_sans: &ip_sans,
            claims: &claims,
            allow: &[],
            source: ip(said.source),
        };
        self.claims.register(&name(node), evidence, self.now)
    }

    fn unregister(&mut self, node: &str) -> Vec<Change> {
        self.claims.unregister(&name(node), self.now)
    }

    fn holder(&self, address: &str) -> Option<&str> {
        self.claims.holder(ip(address)).map(NodeName::as_str)
    }
}

fn name(text: &str) -> NodeName {
    NodeName::parse(text).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| ip(text)).collect()
}

fn list(entries: &[(&str, &[&str])]) -> Policy {
    let parse = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect();
    let entries = entries.iter().map(|(node, nets)| (name(node), parse(nets)));
    Policy::Listed(NodeList::new(entries).unwrap())
}

/// The addresses as a line for each: granted ones alone, others with the reason.
fn lines(addresses: &Addresses) -> Vec<String> {
    let granted = addresses.granted.iter().map(ToString::to_string);
    let refused = addresses
        .refused
        .iter()
        .map(|r| format!("{}: {}", r.address, r.reason));
    granted.chain(refused).collect()
}

fn changed(changes: &[Change]) -> Vec<(&str, Vec<String>)> {
    changes
        .iter()
        .map(|c| (c.node.as_str(), lines(&c.addresses)))
        .collect()
}

const SAN: Said = Said {
    sans: &["10.0.0.9"],
    claims: &["10.0.0.9"],
    source: "192.0.2.1",
};
const SOURCE: Said = Said {
    sans: &[],
    claims: &["10.0.0.9"],
    source: "10.0.0.9",
};
const NOTHING: Said = Said {
    sans: &[],
    claims: &[],
    source: "192.0.2.2",
};

#[test]
fn every_kind_of_proof_is_accepted_and_nothing_else() {
    let unproven = "10.0.0.9: not proven: expected an IP address in the certificate or the \
                    session's source, which is 192.0.2.2";
    for (node, said, expected) in [
        ("10.0.0.9", NOTHING, "10.0.0.9"),
        ("FD00::9", NOTHING, "fd00::9"),
        ("a", SAN, "10.0.0.9"),
        ("a", SOURCE, "10.0.0.9"),
        (
            "a",
            Said {
                source: "::ffff:10.0.0.9",
                ..SOURCE
            },
            "10.0.0.9",
        ),
        (
            "a",
            Said {
                claims: &["10.0.0.9"],
                ..NOTHING
            },
            unproven,
        ),
        (
            "10.0.0.8",
            Said {
                claims: &["10.0.0.8"],
                ..NOTHING
            },
            "10.0.0.8",
        ),
    ] {
        let outcome = Table::declared().register(node, said);
        assert_eq!(lines(&outcome.addresses), [expected], "{node}");
        assert_eq!(outcome.changes, []);
    }
}

#[test]
fn what_is_proven_but_not_claimed_is_not_granted() {
    let mut table = Table::declared();
    let outcome = table.register("a", Said { claims: &[], ..SAN });
    assert_eq!(outcome.addresses, Addresses::default());
    assert_eq!(table.holder("10.0.0.9"), None);
}

#[test]
fn addresses_of_no_single_host_are_refused_whatever_the_proof() {
    for address in ["0.0.0.0", "255.255.255.255", "224.0.0.1", "::", "ff02::1"] {
        let outcome = Table::declared().register(address, NOTHING);
        let expected = format!("{address}: not the address of a single host");
        assert_eq!(lines(&outcome.addresses), [expected]);
    }
}

#[test]
fn a_refused_claim_does_not_touch_the_others() {
    let said = Said {
        claims: &["10.0.0.1", "10.0.0.9", "10.0.0.9", "10.0.0.2"],
        ..SAN
    };
    let outcome = Table::declared().register("10.0.0.3", said);
    assert_eq!(outcome.addresses.granted, ips(&["10.0.0.3", "10.0.0.9"]));
    let refused: Vec<_> = outcome
        .addresses
        .refused
        .iter()
        .map(|r| r.address)
        .collect();
    assert_eq!(refused, ips(&["10.0.0.1", "10.0.0.2"]));
}

#[test]
fn the_first_of_equal_claimants_holds_the_address_until_it_gives_it_up() {
    let mut table = Table::declared();
    table.register("a", SAN);
    let second = table.register("b", SAN);
    assert_eq!(
        lines(&second.addresses),
        ["10.0.0.9: held by node a, whose certificate names it"]
    );
    assert_eq!(second.changes, []);

    let without = table.register("a", Said { claims: &[], ..SAN });

    assert_eq!(
        changed(&without.changes),
        [("b", vec!["10.0.0.9".to_owned()])]
    );
    assert_eq!(table.holder("10.0.0.9"), Some("b"));
}

#[test]
fn of_several_waiting_the_one_that_came_first_is_next() {
    let mut table = Table::declared();
    for node in ["a", "c", "b"] {
        table.register(node, SAN);
    }
    // Registering again does not send it to the end of the queue.
    table.register("c", SAN);

    let outcome = table.register("a", NOTHING);

    assert_eq!(
        changed(&outcome.changes),
        [
            (
                "b",
                vec!["10.0.0.9: held by node c, whose certificate names it".to_owned()]
            ),
            ("c", vec!["10.0.0.9".to_owned()]),
        ]
    );
}

#[test]
fn a_certificate_takes_an_address_from_a_source_at_once() {
    let mut table = Table::declared();
    table.register("a", SOURCE);
    let outcome = table.register("b", SAN);

    assert_eq!(outcome.addresses.granted, ips(&["10.0.0.9"]));
    assert_eq!(
        changed(&outcome.changes),
        [(
            "a",
            vec!["10.0.0.9: held by node b, whose certificate names it".to_owned()]
        )]
    );

    // Also from one that is away.
    let mut table = Table::declared();
    table.register("a", SOURCE);
    table.unregister("a");
    assert_eq!(
        table.register("b", SAN).addresses.granted,
        ips(&["10.0.0.9"])
    );
}

#[test]
fn a_weaker_proof_does_not_take_an_address_back() {
    let mut table = Table::declared();
    table.register("a", SAN);
    let outcome = table.register("b", SOURCE);
    assert_eq!(
        lines(&outcome.addresses),
        ["10.0.0.9: held by node a, whose certificate names it"]
    );
    assert_eq!(outcome.changes, []);
}

#[test]
fn a_holder_that_is_away_keeps_its_address_for_the_retention_and_no_longer() {
    for said in [SAN, SOURCE] {
        let mut table = Table::declared();
        table.register("a", said);
        table.unregister("a");
        table.now += ADDRESS_RETENTION - Duration::from_secs(1);
        let waiting = table.register("b", said);
        assert!(waiting.addresses.granted.is_empty());
        assert_eq!(table.claims.expire(table.now), []);
        assert_eq!(table.holder("10.0.0.9"), Some("a"));

        table.now += Duration::from_secs(1);
        let changes = table.claims.expire(table.now);
        assert_eq!(changed(&changes), [("b", vec!["10.0.0.9".to_owned()])]);
        assert_eq!(table.holder("10.0.0.9"), Some("b"));
    }
}

#[test]
fn a_late_registration_finds_expired_nodes_gone() {
    let mut table = Table::declared();
    table.register("a", SAN);
    table.unregister("a");
    table.now += ADDRESS_RETENTION;
    assert_eq!(
        table.register("b", SAN).addresses.granted,
        ips(&["10.0.0.9"])
    );
}

#[test]
fn a_holder_that_comes_back_in_time_has_its_address() {
    let mut table = Table::declared();
    table.register("a", SAN);
    table.unregister("a");
    table.register("b", SAN);

    table.now += ADDRESS_RETENTION / 2;
    assert_eq!(
        table.register("a", SAN).addresses.granted,
        ips(&["10.0.0.9"])
    );

    table.now += ADDRESS_RETENTION;
    assert_eq!(table.claims.expire(table.now), []);
    assert_eq!(table.holder("10.0.0.9"), Some("a"));
}

#[test]
fn a_holder_whose_proof_is_gone_loses_the_address() {
    let mut table = Table::declared();
    table.register("a", SAN);
    table.register("b", SAN);
    let renewed = table.register("a", Said { sans: &[], ..SAN });
    assert!(renewed.addresses.granted.is_empty());
    assert_eq!(table.holder("10.0.0.9"), Some("b"));
}

#[test]
fn a_waiting_claimant_that_goes_away_gets_nothing() {
    let mut table = Table::declared();
    table.register("a", SAN);
    table.register("b", SAN);
    table.unregister("b");
    table.register("a", NOTHING);
    assert_eq!(table.holder("10.0.0.9"), None);
}

#[test]
fn two_nodes_behind_one_address_both_lose_it_until_one_leaves() {
    let mut table = Table::declared();
    table.register("a", SOURCE);
    let shared =
        |other| format!("10.0.0.9: the session comes from it, but so does that of node {other}");

    let outcome = table.register("b", SOURCE);
    assert_eq!(lines(&outcome.addresses), [shared("a")]);
    assert_eq!(changed(&outcome.changes), [("a", vec![shared("b")])]);
    assert_eq!(table.holder("10.0.0.9"), None);

    let changes = table.unregister("b");
    assert_eq!(changed(&changes), [("a", vec!["10.0.0.9".to_owned()])]);
}

#[test]
fn the_reason_names_the_other_node_if_it_is_only_one() {
    let mut table = Table::declared();
    for node in ["a", "b", "c"] {
        table.register(node, SOURCE);
    }
    let several = "10.0.0.9: the session comes from it, but so do those of several other nodes";
    let told = |table: &Table, node| lines(&table.claims.addresses(&name(node)).unwrap());
    assert_eq!(told(&table, "a"), [several]);

    let changes = table.unregister("a");

    assert_eq!(changes.len(), 2);
    assert!(told(&table, "b").concat().ends_with("that of node c"));
    assert!(told(&table, "c").concat().ends_with("that of node b"));
}

#[test]
fn a_source_is_shared_also_with_a_node_that_does_not_claim_it() {
    let mut table = Table::declared();
    table.register("a", SOURCE);
    let outcome = table.register(
        "b",
        Said {
            source: "10.0.0.9",
            ..NOTHING
        },
    );
    assert_eq!(outcome.changes.len(), 1);
    assert_eq!(table.holder("10.0.0.9"), None);

    // It moves elsewhere.
    let outcome = table.register("b", NOTHING);
    assert_eq!(
        changed(&outcome.changes),
        [("a", vec!["10.0.0.9".to_owned()])]
    );
}

#[test]
fn a_proof_by_certificate_does_not_mind_who_shares_the_source() {
    let mut table = Table::declared();
    let both = Said {
        sans: &["10.0.0.9"],
        ..SOURCE
    };
    table.register("a", both);
    assert_eq!(table.register("b", SOURCE).changes, []);
    assert_eq!(table.holder("10.0.0.9"), Some("a"));
}

#[test]
fn a_node_that_left_does_not_count_as_sharing() {
    let mut table = Table::declared();
    table.register(
        "a",
        Said {
            source: "10.0.0.9",
            ..NOTHING
        },
    );
    table.unregister("a");
    assert_eq!(
        table.register("b", SOURCE).addresses.granted,
        ips(&["10.0.0.9"])
    );
}

#[test]
fn a_listed_address_is_its_nodes_alone_claimed_or_not_there_or_not() {
    let mut table = Table::new(list(&[("a", &["10.0.0.9/32"])]));
    assert_eq!(table.holder("10.0.0.9"), Some("a"));

    let other = table.register("b", SAN);
    assert_eq!(lines(&other.addresses), ["10.0.0.9: listed for node a"]);
    assert_eq!(
        table.register("a", NOTHING).addresses.granted,
        ips(&["10.0.0.9"])
    );

    table.unregister("a");
    table.now += ADDRESS_RETENTION;
    assert_eq!(table.claims.expire(table.now), []);
    assert_eq!(table.holder("10.0.0.9"), Some("a"));
}

#[test]
fn under_a_list_other_proofs_still_count_and_the_reason_names_the_list() {
    let mut table = Table::new(list(&[("a", &["10.0.0.1/32"])]));
    assert_eq!(
        table.register("b", SAN).addresses.granted,
        ips(&["10.0.0.9"])
    );
    let outcome = table.register(
        "c",
        Said {
            claims: &["10.0.0.7"],
            ..NOTHING
        },
    );
    assert_eq!(
        lines(&outcome.addresses),
        [
            "10.0.0.7: not proven: expected a place in the list of node addresses, an IP address in \
          the certificate or the session's source, which is 192.0.2.2"
        ]
    );
}

#[test]
fn a_new_list_counts_at_once_for_those_who_are_there() {
    let mut table = Table::declared();
    table.register("a", SAN);
    table.register("b", NOTHING);

    let changes = table
        .claims
        .replace_policy(list(&[("b", &["10.0.0.9/32"])]));
    assert_eq!(
        changed(&changes),
        [
            ("a", vec!["10.0.0.9: listed for node b".to_owned()]),
            ("b", vec!["10.0.0.9".to_owned()]),
        ]
    );

    let same = table
        .claims
        .replace_policy(list(&[("b", &["10.0.0.9/32"])]));
    assert_eq!(same, []);

    let changes = table.claims.replace_policy(Policy::Declared);
    assert_eq!(
        changed(&changes),
        [("a", vec!["10.0.0.9".to_owned()]), ("b", vec![])]
    );
}

#[test]
fn a_change_of_policy_does_not_give_away_what_an_absent_node_has_proven() {
    let mut table = Table::declared();
    table.register("a", SAN);
    table.unregister("a");
    table.register("b", SAN);
    assert_eq!(
        table
            .claims
            .replace_policy(list(&[("b", &["10.0.0.1/32"])]))
            .len(),
        1
    );
    assert_eq!(table.holder("10.0.0.9"), Some("a"));
}

#[test]
fn claims_beyond_the_limit_are_ignored_and_said_once() {
    let claims: Vec<IpAddr> = (0..100_u8).map(|i| IpAddr::from([10, 0, 1, i])).collect();
    let evidence = Evidence {
        ip_sans: &claims,
        claims: &claims,
        allow: &[],
        source: ip("192.0.2.1"),
    };
    let mut table = Table::declared();
    let addresses = table
        .claims
        .register(&name("a"), evidence, table.now)
        .addresses;
    assert_eq!(addresses.granted, claims[..63]);
    assert_eq!(
        lines(&addresses).last().unwrap(),
        "10.0.1.63: one of 37 too many, expected at most 64 in all"
    );
    assert_eq!(table.holder("10.0.1.63"), None);
}

#[test]
fn as_many_claims_as_allowed_are_all_granted() {
    let claims: Vec<IpAddr> = (0..64_u8).map(|i| IpAddr::from([10, 0, 1, i])).collect();
    let evidence = Evidence {
        ip_sans: &claims,
        claims: &claims,
        allow: &[],
        source: ip("192.0.2.1"),
    };
    let addresses = Claims::new(Policy::Declared)
        .register(&name("10.0.1.0"), evidence, Instant::now())
        .addresses;
    assert_eq!(addresses.granted, claims);
    assert!(addresses.refused.is_empty());
}

#[test]
fn a_node_with_everything_it_may_have_can_be_told_in_one_message() {
    let nets = (0..64).map(|i| format!("fd00:ffff:ffff:ffff::ffff:{i:x}/128"));
    let listed = nets.map(|net| net.parse().unwrap()).collect();
    let policy = Policy::Listed(NodeList::new([(name("10.0.0.1"), listed)]).unwrap());
    let claims: Vec<IpAddr> = (0..64_u32)
        .map(|i| IpAddr::V6((0xfd00_u128 << 112 | u128::from(i)).into()))
        .collect();
    let evidence = Evidence {
        ip_sans: &[],
        claims: &claims,
        allow: &[],
        source: ip("fd00::"),
    };
    let mut table = Table::new(policy);

    let outcome = table
        .claims
        .register(&name("10.0.0.1"), evidence, table.now);

    assert_eq!(outcome.addresses.granted.len(), 63);
    assert_eq!(outcome.addresses.refused.len(), 1);
    let message = ControlMessage::Addresses(outcome.addresses);
    let mut decoder = FrameDecoder::default();
    decoder.push(&message.encode().unwrap());
    let content = decoder.next().unwrap().unwrap();
    assert_eq!(ControlMessage::decode(&content).unwrap(), message);
    // The last of the listed ones leads to the node although it is not told so.
    assert_eq!(
        table.holder("fd00:ffff:ffff:ffff::ffff:3f"),
        Some("10.0.0.1")
    );
}

#[test]
fn a_range_leads_to_the_node_it_is_listed_for_if_its_agent_allows_it() {
    let policy = list(&[("a", &["10.244.0.0/16"]), ("b", &["10.244.2.0/24"])]);
    let mut claims = Claims::new(policy);
    let allow = |net: &str, ports| AllowedRange {
        net: net.parse().unwrap(),
        ports,
    };
    let allowed = [
        allow("10.244.0.0/16", 1..=1023),
        allow("10.9.0.0/16", 1..=65535),
    ];
    let evidence = Evidence {
        ip_sans: &[],
        claims: &[],
        allow: &allowed,
        source: ip("192.0.2.1"),
    };
    claims.register(&name("a"), evidence, Instant::now());
    let holder = |address: &str, port| {
        let found = claims.range_holder(ip(address), port);
        found
            .map(NodeName::as_str)
            .map_err(|error| error.to_string())
    };

    assert_eq!(holder("10.244.1.1", 80), Ok("a"));
    assert_eq!(holder("::ffff:10.244.1.1", 80), Ok("a"));
    assert_eq!(
        holder("10.244.1.1", 8080).unwrap_err(),
        "10.244.1.1 is behind node a, but its agent does not allow port 8080 there"
    );
    // The smaller range counts, and its node has not been heard yet.
    assert_eq!(holder("10.244.2.1", 8080), Ok("b"));
    // What an agent allows proves nothing.
    assert_eq!(
        holder("10.9.0.1", 80).unwrap_err(),
        "no node is listed for 10.9.0.1"
    );
    claims.replace_policy(Policy::Declared);
    assert!(claims.range_holder(ip("10.244.1.1"), 80).is_err());
}

#[test]
fn what_is_not_known_leads_nowhere_and_leaves_quietly() {
    let mut table = Table::declared();
    assert_eq!(table.unregister("a"), []);
    assert_eq!(table.holder("10.0.0.9"), None);
    assert_eq!(table.claims.addresses(&name("a")), None);
}

#[test]
fn leaving_twice_does_not_begin_the_retention_anew() {
    let mut table = Table::declared();
    table.register("a", SAN);
    table.unregister("a");
    table.now += ADDRESS_RETENTION / 2;
    table.unregister("a");
    table.now += ADDRESS_RETENTION / 2;
    table.claims.expire(table.now);
    assert_eq!(table.holder("10.0.0.9"), None);
}

#[test]
fn nothing_is_left_of_nodes_that_are_gone() {
    let mut table = Table::declared();
    for node in ["a", "b", "10.0.0.9"] {
        table.register(node, SOURCE);
        table.unregister(node);
    }
    table.now += ADDRESS_RETENTION;
    table.claims.expire(table.now);
    let claims = &table.claims;
    assert!(claims.nodes.is_empty() && claims.away.is_empty() && claims.standings.is_empty());
    assert!(claims.claimants.is_empty() && claims.sources.is_empty());
}

#[test]
fn a_fleet_behind_one_address_that_all_claim_costs_no_messages_to_all() {
    let mut claims = Claims::new(Policy::Declared);
    let (now, nat) = (Instant::now(), ip("198.51.100.1"));
    let nodes: Vec<_> = (0..1000_u32)
        .map(|i| IpAddr::from((0x0a00_0000 + i).to_be_bytes()))
        .collect();
    let mut messages = 0;
    for _ in 0..2 {
        for own in &nodes {
            let (node, both) = (name(&own.to_string()), [*own, nat]);
            let evidence = Evidence {
                ip_sans: &[],
                claims: &both,
                allow: &[],
                source: nat,
            };
            let outcome = claims.register(&node, evidence, now);
            assert!(outcome.addresses.granted.contains(own));
            messages += outcome.changes.len();
        }
        for own in &nodes {
            messages += claims.unregister(&name(&own.to_string()), now).len();
        }
    }
    // Of each thousand only the first two and the last two hear of one another.
    assert!((4..=16).contains(&messages), "{messages} messages");
}
