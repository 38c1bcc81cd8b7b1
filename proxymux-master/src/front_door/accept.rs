//! Taking connections from a listener, whatever kind it is.
//!
//! Owns the accept loop: what happens on errors, when too many connections are open, and at the
//! end. Leaves to each [`Door`] how its connections become clients, and to `serve` the clients.
//! Trouble is logged when it begins and when it is over, not for every connection.

use std::{io, time::Duration};

use proxymux_transport::metrics::GaugeGuard;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug_span, info, warn};

use super::{FrontDoors, Gateway, MAX_CONNECTIONS, Refusal, Status};
use crate::trouble::Trouble;

/// A listener of a front door.
pub(super) trait Door: Send + Sync + 'static {
    /// A connection that was accepted, and where it comes from.
    type Incoming: Send + 'static;

    /// What the configuration calls it, for logs.
    fn name(&self) -> String;

    /// Takes the next connection. Cancel-safe.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Incoming>> + Send;

    /// Turns a connection away for which there is no room, without waiting for anything.
    fn turn_away(&self, incoming: Self::Incoming, refusal: &Refusal);

    /// Serves a connection until it has ended. The permit is dropped with the connection.
    fn serve<G: Gateway>(
        &self,
        incoming: Self::Incoming,
        doors: FrontDoors<G>,
        room: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + Send + 'static + use<Self, G>;
}

/// Accepts connections until `stop`, then drops the door.
pub(super) async fn run<D: Door, G: Gateway>(
    door: D,
    doors: &FrontDoors<G>,
    stop: CancellationToken,
) {
    let name = door.name();
    let mut errors = Errors::default();
    let mut crowd = Crowd::default();
    info!(door = name, "front door open");
    while let Some(accepted) = stop.run_until_cancelled(door.accept()).await {
        let incoming = match accepted {
            Ok(incoming) => incoming,
            Err(error) => {
                let pause = errors.failed(&name, &error);
                if stop
                    .run_until_cancelled(tokio::time::sleep(pause))
                    .await
                    .is_none()
                {
                    break;
                }
                continue;
            }
        };
        errors.succeeded(&name);
        match doors.room.clone().try_acquire_owned() {
            Ok(room) => {
                crowd.has_room(&name);
                let counted = GaugeGuard::new(&doors.gateway.metrics().open);
                let served = door.serve(incoming, doors.clone(), room);
                let span = debug_span!("client", door = name);
                let served = async move {
                    served.await;
                    drop(counted);
                };
                doors.tracker.spawn(served.instrument(span));
            }
            // Answered rather than left in the kernel's queue: kube-apiserver would wait there
            // without a limit.
            Err(_none) => {
                crowd.is_full(&name);
                let reason = format!("front doors are full: {MAX_CONNECTIONS} connections");
                let refusal = Refusal::new(Status::Unavailable, reason);
                let refused = &doors.gateway.metrics().refused;
                refused.get(refusal.status.word()).inc();
                door.turn_away(incoming, &refusal);
            }
        }
    }
    info!(door = name, "front door closed");
}

/// Failures to accept.
#[derive(Debug, Default)]
struct Errors {
    in_a_row: u32,
    trouble: Trouble,
}

impl Errors {
    /// Notes a failure and says how long to wait before the next attempt.
    fn failed(&mut self, door: &str, error: &io::Error) -> Duration {
        if is_about_one_connection(error) {
            return Duration::ZERO;
        }
        if self.trouble.begins() {
            warn!(door, %error, "front door cannot accept connections");
        }
        let limit = FIRST_PAUSE
            .saturating_mul(1 << self.in_a_row.min(16))
            .min(LONGEST_PAUSE);
        self.in_a_row = self.in_a_row.saturating_add(1);
        // With jitter, as several doors run out of descriptors at the same moment.
        limit.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    fn succeeded(&mut self, door: &str) {
        self.in_a_row = 0;
        if let Some(failures) = self.trouble.is_over() {
            warn!(door, failures, "front door accepts connections again");
        }
    }
}

/// Connections for which there was no room.
#[derive(Debug, Default)]
struct Crowd(Trouble);

impl Crowd {
    fn is_full(&mut self, door: &str) {
        if self.0.begins() {
            let limit = MAX_CONNECTIONS;
            warn!(door, limit, "front doors are full, connections turned away");
        }
    }

    fn has_room(&mut self, door: &str) {
        if let Some(turned_away) = self.0.is_over() {
            warn!(door, turned_away, "front doors have room again");
        }
    }
}

/// Errors of the connection that was being accepted, which the kernel reports here (accept(2)).
/// The next connection has nothing to do with them. What is missing here is the host's trouble.
fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::ConnectionAborted
            | Kind::ConnectionReset
            | Kind::HostUnreachable
            | Kind::Interrupted
            | Kind::NetworkUnreachable
    )
}

const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// Long enough to cost nothing, and short enough that clients hardly notice that it is over.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use tokio::time::{Instant, timeout};
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::front_door::tests::{Fake, LIMITS, Plan};

    /// A door whose first connections cannot be accepted, for want of descriptors.
    struct Troubled {
        failures: u32,
        accepted: AtomicU32,
        served: Arc<AtomicU32>,
    }

    impl Door for Troubled {
        type Incoming = ();

        fn name(&self) -> String {
            "troubled".to_owned()
        }

        async fn accept(&self) -> io::Result<()> {
            let attempt = self.accepted.fetch_add(1, Ordering::Relaxed);
            match attempt.cmp(&self.failures) {
                std::cmp::Ordering::Less => Err(io::Error::from_raw_os_error(24)),
                std::cmp::Ordering::Equal => Ok(()),
                std::cmp::Ordering::Greater => std::future::pending().await,
            }
        }

        fn turn_away(&self, (): (), refusal: &Refusal) {
            panic!("turned away: {refusal}");
        }

        fn serve<G: Gateway>(
            &self,
            (): (),
            _doors: FrontDoors<G>,
            room: OwnedSemaphorePermit,
        ) -> impl Future<Output = ()> + Send + 'static + use<G> {
            let served = Arc::clone(&self.served);
            async move {
                served.fetch_add(1, Ordering::Relaxed);
                drop(room);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_door_works_again_when_the_trouble_is_over() {
        let served = Arc::default();
        let door = Troubled {
            failures: 50,
            accepted: AtomicU32::new(0),
            served: Arc::clone(&served),
        };
        let doors = FrontDoors::new(Fake::new(Plan::Open).0, LIMITS, TaskTracker::new());
        let mut running = std::pin::pin!(run(door, &doors, CancellationToken::new()));

        // Fifty failures take 22 s at least, and 46 s at most.
        assert!(
            timeout(Duration::from_secs(20), &mut running)
                .await
                .is_err()
        );
        assert_eq!(served.load(Ordering::Relaxed), 0);
        assert!(
            timeout(Duration::from_secs(30), running).await.is_err(),
            "it runs until the stop"
        );
        assert_eq!(served.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_door_in_trouble_stops_at_once() {
        let door = Troubled {
            failures: u32::MAX,
            accepted: AtomicU32::new(0),
            served: Arc::default(),
        };
        let doors = FrontDoors::new(Fake::new(Plan::Open).0, LIMITS, TaskTracker::new());
        let stop = CancellationToken::new();
        let stopping = async {
            tokio::time::sleep(Duration::from_millis(10_001)).await;
            stop.cancel();
            Instant::now()
        };
        let (cancelled_at, ()) = tokio::join!(stopping, run(door, &doors, stop.clone()));
        assert_eq!(Instant::now(), cancelled_at);
    }

    #[test]
    fn pauses_grow_to_a_limit_and_start_again_after_a_success() {
        let mut errors = Errors::default();
        let no_descriptors = io::Error::from_raw_os_error(24);
        let mut pause = || errors.failed("unix:/a", &no_descriptors);

        let first = pause();
        assert!(
            first >= FIRST_PAUSE / 2 && first <= FIRST_PAUSE,
            "{first:?}"
        );
        let later = (0..40).map(|_| pause()).last().unwrap();
        assert!(
            later >= LONGEST_PAUSE / 2 && later <= LONGEST_PAUSE,
            "{later:?}"
        );

        errors.succeeded("unix:/a");
        assert!(errors.failed("unix:/a", &no_descriptors) <= FIRST_PAUSE);
    }

    #[test]
    fn a_connection_that_went_away_in_the_queue_costs_no_pause() {
        let mut errors = Errors::default();
        let aborted = io::ErrorKind::ConnectionAborted.into();
        assert_eq!(errors.failed("unix:/a", &aborted), Duration::ZERO);
        assert_eq!(errors.in_a_row, 0);
        assert!(errors.trouble.begins(), "it was no trouble");
    }
}
