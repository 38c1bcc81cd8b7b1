//! Peers that speak TLS but not proxymux/1.
//!
//! TLS itself refuses only a mismatch of two lists; the rest is for our own check, and both ends
//! make it.

use super::*;

const NOT_PROXYMUX: TlsFaultKind = TlsFaultKind::NotProxymux;

#[tokio::test(start_paused = true)]
async fn a_client_that_offers_no_protocol_is_refused_after_the_handshake() {
    let ca = Ca::new("kubernetes");
    let silent = client_with(&ca, |client| client.alpn_protocols.clear());

    let ended = shake_hands(silent, good_master(&ca)).await;

    // The client's side of this test is our own `connect`, so it has the same complaint.
    assert_eq!(
        ended.logs,
        logs(
            "TLS handshake with the master failed: it does not speak proxymux/1 (no application \
             protocol was agreed on); Oracle's own control plane and agent do not",
            "TLS handshake with the agent failed: it does not speak proxymux/1 (no application \
             protocol was agreed on); Oracle's own control plane and agent do not",
        )
    );
    assert_eq!(ended.kinds, kinds(NOT_PROXYMUX, NOT_PROXYMUX));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_offers_other_protocols_is_refused() {
    let ca = Ca::new("kubernetes");
    let browser = client_with(&ca, |client| {
        client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    });

    let ended = shake_hands(browser, good_master(&ca)).await;

    assert_eq!(
        ended.logs,
        logs(
            "TLS handshake with the master failed: it does not speak proxymux/1 (it refused the \
             application protocol); Oracle's own control plane and agent do not",
            "TLS handshake with the agent failed: it does not speak proxymux/1 (it offers other \
             application protocols); Oracle's own control plane and agent do not",
        )
    );
    assert_eq!(ended.kinds, kinds(NOT_PROXYMUX, NOT_PROXYMUX));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_knows_no_protocols_is_not_taken_for_a_master() {
    let ca = Ca::new("kubernetes");
    let ignorant = server_with(&ca, |server| server.alpn_protocols.clear());

    let ended = shake_hands(good_agent(&ca), ignorant).await;

    assert_eq!(
        ended.logs.agent.as_deref(),
        Some(
            "TLS handshake with the master failed: it does not speak proxymux/1 (no application \
             protocol was agreed on); Oracle's own control plane and agent do not"
        )
    );
}

#[tokio::test(start_paused = true)]
async fn a_server_that_knows_other_protocols_is_not_taken_for_a_master() {
    let ca = Ca::new("kubernetes");
    let web = server_with(&ca, |server| server.alpn_protocols = vec![b"h2".to_vec()]);

    let ended = shake_hands(good_agent(&ca), web).await;

    assert_eq!(
        ended.logs.agent.as_deref(),
        Some(
            "TLS handshake with the master failed: it does not speak proxymux/1 (it refused the \
             application protocol); Oracle's own control plane and agent do not"
        )
    );
    assert_eq!(ended.kinds.agent, Some(NOT_PROXYMUX));
}

#[tokio::test(start_paused = true)]
async fn ends_that_agree_on_something_else_are_not_ours() {
    let ca = Ca::new("kubernetes");
    let client = client_with(&ca, |client| client.alpn_protocols = vec![b"h\n2".to_vec()]);
    let server = server_with(&ca, |server| server.alpn_protocols = vec![b"h\n2".to_vec()]);

    let ended = shake_hands(client, server).await;

    assert_eq!(
        ended.logs.master.as_deref(),
        Some(
            "TLS handshake with the agent failed: it does not speak proxymux/1 (application \
             protocol `h?2` was agreed on); Oracle's own control plane and agent do not"
        )
    );
}
