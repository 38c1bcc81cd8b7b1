//! Which hellos of a session have been received before.
//!
//! Owns the window of counters: flows are dialled side by side and arrive out of order, so those
//! of the last [`REPLAY_WINDOW`] may come in any order, each once; older ones are refused.
//! Only proven hellos may be entered, or a stranger could move the window.

use super::FlowError;

/// How far behind the newest hello another one may be: far more than are under way at once.
pub const REPLAY_WINDOW: u64 = 1024;

/// The counters received on one session in one direction.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    /// The highest counter received; 0 before the first.
    newest: u64,
    /// One bit for each of the last [`REPLAY_WINDOW`] counters, at its remainder.
    seen: [u64; WORDS],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self {
            newest: 0,
            seen: [0; WORDS],
        }
    }
}

impl ReplayWindow {
    /// Enters a counter.
    ///
    /// # Errors
    ///
    /// When it was entered before, or is so old that this is not known any more. Counters begin
    /// with 1, so 0 is always too old.
    pub fn enter(&mut self, counter: u64) -> Result<(), FlowError> {
        if counter == 0 || self.newest.saturating_sub(counter) >= REPLAY_WINDOW {
            return Err(FlowError::Stale { counter });
        }
        if counter > self.newest {
            self.forget_up_to(counter);
            self.newest = counter;
        }
        let (word, bit) = self.place(counter);
        if *word & bit != 0 {
            return Err(FlowError::Replayed { counter });
        }
        *word |= bit;
        Ok(())
    }

    /// Frees the places of the counters between the newest one and this one, which were those of
    /// counters that fall out of the window.
    fn forget_up_to(&mut self, counter: u64) {
        if counter - self.newest >= REPLAY_WINDOW {
            self.seen = [0; WORDS];
            return;
        }
        for passed in self.newest + 1..=counter {
            let (word, bit) = self.place(passed);
            *word &= !bit;
        }
    }

    fn place(&mut self, counter: u64) -> (&mut u64, u64) {
        let at = counter % REPLAY_WINDOW;
        let index = usize::try_from(at / 64).expect("below the number of words");
        let word = self.seen.get_mut(index).expect("below the number of words");
        (word, 1 << (at % 64))
    }
}

const WORDS: usize = 16;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn is_replayed(window: &mut ReplayWindow, counter: u64) -> bool {
        matches!(window.enter(counter), Err(FlowError::Replayed { .. }))
    }

    fn is_stale(window: &mut ReplayWindow, counter: u64) -> bool {
        matches!(window.enter(counter), Err(FlowError::Stale { .. }))
    }

    #[test]
    fn every_counter_is_accepted_once_in_any_order() {
        let mut window = ReplayWindow::default();
        for counter in [3, 1, 2, 1024, 1023] {
            window.enter(counter).unwrap();
        }
        for counter in [3, 1, 2, 1024, 1023] {
            assert!(is_replayed(&mut window, counter), "{counter}");
        }
    }

    #[test]
    fn what_is_further_back_than_the_window_is_stale() {
        let mut window = ReplayWindow::default();
        window.enter(REPLAY_WINDOW + 5).unwrap();
        assert!(is_stale(&mut window, 5));
        window.enter(6).unwrap();
        assert!(is_replayed(&mut window, 6));
        assert!(is_stale(&mut window, 0));
    }

    #[test]
    fn the_last_counter_is_a_counter_too() {
        let mut window = ReplayWindow::default();
        window.enter(u64::MAX).unwrap();
        assert!(is_replayed(&mut window, u64::MAX));
        window.enter(u64::MAX - 1).unwrap();
        assert!(is_stale(&mut window, 1));
    }

    proptest! {
        #[test]
        fn the_window_agrees_with_a_set(
            counters in proptest::collection::vec(1_u64..4000, 1..400),
        ) {
            let mut window = ReplayWindow::default();
            let (mut seen, mut newest) = (HashSet::new(), 0);
            for counter in counters {
                let accepted = window.enter(counter).is_ok();
                let fresh = counter + REPLAY_WINDOW > newest && seen.insert(counter);
                prop_assert_eq!(accepted, fresh, "{}", counter);
                newest = newest.max(counter);
            }
        }
    }
}
