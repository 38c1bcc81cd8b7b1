//! Connections that have not shown yet who they are.
//!
//! Owns their number: strangers cost memory before they have proven anything. When there is no
//! room the oldest of the source that has the most goes, because a whole fleet may come from one
//! address behind a NAT, and must get in past a flood from another.
//! Leaves to callers what a connection has to show, how long it has for that, and what is logged.
//! Read [`HalfOpen::enter`].

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// The connections that are half-open now.
#[derive(Debug)]
pub struct HalfOpen {
    room: usize,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// The oldest first.
    by_number: BTreeMap<u64, (IpAddr, CancellationToken)>,
}

/// One half-open connection, until it is dropped.
#[derive(Debug)]
pub struct HalfOpenGuard {
    all: Arc<HalfOpen>,
    number: u64,
    evicted: CancellationToken,
}

/// Whose connection had to go for another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Evicted {
    /// The source that had the most.
    pub source: IpAddr,
    /// How many it had.
    pub had: usize,
}

impl HalfOpen {
    /// Room for so many connections.
    #[must_use]
    pub fn with_room_for(room: usize) -> Arc<Self> {
        Arc::new(Self {
            room,
            waiting: Mutex::default(),
        })
    }

    /// Takes in a connection, and says whether another had to go for it.
    pub fn enter(self: &Arc<Self>, source: IpAddr) -> (HalfOpenGuard, Option<Evicted>) {
        let mut waiting = self.lock();
        let evicted = if waiting.by_number.len() >= self.room {
            waiting.evict_one()
        } else {
            None
        };
        let number = waiting.next;
        waiting.next += 1;
        let token = CancellationToken::new();
        waiting.by_number.insert(number, (source, token.clone()));
        drop(waiting);
        let guard = HalfOpenGuard {
            all: Arc::clone(self),
            number,
            evicted: token,
        };
        (guard, evicted)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn evict_one(&mut self) -> Option<Evicted> {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for (source, _) in self.by_number.values() {
            *counts.entry(*source).or_default() += 1;
        }
        let had = counts.values().max().copied()?;
        let mut waiting = self.by_number.iter();
        let oldest = waiting.find(|(_, (source, _))| counts.get(source) == Some(&had));
        let number = oldest.map(|(number, _)| *number)?;
        let (source, evicted) = self.by_number.remove(&number)?;
        evicted.cancel();
        Some(Evicted { source, had })
    }
}

impl HalfOpenGuard {
    /// Becomes ready when the connection has to go.
    pub async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Drop for HalfOpenGuard {
    fn drop(&mut self) {
        self.all.lock().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_evicted(guard: &HalfOpenGuard) -> bool {
        guard.evicted.is_cancelled()
    }

    fn sources() -> (IpAddr, IpAddr) {
        let (flood, fleet) = ("198.51.100.1", "192.0.2.1");
        (flood.parse().unwrap(), fleet.parse().unwrap())
    }

    #[test]
    fn the_oldest_of_the_most_numerous_source_goes() {
        let all = HalfOpen::with_room_for(4);
        let (flood, fleet) = sources();
        let (first, _) = all.enter(fleet);
        let (oldest, _) = all.enter(flood);
        let (second, _) = all.enter(flood);
        let (third, nobody) = all.enter(flood);

        let (newcomer, evicted) = all.enter(fleet);

        assert!(is_evicted(&oldest));
        for kept in [&first, &second, &third, &newcomer] {
            assert!(!is_evicted(kept));
        }
        assert_eq!(nobody, None, "there was room");
        let (source, had) = (flood, 3);
        assert_eq!(evicted, Some(Evicted { source, had }));
    }

    #[test]
    fn a_flood_evicts_only_itself() {
        let all = HalfOpen::with_room_for(4);
        let (flood, fleet) = sources();
        let (of_fleet, _) = all.enter(fleet);
        let flooding: Vec<_> = (0..20).map(|_| all.enter(flood).0).collect();

        assert!(!is_evicted(&of_fleet));
        let alive = flooding.iter().filter(|one| !is_evicted(one)).count();
        assert_eq!(alive, 3);
        assert!(!is_evicted(flooding.last().unwrap()));
    }

    #[test]
    fn a_connection_that_has_shown_what_it_is_makes_room() {
        let all = HalfOpen::with_room_for(1);
        let (_, source) = sources();
        let (first, _) = all.enter(source);
        let token = first.evicted.clone();
        drop(first);
        let (_second, evicted) = all.enter(source);
        assert!(!token.is_cancelled());
        assert_eq!(evicted, None);
        assert_eq!(all.lock().by_number.len(), 1);
    }
}
