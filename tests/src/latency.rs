//! Latencies that were measured, and what they come to.
//!
//! Owns percentiles by the nearest rank, so that each is a value that was measured. What is too
//! slow is for the test to say.

use std::{fmt, time::Duration};

/// Measured durations.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    /// Adds one.
    pub fn add(&mut self, latency: Duration) {
        self.0.push(latency);
    }

    /// Adds all of the other's.
    pub fn extend(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
    }

    /// The duration that so many percent do not exceed.
    ///
    /// # Panics
    ///
    /// When nothing was measured.
    pub fn percentile(&self, percent: usize) -> Duration {
        let all = self.percentiles(&[percent]);
        *all.first().expect("one was asked for")
    }

    /// The same for several.
    ///
    /// # Panics
    ///
    /// When nothing was measured.
    pub fn percentiles(&self, percents: &[usize]) -> Vec<Duration> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let of = |percent: &usize| {
            let rank = (sorted.len() * percent).div_ceil(100).max(1);
            *sorted.get(rank - 1).expect("something was measured")
        };
        percents.iter().map(of).collect()
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, max] = [50, 99, 100].map(|percent| self.percentile(percent));
        write!(
            f,
            "n={} p50={p50:.1?} p99={p99:.1?} max={max:.1?}",
            self.0.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let mut latencies = Latencies::default();
        for ms in (1..=200).rev() {
            latencies.add(Duration::from_millis(ms));
        }
        let of = |percent| latencies.percentile(percent).as_millis();
        assert_eq!([of(0), of(50), of(99), of(100)], [1, 100, 198, 200]);
        assert_eq!(
            latencies.to_string(),
            "n=200 p50=100.0ms p99=198.0ms max=200.0ms"
        );
    }
}
