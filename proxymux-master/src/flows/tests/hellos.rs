//! Who becomes a flow, and who does not; nobody else is disturbed by either.

use proxymux_proto::{FLOW_HELLO_LEN, FlowDirection, REPLAY_WINDOW};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// Sends bytes to the door; whatever comes back, the connection ends.
async fn send(stage: &Stage, bytes: &[u8], then_end: bool) -> TcpStream {
    let mut connection = TcpStream::connect(stage.door).await.unwrap();
    connection.write_all(bytes).await.unwrap();
    if then_end {
        connection.shutdown().await.unwrap();
    }
    connection
}

async fn sees_the_end(connection: &mut TcpStream) {
    let end = tokio::time::timeout(SOON, connection.read_to_end(&mut Vec::new())).await;
    // In order or not: the connection is of no more use.
    let _ = end.expect("it ends");
}

#[tokio::test]
async fn a_good_hello_is_answered_and_its_flow_waits_in_the_pool() {
    let stage = Stage::with("").await;
    let flow = stage.idle().await;
    assert_eq!(stage.flows().pool.len(), 1);
    assert!(flow.is_quiet());
    assert_eq!(stage.master.metrics.flows.idle.get(), 1);
}

#[tokio::test]
async fn what_is_not_to_be_believed_is_refused_by_its_reason_and_good_ones_still_come_in() {
    let stage = Stage::with("").await;
    let good = stage.idle().await;
    let (_, replayed) = stage.agent.hello(FlowDirection::Reverse);
    let first = send(&stage, &replayed, false).await;
    eventually(|| stage.flows().pool.len() == 2).await;
    let mut forged = stage.agent.hello(FlowDirection::Reverse).1.to_vec();
    forged[FLOW_HELLO_LEN - 1] ^= 1;
    let strangers = FlowTable::new();
    let unknown = strangers.enter(flow_keys(99), ());
    let mut version = stage.agent.hello(FlowDirection::Reverse).1.to_vec();
    version[4] = 9;
    let cases: Vec<(&'static str, Vec<u8>, bool)> = vec![
        ("replayed", replayed.to_vec(), false),
        ("forged", forged, false),
        (
            "unknown-session",
            unknown.hello(FlowDirection::Reverse).1.to_vec(),
            false,
        ),
        (
            "wrong-direction",
            stage.agent.hello(FlowDirection::Direct).1.to_vec(),
            false,
        ),
        ("version", version, false),
        ("connection", replayed[..10].to_vec(), true),
    ];

    for (word, bytes, then_end) in cases {
        let before = stage.refused(word);
        let mut connection = send(&stage, &bytes, then_end).await;
        sees_the_end(&mut connection).await;
        eventually(|| stage.refused(word) == before + 1).await;
    }

    assert_eq!(stage.flows().pool.len(), 2);
    let again = stage.idle().await;
    assert!(good.is_quiet() && again.is_quiet());
    drop(first);
}

#[tokio::test]
async fn what_only_begins_with_the_same_letter_is_named_as_no_tls() {
    let stage = Stage::with("").await;

    let mut connection = send(&stage, b"POST / HTTP/1.1\r\n\r\n", false).await;

    sees_the_end(&mut connection).await;
    let failed = &stage.master.metrics.arrivals_failed;
    eventually(|| failed.get("tls").get() == 1).await;
    assert_eq!(stage.refused("not-a-hello"), 0);
}

#[tokio::test]
async fn a_hello_far_behind_the_others_is_stale() {
    let stage = Stage::with("").await;
    let (_, old) = stage.agent.hello(FlowDirection::Reverse);
    for _ in 0..REPLAY_WINDOW {
        let _ = stage.agent.hello(FlowDirection::Reverse);
    }
    let _newest = stage.idle().await;

    let mut connection = send(&stage, &old, false).await;

    sees_the_end(&mut connection).await;
    eventually(|| stage.refused("stale") == 1).await;
}

#[tokio::test]
async fn a_hello_that_is_not_complete_in_time_is_given_up() {
    let stage = Stage::with("").await;
    let (_, hello) = stage.agent.hello(FlowDirection::Reverse);
    let began = Instant::now();

    let mut connection = send(&stage, &hello[..FLOW_HELLO_LEN - 1], false).await;
    sees_the_end(&mut connection).await;

    assert!(began.elapsed() >= Duration::from_secs(4));
    eventually(|| stage.refused("slow") == 1).await;
    assert_eq!(stage.flows().pool.len(), 0);
}

#[tokio::test]
async fn a_pool_takes_twice_what_was_asked_for() {
    let stage = Stage::with("flow-pool: 1\n").await;
    let (_one, two) = (stage.idle().await, stage.idle().await);

    let mut three = stage.hello().await;

    let answer = tokio::time::timeout(SOON, three.hear()).await.unwrap();
    assert!(
        matches!(
            answer,
            Ok(FlowMessage::Refused {
                code: RefuseCode::Busy,
                ..
            })
        ),
        "{answer:?}"
    );
    eventually(|| stage.refused("pool-full") == 1).await;
    // A dead one makes room.
    drop(two);
    eventually(|| {
        stage.flows().pool.upkeep();
        stage.flows().pool.len() == 1
    })
    .await;
    let _four = stage.idle().await;
}

#[tokio::test]
async fn a_session_that_takes_nothing_new_has_no_flows_any_more() {
    let stage = Stage::with("").await;
    let mut idle = stage.idle().await;

    stage.master.registry.leave(&stage.session.handle);

    let ended = tokio::time::timeout(SOON, idle.hear()).await.unwrap();
    assert!(ended.is_err(), "{ended:?}");
    let mut late = stage.hello().await;
    let answer = tokio::time::timeout(SOON, late.hear()).await.unwrap();
    assert!(
        matches!(
            answer,
            Ok(FlowMessage::Refused {
                code: RefuseCode::Draining,
                ..
            })
        ),
        "{answer:?}"
    );
    eventually(|| stage.refused("draining") == 1).await;
}

#[tokio::test]
async fn two_nodes_behind_one_address_have_their_own_flows() {
    let stage = Stage::with("").await;
    let other = Registration {
        node: testing::name("worker-2"),
        ..with_flows(2, None)
    };
    let of_other = stage.master.flows.of_session(&other, flow_keys(2)).unwrap();
    let table = FlowTable::new();
    let other_agent = table.enter(flow_keys(2), ());

    let _ours = stage.idle().await;
    let connection = TcpStream::connect(stage.door).await.unwrap();
    let dialled = FlowConnection::dial(connection, &other_agent, FlowDirection::Reverse, None);
    let mut theirs = dialled.await.unwrap();
    assert_eq!(theirs.hear().await.unwrap(), FlowMessage::Accepted);
    eventually(|| of_other.pool.len() == 1).await;

    assert_eq!(stage.flows().pool.len(), 1);
}

#[tokio::test]
async fn without_verified_certificates_or_a_willing_agent_there_are_no_flows() {
    for lines in ["", "fast-path: off\n", "flow-pool: 0\n"] {
        let verified = if lines.is_empty() { "" } else { VERIFIED };
        let master = testing::master(&format!("{verified}{lines}"));
        let flows = master.flows.of_session(&with_flows(1, None), flow_keys(1));
        assert!(flows.is_none(), "{lines:?}");
        assert_eq!(master.flows.first_pool(flows.as_ref()), 0);
        assert!(master.flows.off().is_some());
    }
    let master = testing::master(VERIFIED);
    let unwilling = master
        .flows
        .of_session(&registration(NODE, 1), flow_keys(1));
    assert!(unwilling.is_none());
    let willing = master.flows.of_session(&with_flows(1, None), flow_keys(1));
    assert_eq!(master.flows.first_pool(willing.as_ref()), 4);
}
