//! Many requests for one node at one moment, more than `max-pending-dials-per-node`.
//!
//! The surplus waits for its turn and nobody is turned away, by whichever path; only behind a
//! kubelet that never answers it is, within the budget. What is refused at once is in `budget`.
//!
//! An agent that is stopped holds all of them up, so that it is certain that they wait.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use proxymux_testkit::{
    apiserver::{ApiServer, Tunnel},
    cluster::{Cluster, ClusterBuilder},
    wait::eventually_async,
};
use proxymux_tests::{
    admin::{Metrics, at_master, scrape},
    bystander::Bystander,
    fast_paths::FastPath,
    limits::{SOON, within},
};
use proxymux_transport::config_file::values::AdminAddr;
use tokio::{
    sync::Barrier,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bursts_beyond_the_limit_of_pending_dials_are_served_by_the_session() -> Result<()> {
    let builder = Cluster::builder().master_lines(format!("fast-path: off\n{PATIENT}"));
    let mut cluster = start(builder)?;
    let (api, target) = (cluster.api()?, cluster.target(0));

    for number in [BURST, 2 * BURST] {
        let began = Instant::now();
        let tunnels = connect_at_once(&api, &target, number).await?;
        eprintln!("{number} tunnels were open after {:?}", began.elapsed());
        ensure!(tunnels.len() == number, "{} tunnels", tunnels.len());
        // All of them stood at the same time, and now none does.
        drop(tunnels);
        all_is_quiet(&cluster).await?;
    }
    held_up_burst(&mut cluster, BURST - PENDING).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bursts_beyond_the_limit_of_pending_dials_are_served_with_fast_paths() -> Result<()> {
    let builder = FastPath::Reverse.builder();
    let lines = format!("kubelet-certificates: verified\nflow-pool: 16\n{PATIENT}");
    let mut cluster = start(builder.master_lines(lines))?;
    FastPath::Reverse.is_taken(&cluster).await?;
    let (api, target) = (cluster.api()?, cluster.target(0));

    let began = Instant::now();
    let tunnels = connect_at_once(&api, &target, 2 * BURST).await?;
    eprintln!("{} were open after {:?}", 2 * BURST, began.elapsed());
    ensure!(tunnels.len() == 2 * BURST, "{} tunnels", tunnels.len());
    drop(tunnels);
    all_is_quiet(&cluster).await?;
    // Some have a flow, at least to begin with; at most as many as an agent keeps.
    held_up_burst(&mut cluster, BURST - PENDING - 64).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_kubelet_that_never_answers_everybody_is_told_within_the_budget() -> Result<()> {
    let lines = format!("connect-budget: {}s", BUDGET.as_secs());
    let mut cluster = start(Cluster::builder().nodes(2).master_lines(lines))?;
    let bystander = Bystander::of_node(&mut cluster, 0).await?;
    let (api, target) = (cluster.api()?, cluster.target(1));
    cluster.node(1).nft(DROP_KUBELET_BOUND)?;

    let began = Instant::now();
    let mut asking = JoinSet::new();
    for _ in 0..BURST {
        let (api, target) = (api.clone(), target.clone());
        asking.spawn(async move { api.connect(&target).await.map(drop) });
    }
    let admin = at_master(&cluster);
    let crowd = waits_for_a_turn(&admin, BURST - PENDING);
    within(SOON, "a crowd that waits", crowd).await?;
    bystander.is_served().await?;
    let (mut no_turn, mut have_waited) = (0, 0);
    while let Some(answered) = timeout(SOON, asking.join_next()).await? {
        let refused = answered?.err().context("no kubelet answers")?;
        let (said, code) = (refused.to_string(), refused.code());
        // A place that becomes free just before the end is used, with what is left of the budget.
        let cause = match code {
            Some(503) => "503 node 10.0.10.11: session has 128 dials pending, its limit; waited ",
            _ => "504 node 10.0.10.11 ",
        };
        ensure!(said.contains(cause), "{said}");
        no_turn += usize::from(code == Some(503));
        have_waited += usize::from(said.ends_with("s for a turn"));
    }
    let took = began.elapsed();

    eprintln!("{have_waited} have waited, {no_turn} of them in vain; the last until {took:?}");
    ensure!(took < BUDGET + MARGIN, "the last answer after {took:?}");
    ensure!(have_waited == BURST - PENDING, "{have_waited}");
    let metrics = scrape(&admin).await?;
    ensure!(
        metrics.get("proxymux_master_dials_waiting") == 0.0,
        "{}",
        metrics.text
    );
    let late = waited(&metrics, "late");
    ensure!(late == no_turn as f64, "{}", metrics.text);
    let turns = waited(&metrics, "opened") + late;
    ensure!(turns == have_waited as f64, "{}", metrics.text);
    cluster.node(1).nft("delete table ip filter")?;
    within(SOON, "healthz", api.get(&target, "/healthz")).await?;
    bystander.did_not_notice(&mut cluster).await
}

fn start(builder: ClusterBuilder) -> Result<Cluster> {
    // Both ends of every connection are this process's.
    proxymux_transport::limits::raise_open_files();
    builder.start()
}

/// Sends a burst to a node whose agent is stopped, so that `waiting` at least have to wait, lets
/// the agent go on, and wants every request served.
async fn held_up_burst(cluster: &mut Cluster, waiting: usize) -> Result<()> {
    let (api, target, admin) = (cluster.api()?, cluster.target(0), at_master(cluster));
    cluster.agent(0).signal(Signal::SIGSTOP)?;
    let mut requests = JoinSet::new();
    for _ in 0..BURST {
        let (api, target) = (api.clone(), target.clone());
        requests.spawn(async move { api.get(&target, "/healthz").await });
    }
    let crowd = waits_for_a_turn(&admin, waiting);
    within(SOON, "a crowd that waits", crowd).await?;
    cluster.agent(0).signal(Signal::SIGCONT)?;

    let began = Instant::now();
    while let Some(served) = timeout(SOON, requests.join_next()).await? {
        let reply = served?.context("a request of the burst")?;
        ensure!(reply.text() == "ok", "{}", reply.text());
    }
    eprintln!("{BURST} requests were answered after {:?}", began.elapsed());

    let metrics = scrape(&admin).await?;
    ensure!(
        waited(&metrics, "opened") >= waiting as f64,
        "{}",
        metrics.text
    );
    ensure!(waited(&metrics, "late") == 0.0, "{}", metrics.text);
    let refused = "proxymux_master_requests_refused_total{reason=\"unavailable\"}";
    ensure!(metrics.get(refused) == 0.0, "{}", metrics.text);
    all_is_quiet(cluster).await
}

/// Opens so many tunnels at one moment, and keeps all of them.
async fn connect_at_once(api: &ApiServer, target: &str, number: usize) -> Result<Vec<Tunnel>> {
    let together = Arc::new(Barrier::new(number));
    let mut opening = JoinSet::new();
    for _ in 0..number {
        let (api, target, together) = (api.clone(), target.to_owned(), Arc::clone(&together));
        opening.spawn(async move {
            together.wait().await;
            api.connect(&target).await
        });
    }
    let mut tunnels = Vec::new();
    while let Some(opened) = timeout(SOON, opening.join_next()).await? {
        tunnels.push(opened?.context("one of the burst")?);
    }
    Ok(tunnels)
}

/// Waits until so many requests wait for their turn.
async fn waits_for_a_turn(admin: &AdminAddr, number: usize) -> Result<()> {
    loop {
        let metrics = scrape(admin).await?;
        if metrics.get("proxymux_master_dials_waiting") >= number as f64 {
            return Ok(());
        }
        sleep(POLL).await;
    }
}

/// Nobody waits and nothing is relayed.
async fn all_is_quiet(cluster: &Cluster) -> Result<()> {
    let admin = at_master(cluster);
    eventually_async(SOON, async || {
        let Ok(metrics) = scrape(&admin).await else {
            return false;
        };
        let open = ["session", "reverse"]
            .map(|path| metrics.get(&format!("proxymux_master_streams_open{{path=\"{path}\"}}")));
        open == [0.0, 0.0] && metrics.get("proxymux_master_dials_waiting") == 0.0
    })
    .await;
    Ok(())
}

fn waited(metrics: &Metrics, result: &str) -> f64 {
    metrics.get(&format!(
        "proxymux_master_dials_waited_total{{result=\"{result}\"}}"
    ))
}

const BURST: usize = 300;

/// `max-pending-dials-per-node`, if nothing is configured.
const PENDING: usize = 128;

/// More than the default, for a machine that does much else.
const PATIENT: &str = "connect-budget: 20s";

const BUDGET: Duration = Duration::from_secs(3);

/// For a busy machine.
const MARGIN: Duration = Duration::from_secs(5);

const POLL: Duration = Duration::from_millis(20);

const DROP_KUBELET_BOUND: &str = "
table ip filter {
    chain input {
        type filter hook input priority 0
        tcp dport 10250 drop
    }
}";
