//! Who may speak when, and what becomes of a client that leaves.

use tokio::net::{TcpListener, TcpStream};

use super::*;

#[tokio::test(start_paused = true)]
async fn the_target_may_speak_once_the_client_has() {
    let (gateway, mut relayed) = Fake::that_greets(Plan::Open, b"hi");
    let mut client = connect(&gateway);
    client.write_all(REQUEST).await.unwrap();
    expect_established(&mut client).await;
    let start = Instant::now();

    client.write_all(b"\x16\x03").await.unwrap();
    client.shutdown().await.unwrap();

    assert_eq!(read_all(&mut client).await, "hi");
    assert_eq!(start.elapsed(), Duration::ZERO);
    let relayed = relayed.recv().await.unwrap();
    assert_eq!(
        [&relayed.early[..], &relayed.rest.unwrap()].concat(),
        b"\x16\x03"
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_that_waits_for_the_target_hears_it_after_the_limit() {
    let (gateway, _relayed) = Fake::that_greets(Plan::Open, b"220 ready\r\n");
    let mut client = connect(&gateway);
    client.write_all(REQUEST).await.unwrap();
    expect_established(&mut client).await;
    let start = Instant::now();

    let mut greeting = [0; 11];
    client.read_exact(&mut greeting).await.unwrap();

    assert_eq!(&greeting, b"220 ready\r\n");
    assert_eq!(start.elapsed().as_secs(), serve::HOLD_LIMIT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_ends_its_direction_after_the_200_can_still_be_spoken_to() {
    let (gateway, mut relayed) = Fake::that_greets(Plan::Open, b"all there is");
    let mut client = connect(&gateway);
    client.write_all(REQUEST).await.unwrap();
    expect_established(&mut client).await;
    let start = Instant::now();

    client.shutdown().await.unwrap();

    assert_eq!(read_all(&mut client).await, "all there is");
    assert_eq!(start.elapsed(), Duration::ZERO);
    let relayed = relayed.recv().await.unwrap();
    assert!(relayed.early.is_empty());
    assert_eq!(relayed.rest.unwrap(), b"");
}

#[tokio::test(start_paused = true)]
async fn bytes_behind_the_header_go_to_the_target_first_and_open_the_way_back() {
    let (gateway, mut relayed) = Fake::that_greets(Plan::Open, b"hi");
    let mut client = connect(&gateway);
    let start = Instant::now();
    client
        .write_all(&[REQUEST, b"first "].concat())
        .await
        .unwrap();
    expect_established(&mut client).await;
    client.write_all(b"second").await.unwrap();
    client.shutdown().await.unwrap();

    assert_eq!(read_all(&mut client).await, "hi");
    assert_eq!(start.elapsed(), Duration::ZERO);
    let relayed = relayed.recv().await.unwrap();
    assert!(relayed.early.starts_with(b"first "));
    assert_eq!(
        [&relayed.early[..], &relayed.rest.unwrap()].concat(),
        b"first second"
    );
}

#[tokio::test(start_paused = true)]
async fn a_second_connect_is_payload() {
    let (gateway, mut relayed) = Fake::new(Plan::Open);
    let mut client = connect(&gateway);
    client.write_all(REQUEST).await.unwrap();
    expect_established(&mut client).await;
    client.write_all(REQUEST).await.unwrap();
    client.shutdown().await.unwrap();

    assert_eq!(read_all(&mut client).await, "");
    let relayed = relayed.recv().await.unwrap();
    assert_eq!(
        [&relayed.early[..], &relayed.rest.unwrap()].concat(),
        REQUEST
    );
    assert_eq!(gateway.asked().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn payload_that_comes_before_the_answer_is_kept_up_to_a_limit_and_none_is_lost() {
    let (gateway, mut relayed) = Fake::new(Plan::OpenAfter(Duration::from_secs(1)));
    let (near, mut client) = duplex(1024);
    tokio::spawn(serve(near.into(), arrival(), LIMITS, gateway.clone()));
    let payload: Vec<u8> = (0..100_000_u32)
        .map(|i| i.to_le_bytes()[i as usize % 3])
        .collect();

    let (mut reader, mut writer) = tokio::io::split(&mut client);
    let sent = async {
        writer.write_all(REQUEST).await.unwrap();
        writer.write_all(&payload).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    tokio::join!(sent, expect_established(&mut reader));

    let relayed = relayed.recv().await.unwrap();
    assert_eq!(relayed.early.len(), serve::MAX_EARLY_LEN);
    assert!([&relayed.early[..], &relayed.rest.unwrap()].concat() == payload);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_before_the_answer_cancels_the_opening() {
    for early in [&b""[..], b"payload"] {
        let (gateway, _relayed) = Fake::new(Plan::Never);
        let mut client = connect(&gateway);
        client.write_all(&[REQUEST, early].concat()).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        assert_eq!((gateway.asked().len(), gateway.cancelled()), (1, 0));

        client.shutdown().await.unwrap();

        // Without an answer, as there is nobody to read it.
        assert_eq!(read_all(&mut client).await, "");
        assert_eq!(gateway.cancelled(), 1);
    }
}

#[tokio::test]
async fn a_client_that_is_reset_before_the_answer_cancels_the_opening() {
    let (gateway, _relayed) = Fake::new(Plan::Never);
    let (mut client, served) = connect_tcp(&gateway).await;
    client.write_all(REQUEST).await.unwrap();

    client.set_zero_linger().unwrap();
    drop(client);

    served.await.unwrap();
    assert_eq!(gateway.cancelled(), 1);
}

#[tokio::test]
async fn a_client_that_is_reset_after_the_200_does_not_look_like_an_end() {
    let (gateway, mut relayed) = Fake::new(Plan::Open);
    let (mut client, served) = connect_tcp(&gateway).await;
    client.write_all(REQUEST).await.unwrap();
    expect_established(&mut client).await;

    client.set_zero_linger().unwrap();
    drop(client);

    served.await.unwrap();
    let error = relayed.recv().await.unwrap().rest.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_answer_arrives_although_the_client_has_sent_more_than_was_read() {
    let (gateway, _relayed) = Fake::new(Plan::Open);
    let (mut client, served) = connect_tcp(&gateway).await;
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    client.write_all(&[b'x'; 60_000]).await.unwrap();

    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();

    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    drop(client);
    served.await.unwrap();
}

async fn connect_tcp(gateway: &Fake) -> (TcpStream, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (stream, _) = accepted.unwrap();
    let served = tokio::spawn(serve(stream.into(), arrival(), LIMITS, gateway.clone()));
    (client.unwrap(), served)
}
