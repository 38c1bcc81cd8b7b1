//! Events in the daemons' logs: waiting for one, and counting what was said.
//!
//! A mark is a number of lines ([`Daemon::mark`]): "since the mark" leaves out what had been
//! written by then, so that a test can ask about what follows from its own action.

use std::time::Duration;

use anyhow::{Context, Result};
use proxymux_testkit::process::{Daemon, LogEvent};

/// Waits for an event since `mark` for which `wanted` is true.
///
/// # Errors
///
/// No such event within `limit`, or the daemon ended without one.
pub fn wait_for(
    daemon: &mut Daemon,
    mark: usize,
    limit: Duration,
    wanted: impl Fn(&LogEvent) -> bool,
) -> Result<LogEvent> {
    let is_wanted = |line: &str| LogEvent::parse(line).is_some_and(|event| wanted(&event));
    let line = daemon.wait_for_line_after(mark, is_wanted, limit)?;
    LogEvent::parse(&line).context("the line was an event a moment ago")
}

/// Waits for an event with this message since `mark`.
///
/// # Errors
///
/// As [`wait_for`].
pub fn wait_for_message(
    daemon: &mut Daemon,
    mark: usize,
    limit: Duration,
    message: &str,
) -> Result<LogEvent> {
    wait_for(daemon, mark, limit, |event| event.message == message)
        .with_context(|| format!("waited for {message:?}"))
}

/// The events since `mark`.
pub fn since(daemon: &Daemon, mark: usize) -> Vec<LogEvent> {
    let lines = daemon.lines();
    lines
        .iter()
        .skip(mark)
        .filter_map(|line| LogEvent::parse(line))
        .collect()
}

/// The events with this message, of all there are.
pub fn with_message(daemon: &Daemon, message: &str) -> Vec<LogEvent> {
    let mut events = daemon.events();
    events.retain(|event| event.message == message);
    events
}

/// The events at `WARN` and `ERROR` since `mark`.
pub fn complaints(daemon: &Daemon, mark: usize) -> Vec<LogEvent> {
    let mut events = since(daemon, mark);
    events.retain(|event| matches!(event.level.as_str(), "WARN" | "ERROR"));
    events
}
