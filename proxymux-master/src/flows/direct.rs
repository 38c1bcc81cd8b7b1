//! The direct path of one session: whether the agent is found where its kubelet is to be dialled.
//!
//! Owns the background probes, and what is known from them and from flows ([`Direct`]). A node is
//! dialled on behalf of a request only while that has worked within the last minute
//! ([`PROVEN_FOR`]), so no request pays for a node that cannot be dialled.
//! Leaves the messages to `opening.rs`. Read [`run`] for when a probe is made.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use proxymux_proto::{FlowMessage, FlowOpen, SteeringStatus};
use proxymux_transport::config_file::values::AutoOff;
use tokio::{sync::Notify, time::Instant};

use super::{
    Why,
    opening::{self, DialError},
};
use crate::{master::Master, registry::SessionHandle};

/// What is known of a session's direct path.
#[derive(Debug)]
pub(crate) struct Direct {
    allowed: bool,
    kubelet: Option<SocketAddr>,
    state: Mutex<State>,
    /// The agent's steering has changed, or a flow has failed.
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    steering: Option<SteeringStatus>,
    /// When an agent was found there last, unless something has failed since.
    proven: Option<Instant>,
    /// What the last probe or flow met.
    last: Option<Met>,
    /// How often in a row nothing was found.
    failures: u32,
    closed: bool,
}

/// What a probe, or a flow, met where the kubelet is to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Met {
    /// The agent of this session.
    Agent,
    /// The agent, which did not want it.
    Refusal,
    /// Nobody can be connected to.
    Nobody,
    /// No answer in time.
    Silence,
    /// Somebody who does not speak of flows: the kubelet itself.
    Stranger,
}

impl Met {
    /// Every word of [`Met::as_str`].
    pub(crate) const WORDS: &[&str] = &[
        "proven",
        "refused",
        "unreachable",
        "timed-out",
        "not-direct",
    ];

    /// The word for logs and metric labels, from a closed list.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "proven",
            Self::Refusal => "refused",
            Self::Nobody => "unreachable",
            Self::Silence => "timed-out",
            Self::Stranger => "not-direct",
        }
    }
}

impl Direct {
    pub(super) fn new(setting: AutoOff, kubelet: Option<SocketAddr>) -> Self {
        Self {
            allowed: setting == AutoOff::Auto,
            kubelet,
            state: Mutex::default(),
            news: Notify::new(),
        }
    }

    /// Where to dial, if that is proven; else why not.
    pub(crate) fn way(&self) -> Result<SocketAddr, Why> {
        if !self.allowed {
            return Err(Why::DirectOff);
        }
        let at = self.kubelet.ok_or(Why::NoAddress)?;
        let state = self.lock();
        if !state.stands() {
            return Err(Why::NotSteered);
        }
        let proven = state.proven.is_some_and(|at| at.elapsed() < PROVEN_FOR);
        if proven { Ok(at) } else { Err(Why::Unproven) }
    }

    /// What was met last, and what the agent says of its steering: to be shown.
    pub(crate) fn last(&self) -> (Option<Met>, Option<SteeringStatus>) {
        let state = self.lock();
        (state.last, state.steering.clone())
    }

    pub(super) fn steering(&self, status: SteeringStatus) {
        let mut state = self.lock();
        let stood = state.stands();
        state.steering = Some(status);
        if !state.stands() {
            state.proven = None;
        } else if !stood {
            // What failed before says nothing now.
            state.failures = 0;
        }
        drop(state);
        self.news.notify_one();
    }

    /// Notes what was met. Whether the path is proven now, if that is news.
    pub(super) fn met(&self, met: Met) -> Option<bool> {
        let mut state = self.lock();
        let before = state.proven.is_some_and(|at| at.elapsed() < PROVEN_FOR);
        let first = state.last.is_none();
        let changed = state.last != Some(met);
        state.last = Some(met);
        let proven = met == Met::Agent && state.stands();
        if proven {
            state.proven = Some(Instant::now());
            state.failures = 0;
        } else {
            state.proven = None;
            // What was found a moment ago is looked for again at once. It may have been one port
            // that is in TIME_WAIT on the node, whose packets are left to the kubelet.
            state.failures = if before {
                0
            } else {
                state.failures.saturating_add(1)
            };
        }
        drop(state);
        if before && !proven {
            // The next probe was to be made on the assumption that it stands.
            self.news.notify_one();
        }
        (first || before != proven || changed && !proven).then_some(proven)
    }

    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.proven = None;
    }

    /// Until the next probe; `None` while none is of use.
    pub(super) fn pause(&self) -> Option<Duration> {
        let state = self.lock();
        if !state.stands() {
            return None;
        }
        Some(match state.failures {
            0 if state.proven.is_some() => PROBE_EVERY,
            0 => Duration::ZERO,
            failures => backoff(failures),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here leaves the state half-changed on a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn stands(&self) -> bool {
        !self.closed && self.steering.as_ref().is_some_and(|status| status.stands)
    }
}

/// Probes for as long as the session takes flows: as soon as the agent says that its steering
/// stands, then every half minute, and less and less often while nothing is found.
pub(crate) async fn run(handle: Arc<SessionHandle>, master: Arc<Master>) {
    let Some(flows) = &handle.flows else { return };
    let direct = &flows.direct;
    let Some(at) = direct.kubelet.filter(|_| direct.allowed) else {
        return;
    };
    loop {
        match direct.pause() {
            Some(Duration::ZERO) => {}
            Some(pause) => tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = direct.news.notified() => {
                    // An agent that says something new all the time is not followed faster.
                    tokio::time::sleep(LEAST_PAUSE).await;
                    continue;
                }
            },
            None => {
                direct.news.notified().await;
                tokio::time::sleep(SETTLES).await;
                continue;
            }
        }
        // It may have been given to another node since the last time.
        // Nobody is to be dialled because an agent says so.
        if !master.registry.leads_to(at.ip(), &handle.node) {
            tokio::time::sleep(PROBE_EVERY).await;
            continue;
        }
        let met = probe(&master, &handle, at).await;
        master.flows.metrics.probes.get(met.as_str()).inc();
        tell(&handle, at, met, direct.met(met));
        tokio::time::sleep(LEAST_PAUSE).await;
    }
}

/// Notes what a flow of a request met, and tells if that is news.
pub(super) fn note(handle: &SessionHandle, at: SocketAddr, met: Met) {
    if let Some(flows) = &handle.flows {
        tell(handle, at, met, flows.direct.met(met));
    }
}

fn tell(handle: &SessionHandle, at: SocketAddr, met: Met, news: Option<bool>) {
    let (node, met) = (&handle.node, met.as_str());
    match news {
        Some(true) => tracing::info!(%node, %at, "direct path is proven"),
        Some(false) => tracing::info!(%node, %at, reason = met, "no direct path"),
        None => tracing::debug!(%node, %at, met, "direct path probed"),
    }
}

async fn probe(master: &Master, handle: &SessionHandle, at: SocketAddr) -> Met {
    let Some(flows) = &handle.flows else {
        return Met::Refusal;
    };
    let probe = FlowMessage::Open(FlowOpen::Probe);
    let asked = async {
        let (mut flow, _buffers) = opening::dial(master, flows, at, &probe).await?;
        match flow.hear().await {
            Ok(FlowMessage::Accepted) => Ok(Met::Agent),
            Ok(_) => Ok(Met::Refusal),
            Err(fault) => Err(DialError::Flow(fault)),
        }
    };
    match tokio::time::timeout(PROBE_LIMIT, asked).await {
        Ok(Ok(met)) => met,
        Ok(Err(error)) => error.met(),
        Err(_) => Met::Silence,
    }
}

/// From [`FIRST_BACKOFF`] on twice as long each time, of which up to a quarter less, so that a
/// fleet that a firewall has cut off is not probed in step.
fn backoff(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let full = FIRST_BACKOFF
        .saturating_mul(1 << doublings)
        .min(LAST_BACKOFF);
    full.mul_f64(1.0 - 0.25 * fastrand::f64())
}

/// For how long a node that was found is dialled for requests; two probes may be lost.
pub(crate) const PROVEN_FOR: Duration = Duration::from_mins(1);

const PROBE_EVERY: Duration = Duration::from_secs(30);
const FIRST_BACKOFF: Duration = Duration::from_secs(5);
const LAST_BACKOFF: Duration = Duration::from_mins(5);

/// Between two probes, whatever happens.
const LEAST_PAUSE: Duration = Duration::from_secs(1);

/// A change of steering is in force before the agent says so; news that come together are one.
const SETTLES: Duration = Duration::from_millis(50);

/// To connect and to be answered: two lost packets, or one on a slow way.
const PROBE_LIMIT: Duration = Duration::from_secs(3);
