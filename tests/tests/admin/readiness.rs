//! Whether daemons say that they are ready, and why not, as the others come and go.
//!
//! Also that both stay alive through what is thrown at the admin address.

use std::io::Write as _;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use proxymux_testkit::{
    cluster::Cluster,
    wait::{eventually, eventually_async},
};
use proxymux_tests::{
    admin::{ask, at_agent, at_master, ready, status},
    following::Following,
    limits::{SOON, within},
};
use proxymux_transport::config_file::values::AdminAddr;

async fn until_ready(at: &AdminAddr) {
    eventually_async(SOON, async || matches!(ready(at).await, Ok(Ok(())))).await;
}

/// Waits until a daemon is not ready for a reason that has these words.
async fn until_unready(at: &AdminAddr, words: &str) {
    eventually_async(SOON, async || match ready(at).await {
        Ok(Err(reasons)) => reasons.contains(words),
        Ok(Ok(())) | Err(_) => false,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_is_ready_while_it_has_a_master_and_says_why_it_is_not() -> Result<()> {
    let mut cluster = Cluster::builder().build()?;
    let agent = at_agent(&cluster, 0);
    cluster.start_agent(0)?;
    until_unready(&agent, "connection refused for ").await;
    let shown = status(&agent).await?;
    let error = shown.pointer("/masters/0/last_error").context("an error")?;
    assert!(error.to_string().contains("Connection refused"), "{shown}");

    cluster.start_master(0)?;

    until_ready(&agent).await;
    until_ready(&at_master(&cluster)).await;
    let shown = status(&agent).await?;
    assert_eq!(shown.pointer("/masters/0/state"), Some(&"connected".into()));

    cluster.master(0).kill()?;

    until_unready(&agent, " for ").await;
    assert_eq!(ask(&agent, "/healthz").await?.status, 200, "it is alive");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_waits_for_its_certificate_names_it() -> Result<()> {
    let mut cluster = Cluster::builder().build()?;
    cluster.start_master(0)?;
    let certs = cluster.pki().node_dir(&cluster.node_name(0));
    let aside = certs.with_extension("aside");
    std::fs::rename(&certs, &aside).context("put the certificates aside")?;

    cluster.start_agent(0)?;

    let agent = at_agent(&cluster, 0);
    until_unready(&agent, "waiting for a client certificate").await;
    std::fs::rename(&aside, &certs).context("put them back")?;
    until_ready(&agent).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemons_that_drain_answer_and_are_not_ready() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    let following = Following::start(&api, &target).await?;
    for at in [at_master(&cluster), at_agent(&cluster, 0)] {
        until_ready(&at).await;
    }

    cluster.master(0).signal(Signal::SIGTERM)?;
    until_unready(&at_master(&cluster), "draining").await;
    let shown = status(&at_master(&cluster)).await?;
    assert_eq!(shown.get("streams"), Some(&1.into()), "{shown}");
    cluster.agent(0).signal(Signal::SIGTERM)?;
    until_unready(&at_agent(&cluster, 0), "draining").await;

    following.goes_on().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_thrown_at_the_admin_address_disturbs_no_stream() -> Result<()> {
    let cluster = Cluster::started()?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    let following = Following::start(&api, &target).await?;
    let mut held = Vec::new();
    for at in [at_master(&cluster), at_agent(&cluster, 0)] {
        let AdminAddr::Unix(path) = at else {
            unreachable!("the cluster's addresses are sockets");
        };
        for number in 0..50_u8 {
            let mut client = std::os::unix::net::UnixStream::connect(&path)?;
            // Garbage, half a request, or nothing. Some are closed on before they have written.
            let bytes: &[u8] = match number % 3 {
                0 => &[number; 10_000],
                1 => b"GET /metrics HTTP/1.1\r\nX: ",
                _ => b"",
            };
            client.set_nonblocking(true)?;
            let _ = client.write(bytes);
            held.push(client);
        }
    }

    following.goes_on().await?;
    let reply = within(SOON, "healthz", api.get(&target, "/healthz")).await?;
    assert_eq!(reply.status, 200);
    drop(held);
    for at in [at_master(&cluster), at_agent(&cluster, 0)] {
        until_ready(&at).await;
    }
    Ok(())
}

#[test]
fn over_tcp_an_agent_answers_its_own_machine_only_and_nothing_that_acts() -> Result<()> {
    let mut cluster = Cluster::builder().build()?;
    cluster.start_master(0)?;
    let config = cluster.agent_config(0)?;
    let usual = config
        .lines()
        .find(|line| line.starts_with("admin:"))
        .context("an agent's configuration has admin")?;
    let config = config.replace(usual, "admin: 127.0.0.1:12252");
    cluster.start_agent_with(0, &config)?;
    let at = AdminAddr::Tcp("127.0.0.1:12252".parse()?);

    let node = cluster.node(0).clone();
    eventually(SOON, || {
        let reply = node.block_on(async { ask(&at, "/readyz").await });
        reply.is_ok_and(|reply| reply.status == 200)
    });
    let answers = node.block_on(async { post(&at).await })?;

    assert!(answers.starts_with("HTTP/1.1 405 "), "{answers}");
    let elsewhere = cluster.topology().master().clone();
    let refused = elsewhere.block_on(async { ask(&at, "/readyz").await });
    assert!(refused.is_err(), "{refused:?}");
    Ok(())
}

async fn post(at: &AdminAddr) -> Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut client = tokio::net::TcpStream::connect(at.to_string()).await?;
    let request = b"POST /status HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
    client.write_all(request).await?;
    let mut answer = String::new();
    client.read_to_string(&mut answer).await?;
    Ok(answer)
}
