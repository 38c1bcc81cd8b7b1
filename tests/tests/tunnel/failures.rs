//! What the client is told, and what is given up, when a kubelet cannot be reached.
//!
//! Owns the kubelet that refuses, is silent, cannot be reached or resets, and the client that does
//! not wait. A node without a session is a matter of the contract's tests.

use std::time::Duration;

use anyhow::{Context, Result};
use proxymux_testkit::{
    apiserver::connect_request,
    cluster::Cluster,
    far_end::{Script, drive_fixed},
    netns::Host,
    wait::eventually_async,
};
use proxymux_tests::{
    access::{access_lines_now, only_access_lines},
    doors::refused,
    far_target::{ALLOW, far_target, fixed_far_end},
    limits::{SOON, within},
};
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, timeout},
};

#[tokio::test]
async fn a_kubelet_that_is_down_is_502_with_the_cause() -> Result<()> {
    let mut cluster = Cluster::started()?;
    cluster.stop_kubelet(0);
    let (api, target) = (cluster.api()?, cluster.target(0));

    let answer = refused(&api, &target).await?.to_string();

    let reason = "node 10.0.10.10 cannot connect to its kubelet at 10.0.10.10:10250: \
                  Connection refused (os error 111)";
    assert!(
        answer.ends_with(&format!("code 502: 502 {reason}")),
        "{answer}"
    );
    let [at_master, at_agent] = only_access_lines(&mut cluster, 0).await?;
    assert_eq!(at_master.number("status"), Some(502), "{at_master:#?}");
    assert_eq!(
        at_agent.text("reason"),
        Some("unreachable"),
        "{at_agent:#?}"
    );
    assert_eq!(at_agent.text("error"), Some(reason), "{at_agent:#?}");

    cluster.start_kubelet(0)?;
    let reply = within(SOON, "healthz", api.get(&target, "/healthz")).await?;
    assert_eq!(reply.text(), "ok", "a refusal costs nothing but itself");
    Ok(())
}

#[tokio::test]
async fn a_kubelet_that_says_nothing_is_opened_at_once_and_its_client_is_not_cut() -> Result<()> {
    let mut cluster = Cluster::builder().agent_lines(ALLOW).start()?;
    let _hole = fixed_far_end(&cluster, 0, Script::Hole)?;
    let (api, target) = (cluster.api()?, far_target(&cluster, 0));
    let began = Instant::now();
    let mut tunnel = within(SOON, "connect", api.connect(&target)).await?;
    let opened_after = began.elapsed();
    tunnel.write_all(HELLO).await?;

    let mut byte = [0];
    let patience = timeout(
        LONGEST_LIMIT,
        tokio::io::AsyncReadExt::read(&mut tunnel, &mut byte),
    );

    assert!(
        patience.await.is_err(),
        "the client was cut or told something"
    );
    assert!(
        opened_after < Duration::from_secs(2),
        "{opened_after:?} to open"
    );
    assert_eq!(access_lines_now(cluster.master(0)), []);
    assert_eq!(access_lines_now(cluster.agent(0)), []);
    drop(tunnel);
    for line in only_access_lines(&mut cluster, 0).await? {
        assert_eq!(
            line.number("bytes_to_target"),
            Some(HELLO.len() as u64),
            "{line:#?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn an_address_that_does_not_answer_is_504_with_what_the_node_saw() -> Result<()> {
    let mut cluster = Cluster::builder().agent_lines("dial-timeout: 1s").start()?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    drop_kubelet_traffic(cluster.node(0))?;

    let began = Instant::now();
    let answer = refused(&api, &target).await?.to_string();

    let reason = "504 node 10.0.10.10 got no answer from its kubelet at 10.0.10.10:10250 within \
                  1000 ms";
    assert!(answer.ends_with(reason), "{answer}");
    let took = began.elapsed();
    assert!(
        took > Duration::from_millis(900) && took < BUDGET,
        "{took:?}"
    );
    let [at_master, at_agent] = only_access_lines(&mut cluster, 0).await?;
    assert_eq!(at_master.number("status"), Some(504), "{at_master:#?}");
    assert_eq!(at_agent.text("reason"), Some("timed-out"), "{at_agent:#?}");
    Ok(())
}

#[tokio::test]
async fn an_address_that_does_not_answer_is_504_when_the_budget_is_used_up() -> Result<()> {
    let mut cluster = Cluster::builder()
        .master_lines("connect-budget: 1s")
        .start()?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    drop_kubelet_traffic(cluster.node(0))?;

    let began = Instant::now();
    let answer = refused(&api, &target).await?.to_string();

    // The node gives up a little sooner than the master, whose reason would say less.
    let reason = "504 node 10.0.10.10 got no answer from its kubelet at 10.0.10.10:10250 within ";
    assert!(answer.contains(reason), "{answer}");
    let took = began.elapsed();
    assert!(took > Duration::from_millis(700), "{took:?}");
    assert!(
        took < Duration::from_secs(3),
        "{took:?} with a budget of one second"
    );
    only_access_lines(&mut cluster, 0).await?;
    eventually_async(SOON, async || dials(cluster.node(0)) == 0).await;
    Ok(())
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_ends_the_dial_at_the_node() -> Result<()> {
    // Neither end would give up by itself while the test waits.
    let builder = Cluster::builder().master_lines("connect-budget: 60s");
    let mut cluster = builder.agent_lines("dial-timeout: 60s").start()?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    drop_kubelet_traffic(cluster.node(0))?;
    let mut client = within(SOON, "front door", api.raw()).await?;
    client.send(connect_request(&target).as_bytes()).await?;
    eventually_async(SOON, async || dials(cluster.node(0)) == 1).await;

    drop(client);
    let left = Instant::now();

    eventually_async(SOON, async || dials(cluster.node(0)) == 0).await;
    let ended_after = left.elapsed();
    assert!(
        ended_after < Duration::from_secs(3),
        "{ended_after:?} until the dial ended"
    );
    let [at_master, at_agent] = only_access_lines(&mut cluster, 0).await?;
    assert_eq!(at_master.message, "connection cancelled", "{at_master:#?}");
    assert_eq!(
        at_master.text("target"),
        Some(target.as_str()),
        "{at_master:#?}"
    );
    assert_eq!(at_agent.message, "connection refused", "{at_agent:#?}");
    assert_eq!(at_agent.text("reason"), Some("cancelled"), "{at_agent:#?}");
    assert_eq!(
        at_agent.text("target"),
        Some(target.as_str()),
        "{at_agent:#?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_target_that_resets_is_told_from_one_that_ends() -> Result<()> {
    let mut cluster = Cluster::builder().agent_lines(ALLOW).start()?;
    let _far_end = fixed_far_end(&cluster, 0, Script::Reset { after: 5 })?;
    let (api, target) = (cluster.api()?, far_target(&cluster, 0));
    let tunnel = within(SOON, "connect", api.connect(&target)).await?;

    // A Unix socket knows no reset, so the client sees the close; the logs know more.
    let driven = drive_fixed(tunnel, &Script::Reset { after: 5 });
    let driven = timeout(SOON, driven)
        .await
        .context("the client is not told of the reset")?;

    let error = driven
        .expect_err("a Unix socket cannot be reset")
        .to_string();
    assert_eq!(error, "an end of stream instead of a reset");
    let [at_master, at_agent] = only_access_lines(&mut cluster, 0).await?;
    assert_eq!(
        at_master.text("outcome"),
        Some("peer-reset"),
        "{at_master:#?}"
    );
    assert_eq!(at_agent.text("outcome"), Some("reset"), "{at_agent:#?}");
    Ok(())
}

/// Makes the kubelet's port on a node one from which no answer comes, not even a refusal.
fn drop_kubelet_traffic(node: &Host) -> Result<()> {
    node.nft(
        "table inet silent_kubelet {\n\
           chain arriving {\n\
             type filter hook input priority 0; policy accept;\n\
             tcp dport 10250 drop\n\
           }\n\
         }\n",
    )
}

/// How many connections to the kubelet a node has asked for and not got.
fn dials(node: &Host) -> usize {
    let listed = node
        .command("ss")
        .args(["-Htn", "state", "syn-sent", "dport = :10250"])
        .output();
    let listed = listed.expect("ss comes with ip");
    assert!(
        listed.status.success(),
        "{}",
        String::from_utf8_lossy(&listed.stderr)
    );
    String::from_utf8_lossy(&listed.stdout).lines().count()
}

const HELLO: &[u8] = b"\x16\x03\x01, a client hello that nobody reads";

/// The master's when it is not configured.
const BUDGET: Duration = Duration::from_secs(8);

/// Longer than a session without life is kept (15 s) and a connection without answers to
/// keep-alive probes (20 s).
const LONGEST_LIMIT: Duration = Duration::from_secs(21);
