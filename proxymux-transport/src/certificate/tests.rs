//! Certificates as rcgen makes them, and as nobody should.
//!
//! The last part damages a certificate in every way that is cheap to try: nothing that a peer
//! sends may make us panic.

use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use rcgen::{DnType, DnValue, ExtendedKeyUsagePurpose as Purpose};
use rustls::pki_types::CertificateDer;

use super::{
    test_pki::{Ca, Request, second},
    *,
};

fn info(request: &Request) -> CertificateInfo {
    CertificateInfo::parse(&Ca::new("ca").issue(request).der).unwrap()
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

#[test]
fn a_node_certificate_is_read_in_full() {
    let request = Request::node("10.0.10.3")
        .dns("node.example")
        .ip("10.0.10.3")
        .ip("fd00::3");

    let info = info(&request);

    assert_eq!(info.subject, "O=system:nodes, CN=system:node:10.0.10.3");
    assert_eq!(info.issuer, "CN=ca");
    assert_eq!(info.common_name(), Some("system:node:10.0.10.3"));
    assert_eq!(info.organizations, ["system:nodes"]);
    assert_eq!(info.dns_names, ["node.example"]);
    let addresses: [IpAddr; 2] = ["10.0.10.3".parse().unwrap(), "fd00::3".parse().unwrap()];
    assert_eq!(info.ip_addresses, addresses);
    assert_eq!(utc(info.not_before), "2020-01-01T00:00:00Z");
    assert_eq!(utc(info.not_after), "2120-01-01T00:00:00Z");
    assert!(info.permits_client_auth && !info.permits_server_auth);
    assert!(!info.is_ca && info.is_version_3);
    assert_eq!(
        info.server_names(),
        ["node.example", "10.0.10.3", "fd00::3"]
    );
}

#[test]
fn a_ca_certificate_is_known_as_one() {
    let ca = CertificateInfo::parse(&Ca::new("kubernetes").der).unwrap();

    assert!(ca.is_ca);
}

#[test]
fn purposes_are_what_a_tls_peer_will_accept() {
    let cases: [(&[Purpose], bool, bool); 6] = [
        (&[], true, true),
        (&[Purpose::ClientAuth], true, false),
        (&[Purpose::ServerAuth], false, true),
        (&[Purpose::ServerAuth, Purpose::ClientAuth], true, true),
        (&[Purpose::CodeSigning], false, false),
        (&[Purpose::Any], false, false),
    ];
    for (purposes, client, server) in cases {
        let info = info(&Request::new("x", &[]).purposes(purposes));

        assert_eq!(info.permits_client_auth, client, "{purposes:?}");
        assert_eq!(info.permits_server_auth, server, "{purposes:?}");
    }
}

#[test]
fn a_subject_cannot_fake_another_attribute_or_break_a_line() {
    let name = "a, O=system:nodes\r\n2024 INFO `ok`\u{202e}\u{1b}[2J";

    let info = info(&Request::new(name, &[]));

    assert_eq!(
        info.subject,
        "CN=a\\, O=system:nodes??2024 INFO \\`ok\\`??[2J"
    );
    assert!(info.organizations.is_empty());
}

#[test]
fn a_long_subject_is_cut() {
    let request = Request::new(&"c".repeat(5000), &[&"o".repeat(5000)])
        .attribute(DnType::LocalityName, "l".repeat(5000));

    let subject = info(&request).subject;

    assert!(subject.len() < 1000, "{}", subject.len());
    assert!(subject.ends_with(", ..."), "{subject}");
}

#[test]
fn labels_are_those_that_people_know_and_others_are_numbers() {
    let request = Request::new("n", &["o"])
        .attribute(DnType::CountryName, "JP")
        .attribute(DnType::OrganizationalUnitName, "u")
        .attribute(second(4, 13), "described");

    assert_eq!(
        info(&request).subject,
        "O=o, CN=n, C=JP, OU=u, 2.5.4.13=described"
    );
}

#[test]
fn the_group_of_the_nodes_is_seen_in_every_kind_of_string() {
    let group = "system:nodes";
    let kinds: [DnValue; 5] = [
        DnValue::Utf8String(group.to_owned()),
        DnValue::PrintableString(group.try_into().unwrap()),
        DnValue::TeletexString(group.try_into().unwrap()),
        DnValue::BmpString(group.try_into().unwrap()),
        DnValue::UniversalString(group.try_into().unwrap()),
    ];
    for kind in kinds {
        let request = Request::new("x", &[]).attribute(DnType::OrganizationName, kind.clone());

        assert!(info(&request).is_in_nodes_group(), "{kind:?}");
    }
}

#[test]
fn what_is_no_certificate_is_refused() {
    let der = Ca::new("ca").issue(&Request::node("a")).der;
    let error = |bytes: Vec<u8>| {
        CertificateInfo::parse(&CertificateDer::from(bytes))
            .unwrap_err()
            .to_string()
    };

    assert_eq!(error(Vec::new()), "is not an X.509 certificate");
    assert_eq!(error(b"hello".to_vec()), "is not an X.509 certificate");
    let twice = [der.as_ref(), &[0, 0, 0]].concat();
    assert_eq!(
        error(twice),
        "has 3 bytes behind the certificate, expected none"
    );
}

#[test]
fn validity_has_three_answers() {
    let info = info(&Request::node("a").years(2020, 2021));
    let (begin, end) = (1_577_836_800, 1_609_459_200);
    let day = Duration::from_secs(86_400);

    let before = info.validity_at(at(begin - 86_400));
    let first = info.validity_at(at(begin));
    let last = info.validity_at(at(end));
    let after = info.validity_at(at(end + 86_400));

    assert_eq!(before, Validity::NotYetValid { begins_in: day });
    assert_eq!(
        first,
        Validity::Current {
            remaining: day * 366
        }
    );
    assert_eq!(
        last,
        Validity::Current {
            remaining: Duration::ZERO
        }
    );
    assert_eq!(after, Validity::Expired { since: day });
    assert_eq!(after.to_string(), "expired 1day ago");
}

#[test]
fn a_moment_is_shown_in_utc_whatever_it_is() {
    assert_eq!(utc(at(0)), "1970-01-01T00:00:00Z");
    assert_eq!(utc(at(1_577_836_800)), "2020-01-01T00:00:00Z");
    let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
    assert_eq!(utc(before), "1969-12-31T23:59:59Z");
    assert_eq!(utc(at(1 << 40)), "1099511627776 s from 1970");
}

#[test]
fn a_node_is_who_its_certificate_says() {
    let info = info(&Request::node("10.0.10.3").ip("10.0.10.3"));

    let identity = NodeIdentity::from_certificate(&info).unwrap();

    assert_eq!(identity.name, NodeName::parse("10.0.10.3").unwrap());
    assert_eq!(identity.ip_sans, ["10.0.10.3".parse::<IpAddr>().unwrap()]);
}

#[test]
fn a_certificate_that_is_not_a_nodes_is_told_why() {
    let refusal = |request: Request| {
        NodeIdentity::from_certificate(&info(&request))
            .unwrap_err()
            .to_string()
    };

    assert_eq!(
        refusal(Request::new("", &["system:nodes"])),
        "certificate `O=system:nodes` has no common name, expected `system:node:<node-name>`"
    );
    assert_eq!(
        refusal(Request::node("a").attribute(second(4, 3), "system:node:b")),
        "certificate `O=system:nodes, CN=system:node:a, CN=system:node:b` has 2 common names, \
         expected one, `system:node:<node-name>`"
    );
    assert_eq!(
        refusal(Request::new("kube-apiserver", &["system:nodes"])),
        "certificate `O=system:nodes, CN=kube-apiserver` has the common name `kube-apiserver`, \
         expected `system:node:<node-name>`"
    );
    for bad in ["", "a/b", "a b"] {
        let common_name = format!("system:node:{bad}");
        let reason = NodeName::parse(bad).unwrap_err();
        assert_eq!(
            refusal(Request::new(&common_name, &["system:nodes"])),
            format!(
                "certificate `O=system:nodes, CN={common_name}`: the node's name in \
                 `{common_name}` {reason}"
            )
        );
    }
    assert_eq!(
        refusal(Request::new("system:node:a", &[])),
        "certificate `CN=system:node:a` has no organization, expected organization `system:nodes`"
    );
    assert_eq!(
        refusal(Request::new("system:node:a", &["system:masters", "x"])),
        "certificate `O=system:masters, O=x, CN=system:node:a` has organizations \
         `system:masters`, `x`, expected organization `system:nodes`"
    );
}

#[test]
fn the_group_of_the_nodes_may_be_one_of_several() {
    let info = info(&Request::new("system:node:a", &["x", "system:nodes"]));

    assert_eq!(
        NodeIdentity::from_certificate(&info).unwrap().name.as_str(),
        "a"
    );
}

fn sample() -> Vec<u8> {
    let request = Request::node("10.0.10.3")
        .dns("node.example")
        .ip("10.0.10.3")
        .attribute(DnType::CountryName, "JP");
    Ca::new("kubernetes").issue(&request).der.to_vec()
}

/// Runs everything that looks at a peer's certificate; that it returns is the assertion.
fn read_without_panic(der: Vec<u8>) {
    if let Ok(info) = CertificateInfo::parse(&CertificateDer::from(der)) {
        assert!(info.subject.len() < 2000 && info.issuer.len() < 2000);
        assert!(
            info.subject
                .bytes()
                .all(|b| b == b' ' || b.is_ascii_graphic())
        );
        let _ = NodeIdentity::from_certificate(&info);
        let _ = info.validity_at(SystemTime::UNIX_EPOCH).to_string();
        let _ = (utc(info.not_before), utc(info.not_after));
        let _ = info.server_names();
    }
}

#[test]
fn every_single_bit_of_a_certificate_may_be_wrong() {
    let sample = sample();
    for bit in 0..sample.len() * 8 {
        let mut der = sample.clone();
        der[bit / 8] ^= 1 << (bit % 8);
        read_without_panic(der);
    }
    for len in 0..sample.len() {
        read_without_panic(sample[..len].to_vec());
    }
}

proptest! {
    #[test]
    fn no_damaged_certificate_makes_us_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<prop::sample::Index>(),
        insert in prop::collection::vec(any::<u8>(), 0..8),
    ) {
        thread_local! {
            static SAMPLE: Vec<u8> = sample();
        }
        let mut der = SAMPLE.with(Clone::clone);
        for (index, byte) in edits {
            let at = index.index(der.len());
            der[at] = byte;
        }
        let at = cut.index(der.len());
        der.splice(at..at, insert);
        read_without_panic(der);
    }

    #[test]
    fn no_random_bytes_make_us_panic(der in prop::collection::vec(any::<u8>(), 0..600)) {
        read_without_panic(der);
    }
}
