//! What a client sends, and which answer it gets.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_200_is_the_whole_answer() {
    let (gateway, mut relayed) = Fake::that_greets(Plan::Open, b"target's first words");
    let mut client = connect(&gateway);

    client.write_all(REQUEST).await.unwrap();

    expect_established(&mut client).await;
    let almost = serve::HOLD_LIMIT - Duration::from_millis(1);
    assert!(
        is_silent_for(&mut client, almost).await,
        "something followed the 200"
    );
    drop(client);
    let request = relayed.recv().await.unwrap().request;
    assert_eq!(request.target.to_string(), "10.0.10.10:10250");
    assert_eq!(request.arrival.peer, "unix:pid=7,uid=0");
}

#[tokio::test(start_paused = true)]
async fn the_target_is_the_request_line_whatever_host_says() {
    for (line, target) in [
        ("CONNECT Node-A:10250 HTTP/1.1", "node-a:10250"),
        ("CONNECT [fd00::10]:443 HTTP/1.1", "[fd00::10]:443"),
        ("CONNECT 10.0.10.11:1 HTTP/1.0", "10.0.10.11:1"),
    ] {
        let (gateway, _relayed) = Fake::new(Plan::Open);
        let mut client = connect(&gateway);
        let request = format!("{line}\r\nHost: 127.0.0.1\r\nUser-Agent: probe\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        expect_established(&mut client).await;
        assert_eq!(gateway.asked().first().unwrap().0, target);
    }
}

#[tokio::test(start_paused = true)]
async fn a_header_may_come_in_pieces() {
    let (gateway, _relayed) = Fake::new(Plan::Open);
    let mut client = connect(&gateway);
    for byte in REQUEST {
        client.write_all(&[*byte]).await.unwrap();
        sleep(Duration::from_millis(50)).await;
    }
    expect_established(&mut client).await;
}

#[tokio::test(start_paused = true)]
async fn a_header_that_is_too_slow_is_408() {
    for (budget, limit, said) in [(8, 5, "5s"), (2, 2, "2s")] {
        let (gateway, _relayed) = Fake::new(Plan::Open);
        let mut client = connect_with_budget(&gateway, Duration::from_secs(budget));
        let start = Instant::now();
        client
            .write_all(b"CONNECT 10.0.10.10:1 HTTP/1.1\r\nHost")
            .await
            .unwrap();

        let mut status = vec![0; 12];
        client.read_exact(&mut status).await.unwrap();

        assert_eq!(start.elapsed().as_secs(), limit);
        assert_eq!(
            String::from_utf8(status).unwrap() + &read_all(&mut client).await,
            format!(
                "HTTP/1.1 408 request header not complete after {said}\r\n\
                 Content-Length: 0\r\nConnection: close\r\n\r\n"
            )
        );
        assert_eq!(gateway.asked(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_header_that_is_too_large_is_431() {
    let (gateway, _relayed) = Fake::new(Plan::Open);
    let request = [
        &b"CONNECT a:1 HTTP/1.1\r\nX: "[..],
        &[b'x'; 40_000],
        b"\r\n\r\n",
    ]
    .concat();
    let answer = answer_to(&request, &gateway).await;
    assert!(
        answer.starts_with("HTTP/1.1 431 request header too large"),
        "{answer}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_no_connect_request_is_400_or_405() {
    for (bytes, status) in [
        (
            &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"[..],
            "400 malformed request",
        ),
        (
            b"\r\n\r\nhello there\r\n\r\n",
            "405 method not allowed, expected CONNECT",
        ),
        (
            b"CONNECT nowhere HTTP/1.1\r\n\r\n",
            "400 target has no port, expected host:port",
        ),
        (
            b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
            "405 method not allowed, expected CONNECT",
        ),
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "405 method not allowed, expected CONNECT",
        ),
    ] {
        let (gateway, _relayed) = Fake::new(Plan::Open);
        let answer = answer_to(bytes, &gateway).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
        assert!(
            answer.ends_with("\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
            "{answer}"
        );
        assert_eq!(gateway.asked(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_ends_early_is_400_and_an_empty_one_is_no_request() {
    for (bytes, expected) in [
        (
            &b"CONNECT 10.0.10.10:1 HTTP/1.1\r\n"[..],
            "HTTP/1.1 400 request header ended early\r\n\
             Content-Length: 0\r\nConnection: close\r\n\r\n",
        ),
        (b"", ""),
    ] {
        let (gateway, _relayed) = Fake::new(Plan::Open);
        let mut client = connect(&gateway);
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut client).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn the_gateways_refusal_is_the_answer_with_nothing_that_breaks_the_line() {
    for status in Status::ALL {
        let reason = "node \u{e4}\r\nX-Injected: 1\r\n\r\n\x1b[31m has no session";
        let (gateway, mut relayed) = Fake::new(Plan::Refuse(Refusal::new(status, reason)));
        let answer = answer_to(REQUEST, &gateway).await;
        assert_eq!(
            answer,
            format!(
                "HTTP/1.1 {} node ???X-Injected: 1?????[31m has no session\r\n\
                 Content-Length: 0\r\nConnection: close\r\n\r\n",
                status.code()
            )
        );
        drop(gateway);
        assert!(relayed.recv().await.is_none(), "relayed all the same");
    }
}

#[tokio::test(start_paused = true)]
async fn every_request_is_answered_within_the_budget() {
    let (gateway, _relayed) = Fake::new(Plan::Never);
    let start = Instant::now();

    let answer = answer_to(REQUEST, &gateway).await;

    assert_eq!(
        answer,
        "HTTP/1.1 504 no answer from 10.0.10.10:10250 within 8s\r\n\
         Content-Length: 0\r\nConnection: close\r\n\r\n"
    );
    // The client has its answer at 8 s; the rest is the front door waiting for the client's end.
    assert_eq!(start.elapsed().as_secs(), 8);
    assert_eq!(gateway.cancelled(), 1);
}

#[tokio::test(start_paused = true)]
async fn time_spent_on_the_header_is_taken_from_the_budget() {
    let (gateway, _relayed) = Fake::new(Plan::Never);
    let mut client = connect(&gateway);
    let start = Instant::now();
    sleep(Duration::from_secs(4)).await;
    client.write_all(REQUEST).await.unwrap();
    assert!(read_all(&mut client).await.starts_with("HTTP/1.1 504 "));
    assert_eq!(start.elapsed().as_secs(), 8);
    assert_eq!(
        gateway.asked().first().unwrap().1,
        Duration::from_millis(3900)
    );
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_uses_its_whole_budget_says_why_itself() {
    let plan = Plan::RefuseAtDeadline("node 10.0.10.10 does not answer, last seen 9s ago");
    let (gateway, _relayed) = Fake::new(plan);
    let answer = answer_to(REQUEST, &gateway).await;
    assert!(
        answer.starts_with("HTTP/1.1 504 node 10.0.10.10 does not answer, last"),
        "{answer}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_refused_client_that_stays_is_closed_on() {
    let (gateway, _relayed) = Fake::new(Plan::Open);
    let mut client = connect(&gateway);
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    read_all(&mut client).await;
    sleep(Duration::from_secs(1)).await;
    let error = client.write_all(b"more").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_connection_costs_little_beside_its_relay() {
    let (gateway, _relayed) = Fake::new(Plan::Open);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (size, relay) = runtime.block_on(async {
        let client = || Client::from(duplex(1).0);
        let relay = gateway.relay(
            client(),
            Bytes::new(),
            (),
            RequestInfo {
                target: "a:1".parse().unwrap(),
                arrival: arrival(),
            },
        );
        let whole = serve(client(), arrival(), LIMITS, gateway.clone());
        (size_of_val(&whole), size_of_val(&relay))
    });
    assert!(
        size < relay + 1536,
        "{size} bytes, of which the relay has {relay}"
    );
}
