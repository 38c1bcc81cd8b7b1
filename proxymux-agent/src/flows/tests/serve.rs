//! Tests of what becomes of a flow that was opened.

use std::time::Duration;

use proxymux_proto::{AbortCode, FlowAbort, FlowDirection, FlowMessage, RefuseCode};
use proxymux_transport::socket;
use tokio::{io::AsyncWriteExt, net::TcpListener, time::timeout};

use crate::flows::{
    Flows,
    testing::{HELLO, Rig, assert_reset, open, read, read_to_end, refusal, within},
};

fn abort(counter: u64, code: AbortCode) -> FlowAbort {
    FlowAbort {
        direction: FlowDirection::Reverse,
        counter,
        code,
    }
}

#[tokio::test]
async fn bytes_go_both_ways_until_both_have_ended_whoever_ends_first() {
    for client_first in [true, false] {
        let rig = Rig::start(1, "").await;
        let (mut client, mut kubelet) = rig.relaying().await;
        let (first, second) = if client_first {
            (&mut client, &mut kubelet)
        } else {
            (&mut kubelet, &mut client)
        };

        first.write_all(b"request").await.unwrap();
        first.shutdown().await.unwrap();
        assert_eq!(read_to_end(second).await, b"request");
        second.write_all(b"answer").await.unwrap();
        second.shutdown().await.unwrap();
        assert_eq!(read_to_end(first).await, b"answer");

        rig.count("streams_closed_total{path=\"reverse\",outcome=\"done\"} 1")
            .await;
        rig.count("streams_open{path=\"reverse\"} 0").await;
        let payload = HELLO.len() + if client_first { 7 } else { 6 };
        let line =
            format!("relayed_bytes_total{{path=\"reverse\",direction=\"to-target\"}} {payload}");
        rig.count(&line).await;
        rig.count("spliced_relays_total 1").await;
    }
}

#[tokio::test]
async fn without_splice_the_bytes_are_the_same() {
    let rig = Rig::start(1, "splice: off\n").await;
    let (mut client, mut kubelet) = rig.relaying().await;
    kubelet.write_all(b"answer").await.unwrap();
    assert_eq!(read(&mut client, 6).await, b"answer");
    rig.count("splice_fallbacks_total{reason=\"off\"} 1").await;
}

#[tokio::test]
async fn a_client_hello_may_come_one_byte_at_a_time() {
    let rig = Rig::start(1, "").await;
    let (mut client, mut kubelet) = rig.opened().await;
    client.set_nodelay(true).unwrap();
    for byte in HELLO {
        client.write_all(&[*byte]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(read(&mut kubelet, HELLO.len()).await, HELLO);
}

#[tokio::test]
async fn a_client_that_ends_without_a_word_is_an_end_in_order() {
    let rig = Rig::start(1, "").await;
    let (mut client, mut kubelet) = rig.opened().await;

    client.shutdown().await.unwrap();

    assert_eq!(read_to_end(&mut kubelet).await, b"");
    drop(kubelet);
    assert_eq!(read_to_end(&mut client).await, b"");
    rig.count("streams_closed_total{path=\"reverse\",outcome=\"done\"} 1")
        .await;
}

#[tokio::test]
async fn what_is_no_tls_is_reset_and_told_and_nothing_of_it_reaches_the_kubelet() {
    let first: [&[u8]; 4] = [b"GET / HTTP/1.1\r\n", b"PXMF", &[0x16, 0x02], &[0x15, 0x03]];
    let mut rig = Rig::start(1, "").await;
    for (counter, bytes) in (1..).zip(first) {
        let (mut client, mut kubelet) = rig.opened().await;
        client.write_all(bytes).await.unwrap();
        assert_reset(&mut client).await;
        assert_eq!(rig.abort().await, abort(counter, AbortCode::NotTls));
        assert_reset(&mut kubelet).await;
    }
    // Half of what TLS begins with is not TLS either.
    let (mut client, mut kubelet) = rig.opened().await;
    client.write_all(&[0x16]).await.unwrap();
    client.shutdown().await.unwrap();
    assert_reset(&mut kubelet).await;

    rig.count("flows_not_tls_total{path=\"reverse\"} 5").await;
    rig.count("streams_closed_total{path=\"reverse\",outcome=\"not-tls\"} 5")
        .await;
    rig.count("relayed_bytes_total{path=\"reverse\",direction=\"to-target\"} 0")
        .await;
}

#[tokio::test]
async fn resets_are_passed_on_both_ways_and_the_kubelets_is_told() {
    let mut rig = Rig::start(1, "").await;
    let (client, mut kubelet) = rig.relaying().await;
    socket::reset_on_close(&client).unwrap();
    drop(client);
    assert_reset(&mut kubelet).await;
    rig.count("streams_closed_total{path=\"reverse\",outcome=\"peer-reset\"} 1")
        .await;

    let (mut client, kubelet) = rig.relaying().await;
    socket::reset_on_close(&kubelet).unwrap();
    drop(kubelet);
    assert_reset(&mut client).await;
    assert_eq!(rig.abort().await, abort(2, AbortCode::Reset));
    rig.count("streams_closed_total{path=\"reverse\",outcome=\"reset\"} 1")
        .await;
}

#[tokio::test]
async fn a_kubelet_that_leaves_before_it_was_asked_anything_ends_the_flow() {
    let mut rig = Rig::start(1, "").await;
    let (mut client, kubelet) = rig.opened().await;
    drop(kubelet);
    assert_reset(&mut client).await;
    assert_eq!(rig.abort().await, abort(1, AbortCode::Reset));
}

#[tokio::test]
async fn a_client_that_leaves_before_its_first_byte_ends_the_kubelets_connection() {
    let rig = Rig::start(1, "").await;
    let (client, mut kubelet) = rig.opened().await;
    socket::reset_on_close(&client).unwrap();
    drop(client);
    assert_reset(&mut kubelet).await;
}

#[tokio::test]
async fn only_the_kubelet_is_a_target_whatever_is_allowed() {
    let rig = Rig::start(1, "allow: [ { cidr: 127.0.0.0/8 } ]\n").await;
    let mut flow = rig.idle().await;

    let (code, words) = refusal(open(&mut flow, "127.0.0.1:1").await);

    assert_eq!(code, RefuseCode::NotAllowed);
    assert_eq!(
        words,
        "target 127.0.0.1:1 is not the kubelet of node worker-1, to which alone flows lead"
    );
    // It ends in order, so that the refusal is heard however late it is read.
    assert_eq!(read_to_end(&mut flow.into_connection()).await, b"");
    rig.count("streams_refused_total{reason=\"not-allowed\"} 1")
        .await;
}

#[tokio::test]
async fn a_kubelet_that_is_not_there_is_a_refusal_with_the_cause() {
    let mut rig = Rig::start(1, "").await;
    let (target, at) = (rig.target(), rig.kubelet.local_addr().unwrap());
    rig.kubelet = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut flow = rig.idle().await;

    let (code, words) = refusal(open(&mut flow, &target).await);

    assert_eq!(code, RefuseCode::Unreachable);
    let expected = format!("node worker-1 cannot connect to its kubelet at {at}: ");
    assert!(words.starts_with(&expected), "{words}");
    assert!(words.contains("refused"), "{words}");
}

#[tokio::test]
async fn a_flow_is_silent_for_as_long_as_idle_timeout_lets_it() {
    let mut rig = Rig::start(1, "idle-timeout: 1s\n").await;
    let (mut client, _kubelet) = rig.opened().await;
    assert_reset(&mut client).await;
    assert_eq!(rig.abort().await, abort(1, AbortCode::Idle));

    let (mut client, _kubelet) = rig.relaying().await;
    assert_reset(&mut client).await;
    assert_eq!(rig.abort().await, abort(2, AbortCode::Idle));
    rig.count("streams_closed_total{path=\"reverse\",outcome=\"idle\"} 2")
        .await;
}

#[tokio::test]
async fn flows_outlive_their_last_session_by_fifteen_seconds_before_and_after_the_first_byte() {
    let mut rig = Rig::start(2, "").await;
    let (mut relaying, _kubelet) = rig.relaying().await;
    let (mut opened, _kubelet) = rig.opened().await;
    rig.flows = None;

    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(14)).await;
    rig.count("streams_open{path=\"reverse\"} 2").await;
    tokio::time::advance(Duration::from_secs(2)).await;
    tokio::time::resume();

    assert_reset(&mut relaying).await;
    assert_reset(&mut opened).await;
    rig.count("streams_closed_total{path=\"reverse\",outcome=\"session-lost\"} 2")
        .await;
}

#[tokio::test]
async fn a_flow_lives_on_with_the_next_session_of_its_master() {
    let mut rig = Rig::start(1, "").await;
    let (mut client, mut kubelet) = rig.relaying().await;
    rig.flows = None;

    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(10)).await;
    rig.flows = rig.session(1, 2);
    tokio::time::advance(Duration::from_secs(60)).await;
    tokio::time::resume();

    kubelet.write_all(b"still there").await.unwrap();
    assert_eq!(read(&mut client, 11).await, b"still there");
}

#[tokio::test]
async fn a_session_that_takes_nothing_new_refuses_with_the_word_for_it() {
    let rig = Rig::start(2, "").await;
    let (mut client, mut kubelet) = rig.relaying().await;
    let mut late = rig.idle().await;
    // The request crosses the agent's decision.
    late.say(&crate::flows::testing::request(&rig.target()))
        .await
        .unwrap();
    rig.agent.closing.close();

    let (code, words) = refusal(within(late.hear()).await.unwrap());

    assert_eq!(code, RefuseCode::Draining);
    assert_eq!(words, "agent of node worker-1 is draining");
    kubelet.write_all(b"on").await.unwrap();
    assert_eq!(read(&mut client, 2).await, b"on");
}

#[tokio::test]
async fn a_drain_waits_for_flows_and_cuts_them_off_when_it_is_out_of_time() {
    let mut rig = Rig::start(2, "").await;
    let (mut client, _kubelet) = rig.relaying().await;
    let finishing = tokio::spawn(Flows::finish(std::sync::Arc::clone(&rig.agent)));
    rig.flows.as_ref().unwrap().close();

    rig.shutdown.drain.cancel();
    let at_once = timeout(
        Duration::from_millis(200),
        rig.flows.as_mut().unwrap().next_abort(),
    );
    assert!(at_once.await.is_err());

    assert_reset(&mut client).await;
    assert_eq!(rig.abort().await.code, AbortCode::Drain);
    within(finishing).await.unwrap();
    assert_eq!(rig.flows.as_ref().unwrap().running(), 0);
    rig.count("streams_closed_total{path=\"reverse\",outcome=\"drain\"} 1")
        .await;
}

#[tokio::test]
async fn a_master_that_gives_the_flow_up_meanwhile_is_not_dialled_for() {
    let rig = Rig::start(1, "").await;
    let mut flow = rig.idle().await;
    let FlowMessage::Open(_) = crate::flows::testing::request(&rig.target()) else {
        panic!("an open request");
    };
    flow.say(&crate::flows::testing::request(&rig.target()))
        .await
        .unwrap();
    drop(flow);
    rig.count("streams_refused_total{reason=\"cancelled\"} 1")
        .await;
}
