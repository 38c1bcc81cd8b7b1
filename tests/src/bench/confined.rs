//! What the paths carry when the agent has half a processor and 256 MiB.
//!
//! Owns the second table: transfers with each case's agent in a control group of its own, how long
//! it was kept from running meanwhile, and downloads that stall there. Only the agent is confined:
//! it is what runs on every node, under the limits of a pod. A killed agent fails the run.

use anyhow::{Context, Result, ensure};
use tokio::time::sleep;

use super::{
    case::{Case, Stage},
    client::Direction,
    confinement::Confinement,
    measure::{self, Sample},
    path::Seen,
    plan::Plan,
    results::Row,
    stalled::Standing,
    stats::{gib, median},
};

/// Measures every stage that has an agent, in turns.
pub(super) async fn measure(
    stages: &[&Stage],
    plan: &Plan,
    mut tell: impl FnMut(&str) -> Result<()>,
) -> Result<Vec<Row>> {
    let mut all = Vec::new();
    for stage in stages {
        all.push(Confined::begin(stage)?);
    }
    for _ in 0..plan.confined.rounds {
        for confined in &mut all {
            confined.transfer(plan, &mut tell).await?;
        }
    }
    let mut rows = Vec::new();
    for mut confined in all {
        let stalled = confined.stall(plan).await?;
        rows.extend(confined.rows());
        rows.push(stalled);
    }
    Ok(rows)
}

struct Confined<'a> {
    stage: &'a Stage,
    confinement: Confinement,
    /// Downloads and uploads.
    taken: [Vec<Taken>; 2],
}

#[derive(Clone, Copy)]
struct Taken {
    sample: Sample,
    throttled_s_per_gib: f64,
}

impl<'a> Confined<'a> {
    fn begin(stage: &'a Stage) -> Result<Self> {
        let daemons = stage.daemons().context("the case has daemons")?;
        Ok(Self {
            stage,
            confinement: Confinement::of(daemons.agent.pid())?,
            taken: [Vec::new(), Vec::new()],
        })
    }

    async fn transfer(
        &mut self,
        plan: &Plan,
        tell: &mut impl FnMut(&str) -> Result<()>,
    ) -> Result<()> {
        let bytes = plan.confined.transfer_bytes;
        for ((direction, metric), taken) in DIRECTIONS.into_iter().zip(&mut self.taken) {
            let before = self.confinement.throttled()?;
            let moving = self.stage.client()?.transfer(direction, 1, bytes);
            // What else the machine does matters less than what the agent is allowed to do, and
            // processor time of the whole machine is not what this table is about.
            let sample = measure::transfer(self.stage, moving, bytes, 0.0, Seen::All).await?;
            let sample = Sample {
                cpu_s_per_gib: None,
                ..sample
            };
            let throttled = self.confinement.throttled()?.saturating_sub(before);
            tell(&format!(
                "  {:<13}  {metric}: {:.2} GiB/s, kept from running for {throttled:.1?}",
                self.stage.case.name,
                sample.gib_per_s.unwrap_or_default(),
            ))?;
            taken.push(Taken {
                sample,
                throttled_s_per_gib: throttled.as_secs_f64() / gib(bytes),
            });
        }
        Ok(())
    }

    /// Downloads that stall, and whether all of them go on afterwards.
    async fn stall(&mut self, plan: &Plan) -> Result<Row> {
        let Case { name, .. } = self.stage.case;
        let stalling = plan.confined.stalling;
        let standing = Standing::begin(self.stage, stalling).await?;
        let [first, _] = plan.looks;
        sleep(first).await;
        standing
            .end(self.stage)
            .await
            .with_context(|| format!("{name}: stalled downloads in a small control group"))?;
        let kills = self.confinement.kills()?;
        ensure!(kills == 0, "{name}: the kernel killed for want of memory");
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let peak_mib = self.confinement.peak_bytes()? as f64 / f64::from(1 << 20);
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let all_go_on = stalling.streams as f64;
        Ok(Row {
            case: name,
            metric: CONFINED_STALLED,
            streams: stalling.streams,
            more: vec![
                (GONE_ON, all_go_on),
                ("killed", 0.0),
                ("peak_mib", peak_mib),
            ],
            ..Row::default()
        })
    }

    fn rows(&self) -> Vec<Row> {
        let directions = DIRECTIONS.into_iter().zip(&self.taken);
        directions
            .map(|((_, metric), taken)| {
                let rounds: Vec<_> = taken.iter().map(|taken| taken.sample).collect();
                let throttled = median(taken.iter().map(|taken| taken.throttled_s_per_gib));
                Row {
                    case: self.stage.case.name,
                    metric,
                    streams: 1,
                    sample: Sample::median_of(&rounds),
                    rounds,
                    more: vec![(THROTTLED, throttled.unwrap_or_default())],
                    ..Row::default()
                }
            })
            .collect()
    }
}

pub(super) const CONFINED_DOWNLOAD: &str = "confined-download";
pub(super) const CONFINED_UPLOAD: &str = "confined-upload";
pub(super) const CONFINED_STALLED: &str = "confined-stalled";
pub(super) const THROTTLED: &str = "throttled_s_per_gib";
/// Downloads that stalled and then went on.
pub(super) const GONE_ON: &str = "gone_on";

const DIRECTIONS: [(Direction, &str); 2] = [
    (Direction::Download, CONFINED_DOWNLOAD),
    (Direction::Upload, CONFINED_UPLOAD),
];
