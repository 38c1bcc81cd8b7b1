//! How long to wait before the next attempt to reach a master.
//!
//! Owns the numbers; the randomness makes sure that a fleet that lost its master together does
//! not come back together. How far attempts may lie apart depends on what the last one has cost
//! the master: see [`Backoff::until_answered`].

use std::time::Duration;

/// Exponential backoff with full jitter.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    /// Attempts that the master had to do something about.
    attempts: u32,
    /// Attempts since then that it has not noticed.
    unnoticed: u32,
}

/// An attempt that ended before the master itself had anything to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unnoticed {
    /// Its machine answered that nobody listens: it restarts, and its whole fleet waits for it.
    Refused,
    /// No packet came through: it is the way there that is broken.
    NoWay,
}

impl Backoff {
    /// The next wait: anything from nothing to a ceiling that doubles each time.
    pub(crate) fn next(&mut self) -> Duration {
        let ceiling = ceiling(self.attempts, LONGEST);
        self.attempts = self.attempts.saturating_add(1);
        self.unnoticed = 0;
        up_to(ceiling)
    }

    /// The same after an attempt that the master has not noticed: its ceiling is lower, and
    /// however many there were, the first one that is noticed begins where the others ended.
    pub(crate) fn until_answered(&mut self, why: Unnoticed) -> Duration {
        let ceiling = ceiling(self.unnoticed, why.longest());
        self.unnoticed = self.unnoticed.saturating_add(1);
        up_to(ceiling)
    }

    /// The same after a session that did not last. The master had let it in, so it is not too busy
    /// for its fleet: it has died or restarts, and is waited for like one that is down.
    pub(crate) fn after_session(&mut self) -> Duration {
        self.attempts = 0;
        self.until_answered(Unnoticed::Refused)
    }

    /// Begins anew, after a success that lasted.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}

impl Unnoticed {
    fn longest(self) -> Duration {
        match self {
            Self::Refused => LONGEST_REFUSED,
            Self::NoWay => LONGEST_NO_WAY,
        }
    }
}

fn ceiling(attempts: u32, longest: Duration) -> Duration {
    FIRST
        .saturating_mul(1 << attempts.min(MAX_DOUBLINGS))
        .min(longest)
}

/// A random time up to `ceiling`.
pub(crate) fn up_to(ceiling: Duration) -> Duration {
    ceiling.mul_f64(fastrand::f64())
}

/// The first ceiling.
const FIRST: Duration = Duration::from_millis(200);

/// The last ceiling against a master that answers: one that is too busy for its fleet is asked
/// by each agent four times a minute, at moments that have nothing to do with the others'.
const LONGEST: Duration = Duration::from_secs(30);

/// The last ceiling while nobody listens. A master that returns has its fleet back sooner than
/// the 8 s for which its front doors let a request wait, and the fleet still comes spread out:
/// 5,000 agents are 1,000 handshakes a second, which the master lets in as it can.
const LONGEST_REFUSED: Duration = Duration::from_secs(5);

/// The last ceiling while no packet comes through. With what is left of an attempt that had begun
/// before, a link that returns has its session back within five seconds.
const LONGEST_NO_WAY: Duration = Duration::from_millis(1_500);

/// Enough to get from the first ceiling to the last.
const MAX_DOUBLINGS: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_limit_and_are_spread_over_all_of_it() {
        let mut longest = Duration::ZERO;
        let mut shortest = LONGEST;
        for _ in 0..200 {
            let mut backoff = Backoff::default();
            assert!(backoff.next() <= FIRST);
            assert!(backoff.next() <= FIRST * 2);
            for _ in 0..10 {
                let _ = backoff.next();
            }
            let wait = backoff.next();
            longest = longest.max(wait);
            shortest = shortest.min(wait);
            backoff.reset();
            assert!(backoff.next() <= FIRST);
        }
        assert!(longest <= LONGEST);
        assert!(
            longest > LONGEST * 3 / 4,
            "spread up to the ceiling: {longest:?}"
        );
        assert!(
            shortest < LONGEST / 4,
            "spread down to nothing: {shortest:?}"
        );
    }

    #[test]
    fn attempts_that_nobody_noticed_are_made_more_often() {
        for (why, longest) in [
            (Unnoticed::Refused, LONGEST_REFUSED),
            (Unnoticed::NoWay, LONGEST_NO_WAY),
        ] {
            let mut backoff = Backoff::default();
            let waits: Vec<_> = (0..200).map(|_| backoff.until_answered(why)).collect();

            let longest_seen = waits.iter().max().copied().unwrap_or_default();
            assert!(longest_seen <= longest, "{why:?}: {longest_seen:?}");
            assert!(longest_seen > longest * 3 / 4, "{why:?}: {longest_seen:?}");
            // However long nobody was there, whoever is there now is asked again soon.
            assert!(backoff.next() <= FIRST);
        }
    }

    #[test]
    fn a_master_that_is_there_and_gone_in_turn_is_not_asked_more_often_for_it() {
        let mut longest = Duration::ZERO;
        for _ in 0..200 {
            let mut backoff = Backoff::default();
            for _ in 0..10 {
                let _ = backoff.next();
                let _ = backoff.until_answered(Unnoticed::Refused);
            }
            longest = longest.max(backoff.next());
        }
        assert!(longest > LONGEST * 3 / 4, "{longest:?}");
    }

    #[test]
    fn a_master_that_dies_again_and_again_is_never_waited_for_as_if_it_were_busy() {
        for _ in 0..200 {
            let mut backoff = Backoff::default();
            // It dies in the middle of handshakes, too.
            for _ in 0..10 {
                let _ = backoff.next();
            }
            assert!(backoff.after_session() <= FIRST);
            for _ in 0..10 {
                assert!(backoff.after_session() <= LONGEST_REFUSED);
            }
            assert!(backoff.next() <= FIRST);
        }
    }

    #[test]
    fn no_number_of_attempts_overflows() {
        let mut backoff = Backoff {
            attempts: u32::MAX,
            unnoticed: u32::MAX,
        };
        assert!(backoff.until_answered(Unnoticed::NoWay) <= LONGEST_NO_WAY);
        assert!(backoff.next() <= LONGEST);
    }
}
