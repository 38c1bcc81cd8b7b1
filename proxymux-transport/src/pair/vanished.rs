//! Connections whose packets vanish while something of ours waits to be acknowledged.
//!
//! Owns finding them: keep-alive finds a peer that is gone only while nothing is under way, and
//! without it the kernel tries for a quarter of an hour. Leaves ending the relay to `pair`.
//! A slow reader is none of these: what it does not read its kernel has acknowledged, or has told
//! ours not to send, and answers when it is asked. So only a connection counts on which the kernel
//! repeats itself again and again in vain, with nothing acknowledged in between.
//! A relay at which nothing moves, and of which nothing is under way, is not woken.

use std::{os::fd::AsFd, time::Duration};

use tokio::time::Instant;

use crate::socket;

/// Looks after both connections of a relay.
#[derive(Debug)]
pub(super) struct Vanishing {
    /// Something has moved, or was under way at the last look.
    armed: bool,
    last_look: Instant,
    /// Of the client and of the target.
    in_vain: [Option<InVain>; 2],
}

/// What the kernel says of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Account {
    acked: u64,
    outstanding: bool,
    /// What was sent by its timer is not answered.
    sent_again: bool,
}

/// Which connection's packets have vanished for too long.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Vanished {
    Client,
    Target,
}

/// Nothing came through since then.
#[derive(Clone, Copy, Debug)]
struct InVain {
    acked: u64,
    since: Instant,
}

/// Why a relay ends for this.
#[derive(Debug, thiserror::Error)]
#[error("nothing was acknowledged for {} s, though it was sent again and again", VANISHED_AFTER.as_secs())]
pub(super) struct NothingAcknowledged;

impl Account {
    /// `None` where the kernel does not say, and for what is no TCP connection.
    pub(super) fn of(socket: &impl AsFd) -> Option<Self> {
        let progress = socket::tcp_progress(socket)?;
        Some(Self {
            acked: progress.acked,
            outstanding: progress.outstanding,
            sent_again: socket::tcp_repeats_itself(socket)?,
        })
    }
}

impl Vanishing {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            armed: false,
            last_look: now,
            in_vain: [None, None],
        }
    }

    /// Notes that bytes were handed to one of the connections.
    pub(super) fn moved(&mut self, now: Instant) {
        if !self.armed {
            self.armed = true;
            self.last_look = now;
        }
    }

    /// When to look next.
    pub(super) fn due(&self) -> Option<Instant> {
        self.armed.then(|| self.last_look + LOOK_EVERY)
    }

    /// Looks at both.
    pub(super) fn look(
        &mut self,
        now: Instant,
        client: Option<Account>,
        target: Option<Account>,
    ) -> Option<Vanished> {
        self.last_look = now;
        let accounts = [client, target];
        self.armed = accounts.iter().flatten().any(|account| account.outstanding);
        for (known, account) in self.in_vain.iter_mut().zip(accounts) {
            let account = account.filter(|account| account.outstanding && account.sent_again);
            let before = known.take();
            *known = account.map(|Account { acked, .. }| match before {
                Some(before) if before.acked == acked => before,
                _ => InVain { acked, since: now },
            });
        }
        let is_over = |known: &Option<InVain>| {
            known.is_some_and(|in_vain| now - in_vain.since >= VANISHED_AFTER)
        };
        let [client, target] = &self.in_vain;
        if is_over(client) {
            Some(Vanished::Client)
        } else {
            is_over(target).then_some(Vanished::Target)
        }
    }
}

/// What is lost is sent again after 0.2 s and more, so that a look finds it.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// After a gap the kernel's next attempt may be as far away as the gap was long: one of twelve
/// seconds is survived. With the looks it is 35 s at most.
const VANISHED_AFTER: Duration = Duration::from_secs(25);

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn account(acked: u64, outstanding: bool, sent_again: bool) -> Option<Account> {
        Some(Account {
            acked,
            outstanding,
            sent_again,
        })
    }

    /// Looks for as long as that is of use, with these accounts of the target's; how long it took
    /// until it had vanished.
    async fn found(of_target: impl Fn(u64) -> Option<Account>) -> Option<Duration> {
        let began = Instant::now();
        let mut vanishing = Vanishing::new(began);
        vanishing.moved(began);
        for look in 0..100 {
            let due = vanishing.due()?;
            advance(due - Instant::now()).await;
            if let Some(which) = vanishing.look(Instant::now(), None, of_target(look)) {
                assert_eq!(which, Vanished::Target);
                return Some(began.elapsed());
            }
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_sent_again_in_vain_for_half_a_minute_has_vanished() {
        let after = found(|_| account(7, true, true)).await;
        assert_eq!(after, Some(Duration::from_secs(30)));
    }

    #[tokio::test(start_paused = true)]
    async fn losses_between_which_something_comes_through_are_only_losses() {
        assert_eq!(found(|look| account(look / 4, true, true)).await, None);
        assert_eq!(found(|look| account(7, true, look % 5 != 4)).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stalls_has_not_vanished() {
        assert_eq!(found(|_| account(7, true, false)).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_looked_at_while_nothing_is_under_way() {
        let now = Instant::now();
        let mut vanishing = Vanishing::new(now);
        assert_eq!(vanishing.due(), None);
        vanishing.moved(now);
        assert_eq!(vanishing.due(), Some(now + LOOK_EVERY));

        let found = vanishing.look(now, None, account(7, false, false));

        assert_eq!((found, vanishing.due()), (None, None));
    }

    #[tokio::test]
    async fn a_connection_that_works_has_nothing_under_way() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let dialled = tokio::net::TcpStream::connect(at).await.unwrap();
        let account = Account::of(&dialled).unwrap();
        assert!(!account.outstanding && !account.sent_again);
        let (unix, _) = tokio::net::UnixStream::pair().unwrap();
        assert!(Account::of(&unix).is_none());
    }
}
