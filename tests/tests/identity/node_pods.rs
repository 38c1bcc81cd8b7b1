//! Pods behind nodes: an agent's `allow` and its Node object's `spec.podCIDRs` must both have them.
//!
//! The agent of node 1 allows a range that its object does not have, as one would that wants what is
//! another's.

use anyhow::{Context, Result};
use proxymux_testkit::{
    far_end::{FarEnd, Script, drive},
    netns::{Host, Running},
};
use proxymux_tests::{
    access::access_line_with,
    events::{complaints, with_message},
    limits::{SOON, within},
    refusals::refused,
};

use super::node_stage::{Stage, USER, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_reached_through_the_node_whose_object_has_its_network() -> Result<()> {
    let mut stage = Stage::new(2)?;
    let [of_first, of_second] = [
        stage
            .fields(0, &[])
            .pod_cidrs(&["10.244.1.0/24", "fd00:244::/64"]),
        stage.fields(1, &[]),
    ];
    let names = [stage.cluster.node_name(0), stage.cluster.node_name(1)];
    stage.store.set(&names[0], &of_first);
    stage.store.set(&names[1], &of_second);
    stage.start_api()?;
    let kubeconfig = stage.cluster.dir().join("kubeconfig");
    stage.write_kubeconfig(&kubeconfig, USER)?;
    stage.start_master_with(&kubeconfig, ROUTES)?;
    for node in 0..2 {
        let config = stage.cluster.agent_config(node)?;
        stage
            .cluster
            .start_agent_with(node, &format!("{config}{ALLOW}"))?;
    }
    stage.cluster.wait_for_sessions()?;
    let api = stage.cluster.api()?;
    let first = pod(stage.cluster.node(0), "10.244.1.5/32", "10.244.1.5:20000")?;
    let first6 = pod(
        stage.cluster.node(0),
        "fd00:244::5/128",
        "[fd00:244::5]:20000",
    )?;
    let second = pod(stage.cluster.node(1), "10.244.2.5/32", "10.244.2.5:20000")?;
    let reached = async |target: String| -> Result<()> {
        let tunnel = within(SOON, "connect", api.connect(&target)).await?;
        let driven = within(SOON, "transfer", drive(tunnel, &Script::duplex(BYTES, 7))).await?;
        assert_eq!((driven.sent, driven.received), (BYTES, BYTES), "{target}");
        Ok(())
    };
    let refusal = async |target: &str| -> Result<String> {
        let answer = refused(&api, target, SOON).await?;
        assert_eq!(answer.code, 503, "{answer:?}");
        let cause = answer
            .reason
            .strip_prefix(&format!("no route to {target}: "));
        Ok(cause.context(answer.reason.clone())?.to_owned())
    };

    for pod in [&first, &first6] {
        let target = pod.local_addr().to_string();
        until("the pod is reached", async || reached(target.clone()).await).await?;
        let is_its =
            |line: &_| proxymux_testkit::process::LogEvent::text(line, "target") == Some(&*target);
        let line = access_line_with(stage.cluster.master(0), is_its).await?;
        assert_eq!(line.text("node"), Some(&*names[0]));
        assert_eq!(line.text("path"), Some("session"));
    }
    assert_eq!(
        refusal("10.244.1.5:20100").await?,
        format!(
            "10.244.1.5 is behind node {}, but its agent does not allow port 20100 there",
            names[0]
        )
    );

    // What an agent allows proves nothing, until its Node object has it too.
    assert_eq!(
        refusal("10.244.2.5:20000").await?,
        "no Node object has 10.244.2.5 in its podCIDRs"
    );
    assert_eq!(second.accepted(), 0);
    stage
        .store
        .set(&names[1], &of_second.clone().pod_cidrs(&["10.244.2.0/24"]));
    until("the pod is reached", async || {
        reached("10.244.2.5:20000".to_owned()).await
    })
    .await?;

    // Two objects say it, one of them with a larger network: nobody has it.
    stage
        .store
        .set(&names[1], &of_second.pod_cidrs(&["10.244.0.0/16"]));
    let both = format!(
        "the Node objects of {} and {} both have 10.244.1.5 in their podCIDRs",
        names[0], names[1]
    );
    until("two nodes have the pod", async || {
        anyhow::ensure!(refusal("10.244.1.5:20000").await? == both);
        Ok(())
    })
    .await?;

    // Without that object it is the first one's again, and the second one's pod is nobody's.
    stage.store.delete(&names[1]);
    until("the pod is reached again", async || {
        reached("10.244.1.5:20000".to_owned()).await
    })
    .await?;
    assert_eq!(
        refusal("10.244.2.5:20000").await?,
        "no Node object has 10.244.2.5 in its podCIDRs"
    );
    let stats = stage.stats();
    assert_eq!((stats.lists, stats.watches), (1, 1), "{stats:?}");
    assert_eq!(with_message(stage.cluster.master(0), "session up").len(), 2);
    assert_eq!(complaints(stage.cluster.master(0), 0), []);
    Ok(())
}

/// A far end at an address of its own on a host.
fn pod(host: &Host, address: &str, listen: &str) -> Result<Running<FarEnd>> {
    host.ip(&["addr", "add", address, "dev", "lo"])?;
    let listen = listen.to_owned();
    host.run(|| async { Ok(FarEnd::scripted(listen).await?) })
}

const ROUTES: &str =
    "routes: [ { cidr: 10.244.0.0/16, via: node }, { cidr: \"fd00:244::/32\", via: node } ]\n";

const ALLOW: &str = "allow:\n\
    - { cidr: 10.244.0.0/16, ports: 20000-20099 }\n\
    - { cidr: \"fd00:244::/64\", ports: 20000-20099 }\n";

const BYTES: u64 = 1 << 18;
