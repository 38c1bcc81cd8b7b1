//! Tests of the carrier by itself.
//!
//! What it writes, what it lets through, and when it tells the streams that the session is over.
//! The layer below is a script; the crate above is played by hand.

use std::{collections::VecDeque, task::Waker};

use futures_io::{AsyncRead as _, AsyncWrite as _};
use proptest::prelude::*;
use proxymux_proto::AbortCode;

use super::*;
use crate::{
    memory::SessionMemory,
    mux::testing::{ACK, DATA, FIN, Frame, GO_AWAY, PING, RST, SYN, WINDOW_UPDATE},
    stream_state::{MAX_FRAMES_WAITING, StreamEnd},
};

/// A layer below that does as it is told.
#[derive(Default)]
struct Script {
    /// What is to be read, piece by piece; an empty piece is a pause, and after the last comes
    /// nothing more.
    to_read: VecDeque<Vec<u8>>,
    read_ends: Option<io::ErrorKind>,
    at_end: bool,
    /// How much each write may take; 0 blocks once. Empty: everything.
    writes: VecDeque<usize>,
    written: Vec<Vec<u8>>,
    write_fails: bool,
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.to_read.pop_front() {
            Some(piece) if piece.is_empty() => Poll::Pending,
            Some(mut piece) => {
                let rest = piece.split_off(piece.len().min(buf.remaining()));
                buf.put_slice(&piece);
                if !rest.is_empty() {
                    self.to_read.push_front(rest);
                }
                Poll::Ready(Ok(()))
            }
            None => match self.read_ends {
                Some(kind) => Poll::Ready(Err(kind.into())),
                None if self.at_end => Poll::Ready(Ok(())),
                None => Poll::Pending,
            },
        }
    }
}

impl AsyncWrite for Script {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.write_fails {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let n = match self.writes.pop_front() {
            Some(0) => return Poll::Pending,
            Some(n) => n.min(buf.len()),
            None => buf.len(),
        };
        self.written.push(buf[..n].to_vec());
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn carrier(script: Script) -> Carrier<Script> {
    Carrier::new(
        script,
        StreamTable::new(8, SessionMemory::unlimited()),
        Arc::default(),
    )
}

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn table(carrier: &Carrier<Script>) -> Arc<StreamTable> {
    Arc::clone(&carrier.lock().streams)
}

/// Writes a frame as the crate does: the header, then the body, each until it is taken.
fn write(carrier: &mut Carrier<Script>, frame: &Frame) {
    let bytes = frame.encode();
    for mut part in [&bytes[..12], &bytes[12..]] {
        while !part.is_empty() {
            if let Poll::Ready(n) = Pin::new(&mut *carrier).poll_write(&mut cx(), part) {
                part = &part[n.unwrap()..];
            }
        }
    }
}

fn flush(carrier: &Carrier<Script>) {
    while carrier.poll_flush_now(&mut cx()).is_pending() {}
}

fn written(carrier: &Carrier<Script>) -> Vec<u8> {
    carrier.lock().io.written.concat()
}

/// Reads as the crate does, until there is nothing more or the end.
fn read(carrier: &mut Carrier<Script>, want: usize) -> (Vec<u8>, Option<io::Result<()>>) {
    let (mut all, mut buf) = (Vec::new(), vec![0; want]);
    loop {
        match Pin::new(&mut *carrier).poll_read(&mut cx(), &mut buf) {
            Poll::Ready(Ok(0)) => return (all, Some(Ok(()))),
            Poll::Ready(Ok(n)) => all.extend_from_slice(&buf[..n]),
            Poll::Ready(Err(error)) => return (all, Some(Err(error))),
            Poll::Pending if carrier.lock().io.to_read.is_empty() => return (all, None),
            Poll::Pending => {}
        }
    }
}

fn end_of(stream: &crate::stream_state::StreamShared) -> Option<StreamEnd> {
    stream.poll_ended(Waker::noop())
}

fn bytes_of(frames: &[Frame]) -> Vec<u8> {
    frames.iter().flat_map(Frame::encode).collect()
}

#[test]
fn the_frames_of_a_turn_leave_in_one_write() {
    let mut carrier = carrier(Script::default());
    let frames = [
        Frame::data(SYN, 2, b"one"),
        Frame::plain(WINDOW_UPDATE, 0, 2, 9),
        Frame::data(0, 2, b"two"),
    ];
    for frame in &frames {
        write(&mut carrier, frame);
    }
    assert_eq!(written(&carrier), b"");

    flush(&carrier);

    assert_eq!(carrier.lock().io.written, [bytes_of(&frames)]);
}

#[test]
fn bulk_goes_to_the_layer_below_as_it_is_behind_what_waits() {
    let mut carrier = carrier(Script::default());
    let frames = [
        Frame::data(SYN, 2, b"small"),
        Frame::data(0, 2, &[1; WRITE_THROUGH_LEN]),
        Frame::data(0, 2, b"later"),
    ];
    for frame in &frames[..2] {
        write(&mut carrier, frame);
    }
    assert_eq!(written(&carrier), bytes_of(&frames[..2]));
    assert!(carrier.lock().outbound.buffer.capacity() < WRITE_THROUGH_LEN);
    assert!(carrier.is_behind(), "until it is flushed");

    write(&mut carrier, &frames[2]);
    flush(&carrier);

    assert_eq!(written(&carrier), bytes_of(&frames));
    assert!(!carrier.is_behind());
}

#[test]
fn credit_is_counted_where_the_crate_gives_it() {
    let frames = [
        Frame::plain(WINDOW_UPDATE, SYN, 2, 1000),
        Frame::plain(WINDOW_UPDATE, ACK, 2, 20),
        Frame::plain(WINDOW_UPDATE, RST, 2, 4000),
        Frame::plain(PING, SYN, 0, 50_000),
        Frame::plain(WINDOW_UPDATE, 0, 4, 600_000),
    ];
    let script = Script {
        to_read: [bytes_of(&frames)].into(),
        ..Script::default()
    };
    let mut carrier = carrier(script);

    read(&mut carrier, 100);

    let stream = table(&carrier).find(2).unwrap();
    assert_eq!(stream.credit(), yamux::DEFAULT_CREDIT as usize + 1020);
    stream.credit_used(stream.credit() + 1);
    assert_eq!(stream.credit(), 0);
}

#[test]
fn pings_of_our_own_never_leave_and_answers_do() {
    let mut carrier = carrier(Script::default());
    let like_a_ping = Frame::plain(PING, SYN, 0, 7).encode();
    let frames = [
        Frame::data(0, 2, &like_a_ping),
        Frame::plain(PING, ACK, 0, 7),
    ];
    write(&mut carrier, &Frame::plain(PING, SYN, 0, 0));
    write(&mut carrier, &frames[0]);
    write(&mut carrier, &Frame::plain(PING, SYN, 0, 1));
    write(&mut carrier, &frames[1]);

    flush(&carrier);

    assert_eq!(written(&carrier), bytes_of(&frames));
}

#[test]
fn what_waits_is_bounded_when_the_layer_below_never_takes_all_of_it() {
    let mut carrier = carrier(Script::default());
    let frame = Frame::data(0, 2, &[1; 988]);
    for _ in 0..20 {
        write(&mut carrier, &frame);
    }
    // Each turn takes as much as is added.
    for _ in 0..10_000 {
        carrier.lock().io.writes = VecDeque::from([1000, 0]);
        write(&mut carrier, &frame);
        assert!(carrier.poll_flush_now(&mut cx()).is_pending());
    }
    assert_eq!(carrier.lock().outbound.waiting().len(), 20_000);
    let capacity = carrier.lock().outbound.buffer.capacity();
    assert!(capacity < 4 * 20_000, "{capacity} bytes");
}

#[test]
fn a_partly_drained_buffer_takes_the_next_frame() {
    let mut carrier = carrier(Script::default());
    let frame = Frame::data(0, 2, &[1; 4_000]);
    for _ in 0..17 {
        write(&mut carrier, &frame);
    }
    assert!(!carrier.lock().outbound.has_room());
    carrier.lock().io.writes = VecDeque::from([0]);
    let header = frame.encode()[..12].to_vec();
    assert!(
        Pin::new(&mut carrier)
            .poll_write(&mut cx(), &header)
            .is_pending()
    );
    assert!(carrier.is_blocked());

    carrier.lock().io.writes = VecDeque::from([20_000, 0]);
    let taken = Pin::new(&mut carrier).poll_write(&mut cx(), &header);

    assert!(matches!(taken, Poll::Ready(Ok(12))));
    assert!(!carrier.is_blocked());
}

#[test]
fn an_idle_session_holds_no_buffer_and_a_busy_one_keeps_it() {
    let mut carrier = carrier(Script::default());
    let frame = Frame::data(0, 2, &[1; 4_000]);
    for _ in 0..100 {
        for _ in 0..4 {
            write(&mut carrier, &frame);
        }
        flush(&carrier);
        flush(&carrier);
        assert!(carrier.lock().outbound.buffer.capacity() >= 16_000);
    }
    for _ in 0..QUIET_TURNS {
        write(&mut carrier, &Frame::data(0, 2, b"ping"));
        flush(&carrier);
    }
    flush(&carrier);
    assert_eq!(carrier.lock().outbound.buffer.capacity(), 0);
}

#[test]
fn a_stream_with_too_many_frames_is_ended_alone_and_its_frames_are_thrown_away() {
    let max = MAX_FRAMES_WAITING as usize;
    let flood: Vec<_> = (0..max).map(|_| Frame::data(0, 2, b"x").encode()).collect();
    let more = [
        Frame::data(0, 2, b"too many"),
        Frame::data(0, 4, b"other"),
        Frame::data(0, 2, b"later"),
        Frame::plain(WINDOW_UPDATE, 0, 2, 1),
        Frame::data(FIN, 2, b""),
        Frame::data(RST, 2, b"x"),
    ];
    let script = Script {
        to_read: [flood.concat(), bytes_of(&more)].into(),
        ..Script::default()
    };
    let mut carrier = carrier(script);
    let table = table(&carrier);
    let (flooded, other) = (table.get_or_add(2), table.get_or_add(4));

    let (passed, over) = read(&mut carrier, 4096);

    assert!(over.is_none());
    let rest = &passed[flood.concat().len()..];
    let expected = [&more[1..2], &more[3..]].concat();
    assert_eq!(rest, bytes_of(&expected));
    let overflow = StreamEnd::Aborted(AbortCode::Overflow);
    assert_eq!(end_of(&flooded), Some(overflow));
    assert_eq!(end_of(&other), None);
}

#[test]
fn only_frames_that_make_a_stream_add_one_to_the_table() {
    let frames = [
        Frame::data(SYN, 2, b"data"),
        Frame::plain(WINDOW_UPDATE, SYN, 4, 0),
        Frame::data(SYN | RST, 6, b""),
        Frame::plain(WINDOW_UPDATE, SYN | RST, 8, 0),
        Frame::plain(PING, SYN, 10, 0),
        Frame::data(0, 12, b"data"),
    ];
    let script = Script {
        to_read: [bytes_of(&frames)].into(),
        ..Script::default()
    };
    let mut carrier = carrier(script);

    read(&mut carrier, 100);

    let table = table(&carrier);
    assert_eq!(table.len(), 2);
    assert!(table.find(2).is_some() && table.find(4).is_some());
}

/// Whether a stream knows that the session is over by the time the crate gets what ends it.
fn ends_streams(script: Script) -> bool {
    let mut carrier = carrier(script);
    let stream = table(&carrier).get_or_add(2);
    read(&mut carrier, 100);
    end_of(&stream) == Some(StreamEnd::SessionGone)
}

#[test]
fn streams_know_that_the_session_is_over_before_the_crate_resets_them() {
    let reads = |bytes: Vec<u8>| Script {
        to_read: [bytes].into(),
        ..Script::default()
    };
    let mut version = Frame::data(0, 2, b"").encode();
    version[0] = 1;
    assert!(ends_streams(reads(version)));
    assert!(ends_streams(reads(Frame::plain(4, 0, 0, 0).encode())));
    assert!(ends_streams(reads(Frame::plain(GO_AWAY, 0, 0, 0).encode())));
    let oversized = Frame::plain(DATA, 0, 2, 1024 * 1024 + 1).encode();
    assert!(ends_streams(reads(oversized)));
    assert!(ends_streams(Script {
        at_end: true,
        ..Script::default()
    }));
    assert!(ends_streams(Script {
        read_ends: Some(io::ErrorKind::ConnectionReset),
        ..Script::default()
    }));

    let longest = Frame::plain(DATA, 0, 2, 1024 * 1024).encode();
    assert!(!ends_streams(reads(longest)));
    assert!(!ends_streams(reads(Frame::plain(PING, SYN, 0, 0).encode())));
}

#[test]
fn a_failed_write_or_our_own_accusation_ends_all_streams() {
    let mut carrier = carrier(Script::default());
    let stream = table(&carrier).get_or_add(2);
    write(&mut carrier, &Frame::plain(GO_AWAY, 0, 0, 0));
    assert_eq!(end_of(&stream), None);
    write(&mut carrier, &Frame::plain(GO_AWAY, 0, 0, 1));
    assert_eq!(end_of(&stream), Some(StreamEnd::SessionGone));
    let (_, over) = read(&mut carrier, 100);
    let error = over.unwrap().unwrap_err();
    assert!(error.get_ref().unwrap().is::<Broken>());

    let failing = Script {
        write_fails: true,
        ..Script::default()
    };
    let mut carrier = self::carrier(failing);
    let stream = table(&carrier).get_or_add(2);
    write(&mut carrier, &Frame::data(0, 2, b"x"));
    assert!(matches!(
        carrier.poll_flush_now(&mut cx()),
        Poll::Ready(Err(_))
    ));
    assert_eq!(end_of(&stream), Some(StreamEnd::SessionGone));
}

#[test]
fn an_end_within_a_header_is_no_orderly_one() {
    for (len, orderly) in [(0, true), (5, false), (12, true)] {
        let frame = Frame::plain(WINDOW_UPDATE, 0, 2, 1).encode();
        let script = Script {
            to_read: frame[..len].chunks(4).map(<[u8]>::to_vec).collect(),
            at_end: true,
            ..Script::default()
        };
        let (_, over) = read(&mut carrier(script), 100);
        assert_eq!(over.unwrap().is_ok(), orderly, "after {len} bytes");
    }
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let data = (0..16_u16, 0..8_u32, 0..400_usize).prop_map(|(flags, stream, len)| {
        let fill = u8::try_from(stream).unwrap();
        Frame::data(flags, stream, &vec![fill; len])
    });
    let plain = (1..=3_u8, 0..16_u16, 0..8_u32, any::<u32>())
        .prop_map(|(kind, flags, stream, value)| Frame::plain(kind, flags, stream, value));
    prop_oneof![data, plain]
}

proptest! {
    #[test]
    fn all_but_pings_is_written_whatever_the_layer_below_takes(
        frames in prop::collection::vec(any_frame(), 0..40),
        writes in prop::collection::vec(prop_oneof![Just(0), 1..50_usize, 1..100_000_usize], 0..60),
        flushes in prop::collection::vec(any::<bool>(), 40),
    ) {
        let script = Script { writes: writes.into(), ..Script::default() };
        let mut carrier = carrier(script);
        for (frame, now) in frames.iter().zip(flushes) {
            write(&mut carrier, frame);
            if now {
                let _ = carrier.poll_flush_now(&mut cx());
            }
        }
        flush(&carrier);

        let kept: Vec<_> = frames
            .into_iter()
            .filter(|frame| frame.kind != PING || frame.flags & SYN == 0)
            .collect();
        prop_assert_eq!(written(&carrier), bytes_of(&kept));
        prop_assert_eq!(carrier.is_blocked(), false);
    }

    #[test]
    fn all_is_read_in_whatever_pieces_it_comes(
        frames in prop::collection::vec(any_frame(), 0..40),
        pieces in prop::collection::vec(0..300_usize, 1..200),
        want in 1..5000_usize,
    ) {
        let all = bytes_of(&frames);
        let mut rest = &all[..];
        let mut to_read = VecDeque::new();
        for len in pieces.into_iter().chain([usize::MAX]) {
            let (piece, after) = rest.split_at(len.min(rest.len()));
            to_read.push_back(piece.to_vec());
            rest = after;
        }
        let mut carrier = carrier(Script { to_read, ..Script::default() });

        let (passed, _) = read(&mut carrier, want);

        prop_assert_eq!(passed, all);
        let counted = carrier.lock().bytes_received.load(Ordering::Relaxed);
        prop_assert_eq!(counted, u64::try_from(bytes_of(&frames).len()).unwrap());
    }
}
