//! What the log says of requests that were not granted.

use super::*;
use crate::testing::log::Log;

#[tokio::test(start_paused = true)]
async fn a_refusal_is_one_line_with_its_cause() {
    let (log, _guard) = Log::capture();
    let refusal = Refusal::new(Status::Unavailable, "node a has no session\nforged: line");
    let (gateway, _relayed) = Fake::new(Plan::Refuse(refusal));

    answer_to(REQUEST, &gateway).await;

    assert_eq!(
        log.lines(),
        [
            "INFO access: connection refused path=\"none\" target=10.0.10.10:10250 \
          peer.addr=\"unix:pid=7,uid=0\" door=\"unix\" status=503 \
          reason=\"node a has no session?forged: line\" duration_ms=0"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_target_is_logged_without_one() {
    let (log, _guard) = Log::capture();
    let (gateway, _relayed) = Fake::new(Plan::Open);
    answer_to(b"GET / HTTP/1.1\r\n\r\n", &gateway).await;
    assert_eq!(
        log.lines(),
        [
            "INFO access: connection refused path=\"none\" peer.addr=\"unix:pid=7,uid=0\" \
          door=\"unix\" status=405 reason=\"method not allowed, expected CONNECT\" duration_ms=0"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_that_left_is_logged_if_it_had_asked_for_something() {
    let (log, _guard) = Log::capture();
    let (gateway, _relayed) = Fake::new(Plan::Never);
    for request in [REQUEST, b""] {
        let mut client = connect(&gateway);
        client.write_all(request).await.unwrap();
        sleep(Duration::from_millis(1500)).await;
        client.shutdown().await.unwrap();
        read_all(&mut client).await;
    }
    assert_eq!(
        log.lines(),
        [
            "INFO access: connection cancelled path=\"none\" target=10.0.10.10:10250 \
          peer.addr=\"unix:pid=7,uid=0\" door=\"unix\" reason=\"client left before the answer\" \
          duration_ms=1500"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_granted_request_is_left_to_the_relays_log() {
    let (log, _guard) = Log::capture();
    let (gateway, mut relayed) = Fake::new(Plan::Open);
    let mut client = connect(&gateway);
    client.write_all(REQUEST).await.unwrap();
    expect_established(&mut client).await;
    drop(client);
    relayed.recv().await.unwrap();
    assert_eq!(log.lines(), [] as [&str; 0]);
}
