//! Whether a case measured the path that it names: the one thing that fails a run.
//!
//! A [`Watch`] begins before a measurement and is settled after it: the far end must have been
//! dialled from where the case's way ends, once per connection, and both access logs must have a
//! line per connection with the case's path and the bytes that the client counted.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use proxymux_testkit::process::{Daemon, LogEvent};
use tokio::time::{Instant, sleep};

use super::{case::Stage, client::Traffic};

/// What the logs had before a measurement.
#[derive(Debug)]
pub(super) struct Watch {
    /// Lines of master and agent.
    marks: Option<[usize; 2]>,
}

/// Whether the client saw all that was sent to it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Seen {
    All,
    /// It went away with more on its way.
    Part,
}

impl Watch {
    /// Begins with logs and far end at rest.
    pub(super) fn begin(stage: &Stage) -> Self {
        stage.far_end().take_peers();
        let marks = stage.daemons().map(|both| both.both().map(Daemon::mark));
        Self { marks }
    }

    /// Holds the logs and the far end against what the client counted, once its connections
    /// have ended.
    ///
    /// # Errors
    ///
    /// Some byte went another way.
    pub(super) async fn settle(self, stage: &Stage, traffic: Traffic, seen: Seen) -> Result<()> {
        let name = stage.case.name;
        self.check(stage, traffic, seen)
            .await
            .with_context(|| format!("case {name} did not measure the path that it names"))
    }

    async fn check(self, stage: &Stage, traffic: Traffic, seen: Seen) -> Result<()> {
        let dialled = stage.far_end().take_peers();
        let expected = BTreeMap::from([(stage.dialled_from(), traffic.connections)]);
        ensure!(
            dialled == expected,
            "the far end was dialled from {dialled:?}, expected {expected:?}"
        );
        let (Some(way), Some(marks)) = (stage.case.tunnel, self.marks) else {
            return Ok(());
        };
        let daemons = stage.daemons().context("the case has daemons")?;
        for (daemon, mark) in daemons.both().into_iter().zip(marks) {
            let lines = closed_lines(daemon, mark, traffic.connections).await?;
            check_lines(&lines, way.path, traffic, seen)
                .with_context(|| format!("access log of {}", daemon.name()))?;
        }
        Ok(())
    }
}

/// Waits until the access log has as many new lines as there were connections.
async fn closed_lines(daemon: &Daemon, mark: usize, count: u64) -> Result<Vec<LogEvent>> {
    let deadline = Instant::now() + LINES_LIMIT;
    loop {
        let lines = daemon.lines();
        let fresh = lines.get(mark..).unwrap_or_default();
        let lines: Vec<_> = fresh
            .iter()
            .filter(|line| line.contains(ACCESS_MARK))
            .collect();
        if lines.len() as u64 >= count {
            return Ok(lines
                .into_iter()
                .filter_map(|line| LogEvent::parse(line))
                .collect());
        }
        ensure!(
            Instant::now() < deadline,
            "access log of {} has {} new lines, expected {count}",
            daemon.name(),
            lines.len()
        );
        sleep(INTERVAL).await;
    }
}

fn check_lines(lines: &[LogEvent], path: &str, traffic: Traffic, seen: Seen) -> Result<()> {
    let stray = lines
        .iter()
        .find(|line| line.message != "connection closed" || line.text("path") != Some(path));
    ensure!(stray.is_none(), "not by path {path}: {stray:?}");
    let connections = lines.len() as u64;
    ensure!(
        connections == traffic.connections,
        "{connections} connections by path {path}, expected {}",
        traffic.connections
    );
    let sum = |field| -> Result<u64> {
        let numbers = lines.iter().map(|line| line.number(field));
        numbers
            .sum::<Option<u64>>()
            .with_context(|| format!("a line has no {field}"))
    };
    let (sent, received) = (sum("bytes_to_target")?, sum("bytes_from_target")?);
    ensure!(
        sent == traffic.sent,
        "{sent} bytes to the target by path {path}, expected {}",
        traffic.sent
    );
    ensure!(
        received == traffic.received || (seen == Seen::Part && received > traffic.received),
        "{received} bytes from the target by path {path}, expected {}",
        traffic.received
    );
    Ok(())
}

/// In every line of the access log, refusals among them.
const ACCESS_MARK: &str = "\"target\":\"access\"";

/// A line is written when the far end's connection has ended too.
const LINES_LIMIT: Duration = Duration::from_secs(20);
const INTERVAL: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn line(path: &str, sent: u64, received: u64) -> LogEvent {
        let text = format!(
            r#"{{"level":"INFO","target":"access","fields":{{"message":"connection closed",
            "path":"{path}","bytes_to_target":{sent},"bytes_from_target":{received}}}}}"#
        );
        LogEvent::parse(&text).expect("an event")
    }

    const TWO: Traffic = Traffic {
        connections: 2,
        sent: 18,
        received: 300,
    };

    #[test]
    fn every_byte_by_the_named_path_is_accepted() {
        let lines = [line("session", 9, 100), line("session", 9, 200)];
        check_lines(&lines, "session", TWO, Seen::All).expect("it is as counted");
    }

    #[test]
    fn a_connection_by_another_path_is_refused() {
        let lines = [line("session", 9, 100), line("direct", 9, 200)];
        let error = check_lines(&lines, "session", TWO, Seen::All).unwrap_err();
        assert!(
            error.to_string().starts_with("not by path session"),
            "{error}"
        );
    }

    #[test]
    fn missing_and_surplus_bytes_are_refused() {
        for (sent, received) in [(8, 200), (10, 200), (9, 199), (9, 201)] {
            let lines = [line("session", 9, 100), line("session", sent, received)];
            assert!(
                check_lines(&lines, "session", TWO, Seen::All).is_err(),
                "{sent} {received}"
            );
        }
    }

    #[test]
    fn of_a_download_that_was_given_up_more_may_have_been_on_its_way() {
        let more = [line("session", 9, 100), line("session", 9, 900)];
        let less = [line("session", 9, 100), line("session", 9, 100)];
        assert!(check_lines(&more, "session", TWO, Seen::Part).is_ok());
        assert!(check_lines(&less, "session", TWO, Seen::Part).is_err());
    }

    #[test]
    fn a_connection_too_few_is_refused() {
        let lines = [line("session", 18, 300)];
        assert!(check_lines(&lines, "session", TWO, Seen::All).is_err());
    }
}
