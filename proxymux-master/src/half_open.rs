//! Connections from agents that have not registered yet.
//!
//! Owns their number: strangers cost memory before they have proven anything. When there is no
//! room the oldest of the source that has the most goes, because a whole fleet may come from
//! one address behind a NAT, and must get in past a flood from another.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

use crate::trouble::Trouble;

/// The connections that are half-open now.
#[derive(Debug)]
pub(crate) struct HalfOpen {
    room: usize,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// The oldest first.
    connections: Vec<(u64, IpAddr, CancellationToken)>,
    crowd: Trouble,
}

/// One half-open connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct HalfOpenGuard {
    all: Arc<HalfOpen>,
    number: u64,
    evicted: CancellationToken,
}

impl HalfOpen {
    /// Room for so many connections.
    pub(crate) fn with_room_for(room: usize) -> Arc<Self> {
        Arc::new(Self {
            room,
            waiting: Mutex::default(),
        })
    }

    /// Takes in a connection; another may have to go for it.
    pub(crate) fn enter(self: &Arc<Self>, source: IpAddr) -> HalfOpenGuard {
        let mut waiting = self.lock();
        if waiting.connections.len() >= self.room {
            waiting.evict_one();
        } else if let Some(closed) = waiting.crowd.is_over() {
            tracing::warn!(closed, "half-open connections have room again");
        }
        let number = waiting.next;
        waiting.next += 1;
        let evicted = CancellationToken::new();
        waiting.connections.push((number, source, evicted.clone()));
        drop(waiting);
        HalfOpenGuard {
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
        for (_, source, _) in &self.connections {
            *counts.entry(*source).or_default() += 1;
        }
        let most = counts.values().max().copied().unwrap_or(0);
        let oldest = self
            .connections
            .iter()
            .position(|(_, s, _)| counts.get(s) == Some(&most));
        if let Some(at) = oldest {
            let (_, source, evicted) = self.connections.remove(at);
            evicted.cancel();
            if self.crowd.begins() {
                tracing::warn!(%source, half_open = most, "too many half-open connections, some closed");
            }
        }
    }
}

impl HalfOpenGuard {
    /// Becomes ready when the connection has to go.
    pub(crate) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Drop for HalfOpenGuard {
    fn drop(&mut self) {
        self.all
            .lock()
            .connections
            .retain(|(number, _, _)| *number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_the_most_numerous_source_goes() {
        let all = HalfOpen::with_room_for(4);
        let (flood, fleet): (IpAddr, IpAddr) = (
            "198.51.100.1".parse().unwrap(),
            "192.0.2.1".parse().unwrap(),
        );
        let first = all.enter(fleet);
        let oldest = all.enter(flood);
        let second = all.enter(flood);
        let third = all.enter(flood);

        let newcomer = all.enter(fleet);

        assert!(oldest.evicted.is_cancelled());
        for kept in [&first, &second, &third, &newcomer] {
            assert!(!kept.evicted.is_cancelled());
        }
    }

    #[test]
    fn a_connection_that_has_registered_makes_room() {
        let all = HalfOpen::with_room_for(1);
        let source = "192.0.2.1".parse().unwrap();
        let first = all.enter(source);
        let evicted = first.evicted.clone();
        drop(first);
        let _second = all.enter(source);
        assert!(!evicted.is_cancelled());
        assert_eq!(all.lock().connections.len(), 1);
    }
}
