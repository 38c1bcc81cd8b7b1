//! The demo, as newcomers meet it: the two commands of the README, the program, its endings.
//!
//! Each test that plays runs the whole program with the real daemons and looks at what it wrote,
//! its exit code, and what is left on the machine.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, fs::symlink, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use proxymux_testkit::{cluster::BIN_DIR_VARIABLE, process::Daemon};

#[test]
fn the_quick_start_of_the_readme_is_these_two_commands() -> Result<()> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let text = fs::read_to_string(readme)?;

    let (_, behind) = text
        .split_once("\n## Quick start\n")
        .context("no quick start")?;
    let section = behind.split("\n## ").next().unwrap_or_default();
    let blocks: Vec<_> = section.split("```").skip(1).step_by(2).collect();

    assert_eq!(blocks, ["sh\ncargo xtask demo\ncargo xtask test\n"]);
    Ok(())
}

#[test]
fn help_shows_the_usage_and_needs_no_privilege() -> Result<()> {
    let output = demo(&["--help"]).env_remove(BIN_DIR_VARIABLE).output()?;

    let text = String::from_utf8(output.stdout)?;
    assert_eq!(output.status.code(), Some(0));
    assert!(text.contains("Usage: proxymux-demo [OPTIONS]"), "{text}");
    assert!(text.contains("--keep"), "{text}");
    Ok(())
}

#[test]
fn an_unknown_argument_is_refused() -> Result<()> {
    let output = demo(&["--loud"]).output()?;

    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr)?.contains("'--loud'"));
    Ok(())
}

#[test]
fn without_the_daemons_it_says_how_it_is_started() -> Result<()> {
    let output = demo(&[]).env_remove(BIN_DIR_VARIABLE).output()?;

    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("start it as `cargo xtask demo`"));
    Ok(())
}

#[test]
fn everything_that_it_promises_happens() -> Result<()> {
    let mut demo = Daemon::spawn("demo", demo(&[]))?;

    let status = demo.wait(WHOLE_LIMIT)?;

    let lines = demo.lines();
    assert_eq!(status.code(), Some(0));
    let last = lines.last().context("it wrote nothing")?;
    assert!(
        last.starts_with("All ") && last.contains(" checks passed."),
        "{last}"
    );
    for line in &lines {
        assert!(
            line.chars().count() <= 100,
            "wider than 100 columns: {line}"
        );
        assert!(
            !line.contains('\x1b'),
            "coloured, and this is no terminal: {line}"
        );
    }
    nothing_is_left_of(demo.pid())
}

#[test]
fn ctrl_c_in_the_middle_leaves_nothing_behind() -> Result<()> {
    // A group of its own, so that the signal reaches the daemons too, as in a terminal.
    let mut command = demo(&[]);
    command.process_group(0);
    let mut demo = Daemon::spawn("demo", command)?;
    demo.wait_for_line("--follow", PART_LIMIT)?;

    killpg(demo.pid(), Signal::SIGINT)?;

    let status = demo.wait(PART_LIMIT)?;
    assert_eq!(status.code(), Some(130));
    assert_eq!(
        demo.count_lines("Interrupted. What the demo made has been removed."),
        1
    );
    assert_eq!(demo.count_lines("FAILED"), 0);
    nothing_is_left_of(demo.pid())
}

#[test]
fn kept_machines_stay_until_they_are_no_longer_wanted() -> Result<()> {
    let mut demo = Daemon::spawn("demo", demo(&["--keep"]))?;
    demo.wait_for_line("ends it and removes all of this", WHOLE_LIMIT)?;
    assert!(place_of(demo.pid()).join("agent-0.log").is_file());

    demo.signal(Signal::SIGTERM)?;

    assert_eq!(demo.wait(PART_LIMIT)?.code(), Some(0));
    nothing_is_left_of(demo.pid())
}

#[test]
fn a_failed_check_is_told_with_what_was_seen_and_the_log() -> Result<()> {
    let programs = tempfile::tempdir()?;
    let real = std::env::var_os(BIN_DIR_VARIABLE).context("no daemons to test")?;
    symlink(
        Path::new(&real).join("proxymux-master"),
        programs.path().join("proxymux-master"),
    )?;
    let agent = programs.path().join("proxymux-agent");
    fs::write(&agent, "#!/bin/sh\necho 'this is no agent'\nexit 3\n")?;
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755))?;
    let mut command = demo(&[]);
    command.env(BIN_DIR_VARIABLE, programs.path());
    let mut demo = Daemon::spawn("demo", command)?;

    let status = demo.wait(WHOLE_LIMIT)?;

    assert_eq!(status.code(), Some(1));
    demo.wait_for_line("FAILED", Duration::ZERO)?;
    demo.wait_for_line("expected  the agent has a session", Duration::ZERO)?;
    demo.wait_for_line(
        "seen      proxymux-agent has ended: exit status: 3",
        Duration::ZERO,
    )?;
    demo.wait_for_line("this is no agent", Duration::ZERO)?;
    demo.wait_for_line(
        "The demo failed after 6 checks that passed.",
        Duration::ZERO,
    )?;
    nothing_is_left_of(demo.pid())
}

fn demo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proxymux-demo"));
    command.args(arguments);
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn nothing_is_left_of(demo: Pid) -> Result<()> {
    let place = place_of(demo);
    ensure!(!place.exists(), "{} is still there", place.display());
    let prefix = format!("pxm-{demo}-");
    for entry in fs::read_dir("/run/netns")? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        ensure!(
            !name.starts_with(&prefix),
            "namespace {name} is still there"
        );
    }
    Ok(())
}

fn place_of(demo: Pid) -> PathBuf {
    PathBuf::from(format!("/run/proxymux-demo-{demo}"))
}

/// The demo takes half a minute; a machine may be busy.
const WHOLE_LIMIT: Duration = Duration::from_secs(120);
const PART_LIMIT: Duration = Duration::from_secs(60);
