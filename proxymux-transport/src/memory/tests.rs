//! Tests of the memory that streams hold: what is counted, who has to go, and who does not.

use std::task::Waker;

use proxymux_proto::{AbortCode, ChunkHeader};
use tokio::time::timeout;

use super::*;
use crate::{
    mux::{
        MuxLimits, OpenError, Role,
        testing::{End, LIMITS, Session, eventually, message},
    },
    relay::Outcome,
    stream::{Filled, RelayStream, StreamError},
    stream_state::StreamEnd,
};

const FRAME: usize = 16 * 1024;

/// A table of a session with this limit, and its streams.
fn streams(budget: &Arc<MemoryBudget>, limit: usize, ids: &[u32]) -> (Arc<StreamTable>, Streams) {
    let memory = Arc::new(SessionMemory {
        budget: Arc::clone(budget),
        limit,
        held: AtomicUsize::new(0),
        going: AtomicUsize::new(0),
    });
    let table = StreamTable::new(0, memory);
    let streams = ids.iter().map(|id| table.get_or_add(*id)).collect();
    (table, streams)
}

type Streams = Vec<Arc<StreamShared>>;

fn is_ended(stream: &StreamShared) -> bool {
    match stream.poll_ended(Waker::noop()) {
        None => false,
        Some(end) => {
            assert_eq!(end, StreamEnd::NoMemory);
            true
        }
    }
}

/// A frame that arrives.
fn arrives(table: &StreamTable, id: u32) -> bool {
    let stream = table.find(id).unwrap();
    table.admit_frame(id, &stream, FRAME - FRAME_OVERHEAD)
}

fn is_read(stream: &StreamShared) {
    stream.frame_read();
    stream.frame_used(FRAME - FRAME_OVERHEAD);
}

#[test]
fn what_waits_is_counted_until_it_has_been_used() {
    let budget = MemoryBudget::with_limit(1 << 20);
    let (table, streams) = streams(&budget, 1 << 20, &[2]);
    assert!(arrives(&table, 2));
    assert!(arrives(&table, 2));
    assert_eq!(
        (budget.held(), table.memory().held()),
        (2 * FRAME, 2 * FRAME)
    );

    streams[0].frame_read();
    assert_eq!(budget.held(), 2 * FRAME, "it is read, and still in memory");
    streams[0].frame_used(FRAME - FRAME_OVERHEAD);

    assert_eq!((budget.held(), table.memory().held()), (FRAME, FRAME));
}

#[test]
fn what_a_stream_holds_goes_with_it() {
    let budget = MemoryBudget::with_limit(1 << 20);
    let (table, streams) = streams(&budget, 1 << 20, &[2, 4]);
    assert!(arrives(&table, 2) && arrives(&table, 4));

    table.forget(2);
    drop(streams);

    assert_eq!(budget.held(), FRAME);
    drop(table);
    assert_eq!(budget.held(), 0);
}

#[test]
fn at_the_limit_the_stream_that_stalled_for_the_longest_goes_first() {
    let budget = MemoryBudget::with_limit(1 << 30);
    let (table, streams) = streams(&budget, 10 * FRAME, &[2, 4, 6]);
    for _ in 0..3 {
        for id in [2, 4, 6] {
            assert!(arrives(&table, id));
        }
    }
    // All stand still but the first, which is merely slow.
    is_read(&streams[0]);
    assert!(arrives(&table, 2));
    is_read(&streams[1]);
    is_read(&streams[0]);
    for _ in 0..4 {
        assert!(arrives(&table, 2));
    }

    let ended: Vec<bool> = streams.iter().map(|stream| is_ended(stream)).collect();
    assert_eq!(ended, [false, false, true]);
    assert_eq!(table.memory().held(), 8 * FRAME);
    assert!(!arrives(&table, 6), "nothing more is taken in for it");
    assert_eq!(table.memory().held(), 8 * FRAME);
}

#[test]
fn the_limit_of_all_sessions_is_kept_at_the_cost_of_whoever_stalls() {
    let budget = MemoryBudget::with_limit(8 * FRAME);
    let (stalled, of_stalled) = streams(&budget, 1 << 30, &[2]);
    let (busy, of_busy) = streams(&budget, 1 << 30, &[2]);
    for _ in 0..6 {
        assert!(arrives(&stalled, 2));
    }

    for _ in 0..100 {
        assert!(arrives(&busy, 2));
        assert!(arrives(&busy, 2));
        is_read(&of_busy[0]);
        is_read(&of_busy[0]);
    }
    for _ in 0..3 {
        assert!(arrives(&busy, 2));
    }

    assert!(is_ended(&of_stalled[0]));
    assert!(!is_ended(&of_busy[0]));
    assert!(budget.held() <= 8 * FRAME, "{}", budget.held());
}

#[test]
fn the_control_stream_is_never_cut_off() {
    let budget = MemoryBudget::with_limit(4 * FRAME);
    let (table, streams) = streams(&budget, 4 * FRAME, &[1, 2]);
    assert!(arrives(&table, 1));
    for _ in 0..8 {
        arrives(&table, 2);
    }

    assert!(!is_ended(&streams[0]));
    assert!(is_ended(&streams[1]));
    assert!(arrives(&table, 1));
}

#[test]
fn nothing_comes_in_while_too_much_is_still_on_its_way_out() {
    let budget = MemoryBudget::with_limit(1 << 30);
    let (table, streams) = streams(&budget, 16 * FRAME, &[2, 4, 6, 8]);
    // Nobody runs who could free what was cut off.
    let admitted = (0..1000)
        .filter(|n| arrives(&table, 2 + 2 * (n % 4)))
        .count();

    let at_most = 16 + 16 / 4 + 16;
    assert!(admitted <= at_most, "{admitted} frames, at most {at_most}");
    drop(table);
    drop(streams);
    assert_eq!((budget.held(), budget.going.load(Relaxed)), (0, 0));
}

#[test]
fn close_to_the_limit_there_is_no_room_for_another_stream_and_some_is_made_for_the_next() {
    let budget = MemoryBudget::with_limit(1 << 30);
    let (table, streams) = streams(&budget, 32 * FRAME, &[2, 4, 6]);
    for _ in 0..20 {
        assert!(arrives(&table, 2));
    }
    for _ in 0..11 {
        assert!(arrives(&table, 6));
        assert!(arrives(&table, 4));
        is_read(&streams[2]);
    }
    assert!(arrives(&table, 4));
    assert!(!is_ended(&streams[0]), "slow readers are left alone");

    let full = table.memory().check_room(&table).unwrap_err();

    assert_eq!(
        full.to_string(),
        "0 MiB of 0 MiB of memory for the streams of this session are in use"
    );
    assert_eq!(budget.refused(), 1);
    assert!(is_ended(&streams[0]) && !is_ended(&streams[1]));
    assert_eq!(table.memory().check_room(&table), Ok(()));
}

#[test]
fn other_bytes_count_in_all_and_are_given_back() {
    let budget = MemoryBudget::with_limit(16 * FRAME);
    let mut early = budget.other();
    early.set(15 * FRAME);
    assert!(!early.is_full());
    early.set(16 * FRAME);
    assert!(early.is_full());
    early.set(FRAME);
    assert_eq!(budget.held(), FRAME);
    drop(early);
    assert_eq!(budget.held(), 0);
}

/// A master that may hold so much for a session, and an agent without a limit.
fn limited(limit: usize) -> (Arc<MemoryBudget>, Session) {
    let (agent, master) = tokio::io::duplex(64 * 1024);
    let budget = MemoryBudget::with_limit(limit);
    let memory = Arc::new(SessionMemory {
        budget: Arc::clone(&budget),
        limit,
        held: AtomicUsize::new(0),
        going: AtomicUsize::new(0),
    });
    let session = Session {
        agent: End::start(agent, Role::Agent, LIMITS),
        master: End::start_within(master, Role::Master, LIMITS, memory),
    };
    session.play_control();
    (budget, session)
}

/// Sends for as long as the peer gives credit.
async fn fill(stream: &mut RelayStream) {
    let filling = async {
        loop {
            std::future::poll_fn(|cx| stream.poll_ready(cx))
                .await
                .unwrap();
            let mut frame = vec![0; ChunkHeader::LEN + stream.chunk_room().min(16 * 1024)];
            std::future::poll_fn(|cx| std::task::Poll::Ready(stream.send_chunk(cx, &mut frame)))
                .await
                .unwrap();
        }
    };
    let _ = timeout(Duration::from_millis(300), filling).await;
}

#[tokio::test]
async fn a_stream_that_is_cut_off_hears_why_and_so_does_the_peer() {
    let (budget, mut session) = limited(520 * 1024);
    let (mut first, mut stalled) = session.open_relay().await;
    let (mut second, mut alive) = session.open_relay().await;
    fill(&mut first).await;
    fill(&mut second).await;
    assert!(budget.held() > 500 * 1024, "{}", budget.held());
    // It takes a little, and little is better than nothing.
    let filled = std::future::poll_fn(|cx| alive.poll_fill(cx)).await;
    assert_eq!(filled.unwrap(), Filled::Data);
    let n = alive.data().len();
    alive.consume(n);

    let refused = session.master.mux.open().await.unwrap_err();

    assert!(matches!(refused, OpenError::NoMemory(_)), "{refused}");
    let error = std::future::poll_fn(|cx| stalled.poll_given_up(cx)).await;
    assert!(matches!(error, StreamError::NoMemory), "{error}");
    assert_eq!(Outcome::from(error), Outcome::Memory);
    stalled.abort(AbortCode::Memory);
    let at_peer = std::future::poll_fn(|cx| first.poll_given_up(cx)).await;
    assert!(
        matches!(at_peer, StreamError::Aborted(AbortCode::Memory)),
        "{at_peer}"
    );
    first.finish();
    // The other one goes on.
    let filled = std::future::poll_fn(|cx| alive.poll_fill(cx)).await;
    assert_eq!(filled.unwrap(), Filled::Data);
    let (_, opened) = session.open_relay().await;
    drop((opened, alive, second));
    session.master.is_empty().await;
    eventually(Duration::from_secs(5), || budget.held() == 0).await;
    assert_eq!(budget.going.load(Relaxed), 0);
}

#[tokio::test]
async fn what_waits_for_credit_counts_too() {
    let (agent, master) = tokio::io::duplex(64 * 1024);
    let budget = MemoryBudget::with_limit(1 << 30);
    let memory = budget.session(ByteSize::mib(64));
    let mut session = Session {
        agent: End::start(agent, Role::Agent, LIMITS),
        master: End::start_within(master, Role::Master, LIMITS, memory),
    };
    session.play_control();
    let (mut reader, mut writer) = session.open_relay().await;

    fill(&mut writer).await;

    assert_eq!(budget.held(), writer.held());
    assert!(budget.held() > 0);
    let reading = async {
        loop {
            let filled = std::future::poll_fn(|cx| reader.poll_fill(cx)).await;
            assert_eq!(filled.unwrap(), Filled::Data);
            let n = reader.data().len();
            reader.consume(n);
        }
    };
    let sent = std::future::poll_fn(|cx| writer.poll_ready(cx));
    tokio::select! {
        sent = sent => sent.unwrap(),
        () = reading => {}
    }
    assert_eq!(budget.held(), 0);
}

#[tokio::test]
async fn one_byte_frames_are_counted_with_what_they_cost() {
    let (budget, mut session) = limited(8 << 20);
    let limits: MuxLimits = LIMITS;
    let (mut peer, master) = session.open().await;
    let before = budget.held();

    for _ in 0..1000 {
        peer.send(&message(b"").slice(..1)).await.unwrap();
    }

    eventually(Duration::from_secs(5), || {
        budget.held() - before == 1000 * (1 + FRAME_OVERHEAD)
    })
    .await;
    drop((peer, master, limits));
}
