//! What the daemons' access logs say: which lines there are, and what stands in each.
//!
//! An access log has one line per connection, written when the connection is over, which may be
//! a moment after its client has noticed: hence [`access_lines`] waits, and fails if there are
//! more lines than connections. Read [`Closed`] for the fields of a relayed connection.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxymux_testkit::{
    cluster::Cluster,
    process::{Daemon, LogEvent},
};
use tokio::time::{Instant, sleep};

/// The lines of the access log so far, whatever they say.
pub fn access_lines_now(daemon: &Daemon) -> Vec<LogEvent> {
    let mut events = daemon.events();
    events.retain(|event| event.target == "access");
    events
}

/// Waits until the access log has `count` lines and returns them.
///
/// # Errors
///
/// There are more, or fewer after ten seconds.
pub async fn access_lines(daemon: &Daemon, count: usize) -> Result<Vec<LogEvent>> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let lines = access_lines_now(daemon);
        if lines.len() >= count || Instant::now() >= deadline {
            let found = lines.len();
            ensure!(
                found == count,
                "access log of {} has {found} lines, expected {count}: {lines:#?}",
                daemon.name()
            );
            return Ok(lines);
        }
        sleep(INTERVAL).await;
    }
}

/// Waits for the only line of the access log.
///
/// # Errors
///
/// As [`access_lines`].
pub async fn only_access_line(daemon: &Daemon) -> Result<LogEvent> {
    let mut lines = access_lines(daemon, 1).await?;
    lines.pop().context("one line was waited for")
}

/// Waits for the only line of the first master's access log, and of a node's agent's.
///
/// # Errors
///
/// As [`access_lines`], on either end.
pub async fn only_access_lines(cluster: &mut Cluster, node: usize) -> Result<[LogEvent; 2]> {
    let at_master = only_access_line(cluster.master(0)).await?;
    let at_agent = only_access_line(cluster.agent(node)).await?;
    Ok([at_master, at_agent])
}

/// Waits for the line of the access log that `wanted` chooses, in a log with others.
///
/// # Errors
///
/// There is none after ten seconds.
pub async fn access_line_with(
    daemon: &Daemon,
    wanted: impl Fn(&LogEvent) -> bool,
) -> Result<LogEvent> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let lines = access_lines_now(daemon);
        if let Some(line) = lines.iter().find(|line| wanted(line)) {
            return Ok(line.clone());
        }
        ensure!(
            Instant::now() < deadline,
            "access log of {} has no such line: {lines:#?}",
            daemon.name()
        );
        sleep(INTERVAL).await;
    }
}

/// What the line about a relayed connection is to say.
#[derive(Clone, Copy, Debug)]
pub struct Closed<'a> {
    /// The node's name.
    pub node: &'a str,
    /// What the client asked for.
    pub target: &'a str,
    /// The beginning of the peer's address.
    pub peer: &'a str,
    /// Payload that went to the target; `None` where a test cannot know.
    pub bytes_to_target: Option<u64>,
    /// Payload that came from it.
    pub bytes_from_target: Option<u64>,
    /// How it may have ended, in words of the closed list.
    pub outcomes: &'a [&'a str],
}

/// Both directions were ended in order.
pub const DONE: &[&str] = &["done"];

/// The client closed its connection without waiting for the kubelet's goodbye, as Go's TLS does.
///
/// That is in order too, nearly always. If the goodbye reaches the client between its own and its
/// close, nobody reads it, and then the kernel makes a reset of the close.
pub const CLIENT_CLOSED: &[&str] = &["done", "reset", "peer-reset"];

impl Closed<'_> {
    /// Checks that a line says so, and that nothing is missing in it.
    ///
    /// # Errors
    ///
    /// The first thing that is different.
    pub fn check(&self, line: &LogEvent) -> Result<()> {
        ensure!(line.message == "connection closed", "message of {line:#?}");
        ensure!(line.level == "INFO", "level of {line:#?}");
        for field in FIELDS {
            ensure!(line.fields.contains_key(field), "no {field} in {line:#?}");
        }
        let texts = [
            ("node", self.node),
            ("path", "session"),
            ("target", self.target),
        ];
        for (field, expected) in texts {
            let seen = line.text(field);
            ensure!(
                seen == Some(expected),
                "{field} is {seen:?}, expected {expected:?}: {line:#?}"
            );
        }
        let outcome = line.text("outcome").unwrap_or_default();
        ensure!(
            self.outcomes.contains(&outcome),
            "outcome is {outcome:?}, expected {:?}: {line:#?}",
            self.outcomes
        );
        let peer = line.text("peer.addr").unwrap_or_default();
        ensure!(
            peer.starts_with(self.peer),
            "peer.addr is {peer:?}, expected {:?}",
            self.peer
        );
        let numbers = [
            ("bytes_to_target", self.bytes_to_target),
            ("bytes_from_target", self.bytes_from_target),
        ];
        for (field, expected) in numbers {
            let seen = line.number(field);
            ensure!(seen.is_some(), "{field} of {line:#?}");
            ensure!(
                expected.is_none() || seen == expected,
                "{field} is {seen:?}, expected {expected:?}: {line:#?}"
            );
        }
        let (open, whole) = (line.number("open_ms"), line.number("duration_ms"));
        ensure!(
            open.is_some() && open <= whole,
            "open_ms and duration_ms of {line:#?}"
        );
        Ok(())
    }
}

/// The fields of a line about a relayed connection.
const FIELDS: [&str; 9] = [
    "node",
    "path",
    "target",
    "peer.addr",
    "bytes_to_target",
    "bytes_from_target",
    "open_ms",
    "duration_ms",
    "outcome",
];

const LIMIT: Duration = Duration::from_secs(10);
const INTERVAL: Duration = Duration::from_millis(20);
