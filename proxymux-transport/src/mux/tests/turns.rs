//! Waiting for a turn while too many streams are pending.
//!
//! Time is paused: who waits is served in order and within its deadline, holds no more than a
//! slot, and is let go when the session is. The limits themselves are in `limits.rs`.

use std::{sync::Mutex, time::Duration};

use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep},
};

use super::*;

const TWO: MuxLimits = MuxLimits {
    max_streams: 8,
    max_pending: 2,
    worn_out_at: 1 << 31,
};

const BUDGET: Duration = Duration::from_secs(8);

type Waiter = JoinHandle<Result<MessageStream, OpenError>>;

/// Waits for a turn in a task, which has come as far as waiting.
async fn wait_for_a_turn(mux: &Mux) -> Waiter {
    let mux = mux.clone();
    let deadline = Instant::now() + BUDGET;
    let waiter = tokio::spawn(async move { mux.open_in_turn(deadline).await });
    tokio::task::yield_now().await;
    waiter
}

/// As many streams as may be pending.
async fn pending(mux: &Mux) -> Vec<MessageStream> {
    let mut streams = Vec::new();
    while let Ok(stream) = mux.open().await {
        streams.push(stream);
    }
    assert_eq!(streams.len(), 2);
    streams
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_are_served_in_the_order_in_which_they_came() {
    let session = Session::in_memory(TWO);
    let mux = &session.master.mux;
    let mut pending = pending(mux).await;
    let served = Arc::new(Mutex::new(Vec::new()));
    let mut waiters = JoinSet::new();
    for number in 0..5 {
        let (mux, served) = (mux.clone(), Arc::clone(&served));
        waiters.spawn(async move {
            let stream = mux.open_in_turn(Instant::now() + BUDGET).await;
            served.lock().unwrap().push(number);
            stream
        });
        tokio::task::yield_now().await;
    }
    assert!(served.lock().unwrap().is_empty());

    for expected in 1..=5 {
        drop(pending.pop());
        // Who comes now does not overtake anybody.
        let refused = mux.open().await.unwrap_err();
        assert_eq!(refused, OpenError::TooManyPending(2));
        pending.push(waiters.join_next().await.unwrap().unwrap().unwrap());
        assert_eq!(
            *served.lock().unwrap(),
            (0..expected).collect::<Vec<_>>(),
            "after {expected} turns"
        );
    }

    drop(pending);
    session.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_does_not_come_in_time_is_waited_for_no_longer() {
    let session = Session::in_memory(TWO);
    let mux = &session.master.mux;
    let pending = pending(mux).await;
    let began = Instant::now();

    let refused = mux.open_in_turn(began + BUDGET).await.unwrap_err();

    assert_eq!(began.elapsed(), BUDGET);
    assert_eq!(refused, OpenError::TooManyPending(2));
    // It has left the queue, and nothing of it is left.
    assert_eq!(mux.streams(), 2);
    drop(pending);
    drop(mux.open().await.unwrap());
    session.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn who_stops_waiting_gives_its_place_to_the_next() {
    let session = Session::in_memory(TWO);
    let mux = &session.master.mux;
    let mut pending = pending(mux).await;
    let leaves = wait_for_a_turn(mux).await;
    let stays = wait_for_a_turn(mux).await;
    assert_eq!(mux.streams(), 4);

    leaves.abort();
    assert!(leaves.await.unwrap_err().is_cancelled());

    assert_eq!(mux.streams(), 3);
    drop(pending.pop());
    let stream = stays.await.unwrap().unwrap();
    drop((pending, stream));
    session.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn no_more_wait_than_there_may_be_streams() {
    let session = Session::in_memory(TWO);
    let mux = &session.master.mux;
    let pending = pending(mux).await;
    let mut waiters = Vec::new();
    // Nobody has a control stream here; its slot is as good as any.
    for _ in 2..9 {
        waiters.push(wait_for_a_turn(mux).await);
    }
    let began = Instant::now();

    let refused = mux.open_in_turn(began + BUDGET).await.unwrap_err();

    assert_eq!(refused, OpenError::TooManyStreams(8));
    assert_eq!(began.elapsed(), Duration::ZERO);
    for waiter in waiters {
        waiter.abort();
        assert!(waiter.await.unwrap_err().is_cancelled());
    }
    drop(pending);
    session.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_hears_of_the_sessions_end_at_once() {
    type End = fn(&Session);
    let ends: [(&str, End); 3] = [
        ("closed here", |session| session.master.mux.close()),
        ("broken off", |session| session.master.driver.abort()),
        ("closed by the peer", |session| session.agent.mux.close()),
    ];
    for (how, end) in ends {
        let session = Session::in_memory(TWO);
        let mux = &session.master.mux;
        let pending = pending(mux).await;
        let waiters = [wait_for_a_turn(mux).await, wait_for_a_turn(mux).await];
        let began = Instant::now();

        end(&session);

        for waiter in waiters {
            let gone = waiter.await.unwrap().unwrap_err();
            assert_eq!(gone, OpenError::SessionGone, "{how}");
        }
        assert_eq!(began.elapsed(), Duration::ZERO, "{how}");
        let gone = mux.open_in_turn(began + BUDGET).await.unwrap_err();
        assert_eq!(gone, OpenError::SessionGone, "{how}");
        drop(pending);
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_takes_nothing_new_sends_away_who_waits_and_keeps_what_is_open() {
    let mut session = Session::in_memory(TWO);
    let (mut agent, mut master) = session.open_relay().await;
    let mux = session.master.mux.clone();
    let mut pending = pending(&mux).await;
    let waiter = wait_for_a_turn(&mux).await;
    let began = Instant::now();

    mux.take_nothing_new();

    let gone = waiter.await.unwrap().unwrap_err();
    assert_eq!(gone, OpenError::SessionGone);
    assert_eq!(mux.open().await.unwrap_err(), OpenError::SessionGone);
    assert_eq!(began.elapsed(), Duration::ZERO);
    // One that had its turn goes on, and so does one that is open.
    let mut under_way = pending.remove(0);
    under_way.send(&message(b"open")).await.unwrap();
    let mut opened = session.agent.incoming.next().await.unwrap();
    assert_eq!(opened.receive().await.unwrap().unwrap(), &b"open"[..]);
    send(&mut agent, b"still here").await.unwrap();
    let received = receive(&mut master).await.unwrap();
    assert_eq!(received.as_deref(), Some(&b"still here"[..]));
    session.assert_alive();
}

#[tokio::test(start_paused = true)]
async fn a_burst_far_beyond_the_limit_is_served_whole() {
    for max_pending in [1, 2, 128, 255] {
        let limits = MuxLimits {
            max_pending,
            ..LIMITS
        };
        let mut session = Session::in_memory(limits);
        session.play_control();
        session.echo();
        let began = Instant::now();
        let mut burst = JoinSet::new();
        for _ in 0..600 {
            let mux = session.master.mux.clone();
            burst.spawn(async move {
                let mut stream = mux.open_in_turn(began + BUDGET).await?;
                stream.send(&message(b"open")).await.unwrap();
                for answer in [&b"dialing"[..], b"opened"] {
                    assert_eq!(stream.receive().await.unwrap().unwrap(), answer);
                }
                Ok::<_, OpenError>(stream.into_relay())
            });
        }

        let opened = burst.join_all().await;

        // All of them are open at the same time.
        for stream in &opened {
            assert!(stream.is_ok(), "{max_pending} pending: {stream:?}");
        }
        assert_eq!(session.master.mux.streams(), 600);
        assert!(began.elapsed() < BUDGET);
        drop(opened);
        session.is_empty().await;
        session.assert_alive();
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_behind_dials_that_are_never_answered_is_let_go_in_time() {
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    let (mut agent, mut master) = session.open_relay().await;
    let began = Instant::now();
    let mut burst = JoinSet::new();
    for number in 0..600 {
        let mux = session.master.mux.clone();
        burst.spawn(async move {
            // Not all of them come at once.
            sleep(Duration::from_millis(number)).await;
            let deadline = Instant::now() + BUDGET;
            let outcome = match mux.open_in_turn(deadline).await {
                Ok(mut stream) => {
                    stream.send(&message(b"black hole")).await.unwrap();
                    let answer = timeout_at(deadline, stream.receive()).await;
                    assert!(answer.is_err(), "{answer:?}");
                    stream.abort(AbortCode::Cancelled);
                    "unanswered"
                }
                Err(OpenError::TooManyPending(128)) => "no turn",
                Err(error) => panic!("{error}"),
            };
            (outcome, Instant::now() - deadline)
        });
    }
    // A stream that is open goes on meanwhile.
    for _ in 0..10 {
        sleep(Duration::from_secs(1)).await;
        send(&mut agent, b"alive").await.unwrap();
        let received = receive(&mut master).await.unwrap();
        assert_eq!(received.as_deref(), Some(&b"alive"[..]));
    }

    let outcomes = burst.join_all().await;

    for (outcome, late) in &outcomes {
        assert!(
            *late <= Duration::from_millis(1),
            "{outcome}, {late:?} late"
        );
    }
    let count = |word| {
        outcomes
            .iter()
            .filter(|(outcome, _)| *outcome == word)
            .count()
    };
    // The agent never took any of them, so that their places are not free again.
    assert_eq!((count("unanswered"), count("no turn")), (128, 472));
    assert!(began.elapsed() < Duration::from_secs(11));
    session.assert_alive();
}

#[tokio::test(start_paused = true)]
async fn waiting_takes_less_memory_than_a_single_frame() {
    let session = Session::in_memory(TWO);
    let waiting = session.master.mux.open_in_turn(Instant::now() + BUDGET);
    let size = size_of_val(&waiting);
    assert!(size <= 1024, "{size} bytes");
    drop(waiting);
}
