//! Flows over loopback: what is read and what is left, what is refused and how that ends.
//!
//! Keys are made up except where two ends of a TLS session export theirs.

use std::time::Duration;

use proxymux_proto::{FlowOpen, OpenRequest, RefuseCode};
use rustls::pki_types::ServerName;
use tokio::{net::TcpListener, time::Instant};

use super::*;
use crate::{
    certificate::test_pki::{Ca, Request},
    tls,
};

fn some_keys(session: u8) -> Arc<FlowKeys> {
    let export = |context: &[u8], out: &mut [u8]| {
        out.fill(session ^ context.iter().fold(0, |sum, byte| sum ^ byte));
        Ok::<(), ()>(())
    };
    Arc::new(FlowKeys::export(export).unwrap())
}

async fn connections() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (dialled, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (dialled.unwrap(), accepted.unwrap().0)
}

fn open() -> FlowMessage {
    FlowMessage::Open(FlowOpen::Target(OpenRequest {
        target: "10.0.10.10:10250".parse().unwrap(),
        budget: Duration::from_secs(8),
        measure: None,
    }))
}

#[tokio::test]
async fn payload_that_follows_the_last_message_is_left_in_the_socket() {
    let (near, far) = connections().await;
    let (masters, agents) = (FlowTable::new(), FlowTable::new());
    let master = masters.enter(some_keys(1), ());
    let _agent = agents.enter(some_keys(1), "agent");

    let open = open();
    let dialled = FlowConnection::dial(near, &master, FlowDirection::Direct, Some(&open));
    let mut near = dialled.await.unwrap();
    let accepted = FlowConnection::accept(far, &[], &agents, FlowDirection::Direct);
    let (mut far, of) = accepted.await.unwrap();
    assert_eq!(of, "agent");
    assert_eq!(far.hear().await.unwrap(), open);
    far.say(&FlowMessage::Accepted).await.unwrap();
    far.say(&FlowMessage::Opened).await.unwrap();
    let mut far = far.into_connection();
    far.write_all(b"payload").await.unwrap();
    drop(far);

    assert_eq!(near.hear().await.unwrap(), FlowMessage::Accepted);
    assert_eq!(near.hear().await.unwrap(), FlowMessage::Opened);
    let mut payload = String::new();
    near.into_connection()
        .read_to_string(&mut payload)
        .await
        .unwrap();
    assert_eq!(payload, "payload");
}

#[tokio::test]
async fn a_hello_is_found_whatever_part_of_it_was_read_before() {
    for early in [0, 1, FLOW_HELLO_LEN] {
        let (mut near, mut far) = connections().await;
        let table = FlowTable::new();
        let session = table.enter(some_keys(1), ());
        let (_, hello) = session.hello(FlowDirection::Reverse);
        near.write_all(&hello).await.unwrap();
        let mut read = vec![0; early];
        far.read_exact(&mut read).await.unwrap();
        FlowConnection::accept(far, &read, &table, FlowDirection::Reverse)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn what_is_not_believed_is_reset_and_named() {
    let table = FlowTable::new();
    let session = table.enter(some_keys(1), ());
    let (_, good) = session.hello(FlowDirection::Reverse);
    table
        .accept(good[..].try_into().unwrap(), FlowDirection::Reverse)
        .unwrap();
    let other_table = FlowTable::new();
    let other = other_table.enter(some_keys(2), ());
    let mut forged = session.hello(FlowDirection::Reverse).1.to_vec();
    forged[40] ^= 1;
    let cases = [
        ("replayed", good.to_vec()),
        ("forged", forged),
        (
            "unknown-session",
            other.hello(FlowDirection::Reverse).1.to_vec(),
        ),
        (
            "wrong-direction",
            session.hello(FlowDirection::Direct).1.to_vec(),
        ),
        ("not-a-hello", vec![b'P'; FLOW_HELLO_LEN]),
        ("connection", b"PXMF".to_vec()),
    ];
    for (word, bytes) in cases {
        let (mut near, far) = connections().await;
        near.write_all(&bytes).await.unwrap();
        if word == "connection" {
            near.shutdown().await.unwrap();
        }
        let fault = FlowConnection::accept(far, &[], &table, FlowDirection::Reverse)
            .await
            .unwrap_err();
        assert_eq!(fault.as_str(), word);
        assert!(FlowFault::WORDS.contains(&word));
        let error = near.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{word}");
    }
}

#[tokio::test]
async fn a_session_that_is_over_has_no_flows() {
    let table = FlowTable::new();
    let session = table.enter(some_keys(1), ());
    let (_, hello) = session.hello(FlowDirection::Reverse);
    drop(session);
    let refused = table.accept(hello[..].try_into().unwrap(), FlowDirection::Reverse);
    assert_eq!(refused.unwrap_err().as_str(), "unknown-session");
}

#[tokio::test]
async fn an_idle_flow_is_quiet_until_its_peer_says_something_or_leaves() {
    for leaves in [true, false] {
        let (near, far) = connections().await;
        let table = FlowTable::new();
        let session = table.enter(some_keys(1), ());
        let dialled = FlowConnection::dial(near, &session, FlowDirection::Reverse, None);
        let mut near = dialled.await.unwrap();
        let accepted = FlowConnection::accept(far, &[], &table, FlowDirection::Reverse);
        let (mut far, ()) = accepted.await.unwrap();
        assert!(near.is_quiet());
        if leaves {
            drop(far);
        } else {
            let refusal = FlowMessage::Refused {
                code: RefuseCode::Busy,
                message: "full".to_owned(),
            };
            far.say(&refusal).await.unwrap();
        }
        near.readable().await.unwrap();
        assert!(!near.is_quiet());
        assert_eq!(near.hear().await.is_err(), leaves);
    }
}

#[tokio::test]
async fn a_message_that_was_read_to_its_end_leaves_nothing_to_be_read() {
    let (near, far) = connections().await;
    let table = FlowTable::new();
    let session = table.enter(some_keys(1), ());
    let dialled = FlowConnection::dial(near, &session, FlowDirection::Reverse, None);
    let mut near = dialled.await.unwrap();
    let accepted = FlowConnection::accept(far, &[], &table, FlowDirection::Reverse);
    let (mut far, ()) = accepted.await.unwrap();
    far.say(&FlowMessage::Accepted).await.unwrap();
    near.hear().await.unwrap();

    let early = tokio::time::timeout(Duration::from_millis(50), near.readable()).await;
    assert!(early.is_err());

    far.say(&open()).await.unwrap();
    near.readable().await.unwrap();
    assert_eq!(near.hear().await.unwrap(), open());
}

#[tokio::test]
async fn both_ends_of_a_tls_session_have_the_same_keys_and_no_other_session_has() {
    let first = session_keys().await;
    assert_eq!(first[0].session(), first[1].session());
    let [agents, masters] = first.map(|keys| (FlowTable::new(), keys));
    let agent = agents.0.enter(agents.1, ());
    let _master = masters.0.enter(masters.1, ());
    for direction in [FlowDirection::Reverse, FlowDirection::Direct] {
        let (_, hello) = agent.hello(direction);
        masters
            .0
            .accept(hello[..].try_into().unwrap(), direction)
            .unwrap();
    }

    let second = session_keys().await;
    assert_ne!(second[0].session(), agent.id());
}

/// What the two ends of a new session export.
async fn session_keys() -> [Arc<FlowKeys>; 2] {
    let ca = Ca::new("test CA");
    let of_agent = ca.issue(&Request::node("node-a")).credentials();
    let of_master = ca.issue(&Request::master("master")).credentials();
    let roots = ca.roots();
    let (near, far) = tokio::io::duplex(16 * 1024);
    let deadline = Instant::now() + Duration::from_secs(10);
    let name = ServerName::try_from("master").unwrap();
    let (agent, master) = tokio::join!(
        tls::connect(near, tls::agent_config(&of_agent, &roots), name, deadline),
        tls::accept(far, tls::master_config(&of_master, &roots), deadline),
    );
    [
        keys(agent.unwrap().stream.get_ref().1).unwrap(),
        keys(master.unwrap().stream.get_ref().1).unwrap(),
    ]
}
