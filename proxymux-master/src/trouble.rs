//! Something that goes wrong again and again, for a log that tells of its beginning and its end.
//!
//! Owns [`Trouble`], which is about one thing, and [`Repeats`], which is about many: a fleet that
//! is set up wrong is refused for ever, and its log has to stay readable.
//! What is told, and in which words, is the caller's.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// One thing that goes wrong.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    count: u64,
    last: Option<Instant>,
}

impl Trouble {
    /// Notes that it went wrong once more. Whether that is news.
    pub(crate) fn begins(&mut self) -> bool {
        self.count += 1;
        self.last.replace(Instant::now()).is_none()
    }

    /// Notes that it went well. Says how often it had gone wrong, if that is over: after a single
    /// success it is not, or whoever is at a limit would write two lines for every connection.
    pub(crate) fn is_over(&mut self) -> Option<u64> {
        self.last.filter(|last| last.elapsed() >= CALM)?;
        self.last = None;
        Some(std::mem::take(&mut self.count))
    }
}

/// What many peers do wrong, each again and again.
///
/// Each fault of each peer is told when it begins, and then once a minute with how often it was
/// seen since.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    peers: Mutex<HashMap<String, Peer>>,
}

/// The faults of a peer.
#[derive(Debug, Default)]
struct Peer(Vec<Seen>);

#[derive(Debug)]
struct Seen {
    fault: String,
    told: Instant,
    untold: u64,
}

impl Repeats {
    /// Notes a fault. `Some` if it is to be told now, with how many were not told since the last.
    pub(crate) fn news(&self, peer: &str, fault: &str) -> Option<u64> {
        let now = Instant::now();
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        // What is full stays so for a while: whoever comes then shares a place.
        let full = peers.len() >= MAX_PEERS && !peers.contains_key(peer);
        let peer = if full { OTHERS } else { peer };
        peers
            .entry(peer.to_owned())
            .or_default()
            .news(if full { OTHERS } else { fault }, now)
    }

    /// Forgets what has not been told for long; to be called now and then.
    pub(crate) fn expire(&self) {
        let now = Instant::now();
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.retain(|_, peer| {
            peer.0.retain(|seen| now - seen.told < FORGET_AFTER);
            !peer.0.is_empty()
        });
    }
}

impl Peer {
    fn news(&mut self, fault: &str, now: Instant) -> Option<u64> {
        // A peer can put what it likes into a fault.
        let known = self.0.iter().any(|seen| seen.fault == fault);
        let fault = if known || self.0.len() < MAX_FAULTS {
            fault
        } else {
            OTHERS
        };
        let Some(seen) = self.0.iter_mut().find(|seen| seen.fault == fault) else {
            self.0.push(Seen {
                fault: fault.to_owned(),
                told: now,
                untold: 0,
            });
            return Some(0);
        };
        if now - seen.told < TELL_EVERY {
            seen.untold += 1;
            return None;
        }
        seen.told = now;
        Some(std::mem::take(&mut seen.untold))
    }
}

/// How long nothing must have gone wrong until trouble is over.
pub(crate) const CALM: Duration = Duration::from_secs(10);

/// How often a fault that goes on is told.
const TELL_EVERY: Duration = Duration::from_mins(1);

/// Longer, so that the number of those that were not told is not lost.
const FORGET_AFTER: Duration = Duration::from_mins(5);

/// Faults of one peer that are told apart.
const MAX_FAULTS: usize = 16;

/// Peers that are told apart, mostly some 200 bytes each: more than the 5,000 nodes of a large
/// cluster.
const MAX_PEERS: usize = 8192;

/// Stands for the rest, of peers or of faults; none has an empty name.
const OTHERS: &str = "";

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn trouble_is_told_once_however_often_it_comes_and_goes() {
        let mut trouble = Trouble::default();
        assert!(trouble.begins());
        for _ in 0..100 {
            advance(CALM - Duration::from_millis(1)).await;
            assert_eq!(trouble.is_over(), None);
            assert!(!trouble.begins());
        }

        advance(CALM).await;

        assert_eq!(trouble.is_over(), Some(101));
        assert_eq!(trouble.is_over(), None);
        assert!(trouble.begins(), "the next one is news again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_fault_that_goes_on_is_told_once_a_minute_with_its_number() {
        let repeats = Repeats::default();
        assert_eq!(repeats.news("node-a", "identity"), Some(0));
        for _ in 0..59 {
            advance(Duration::from_secs(1)).await;
            assert_eq!(repeats.news("node-a", "identity"), None);
        }

        advance(Duration::from_secs(1)).await;

        assert_eq!(repeats.news("node-a", "identity"), Some(59));
    }

    #[tokio::test(start_paused = true)]
    async fn another_fault_and_another_peer_are_news() {
        let repeats = Repeats::default();
        assert_eq!(repeats.news("node-a", "identity"), Some(0));

        assert_eq!(repeats.news("node-a", "cluster"), Some(0));
        assert_eq!(repeats.news("node-b", "identity"), Some(0));
        assert_eq!(repeats.news("node-a", "identity"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_invents_faults_is_told_no_more_often_than_its_share() {
        let repeats = Repeats::default();

        let told = (0..1000).filter(|n| repeats.news("node-a", &format!("fault {n}")).is_some());

        assert_eq!(told.count(), MAX_FAULTS + 1);
        assert_eq!(repeats.news("node-b", "fault 1"), Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded_and_forgotten_in_time() {
        let repeats = Repeats::default();
        for peer in 0..2 * MAX_PEERS {
            repeats.news(&format!("peer {peer}"), "silent");
        }
        assert_eq!(repeats.peers.lock().unwrap().len(), MAX_PEERS + 1);
        assert_eq!(repeats.news("one more", "silent"), None);

        advance(FORGET_AFTER).await;
        repeats.expire();

        assert_eq!(repeats.news("one more", "silent"), Some(0));
        assert_eq!(repeats.peers.lock().unwrap().len(), 1);
    }
}
