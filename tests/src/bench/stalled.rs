//! What clients cost that have stopped reading: memory, and the patience of the others.
//!
//! Owns two measurements of a case with daemons: their memory with many downloads that ran fast
//! and then stalled, and a healthy stream's latencies beside stalled ones, in blocks that take
//! turns with quiet ones, so that whatever else the machine does shows in both.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};

use super::{
    case::{Daemons, Stage},
    client::{Client, Stalled},
    footprint::Resident,
    path::{Seen, Watch},
    plan::{Plan, Stalling},
    stats::{median, micros},
};

/// Memory of both daemons with stalled downloads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    pub(super) agent: Resident,
    pub(super) master: Resident,
}

impl Memory {
    pub(super) fn of(daemons: Daemons<'_>) -> Result<Self> {
        Ok(Self {
            agent: Resident::of(daemons.agent.pid())?,
            master: Resident::of(daemons.master.pid())?,
        })
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

/// Memory while so many downloads stand still.
pub(super) async fn memory(stage: &Stage, stalling: Stalling) -> Result<Memory> {
    let watch = Watch::begin(stage);
    let stalled = stall(stage, stalling).await?;
    settle(daemons(stage)?).await?;
    let memory = Memory::of(daemons(stage)?)?;
    watch.settle(stage, stalled.end(), Seen::Part).await?;
    Ok(memory)
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
    let watch = Watch::begin(stage);
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
