//! The groups of tests. A new one is a row in [`GROUPS`] and a function.

use std::{fs, io::ErrorKind};

use anyhow::{Context, Result};
use clap::builder::PossibleValue;

use super::counts::Counts;
use crate::{build, check, command::Command, dist, setup::Job, vm, workspace::Workspace};

pub(crate) struct Group {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) jobs: &'static [Job],
    pub(crate) needs_root: bool,
    /// Whether the group runs tests, so that none at all means that something is wrong.
    pub(crate) has_tests: bool,
    /// Runs everything and adds to the counts as far as it comes.
    pub(crate) run: fn(&Workspace, &mut Counts) -> Result<()>,
}

/// In the order in which they run: what fails soonest comes first.
pub(crate) const GROUPS: &[Group] = &[
    Group {
        name: "check",
        about: "format, lints, documents, dependencies, source form",
        jobs: &[Job::Check],
        needs_root: false,
        has_tests: false,
        run: |workspace, _counts| check::run_steps(workspace),
    },
    Group {
        name: "unit",
        about: "tests that need no privilege, and doc tests",
        jobs: &[Job::Unit],
        needs_root: false,
        has_tests: true,
        run: unit,
    },
    Group {
        name: "netns",
        about: "the daemons in network namespaces",
        jobs: &[Job::Netns],
        needs_root: true,
        has_tests: true,
        run: netns,
    },
    Group {
        name: "faults",
        about: "links cut, processes killed, clients that give up; takes minutes",
        jobs: &[Job::Netns],
        needs_root: true,
        has_tests: true,
        run: faults,
    },
    Group {
        name: "dist",
        about: "static programs and images, unpacked and run with only what they contain",
        jobs: &[Job::Netns, Job::Build],
        needs_root: true,
        has_tests: true,
        run: dist,
    },
    Group {
        name: "vm",
        about: "some of the tests on Debian's kernels 5.10, 6.1 and 6.12, in virtual machines",
        jobs: &[Job::Vm],
        needs_root: false,
        has_tests: true,
        run: vm::group,
    },
];

impl Group {
    pub(crate) fn possible_value(&self) -> PossibleValue {
        PossibleValue::new(self.name).help(self.about)
    }
}

/// Packages whose tests make network namespaces, and so need root.
const NAMESPACE_PACKAGES: [&str; 2] = ["proxymux-testkit", TESTS_PACKAGE];

/// The end-to-end tests.
const TESTS_PACKAGE: &str = "proxymux-tests";

/// Has fuzz targets instead of tests.
const FUZZ_PACKAGE: &str = "proxymux-fuzz";

/// Every package that is not named elsewhere, so that a new crate cannot be forgotten.
fn unit(workspace: &Workspace, counts: &mut Counts) -> Result<()> {
    let mut selection = vec!["--workspace", "--exclude", FUZZ_PACKAGE];
    for package in NAMESPACE_PACKAGES {
        selection.extend(["--exclude", package]);
    }
    let tests = Command::cargo(NEXTEST).args(selection.iter().copied());
    let documents = Command::cargo(DOC_TESTS).args(selection);
    both(workspace, &tests, &documents, counts)
}

fn netns(workspace: &Workspace, counts: &mut Counts) -> Result<()> {
    let packages: Vec<&str> = NAMESPACE_PACKAGES
        .iter()
        .flat_map(|package| ["--package", package])
        .collect();
    let tests = with_daemons(workspace)?
        .args(packages.iter().copied())
        .args([
            "--filterset",
            &format!("not ({FAULTS} or {GUESTS} or {DIST})"),
        ]);
    let documents = Command::cargo(DOC_TESTS)
        .args(["--profile", build::TESTED_PROFILE])
        .args(packages);
    both(workspace, &tests, &documents, counts)
}

fn faults(workspace: &Workspace, counts: &mut Counts) -> Result<()> {
    let tests = with_daemons(workspace)?.args(["--filterset", FAULTS, "--package", TESTS_PACKAGE]);
    nextest(workspace, &tests, counts)
}

/// In the profile of the other tests: what is shipped is built in the same way, only longer.
fn dist(workspace: &Workspace, counts: &mut Counts) -> Result<()> {
    let made = dist::make(workspace, build::TESTED_PROFILE)?;
    let made = made
        .to_str()
        .with_context(|| format!("not UTF-8: {}", made.display()))?;
    let tests = Command::cargo(NEXTEST)
        .args(["--cargo-profile", build::TESTED_PROFILE])
        .env("PROXYMUX_BIN_DIR", made)
        .env("PROXYMUX_DIST_DIR", made)
        .args(["--package", TESTS_PACKAGE, "--test", "dist"]);
    nextest(workspace, &tests, counts)
}

/// The command that runs tests in namespaces, with daemons that are up to date.
fn with_daemons(workspace: &Workspace) -> Result<Command> {
    build::daemons(build::TESTED_PROFILE)?;
    let programs = workspace.target.join(build::TESTED_PROFILE);
    let programs = programs
        .to_str()
        .with_context(|| format!("not UTF-8: {}", programs.display()))?;
    Ok(Command::cargo(NEXTEST)
        .args(["--cargo-profile", build::TESTED_PROFILE])
        // Both test groups of .config/nextest.toml together.
        .args(["--test-threads", "4"])
        .env("PROXYMUX_BIN_DIR", programs))
}

/// The test programs of group `faults`, as a filter of nextest.
const FAULTS: &str = "binary_id(proxymux-tests::faults)";

/// The test program that runs in group `dist` only.
const DIST: &str = "binary_id(proxymux-tests::dist)";

/// The test program that runs in group `vm` only.
const GUESTS: &str = "binary_id(proxymux-tests::vm)";

/// The profile is named so that no variable of the environment chooses another, whose report
/// would lie elsewhere.
const NEXTEST: [&str; 5] = ["nextest", "run", "--locked", "--profile", "default"];

/// nextest does not know doc tests.
const DOC_TESTS: [&str; 4] = ["test", "--locked", "--doc", "--no-fail-fast"];

/// The doc tests run even if others failed: a run shows everything that is wrong.
fn both(
    workspace: &Workspace,
    tests: &Command,
    documents: &Command,
    counts: &mut Counts,
) -> Result<()> {
    let tests = nextest(workspace, tests, counts);
    let documents = doc_tests(documents, counts);
    tests.and(documents)
}

fn nextest(workspace: &Workspace, command: &Command, counts: &mut Counts) -> Result<()> {
    let report = workspace.root.join("target/nextest/default/junit.xml");
    match fs::remove_file(&report) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", report.display()));
        }
        _ => {}
    }
    let status = command.status()?;
    match fs::read_to_string(&report) {
        Ok(report) => counts.add(Counts::from_junit(&report)?),
        // It did not come as far as running a test; its exit code says why.
        Err(error) if error.kind() == ErrorKind::NotFound && !status.success() => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", report.display()));
        }
    }
    command.expect_success(status)
}

fn doc_tests(command: &Command, counts: &mut Counts) -> Result<()> {
    let (status, output) = command.run_keeping_output("")?;
    counts.add(Counts::from_cargo_test(&output)?);
    command.expect_success(status)
}
