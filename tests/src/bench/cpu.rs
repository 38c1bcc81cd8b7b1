//! Processor time of the whole machine, from `/proc/stat`.
//!
//! Owns what counts as busy: all the time that no processor was idle, waited for a disk, or was
//! taken by the hypervisor for another machine. The kernel measures idle time exactly and only
//! samples the rest at its ticks, so busy is what is left of the wall time.
//! Who was busy nobody asks: that is the point of measuring the whole machine, and why the
//! background has to be subtracted.

use std::{fs, time::Duration};

use anyhow::{Context, Result, anyhow};
use tokio::time::Instant;

/// The processors' account at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct CpuMoment {
    at: Instant,
    unused: Duration,
    processors: u32,
}

/// What went by between two moments.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spent {
    pub(super) wall: Duration,
    /// Processor time of everything that ran.
    pub(super) busy: Duration,
}

impl CpuMoment {
    pub(super) fn now() -> Result<Self> {
        let stat = fs::read_to_string(STAT).with_context(|| format!("cannot read {STAT}"))?;
        let (unused, processors) =
            parse(&stat).with_context(|| anyhow!("{STAT} has another form: {stat:.80}"))?;
        Ok(Self {
            at: Instant::now(),
            unused,
            processors,
        })
    }

    /// What has been spent since this moment.
    pub(super) fn spent(&self) -> Result<Spent> {
        Ok(self.until(&Self::now()?))
    }

    fn until(&self, later: &Self) -> Spent {
        let wall = later.at - self.at;
        let unused = later.unused.saturating_sub(self.unused);
        Spent {
            wall,
            busy: (wall * self.processors).saturating_sub(unused),
        }
    }
}

impl Spent {
    /// Processor seconds per second of wall time.
    pub(super) fn rate(&self) -> f64 {
        self.busy.as_secs_f64() / self.wall.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Processor seconds, less what a background of `rate` has used meanwhile.
    pub(super) fn busy_above(&self, rate: f64) -> f64 {
        (self.busy.as_secs_f64() - rate * self.wall.as_secs_f64()).max(0.0)
    }
}

/// Time that nobody here used, of all processors together, and the number of processors.
fn parse(stat: &str) -> Option<(Duration, u32)> {
    let total = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = total
        .split_whitespace()
        .map(|field| field.parse().ok())
        .collect::<Option<_>>()?;
    let [
        _user,
        _nice,
        _system,
        idle,
        iowait,
        _irq,
        _softirq,
        steal,
        ..,
    ] = *ticks
    else {
        return None;
    };
    let processors = stat
        .lines()
        .filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "))
        .count();
    let unused = Duration::from_millis((idle + iowait + steal) * MILLISECONDS_PER_TICK);
    Some((unused, u32::try_from(processors).ok()?))
}

const STAT: &str = "/proc/stat";

/// What user space is told in, on every architecture and whatever the kernel uses itself.
const MILLISECONDS_PER_TICK: u64 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_disk_waits_and_stolen_time_are_unused() {
        let stat = "cpu  900 5 300 1000 20 7 8 3 0 0\n\
                    cpu0 450 2 150 500 10 3 4 1 0 0\n\
                    cpu1 450 3 150 500 10 4 4 2 0 0\n\
                    intr 4 1 1\n";
        assert_eq!(parse(stat), Some((Duration::from_millis(10_230), 2)));
        assert_eq!(parse("cpu  1 2 3\n"), None);
        assert_eq!(parse("intr 1\n"), None);
    }

    #[test]
    fn busy_is_what_is_left_of_all_processors_time() {
        let earlier = CpuMoment {
            at: Instant::now(),
            unused: Duration::from_secs(5),
            processors: 2,
        };
        let later = CpuMoment {
            at: earlier.at + Duration::from_secs(3),
            unused: Duration::from_secs(9),
            processors: 2,
        };
        let spent = earlier.until(&later);
        assert_eq!(
            (spent.wall, spent.busy),
            (Duration::from_secs(3), Duration::from_secs(2))
        );
        assert!((spent.rate() - 2.0 / 3.0).abs() < 1e-9);
        assert!((spent.busy_above(0.5) - 0.5).abs() < 1e-9);
        assert!(
            spent.busy_above(1.0).abs() < 1e-9,
            "never less than nothing"
        );
    }

    #[test]
    fn this_machine_can_be_asked() {
        let moment = CpuMoment::now().expect("/proc/stat is there");
        let spent = moment.spent().expect("it is still there");
        assert!(moment.processors >= 1);
        // Ticks are rounded down, so an instant may seem to have a few of them.
        assert!(spent.busy < Duration::from_secs(1), "{spent:?}");
    }
}
