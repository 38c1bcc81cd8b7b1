//! A rolling update of everything, under load: a new master by take-over, then a new agent as a
//! DaemonSet brings it, which starts the new one when the old one has ended.
//!
//! Users at both front doors ask without a pause, and logs are followed. Nobody is turned away, and
//! the logs end when the drain of what carries them is out of time, not a line missing before. By
//! the session alone, and by each fast path, of which the old master's flows live as long as its
//! streams would.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use proxymux_testkit::{
    apiserver::ApiServer,
    cluster::{Cluster, ClusterBuilder},
    netns::HostRuntime,
    process::Daemon,
    wait::eventually,
};
use proxymux_tests::{
    access::access_lines_now,
    admin::{at_master as admin, status},
    asking::Asking,
    doors::{DOORS, at_master, both_doors},
    events::{complaints, wait_for_message, with_message},
    fast_paths::FastPath,
    following::Following,
    limits::SOON,
};
use tokio::time::Instant;

#[test]
fn a_rolling_update_turns_nobody_away_from_the_session() -> Result<()> {
    rolls(None)
}

#[test]
fn a_rolling_update_turns_nobody_away_from_the_reverse_path() -> Result<()> {
    rolls(Some(FastPath::Reverse))
}

#[test]
fn a_rolling_update_turns_nobody_away_from_the_direct_path() -> Result<()> {
    rolls(Some(FastPath::Direct))
}

fn rolls(path: Option<FastPath>) -> Result<()> {
    let (mut cluster, config) = started(path)?;
    let began = Instant::now();
    let mut users = Users::start(&cluster)?;

    // The master.
    users.follow()?;
    let mut master = cluster.spawn_master(0, "master-new.yaml", &config)?;
    let handed_over = "another master has taken over, this one drains";
    wait_for_message(cluster.master(0), 0, SOON, handed_over)?;
    let told = Instant::now();
    users.logs_go_on()?;
    ensure!(cluster.master(0).is_running()?, "it waits for the logs");
    goes_by(&cluster, path)?;
    users.logs_break()?;
    ensure!(told.elapsed() >= DRAIN, "cut after {:?}", told.elapsed());
    assert_eq!(cluster.master(0).wait(SOON)?.code(), Some(0));
    check_cut(cluster.master(0), path)?;

    // The agent.
    users.follow()?;
    let told = Instant::now();
    cluster.agent(0).signal(Signal::SIGTERM)?;
    users.logs_go_on()?;
    ensure!(cluster.agent(0).is_running()?, "it waits for the logs");
    users.logs_break()?;
    ensure!(
        told.elapsed() >= LONG_DRAIN,
        "cut after {:?}",
        told.elapsed()
    );
    assert_eq!(cluster.agent(0).wait(SOON)?.code(), Some(0));
    check_cut(cluster.agent(0), path)?;
    let mark = master.mark();
    cluster.start_agent(0)?;
    wait_for_message(&mut master, mark, SOON, "session up")?;
    goes_by(&cluster, path)?;

    let served = users.stop()?;
    let a_second = served as f64 / began.elapsed().as_secs_f64();
    eprintln!("{served} requests, {a_second:.0} a second, none failed");
    ensure!(a_second > 20.0, "{a_second} requests a second");
    let with_new = by_path(&master, path);
    ensure!(with_new > 20, "{with_new} connections by the new master");
    let alarms = complaints(&master, 0);
    let alarms: Vec<_> = alarms.iter().filter(|e| e.level == "ERROR").collect();
    ensure!(alarms.is_empty(), "{alarms:#?}");
    Ok(())
}

/// A cluster whose master has both front doors and lets others take over, and its configuration.
fn started(path: Option<FastPath>) -> Result<(Cluster, String)> {
    let usual = || Cluster::builder().verbosity("info");
    let builder: ClusterBuilder = path.map_or_else(usual, FastPath::builder);
    let mode = if path == Some(FastPath::Direct) {
        "mode: ebpf\n"
    } else {
        ""
    };
    let deadline = |limit: Duration| format!("drain-deadline: {}s\n", limit.as_secs());
    let lines = format!("{mode}{}", deadline(LONG_DRAIN));
    let mut cluster = builder.agent_lines(lines).build()?;
    let dir = cluster.dir().display();
    let config = format!(
        "{}takeover: true\ntakeover-socket: {dir}/takeover.sock\n{}",
        both_doors(&cluster)?,
        deadline(DRAIN)
    );
    let master = cluster.start_master_with(0, &config)?;
    master.wait_for_line("master is up", SOON)?;
    cluster.start_agent(0)?;
    cluster.wait_for_sessions()?;
    goes_by(&cluster, path)?;
    Ok((cluster, config))
}

fn goes_by(cluster: &Cluster, path: Option<FastPath>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    // A new master's admin address is its predecessor's for a moment, and then nobody's.
    eventually(SOON, || at_master(cluster, status(&admin(cluster))).is_ok());
    at_master(cluster, path.is_taken(cluster))
}

fn by_path(daemon: &Daemon, path: Option<FastPath>) -> usize {
    let path = path.map_or("session", FastPath::as_str);
    let lines = access_lines_now(daemon);
    let on_path = lines.iter().filter(|line| line.text("path") == Some(path));
    on_path.count()
}

/// The logs, and nothing else, were cut off by the drain, on the path that they had begun on.
fn check_cut(daemon: &mut Daemon, path: Option<FastPath>) -> Result<()> {
    let path = path.map_or("session", FastPath::as_str);
    let mut lines = access_lines_now(daemon);
    lines.retain(|line| line.text("outcome") == Some("drain"));
    ensure!(lines.len() == LOGS, "{}: {lines:#?}", daemon.name());
    for line in &lines {
        assert_eq!(line.text("path"), Some(path), "{line:#?}");
    }
    let broken = with_message(daemon, "session lost");
    ensure!(broken.is_empty(), "{broken:#?}");
    Ok(())
}

/// Who asks at the front doors, on the master's machine, where both can be reached.
struct Users {
    machine: HostRuntime,
    apis: Vec<ApiServer>,
    target: String,
    asking: Vec<Asking>,
    logs: Vec<Following>,
}

impl Users {
    fn start(cluster: &Cluster) -> Result<Self> {
        let machine = cluster.topology().master().runtime()?;
        let apis: Result<Vec<_>> = DOORS.into_iter().map(|door| door.api(cluster)).collect();
        let (apis, target) = (apis?, cluster.target(0));
        let asking = machine.block_on({
            let (apis, target) = (apis.clone(), target.clone());
            async move { apis.iter().map(|api| Asking::start(api, &target)).collect() }
        });
        Ok(Self {
            machine,
            apis,
            target,
            asking,
            logs: Vec::new(),
        })
    }

    /// Begins to follow logs, two at each door.
    fn follow(&mut self) -> Result<()> {
        let (apis, target) = (self.apis.clone(), self.target.clone());
        self.logs = self.machine.block_on(async move {
            let mut logs = Vec::new();
            for api in apis.iter().cycle().take(LOGS) {
                logs.push(Following::start(api, &target).await?);
            }
            anyhow::Ok(logs)
        })?;
        Ok(())
    }

    fn logs_go_on(&mut self) -> Result<()> {
        let logs = std::mem::take(&mut self.logs);
        self.logs = self.machine.block_on(async move {
            for log in &logs {
                log.goes_on().await?;
            }
            anyhow::Ok(logs)
        })?;
        Ok(())
    }

    fn logs_break(&mut self) -> Result<()> {
        let logs = std::mem::take(&mut self.logs);
        self.machine.block_on(async move {
            for log in logs {
                log.breaks(LONG_DRAIN + SOON).await?;
            }
            Ok(())
        })
    }

    /// How many requests were served, of which none may have failed.
    fn stop(self) -> Result<usize> {
        let asking = self.asking;
        self.machine.block_on(async move {
            let mut served = 0;
            for (door, asking) in DOORS.iter().zip(asking) {
                let answers = asking.stop().await.context("users")?;
                ensure!(answers.failures.is_empty(), "{door}: {answers:#?}");
                eprintln!("{door}: the slowest took {:?}", answers.slowest);
                served += answers.good;
            }
            Ok(served)
        })
    }
}

/// Of the master.
const DRAIN: Duration = Duration::from_secs(4);
/// Of the agent: longer than a request waits for the next one.
const LONG_DRAIN: Duration = Duration::from_secs(10);
const LOGS: usize = 4;
