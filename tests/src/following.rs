//! A container's log that is being followed while a test does something else.
//!
//! The stand-in kubelet numbers its lines, so that a lost or repeated one is noticed. Needs a
//! runtime with several threads where the test blocks in between.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use proxymux_testkit::{
    apiserver::{ApiServer, LogLines},
    kubelet::log_line_number,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::limits::{SOON, within};

/// `kubectl logs -f` in a task of its own.
#[derive(Debug)]
pub struct Following {
    read: Arc<AtomicU64>,
    task: JoinHandle<Result<FollowEnd>>,
}

/// How a followed log ended, if no line was wrong.
#[derive(Debug)]
pub enum FollowEnd {
    /// In order, as if the container had ended.
    Clean,
    /// In the middle, with this error.
    Broken(String),
}

impl Following {
    /// Begins to follow a log, and waits for its first line.
    ///
    /// # Errors
    ///
    /// There is none.
    pub async fn start(api: &ApiServer, target: &str) -> Result<Self> {
        let log = within(SOON, "open a log", api.get_stream(target, PATH)).await?;
        let read = Arc::new(AtomicU64::new(0));
        let following = Self {
            task: tokio::spawn(follow(log, Arc::clone(&read))),
            read,
        };
        following.reaches(1).await?;
        Ok(following)
    }

    /// How many lines have come.
    pub fn lines(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Whether the log has ended.
    pub fn is_over(&self) -> bool {
        self.task.is_finished()
    }

    /// Waits for several more lines, so that the last of them was written after this call.
    ///
    /// # Errors
    ///
    /// They do not come.
    pub async fn goes_on(&self) -> Result<()> {
        self.reaches(self.lines() + MORE).await
    }

    /// Waits until the log ends.
    ///
    /// # Errors
    ///
    /// It goes on, or a line of it was wrong.
    pub async fn end(mut self, limit: Duration) -> Result<FollowEnd> {
        let ended = timeout(limit, &mut self.task).await;
        let lines = self.lines();
        ended
            .with_context(|| format!("the log has not ended after {limit:?}, {lines} lines"))?
            .context("the task that follows")?
    }

    /// Waits until the log ends, which must be with an error.
    ///
    /// # Errors
    ///
    /// It goes on, it ended in order, or a line of it was wrong.
    pub async fn breaks(self, limit: Duration) -> Result<String> {
        match self.end(limit).await? {
            FollowEnd::Broken(error) => Ok(error),
            FollowEnd::Clean => bail!("the log ended in order, expected an error"),
        }
    }

    async fn reaches(&self, lines: u64) -> Result<()> {
        let deadline = Instant::now() + SOON;
        while self.lines() < lines {
            ensure!(
                !self.is_over(),
                "the log ended after {} lines",
                self.lines()
            );
            ensure!(
                Instant::now() < deadline,
                "the log stands still at {} lines, expected {lines}",
                self.lines()
            );
            sleep(POLL).await;
        }
        Ok(())
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(mut log: LogLines, read: Arc<AtomicU64>) -> Result<FollowEnd> {
    let mut last: Option<u64> = None;
    loop {
        let line = match log.next_line().await {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(FollowEnd::Clean),
            Err(error) => return Ok(FollowEnd::Broken(error.to_string())),
        };
        let number = log_line_number(&line);
        let expected = last.map(|last| last + 1);
        ensure!(
            number.is_some() && (expected.is_none() || number == expected),
            "line {line:?} after number {last:?}"
        );
        last = number;
        read.fetch_add(1, Ordering::Relaxed);
    }
}

const PATH: &str = "/containerLogs/default/pod/main?follow=true&tailLines=1";
/// At ten lines a second half a second's worth; more than can be on the way.
const MORE: u64 = 5;
const POLL: Duration = Duration::from_millis(20);
