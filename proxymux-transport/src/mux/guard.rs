//! The count of a session's streams, and what happens when one is let go.
//!
//! Owns the state that the parts of one session share ([`MuxShared`]), the [`Slot`] that every
//! stream holds until the crate has forgotten it (which it does without saying so, see
//! [`MuxShared::give_back`]), and the [`StreamGuard`] around each stream of the crate.
//!
//! Only the agent ends a stream in the crate's sense, by dropping it; the master lets its end
//! linger until the agent has done so. Hence the agent never has more streams than the master
//! counts, and neither end can drive the other over its limit.

use std::{
    collections::VecDeque,
    fmt, io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use futures_io::AsyncWrite;
use futures_util::{Stream, task::AtomicWaker};
use proxymux_proto::AbortCode;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::{CONTROL_STREAMS, MuxLimits, Role};
use crate::{
    memory::{MemoryFull, SessionMemory},
    stream_state::{StreamShared, StreamTable},
};

/// A stream together with what has to happen when it is let go.
#[derive(Debug)]
pub(crate) struct StreamGuard {
    /// There until the guard is dropped, as is `slot`.
    stream: Option<yamux::Stream>,
    slot: Option<Slot>,
    id: u32,
    shared: Arc<StreamShared>,
    pending: Option<OwnedSemaphorePermit>,
    /// The peer has heard of the stream, or will.
    known_to_peer: bool,
    /// What the peer is told of the end; `None` after a finish.
    abort: Option<AbortCode>,
}

impl StreamGuard {
    /// A stream that this side opened; the peer learns of it with the first write.
    pub(super) fn opened(stream: yamux::Stream, slot: Slot, pending: OwnedSemaphorePermit) -> Self {
        let mut guard = Self::accepted(stream, slot);
        guard.known_to_peer = false;
        guard.pending = Some(pending);
        // Until it is a connection, who lets go of it does not want it any more.
        guard.abort = Some(AbortCode::Cancelled);
        guard
    }

    /// A stream that the peer opened.
    pub(super) fn accepted(stream: yamux::Stream, mut slot: Slot) -> Self {
        slot.holds_stream = true;
        let id = stream.id().val();
        Self {
            shared: slot.shared.table.get_or_add(id),
            stream: Some(stream),
            slot: Some(slot),
            id,
            pending: None,
            known_to_peer: true,
            abort: Some(AbortCode::Reset),
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn shared(&self) -> Arc<StreamShared> {
        Arc::clone(&self.shared)
    }

    /// Waits for the next frame's body; `None` when the stream was ended or reset.
    pub(crate) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<yamux::Packet>>> {
        self.stream().poll_next(cx)
    }

    /// Sends a frame with as much of `bytes` as there is credit for, once there is any.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream().poll_write(cx, bytes);
        self.known_to_peer |= matches!(written, Poll::Ready(Ok(_)));
        written
    }

    fn stream(&mut self) -> Pin<&mut yamux::Stream> {
        Pin::new(
            self.stream
                .as_mut()
                .expect("the stream is only taken by drop"),
        )
    }

    /// Whether there is memory for one more stream than there are.
    pub(crate) fn check_memory(&self) -> Result<(), MemoryFull> {
        self.slot.as_ref().map_or(Ok(()), |slot| {
            let table = &slot.shared.table;
            table.memory().check_room(table)
        })
    }

    /// Says that the peer has answered the opening of this stream.
    pub(crate) fn no_longer_pending(&mut self) {
        self.pending = None;
        // From here on the stream is somebody's connection.
        self.abort = Some(AbortCode::Reset);
    }

    /// Gives the stream up for `code`.
    pub(crate) fn abort(mut self, code: AbortCode) {
        self.abort = Some(code);
    }

    /// Lets go of a stream whose both directions have ended.
    pub(crate) fn finish(mut self) {
        self.abort = None;
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let (Some(stream), Some(slot)) = (self.stream.take(), self.slot.take()) else {
            return;
        };
        let mux = Arc::clone(&slot.shared);
        if let Some(code) = self.abort.filter(|_| self.known_to_peer) {
            mux.announce_abort(self.id, code);
        }
        // A peer that never heard of the stream would never end it.
        if mux.role == Role::Master && self.known_to_peer {
            mux.retire(Lingering {
                stream,
                state: Arc::clone(&self.shared),
                _pending: self.pending.take(),
                slot,
            });
        } else {
            drop(stream);
            mux.table.forget(self.id);
            drop(slot);
        }
    }
}

/// A stream of the master that waits for the agent to end it.
///
/// What still arrives is thrown away. It gives the agent new credit, so an agent that did not
/// hear of the end is not kept from doing whatever makes it end the stream.
pub(super) struct Lingering {
    stream: yamux::Stream,
    state: Arc<StreamShared>,
    _pending: Option<OwnedSemaphorePermit>,
    /// Last: the slot must not be released before the stream is dropped.
    slot: Slot,
}

impl Stream for Lingering {
    type Item = ();

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<()>> {
        match Pin::new(&mut self.stream).poll_next(cx) {
            Poll::Ready(Some(Ok(packet))) => {
                self.state.frame_read();
                self.state.frame_used(packet.as_ref().len());
                Poll::Ready(Some(()))
            }
            Poll::Ready(Some(Err(_)) | None) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let id = self.stream.id().val();
        let mux = &self.slot.shared;
        mux.table.forget(id);
        mux.aborts().retain(|(aborted, _)| *aborted != id);
    }
}

impl fmt::Debug for Lingering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lingering").field(&self.stream).finish()
    }
}

/// One of the session's streams, as a number.
#[derive(Debug)]
pub(super) struct Slot {
    shared: Arc<MuxShared>,
    /// Then the slot is given back only when the crate has forgotten the stream.
    holds_stream: bool,
}

impl Slot {
    /// Takes a slot for a stream to be opened; `None` at the limit.
    ///
    /// Streams that the crate may still have count, since it ends the session at its own limit.
    pub(super) fn for_opening(shared: &Arc<MuxShared>) -> Option<Self> {
        let max = shared.max_slots();
        let one_more = |live| (live < max).then_some(live + 1);
        shared
            .live
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .ok()?;
        Some(Self::new(shared))
    }

    /// Takes a slot for a stream that the peer opened; `None` at the limit. For the driver only.
    ///
    /// Streams that were dropped do not count: the peer may have seen the end of one, and opened
    /// the next, before we know that the crate has forgotten it.
    pub(super) fn for_accepted(shared: &Arc<MuxShared>) -> Option<Self> {
        let released = shared.released.load(Ordering::Acquire);
        let live = shared.live.load(Ordering::Acquire);
        if live.saturating_sub(released) >= shared.max_slots() {
            return None;
        }
        shared.live.fetch_add(1, Ordering::AcqRel);
        Some(Self::new(shared))
    }

    fn new(shared: &Arc<MuxShared>) -> Self {
        Self {
            shared: Arc::clone(shared),
            holds_stream: false,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.holds_stream {
            self.shared.released.fetch_add(1, Ordering::AcqRel);
            self.shared.driver.wake();
        } else {
            self.shared.live.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// What the handle, the driver and the streams of one session share.
#[derive(Debug)]
pub(super) struct MuxShared {
    role: Role,
    limits: MuxLimits,
    pub(super) table: Arc<StreamTable>,
    /// Slots taken, those released and not yet given back among them.
    live: AtomicUsize,
    /// Slots dropped whose stream the crate may still have.
    released: AtomicUsize,
    /// A permit for each stream that may be pending; who waits for one is served in order. Closed
    /// when nothing new is opened.
    pub(super) pending: Arc<Semaphore>,
    pub(super) bytes_received: Arc<AtomicU64>,
    /// Streams on their way to the driver; `None` when it is over.
    retired: Mutex<Option<Vec<Lingering>>>,
    aborts: Mutex<VecDeque<(u32, AbortCode)>>,
    pub(super) abort_added: Notify,
    pub(super) worn_out: Notify,
    /// The session is to be closed from this side.
    closing: AtomicBool,
    over: AtomicBool,
    pub(super) driver: AtomicWaker,
}

impl MuxShared {
    pub(super) fn new(role: Role, limits: MuxLimits, memory: Arc<SessionMemory>) -> Self {
        let max_early_aborts = match role {
            Role::Agent => MAX_EARLY_ABORTS,
            Role::Master => 0,
        };
        Self {
            role,
            limits,
            table: StreamTable::new(max_early_aborts, memory),
            live: AtomicUsize::new(0),
            released: AtomicUsize::new(0),
            pending: Arc::new(Semaphore::new(limits.max_pending)),
            bytes_received: Arc::new(AtomicU64::new(0)),
            retired: Mutex::new(Some(Vec::new())),
            aborts: Mutex::default(),
            abort_added: Notify::new(),
            worn_out: Notify::new(),
            closing: AtomicBool::new(false),
            over: AtomicBool::new(false),
            driver: AtomicWaker::new(),
        }
    }

    pub(super) fn limits(&self) -> MuxLimits {
        self.limits
    }

    fn max_slots(&self) -> usize {
        self.limits.max_streams + CONTROL_STREAMS
    }

    pub(super) fn streams(&self) -> usize {
        let live = self.live.load(Ordering::Acquire);
        // Nobody gives slots back any more when the driver is over.
        let released = if self.is_over() { self.released() } else { 0 };
        live.saturating_sub(released)
    }

    /// Slots dropped so far whose stream the crate may still have.
    pub(super) fn released(&self) -> usize {
        self.released.load(Ordering::Acquire)
    }

    /// Gives back `slots` that were dropped before a turn in which the crate had nothing to wait
    /// for and nothing left to do, hence has seen the end of their streams.
    ///
    /// The crate may, in theory, break off such a turn, namely when another thread has woken two
    /// of its streams while it was just looking at them; it then looks again at once. Even if
    /// all slots were given back one turn too early, all that could be opened in that turn are as
    /// many again, and for these the crate's limit, twice ours, still has room.
    pub(super) fn give_back(&self, slots: usize) {
        // In this order, so that nobody sees fewer live than released.
        self.released.fetch_sub(slots, Ordering::AcqRel);
        self.live.fetch_sub(slots, Ordering::AcqRel);
    }

    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.pending.close();
        self.driver.wake();
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// For the driver, when it ends.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
        self.pending.close();
        self.table.close();
        let retired = self.retired().take();
        // Outside of the lock: dropping streams takes others.
        drop(retired);
    }

    fn retire(&self, stream: Lingering) {
        let refused = match self.retired().as_mut() {
            Some(retired) => {
                retired.push(stream);
                None
            }
            None => Some(stream),
        };
        drop(refused);
        self.driver.wake();
    }

    /// The streams that were let go of since the last call.
    pub(super) fn take_retired(&self) -> Vec<Lingering> {
        self.retired()
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    fn announce_abort(&self, stream: u32, code: AbortCode) {
        let mut aborts = self.aborts();
        // On the master each entry belongs to a lingering stream, so there are never more. The
        // agent's peer sees the stream's reset as well: beyond the limit it only lacks the code.
        if aborts.len() < self.max_slots() {
            aborts.push_back((stream, code));
            drop(aborts);
            self.abort_added.notify_one();
        }
    }

    pub(super) fn next_abort(&self) -> Option<(u32, AbortCode)> {
        self.aborts().pop_front()
    }

    fn aborts(&self) -> MutexGuard<'_, VecDeque<(u32, AbortCode)>> {
        self.aborts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn retired(&self) -> MutexGuard<'_, Option<Vec<Lingering>>> {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Aborts remembered for streams that are not there. Those that matter are of streams under way,
/// of which a session has [`super::CRATE_MAX_PENDING`]; the rest is for those that have ended.
const MAX_EARLY_ABORTS: usize = 1024;
