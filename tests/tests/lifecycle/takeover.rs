//! A new master takes over from one that runs on the same host, while users ask for something.
//!
//! The stand-in for kube-apiserver asks more than twenty times a second at the Unix socket, and
//! nobody may notice. To hold a take-over in its middle a test stops an agent, whose return the
//! new master then waits for.

use std::{fs, os::unix::net::UnixListener, time::Duration};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use proxymux_testkit::{
    cluster::{Cluster, ClusterBuilder},
    process::Daemon,
};
use proxymux_tests::{
    asking::Asking,
    doors::{Door, at_master, both_doors},
    events::{wait_for_message, with_message},
    following::Following,
    limits::{SOON, within},
};
use tokio::time::{Instant, sleep};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_notices_that_a_new_master_takes_over() -> Result<()> {
    let mut cluster = started(Cluster::builder().nodes(2))?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    let (asking, began) = (Asking::start(&api, &target), Instant::now());
    let following = Following::start(&api, &target).await?;

    let mut second = new_master(&cluster, "second")?;
    wait_for_message(&mut second, 0, SOON, "all agents are back")?;
    wait_for_message(&mut second, 0, SOON, "take-over is complete")?;

    let handed_over = "another master has taken over, this one drains";
    wait_for_message(cluster.master(0), 0, SOON, handed_over)?;
    following.goes_on().await?;
    assert!(cluster.master(0).is_running()?, "for the log's sake");
    drop(following);
    let first = cluster.master(0);
    assert_eq!(first.wait(SOON)?.code(), Some(0));
    let over = wait_for_message(first, 0, SOON, "drain is over")?;
    assert_eq!(over.number("cut"), Some(0));

    // And once more, from the one that has just come.
    let following = Following::start(&api, &target).await?;
    let mut third = new_master(&cluster, "third")?;
    wait_for_message(&mut third, 0, SOON, "take-over is complete")?;
    following.goes_on().await?;
    following.breaks(DRAIN + SOON).await?;
    assert_eq!(second.wait(SOON)?.code(), Some(0));
    let over = wait_for_message(&mut second, 0, SOON, "drain is over")?;
    assert_eq!(over.number("cut"), Some(1));

    sleep(Duration::from_secs(1)).await;
    let answers = asking.stop().await?;
    let a_second = answers.good as f64 / began.elapsed().as_secs_f64();
    assert_eq!(answers.failures, [""; 0], "{answers:?}");
    assert!(a_second >= 20.0, "{a_second} requests a second");
    let other = within(
        SOON,
        "the other node",
        api.get(&cluster.target(1), "/healthz"),
    )
    .await?;
    assert_eq!(other.status, 200);
    assert!(!with_message(&third, "connection closed").is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_master_that_dies_half_way_leaves_the_old_one_serving() -> Result<()> {
    let mut cluster = started(Cluster::builder().nodes(2))?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    let asking = Asking::start(&api, &target);
    let following = Following::start(&api, &target).await?;
    cluster.agent(1).signal(Signal::SIGSTOP)?;
    let mut new = new_master(&cluster, "new")?;
    wait_for_message(&mut new, 0, SOON, "session up")?;
    let mark = cluster.agent(0).mark();

    // A third one is told so, and changes nothing.
    let mut third = new_master(&cluster, "third")?;
    assert_eq!(third.wait(SOON)?.code(), Some(1));
    let last = third.lines().pop().unwrap_or_default();
    assert_eq!(
        last,
        "proxymux-master: cannot take over: the running master refuses: another master is taking \
         over already"
    );
    assert!(new.is_running()?);
    following.goes_on().await?;
    new.kill()?;

    let broken_off = "take-over was broken off, this master goes on";
    wait_for_message(cluster.master(0), 0, SOON, broken_off)?;
    wait_for_message(cluster.agent(0), mark, SOON, "session up")?;
    sleep(Duration::from_secs(1)).await;
    following.goes_on().await?;

    // Later it is tried again, and now it goes well.
    cluster.agent(1).signal(Signal::SIGCONT)?;
    let mut again = new_master(&cluster, "again")?;
    wait_for_message(&mut again, 0, SOON, "take-over is complete")?;
    following.goes_on().await?;
    drop(following);
    assert_eq!(cluster.master(0).wait(SOON)?.code(), Some(0));
    let answers = asking.stop().await?;
    assert_eq!(answers.failures, [""; 0], "{answers:?}");
    Ok(())
}

/// The moment between its socket's move and its word to the old master is short: the test plays
/// that part, and leaves what a new master that dies there does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_front_door_that_a_dying_new_master_had_already_is_made_anew() -> Result<()> {
    let mut cluster = started(Cluster::builder().nodes(2))?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    cluster.agent(1).signal(Signal::SIGSTOP)?;
    let mut new = new_master(&cluster, "new")?;
    wait_for_message(&mut new, 0, SOON, "session up")?;
    let (beside, door) = (cluster.dir().join("beside"), cluster.socket(0));
    drop(UnixListener::bind(&beside)?);
    fs::rename(&beside, &door)?;
    assert!(api.connect(&target).await.is_err(), "nobody listens there");

    new.kill()?;

    let lost = "socket was lost, and is made anew";
    wait_for_message(cluster.master(0), 0, SOON, lost)?;
    let reply = within(SOON, "ask", api.get(&target, "/healthz")).await?;
    assert_eq!(reply.status, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_master_that_dies_half_way_is_not_waited_for() -> Result<()> {
    let mut cluster = started(Cluster::builder().nodes(2))?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    cluster.agent(1).signal(Signal::SIGSTOP)?;
    let mut new = new_master(&cluster, "new")?;
    wait_for_message(&mut new, 0, SOON, "session up")?;

    cluster.master(0).kill()?;

    let gone = "the running master is gone, going on without it";
    wait_for_message(&mut new, 0, SOON, gone)?;
    new.wait_for_line("master is up", SOON)?;
    let reply = within(SOON, "ask", api.get(&target, "/healthz")).await?;
    assert_eq!(reply.status, 200);
    assert!(new.is_running()?);
    Ok(())
}

#[test]
fn a_master_that_does_not_give_way_is_left_alone() -> Result<()> {
    let mut cluster = Cluster::started()?;

    let mut new = new_master(&cluster, "new")?;

    assert_eq!(new.wait(SOON)?.code(), Some(1));
    let last = new.lines().pop().unwrap_or_default();
    assert!(
        last.contains("12250 for agents is in use by another process; a master there must have"),
        "{last}"
    );
    assert!(cluster.master(0).is_running()?);
    assert!(cluster.socket(0).exists());
    Ok(())
}

#[test]
fn a_tcp_door_goes_over_too() -> Result<()> {
    let mut cluster = Cluster::builder().build()?;
    let config = config(&cluster, &both_doors(&cluster)?)?;
    start(&mut cluster, &config)?;
    let (api, target) = (Door::Tcp.api(&cluster)?, cluster.target(0));

    let (answers, mut new) = at_master(&cluster, async {
        let asking = Asking::start(&api, &target);
        let new = cluster.spawn_master(0, "master-new.yaml", &config)?;
        let deadline = Instant::now() + SOON;
        while with_message(&new, "take-over is complete").is_empty() {
            anyhow::ensure!(
                Instant::now() < deadline,
                "not taken over: {:#?}",
                new.lines()
            );
            sleep(Duration::from_millis(50)).await;
        }
        // The old one is gone after this, and all are served by the new one.
        sleep(Duration::from_secs(3)).await;
        Ok((asking.stop().await?, new))
    })?;

    assert_eq!(answers.failures, [""; 0], "{answers:?}");
    assert!(answers.good > 20, "{answers:?}");
    assert_eq!(cluster.master(0).wait(SOON)?.code(), Some(0));
    assert!(new.is_running()?);
    Ok(())
}

/// A cluster whose master lets others take over.
fn started(builder: ClusterBuilder) -> Result<Cluster> {
    let mut cluster = builder.build()?;
    let config = config(&cluster, &cluster.master_config(0)?)?;
    start(&mut cluster, &config)?;
    Ok(cluster)
}

fn start(cluster: &mut Cluster, config: &str) -> Result<()> {
    let master = cluster.start_master_with(0, config)?;
    master.wait_for_line("master is up", SOON)?;
    for node in 0..cluster.topology().nodes().len() {
        cluster.start_agent(node)?;
    }
    cluster.wait_for_sessions()
}

/// Another master on the same host, which has all the files of the first.
fn new_master(cluster: &Cluster, name: &str) -> Result<Daemon> {
    let config = config(cluster, &cluster.master_config(0)?)?;
    let file = format!("master-{name}.yaml");
    let master = cluster.spawn_master(0, &file, &config);
    master.with_context(|| format!("the {name} master"))
}

fn config(cluster: &Cluster, usual: &str) -> Result<String> {
    let dir = cluster.dir().display();
    Ok(format!(
        "{usual}takeover: true\ntakeover-socket: {dir}/takeover.sock\ndrain-deadline: {}s\n",
        DRAIN.as_secs()
    ))
}

const DRAIN: Duration = Duration::from_secs(5);
