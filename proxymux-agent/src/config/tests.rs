//! Tests of the agent's configuration: the samples, the defaults, the rules between keys, the
//! documentation. The words for each mistake are in `mistakes`.

use std::fs;

use proptest::prelude::*;

use super::*;

mod mistakes;

/// What every file needs; tests add to it.
const LEAST: &str = "\
node-name: n
server-addr: https://192.0.2.10:12250
private-ip-address: 10.0.10.10
";

fn parse(text: &str) -> Config {
    let (config, warnings) = Config::parse(text, "x.yaml").unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    config
}

/// The report of a text that is refused.
fn refusal(text: &str) -> String {
    Config::parse(text, "x.yaml").unwrap_err().to_string()
}

/// The report of a file that would be good without this line, its fourth.
fn refusal_of(line: &str) -> String {
    let report = refusal(&format!("{LEAST}{line}\n"));
    report
        .strip_prefix("x.yaml:4: ")
        .map_or(report.clone(), str::to_owned)
}

fn with(lines: &str) -> Config {
    parse(&format!("{LEAST}{lines}\n"))
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

#[test]
fn every_sample_is_read_without_a_warning() {
    let mut found = Vec::new();
    for entry in fs::read_dir(repository().join("deploy/samples")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("agent-") {
            found.push(name);
        }
    }
    found.sort();

    assert_eq!(found, ["agent-full.yaml", "agent-seed.yaml"]);
    for name in found {
        let path = repository().join("deploy/samples").join(name);
        let (_, warnings) = Config::load(&path).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
    }
}

#[test]
fn the_file_of_the_original_daemon_set_means_what_it_meant() {
    let path = repository().join("deploy/samples/agent-seed.yaml");

    let (config, _) = Config::load(&path).unwrap();

    let ip: IpAddr = "10.0.10.10".parse().unwrap();
    assert_eq!(config.node_name.as_ip(), Some(ip));
    assert_eq!(
        config.node_id.as_deref(),
        Some("ocid1.instance.oc1.ap-tokyo-1.example")
    );
    assert_eq!(
        config.cluster_id.as_deref(),
        Some("ocid1.cluster.oc1.ap-tokyo-1.example")
    );
    let labels: Vec<_> = config
        .labels
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    assert_eq!(
        labels,
        [
            ("oci-realm", "oc1"),
            ("tenancy-id", "ocid1.tenancy.oc1..example"),
            ("tm-id", "oke")
        ]
    );
    let server = config.server_addrs.first().unwrap();
    assert_eq!(server.to_string(), "https://192.0.2.10:12250");
    assert_eq!(config.expected_name(server).to_str(), "192.0.2.10");
    assert_eq!(
        config.net_inf.as_ref().map(InterfaceName::as_str),
        Some("ens3")
    );
    assert_eq!(config.public_ip_address, None);
    assert_eq!(config.bind_addr, Some(ip));
    assert_eq!(config.claimed_addresses(), [ip]);
    assert_eq!(config.kubelet_addr, SocketAddr::new(ip, 10250));
    assert_eq!(
        config.client_identity,
        ClientIdentity::Directory("/var/lib/kubelet/pki".into())
    );
}

#[test]
fn defaults_are_as_documented() {
    let settings = parse(LEAST).settings().to_string();

    assert_eq!(
        settings,
        "node-name=n node-id=none cluster-id=none tm-id=none tenancy-id=none oci-realm=none \
         server-addr=[https://192.0.2.10:12250] server-name=\"host of server-addr\" \
         expect-masters=1 net-inf=none private-ip-address=10.0.10.10 public-ip-address=none \
         bind-addr=any kubelet-addr=10.0.10.10:10250 cert-path=/var/lib/kubelet/pki \
         ca-file=/etc/kubernetes/ca.crt allow=[] mode=auto fast-path=auto \
         flow-buffer=256KiB splice=auto perf=on steer-from=[] steer-plain=relay guard=off guard-allow=[] guard-inf=[] attach=auto steer-priority=1 \
         admin=unix:/run/proxymux/agent.sock log-format=text idle-timeout=off \
         drain-deadline=30s dial-timeout=5s \
         max-memory-per-session=64MiB max-memory=64MiB"
    );
}

#[test]
fn every_setting_of_the_full_sample_is_in_force() {
    let path = repository().join("deploy/samples/agent-full.yaml");
    let text = fs::read_to_string(&path).unwrap();

    let (config, _) = Config::load(&path).unwrap();

    for key in raw::KEYS {
        assert!(
            text.contains(&format!("\n{key}:")),
            "{key} is not in the full sample"
        );
    }
    for key in raw::ALLOW_KEYS {
        assert!(
            text.contains(&format!(" {key}: ")),
            "{key} is not in the full sample"
        );
    }
    assert_eq!(
        config.settings().to_string(),
        "node-name=worker-1.example node-id=ocid1.instance.oc1.ap-tokyo-1.example \
         cluster-id=ocid1.cluster.oc1.ap-tokyo-1.example tm-id=oke \
         tenancy-id=ocid1.tenancy.oc1..example oci-realm=oc1 \
         server-addr=[https://master-a.example:12250,https://[2001:db8::10]:12250] \
         server-name=proxymux-master.example expect-masters=2 net-inf=ens3 \
         private-ip-address=10.0.10.10 public-ip-address=198.51.100.7 bind-addr=10.0.10.10 \
         kubelet-addr=10.0.10.10:10250 client-cert=/etc/proxymux/pki/client.crt \
         client-key=/etc/proxymux/pki/client.key ca-file=/etc/kubernetes/ca.crt \
         allow=[10.244.2.0/24:1-65535,10.0.10.10/32:9100-9100] mode=auto fast-path=auto \
         flow-buffer=256KiB splice=auto perf=on steer-from=[192.0.2.10/32,2001:db8::/64] steer-plain=relay guard=off \
         guard-allow=[10.0.10.0/24] guard-inf=[ens3] attach=auto steer-priority=1 \
         admin=unix:/run/proxymux/agent.sock \
         log-format=json idle-timeout=off drain-deadline=30s dial-timeout=5s \
         max-memory-per-session=64MiB max-memory=64MiB"
    );
}

#[test]
fn unknown_keys_are_warned_about_with_the_nearest_known_one() {
    let text = format!("{LEAST}drain_dedline: 5s\nregion: ap-tokyo-1\n<<: {{mode: ebpf}}\n");

    let (config, warnings) = Config::parse(&text, "x.yaml").unwrap();

    let warnings: Vec<String> = warnings.iter().map(Warning::to_string).collect();
    assert_eq!(
        warnings,
        [
            "x.yaml:4: drain_dedline: is no known key, did you mean drain-deadline?",
            "x.yaml:5: region: is no known key",
            "x.yaml:6: <<: is no known key",
        ]
    );
    assert_eq!(config, parse(LEAST));
}

#[test]
fn labels_are_never_complained_about_for_their_type() {
    let config = with("tm-id: 12\ntenancy-id: true\noci-realm: ");

    let labels: Vec<_> = config
        .labels
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    assert_eq!(labels, [("tenancy-id", "true"), ("tm-id", "12")]);
}

#[test]
fn server_addresses_come_in_every_form_of_a_host() {
    let read = |list: &str| {
        let text = LEAST.replace("https://192.0.2.10:12250", list);
        let config = parse(&text);
        config
            .server_addrs
            .iter()
            .map(ServerAddr::to_string)
            .collect::<Vec<_>>()
            .join(" ")
    };

    assert_eq!(read("https://192.0.2.10"), "https://192.0.2.10:12250");
    assert_eq!(
        read("HTTPS://master.example:443/"),
        "https://master.example:443"
    );
    assert_eq!(
        read("['https://[2001:db8::1]', 'https://[2001:db8::1]:1']"),
        "https://[2001:db8::1]:12250 https://[2001:db8::1]:1"
    );
}

#[test]
fn claimed_addresses_are_those_that_lead_here_each_once() {
    let claims = |lines: &str| {
        let claimed = with(lines).claimed_addresses();
        claimed
            .iter()
            .map(IpAddr::to_string)
            .collect::<Vec<_>>()
            .join(" ")
    };

    assert_eq!(
        claims("bind-addr: 10.0.10.11\npublic-ip-address: 198.51.100.7"),
        "10.0.10.10 10.0.10.11 198.51.100.7"
    );
    assert_eq!(claims("bind-addr: ::ffff:10.0.10.10"), "10.0.10.10");
    assert_eq!(claims("bind-addr: 0.0.0.0"), "10.0.10.10");
    assert_eq!(claims("bind-addr: 127.0.0.1"), "10.0.10.10");
}

#[test]
fn bind_addr_must_be_able_to_reach_a_master() {
    assert_eq!(with("bind-addr: '::'").bind_addr, None);
    assert_eq!(
        refusal_of("bind-addr: fd00::1"),
        "bind-addr: \"fd00::1\": must be of the IP version of server-addr"
    );
    assert_eq!(
        refusal_of("bind-addr: 224.0.0.1"),
        "bind-addr: \"224.0.0.1\": is a multicast address, \
         must be an address under which others reach this node"
    );
    assert_eq!(
        refusal_of("bind-addr: ens3"),
        "bind-addr: \"ens3\": must be an IPv4 or IPv6 address"
    );
    let named = LEAST.replace("192.0.2.10", "master.example");
    assert!(
        parse(&format!("{named}bind-addr: fd00::1\n"))
            .bind_addr
            .is_some()
    );
}

#[test]
fn the_kubelet_is_at_the_private_address_unless_said_otherwise() {
    let kubelet = |lines: &str| with(lines).kubelet_addr.to_string();

    assert_eq!(kubelet(""), "10.0.10.10:10250");
    assert_eq!(kubelet("kubelet-addr: 127.0.0.1"), "127.0.0.1:10250");
    assert_eq!(kubelet("kubelet-addr: '[::1]:10251'"), "[::1]:10251");
    let alone = LEAST.replace("private-ip-address: 10.0.10.10", "kubelet-addr: 10.0.0.1:1");
    assert_eq!(parse(&alone).kubelet_addr.to_string(), "10.0.0.1:1");
    assert_eq!(
        refusal_of("kubelet-addr: localhost:10250"),
        "kubelet-addr: \"localhost:10250\": \
         must be an IP address and port such as 10.0.10.10:10250 or [fd00::1]:10250"
    );
    assert_eq!(
        refusal_of("kubelet-addr: 10.0.0.1:0"),
        "kubelet-addr: \"10.0.0.1:0\": must have a port from 1 to 65535"
    );
}

#[test]
fn a_client_certificate_alone_holds_its_key() {
    let both = |cert: &str, key: &str| ClientIdentity::Files {
        cert: cert.into(),
        key: key.into(),
    };

    assert_eq!(with("client-cert: /c").client_identity, both("/c", "/c"));
    assert_eq!(
        with("client-cert: /c\nclient-key: /k").client_identity,
        both("/c", "/k")
    );
    assert_eq!(
        refusal_of("client-key: /k"),
        "client-key: \"/k\": must come with client-cert"
    );
    assert_eq!(
        refusal(&format!("{LEAST}client-cert: 5\nclient-key: /k\n")),
        "x.yaml:4: client-cert: 5: must be an absolute path"
    );
}

#[test]
fn allowed_ranges_have_all_ports_unless_said_otherwise() {
    let ranges = with(
        "allow: [{cidr: 10.0.0.0/8}, {cidr: 'fd00::1', ports: 5}, {cidr: '::/0', ports: 1-2}]",
    );

    let shown: Vec<String> = ranges
        .allow
        .iter()
        .map(|range| format!("{} {:?}", range.net, range.ports))
        .collect();
    assert_eq!(
        shown,
        ["10.0.0.0/8 1..=65535", "fd00::1/128 5..=5", "::/0 1..=2"]
    );
    for (line, report) in [
        (
            "allow: {cidr: 10.0.0.0/8}",
            "allow: a mapping: must be a list of {cidr, ports}",
        ),
        (
            "allow: [10.0.0.0/8]",
            "allow[0]: \"10.0.0.0/8\": must be {cidr, ports}",
        ),
        ("allow: [{}]", "allow[0].cidr: must be set"),
        (
            "allow: [{cidr: x, ports: 1-2}]",
            "allow[0].cidr: \"x\": must be a network such as 10.244.0.0/16, or an IP address",
        ),
        (
            "allow: [{cidr: '::/0', ports: [1]}]",
            "allow[0].ports: a list: must be a port or a range such as \"1-65535\"",
        ),
        (
            "allow: [{cidr: '::/0', ports: 2-1}]",
            "allow[0].ports: \"2-1\": must be a range whose first port is not above its last",
        ),
    ] {
        assert_eq!(refusal_of(line), report);
    }
    let many = vec!["{cidr: '::/0'}"; 65].join(",");
    assert_eq!(
        refusal_of(&format!("allow: [{many}]")),
        "allow: must list at most 64 ranges, has 65"
    );
}

#[test]
fn the_guard_needs_ebpf_and_a_list() {
    assert_eq!(
        with("guard: enforce\nguard-allow: [10.0.0.1]").guard,
        Guard::Enforce
    );
    assert_eq!(with("guard: audit").guard, Guard::Audit);
    assert_eq!(with("guard: off\nmode: userspace").guard, Guard::Off);
    assert_eq!(
        refusal_of("guard: enforce"),
        "guard: \"enforce\": must come with guard-allow, try audit first to learn who connects"
    );
    assert_eq!(
        refusal_of("guard: audit\nmode: userspace"),
        "guard: \"audit\": must be off in mode userspace, which has no eBPF"
    );
    assert_eq!(
        refusal_of("guard: enforce\nguard-allow: [x]"),
        "x.yaml:5: guard-allow[0]: \"x\": must be a network such as 10.244.0.0/16, or an IP address"
    );
}

/// The keys in the first column of the tables under one heading of the documentation.
fn documented(heading: &str) -> Vec<String> {
    let text = fs::read_to_string(repository().join("docs/configuration.md")).unwrap();
    let (_, rest) = text.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = rest.split("\n## ").next().unwrap();
    let keys = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    keys.map(str::to_owned).collect()
}

#[test]
fn the_documentation_has_every_key_and_no_other() {
    let nested = raw::ALLOW_KEYS.iter().map(|key| format!("allow[].{key}"));
    let mut known: Vec<String> = raw::KEYS.iter().map(|key| (*key).to_owned()).collect();
    known.extend(nested);
    known.sort();

    let mut documented = documented("The agent's file");

    documented.sort();
    assert_eq!(documented, known);
}

proptest! {
    #[test]
    fn no_text_makes_reading_panic(text: String) {
        let _ = Config::parse(&text, "x.yaml");
    }

    #[test]
    fn no_value_makes_reading_panic(
        key in proptest::sample::select(raw::KEYS.to_vec()),
        value in "\\PC{0,30}|[0-9.:a-f/\\[\\]{},-]{0,30}|[0-9]{1,20}(ms|s|m|h|d)",
    ) {
        let quoted = value.replace('\'', "''");
        for text in [format!("{key}: {value}"), format!("{key}: '{quoted}'"), format!("{key}: ['{quoted}']")] {
            let _ = Config::parse(&text, "x.yaml");
        }
    }
}

#[test]
fn the_effective_settings_have_every_key_but_those_they_replace() {
    let files = with("client-cert: /c").settings();
    let directory = with("").settings();

    for key in raw::KEYS {
        let shown = files
            .iter()
            .chain(directory.iter())
            .any(|(shown, _)| shown == *key);
        assert!(shown, "{key} is not shown");
    }
}
