//! What is issued, read back by verifiers that know nothing of how it was made.

use std::{os::unix::fs::PermissionsExt, sync::Arc};

use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::WebPkiClientVerifier,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::*;

fn der(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

fn roots(pki: &Pki) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(pki.ca_file()).unwrap() {
        roots.add(certificate.unwrap()).unwrap();
    }
    Arc::new(roots)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn as_client(pki: &Pki, path: &Path) -> Result<(), rustls::Error> {
    WebPkiClientVerifier::builder_with_provider(roots(pki), provider())
        .build()
        .unwrap()
        .verify_client_cert(&der(path), &[], UnixTime::now())
        .map(drop)
}

fn as_server(pki: &Pki, path: &Path, name: &str) -> Result<(), rustls::Error> {
    WebPkiServerVerifier::builder_with_provider(roots(pki), provider())
        .build()
        .unwrap()
        .verify_server_cert(
            &der(path),
            &[],
            &ServerName::try_from(name.to_owned()).unwrap(),
            &[],
            UnixTime::now(),
        )
        .map(drop)
}

/// Common name, organisations, alternative names.
fn said_by(path: &Path) -> (String, Vec<String>, Vec<String>) {
    let der = der(path);
    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    let subject = certificate.subject();
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        attribute.as_str().unwrap().to_owned()
    };
    let names = certificate
        .subject_alternative_name()
        .unwrap()
        .map_or(Vec::new(), |names| {
            let names = names.value.general_names.iter();
            names
                .map(|name| match name {
                    GeneralName::DNSName(name) => (*name).to_owned(),
                    GeneralName::IPAddress(bytes) => format!("{bytes:?}"),
                    other => panic!("not asked for: {other:?}"),
                })
                .collect()
        });
    (
        subject.iter_common_name().map(text).collect(),
        subject.iter_organization().map(text).collect(),
        names,
    )
}

fn key_fits(files: &CertFiles) -> bool {
    let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
    let chain = vec![der(&files.cert)];
    rustls::sign::CertifiedKey::from_der(chain, key, &provider()).is_ok()
}

#[test]
fn a_node_client_certificate_is_the_kubelets_in_name_use_and_form() {
    let pki = Pki::temporary().unwrap();
    let files = pki.node_client("10.0.10.10").unwrap();
    let (name, organisations, alternatives) = said_by(&files.cert);
    assert_eq!(name, "system:node:10.0.10.10");
    assert_eq!(organisations, ["system:nodes"]);
    assert_eq!(alternatives, [""; 0]);
    as_client(&pki, &files.cert).unwrap();
    as_server(&pki, &files.cert, "10.0.10.10").unwrap_err();
    assert!(key_fits(&files));
    let text = fs::read_to_string(&files.cert).unwrap();
    let key = text.find("-----BEGIN EC PRIVATE KEY-----").unwrap();
    assert!(text.find("-----BEGIN CERTIFICATE-----").unwrap() < key);
    assert_eq!(
        fs::metadata(&files.key).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[test]
fn rotating_a_node_client_certificate_moves_the_link_and_keeps_the_old_file() {
    let pki = Pki::temporary().unwrap();
    let before = fs::read_link(pki.node_client("n").unwrap().cert).unwrap();
    let first = fs::read_to_string(&before).unwrap();
    let after = fs::read_link(pki.node_client("n").unwrap().cert).unwrap();
    assert_ne!(before, after);
    assert_eq!(fs::read_to_string(before).unwrap(), first);
    assert_ne!(fs::read_to_string(after).unwrap(), first);
}

#[test]
fn a_kubelet_serving_certificate_is_for_servers_and_all_its_names() {
    let pki = Pki::temporary().unwrap();
    let addresses = [
        "10.0.10.10".parse().unwrap(),
        "fd00:10::10".parse().unwrap(),
    ];
    let files = pki.kubelet_serving("worker-1", &addresses).unwrap();
    assert!(files.cert.ends_with("nodes/worker-1/pki/tls.pem"));
    assert!(files.key.ends_with("nodes/worker-1/pki/tls.key"));
    for name in ["worker-1", "10.0.10.10", "fd00:10::10"] {
        as_server(&pki, &files.cert, name).unwrap();
    }
    as_server(&pki, &files.cert, "10.0.10.11").unwrap_err();
    as_client(&pki, &files.cert).unwrap_err();
    assert!(key_fits(&files));
}

#[test]
fn a_node_named_by_its_address_has_it_once() {
    let pki = Pki::temporary().unwrap();
    let files = pki
        .kubelet_serving("10.0.10.10", &["10.0.10.10".parse().unwrap()])
        .unwrap();
    assert_eq!(said_by(&files.cert).2, ["[10, 0, 10, 10]"]);
}

#[test]
fn master_and_apiserver_have_what_their_places_need() {
    let pki = Pki::temporary().unwrap();
    let master = pki.master(&["192.0.2.10", "master.example"]).unwrap();
    as_server(&pki, &master.cert, "192.0.2.10").unwrap();
    as_server(&pki, &master.cert, "master.example").unwrap();
    let kubelet_client = pki.apiserver_kubelet_client().unwrap();
    as_client(&pki, &kubelet_client.cert).unwrap();
    let (name, organisations, _) = said_by(&kubelet_client.cert);
    assert_eq!(name, "kube-apiserver-kubelet-client");
    assert_eq!(organisations, ["system:masters"]);
    let egress = pki.apiserver_egress_client().unwrap();
    as_client(&pki, &egress.cert).unwrap();
    assert_eq!(said_by(&egress.cert).0, "kube-apiserver");
    assert!([master, kubelet_client, egress].iter().all(key_fits));
}

#[test]
fn each_variation_is_refused_for_its_own_reason() {
    let pki = Pki::temporary().unwrap();
    let stranger = Authority::new("kubernetes-ca").unwrap();
    let node = || Leaf::node_client("n");
    let refusal = |issued: Issued| {
        let files = issued.write_combined(pki.dir().join("varied.pem")).unwrap();
        format!("{:?}", as_client(&pki, &files.cert).unwrap_err())
    };
    let issue = |leaf: Leaf| pki.ca().issue(&leaf).unwrap();
    let expired = refusal(issue(node().validity(Validity::Expired)));
    assert!(expired.contains("Expired"), "{expired}");
    let early = refusal(issue(node().validity(Validity::NotYet)));
    assert!(early.contains("NotValidYet"), "{early}");
    let server = refusal(issue(node().usages([Usage::Server])));
    assert!(server.contains("Purpose"), "{server}");
    let foreign = refusal(stranger.issue(&node()).unwrap());
    assert!(
        foreign.contains("BadSignature") || foreign.contains("UnknownIssuer"),
        "{foreign}"
    );
}

#[test]
fn a_foreign_key_does_not_fit_and_nothing_else_is_wrong() {
    let pki = Pki::temporary().unwrap();
    let leaf = Leaf::node_client("n").with_foreign_key();
    let files = pki
        .install_node_client("n", &pki.ca().issue(&leaf).unwrap())
        .unwrap();
    as_client(&pki, &files.cert).unwrap();
    assert!(!key_fits(&files));
}

#[test]
fn two_organisations_are_both_there_and_three_are_refused() {
    let pki = Pki::temporary().unwrap();
    let leaf = Leaf::new("x").organisations(["system:nodes", "system:masters"]);
    let files = pki.pair("x", &leaf).unwrap();
    assert_eq!(said_by(&files.cert).1, ["system:nodes", "system:masters"]);
    let error = pki
        .pair("x", &leaf.organisations(["a", "b", "c"]))
        .unwrap_err();
    assert_eq!(error.to_string(), "3 organisations, expected at most 2");
}

#[test]
fn a_rotated_ca_is_trusted_from_the_bundle_on() {
    let pki = Pki::temporary().unwrap();
    let next = Authority::new("kubernetes-ca-2").unwrap();
    let issued = next.issue(&Leaf::node_client("n")).unwrap();
    let files = pki.install_node_client("n", &issued).unwrap();
    as_client(&pki, &files.cert).unwrap_err();
    pki.trust(&[pki.ca(), &next]).unwrap();
    as_client(&pki, &files.cert).unwrap();
}

#[test]
fn a_temporary_pki_leaves_nothing_behind() {
    let pki = Pki::temporary().unwrap();
    let dir = pki.dir().to_owned();
    assert!(dir.join("ca.crt").exists());
    drop(pki);
    assert!(!dir.exists());
}
