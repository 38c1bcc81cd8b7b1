//! The guard around real, small programs.

use std::{fs, os::unix::process::ExitStatusExt, panic};

use super::*;

const LIMIT: Duration = Duration::from_secs(10);

fn shell(script: &str) -> Daemon {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    Daemon::spawn("shell", command).unwrap()
}

fn exists(pid: Pid) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap()
}

#[test]
fn lines_of_both_streams_are_captured_and_counted() {
    let mut daemon = shell("echo one; echo two >&2; printf three");
    let status = daemon.wait(LIMIT).unwrap();
    assert!(status.success());
    let mut lines = daemon.lines();
    lines.sort();
    assert_eq!(lines, ["one", "three", "two"]);
    assert_eq!(daemon.count_lines("o"), 2);
    assert_eq!(daemon.count_lines(|line: &str| line.len() == 3), 2);
}

#[test]
fn lines_are_copied_to_the_end_of_a_file_that_outlives_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("shell.log");
    for word in ["first", "second"] {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("echo {word}; printf cut >&2")]);
        let mut daemon = Daemon::spawn_logging_to("shell", command, &log).unwrap();
        assert!(daemon.wait(LIMIT).unwrap().success());
        assert_eq!(daemon.lines().len(), 2);
    }
    let mut lines: Vec<_> = fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    lines.sort();
    assert_eq!(lines, ["cut", "cut", "first", "second"]);
}

#[test]
fn waiting_for_a_line_ends_early_when_the_program_does() {
    let mut daemon = shell("echo about to fail; exit 7");
    let error = daemon
        .wait_for_line("listening", Duration::from_secs(3600))
        .unwrap_err();
    let text = format!("{error:#}");
    assert_eq!(
        text,
        "no line with \"listening\": shell has ended: exit status: 7"
    );
}

#[test]
fn waiting_for_a_line_that_does_not_come_names_the_limit() {
    let mut daemon = shell("sleep 3600");
    let error = daemon
        .wait_for_line("listening", Duration::from_millis(50))
        .unwrap_err();
    let text = format!("{error:#}");
    assert_eq!(text, "no line with \"listening\": shell: waited for 50ms");
}

#[test]
fn lines_before_a_mark_do_not_count() {
    let mut daemon = shell("trap 'echo again' USR1; echo again; while :; do sleep 0.01; done");
    daemon.wait_for_line("again", LIMIT).unwrap();
    let mark = daemon.mark();
    daemon
        .wait_for_line_after(mark, "again", Duration::from_millis(30))
        .unwrap_err();
    daemon.signal(Signal::SIGUSR1).unwrap();
    daemon.wait_for_line_after(mark, "again", LIMIT).unwrap();
}

#[test]
fn a_signal_ends_it_and_a_second_one_is_refused() {
    let mut daemon = shell("exec sleep 3600");
    daemon.signal(Signal::SIGTERM).unwrap();
    let status = daemon.wait(LIMIT).unwrap();
    assert_eq!(status.signal(), Some(15));
    assert!(!daemon.is_running().unwrap());
    let error = daemon.signal(Signal::SIGTERM).unwrap_err();
    assert!(error.to_string().contains("it has ended"), "{error}");
}

#[test]
fn still_running_after_the_limit_is_an_error_and_leaves_it_running() {
    let mut daemon = shell("exec sleep 3600");
    let error = daemon.wait(Duration::from_millis(20)).unwrap_err();
    assert_eq!(error.to_string(), "shell still runs after 20ms");
    assert!(daemon.is_running().unwrap());
}

#[test]
fn dropping_kills_and_reaps() {
    let daemon = shell("exec sleep 3600");
    let pid = daemon.pid();
    assert!(exists(pid));
    drop(daemon);
    assert!(!exists(pid));
}

#[test]
fn a_panic_kills_and_reaps_too() {
    let daemon = shell("exec sleep 3600");
    let pid = daemon.pid();
    let panicked = panic::catch_unwind(panic::AssertUnwindSafe(move || {
        let _daemon = daemon;
        panic!("of the test's own making");
    }));
    assert!(panicked.is_err());
    assert!(!exists(pid));
}

#[test]
fn events_are_found_among_other_lines() {
    let mut daemon = shell(
        r#"echo 'plain text'
           echo '{"level":"INFO","target":"access","fields":{"message":"connection closed","n":1}}'
           echo '{"level":"WARN","target":"session","fields":{"message":"lost","n":"2"}}'
           echo '{"no":"event"}'
           exec sleep 3600"#,
    );
    let lost = daemon
        .wait_for_event(LIMIT, |event| event.message == "lost")
        .unwrap();
    assert_eq!((lost.level.as_str(), lost.number("n")), ("WARN", Some(2)));
    assert_eq!(daemon.events().len(), 2);
    let closed = daemon.events_of("access", "connection closed");
    assert_eq!(closed.len(), 1);
    assert_eq!(closed[0].number("n"), Some(1));
}
