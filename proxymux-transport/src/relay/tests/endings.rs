//! Connections that end in all the ways in which they do.
//!
//! Closed, half-closed, reset, one before the other, with something left to move or not.
//! What was cut off must never look like an end, nor an ordinary close like a reset.

use super::*;

#[tokio::test]
async fn a_reset_is_passed_on_as_a_reset_both_ways() {
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    for client_resets in [true, false] {
        let mut rig = tcp_rig(&mut session).await;
        rig.client.write_all(b"some").await.unwrap();
        rig.server.write_all(b"some").await.unwrap();
        let mut some = [0; 4];
        rig.server.read_exact(&mut some).await.unwrap();
        rig.client.read_exact(&mut some).await.unwrap();

        let outcomes = if client_resets {
            reset(rig.client);
            assert_reset(&mut rig.server).await;
            (rig.master.outcome().await, rig.agent.outcome().await)
        } else {
            reset(rig.server);
            assert_reset(&mut rig.client).await;
            (rig.agent.outcome().await, rig.master.outcome().await)
        };

        let peer = Outcome::PeerAborted(AbortCode::Reset);
        assert_eq!(outcomes, (Outcome::LocalReset, peer));
        session.is_empty().await;
    }
}

#[tokio::test]
async fn either_end_knows_why_a_connection_was_cut_off() {
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    let mut rig = tcp_rig(&mut session).await;

    reset(rig.client);

    let outcomes = (rig.master.outcome().await, rig.agent.outcome().await);
    let peer = Outcome::PeerAborted(AbortCode::Reset);
    assert_eq!(outcomes, (Outcome::LocalReset, peer));
    let at_master = rig.master.bytes.problem().unwrap_or_default();
    assert!(at_master.contains("reset by peer"), "{at_master}");
    let at_agent = rig.agent.bytes.problem().unwrap_or_default();
    assert!(
        at_agent.starts_with("peer aborted the stream"),
        "{at_agent}"
    );
}

#[tokio::test]
async fn an_orderly_end_has_no_error() {
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    let mut rig = tcp_rig(&mut session).await;
    rig.client.shutdown().await.unwrap();
    rig.server.shutdown().await.unwrap();

    let outcomes = (rig.master.outcome().await, rig.agent.outcome().await);

    assert_eq!(outcomes, (Outcome::Done, Outcome::Done));
    let problems = [rig.master.bytes.problem(), rig.agent.bytes.problem()];
    assert_eq!(problems, [None, None]);
}

#[tokio::test]
async fn a_reset_of_a_half_closed_connection_is_passed_on() {
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    for client_resets in [true, false] {
        for client_ends in [true, false] {
            let mut rig = tcp_rig(&mut session).await;
            let (ending, far) = if client_ends {
                (&mut rig.client, &mut rig.server)
            } else {
                (&mut rig.server, &mut rig.client)
            };
            ending.shutdown().await.unwrap();
            assert_eq!(read_all(far).await.unwrap(), b"");
            let before = Instant::now();

            let (first, mut left) = if client_resets {
                (rig.client, rig.server)
            } else {
                (rig.server, rig.client)
            };
            reset(first);

            // Where one side has had its end it cannot be told more; writing says it.
            eventually(LIMIT, || {
                socket::hang_up(&left) == HangUp::Failed || left.try_write(b"x").is_err()
            })
            .await;
            let outcomes = (rig.master.outcome().await, rig.agent.outcome().await);
            let peer = Outcome::PeerAborted(AbortCode::Reset);
            let expected = if client_resets {
                (Outcome::LocalReset, peer)
            } else {
                (peer, Outcome::LocalReset)
            };
            assert_eq!(outcomes, expected);
            session.is_empty().await;
            println!("noticed after {:?}", before.elapsed());
            let _ = left.shutdown().await;
        }
    }
}

#[tokio::test]
async fn a_client_that_is_reset_while_its_upload_is_blocked_is_noticed() {
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    let (mut agent, master) = session.open_relay().await;
    let (client, near) = tcp_pair(None).await;
    let mut relay = Running::start(near, master, &options());
    // Nobody reads the stream: the window and the sockets fill up.
    while let Ok(writable) = timeout(Duration::from_millis(200), client.writable()).await {
        writable.unwrap();
        let _ = client.try_write(&[7; 100_000]);
    }
    let before = Instant::now();

    reset(client);

    assert_eq!(relay.outcome().await, Outcome::LocalReset);
    println!("noticed after {:?}", before.elapsed());
    let error = std::future::poll_fn(|cx| agent.poll_given_up(cx)).await;
    assert!(matches!(error, StreamError::Aborted(AbortCode::Reset)));
    agent.finish();
    session.is_empty().await;
    assert!(before.elapsed() < Duration::from_secs(10));
}

/// The client closes as most do, without waiting for anything; the server then says a last word
/// and ends, `pause` after the one and the other.
async fn close_first<C, A: Endpoint, S: AsyncRead + AsyncWrite + Unpin>(
    session: &mut Session,
    client: (C, impl Endpoint),
    server: (A, S),
    last_word: &[u8],
    pause: Duration,
) -> [Outcome; 2] {
    let mut rig = rig(session, client, server).await;
    // So long that whatever looks after connections is about to.
    tokio::time::sleep(2 * WATCH_PERIOD).await;
    drop(rig.client);
    assert_eq!(read_all(&mut rig.server).await.unwrap(), b"");
    tokio::time::sleep(pause).await;
    // Too late, it fails.
    let _ = rig.server.write_all(last_word).await;
    tokio::time::sleep(pause).await;
    let _ = rig.server.shutdown().await;
    [rig.master.outcome().await, rig.agent.outcome().await]
}

const LAST_WORDS: [&[u8]; 3] = [b"", b"goodbye", &[7; 100_000]];

#[tokio::test(start_paused = true)]
async fn a_unix_client_that_closes_leaves_the_server_time_for_an_orderly_end() {
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    for last_word in LAST_WORDS {
        for (pause, orderly) in [(LEAVE_GRACE / 3, true), (2 * LEAVE_GRACE, false)] {
            let (client, server) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
            let outcomes = close_first(&mut session, client, server, last_word, pause).await;
            let peer = Outcome::PeerAborted(AbortCode::Reset);
            let expected = if orderly {
                [Outcome::Done, Outcome::Done]
            } else {
                [Outcome::LocalReset, peer]
            };
            assert_eq!(outcomes, expected);
            session.is_empty().await;
        }
    }
}

#[tokio::test]
async fn a_tcp_client_that_closes_leaves_the_server_time_for_an_orderly_end() {
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    for last_word in LAST_WORDS {
        let (client, server) = (tcp_pair(None).await, tcp_pair(None).await);
        let outcomes = close_first(&mut session, client, server, last_word, Duration::ZERO).await;
        assert_eq!(outcomes, [Outcome::Done, Outcome::Done]);
        session.is_empty().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_bytes_of_a_client_that_takes_no_more_are_passed_on() {
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    let (mut agent, master) = session.open_relay().await;
    let (mut client, near) = UnixStream::pair().unwrap();
    client.write_all(b"last words").await.unwrap();
    drop(client);
    // There before the relay looks for the first time, and it has nowhere to go.
    send(&mut agent, b"too late").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;

    let mut relay = Running::start(near, master, &options());

    assert_eq!(receive_all(&mut agent).await.unwrap(), b"last words");
    end(&mut agent).await.unwrap();
    assert_eq!(relay.outcome().await, Outcome::Done);
    assert_eq!(relay.counted(), (10, 0));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_closed_waits_for_a_slow_server_to_take_its_last_bytes() {
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    let (mut agent, master) = session.open_relay().await;
    let (client, near) = UnixStream::pair().unwrap();
    drop(client);
    // This finds out early that the client takes no more.
    send(&mut agent, b"too late").await.unwrap();
    // No credit for all of it.
    let early = vec![7; 300_000];
    let mut relay = Running::with_early(near, master, &early, &options());
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!relay.outcome.is_finished());

    assert_eq!(receive_all(&mut agent).await.unwrap(), early);

    // Only now does the server's time begin.
    tokio::time::sleep(LEAVE_GRACE / 2).await;
    end(&mut agent).await.unwrap();
    assert_eq!(relay.outcome().await, Outcome::Done);
}

impl Endpoint for Gated<UnixStream> {
    fn socket(&self) -> BorrowedFd<'_> {
        self.io.as_fd()
    }

    fn reset_on_close(&mut self) {}

    fn end_on_close(&mut self) {}
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ends_after_both_directions_did_is_not_missed() {
    let mut session = Session::in_memory(LIMITS);
    let (mut agent, master) = session.open_relay().await;
    let (mut client, near) = UnixStream::pair().unwrap();
    let (near, gate) = Gate::around(near);
    client.shutdown().await.unwrap();
    end(&mut agent).await.unwrap();
    // As with TLS, whose goodbye has to be written.
    gate.close();
    let mut relay = Running::start(near, master, &options());
    assert_eq!(receive(&mut agent).await.unwrap(), None);
    session.master.driver.abort();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!relay.outcome.is_finished());

    gate.open();

    assert_eq!(relay.outcome().await, Outcome::Done);
    assert_eq!(read_all(&mut client).await.unwrap(), b"");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_closes_its_unix_socket_after_its_half_is_noticed() {
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    let (mut agent, master) = session.open_relay().await;
    let (mut client, near) = UnixStream::pair().unwrap();
    let mut relay = Running::start(near, master, &options());
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(receive_all(&mut agent).await.unwrap(), b"question");
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!relay.outcome.is_finished());
    let before = Instant::now();

    drop(client);

    assert_eq!(relay.outcome().await, Outcome::LocalReset);
    let error = std::future::poll_fn(|cx| agent.poll_given_up(cx)).await;
    assert!(matches!(error, StreamError::Aborted(AbortCode::Reset)));
    let noticed = before.elapsed();
    assert!(noticed <= Duration::from_millis(1100), "{noticed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_unix_client_that_closes_has_its_last_bytes_passed_on() {
    let mut session = Session::in_memory(LIMITS);
    let (mut agent, master) = session.open_relay().await;
    let (mut client, near) = UnixStream::pair().unwrap();
    let payload = vec![7; 600_000];
    let writing = tokio::spawn({
        let payload = payload.clone();
        async move {
            client.write_all(&payload).await.unwrap();
            client
        }
    });
    let _relay = Running::start(near, master, &options());
    // The window is full, the client has written all it wants and goes.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let received = tokio::spawn(async move { receive_all(&mut agent).await });
    drop(writing.await.unwrap());
    assert_eq!(received.await.unwrap().unwrap(), payload);
}

#[tokio::test]
async fn a_closed_connection_may_wait_for_the_stream_to_take_its_last_bytes() {
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    let (mut agent, master) = session.open_relay().await;
    let (mut client, near) = tcp_pair(None).await;
    client.shutdown().await.unwrap();
    // Exactly what fills the window, so that there is no credit for the mark of the end.
    let window = 256 * 1024 - message(b"open").len();
    let full = window / (MAX_CHUNK_LEN + 4);
    let early = vec![7; window - 4 * (full + 1)];
    let mut relay = Running::with_early(near, master, &early, &options());
    end(&mut agent).await.unwrap();
    assert_eq!(read_all(&mut client).await.unwrap(), b"");
    drop(client);
    eventually(LIMIT, || relay.counted().0 == early.len() as u64).await;

    // Longer than anything that looks after connections.
    tokio::time::sleep(3 * WATCH_PERIOD).await;
    assert!(!relay.outcome.is_finished());

    assert_eq!(receive_all(&mut agent).await.unwrap(), early);
    assert_eq!(relay.outcome().await, Outcome::Done);
    agent.finish();
    session.is_empty().await;
}
