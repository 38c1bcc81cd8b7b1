//! What the programs cost: the kernel's own statistics of how long they ran.
//!
//! Owns what is said when there are none. The kernel measures only while somebody asks it to
//! (`sysctl kernel.bpf_stats_enabled=1`), since measuring costs more than a short program does;
//! the agent never switches it on.

use std::{fmt, fs, time::Duration};

/// What one program costs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) enum Cost {
    /// It has not been asked for, as the program is not loaded.
    #[default]
    Unknown,
    /// So long in all, for so many packets.
    Measured { time: Duration, packets: u64 },
    /// The kernel does not measure.
    Off,
    /// The kernel measures, and no packet has come since.
    NoPacket,
    /// The kernel does not tell.
    Refused(String),
}

impl Cost {
    /// From how long the program ran, and how often. Both stay when measuring is switched off.
    pub(crate) fn of(time: Duration, packets: u64) -> Self {
        match packets {
            0 if is_measuring() => Self::NoPacket,
            0 => Self::Off,
            packets => Self::Measured { time, packets },
        }
    }

    /// Per packet.
    pub(crate) fn nanoseconds(&self) -> Option<u64> {
        match self {
            Self::Measured { time, packets } => {
                let each = time.as_nanos().checked_div(u128::from(*packets))?;
                u64::try_from(each).ok()
            }
            _ => None,
        }
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => Ok(()),
            Self::Measured { packets, .. } => {
                let each = self.nanoseconds().unwrap_or_default();
                write!(f, "{each} ns per packet, over {packets}")
            }
            Self::Off => f.write_str("not measured: kernel.bpf_stats_enabled is 0"),
            Self::NoPacket => f.write_str("not measured yet: no packet came"),
            Self::Refused(reason) => write!(f, "not measured: {reason}"),
        }
    }
}

/// Whether the kernel measures. A process can have it measure in another way too, which shows
/// only in the counts.
fn is_measuring() -> bool {
    let setting = fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled");
    setting.is_ok_and(|setting| setting.trim() != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_that_of_one_packet() {
        let cost = Cost::of(Duration::from_micros(30), 200);

        assert_eq!(cost.nanoseconds(), Some(150));
        assert_eq!(cost.to_string(), "150 ns per packet, over 200");
    }

    #[test]
    fn without_statistics_it_says_why() {
        let cost = Cost::Off;

        assert_eq!(cost.nanoseconds(), None);
        assert_eq!(
            cost.to_string(),
            "not measured: kernel.bpf_stats_enabled is 0"
        );
    }
}
