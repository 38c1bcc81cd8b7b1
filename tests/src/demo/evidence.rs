//! Part 7: what the daemons wrote down, and what they used.

use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, sleep};

use super::{
    access::{AccessLine, HEADER},
    checks::Checks,
    screen::{size, span},
    stage::{Stage, Who},
};

pub(super) async fn play(show: &mut Checks, stage: &mut Stage, metrics: u64) -> Result<()> {
    show.screen.heading("7. What the daemons wrote down");
    show.screen.say(
        "One line per connection, in both logs; those that were steered are in the agent's alone. \
         Below what stands in them, and the last line of each as it is.",
    );
    let dials = stage.dials();
    // A line is written when the connection is over, a moment after its client has noticed.
    let deadline = Instant::now() + LINES_LIMIT;
    let (masters_log, agents_log) = loop {
        let logs = (stage.log_of(Who::Master)?, stage.log_of(Who::Agent)?);
        let (masters, agents) = (AccessLine::all(&logs.0), AccessLine::all(&logs.1));
        let whole = masters.len() >= dials && relayed(&agents) + 1 >= relayed(&masters);
        if whole || Instant::now() >= deadline {
            break logs;
        }
        sleep(INTERVAL).await;
    };
    let (masters, agents) = (AccessLine::all(&masters_log), AccessLine::all(&agents_log));
    for (who, lines) in [(Who::Master, &masters), (Who::Agent, &agents)] {
        show.screen.gap();
        show.screen.say(&format!(
            "{} ({}):",
            who.program(),
            stage.path(who.log_name())
        ));
        show.screen.gap();
        show.screen.verbatim(HEADER);
        for line in lines {
            show.screen.verbatim(&line.row());
        }
        if let Some(last) = lines.last() {
            show.screen.gap();
            show.screen.quietly(last.text());
        }
    }
    show.screen.gap();
    compare(show, &masters, &agents, dials, metrics)?;
    show.screen.gap();
    usage(show, stage)
}

fn compare(
    show: &mut Checks,
    masters: &[AccessLine<'_>],
    agents: &[AccessLine<'_>],
    dials: usize,
    metrics: u64,
) -> Result<()> {
    show.check(
        masters.len() == dials,
        "the master has a line for every connection",
        format!("{} lines for {dials} connections", masters.len()),
    )?;
    let (at_master, at_agent) = (relayed(masters), relayed(agents));
    show.check(
        at_agent + 1 == at_master,
        "the agent has one for each but that which died with it",
        format!("{at_agent} lines, {at_master} in the master's"),
    )?;
    // The last bytes of a connection may find its client gone, so the logs may differ by a few.
    let largest = |lines: &[AccessLine<'_>]| {
        let counts = lines.iter().map(|line| line.number("bytes_from_target"));
        counts.max().unwrap_or_default()
    };
    let (at_master, at_agent) = (largest(masters), largest(agents));
    let expected = "the metrics' bytes are counted on both sides";
    let seen = format!("{at_master} by the master, {at_agent} by the agent, of {metrics} bytes");
    show.check(at_master >= metrics && at_agent >= metrics, expected, seen)
}

/// How many of the lines are about connections that reached a kubelet through the master.
fn relayed(lines: &[AccessLine<'_>]) -> usize {
    let through = |line: &&AccessLine<'_>| line.is_relayed() && !line.is_steered();
    lines.iter().filter(through).count()
}

fn usage(show: &mut Checks, stage: &mut Stage) -> Result<()> {
    let kubelet = stage.cluster().kubelet(0).stats();
    show.check(
        kubelet.handshakes_failed == 0 && kubelet.requests_forbidden == 0,
        "the kubelet refused nobody",
        format!(
            "{} connections, {} requests; {} bad handshakes, {} forbidden",
            kubelet.connections_accepted,
            kubelet.requests,
            kubelet.handshakes_failed,
            kubelet.requests_forbidden
        ),
    )?;
    for (who, limit) in [(Who::Master, MASTER_MEMORY), (Who::Agent, AGENT_MEMORY)] {
        let usage = stage.daemon(who).usage()?;
        show.check(
            usage.rss_bytes <= limit,
            format!("{} uses at most {} MiB", who.program(), limit >> 20),
            format!(
                "{}, {} threads, {} of processor time",
                size(usage.rss_bytes),
                usage.threads,
                span(usage.cpu)
            ),
        )?;
    }
    Ok(())
}

const LINES_LIMIT: Duration = Duration::from_secs(5);
const INTERVAL: Duration = Duration::from_millis(20);
/// What OKE's DaemonSet asks for.
const AGENT_MEMORY: u64 = 64 << 20;
/// Nobody has set it a limit; this notices a leak in half a minute.
const MASTER_MEMORY: u64 = 256 << 20;
