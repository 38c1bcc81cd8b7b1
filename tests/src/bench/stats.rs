//! The little arithmetic that turns repetitions into one number.
//!
//! Owns medians, and the units in which results are told. Percentiles of many latencies are
//! [`crate::latency`]'s.

use std::time::Duration;

/// The middle of the values: what one disturbed repetition cannot move far. Of two middle ones
/// the mean; `None` of nothing.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *sorted.get(sorted.len() / 2 - 1)?;
    Some(f64::midpoint(lower, upper))
}

/// GiB in so many bytes.
#[expect(
    clippy::cast_precision_loss,
    reason = "a relative error of 2^-53 in a measured value"
)]
pub(super) fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1_u64 << 30) as f64
}

/// Microseconds.
pub(super) fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// Cut to so many decimals, so that nobody takes noise for precision.
pub(super) fn rounded(value: f64, decimals: i32) -> f64 {
    let scale = 10_f64.powi(decimals);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_ignores_how_far_off_the_extremes_are() {
        assert_eq!(median([3.0, 1000.0, 1.0]), Some(3.0));
        assert_eq!(median([4.0, 1.0, 2.0, 1000.0]), Some(3.0));
        assert_eq!(median([7.0]), Some(7.0));
        assert_eq!(median([]), None);
    }

    #[test]
    fn units_are_what_they_are_called() {
        assert!((gib(3 << 29) - 1.5).abs() < 1e-12);
        assert!((micros(Duration::from_nanos(1_500)) - 1.5).abs() < 1e-9);
        assert!((rounded(0.123_456, 3) - 0.123).abs() < 1e-12);
    }
}
