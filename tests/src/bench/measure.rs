//! One measurement of one case, from a machine at rest to a sample.
//!
//! Owns what each [`Measure`] is, and that every one of them is held against the logs before it
//! counts. Repeating them in turn and taking medians is the caller's.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};

use super::{
    BUSY,
    case::{LOG_LINE, Stage},
    client::{Direction, Series, Transfer},
    path::{Seen, Watch},
    plan::Plan,
    stats::{gib, median, micros},
};
use crate::latency::Latencies;

/// Something that is measured of every case in every round.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Measure {
    /// Over so many connections.
    Transfer(Direction, u64),
    Request,
    Open,
    /// A kubelet's log, over TLS.
    Logs,
}

/// What one measurement gave; what it does not give is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sample {
    pub(super) gib_per_s: Option<f64>,
    /// Of the whole machine, or of all processes on the way if the machine is [`BUSY`].
    pub(super) cpu_s_per_gib: Option<f64>,
    pub(super) p50_us: Option<f64>,
    pub(super) p99_us: Option<f64>,
    /// Parts of `cpu_s_per_gib`, from the daemons' own accounts: good on a busy machine too.
    pub(super) agent_cpu_s_per_gib: Option<f64>,
    pub(super) master_cpu_s_per_gib: Option<f64>,
}

impl Measure {
    /// All of a plan, in the order in which they are measured.
    pub(super) fn all(plan: &Plan) -> Vec<Self> {
        let mut all = Vec::new();
        for &streams in plan.streams {
            for direction in [Direction::Download, Direction::Upload] {
                all.push(Self::Transfer(direction, streams));
            }
        }
        all.extend([Self::Request, Self::Open, Self::Logs]);
        all
    }

    /// As it stands in the results.
    pub(super) fn metric(self) -> &'static str {
        match self {
            Self::Transfer(Direction::Download, _) => DOWNLOAD,
            Self::Transfer(Direction::Upload, _) => UPLOAD,
            Self::Request => REQUEST,
            Self::Open => OPEN,
            Self::Logs => LOGS,
        }
    }

    /// How many connections it uses at a time.
    pub(super) fn streams(self) -> u64 {
        match self {
            Self::Transfer(_, streams) => streams,
            Self::Request | Self::Open | Self::Logs => 1,
        }
    }

    /// Measures once. `background` is what the machine spends by itself, in processor seconds
    /// per second.
    pub(super) async fn take(
        self,
        stage: &mut Stage,
        plan: &Plan,
        background: f64,
    ) -> Result<Taken> {
        match self {
            Self::Transfer(direction, streams) => {
                let bytes = plan.transfer_bytes;
                let client = stage.client()?;
                let moving = client.transfer(direction, streams, bytes);
                let sample = transfer(stage, moving, bytes, background, Seen::All).await?;
                Ok(sample.into())
            }
            Self::Logs => {
                let lines = plan.log_bytes / LOG_LINE as u64;
                let bytes = lines * LOG_LINE as u64;
                tokio::task::block_in_place(|| stage.start_kubelet(lines))?;
                let reading = stage.tls_client()?.logs(bytes);
                let sample = transfer(stage, reading, bytes, background, Seen::Inside).await?;
                tokio::task::block_in_place(|| stage.start_far_end())?;
                Ok(sample.into())
            }
            Self::Request => series(stage, stage.client()?.requests(plan.requests)).await,
            Self::Open => series(stage, stage.client()?.opens(plan.opens)).await,
        }
    }
}

/// A sample, and the latencies that it was made of, if it was.
#[derive(Clone, Debug, Default)]
pub(super) struct Taken {
    pub(super) sample: Sample,
    pub(super) latencies: Latencies,
}

impl From<Sample> for Taken {
    fn from(sample: Sample) -> Self {
        Self {
            sample,
            latencies: Latencies::default(),
        }
    }
}

/// Moves so many bytes once, and holds that against the path.
pub(super) async fn transfer(
    stage: &Stage,
    moving: impl Future<Output = Result<Transfer>> + Send + 'static,
    bytes: u64,
    background: f64,
    seen: Seen,
) -> Result<Sample> {
    let watch = Watch::begin(stage).await?;
    let before = (cpu_between(stage)?, cpu_of_bench()?);
    let moving = stage.client_host().spawn(moving);
    let transfer = moving.await.context("the client's task")??;
    let after = (cpu_between(stage)?, cpu_of_bench()?);
    let (spent, gib) = (transfer.spent, gib(bytes));
    let own = before.0.zip(after.0).map(|([m0, a0], [m1, a1])| {
        [m1.saturating_sub(m0), a1.saturating_sub(a0)].map(|cpu| cpu.as_secs_f64() / gib)
    });
    let cpu = if background > BUSY {
        // What others do meanwhile is not what they did before.
        let ends = after.1.saturating_sub(before.1).as_secs_f64() / gib;
        ends + own.map_or(0.0, |[master, agent]| master + agent)
    } else {
        spent.busy_above(background) / gib
    };
    watch.settle(stage, transfer.traffic, seen).await?;
    Ok(Sample {
        gib_per_s: Some(gib / spent.wall.as_secs_f64()),
        cpu_s_per_gib: Some(cpu),
        master_cpu_s_per_gib: own.map(|[master, _]| master),
        agent_cpu_s_per_gib: own.map(|[_, agent]| agent),
        ..Sample::default()
    })
}

async fn series(
    stage: &Stage,
    asking: impl Future<Output = Result<Series>> + Send + 'static,
) -> Result<Taken> {
    let watch = Watch::begin(stage).await?;
    let asking = stage.client_host().spawn(asking);
    let series = asking.await.context("the client's task")??;
    watch.settle(stage, series.traffic, Seen::All).await?;
    let [p50, p99] = [50, 99].map(|p| micros(series.latencies.percentile(p)));
    Ok(Taken {
        sample: Sample {
            p50_us: Some(p50),
            p99_us: Some(p99),
            ..Sample::default()
        },
        latencies: series.latencies,
    })
}

impl Sample {
    /// The median of each number by itself.
    pub(super) fn median_of(samples: &[Self]) -> Self {
        let of = |number: fn(&Self) -> Option<f64>| median(samples.iter().filter_map(number));
        Self {
            gib_per_s: of(|sample| sample.gib_per_s),
            cpu_s_per_gib: of(|sample| sample.cpu_s_per_gib),
            p50_us: of(|sample| sample.p50_us),
            p99_us: of(|sample| sample.p99_us),
            agent_cpu_s_per_gib: of(|sample| sample.agent_cpu_s_per_gib),
            master_cpu_s_per_gib: of(|sample| sample.master_cpu_s_per_gib),
        }
    }

    /// A few words for the one who waits.
    pub(super) fn words(&self) -> String {
        match (self.gib_per_s, self.cpu_s_per_gib, self.p50_us, self.p99_us) {
            (Some(speed), Some(cpu), ..) => format!("{speed:.2} GiB/s, {cpu:.2} CPU s/GiB"),
            (.., Some(p50), Some(p99)) => format!("p50 {p50:.0} us, p99 {p99:.0} us"),
            _ => "nothing".to_owned(),
        }
    }
}

/// Processor time that the two in the middle have used, if the case has any.
fn cpu_between(stage: &Stage) -> Result<Option<[Duration; 2]>> {
    stage.between().map(|both| both.cpu()).transpose()
}

/// That of client and far end, which are threads of this process.
fn cpu_of_bench() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("cannot ask for the own usage")?;
    let [user, system] = [usage.user_time(), usage.system_time()].map(|time| {
        let micros = time.num_microseconds();
        Duration::from_micros(u64::try_from(micros).unwrap_or_default())
    });
    Ok(user + system)
}

pub(super) const DOWNLOAD: &str = "download";
pub(super) const UPLOAD: &str = "upload";
pub(super) const REQUEST: &str = "request";
pub(super) const OPEN: &str = "open";
pub(super) const LOGS: &str = "kubelet-tls";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_has_a_median_of_its_own() {
        let sample = |speed, cpu| Sample {
            gib_per_s: Some(speed),
            cpu_s_per_gib: Some(cpu),
            ..Sample::default()
        };
        let samples = [sample(1.0, 9.0), sample(3.0, 2.0), sample(2.0, 4.0)];
        assert_eq!(Sample::median_of(&samples), sample(2.0, 4.0));
        assert_eq!(Sample::median_of(&[]), Sample::default());
    }

    #[test]
    fn every_transfer_is_made_with_every_number_of_connections() {
        let all: Vec<_> = Measure::all(&Plan::full())
            .into_iter()
            .map(|measure| (measure.metric(), measure.streams()))
            .collect();
        assert_eq!(
            all,
            [
                ("download", 1),
                ("upload", 1),
                ("download", 8),
                ("upload", 8),
                ("request", 1),
                ("open", 1),
                ("kubelet-tls", 1),
            ]
        );
    }
}
