//! What clients cost that do nothing: memory, and the patience of the others.
//!
//! Owns three measurements of a case with daemons: their memory, and the kernel's for them, with
//! many idle connections, and with many downloads that ran fast and then stalled; and a healthy
//! stream's latencies beside stalled ones, in blocks that take turns with quiet ones, so that
//! whatever else the machine does shows in both.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    case::{Daemons, Stage},
    client::{Client, Stalled},
    footprint::Resident,
    kernel_memory::KernelMemory,
    path::{Seen, Watch},
    plan::{Plan, Stalling},
    stats::{median, micros},
};
use crate::admin::scrape;

/// Memory of both daemons.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    pub(super) agent: Resident,
    pub(super) master: Resident,
    pub(super) agent_kernel: KernelMemory,
    pub(super) master_kernel: KernelMemory,
}

impl Memory {
    pub(super) fn of(stage: &Stage) -> Result<Self> {
        let daemons = daemons(stage)?;
        let [master_kernel, agent_kernel] = stage.kernel_memory()?;
        Ok(Self {
            agent: Resident::of(daemons.agent.pid())?,
            master: Resident::of(daemons.master.pid())?,
            agent_kernel,
            master_kernel,
        })
    }

    /// What the kernel holds for both.
    pub(super) fn kernel(self) -> KernelMemory {
        self.agent_kernel + self.master_kernel
    }
}

/// A healthy stream's latencies, each the median of all blocks of its kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Patience {
    pub(super) quiet_p50_us: f64,
    pub(super) quiet_p99_us: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
}

/// Memory while so many connections stand idle that were used once, and how many pipes the agent
/// then has in use.
pub(super) async fn idle_memory(stage: &Stage, connections: u64) -> Result<(Memory, f64)> {
    let watch = Watch::begin(stage).await?;
    let idling = stage.client()?.idle(connections);
    let idle = stage.client_host().spawn(idling);
    let idle = idle.await.context("the client's task")??;
    settle(daemons(stage)?).await?;
    let memory = Memory::of(stage)?;
    let [_, agent] = stage.admin();
    let pipes = scrape(&agent)
        .await?
        .get(r#"proxymux_agent_pipes{state="held"}"#);
    let ended = stage.client_host().spawn(idle.finish());
    let traffic = ended.await.context("the client's task")??;
    watch.settle(stage, traffic, Seen::All).await?;
    Ok((memory, pipes))
}

/// Downloads of one stage that stand still.
pub(super) struct Standing {
    watch: Watch,
    stalled: Stalled,
}

impl Standing {
    /// Starts so many, and waits until nothing moves any more.
    pub(super) async fn begin(stage: &Stage, stalling: Stalling) -> Result<Self> {
        let watch = Watch::begin(stage).await?;
        let stalled = stall(stage, stalling).await?;
        settle(daemons(stage)?).await?;
        Ok(Self { watch, stalled })
    }

    /// Whether each of them goes on when it is read again; ends them all.
    pub(super) async fn end(self, stage: &Stage) -> Result<()> {
        let going_on = stage.client_host().spawn(self.stalled.go_on());
        let traffic = going_on.await.context("the client's task")??;
        self.watch.settle(stage, traffic, Seen::Part).await
    }
}

/// Memory while downloads stand still, at both moments.
///
/// Of one case at a time: what all of them hold together is more than a machine of some 24 GiB
/// lets its TCP sockets have (`net.ipv4.tcp_mem`), and then no window opens any more.
pub(super) async fn stalled_memory(stage: &Stage, plan: &Plan) -> Result<[Memory; 2]> {
    let standing = Standing::begin(stage, plan.memory).await?;
    let began = Instant::now();
    let [first, later] = plan.looks;
    sleep_until(began + first).await;
    let first = Memory::of(stage)?;
    sleep_until(began + later).await;
    let later = Memory::of(stage)?;
    standing.end(stage).await?;
    Ok([first, later])
}

/// A healthy stream in turns alone and beside stalled ones.
pub(super) async fn patience(stage: &Stage, plan: &Plan) -> Result<Patience> {
    let (mut quiet, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..plan.blocks {
        quiet.push(block(stage, plan, None).await?);
        beside.push(block(stage, plan, Some(plan.beside)).await?);
    }
    let of = |blocks: &[Block], number: fn(&Block) -> f64| {
        median(blocks.iter().map(number)).context("a plan has at least one block")
    };
    Ok(Patience {
        quiet_p50_us: of(&quiet, |block| block.p50_us)?,
        quiet_p99_us: of(&quiet, |block| block.p99_us)?,
        p50_us: of(&beside, |block| block.p50_us)?,
        p99_us: of(&beside, |block| block.p99_us)?,
    })
}

struct Block {
    p50_us: f64,
    p99_us: f64,
}

async fn block(stage: &Stage, plan: &Plan, stalling: Option<Stalling>) -> Result<Block> {
    let watch = Watch::begin(stage).await?;
    let stalled = match stalling {
        Some(stalling) => Some(stall(stage, stalling).await?),
        None => None,
    };
    settle(daemons(stage)?).await?;
    let requests = stage.client()?.requests(plan.requests_per_block);
    let asked = stage.client_host().spawn(requests).await;
    let series = asked.context("the client's task")??;
    let mut traffic = series.traffic;
    let seen = match stalled {
        None => Seen::All,
        Some(stalled) => {
            traffic += stalled.end();
            Seen::Part
        }
    };
    watch.settle(stage, traffic, seen).await?;
    let [p50_us, p99_us] = [50, 99].map(|p| micros(series.latencies.percentile(p)));
    Ok(Block { p50_us, p99_us })
}

async fn stall(stage: &Stage, stalling: Stalling) -> Result<Stalled> {
    let Stalling { streams, run_in } = stalling;
    let client: Client = stage.client()?;
    let task = stage.client_host().spawn(client.stall(streams, run_in));
    task.await.context("the client's task")?
}

fn daemons(stage: &Stage) -> Result<Daemons<'_>> {
    stage.daemons().context("the case has daemons")
}

/// Waits until both daemons have nothing more to do.
async fn settle(daemons: Daemons<'_>) -> Result<()> {
    let cpu = || -> Result<Duration> { Ok(daemons.cpu()?.iter().sum()) };
    let deadline = Instant::now() + SETTLE_LIMIT;
    let mut before = cpu()?;
    loop {
        sleep(SETTLE_WINDOW).await;
        let after = cpu()?;
        if after - before <= AT_REST {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "the daemons are still busy after {SETTLE_LIMIT:?}"
        );
        before = after;
    }
}

/// One step of the kernel's account.
const AT_REST: Duration = Duration::from_millis(10);
const SETTLE_WINDOW: Duration = Duration::from_millis(300);
const SETTLE_LIMIT: Duration = Duration::from_secs(60);
