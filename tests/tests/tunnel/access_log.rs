//! The access logs of both ends: one line per connection, exact counts, every field.
//!
//! The far end knows how many bytes it has taken and given, so the logs are compared with that.
//! Outcomes of connections that fail are in `failures` and in the tests of resets.

use anyhow::Result;
use proxymux_testkit::{
    cluster::Cluster,
    far_end::{Closer, Script, drive},
    wait::{eventually, eventually_async},
};
use proxymux_tests::{
    access::{Closed, DONE, access_lines, access_lines_now, only_access_lines},
    doors::{DOORS, Door, at_master, refused, start_with_both_doors},
    far_target::{ALLOW, far_target, scripted_far_end},
    limits::{SOON, within},
};

#[test]
fn both_ends_count_every_byte_of_either_direction() -> Result<()> {
    for door in DOORS {
        let mut cluster = start_with_both_doors(Cluster::builder().agent_lines(ALLOW))?;
        let far_end = scripted_far_end(&cluster, 0)?;
        let (api, target) = (door.api(&cluster)?, far_target(&cluster, 0));
        let (name, agents) = (cluster.node_name(0), cluster.master_addr(0));
        let script = Script::duplex(3_000_001, 1).closed_first_by(Closer::FarEnd);
        let first_line = format!("{script}\n").len() as u64;

        let driven = at_master(&cluster, async {
            let tunnel = within(SOON, "connect", api.connect(&target)).await?;
            within(SOON, "duplex", drive(tunnel, &script)).await
        })?;

        let lines = cluster
            .node(0)
            .clone()
            .block_on(only_access_lines(&mut cluster, 0))?;
        let peers = [door.peer(&cluster), agents];
        for (line, peer) in lines.iter().zip(&peers) {
            let expected = Closed {
                node: &name,
                target: &target,
                peer,
                bytes_to_target: Some(first_line + driven.sent),
                bytes_from_target: Some(driven.received),
                outcomes: DONE,
            };
            expected.check(line)?;
        }
        eventually(SOON, || far_end.outcomes().len() == 1);
        assert!(far_end.outcomes().iter().all(|outcome| outcome.is_clean()));
    }
    Ok(())
}

#[tokio::test]
async fn a_connection_on_which_nothing_is_sent_has_a_line_with_zeros() -> Result<()> {
    let mut cluster = Cluster::builder().agent_lines(ALLOW).start()?;
    let _far_end = scripted_far_end(&cluster, 0)?;
    let (api, target) = (cluster.api()?, far_target(&cluster, 0));

    drop(within(SOON, "connect", api.connect(&target)).await?);

    for line in only_access_lines(&mut cluster, 0).await? {
        let counts = ["bytes_to_target", "bytes_from_target"].map(|field| line.number(field));
        assert_eq!(counts, [Some(0), Some(0)], "{line:#?}");
    }
    Ok(())
}

#[tokio::test]
async fn there_are_as_many_lines_as_connections_granted_and_refused() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    let not_allowed = format!("{}:22", cluster.node_name(0));
    for _ in 0..10 {
        within(SOON, "healthz", api.get(&target, "/healthz")).await?;
        assert_eq!(refused(&api, &not_allowed).await?.code(), Some(403));
    }

    let at_master = access_lines(cluster.master(0), 20).await?;
    let at_agent = access_lines(cluster.agent(0), 20).await?;
    for lines in [at_master, at_agent] {
        let with = |message: &str| lines.iter().filter(|line| line.message == message).count();
        assert_eq!(
            (with("connection closed"), with("connection refused")),
            (10, 10)
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_refusal_is_logged_with_its_status_at_the_master_and_its_word_at_the_agent() -> Result<()>
{
    let mut cluster = Cluster::started()?;
    let (api, name) = (cluster.api()?, cluster.node_name(0));
    let target = format!("{name}:22");

    let refused = refused(&api, &target).await?.to_string();

    let reason = format!("target {target} is not allowed by the configuration of node {name}");
    assert!(
        refused.ends_with(&format!("code 403: 403 {reason}")),
        "{refused}"
    );
    let [at_master, at_agent] = only_access_lines(&mut cluster, 0).await?;
    for line in [&at_master, &at_agent] {
        assert_eq!(line.message, "connection refused", "{line:#?}");
        assert_eq!(line.text("target"), Some(target.as_str()), "{line:#?}");
        assert_eq!(line.text("path"), Some("none"), "{line:#?}");
        assert!(line.number("duration_ms").is_some(), "{line:#?}");
        assert!(line.text("peer.addr").is_some(), "{line:#?}");
    }
    assert_eq!(at_master.number("status"), Some(403), "{at_master:#?}");
    assert_eq!(
        at_master.text("reason"),
        Some(reason.as_str()),
        "{at_master:#?}"
    );
    assert_eq!(
        at_master.text("door"),
        Some(Door::Unix.to_string().as_str())
    );
    assert_eq!(
        at_agent.text("reason"),
        Some("not-allowed"),
        "{at_agent:#?}"
    );
    assert_eq!(at_agent.text("node"), Some(name.as_str()), "{at_agent:#?}");
    Ok(())
}

#[tokio::test]
async fn a_connection_has_no_line_before_it_is_over() -> Result<()> {
    let mut cluster = Cluster::builder().agent_lines(ALLOW).start()?;
    let far_end = scripted_far_end(&cluster, 0)?;
    let (api, target) = (cluster.api()?, far_target(&cluster, 0));
    let mut tunnel = within(SOON, "connect", api.connect(&target)).await?;
    within(SOON, "hole", drive(&mut tunnel, &Script::Hole)).await?;
    eventually_async(SOON, async || far_end.open() == 1).await;

    assert_eq!(access_lines_now(cluster.master(0)), []);
    assert_eq!(access_lines_now(cluster.agent(0)), []);
    drop(tunnel);

    only_access_lines(&mut cluster, 0).await?;
    Ok(())
}
