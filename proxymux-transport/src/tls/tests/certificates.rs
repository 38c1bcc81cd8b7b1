//! Certificates that one side refuses, and what both sides say about it.
//!
//! One mistake per test; everything else in it is as it should be. At the end the same chains are
//! verified again without a handshake, at a moment of our choice.

use std::time::SystemTime;

use rcgen::ExtendedKeyUsagePurpose as Purpose;
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};

use super::*;
use crate::certificate::test_pki::roots;

const NODE: &str = "O=system:nodes, CN=system:node:10.0.10.3";

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// The first of January of 2030.
fn in_2030() -> SystemTime {
    at(1_893_456_000)
}

#[tokio::test(start_paused = true)]
async fn an_expired_agent_is_refused() {
    let ca = Ca::new("kubernetes");
    let node = ca.issue(&Request::node("10.0.10.3").years(2020, 2021));

    let ended = meet(&ca, &node, &ca.issue(&Request::master(MASTER))).await;

    assert_eq!(
        ended.logs,
        logs(
            "it refused our certificate: by its clock it is expired or not valid yet (alert \
             certificate_expired)",
            &format!(
                "TLS handshake with the agent failed: its certificate `{NODE}` expired at \
                 2021-01-01T00:00:00Z by this host's clock"
            ),
        )
    );
    assert_eq!(
        ended.kinds,
        kinds(
            TlsFaultKind::OurCertificateExpired,
            TlsFaultKind::PeerCertificateExpired
        )
    );
}

#[tokio::test(start_paused = true)]
async fn an_expired_master_is_refused() {
    let ca = Ca::new("kubernetes");
    let master = ca.issue(&Request::master(MASTER).years(2020, 2021));

    let ended = meet(&ca, &ca.issue(&Request::node("10.0.10.3")), &master).await;

    assert_eq!(
        ended.logs,
        logs(
            "TLS handshake with the master failed: its certificate `CN=proxymux-master` expired \
             at 2021-01-01T00:00:00Z by this host's clock",
            "TLS handshake with the agent failed: it refused our certificate: by its clock it is \
             expired or not valid yet (alert certificate_expired)",
        )
    );
    assert_eq!(
        ended.kinds,
        kinds(
            TlsFaultKind::PeerCertificateExpired,
            TlsFaultKind::OurCertificateExpired
        )
    );
}

#[tokio::test(start_paused = true)]
async fn a_certificate_of_the_future_is_refused_on_either_side() {
    let ca = Ca::new("kubernetes");
    let node = ca.issue(&Request::node("10.0.10.3").years(2110, 2120));
    let master = ca.issue(&Request::master(MASTER).years(2110, 2120));

    let early_node = meet(&ca, &node, &ca.issue(&Request::master(MASTER))).await;
    let early_master = meet(&ca, &ca.issue(&Request::node("10.0.10.3")), &master).await;

    assert_eq!(
        early_node.logs,
        logs(
            "it refused our certificate: by its clock it is expired or not valid yet (alert \
             certificate_expired)",
            &format!(
                "TLS handshake with the agent failed: its certificate `{NODE}` is not valid \
                 before 2110-01-01T00:00:00Z by this host's clock"
            ),
        )
    );
    assert_eq!(
        early_master.logs.agent.as_deref(),
        Some(
            "TLS handshake with the master failed: its certificate `CN=proxymux-master` is not \
             valid before 2110-01-01T00:00:00Z by this host's clock"
        )
    );
    assert_eq!(
        early_master.kinds,
        kinds(
            TlsFaultKind::PeerCertificateNotYetValid,
            TlsFaultKind::OurCertificateExpired
        )
    );
}

#[tokio::test(start_paused = true)]
async fn an_agent_of_another_ca_is_refused() {
    let (ca, other) = (Ca::new("kubernetes"), Ca::new("elsewhere"));
    let node = other.issue(&Request::node("10.0.10.3"));

    let ended = meet(&ca, &node, &ca.issue(&Request::master(MASTER))).await;

    assert_eq!(
        ended.logs,
        logs(
            "it refused our certificate: it is not signed by a CA that the peer trusts (alert \
             unknown_ca)",
            &format!(
                "TLS handshake with the agent failed: its certificate `{NODE}`, issued by \
                 `CN=elsewhere`, is not signed by a CA that we trust"
            ),
        )
    );
    assert_eq!(
        ended.kinds,
        kinds(TlsFaultKind::OurUnknownCa, TlsFaultKind::PeerUnknownCa)
    );
}

#[tokio::test(start_paused = true)]
async fn a_master_of_another_ca_is_refused() {
    let (ca, other) = (Ca::new("kubernetes"), Ca::new("elsewhere"));
    let master = other.issue(&Request::master(MASTER));

    let ended = meet(&ca, &ca.issue(&Request::node("10.0.10.3")), &master).await;

    assert_eq!(
        ended.logs,
        logs(
            "TLS handshake with the master failed: its certificate `CN=proxymux-master`, issued \
             by `CN=elsewhere`, is not signed by a CA that we trust",
            "TLS handshake with the agent failed: it refused our certificate: it is not signed \
             by a CA that the peer trusts (alert unknown_ca)",
        )
    );
    assert_eq!(
        ended.kinds,
        kinds(TlsFaultKind::PeerUnknownCa, TlsFaultKind::OurUnknownCa)
    );
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_was_made_anew_under_its_old_name_is_told_apart() {
    let (ca, anew) = (Ca::new("kubernetes"), Ca::new("kubernetes"));
    let node = anew.issue(&Request::node("10.0.10.3"));

    let ended = meet(&ca, &node, &ca.issue(&Request::master(MASTER))).await;

    assert_eq!(
        ended.logs,
        logs(
            "it refused our certificate: a signature is wrong; the CA that the peer trusts may \
             have the same name as ours but another key (alert decrypt_error)",
            &format!(
                "TLS handshake with the agent failed: its certificate `{NODE}` is not signed \
                 with the key of the CA `CN=kubernetes` that we trust; was that CA made anew \
                 under the same name?"
            ),
        )
    );
    assert_eq!(
        ended.kinds,
        kinds(TlsFaultKind::OurUnknownCa, TlsFaultKind::PeerUnknownCa)
    );
}

#[tokio::test(start_paused = true)]
async fn while_a_ca_is_rotated_certificates_of_both_are_accepted() {
    // The same name for both is the harder case, and the usual one.
    let (old, new) = (Ca::new("kubernetes"), Ca::new("kubernetes"));
    let both = roots(&[&old.pem, &new.pem]);
    for ca in [&old, &new] {
        let node = ca.issue(&Request::node("10.0.10.3")).credentials();
        let master = ca.issue(&Request::master(MASTER)).credentials();

        let ended = shake_hands(agent_config(&node, &both), master_config(&master, &both)).await;

        let (agent, master) = (None, None);
        assert_eq!(ended.logs, Logs { agent, master });
    }
}

#[tokio::test(start_paused = true)]
async fn a_master_with_another_name_is_refused() {
    let ca = Ca::new("kubernetes");
    let node = ca.issue(&Request::node("10.0.10.3"));
    let elsewhere = Request::master("other.example")
        .dns("*.example.org")
        .ip("192.0.2.10");
    let nameless = Request::new(MASTER, &[]).purposes(&[Purpose::ServerAuth]);

    let elsewhere = meet(&ca, &node, &ca.issue(&elsewhere)).await;
    let nameless = meet(&ca, &node, &ca.issue(&nameless)).await;

    let masters_view = "TLS handshake with the agent failed: it refused our certificate: it is \
         damaged, or not valid for the name that the peer expects (alert bad_certificate)";
    assert_eq!(
        elsewhere.logs,
        logs(
            "TLS handshake with the master failed: its certificate `CN=proxymux-master` is not \
             valid for `master.example`, but for names `other.example`, `*.example.org`, \
             `192.0.2.10`",
            masters_view,
        )
    );
    assert_eq!(
        nameless.logs,
        logs(
            "TLS handshake with the master failed: its certificate `CN=master.example` is not \
             valid for `master.example`, but for no name at all (a common name does not count)",
            masters_view,
        )
    );
    assert_eq!(
        elsewhere.kinds,
        kinds(
            TlsFaultKind::PeerWrongName,
            TlsFaultKind::OurCertificateInvalid
        )
    );
}

#[tokio::test(start_paused = true)]
async fn a_master_is_accepted_by_its_address() {
    let ca = Ca::new("kubernetes");
    let master = ca
        .issue(&Request::master(MASTER).ip("192.0.2.10"))
        .credentials();
    let (near, far) = duplex(16 * 1024);
    let address = ServerName::try_from("192.0.2.10").unwrap();

    let (agent, master) = tokio::join!(
        connect(near, good_agent(&ca), address, in_five_seconds()),
        accept(far, master_config(&master, &ca.roots()), in_five_seconds()),
    );

    assert!(agent.is_ok() && master.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_serving_certificate_shown_by_an_agent_is_refused() {
    let ca = Ca::new("kubernetes");
    let serving = Request::new("system:node:10.0.10.3", &["system:nodes"])
        .ip("10.0.10.3")
        .purposes(&[Purpose::ServerAuth]);

    let ended = meet(
        &ca,
        &ca.issue(&serving),
        &ca.issue(&Request::master(MASTER)),
    )
    .await;

    assert_eq!(
        ended.logs,
        logs(
            "it refused our certificate: it is not for this purpose (extended key usage) (alert \
             unsupported_certificate)",
            &format!(
                "TLS handshake with the agent failed: its certificate `{NODE}` is not for client \
                 authentication, but for server authentication"
            ),
        )
    );
    assert_eq!(
        ended.kinds,
        kinds(
            TlsFaultKind::OurWrongPurpose,
            TlsFaultKind::PeerWrongPurpose
        )
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_certificate_shown_by_a_master_is_refused() {
    let ca = Ca::new("kubernetes");
    let client = Request::new("proxymux-master", &[])
        .dns(MASTER)
        .purposes(&[Purpose::ClientAuth, Purpose::CodeSigning]);

    let ended = meet(
        &ca,
        &ca.issue(&Request::node("10.0.10.3")),
        &ca.issue(&client),
    )
    .await;

    assert_eq!(
        ended.logs,
        logs(
            "TLS handshake with the master failed: its certificate `CN=proxymux-master` is not \
             for server authentication, but for client authentication, 1.3.6.1.5.5.7.3.3",
            "TLS handshake with the agent failed: it refused our certificate: it is not for this \
             purpose (extended key usage) (alert unsupported_certificate)",
        )
    );
    assert_eq!(
        ended.kinds,
        kinds(
            TlsFaultKind::PeerWrongPurpose,
            TlsFaultKind::OurWrongPurpose
        )
    );
}

#[tokio::test(start_paused = true)]
async fn a_handshake_accepts_exactly_the_purposes_that_a_certificate_permits() {
    let ca = Ca::new("kubernetes");
    let cases: [&[Purpose]; 6] = [
        &[],
        &[Purpose::ClientAuth],
        &[Purpose::ServerAuth],
        &[Purpose::ServerAuth, Purpose::ClientAuth],
        &[Purpose::Any],
        &[Purpose::CodeSigning],
    ];
    for purposes in cases {
        let node = ca.issue(&Request::node("10.0.10.3").purposes(purposes));
        let master = ca.issue(&Request::master(MASTER).purposes(purposes));

        let as_client = meet(&ca, &node, &ca.issue(&Request::master(MASTER))).await;
        let as_server = meet(&ca, &ca.issue(&Request::node("10.0.10.3")), &master).await;

        let (node, master) = (node.credentials(), master.credentials());
        assert_eq!(
            as_client.kinds.master.is_none(),
            node.info().permits_client_auth,
            "{purposes:?} as a client: {:?}",
            as_client.logs
        );
        assert_eq!(
            as_server.kinds.agent.is_none(),
            master.info().permits_server_auth,
            "{purposes:?} as a server: {:?}",
            as_server.logs
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_poses_as_a_master_is_refused() {
    let ca = Ca::new("kubernetes");
    let serving = Request::new("system:node:10.0.10.3", &["x", "system:nodes"])
        .dns(MASTER)
        .purposes(&[Purpose::ServerAuth]);

    let ended = meet(
        &ca,
        &ca.issue(&Request::node("10.0.10.4")),
        &ca.issue(&serving),
    )
    .await;

    assert_eq!(
        ended.logs,
        logs(
            "TLS handshake with the master failed: its certificate `O=x, O=system:nodes, \
             CN=system:node:10.0.10.3` belongs to a node (organization `system:nodes`), which \
             cannot be a master",
            "TLS handshake with the agent failed: it refused our certificate: for a reason that \
             only its own log tells (alert certificate_unknown)",
        )
    );
    assert_eq!(
        ended.kinds,
        kinds(
            TlsFaultKind::PeerIsNode,
            TlsFaultKind::OurCertificateRefused
        )
    );
}

#[tokio::test(start_paused = true)]
async fn an_agent_without_a_certificate_is_refused() {
    let ca = Ca::new("kubernetes");
    let mut bare = ClientConfig::builder_with_provider(foreign_provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(root_store(&ca))
        .with_no_client_auth();
    bare.alpn_protocols = vec![ALPN.to_vec()];

    let ended = shake_hands(Arc::new(bare), good_master(&ca)).await;

    assert_eq!(
        ended.logs,
        logs(
            "it refused our certificate: we showed none, and it requires one (alert \
             certificate_required)",
            "TLS handshake with the agent failed: it showed no certificate",
        )
    );
    assert_eq!(
        ended.kinds,
        kinds(
            TlsFaultKind::OurCertificateMissing,
            TlsFaultKind::PeerNoCertificate
        )
    );
}

#[tokio::test(start_paused = true)]
async fn a_ca_certificate_shown_by_a_peer_is_refused_with_a_hint() {
    let ca = Ca::new("kubernetes");
    let master = ca.issue(&Request::master(MASTER).ca());
    let key = PrivateKeyDer::from_pem_slice(master.key_pem.as_bytes()).unwrap();
    let key = provider().key_provider.load_private_key(key).unwrap();
    let shown = rustls::sign::CertifiedKey::new(vec![master.der], key);
    let server = server_with(&ca, |server| {
        server.cert_resolver = Arc::new(SingleCertAndKey::from(shown));
    });

    let ended = shake_hands(good_agent(&ca), server).await;

    let agent = ended.logs.agent.unwrap();
    assert!(
        agent.starts_with(
            "TLS handshake with the master failed: its certificate `CN=proxymux-master` cannot \
             be accepted: it is a CA certificate, expected an end-entity one: "
        ),
        "{agent}"
    );
    assert_eq!(
        ended.kinds.agent,
        Some(TlsFaultKind::PeerCertificateInvalid)
    );
}

#[tokio::test(start_paused = true)]
async fn a_stolen_certificate_without_its_key_is_refused() {
    let ca = Ca::new("kubernetes");
    let (stolen, own) = (
        ca.issue(&Request::master(MASTER)),
        ca.issue(&Request::master(MASTER)),
    );
    let key = PrivateKeyDer::from_pem_slice(own.key_pem.as_bytes()).unwrap();
    let key = provider().key_provider.load_private_key(key).unwrap();
    let shown = rustls::sign::CertifiedKey::new(vec![stolen.der], key);
    let server = server_with(&ca, |server| {
        server.cert_resolver = Arc::new(SingleCertAndKey::from(shown));
    });

    let ended = shake_hands(good_agent(&ca), server).await;

    assert_eq!(
        ended.logs.agent.as_deref(),
        Some(
            "TLS handshake with the master failed: it could not prove that it holds the key of \
             its certificate"
        )
    );
    assert_eq!(
        ended.kinds.agent,
        Some(TlsFaultKind::PeerCertificateInvalid)
    );
}

#[tokio::test(start_paused = true)]
async fn a_chain_that_is_sent_along_is_followed() {
    let root = Ca::new("root");
    let intermediate = root.intermediate("intermediate", 2100);
    let node = intermediate.issue(&Request::node("10.0.10.3"));
    let with_chain = agent_config(&node.credentials_with(&intermediate), &root.roots());
    let without_chain = agent_config(&node.credentials(), &root.roots());

    let with_chain = shake_hands(with_chain, good_master(&root)).await;
    let without_chain = shake_hands(without_chain, good_master(&root)).await;

    assert_eq!(with_chain.kinds.master, None);
    assert_eq!(
        without_chain.logs.master.as_deref(),
        Some(
            "TLS handshake with the agent failed: its certificate `O=system:nodes, \
             CN=system:node:10.0.10.3`, issued by `CN=intermediate`, is not signed by a CA that \
             we trust"
        )
    );
}

#[tokio::test(start_paused = true)]
async fn an_expired_issuer_is_not_blamed_on_the_certificate() {
    let root = Ca::new("root");
    let intermediate = root.intermediate("intermediate", 2021);
    let node = intermediate.issue(&Request::node("10.0.10.3"));
    let agent = agent_config(&node.credentials_with(&intermediate), &root.roots());

    let ended = shake_hands(agent, good_master(&root)).await;

    assert_eq!(
        ended.logs.master,
        Some(format!(
            "TLS handshake with the agent failed: an issuer of its certificate `{NODE}` expired \
             at 2021-01-01T00:00:00Z by this host's clock"
        ))
    );
}

#[test]
fn a_chain_that_was_good_is_refused_once_it_has_expired() {
    let ca = Ca::new("kubernetes");
    let node = ca.issue(&Request::node("10.0.10.3").years(2020, 2031));
    let chain = [node.der];

    let before = verify_agent_chain(&chain, &ca.roots(), in_2030());
    let after = verify_agent_chain(
        &chain,
        &ca.roots(),
        in_2030() + Duration::from_secs(40_000_000),
    );

    assert!(before.is_ok());
    assert_eq!(
        after.unwrap_err().to_string(),
        format!("its certificate `{NODE}` expired at 2031-01-01T00:00:00Z by this host's clock")
    );
}

#[test]
fn a_chain_that_was_good_is_refused_once_its_ca_is_gone() {
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    let node = [old.issue(&Request::node("10.0.10.3")).der];
    let master = [old.issue(&Request::master(MASTER)).der];
    let both = roots(&[&old.pem, &new.pem]);

    assert!(verify_agent_chain(&node, &both, in_2030()).is_ok());
    assert!(verify_master_chain(&master, &master_name(), &both, in_2030()).is_ok());
    let node = verify_agent_chain(&node, &new.roots(), in_2030()).unwrap_err();
    let master = verify_master_chain(&master, &master_name(), &new.roots(), in_2030()).unwrap_err();
    assert_eq!(node.kind(), TlsFaultKind::PeerUnknownCa);
    assert_eq!(
        master.to_string(),
        "its certificate `CN=proxymux-master`, issued by `CN=old`, is not signed by a CA that we \
         trust"
    );
}

#[test]
fn a_chain_is_also_checked_for_name_and_group_again() {
    let ca = Ca::new("kubernetes");
    let master = [ca.issue(&Request::master("other.example")).der];
    let serving = Request::new("system:node:a", &["system:nodes"]).dns(MASTER);
    let node = [ca.issue(&serving).der];

    let wrong_name = verify_master_chain(&master, &master_name(), &ca.roots(), in_2030());
    let is_node = verify_master_chain(&node, &master_name(), &ca.roots(), in_2030());
    let empty = verify_agent_chain(&[], &ca.roots(), in_2030());

    assert_eq!(wrong_name.unwrap_err().kind(), TlsFaultKind::PeerWrongName);
    assert_eq!(is_node.unwrap_err().kind(), TlsFaultKind::PeerIsNode);
    assert_eq!(empty.unwrap_err().kind(), TlsFaultKind::PeerNoCertificate);
}
