//! What the layers of a session know of its streams together.
//!
//! Owns, per stream, the count of frames that wait in it and whether it was given up; and for
//! all streams of a session the table by id. The carrier counts frames in, the stream counts
//! them out, the session code reports aborts, and none of them holds the others.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU32, Ordering},
    },
    task::Waker,
};

use futures_util::task::AtomicWaker;
use proxymux_proto::AbortCode;

use crate::memory::{FRAME_OVERHEAD, SessionMemory, StreamMemory};

/// The streams of one session by the multiplexer's id.
#[derive(Debug)]
pub(crate) struct StreamTable {
    streams: Mutex<Streams>,
    max_early_aborts: usize,
    memory: Arc<SessionMemory>,
}

#[derive(Debug, Default)]
struct Streams {
    by_id: HashMap<u32, Arc<StreamShared>>,
    /// Aborts of streams that are not there: most have ended, but some may be yet to come.
    early_aborts: VecDeque<(u32, AbortCode)>,
    session_gone: bool,
}

/// Shared state of one stream.
#[derive(Debug)]
pub(crate) struct StreamShared {
    memory: StreamMemory,
    /// Frames with a body that have arrived and have not been read; [`OVERFLOWED`] for good
    /// once they were too many.
    frames_waiting: AtomicU32,
    /// Bytes that the peer still has room for, as far as the carrier has read: the crate counts
    /// the same, a moment later, and tells nobody.
    credit: AtomicI64,
    /// 0, or an end as a number: see [`StreamEnd::to_number`].
    end: AtomicU32,
    waker: AtomicWaker,
}

/// How a stream was ended from outside of itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum StreamEnd {
    Aborted(AbortCode),
    SessionGone,
    /// This side was out of memory.
    NoMemory,
}

impl StreamTable {
    /// An abort goes by the control stream and may overtake the first frame of the stream that
    /// it is about. `max_early_aborts` of those are remembered, the newest. The end that opens
    /// the streams needs none.
    pub(crate) fn new(max_early_aborts: usize, memory: Arc<SessionMemory>) -> Arc<Self> {
        let table = Arc::new(Self {
            streams: Mutex::default(),
            max_early_aborts,
            memory,
        });
        table.memory.join(&table);
        table
    }

    /// What the streams hold.
    pub(crate) fn memory(&self) -> &Arc<SessionMemory> {
        &self.memory
    }

    /// Adds the streams that may be cut off when there is no memory.
    pub(crate) fn holders(&self, streams: &mut Vec<Arc<StreamShared>>) {
        let by_id = &self.lock().by_id;
        let relayed = by_id.iter().filter(|(id, _)| is_relayed(**id));
        streams.extend(relayed.map(|(_, stream)| Arc::clone(stream)));
    }

    /// Counts a frame that arrives for a stream; false if it is to be thrown away.
    pub(crate) fn admit_frame(&self, id: u32, stream: &StreamShared, len: usize) -> bool {
        if is_relayed(id) && !self.memory.admit(len + FRAME_OVERHEAD, self) {
            stream.end_for_memory();
            return false;
        }
        stream.admit_frame(len)
    }

    /// The state of a stream, made on the first call.
    pub(crate) fn get_or_add(&self, id: u32) -> Arc<StreamShared> {
        let mut streams = self.lock();
        if let Some(stream) = streams.by_id.get(&id) {
            return Arc::clone(stream);
        }
        let stream = Arc::new(StreamShared::new(Arc::clone(&self.memory)));
        if let Some(code) = streams.take_early_abort(id) {
            stream.end(StreamEnd::Aborted(code));
        }
        if streams.session_gone {
            stream.end(StreamEnd::SessionGone);
        }
        streams.by_id.insert(id, Arc::clone(&stream));
        stream
    }

    /// The state of a stream that is still there.
    pub(crate) fn find(&self, id: u32) -> Option<Arc<StreamShared>> {
        self.lock().by_id.get(&id).cloned()
    }

    /// Ends a stream that the peer gave up.
    pub(crate) fn abort(&self, id: u32, code: AbortCode) {
        let mut streams = self.lock();
        match streams.by_id.get(&id).cloned() {
            Some(stream) => {
                drop(streams);
                stream.end(StreamEnd::Aborted(code));
            }
            None if self.max_early_aborts > 0 => {
                if streams.early_aborts.len() >= self.max_early_aborts {
                    streams.early_aborts.pop_front();
                }
                streams.early_aborts.push_back((id, code));
            }
            None => {}
        }
    }

    /// Forgets a stream; frames that still come for it are the multiplexer's to ignore.
    pub(crate) fn forget(&self, id: u32) {
        self.lock().by_id.remove(&id);
    }

    /// Ends every stream, those that are added later too.
    pub(crate) fn end_all(&self) {
        let streams: Vec<_> = {
            let mut streams = self.lock();
            streams.session_gone = true;
            streams.by_id.values().cloned().collect()
        };
        // Ending wakes, and what a wake-up does is none of this table's business.
        for stream in streams {
            stream.end(StreamEnd::SessionGone);
        }
    }

    /// As [`StreamTable::end_all`], for good: the table is not needed any more.
    pub(crate) fn close(&self) {
        self.end_all();
        self.lock().by_id.clear();
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.lock().by_id.len()
    }

    fn lock(&self) -> MutexGuard<'_, Streams> {
        // Nothing in here leaves the table half-changed on a panic.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The control stream, on which the session depends, is the only one that the agent opens, and so
/// the only one with an odd id.
fn is_relayed(id: u32) -> bool {
    id.is_multiple_of(2)
}

impl Streams {
    fn take_early_abort(&mut self, id: u32) -> Option<AbortCode> {
        let at = self.early_aborts.iter().position(|(early, _)| *early == id);
        at.and_then(|at| self.early_aborts.remove(at))
            .map(|(_, code)| code)
    }
}

impl StreamShared {
    pub(crate) fn new(memory: Arc<SessionMemory>) -> Self {
        Self {
            memory: StreamMemory::new(memory),
            frames_waiting: AtomicU32::new(0),
            credit: AtomicI64::new(i64::from(yamux::DEFAULT_CREDIT)),
            end: AtomicU32::new(0),
            waker: AtomicWaker::new(),
        }
    }

    /// What the stream holds.
    pub(crate) fn memory(&self) -> &StreamMemory {
        &self.memory
    }

    /// Ends the stream because there is no memory for what it holds.
    pub(crate) fn end_for_memory(&self) {
        self.memory.cut_off();
        self.end(StreamEnd::NoMemory);
    }

    /// Counts room that the peer has made.
    pub(crate) fn credit_received(&self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.credit.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts room that has been used up.
    pub(crate) fn credit_used(&self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.credit.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// How much the peer has room for.
    pub(crate) fn credit(&self) -> usize {
        usize::try_from(self.credit.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Counts a frame that arrives; false if it is one too many and to be thrown away.
    ///
    /// The first that is too many ends the stream. Its owner then drops it, which tells the peer.
    fn admit_frame(&self, len: usize) -> bool {
        let waiting = self.frames_waiting.load(Ordering::Relaxed);
        if waiting == OVERFLOWED || self.memory.is_cut_off() {
            return false;
        }
        // Only the driver's task adds, so a plain addition loses nothing.
        if waiting < MAX_FRAMES_WAITING {
            self.frames_waiting.fetch_add(1, Ordering::Relaxed);
            self.memory.hold(len + FRAME_OVERHEAD);
            return true;
        }
        self.frames_waiting.store(OVERFLOWED, Ordering::Relaxed);
        self.end(StreamEnd::Aborted(AbortCode::Overflow));
        false
    }

    /// Counts a frame of this length that has been used up.
    pub(crate) fn frame_used(&self, len: usize) {
        self.memory.release(len + FRAME_OVERHEAD);
    }

    /// Counts a frame that has been read; its bytes are held until they are used.
    pub(crate) fn frame_read(&self) {
        let lower = |n| (1..=MAX_FRAMES_WAITING).contains(&n).then(|| n - 1);
        let _ = self
            .frames_waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, lower);
    }

    /// Ends the stream; the first end stays.
    pub(crate) fn end(&self, end: StreamEnd) {
        let number = end.to_number();
        let _ = self
            .end
            .compare_exchange(0, number, Ordering::AcqRel, Ordering::Acquire);
        self.waker.wake();
    }

    /// The end, if there was one; otherwise `waker` is woken when there is.
    pub(crate) fn poll_ended(&self, waker: &Waker) -> Option<StreamEnd> {
        self.waker.register(waker);
        StreamEnd::from_number(self.end.load(Ordering::Acquire))
    }
}

impl StreamEnd {
    fn to_number(self) -> u32 {
        match self {
            Self::SessionGone => u32::MAX,
            Self::NoMemory => NO_MEMORY,
            Self::Aborted(code) => ABORTED | u32::from(code.to_wire()),
        }
    }

    fn from_number(number: u32) -> Option<Self> {
        let [code, ..] = number.to_le_bytes();
        match number {
            0 => None,
            u32::MAX => Some(Self::SessionGone),
            NO_MEMORY => Some(Self::NoMemory),
            _ => Some(Self::Aborted(AbortCode::from_wire(code))),
        }
    }
}

/// The most frames that may wait in one stream.
///
/// A waiting frame costs about 64 bytes besides its payload, so a window of 256 KiB in one-byte
/// frames would cost 16 MiB. The smallest TLS record that carries anything has 22 bytes, and 26
/// with our own chunk header, of which 10,082 fill a window: a reader of TLS traffic can be as
/// slow as it likes without ever reaching this limit.
pub(crate) const MAX_FRAMES_WAITING: u32 = 10_240;

const OVERFLOWED: u32 = u32::MAX;

const ABORTED: u32 = 1 << 8;
const NO_MEMORY: u32 = 1 << 9;

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn end_of(stream: &StreamShared) -> Option<StreamEnd> {
        stream.poll_ended(Waker::noop())
    }

    #[test]
    fn the_first_end_stays() {
        let stream = StreamShared::new(SessionMemory::unlimited());
        stream.end(StreamEnd::Aborted(AbortCode::Idle));
        stream.end(StreamEnd::SessionGone);
        assert_eq!(end_of(&stream), Some(StreamEnd::Aborted(AbortCode::Idle)));
    }

    #[test]
    fn every_end_survives_as_a_number() {
        for code in 0..=u8::MAX {
            let end = StreamEnd::Aborted(AbortCode::from_wire(code));
            assert_eq!(StreamEnd::from_number(end.to_number()), Some(end));
        }
        let gone = StreamEnd::SessionGone;
        assert_eq!(StreamEnd::from_number(gone.to_number()), Some(gone));
        assert_eq!(StreamEnd::from_number(0), None);
    }

    #[test]
    fn a_stream_added_after_the_session_ended_has_ended() {
        let table = StreamTable::new(0, SessionMemory::unlimited());
        table.end_all();
        assert_eq!(end_of(&table.get_or_add(2)), Some(StreamEnd::SessionGone));
    }

    #[test]
    fn an_abort_that_overtakes_its_stream_ends_it_once() {
        let table = StreamTable::new(2, SessionMemory::unlimited());
        table.abort(4, AbortCode::Cancelled);

        let stream = table.get_or_add(4);

        let cancelled = StreamEnd::Aborted(AbortCode::Cancelled);
        assert_eq!(end_of(&stream), Some(cancelled));
        table.forget(4);
        assert_eq!(end_of(&table.get_or_add(4)), None);
    }

    #[test]
    fn early_aborts_are_bounded_and_the_newest_stay() {
        let table = StreamTable::new(2, SessionMemory::unlimited());
        for id in [2, 4, 6] {
            table.abort(id, AbortCode::Reset);
        }
        assert_eq!(end_of(&table.get_or_add(2)), None);
        assert!(end_of(&table.get_or_add(4)).is_some());
        assert!(end_of(&table.get_or_add(6)).is_some());
        assert_eq!(table.lock().early_aborts.len(), 0);
    }

    #[test]
    fn an_end_that_opens_streams_remembers_no_early_aborts() {
        let table = StreamTable::new(0, SessionMemory::unlimited());
        table.abort(2, AbortCode::Reset);
        assert_eq!(end_of(&table.get_or_add(2)), None);
    }

    #[test]
    fn frames_are_admitted_up_to_the_limit_and_none_after_it_was_passed() {
        let stream = StreamShared::new(SessionMemory::unlimited());
        for _ in 0..MAX_FRAMES_WAITING {
            assert!(stream.admit_frame(1));
        }
        stream.frame_read();
        assert!(stream.admit_frame(1));
        assert_eq!(end_of(&stream), None);

        assert!(!stream.admit_frame(1));

        let overflow = StreamEnd::Aborted(AbortCode::Overflow);
        assert_eq!(end_of(&stream), Some(overflow));
        stream.frame_read();
        assert!(!stream.admit_frame(1));
    }
}
