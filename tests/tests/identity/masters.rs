//! One agent and several masters, or several ways to one master.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Result;
use proxymux_testkit::{cluster::Cluster, netns::Host, process::Daemon, wait::eventually_async};
use proxymux_tests::{
    etc_hosts::EtcHosts,
    events::{complaints, wait_for, wait_for_message, with_message},
    following::Following,
    limits::{SOON, within},
};
use tokio::time::sleep;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_dies_does_not_disturb_the_session_with_another() -> Result<()> {
    let mut cluster = Cluster::builder().masters(2).start()?;
    let target = cluster.target(0);
    let doomed = Following::start(&cluster.api_of(0)?, &target).await?;
    let other = Following::start(&cluster.api_of(1)?, &target).await?;

    cluster.master(0).kill()?;

    doomed.breaks(SOON).await?;
    other.goes_on().await?;
    let reply = within(SOON, "ask", cluster.api_of(1)?.get(&target, "/healthz")).await?;
    assert_eq!(reply.status, 200);

    let mark = cluster.agent(0).mark();
    cluster.start_master(0)?;
    wait_for_message(cluster.agent(0), mark, SOON, "session up")?;
    within(SOON, "ask", cluster.api_of(0)?.get(&target, "/healthz")).await?;
    other.goes_on().await?;
    assert_eq!(with_message(cluster.agent(0), "session up").len(), 3);
    assert_eq!(with_message(cluster.agent(0), "session lost").len(), 1);
    assert_eq!(with_message(cluster.master(1), "session lost"), []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_with_several_addresses_means_a_session_with_each() -> Result<()> {
    let mut cluster = Cluster::builder()
        .masters(3)
        .agent_lines(format!("server-addr: https://{NAME}"))
        .build()?;
    let addresses: Vec<_> = cluster
        .topology()
        .masters()
        .iter()
        .map(Host::ipv4)
        .map(Into::into)
        .collect();
    let hosts = EtcHosts::new(cluster.node(0), NAME, &addresses[..2])?;
    cluster.pki().master(&[NAME])?;
    for master in 0..3 {
        cluster.start_master(master)?;
    }

    let agent = cluster.start_agent(0)?;

    for address in &addresses[..2] {
        wait_for(agent, 0, SOON, |event| {
            event.message == "session up"
                && event.text("master") == Some(&format!("{address}:12250"))
        })?;
    }
    assert_eq!(with_message(agent, "session up").len(), 2);

    // Another master joins, and one leaves the name: found within the half minute after which a
    // name is looked up again. A session that stands is not ended by what a name server says.
    hosts.set(NAME, &addresses[1..])?;
    let third = wait_for(agent, 0, LOOKED_UP_AGAIN, |event| {
        event.message == "session up"
            && event.text("master") == Some(&format!("{}:12250", addresses[2]))
    });
    third?;
    wait_for_message(agent, 0, SOON, "address of master is gone")?;
    for master in 0..3 {
        let api = cluster.api_of(master)?;
        within(SOON, "ask", api.get(&cluster.target(0), "/healthz")).await?;
    }
    assert_eq!(complaints(cluster.agent(0), 0), []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_one_virtual_address_as_many_masters_are_met_as_expected() -> Result<()> {
    let mut cluster = Cluster::builder()
        .masters(2)
        .agent_lines(format!(
            "server-addr: https://{VIRTUAL}:12250\nserver-name: 192.0.2.10\nexpect-masters: 2"
        ))
        .build()?;
    cluster.topology().router().nft(&format!(
        "table ip virtual {{\n\
         chain masters {{\n\
           type nat hook prerouting priority -100;\n\
           ip daddr {VIRTUAL} tcp dport 12250 \
           dnat to numgen inc mod 2 map {{ 0 : 192.0.2.10, 1 : 192.0.2.11 }}\n\
         }}\n\
         }}\n"
    ))?;
    cluster.start_master(0)?;
    cluster.start_master(1)?;

    cluster.start_agent(0)?;

    for master in 0..2 {
        wait_for_message(cluster.master(master), 0, FOUND, "session up")?;
        let api = cluster.api_of(master)?;
        within(SOON, "ask", api.get(&cluster.target(0), "/healthz")).await?;
    }
    assert_eq!(masters_met(cluster.agent(0)).len(), 2);

    // One goes and comes back as another run of itself: the agent looks for it again.
    let other = Following::start(&cluster.api_of(1)?, &cluster.target(0)).await?;
    cluster.master(0).kill()?;
    cluster.start_master(0)?;
    wait_for_message(cluster.master(0), 0, FOUND, "session up")?;
    let api = cluster.api_of(0)?;
    within(SOON, "ask", api.get(&cluster.target(0), "/healthz")).await?;
    other.goes_on().await?;
    assert_eq!(masters_met(cluster.agent(0)).len(), 3);
    assert_eq!(with_message(cluster.master(1), "session superseded"), []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_addresses_of_one_master_come_to_one_session() -> Result<()> {
    let mut cluster = Cluster::builder()
        .agent_lines(
            "server-addr: [ \"https://192.0.2.10:12250\", \"https://[2001:db8::10]:12250\" ]",
        )
        .build()?;
    cluster.start_master(0)?;

    cluster.start_agent(0)?;

    wait_for_message(
        cluster.agent(0),
        0,
        SOON,
        "already connected to this master",
    )?;
    let api = cluster.api()?;
    let following = Following::start(&api, &cluster.target(0)).await?;
    // The one that is not wanted must not try again and again: a fleet would keep its masters busy.
    sleep(Duration::from_secs(5)).await;
    let refused = with_message(cluster.master(0), "session not needed").len();
    assert!(refused <= 3, "{refused} tries in 5 s");
    eventually_async(SOON, async || sessions(cluster.master(0)) == 1).await;
    following.goes_on().await?;
    assert_eq!(complaints(cluster.agent(0), 0), [], "nothing is wrong");
    assert_eq!(complaints(cluster.master(0), 0), [], "nothing is wrong");

    // When the one session breaks, one of the two addresses leads to the next.
    cluster.master(0).kill()?;
    following.breaks(SOON).await?;
    cluster.start_master(0)?;
    wait_for_message(cluster.master(0), 0, FOUND, "session up")?;
    within(SOON, "ask", api.get(&cluster.target(0), "/healthz")).await?;
    Ok(())
}

/// The ids of the masters that an agent has had sessions with.
fn masters_met(agent: &Daemon) -> BTreeSet<String> {
    let ups = with_message(agent, "session up");
    ups.iter()
        .filter_map(|up| up.text("master.id").map(str::to_owned))
        .collect()
}

/// How many sessions a master has.
fn sessions(master: &Daemon) -> usize {
    let count = |message| with_message(master, message).len();
    count("session up") - count("session ended") - count("session lost")
}

const NAME: &str = "masters.example";
const VIRTUAL: &str = "192.0.2.100";
/// Names are looked up every 30 s.
const LOOKED_UP_AGAIN: Duration = Duration::from_secs(50);
/// An agent that looks for a master it has not met tries again after up to 30 s, in most cases
/// after much less.
const FOUND: Duration = Duration::from_secs(60);
