//! Steered connections that have not shown yet what they are.
//!
//! Owns their number, apart from those that are relayed: whoever sends nothing, or bytes one at a
//! time, must not close the gate for masters. When there is no room the oldest of the source that
//! has most goes, as on the masters' port of sessions.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// The connections that are new now.
#[derive(Debug)]
pub(super) struct Newcomers {
    room: usize,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// The oldest first.
    by_number: BTreeMap<u64, (IpAddr, CancellationToken)>,
}

/// A connection that is new, until this is dropped.
#[derive(Debug)]
pub(super) struct Newcomer {
    all: Arc<Newcomers>,
    number: u64,
    evicted: CancellationToken,
}

impl Newcomers {
    /// Room for so many connections.
    pub(super) fn with_room_for(room: usize) -> Arc<Self> {
        Arc::new(Self {
            room,
            waiting: Mutex::default(),
        })
    }

    /// Takes in a connection; another may have to go for it.
    pub(super) fn enter(self: &Arc<Self>, from: IpAddr) -> Newcomer {
        let mut waiting = self.lock();
        if waiting.by_number.len() >= self.room {
            waiting.evict_one();
        }
        let number = waiting.next;
        waiting.next += 1;
        let evicted = CancellationToken::new();
        waiting.by_number.insert(number, (from, evicted.clone()));
        drop(waiting);
        Newcomer {
            all: Arc::clone(self),
            number,
            evicted,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn evict_one(&mut self) {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for (from, _) in self.by_number.values() {
            *counts.entry(*from).or_default() += 1;
        }
        let most = counts.values().max().copied();
        let mut waiting = self.by_number.iter();
        let oldest = waiting.find(|(_, (from, _))| counts.get(from).copied() == most);
        let oldest = oldest.map(|(number, _)| *number);
        if let Some((_, evicted)) = oldest.and_then(|number| self.by_number.remove(&number)) {
            evicted.cancel();
        }
    }
}

impl Newcomer {
    /// Becomes ready when the connection has to go.
    pub(super) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        self.all.lock().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_evicted(newcomer: &Newcomer) -> bool {
        newcomer.evicted.is_cancelled()
    }

    #[test]
    fn the_oldest_of_the_source_that_has_most_goes() {
        let all = Newcomers::with_room_for(4);
        let (flood, master) = ("192.0.2.66".parse().unwrap(), "192.0.2.10".parse().unwrap());
        let of_master = all.enter(master);
        let mut flooding: Vec<_> = (0..20).map(|_| all.enter(flood)).collect();

        assert!(!is_evicted(&of_master));
        let alive = flooding.iter().filter(|one| !is_evicted(one)).count();
        assert_eq!(alive, 3);
        assert!(!is_evicted(flooding.last().unwrap()));

        // Who has shown what it is makes room.
        drop(flooding.pop());
        let _next = all.enter(flood);
        assert_eq!(all.lock().by_number.len(), 4);
        assert!(!is_evicted(&of_master));
    }
}
