//! Tests of streams between two ends of a session.
//!
//! An end is only ever what the peer marked as one, and whatever else happens to a stream
//! reaches who holds it, whatever he waits for.

use std::time::Duration;

use tokio::{io::AsyncWriteExt, time::timeout};

use super::*;
use crate::mux::{Role, testing::*};

#[tokio::test(start_paused = true)]
async fn each_direction_ends_by_itself() {
    let mut session = Session::in_memory(LIMITS);
    let (mut near, mut far) = session.open_relay().await;
    for _ in 0..2 {
        let (mut first, mut second) = (near, far);
        send(&mut first, b"question").await.unwrap();
        end(&mut first).await.unwrap();
        assert_eq!(receive_all(&mut second).await.unwrap(), b"question");
        // The other direction goes on, for as long as it likes.
        for _ in 0..100 {
            send(&mut second, &[7; 20_000]).await.unwrap();
            let mut n = 0;
            while n < 20_000 {
                n += receive(&mut first).await.unwrap().unwrap().len();
            }
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        end(&mut second).await.unwrap();
        assert_eq!(receive(&mut first).await.unwrap(), None);
        first.finish();
        second.finish();
        session.is_empty().await;
        (far, near) = session.open_relay().await;
    }
    drop((near, far));
    session.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_dropped_without_an_end_is_never_taken_for_ended() {
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    for agent_drops in [true, false] {
        let (agent, master) = session.open_relay().await;
        let (mut dropped, mut left) = if agent_drops {
            (agent, master)
        } else {
            (master, agent)
        };
        send(&mut dropped, b"some").await.unwrap();
        drop(dropped);
        let error = receive_all(&mut left).await.unwrap_err();
        assert!(
            matches!(
                error,
                StreamError::CutOff | StreamError::Aborted(AbortCode::Reset)
            ),
            "{error:?}"
        );
        left.finish();
        session.is_empty().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_reason_of_an_abort_arrives_behind_the_data_where_there_is_credit() {
    let mut session = Session::in_memory(LIMITS);
    for _ in 0..2 {
        let (mut agent, mut master) = session.open_relay().await;
        send(&mut agent, b"some").await.unwrap();
        agent.abort(AbortCode::Idle);
        assert_eq!(receive(&mut master).await.unwrap().unwrap(), b"some");
        let error = receive(&mut master).await.unwrap_err();
        assert!(matches!(error, StreamError::Aborted(AbortCode::Idle)));
        master.finish();
        session.is_empty().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_abort_of_a_stalled_stream_goes_by_the_control_stream() {
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    for agent_aborts in [true, false] {
        let (agent, master) = session.open_relay().await;
        let (mut aborted, mut left) = if agent_aborts {
            (agent, master)
        } else {
            (master, agent)
        };
        let stalled = timeout(
            Duration::from_secs(1),
            send(&mut aborted, &vec![7; 1 << 20]),
        )
        .await;
        assert!(stalled.is_err());
        let before = tokio::time::Instant::now();

        aborted.abort(AbortCode::Drain);

        let error = std::future::poll_fn(|cx| left.poll_given_up(cx)).await;
        assert!(matches!(error, StreamError::Aborted(AbortCode::Drain)));
        left.finish();
        session.is_empty().await;
        assert!(before.elapsed() < Duration::from_secs(1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_half_closed_stream_that_is_aborted_is_free_within_a_second() {
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    for case in 0..4 {
        let (mut agent, mut master) = session.open_relay().await;
        let (ending, aborting) = (case & 1, case & 2);
        end(if ending == 0 { &mut agent } else { &mut master })
            .await
            .unwrap();
        let (aborted, mut left) = if aborting == 0 {
            (agent, master)
        } else {
            (master, agent)
        };
        let before = tokio::time::Instant::now();

        aborted.abort(AbortCode::Reset);

        // As a relay does it: the end is read, and the abort comes all the same.
        let error = std::future::poll_fn(|cx| match left.poll_fill(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(error),
            _ => left.poll_given_up(cx),
        });
        let error = error.await;
        assert!(
            matches!(
                error,
                StreamError::CutOff | StreamError::Aborted(AbortCode::Reset)
            ),
            "{error:?}"
        );
        left.finish();
        session.is_empty().await;
        assert!(before.elapsed() < Duration::from_secs(1), "case {case}");
    }
    session.assert_alive();
}

#[tokio::test(start_paused = true)]
async fn a_reset_after_the_peers_end_is_noticed_without_the_control_stream() {
    let mut session = Session::in_memory(LIMITS);
    let (mut agent, mut master) = session.open_relay().await;
    end(&mut agent).await.unwrap();
    assert_eq!(receive(&mut master).await.unwrap(), None);
    let quiet = timeout(
        Duration::from_secs(1),
        std::future::poll_fn(|cx| master.poll_given_up(cx)),
    )
    .await;
    assert!(quiet.is_err());

    drop(agent);

    let error = std::future::poll_fn(|cx| master.poll_given_up(cx)).await;
    assert!(matches!(error, StreamError::CutOff), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_let_go_of_an_ended_stream_has_not_reset_it() {
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    let (mut agent, mut master) = session.open_relay().await;
    end(&mut master).await.unwrap();
    send(&mut agent, &vec![7; 100_000]).await.unwrap();
    end(&mut agent).await.unwrap();
    assert_eq!(receive(&mut agent).await.unwrap(), None);
    agent.finish();
    tokio::time::sleep(Duration::from_secs(1)).await;

    let quiet = timeout(
        Duration::from_secs(1),
        std::future::poll_fn(|cx| master.poll_given_up(cx)),
    )
    .await;

    assert!(quiet.is_err());
    assert_eq!(receive_all(&mut master).await.unwrap().len(), 100_000);
    let quiet = timeout(
        Duration::from_secs(1),
        std::future::poll_fn(|cx| master.poll_given_up(cx)),
    )
    .await;
    assert!(quiet.is_err());
    master.finish();
    session.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_reset_is_noticed_by_who_waits_for_something_else() {
    let (io, mut master) = tokio::io::duplex(1 << 16);
    let mut agent = End::start(io, Role::Agent, LIMITS);
    let opens = Frame::data(SYN, 2, &message(b"open"));
    master.write_all(&opens.encode()).await.unwrap();
    let mut stream = agent.incoming.next().await.unwrap();
    assert_eq!(stream.receive().await.unwrap().unwrap(), &b"open"[..]);
    let quiet = timeout(Duration::from_secs(1), stream.given_up()).await;
    assert!(quiet.is_err());

    let reset = Frame::data(RST, 2, b"");
    master.write_all(&reset.encode()).await.unwrap();

    let error = stream.given_up().await;
    assert!(matches!(error, StreamError::CutOff), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn what_arrives_for_who_waits_for_something_else_is_kept() {
    let mut session = Session::in_memory(LIMITS);
    let (mut agent, mut master) = session.open().await;
    master.send(&message(b"early")).await.unwrap();
    let quiet = timeout(Duration::from_secs(1), agent.given_up()).await;
    assert!(quiet.is_err());
    assert_eq!(agent.receive().await.unwrap().unwrap(), &b"early"[..]);
}

#[tokio::test(start_paused = true)]
async fn what_follows_an_end_breaks_the_framing() {
    let mut session = Session::in_memory(LIMITS);
    let (mut agent, master) = session.open().await;
    let mut master = master.into_relay();
    agent.queue(ChunkHeader::end().as_bytes());
    agent.queue(ChunkHeader::end().as_bytes());
    std::future::poll_fn(|cx| agent.poll_send(cx))
        .await
        .unwrap();
    assert_eq!(receive(&mut master).await.unwrap(), None);
    let error = std::future::poll_fn(|cx| master.poll_given_up(cx)).await;
    assert!(matches!(error, StreamError::Chunk(ChunkError::AfterEnd)));
}

#[tokio::test(start_paused = true)]
async fn a_chunk_that_is_none_breaks_the_framing() {
    let mut session = Session::in_memory(LIMITS);
    let (mut agent, master) = session.open().await;
    let mut master = master.into_relay();
    agent.send(&[9, 0, 0, 1, 7]).await.unwrap();
    let error = receive(&mut master).await.unwrap_err();
    assert!(matches!(error, StreamError::Chunk(ChunkError::Kind(9))));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_too_long_breaks_the_framing() {
    let mut session = Session::in_memory(LIMITS);
    let (mut agent, mut master) = session.open().await;
    agent.send(&[0, 1, 0, 1, 7]).await.unwrap();
    let error = master.receive().await.unwrap_err();
    assert!(matches!(error, StreamError::Frame(_)), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn chunks_behind_the_last_message_are_not_lost() {
    let mut session = Session::in_memory(LIMITS);
    let (mut agent, mut master) = session.open().await;
    let mut bytes = message(b"opened").to_vec();
    bytes.extend_from_slice(ChunkHeader::data(5).unwrap().as_bytes());
    bytes.extend_from_slice(b"hello");
    bytes.extend_from_slice(ChunkHeader::end().as_bytes());
    agent.send(&bytes).await.unwrap();

    assert_eq!(master.receive().await.unwrap().unwrap(), &b"opened"[..]);
    let mut master = master.into_relay();

    assert_eq!(receive_all(&mut master).await.unwrap(), b"hello");
}

#[tokio::test(start_paused = true)]
async fn a_message_queued_before_the_chunks_goes_first() {
    let mut session = Session::in_memory(LIMITS);
    let (mut agent, mut master) = session.open().await;
    agent.queue(&message(b"opened"));
    let mut agent = agent.into_relay();
    send(&mut agent, b"hello").await.unwrap();
    assert_eq!(master.receive().await.unwrap().unwrap(), &b"opened"[..]);
    let received = receive(&mut master.into_relay()).await.unwrap();
    assert_eq!(received.unwrap(), b"hello");
}

/// Ends a session in one of the ways in which sessions end, all of them in the middle.
async fn end_session(session: &Session, way: u8) {
    match way {
        0 => session.master.driver.abort(),
        1 => session.master.mux.close(),
        2 => session.agent.driver.abort(),
        _ => session.agent.mux.close(),
    }
    eventually(Duration::from_secs(1), || {
        session.agent.mux.is_over() && session.master.mux.is_over()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_session_is_never_taken_for_an_end() {
    for way in 0..4 {
        let mut session = Session::in_memory(LIMITS);
        let mut streams = Vec::new();
        for _ in 0..2 {
            let (mut agent, mut master) = session.open_relay().await;
            send(&mut agent, b"some").await.unwrap();
            send(&mut master, b"some").await.unwrap();
            streams.extend([agent, master]);
        }
        end_session(&session, way).await;
        for mut stream in streams {
            let error = receive_all(&mut stream).await.unwrap_err();
            assert!(
                matches!(error, StreamError::SessionGone),
                "way {way}: {error:?}"
            );
            let error = std::future::poll_fn(|cx| stream.poll_end(cx))
                .await
                .unwrap_err();
            assert!(matches!(error, StreamError::SessionGone), "{error:?}");
        }
        session.is_empty().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_lost_by_a_breach_is_not_taken_for_resets_of_its_streams() {
    let breaches = [
        Frame::plain(9, 0, 0, 0),
        Frame::plain(DATA, 0, 2, u32::MAX),
        Frame::plain(GO_AWAY, 0, 0, 2),
        Frame::plain(WINDOW_UPDATE, 0, 2, u32::MAX),
    ];
    for breach in breaches {
        let (io, mut peer) = tokio::io::duplex(1 << 16);
        let mut agent = End::start(io, Role::Agent, LIMITS);
        let opens = Frame::data(SYN, 2, &message(b"open"));
        let frames = [opens.encode(), breach.encode()].concat();
        peer.write_all(&frames).await.unwrap();
        let mut stream = agent.incoming.next().await.unwrap();
        assert_eq!(stream.receive().await.unwrap().unwrap(), &b"open"[..]);
        let error = stream.receive().await.unwrap_err();
        assert!(matches!(error, StreamError::SessionGone), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_credit_is_woken_by_the_end_of_the_stream() {
    for way in 0..6 {
        let mut session = Session::in_memory(LIMITS);
        session.play_control();
        let (mut agent, master) = session.open_relay().await;
        let sending =
            tokio::spawn(async move { send(&mut agent, &vec![7; 1 << 20]).await.unwrap_err() });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!sending.is_finished());

        match way {
            0..4 => {
                end_session(&session, way).await;
                drop(master);
            }
            4 => drop(master),
            _ => master.abort(AbortCode::Idle),
        }

        let error = timeout(Duration::from_secs(1), sending).await;
        let error = error.unwrap().unwrap();
        match way {
            0..4 => assert!(matches!(error, StreamError::SessionGone), "{error:?}"),
            4 => assert!(matches!(error, StreamError::Aborted(AbortCode::Reset))),
            _ => assert!(matches!(error, StreamError::Aborted(AbortCode::Idle))),
        }
        session.is_empty().await;
    }
}
