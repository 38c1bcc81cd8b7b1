//! Tests of the checks of single values: what each accepts, and the words for what it does not.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// What a check says to a text that it refuses.
fn refusal<T: fmt::Debug>(result: Result<T, ValueError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn durations_are_read_within_their_bounds() {
    let bounds = Duration::from_secs(1)..=Duration::from_secs(3600);
    let read = |text| duration(text, &bounds);

    assert_eq!(read("8s"), Ok(Duration::from_secs(8)));
    assert_eq!(read("1500ms"), Ok(Duration::from_millis(1500)));
    assert_eq!(read("1h"), Ok(Duration::from_secs(3600)));
    assert_eq!(refusal(read("0s")), "must be at least 1s");
    assert_eq!(refusal(read("999ms")), "must be at least 1s");
    assert_eq!(refusal(read("61m")), "must be at most 1h");
    for text in [
        "",
        "8",
        "s",
        "-1s",
        "8 parsecs",
        "18446744073709551616s",
        "off",
    ] {
        assert_eq!(
            refusal(read(text)),
            "must be a duration such as 250ms, 30s or 5m",
            "{text:?}"
        );
    }
    assert_eq!(duration_or_off("off", &bounds), Ok(None));
    assert_eq!(show_duration_or_off(None), "off");
    assert_eq!(
        show_duration_or_off(Some(Duration::from_secs(90))),
        "1m 30s"
    );
}

#[test]
fn counts_are_read_within_their_bounds() {
    assert_eq!(count(1, 200).unwrap().get(), 1);
    assert_eq!(count(200, 200).unwrap().get(), 200);
    for number in [0, 201, u64::MAX] {
        assert_eq!(refusal(count(number, 200)), "must be from 1 to 200");
    }
}

#[test]
fn choices_are_words_and_nothing_else() {
    assert_eq!(choice("json"), Ok(LogFormat::Json));
    assert_eq!(LogFormat::Json.word(), "json");
    assert_eq!(refusal(choice::<LogFormat>("JSON")), "must be text or json");
    assert_eq!(refusal(choice::<AutoOff>("on")), "must be auto or off");
}

#[test]
fn paths_are_absolute_and_sockets_short() {
    assert_eq!(path("/etc/x").unwrap().to_str(), Some("/etc/x"));
    assert_eq!(refusal(path("etc/x")), "must be an absolute path");
    assert_eq!(refusal(path("/etc/\0")), "must be a path without NUL bytes");
    let longest = format!("/{}", "x".repeat(106));
    assert!(socket_path(&longest).is_ok());
    assert_eq!(
        refusal(socket_path(&format!("{longest}y"))),
        "must be a path of at most 107 bytes, has 108"
    );
}

#[test]
fn modes_are_three_or_four_octal_digits() {
    assert_eq!(unix_mode("0660"), Ok(0o660));
    assert_eq!(unix_mode("777"), Ok(0o777));
    for text in ["", "66", "0o660", "0680", "1777", "00660", "rw-rw----"] {
        assert_eq!(
            refusal(unix_mode(text)),
            "must be octal digits such as \"0660\", at most \"0777\"",
            "{text:?}"
        );
    }
}

#[test]
fn admin_addresses_are_sockets_or_loopback() {
    assert_eq!(
        admin_addr("unix:/run/x.sock"),
        Ok(AdminAddr::Unix("/run/x.sock".into()))
    );
    assert_eq!(
        admin_addr("[::1]:12252").unwrap().to_string(),
        "[::1]:12252"
    );
    assert_eq!(
        admin_addr("127.0.0.2:1").unwrap().to_string(),
        "127.0.0.2:1"
    );
    assert_eq!(
        refusal(admin_addr("10.0.0.1:12252")),
        "must be a loopback address, or unix:/PATH"
    );
    assert_eq!(
        refusal(admin_addr("unix:x.sock")),
        "must be an absolute path"
    );
    assert_eq!(
        refusal(admin_addr("127.0.0.1:0")),
        "must have a port from 1 to 65535"
    );
    for text in ["/run/x.sock", "localhost:12252", "127.0.0.1"] {
        assert_eq!(
            refusal(admin_addr(text)),
            "must be unix:/PATH, or a loopback address and port such as 127.0.0.1:12252"
        );
    }
}

#[test]
fn labels_are_short_and_printable() {
    assert_eq!(
        label("ocid1.tenancy.oc1..é"),
        Ok("ocid1.tenancy.oc1..é".to_owned())
    );
    assert_eq!(
        refusal(label("a\nb")),
        "must be text without control characters"
    );
    assert_eq!(
        refusal(label(&"x".repeat(256))),
        "must have at most 255 bytes, has 256"
    );
}

#[test]
fn one_host_has_one_form_of_address() {
    assert_eq!(ip("::ffff:10.0.0.1").unwrap().to_string(), "10.0.0.1");
    assert_eq!(
        cidr("::ffff:10.0.0.0/104").unwrap().to_string(),
        "10.0.0.0/8"
    );
    assert_eq!(cidr("::/0").unwrap().to_string(), "::/0");
    assert_eq!(
        socket_addr("[::ffff:10.0.0.1]:1", None)
            .unwrap()
            .to_string(),
        "10.0.0.1:1"
    );
}

#[test]
fn node_addresses_are_those_that_others_can_dial() {
    assert!(node_ip("10.0.10.10").is_ok());
    assert!(node_ip("fd00::1").is_ok());
    for (text, kind) in [
        ("0.0.0.0", "the unspecified address"),
        ("::", "the unspecified address"),
        ("127.0.0.1", "a loopback address"),
        ("::1", "a loopback address"),
        ("::ffff:127.0.0.1", "a loopback address"),
        ("224.0.0.1", "a multicast address"),
        ("ff02::1", "a multicast address"),
        ("255.255.255.255", "the broadcast address"),
    ] {
        assert_eq!(
            refusal(node_ip(text)),
            format!("is {kind}, must be an address under which others reach this node")
        );
    }
    assert_eq!(
        refusal(node_ip("10.0.10")),
        "must be an IPv4 or IPv6 address"
    );
}

#[test]
fn socket_addresses_have_their_port_or_the_default() {
    assert_eq!(
        socket_addr("10.0.0.1", Some(7)).unwrap().to_string(),
        "10.0.0.1:7"
    );
    assert_eq!(
        socket_addr("[fd00::1]", Some(7)).unwrap().to_string(),
        "[fd00::1]:7"
    );
    assert_eq!(
        socket_addr("[fd00::1]:65535", None).unwrap().to_string(),
        "[fd00::1]:65535"
    );
    let form = "must be an IP address and port such as 10.0.10.10:10250 or [fd00::1]:10250";
    for text in ["", "10.0.0.1", "host:1", "10.0.0.1.2:1", "a:b:1"] {
        assert_eq!(refusal(socket_addr(text, None)), form, "{text:?}");
    }
    for text in [
        "10.0.0.1:",
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "10.0.0.1:+1",
        "[fd00::1]:x",
    ] {
        assert_eq!(
            refusal(socket_addr(text, None)),
            "must have a port from 1 to 65535",
            "{text:?}"
        );
    }
    assert_eq!(
        refusal(socket_addr("fd00::1", Some(7))),
        "must have its IPv6 address in brackets, such as [fd00::1]:10250"
    );
    for text in ["[10.0.0.1]:1", "[fd00::1", "[fd00::1]1", "[]:1"] {
        assert_eq!(
            refusal(socket_addr(text, None)),
            "must have brackets around an IPv6 address only, such as [fd00::1]:10250",
            "{text:?}"
        );
    }
}

#[test]
fn only_listeners_may_have_port_zero() {
    assert_eq!(listen_addr("[::]:0").unwrap().to_string(), "[::]:0");
    assert_eq!(
        listen_addr("0.0.0.0:12250").unwrap().to_string(),
        "0.0.0.0:12250"
    );
    assert!(refusal(listen_addr("localhost:0")).starts_with("must be an IP address and port"));
    assert!(refusal(listen_addr("0.0.0.0")).starts_with("must be an IP address and port"));
    assert_eq!(
        refusal(listen_addr("0.0.0.0:00")),
        "must have a port from 1 to 65535"
    );
}

#[test]
fn server_names_are_names_or_addresses() {
    assert_eq!(
        server_name("master.example").unwrap().to_str(),
        "master.example"
    );
    assert_eq!(server_name("192.0.2.10").unwrap().to_str(), "192.0.2.10");
    for text in ["", "a b", "256.0.2.10", "[fd00::1]", "-a", "a..b"] {
        assert_eq!(
            refusal(server_name(text)),
            "must be a DNS name or an IP address",
            "{text:?}"
        );
    }
}

#[test]
fn networks_must_not_have_bits_behind_their_prefix() {
    assert_eq!(cidr("10.244.0.0/16").unwrap().to_string(), "10.244.0.0/16");
    assert_eq!(
        refusal(cidr("10.244.2.1/16")),
        "has bits set behind its prefix, must be 10.244.0.0/16 or a longer prefix"
    );
    assert_eq!(
        refusal(cidr("10.244.0.0")),
        "must be a network such as 10.244.0.0/16 or fd00::/8"
    );
    assert_eq!(
        cidr_or_ip("192.0.2.10").unwrap().to_string(),
        "192.0.2.10/32"
    );
    assert_eq!(cidr_or_ip("fd00::1").unwrap().to_string(), "fd00::1/128");
    assert_eq!(
        refusal(cidr_or_ip("everyone")),
        "must be a network such as 10.244.0.0/16, or an IP address"
    );
}

#[test]
fn port_ranges_are_ordered() {
    assert_eq!(port_range("80"), Ok(80..=80));
    assert_eq!(port_range("1-65535"), Ok(1..=65535));
    assert_eq!(port_range("8000 - 8999"), Ok(8000..=8999));
    assert_eq!(
        refusal(port_range("2-1")),
        "must be a range whose first port is not above its last"
    );
    for text in ["", "-", "0", "0-5", "1-65536", "1-2-3", "http"] {
        assert_eq!(
            refusal(port_range(text)),
            "must be a port or a range such as \"8000-8999\", from 1 to 65535",
            "{text:?}"
        );
    }
}

#[test]
fn settings_quote_what_would_garble_a_log() {
    let mut settings = EffectiveSettings::default();
    settings
        .add("a", "x\ny")
        .add_list("b", [1, 2])
        .add_list("c", Vec::<u8>::new());
    assert_eq!(settings.to_string(), "a=\"x\\ny\" b=[1,2] c=[]");
    assert_eq!(settings.iter().next(), Some(("a", "x\ny")));
}

proptest! {
    #[test]
    fn no_text_makes_a_check_panic(text in "\\PC{0,40}|[0-9a-f:./\\[\\]-]{0,40}") {
        let bounds = Duration::ZERO..=Duration::MAX;
        let _ = (duration_or_off(&text, &bounds), choice::<AutoOff>(&text), unix_mode(&text));
        let _ = (socket_path(&text), admin_addr(&text), label(&text), node_ip(&text));
        let _ = (socket_addr(&text, Some(1)), listen_addr(&text), server_name(&text));
        let _ = (cidr_or_ip(&text), port_range(&text));
    }

    #[test]
    fn shown_addresses_are_read_back(addr: SocketAddr) {
        prop_assume!(addr.port() != 0 && !addr.to_string().contains('%'));
        let read = socket_addr(&addr.to_string(), None).unwrap();
        prop_assert_eq!(read.port(), addr.port());
        prop_assert_eq!(read.ip(), addr.ip().to_canonical());
    }
}
