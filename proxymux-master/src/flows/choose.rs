//! By which path a connection to a kubelet is opened.
//!
//! Owns the choice (direct if it is proven, else a flow that is ready, else the session) and the
//! race: a flow that has not answered within [`head_start`] is joined by a stream of the session,
//! and whichever is open first is used. Leaves opening either to `opening.rs` here and
//! `crate::opening`.
//! Read [`Opening::run`].

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use proxymux_proto::{Measure, OpenRequest, TargetAddr};
use proxymux_transport::telemetry::Path;
use tokio::time::Instant;

use super::{
    FlowGuard, Why, direct,
    direct::Met,
    opening::{self, Candidate, OpenFailure as FlowFailure, OpenFlow},
};
use crate::{
    front_door::{Refusal, Status},
    master::Master,
    opening::{self as streams, OpenFailure},
    registry::{SessionCommand, SessionHandle},
};

/// A request for a target that leads to a node with a session.
#[derive(Debug)]
pub(crate) struct Opening<'a> {
    pub(crate) master: &'a Master,
    pub(crate) session: &'a Arc<SessionHandle>,
    pub(crate) target: &'a TargetAddr,
    /// Instead of the target, an end of the agent's for measuring.
    pub(crate) measure: Option<Measure>,
    pub(crate) deadline: Instant,
}

/// Why a path that was asked for by name gives no connection.
#[derive(Debug)]
pub(crate) enum OnlyFailure {
    /// The path cannot be used.
    Not(Why),
    /// The agent, or the way to it, says no.
    Refused(Refusal),
}

/// What stands.
#[derive(Debug)]
pub(crate) enum Opened {
    Flow {
        flow: OpenFlow,
        /// Why it is not a flow of the direct path.
        why: Option<Why>,
    },
    Stream {
        stream: proxymux_transport::stream::RelayStream,
        why: Option<Why>,
    },
}

/// The first part of a race, if there is a flow at all.
struct Fast {
    flow: (Candidate, FlowGuard),
    why_not_direct: Option<Why>,
}

impl Opening<'_> {
    /// Opens the target by the fastest path that there is; `by_session` if something says already
    /// that it is to be the session.
    ///
    /// Cancel-safe: whatever is under way is given up, on the agent too.
    pub(crate) async fn run(&self, by_session: Option<Why>) -> Result<Opened, OpenFailure> {
        match by_session.map_or_else(|| self.choose(), Err) {
            Ok(fast) => self.race(fast).await,
            Err(why) => self.stream(Some(why)).await,
        }
    }

    fn choose(&self) -> Result<Fast, Why> {
        if let Some(why) = self.master.flows.off() {
            return Err(why);
        }
        let flows = self.session.flows.as_ref().ok_or(Why::AgentOff)?;
        let guard = flows.node.enter().ok_or(Why::Limit)?;
        match flows.direct.way() {
            Ok(at) => Ok(Fast {
                flow: (Candidate::Direct(at), guard),
                why_not_direct: None,
            }),
            Err(why) => {
                let taken = flows.pool.take();
                self.ask_for(taken.ask);
                let idle = taken.flow.ok_or(Why::NoFlow)?;
                Ok(Fast {
                    flow: (Candidate::Reverse(Box::new(idle)), guard),
                    why_not_direct: Some(why),
                })
            }
        }
    }

    async fn race(&self, fast: Fast) -> Result<Opened, OpenFailure> {
        let Fast {
            flow,
            why_not_direct,
        } = fast;
        let direct_at = match &flow.0 {
            Candidate::Direct(at) => Some(*at),
            Candidate::Reverse(_) => None,
        };
        let answered = AtomicBool::new(false);
        let mut flow = pin!(opening::open(
            self.master,
            self.session,
            flow,
            self.request(),
            &answered
        ));
        let opened = |flow| Opened::Flow {
            flow,
            why: why_not_direct,
        };
        let head_start = head_start(self.session.about.rtt_us().map(Duration::from_micros));
        match tokio::time::timeout(head_start, &mut flow).await {
            Ok(Ok(flow)) => return Ok(opened(flow)),
            Ok(Err(failure)) => return self.instead(failure).await,
            Err(_) => {}
        }
        let mut stream = pin!(self.stream(Some(Why::Slow)));
        tokio::select! {
            flow = &mut flow => match flow {
                Ok(flow) => Ok(opened(flow)),
                Err(FlowFailure::Answer(refusal)) => Err(OpenFailure::Refused(refusal)),
                // The stream is under way.
                Err(FlowFailure::Refused | FlowFailure::Broken) => stream.await,
            },
            stream = &mut stream => match stream {
                Ok(stream) => {
                    if let Some(at) = direct_at.filter(|_| !answered.load(Ordering::Relaxed)) {
                        direct::note(self.session, at, Met::Silence);
                    }
                    Ok(stream)
                }
                Err(failure) if is_about_the_target(&failure) => Err(failure),
                // It has no stream for us, and may have a flow.
                Err(failure) => match tokio::time::timeout_at(self.deadline, flow).await {
                    Ok(Ok(flow)) => Ok(opened(flow)),
                    Ok(Err(FlowFailure::Answer(refusal))) => Err(OpenFailure::Refused(refusal)),
                    Ok(Err(FlowFailure::Refused | FlowFailure::Broken)) | Err(_) => Err(failure),
                },
            },
        }
    }

    /// What follows when a flow was not opened.
    async fn instead(&self, failure: FlowFailure) -> Result<Opened, OpenFailure> {
        match failure {
            FlowFailure::Answer(refusal) => Err(OpenFailure::Refused(refusal)),
            FlowFailure::Refused => self.stream(Some(Why::Refused)).await,
            FlowFailure::Broken => self.stream(Some(Why::Failed)).await,
        }
    }

    async fn stream(&self, why: Option<Why>) -> Result<Opened, OpenFailure> {
        let (target, measure) = (self.target, self.measure);
        let turns = &self.master.metrics.turns;
        let stream = streams::open(self.session, target, measure, self.deadline, turns).await?;
        Ok(Opened::Stream { stream, why })
    }

    /// Opens the target by this path and no other. Where the path needs a flow that is ready, it is
    /// waited for.
    pub(crate) async fn only(&self, path: Path) -> Result<Opened, OnlyFailure> {
        let refused = |refusal| OnlyFailure::Refused(refusal);
        if path == Path::Session {
            return self.stream(None).await.map_err(|failure| match failure {
                OpenFailure::Refused(refusal) => refused(refusal),
                OpenFailure::SessionGone => OnlyFailure::Not(Why::Failed),
            });
        }
        let flow = match tokio::time::timeout_at(self.deadline, self.candidate(path)).await {
            Ok(flow) => flow.map_err(OnlyFailure::Not)?,
            Err(_) => return Err(OnlyFailure::Not(Why::NoFlow)),
        };
        let answered = AtomicBool::new(false);
        let opened = opening::open(self.master, self.session, flow, self.request(), &answered);
        match tokio::time::timeout_at(self.deadline, opened).await {
            Ok(Ok(flow)) => Ok(Opened::Flow { flow, why: None }),
            Ok(Err(FlowFailure::Answer(refusal))) => Err(refused(refusal)),
            Ok(Err(FlowFailure::Refused)) => Err(OnlyFailure::Not(Why::Refused)),
            Ok(Err(FlowFailure::Broken)) => Err(OnlyFailure::Not(Why::Failed)),
            Err(_) => Err(OnlyFailure::Not(Why::Slow)),
        }
    }

    async fn candidate(&self, path: Path) -> Result<(Candidate, FlowGuard), Why> {
        if let Some(why) = self.master.flows.off() {
            return Err(why);
        }
        let flows = self.session.flows.as_ref().ok_or(Why::AgentOff)?;
        let guard = flows.node.enter().ok_or(Why::Limit)?;
        if path == Path::Direct {
            return flows.direct.way().map(|at| (Candidate::Direct(at), guard));
        }
        loop {
            let taken = flows.pool.take();
            self.ask_for(taken.ask);
            if let Some(idle) = taken.flow {
                return Ok((Candidate::Reverse(Box::new(idle)), guard));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn ask_for(&self, number: Option<u32>) {
        if let Some(number) = number {
            // A queue that is full belongs to a session that is ending.
            let more = SessionCommand::FlowPool(number);
            let _ = self.session.commands.try_send(more);
        }
    }

    fn request(&self) -> OpenRequest {
        OpenRequest {
            target: self.target.clone(),
            budget: self.deadline.saturating_duration_since(Instant::now()),
            measure: self.measure,
        }
    }
}

/// How long a flow may take alone: an answer needs one round trip, or two where the node is
/// dialled, and the kubelet's own.
fn head_start(rtt: Option<Duration>) -> Duration {
    rtt.map_or(LEAST_HEAD_START, |rtt| {
        rtt.saturating_mul(3).max(LEAST_HEAD_START)
    })
}

/// Whether an answer of the session is what the flow would give as well.
fn is_about_the_target(failure: &OpenFailure) -> bool {
    match failure {
        OpenFailure::Refused(refusal) => matches!(
            refusal.status,
            Status::BadGateway | Status::GatewayTimeout | Status::Forbidden
        ),
        OpenFailure::SessionGone => false,
    }
}

/// How often it is looked whether the agent has dialled another flow; far less than a round trip.
const LOOK_AGAIN: Duration = Duration::from_micros(200);

/// Longer than a lost packet takes to be sent again (0.2 s).
const LEAST_HEAD_START: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_waits_for_three_round_trips_and_a_quarter_of_a_second_at_least() {
        let ms = Duration::from_millis;
        assert_eq!(head_start(None), ms(250));
        assert_eq!(head_start(Some(ms(20))), ms(250));
        assert_eq!(head_start(Some(ms(200))), ms(600));
        assert_eq!(head_start(Some(Duration::MAX)), Duration::MAX);
    }
}
