//! Ports and sockets that are taken, and what is in the way where a socket is to be.
//!
//! The one who has a place is always a master that serves: it must not notice that another tried.

use std::{
    fs,
    os::unix::{fs::FileTypeExt, net::UnixListener},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use proxymux_testkit::cluster::{Cluster, MASTER};
use proxymux_tests::{
    bystander::Bystander,
    events::{complaints, wait_for_message},
    limits::SOON,
    programs::{Scratch, run},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_master_at_taken_places_is_refused_and_the_first_goes_on() -> Result<()> {
    let mut cluster = proxymux_tests::doors::start_with_both_doors(Cluster::builder())?;
    let bystander = Bystander::of_node(&mut cluster, 0).await?;
    let mark = cluster.master(0).mark();
    let socket = cluster.socket(0);
    let dir = cluster.dir().display().to_string();
    let elsewhere = "listen: \"[::]:12249\"";
    let tcp_door = format!(
        "front-doors: [ {{ listen: \"{ip}:8131\", cert: {dir}/master/master.crt, \
         key: {dir}/master/master.key, client-ca: {dir}/ca.crt, \
         client-names: [ kube-apiserver ] }} ]",
        ip = cluster.topology().master().ipv4(),
    );
    let config = cluster.master_config(0)?;
    let cases = [
        (
            config.clone(),
            "address [::]:12250 for agents is in use by another process; stop it or change \
             `listen`"
                .to_owned(),
        ),
        (
            with_line(&config, "listen:", elsewhere)?,
            format!("socket {} is in use by another process", socket.display()),
        ),
        (
            with_line(
                &with_line(&config, "listen:", elsewhere)?,
                "front-doors:",
                &tcp_door,
            )?,
            format!(
                "address {}:8131 of a front door is in use by another process",
                cluster.topology().master().ipv4()
            ),
        ),
    ];
    for (config, reason) in cases {
        let mut second = cluster.spawn_master(0, "second.yaml", &config)?;

        let status = second.wait(SOON)?;

        assert_eq!(status.code(), Some(1));
        assert_eq!(second.lines().last(), Some(&format!("{MASTER}: {reason}")));
        bystander.did_not_notice(&mut cluster).await?;
        assert!(
            is_socket(&socket)?,
            "the second has removed the first's socket"
        );
    }
    assert!(complaints(cluster.master(0), mark).is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_that_a_dead_master_has_left_is_replaced() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let mark = cluster.agent(0).mark();
    cluster.master(0).kill()?;
    let socket = cluster.socket(0);
    ensure!(is_socket(&socket)?, "a killed master leaves its socket");

    cluster.start_master(0)?;

    wait_for_message(cluster.agent(0), mark, SOON, "session up")?;
    let reply = cluster.api()?.get(&cluster.target(0), "/healthz").await?;
    assert_eq!(reply.status, 200);
    assert!(complaints(cluster.master(0), 0).is_empty());
    Ok(())
}

#[test]
fn what_is_no_dead_socket_is_left_alone_and_named() -> Result<()> {
    let scratch = Scratch::new()?;
    let socket = scratch.path("egress.sock");
    let shown = socket.display().to_string();

    fs::write(&socket, "precious")?;
    assert_refused(
        &scratch,
        &format!("{shown} is no socket, expected a socket or nothing; it was left alone"),
    )?;
    assert_eq!(fs::read_to_string(&socket)?, "precious");
    fs::remove_file(&socket)?;

    fs::create_dir(&socket)?;
    assert_refused(
        &scratch,
        &format!("{shown} is no socket, expected a socket or nothing; it was left alone"),
    )?;
    fs::remove_dir(&socket)?;

    // Of a program that is no master, and accepts nobody.
    let listener = UnixListener::bind(&socket)?;
    assert_refused(
        &scratch,
        &format!("socket {shown} is in use by another process"),
    )?;
    assert!(is_socket(&socket)?);
    drop(listener);

    // Its listener is gone: now it is in nobody's way.
    let mut master = scratch.start_with(MASTER, scratch.master_config())?;
    master.wait_for_line("master is up", SOON)?;
    Ok(())
}

#[test]
fn a_directory_that_is_not_there_is_named_with_the_command_that_makes_it() -> Result<()> {
    let scratch = Scratch::new()?;
    let config = scratch
        .master_config()
        .replace("/egress.sock", "/run/proxymux/egress.sock");
    let directory = scratch.path("run/proxymux");

    let ended = scratch.run_with(MASTER, config)?;

    let directory = directory.display();
    assert_eq!(
        (ended.code, ended.last_line()),
        (
            Some(1),
            &*format!(
                "{MASTER}: directory {directory} for the socket of a front door does not exist; \
                 create it: mkdir -p {directory}"
            )
        )
    );
    Ok(())
}

#[test]
fn an_address_that_is_not_this_machines_is_named_with_the_systems_reason() -> Result<()> {
    let scratch = Scratch::new()?;
    let config = with_line(
        &scratch.master_config(),
        "listen:",
        "listen: 192.0.2.10:12250",
    )?;
    let file = scratch.write("config.yaml", config)?;

    let ended = run(MASTER, &[&proxymux_tests::programs::config_flag(&file)])?;

    assert_eq!(
        (ended.code, ended.last_line()),
        (
            Some(1),
            &*format!(
                "{MASTER}: cannot listen at 192.0.2.10:12250 for agents: Cannot assign requested \
                 address (os error 99)"
            )
        )
    );
    Ok(())
}

fn assert_refused(scratch: &Scratch, reason: &str) -> Result<()> {
    let ended = scratch.run_with(MASTER, scratch.master_config())?;
    assert_eq!(
        (ended.code, ended.last_line()),
        (Some(1), &*format!("{MASTER}: {reason}"))
    );
    Ok(())
}

/// The configuration with another line in place of the one that begins so.
fn with_line(config: &str, begins: &str, line: &str) -> Result<String> {
    let usual = config.lines().find(|line| line.starts_with(begins));
    let usual = usual.with_context(|| format!("no line {begins} in {config}"))?;
    Ok(config.replace(usual, line))
}

fn is_socket(path: &Path) -> Result<bool> {
    Ok(fs::symlink_metadata(path)?.file_type().is_socket())
}
