//! The flows of one master: for how long they may run, and that they are waited for.
//!
//! Owns the rule that a flow lives for as long as its node has a session with its master, and a
//! little longer: [`MasterFlows::orphaned`]. A flow has no liveness of its own beyond TCP's, and
//! its authority comes from the session. It is not bound to one session, though, since sessions
//! are replaced while streams and flows go on. Leaves what a flow does to `serve.rs`.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use proxymux_proto::{FlowDirection, InstanceId};
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The masters that have or had flows with this agent.
#[derive(Debug, Default)]
pub(crate) struct Masters {
    by_id: Mutex<HashMap<InstanceId, Weak<MasterFlows>>>,
}

/// What all flows with one run of a master share.
#[derive(Debug)]
pub(crate) struct MasterFlows {
    sessions: watch::Sender<Sessions>,
    /// The flows from their open request on.
    running: TaskTracker,
    /// Flows that are relaying: reverse, direct.
    relaying: [AtomicUsize; 2],
    /// Cancelled when those that run now are out of time, and then replaced.
    cut: Mutex<CancellationToken>,
}

#[derive(Clone, Copy, Debug)]
struct Sessions {
    count: usize,
    /// Since when there is none.
    none_since: Option<Instant>,
}

/// A session with a master, until it ends.
#[derive(Debug)]
pub(crate) struct Lease(Arc<MasterFlows>);

/// A flow that is relaying, until it ends.
#[derive(Debug)]
pub(super) struct Relaying {
    of: Arc<MasterFlows>,
    direction: FlowDirection,
}

impl Masters {
    /// Notes a session with a master until the lease is dropped.
    pub(crate) fn session(&self, master: InstanceId) -> Lease {
        let mut by_id = self.lock();
        by_id.retain(|_, flows| flows.strong_count() > 0);
        let known = by_id.get(&master).and_then(Weak::upgrade);
        let flows = known.unwrap_or_else(|| {
            let flows = Arc::new(MasterFlows::new());
            by_id.insert(master, Arc::downgrade(&flows));
            flows
        });
        drop(by_id);
        flows.sessions.send_modify(|sessions| {
            sessions.count += 1;
            sessions.none_since = None;
        });
        Lease(flows)
    }

    /// Cuts off every flow that runs.
    pub(crate) fn cut_all(&self) {
        let all: Vec<_> = self.lock().values().filter_map(Weak::upgrade).collect();
        for flows in all {
            flows.cut_off();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceId, Weak<MasterFlows>>> {
        // What a panic leaves behind is one entry more or less.
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// The flows of its master.
    pub(crate) fn flows(&self) -> &Arc<MasterFlows> {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.sessions.send_modify(|sessions| {
            sessions.count -= 1;
            if sessions.count == 0 {
                sessions.none_since = Some(Instant::now());
            }
        });
    }
}

impl MasterFlows {
    fn new() -> Self {
        Self {
            sessions: watch::Sender::new(Sessions {
                count: 0,
                none_since: None,
            }),
            running: TaskTracker::new(),
            relaying: Default::default(),
            cut: Mutex::default(),
        }
    }

    /// Becomes ready when there has been no session with the master for [`LEASE`].
    pub(super) async fn orphaned(&self) {
        let mut sessions = self.sessions.subscribe();
        loop {
            let none_since = sessions.borrow_and_update().none_since;
            let over = async {
                match none_since {
                    Some(since) => tokio::time::sleep_until(since + LEASE).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => return,
                // The sender is in `self`.
                _ = sessions.changed() => {}
            }
        }
    }

    /// Counts a flow among those that run, for as long as `serving` does.
    pub(super) fn run<F: Future>(&self, serving: F) -> impl Future<Output = F::Output> + use<F> {
        self.running.track_future(serving)
    }

    /// How many flows run: those that are being opened, and those that relay.
    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    /// Becomes ready when no flow runs. Cancel-safe.
    pub(crate) async fn all_done(&self) {
        self.running.close();
        self.running.wait().await;
    }

    /// Counts a flow that relays until the result is dropped.
    pub(super) fn relaying(self: &Arc<Self>, direction: FlowDirection) -> Relaying {
        self.count(direction).fetch_add(1, Ordering::Relaxed);
        Relaying {
            of: Arc::clone(self),
            direction,
        }
    }

    /// How many flows of a direction are relaying.
    pub(crate) fn relayed(&self, direction: FlowDirection) -> usize {
        self.count(direction).load(Ordering::Relaxed)
    }

    /// Cancelled when the flows that run now are out of time.
    pub(super) fn cut(&self) -> CancellationToken {
        self.cut_lock().clone()
    }

    /// Ends the flows that run now. Later ones are not concerned: the master may have been trusted
    /// again meanwhile.
    pub(crate) fn cut_off(&self) {
        std::mem::take(&mut *self.cut_lock()).cancel();
    }

    fn count(&self, direction: FlowDirection) -> &AtomicUsize {
        let [reverse, direct] = &self.relaying;
        match direction {
            FlowDirection::Reverse => reverse,
            FlowDirection::Direct => direct,
        }
    }

    fn cut_lock(&self) -> MutexGuard<'_, CancellationToken> {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Relaying {
    fn drop(&mut self) {
        let count = self.of.count(self.direction);
        count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// For how long a flow outlives the last session with its master. The death of a session is found
/// within 17 s, so that 35 s after a link went down nothing is left of what went over it.
pub(super) const LEASE: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    const MASTER: InstanceId = InstanceId::from_bytes([1; 16]);

    async fn is_orphaned_within(flows: &MasterFlows, limit: Duration) -> bool {
        tokio::time::timeout(limit, flows.orphaned()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn flows_outlive_their_last_session_by_the_lease_and_no_longer() {
        let masters = Masters::default();
        let (first, second) = (masters.session(MASTER), masters.session(MASTER));
        let flows = Arc::clone(first.flows());
        drop(first);
        assert!(!is_orphaned_within(&flows, LEASE * 10).await);

        drop(second);
        let just_under = LEASE.checked_sub(Duration::from_millis(10)).unwrap();
        assert!(!is_orphaned_within(&flows, just_under).await);
        assert!(is_orphaned_within(&flows, Duration::from_millis(20)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_comes_back_in_time_keeps_them() {
        let masters = Masters::default();
        let lease = masters.session(MASTER);
        let flows = Arc::clone(lease.flows());
        drop(lease);
        assert!(!is_orphaned_within(&flows, LEASE / 2).await);

        let again = masters.session(MASTER);
        assert!(Arc::ptr_eq(again.flows(), &flows));
        assert!(!is_orphaned_within(&flows, LEASE * 10).await);

        // The time without a session counts from its last end.
        drop(again);
        assert!(!is_orphaned_within(&flows, LEASE / 2).await);
        assert!(is_orphaned_within(&flows, LEASE).await);
    }

    #[tokio::test(start_paused = true)]
    async fn another_master_keeps_nothing_alive() {
        let masters = Masters::default();
        let lease = masters.session(MASTER);
        let flows = Arc::clone(lease.flows());
        let _other = masters.session(InstanceId::from_bytes([2; 16]));
        drop(lease);
        assert!(is_orphaned_within(&flows, LEASE).await);
    }

    #[tokio::test]
    async fn a_cut_ends_what_runs_and_not_what_comes_later() {
        let masters = Masters::default();
        let lease = masters.session(MASTER);
        let now = lease.flows().cut();
        masters.cut_all();
        assert!(now.is_cancelled());
        assert!(!lease.flows().cut().is_cancelled());
    }

    #[tokio::test]
    async fn what_runs_is_counted_and_waited_for() {
        let masters = Masters::default();
        let lease = masters.session(MASTER);
        let flows = lease.flows();
        flows.all_done().await;

        let (done, waits) = tokio::sync::oneshot::channel::<()>();
        let run = tokio::spawn(flows.run(waits));
        let relaying = flows.relaying(FlowDirection::Direct);
        assert_eq!(flows.relayed(FlowDirection::Direct), 1);
        assert_eq!(flows.relayed(FlowDirection::Reverse), 0);
        assert_eq!(flows.running(), 1);
        drop((done, relaying));
        let _ = run.await;
        flows.all_done().await;
        assert_eq!(flows.running(), 0);
        assert_eq!(flows.relayed(FlowDirection::Direct), 0);
    }
}
