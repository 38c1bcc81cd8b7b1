//! Files that cannot be used are put in the place of good ones while daemons run.
//!
//! The good ones stay in force, for new sessions too. Each trouble is said once, however often the
//! files are looked at, and that it is over as well.

use std::{fs, time::Duration};

use anyhow::Result;
use proxymux_testkit::{
    cluster::Cluster,
    pki::{Leaf, Usage},
    process::{Daemon, LogEvent},
};
use proxymux_tests::{
    events::{wait_for, wait_for_message, with_message},
    limits::{SOON, within},
};
use tokio::time::sleep;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_keeps_its_pair_until_a_good_one_is_there() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let dir = cluster.dir().join("master");
    let (cert, key) = (dir.join("master.crt"), dir.join("master.key"));
    let first = with_message(cluster.agent(0), "session up");
    let leaf = master_leaf(&cluster);

    // The key of the next certificate comes before that, as with every tool.
    let next = cluster.pki().ca().issue(&leaf)?;
    let new_cert = next.cert_pem().to_owned();
    next.write_pair(dir.join("unused.crt"), &key)?;
    let trouble = wait_for_trouble(cluster.master(0), "does not match certificate")?;
    assert_eq!(trouble.text("purpose"), Some("agents"));

    fs::write(&cert, &new_cert[..new_cert.len() / 2])?;
    wait_for_trouble(cluster.master(0), "is not valid PEM")?;
    fs::remove_file(&cert)?;
    wait_for_trouble(cluster.master(0), "does not exist")?;

    // Whoever comes now is shown the first one, and it is not all said again at each look.
    let agent = cluster.start_agent(0)?;
    let again = wait_for_message(agent, 0, SOON, "session up")?;
    let shown = |event: &LogEvent| event.text("master.serial").map(str::to_owned);
    assert_eq!(shown(&again), first.first().and_then(shown));
    sleep(LOOKS).await;
    assert_eq!(with_message(cluster.master(0), TROUBLE).len(), 3);

    fs::write(&cert, &new_cert)?;
    let master = cluster.master(0);
    wait_for_message(master, 0, TAKEN_WITHIN, "files can be used again")?;
    let renewed = wait_for_message(master, 0, TAKEN_WITHIN, "renewed, in force")?;
    let agent = cluster.start_agent(0)?;
    let last = wait_for_message(agent, 0, SOON, "session up")?;
    assert_eq!(shown(&last).as_deref(), renewed.text("serial"));
    let asked = cluster.api()?;
    let reply = within(SOON, "ask", asked.get(&cluster.target(0), "/healthz")).await?;
    assert_eq!(reply.status, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_comes_back_with_its_last_good_pair() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let first = with_message(cluster.agent(0), "session up");
    let current = cluster
        .pki()
        .node_dir(NODE)
        .join("kubelet-client-current.pem");
    let good = fs::read_to_string(&current)?;

    fs::remove_file(&current)?;
    wait_for_trouble(cluster.agent(0), "does not exist")?;
    fs::write(&current, &good[..good.len() / 2])?;
    wait_for_trouble(cluster.agent(0), "is not valid PEM")?;

    let mark = cluster.agent(0).mark();
    cluster.start_master(0)?;
    let again = wait_for_message(cluster.agent(0), mark, BACK_WITHIN, "session up")?;
    assert_eq!(
        again.text("serial"),
        first.first().and_then(|event| event.text("serial"))
    );
    let asked = cluster.api()?;
    let reply = within(SOON, "ask", asked.get(&cluster.target(0), "/healthz")).await?;
    assert_eq!(reply.status, 200);

    fs::write(&current, &good)?;
    let agent = cluster.agent(0);
    wait_for_message(agent, mark, TAKEN_WITHIN, "files can be used again")?;
    assert_eq!(with_message(agent, TROUBLE).len(), 2);
    Ok(())
}

fn master_leaf(cluster: &Cluster) -> Leaf {
    let names = cluster.topology().master().addresses();
    Leaf::new("proxymux-master")
        .usages([Usage::Server])
        .names(names.iter().map(ToString::to_string))
}

fn wait_for_trouble(daemon: &mut Daemon, with: &str) -> Result<LogEvent> {
    wait_for(daemon, 0, TAKEN_WITHIN, |event| {
        event.message == TROUBLE && event.text("reason").is_some_and(|r| r.contains(with))
    })
}

const NODE: &str = "10.0.10.10";
const TROUBLE: &str = "new files cannot be used, the old ones stay in force";

/// A look every five seconds, another one second later, and a busy machine.
const TAKEN_WITHIN: Duration = Duration::from_secs(30);

/// Several looks.
const LOOKS: Duration = Duration::from_secs(12);

/// The agent's first attempts, and one of its longer waits.
const BACK_WITHIN: Duration = Duration::from_secs(40);
