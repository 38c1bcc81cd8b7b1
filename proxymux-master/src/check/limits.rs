//! What the host lets a master have: open files, and connections that wait to be accepted.
//!
//! Owns the numbers from which on that is too little, and where they are read: of the process if
//! one runs, since a shell's limits are not a unit's.

use std::fs;

use proxymux_transport::{command::Report, limits::open_files};

use super::running::Running;
use crate::config::Config;

/// Looks at both.
pub(super) fn look(report: &mut Report, config: &Config, running: &Running) {
    let pid = match running {
        Running::Yes { pid, .. } => *pid,
        Running::No | Running::Unknown => None,
    };
    // Where the master is not seen, that of this process is the best guess there is.
    let of_master = pid.and_then(of_process);
    let whose = if of_master.is_some() {
        "the master"
    } else {
        "this process"
    };
    match of_master.or_else(|| open_files().ok().map(|(_, hard)| hard)) {
        Some(limit) => judge_open_files(report, config.max_sessions.get(), whose, limit),
        None => report.warning(
            OPEN_FILES,
            "the limit of open files cannot be read",
            "run this check as root",
        ),
    }
    if let Ok(text) = fs::read_to_string(SOMAXCONN)
        && let Ok(longest) = text.trim().parse()
    {
        judge_queue(report, longest);
    }
}

/// The hard limit, to which a master raises its own.
fn of_process(pid: u32) -> Option<u64> {
    hard_limit(&fs::read_to_string(format!("/proc/{pid}/limits")).ok()?)
}

fn hard_limit(limits: &str) -> Option<u64> {
    let mut lines = limits.lines();
    let numbers = lines.find_map(|line| line.strip_prefix("Max open files"))?;
    match numbers.split_ascii_whitespace().nth(1)? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

fn judge_open_files(report: &mut Report, max_sessions: u32, whose: &str, limit: u64) {
    let wanted = u64::from(max_sessions).saturating_add(CONNECTIONS);
    if limit >= wanted {
        return report.ok(
            OPEN_FILES,
            format!("{whose} may have {limit}, enough for `max-sessions: {max_sessions}`"),
        );
    }
    let lower = limit.saturating_sub(CONNECTIONS).max(1);
    report.warning(
        OPEN_FILES,
        format!(
            "{whose} may have {limit}, where `max-sessions: {max_sessions}` and {CONNECTIONS} \
             connections need {wanted}"
        ),
        format!(
            "raise it: `LimitNOFILE={wanted}` in the unit, or the container runtime's limit; or \
             set `max-sessions: {lower}`"
        ),
    );
}

fn judge_queue(report: &mut Report, longest: u64) {
    if longest >= BACKLOG {
        return report.ok(
            QUEUE,
            format!("up to {BACKLOG} connections wait to be accepted"),
        );
    }
    report.warning(
        QUEUE,
        format!(
            "no more than {longest} connections wait to be accepted (net.core.somaxconn): agents \
             that all come back at once are put off"
        ),
        format!("`sysctl -w net.core.somaxconn=4096` and restart the master; {BACKLOG} are used"),
    );
}

const OPEN_FILES: &str = "open files";
const QUEUE: &str = "accept queue";

/// Besides sessions: at front doors, on the way to targets, and flows. A cluster that is busy has
/// hundreds.
const CONNECTIONS: u64 = 4096;

/// What tokio asks for when it listens.
const BACKLOG: u64 = 1024;

const SOMAXCONN: &str = "/proc/sys/net/core/somaxconn";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hard_limit_is_read_from_the_kernels_table() {
        let table = "Limit                     Soft Limit           Hard Limit           Units     \n\
                     Max processes             15000                15000                processes \n\
                     Max open files            1024                 524288               files     \n";
        assert_eq!(hard_limit(table), Some(524_288));
        assert_eq!(
            hard_limit(&table.replace("524288", "unlimited")),
            Some(u64::MAX)
        );
        for broken in [
            "",
            "Max open files",
            "Max open files 1",
            "Max open files 1 x",
        ] {
            assert_eq!(hard_limit(broken), None, "{broken}");
        }
        assert!(of_process(std::process::id()).is_some());
    }

    #[test]
    fn the_advice_on_open_files_suffices() {
        let judged = |max_sessions, limit| {
            let mut report = Report::default();
            judge_open_files(&mut report, max_sessions, "the master", limit);
            report.findings().first().unwrap().clone()
        };
        let low = judged(10_000, 8192);
        let fix = low.fix.unwrap();
        assert!(fix.contains("LimitNOFILE=14096"), "{fix}");
        assert!(fix.contains("max-sessions: 4096"), "{fix}");

        assert_eq!(judged(10_000, 14_096).fix, None);
        assert_eq!(judged(4096, 8192).fix, None);
    }

    #[test]
    fn a_short_queue_is_told() {
        for (longest, told) in [(128, true), (1024, false), (4096, false)] {
            let mut report = Report::default();
            judge_queue(&mut report, longest);
            let is_told = report.findings().first().unwrap().fix.is_some();
            assert_eq!(is_told, told, "{longest}");
        }
    }
}
