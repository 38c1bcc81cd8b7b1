//! Sessions with one master: establishing, running, and doing so again.
//!
//! Owns the life of a [`Worker`], which holds at most one session that takes new streams, and
//! beside it sessions that are only finishing their old ones. Leaves the choice of addresses to
//! `link.rs`, the life of one session to `session/run.rs` and that of a stream to
//! `session/serve.rs`.
//! A master that cannot be reached is logged when that begins and when its reason changes, not
//! once per attempt.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use proxymux_proto::{EndCode, InstanceId, SessionEnd};
use proxymux_transport::{
    telemetry::{chain, millis},
    tls::{TlsError, TlsFaultKind},
};
use tokio::{sync::oneshot, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    backoff::Unnoticed,
    establish::{Established, establish},
    run::{Session, log_addresses},
    segments::{News, SMALL, SegmentMemory, Segments},
};
pub(crate) use self::{
    backoff::{Backoff, up_to},
    establish::EstablishError,
    segments::Loss,
};
use crate::{
    agent::Agent,
    board::{Row, State},
    config::ServerAddr,
    metrics::failure_word,
};

mod backoff;
mod establish;
pub(crate) mod probe;
mod run;
mod segments;
mod serve;

/// Keeps a session with the master at one address.
#[derive(Debug)]
pub(crate) struct Worker {
    agent: Arc<Agent>,
    server: ServerAddr,
    at: SocketAddr,
    path: Arc<Path>,
    /// Only dials while fewer than so many different masters are held.
    only_below: usize,
    /// Cancelled when the address is no longer one of the master's.
    retired: CancellationToken,
    /// Sessions, the finishing ones among them.
    sessions: TaskTracker,
    backoff: Backoff,
    trouble: Option<String>,
    /// Tells the last session which master its successor is with.
    succeed: Option<oneshot::Sender<InstanceId>>,
    /// What this worker is doing.
    row: Row,
}

/// The way to one master's address, and what is known of it from session to session.
#[derive(Debug)]
struct Path {
    master: SocketAddr,
    memory: Mutex<SegmentMemory>,
}

/// A session that no longer takes new streams, so that the worker may go on.
#[derive(Debug)]
struct Released {
    pause: Pause,
    /// Why, as a metric's label.
    reason: &'static str,
    lived: Duration,
}

/// When to dial next.
#[derive(Clone, Copy, Debug)]
enum Pause {
    /// As the backoff says.
    Backoff,
    /// As it says after an attempt that has cost the master nothing.
    UntilAnswered(Unnoticed),
    /// No sooner than this, and with jitter.
    Asked(Duration),
}

impl Worker {
    pub(crate) fn new(
        agent: Arc<Agent>,
        server: ServerAddr,
        at: SocketAddr,
        only_below: usize,
        retired: CancellationToken,
    ) -> Self {
        Self {
            row: agent.board.row(&server, Some(at), State::Dialling),
            agent,
            server,
            at,
            path: Arc::new(Path {
                master: at,
                memory: Mutex::default(),
            }),
            only_below,
            retired,
            sessions: TaskTracker::new(),
            backoff: Backoff::default(),
            trouble: None,
            succeed: None,
        }
    }

    /// Keeps a session until the agent drains or the address is gone, then lets sessions finish.
    pub(crate) async fn run(mut self) {
        let drain = self.agent.shutdown.drain.clone();
        let retired = self.retired.clone();
        tokio::select! {
            () = self.keep_dialling() => {}
            () = drain.cancelled() => {}
            () = retired.cancelled() => {}
        }
        self.sessions.close();
        self.sessions.wait().await;
    }

    async fn keep_dialling(&mut self) {
        loop {
            if self.agent.masters.count() >= self.only_below {
                self.row.set(State::Standby);
            }
            self.agent.masters.fewer_than(self.only_below).await;
            self.row.set(State::Dialling);
            let mut changes = self.agent.masters.changes();
            let segments = self.path.next();
            self.agent.rest.disturb();
            let established = establish(&self.agent, &self.server, self.at, segments).await;
            let pause = match established {
                Ok(established) => {
                    self.path.stands(established.segments);
                    let released = self.run_session(established).await;
                    self.agent.metrics.reconnects.get(released.reason).inc();
                    if released.lived >= SETTLED {
                        self.backoff.reset();
                    }
                    let pause = match released.pause {
                        Pause::Backoff => self.backoff.after_session(),
                        pause => self.length_of(pause),
                    };
                    self.row
                        .failed(format!("last session: {}", released.reason), pause);
                    pause
                }
                Err(error) => {
                    self.path.failed(segments, error.loss());
                    let reconnects = &self.agent.metrics.reconnects;
                    reconnects.get(failure_word(&error)).inc();
                    let pause = self.length_of(pause_after(&error, segments));
                    self.report(&error, pause);
                    self.row.failed(chain(&error), pause);
                    if is_already_connected(&error) && self.has_enough_masters() {
                        // Another way to the same master. It is of use when that session is gone.
                        let again = FORGET_KNOWN + up_to(FORGET_KNOWN);
                        let _ = tokio::time::timeout(again, changes.changed()).await;
                    }
                    pause
                }
            };
            // A new certificate may be what was missing.
            let mut renewed = self.agent.certificates.changes();
            let _ = tokio::time::timeout(pause, renewed.changed()).await;
        }
    }

    fn has_enough_masters(&self) -> bool {
        let expected = self.agent.config.expect_masters.get();
        usize::try_from(expected).is_ok_and(|expected| self.agent.masters.count() >= expected)
    }

    /// Runs a session in a task of its own and waits until it takes no new streams.
    async fn run_session(&mut self, established: Established) -> Released {
        self.log_up(&established);
        let (release, released) = oneshot::channel();
        let (succeed, successor) = oneshot::channel();
        if let Some(predecessor) = self.succeed.replace(succeed) {
            // One that has ended needs no word.
            let _ = predecessor.send(established.registered.master);
        }
        let (agent, path, row) = (Arc::clone(&self.agent), Arc::clone(&self.path), &self.row);
        let session = Session::new(agent, path, established, release, successor, row);
        self.sessions.spawn(session.run());
        // A session's task that panicked has released nothing: dial again.
        released.await.unwrap_or(Released {
            pause: Pause::Backoff,
            reason: "broken",
            lived: Duration::ZERO,
        })
    }

    fn log_up(&mut self, established: &Established) {
        self.trouble = None;
        let registered = &established.registered;
        tracing::info!(
            master = %self.at,
            master.id = %registered.master,
            master.serial = established.trust.serial(),
            local = %established.local,
            serial = established.serial,
            max_streams = registered.max_streams,
            "session up"
        );
        log_addresses(self.at, &registered.addresses);
    }

    fn length_of(&mut self, pause: Pause) -> Duration {
        match pause {
            Pause::Backoff => self.backoff.next(),
            Pause::UntilAnswered(why) => self.backoff.until_answered(why),
            Pause::Asked(least) => least + up_to(least),
        }
    }

    /// Logs a failure if it is news.
    fn report(&mut self, error: &EstablishError, pause: Duration) {
        let (text, retry_in_ms) = (chain(error), millis(pause));
        let trouble = match error {
            // Its text may name ports, which are others at each attempt.
            EstablishError::Rejected(end) => end.code.as_str().to_owned(),
            // Whether a peer that hangs up is seen to close or to reset is chance.
            EstablishError::Tls(TlsError { fault, .. }) | EstablishError::TlsAfterwards(fault)
                if is_hanging_up(fault.kind()) =>
            {
                "hung up".to_owned()
            }
            _ => text.clone(),
        };
        if self.trouble.as_ref() == Some(&trouble) {
            tracing::debug!(master = %self.at, error = text, retry_in_ms, "still no session");
            return;
        }
        match error {
            EstablishError::Waiting(reason) => {
                tracing::warn!(master = %self.at, reason, retry_in_ms, "not ready to connect");
            }
            error if is_already_connected(error) => {
                tracing::debug!(master = %self.at, retry_in_ms, "already connected to this master");
            }
            EstablishError::Rejected(SessionEnd {
                code: code @ (EndCode::Busy | EndCode::ShuttingDown),
                message,
                ..
            }) => {
                let (code, reason) = (code.as_str(), message);
                tracing::warn!(master = %self.at, code, reason, retry_in_ms, "no session");
            }
            EstablishError::Rejected(end) => tracing::error!(
                master = %self.at,
                code = end.code.as_str(),
                reason = end.message,
                retry_in_ms,
                "registration refused"
            ),
            _ => tracing::warn!(master = %self.at, error = text, retry_in_ms, "no session"),
        }
        self.trouble = Some(trouble);
    }
}

impl Path {
    fn next(&self) -> Segments {
        self.lock().next(Instant::now())
    }

    fn large_again(&self) -> Option<Instant> {
        self.lock().small_until()
    }

    fn stands(&self, segments: Segments) {
        let news = self.lock().stands(segments, Instant::now());
        self.report(news);
    }

    fn failed(&self, segments: Segments, loss: Option<Loss>) {
        self.lock().failed(segments, loss);
    }

    fn stalled(&self, loss: Loss) {
        self.lock().stalled(loss);
    }

    fn moves(&self) {
        let news = self.lock().moves();
        self.report(news);
    }

    fn report(&self, news: Option<News>) {
        let (master, largest) = (self.master, SMALL);
        match news {
            None => {}
            Some(News::Lost(direction)) => tracing::warn!(
                %master, %direction, largest, fix = LARGE_LOST_FIX,
                "large packets are lost on the way, session has small segments"
            ),
            Some(News::StillLost(direction)) => tracing::info!(
                %master, %direction, largest, fix = LARGE_LOST_FIX, "large packets are still lost on the way"
            ),
            Some(News::Pass) => tracing::info!(%master, "large packets pass again"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, SegmentMemory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_hanging_up(kind: TlsFaultKind) -> bool {
    matches!(kind, TlsFaultKind::Closed | TlsFaultKind::Reset)
}

fn is_already_connected(error: &EstablishError) -> bool {
    matches!(error, EstablishError::Rejected(end) if end.code == EndCode::AlreadyConnected)
}

fn pause_after(error: &EstablishError, segments: Segments) -> Pause {
    match error {
        // Looking at files again disturbs nobody.
        EstablishError::Waiting(_) | EstablishError::Certificates(_) => Pause::Asked(LOOK_AGAIN),
        EstablishError::Rejected(SessionEnd {
            retry_after: Some(pause),
            ..
        }) => Pause::Asked(*pause),
        // However long the backoff has become: small ones may do at once.
        error if error.loss().is_some() && segments == Segments::Large => {
            Pause::Asked(TRY_SMALL_AFTER)
        }
        other => other
            .unnoticed()
            .map_or(Pause::Backoff, Pause::UntilAnswered),
    }
}

/// What an operator can do about a path that loses large packets without a word.
pub(crate) const LARGE_LOST_FIX: &str = "on the way, let ICMP `fragmentation needed` (type 3 code 4) and ICMPv6 `packet \
                   too big` (type 2) through; or give this node's interface the MTU of the path";

/// A session that lasted so long was no part of a series of failures.
const SETTLED: Duration = Duration::from_secs(10);

/// How long an address is taken to lead to a master that another address leads to as well.
const FORGET_KNOWN: Duration = Duration::from_secs(300);

/// How soon small segments are tried where large ones may have been lost. A fleet that did not get
/// its handshakes through in time does so once more each, and then backs off.
const TRY_SMALL_AFTER: Duration = Duration::from_millis(250);

/// How often a file that is not there yet is looked for, at least.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
