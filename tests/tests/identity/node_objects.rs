//! Addresses that only the API server knows: `node-addresses: kubernetes`.
//!
//! The stand-in API server is on the master's own machine, as kube-apiserver is, but where its wire
//! is to go dead. Node 0 has an address in its Node object that its agent knows nothing of, and
//! node 1 is the one that is tempted.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxymux_testkit::wait::eventually;
use proxymux_tests::{
    admin::{at_master, status},
    events::{since, wait_for, wait_for_message, with_message},
    limits::SOON,
};

use super::node_stage::{
    EXTERNAL, GRANTED, OTHER, REFUSED, REMOTE, STAY, Stage, USER, reaches, refused, until,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_reached_by_what_only_its_node_object_says_and_loses_it_with_that() -> Result<()>
{
    let mut stage = Stage::new(2)?;
    stage.store.set(
        &stage.cluster.node_name(0),
        &stage
            .fields(0, &[EXTERNAL, "node-a.internal.example"])
            .pod_cidrs(&["10.244.0.0/24"]),
    );
    stage.set(1, &[]);
    stage.start_api()?;
    stage.start_master()?;
    stage.start_agents(2)?;
    let api = stage.cluster.api()?;
    stage.told(0, 0, GRANTED, EXTERNAL)?;

    reaches(&api, EXTERNAL).await?;
    reaches(&api, "node-a.internal.example").await?;
    let stats = stage.stats();
    assert_eq!((stats.lists, stats.pages), (1, 1), "{stats:?}");
    let shown = status(&at_master(&stage.cluster)).await?;
    assert_eq!(shown["node_addresses"]["objects"], 2, "{shown}");
    assert_eq!(shown["node_addresses"]["watching"], true, "{shown}");
    assert_eq!(shown["nodes"][0]["node_object"]["kubelet_port"], 10250);

    // It moves to the other node, and the one that had it is told.
    let marks = [stage.cluster.agent(0).mark(), stage.cluster.agent(1).mark()];
    stage.set(0, &[]);
    stage.set(1, &[EXTERNAL]);
    stage.told(1, marks[1], GRANTED, EXTERNAL)?;
    reaches(&api, EXTERNAL).await?;
    eventually(SOON, || {
        stage.cluster.kubelet(1).stats().connections_accepted > 0
    });

    // Both say it: nobody has it.
    stage.set(0, &[EXTERNAL]);
    let reason = stage.told(1, marks[1], REFUSED, EXTERNAL)?;
    let other = stage.cluster.node_name(0);
    assert_eq!(
        reason,
        format!("the Node object of node {other} has it too, expected one of them")
    );
    let said = refused(&api, EXTERNAL).await?;
    assert!(said.contains("no node has this address"), "{said}");

    // A deleted object takes only what it alone has proven.
    let mark = stage.cluster.agent(0).mark();
    stage.store.delete(&stage.cluster.node_name(1));
    stage.told(0, mark, GRANTED, EXTERNAL)?;
    stage.store.delete(&stage.cluster.node_name(0));
    // Its agent claims nothing of that, so that it is told no reason.
    let said = until("the address leads nowhere", async || {
        refused(&api, EXTERNAL).await
    })
    .await?;
    assert!(said.contains("no node has this address"), "{said}");
    reaches(&api, &stage.cluster.node_name(0)).await?;
    assert_eq!(with_message(stage.cluster.agent(0), "session up").len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_starts_without_the_api_server_and_keeps_what_it_knows_without_it() -> Result<()> {
    let mut stage = Stage::new(2)?;
    // Not even the file is there.
    let kubeconfig = stage.cluster.dir().join("kubeconfig");
    stage.start_master_with(&kubeconfig, "")?;
    let said = wait_for_message(
        stage.cluster.master(0),
        0,
        SOON,
        "node objects are not known yet",
    )?;
    let error = said.text("error").unwrap_or_default().to_owned();
    assert!(error.starts_with("cannot read the kubeconfig"), "{error}");
    stage.start_agents(2)?;
    let api = stage.cluster.api()?;
    let own = stage.cluster.node_name(0);
    reaches(&api, &own).await?;
    let ready = status(&at_master(&stage.cluster)).await?;
    assert_eq!(ready["ready"], true, "{ready}");

    // File, then API server, in the order in which a control plane comes up.
    stage.write_kubeconfig(&kubeconfig, USER)?;
    wait_for(stage.cluster.master(0), 0, SOON, |event| {
        let error = event.text("error").unwrap_or_default();
        event.message == "node objects are not known yet" && error.contains("cannot connect")
    })?;
    stage.set(0, &[EXTERNAL]);
    stage.start_api()?;
    stage.told(0, 0, GRANTED, EXTERNAL)?;
    reaches(&api, EXTERNAL).await?;

    // Away: what was read stays in force, for what is new too.
    let mark = stage.cluster.master(0).mark();
    stage.running = None;
    wait_for_message(stage.cluster.master(0), mark, SOON, STAY)?;
    reaches(&api, EXTERNAL).await?;
    let shown = status(&at_master(&stage.cluster)).await?;
    assert_eq!(shown["node_addresses"]["watching"], false, "{shown}");
    assert!(shown["node_addresses"]["error"].is_string(), "{shown}");
    assert_eq!(shown["ready"], true, "{shown}");

    // Meanwhile the address moves, and the API server forgets how: it answers 410.
    stage.set(0, &[OTHER]);
    stage.set(1, &[EXTERNAL]);
    stage.store.forget();
    let mark = stage.cluster.agent(1).mark();
    stage.start_api()?;
    stage.told(1, mark, GRANTED, EXTERNAL)?;
    stage.told(0, 0, GRANTED, OTHER)?;
    reaches(&api, OTHER).await?;
    let stats = stage.stats();
    assert!(stats.gone >= 1 && stats.lists == 1, "{stats:?}");

    // 410 within the watch.
    let mark = stage.cluster.master(0).mark();
    stage.store.forget();
    stage.store.expire_watches();
    wait_for_message(stage.cluster.master(0), mark, SOON, "node objects are read")?;
    let mark = stage.cluster.agent(1).mark();
    stage.set(1, &[OTHER]);
    let reason = stage.told(1, mark, REFUSED, OTHER)?;
    assert!(reason.contains("has it too"), "{reason}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_role_is_told_once_with_the_fix_and_a_role_is_noticed() -> Result<()> {
    let mut stage = Stage::new(1)?;
    stage.set(0, &[EXTERNAL]);
    stage.store.forbid(true);
    stage.start_api()?;
    stage.start_master()?;
    stage.start_agents(1)?;
    let said = wait_for_message(
        stage.cluster.master(0),
        0,
        SOON,
        "node objects are not known yet",
    )?;
    let error = said.text("error").unwrap_or_default().to_owned();
    assert!(
        error.contains("nodes is forbidden: User \"proxymux-master\"")
            && error.contains("needs get, list and watch on nodes"),
        "{error}"
    );
    eventually(SOON, || stage.stats().refused >= 3);
    let told = since(stage.cluster.master(0), 0);
    let told = told.iter().filter(|event| event.message == said.message);
    assert_eq!(told.count(), 1, "each state is told once");

    stage.store.forbid(false);

    stage.told(0, 0, GRANTED, EXTERNAL)?;
    wait_for_message(
        stage.cluster.master(0),
        0,
        SOON,
        "node objects are watched again",
    )?;
    reaches(&stage.cluster.api()?, EXTERNAL).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bookmarks_save_a_list_and_a_claim_is_no_proof_against_a_node_object() -> Result<()> {
    let mut stage = Stage::new(2)?;
    stage.set(0, &[EXTERNAL]);
    stage.set(1, &[]);
    stage.start_api()?;
    stage.start_master()?;
    stage.cluster.start_agent(0)?;
    stage.cluster.wait_for_sessions()?;
    // Node 1 has its own certificate, and says that it has node 0's addresses.
    let stolen = stage.cluster.node_name(0);
    let config = stage.cluster.agent_config(1)?.replace(
        "public-ip-address: \n",
        &format!("public-ip-address: {EXTERNAL}\n"),
    );
    stage.cluster.start_agent_with(1, &config)?;
    let reason = stage.told(1, 0, REFUSED, EXTERNAL)?;
    assert!(
        reason.starts_with("not proven: expected a place in its Node object"),
        "{reason}"
    );
    let api = stage.cluster.api()?;
    reaches(&api, EXTERNAL).await?;
    reaches(&api, &stolen).await?;
    assert_eq!(stage.cluster.kubelet(1).stats().connections_accepted, 0);

    see_bookmark(&stage).await?;
    stage.store.forget();
    let mark = stage.cluster.master(0).mark();
    stage.running = None;
    wait_for_message(stage.cluster.master(0), mark, SOON, STAY)?;
    stage.start_api()?;
    wait_for_message(
        stage.cluster.master(0),
        mark,
        SOON,
        "node objects are watched again",
    )?;
    let stats = stage.stats();
    assert_eq!((stats.lists, stats.gone), (0, 0), "{stats:?}");
    Ok(())
}

/// Sends a bookmark, and waits until the master has seen it.
async fn see_bookmark(stage: &Stage) -> Result<()> {
    let at = at_master(&stage.cluster);
    let heard = async || -> Result<u64> {
        let shown = status(&at).await?;
        let heard = shown.pointer("/node_addresses/heard_s");
        heard
            .and_then(|heard| heard.as_u64())
            .context("it has heard something")
    };
    // So that it can be told from what was heard before.
    until("nothing is heard", async || {
        ensure!(heard().await? >= 1);
        Ok(())
    })
    .await?;
    stage.store.bookmark();
    until("a bookmark is heard", async || {
        ensure!(heard().await? == 0);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_whose_wire_is_dead_is_noticed_and_what_was_missed_is_made_up_for() -> Result<()> {
    let mut stage = Stage::new(2)?;
    stage.set(0, &[EXTERNAL]);
    stage.set(1, &[]);
    let router = stage.cluster.topology().router().clone();
    let mut config = stage.api_config()?;
    config.listen = REMOTE.parse()?;
    stage.start_api_at(&router, config)?;
    let kubeconfig = stage.cluster.dir().join("kubeconfig");
    stage.write_kubeconfig_at(&kubeconfig, REMOTE, USER)?;
    stage.start_master_with(&kubeconfig, "")?;
    stage.start_agents(2)?;
    stage.told(0, 0, GRANTED, EXTERNAL)?;

    // Not even a FIN comes through, and what happens meanwhile does not either.
    let mark = stage.cluster.master(0).mark();
    router.nft(DEAD)?;
    stage.set(0, &[]);
    stage.set(1, &[EXTERNAL]);

    // Keep-alive notices, after 20 s.
    let said = wait_for_message(stage.cluster.master(0), mark, NOTICED, STAY)?;
    let error = said.text("error").unwrap_or_default();
    assert!(
        error.starts_with("the API server: an answer was cut off"),
        "{error}"
    );
    let api = stage.cluster.api()?;
    reaches(&api, EXTERNAL).await?;
    let shown = status(&at_master(&stage.cluster)).await?;
    assert_eq!(shown["node_addresses"]["watching"], false, "{shown}");
    router.nft("delete table inet dead\n")?;
    wait_for_message(
        stage.cluster.master(0),
        mark,
        SOON,
        "node objects are watched again",
    )?;
    stage.told(1, 0, GRANTED, EXTERNAL)?;
    let stats = stage.stats();
    assert_eq!((stats.lists, stats.watches), (1, 2), "{stats:?}");
    let told = since(stage.cluster.master(0), mark);
    let told = told.iter().filter(|event| event.message == STAY);
    assert_eq!(told.count(), 1);
    Ok(())
}

/// The router takes nothing for the API server that is on it, and sends nothing from there.
const DEAD: &str = "table inet dead {\n\
    chain input { type filter hook input priority 0; tcp dport 6443 drop; }\n\
    chain output { type filter hook output priority 0; tcp sport 6443 drop; }\n\
    }\n";

const NOTICED: Duration = Duration::from_secs(60);
