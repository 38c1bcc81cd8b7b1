//! Certificates and CAs that are replaced while the agent runs.
//!
//! Here are those of an agent that do not go with the master's, so that no new session comes of
//! them. What happens when all goes well is in `rotation`.

use std::time::Duration;

use anyhow::Result;
use proxymux_testkit::{
    cluster::Cluster,
    pki::{Authority, Leaf, Usage, Validity},
};
use proxymux_tests::{
    bystander::Bystander,
    events::{complaints, wait_for_message},
    limits::SOON,
};

/// The successor is of another CA, so that it can be told apart: with a master that trusts the
/// first only, it is good for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_session_uses_the_new_certificate_and_the_old_one_goes_on() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let bystander = Bystander::of_node(&mut cluster, 0).await?;
    let stranger = Authority::new("another-ca")?.issue(&Leaf::node_client(NODE))?;

    cluster.pki().install_node_client(NODE, &stranger)?;
    bystander.did_not_notice(&mut cluster).await?;

    // A session that is needed anew is asked for with what is there now.
    let mark = cluster.agent(0).mark();
    cluster.start_master(0)?;
    let agent = cluster.agent(0);
    wait_for_message(agent, mark, SOON, "session lost")?;
    let refused = |line: &str| line.contains("\"no session\"") && line.contains("unknown_ca");
    agent.wait_for_line_after(mark, refused, SOON)?;

    // And again, with nobody's help.
    cluster.pki().node_client(NODE)?;
    let agent = cluster.agent(0);
    wait_for_message(agent, mark, REPAIRED_WITHIN, "session up")?;
    let reply = cluster.api()?.get(&cluster.target(0), "/healthz").await?;
    assert_eq!(reply.status, 200);
    Ok(())
}

#[test]
fn one_that_has_expired_is_followed_by_its_successor() -> Result<()> {
    let mut cluster = Cluster::builder().build()?;
    let expired = Leaf::node_client(NODE).validity(Validity::Expired);
    let expired = cluster.pki().ca().issue(&expired)?;
    cluster.pki().install_node_client(NODE, &expired)?;
    cluster.start_master(0)?;
    let agent = cluster.start_agent(0)?;
    wait_for_message(agent, 0, SOON, "no session")?;
    wait_for_message(agent, 0, SOON, "still no session")?;

    cluster.pki().node_client(NODE)?;

    let agent = cluster.agent(0);
    wait_for_message(agent, 0, REPAIRED_WITHIN, "session up")?;
    let said: Vec<_> = complaints(agent, 0)
        .into_iter()
        .map(|c| c.message)
        .collect();
    assert_eq!(
        said,
        ["has expired, renew it", "no session"],
        "each said once, however often it was tried"
    );
    Ok(())
}

#[test]
fn a_ca_that_is_added_to_the_agents_file_is_believed_from_the_next_session_on() -> Result<()> {
    let mut cluster = Cluster::builder().build()?;
    let new_ca = Authority::new("new-ca")?;
    let leaf = Leaf::new("proxymux-master")
        .usages([Usage::Server])
        .names(["192.0.2.10"]);
    let dir = cluster.dir().join("master");
    new_ca
        .issue(&leaf)?
        .write_pair(dir.join("master.crt"), dir.join("master.key"))?;
    cluster.start_master(0)?;
    let agent = cluster.start_agent(0)?;
    let failed = wait_for_message(agent, 0, SOON, "no session")?;
    assert_eq!(
        failed.text("error"),
        Some(
            "TLS handshake with the master failed: its certificate `CN=proxymux-master`, issued \
             by `CN=new-ca`, is not signed by a CA that we trust"
        )
    );

    cluster.pki().trust(&[cluster.pki().ca(), &new_ca])?;

    wait_for_message(cluster.agent(0), 0, REPAIRED_WITHIN, "session up")?;
    Ok(())
}

const NODE: &str = "10.0.10.10";

/// Only the agent's backoff stands between, and that has not grown yet.
const REPAIRED_WITHIN: Duration = Duration::from_secs(20);
