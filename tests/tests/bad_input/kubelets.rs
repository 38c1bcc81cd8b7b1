//! A kubelet that is not there, or there and silent.
//!
//! The user learns the cause from the status line, the operator from both access logs, and the
//! session that it came by goes on, as does everybody on other nodes.

use std::time::Duration;

use anyhow::Result;
use proxymux_testkit::{
    apiserver::ConnectError,
    cluster::Cluster,
    far_end::{FarEnd, Script},
    wait::eventually_async,
};
use proxymux_tests::{
    access::access_line_with,
    bystander::Bystander,
    events::{complaints, with_message},
    limits::{SOON, within},
};
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubelet_that_is_down_is_told_to_the_user_with_the_cause() -> Result<()> {
    let mut cluster = Cluster::builder().nodes(2).start()?;
    let bystander = Bystander::of_node(&mut cluster, 0).await?;
    cluster.stop_kubelet(1);
    let (api, target) = (cluster.api()?, cluster.target(1));

    let refused = timeout(SOON, api.connect(&target))
        .await?
        .expect_err("no kubelet");

    let cause = "node 10.0.10.11 cannot connect to its kubelet at 10.0.10.11:10250: Connection \
                 refused (os error 111)";
    let ConnectError::Refused { code, status, .. } = &refused else {
        panic!("expected a status, not {refused:?}");
    };
    assert_eq!((*code, status.as_str()), (502, &*format!("502 {cause}")));
    let masters = access_line_with(cluster.master(0), |l| l.message == "connection refused");
    let masters = masters.await?;
    assert_eq!(
        (masters.number("status"), masters.text("reason")),
        (Some(502), Some(cause))
    );
    let agents = access_line_with(cluster.agent(1), |l| l.message == "connection refused").await?;
    assert_eq!(agents.text("reason"), Some("unreachable"));
    assert_eq!(agents.text("error"), Some(cause));
    // It is this connection that failed: the session stays, and the kubelet comes back to it.
    assert_eq!(complaints(cluster.agent(1), 0), []);
    cluster.start_kubelet(1)?;
    let reply = within(SOON, "ask again", api.get(&target, "/healthz")).await?;
    assert_eq!(reply.status, 200);
    assert_eq!(with_message(cluster.agent(1), "session up").len(), 1);
    bystander.did_not_notice(&mut cluster).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubelet_that_accepts_and_says_nothing_keeps_only_its_own_users_waiting() -> Result<()> {
    let mut cluster = Cluster::builder().nodes(2).start()?;
    let bystander = Bystander::of_node(&mut cluster, 0).await?;
    cluster.stop_kubelet(1);
    let start = || async { Ok(FarEnd::fixed("[::]:10250", Script::Hole).await?) };
    let silent = cluster.node(1).run(start)?;
    let (api, target) = (cluster.api()?, cluster.target(1));

    // The connection stands, which is all that the tunnel knows of.
    let waiting: Vec<_> = (0..WAITING)
        .map(|_| {
            let (api, target) = (api.clone(), target.clone());
            tokio::spawn(async move { api.get(&target, "/healthz").await })
        })
        .collect();
    eventually_async(SOON, async || silent.accepted() == WAITING).await;

    bystander.is_served().await?;
    assert!(waiting.iter().all(|request| !request.is_finished()));
    // Users give up, and everything that was kept for them goes.
    for request in waiting {
        request.abort();
    }
    let closed = |line: &&_| is_closed(line);
    eventually_async(SOON, async || {
        let all = usize::try_from(WAITING).expect("a small number");
        let lines = cluster.agent(1).events();
        lines.iter().filter(closed).count() == all
    })
    .await;
    cluster.master(0).wait_for_event(SOON, is_closed)?;
    assert_eq!(complaints(cluster.agent(1), 0), []);
    drop(silent);
    cluster.start_kubelet(1)?;
    let reply = within(SOON, "ask again", api.get(&target, "/healthz")).await?;
    assert_eq!(reply.status, 200);
    bystander.did_not_notice(&mut cluster).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubelet_that_does_not_answer_a_dial_is_given_up_within_the_budget() -> Result<()> {
    let agent_lines = "dial-timeout: 1s";
    let mut cluster = Cluster::builder()
        .nodes(2)
        .agent_lines(agent_lines)
        .start()?;
    let bystander = Bystander::of_node(&mut cluster, 0).await?;
    cluster.node(1).nft(DROP_KUBELET_BOUND)?;
    let (api, target) = (cluster.api()?, cluster.target(1));

    let refused = timeout(BUDGET, api.connect(&target))
        .await?
        .expect_err("no kubelet");

    assert_eq!(
        refused.to_string(),
        format!(
            "proxy error from {} while dialing {target}, code 504: 504 node 10.0.10.11 got no \
             answer from its kubelet at {target} within 1000 ms",
            cluster.socket(0).display()
        )
    );
    bystander.did_not_notice(&mut cluster).await
}

fn is_closed(line: &proxymux_testkit::process::LogEvent) -> bool {
    line.message == "connection closed" && line.text("node") == Some("10.0.10.11")
}

/// More than one, and each costs a connection on the node.
const WAITING: u64 = 10;

/// The master's own, and a generous margin.
const BUDGET: Duration = Duration::from_secs(15);

const DROP_KUBELET_BOUND: &str = "
table ip filter {
    chain input {
        type filter hook input priority 0
        tcp dport 10250 drop
    }
}";
