//! Starts, in any order, and what the exit code says.

use std::fs;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use proxymux_testkit::cluster::Cluster;
use proxymux_tests::{
    events::{complaints, wait_for, wait_for_message, with_message},
    limits::{SOON, within},
    programs::Scratch,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_starts_before_its_master_waits_for_it() -> Result<()> {
    let lines = "connect-budget: 15s";
    let mut cluster = Cluster::builder().master_lines(lines).build()?;
    cluster.start_agent(0)?;
    let waiting = wait_for_message(cluster.agent(0), 0, SOON, "no session")?;
    assert_eq!(waiting.level, "WARN");
    let why = waiting.text("error").unwrap_or_default();
    assert!(why.to_lowercase().contains("connection refused"), "{why}");

    cluster.start_master(0)?;

    // Whoever asks at once waits with the master.
    let reply = within(
        SOON,
        "ask",
        cluster.api()?.get(&cluster.target(0), "/healthz"),
    )
    .await?;
    assert_eq!(reply.status, 200);
    assert_eq!(complaints(cluster.agent(0), 0).len(), 1);
    Ok(())
}

/// On a new node the agent is there first: then comes the CA, then the kubelet's certificate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_new_node_an_agent_waits_for_one_file_after_the_other() -> Result<()> {
    let mut cluster = Cluster::builder().build()?;
    cluster.start_master(0)?;
    let name = cluster.node_name(0);
    let certs = cluster.pki().node_dir(&name);
    fs::remove_dir_all(&certs).context("the certificates")?;
    let ca = cluster.dir().join("late-ca.crt");
    let config = cluster.agent_config(0)?;
    let usual = format!("ca-file: {}", cluster.pki().ca_file().display());
    let config = config.replace(&usual, &format!("ca-file: {}", ca.display()));

    cluster.start_agent_with(0, &config)?;

    let names = |path: &std::path::Path| {
        let path = path.display().to_string();
        move |event: &proxymux_testkit::process::LogEvent| {
            event.message == "not ready to connect"
                && event
                    .text("reason")
                    .is_some_and(|reason| reason.contains(&path))
        }
    };
    wait_for(cluster.agent(0), 0, SOON, names(&ca))?;
    fs::copy(cluster.pki().ca_file(), &ca)?;
    wait_for(
        cluster.agent(0),
        0,
        SOON,
        names(&certs.join("kubelet-client-current.pem")),
    )?;
    // The kubelet's serving pair is no certificate for the agent, and it says so.
    cluster
        .pki()
        .kubelet_serving(&name, &cluster.node(0).addresses())?;
    wait_for(cluster.agent(0), 0, SOON, |event| {
        event
            .text("reason")
            .is_some_and(|r| r.contains("the kubelet's serving certificate?"))
    })?;
    cluster.pki().node_client(&name)?;
    wait_for_message(cluster.agent(0), 0, SOON, "session up")?;

    let reply = within(
        SOON,
        "ask",
        cluster.api()?.get(&cluster.target(0), "/healthz"),
    )
    .await?;
    assert_eq!(reply.status, 200);
    let said = with_message(cluster.agent(0), "not ready to connect");
    assert_eq!(said.len(), 3, "each once: {said:#?}");
    assert_eq!(complaints(cluster.agent(0), 0).len(), 3);
    Ok(())
}

#[test]
fn the_exit_code_is_0_after_a_drain_1_after_a_failure_and_2_for_a_wrong_configuration() -> Result<()>
{
    let scratch = Scratch::new()?;
    for (daemon, good, up) in [
        ("proxymux-agent", scratch.agent_config(), "no session"),
        ("proxymux-master", scratch.master_config(), "master is up"),
    ] {
        let mut running = scratch.start_with(daemon, &good)?;
        running.wait_for_line(up, SOON)?;
        running.signal(Signal::SIGTERM)?;
        assert_eq!(running.wait(SOON)?.code(), Some(0), "{daemon}");

        let wrong = scratch.run_with(daemon, format!("{good}log-format: loud\n"))?;
        assert_eq!(wrong.code, Some(2), "{wrong:?}");
    }

    let ended = scratch.run_with("proxymux-agent", scratch.agent_config() + "mode: ebpf\n")?;
    assert_eq!(ended.code, Some(1));
    assert!(ended.last_line().contains("mode `ebpf`"), "{ended:?}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let at = taken.local_addr()?.to_string();
    let config = scratch.master_config().replace("127.0.0.1:0", &at);
    let ended = scratch.run_with("proxymux-master", config)?;
    assert_eq!(ended.code, Some(1));
    assert!(
        ended
            .last_line()
            .contains(&format!("{at} for agents is in use")),
        "{ended:?}"
    );
    Ok(())
}
