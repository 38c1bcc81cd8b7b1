//! Limits of streams and of dials.
//!
//! The crate's own limits end whole sessions; ours end nothing but the stream that is too much,
//! also while streams come and go at the limit and the carrier is blocked.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize},
    time::Duration,
};

use tokio::{io::AsyncWriteExt, task::JoinSet, time::Instant};

use super::*;

const SMALL: MuxLimits = MuxLimits {
    max_streams: 8,
    max_pending: 128,
    worn_out_at: 1 << 31,
};

#[tokio::test(start_paused = true)]
async fn an_open_over_the_limit_fails_at_once_until_a_stream_has_gone() {
    let mut session = Session::in_memory(SMALL);
    let mut streams = Vec::new();
    // Nobody has a control stream here; its slot is as good as any.
    for _ in 0..9 {
        streams.push(session.open_relay().await);
    }
    for _ in 0..1000 {
        let refused = session.master.mux.open().await.unwrap_err();
        assert_eq!(refused, OpenError::TooManyStreams(8));
    }
    drop(streams.pop());
    let mux = session.master.mux.clone();
    eventually(Duration::from_secs(1), || mux.streams() == 8).await;
    streams.push(session.open_relay().await);

    drop(streams);

    session.is_empty().await;
    session.assert_alive();
}

#[tokio::test(start_paused = true)]
async fn a_refused_open_holds_no_slot() {
    let limits = MuxLimits {
        max_pending: 2,
        ..SMALL
    };
    let session = Session::in_memory(limits);
    let mux = &session.master.mux;
    let pending = (mux.open().await.unwrap(), mux.open().await.unwrap());
    // The driver does not come to its turn in between.
    for _ in 0..100 {
        let refused = mux.open().await.unwrap_err();
        assert_eq!(refused, OpenError::TooManyPending(2));
    }
    assert_eq!(mux.streams(), 2);
    drop(pending);
    session.is_empty().await;
}

/// Opens, and gives up at a stage that is drawn; false if a limit was in the way.
async fn open_and_give_up(mux: &Mux, stage: u8) -> bool {
    let mut stream = match mux.open().await {
        Ok(stream) => stream,
        Err(OpenError::TooManyStreams(_) | OpenError::TooManyPending(_)) => return false,
        Err(error) => panic!("{error}"),
    };
    if stage == 0 {
        return true;
    }
    stream.send(&message(b"open")).await.unwrap();
    if stage == 1 {
        stream.abort(AbortCode::Cancelled);
        return true;
    }
    for _ in 0..stage.min(2) {
        assert!(stream.receive().await.unwrap().is_some());
    }
    let mut stream = stream.into_relay();
    send(&mut stream, &vec![1; usize::from(stage) * 20_000])
        .await
        .unwrap();
    if stage > 5 {
        end(&mut stream).await.unwrap();
    }
    true
}

/// Has a stream echo bytes until `done`, and says how long it took at most.
async fn slowest_echo(mux: Mux, done: Arc<AtomicBool>) -> Duration {
    let mut stream = mux.open().await.unwrap();
    stream.send(&message(b"open")).await.unwrap();
    for _ in 0..2 {
        assert!(stream.receive().await.unwrap().is_some());
    }
    let mut stream = stream.into_relay();
    let mut slowest = Duration::ZERO;
    while !done.load(Ordering::Relaxed) {
        let before = Instant::now();
        send(&mut stream, b"x").await.unwrap();
        assert_eq!(receive(&mut stream).await.unwrap().unwrap(), b"x");
        slowest = slowest.max(before.elapsed());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    slowest
}

#[tokio::test(start_paused = true)]
async fn churning_at_the_limit_with_a_blocked_uplink_ends_no_session() {
    let (agent, master) = tokio::io::duplex(16 * 1024);
    let (agent, gate) = Gate::around(agent);
    let limits = MuxLimits {
        max_streams: 32,
        ..LIMITS
    };
    let mut session = Session::over(agent, master, limits);
    session.play_control();
    session.echo();
    let done = Arc::new(AtomicBool::new(false));
    let healthy = tokio::spawn(slowest_echo(session.master.mux.clone(), Arc::clone(&done)));
    tokio::task::yield_now().await;
    let counts: Arc<[AtomicUsize; 2]> = Arc::default();
    let mut churners = JoinSet::new();
    for seed in 0..64 {
        let (mux, counts) = (session.master.mux.clone(), Arc::clone(&counts));
        churners.spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed);
            for _ in 0..100 {
                let opened = open_and_give_up(&mux, random.u8(0..8)).await;
                counts[usize::from(opened)].fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(random.u64(0..20))).await;
            }
        });
    }
    let blocking = tokio::spawn({
        let done = Arc::clone(&done);
        async move {
            while !done.load(Ordering::Relaxed) {
                gate.close();
                tokio::time::sleep(Duration::from_millis(100)).await;
                gate.open();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    });

    churners.join_all().await;

    done.store(true, Ordering::Relaxed);
    blocking.await.unwrap();
    let [refused, opened] = [0, 1].map(|at| counts[at].load(Ordering::Relaxed));
    let slowest = healthy.await.unwrap();
    println!("{opened} opened, {refused} refused, the slowest echo took {slowest:?}");
    assert!(refused > 500 && opened > 500);
    // The uplink is blocked for a tenth of a second at a time.
    assert!(slowest < Duration::from_secs(1));
    session.is_empty().await;
    open_and_echo(&session.master.mux).await;
    session.assert_alive();
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_cannot_write_takes_a_stream_in_place_of_one_that_it_ended() {
    // The word that a stream has ended is out, and answered, while much else has still to go.
    let (io, mut master) = tokio::io::duplex(4096);
    let mut agent = End::start(io, Role::Agent, SMALL);
    let mut streams = Vec::new();
    for id in 1..=9 {
        let opens = Frame::data(SYN, 2 * id, &message(b"open"));
        master.write_all(&opens.encode()).await.unwrap();
        streams.push(agent.incoming.next().await.unwrap().into_relay());
    }
    let dropped = streams.remove(0);
    for stream in streams.drain(1..) {
        tokio::spawn(async move {
            let mut stream = stream;
            send(&mut stream, &[1; 200_000]).await.unwrap();
            std::future::pending::<()>().await;
        });
    }
    // The pipe is full, and whenever the master reads, it fills up again.
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(dropped);
    while Frame::read(&mut master).await.unwrap() != Frame::data(RST, 2, b"") {}
    // Let the agent have as many turns as it likes.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let opens = Frame::data(SYN, 20, &message(b"open"));
    master.write_all(&opens.encode()).await.unwrap();

    let taken = timeout(Duration::from_secs(1), agent.incoming.next()).await;

    let taken = taken.unwrap().unwrap();
    assert_eq!(taken.id(), 20);
    let surplus = Frame::data(SYN, 22, &message(b"open"));
    master.write_all(&surplus.encode()).await.unwrap();
    let surplus = timeout(Duration::from_secs(1), agent.incoming.next()).await;
    assert!(surplus.is_err());
    drop(taken);
}

/// How the agent treats what it is to dial.
#[derive(Clone, Copy)]
enum BlackHole {
    Acknowledges,
    Silent,
}

async fn dial_into_a_black_hole(kind: BlackHole, limits: MuxLimits) {
    let mut session = Session::in_memory(limits);
    session.play_control();
    // The healthy stream is the one that asks for it.
    let (_, streams) = mpsc::channel(1);
    let mut incoming = std::mem::replace(&mut session.agent.incoming, Incoming { streams });
    tokio::spawn(async move {
        while let Some(mut stream) = incoming.next().await {
            tokio::spawn(async move {
                let target = stream.receive().await.unwrap().unwrap();
                if target == b"open"[..] {
                    return echo_opened(stream).await.unwrap();
                }
                if matches!(kind, BlackHole::Acknowledges) {
                    stream.send(&message(b"dialing")).await.unwrap();
                }
                stream.given_up().await;
            });
        }
    });
    let pending = limits.max_pending.min(255) - 1;
    let mux = &session.master.mux;
    let mut dials = Vec::new();
    for _ in 0..pending {
        let mut stream = mux.open().await.unwrap();
        stream.send(&message(b"black hole")).await.unwrap();
        dials.push(stream);
    }
    let before = Instant::now();
    for _ in 0..50 {
        open_and_echo(mux).await;
    }
    let healthy = before.elapsed() / 50;
    println!("a healthy open with echo takes {healthy:?}");
    assert!(healthy < Duration::from_secs(1));

    dials.push(mux.open().await.unwrap());
    let before = Instant::now();
    for _ in pending..400 {
        let refused = mux.open().await.unwrap_err();
        assert_eq!(refused, OpenError::TooManyPending(pending + 1));
    }
    assert!(before.elapsed() < Duration::from_secs(1));

    for dial in dials {
        dial.abort(AbortCode::Cancelled);
    }
    session.is_empty().await;
    for _ in 0..50 {
        open_and_echo(mux).await;
    }
    session.is_empty().await;
    session.assert_alive();
}

#[tokio::test]
async fn dials_into_a_black_hole_slow_down_nothing_else() {
    dial_into_a_black_hole(BlackHole::Acknowledges, LIMITS).await;
}

#[tokio::test]
async fn dials_that_are_not_even_acknowledged_slow_down_nothing_else() {
    dial_into_a_black_hole(BlackHole::Silent, LIMITS).await;
}

#[tokio::test]
async fn the_crates_own_limit_of_dials_is_never_reached() {
    let limits = MuxLimits {
        max_pending: 10_000,
        ..LIMITS
    };
    dial_into_a_black_hole(BlackHole::Silent, limits).await;
}

#[tokio::test(start_paused = true)]
async fn while_the_carrier_is_blocked_dropped_streams_count_and_then_opens_go_on() {
    // Streams that are dropped unused are pending no more, but the crate learns of it late.
    let (master, _silent) = tokio::io::duplex(1 << 20);
    let (master, gate) = Gate::around(master);
    let master = End::start(master, Role::Master, LIMITS);
    let mux = &master.mux;
    let soon = Duration::from_millis(10);
    gate.close();
    let mut bulk = Vec::new();
    for _ in 0..10 {
        let mut stream = mux.open().await.unwrap();
        stream.queue(&[0; 60_000]);
        let sent = std::future::poll_fn(|cx| stream.poll_send(cx));
        let _ = timeout(soon, sent).await;
        bulk.push(stream);
    }
    let mut opened = bulk.len();
    while let Ok(stream) = timeout(soon, mux.open()).await {
        drop(stream.unwrap());
        opened += 1;
    }
    // The crate's limit of streams that are not acknowledged.
    assert_eq!(opened, 256);
    // And the one for which there was no more room, until the driver comes to its turn.
    assert_eq!(mux.streams(), opened + 1);
    let waiting = tokio::spawn({
        let mux = mux.clone();
        async move { mux.open().await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!waiting.is_finished());

    gate.open();

    let stream = timeout(Duration::from_secs(1), waiting).await;
    let stream = stream.unwrap().unwrap().unwrap();
    eventually(Duration::from_secs(1), || mux.streams() == bulk.len() + 1).await;
    drop(stream);
}

#[tokio::test(start_paused = true)]
async fn a_master_that_opens_too_many_loses_only_the_surplus() {
    let (io, mut master) = tokio::io::duplex(1 << 20);
    let mut agent = End::start(io, Role::Agent, SMALL);
    for id in 1..=1000 {
        let opens = Frame::data(SYN, 2 * id, &message(b"open"));
        master.write_all(&opens.encode()).await.unwrap();
    }
    let mut reset = Vec::new();
    while reset.len() < 991 {
        let frame = Frame::read(&mut master).await.unwrap();
        assert_eq!((frame.kind, frame.flags), (DATA, RST));
        reset.push(frame.stream);
    }
    assert!(reset.iter().all(|id| *id > 18));
    let mut taken = Vec::new();
    for id in 1..=9 {
        let mut stream = agent.incoming.next().await.unwrap();
        assert_eq!(stream.id(), 2 * id);
        stream.send(&message(b"opened")).await.unwrap();
        let answer = Frame::read(&mut master).await.unwrap();
        assert_eq!(answer, Frame::data(ACK, 2 * id, &message(b"opened")));
        taken.push(stream);
    }
    drop(taken);
    agent.is_empty().await;
    assert!(!agent.driver.is_finished());
}
