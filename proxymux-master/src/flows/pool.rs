//! The idle flows of the reverse path, and how many the agent is asked to keep.
//!
//! Owns those of one session: taking them in, handing out the newest that lives, letting dead ones
//! go, and the number that is asked for, which grows when a request finds none and shrinks when
//! none did for a while. What is said on a flow before it comes here is `hello.rs`.
//! A flow is looked at in the moment in which it is handed out: one that the agent has closed, or
//! that a reset has reached, is never given to a request.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use proxymux_proto::MAX_FLOW_POOL;
use proxymux_transport::{
    flow::FlowConnection,
    metrics::{Gauge, GaugeGuard},
    socket::FlowBuffersGuard,
};
use tokio::time::Instant;

/// The idle flows of one session.
#[derive(Debug)]
pub(crate) struct Pool {
    /// The number that is asked for without load.
    configured: u32,
    idle: Gauge,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The newest last.
    idle: Vec<IdleFlow>,
    /// Accepted, and not in `idle` yet.
    coming: usize,
    /// How many the agent was asked to keep last.
    wanted: u32,
    /// Whether there ever was one: an agent that cannot dial us is not asked for more.
    ever: bool,
    /// When the number grew last.
    grown: Option<Instant>,
    /// When a request found no flow last, or the number shrank.
    strained: Instant,
    closed: bool,
}

/// A flow that waits for a request.
#[derive(Debug)]
pub(crate) struct IdleFlow {
    pub(super) flow: FlowConnection,
    pub(super) buffers: FlowBuffersGuard,
    _counted: GaugeGuard,
}

/// Room for one more flow, until it is there or this is dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<Pool>);

/// Why a flow is not taken in.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum NoPlace {
    /// The agent keeps twice as many as it was asked to.
    #[error("more idle flows than twice what was asked for")]
    Full,
    /// The session takes nothing new.
    #[error("session takes nothing new")]
    Closed,
}

/// What a request got.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) flow: Option<IdleFlow>,
    /// The agent is to be asked for so many from now on.
    pub(super) ask: Option<u32>,
}

impl Pool {
    pub(super) fn new(configured: u32, idle: &Gauge) -> Arc<Self> {
        Arc::new(Self {
            configured,
            idle: idle.clone(),
            state: Mutex::new(State {
                idle: Vec::new(),
                coming: 0,
                wanted: configured,
                ever: false,
                grown: None,
                strained: Instant::now(),
                closed: false,
            }),
        })
    }

    /// Finds room for a flow whose hello was believed.
    pub(super) fn admit(self: &Arc<Self>) -> Result<Place, NoPlace> {
        let mut state = self.lock();
        if state.closed {
            return Err(NoPlace::Closed);
        }
        // Those that were dialled before the agent heard of a smaller number are welcome.
        let most = state.wanted.max(self.configured).saturating_mul(2);
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        if state.idle.len() + state.coming >= most {
            state.sweep();
        }
        if state.idle.len() + state.coming >= most {
            return Err(NoPlace::Full);
        }
        state.coming += 1;
        Ok(Place(Arc::clone(self)))
    }

    /// The newest flow that lives: it was dialled last, so that the chance that something on the
    /// way has forgotten it is the smallest.
    pub(super) fn take(&self) -> Taken {
        let mut state = self.lock();
        while let Some(idle) = state.idle.pop() {
            if idle.flow.is_quiet() {
                return Taken {
                    flow: Some(idle),
                    ask: None,
                };
            }
        }
        let now = Instant::now();
        state.strained = now;
        let settled = state.grown.is_none_or(|grown| now - grown >= GROWS_AFTER);
        let grows = settled && state.ever && !state.closed && state.wanted < MAX_FLOW_POOL;
        let ask = grows.then(|| state.wanted.saturating_mul(2).min(MAX_FLOW_POOL));
        if let Some(ask) = ask {
            state.wanted = ask;
            state.grown = Some(now);
        }
        Taken { flow: None, ask }
    }

    /// Lets dead flows go; to be called every few seconds. The agent is to be asked for so many
    /// from now on, if that is a new number.
    pub(crate) fn upkeep(&self) -> Option<u32> {
        let mut state = self.lock();
        state.sweep();
        let calm = state.wanted > self.configured && state.strained.elapsed() >= SHRINKS_AFTER;
        if !calm || state.closed {
            return None;
        }
        state.wanted = (state.wanted / 2).max(self.configured);
        state.strained = Instant::now();
        // The agent lets those go that are too many: it would replace what is ended here.
        Some(state.wanted)
    }

    /// Gives up all flows, and takes in no more.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.idle.clear();
    }

    /// How many flows are idle.
    pub(crate) fn len(&self) -> usize {
        self.lock().idle.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here leaves the state half-changed on a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn sweep(&mut self) {
        self.idle.retain(|idle| idle.flow.is_quiet());
    }
}

impl Place {
    /// Puts the flow there, unless the pool was closed meanwhile.
    pub(super) fn fill(self, flow: FlowConnection, buffers: FlowBuffersGuard) {
        let mut state = self.0.lock();
        if state.closed {
            return;
        }
        state.ever = true;
        state.idle.push(IdleFlow {
            flow,
            buffers,
            _counted: GaugeGuard::new(&self.0.idle),
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.lock().coming -= 1;
    }
}

/// An agent that was asked for more has them within a few round trips; until then a burst of
/// requests says nothing new.
const GROWS_AFTER: Duration = Duration::from_secs(1);

/// A load that comes every half minute keeps its flows.
const SHRINKS_AFTER: Duration = Duration::from_mins(1);
