//! The soak: faults of every kind under load, for as long as one wants to wait.
//!
//! `cargo xtask soak` starts it ([`run`]). A round takes a minute: users ask without pause while
//! processes are killed, links are cut and clients give up; then all is let go, and what the
//! daemons hold is compared with what the same process held after its first round. A line says
//! what the minute has come to; the first thing that is wrong ends the soak.
//! Connections take the direct path, and in every second round the reverse one, as the nodes cannot
//! be dialled then; now and then a firewall takes that away too, which no request may notice.

#![expect(
    clippy::print_stdout,
    reason = "a command line tool: its output is its product"
)]

use std::{fmt, fs, path::PathBuf, process, time::Duration};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use nix::sys::signal::Signal;
use proxymux_testkit::{
    cluster::Cluster,
    netns::{Reach, Running},
};
use tokio::time::{Instant, sleep};

use super::{
    Dispenser, Holdings, Load, Named, Slack, Stage, Victim, Window,
    aborts::{Targets, storm},
    dispenser, holdings,
};
use crate::{
    admin::{Metrics, at_master, scrape, status},
    far_target::far_target,
    fast_paths::FastPath,
    interrupts::Interrupts,
};

/// What the soak is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// For how long, at least one.
    pub minutes: u32,
    /// What all random choices follow from.
    pub seed: u64,
    /// The kubelet stand-in.
    pub kubelet: PathBuf,
}

/// How the soak ended, if nothing was wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ending {
    /// After its time.
    Done,
    /// By a signal.
    Interrupted,
}

/// Soaks, and says on standard output how it goes.
///
/// # Errors
///
/// What was wrong. The daemons' logs are kept then, and the error says where.
pub async fn run(options: Options) -> Result<Ending> {
    let mut interrupts = Interrupts::listen()?;
    let dir = std::env::temp_dir().join(format!("proxymux-soak-{}", process::id()));
    println!("soak for {} min, --seed {}", options.minutes, options.seed);
    let ended = tokio::select! {
        ended = soak(&options, &dir) => ended.map(|()| Ending::Done),
        () = interrupts.next() => Ok(Ending::Interrupted),
    };
    match ended {
        Ok(ending) => {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
            Ok(ending)
        }
        // A signal that was sent to all of us has ended the daemons too.
        Err(_) if interrupts.came().await => Ok(Ending::Interrupted),
        Err(error) => {
            Err(error.context(format!("seed {}, logs in {}", options.seed, dir.display())))
        }
    }
}

async fn soak(options: &Options, dir: &std::path::Path) -> Result<()> {
    let builder = Cluster::builder()
        .nodes(NODES)
        .reach(Reach::Routed)
        .verbosity("info")
        .master_lines(FLOWS)
        .agent_lines(format!("mode: ebpf\n{ALLOW}"))
        .dir(dir)
        .log_files();
    let stage = Stage::start(builder, &options.kubelet)?;
    let far_end = dispenser(&stage.cluster, 0)?;
    let mut soak = Soak {
        targets: Targets {
            dispenser: far_target(&stage.cluster, 0),
            nobody: NOBODY.to_owned(),
        },
        stage,
        far_end,
        random: Rng::with_seed(options.seed),
        first: Vec::new(),
        totals: Counts::default(),
    };
    for minute in 1..=options.minutes {
        let counts = soak
            .round(minute)
            .await
            .with_context(|| format!("minute {minute}"))?;
        soak.totals.add(&counts);
    }
    soak.end_in_order()?;
    println!(
        "nothing was wrong in {} min: {}",
        options.minutes, soak.totals
    );
    Ok(())
}

struct Soak {
    stage: Stage,
    far_end: Running<Dispenser>,
    targets: Targets,
    random: Rng,
    /// What each process held at the end of its first round.
    first: Vec<Named>,
    totals: Counts,
}

/// What happened.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    served: usize,
    failed: usize,
    deaths: usize,
    cuts: usize,
    aborts: usize,
    blocks: usize,
    /// Connections by the session, the reverse and the direct path.
    by_path: [f64; 3],
}

/// What a firewall on the master's machine lets through no more.
#[derive(Clone, Copy, Debug)]
enum Blocked {
    /// The master's own dials to kubelets, so that there is no direct path.
    Dials,
    /// Agents' dials of flows and sessions.
    Flows,
}

impl Soak {
    async fn round(&mut self, minute: u32) -> Result<Counts> {
        let began = Instant::now();
        self.stage.windows.clear();
        let opened = self.opened().await?;
        let master = self.stage.cluster.master(0).pid();
        let seed = self.random.u64(..);
        let load = Load::start(&self.stage.api, &self.stage.targets(), USERS, seed);
        let mut counts = Counts::default();
        let path = if minute.is_multiple_of(2) {
            self.block(Blocked::Dials)?;
            FastPath::Reverse
        } else {
            FastPath::Direct
        };
        self.all_go_by(path).await?;
        let faults = Instant::now();
        while faults.elapsed() < FAULTS {
            sleep(BETWEEN.mul_f64(self.random.f64())).await;
            match self.random.u8(..12) {
                10.. => {
                    self.block(Blocked::Flows)?;
                    sleep(BLOCKED.mul_f64(self.random.f64())).await;
                    self.open_again(Blocked::Flows)?;
                    counts.blocks += 1;
                }
                0 => {
                    self.cut_link(minute).await?;
                    counts.cuts += 1;
                }
                1..4 => {
                    counts.aborts += ABORTS;
                    let seed = self.random.u64(..);
                    storm(&self.stage.api, &self.targets, ABORTS, seed).await?;
                }
                _ => {
                    let victim = self.victim(minute);
                    let away = AWAY.mul_f64(self.random.f64());
                    self.stage.kill(victim, away, BACK).await?;
                    counts.deaths += 1;
                }
            }
        }
        if path == FastPath::Reverse {
            self.open_again(Blocked::Dials)?;
        }
        let report = load.stop().await?;
        report.check(&self.stage.windows)?;
        ensure!(report.good > 0, "nobody was served");
        counts.served = report.good;
        counts.failed = report.failed.len();
        let now = self.rest().await?;
        // A master that was killed counts from nothing.
        let lived = self.stage.cluster.master(0).pid() == master;
        let before = if lived { opened } else { [0.0; 3] };
        let after = self.opened().await?;
        for ((count, after), before) in counts.by_path.iter_mut().zip(after).zip(before) {
            *count = after - before;
        }
        let [_, reverse, direct] = counts.by_path;
        let used = match path {
            FastPath::Reverse => reverse,
            FastPath::Direct => direct,
        };
        ensure!(
            used > 0.0,
            "no connection went by the {} path",
            path.as_str()
        );
        println!("minute {minute}: {counts}");
        for (name, now) in now {
            println!("  {name}: {now}");
        }
        sleep(MINUTE.saturating_sub(began.elapsed())).await;
        Ok(counts)
    }

    /// The master and the last agent live for some rounds, or nobody could see them grow.
    fn victim(&mut self, minute: u32) -> Victim {
        loop {
            let victim = Victim::any(&mut self.random, self.stage.nodes());
            let spared = match victim {
                Victim::Master => true,
                Victim::Agent(node) => node + 1 == self.stage.nodes(),
                Victim::Kubelet(_) => false,
            };
            if !spared || minute.is_multiple_of(SPARED_FOR) {
                return victim;
            }
        }
    }

    /// Waits until connections to all nodes go this way.
    async fn all_go_by(&self, path: FastPath) -> Result<()> {
        let deadline = Instant::now() + ON_PATH;
        loop {
            let said = status(&at_master(&self.stage.cluster)).await?;
            let on_path = |node: usize| {
                let now = said.pointer(&format!("/nodes/{node}/session/path"));
                now.and_then(|now| now.as_str()) == Some(path.as_str())
            };
            if (0..self.stage.nodes()).all(on_path) {
                return Ok(());
            }
            let path = path.as_str();
            ensure!(Instant::now() < deadline, "not all go by {path}: {said:#}");
            sleep(AGAIN).await;
        }
    }

    /// How many connections the master has opened by each path.
    async fn opened(&self) -> Result<[f64; 3]> {
        let metrics = self.masters_metrics().await?;
        Ok(["session", "reverse", "direct"].map(|path| {
            let sample = format!("proxymux_master_streams_opened_total{{path=\"{path}\"}}");
            metrics.get(&sample)
        }))
    }

    async fn masters_metrics(&self) -> Result<Metrics> {
        scrape(&at_master(&self.stage.cluster)).await
    }

    fn block(&self, what: Blocked) -> Result<()> {
        let (hook, port) = what.rule();
        self.stage.cluster.topology().master().nft(&format!(
            "table inet soak_{hook} {{\n\
             chain it {{\n\
             type filter hook {hook} priority 0; policy accept;\n\
             tcp dport {port} tcp flags & (syn | ack) == syn drop\n\
             }}\n\
             }}\n"
        ))
    }

    fn open_again(&self, what: Blocked) -> Result<()> {
        let (hook, _) = what.rule();
        let master = self.stage.cluster.topology().master();
        master.nft(&format!("delete table inet soak_{hook}"))
    }

    /// A gap that sessions outlive, or one that they do not.
    async fn cut_link(&mut self, minute: u32) -> Result<()> {
        let node = self.random.usize(..self.stage.nodes());
        let length = if minute.is_multiple_of(2) {
            LONG_GAP
        } else {
            SHORT_GAP
        };
        let (cluster, began) = (&self.stage.cluster, Instant::now());
        cluster.topology().silence(cluster.node(node))?;
        sleep(length).await;
        cluster.topology().restore(cluster.node(node))?;
        self.stage
            .all_served(BACK)
            .await
            .with_context(|| format!("after a gap of {length:?} at node {node}"))?;
        // What stood still may fail a moment later: a kubelet that was silent for long is given up
        // by keep-alives.
        self.stage.windows.push(Window {
            node: Some(node),
            began,
            ended: Instant::now(),
        });
        Ok(())
    }

    /// Waits until nothing is held that was not held before.
    async fn rest(&mut self) -> Result<Vec<Named>> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let idle = self.masters_metrics().await?.get(IDLE);
            let now = holdings(&self.stage.cluster).await?;
            let compared = self.compare(&now).and_then(|()| {
                // Fewer would be less than what is held at rest.
                let full = f64::from(NODES) * POOL;
                ensure!(idle == full, "{idle} idle flows, expected {full}");
                Ok(())
            });
            match compared {
                Ok(()) => {
                    self.remember(&now);
                    return Ok(now);
                }
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => sleep(AGAIN).await,
            }
        }
    }

    fn compare(&self, now: &[Named]) -> Result<()> {
        let open = self.far_end.open();
        ensure!(open == 0, "{open} connections are left at the far end");
        for (name, now) in now {
            let streams = now.gauge("streams_open");
            ensure!(streams == 0, "{name}: {streams} streams are left open");
            if let Some(first) = self.first_of(now) {
                now.are_no_more_than(first, SLACK)
                    .with_context(|| name.clone())?;
            }
        }
        Ok(())
    }

    fn first_of(&self, now: &Holdings) -> Option<&Holdings> {
        let mut first = self.first.iter().map(|(_, first)| first);
        first.find(|first| first.pid == now.pid)
    }

    fn remember(&mut self, now: &[Named]) {
        let first = now.iter().map(|(name, now)| {
            let first = self.first_of(now).unwrap_or(now);
            (name.clone(), first.clone())
        });
        self.first = first.collect();
    }

    /// All that still runs ends when it is told to.
    fn end_in_order(&mut self) -> Result<()> {
        let nodes = self.stage.nodes();
        let cluster = &mut self.stage.cluster;
        for node in 0..nodes {
            let agent = cluster.agent(node);
            agent.signal(Signal::SIGTERM)?;
            let status = agent.wait(END)?;
            ensure!(status.success(), "agent {node}: {status}");
        }
        let master = cluster.master(0);
        master.signal(Signal::SIGTERM)?;
        let status = master.wait(END)?;
        ensure!(status.success(), "master: {status}");
        Ok(())
    }
}

impl Blocked {
    /// On the master's machine: where, and whose first packets.
    fn rule(self) -> (&'static str, u16) {
        match self {
            Self::Dials => ("output", 10250),
            Self::Flows => ("input", 12250),
        }
    }
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.served += other.served;
        self.failed += other.failed;
        self.deaths += other.deaths;
        self.cuts += other.cuts;
        self.aborts += other.aborts;
        self.blocks += other.blocks;
        for (count, more) in self.by_path.iter_mut().zip(other.by_path) {
            *count += more;
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            served,
            failed,
            deaths,
            cuts,
            aborts,
            blocks,
            by_path: [session, reverse, direct],
        } = self;
        write!(
            f,
            "{served} requests served, {failed} failed with a reason; \
             {deaths} deaths, {cuts} links cut, {aborts} aborts, {blocks} times no new flows; \
             by session {session}, reverse {reverse}, direct {direct}"
        )
    }
}

const NODES: u8 = 2;
const USERS: usize = 4;

/// The far end, and addresses at which there is nobody.
const ALLOW: &str = "allow: [ { cidr: 10.0.10.0/24, ports: 20000-20999 } ]";
const NOBODY: &str = "10.0.10.77:20001";

/// As many flows are kept without load as with it, so that what is held at rest is the same.
const FLOWS: &str = "kubelet-certificates: verified\nflow-pool: 64\n";
const POOL: f64 = 64.0;
const IDLE: &str = "proxymux_master_flows_idle";

/// How long until a path is found again: it is looked for less and less often while it is blocked.
const ON_PATH: Duration = Duration::from_secs(60);
/// The longest time without new flows.
const BLOCKED: Duration = Duration::from_secs(5);

const MINUTE: Duration = Duration::from_secs(60);
/// For so much of each minute something new goes wrong; the rest is for what it leads to.
const FAULTS: Duration = Duration::from_secs(25);
/// The longest time between two faults.
const BETWEEN: Duration = Duration::from_secs(2);
/// The longest time until a process that was killed is started again.
const AWAY: Duration = Duration::from_secs(2);
/// An agent looks every 5 s for its master; a margin for a busy machine.
const BACK: Duration = Duration::from_secs(20);
/// Aborts at a time.
const ABORTS: usize = 400;
/// The master dies in every so many rounds only.
const SPARED_FOR: u32 = 5;
/// Sessions outlive 15 s, requests wait for 8 s.
const SHORT_GAP: Duration = Duration::from_secs(5);
const LONG_GAP: Duration = Duration::from_secs(18);
/// How long what is left may take to go away: keep-alives find a peer that is gone within 20 s.
const SETTLE: Duration = Duration::from_secs(45);
const AGAIN: Duration = Duration::from_millis(200);
/// How long a daemon without connections may take to end.
const END: Duration = Duration::from_secs(20);
/// What an allocator may keep of a busy minute, over all minutes together.
const SLACK: Slack = Slack {
    rss_kib: 16 * 1024,
    threads: 2,
};
