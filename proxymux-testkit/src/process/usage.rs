//! What a process uses, read from `/proc`.

use std::{fs, time::Duration};

use anyhow::{Context, Result, anyhow};
use nix::unistd::Pid;

/// Memory, descriptors and processor time of a process at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Resident set.
    pub rss_bytes: u64,
    /// The part of it that is mapped files: the program itself and its libraries.
    pub rss_file_bytes: u64,
    /// Open file descriptors.
    pub open_files: usize,
    /// Threads.
    pub threads: u64,
    /// Processor time since its start, user and system together, in steps of 10 ms.
    pub cpu: Duration,
}

impl Usage {
    pub(super) fn of(pid: Pid) -> Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let status = read("status")?;
        let descriptors = format!("/proc/{pid}/fd");
        Ok(Self {
            rss_bytes: status_number(&status, "VmRSS:")? * 1024,
            rss_file_bytes: status_number(&status, "RssFile:")? * 1024,
            open_files: fs::read_dir(&descriptors)
                .with_context(|| format!("cannot list {descriptors}"))?
                .count(),
            threads: status_number(&status, "Threads:")?,
            cpu: cpu_time(&read("stat")?)
                .ok_or_else(|| anyhow!("/proc/{pid}/stat is cut short"))?,
        })
    }
}

/// A number of `/proc/PID/status`; sizes there are in KiB.
fn status_number(status: &str, key: &str) -> Result<u64> {
    status
        .lines()
        .find_map(|line| {
            line.strip_prefix(key)?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .ok_or_else(|| anyhow!("no {key} in /proc/PID/status: the process has ended"))
}

/// Fields 14 and 15 of `/proc/PID/stat`. The second field is the program's name in parentheses,
/// which may hold anything, so counting starts behind it.
fn cpu_time(stat: &str) -> Option<Duration> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis(
        (user + system) * MILLISECONDS_PER_TICK,
    ))
}

/// User space has seen 100 ticks per second on every architecture we run on, whatever the kernel
/// uses itself.
const MILLISECONDS_PER_TICK: u64 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_a_name_with_parentheses() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 12 30 0 0 20 0 1 0";
        assert_eq!(cpu_time(stat), Some(Duration::from_millis(420)));
    }

    #[test]
    fn own_usage_is_plausible() {
        let usage = Usage::of(Pid::this()).expect("this process runs");
        assert!(usage.rss_bytes > 100_000, "{usage:?}");
        assert!(usage.open_files >= 3, "{usage:?}");
        assert!(usage.threads >= 1, "{usage:?}");
    }
}
