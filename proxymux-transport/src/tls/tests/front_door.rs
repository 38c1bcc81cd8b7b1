//! Clients of a front door.
//!
//! First the handshake, with clients that are not ours; then the policy, which needs nothing but
//! the certificate.

use super::*;

fn policy(names: &[&str]) -> FrontDoorPolicy {
    FrontDoorPolicy::new(names.iter().map(|&n| n.to_owned())).unwrap()
}

fn info(request: &Request) -> CertificateInfo {
    CertificateInfo::parse(&Ca::new("ca").issue(request).der).unwrap()
}

/// A client with `request`'s certificate that offers the application protocols `alpn`.
fn client(ca: &Ca, request: &Request, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let mut config = (*agent_config(&ca.issue(request).credentials(), &ca.roots())).clone();
    config.alpn_protocols = alpn.iter().map(|a| a.to_vec()).collect();
    Arc::new(config)
}

async fn come_in(ca: &Ca, client: Arc<ClientConfig>) -> Result<Peer, TlsError> {
    let credentials = ca.issue(&Request::master(MASTER)).credentials();
    let config = front_door_config(&credentials, &ca.roots());
    let (near, far) = duplex(16 * 1024);
    let client = async {
        // Whether it comes in is asserted on the other side.
        let connected = TlsConnector::from(client)
            .connect(master_name(), near)
            .await;
        if let Ok(mut stream) = connected {
            let _ = stream.read(&mut [0; 1]).await;
        }
    };
    let door = async {
        let established = accept_client(far, config, in_five_seconds()).await?;
        Ok(established.peer)
    };
    let ((), peer) = tokio::join!(client, door);
    peer
}

#[tokio::test(start_paused = true)]
async fn kube_apiserver_comes_in_without_naming_a_protocol() {
    let ca = Ca::new("kubernetes");
    let request = Request::new("kube-apiserver", &["system:masters"]);

    let peer = come_in(&ca, client(&ca, &request, &[])).await.unwrap();

    let name = policy(&["kube-apiserver"])
        .admits(&peer.certificate)
        .unwrap();
    assert_eq!(name.as_str(), "kube-apiserver");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_prefers_http_2_speaks_http_1_1() {
    let ca = Ca::new("kubernetes");
    let request = Request::new("curl", &[]);

    let both = come_in(&ca, client(&ca, &request, &[b"h2", b"http/1.1"])).await;
    let only_h2 = come_in(&ca, client(&ca, &request, &[b"h2"])).await;

    assert!(both.is_ok());
    let error = only_h2.unwrap_err();
    assert_eq!(
        error.to_string(),
        "TLS handshake with the client failed: it offers application protocols, but not http/1.1"
    );
    assert_eq!(error.kind(), TlsFaultKind::NotHttp1);
}

#[tokio::test(start_paused = true)]
async fn a_client_of_another_ca_does_not_come_in() {
    let (ca, other) = (Ca::new("kubernetes"), Ca::new("other"));
    let credentials = other
        .issue(&Request::new("kube-apiserver", &[]))
        .credentials();
    let mut config = (*agent_config(&credentials, &ca.roots())).clone();
    config.alpn_protocols.clear();

    let error = come_in(&ca, Arc::new(config)).await.unwrap_err();

    assert_eq!(
        error.to_string(),
        "TLS handshake with the client failed: its certificate `CN=kube-apiserver`, issued by \
         `CN=other`, is not signed by a CA that we trust"
    );
}

#[test]
fn a_front_door_for_nobody_is_a_mistake() {
    let error = FrontDoorPolicy::new([]).unwrap_err();

    assert_eq!(
        error.to_string(),
        "the list of client names is empty, expected at least one"
    );
}

#[test]
fn only_listed_names_are_admitted_and_letter_case_matters() {
    let policy = policy(&["kube-apiserver", "ops"]);

    assert!(
        policy
            .admits(&info(&Request::new("ops", &["anything"])))
            .is_ok()
    );
    for name in ["Ops", "ops ", "op", ""] {
        assert!(
            policy.admits(&info(&Request::new(name, &["o"]))).is_err(),
            "{name}"
        );
    }
    let refusal = policy.admits(&info(&Request::new("Ops", &[]))).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "client certificate `CN=Ops` has the common name `Ops`, expected names \
         `kube-apiserver`, `ops`"
    );
}

#[test]
fn a_node_is_never_admitted_even_if_it_is_listed() {
    let policy = policy(&["system:node:10.0.10.3", "x"]);
    let node = info(&Request::node("10.0.10.3"));
    let disguised = info(&Request::new("x", &["other", "system:nodes"]));

    assert_eq!(
        policy.admits(&node).unwrap_err().to_string(),
        "client certificate `O=system:nodes, CN=system:node:10.0.10.3` belongs to a node \
         (organization `system:nodes`): no node may use a front door, listed or not"
    );
    assert!(matches!(
        policy.admits(&disguised),
        Err(FrontDoorRefusal::IsNode { .. })
    ));
}

#[test]
fn a_certificate_with_no_or_two_names_is_not_admitted() {
    use crate::certificate::test_pki::second;
    let policy = policy(&["a", "b"]);
    let none = info(&Request::new("", &["o"]));
    let two = info(&Request::new("a", &[]).attribute(second(4, 3), "b"));

    assert_eq!(
        policy.admits(&none).unwrap_err().to_string(),
        "client certificate `O=o` has 0 common names, expected one"
    );
    assert_eq!(
        policy.admits(&two).unwrap_err().to_string(),
        "client certificate `CN=a, CN=b` has 2 common names, expected one"
    );
}
