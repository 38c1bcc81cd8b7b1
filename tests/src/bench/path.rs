//! Whether a case measured the path that it names: the one thing that fails a run.
//!
//! A [`Watch`] begins before a measurement and is settled after it: the far end must have been
//! dialled from where the case's way ends, once per connection; the access log of every daemon on
//! the way must have a line per connection with the case's path and the bytes that the client
//! counted; and the daemons' counters must have grown by just these bytes, for this path alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use proxymux_testkit::process::{Daemon, LogEvent};
use tokio::time::{Instant, sleep};

use super::{
    case::{Stage, Through},
    client::Traffic,
};
use crate::admin::{Metrics, scrape};

/// What logs and counters had before a measurement.
#[derive(Debug)]
pub(super) struct Watch(Option<[Mark; 2]>);

/// Of master and agent.
#[derive(Debug)]
struct Mark {
    lines: usize,
    relayed: Relayed,
}

/// Bytes that a daemon has relayed, by the labels of the counter.
type Relayed = BTreeMap<String, u64>;

/// Whether the client counted all that was sent to it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Seen {
    All,
    /// It went away with more on its way.
    Part,
    /// It counted what was inside TLS.
    Inside,
}

impl Watch {
    /// Begins with logs, counters and far end at rest.
    pub(super) async fn begin(stage: &Stage) -> Result<Self> {
        if let Some(far_end) = stage.far_end() {
            far_end.take_peers();
        }
        let Some(daemons) = stage.daemons() else {
            return Ok(Self(None));
        };
        let [master, agent] = daemons.both().map(Daemon::mark);
        let [of_master, of_agent] = relayed(stage).await?;
        let mark = |lines, relayed| Mark { lines, relayed };
        Ok(Self(Some([mark(master, of_master), mark(agent, of_agent)])))
    }

    /// Holds logs, counters and the far end against what the client counted, once its connections
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
        if let Some(far_end) = stage.far_end() {
            let mut dialled = far_end.take_peers();
            if let Some(prober) = stage.probed_from() {
                // A probe that was not steered is the kubelet's. What clients sent is counted below.
                dialled.remove(&prober);
            }
            let expected = BTreeMap::from([(stage.dialled_from(), traffic.connections)]);
            ensure!(
                dialled == expected,
                "the far end was dialled from {dialled:?}, expected {expected:?}"
            );
        }
        let (Some(tunnel), Some(marks)) = (stage.case.tunnel(), self.0) else {
            return Ok(());
        };
        let daemons = stage.daemons().context("the case has daemons")?;
        let on_the_way = [tunnel.through == Through::Both, true];
        let mut expected = Vec::new();
        for ((daemon, mark), is_on) in daemons.both().into_iter().zip(&marks).zip(on_the_way) {
            let moved = if is_on {
                let lines = closed_lines(daemon, mark.lines, traffic.connections).await?;
                check_lines(&lines, tunnel.path, traffic, seen)
                    .with_context(|| format!("access log of {}", daemon.name()))?
            } else {
                Moved::default()
            };
            expected.push(moved);
        }
        let after = relayed(stage).await?;
        for (((daemon, mark), after), moved) in daemons
            .both()
            .into_iter()
            .zip(marks)
            .zip(after)
            .zip(expected)
        {
            check_counters(&mark.relayed, &after, tunnel.path, moved)
                .with_context(|| format!("counters of {}", daemon.name()))?;
        }
        Ok(())
    }
}

/// What both daemons have relayed, by path and direction.
async fn relayed(stage: &Stage) -> Result<[Relayed; 2]> {
    let [master, agent] = stage.admin();
    let (master, agent) = tokio::try_join!(scrape(&master), scrape(&agent))?;
    Ok([
        relayed_in(&master, "proxymux_master_relayed_bytes_total"),
        relayed_in(&agent, "proxymux_agent_relayed_bytes_total"),
    ])
}

fn relayed_in(metrics: &Metrics, name: &str) -> Relayed {
    let samples = metrics.beginning_with(name);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a counter, far below 2^53"
    )]
    let whole = |number: f64| number as u64;
    samples
        .map(|(sample, number)| {
            let labels = sample.strip_prefix(name).unwrap_or(sample);
            // Their order is not promised.
            let labels = labels.trim_matches(['{', '}']).split(',');
            let labels: BTreeSet<_> = labels.collect();
            (Vec::from_iter(labels).join(","), whole(number))
        })
        .collect()
}

/// What went over connections, as a daemon counted it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Moved {
    to_target: u64,
    from_target: u64,
}

fn check_counters(before: &Relayed, after: &Relayed, path: &str, moved: Moved) -> Result<()> {
    let labels = |direction: &str, path: &str| format!("direction=\"{direction}\",path=\"{path}\"");
    let mut expected = BTreeMap::new();
    for (direction, bytes) in [
        ("to-target", moved.to_target),
        ("from-target", moved.from_target),
    ] {
        if bytes > 0 {
            expected.insert(labels(direction, path), bytes);
        }
    }
    let grown: Relayed = after
        .iter()
        .filter_map(|(labels, after)| {
            let by = after - before.get(labels).copied().unwrap_or_default().min(*after);
            (by > 0).then(|| (labels.clone(), by))
        })
        .collect();
    ensure!(
        grown == expected,
        "they grew by {grown:?}, expected {expected:?}"
    );
    Ok(())
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

/// What the lines say was moved, if it is what the client counted.
fn check_lines(lines: &[LogEvent], path: &str, traffic: Traffic, seen: Seen) -> Result<Moved> {
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
        sent == traffic.sent || (seen == Seen::Inside && sent > traffic.sent),
        "{sent} bytes to the target by path {path}, expected {}",
        traffic.sent
    );
    ensure!(
        received == traffic.received || (seen != Seen::All && received > traffic.received),
        "{received} bytes from the target by path {path}, expected {}",
        traffic.received
    );
    Ok(Moved {
        to_target: sent,
        from_target: received,
    })
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
        let moved = check_lines(&lines, "session", TWO, Seen::All).expect("it is as counted");
        assert_eq!((moved.to_target, moved.from_target), (18, 300));
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

    #[test]
    fn what_was_inside_tls_is_less_than_what_was_relayed() {
        let lines = [line("session", 100, 200), line("session", 100, 200)];
        assert!(check_lines(&lines, "session", TWO, Seen::Inside).is_ok());
        assert!(check_lines(&lines, "session", TWO, Seen::Part).is_err());
    }

    fn counters(session: [u64; 2], reverse: [u64; 2]) -> Relayed {
        let mut all = Relayed::new();
        for (path, numbers) in [("session", session), ("reverse", reverse)] {
            for (direction, number) in ["to-target", "from-target"].into_iter().zip(numbers) {
                let labels = format!("direction=\"{direction}\",path=\"{path}\"");
                all.insert(labels, number);
            }
        }
        all
    }

    #[test]
    fn counters_grow_by_what_was_moved_and_for_no_other_path() {
        let moved = Moved {
            to_target: 18,
            from_target: 300,
        };
        let before = counters([1000, 2000], [5, 5]);
        let right = counters([1000, 2000], [23, 305]);
        let stray = counters([1001, 2000], [23, 305]);
        let short = counters([1000, 2000], [23, 304]);

        assert!(check_counters(&before, &right, "reverse", moved).is_ok());
        for wrong in [stray, short, before.clone()] {
            assert!(check_counters(&before, &wrong, "reverse", moved).is_err());
        }
        assert!(check_counters(&before, &before, "reverse", Moved::default()).is_ok());
    }
}
