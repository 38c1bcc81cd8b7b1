//! Tests of what is said about bad files and values: the exact words, and where.

use super::*;

#[test]
fn all_mistakes_of_a_file_are_reported_together() {
    let text = "\
node-id: 7
node-name: no de
server-addr: http://192.0.2.10
private-ip-address: 127.0.0.1
cert-path: pki
client-key: /k
allow:
  - cidr: 10.244.2.1/24
    ports: 0
  - port: 80
expect-masters: none
drain-deadline: \"0s\"
dial-timeout: 5
guard: enforce
admin: 0.0.0.0:12252
";

    let name = NodeName::parse("no de").unwrap_err();
    let expected = format!(
        "\
x.yaml:2: node-name: \"no de\": {name}
x.yaml:3: server-addr: \"http://192.0.2.10\": must be https://HOST:PORT
x.yaml:4: private-ip-address: \"127.0.0.1\": is a loopback address, must be an address under which others reach this node
x.yaml:5: cert-path: \"pki\": must be an absolute path
x.yaml:6: client-key: \"/k\": must come with client-cert
x.yaml:8: allow[0].cidr: \"10.244.2.1/24\": has bits set behind its prefix, must be 10.244.2.0/24 or a longer prefix
x.yaml:9: allow[0].ports: 0: must be a port or a range such as \"8000-8999\", from 1 to 65535
x.yaml:10: allow[1].port: is no known key, did you mean ports?
x.yaml:10: allow[1].cidr: must be set
x.yaml:11: expect-masters: \"none\": must be a whole number
x.yaml:12: drain-deadline: \"0s\": must be at least 1s
x.yaml:13: dial-timeout: 5: must be a duration such as 5s
x.yaml:14: guard: \"enforce\": must come with guard-allow, try audit first to learn who connects
x.yaml:15: admin: \"0.0.0.0:12252\": must be a loopback address, or unix:/PATH"
    );
    assert_eq!(refusal(text), expected);
}

#[test]
fn what_must_be_set_is_said() {
    assert_eq!(
        refusal("tm-id: oke\n"),
        "x.yaml: node-name: must be set\n\
         x.yaml: server-addr: must be set\n\
         x.yaml: kubelet-addr: must be set where private-ip-address is not"
    );
    assert_eq!(refusal(""), "x.yaml: is empty, expected keys and values");
    assert_eq!(
        refusal(&LEAST.replace("https://192.0.2.10:12250", "[]")),
        "x.yaml:2: server-addr: must be set"
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
    assert_eq!(
        refusal("- node-name\n"),
        "x.yaml: must be a mapping of keys to values, but is a list"
    );
    assert_eq!(
        refusal("node-name: [\n"),
        "x.yaml:2:1: did not find expected node content, while parsing a flow node"
    );
}

#[test]
fn bad_server_addresses_say_what_is_wrong() {
    let report = |addr: &str| {
        let report = refusal(&LEAST.replace("https://192.0.2.10:12250", addr));
        report
            .strip_prefix("x.yaml:2: server-addr")
            .unwrap()
            .to_owned()
    };

    for (addr, expected) in [
        (
            "192.0.2.10:12250",
            ": \"192.0.2.10:12250\": must be https://HOST:PORT",
        ),
        ("http://h", ": \"http://h\": must be https://HOST:PORT"),
        (
            "https://h/x",
            ": \"https://h/x\": must be https://HOST:PORT without a path",
        ),
        (
            "https://h//",
            ": \"https://h//\": must be https://HOST:PORT without a path",
        ),
        (
            "https://h?x",
            ": \"https://h?x\": must be https://HOST:PORT without a query",
        ),
        (
            "'https://h#x'",
            ": \"https://h#x\": must be https://HOST:PORT without a fragment",
        ),
        (
            "https://u:p@h",
            ": \"https://u:p@h\": must be https://HOST:PORT without a user name",
        ),
        (
            "https://h:0",
            ": \"https://h:0\": must have a port from 1 to 65535",
        ),
        (
            "'https://h:'",
            ": \"https://h:\": must have a port from 1 to 65535",
        ),
        (
            "https://",
            ": \"https://\": must be a DNS name or an IP address",
        ),
        (
            "https://10.0.0.256",
            ": \"https://10.0.0.256\": must be a DNS name or an IP address",
        ),
        (
            "https://0.0.0.0:1",
            ": \"https://0.0.0.0:1\": must have the address of a master",
        ),
        (
            "https://fd00::1",
            ": \"https://fd00::1\": must have its IPv6 address in brackets, such as [fd00::1]:10250",
        ),
        ("5", ": 5: must be https://HOST:PORT, or a list of these"),
        (
            "{a: b}",
            ": a mapping: must be https://HOST:PORT, or a list of these",
        ),
        ("[https://h, 5]", "[1]: 5: must be a string"),
        ("[https://h, '']", "[1]: must be set"),
        (
            "[https://h, 'https://H:12250/']",
            "[1]: \"https://H:12250/\": is listed twice",
        ),
    ] {
        assert_eq!(report(addr), expected);
    }
    let many: Vec<String> = (0..17).map(|n| format!("https://h{n}")).collect();
    assert_eq!(
        report(&format!("[{}]", many.join(","))),
        ": must list at most 16 masters, has 17"
    );
}

#[test]
fn each_bad_value_says_what_is_expected() {
    for (line, report) in [
        (
            "node-id: [a]",
            "node-id: a list: must be a string, write it in quotes",
        ),
        (
            "cluster-id: 5",
            "cluster-id: 5: must be a string, write it in quotes",
        ),
        (
            "cluster-id: \"a\\nb\"",
            "cluster-id: \"a\\nb\": must be text without control characters",
        ),
        (
            "server-name: a b",
            "server-name: \"a b\": must be a DNS name or an IP address",
        ),
        (
            "expect-masters: 0",
            "expect-masters: 0: must be from 1 to 16",
        ),
        (
            "expect-masters: 1.5",
            "expect-masters: 1.5: must be a whole number",
        ),
        (
            "net-inf: a-very-long-name",
            "net-inf: \"a-very-long-name\": must be the name of a network interface, \
             at most 15 bytes without '/', ':' or spaces",
        ),
        (
            "public-ip-address: 1",
            "public-ip-address: 1: must be an IPv4 or IPv6 address",
        ),
        (
            "ca-file: ./ca.crt",
            "ca-file: \"./ca.crt\": must be an absolute path",
        ),
        (
            "idle-timeout: never",
            "idle-timeout: \"never\": must be a duration such as 250ms, 30s or 5m",
        ),
        (
            "idle-timeout: false",
            "idle-timeout: false: must be a duration such as 10m, or off",
        ),
        (
            "idle-timeout: 999ms",
            "idle-timeout: \"999ms\": must be at least 1s",
        ),
        (
            "idle-timeout: 31d",
            "idle-timeout: \"31d\": must be at most 30days",
        ),
        (
            "drain-deadline: 2h",
            "drain-deadline: \"2h\": must be at most 1h",
        ),
        (
            "dial-timeout: 99ms",
            "dial-timeout: \"99ms\": must be at least 100ms",
        ),
        (
            "log-format: xml",
            "log-format: \"xml\": must be text or json",
        ),
        (
            "mode: kernel",
            "mode: \"kernel\": must be auto, ebpf or userspace",
        ),
        ("mode: true", "mode: true: must be auto, ebpf or userspace"),
        ("fast-path: on", "fast-path: \"on\": must be auto or off"),
        ("splice: yes", "splice: \"yes\": must be auto or off"),
        (
            "flow-buffer: 1KiB",
            "flow-buffer: \"1KiB\": must be from 64KiB to 16MiB",
        ),
        (
            "steer-from: 10.0.0.1",
            "steer-from: \"10.0.0.1\": must be a list of networks",
        ),
        (
            "steer-from: [10.0.0.1/8]",
            "steer-from[0]: \"10.0.0.1/8\": has bits set behind its prefix, \
             must be 10.0.0.0/8 or a longer prefix",
        ),
        ("perf: always", "perf: \"always\": must be on or off"),
        (
            "steer-plain: drop",
            "steer-plain: \"drop\": must be relay or refuse",
        ),
        (
            "guard: yes",
            "guard: \"yes\": must be off, audit or enforce",
        ),
        ("guard-inf: ['']", "guard-inf[0]: must be set"),
        (
            "attach: xdp",
            "attach: \"xdp\": must be auto, tcx or netlink",
        ),
        (
            "steer-priority: 0",
            "steer-priority: 0: must be from 1 to 65535",
        ),
        (
            "steer-priority: 65536",
            "steer-priority: 65536: must be from 1 to 65535",
        ),
        (
            "admin: /run/a.sock",
            "admin: \"/run/a.sock\": must be unix:/PATH, \
             or a loopback address and port such as 127.0.0.1:12252",
        ),
        (
            "node-name: m",
            "node-name: is written twice, first in line 1",
        ),
    ] {
        assert_eq!(refusal_of(line), report);
    }
    let many = vec!["10.0.0.1"; 17].join(",");
    assert_eq!(
        refusal_of(&format!("steer-from: [{many}]")),
        "steer-from: must list at most 16 networks, has 17"
    );
}
