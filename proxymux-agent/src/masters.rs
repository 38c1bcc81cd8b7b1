//! Which masters this agent holds sessions with.
//!
//! Owns the set of their instance ids, by which an agent knows that two addresses lead to the
//! same master, or that one virtual address has led it to a master it has not met.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use proxymux_proto::InstanceId;
use tokio::sync::watch;

/// The masters held, shared by all workers.
#[derive(Debug)]
pub(crate) struct HeldMasters {
    held: Mutex<HashMap<InstanceId, usize>>,
    changed: watch::Sender<()>,
}

/// One session with a master, for as long as it takes new streams.
#[derive(Debug)]
pub(crate) struct HeldGuard {
    masters: Arc<HeldMasters>,
    master: InstanceId,
}

impl HeldMasters {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            held: Mutex::default(),
            changed: watch::Sender::new(()),
        })
    }

    /// Counts a session with `master` until the guard is dropped.
    pub(crate) fn hold(self: &Arc<Self>, master: InstanceId) -> HeldGuard {
        *self.lock().entry(master).or_default() += 1;
        self.changed.send_replace(());
        HeldGuard {
            masters: Arc::clone(self),
            master,
        }
    }

    /// The masters held now.
    pub(crate) fn list(&self) -> Vec<InstanceId> {
        self.lock().keys().copied().collect()
    }

    /// How many different masters are held now.
    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    /// Becomes ready at each change of the masters held.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Waits until fewer than `wanted` different masters are held.
    pub(crate) async fn fewer_than(&self, wanted: usize) {
        let mut changes = self.changed.subscribe();
        // The sender is in `self`, so the wait ends by its condition only.
        let _ = changes.wait_for(|()| self.count() < wanted).await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceId, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for HeldGuard {
    fn drop(&mut self) {
        let mut held = self.masters.lock();
        if let Some(count) = held.get_mut(&self.master) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.master);
            }
        }
        drop(held);
        self.masters.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: InstanceId = InstanceId::from_bytes([1; 16]);
    const SECOND: InstanceId = InstanceId::from_bytes([2; 16]);

    #[tokio::test(start_paused = true)]
    async fn a_master_counts_once_and_until_its_last_session_is_gone() {
        let masters = HeldMasters::new();
        let old = masters.hold(FIRST);
        let replacement = masters.hold(FIRST);
        let other = masters.hold(SECOND);
        assert_eq!(masters.count(), 2);

        drop(old);
        assert_eq!(masters.count(), 2);
        drop(replacement);
        assert_eq!(masters.list(), [SECOND]);

        let waiting = masters.fewer_than(1);
        tokio::pin!(waiting);
        let limit = std::time::Duration::from_secs(1);
        assert!(tokio::time::timeout(limit, &mut waiting).await.is_err());
        drop(other);
        waiting.await;
    }
}
