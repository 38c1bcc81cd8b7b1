//! Sizes in memory, as people write them.
//!
//! Owns [`ByteSize`] and its written form: a whole number with a unit; and [`FlowBuffer`], which
//! may be a word instead. Only powers of 1024 are taken, because `64MB` is 64,000,000 bytes to some
//! and 67,108,864 to others, and a limit should be what its writer meant.

use std::{fmt, ops::RangeInclusive};

use super::ValueError;

/// A number of bytes.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct ByteSize(u64);

impl ByteSize {
    /// So many KiB.
    #[must_use]
    pub const fn kib(number: u32) -> Self {
        Self((number as u64) << 10)
    }

    /// So many MiB.
    #[must_use]
    pub const fn mib(number: u32) -> Self {
        Self((number as u64) << 20)
    }

    /// So many GiB.
    #[must_use]
    pub const fn gib(number: u32) -> Self {
        Self((number as u64) << 30)
    }

    /// The number of bytes, or as many as there can be on this machine.
    #[must_use]
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// In the largest unit in which it is a whole number.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS
            .iter()
            .rev()
            .find(|(_, shift)| self.0 != 0 && self.0.trailing_zeros() >= *shift);
        match unit {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// Reads a size such as `64MiB` within bounds.
///
/// # Errors
///
/// When the text is no size, or out of bounds.
pub fn size(text: &str, bounds: &RangeInclusive<ByteSize>) -> Result<ByteSize, ValueError> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    if DECIMAL_UNITS.contains(&unit) {
        return Err(ValueError::DecimalSize);
    }
    let known = UNITS.iter().find(|(name, _)| *name == unit);
    let (Some((_, shift)), false) = (known, number.is_empty()) else {
        return Err(ValueError::NotASize);
    };
    // A number that does not fit is above every bound.
    let bytes = number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .map(ByteSize);
    bytes
        .filter(|bytes| bounds.contains(bytes))
        .ok_or(ValueError::SizeOutOfRange {
            min: *bounds.start(),
            max: *bounds.end(),
        })
}

/// What the kernel may hold for each direction of a flow, and of the connection that it is relayed
/// to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FlowBuffer {
    /// As much as the kernel finds useful, for as many connections as there is a budget for; the
    /// others have the default.
    Auto,
    /// So much.
    Bounded(ByteSize),
}

impl FlowBuffer {
    /// What a connection has without a setting, and with [`FlowBuffer::Auto`] beyond its budget.
    pub const DEFAULT_SIZE: ByteSize = ByteSize::kib(256);
}

impl Default for FlowBuffer {
    fn default() -> Self {
        Self::Bounded(Self::DEFAULT_SIZE)
    }
}

/// As [`flow_buffer`] reads it.
impl fmt::Display for FlowBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str(AUTO),
            Self::Bounded(size) => size.fmt(f),
        }
    }
}

/// Reads a size such as `256KiB`, or `auto`.
///
/// # Errors
///
/// When the text is neither, or out of bounds.
pub fn flow_buffer(text: &str) -> Result<FlowBuffer, ValueError> {
    if text == AUTO {
        return Ok(FlowBuffer::Auto);
    }
    let bounded = size(text, &(MIN_FLOW_BUFFER..=MAX_FLOW_BUFFER));
    bounded
        .map(FlowBuffer::Bounded)
        .map_err(|error| match error {
            ValueError::NotASize => ValueError::NotAFlowBuffer,
            _ => error,
        })
}

const AUTO: &str = "auto";

/// Less than a pipe holds, and than TCP offloads to a network card at once, is only slow.
const MIN_FLOW_BUFFER: ByteSize = ByteSize::kib(64);

/// What the kernel itself gives to one direction at most, unless it is told otherwise, is 6 MiB;
/// with more than this a few stalled connections have all memory of an agent's container.
const MAX_FLOW_BUFFER: ByteSize = ByteSize::mib(16);

const UNITS: &[(&str, u32)] = &[("KiB", 10), ("MiB", 20), ("GiB", 30)];

const DECIMAL_UNITS: &[&str] = &["K", "k", "KB", "kB", "M", "MB", "G", "GB"];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: RangeInclusive<ByteSize> = ByteSize::kib(1)..=ByteSize::gib(2);

    fn refusal(text: &str) -> String {
        size(text, &BOUNDS).unwrap_err().to_string()
    }

    #[test]
    fn sizes_are_whole_numbers_with_a_unit_of_powers_of_1024() {
        assert_eq!(size("1KiB", &BOUNDS), Ok(ByteSize(1024)));
        assert_eq!(size("64 MiB", &BOUNDS), Ok(ByteSize::mib(64)));
        assert_eq!(size("2GiB", &BOUNDS).unwrap().bytes(), 2 << 30);
        for text in [
            "", "64", "MiB", "-1MiB", "1.5GiB", "64mib", "64MiBs", "0x1KiB", "off",
        ] {
            let wanted = "must be a size with its unit such as 512KiB, 64MiB or 1GiB";
            assert_eq!(refusal(text), wanted, "{text:?}");
        }
        for text in ["64M", "64MB", "64 kB", "1G"] {
            let wanted = "must be in KiB, MiB or GiB, which are powers of 1024";
            assert_eq!(refusal(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn a_size_out_of_its_bounds_is_told_them() {
        for text in [
            "0KiB",
            "3GiB",
            "99999999999999999999GiB",
            "18014398509481984KiB",
        ] {
            assert_eq!(refusal(text), "must be from 1KiB to 2GiB", "{text:?}");
        }
    }

    #[test]
    fn a_flow_buffer_is_a_size_or_a_word() {
        assert_eq!(flow_buffer("auto"), Ok(FlowBuffer::Auto));
        assert_eq!(flow_buffer("256KiB"), Ok(FlowBuffer::default()));
        for text in ["auto", "64KiB", "1MiB", "16MiB"] {
            assert_eq!(flow_buffer(text).unwrap().to_string(), text);
        }
        let refusal = |text| flow_buffer(text).unwrap_err().to_string();
        for text in ["", "off", "262144", "Auto"] {
            let wanted = "must be auto, or a size with its unit such as 256KiB or 1MiB";
            assert_eq!(refusal(text), wanted, "{text:?}");
        }
        assert_eq!(refusal("32KiB"), "must be from 64KiB to 16MiB");
        assert_eq!(
            refusal("1MB"),
            "must be in KiB, MiB or GiB, which are powers of 1024"
        );
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_as_the_same_size(number in 1_u32..2 << 20) {
            let shown = ByteSize::kib(number).to_string();
            prop_assert_eq!(size(&shown, &BOUNDS), Ok(ByteSize::kib(number)));
        }
    }
}
