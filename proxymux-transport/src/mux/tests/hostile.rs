//! Peers that break the rules.
//!
//! They lose a stream or the session, and nothing else happens: no panic, no memory that grows,
//! no other stream that suffers. The peer is played frame by frame.

use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::stream_state::MAX_FRAMES_WAITING;

const SMALL: MuxLimits = MuxLimits {
    max_streams: 4,
    ..LIMITS
};

fn raw_peer(role: Role) -> (End, DuplexStream) {
    let (io, peer) = tokio::io::duplex(1 << 20);
    (End::start(io, role, SMALL), peer)
}

/// What the session makes of these frames; the peer stays.
async fn fault_of(frames: &[Frame]) -> (SessionFault, Vec<Frame>) {
    let (agent, mut master) = raw_peer(Role::Agent);
    for frame in frames {
        master.write_all(&frame.encode()).await.unwrap();
    }
    let fault = timeout(Duration::from_secs(1), agent.driver).await;
    let mut answer = Vec::new();
    master.read_to_end(&mut answer).await.unwrap();
    let (mut answer, mut answers) = (&answer[..], Vec::new());
    while let Some(frame) = Frame::decode(&mut answer) {
        answers.push(frame);
    }
    (fault.unwrap().unwrap(), answers)
}

#[tokio::test(start_paused = true)]
async fn a_breach_of_the_protocol_ends_the_session_and_the_peer_is_told() {
    let opens = Frame::data(SYN, 2, b"");
    let breaches = [
        (
            "credit overflows",
            vec![opens.clone(), Frame::plain(WINDOW_UPDATE, 0, 2, u32::MAX)],
        ),
        (
            "credit overflows at once",
            vec![Frame::plain(WINDOW_UPDATE, SYN, 2, u32::MAX)],
        ),
        ("stream opened twice", vec![opens.clone(), opens.clone()]),
        ("stream of the wrong side", vec![Frame::data(SYN, 3, b"")]),
        (
            "first body beyond the window",
            vec![Frame::data(SYN, 2, &[0; 300_000])],
        ),
        (
            "body beyond the window",
            vec![
                opens,
                Frame::data(0, 2, &[0; 200_000]),
                Frame::data(0, 2, &[0; 100_000]),
            ],
        ),
        ("answer to no ping", vec![Frame::plain(PING, ACK, 0, 99)]),
    ];
    for (name, frames) in breaches {
        let (fault, answers) = fault_of(&frames).await;
        assert!(
            matches!(fault, SessionFault::Protocol(_)),
            "{name}: {fault:?}"
        );
        let told = Frame::plain(GO_AWAY, 0, 0, 1);
        assert_eq!(answers.last(), Some(&told), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_cannot_be_read_ends_the_session() {
    let unreadable = [
        Frame::plain(DATA, SYN, 2, 1024 * 1024 + 1),
        Frame::plain(DATA, 0, 2, u32::MAX),
        Frame::plain(4, 0, 0, 0),
        Frame::plain(255, 0, 0, 0),
    ];
    for frame in unreadable {
        let (fault, _) = fault_of(&[frame]).await;
        assert!(matches!(fault, SessionFault::Protocol(_)), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_ends_the_session_in_an_orderly_way() {
    let (fault, _) = fault_of(&[Frame::plain(GO_AWAY, 0, 0, 0)]).await;
    assert!(matches!(fault, SessionFault::Closed), "{fault:?}");
}

#[tokio::test(start_paused = true)]
async fn frames_for_streams_that_are_not_there_change_nothing() {
    let (agent, mut master) = raw_peer(Role::Agent);
    for id in 0..5000 {
        let frames = [
            Frame::data(0, 2 * id, b"data"),
            Frame::data(RST, 2 * id, b"data"),
            Frame::data(SYN | RST, 2 * id, b""),
            Frame::plain(WINDOW_UPDATE, SYN | RST, 2 * id, 1),
            Frame::plain(WINDOW_UPDATE, FIN, 2 * id, 1),
            Frame::data(FIN | ACK, 2 * id, b""),
        ];
        for frame in frames {
            master.write_all(&frame.encode()).await.unwrap();
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((agent.mux.streams(), agent.mux.streams_known()), (0, 0));
    assert!(!agent.driver.is_finished());
}

#[tokio::test(start_paused = true)]
async fn windows_do_not_grow_whatever_round_trip_the_peer_makes_believe() {
    let (mut agent, mut master) = raw_peer(Role::Agent);
    // The answer to the ping that never left.
    let pong = Frame::plain(PING, ACK, 0, 0);
    master.write_all(&pong.encode()).await.unwrap();
    let opens = Frame::data(SYN, 2, b"");
    master.write_all(&opens.encode()).await.unwrap();
    let mut stream = agent.incoming.next().await.unwrap();
    tokio::spawn(async move { while stream.receive().await.is_ok() {} });
    let (mut credit, mut granted) = (256 * 1024_u32, 0);
    while granted < 20 << 20 {
        let len = credit.min(10_000);
        if len > 0 {
            // Each a message of its own.
            let content = vec![0; usize::try_from(len).unwrap() - 4];
            let frame = Frame::data(0, 2, &message(&content));
            master.write_all(&frame.encode()).await.unwrap();
            credit -= len;
            if credit > 128 * 1024 {
                continue;
            }
        }
        let update = Frame::read(&mut master).await.unwrap();
        assert_eq!((update.kind, update.stream), (WINDOW_UPDATE, 2));
        credit += update.value;
        granted += update.value;
        assert!(credit <= 256 * 1024, "{credit} bytes of credit");
    }
}

/// One side floods the other's stalled stream with frames of a byte.
async fn flood(master_floods: bool) {
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    let (mut agent, mut master) = session.open().await;
    let (mut other_agent, mut other_master) = session.open_relay().await;
    let (flooding, stalled) = if master_floods {
        (&mut master, &mut agent)
    } else {
        (&mut agent, &mut master)
    };
    for _ in 0..MAX_FRAMES_WAITING {
        flooding.send(&[0]).await.unwrap();
    }
    // All of it has arrived, and it is not yet too much.
    let quiet = timeout(Duration::from_secs(1), stalled.given_up()).await;
    assert!(quiet.is_err());

    for _ in 0..100 {
        flooding.send(&[0]).await.unwrap();
    }

    let overflow = |error| matches!(error, StreamError::Aborted(AbortCode::Overflow));
    assert!(overflow(stalled.given_up().await));
    if master_floods {
        agent.abort(AbortCode::Overflow);
        assert!(overflow(master.given_up().await));
        drop(master);
    } else {
        master.abort(AbortCode::Overflow);
        assert!(overflow(agent.given_up().await));
        drop(agent);
    }
    for _ in 0..2 {
        send(&mut other_agent, b"unharmed").await.unwrap();
        let received = receive(&mut other_master).await.unwrap();
        assert_eq!(received.unwrap(), b"unharmed");
        std::mem::swap(&mut other_agent, &mut other_master);
    }
    drop((other_agent, other_master));
    session.is_empty().await;
    session.assert_alive();
}

#[tokio::test(start_paused = true)]
async fn a_master_that_floods_a_stream_loses_it_alone() {
    flood(true).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_floods_a_stream_loses_it_alone() {
    flood(false).await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_of_small_records_may_be_as_slow_as_it_likes() {
    // In an HTTP chunk of a byte, and the smallest record there is: with our header, both fill
    // the window.
    for record in [32, 22] {
        let mut session = Session::in_memory(LIMITS);
        let (mut agent, mut master) = session.open_relay().await;
        let count = 256 * 1024 / (record + 4) - 1;
        for _ in 0..count {
            send(&mut agent, &vec![7; record]).await.unwrap();
        }
        end(&mut agent).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3600)).await;

        let received = receive_all(&mut master).await.unwrap();

        assert_eq!(received.len(), count * record);
    }
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let flags = prop_oneof![Just(0), Just(SYN), Just(RST), Just(FIN), 0..16_u16];
    let data = (flags.clone(), 0..12_u32, 0..200_usize)
        .prop_map(|(flags, stream, len)| Frame::data(flags, stream, &vec![0; len]));
    let update = (flags.clone(), 0..12_u32, 0..100_000_u32)
        .prop_map(|(flags, stream, value)| Frame::plain(WINDOW_UPDATE, flags, stream, value));
    let ping = (flags, 0..3_u32, 0..3_u32)
        .prop_map(|(flags, stream, value)| Frame::plain(PING, flags, stream, value));
    let unread = (0..=255_u8, 0..12_u32).prop_map(|(kind, id)| Frame::plain(kind, 0, id, 0));
    prop_oneof![100 => data, 60 => update, 5 => ping, 1 => unread]
}

#[derive(Clone, Copy, Debug)]
enum Use {
    Drop,
    Receive,
    Send,
    Relay,
    Keep,
}

fn any_use() -> impl Strategy<Value = Use> {
    use Use as U;
    prop_oneof![
        Just(U::Drop),
        Just(U::Receive),
        Just(U::Send),
        Just(U::Relay),
        Just(U::Keep)
    ]
}

/// Does with a stream what was drawn; what it finds does not matter.
async fn use_stream(mut stream: MessageStream, how: Use) {
    match how {
        Use::Drop => drop(stream),
        Use::Receive => while let Ok(Some(_)) = stream.receive().await {},
        Use::Send => {
            let _ = stream.send(&message(&[0; 50_000])).await;
        }
        Use::Relay => {
            let mut stream = stream.into_relay();
            while let Ok(Some(_)) = receive(&mut stream).await {}
        }
        Use::Keep => {
            stream.given_up().await;
        }
    }
}

async fn survive(role: Role, pieces: Vec<Vec<u8>>, uses: Vec<Use>) {
    let (mut end, peer) = raw_peer(role);
    let mut uses = uses.into_iter().cycle();
    let (mut reading, mut writing) = tokio::io::split(peer);
    let swallow = tokio::spawn(async move {
        let mut all = Vec::new();
        let _ = reading.read_to_end(&mut all).await;
    });
    // Streams of our own have ids that the peer may name.
    for _ in 0..2 {
        if let Ok(stream) = end.mux.open().await {
            tokio::spawn(use_stream(stream, uses.next().unwrap()));
        }
    }
    for piece in pieces {
        if writing.write_all(&piece).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        while let Poll::Ready(Some(stream)) = poll_once(end.incoming.next()) {
            tokio::spawn(use_stream(stream, uses.next().unwrap()));
        }
        let max = SMALL.max_streams + CONTROL_STREAMS;
        assert!(
            end.mux.streams() <= 2 * max,
            "{} streams",
            end.mux.streams()
        );
        let known = end.mux.streams_known();
        assert!(known <= 2 * max + 1, "{known} streams in the table");
    }
    writing.shutdown().await.unwrap();
    // The end, if the frames did not do it.
    let fault = timeout(Duration::from_secs(1), &mut end.driver).await;
    let fault = fault.unwrap().expect("the driver does not panic");
    assert!(!matches!(fault, SessionFault::ClosedHere), "{fault:?}");
    drop(writing);
    swallow.await.unwrap();
    while end.incoming.next().await.is_some() {}
    end.is_empty().await;
}

fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

fn run(test: impl Future) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(test);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn garbage_ends_the_session_and_nothing_else(
        agent in any::<bool>(),
        garbage in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..20),
        uses in prop::collection::vec(any_use(), 1..8),
    ) {
        let role = if agent { Role::Agent } else { Role::Master };
        run(survive(role, garbage, uses));
    }

    #[test]
    fn frames_in_any_order_end_the_session_or_nothing(
        agent in any::<bool>(),
        frames in prop::collection::vec(any_frame(), 0..80),
        uses in prop::collection::vec(any_use(), 1..8),
    ) {
        let role = if agent { Role::Agent } else { Role::Master };
        run(survive(role, frames.iter().map(Frame::encode).collect(), uses));
    }
}
