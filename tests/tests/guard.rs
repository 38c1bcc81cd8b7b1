//! The guard of the kubelet's port, from the side of those whom it lets in and those whom it does
//! not: a scraper on another node is the usual stranger.
//!
//! Who is let in gets a connection; who is dropped hears nothing. The agent runs on the first
//! node only.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use proxymux_testkit::{
    cluster::{Cluster, ClusterBuilder},
    netns::{Host, Reach},
    wait::eventually,
};
use proxymux_tests::{
    admin::{Printed, at_agent, command, config_file, scrape, status},
    limits::SOON,
    programs::{Scratch, config_flag},
    steered::attach_kinds,
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const AGENT: &str = "proxymux-agent";

/// A master that can dial nodes, and three nodes of which only the first has an agent.
fn cluster(guard: &str) -> Result<Cluster> {
    let mut cluster = builder(guard).build()?;
    cluster.start_master(0)?;
    cluster.start_agent(0)?;
    cluster.wait_for_sessions()?;
    Ok(cluster)
}

fn builder(guard: &str) -> ClusterBuilder {
    let lines = format!("mode: ebpf\n{guard}");
    Cluster::builder()
        .nodes(3)
        .reach(Reach::Routed)
        .agent_lines(lines)
}

/// Whether a connection from there to the first node's kubelet is answered at once.
fn gets_in(cluster: &Cluster, from: &Host) -> Result<bool> {
    let to: SocketAddr = cluster.target(0).parse().context("the kubelet's address")?;
    Ok(reaches(from, to))
}

fn reaches(from: &Host, to: SocketAddr) -> bool {
    // A SYN that was dropped is repeated after a second.
    let tried = from.block_on(async move { timeout(ANSWER, TcpStream::connect(to)).await });
    matches!(tried, Ok(Ok(_)))
}

fn kept_out(cluster: &Cluster, from: &Host) -> Result<bool> {
    Ok(!gets_in(cluster, from)?)
}

fn run(cluster: &Cluster, arguments: &[&str]) -> Result<Printed> {
    let config = config_flag(&config_file(cluster, "agent-0"));
    let mut all = vec![config.as_str()];
    all.extend(arguments);
    command(AGENT, &all)
}

fn steering(cluster: &Cluster) -> Result<Value> {
    let printed = run(cluster, &["status", "--json"])?;
    let status: Value = serde_json::from_str(&printed.stdout).context("a status")?;
    status.get("steering").cloned().context("steering")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enforce_drops_strangers_and_lets_in_masters_and_whom_it_is_told_to() -> Result<()> {
    let cluster = cluster("guard: enforce\nguard-allow: [ 10.0.10.12 ]")?;
    let (stranger, friend) = (cluster.node(1), cluster.node(2));
    let master = cluster.topology().master();

    eventually(SOON, || kept_out(&cluster, stranger).is_ok_and(|out| out));
    assert!(gets_in(&cluster, friend)?, "guard-allow names it");
    assert!(gets_in(&cluster, master)?, "a master's own address");
    assert!(kept_out(&cluster, stranger)?);

    let suggested = run(&cluster, &["guard", "suggest"])?;
    assert_eq!(suggested.code, Some(0), "{suggested:?}");
    for expected in [
        "guard-allow:\n",
        "  - \"10.0.10.12/32\" # let in already\n",
        "  - \"10.0.10.11/32\" # ",
        " dropped\n",
    ] {
        assert!(suggested.stdout.contains(expected), "{suggested:?}");
    }
    for (source, verdict, rule) in [
        (stranger, "dropped", "guard-allow does not have it"),
        (friend, "passed", "guard-allow has 10.0.10.12/32"),
        (master, "assigned", "steer-from has 192.0.2.10/32"),
    ] {
        let printed = run(&cluster, &["explain", &source.ipv4().to_string()])?;
        assert!(
            printed.stdout.contains(verdict) && printed.stdout.contains(rule),
            "{verdict}, {rule}: {printed:?}"
        );
    }
    let metrics = scrape(&at_agent(&cluster, 0)).await?;
    let dropped = metrics.get("proxymux_agent_steering_packets_total{verdict=\"dropped\"}");
    assert!(dropped >= 1.0, "{}", metrics.text);
    let status = status(&at_agent(&cluster, 0)).await?;
    assert_eq!(
        status.pointer("/steering/guard").and_then(Value::as_str),
        Some("enforce")
    );
    Ok(())
}

#[test]
fn audit_lets_everybody_in_and_remembers_who_it_was() -> Result<()> {
    let cluster = cluster("guard: audit")?;
    let nobody = run(&cluster, &["guard", "suggest"])?;
    assert!(nobody.stdout.contains("nobody was seen"), "{nobody:?}");

    // The guard is there once the agent says so, and then each new connection is remembered.
    eventually(SOON, || {
        gets_in(&cluster, cluster.node(1)).is_ok_and(|answered| answered)
            && run(&cluster, &["guard", "suggest"])
                .is_ok_and(|printed| printed.stdout.contains("10.0.10.11/32"))
    });

    let suggested = run(&cluster, &["guard", "suggest"])?;
    assert!(
        suggested.stdout.contains("would have been dropped"),
        "{suggested:?}"
    );
    assert!(
        !suggested.stdout.contains("192.0.2.10"),
        "masters are let in: {suggested:?}"
    );
    let explained = run(&cluster, &["explain", "10.0.10.11:40000"])?;
    assert!(explained.stdout.contains("audited"), "{explained:?}");
    Ok(())
}

#[test]
fn without_a_guard_nobody_is_remembered() -> Result<()> {
    let cluster = cluster("guard: off")?;

    assert!(gets_in(&cluster, cluster.node(1))?);

    let suggested = run(&cluster, &["guard", "suggest"])?;
    assert!(
        suggested.stdout.contains("set `guard: audit` first"),
        "{suggested:?}"
    );
    let steering = steering(&cluster)?;
    assert_eq!(steering.get("guard").and_then(Value::as_str), Some("off"));
    Ok(())
}

#[test]
fn a_running_connection_survives_that_the_guard_is_switched_on() -> Result<()> {
    let mut cluster = cluster("guard: off")?;
    let to: SocketAddr = cluster.target(0).parse()?;
    let scraper = cluster.node(1).runtime()?;
    let mut running = scraper.block_on(async move { TcpStream::connect(to).await })?;

    let config = cluster.agent_config(0)?;
    let config = config.replace("guard: off", "guard: enforce\nguard-allow: [ 10.0.10.12 ]");
    cluster.start_agent_with(0, &config)?;

    eventually(SOON, || {
        kept_out(&cluster, cluster.node(1)).is_ok_and(|out| out)
    });
    let answer = scraper.block_on(async move {
        // No TLS, to which the kubelet has an answer.
        running.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
        let mut answer = [0; 64];
        timeout(SOON, running.read(&mut answer)).await?
    });
    assert!(answer? > 0, "the connection still leads to the kubelet");
    Ok(())
}

#[test]
fn nobody_is_locked_out_by_an_agent_that_hangs_or_was_killed() -> Result<()> {
    for attach in attach_kinds()? {
        let guard = format!("guard: enforce\nguard-allow: [ 10.0.10.12 ]\nattach: {attach}");
        let mut cluster = cluster(&guard)?;
        eventually(SOON, || {
            kept_out(&cluster, cluster.node(1)).is_ok_and(|out| out)
        });

        cluster.agent(0).signal(Signal::SIGSTOP)?;
        eventually(EXPIRED, || {
            gets_in(&cluster, cluster.node(1)).is_ok_and(|in_| in_)
        });

        cluster.agent(0).signal(Signal::SIGCONT)?;
        eventually(SOON, || {
            kept_out(&cluster, cluster.node(1)).is_ok_and(|out| out)
        });

        cluster.agent(0).kill()?;
        eventually(EXPIRED, || {
            gets_in(&cluster, cluster.node(1)).is_ok_and(|in_| in_)
        });
    }
    Ok(())
}

#[test]
fn enforce_without_anybody_let_in_is_refused_at_the_start() -> Result<()> {
    let scratch = Scratch::new()?;

    let ended = scratch.run_with(AGENT, scratch.agent_config() + "guard: enforce\n")?;

    assert_eq!(ended.code, Some(2), "{ended:?}");
    let why = "must come with guard-allow, try audit first";
    assert!(
        ended.lines.iter().any(|line| line.contains(why)),
        "{ended:?}"
    );
    Ok(())
}

/// What comes in through an overlay has its own device: `net-inf` sees only its wrapping.
#[test]
fn an_overlay_is_guarded_only_where_guard_inf_names_it() -> Result<()> {
    for (guard_inf, kept) in [("[ ens3 ]", false), ("[ ens3, vx0 ]", true)] {
        let guard = format!("guard: enforce\nguard-allow: [ 10.0.10.12 ]\nguard-inf: {guard_inf}");
        let mut cluster = builder(&guard).build()?;
        overlay(cluster.node(0), cluster.node(1), "10.244.9.1/24")?;
        overlay(cluster.node(1), cluster.node(0), "10.244.9.2/24")?;
        cluster.start_master(0)?;
        cluster.start_agent(0)?;
        cluster.wait_for_sessions()?;
        let scraper = cluster.node(1);
        eventually(SOON, || kept_out(&cluster, scraper).is_ok_and(|out| out));

        let over: SocketAddr = "10.244.9.1:10250".parse()?;
        if kept {
            eventually(SOON, || !reaches(scraper, over));
        } else {
            assert!(reaches(scraper, over), "the wrapping is UDP");
        }
    }
    Ok(())
}

/// A vxlan device as flannel has it, between two nodes.
fn overlay(here: &Host, there: &Host, address: &str) -> Result<()> {
    let remote = there.ipv4().to_string();
    here.ip(&[
        "link", "add", "vx0", "type", "vxlan", "id", "1", "dstport", "8472", "remote", &remote,
        "dev", "ens3",
    ])?;
    here.ip(&["address", "add", address, "dev", "vx0"])?;
    here.ip(&["link", "set", "vx0", "up"])?;
    Ok(())
}

/// A neighbour answers within a millisecond; a busy machine needs more.
const ANSWER: Duration = Duration::from_millis(700);

/// The heartbeat expires after 5 s, and a client's next SYN gets through.
const EXPIRED: Duration = Duration::from_secs(8);
