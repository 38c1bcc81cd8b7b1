//! What the daemons of a cluster hold at rest, and whether that is more than before.
//!
//! Descriptors, tasks and streams have to be the same again; memory may be a little more, because
//! allocators keep what they once had: [`Slack`] says how much more. Descriptors, threads and
//! memory are what the kernel says, the rest is the daemon's own account at its admin address.

use std::{fmt, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use proxymux_testkit::{
    cluster::{AGENT, Cluster, MASTER},
    process::{Daemon, Usage},
};
use proxymux_transport::{admin, config_file::values::AdminAddr};
use tokio::time::{Instant, sleep};

/// What one daemon holds.
#[derive(Clone, Debug)]
pub struct Holdings {
    /// Which process.
    pub pid: i32,
    /// Open descriptors, without those of empty pipes that are kept for the next relay: how many
    /// these are, up to a small limit, is chance.
    pub descriptors: usize,
    /// Threads.
    pub threads: u64,
    /// Resident memory in KiB.
    pub rss_kib: u64,
    /// As [`GAUGES`] names them.
    pub gauges: [u64; GAUGES.len()],
}

/// How much more than before is not called a leak.
#[derive(Clone, Copy, Debug)]
pub struct Slack {
    /// In KiB.
    pub rss_kib: u64,
    /// Threads for blocking work, which come when they are needed and go when they are not.
    pub threads: u64,
}

/// A daemon's name and what it holds.
pub type Named = (String, Holdings);

/// What every daemon of a cluster holds now, in the order of [`Cluster::all_daemons`]; all must
/// run.
///
/// # Errors
///
/// One has ended, or does not answer at its admin address.
pub async fn holdings(cluster: &Cluster) -> Result<Vec<Named>> {
    let masters = cluster.topology().masters().len();
    let mut all = Vec::new();
    for (number, daemon) in cluster.all_daemons().enumerate() {
        let (program, file) = match number.checked_sub(masters) {
            None => (MASTER, format!("master-{number}.admin")),
            Some(node) => (AGENT, format!("agent-{node}.admin")),
        };
        let held = of(daemon, program, cluster.dir().join(file)).await;
        all.push((
            daemon.name().to_owned(),
            held.with_context(|| daemon.name().to_owned())?,
        ));
    }
    Ok(all)
}

/// The most that every daemon of a cluster holds while it is at rest: what is replaced from time
/// to time, such as idle flows, is missing for a moment.
///
/// # Errors
///
/// Those of [`holdings`].
pub async fn holdings_at_rest(cluster: &Cluster) -> Result<Vec<Named>> {
    let mut most = holdings(cluster).await?;
    for _ in 0..SAMPLES {
        sleep(AGAIN).await;
        for ((_, most), (_, now)) in most.iter_mut().zip(holdings(cluster).await?) {
            most.raise_to(&now);
        }
    }
    Ok(most)
}

/// Waits until no daemon holds more than `before`, for as long as `limit`, and returns what they
/// hold then. A daemon that was restarted meanwhile is compared all the same.
///
/// # Errors
///
/// One goes on holding more; says which and of what.
pub async fn settle(
    cluster: &Cluster,
    before: &[Named],
    slack: Slack,
    limit: Duration,
) -> Result<Vec<Named>> {
    let deadline = Instant::now() + limit;
    loop {
        let now = holdings(cluster).await?;
        let compared = now
            .iter()
            .zip(before)
            .try_for_each(|((name, now), (_, before))| {
                now.are_no_more_than(before, slack)
                    .with_context(|| name.clone())
            });
        match compared {
            Ok(()) => return Ok(now),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => sleep(AGAIN).await,
        }
    }
}

async fn of(daemon: &Daemon, program: &'static str, socket: PathBuf) -> Result<Holdings> {
    let metrics = admin::fetch(&AdminAddr::Unix(socket), program, "/metrics").await?;
    let mut gauges = [0; GAUGES.len()];
    for (gauge, sum) in GAUGES.iter().zip(&mut gauges) {
        *sum = sum_of(&metrics.body, gauge)?;
    }
    let Usage {
        rss_bytes,
        open_files,
        threads,
        ..
    } = daemon.usage()?;
    Ok(Holdings {
        pid: daemon.pid().as_raw(),
        descriptors: open_files.saturating_sub(2 * free_pipes(&metrics.body)?),
        threads,
        rss_kib: rss_bytes / 1024,
        gauges,
    })
}

fn free_pipes(metrics: &str) -> Result<usize> {
    let is_sample = |line: &&str| line.contains("_pipes{state=\"free\"} ");
    let sample = metrics.lines().find(is_sample);
    let value = sample.and_then(|line| line.rsplit_once(' ')?.1.parse().ok());
    value.context("no metric of free pipes")
}

/// The sum of a metric's samples, whatever their labels, or the sample that is named with its own.
fn sum_of(metrics: &str, gauge: &str) -> Result<u64> {
    let samples: Vec<u64> = metrics
        .lines()
        .filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            let prefixes = ["proxymux_agent_", "proxymux_master_"];
            let sample = prefixes
                .iter()
                .find_map(|prefix| name.strip_prefix(prefix))?;
            let (name, _) = sample.split_once('{').unwrap_or((sample, ""));
            let is_meant = sample == gauge || name == gauge;
            is_meant.then(|| value.parse().ok())?
        })
        .collect();
    ensure!(!samples.is_empty(), "no metric {gauge}");
    Ok(samples.iter().sum())
}

impl Holdings {
    /// A gauge of [`GAUGES`]; nothing of one that is not there.
    pub fn gauge(&self, name: &str) -> u64 {
        let gauges = GAUGES.iter().zip(self.gauges);
        let mut named = gauges.filter(|(gauge, _)| **gauge == name);
        named.next().map_or(0, |(_, value)| value)
    }

    /// Takes the larger of each.
    fn raise_to(&mut self, other: &Self) {
        self.descriptors = self.descriptors.max(other.descriptors);
        self.threads = self.threads.max(other.threads);
        self.rss_kib = self.rss_kib.max(other.rss_kib);
        for (gauge, other) in self.gauges.iter_mut().zip(other.gauges) {
            *gauge = (*gauge).max(other);
        }
    }

    /// Fails if this is more than `before`.
    ///
    /// # Errors
    ///
    /// Says of what there is more.
    pub fn are_no_more_than(&self, before: &Self, slack: Slack) -> Result<()> {
        let context = || format!("before: {before}; now: {self}");
        ensure!(
            self.descriptors <= before.descriptors,
            "descriptors leak, {}",
            context()
        );
        ensure!(
            self.threads <= before.threads + slack.threads,
            "threads leak, {}",
            context()
        );
        for ((gauge, now), before) in GAUGES.iter().zip(self.gauges).zip(before.gauges) {
            ensure!(now <= before, "{gauge} does not go back, {}", context());
        }
        ensure!(
            self.rss_kib <= before.rss_kib + slack.rss_kib,
            "memory grows, {}",
            context()
        );
        Ok(())
    }
}

impl fmt::Display for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            descriptors,
            threads,
            rss_kib,
            ..
        } = self;
        write!(
            f,
            "{rss_kib} KiB, {descriptors} descriptors, {threads} threads"
        )?;
        for (gauge, value) in GAUGES.iter().zip(self.gauges) {
            write!(f, ", {gauge} {value}")?;
        }
        Ok(())
    }
}

/// Metrics that are at rest what they were before, without the daemon's prefix.
const GAUGES: [&str; 5] = [
    "tasks",
    "sessions_open",
    "streams_open",
    "stream_memory_bytes",
    "pipes{state=\"held\"}",
];

const AGAIN: Duration = Duration::from_millis(100);

/// How often it is looked what daemons hold at rest.
const SAMPLES: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_of_anything_than_before_is_a_leak() {
        let before = Holdings {
            pid: 1,
            descriptors: 10,
            threads: 3,
            rss_kib: 1000,
            gauges: [5, 1, 0, 0, 0],
        };
        let slack = Slack {
            rss_kib: 100,
            threads: 1,
        };
        let leaks = |change: &dyn Fn(&mut Holdings)| {
            let mut now = before.clone();
            change(&mut now);
            now.are_no_more_than(&before, slack).is_err()
        };
        assert!(!leaks(&|now| now.rss_kib += 100));
        assert!(!leaks(&|now| now.threads += 1));
        assert!(leaks(&|now| now.rss_kib += 101));
        assert!(leaks(&|now| now.threads += 2));
        assert!(leaks(&|now| now.descriptors += 1));
        for (gauge, name) in GAUGES.iter().enumerate() {
            let more = |now: &mut Holdings| {
                now.gauges
                    .iter_mut()
                    .skip(gauge)
                    .take(1)
                    .for_each(|value| *value += 1);
            };
            assert!(leaks(&more), "{name}");
        }
    }

    #[test]
    fn free_pipes_are_those_that_the_daemon_names() {
        let metrics = "proxymux_master_pipes{state=\"held\"} 3\n\
             proxymux_master_pipes{state=\"free\"} 5\n";
        assert_eq!(free_pipes(metrics).expect("it is there"), 5);
        assert!(free_pipes("proxymux_master_pipes{state=\"held\"} 3\n").is_err());
    }

    #[test]
    fn a_metric_is_summed_over_its_labels_and_not_taken_for_another() {
        let metrics = "# TYPE proxymux_agent_streams_open gauge\n\
             proxymux_agent_streams_open{path=\"session\"} 2\n\
             proxymux_agent_streams_open{path=\"route\"} 3\n\
             proxymux_agent_tasks 7\n\
             proxymux_agent_panicked_tasks 100\n\
             proxymux_agent_pipes{state=\"held\"} 1\n\
             proxymux_agent_pipes{state=\"free\"} 16\n";
        assert_eq!(sum_of(metrics, "streams_open").expect("it is there"), 5);
        assert_eq!(sum_of(metrics, "tasks").expect("it is there"), 7);
        let held = sum_of(metrics, "pipes{state=\"held\"}");
        assert_eq!(held.expect("it is there"), 1);
        assert!(sum_of(metrics, "sessions_open").is_err());
    }
}
