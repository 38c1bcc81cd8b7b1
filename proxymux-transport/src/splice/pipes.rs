//! The pipes of the process.
//!
//! Owns [`Pipes`]: a budget for what all pipes may hold, a short list of empty ones that the next
//! relay takes, and the metrics. A relay holds a pipe ([`HeldPipe`]) only while bytes are in it, so
//! that idle connections hold none. Leaves what goes in and out to `splice`.
//!
//! The kernel counts the pages of a user's pipes (pipe(7)): without privileges, beyond
//! `fs.pipe-user-pages-soft`, new pipes have two pages instead of sixteen. Such a pipe costs more
//! system calls than copying, so it is refused here.

use std::{
    fmt, io,
    os::fd::{BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
    unistd::{pipe2, read},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
};

use crate::{
    metrics::{Counter, Counters, Registry, Unit},
    pair::READ_LEN,
};

/// The pipes that relays use, and what became of them. Clones are the same pipes.
#[derive(Clone, Debug)]
pub struct Pipes(Arc<Shared>);

/// Why a relay copies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fallback {
    /// Pipes are not to be used.
    Off,
    /// All pipes together have what they may have.
    Budget,
    /// The process, or the machine, has no descriptor left.
    Descriptors,
    /// The kernel gives this user only tiny pipes, because of those that the user has.
    UserPages,
    /// The kernel does not splice these sockets, or does not let us.
    Unsupported,
    /// The kernel failed in another way, such as for want of memory.
    Kernel,
}

#[derive(Debug)]
struct Shared {
    budget: usize,
    off: bool,
    state: Mutex<State>,
    /// The kernel has refused to let a pipe grow, and is not asked again.
    growth_refused: AtomicBool,
    relays: Counter,
    fallbacks: Counters,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<Pipe>,
    /// Pipes that relays hold.
    held: usize,
    /// What all pipes may hold, the free ones among them; at most the budget.
    capacity: usize,
}

#[derive(Debug)]
struct Pipe {
    /// Where bytes come out.
    out: OwnedFd,
    /// Where they go in.
    into: OwnedFd,
    capacity: usize,
}

/// A pipe in the hands of one direction of a relay.
#[derive(Debug)]
pub(super) struct HeldPipe {
    /// There until the drop.
    pipe: Option<Pipe>,
    /// How many bytes are in it.
    len: usize,
    shared: Arc<Shared>,
}

impl Fallback {
    /// All reasons there are.
    pub const ALL: &[Self] = &[
        Self::Off,
        Self::Budget,
        Self::Descriptors,
        Self::UserPages,
        Self::Unsupported,
        Self::Kernel,
    ];

    /// Every word of [`Fallback::as_str`].
    pub const WORDS: &[&str] = &[
        "off",
        "budget",
        "descriptors",
        "user-pages",
        "unsupported",
        "kernel",
    ];

    /// Whether pipes may be had later.
    pub(super) fn may_pass(self) -> bool {
        match self {
            Self::Budget | Self::Descriptors | Self::UserPages | Self::Kernel => true,
            Self::Off | Self::Unsupported => false,
        }
    }

    /// The word for metric labels, from a closed list.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Budget => "budget",
            Self::Descriptors => "descriptors",
            Self::UserPages => "user-pages",
            Self::Unsupported => "unsupported",
            Self::Kernel => "kernel",
        }
    }
}

impl Pipes {
    /// Pipes that may hold so many bytes in all.
    #[must_use]
    pub fn new(budget_bytes: usize) -> Self {
        Self::with(budget_bytes, false)
    }

    /// No pipes: every relay copies. To compare with.
    #[must_use]
    pub fn off() -> Self {
        Self::with(0, true)
    }

    fn with(budget: usize, off: bool) -> Self {
        Self(Arc::new(Shared {
            budget,
            off,
            state: Mutex::default(),
            growth_refused: AtomicBool::new(false),
            relays: Counter::default(),
            fallbacks: Counters::new("reason", Fallback::WORDS),
        }))
    }

    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "spliced_relays",
            "Relays that began with pipes, so that their payload does not enter user memory",
            self.0.relays.clone(),
        );
        registry.register(
            "splice_fallbacks",
            "Relays of plain connections that copy, by the reason; at least in one direction",
            self.0.fallbacks.clone(),
        );
        registry.register_collector(Box::new(PipeMetrics(self.clone())));
    }

    /// Pipes that have bytes in them.
    #[must_use]
    pub fn held(&self) -> usize {
        self.0.lock().held
    }

    /// Empty pipes that are kept for the next relay; a few at most.
    #[must_use]
    pub fn free(&self) -> usize {
        self.0.lock().free.len()
    }

    /// What all pipes can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.0.lock().capacity
    }

    /// Relays that began with pipes.
    #[must_use]
    pub fn relays_spliced(&self) -> u64 {
        self.0.relays.get()
    }

    /// Relays that copy for this reason.
    #[must_use]
    pub fn relays_copied(&self, reason: Fallback) -> u64 {
        self.0.fallbacks.get(reason.as_str()).get()
    }

    pub(super) fn are_off(&self) -> bool {
        self.0.off
    }

    pub(super) fn count_relay(&self) {
        self.0.relays.inc();
    }

    pub(super) fn count_fallback(&self, reason: Fallback) {
        self.0.fallbacks.get(reason.as_str()).inc();
    }

    /// An empty pipe that can hold so much; or less where that cannot be had.
    pub(super) fn take(&self, wanted: usize) -> Result<HeldPipe, Fallback> {
        let shared = &self.0;
        let mut state = shared.lock();
        let mut pipe = match state.take_free(wanted) {
            Some(pipe) => pipe,
            None => {
                let pipe = shared.open(&mut state)?;
                state.capacity += pipe.capacity;
                pipe
            }
        };
        if pipe.capacity < wanted {
            shared.grow(&mut state, &mut pipe, wanted);
        }
        state.held += 1;
        drop(state);
        Ok(HeldPipe {
            pipe: Some(pipe),
            len: 0,
            shared: Arc::clone(shared),
        })
    }
}

impl State {
    /// The smallest that is large enough, or else the largest.
    fn take_free(&mut self, wanted: usize) -> Option<Pipe> {
        let fits = |pipe: &Pipe| pipe.capacity >= wanted;
        let best = self.free.iter().enumerate().min_by_key(|(_, pipe)| {
            let order = if fits(pipe) {
                pipe.capacity
            } else {
                usize::MAX - pipe.capacity
            };
            (!fits(pipe), order)
        });
        let at = best.map(|(at, _)| at)?;
        Some(self.free.swap_remove(at))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here leaves the state half-changed on a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, state: &mut State) -> Result<Pipe, Fallback> {
        if state.capacity.saturating_add(FIRST_CAPACITY) > self.budget {
            return Err(Fallback::Budget);
        }
        let flags = OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let (out, into) = pipe2(flags).map_err(|error| match error {
            Errno::EMFILE | Errno::ENFILE => Fallback::Descriptors,
            _ => Fallback::Kernel,
        })?;
        let capacity = fcntl(&into, FcntlArg::F_GETPIPE_SZ).map_err(|_| Fallback::Kernel)?;
        let capacity = usize::try_from(capacity).unwrap_or(0);
        if capacity < FIRST_CAPACITY {
            return Err(Fallback::UserPages);
        }
        Ok(Pipe {
            out,
            into,
            capacity,
        })
    }

    /// Growth leaves half of the budget to those that have no pipe yet.
    fn grow(&self, state: &mut State, pipe: &mut Pipe, wanted: usize) {
        let more = wanted.saturating_sub(pipe.capacity);
        if self.growth_refused.load(Ordering::Relaxed)
            || state.capacity.saturating_add(more) > self.budget / 2
        {
            return;
        }
        let size = i32::try_from(wanted).unwrap_or(i32::MAX);
        match fcntl(&pipe.into, FcntlArg::F_SETPIPE_SZ(size)) {
            Ok(grown) => {
                let grown = usize::try_from(grown).unwrap_or(pipe.capacity);
                state.capacity = state.capacity - pipe.capacity + grown;
                pipe.capacity = grown;
            }
            // EPERM: the user's pipes have too many pages, or `fs.pipe-max-size` is smaller.
            Err(_) => self.growth_refused.store(true, Ordering::Relaxed),
        }
    }
}

impl HeldPipe {
    pub(super) fn capacity(&self) -> usize {
        self.pipe.as_ref().map_or(0, |pipe| pipe.capacity)
    }

    pub(super) fn has_bytes(&self) -> bool {
        self.len > 0
    }

    /// Takes up to `max` bytes from a socket; 0 at its end.
    pub(super) fn fill(&mut self, source: BorrowedFd<'_>, max: usize) -> io::Result<usize> {
        let pipe = self.pipe.as_ref().ok_or_else(gone)?;
        let n = splice(source, None, &pipe.into, None, max, FLAGS)?;
        self.len += n;
        Ok(n)
    }

    /// Gives to a socket what it takes of the bytes.
    pub(super) fn empty(&mut self, sink: BorrowedFd<'_>) -> io::Result<usize> {
        let pipe = self.pipe.as_ref().ok_or_else(gone)?;
        let n = splice(&pipe.out, None, sink, None, self.len, FLAGS)?;
        self.len = self.len.saturating_sub(n);
        Ok(n)
    }

    /// Takes some of the bytes into user memory.
    pub(super) fn read_out(&mut self) -> io::Result<Bytes> {
        let pipe = self.pipe.as_ref().ok_or_else(gone)?;
        let mut bytes = vec![0; self.len.min(READ_LEN)];
        let n = read(&pipe.out, &mut bytes)?;
        bytes.truncate(n);
        self.len = self.len.saturating_sub(n);
        Ok(bytes.into())
    }
}

impl Drop for HeldPipe {
    fn drop(&mut self) {
        let Some(pipe) = self.pipe.take() else { return };
        let mut state = self.shared.lock();
        state.held -= 1;
        if self.len == 0 && state.free.len() < MAX_FREE {
            state.free.push(pipe);
        } else {
            state.capacity -= pipe.capacity;
        }
    }
}

#[derive(Debug)]
struct PipeMetrics(Pipes);

impl Collector for PipeMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut pipes = encoder.encode_descriptor(
            "pipes",
            "Pipes that relays hold because bytes are in them, and empty ones.",
            None,
            MetricType::Gauge,
        )?;
        for (state, count) in [("held", self.0.held()), ("free", self.0.free())] {
            let count = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            count.encode(pipes.encode_family(&[("state", state)])?)?;
        }
        let capacity = encoder.encode_descriptor(
            "pipe_capacity",
            "What all pipes can hold.",
            Some(&Unit::Bytes),
            MetricType::Gauge,
        )?;
        let bytes = i64::try_from(self.0.capacity()).unwrap_or(i64::MAX);
        ConstGauge::new(bytes).encode(capacity)
    }
}

fn gone() -> io::Error {
    io::Error::other("the pipe was given back")
}

/// What a new pipe has (pipe(7)).
pub(super) const FIRST_CAPACITY: usize = 64 << 10;

/// What the kernel lets users have at most (`fs.pipe-max-size`), unless it is told otherwise.
pub(super) const MAX_CAPACITY: usize = 1 << 20;

/// Enough for the relays that a few processors run at once; each costs two descriptors.
const MAX_FREE: usize = 16;

const FLAGS: SpliceFFlags = SpliceFFlags::SPLICE_F_MOVE.union(SpliceFFlags::SPLICE_F_NONBLOCK);
