//! What Node objects prove: more than a session's source, less than a certificate, and nothing
//! where two of them say the same.

use super::*;

fn objects(all: &[(&str, &[&str], &[&str])]) -> Policy {
    let mut objects = NodeObjects::default();
    for (node, addresses, nets) in all {
        objects.set(&name(node), Some(object(addresses, nets)));
    }
    Policy::Objects(objects)
}

fn object(addresses: &[&str], nets: &[&str]) -> NodeObject {
    NodeObject {
        addresses: ips(addresses),
        pod_cidrs: nets.iter().map(|net| net.parse().unwrap()).collect(),
        ..NodeObject::default()
    }
}

impl Table {
    fn update(&mut self, node: &str, object: Option<NodeObject>) -> Vec<Change> {
        self.claims.update_objects(vec![(name(node), object)])
    }
}

#[test]
fn an_address_in_a_node_object_leads_to_its_node_with_or_without_a_session_or_a_claim() {
    let mut table = Table::new(objects(&[("a", &["198.51.100.1"], &[])]));
    assert_eq!(table.holder("198.51.100.1"), Some("a"));

    let outcome = table.register("a", NOTHING);

    assert_eq!(lines(&outcome.addresses), ["198.51.100.1"]);
    assert_eq!(table.holder("::ffff:198.51.100.1"), Some("a"));
    table.unregister("a");
    table.now += ADDRESS_RETENTION;
    table.claims.expire(table.now);
    assert_eq!(table.holder("198.51.100.1"), Some("a"));
}

#[test]
fn a_node_object_counts_more_than_a_source_and_less_than_a_certificate() {
    let mut table = Table::new(objects(&[("a", &["10.0.0.9"], &[])]));
    let by_source = table.register("b", SOURCE);
    assert_eq!(
        lines(&by_source.addresses),
        ["10.0.0.9: held by node a, whose Node object has it"]
    );
    table.register("a", NOTHING);
    assert_eq!(table.holder("10.0.0.9"), Some("a"));

    let by_certificate = table.register("c", SAN);

    assert_eq!(lines(&by_certificate.addresses), ["10.0.0.9"]);
    assert_eq!(
        changed(&by_certificate.changes),
        [
            (
                "a",
                vec!["10.0.0.9: held by node c, whose certificate names it".to_owned()]
            ),
            (
                "b",
                vec!["10.0.0.9: held by node c, whose certificate names it".to_owned()]
            ),
        ]
    );
    assert_eq!(table.holder("10.0.0.9"), Some("c"));
}

#[test]
fn an_address_moves_with_the_objects_and_all_who_ask_for_it_are_told() {
    let mut table = Table::new(objects(&[("a", &["10.0.0.9"], &[])]));
    let claim = Said {
        claims: &["10.0.0.9"],
        ..NOTHING
    };
    table.register("a", claim);
    let refused = table.register("b", claim);
    assert_eq!(
        lines(&refused.addresses),
        [
            "10.0.0.9: not proven: expected a place in its Node object, an IP address in the \
             certificate or the session's source, which is 192.0.2.2"
        ]
    );

    let changes = table.claims.update_objects(vec![
        (name("a"), Some(object(&["10.0.0.8"], &[]))),
        (name("b"), Some(object(&["10.0.0.9"], &[]))),
    ]);

    let told = changed(&changes);
    assert_eq!(told.len(), 2, "{told:?}");
    let (a, b) = (&told[0], &told[1]);
    assert_eq!((a.0, &*a.1[0]), ("a", "10.0.0.8"));
    assert!(a.1[1].starts_with("10.0.0.9: not proven"), "{told:?}");
    assert_eq!((b.0, &*b.1), ("b", &["10.0.0.9".to_owned()][..]));
    assert_eq!(table.holder("10.0.0.9"), Some("b"));
    assert_eq!(table.holder("10.0.0.8"), Some("a"));
    // The same again is no news.
    let again = table.update("b", Some(object(&["10.0.0.9"], &[])));
    assert_eq!(again, []);
}

#[test]
fn what_two_objects_have_is_proven_by_neither_and_the_thief_gains_nothing() {
    let mut table = Table::new(objects(&[("owner", &["10.0.0.9"], &[])]));
    table.register("owner", NOTHING);
    table.register("thief", NOTHING);

    let changes = table.update("thief", Some(object(&["10.0.0.9"], &[])));

    assert_eq!(
        changed(&changes),
        [
            (
                "owner",
                vec![
                    "10.0.0.9: the Node object of node thief has it too, expected one of them"
                        .to_owned()
                ]
            ),
            (
                "thief",
                vec![
                    "10.0.0.9: the Node object of node owner has it too, expected one of them"
                        .to_owned()
                ]
            ),
        ]
    );
    assert_eq!(table.holder("10.0.0.9"), None);
    // The owner's session comes from there, which settles it; a stranger's would not.
    table.register("stranger", SOURCE);
    assert_eq!(table.holder("10.0.0.9"), None);
    table.unregister("stranger");
    table.register("owner", SOURCE);
    assert_eq!(table.holder("10.0.0.9"), Some("owner"));
}

#[test]
fn a_node_whose_object_is_deleted_loses_only_what_nothing_else_proves() {
    let mut table = Table::new(objects(&[(
        "a",
        &["10.0.0.9", "192.0.2.1", "198.51.100.1"],
        &["10.244.1.0/24"],
    )]));
    let said = Said {
        sans: &["10.0.0.9"],
        claims: &["10.0.0.9", "192.0.2.1", "198.51.100.1"],
        source: "192.0.2.1",
    };
    let outcome = table.register("a", said);
    assert_eq!(outcome.addresses.granted.len(), 3);

    let changes = table.update("a", None);

    assert_eq!(changes.len(), 1);
    assert_eq!(
        changes[0].addresses.granted,
        ips(&["10.0.0.9", "192.0.2.1"])
    );
    assert_eq!(table.holder("198.51.100.1"), None);
    assert_eq!(table.holder("10.0.0.9"), Some("a"));
    assert_eq!(table.claims.objects(), 0);
}

#[test]
fn a_new_list_takes_what_is_not_in_it() {
    let mut table = Table::new(objects(&[
        ("a", &["10.0.0.1"], &[]),
        ("b", &["10.0.0.2"], &[]),
    ]));
    table.register("a", NOTHING);
    table.register("b", NOTHING);

    let all = [(name("b"), object(&["10.0.0.2", "10.0.0.1"], &[]))];
    let changes = table.claims.replace_objects(all.into_iter().collect());

    let told = changed(&changes);
    assert_eq!(
        told.iter().map(|(node, _)| *node).collect::<Vec<_>>(),
        ["a", "b"]
    );
    assert_eq!(told[0].1, [] as [String; 0]);
    assert_eq!(told[1].1, ["10.0.0.2", "10.0.0.1"]);
    assert_eq!(table.holder("10.0.0.1"), Some("b"));
}

#[test]
fn a_pod_network_leads_to_its_node_as_far_as_the_agent_allows_it() {
    let mut table = Table::new(objects(&[
        ("a", &[], &["10.244.1.0/24"]),
        ("b", &[], &["10.244.2.0/24"]),
        ("c", &[], &["10.244.2.0/25"]),
    ]));
    let allow = [AllowedRange {
        net: "10.244.0.0/16".parse().unwrap(),
        ports: 8000..=9000,
    }];
    let evidence = Evidence {
        ip_sans: &[],
        claims: &[],
        allow: &allow,
        source: ip("192.0.2.1"),
    };
    table.claims.register(&name("a"), evidence, table.now);
    let found = |address: &str, port| {
        let found = table.claims.range_holder(ip(address), port);
        found
            .map(ToString::to_string)
            .map_err(|why| why.to_string())
    };
    assert_eq!(found("10.244.1.7", 8080), Ok("a".to_owned()));
    assert_eq!(
        found("10.244.1.7", 80),
        Err("10.244.1.7 is behind node a, but its agent does not allow port 80 there".to_owned())
    );
    // The agent allows more than its network, which proves nothing.
    assert_eq!(
        found("10.244.3.7", 8080),
        Err("no Node object has 10.244.3.7 in its podCIDRs".to_owned())
    );
    assert_eq!(found("10.244.2.200", 8080), Ok("b".to_owned()));
    assert_eq!(
        found("10.244.2.7", 8080),
        Err("the Node objects of b and c both have 10.244.2.7 in their podCIDRs".to_owned())
    );
}

#[test]
fn names_of_objects_lead_to_their_nodes() {
    let mut table = Table::new(objects(&[("a", &[], &[]), ("b", &[], &[])]));
    let with_names = |names: &[&str]| NodeObject {
        names: names.iter().map(|text| name(text)).collect(),
        ..NodeObject::default()
    };
    table.update("a", Some(with_names(&["a.example", "both.example"])));
    table.update("b", Some(with_names(&["a", "both.example"])));
    let named = |text: &str| table.claims.named(&name(text)).map(NodeName::as_str);
    assert_eq!(named("a.example"), Some("a"));
    assert_eq!(named("a"), Some("a"), "its own name counts more");
    assert_eq!(named("both.example"), None);
    assert_eq!(named("b"), Some("b"));
}

#[test]
fn under_another_policy_objects_are_nothing() {
    let mut table = Table::declared();
    table.register("a", NOTHING);
    assert_eq!(table.update("a", Some(object(&["10.0.0.9"], &[]))), []);
    assert_eq!(table.holder("10.0.0.9"), None);
    assert_eq!(table.claims.objects(), 0);
}
