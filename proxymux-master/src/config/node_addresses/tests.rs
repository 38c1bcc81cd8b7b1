//! Tests of the file of node addresses.

use proptest::prelude::*;

use super::*;

fn refusal(text: &str) -> String {
    NodeAddressFile::parse(text, "n.yaml")
        .unwrap_err()
        .to_string()
}

#[test]
fn the_sample_is_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/samples/node-addresses.yaml");

    let file = NodeAddressFile::load(&path).unwrap();

    let shown: Vec<String> = file
        .iter()
        .map(|(node, nets)| format!("{node} {nets:?}"))
        .collect();
    assert_eq!(
        shown,
        [
            "10.0.10.10 [10.0.10.10/32, fd00:10::10/128]",
            "worker-1.example [10.0.10.11/32, 198.51.100.7/32, 10.244.2.0/24]",
            "worker-2.example [10.0.10.12/32]",
        ]
    );
}

#[test]
fn entries_and_owners_are_found_in_one_form() {
    let text = "Node-A: ['::ffff:10.0.0.1', 10.0.0.0/8]\nnode-b: 10.0.0.2/32\n";

    let file = NodeAddressFile::parse(text, "n.yaml").unwrap();

    let node = |name| NodeName::parse(name).unwrap();
    let net = |text: &str| -> IpNet { text.parse().unwrap() };
    assert_eq!(
        file.nets(&node("node-a")),
        [net("10.0.0.1/32"), net("10.0.0.0/8")]
    );
    assert_eq!(file.owner(net("10.0.0.1/32")), Some(&node("node-a")));
    assert_eq!(file.owner(net("10.0.0.2/32")), Some(&node("node-b")));
    assert_eq!(file.owner(net("10.0.0.3/32")), None);
    assert!(file.nets(&node("node-c")).is_empty());
}

#[test]
fn all_mistakes_are_reported_together() {
    let text = "\
a: [10.0.0.1, 10.0.0.2]
b: [10.0.0.2, 10.0.0.3, 10.0.0.3]
A: 10.0.0.4
c: []
d:
e: [127.0.0.1, node, 5, 10.0.0.1/8, 10.0.0.1/32]
5: 10.0.0.5
f g: 10.0.0.6
h: {address: 10.0.0.7}
a: 10.0.0.8
";

    let bad_name = NodeName::parse("f g").unwrap_err();
    assert_eq!(
        refusal(text),
        format!(
            "\
n.yaml:2: b[0]: \"10.0.0.2\": is listed for a already
n.yaml:2: b[2]: \"10.0.0.3\": is listed twice
n.yaml:3: A: is listed twice, the case of letters does not count
n.yaml:4: c: must have at least one address
n.yaml:5: d: must have at least one address
n.yaml:6: e[2]: 5: must be a string
n.yaml:6: e[0]: \"127.0.0.1\": is a loopback address, must be an address under which others reach this node
n.yaml:6: e[1]: \"node\": must be a network such as 10.244.0.0/16, or an IP address
n.yaml:6: e[3]: \"10.0.0.1/8\": has bits set behind its prefix, must be 10.0.0.0/8 or a longer prefix
n.yaml:6: e[4]: \"10.0.0.1/32\": is listed for a already
n.yaml:7: 5: must be a string, write the key in quotes
n.yaml:8: f g: {bad_name}
n.yaml:9: h: a mapping: must be an address, a network, or a list of these
n.yaml:10: a: is written twice, first in line 1"
        )
    );
}

#[test]
fn a_file_without_nodes_must_say_so() {
    assert_eq!(refusal(""), "n.yaml: is empty, expected keys and values");
    assert_eq!(
        NodeAddressFile::parse("{}", "n.yaml").unwrap(),
        NodeAddressFile::default()
    );
    assert_eq!(
        refusal("[a]"),
        "n.yaml: must be a mapping of keys to values, but is a list"
    );
}

#[test]
fn a_node_has_no_more_addresses_than_an_agent_may_declare() {
    let list = |count: usize| {
        let ips: Vec<String> = (1..=count).map(|n| format!("10.0.0.{n}")).collect();
        format!("a: [{}]", ips.join(","))
    };

    assert!(NodeAddressFile::parse(&list(MAX_ADDRESSES), "n.yaml").is_ok());
    assert_eq!(
        refusal(&list(MAX_ADDRESSES + 1)),
        format!(
            "n.yaml:1: a: must have at most {MAX_ADDRESSES} entries, has {}",
            MAX_ADDRESSES + 1
        )
    );
}

#[test]
fn a_file_of_five_thousand_nodes_is_read() {
    let lines = (0..5000).map(|n| {
        let (high, low) = (n / 250, n % 250 + 1);
        format!("ocid1-instance-oc1-ap-tokyo-1-{n}: [10.{high}.0.{low}, 'fd00:{high}::{low}']\n")
    });
    let text: String = lines.collect();

    let file = NodeAddressFile::parse(&text, "n.yaml").unwrap();

    assert_eq!(file.iter().count(), 5000);
}

proptest! {
    #[test]
    fn no_text_makes_reading_panic(text in prop_oneof![any::<String>(), "[a-c:\\[\\], \n10.]{0,60}"]) {
        let _ = NodeAddressFile::parse(&text, "n.yaml");
    }
}
