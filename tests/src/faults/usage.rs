//! What the processes of a stage hold at rest, and whether that is more than before.
//!
//! Descriptors and threads have to be the same again; memory may be a little more, because
//! allocators keep what they once had: [`Slack`] says how much more.

use std::fmt;

use anyhow::{Context, Result, ensure};
use proxymux_testkit::process::{Daemon, Usage};

/// What one process holds.
#[derive(Clone, Copy, Debug)]
pub struct Holdings {
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: u64,
    /// Resident memory in KiB.
    pub rss_kib: u64,
}

/// How much more memory than before is not called a leak.
#[derive(Clone, Copy, Debug)]
pub struct Slack {
    /// In KiB.
    pub rss_kib: u64,
    /// Threads for blocking work, which come when they are needed and go when they are not.
    pub threads: u64,
}

impl Holdings {
    /// What a daemon holds now.
    ///
    /// # Errors
    ///
    /// It has ended.
    pub fn of(daemon: &Daemon) -> Result<Self> {
        let Usage {
            rss_bytes,
            open_files,
            threads,
            ..
        } = daemon.usage()?;
        Ok(Self {
            descriptors: open_files,
            threads,
            rss_kib: rss_bytes / 1024,
        })
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
        ensure!(
            self.rss_kib <= before.rss_kib + slack.rss_kib,
            "memory grows, {}",
            context()
        );
        Ok(())
    }

    /// Waits until a daemon holds no more than `before`, for as long as `limit`.
    ///
    /// # Errors
    ///
    /// It goes on holding more, or has ended.
    pub async fn settle(
        daemon: &Daemon,
        before: &Self,
        slack: Slack,
        limit: std::time::Duration,
    ) -> Result<Self> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let now = Self::of(daemon)?;
            match now.are_no_more_than(before, slack) {
                Ok(()) => return Ok(now),
                Err(error) if tokio::time::Instant::now() >= deadline => {
                    return Err(error).with_context(|| daemon.name().to_owned());
                }
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
            }
        }
    }
}

impl fmt::Display for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            descriptors,
            threads,
            rss_kib,
        } = self;
        write!(
            f,
            "{descriptors} descriptors, {threads} threads, {rss_kib} KiB"
        )
    }
}
