//! How much memory the streams of a process may hold.
//!
//! Owns the limits ([`MemoryBudget`] in all, [`SessionMemory`] for each session), the account of
//! what is held ([`StreamMemory`], one per stream) and the choice of who has to go when there is
//! no room. What is counted are frames that have arrived and not been used, bytes that wait for
//! credit, and what front doors hold ([`HeldBytes`]); a session's own buffers are not, since they
//! do not grow with its streams.
//!
//! A slow reader goes only at a limit: then the streams whose readers have taken nothing for the
//! longest, until there is room. To know them, no clock is read: the bytes that all readers ever
//! took are counted, and each stream remembers how far that count was when its own took some.

use std::{
    cmp::Reverse,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    config_file::values::ByteSize,
    stream_state::{StreamShared, StreamTable},
};

/// What all streams of a process may hold.
#[derive(Debug)]
pub struct MemoryBudget {
    limit: usize,
    /// Bytes ever held, and those of them that are not held any more.
    taken: AtomicU64,
    given_back: AtomicU64,
    /// Held by streams that were cut off, until they are gone.
    going: AtomicUsize,
    /// Requests that were refused for want of memory.
    refused: AtomicU64,
    /// Whose streams there are. Locked by whoever makes room, so that two never do at once.
    sessions: Mutex<Sessions>,
}

#[derive(Debug, Default)]
struct Sessions {
    tables: Vec<Weak<StreamTable>>,
    told: Option<Instant>,
    untold: usize,
}

/// What the streams of one session may hold.
#[derive(Debug)]
pub struct SessionMemory {
    budget: Arc<MemoryBudget>,
    limit: usize,
    held: AtomicUsize,
    going: AtomicUsize,
}

/// What one stream holds.
#[derive(Debug)]
pub(crate) struct StreamMemory {
    session: Arc<SessionMemory>,
    held: AtomicUsize,
    /// What was held when the stream was cut off, as far as it has not been freed.
    going: AtomicUsize,
    /// The count of all bytes given back when this stream's reader last took some, or when the
    /// first byte came for it.
    moved_at: AtomicU64,
    cut_off: AtomicBool,
}

/// Bytes held for something else than a stream, until it is dropped.
#[derive(Debug)]
pub struct HeldBytes {
    budget: Arc<MemoryBudget>,
    held: usize,
}

/// There is no room for another stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{held} of {limit} of memory for {} are in use", .scope.words())]
pub struct MemoryFull {
    scope: Scope,
    held: Amount,
    limit: Amount,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Scope {
    Session,
    Process,
}

/// Bytes, shown in whole MiB.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Amount(usize);

impl MemoryBudget {
    /// At most so much for all streams.
    #[must_use]
    pub fn new(limit: ByteSize) -> Arc<Self> {
        Self::with_limit(limit.bytes())
    }

    fn with_limit(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            taken: AtomicU64::new(0),
            given_back: AtomicU64::new(0),
            going: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            sessions: Mutex::default(),
        })
    }

    /// The account of a new session.
    #[must_use]
    pub fn session(self: &Arc<Self>, limit: ByteSize) -> Arc<SessionMemory> {
        Arc::new(SessionMemory {
            budget: Arc::clone(self),
            limit: limit.bytes(),
            held: AtomicUsize::new(0),
            going: AtomicUsize::new(0),
        })
    }

    /// An account for what is held besides streams.
    #[must_use]
    pub fn other(self: &Arc<Self>) -> HeldBytes {
        HeldBytes {
            budget: Arc::clone(self),
            held: 0,
        }
    }

    /// Bytes held now.
    #[must_use]
    pub fn held(&self) -> usize {
        // Read in this order, so that what is given back meanwhile does not look like a debt.
        let given_back = self.given_back.load(Relaxed);
        let held = self.taken.load(Relaxed).saturating_sub(given_back);
        usize::try_from(held).unwrap_or(usize::MAX)
    }

    /// The most that may be held.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Requests for a stream that were refused for want of memory, by session or in all.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// Whether what is held is close to the limit.
    #[must_use]
    pub fn is_full(&self) -> bool {
        is_full(self.held(), self.limit)
    }

    fn take(&self, bytes: usize) {
        self.taken.fetch_add(bytes as u64, Relaxed);
    }

    /// Gives back, and says how much was ever given back.
    fn give_back(&self, bytes: usize) -> u64 {
        let before = self.given_back.fetch_add(bytes as u64, Relaxed);
        before.wrapping_add(bytes as u64)
    }

    /// Cuts off the longest-stalled streams of all sessions until so much is free.
    fn make_room(&self, wanted: usize) {
        let mut sessions = self.lock();
        let excess = excess(self.held(), wanted, self.limit);
        if excess == 0 {
            return;
        }
        let mut streams = Vec::new();
        sessions.tables.retain(|table| match table.upgrade() {
            Some(table) => {
                table.holders(&mut streams);
                true
            }
            None => false,
        });
        let cut = cut_off(streams, excess);
        sessions.tell(cut, self.limit, Scope::Process);
    }

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        // A list of references, and when something was last told.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sessions {
    /// Logs that streams were cut off: when that begins, and then with their number now and then.
    fn tell(&mut self, cut: usize, limit: usize, scope: Scope) {
        self.untold += cut;
        let now = Instant::now();
        let due = self.told.is_none_or(|told| now - told >= TELL_EVERY);
        if self.untold > 0 && due {
            let streams = std::mem::take(&mut self.untold);
            self.told = Some(now);
            tracing::warn!(
                streams,
                limit = %Amount(limit),
                of = scope.words(),
                "out of memory for streams, those that stalled longest are cut off"
            );
        }
    }
}

impl SessionMemory {
    /// An account without a limit.
    #[must_use]
    pub fn unlimited() -> Arc<Self> {
        Arc::new(Self {
            budget: MemoryBudget::with_limit(usize::MAX),
            limit: usize::MAX,
            held: AtomicUsize::new(0),
            going: AtomicUsize::new(0),
        })
    }

    /// Bytes held now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    /// Says that streams of this table can be asked to go.
    pub(crate) fn join(&self, table: &Arc<StreamTable>) {
        let mut sessions = self.budget.lock();
        if sessions.tables.len() == sessions.tables.capacity() {
            sessions.tables.retain(|table| table.strong_count() > 0);
        }
        sessions.tables.push(Arc::downgrade(table));
    }

    /// Whether there is room for another stream. If not, some is made for the next, so that those
    /// who stall for ever do not keep all others out for ever.
    pub(crate) fn check_room(&self, table: &StreamTable) -> Result<(), MemoryFull> {
        let full = if is_full(self.held(), self.limit) {
            let full = MemoryFull::new(Scope::Session, self.held(), self.limit);
            self.make_room(table, reserve(self.limit) * 2);
            full
        } else if self.budget.is_full() {
            let budget = &self.budget;
            let full = MemoryFull::new(Scope::Process, budget.held(), budget.limit);
            budget.make_room(reserve(budget.limit) * 2);
            full
        } else {
            return Ok(());
        };
        self.budget.refused.fetch_add(1, Relaxed);
        Err(full)
    }

    /// Makes room for so much that arrives. False if too much is on its way out already, so that
    /// nothing more may come in until it is gone.
    pub(crate) fn admit(&self, bytes: usize, table: &StreamTable) -> bool {
        if self.held().saturating_add(bytes) > self.limit {
            if self.going.load(Relaxed) > self.limit / 4 {
                return false;
            }
            self.make_room(table, reserve(self.limit).max(bytes));
        }
        let budget = &self.budget;
        if budget.held().saturating_add(bytes) > budget.limit {
            if budget.going.load(Relaxed) > budget.limit / 4 {
                return false;
            }
            budget.make_room(reserve(budget.limit).max(bytes));
        }
        true
    }

    fn make_room(&self, table: &StreamTable, wanted: usize) {
        let mut streams = Vec::new();
        table.holders(&mut streams);
        let cut = cut_off(streams, excess(self.held(), wanted, self.limit));
        self.budget.lock().tell(cut, self.limit, Scope::Session);
    }
}

impl StreamMemory {
    pub(crate) fn new(session: Arc<SessionMemory>) -> Self {
        Self {
            session,
            held: AtomicUsize::new(0),
            going: AtomicUsize::new(0),
            moved_at: AtomicU64::new(0),
            cut_off: AtomicBool::new(false),
        }
    }

    /// Counts bytes that are held from now on.
    pub(crate) fn hold(&self, bytes: usize) {
        let budget = &self.session.budget;
        if self.held.fetch_add(bytes, Relaxed) == 0 {
            self.moved_at
                .store(budget.given_back.load(Relaxed), Relaxed);
        }
        self.session.held.fetch_add(bytes, Relaxed);
        budget.take(bytes);
    }

    /// Counts bytes that are not held any more, because the reader has taken them.
    pub(crate) fn release(&self, bytes: usize) {
        let released = take_up_to(&self.held, bytes);
        if released > 0 {
            self.session.held.fetch_sub(released, Relaxed);
            let now = self.session.budget.give_back(released);
            self.moved_at.store(now, Relaxed);
        }
        if released < bytes {
            self.gone(bytes - released);
        }
    }

    /// What the stream holds, and since when its reader has taken nothing, in bytes that others
    /// have taken.
    fn stall(&self) -> (u64, usize) {
        (self.moved_at.load(Relaxed), self.held.load(Relaxed))
    }

    pub(crate) fn is_cut_off(&self) -> bool {
        self.cut_off.load(Relaxed)
    }

    /// Counts what the stream holds as on its way out, and says how much that is.
    pub(crate) fn cut_off(&self) -> usize {
        self.cut_off.store(true, Relaxed);
        let held = self.held.swap(0, Relaxed);
        self.session.held.fetch_sub(held, Relaxed);
        self.session.budget.give_back(held);
        self.going.fetch_add(held, Relaxed);
        self.session.going.fetch_add(held, Relaxed);
        self.session.budget.going.fetch_add(held, Relaxed);
        held
    }

    fn gone(&self, bytes: usize) {
        let gone = take_up_to(&self.going, bytes);
        self.session.going.fetch_sub(gone, Relaxed);
        self.session.budget.going.fetch_sub(gone, Relaxed);
    }
}

impl Drop for StreamMemory {
    fn drop(&mut self) {
        let held = *self.held.get_mut();
        self.release(held);
        let going = *self.going.get_mut();
        self.gone(going);
    }
}

impl HeldBytes {
    /// Says how many bytes are held now.
    pub fn set(&mut self, bytes: usize) {
        if bytes > self.held {
            self.budget.take(bytes - self.held);
        } else {
            self.budget.give_back(self.held - bytes);
        }
        self.held = bytes;
    }

    /// Whether nothing more should be taken in.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.budget.is_full()
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl MemoryFull {
    fn new(scope: Scope, held: usize, limit: usize) -> Self {
        Self {
            scope,
            held: Amount(held),
            limit: Amount(limit),
        }
    }
}

impl Scope {
    fn words(self) -> &'static str {
        match self {
            Self::Session => "the streams of this session",
            Self::Process => "all streams",
        }
    }
}

impl std::fmt::Display for Amount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} MiB", self.0 >> 20)
    }
}

/// Cuts off streams, those first whose reader has taken nothing for the longest, until `excess`
/// bytes are on their way out. Says how many streams that were.
fn cut_off(streams: Vec<Arc<StreamShared>>, excess: usize) -> usize {
    // What is compared must not change while it is sorted.
    let mut by_stall: Vec<_> = streams
        .into_iter()
        .map(|stream| (stream.memory().stall(), stream))
        .filter(|((_, held), _)| *held > 0)
        .collect();
    by_stall.sort_by_key(|((moved_at, held), _)| (*moved_at, Reverse(*held)));
    let mut freed = 0;
    let mut cut = 0;
    for (_, stream) in by_stall {
        if freed >= excess {
            break;
        }
        freed += stream.memory().cut_off();
        stream.end_for_memory();
        cut += 1;
    }
    cut
}

/// How much has to go so that `wanted` is free.
fn excess(held: usize, wanted: usize, limit: usize) -> usize {
    held.saturating_add(wanted).saturating_sub(limit)
}

fn is_full(held: usize, limit: usize) -> bool {
    held > limit - reserve(limit)
}

/// What is kept free: streams that are open may still fill it when no new ones are let in, and
/// room is made in pieces of it.
fn reserve(limit: usize) -> usize {
    limit / 16
}

/// Takes up to `bytes` from a number, and says how much that was.
fn take_up_to(number: &AtomicUsize, bytes: usize) -> usize {
    let lower = |n: usize| Some(n.saturating_sub(bytes));
    let before = number.fetch_update(Relaxed, Relaxed, lower);
    before.map_or(0, |before| before.min(bytes))
}

/// What a frame that waits costs besides its payload: 32 bytes in a queue that may have twice the
/// room that it uses, and up to 32 that the allocator adds to the smallest payload.
pub(crate) const FRAME_OVERHEAD: usize = 96;

/// How often it is told that streams are cut off.
const TELL_EVERY: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests;
