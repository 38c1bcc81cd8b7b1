//! One established session with a master, until it ends.
//!
//! Owns its loop: messages of the master, streams to be served, the agent's own wish to end, and
//! what is still waited for then. Leaves dialling again to the worker, which is told as soon as
//! the session takes no new streams.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use proxymux_proto::{
    Addresses, ControlMessage, Drain, EndCode, FlowAbort, InstanceId, SessionEnd, SteeringStatus,
};
use proxymux_transport::{
    credentials::ContentId,
    metrics::{DRAIN, end_word},
    mux::Incoming,
    reload::InForce,
    segments::Sign,
    session::{Event, SessionCore, SessionOver},
    stream::MessageStream,
    telemetry::chain,
    trust::PeerTrust,
};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Path, Pause, Released,
    establish::Established,
    segments::{Loss, Segments},
    serve::{StreamContext, serve},
};
use crate::{
    agent::Agent,
    board::{Row, SessionEntry, State},
    flows::{FlowsView, SessionFlows, Way},
    masters::HeldGuard,
    metrics::{RENEWED, SEGMENTS},
    steering::{Dialled, NamedSources},
};

/// An established session.
pub(super) struct Session {
    agent: Arc<Agent>,
    at: SocketAddr,
    path: Arc<Path>,
    segments: Segments,
    core: SessionCore,
    incoming: Incoming,
    /// There while the session takes new streams.
    held: Option<HeldGuard>,
    streams: TaskTracker,
    row: Row,
    /// The addresses from which the master dials nodes.
    _sources: NamedSources,
    cut: CancellationToken,
    /// Connections whose relay has ended because the session had.
    lost: Arc<AtomicUsize>,
    /// What bypasses it, if its master uses fast paths.
    flows: Option<SessionFlows>,
    /// Who the master is to the steering of this node.
    dialled: Dialled,
    steering_changes: watch::Receiver<()>,
    /// What the master was told of steering last.
    told: Option<SteeringStatus>,
    release: Option<oneshot::Sender<Released>>,
    /// Since when it takes no new streams.
    released: Option<Instant>,
    /// Told when the worker has another session, and with which master; `None` afterwards.
    successor: Option<oneshot::Receiver<InstanceId>>,
    /// The same master has another session with this agent now.
    replaced: bool,
    master: InstanceId,
    trust: PeerTrust,
    /// The certificate that the master was shown.
    shown: ContentId,
    renewed: watch::Receiver<Option<Arc<InForce>>>,
    /// The master has said why the session will end.
    goodbye: bool,
    /// The agent has said that it drains this session.
    draining: bool,
    /// The agent was told to end, and the master knows.
    leaving: bool,
    /// The agent itself is ending.
    ending: bool,
    /// When streams that are still open are cut off, or, once they are, no longer waited for.
    finish_by: Option<Instant>,
    began: Instant,
}

/// How a session's loop ended.
enum Ending {
    /// The session is gone.
    Over(SessionOver),
    /// The session is to be ended, telling the master this.
    EndHere(SessionEnd),
}

impl Ending {
    /// The word for the metric's label, from [`proxymux_transport::metrics::end_words`].
    fn word(&self) -> &'static str {
        match self {
            Self::Over(over) => end_word(over),
            Self::EndHere(end) => end.code.as_str(),
        }
    }
}

impl Session {
    /// A session that takes streams. `release` is told when it no longer does.
    pub(super) fn new(
        agent: Arc<Agent>,
        path: Arc<Path>,
        mut established: Established,
        release: oneshot::Sender<Released>,
        successor: oneshot::Receiver<InstanceId>,
        of: &Row,
    ) -> Self {
        let master = established.registered.master;
        let held = agent.masters.hold(master);
        let mut renewed = agent.certificates.changes();
        // They may have been renewed since the handshake began.
        renewed.mark_changed();
        let streams = TaskTracker::new();
        let way = Way {
            master: path.master,
            largest_segment: established.segments.largest(),
        };
        let keys = established.flow_keys.as_ref();
        let flows = SessionFlows::start(&agent, keys, &established.registered, way);
        let dialled = Dialled {
            kubelet: agent.config.registered_kubelet(),
            master: path.master.ip(),
            sources: established.registered.dial_sources.clone(),
        };
        let mut steering_changes = agent.steering.changes.watch();
        // What there is now is the first news.
        steering_changes.mark_changed();
        let sources = agent.sources.named(&established.registered.dial_sources);
        let row = of.session(SessionEntry {
            master,
            addresses: established.registered.addresses,
            rtt: None,
            streams: streams.clone(),
            flows: flows.as_ref().map(SessionFlows::view),
            steering: None,
        });
        if established.segments == Segments::Large {
            established.core.watch_segments();
        }
        Self {
            agent,
            at: path.master,
            path,
            segments: established.segments,
            core: established.core,
            incoming: established.incoming,
            held: Some(held),
            streams,
            row,
            _sources: sources,
            cut: CancellationToken::new(),
            lost: Arc::default(),
            flows,
            dialled,
            steering_changes,
            told: None,
            release: Some(release),
            released: None,
            successor: Some(successor),
            replaced: false,
            master,
            trust: established.trust,
            shown: established.shown,
            renewed,
            goodbye: false,
            draining: false,
            leaving: false,
            ending: false,
            finish_by: None,
            began: Instant::now(),
        }
    }

    /// Serves the master's streams until the session ends.
    pub(super) async fn run(mut self) {
        let counted = self.agent.metrics.sessions.open();
        let ending = self.serve_until_done().await;
        drop(counted);
        if let Some(released) = self.released {
            self.agent.metrics.sessions.drained(released.elapsed());
        }
        self.release(Pause::Backoff, ending.word());
        // Idle ones end, and for those that relay the master's time begins.
        self.flows = None;
        match ending {
            Ending::Over(over) => {
                let reason = chain(&over);
                // Its streams end with it; some may have known before we did.
                drop(self.core);
                self.streams.close();
                let _ = tokio::time::timeout(CUT_LIMIT, self.streams.wait()).await;
                let streams = self.lost.load(Ordering::Relaxed) + self.streams.len();
                if self.goodbye {
                    tracing::info!(master = %self.at, reason, streams, "session ended");
                } else {
                    tracing::warn!(master = %self.at, reason, streams, "session lost");
                }
            }
            Ending::EndHere(end) => {
                let streams = self.streams.len();
                tracing::info!(master = %self.at, reason = end.message, streams, "session ended");
                self.core.end(end, END_LIMIT).await;
            }
        }
        self.streams.close();
        self.streams.wait().await;
    }

    async fn serve_until_done(&mut self) -> Ending {
        let (agent, shutdown) = (Arc::clone(&self.agent), self.agent.shutdown.clone());
        loop {
            let finish_by = self.finish_by;
            // A session that drains or was replaced ends with its streams, trusted or not.
            let judged = !self.draining && !self.replaced;
            let next_check = self.trust.next_check();
            let large_again = self.large_again();
            let flows = self.flows.as_ref().map(SessionFlows::view);
            // If the master has another session, they are that one's.
            let flows = flows.filter(|_| !self.replaced);
            let ending = tokio::select! {
                event = self.core.next() => match event {
                    Event::Over(over) => Some(Ending::Over(over)),
                    Event::Message(message) => {
                        self.take_in(message);
                        None
                    }
                    Event::Pong(rtt) => {
                        self.agent.metrics.sessions.round_trip(rtt);
                        self.row.round_trip(rtt);
                        None
                    }
                    Event::Segments(sign) => {
                        self.heed(sign);
                        None
                    }
                    Event::WornOut => None,
                },
                // Without a stream the driver has ended, and the control stream will say why.
                Some(stream) = self.incoming.next() => {
                    self.accept(stream);
                    None
                }
                () = shutdown.drain.cancelled(), if !self.leaving => self.leave(),
                () = agent.closing.closed(), if !self.ending => self.end_with_agent(),
                Ok(()) = self.renewed.changed(), if judged => self.review(),
                () = sleep_until(next_check), if judged && next_check.is_some() => self.review(),
                abort = next_abort(&mut self.flows) => {
                    self.tell(&ControlMessage::FlowAbort(abort))
                }
                Ok(()) = self.steering_changes.changed(), if self.flows.is_some() => {
                    self.tell_steering()
                }
                by = succeeded(&mut self.successor) => self.take_leave(by),
                () = all_done(&self.streams, flows.as_ref()), if self.draining => {
                    Some(shutting_down("all streams have ended"))
                }
                () = shutdown.force.cancelled() => Some(shutting_down("agent ends at once")),
                () = sleep_until(finish_by), if finish_by.is_some() => self.out_of_time(),
                () = sleep_until(large_again), if large_again.is_some() => {
                    tracing::debug!(master = %self.at, "trying large segments again");
                    self.release(Pause::Backoff, SEGMENTS);
                    None
                }
            };
            if let Some(ending) = ending {
                return ending;
            }
        }
    }

    /// When this session, if it has small segments, makes room for one with large ones.
    fn large_again(&self) -> Option<Instant> {
        let is_current = self.release.is_some() && self.segments == Segments::Small;
        self.path.large_again().filter(|_| is_current)
    }

    /// A session that seems to lose large segments makes room for one with small ones. The master
    /// then sees to it that nothing new comes here, and ends this one if it does not answer.
    fn heed(&mut self, sign: Sign) {
        match sign {
            Sign::Stalled(direction) => {
                tracing::info!(
                    master = %self.at, direction = %Loss::from(direction),
                    "session stands still, trying one with small segments"
                );
                self.path.stalled(direction.into());
                self.release(Pause::Backoff, SEGMENTS);
            }
            Sign::Moves => {
                tracing::debug!(master = %self.at, "session moves again");
                self.path.moves();
            }
        }
    }

    fn take_in(&mut self, message: ControlMessage) {
        match message {
            ControlMessage::Addresses(addresses) => {
                log_addresses(self.at, &addresses);
                self.row.addresses(&addresses);
            }
            ControlMessage::Drain(Drain {
                deadline, reason, ..
            }) => {
                tracing::info!(master = %self.at, reason, "master drains the session");
                self.release(Pause::Backoff, DRAIN);
                self.take_no_flows();
                self.finish_within(deadline + GRACE);
            }
            ControlMessage::End(end) => {
                self.log_end(&end);
                let pause = end.retry_after.map_or(Pause::Backoff, Pause::Asked);
                self.release(pause, end.code.as_str());
                // Streams go on for as long as the master lets them.
                self.goodbye = true;
                self.take_no_flows();
            }
            ControlMessage::FlowPool(idle) => match &self.flows {
                Some(flows) => {
                    tracing::debug!(master = %self.at, idle, "master wants so many idle flows");
                    flows.want(idle);
                }
                None => tracing::debug!(master = %self.at, "there are to be no flows"),
            },
            other => {
                tracing::debug!(master = %self.at, kind = other.name(), "message ignored");
            }
        }
    }

    fn log_end(&self, end: &SessionEnd) {
        let (master, code, reason) = (self.at, end.code.as_str(), &end.message);
        match end.code {
            EndCode::Superseded => tracing::error!(
                %master, code, reason, "another agent with this node's certificate has taken over"
            ),
            _ => tracing::info!(%master, code, reason, "master ends the session"),
        }
    }

    fn accept(&self, stream: MessageStream) {
        let context = StreamContext {
            agent: Arc::clone(&self.agent),
            master: self.at,
            cut: self.cut.clone(),
            lost: Arc::clone(&self.lost),
        };
        self.streams.spawn(serve(stream, context));
    }

    /// Says that a successor is welcome. Until there is one, or this agent closes, it is asked as
    /// before.
    fn leave(&mut self) -> Option<Ending> {
        self.leaving = true;
        if self.draining || self.agent.closing.is_closed() {
            return None;
        }
        let (limit, reason) = (self.agent.drain_deadline(), self.reason_to_end());
        let told = self.core.make_room(limit, &reason);
        told.err()
            .map(|error| Ending::Over(SessionOver::Control(error)))
    }

    fn end_with_agent(&mut self) -> Option<Ending> {
        self.ending = true;
        let reason = self.reason_to_end();
        self.drain(&reason, Pause::Backoff)
    }

    fn reason_to_end(&self) -> String {
        format!("agent of node {} is ending", self.agent.config.node_name)
    }

    /// Looks at whether the session is still one that would be made today.
    fn review(&mut self) -> Option<Ending> {
        let in_force = self.agent.certificates.in_force()?;
        if let Err(lost) = self.trust.check(&in_force.roots) {
            let reason = chain(&lost);
            tracing::warn!(
                master = %self.at, reason, "master is no longer trusted, its session drains"
            );
            let reason = format!("the master's certificate: {reason}");
            return self.drain(&reason, AT_ONCE);
        }
        if in_force.credentials.content() != self.shown && self.release.is_some() {
            tracing::info!(
                master = %self.at,
                serial = in_force.credentials.info().serial,
                "certificate was renewed, this session is replaced"
            );
            // It takes new streams until the other one stands: the master sees to that.
            self.release(AT_ONCE, RENEWED);
        }
        None
    }

    /// The worker has another session.
    fn take_leave(&mut self, by: InstanceId) -> Option<Ending> {
        if by == self.master && !self.ending {
            // Both ends have proven themselves anew: the streams may take as long as they like.
            self.replaced = true;
            self.finish_by = None;
            self.take_no_flows();
        }
        None
    }

    /// Tells the master that this session takes nothing new, and ends it with its last stream.
    fn drain(&mut self, reason: &str, pause: Pause) -> Option<Ending> {
        self.draining = true;
        self.take_no_flows();
        self.release(pause, DRAIN);
        let limit = self.agent.drain_deadline();
        self.finish_within(limit);
        let (streams, flows, deadline_s) = (self.streams.len(), self.flows_left(), limit.as_secs());
        tracing::info!(master = %self.at, reason, streams, flows, deadline_s, "session drains");
        let told = self.core.drain(limit, reason);
        told.err()
            .map(|error| Ending::Over(SessionOver::Control(error)))
    }

    /// Cuts streams off, and waits a little for the master to be told of each.
    fn out_of_time(&mut self) -> Option<Ending> {
        let cut = self.streams.len();
        if self.cut.is_cancelled() || cut == 0 {
            return Some(shutting_down("drain is out of time"));
        }
        tracing::warn!(master = %self.at, cut, "streams cut off, drain is out of time");
        self.cut.cancel();
        if let Some(flows) = &self.flows
            && !self.replaced
        {
            flows.cut_off();
        }
        self.finish_by = Some(Instant::now() + CUT_LIMIT);
        None
    }

    /// How many flows end with this session if they do not end before.
    fn flows_left(&self) -> usize {
        let flows = self.flows.as_ref().filter(|_| !self.replaced);
        flows.map_or(0, SessionFlows::running)
    }

    fn take_no_flows(&self) {
        if let Some(flows) = &self.flows {
            flows.close();
        }
    }

    /// Says whether the master may expect this agent at the kubelet's address, if that is news.
    fn tell_steering(&mut self) -> Option<Ending> {
        let status = self.agent.steering.standing(&self.dialled);
        if self.told.as_ref() == Some(&status) {
            return None;
        }
        tracing::info!(
            master = %self.at, stands = status.stands, reason = status.reason,
            "whether the master's connections are steered"
        );
        self.row.steering(&status);
        self.told = Some(status.clone());
        self.tell(&ControlMessage::Steering(status))
    }

    fn tell(&mut self, message: &ControlMessage) -> Option<Ending> {
        let told = self.core.send(message);
        told.err()
            .map(|error| Ending::Over(SessionOver::Control(error)))
    }

    fn finish_within(&mut self, limit: Duration) {
        let by = Instant::now() + limit;
        self.finish_by = Some(self.finish_by.map_or(by, |earlier| earlier.min(by)));
    }

    /// Lets the worker dial again; the first call counts.
    fn release(&mut self, pause: Pause, reason: &'static str) {
        self.held = None;
        if let Some(release) = self.release.take() {
            self.released = Some(Instant::now());
            self.row.set(State::Draining);
            // A worker that has ended needs no word.
            let _ = release.send(Released {
                pause,
                reason,
                lived: self.began.elapsed(),
            });
        }
    }
}

/// Says which of the node's addresses a master lets lead to it.
pub(super) fn log_addresses(master: SocketAddr, addresses: &Addresses) {
    for address in &addresses.granted {
        tracing::info!(%master, %address, "address leads to this node");
    }
    for refusal in &addresses.refused {
        let (address, reason) = (refusal.address, &refusal.reason);
        tracing::warn!(%master, %address, reason, "address does not lead to this node");
    }
}

fn shutting_down(reason: &str) -> Ending {
    Ending::EndHere(SessionEnd::new(EndCode::ShuttingDown, reason))
}

/// Waits until no stream and no flow is left; new ones are refused by then.
async fn all_done(streams: &TaskTracker, flows: Option<&FlowsView>) {
    streams.close();
    streams.wait().await;
    if let Some(flows) = flows {
        flows.all_done().await;
    }
}

/// What the master is to be told of a flow; without flows nothing, ever.
async fn next_abort(flows: &mut Option<SessionFlows>) -> FlowAbort {
    match flows {
        Some(flows) => flows.next_abort().await,
        None => std::future::pending().await,
    }
}

/// Waits until the worker has another session, once.
async fn succeeded(successor: &mut Option<oneshot::Receiver<InstanceId>>) -> InstanceId {
    if let Some(waiting) = successor {
        let by = waiting.await;
        *successor = None;
        if let Ok(by) = by {
            return by;
        }
    }
    // None will come: it has come before, or the worker has ended.
    std::future::pending().await
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// A certificate that was renewed is good for a new session now, and each node is renewed for
/// itself: there is no crowd to be spread.
const AT_ONCE: Pause = Pause::Asked(Duration::ZERO);

/// What the master is given beyond its own deadline to close the session itself.
const GRACE: Duration = Duration::from_secs(5);

/// How long streams that are cut off may take to say so.
const CUT_LIMIT: Duration = Duration::from_secs(1);

/// How long the last message of a session may take to be sent.
const END_LIMIT: Duration = Duration::from_secs(2);
