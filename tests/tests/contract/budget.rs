//! Every request is answered within the budget, because kube-apiserver sets no limit itself.
//!
//! A stopped agent stands for a node that hangs: its kernel still acknowledges what is sent to it.
//! Limits of what may wait for a node, and clients that leave meanwhile, belong here too.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use proxymux_testkit::{
    apiserver::{ApiServer, ConnectError},
    cluster::Cluster,
};
use proxymux_tests::{
    access::{access_line_with, access_lines},
    doors::{DOORS, at_master, start_with_both_doors},
    far_target::{ALLOW, far_target, scripted_far_end},
    latency::Latencies,
    limits::{SOON, within},
};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

#[test]
fn a_node_that_hangs_is_504_in_time_and_the_others_are_served() -> Result<()> {
    let builder = Cluster::builder()
        .nodes(2)
        .master_lines("connect-budget: 2s");
    let mut cluster = start_with_both_doors(builder)?;
    let (hangs, lives) = (cluster.target(0), cluster.target(1));
    let apis = [DOORS[0].api(&cluster)?, DOORS[1].api(&cluster)?];
    cluster.agent(0).signal(Signal::SIGSTOP)?;

    at_master(&cluster, async {
        let mut requests = JoinSet::new();
        for number in 0..40 {
            requests.spawn(timed_connect(apis[number % 2].clone(), hangs.clone()));
        }
        let mut served = Latencies::default();
        for number in 0..20 {
            let reply = apis[number % 2].get(&lives, "/healthz");
            let began = Instant::now();
            within(SOON, "healthz of the other node", reply).await?;
            served.add(began.elapsed());
        }
        ensure!(
            served.percentile(50) < BUDGET / 4,
            "the other node took {served}"
        );
        while let Some(answered) = requests.join_next().await {
            let (took, answer) = answered??;
            let error = answer.err().context("connected through a stopped agent")?;
            let said = "code 504: 504 node 10.0.10.10 did not answer within the budget for \
                        10.0.10.10:10250";
            ensure!(error.to_string().ends_with(said), "{error}");
            ensure!(took > BUDGET / 2, "{took:?} is before its time");
            ensure!(
                took < BUDGET + SLACK,
                "{took:?} with a budget of {BUDGET:?}"
            );
        }
        anyhow::Ok(())
    })?;

    cluster.agent(0).signal(Signal::SIGCONT)?;
    let reply = at_master(
        &cluster,
        within(SOON, "healthz", apis[0].get(&hangs, "/healthz")),
    )?;
    assert_eq!(reply.text(), "ok", "a hang that is over costs nothing more");
    let machine = cluster.topology().master().clone();
    let lines = machine.block_on(access_lines(cluster.master(0), 61))?;
    let timed_out = lines
        .iter()
        .filter(|line| line.number("status") == Some(504));
    assert_eq!(timed_out.count(), 40);
    Ok(())
}

#[test]
fn requests_beyond_the_limit_of_pending_dials_wait_no_longer_than_the_budget() -> Result<()> {
    let lines = "connect-budget: 2s\nmax-pending-dials-per-node: 10";
    let mut cluster = start_with_both_doors(Cluster::builder().master_lines(lines))?;
    let target = cluster.target(0);
    let apis = [DOORS[0].api(&cluster)?, DOORS[1].api(&cluster)?];
    cluster.agent(0).signal(Signal::SIGSTOP)?;

    let mut codes = at_master(&cluster, async {
        let mut requests = JoinSet::new();
        for number in 0..30 {
            requests.spawn(timed_connect(apis[number % 2].clone(), target.clone()));
        }
        let mut codes = Vec::new();
        while let Some(answered) = requests.join_next().await {
            let (took, answer) = answered??;
            let error = answer.err().context("connected through a stopped agent")?;
            if error.code() == Some(503) {
                let said = "503 node 10.0.10.10: session has 10 dials pending, its limit; waited ";
                ensure!(error.to_string().contains(said), "{error}");
            }
            ensure!(took > BUDGET / 2, "{took:?} is before its time");
            ensure!(
                took < BUDGET + SLACK,
                "{took:?} with a budget of {BUDGET:?}"
            );
            codes.push(error.code().with_context(|| error.to_string())?);
        }
        anyhow::Ok(codes)
    })?;

    codes.sort_unstable();
    assert_eq!(codes, [vec![503; 20], vec![504; 10]].concat());
    Ok(())
}

#[test]
fn connections_beyond_the_limit_of_streams_are_503_until_one_ends() -> Result<()> {
    let builder = Cluster::builder()
        .master_lines("max-streams-per-node: 5")
        .agent_lines(ALLOW);
    let cluster = start_with_both_doors(builder)?;
    let _far_end = scripted_far_end(&cluster, 0)?;
    let (api, target) = (DOORS[0].api(&cluster)?, far_target(&cluster, 0));

    at_master(&cluster, async {
        let mut tunnels = Vec::new();
        for _ in 0..5 {
            tunnels.push(within(SOON, "connect", api.connect(&target)).await?);
        }
        let (_, answer) = timed_connect(api.clone(), target.clone()).await?;
        let error = answer.err().context("one more than the limit")?;
        let said = "code 503: 503 node 10.0.10.10: session has 5 streams open, its limit";
        ensure!(error.to_string().ends_with(said), "{error}");

        tunnels.pop();

        // The stream is gone when both ends have let go of it.
        let free = async {
            loop {
                match timed_connect(api.clone(), target.clone()).await? {
                    (_, Ok(())) => return anyhow::Ok(()),
                    (_, Err(error)) => ensure!(error.code() == Some(503), "{error}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within(SOON, "a free place", free).await
    })
}

#[test]
fn a_client_that_leaves_while_its_node_hangs_is_let_go_at_once() -> Result<()> {
    let mut cluster = start_with_both_doors(Cluster::builder())?;
    let target = cluster.target(0);
    cluster.agent(0).signal(Signal::SIGSTOP)?;

    for door in DOORS {
        let api = door.api(&cluster)?;
        at_master(&cluster, async {
            let connecting = timeout(Duration::from_millis(300), api.connect(&target));
            ensure!(
                connecting.await.is_err(),
                "connected through a stopped agent"
            );
            anyhow::Ok(())
        })?;
        let (word, machine) = (door.to_string(), cluster.topology().master().clone());
        let line = access_line_with(cluster.master(0), |line| {
            line.text("door") == Some(word.as_str())
        });
        let line = machine.block_on(line)?;
        assert_eq!(line.message, "connection cancelled", "{line:#?}");
        let lasted = line.number("duration_ms");
        assert!(
            lasted.is_some_and(|ms| ms < 3000),
            "the budget was used up: {line:#?}"
        );
    }
    Ok(())
}

/// How long it took to connect, or not to; a tunnel is closed at once.
async fn timed_connect(
    api: ApiServer,
    target: String,
) -> Result<(Duration, Result<(), ConnectError>)> {
    let began = Instant::now();
    let answer = timeout(SOON, api.connect(&target))
        .await
        .context("no answer at all")?;
    Ok((began.elapsed(), answer.map(drop)))
}

const BUDGET: Duration = Duration::from_secs(2);

/// For a busy machine.
const SLACK: Duration = Duration::from_secs(3);
