//! Why a container ended, in the file that `kubectl describe pod` shows.
//!
//! `kubectl logs` does not work while the tunnel is down, so this is where people look.

use std::fs;

use anyhow::Result;
use proxymux_testkit::cluster::{AGENT, MASTER};
use proxymux_tests::{
    events::wait_for_message,
    limits::SOON,
    programs::{Scratch, config_flag, run},
};

/// The argument that names the file.
fn termination_log(scratch: &Scratch) -> String {
    format!(
        "--termination-log={}",
        scratch.path("termination-log").display()
    )
}

#[test]
fn a_refused_configuration_is_told_whole() -> Result<()> {
    for daemon in [AGENT, MASTER] {
        let scratch = Scratch::new()?;
        let log = scratch.write(
            "termination-log",
            "of an earlier run, and longer than the new",
        )?;
        let config = scratch.write("config.yaml", "log-format: xml\n")?;

        let ended = run(daemon, &[&config_flag(&config), &termination_log(&scratch)])?;

        assert_eq!(ended.code, Some(2), "{ended:?}");
        let printed = ended.lines.iter().filter_map(|line| {
            let line = line.strip_prefix(daemon)?;
            line.strip_prefix(": ")
        });
        let printed: Vec<_> = printed.collect();
        assert!(printed.len() > 1, "{ended:?}");
        let told = fs::read_to_string(log)?;
        assert_eq!(told.lines().collect::<Vec<_>>(), printed);
        assert!(
            told.contains("config.yaml:1: log-format: \"xml\""),
            "{told}"
        );
    }
    Ok(())
}

#[test]
fn a_start_that_failed_is_told() -> Result<()> {
    let scratch = Scratch::new()?;
    let log = scratch.write("termination-log", "")?;
    let certificate = scratch.path("master/master.crt");
    fs::remove_file(&certificate)?;
    let config = scratch.write("config.yaml", scratch.master_config())?;

    let ended = run(MASTER, &[&config_flag(&config), &termination_log(&scratch)])?;

    assert_eq!(ended.code, Some(1), "{ended:?}");
    let told = fs::read_to_string(log)?;
    assert_eq!(ended.last_line(), format!("{MASTER}: {told}"));
    assert!(told.contains(&*certificate.to_string_lossy()), "{told}");
    Ok(())
}

#[test]
fn only_the_daemon_writes_it_and_only_where_it_is() -> Result<()> {
    let scratch = Scratch::new()?;
    let argument = termination_log(&scratch);
    let config = config_flag(&scratch.write("config.yaml", "log-format: xml\n")?);

    let ended = run(AGENT, &[&config, &argument])?;

    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert_eq!(
        ended
            .lines
            .iter()
            .filter(|line| line.contains("termination"))
            .count(),
        0
    );
    let log = scratch.path("termination-log");
    assert!(!log.exists(), "a host has no such file, and gets none");

    // A probe runs beside the daemon, in the same container.
    fs::write(&log, "the daemon's")?;
    let probe = run(AGENT, &[&argument, "status", "--ready", &config])?;
    assert_eq!(probe.code, Some(2), "{probe:?}");
    assert_eq!(fs::read_to_string(&log)?, "the daemon's");
    Ok(())
}

#[test]
fn a_daemon_that_ends_in_order_has_no_last_word() -> Result<()> {
    let scratch = Scratch::new()?;
    let log = scratch.write("termination-log", "")?;
    let config = config_flag(&scratch.write("config.yaml", scratch.master_config())?);
    let mut command = std::process::Command::new(proxymux_testkit::cluster::program(MASTER)?);
    command.args([&config, &termination_log(&scratch)]);
    let mut master = proxymux_testkit::process::Daemon::spawn(MASTER, command)?;
    wait_for_message(&mut master, 0, SOON, "master is up")?;

    master.signal(nix::sys::signal::Signal::SIGTERM)?;

    assert!(master.wait(SOON)?.success());
    assert_eq!(fs::read_to_string(log)?, "");
    Ok(())
}
