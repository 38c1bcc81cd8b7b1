//! What a run does, one step after the other.
//!
//! Owns the order, and making rows of what was measured: idle daemons first, before anything has
//! been asked of them, then the rounds in which all cases take turns, then what idle and stalled
//! connections cost, what a small control group leaves, and a fleet. Telling the results is the
//! parent's.

use std::io::Write;

use anyhow::{Context, Result};
use tokio::time::sleep;

use super::{
    Bench,
    case::{CASES, Case, Stage, USERSPACE},
    confined,
    confinement::Confinement,
    cpu::CpuMoment,
    crowd,
    figures::{
        AGENT_SWITCHES, IDLE_CONNECTIONS, KERNEL_FIRST, KERNEL_LATER, PIPES, QUIET_P99, RSS,
        STALLED,
    },
    footprint,
    kernel_memory::KernelMemory,
    measure::{Measure, Sample},
    results::{Distribution, Row},
    stalled::{Memory, idle_memory, patience, stalled_memory},
};
use crate::latency::Latencies;

impl<W: Write + Send> Bench<'_, W> {
    pub(super) async fn measure(&mut self) -> Result<()> {
        self.say(&format!("proxymux bench, {} run", self.plan.name))?;
        self.say(&self.machine.line())?;
        for &case in CASES.iter().filter(|case| self.plan.has(case)) {
            // Making machines blocks for a while; a signal then waits for the next step.
            let stage = tokio::task::block_in_place(|| Stage::set(case));
            let context = || format!("cannot set the stage for case {}", case.name);
            self.stages.push(stage.with_context(context)?);
        }
        if !self.plan.only.is_empty() {
            return self.measure_rounds().await;
        }
        self.measure_idle().await?;
        self.measure_rounds().await?;
        self.measure_idle_connections().await?;
        self.measure_stalled().await?;
        self.measure_patience().await?;
        self.measure_confined().await?;
        self.measure_fleet().await
    }

    /// Before anything has been asked of the daemons.
    async fn measure_idle(&mut self) -> Result<()> {
        let window = self.plan.idle;
        self.say(&format!("all daemons idle for {window:?}"))?;
        let pids: Vec<_> = self
            .stages
            .iter()
            .filter_map(Stage::daemons)
            .flat_map(|daemons| daemons.both().map(|daemon| daemon.pid()))
            .collect();
        let rates = footprint::switches_per_second(&pids, window).await?;
        let idle = self.stages.iter().filter(|stage| stage.daemons().is_some());
        let mut rows = Vec::new();
        for (stage, rates) in idle.zip(rates.chunks_exact(2)) {
            let [of_master, of_agent] = *rates else {
                continue;
            };
            let mut row = memory_row(stage.case, RSS, 0, Memory::of(stage)?);
            row.more.push((AGENT_SWITCHES, of_agent));
            row.more
                .push(("master_voluntary_switches_per_s", of_master));
            row.more.push(("window_s", window.as_secs_f64()));
            rows.push(row);
        }
        self.results.rows.extend(rows);
        Ok(())
    }

    async fn measure_rounds(&mut self) -> Result<()> {
        let measures = Measure::all(&self.plan);
        let mut taken = vec![vec![Vec::new(); self.stages.len()]; measures.len()];
        for round in 1..=self.plan.rounds {
            let background = self.measure_background(round).await?;
            for (measure, taken) in measures.iter().zip(&mut taken) {
                // In turn, because the speed of the machine changes.
                for (stage, taken) in self.stages.iter_mut().zip(taken) {
                    let one = measure.take(stage, &self.plan, background).await?;
                    let line = format!(
                        "  {:<13}  {:<11}  {}: {}",
                        stage.case.name,
                        measure.metric(),
                        measure.streams(),
                        one.sample.words()
                    );
                    writeln!(self.out, "{line}").context(super::CANNOT_WRITE)?;
                    taken.push(one);
                }
            }
        }
        for (measure, taken) in measures.iter().zip(&taken) {
            for (stage, taken) in self.stages.iter().zip(taken) {
                let rounds: Vec<_> = taken.iter().map(|taken| taken.sample).collect();
                self.results.rows.push(Row {
                    case: stage.case.name,
                    metric: measure.metric(),
                    streams: measure.streams(),
                    sample: Sample::median_of(&rounds),
                    rounds,
                    ..Row::default()
                });
                let mut all = Latencies::default();
                for taken in taken {
                    all.extend(&taken.latencies);
                }
                if !all.is_empty() {
                    let distribution = Distribution::of(stage.case.name, measure.metric(), &all);
                    self.results.distributions.push(distribution);
                }
            }
        }
        Ok(())
    }

    /// What the machine does while we do nothing; it is subtracted from what we then do.
    async fn measure_background(&mut self, round: usize) -> Result<f64> {
        let moment = CpuMoment::now()?;
        sleep(self.plan.background).await;
        let rate = moment.spent()?.rate();
        let rounds = self.plan.rounds;
        self.say(&format!(
            "round {round} of {rounds}, background {rate:.3} CPU s/s"
        ))?;
        self.backgrounds.push(rate);
        Ok(rate)
    }

    async fn measure_idle_connections(&mut self) -> Result<()> {
        let count = self.plan.idle_connections;
        self.say(&format!("{count} idle connections by each fast path"))?;
        let mut rows = Vec::new();
        for stage in self.stages.iter().filter(|stage| stage.case.has_flows()) {
            let (memory, pipes) = idle_memory(stage, count).await?;
            let mut row = memory_row(stage.case, IDLE_CONNECTIONS, count, memory);
            row.more.push((PIPES, pipes));
            rows.push(row);
        }
        self.results.rows.extend(rows);
        Ok(())
    }

    async fn measure_stalled(&mut self) -> Result<()> {
        let streams = self.plan.memory.streams;
        self.say(&format!("{streams} stalled downloads by each path"))?;
        let stages = self
            .stages
            .iter()
            .filter(|stage| stage.daemons().is_some())
            .filter(|stage| self.plan.is_thorough_about(&stage.case));
        for stage in stages {
            let [first, later] = stalled_memory(stage, &self.plan).await?;
            let mut row = memory_row(stage.case, RSS, streams, later);
            row.more.push((KERNEL_FIRST, mib(first.kernel())));
            row.more.push((KERNEL_LATER, mib(later.kernel())));
            self.results.rows.push(row);
        }
        Ok(())
    }

    async fn measure_patience(&mut self) -> Result<()> {
        let beside = self.plan.beside.streams;
        self.say(&format!(
            "requests beside {beside} stalled downloads and alone, in turns"
        ))?;
        for stage in &self.stages {
            if !self.plan.is_patient_with(&stage.case) {
                continue;
            }
            let patience = patience(stage, &self.plan).await?;
            self.results.rows.push(Row {
                case: stage.case.name,
                metric: STALLED,
                streams: beside,
                sample: Sample {
                    p50_us: Some(patience.p50_us),
                    p99_us: Some(patience.p99_us),
                    ..Sample::default()
                },
                more: vec![
                    ("quiet_p50_us", patience.quiet_p50_us),
                    (QUIET_P99, patience.quiet_p99_us),
                ],
                ..Row::default()
            });
        }
        Ok(())
    }

    async fn measure_confined(&mut self) -> Result<()> {
        if let Some(reason) = Confinement::unavailable() {
            return self.say(&format!("agents are not confined: {reason}"));
        }
        self.say("each agent in a control group of half a processor and 256 MiB")?;
        let stages: Vec<_> = self
            .stages
            .iter()
            .filter(|stage| stage.daemons().is_some())
            .filter(|Stage { case, .. }| {
                // Which the others are held against.
                case.name == USERSPACE || self.plan.is_thorough_about(case)
            })
            .collect();
        let out = &mut self.out;
        let tell = |line: &str| writeln!(out, "{line}").context(super::CANNOT_WRITE);
        let rows = confined::measure(&stages, &self.plan, tell).await?;
        self.results.rows.extend(rows);
        Ok(())
    }

    async fn measure_fleet(&mut self) -> Result<()> {
        let size = self.plan.fleet;
        if size == 0 {
            return Ok(());
        }
        // They have been measured, and would only be in the way.
        self.stages.clear();
        self.say(&format!("session: {size} agents of one master"))?;
        let row = crowd::measure(size, self.plan.fleet_rest).await?;
        self.results.rows.push(row);
        Ok(())
    }
}

fn memory_row(case: Case, metric: &'static str, streams: u64, memory: Memory) -> Row {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 KiB")]
    let file = |resident: footprint::Resident| resident.file_kib as f64;
    Row {
        case: case.name,
        metric,
        streams,
        agent_rss_kib: Some(memory.agent.kib),
        master_rss_kib: Some(memory.master.kib),
        more: vec![
            ("agent_rss_file_kib", file(memory.agent)),
            ("master_rss_file_kib", file(memory.master)),
            ("agent_kernel_mib", mib(memory.agent_kernel)),
            ("master_kernel_mib", mib(memory.master_kernel)),
            ("pipes_mib", in_mib(memory.kernel().pipe_bytes)),
        ],
        ..Row::default()
    }
}

/// Sockets and pipes together.
fn mib(memory: KernelMemory) -> f64 {
    in_mib(memory.bytes())
}

fn in_mib(bytes: u64) -> f64 {
    super::stats::gib(bytes) * 1024.0
}
