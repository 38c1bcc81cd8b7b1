//! One session with an agent, on the master's side.
//!
//! Owns its loop and its end: what the agent says on the control stream, what the rest of the
//! master wants of it ([`SessionCommand`]). Who may register is `session/registration.rs`, and
//! streams are opened by `opening.rs`.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use proxymux_proto::{
    ControlMessage, DEFAULT_KUBELET_PORT, EndCode, InstanceId, PROTOCOL_VERSION, Registered,
    Registration, SessionEnd,
};
use proxymux_transport::{
    control::ControlError,
    metrics::end_word,
    mux::{Incoming, SessionFault},
    reload::InForce,
    session::{Event, SessionCore, SessionOver},
    stream::MessageStream,
    telemetry::chain,
    trust::PeerTrust,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

pub(crate) use self::registration::{Candidate, RegistrationError, control_stream};
use self::registration::{log_no_registration, log_refusal, objection, registration};
use crate::{
    about::About,
    admission::SessionPlace,
    claims::Evidence,
    flows::{SessionLease, direct},
    master::Master,
    registry::{EVICTED_STAY_AWAY, SessionCommand, SessionHandle},
};

mod registration;
#[cfg(test)]
mod tests;

/// Registers the agent and runs the session until it ends.
pub(crate) async fn run(mut candidate: Candidate, master: Arc<Master>) {
    let peer = candidate.peer;
    let certified = candidate.identity.name.clone();
    let registration = match registration(&mut candidate).await {
        Ok(registration) => registration,
        Err(error) => {
            // Who takes its leave has not failed.
            if !matches!(error, RegistrationError::Ended(_)) {
                master.metrics.arrivals_failed.get("registration").inc();
            }
            return log_no_registration(&master, &certified, peer, &error);
        }
    };
    match Session::admit(candidate, &registration, Arc::clone(&master)) {
        Ok(session) => session.run(&registration).await,
        Err((core, end)) => {
            let refused = &master.metrics.registrations_refused;
            refused.get(end.code.as_str()).inc();
            log_refusal(&master, &certified, peer, &end);
            core.end(end, END_LIMIT).await;
        }
    }
}

/// A session that was let in.
struct Session {
    core: SessionCore,
    incoming: Incoming,
    handle: Arc<SessionHandle>,
    commands: mpsc::Receiver<SessionCommand>,
    master: Arc<Master>,
    _place: SessionPlace,
    /// Keeps the agent's flows, there if there may be any.
    lease: Option<SessionLease>,
    trust: PeerTrust,
    renewed: watch::Receiver<Option<Arc<InForce>>>,
    moving: watch::Receiver<bool>,
    /// The session takes no new streams and ends when the old ones have.
    finish: Option<Finish>,
    probe: Option<Probe>,
    /// The agent has said that it ends the session, and why.
    goodbye: Option<SessionEnd>,
    /// The master is ending, and this session knows.
    draining: bool,
    /// Since when it takes no new streams.
    closed_to_new: Option<Instant>,
}

/// What is said when a session that only finishes its streams has done so.
struct Finish {
    end: SessionEnd,
    /// The agent knows why already.
    told: bool,
    by: Option<Instant>,
    /// Streams that were still open have been cut off.
    cut: bool,
}

/// A superseded session is asked whether it still lives.
struct Probe {
    by: Instant,
    new_peer: SocketAddr,
    in_order: bool,
}

/// How a session's loop ended.
enum Ending {
    Over(SessionOver),
    EndHere(SessionEnd),
    /// As before, to an agent that was told.
    Close(SessionEnd),
    /// Without another word: the agent does not listen.
    Drop,
}

impl Ending {
    /// The word for the metric's label, from [`proxymux_transport::metrics::end_words`].
    fn word(&self) -> &'static str {
        match self {
            Self::Over(over) => end_word(over),
            Self::EndHere(end) | Self::Close(end) => end.code.as_str(),
            Self::Drop => "silent",
        }
    }
}

impl Session {
    #[expect(clippy::result_large_err, reason = "both are moved once per session")]
    fn admit(
        candidate: Candidate,
        registration: &Registration,
        master: Arc<Master>,
    ) -> Result<Self, (SessionCore, SessionEnd)> {
        let Candidate {
            mut core,
            incoming,
            identity,
            flow_keys,
            trust,
            peer,
            local,
        } = candidate;
        if let Some(end) = objection(registration, &identity, &master) {
            return Err((core, end));
        }
        let presence = master.registry.presence(&identity.name);
        let place = match master.admission.register(presence) {
            Ok(place) => place,
            Err(end) => return Err((core, end)),
        };
        let (command_tx, commands) = mpsc::channel(COMMAND_QUEUE);
        let flows = master.flows.of_session(registration, flow_keys);
        let flow_pool = master.flows.first_pool(flows.as_ref());
        let lease = flows.as_ref().map(|flows| flows.node.session());
        let kubelet = registration.kubelet;
        let handle = Arc::new(SessionHandle {
            node: identity.name.clone(),
            instance: registration.instance,
            peer,
            mux: core.mux().clone(),
            commands: command_tx,
            relays: TaskTracker::new(),
            lost: 0.into(),
            cut: CancellationToken::new(),
            registered: CancellationToken::new(),
            open: true.into(),
            leaving: false.into(),
            kubelet_port: kubelet.map_or(DEFAULT_KUBELET_PORT, |kubelet| kubelet.port()),
            flows,
            about: About::new(registration, trust.not_after()),
        });
        let evidence = Evidence {
            ip_sans: &identity.ip_sans,
            claims: &registration.addresses,
            allow: &registration.allow,
            source: peer.ip(),
        };
        let admitted = match master.registry.admit(&handle, &identity, evidence) {
            Ok(admitted) => admitted,
            Err(end) => return Err((core, end)),
        };
        if let Some(old) = admitted.superseded {
            supersede(&old, &handle);
        }
        let registered = Registered {
            version: PROTOCOL_VERSION,
            master: master.id,
            addresses: admitted.addresses,
            max_streams: master.config.max_streams_per_node.get(),
            dial_sources: master.dial_sources(local),
            advertise: master.config.advertise.as_ref().map(ToString::to_string),
            flow_pool,
        };
        if let Err(error) = core.send(&ControlMessage::Registered(registered)) {
            master.registry.leave(&handle);
            return Err((core, SessionEnd::new(EndCode::Protocol, &chain(&error))));
        }
        let mut renewed = master.certificates.changes();
        // They may have been renewed since the handshake began.
        renewed.mark_changed();
        let moving = master.moving.watch();
        Ok(Self {
            core,
            incoming,
            handle,
            commands,
            master,
            _place: place,
            lease,
            trust,
            renewed,
            moving,
            finish: None,
            probe: None,
            goodbye: None,
            draining: false,
            closed_to_new: None,
        })
    }

    async fn run(mut self, registration: &Registration) {
        let handle = Arc::clone(&self.handle);
        tracing::info!(
            node = %handle.node,
            peer = %handle.peer,
            instance = %handle.instance,
            agent.serial = self.trust.serial(),
            node_id = registration.node_id,
            software = registration.software,
            "session up"
        );
        // If this fails, so does what follows.
        let _ = tokio::time::timeout(TELL_LIMIT, self.core.flush()).await;
        handle.registered.cancel();
        let counted = self.master.metrics.sessions.open();
        let probes = direct::run(Arc::clone(&handle), Arc::clone(&self.master));
        let probes = AbortOnDropHandle::new(tokio::spawn(probes));
        let ending = self.serve_until_done().await;
        drop((counted, probes, self.lease.take()));
        if let Some(since) = self.closed_to_new {
            self.master.metrics.sessions.drained(since.elapsed());
        }
        self.master.registry.leave(&handle);
        let closed = &self.master.metrics.sessions_closed;
        closed.get(ending.word()).inc();
        let streams = handle.relays.len();
        match ending {
            Ending::Over(over) => {
                let reason = self.describe(&over);
                // Its relays end with it; some may have known before we did.
                drop(self.core);
                let _ = tokio::time::timeout(CUT_LIMIT, streams_done(&handle)).await;
                let streams = handle.lost.load(Ordering::Relaxed) + handle.relays.len();
                tracing::warn!(
                    node = %handle.node, peer = %handle.peer, reason, streams, "session lost"
                );
            }
            Ending::EndHere(end) => {
                log_end(&handle, &end, streams);
                self.core.end(end, END_LIMIT).await;
            }
            Ending::Close(end) => {
                log_end(&handle, &end, streams);
                self.core.close(END_LIMIT).await;
            }
            // Its streams end with it.
            Ending::Drop => drop(self.core),
        }
    }

    async fn serve_until_done(&mut self) -> Ending {
        let shutdown = self.master.shutdown.clone();
        let handle = Arc::clone(&self.handle);
        let mut upkeep = tokio::time::interval(UPKEEP_EVERY);
        upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let finish_by = self.finish.as_ref().and_then(|finish| finish.by);
            let probe_by = self.probe.as_ref().map(|probe| probe.by);
            // A session that was replaced or drains ends with its streams, trusted or not.
            let judged = self.finish.is_none() && self.probe.is_none();
            let next_check = self.trust.next_check();
            let ending = tokio::select! {
                event = self.core.next() => self.take_in(event),
                Some(command) = self.commands.recv() => self.obey(command),
                // Without a stream the driver has ended, and the control stream will say why.
                Some(stream) = self.incoming.next() => Some(refuse_stream(stream)),
                () = shutdown.drain.cancelled(), if !self.draining => {
                    self.draining = true;
                    self.drain("master is ending")
                }
                Ok(()) = self.renewed.changed(), if judged => self.review(),
                Ok(()) = self.moving.changed() => self.send_away(),
                () = sleep_until(next_check), if judged && next_check.is_some() => self.review(),
                _ = upkeep.tick(), if handle.flows.is_some() => self.look_after_flows(),
                () = all_done(&handle), if self.finish.is_some() => self.finished(),
                () = sleep_until(finish_by), if finish_by.is_some() => self.out_of_time(),
                () = sleep_until(probe_by), if probe_by.is_some() => Some(self.unanswered()),
                () = shutdown.force.cancelled() => Some(Ending::EndHere(SessionEnd::new(
                    EndCode::ShuttingDown, "this master ends at once",
                ))),
            };
            if let Some(ending) = ending {
                return ending;
            }
        }
    }

    fn take_in(&mut self, event: Event) -> Option<Ending> {
        let (node, peer) = (&self.handle.node, self.handle.peer);
        match event {
            Event::Over(over) => {
                return Some(
                    self.goodbye
                        .take()
                        .map_or(Ending::Over(over), Ending::Close),
                );
            }
            Event::Pong(rtt) => {
                self.master.metrics.sessions.round_trip(rtt);
                self.handle.about.round_trip(rtt);
                if let Some(probe) = self.probe.take() {
                    self.finish_superseded(&probe);
                }
            }
            Event::WornOut => {
                return self.drain("the session has used up its stream ids, open another");
            }
            // Only the agent can do something about segments: it is the one that dials.
            Event::Segments(_) => {}
            Event::Message(ControlMessage::Steering(status)) => {
                if let Some(flows) = &self.handle.flows {
                    flows.steering(status);
                }
            }
            Event::Message(ControlMessage::FlowAbort(abort)) => {
                if let Some(flows) = &self.handle.flows {
                    let aborted = &self.master.metrics.flows.aborted;
                    aborted.get(abort.code.as_str()).inc();
                    flows.aborted(&abort);
                }
            }
            Event::Message(ControlMessage::Drain(drain)) if drain.takes_new => {
                let (reason, deadline_s) = (drain.reason, drain.deadline.as_secs());
                tracing::info!(%node, %peer, reason, deadline_s, "agent waits for a successor");
                self.handle.leaving.store(true, Ordering::Release);
            }
            Event::Message(ControlMessage::Drain(drain)) => {
                tracing::info!(%node, %peer, reason = drain.reason, "agent drains its session");
                self.closed_to_new.get_or_insert_with(Instant::now);
                self.master.registry.leave(&self.handle);
            }
            Event::Message(ControlMessage::End(end)) => {
                self.master.registry.leave(&self.handle);
                self.goodbye = Some(end);
            }
            Event::Message(other) => {
                tracing::debug!(%node, %peer, kind = other.name(), "message ignored");
            }
        }
        None
    }

    fn obey(&mut self, command: SessionCommand) -> Option<Ending> {
        let sent = match command {
            SessionCommand::Addresses(addresses) => {
                self.core.send(&ControlMessage::Addresses(addresses))
            }
            SessionCommand::FlowPool(number) => self.core.send(&ControlMessage::FlowPool(number)),
            SessionCommand::Superseded { by, in_order } => {
                let by_when = Instant::now() + PROBE_LIMIT;
                self.probe = Some(Probe {
                    by: by_when,
                    new_peer: by,
                    in_order,
                });
                self.core.ping()
            }
        };
        sent.err().map(not_sent)
    }

    /// Lets flows go that are dead, and asks for fewer when they are not needed.
    fn look_after_flows(&mut self) -> Option<Ending> {
        let ask = self.handle.flows.as_ref()?.pool.upkeep()?;
        let asked = self.core.send(&ControlMessage::FlowPool(ask));
        asked.err().map(not_sent)
    }

    /// Looks at whether the agent would still be let in. If not, it is told to come back with
    /// something better, and gets nothing new on this session.
    fn review(&mut self) -> Option<Ending> {
        let in_force = self.master.certificates.in_force()?;
        let reason = chain(&self.trust.check(&in_force.roots).err()?);
        tracing::warn!(
            node = %self.handle.node, peer = %self.handle.peer, reason,
            "agent is no longer trusted, its session drains"
        );
        self.master.registry.leave(&self.handle);
        self.drain(&format!("the agent's certificate: {reason}"))
    }

    /// Asks the agent to open a session with the master that takes over from this one.
    ///
    /// Here nothing changes: until that one has the front doors, requests come to this one, and if
    /// it never does this session is needed. Hence a deadline beyond all take-overs.
    fn send_away(&mut self) -> Option<Ending> {
        let moving = *self.moving.borrow_and_update();
        if !moving || self.finish.is_some() {
            return None;
        }
        let told = self
            .core
            .drain(AWAY_DEADLINE, "another master takes over, go there");
        told.err().map(not_sent)
    }

    /// Lets streams finish until the deadline, and asks the agent for another session meanwhile.
    fn drain(&mut self, reason: &str) -> Option<Ending> {
        self.closed_to_new.get_or_insert_with(Instant::now);
        let deadline = self.master.config.drain_deadline;
        let by = Some(Instant::now() + deadline);
        if let Some(finish) = self.finish.as_mut().filter(|finish| finish.told) {
            // All is said; only the end is now in sight.
            finish.by = by;
            return None;
        }
        self.finish = Some(Finish {
            end: SessionEnd::new(EndCode::ShuttingDown, reason),
            told: false,
            by,
            cut: false,
        });
        self.core.drain(deadline, reason).err().map(not_sent)
    }

    /// Lets a superseded session that lives finish its streams, for as long as they take.
    fn finish_superseded(&mut self, probe: &Probe) {
        let (node, old, new) = (&self.handle.node, self.handle.peer, probe.new_peer);
        let told = !probe.in_order;
        self.closed_to_new.get_or_insert_with(Instant::now);
        let end = if probe.in_order {
            let text = format!("replaced by this node's session from {new}, this is from {old}");
            SessionEnd::new(EndCode::AlreadyConnected, &text)
        } else {
            tracing::error!(
                %node, old_peer = %old, new_peer = %new,
                "two agents use this node's certificate, the newer one has taken over"
            );
            let text = format!("superseded by a session from {new}, this one is from {old}");
            SessionEnd::new(EndCode::Superseded, &text).retry_after(EVICTED_STAY_AWAY)
        };
        if told {
            // It is told at once, and stays connected while its streams go on.
            let _ = self.core.send(&ControlMessage::End(end.clone()));
        }
        self.finish = Some(Finish {
            end,
            told,
            by: None,
            cut: false,
        });
    }

    fn unanswered(&mut self) -> Ending {
        let streams = self.handle.relays.len();
        tracing::warn!(
            node = %self.handle.node, peer = %self.handle.peer, streams,
            "superseded session does not answer, its streams are cut off"
        );
        Ending::Drop
    }

    fn finished(&mut self) -> Option<Ending> {
        let finish = self.finish.take()?;
        Some(if finish.told {
            Ending::Close(finish.end)
        } else {
            Ending::EndHere(finish.end)
        })
    }

    /// Cuts streams off, and waits a little for the agent to be told of each.
    fn out_of_time(&mut self) -> Option<Ending> {
        match &mut self.finish {
            Some(finish) if !finish.cut => {
                finish.cut = true;
                finish.by = Some(Instant::now() + CUT_LIMIT);
                let cut = self.handle.relays.len();
                tracing::warn!(
                    node = %self.handle.node, peer = %self.handle.peer, cut,
                    "streams cut off, drain is out of time"
                );
                self.handle.cut.cancel();
                None
            }
            _ => self.finished(),
        }
    }

    fn describe(&self, over: &SessionOver) -> String {
        match over {
            SessionOver::Fault(SessionFault::Closed) => "closed by the agent".to_owned(),
            over => chain(over),
        }
    }
}

fn log_end(handle: &SessionHandle, end: &SessionEnd, streams: usize) {
    tracing::info!(
        node = %handle.node, peer = %handle.peer, reason = end.message, streams, "session ended"
    );
}

fn not_sent(error: ControlError) -> Ending {
    Ending::Over(SessionOver::Control(error))
}

fn refuse_stream(stream: MessageStream) -> Ending {
    drop(stream);
    let text = "agent opened a stream, expected the control stream only";
    Ending::EndHere(SessionEnd::new(EndCode::Protocol, text))
}

/// Tells a session that its place is taken.
fn supersede(old: &SessionHandle, new: &SessionHandle) {
    let in_order = old.makes_room_for(new);
    tracing::info!(
        node = %new.node, old_peer = %old.peer, new_peer = %new.peer, in_order,
        "session superseded"
    );
    // A queue that is full or closed belongs to a session that is ending by itself.
    let _ = old.commands.try_send(SessionCommand::Superseded {
        by: new.peer,
        in_order,
    });
}

/// Becomes ready when nothing is left that needs the session: neither its streams, nor the agent's
/// flows if this is the agent's last session.
async fn all_done(handle: &SessionHandle) {
    streams_done(handle).await;
    if let Some(flows) = &handle.flows {
        flows.node.done_with_session().await;
    }
}

async fn streams_done(handle: &SessionHandle) {
    handle.relays.close();
    handle.relays.wait().await;
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// How long the first message may take to be sent; an empty window has room for it at once.
const TELL_LIMIT: Duration = Duration::from_secs(1);

/// An agent that lives answers a ping within this; one that does not is not waited for, because
/// its node is about to be asked for through the new session.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// Once another master has taken over, this one drains and says a deadline that is meant.
const AWAY_DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// Commands that wait for a session's loop, which never waits for anything but events.
const COMMAND_QUEUE: usize = 16;

/// How often dead flows are looked for.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// How long streams that are cut off may take to say so.
const CUT_LIMIT: Duration = Duration::from_secs(1);

/// How long the last message of a session may take to be sent.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Makes the id of one run of the master.
pub(crate) fn random_id() -> InstanceId {
    let mut id = [0; 16];
    // Not a secret: it only has to differ from other runs.
    fastrand::fill(&mut id);
    InstanceId::from_bytes(id)
}
