//! The idle flows of one session on the reverse path.
//!
//! Owns how many there are: each that the master takes is replaced at once, each that has been idle
//! for so long that a NAT on the way may soon forget it is replaced by a fresh one, and where flows
//! cannot be had they are asked for less and less often. Read [`keep`] and [`State::missing`].
//! Leaves dialling one to `dial.rs` and what becomes of one that is taken to `serve.rs`.
//! Nothing here touches the session: without flows its streams carry everything.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use proxymux_proto::{FlowError, FlowMessage, FlowOpen, MAX_FLOW_POOL, OpenRequest};
use proxymux_transport::{
    flow::{FlowConnection, FlowFault},
    metrics::GaugeGuard,
    telemetry::{chain, millis},
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    MAX_FLOWS, Owner,
    dial::{DialFault, Dialler},
    metrics::IdleEnd,
    serve,
};
use crate::{
    agent::Agent,
    session::{Backoff, up_to},
};

/// The pool of one session, for who keeps it and who shows it.
#[derive(Debug)]
pub(crate) struct Pool {
    state: Mutex<State>,
    changed: Notify,
}

/// What is shown of a pool.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct PoolStatus {
    /// How many idle flows the master wants.
    pub(crate) wanted: usize,
    pub(crate) idle: usize,
    pub(crate) dialling: usize,
    /// Why there are fewer than wanted, and when it is tried again.
    pub(crate) trouble: Option<(String, Option<Instant>)>,
}

#[derive(Debug)]
struct State {
    wanted: usize,
    /// Flows that are being dialled or idle, the oldest first.
    slots: BTreeMap<u64, SlotState>,
    next: u64,
    phase: Phase,
    backoff: Backoff,
    /// What was last complained of, until the pool has proven itself again.
    trouble: Option<String>,
}

#[derive(Debug)]
struct SlotState {
    is_idle: bool,
    /// Cancelled when the flow is one too many.
    retire: CancellationToken,
}

/// Whether flows can be had.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// All that are missing are dialled side by side.
    Well,
    /// None is dialled until then.
    Waiting(Instant),
    /// One is dialled, to see.
    Trying,
}

/// One place of the pool, until it is dropped.
#[derive(Debug)]
struct Slot {
    pool: Arc<Pool>,
    number: u64,
    retire: CancellationToken,
}

/// How waiting for an open request ended.
enum Waited {
    /// With something to be read, which may be the request.
    Readable,
    /// With nothing: it is not wanted any more.
    Ended(IdleEnd),
}

impl Pool {
    pub(super) fn new(wanted: u32) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                wanted: bounded(wanted),
                slots: BTreeMap::new(),
                next: 0,
                phase: Phase::Well,
                backoff: Backoff::default(),
                trouble: None,
            }),
            changed: Notify::new(),
        })
    }

    /// Says how many idle flows the master wants from now on.
    pub(super) fn want(&self, wanted: u32) {
        self.lock().wanted = bounded(wanted);
        self.changed.notify_one();
    }

    /// The pool as it is now.
    pub(crate) fn status(&self) -> PoolStatus {
        let state = self.lock();
        let idle = state.slots.values().filter(|slot| slot.is_idle).count();
        let retry_at = match state.phase {
            Phase::Waiting(until) => Some(until),
            Phase::Well | Phase::Trying => None,
        };
        PoolStatus {
            wanted: state.wanted,
            idle,
            dialling: state.slots.len() - idle,
            trouble: state.trouble.clone().map(|trouble| (trouble, retry_at)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here leaves the state half-changed on a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the pool filled until the session takes nothing new, then ends what is idle.
pub(super) async fn keep(
    pool: Arc<Pool>,
    dialler: Arc<Dialler>,
    owner: Arc<Owner>,
    agent: Arc<Agent>,
) {
    loop {
        let room = MAX_FLOWS.saturating_sub(owner.master().running());
        let (missing, look_again) = pool.lock().missing(Instant::now(), room);
        for _ in 0..missing {
            let slot = Pool::slot(&pool);
            let (dialler, owner) = (Arc::clone(&dialler), Arc::clone(&owner));
            let flow = fill(slot, dialler, owner, Arc::clone(&agent));
            agent.flows.tasks.spawn(flow);
        }
        tokio::select! {
            biased; // Those that end with the session are not to be replaced.
            () = owner.closed.cancelled() => return,
            () = pool.changed.notified() => {}
            () = tokio::time::sleep_until(look_again) => {}
        }
    }
}

/// One flow: dialled, idle, and served if the master takes it.
async fn fill(slot: Slot, dialler: Arc<Dialler>, owner: Arc<Owner>, agent: Arc<Agent>) {
    let dialled = {
        let _counted = GaugeGuard::new(&agent.metrics.flows.dialling);
        tokio::select! {
            biased; // What is not wanted any more is not to be dialled.
            () = owner.closed.cancelled() => return,
            () = slot.retire.cancelled() => return,
            dialled = dialler.dial() => dialled,
        }
    };
    let mut flow = match dialled {
        Ok(flow) => flow,
        Err(fault) => return slot.failed(&fault, &dialler, &agent),
    };
    agent.metrics.flows.dialled();
    slot.stands();
    let idle = GaugeGuard::new(&agent.metrics.flows.idle);
    let stood = Instant::now();
    match wait(&flow, &slot, &owner, &dialler).await {
        Waited::Ended(end) => agent.metrics.flows.ended(end),
        Waited::Readable => match receive(&mut flow).await {
            Ok(request) => {
                drop(idle);
                slot.proven(&dialler);
                // The place is free, and another flow on its way, before this one is served.
                drop(slot);
                drop(dialler);
                let master = Arc::clone(owner.master());
                master.run(serve::serve(flow, request, owner, agent)).await;
            }
            Err(fault) => {
                agent.metrics.flows.ended(IdleEnd::of(&fault));
                super::log_broken(&flow, &owner, &fault, &agent);
                // One that is ended as soon as it stands is worse than none.
                if stood.elapsed() < SETTLED {
                    slot.failed(&DialFault::Short, &dialler, &agent);
                }
            }
        },
    }
}

/// Waits until there is something to be read of an idle flow, or it is not wanted any more.
async fn wait(flow: &FlowConnection, slot: &Slot, owner: &Owner, dialler: &Dialler) -> Waited {
    let recycle = RECYCLE_AFTER + up_to(RECYCLE_SPREAD);
    let (settle_at, recycle_at) = (Instant::now() + SETTLED, Instant::now() + recycle);
    let mut settled = false;
    loop {
        tokio::select! {
            biased; // What the master has taken is not to be ended for another reason.
            // What has failed is found by reading.
            _ = flow.readable() => return Waited::Readable,
            () = owner.closed.cancelled() => return Waited::Ended(IdleEnd::Session),
            () = slot.retire.cancelled() => return Waited::Ended(IdleEnd::Excess),
            () = tokio::time::sleep_until(recycle_at) => {
                return Waited::Ended(IdleEnd::Recycled);
            }
            () = tokio::time::sleep_until(settle_at), if !settled => {
                settled = true;
                slot.proven(dialler);
            }
        }
    }
}

async fn receive(flow: &mut FlowConnection) -> Result<OpenRequest, FlowFault> {
    let heard = tokio::time::timeout(REQUEST_LIMIT, flow.hear()).await;
    match heard.map_err(|_| FlowFault::Io(std::io::ErrorKind::TimedOut.into()))?? {
        FlowMessage::Open(FlowOpen::Target(request)) => Ok(request),
        // A probe is for a flow that the master dials: this one has been answered.
        _ => Err(FlowFault::Peer(FlowError::Unexpected {
            seen: PROBE_TYPE,
            expected: "open request with a target",
        })),
    }
}

impl State {
    /// How many flows are to be dialled now, and when to look again at the latest; those that are
    /// too many are told so. `room` is how many there may be beside those that are in use.
    fn missing(&mut self, now: Instant, room: usize) -> (usize, Instant) {
        let wanted = self.wanted.min(room);
        // The oldest go: a master hands out the newest first.
        while self.slots.len() > wanted
            && let Some((_, slot)) = self.slots.pop_first()
        {
            slot.retire.cancel();
        }
        if let Phase::Waiting(until) = self.phase
            && until <= now
        {
            self.phase = Phase::Trying;
        }
        let missing = wanted - self.slots.len();
        let at_once = match self.phase {
            Phase::Well => missing,
            Phase::Waiting(until) => return (0, until),
            Phase::Trying => {
                let dialling = self.slots.values().any(|slot| !slot.is_idle);
                missing.min(usize::from(!dialling))
            }
        };
        (at_once, now + LOOK_EVERY)
    }
}

impl Slot {
    /// Says that the flow stands, and is idle.
    fn stands(&self) {
        let mut state = self.pool.lock();
        if let Some(slot) = state.slots.get_mut(&self.number) {
            slot.is_idle = true;
        }
        if state.phase == Phase::Trying {
            state.phase = Phase::Well;
        }
        drop(state);
        self.pool.changed.notify_one();
    }

    /// Says that flows are good for something: this one was taken, or has been idle for a while.
    fn proven(&self, dialler: &Dialler) {
        let mut state = self.pool.lock();
        if state.phase != Phase::Well {
            return;
        }
        state.backoff.reset();
        let trouble = state.trouble.take();
        drop(state);
        if trouble.is_some() {
            tracing::info!(master = %dialler.to, "flows to the master stand again");
        }
    }

    /// Says why there is no flow, and that none is to be dialled for a while.
    fn failed(&self, fault: &DialFault, dialler: &Dialler, agent: &Agent) {
        agent.metrics.flows.failed(fault);
        let text = chain(fault);
        let mut state = self.pool.lock();
        state.slots.remove(&self.number);
        let pause = match state.phase {
            // One of several that were dialled side by side, and not the first to fail.
            Phase::Waiting(_) => None,
            Phase::Well | Phase::Trying => {
                let pause = state.backoff.next();
                state.phase = Phase::Waiting(Instant::now() + pause);
                Some(pause)
            }
        };
        let is_news = state.trouble.as_ref() != Some(&text);
        if is_news {
            state.trouble = Some(text.clone());
        }
        drop(state);
        let (master, retry_in_ms) = (&dialler.to, pause.map(millis));
        if is_news {
            tracing::warn!(
                %master, error = text, retry_in_ms,
                "no flow to the master, the session carries what it would have"
            );
        } else {
            tracing::debug!(%master, error = text, retry_in_ms, "still no flow to the master");
        }
        self.pool.changed.notify_one();
    }
}

impl Pool {
    fn slot(pool: &Arc<Self>) -> Slot {
        let mut state = pool.lock();
        let number = state.next;
        state.next += 1;
        let retire = CancellationToken::new();
        let slot = SlotState {
            is_idle: false,
            retire: retire.clone(),
        };
        state.slots.insert(number, slot);
        drop(state);
        Slot {
            pool: Arc::clone(pool),
            number,
            retire,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.pool.lock().slots.remove(&self.number);
        self.pool.changed.notify_one();
    }
}

fn bounded(wanted: u32) -> usize {
    usize::try_from(wanted.min(MAX_FLOW_POOL)).unwrap_or(0)
}

/// NATs forget a silent connection after 300 s (the least that is common) or 350 s (a well known
/// one); 180 s and a fifth more or less are well before that, and not in step with the others.
const RECYCLE_AFTER: Duration = Duration::from_secs(144);
const RECYCLE_SPREAD: Duration = Duration::from_secs(72);

/// A flow that was idle for so long was no part of a series of failures.
const SETTLED: Duration = Duration::from_secs(2);

/// The type of an open message, which a probe is.
const PROBE_TYPE: u8 = 2;

/// A request is a few hundred bytes, sent at once.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// How often the pool is looked at without a reason, since nothing tells of room that there is
/// again. Rare, as an idle agent should sleep.
const LOOK_EVERY: Duration = Duration::from_secs(10);
