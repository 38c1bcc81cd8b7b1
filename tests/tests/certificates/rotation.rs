//! Certificates and CAs that are rotated in good order while a user follows a log.
//!
//! New sessions are on the new certificates, which the serial numbers in both logs show, and the
//! log goes on over the session that it began on, for longer than a drain would let it.

use std::time::Duration;

use anyhow::{Context, Result};
use proxymux_testkit::{
    apiserver::ApiServer,
    cluster::{Cluster, ClusterBuilder},
    pki::{Authority, Leaf, Usage, Validity},
    process::{Daemon, LogEvent},
};
use proxymux_tests::{
    doors::{Door, at_master, start_with_both_doors, tcp_api},
    events::{complaints, wait_for, wait_for_message, with_message},
    following::Following,
    limits::{SOON, within},
};
use tokio::time::sleep;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_goes_over_to_its_renewed_certificate_and_no_stream_notices() -> Result<()> {
    let mut cluster = short_drain().start()?;
    let following = Following::start(&cluster.api()?, &cluster.target(0)).await?;
    let old = serial(&only_session(cluster.master(0))?, "agent.serial")?;
    let mark = cluster.agent(0).mark();

    cluster.pki().node_client(NODE)?;

    let renewed = wait_for_message(cluster.agent(0), mark, TAKEN_WITHIN, "renewed, in force")?;
    let new = serial(&renewed, "serial")?;
    assert_ne!(new, old);
    wait_for(cluster.master(0), 0, SOON, |event| {
        event.message == "session up" && event.text("agent.serial") == Some(&new)
    })?;
    assert_still_served(&mut cluster, &following).await?;

    drop(following);
    let agent = cluster.agent(0);
    let ended = wait_for_message(agent, mark, SOON, "master ends the session")?;
    assert_eq!(ended.text("code"), Some("already-connected"));
    assert_eq!(complaints(agent, mark), []);
    assert_eq!(complaints(cluster.master(0), 0), []);
    assert_eq!(with_message(cluster.agent(0), "session up").len(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_shows_its_renewed_certificate_to_whoever_comes_next() -> Result<()> {
    let mut cluster = short_drain().nodes(2).start()?;
    let following = Following::start(&cluster.api()?, &cluster.target(0)).await?;
    let before = only_session(cluster.agent(1))?;
    let mark = cluster.master(0).mark();

    master_certificate(&cluster, cluster.pki().ca(), Validity::Year)?;

    let renewed = wait_for_message(cluster.master(0), mark, TAKEN_WITHIN, "renewed, in force")?;
    let new = serial(&renewed, "serial")?;
    assert_ne!(before.text("master.serial"), Some(new.as_str()));
    let agent = cluster.start_agent(1)?;
    let after = wait_for_message(agent, 0, SOON, "session up")?;
    assert_eq!(after.text("master.serial"), Some(new.as_str()));
    assert_still_served(&mut cluster, &following).await?;
    only_session(cluster.agent(0)).context("the other agent had no reason to come again")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_is_rotated_with_an_overlap_and_no_stream_notices() -> Result<()> {
    let mut cluster = short_drain().start()?;
    // This user goes on trusting the kubelet, whose certificate is not what is rotated here.
    let api = cluster.api()?;
    let target = cluster.target(0);
    let following = Following::start(&api, &target).await?;
    let new = Authority::new("new-ca")?;

    cluster.pki().trust(&[cluster.pki().ca(), &new])?;
    wait_for_ca(cluster.agent(0), "CN=new-ca")?;
    wait_for_ca(cluster.master(0), "CN=new-ca")?;
    let (agent_mark, master_mark) = (cluster.agent(0).mark(), cluster.master(0).mark());
    master_certificate(&cluster, &new, Validity::Year)?;
    wait_for_message(
        cluster.master(0),
        master_mark,
        TAKEN_WITHIN,
        "renewed, in force",
    )?;
    let renewed = new.issue(&Leaf::node_client(NODE))?;
    cluster.pki().install_node_client(NODE, &renewed)?;
    wait_for_message(cluster.agent(0), agent_mark, TAKEN_WITHIN, "session up")?;
    following.goes_on().await?;

    let (agent_mark, master_mark) = (cluster.agent(0).mark(), cluster.master(0).mark());
    cluster.pki().trust(&[&new])?;
    wait_for_message(
        cluster.agent(0),
        agent_mark,
        TAKEN_WITHIN,
        "renewed, in force",
    )?;
    wait_for_message(
        cluster.master(0),
        master_mark,
        TAKEN_WITHIN,
        "renewed, in force",
    )?;

    // Longer than any drain: the session of the log is of the old CA on both sides.
    sleep(DRAIN + DRAIN).await;
    following.goes_on().await?;
    let reply = within(SOON, "ask", api.get(&target, "/healthz")).await?;
    assert_eq!(reply.status, 200);
    assert_eq!(complaints(cluster.agent(0), 0), []);
    assert_eq!(complaints(cluster.master(0), 0), []);
    assert_eq!(with_message(cluster.agent(0), "session up").len(), 2);
    Ok(())
}

/// Nobody waits for the agent here: the master's certificate runs out under a session that stands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_whose_masters_certificate_runs_out_is_replaced_by_one_on_the_new() -> Result<()>
{
    let mut cluster = short_drain().build()?;
    master_certificate(&cluster, cluster.pki().ca(), Validity::Seconds(15))?;
    cluster.start_master(0)?;
    cluster.start_agent(0)?;
    cluster.wait_for_sessions()?;
    let following = Following::start(&cluster.api()?, &cluster.target(0)).await?;
    let warned = wait_for_message(cluster.master(0), 0, SOON, "expires soon, renew it")?;
    assert_eq!(warned.text("subject"), Some("CN=proxymux-master"));

    master_certificate(&cluster, cluster.pki().ca(), Validity::Year)?;
    let renewed = wait_for_message(cluster.master(0), 0, TAKEN_WITHIN, "renewed, in force")?;

    let lost = "master is no longer trusted, its session drains";
    let expired = wait_for_message(cluster.agent(0), 0, SOON, lost)?;
    assert!(
        expired
            .text("reason")
            .is_some_and(|r| r.contains("CN=proxymux-master` expired at ")),
        "{expired:?}"
    );
    let new = serial(&renewed, "serial")?;
    wait_for(cluster.agent(0), 0, SOON, |event| {
        event.message == "session up" && event.text("master.serial") == Some(&new)
    })?;
    assert_still_served(&mut cluster, &following).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_of_a_ca_that_was_removed_gets_nothing_new_and_its_streams_their_time()
-> Result<()> {
    let mut cluster = short_drain().start()?;
    let api = cluster.api()?;
    let target = cluster.target(0);
    let following = Following::start(&api, &target).await?;
    let mark = cluster.master(0).mark();

    let new = Authority::new("new-ca")?;
    cluster.pki().trust(&[&new])?;

    let lost = "agent is no longer trusted, its session drains";
    let event = wait_for_message(cluster.master(0), mark, TAKEN_WITHIN, lost)?;
    assert!(
        event
            .text("reason")
            .is_some_and(|r| r.contains("is not signed by a CA that we trust")),
        "{event:?}"
    );
    following.goes_on().await?;
    let refused = api
        .connect(&target)
        .await
        .err()
        .context("it has no session")?;
    assert!(refused.to_string().contains("has no session"), "{refused}");
    following.breaks(DRAIN + SOON).await?;
    Ok(())
}

#[test]
fn a_front_door_goes_over_to_its_renewed_files() -> Result<()> {
    let mut cluster = start_with_both_doors(Cluster::builder())?;
    let (new, target) = (Authority::new("new-ca")?, cluster.target(0));
    let old_user = Door::Tcp.api(&cluster)?;
    at_master(&cluster, async {
        within(SOON, "ask", old_user.get(&target, "/healthz")).await
    })?;
    let mark = cluster.master(0).mark();

    // Both are believed, so that the agent, whose CA file it is too, has no reason to move.
    cluster.pki().trust(&[cluster.pki().ca(), &new])?;
    master_certificate(&cluster, &new, Validity::Year)?;

    wait_for(cluster.master(0), mark, TAKEN_WITHIN, |event| {
        event.message == "renewed, in force"
            && event.text("purpose") == Some("front-doors[1]")
            && event.text("what") == Some("certificate")
    })?;
    wait_for(cluster.master(0), mark, TAKEN_WITHIN, |event| {
        event.message == "renewed, in force"
            && event.text("purpose") == Some("front-doors[1]")
            && event.text("subject") == Some("CN=new-ca")
    })?;
    let leaf = Leaf::new("kube-apiserver").usages([Usage::Client]);
    let dir = cluster.dir().join("new");
    let client = new
        .issue(&leaf)?
        .write_pair(dir.join("c.crt"), dir.join("c.key"))?;
    let new_ca = dir.join("ca.crt");
    std::fs::write(&new_ca, new.pem())?;
    let new_user = tcp_api(&cluster, &new_ca, Some(client))?;
    at_master(&cluster, async {
        within(SOON, "ask as before", new_user.connect(&target)).await?;
        let refused = old_user_of_the_old_ca_alone(&cluster)?
            .connect(&target)
            .await;
        refused.err().context("it shows the new certificate")?;
        anyhow::Ok(())
    })
}

/// A client with a good certificate that believes the first CA only.
fn old_user_of_the_old_ca_alone(cluster: &Cluster) -> Result<ApiServer> {
    let ca = cluster.dir().join("old-ca.crt");
    std::fs::write(&ca, cluster.pki().ca().pem())?;
    tcp_api(cluster, &ca, Some(cluster.pki().apiserver_egress_client()?))
}

fn short_drain() -> ClusterBuilder {
    Cluster::builder()
        .agent_lines("drain-deadline: 3s")
        .master_lines("drain-deadline: 3s")
}

/// Puts another certificate in the place of the master's.
fn master_certificate(cluster: &Cluster, ca: &Authority, validity: Validity) -> Result<()> {
    let names = cluster.topology().master().addresses();
    let leaf = Leaf::new("proxymux-master")
        .usages([Usage::Server])
        .validity(validity)
        .names(names.iter().map(ToString::to_string));
    let dir = cluster.dir().join("master");
    ca.issue(&leaf)?
        .write_pair(dir.join("master.crt"), dir.join("master.key"))?;
    Ok(())
}

fn wait_for_ca(daemon: &mut Daemon, subject: &str) -> Result<LogEvent> {
    wait_for(daemon, 0, TAKEN_WITHIN, |event| {
        event.message == "renewed, in force" && event.text("subject") == Some(subject)
    })
}

fn only_session(daemon: &Daemon) -> Result<LogEvent> {
    let mut sessions = with_message(daemon, "session up");
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    sessions.pop().context("one session")
}

fn serial(event: &LogEvent, field: &str) -> Result<String> {
    let serial = event
        .text(field)
        .with_context(|| format!("{field} of {event:?}"))?;
    Ok(serial.to_owned())
}

/// The log goes on for longer than a drain would let it, and new requests are answered.
async fn assert_still_served(cluster: &mut Cluster, following: &Following) -> Result<()> {
    sleep(DRAIN + DRAIN).await;
    following.goes_on().await?;
    let asked = cluster.api()?;
    let reply = within(SOON, "ask", asked.get(&cluster.target(0), "/healthz")).await?;
    assert_eq!(reply.status, 200);
    Ok(())
}

const NODE: &str = "10.0.10.10";
const DRAIN: Duration = Duration::from_secs(3);

/// A look every five seconds, another one second later, and a busy machine.
const TAKEN_WITHIN: Duration = Duration::from_secs(30);
