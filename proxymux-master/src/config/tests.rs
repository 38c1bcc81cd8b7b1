//! Tests of the master's configuration: the samples, the defaults, and the words for each
//! mistake.

use std::fs;

use proptest::prelude::*;

use super::*;

/// What every file needs; tests add to it.
const LEAST: &str = "\
cert: /pki/master.crt
key: /pki/master.key
client-ca: /pki/ca.crt
";

/// A front door on TCP that has all it needs.
const TCP_DOOR: &str =
    "{listen: '127.0.0.1:8131', cert: /c, key: /k, client-ca: /a, client-names: [kube-apiserver]}";

fn with(lines: &str) -> Config {
    let (config, warnings) = Config::parse(&format!("{LEAST}{lines}\n"), "x.yaml").unwrap();
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

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

#[test]
fn every_sample_is_read_without_a_warning() {
    let mut found = Vec::new();
    let mut all = 0;
    for entry in fs::read_dir(repository().join("deploy/samples")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        all += 1;
        if name.starts_with("master-") {
            found.push(name);
        }
    }
    found.sort();

    assert_eq!(found, ["master-full.yaml", "master-minimal.yaml"]);
    assert_eq!(all, 5, "a sample was added: is there a test that reads it?");
    for name in found {
        let path = repository().join("deploy/samples").join(name);
        let (_, warnings) = Config::load(&path).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
    }
}

#[test]
fn defaults_are_as_documented() {
    let path = repository().join("deploy/samples/master-minimal.yaml");

    let (config, _) = Config::load(&path).unwrap();

    assert_eq!(
        config.settings().to_string(),
        "listen=0.0.0.0:12250 cert=/etc/proxymux/pki/master.crt \
         key=/etc/proxymux/pki/master.key client-ca=/etc/kubernetes/pki/ca.crt cluster-id=any \
         front-doors=\"[unix:/run/proxymux/egress.sock mode 0660]\" node-addresses=declared \
         routes=[] connect-budget=8s idle-timeout=off drain-deadline=30s \
         takeover=false takeover-socket=/run/proxymux/takeover.sock \
         max-streams-per-node=1024 max-pending-dials-per-node=128 max-sessions=10000 \
         max-handshakes=64 max-registrations-per-second=250 max-memory-per-session=64MiB \
         max-memory=512MiB max-connect-header=16KiB connect-header-timeout=5s log-format=text \
         kubelet-certificates=unverified fast-path=auto direct=auto \
         flow-pool=4 max-flows-per-node=1024 flow-buffer=256KiB splice=auto \
         advertise=\"where the session came in\" dials-from=[] admin=unix:/run/proxymux/master.sock"
    );
}

#[test]
fn every_setting_of_the_full_sample_is_in_force() {
    let path = repository().join("deploy/samples/master-full.yaml");
    let text = fs::read_to_string(&path).unwrap();

    let (config, _) = Config::load(&path).unwrap();

    for key in raw::KEYS {
        assert!(
            text.contains(&format!("\n{key}:")),
            "{key} is not in the full sample"
        );
    }
    for key in raw::DOOR_KEYS.iter().chain(raw::ROUTE_KEYS) {
        assert!(
            text.contains(&format!(" {key}: ")),
            "{key} is not in the full sample"
        );
    }
    assert_eq!(
        config.settings().to_string(),
        "listen=0.0.0.0:12250 cert=/etc/proxymux/pki/master.crt \
         key=/etc/proxymux/pki/master.key client-ca=/etc/kubernetes/pki/ca.crt \
         cluster-id=ocid1.cluster.oc1.ap-tokyo-1.example \
         front-doors=\"[unix:/run/proxymux/egress.sock mode 0660,\
         127.0.0.1:8131 for kube-apiserver]\" \
         node-addresses=file:/etc/proxymux/node-addresses.yaml \
         routes=[10.96.0.0/12:direct,10.244.0.0/16:node,169.254.0.0/16:refuse] \
         connect-budget=8s idle-timeout=off drain-deadline=30s takeover=true \
         takeover-socket=/run/proxymux/takeover.sock max-streams-per-node=1024 \
         max-pending-dials-per-node=128 max-sessions=10000 max-handshakes=64 \
         max-registrations-per-second=250 max-memory-per-session=64MiB max-memory=512MiB \
         max-connect-header=16KiB connect-header-timeout=5s log-format=json kubelet-certificates=verified \
         fast-path=auto direct=auto flow-pool=8 max-flows-per-node=512 flow-buffer=1MiB \
         splice=auto advertise=master-a.example:12250 dials-from=[192.0.2.10,2001:db8::10] \
         admin=unix:/run/proxymux/master.sock"
    );
}

#[test]
fn all_mistakes_of_a_file_are_reported_together() {
    let text = "\
listen: 12250
cert: master.crt
front-doors:
  - unix: egress.sock
    mode: 660
  - listen: 127.0.0.1:8131
    cert: /c
    client-ca: /a
    client-names: []
  - unix: /run/a.sock
    tls: yes
node-addresses: kube
routes: [{cidr: 10.96.0.0/12}, {cidr: 10.0.0.1/8, via: nodes}]
connect-budget: 2m
maximum: 5
max-streams-per-node: 0
";

    assert_eq!(
        refusal(text),
        "\
x.yaml:1: listen: 12250: must be an IP address and port such as 0.0.0.0:12250
x.yaml:2: cert: \"master.crt\": must be an absolute path
x.yaml:4: front-doors[0].unix: \"egress.sock\": must be an absolute path
x.yaml:5: front-doors[0].mode: 660: must be octal digits in quotes, such as \"0660\"
x.yaml:6: front-doors[1].key: must be set
x.yaml:9: front-doors[1].client-names: must name at least one client: whoever comes in reaches every kubelet
x.yaml:11: front-doors[2].tls: is no known key
x.yaml:12: node-addresses: \"kube\": must be declared, kubernetes, {file: PATH} or {kubernetes: {kubeconfig: PATH}}
x.yaml:13: routes[0].via: must be set
x.yaml:13: routes[1].cidr: \"10.0.0.1/8\": has bits set behind its prefix, must be 10.0.0.0/8 or a longer prefix
x.yaml:13: routes[1].via: \"nodes\": must be direct, node or refuse
x.yaml:14: connect-budget: \"2m\": must be at most 1m
x.yaml:15: maximum: is no known key
x.yaml:16: max-streams-per-node: 0: must be from 1 to 16384
x.yaml: key: must be set
x.yaml: client-ca: must be set"
    );
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_known_one() {
    assert_eq!(
        refusal_of("listn: x"),
        "listn: is no known key, did you mean listen?"
    );
    assert_eq!(
        refusal_of("front_doors: x"),
        "front_doors: is no known key, did you mean front-doors?"
    );
    assert_eq!(refusal_of("<<: {listen: x}"), "<<: is no known key");
    assert_eq!(
        refusal_of("routes: [{cdir: 10.0.0.0/8, via: node}]"),
        "routes[0].cdir: is no known key, did you mean cidr?\n\
         x.yaml:4: routes[0].cidr: must be set"
    );
}

#[test]
fn files_that_are_none_say_why() {
    let dir = tempfile::tempdir().unwrap();

    let missing = Config::load(&dir.path().join("config.yaml")).unwrap_err();
    let directory = Config::load(dir.path()).unwrap_err();

    assert!(
        missing.to_string().ends_with("config.yaml: cannot be read"),
        "{missing}"
    );
    assert!(
        directory.to_string().ends_with(": cannot be read"),
        "{directory}"
    );
    assert_eq!(refusal(""), "x.yaml: is empty, expected keys and values");
    assert_eq!(
        refusal("listen"),
        "x.yaml: must be a mapping of keys to values, but is a string"
    );
    assert_eq!(
        refusal("cert: 'x"),
        "x.yaml:1:9: found unexpected end of stream, while scanning a quoted scalar at line 1 column 7"
    );
}

#[test]
fn a_door_is_unix_or_tcp_and_has_what_belongs_to_it() {
    let doors = with(&format!(
        "front-doors: [{{unix: /run/a.sock, mode: 0600}}, {TCP_DOOR}]"
    ));

    assert_eq!(
        doors.front_doors,
        [
            FrontDoor::Unix {
                path: "/run/a.sock".into(),
                mode: 0o600
            },
            FrontDoor::Tcp {
                listen: "127.0.0.1:8131".parse().unwrap(),
                cert: "/c".into(),
                key: "/k".into(),
                client_ca: "/a".into(),
                client_names: vec!["kube-apiserver".to_owned()],
            },
        ]
    );
    for (door, report) in [
        ("{}", "front-doors[0]: must have unix or listen"),
        ("{mode: '0660'}", "front-doors[0]: must have unix or listen"),
        (
            "{unix: /a, listen: '127.0.0.1:1'}",
            "front-doors[0]: must have unix or listen, not both",
        ),
        (
            "{unix: /a, cert: /c}",
            "front-doors[0].cert: \"/c\": belongs to a door with listen, this one has unix",
        ),
        (
            "{unix: /a, client-names: [b]}",
            "front-doors[0].client-names: belongs to a door with listen, this one has unix",
        ),
        (
            "/run/a.sock",
            "front-doors[0]: \"/run/a.sock\": \
             must be {unix, mode} or {listen, cert, key, client-ca, client-names}",
        ),
        ("~", "front-doors[0]: must be set"),
        (
            "{unix: /a, mode: '0888'}",
            "front-doors[0].mode: \"0888\": must be octal digits such as \"0660\", at most \"0777\"",
        ),
        (
            &TCP_DOOR.replace("cert: /c", "mode: '0660', cert: /c"),
            "front-doors[0].mode: \"0660\": belongs to a door with unix, this one has listen",
        ),
        (
            &TCP_DOOR.replace("[kube-apiserver]", "['*.example']"),
            "front-doors[0].client-names[0]: \"*.example\": \
             must be a whole name, patterns are not understood",
        ),
        (
            &TCP_DOOR.replace(", client-names: [kube-apiserver]", ""),
            "front-doors[0].client-names: must name at least one client: \
             whoever comes in reaches every kubelet",
        ),
        (
            &TCP_DOOR.replace("127.0.0.1:8131", "localhost:8131"),
            "front-doors[0].listen: \"localhost:8131\": \
             must be an IP address and port such as 10.0.10.10:10250 or [fd00::1]:10250",
        ),
    ] {
        assert_eq!(
            refusal_of(&format!("front-doors: [{door}]")),
            report,
            "{door}"
        );
    }
    assert_eq!(
        refusal_of("front-doors: []"),
        "front-doors: must have at least one door; without the key there is the default one"
    );
    let long = format!("/{}", "x".repeat(107));
    assert_eq!(
        refusal_of(&format!("front-doors: [{{unix: {long}}}]")),
        format!(
            "front-doors[0].unix: \"{}...\": must be a path of at most 107 bytes, has 108",
            &long[..80]
        )
    );
}

#[test]
fn a_door_open_to_everybody_is_warned_about() {
    let text = format!("{LEAST}front-doors: [{{unix: /a, mode: '0666'}}]");

    let (_, warnings) = Config::parse(&text, "x.yaml").unwrap();

    let warnings: Vec<String> = warnings.iter().map(Warning::to_string).collect();
    assert_eq!(
        warnings,
        [
            "x.yaml:4: front-doors[0].mode: \"0666\": lets every process on this host reach every kubelet"
        ]
    );
}

#[test]
fn no_two_listeners_are_at_the_same_place() {
    for (lines, report) in [
        (
            "front-doors: [{unix: /a}, {unix: /a}]".to_owned(),
            "front-doors[1].unix: \"/a\": is already taken by front-doors[0]",
        ),
        (
            "front-doors: [{unix: /run/proxymux/x}]\nadmin: unix:/run/proxymux/x".to_owned(),
            "front-doors[0].unix: \"/run/proxymux/x\": is already taken by admin",
        ),
        (
            format!("front-doors: [{}]", TCP_DOOR.replace("8131", "12250")),
            "front-doors[0].listen: \"127.0.0.1:12250\": is already taken by listen",
        ),
        (
            "admin: '[::1]:1'\nlisten: '[::]:1'".to_owned(),
            "admin: \"[::1]:1\": is already taken by listen",
        ),
        (
            "admin: 127.0.0.1:1\nlisten: '[::]:1'".to_owned(),
            "admin: \"127.0.0.1:1\": is already taken by listen",
        ),
    ] {
        assert_eq!(refusal_of(&lines), report, "{lines}");
    }
    let doors = format!("[{0}, {0}]", TCP_DOOR.replace("8131", "0"));
    assert_eq!(
        with(&format!("listen: 0.0.0.0:0\nfront-doors: {doors}"))
            .front_doors
            .len(),
        2
    );
    with("admin: '[::1]:1'\nlisten: 0.0.0.0:1");
    with("admin: '[::1]:1'\nlisten: '[fd00::1]:1'");
}

#[test]
fn node_addresses_are_declared_or_from_a_file_or_from_kubernetes() {
    assert_eq!(
        with("node-addresses: declared").node_addresses,
        NodeAddresses::Declared
    );
    assert_eq!(
        with("node-addresses: {file: /n.yaml}").node_addresses,
        NodeAddresses::File("/n.yaml".into())
    );
    for (value, kubeconfig, shown) in [
        (
            "kubernetes",
            Kubeconfig::InClusterOr("/etc/proxymux/kubeconfig".into()),
            "kubernetes",
        ),
        (
            "{kubernetes: {kubeconfig: /k}}",
            Kubeconfig::File("/k".into()),
            "kubernetes:/k",
        ),
    ] {
        let config = with(&format!("node-addresses: {value}"));
        assert_eq!(config.node_addresses.to_string(), shown);
        assert_eq!(config.node_addresses, NodeAddresses::Kubernetes(kubeconfig));
    }
    let expected = "must be declared, kubernetes, {file: PATH} or {kubernetes: {kubeconfig: PATH}}";
    for (value, report) in [
        ("{}", &*format!("node-addresses: {expected}")),
        (
            "{file: n.yaml}",
            "node-addresses.file: \"n.yaml\": must be an absolute path",
        ),
        (
            "{path: /n}",
            &format!("node-addresses.path: is no known key\nx.yaml:4: node-addresses: {expected}"),
        ),
        ("[declared]", &format!("node-addresses: a list: {expected}")),
        (
            "{kubernetes: {kubeconfig: k}}",
            "node-addresses.kubernetes.kubeconfig: \"k\": must be an absolute path",
        ),
        (
            "{kubernetes: {}}",
            "node-addresses.kubernetes.kubeconfig: must be set",
        ),
        (
            "{file: /n, kubernetes: {kubeconfig: /k}}",
            "node-addresses.kubernetes: belongs to no node-addresses with file, expected one of \
             the two",
        ),
        (
            "{kubernetes: yes}",
            "node-addresses.kubernetes: \"yes\": must be {kubeconfig: PATH}",
        ),
    ] {
        assert_eq!(
            refusal_of(&format!("node-addresses: {value}")),
            report,
            "{value}"
        );
    }
}

#[test]
fn routes_say_one_thing_about_a_network() {
    let config = with("routes: [{cidr: 'fd00::/8', via: refuse}, {cidr: 10.0.0.1, via: direct}]");

    let routes: Vec<String> = config.routes.iter().map(Route::to_string).collect();
    assert_eq!(routes, ["fd00::/8:refuse", "10.0.0.1/32:direct"]);
    assert_eq!(
        refusal_of("routes: [{cidr: 10.0.0.1/32, via: node}, {cidr: 10.0.0.1, via: direct}]"),
        "routes[1].cidr: \"10.0.0.1\": is listed twice"
    );
}

#[test]
fn each_bad_value_says_what_is_expected() {
    for (line, report) in [
        (
            "listen: 0.0.0.0:65536",
            "listen: \"0.0.0.0:65536\": must have a port from 1 to 65535",
        ),
        (
            "listen: ':12250'",
            "listen: \":12250\": must be an IP address and port such as 10.0.10.10:10250 or [fd00::1]:10250",
        ),
        (
            "cluster-id: 5",
            "cluster-id: 5: must be a string, write it in quotes",
        ),
        (
            "routes: {}",
            "routes: a mapping: must be a list of {cidr, via}",
        ),
        (
            "connect-budget: 50ms",
            "connect-budget: \"50ms\": must be at least 100ms",
        ),
        (
            "connect-budget: 8",
            "connect-budget: 8: must be a duration such as 8s",
        ),
        (
            "idle-timeout: 0s",
            "idle-timeout: \"0s\": must be at least 1s",
        ),
        (
            "drain-deadline: off",
            "drain-deadline: \"off\": must be a duration such as 250ms, 30s or 5m",
        ),
        (
            "max-streams-per-node: 16385",
            "max-streams-per-node: 16385: must be from 1 to 16384",
        ),
        (
            "max-streams-per-node: '1'",
            "max-streams-per-node: \"1\": must be a whole number",
        ),
        (
            "max-pending-dials-per-node: 201",
            "max-pending-dials-per-node: 201: must be from 1 to 200",
        ),
        (
            "log-format: JSON",
            "log-format: \"JSON\": must be text or json",
        ),
        (
            "kubelet-certificates: checked",
            "kubelet-certificates: \"checked\": must be unverified or verified",
        ),
        ("fast-path: on", "fast-path: \"on\": must be auto or off"),
        ("direct: true", "direct: true: must be auto or off"),
        (
            "advertise: master",
            "advertise: \"master\": must be HOST:PORT such as master.example:12250 or [fd00::1]:12250",
        ),
        (
            "advertise: a:b:1",
            "advertise: \"a:b:1\": must be HOST:PORT such as master.example:12250 or [fd00::1]:12250",
        ),
        (
            "advertise: '-a:1'",
            "advertise: \"-a:1\": must be a DNS name or an IP address",
        ),
        (
            "advertise: 0.0.0.0:1",
            "advertise: \"0.0.0.0:1\": must have an address under which agents reach this master",
        ),
        (
            "dials-from: 10.0.0.1",
            "dials-from: \"10.0.0.1\": must be a list of IP addresses",
        ),
        (
            "dials-from: [127.0.0.1]",
            "dials-from[0]: \"127.0.0.1\": is a loopback address, must be an address under which others reach this node",
        ),
        (
            "admin: 0.0.0.0:12251",
            "admin: \"0.0.0.0:12251\": must be a loopback address, or unix:/PATH",
        ),
        ("key: /k", "key: is written twice, first in line 2"),
    ] {
        assert_eq!(refusal_of(line), report);
    }
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
    let mut known: Vec<String> = raw::KEYS.iter().map(|key| (*key).to_owned()).collect();
    for (of, keys) in [
        ("front-doors[]", raw::DOOR_KEYS),
        ("node-addresses", raw::SOURCE_KEYS),
        ("node-addresses.kubernetes", raw::KUBERNETES_KEYS),
        ("routes[]", raw::ROUTE_KEYS),
    ] {
        known.extend(keys.iter().map(|key| format!("{of}.{key}")));
    }
    known.sort();

    let mut documented = documented("The master's file");

    documented.sort();
    assert_eq!(documented, known);
}

#[test]
fn a_node_may_have_as_many_flows_as_streams_unless_said_otherwise() {
    let flows = |lines| with(lines).max_flows_per_node.get();
    assert_eq!(flows(""), 1024);
    assert_eq!(flows("max-streams-per-node: 100\n"), 100);
    assert_eq!(
        flows("max-streams-per-node: 100\nmax-flows-per-node: 200\n"),
        200
    );
}

#[test]
fn settings_of_flows_have_bounds() {
    assert_eq!(with("flow-pool: 0\n").flow_pool, 0);
    assert_eq!(with("flow-pool: 64\n").flow_pool, 64);
    for (line, problem) in [
        ("flow-pool: 65", "must be from 0 to 64"),
        ("max-flows-per-node: 0", "must be from 1 to 16384"),
        ("flow-buffer: 1KiB", "must be from 64KiB to 16MiB"),
        ("splice: on", "must be auto or off"),
    ] {
        let said = refusal(&format!("cert: /m\nkey: /m\nclient-ca: /a\n{line}\n"));
        assert!(said.contains(problem), "{line}: {said}");
    }
}

#[test]
fn the_effective_settings_have_every_key() {
    let settings = with("").settings();

    let shown: Vec<&str> = settings.iter().map(|(key, _)| key).collect();
    assert_eq!(shown, raw::KEYS);
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
        for text in [
            format!("{key}: {value}"),
            format!("{key}: '{quoted}'"),
            format!("{key}: [{{unix: '{quoted}', listen: '{quoted}', cidr: '{quoted}'}}]"),
        ] {
            let _ = Config::parse(&text, "x.yaml");
        }
    }
}
