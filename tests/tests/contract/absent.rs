//! Nodes without a session: when they are waited for, and what is said when they are not.
//!
//! A master that has just started does not know who is still to come, and a node that was here a
//! moment ago mostly comes back. Beyond that the answer is given at once.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use proxymux_testkit::{apiserver::ApiServer, cluster::Cluster};
use proxymux_tests::{
    doors::{DOORS, at_master, refused, start_master_with_both_doors, start_with_both_doors},
    limits::{SOON, within},
};
use tokio::time::Instant;

#[test]
fn an_unknown_node_is_waited_for_by_a_new_master_and_refused_at_once_later() -> Result<()> {
    let builder = Cluster::builder().master_lines("connect-budget: 2s");
    let mut cluster = builder.build()?;
    let began = Instant::now();
    start_master_with_both_doors(&mut cluster)?;
    let (unix, tcp) = (DOORS[0].api(&cluster)?, DOORS[1].api(&cluster)?);

    at_master(&cluster, async {
        let first = ask(&unix, "10.0.10.77:10250").await?;
        ensure!(first.took > BUDGET * 3 / 4, "not waited for: {first:?}");
        ensure!(first.took < BUDGET + SLACK, "budget overrun: {first:?}");

        until_at_once(&unix, "10.0.10.77:10250").await?;
        let known_after = began.elapsed();
        ensure!(
            known_after >= WAITED_FOR,
            "refused at once after {known_after:?} already"
        );

        for api in [&unix, &tcp] {
            for (target, why) in [
                ("10.0.10.77:10250", "no node has this address"),
                ("[fd00:10::77]:10250", "no node has this address"),
                ("Worker-77.Example:10250", "no node has this name"),
            ] {
                let answer = ask_at_once(api, target).await?;
                let said = format!("503 no route to {}: {why}", target.to_lowercase());
                ensure!(
                    answer.text.ends_with(&said),
                    "{answer:?}, expected {said:?}"
                );
            }
        }
        Ok(())
    })
}

#[test]
fn a_node_that_has_gone_is_waited_for_and_then_refused_with_its_age() -> Result<()> {
    let builder = Cluster::builder().master_lines("connect-budget: 2s");
    let mut cluster = start_with_both_doors(builder)?;
    let (unix, tcp) = (DOORS[0].api(&cluster)?, DOORS[1].api(&cluster)?);
    let target = cluster.target(0);
    let gone = Instant::now();
    cluster.agent(0).kill()?;
    cluster.master(0).wait_for_line("session lost", SOON)?;

    at_master(&cluster, async {
        let first = ask(&unix, &target).await?;
        ensure!(first.took > BUDGET * 3 / 4, "not waited for: {first:?}");
        ensure!(first.took < BUDGET + SLACK, "budget overrun: {first:?}");
        ensure!(age(&first)? <= 5, "{first:?}");

        until_at_once(&unix, &target).await?;

        for api in [&unix, &tcp] {
            let answer = ask_at_once(api, &target).await?;
            let (age, most) = (age(&answer)?, gone.elapsed().as_secs());
            ensure!(
                (WAITED_FOR.as_secs()..=most).contains(&age),
                "{answer:?} after {most} s"
            );
            // By name it is the same node, since its name is its address.
            ensure!(
                answer.text.contains("503 node 10.0.10.10 has no session"),
                "{answer:?}"
            );
        }
        Ok(())
    })
}

#[test]
fn a_node_that_comes_back_in_time_does_not_show_that_it_was_gone() -> Result<()> {
    let mut cluster = start_with_both_doors(Cluster::builder())?;
    let target = cluster.target(0);
    let apis = [DOORS[0].api(&cluster)?, DOORS[1].api(&cluster)?];
    cluster.agent(0).kill()?;
    cluster.master(0).wait_for_line("session lost", SOON)?;
    let runtime = cluster.topology().master().runtime()?;
    let asked = apis.map(|api| {
        let target = target.clone();
        runtime.spawn(async move { api.get(&target, "/healthz").await })
    });

    cluster.start_agent(0)?;

    for reply in asked {
        let reply = cluster.node(0).block_on(within(SOON, "healthz", reply))??;
        assert_eq!(reply.text(), "ok");
    }
    Ok(())
}

#[derive(Debug)]
struct Answer {
    text: String,
    took: Duration,
}

async fn ask(api: &ApiServer, target: &str) -> Result<Answer> {
    let began = Instant::now();
    let error = refused(api, target).await?;
    ensure!(error.code() == Some(503), "{error}");
    Ok(Answer {
        text: error.to_string(),
        took: began.elapsed(),
    })
}

/// Asks again and again until an answer comes at once.
async fn until_at_once(api: &ApiServer, target: &str) -> Result<()> {
    let asking = async {
        while ask(api, target).await?.took >= AT_ONCE {}
        anyhow::Ok(())
    };
    within(WAITED_FOR * 2, "an answer at once", asking).await
}

/// Asks once more if an answer takes long: a machine may be busy, but one that waits for a node
/// waits every time.
async fn ask_at_once(api: &ApiServer, target: &str) -> Result<Answer> {
    for _ in 0..3 {
        let answer = ask(api, target).await?;
        if answer.took < AT_ONCE {
            return Ok(answer);
        }
    }
    bail!("no answer about {target} at once")
}

/// The seconds in `node X has no session; last seen Ns ago`.
fn age(answer: &Answer) -> Result<u64> {
    let said = answer.text.split_once("has no session; last seen ");
    let age = said.and_then(|(_, rest)| rest.strip_suffix("s ago")?.parse().ok());
    age.with_context(|| format!("no age in {answer:?}"))
}

/// For how long nodes are waited for that should be here.
const WAITED_FOR: Duration = Duration::from_secs(15);

const BUDGET: Duration = Duration::from_secs(2);

/// For a busy machine.
const SLACK: Duration = Duration::from_secs(3);

/// Well below the budget, and well above what an answer takes on a busy machine.
const AT_ONCE: Duration = Duration::from_millis(700);
