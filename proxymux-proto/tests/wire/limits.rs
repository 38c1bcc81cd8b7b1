//! Limits of messages and the forms that values are put into, each from both sides.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use proxymux_proto::{
    AddressRefusal, Addresses, AllowedRange, ControlMessage, DecodeError, Drain, EndCode,
    InstanceId, MAX_ADDRESSES, MAX_ALLOWED_RANGES, MAX_FLOW_POOL, MAX_FRAME_LEN, MAX_HELD_MASTERS,
    MAX_ID_LEN, MAX_LABELS, MAX_PADDING, MAX_REASON_LEN, MAX_RETRY_AFTER, MAX_STREAMS, NodeName,
    OpenAnswer, OpenRequest, RefuseCode, Registered, Registration, SessionEnd,
};

use crate::raw::{self, RawMessage, content};

#[test]
fn lists_are_read_up_to_their_limits() {
    let labels = |n| (0..n).fold(raw::register(), |m, i| m.message(10, label(i)));
    let ranges = |n| {
        (0..n).fold(raw::register(), |m, _| {
            m.message(6, range("10.0.0.0/8", 1, 2))
        })
    };
    let refusals = |n| (0..n).fold(RawMessage::default(), |m, i| m.message(2, refusal(i)));
    let held = |n| (0..n).fold(raw::register(), |m, _| m.bytes(11, &[7; 16]));
    let cases: [(&str, usize, Vec<u8>, Vec<u8>); 7] = [
        (
            "message `Register`: `addresses`: 65 entries, expected at most 64",
            MAX_ADDRESSES,
            raw::control(1, raw::register().texts(4, MAX_ADDRESSES, ip_text)),
            raw::control(1, raw::register().texts(4, MAX_ADDRESSES + 1, ip_text)),
        ),
        (
            "message `Register`: `allow`: 65 entries, expected at most 64",
            MAX_ALLOWED_RANGES,
            raw::control(1, ranges(MAX_ALLOWED_RANGES)),
            raw::control(1, ranges(MAX_ALLOWED_RANGES + 1)),
        ),
        (
            "message `Register`: `labels`: 33 entries, expected at most 32",
            MAX_LABELS,
            raw::control(1, labels(MAX_LABELS)),
            raw::control(1, labels(MAX_LABELS + 1)),
        ),
        (
            "message `Register`: `held_masters`: 65 entries, expected at most 64",
            MAX_HELD_MASTERS,
            raw::control(1, held(MAX_HELD_MASTERS)),
            raw::control(1, held(MAX_HELD_MASTERS + 1)),
        ),
        (
            "message `Registered`: `dial_sources`: 65 entries, expected at most 64",
            MAX_ADDRESSES,
            raw::control(2, raw::registered().texts(5, MAX_ADDRESSES, ip_text)),
            raw::control(2, raw::registered().texts(5, MAX_ADDRESSES + 1, ip_text)),
        ),
        (
            "message `Addresses`: `granted`: 65 entries, expected at most 64",
            MAX_ADDRESSES,
            raw::control(3, RawMessage::default().texts(1, MAX_ADDRESSES, ip_text)),
            raw::control(
                3,
                RawMessage::default().texts(1, MAX_ADDRESSES + 1, ip_text),
            ),
        ),
        (
            "message `Addresses`: `refused`: 65 entries, expected at most 64",
            MAX_ADDRESSES,
            raw::control(3, refusals(MAX_ADDRESSES)),
            raw::control(3, refusals(MAX_ADDRESSES + 1)),
        ),
    ];
    for (error, limit, at_limit, beyond) in cases {
        let message = ControlMessage::decode(&at_limit).unwrap();
        assert_eq!(list_lengths(&message), [limit], "{error}");
        assert_eq!(
            ControlMessage::decode(&beyond).unwrap_err().to_string(),
            error
        );
    }
}

#[test]
fn the_largest_messages_within_the_limits_fit_a_frame_twice() {
    for message in [
        ControlMessage::Register(largest_registration()),
        ControlMessage::Registered(Registered {
            version: u32::MAX,
            master: InstanceId::from_bytes([0xff; 16]),
            addresses: largest_addresses(),
            max_streams: MAX_STREAMS,
            flow_pool: MAX_FLOW_POOL,
            dial_sources: longest_ips(),
            advertise: Some(format!("{}:65535", "a".repeat(253))),
        }),
        ControlMessage::Addresses(largest_addresses()),
    ] {
        let frame = message.encode().unwrap();
        assert!(
            2 * frame.len() <= MAX_FRAME_LEN,
            "{}: {}",
            message.name(),
            frame.len()
        );
        assert_eq!(ControlMessage::decode(&content(&frame)).unwrap(), message);
    }
}

#[test]
fn padding_beyond_the_limit_is_refused() {
    let beyond = usize::from(MAX_PADDING) + 1;
    let sent = RawMessage::default().bytes(16, &vec![0; beyond]);
    let asked = RawMessage::default().uint(17, beyond as u64);
    for (message, field) in [(sent, "padding"), (asked, "answer_padding")] {
        let seen = ControlMessage::decode(&message.into_bytes()).unwrap_err();
        assert_eq!(
            seen.to_string(),
            format!("message `ControlMessage`: `{field}`: 16385 bytes, expected at most 16384")
        );
    }
}

#[test]
fn what_a_message_cannot_do_without_is_missed_by_name() {
    let no_name = RawMessage::default().uint(1, 1).bytes(3, &[7; 16]);
    let no_streams = RawMessage::default().uint(1, 1).bytes(2, &[7; 16]);
    for (bytes, error) in [
        (
            raw::control(1, no_name),
            "message `Register` has no `node_name`",
        ),
        (
            raw::control(2, no_streams),
            "message `Registered` has no `max_streams`",
        ),
    ] {
        assert_eq!(
            ControlMessage::decode(&bytes).unwrap_err().to_string(),
            error
        );
    }
    for (message, error) in [
        (
            RawMessage::default().uint(2, 8000),
            "message `OpenRequest` has no `target`",
        ),
        (
            RawMessage::default().text(1, "node:1"),
            "message `OpenRequest` has no `budget_ms`",
        ),
    ] {
        let seen = OpenRequest::decode(&message.into_bytes()).unwrap_err();
        assert_eq!(seen.to_string(), error);
    }
}

#[test]
fn bad_values_are_named_with_what_was_expected() {
    let register = raw::register;
    for (message, error) in [
        (
            register().text(2, "no de"),
            "`node_name`: \"no de\": has ' ' at byte 2, expected letters, digits, '-' or '.', \
             or an IPv6 address",
        ),
        (
            register().bytes(3, &[1; 15]),
            "`instance`: has 15 bytes, expected 16",
        ),
        (
            register().text(4, "10.0.0"),
            "`addresses`: \"10.0.0\": invalid IP address syntax",
        ),
        (
            register().text(5, "10.0.0.1"),
            "`kubelet`: \"10.0.0.1\": invalid socket address syntax",
        ),
        (
            register().text(5, "10.0.0.1:0"),
            "`kubelet`: \"10.0.0.1:0\": expected a port from 1 to 65535",
        ),
        (
            register().message(6, range("10.0.0.0", 1, 2)),
            "`allow.cidr`: \"10.0.0.0\": invalid IP address syntax",
        ),
        (
            register().message(6, range("10.0.0.0/8", 2, 1)),
            "`allow`: ports 2 to 1, expected two from 1 to 65535 in order",
        ),
        (
            register().message(6, range("10.0.0.0/8", 0, 1)),
            "`allow`: ports 0 to 1, expected two from 1 to 65535 in order",
        ),
        (
            register().message(6, range("10.0.0.0/8", 1, 65536)),
            "`allow`: ports 1 to 65536, expected two from 1 to 65535 in order",
        ),
        (
            register().text(7, "tokyo\n"),
            "`cluster_id`: \"tokyo?\": expected at most 255 bytes of printable ASCII",
        ),
    ] {
        let seen = ControlMessage::decode(&raw::control(1, message)).unwrap_err();
        assert_eq!(seen.to_string(), format!("message `Register`: {error}"));
    }
}

#[test]
fn a_master_cannot_announce_streams_beyond_counting_or_a_place_that_is_none() {
    let too_many = RawMessage::default()
        .bytes(2, &[7; 16])
        .uint(4, u64::from(MAX_STREAMS) + 1);
    let no_port = raw::registered().text(6, "master.example");
    for (message, error) in [
        (
            too_many,
            "message `Registered`: `max_streams`: 16385 streams, expected at most 16384",
        ),
        (
            no_port,
            "message `Registered`: `advertise`: \"master.example\": \
             target has no port, expected host:port",
        ),
    ] {
        let seen = ControlMessage::decode(&raw::control(2, message)).unwrap_err();
        assert_eq!(seen.to_string(), error);
    }
}

#[test]
fn a_bad_target_is_named_and_its_text_is_made_harmless() {
    let message = RawMessage::default().text(1, "a\r\nb:0").uint(2, 1);

    let error = OpenRequest::decode(&message.into_bytes()).unwrap_err();

    assert!(matches!(error, DecodeError::BadField { .. }));
    assert_eq!(
        error.to_string(),
        "message `OpenRequest`: `target`: \"a??b:0\": target has a bad port, expected 1 to 65535"
    );
}

#[test]
fn every_address_arrives_in_its_one_form_and_once() {
    let message = raw::register()
        .text(4, "10.0.0.1")
        .text(4, "::ffff:10.0.0.1")
        .text(5, "[::ffff:10.0.0.1]:10250")
        .message(6, range("10.1.2.3/8", 1, 2));

    let message = ControlMessage::decode(&raw::control(1, message)).unwrap();

    let ControlMessage::Register(registration) = message else {
        panic!("decoded {message:?}");
    };
    assert_eq!(
        registration.addresses,
        ["10.0.0.1".parse::<IpAddr>().unwrap()]
    );
    assert_eq!(
        registration.kubelet,
        Some("10.0.0.1:10250".parse().unwrap())
    );
    assert_eq!(registration.allow[0].net, "10.0.0.0/8".parse().unwrap());
}

#[test]
fn nobody_is_kept_away_for_longer_than_the_limit() {
    let sent = SessionEnd::new(EndCode::Busy, "").retry_after(Duration::from_secs(86_400));
    let sent = content(&ControlMessage::End(sent).encode().unwrap());
    let raw = raw::control(
        4,
        RawMessage::default()
            .uint(1, 5)
            .uint(3, u64::from(u32::MAX)),
    );

    for bytes in [&sent[..], &raw] {
        let ControlMessage::End(end) = ControlMessage::decode(bytes).unwrap() else {
            panic!("an End decodes to something else");
        };
        assert_eq!(end.retry_after, Some(MAX_RETRY_AFTER));
    }
}

#[test]
fn times_too_short_or_too_long_for_the_wire_become_the_nearest() {
    let target = || "node:1".parse().unwrap();
    for (sent, arrives) in [
        (Duration::from_nanos(1), Duration::from_millis(1)),
        (Duration::ZERO, Duration::from_millis(1)),
        (Duration::MAX, Duration::from_millis(u64::from(u32::MAX))),
    ] {
        let request = OpenRequest {
            target: target(),
            budget: sent,
            measure: None,
        };
        let arrived = OpenRequest::decode(&content(&request.encode().unwrap())).unwrap();
        assert_eq!(arrived.budget, arrives);
    }
    for (sent, arrives) in [
        (Duration::ZERO, Duration::ZERO),
        (Duration::MAX, Duration::from_millis(u64::from(u32::MAX))),
    ] {
        let drain = Drain {
            deadline: sent,
            reason: String::new(),
            takes_new: false,
        };
        let frame = ControlMessage::Drain(drain).encode().unwrap();
        let ControlMessage::Drain(arrived) = ControlMessage::decode(&content(&frame)).unwrap()
        else {
            panic!("a Drain decodes to something else");
        };
        assert_eq!(arrived.deadline, arrives);
    }
}

#[test]
fn text_to_be_shown_is_cut_before_it_is_sent() {
    let long = "é".repeat(MAX_FRAME_LEN);
    let shown = "?".repeat(MAX_REASON_LEN);
    let refusal = AddressRefusal {
        address: "10.0.0.1".parse().unwrap(),
        reason: long.clone(),
    };
    let registration = Registration {
        node_id: Some(long.clone()),
        software: long.clone(),
        labels: BTreeMap::from([(long.clone(), long.clone())]),
        ..smallest_registration()
    };
    let drain = Drain {
        deadline: Duration::ZERO,
        reason: long.clone(),
        takes_new: false,
    };
    let end = SessionEnd {
        code: EndCode::Busy,
        message: long.clone(),
        retry_after: None,
    };
    let addresses = Addresses {
        granted: Vec::new(),
        refused: vec![refusal],
    };

    for (message, copies) in [
        (ControlMessage::Register(registration), 4),
        (ControlMessage::Addresses(addresses), 1),
        (ControlMessage::End(end), 1),
        (ControlMessage::Drain(drain), 1),
    ] {
        let frame = message.encode().unwrap();
        let text = String::from_utf8_lossy(&frame);
        assert_eq!(text.matches(&shown).count(), copies, "{}", message.name());
        assert!(frame.len() < (copies + 1) * MAX_ID_LEN);
    }
    let refused = OpenAnswer::Refused {
        code: RefuseCode::Busy,
        message: long,
    };
    let arrived = OpenAnswer::decode(&content(&refused.encode().unwrap())).unwrap();
    assert_eq!(
        arrived,
        OpenAnswer::Refused {
            code: RefuseCode::Busy,
            message: shown
        }
    );
}

/// The lengths of those lists of a message that are not empty.
fn list_lengths(message: &ControlMessage) -> Vec<usize> {
    let addresses = |a: &Addresses| [a.granted.len(), a.refused.len()];
    let all = match message {
        ControlMessage::Register(r) => vec![
            r.addresses.len(),
            r.allow.len(),
            r.labels.len(),
            r.held_masters.len(),
        ],
        ControlMessage::Registered(r) => {
            [&addresses(&r.addresses)[..], &[r.dial_sources.len()]].concat()
        }
        ControlMessage::Addresses(a) => addresses(a).to_vec(),
        other => panic!("{} has no lists", other.name()),
    };
    all.into_iter().filter(|&len| len > 0).collect()
}

fn smallest_registration() -> Registration {
    Registration {
        version: 1,
        node: NodeName::parse("node-a").unwrap(),
        instance: InstanceId::from_bytes([7; 16]),
        addresses: Vec::new(),
        kubelet: None,
        allow: Vec::new(),
        cluster_id: None,
        node_id: None,
        software: String::new(),
        labels: BTreeMap::new(),
        held_masters: Vec::new(),
        fast_path: false,
    }
}

fn largest_registration() -> Registration {
    let id = || "x".repeat(MAX_ID_LEN);
    let range = AllowedRange {
        net: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"
            .parse()
            .unwrap(),
        ports: 65535..=65535,
    };
    Registration {
        version: u32::MAX,
        node: NodeName::parse(&"a".repeat(253)).unwrap(),
        instance: InstanceId::from_bytes([0xff; 16]),
        addresses: longest_ips(),
        kubelet: Some(
            "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"
                .parse()
                .unwrap(),
        ),
        allow: vec![range; MAX_ALLOWED_RANGES],
        cluster_id: Some(id()),
        node_id: Some(id()),
        software: "x".repeat(MAX_REASON_LEN),
        labels: (0..MAX_LABELS)
            .map(|i| (format!("{i:0>255}"), id()))
            .collect(),
        held_masters: vec![InstanceId::from_bytes([0xff; 16]); MAX_HELD_MASTERS],
        fast_path: true,
    }
}

fn largest_addresses() -> Addresses {
    let refusal = |address| AddressRefusal {
        address,
        reason: "x".repeat(MAX_REASON_LEN),
    };
    Addresses {
        granted: longest_ips(),
        refused: longest_ips().into_iter().map(refusal).collect(),
    }
}

fn longest_ips() -> Vec<IpAddr> {
    (0..MAX_ADDRESSES)
        .map(|i| {
            format!("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff{i:02x}")
                .parse()
                .unwrap()
        })
        .collect()
}

fn ip_text(i: usize) -> String {
    format!("10.0.0.{i}")
}

fn label(i: usize) -> RawMessage {
    RawMessage::default()
        .text(1, &format!("key-{i}"))
        .text(2, "value")
}

fn range(cidr: &str, first: u64, last: u64) -> RawMessage {
    RawMessage::default()
        .text(1, cidr)
        .uint(2, first)
        .uint(3, last)
}

fn refusal(i: usize) -> RawMessage {
    RawMessage::default().text(1, &ip_text(i)).text(2, "taken")
}
