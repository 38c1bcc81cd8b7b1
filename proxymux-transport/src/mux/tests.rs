//! Tests of the multiplexer.
//!
//! Streams come, go and leave nothing, and the session's end reaches everybody.
//! Limits, hostile peers and full pipes have files of their own.

use std::{task::Waker, time::Duration};

use tokio::{io::AsyncWriteExt, time::timeout};

use super::{testing::*, *};
use crate::stream::StreamError;

mod hostile;
mod limits;
mod saturation;
mod turns;

#[tokio::test(start_paused = true)]
async fn a_stream_of_either_end_works_and_leaves_nothing() {
    let mut session = Session::in_memory(LIMITS);
    let mut control = session.agent.mux.open().await.unwrap();
    control.send(&message(b"register")).await.unwrap();
    let mut far_control = session.master.incoming.next().await.unwrap();
    assert_eq!(
        far_control.receive().await.unwrap().unwrap(),
        &b"register"[..]
    );
    let (mut agent, mut master) = session.open().await;
    agent.send(&message(b"opened")).await.unwrap();
    assert_eq!(master.receive().await.unwrap().unwrap(), &b"opened"[..]);
    assert_eq!((control.id(), far_control.id()), (1, 1));
    assert_eq!((agent.id(), master.id()), (2, 2));
    assert_eq!(session.agent.mux.streams(), 2);
    assert_eq!(session.master.mux.streams(), 2);

    drop((control, far_control, agent, master));

    session.is_empty().await;
    session.assert_alive();
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_before_a_stream_was_let_go_still_arrives() {
    let mut session = Session::in_memory(LIMITS);
    let (mut agent, mut master) = session.open().await;
    agent.send(&message(b"refused")).await.unwrap();
    agent.finish();

    assert_eq!(master.receive().await.unwrap().unwrap(), &b"refused"[..]);
    assert!(master.receive().await.unwrap().is_none());
    master.finish();
    session.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_reset_within_a_message_is_no_end() {
    let mut session = Session::in_memory(LIMITS);
    let (mut agent, mut master) = session.open().await;
    agent.send(&message(b"refused")[..7]).await.unwrap();
    drop(agent);
    assert!(matches!(master.receive().await, Err(StreamError::CutOff)));
}

#[tokio::test(start_paused = true)]
async fn an_abort_reaches_a_peer_that_waits_for_a_message_or_for_nothing() {
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    let (mut agent, master) = session.open().await;
    master.abort(AbortCode::Cancelled);
    let error = agent.given_up().await;
    assert!(matches!(error, StreamError::Aborted(AbortCode::Cancelled)));
    let error = agent.receive().await.unwrap_err();
    assert!(matches!(error, StreamError::Aborted(AbortCode::Cancelled)));
    agent.finish();

    let (agent, mut master) = session.open().await;
    agent.abort(AbortCode::Drain);
    // The agent's reset may come before the word on the control stream.
    match master.receive().await {
        Ok(None) | Err(StreamError::Aborted(AbortCode::Drain)) => {}
        other => panic!("{other:?}"),
    }
    drop(master);
    session.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn an_abort_that_overtakes_the_first_frame_of_its_stream_ends_it() {
    let mut session = Session::in_memory(LIMITS);
    let mut master = session.master.mux.open().await.unwrap();
    let id = master.id();
    session.agent.mux.abort_received(id, AbortCode::Cancelled);
    master.send(&message(b"open")).await.unwrap();

    let mut agent = session.agent.incoming.next().await.unwrap();

    let error = agent.given_up().await;
    assert!(matches!(error, StreamError::Aborted(AbortCode::Cancelled)));
    drop((agent, master));
    session.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_the_peer_never_heard_of_does_not_linger() {
    let session = Session::in_memory(LIMITS);
    for end in [&session.agent, &session.master] {
        let unused = end.mux.open().await.unwrap();
        assert_eq!(end.mux.streams(), 1);
        drop(unused);
        end.is_empty().await;
        // Nobody needs to be told.
        let told = timeout(Duration::from_secs(1), end.mux.next_abort()).await;
        assert!(told.is_err());
    }
    session.assert_alive();
}

#[tokio::test(start_paused = true)]
async fn the_masters_stream_counts_until_the_agent_has_ended_it() {
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    let (agent, master) = session.open().await;
    master.abort(AbortCode::Cancelled);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(session.master.mux.streams(), 1);
    assert_eq!(session.master.mux.streams_known(), 1);

    drop(agent);

    session.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_agent_sends_to_a_lingering_stream_is_thrown_away() {
    let mut session = Session::in_memory(LIMITS);
    let (agent, master) = session.open().await;
    let mut agent = agent.into_relay();
    drop(master);

    // Many windows: it must not stall for want of credit.
    send(&mut agent, &vec![7; 2 << 20]).await.unwrap();

    drop(agent);
    session.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_first_message_leaves_before_its_opener_has_the_stream() {
    let mut session = Session::in_memory(LIMITS);
    let first = message(b"open");
    let mut open = Box::pin(session.master.mux.open_with(&first));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(open.as_mut().poll(&mut cx).is_pending());

    let mut agent = session.agent.incoming.next().await.unwrap();

    assert_eq!(agent.receive().await.unwrap().unwrap(), &b"open"[..]);
    let mut master = open.await.unwrap();
    assert_eq!(master.queued(), 0);
    agent.send(&message(b"opened")).await.unwrap();
    assert_eq!(master.receive().await.unwrap().unwrap(), &b"opened"[..]);
    drop((agent, master));
    session.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn who_asked_and_is_gone_before_the_stream_is_there_has_cancelled_it() {
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    let first = message(b"open");
    let mut open = Box::pin(session.master.mux.open_with(&first));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(open.as_mut().poll(&mut cx).is_pending());
    let mut agent = session.agent.incoming.next().await.unwrap();

    drop(open);

    let error = agent.given_up().await;
    let cancelled = matches!(error, StreamError::Aborted(AbortCode::Cancelled));
    assert!(cancelled, "{error:?}");
    drop(agent);
    session.is_empty().await;
    session.assert_alive();
}

#[tokio::test(start_paused = true)]
async fn an_open_dropped_at_any_point_leaves_nothing() {
    let session = Session::in_memory(LIMITS);
    for steps in 0..12 {
        for end in [&session.agent, &session.master] {
            let mut open = Box::pin(end.mux.open());
            let mut cx = Context::from_waker(Waker::noop());
            for _ in 0..steps {
                if open.as_mut().poll(&mut cx).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(open);
            end.is_empty().await;
        }
    }
    session.assert_alive();
}

#[tokio::test(start_paused = true)]
async fn a_receive_dropped_at_any_point_loses_nothing() {
    let mut session = Session::in_memory(LIMITS);
    let (mut agent, mut master) = session.open().await;
    let content: Vec<u8> = (0..60_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let sending = tokio::spawn(async move {
        for _ in 0..20 {
            // Cut up, so that there are many points at which nothing whole has come.
            for part in message(&content).chunks(777) {
                master.queue(part);
                std::future::poll_fn(|cx| master.poll_send(cx))
                    .await
                    .unwrap();
                tokio::task::yield_now().await;
            }
        }
        (content, master)
    });
    let mut received = Vec::new();
    while received.len() < 20 {
        let mut cx = Context::from_waker(Waker::noop());
        let polled = {
            let mut receive = Box::pin(agent.receive());
            receive.as_mut().poll(&mut cx)
        };
        match polled {
            Poll::Ready(message) => received.push(message.unwrap().unwrap()),
            Poll::Pending => tokio::task::yield_now().await,
        }
    }
    let (content, master) = sending.await.unwrap();
    assert!(received.iter().all(|message| **message == content));
    drop((agent, master));
    session.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_wants_to_be_replaced_at_the_configured_stream_id() {
    let limits = MuxLimits {
        worn_out_at: 8,
        ..LIMITS
    };
    let session = Session::in_memory(limits);
    let worn_out = || timeout(Duration::from_secs(1), session.master.mux.worn_out());
    for id in [2, 4, 6] {
        assert_eq!(session.master.mux.open().await.unwrap().id(), id);
    }
    assert!(worn_out().await.is_err());
    assert_eq!(session.master.mux.open().await.unwrap().id(), 8);
    assert!(worn_out().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_closed_session_ends_everything_on_both_ends() {
    let mut session = Session::in_memory(LIMITS);
    let (mut agent, mut master) = session.open().await;
    let (relayed_agent, relayed_master) = session.open_relay().await;
    master.send(&message(b"last words")).await.unwrap();
    // Nothing but the close itself can wake the driver.
    tokio::time::sleep(Duration::from_secs(1)).await;

    session.master.mux.close();

    let fault = session.master.driver.await.unwrap();
    assert!(matches!(fault, SessionFault::ClosedHere), "{fault:?}");
    let fault = session.agent.driver.await.unwrap();
    assert!(matches!(fault, SessionFault::Closed), "{fault:?}");
    assert!(session.agent.mux.is_over() && session.master.mux.is_over());
    assert!(session.agent.incoming.next().await.is_none());
    for end in [&session.agent.mux, &session.master.mux] {
        assert_eq!(end.open().await.unwrap_err(), OpenError::SessionGone);
    }
    // What arrived before the end is still there, and the end is no orderly one.
    assert_eq!(agent.receive().await.unwrap().unwrap(), &b"last words"[..]);
    for stream in [&mut agent, &mut master] {
        let error = stream.receive().await.unwrap_err();
        assert!(matches!(error, StreamError::SessionGone), "{error:?}");
    }
    for mut stream in [relayed_agent, relayed_master] {
        let error = receive(&mut stream).await.unwrap_err();
        assert!(matches!(error, StreamError::SessionGone), "{error:?}");
    }
    drop((agent, master));
    for end in [&session.agent.mux, &session.master.mux] {
        assert_eq!((end.streams(), end.streams_known()), (0, 0));
    }
}

#[tokio::test]
async fn closing_a_session_whose_peer_is_gone_is_no_fault() {
    for resets in [true, false] {
        let (io, peer) = tcp_pair(None).await;
        let (mux, _incoming, driver) = start(io, Role::Master, LIMITS);
        if resets {
            crate::socket::reset_on_close(&peer).unwrap();
        }
        drop(peer);
        mux.close();
        let fault = timeout(Duration::from_secs(5), driver).await.unwrap();
        assert!(matches!(fault, SessionFault::ClosedHere), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_close_is_heard_while_many_opens_wait() {
    let (io, _peer) = tokio::io::duplex(1024);
    let (mux, _incoming, driver) = start(io, Role::Master, LIMITS);
    let opens: Vec<_> = (0..100)
        .map(|_| {
            let mux = mux.clone();
            tokio::spawn(async move { mux.open().await.map(|_| ()) })
        })
        .collect();
    tokio::task::yield_now().await;
    mux.close();

    let fault = driver.await;

    assert!(matches!(fault, SessionFault::ClosedHere), "{fault:?}");
    for open in opens {
        assert_eq!(open.await.unwrap(), Err(OpenError::SessionGone));
    }
    assert_eq!((mux.streams(), mux.streams_known()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_finished_driver_that_is_kept_leaves_nobody_waiting() {
    let (io, peer) = tokio::io::duplex(1024);
    let (mux, mut incoming, driver) = start(io, Role::Master, LIMITS);
    let mut driver = Box::pin(driver);
    let stream = tokio::select! {
        stream = mux.open() => stream.unwrap(),
        _ = &mut driver => unreachable!(),
    };
    drop(peer);

    let fault = (&mut driver).await;

    assert!(matches!(fault, SessionFault::Closed), "{fault:?}");
    assert!(incoming.next().await.is_none());
    assert_eq!(mux.open().await.unwrap_err(), OpenError::SessionGone);
    drop(stream);
    assert_eq!((mux.streams(), mux.streams_known()), (0, 0));
    drop(driver);
}

#[tokio::test(start_paused = true)]
async fn a_driver_dropped_in_the_middle_ends_all_streams() {
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    let (mut agent, mut master) = session.open_relay().await;
    let lingering = session.open_relay().await;
    drop(lingering.1);

    session.master.driver.abort();

    for stream in [&mut agent, &mut master] {
        let error = receive(stream).await.unwrap_err();
        assert!(matches!(error, StreamError::SessionGone), "{error:?}");
    }
    drop((agent, master, lingering.0));
    session.is_empty().await;
    assert!(session.master.mux.is_over());
}

#[tokio::test(start_paused = true)]
async fn an_end_within_a_frame_is_no_orderly_one() {
    let (io, mut peer) = tokio::io::duplex(1024);
    let end = End::start(io, Role::Master, LIMITS);
    let header = Frame::data(SYN, 1, b"some").encode();
    peer.write_all(&header[..13]).await.unwrap();
    drop(peer);
    let fault = end.driver.await.unwrap();
    assert!(matches!(fault, SessionFault::CutOff), "{fault:?}");
}

#[tokio::test(start_paused = true)]
async fn without_anybody_to_take_them_streams_are_reset_alone() {
    let session = Session::in_memory(LIMITS);
    drop(session.agent.incoming);
    let mut refused = session.master.mux.open().await.unwrap();
    refused.send(&message(b"open")).await.unwrap();
    assert!(refused.receive().await.unwrap().is_none());
    drop(refused);
    session.master.is_empty().await;
    assert_eq!(session.agent.mux.streams(), 0);
    assert!(!session.agent.driver.is_finished());
}

#[tokio::test(start_paused = true)]
async fn without_a_handle_the_session_goes_on() {
    let mut session = Session::in_memory(LIMITS);
    let echo = session.echo();
    drop(session.agent.mux);
    open_and_echo(&session.master.mux).await;
    assert!(!session.agent.driver.is_finished());
    session.master.driver.abort();
    echo.await.unwrap();
}
