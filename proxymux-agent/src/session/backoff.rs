//! How long to wait before the next attempt to reach a master.
//!
//! Owns the numbers; the randomness makes sure that a fleet that lost its master together does
//! not come back together.

use std::time::Duration;

/// Exponential backoff with full jitter.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The next wait: anything from nothing to a ceiling that doubles each time.
    pub(crate) fn next(&mut self) -> Duration {
        let ceiling = FIRST
            .saturating_mul(1 << self.attempts.min(MAX_DOUBLINGS))
            .min(LONGEST);
        self.attempts = self.attempts.saturating_add(1);
        up_to(ceiling)
    }

    /// Begins anew, after a success that lasted.
    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// A random time up to `ceiling`.
pub(crate) fn up_to(ceiling: Duration) -> Duration {
    ceiling.mul_f64(fastrand::f64())
}

/// The first ceiling.
const FIRST: Duration = Duration::from_millis(200);

/// The last ceiling: a master that was away is found again within half a minute.
const LONGEST: Duration = Duration::from_secs(30);

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
    fn no_number_of_attempts_overflows() {
        let mut backoff = Backoff { attempts: u32::MAX };
        assert!(backoff.next() <= LONGEST);
    }
}
