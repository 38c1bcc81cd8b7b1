//! `cargo xtask test [GROUP]`: everything that must pass.
//!
//! All groups of [`groups::GROUPS`] in order, or the named one. A failed group does not stop the
//! others. The last line holds the totals over all groups, `N passed, N failed`, counted from what
//! the test runners report; a group in which no test ran has failed.

mod counts;
mod groups;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::builder::PossibleValuesParser;

pub(crate) use self::counts::Counts;
use self::groups::{GROUPS, Group};
use crate::{
    setup::{self, Machine as _, ThisMachine},
    workspace::Workspace,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Run this group only
    #[arg(value_parser = PossibleValuesParser::new(GROUPS.iter().map(Group::possible_value)))]
    group: Option<String>,
}

/// Its own exit code, because nothing may be printed behind the totals.
pub(crate) fn run(options: &Options) -> ExitCode {
    let workspace = match Workspace::enter() {
        Ok(workspace) => workspace,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let outcomes: Vec<Outcome> = GROUPS
        .iter()
        .filter(|group| options.group.as_ref().is_none_or(|name| name == group.name))
        .map(|group| run_group(group, &workspace))
        .collect();
    print!("{}", closing_lines(&outcomes));
    if outcomes.iter().all(|outcome| outcome.problem.is_none()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// How one group ended.
struct Outcome {
    group: &'static str,
    counts: Counts,
    problem: Option<String>,
    took: Duration,
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long a group took is for people; there is no runtime here whose clock to use"
)]
fn run_group(group: &'static Group, workspace: &Workspace) -> Outcome {
    println!("=== group {}: {}", group.name, group.about);
    let started = Instant::now();
    let mut counts = Counts::default();
    let result = prepare(group)
        .and_then(|()| (group.run)(workspace, &mut counts))
        .and_then(|()| counts.accept(group.has_tests));
    let problem = result.err().map(|error| format!("{error:#}"));
    if let Some(problem) = &problem {
        println!("group {} failed: {problem}", group.name);
    }
    Outcome {
        group: group.name,
        counts,
        problem,
        took: started.elapsed(),
    }
}

fn prepare(group: &Group) -> Result<()> {
    if group.needs_root && !ThisMachine.is_root() {
        bail!(
            "needs root to make network namespaces; type: \
             sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask test {}",
            group.name
        );
    }
    setup::ensure(group.jobs, &ThisMachine)
}

/// One line per group and failed test, and the totals last. A group that failed for another reason
/// than a failed test counts as one failure, so that the totals never look better than the run was.
fn closing_lines(outcomes: &[Outcome]) -> String {
    let mut lines = String::from("\n");
    let mut totals = Counts::default();
    for outcome in outcomes {
        let seconds = outcome.took.as_secs();
        lines.push_str(&match &outcome.problem {
            None => format!("group {}: ok in {seconds} s\n", outcome.group),
            Some(problem) => format!(
                "group {}: FAILED in {seconds} s: {}\n",
                outcome.group,
                problem.lines().next().unwrap_or_default()
            ),
        });
        for failure in &outcome.counts.failures {
            lines.push_str(&format!("failed: {failure}\n"));
        }
        totals.passed += outcome.counts.passed;
        totals.failed += match outcome.problem {
            None => 0,
            Some(_) => outcome.counts.failed.max(1),
        };
    }
    // A single group that has no tests says nothing about tests.
    if totals != Counts::default() {
        lines.push_str(&format!("{totals}\n"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(group: &'static str, passed: u64, failed: u64, problem: Option<&str>) -> Outcome {
        Outcome {
            group,
            counts: Counts {
                passed,
                failed,
                failures: (0..failed).map(|n| format!("e2e test_{n}")).collect(),
            },
            problem: problem.map(str::to_owned),
            took: Duration::from_millis(2_500),
        }
    }

    #[test]
    fn totals_are_the_last_line_and_cover_every_group() {
        let lines = closing_lines(&[
            outcome("check", 0, 0, None),
            outcome("unit", 100, 0, None),
            outcome("netns", 23, 0, None),
        ]);

        assert_eq!(
            lines,
            "\ngroup check: ok in 2 s\ngroup unit: ok in 2 s\ngroup netns: ok in 2 s\n\
             123 passed, 0 failed\n"
        );
    }

    #[test]
    fn failed_tests_are_counted() {
        let lines = closing_lines(&[outcome("unit", 98, 2, Some("exit status: 100"))]);

        assert!(lines.ends_with("\n98 passed, 2 failed\n"), "{lines}");
        assert!(
            lines.contains(
                "group unit: FAILED in 2 s: exit status: 100\n\
                 failed: e2e test_0\nfailed: e2e test_1\n"
            ),
            "{lines}"
        );
    }

    #[test]
    fn group_that_broke_before_its_tests_is_a_failure_in_the_totals() {
        let lines = closing_lines(&[
            outcome("check", 0, 0, Some("clippy failed\nand more")),
            outcome("unit", 100, 0, None),
        ]);

        assert!(lines.contains("clippy failed\ngroup unit"), "{lines}");
        assert!(lines.ends_with("\n100 passed, 1 failed\n"), "{lines}");
    }

    #[test]
    fn checks_alone_claim_no_passed_tests() {
        let lines = closing_lines(&[outcome("check", 0, 0, None)]);

        assert_eq!(lines, "\ngroup check: ok in 2 s\n");
    }
}
