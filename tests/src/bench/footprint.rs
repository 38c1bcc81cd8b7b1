//! What a daemon holds and does while nobody wants anything of it.
//!
//! Owns resident memory as the kernel counts it, its file-backed part apart (the program itself,
//! which processes of the same program share), and context switches that the daemon asked for:
//! each is a wake-up, and costs a laptop-sized node something.

use std::{fs, time::Duration};

use anyhow::{Context, Result, anyhow};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use super::machine::kib;

/// Resident memory at one moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Resident {
    /// `VmRSS`.
    pub(super) kib: u64,
    /// `RssFile`, which is a part of it.
    pub(super) file_kib: u64,
}

impl Resident {
    pub(super) fn of(pid: Pid) -> Result<Self> {
        let status = read(&format!("/proc/{pid}/status"))?;
        let number = |key| {
            kib(&status, key).ok_or_else(|| anyhow!("no {key} of process {pid}: it has ended"))
        };
        Ok(Self {
            kib: number("VmRSS")?,
            file_kib: number("RssFile")?,
        })
    }
}

/// Voluntary context switches per second of all threads of each process, over the same `window`.
pub(super) async fn switches_per_second(pids: &[Pid], window: Duration) -> Result<Vec<f64>> {
    let count = || -> Result<Vec<u64>> { pids.iter().map(|pid| switches(*pid)).collect() };
    let (began, before) = (Instant::now(), count()?);
    sleep(window).await;
    let (took, after) = (began.elapsed().as_secs_f64(), count()?);
    #[expect(clippy::cast_precision_loss, reason = "far from 2^52 of them")]
    let rate = |before: u64, after: u64| {
        // A thread that has ended takes its count with it.
        after.saturating_sub(before) as f64 / took
    };
    let both = before.into_iter().zip(after);
    Ok(both.map(|(before, after)| rate(before, after)).collect())
}

fn switches(pid: Pid) -> Result<u64> {
    let tasks = format!("/proc/{pid}/task");
    let cannot_list = || format!("cannot list {tasks}");
    let mut sum = 0;
    for task in fs::read_dir(&tasks).with_context(cannot_list)? {
        let path = task.with_context(cannot_list)?.path().join("status");
        // A thread may end between the list and the question.
        let Ok(status) = fs::read_to_string(&path) else {
            continue;
        };
        sum += kib(&status, "voluntary_ctxt_switches")
            .with_context(|| format!("no count of context switches in {}", path.display()))?;
    }
    Ok(sum)
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_has_a_part_that_is_the_program() {
        let resident = Resident::of(Pid::this()).expect("this process runs");
        assert!(
            resident.kib > resident.file_kib && resident.file_kib > 0,
            "{resident:?}"
        );
    }

    #[tokio::test]
    async fn a_thread_that_sleeps_often_is_seen() {
        let naps = async {
            loop {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let window = Duration::from_millis(300);
        let own = [Pid::this()];
        let rate = tokio::select! {
            rates = switches_per_second(&own, window) => rates.expect("this process runs"),
            () = naps => unreachable!("it has no end"),
        };
        assert!(rate.len() == 1 && rate[0] > 20.0, "{rate:?}");
    }
}
