//! Handshakes between two ends in memory, above all those that fail.
//!
//! Owns the harness that gives what each side's log would say; the cases are grouped by what goes
//! wrong. Every refusal is asserted on both sides.

use rustls::{HandshakeKind, ProtocolVersion, RootCertStore, crypto::CryptoProvider};
use tokio::io::{DuplexStream, duplex};

use super::*;
use crate::certificate::{
    NodeIdentity,
    test_pki::{Ca, Issued, Request},
};

mod alpn;
mod certificates;
mod front_door;
mod peers;

const MASTER: &str = "master.example";

/// What each side's log says at the end of a handshake; `None` if the side has nothing to complain
/// about, even after it has read from the stream.
#[derive(Debug, Eq, PartialEq)]
struct Logs {
    agent: Option<String>,
    master: Option<String>,
}

/// What each side counts, in the same way.
#[derive(Debug, Eq, PartialEq)]
struct Kinds {
    agent: Option<TlsFaultKind>,
    master: Option<TlsFaultKind>,
}

struct Ended {
    logs: Logs,
    kinds: Kinds,
}

fn master_name() -> ServerName<'static> {
    ServerName::try_from(MASTER).unwrap()
}

fn in_five_seconds() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

/// An agent with a good certificate of `ca`, which is also what it trusts.
fn good_agent(ca: &Ca) -> Arc<ClientConfig> {
    let credentials = ca.issue(&Request::node("10.0.10.3")).credentials();
    agent_config(&credentials, &ca.roots())
}

/// A master with a good certificate of `ca`, which is also what it trusts.
fn good_master(ca: &Ca) -> Arc<ServerConfig> {
    let credentials = ca.issue(&Request::master(MASTER)).credentials();
    master_config(&credentials, &ca.roots())
}

/// Lets an agent that shows `node` meet a master that shows `master`; both trust only `ca`.
async fn meet(ca: &Ca, node: &Issued, master: &Issued) -> Ended {
    let agent = agent_config(&node.credentials(), &ca.roots());
    let master = master_config(&master.credentials(), &ca.roots());
    shake_hands(agent, master).await
}

async fn shake_hands(agent: Arc<ClientConfig>, master: Arc<ServerConfig>) -> Ended {
    let (near, far) = duplex(16 * 1024);
    let (agent, master) = tokio::join!(agent_side(near, agent), master_side(far, master));
    Ended {
        logs: Logs {
            agent: agent.as_ref().map(|(_, text)| text.clone()),
            master: master.as_ref().map(|(_, text)| text.clone()),
        },
        kinds: Kinds {
            agent: agent.map(|(kind, _)| kind),
            master: master.map(|(kind, _)| kind),
        },
    }
}

/// What the agent sees: in the handshake, or at its first read, as the session's code would.
async fn agent_side(
    stream: DuplexStream,
    config: Arc<ClientConfig>,
) -> Option<(TlsFaultKind, String)> {
    match connect(stream, config, master_name(), in_five_seconds()).await {
        Err(error) => Some((error.kind(), whole_text(&error))),
        Ok(mut established) => {
            let error = established.stream.read(&mut [0; 64]).await.err()?;
            let fault = describe_io_error(&error)?;
            Some((fault.kind(), whole_text(&fault)))
        }
    }
}

async fn master_side(
    stream: DuplexStream,
    config: Arc<ServerConfig>,
) -> Option<(TlsFaultKind, String)> {
    match accept(stream, config, in_five_seconds()).await {
        Err(error) => Some((error.kind(), whole_text(&error))),
        Ok(mut established) => {
            established.stream.shutdown().await.unwrap();
            None
        }
    }
}

/// The error with all its sources on one line, as a log shows it.
fn whole_text(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn logs(agent: &str, master: &str) -> Logs {
    Logs {
        agent: Some(agent.to_owned()),
        master: Some(master.to_owned()),
    }
}

fn kinds(agent: TlsFaultKind, master: TlsFaultKind) -> Kinds {
    Kinds {
        agent: Some(agent),
        master: Some(master),
    }
}

/// A client of ours in everything but what `change` changes.
fn client_with(ca: &Ca, change: impl FnOnce(&mut ClientConfig)) -> Arc<ClientConfig> {
    let mut config = (*good_agent(ca)).clone();
    change(&mut config);
    Arc::new(config)
}

/// A server of ours in everything but what `change` changes.
fn server_with(ca: &Ca, change: impl FnOnce(&mut ServerConfig)) -> Arc<ServerConfig> {
    let mut config = (*good_master(ca)).clone();
    change(&mut config);
    Arc::new(config)
}

#[tokio::test(start_paused = true)]
async fn agent_and_master_learn_who_the_other_is() {
    let ca = Ca::new("kubernetes");
    let node = ca.issue(&Request::node("10.0.10.3").ip("10.0.10.3"));
    let master = ca.issue(&Request::master(MASTER));
    let agent_config = agent_config(&node.credentials(), &ca.roots());
    let master_config = master_config(&master.credentials(), &ca.roots());
    let (near, far) = duplex(16 * 1024);

    let (agent, master_end) = tokio::join!(
        connect(near, agent_config, master_name(), in_five_seconds()),
        accept(far, master_config, in_five_seconds()),
    );

    let (mut agent, mut master_end) = (agent.unwrap(), master_end.unwrap());
    assert_eq!(agent.peer.certificate.subject, "CN=proxymux-master");
    assert_eq!(agent.peer.chain, [master.der]);
    let identity = NodeIdentity::from_certificate(&master_end.peer.certificate).unwrap();
    assert_eq!(identity.name.as_str(), "10.0.10.3");
    assert_eq!(master_end.peer.chain, [node.der]);
    let connection = agent.stream.get_ref().1;
    assert_eq!(
        connection.protocol_version(),
        Some(ProtocolVersion::TLSv1_3)
    );
    assert_eq!(
        connection.negotiated_cipher_suite(),
        Some(cipher_suite::TLS13_AES_128_GCM_SHA256)
    );

    agent.stream.write_all(b"ping").await.unwrap();
    agent.stream.flush().await.unwrap();
    let mut read = [0; 4];
    master_end.stream.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"ping");
}

#[tokio::test(start_paused = true)]
async fn two_good_ends_have_nothing_to_complain_about() {
    let ca = Ca::new("kubernetes");

    let ended = shake_hands(good_agent(&ca), good_master(&ca)).await;

    let (agent, master) = (None, None);
    assert_eq!(ended.logs, Logs { agent, master });
}

/// How the handshake of each of two connections in a row was done, as the client sees it after it
/// has read everything that the server sent.
async fn twice(agent: Arc<ClientConfig>, master: Arc<ServerConfig>) -> Vec<HandshakeKind> {
    let mut seen = Vec::new();
    for _ in 0..2 {
        let (near, far) = duplex(16 * 1024);
        let server = async {
            let mut master = accept(far, Arc::clone(&master), in_five_seconds())
                .await
                .unwrap();
            master.stream.shutdown().await.unwrap();
        };
        let client = async {
            let mut agent = connect(near, Arc::clone(&agent), master_name(), in_five_seconds())
                .await
                .unwrap();
            assert_eq!(agent.stream.read(&mut [0; 1]).await.unwrap(), 0);
            let connection = agent.stream.get_ref().1;
            assert!(!connection.is_early_data_accepted());
            (
                connection.handshake_kind().unwrap(),
                connection.tls13_tickets_received(),
            )
        };
        let ((), (kind, tickets)) = tokio::join!(server, client);
        seen.push(kind);
        assert!(
            tickets == 0 || master.send_tls13_tickets > 0,
            "{tickets} tickets"
        );
    }
    seen
}

#[tokio::test(start_paused = true)]
async fn a_master_gives_nothing_to_resume_with() {
    let ca = Ca::new("kubernetes");
    let eager = client_with(&ca, |client| {
        client.resumption = Resumption::in_memory_sessions(8);
        client.enable_early_data = true;
    });

    let seen = twice(eager, good_master(&ca)).await;

    assert_eq!(seen, [HandshakeKind::Full, HandshakeKind::Full]);
}

#[tokio::test(start_paused = true)]
async fn an_agent_resumes_nothing_although_it_could() {
    let ca = Ca::new("kubernetes");
    let generous = || {
        server_with(&ca, |server| {
            server.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
            server.send_tls13_tickets = 2;
        })
    };
    let eager = client_with(&ca, |client| {
        client.resumption = Resumption::in_memory_sessions(8);
    });

    let could = twice(eager, generous()).await;
    let does = twice(good_agent(&ca), generous()).await;

    assert_eq!(could, [HandshakeKind::Full, HandshakeKind::Resumed]);
    assert_eq!(does, [HandshakeKind::Full, HandshakeKind::Full]);
}

#[test]
fn early_data_is_off_on_both_ends() {
    let ca = Ca::new("kubernetes");

    assert!(!good_agent(&ca).enable_early_data);
    assert_eq!(good_master(&ca).max_early_data_size, 0);
}

#[test]
fn only_suites_of_tls_1_3_are_there_and_aes_128_comes_first() {
    let provider = provider();

    let first = provider.cipher_suites.first().unwrap();
    assert_eq!(
        first.suite(),
        cipher_suite::TLS13_AES_128_GCM_SHA256.suite()
    );
    assert_eq!(provider.cipher_suites.len(), 3);
    assert!(provider.cipher_suites.iter().all(|s| s.tls13().is_some()));
}

#[test]
fn labels_of_metrics_are_distinct_and_well_formed() {
    let labels: std::collections::BTreeSet<_> =
        TlsFaultKind::ALL.iter().map(|kind| kind.as_str()).collect();

    assert_eq!(labels.len(), TlsFaultKind::ALL.len());
    for label in labels {
        assert!(
            label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
            "{label}"
        );
    }
}

#[test]
fn retrying_is_for_faults_that_pass() {
    assert!(TlsFaultKind::TimedOut.retry_can_help());
    assert!(TlsFaultKind::PeerCertificateNotYetValid.retry_can_help());
    assert!(!TlsFaultKind::PeerCertificateExpired.retry_can_help());
    assert!(!TlsFaultKind::NotProxymux.retry_can_help());
}

#[test]
fn errors_that_are_not_about_tls_are_not_explained() {
    let plain = io::Error::from(io::ErrorKind::ConnectionReset);
    let end = io::Error::new(io::ErrorKind::UnexpectedEof, "no close_notify");

    assert!(describe_io_error(&plain).is_none());
    assert!(describe_io_error(&end).is_none());
}

/// A provider without our order, for ends that are not ours.
fn foreign_provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn root_store(ca: &Ca) -> RootCertStore {
    let mut store = RootCertStore::empty();
    store.add(ca.der.clone()).unwrap();
    store
}
