//! The agent's certificate, key and CA: what is not there yet or no good is named, waited for,
//! and taken up by itself; and a master that is not there.
//!
//! Whatever the trouble is, it is told once when it begins and not at each attempt.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::Result;
use proxymux_testkit::{cluster::Cluster, pki::Leaf, process::LogEvent, wait::eventually};
use proxymux_tests::{
    bystander::Bystander,
    etc_hosts::EtcHosts,
    events::{complaints, wait_for_message, with_message},
    limits::SOON,
};

#[test]
fn a_certificate_that_is_not_there_yet_is_waited_for_and_all_places_are_named() -> Result<()> {
    let mut cluster = with_master()?;
    let dir = cluster.pki().node_dir(&cluster.node_name(0));
    let client = dir.join("kubelet-client-current.pem");
    fs::remove_file(&client)?;

    let agent = cluster.start_agent(0)?;
    let waits = wait_for_message(agent, 0, SOON, "not ready to connect")?;

    assert_eq!(waits.level, "WARN");
    let reason = format!(
        "waiting for a client certificate: `{}` does not exist; `{}` is not used: certificate \
         `O=system:nodes, CN=system:node:10.0.10.10` is not for client authentication (the \
         kubelet's serving certificate?)",
        client.display(),
        dir.join("tls.pem").display()
    );
    assert_eq!(waits.text("reason"), Some(&*reason));
    assert_said_once(&mut cluster, "not ready to connect")?;

    cluster.pki().node_client("10.0.10.10")?;
    assert_serves(&mut cluster)
}

#[test]
fn an_empty_directory_names_both_places() -> Result<()> {
    let mut cluster = with_master()?;
    let dir = cluster.pki().node_dir(&cluster.node_name(0));
    fs::remove_dir_all(&dir)?;

    let agent = cluster.start_agent(0)?;
    let waits = wait_for_message(agent, 0, SOON, "not ready to connect")?;

    let reason = format!(
        "waiting for a client certificate: `{dir}/kubelet-client-current.pem` does not exist; \
         `{dir}/tls.pem` does not exist",
        dir = dir.display()
    );
    assert_eq!(waits.text("reason"), Some(&*reason));
    cluster.pki().node_client("10.0.10.10")?;
    assert_serves(&mut cluster)
}

#[test]
fn a_key_that_does_not_match_is_named_and_its_successor_taken_up() -> Result<()> {
    let mut cluster = with_master()?;
    let mismatched = Leaf::node_client("10.0.10.10").with_foreign_key();
    let issued = cluster.pki().ca().issue(&mismatched)?;
    let files = cluster.pki().install_node_client("10.0.10.10", &issued)?;

    let agent = cluster.start_agent(0)?;
    let failed = wait_for_message(agent, 0, SOON, "no session")?;

    let error = format!(
        "the agent's certificate cannot be used: the private key in `{file}` does not match \
         certificate `O=system:nodes, CN=system:node:10.0.10.10` in `{file}`",
        file = files.cert.display()
    );
    assert_eq!(
        (failed.level.as_str(), failed.text("error")),
        ("WARN", Some(&*error))
    );
    assert_said_once(&mut cluster, "no session")?;
    cluster.pki().node_client("10.0.10.10")?;
    assert_serves(&mut cluster)
}

#[test]
fn a_certificate_that_is_damaged_is_named_and_its_successor_taken_up() -> Result<()> {
    let mut cluster = with_master()?;
    let dir = cluster.pki().node_dir("10.0.10.10");
    let client = dir.join("kubelet-client-current.pem");
    fs::write(&client, "-----BEGIN CERTIFICATE-----\nMIIB")?;

    let agent = cluster.start_agent(0)?;
    let failed = wait_for_message(agent, 0, SOON, "no session")?;

    let error = format!(
        "the agent's certificate cannot be used: `{}` is not valid PEM: the line `-----END \
         CERTIFICATE-----` is missing",
        client.display()
    );
    assert_eq!(failed.text("error"), Some(&*error));
    cluster.pki().node_client("10.0.10.10")?;
    assert_serves(&mut cluster)
}

#[test]
fn a_ca_that_is_not_there_yet_is_waited_for() -> Result<()> {
    let mut cluster = with_master()?;
    let ca = late_ca(&cluster);

    start_with_ca(&mut cluster, &ca)?;
    let waits = wait_for_message(cluster.agent(0), 0, SOON, "not ready to connect")?;

    let reason = format!("waiting for the CA: `{}` does not exist", ca.display());
    assert_eq!(waits.text("reason"), Some(&*reason));
    fs::copy(cluster.pki().ca_file(), &ca)?;
    assert_serves(&mut cluster)
}

#[test]
fn a_ca_file_that_holds_no_ca_is_named_and_its_successor_taken_up() -> Result<()> {
    let mut cluster = with_master()?;
    let ca = late_ca(&cluster);
    fs::copy(cluster.dir().join("master/master.crt"), &ca)?;

    start_with_ca(&mut cluster, &ca)?;
    let failed = wait_for_message(cluster.agent(0), 0, SOON, "no session")?;

    let error = format!(
        "no usable CA: `{}` holds no CA certificate: `CN=proxymux-master`",
        ca.display()
    );
    assert_eq!(failed.text("error"), Some(&*error));
    assert_said_once(&mut cluster, "no session")?;
    fs::copy(cluster.pki().ca_file(), &ca)?;
    assert_serves(&mut cluster)
}

/// One entry of `server-addr` leads to a master, the other nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_is_not_there_is_told_of_once_and_disturbs_no_other() -> Result<()> {
    let mut cluster = Cluster::builder().masters(2).build()?;
    cluster.start_master(0)?;
    cluster.start_agent(0)?;
    wait_for_session_with(&mut cluster, "192.0.2.10:12250")?;
    let bystander = Bystander::of_node(&mut cluster, 0).await?;

    let refused = wait_for_message(cluster.agent(0), 0, SOON, "no session")?;

    assert_eq!(refused.level, "WARN");
    assert_eq!(refused.text("master"), Some("192.0.2.11:12250"));
    assert_eq!(
        refused.text("error"),
        Some("cannot connect: Connection refused (os error 111)")
    );
    assert!(refused.number("retry_in_ms").is_some(), "{refused:?}");
    assert_said_once(&mut cluster, "no session")?;
    bystander.is_served().await?;

    // It comes, and goes: each is told once.
    cluster.start_master(1)?;
    wait_for_session_with(&mut cluster, "192.0.2.11:12250")?;
    let mark = cluster.agent(0).mark();
    cluster.master(1).kill()?;
    let agent = cluster.agent(0);
    eventually(SOON, || complaints(agent, mark).len() >= 2);
    let said: Vec<_> = complaints(agent, mark)
        .iter()
        .map(|event| event.message.clone())
        .collect();
    assert_eq!(said, ["session lost", "no session"]);
    bystander.is_served().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_means_nothing_is_told_of_once_and_disturbs_no_other() -> Result<()> {
    let lines = "server-addr: [ \"https://192.0.2.10:12250\", \"https://master.example\" ]\n\
                 server-name: 192.0.2.10";
    let mut cluster = Cluster::builder().agent_lines(lines).build()?;
    let hosts = EtcHosts::new(cluster.node(0), "localhost", &["127.0.0.1".parse()?])?;
    cluster.start_master(0)?;
    cluster.start_agent(0)?;
    wait_for_session_with(&mut cluster, "192.0.2.10:12250")?;
    let bystander = Bystander::of_node(&mut cluster, 0).await?;

    let agent = cluster.agent(0);
    let unresolved = wait_for_message(agent, 0, SOON, "cannot resolve master")?;
    eventually(SOON, || with_message(agent, "still unresolved").len() >= 2);

    assert_eq!(unresolved.level, "WARN");
    assert_eq!(
        unresolved.text("server"),
        Some("https://master.example:12250")
    );
    let error = unresolved.text("error").unwrap_or_default();
    assert!(
        error.starts_with("failed to lookup address information: "),
        "{unresolved:?}"
    );
    assert!(unresolved.number("retry_in_ms").is_some(), "{unresolved:?}");
    assert_eq!(with_message(agent, "cannot resolve master").len(), 1);
    bystander.is_served().await?;

    hosts.set("master.example", &["192.0.2.10".parse()?])?;
    wait_for_message(
        cluster.agent(0),
        0,
        SOON,
        "already connected to this master",
    )?;
    Ok(())
}

#[test]
fn an_address_to_bind_to_that_is_not_this_nodes_is_named() -> Result<()> {
    let mut cluster = with_master()?;
    let config = cluster.agent_config(0)?;
    let config = config.replace("bind-addr: 10.0.10.10", "bind-addr: 10.0.10.99");

    cluster.start_agent_with(0, &config)?;
    let failed = wait_for_message(cluster.agent(0), 0, SOON, "no session")?;

    assert_eq!(
        failed.text("error"),
        Some("cannot connect from 10.0.10.99: Cannot assign requested address (os error 99)")
    );
    assert_said_once(&mut cluster, "no session")
}

fn with_master() -> Result<Cluster> {
    let mut cluster = Cluster::builder().build()?;
    cluster.start_master(0)?;
    Ok(cluster)
}

/// Where the agent's CA is in tests in which the file of everybody else must stay as it is.
fn late_ca(cluster: &Cluster) -> PathBuf {
    cluster.dir().join("agents-ca.crt")
}

fn start_with_ca(cluster: &mut Cluster, ca: &std::path::Path) -> Result<()> {
    let config = cluster.agent_config(0)?;
    let usual = format!("ca-file: {}", cluster.pki().ca_file().display());
    assert!(config.contains(&usual), "{config}");
    cluster.start_agent_with(
        0,
        &config.replace(&usual, &format!("ca-file: {}", ca.display())),
    )?;
    Ok(())
}

/// The agent goes on trying, and does not say so each time.
fn assert_said_once(cluster: &mut Cluster, message: &str) -> Result<()> {
    let agent = cluster.agent(0);
    eventually(SOON, || still_trying(&agent.events()) >= AGAIN);
    let said = with_message(agent, message);
    assert_eq!(said.len(), 1, "{said:#?}");
    assert!(agent.is_running()?);
    Ok(())
}

/// Without anybody's help, and soon: whoever has repaired a file watches the log.
fn assert_serves(cluster: &mut Cluster) -> Result<()> {
    wait_for_message(cluster.agent(0), 0, REPAIRED_WITHIN, "session up")?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let reply = runtime.block_on(api.get(&target, "/healthz"))?;
    assert_eq!(reply.status, 200);
    Ok(())
}

fn wait_for_session_with(cluster: &mut Cluster, master: &str) -> Result<()> {
    let is_wanted = |line: &str| line.contains("session up") && line.contains(master);
    cluster.agent(0).wait_for_line(is_wanted, SOON)?;
    Ok(())
}

fn still_trying(events: &[LogEvent]) -> usize {
    events
        .iter()
        .filter(|event| event.message == "still no session")
        .count()
}

/// So many further attempts are enough to see whether each is told of.
const AGAIN: usize = 2;

const REPAIRED_WITHIN: Duration = Duration::from_secs(5);
