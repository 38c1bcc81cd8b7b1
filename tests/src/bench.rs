//! `cargo xtask bench`: what the tunnel costs, held against plain TCP in the same run.
//!
//! [`run`] measures every case in turn (`case.rs`), makes sure that each took the path that it
//! names (`path.rs`), and tells the results as a table and as JSON (`results.rs`) beside the
//! figures to reach (`figures.rs`). How much is measured is a [`Plan`].
//! The daemons are the real ones, found through `PROXYMUX_BIN_DIR`.

mod case;
mod client;
mod cpu;
mod crowd;
mod far_end;
mod figures;
mod footprint;
mod machine;
mod measure;
mod path;
mod plan;
mod results;
mod stalled;
mod stats;

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use proxymux_testkit::{cluster::BIN_DIR_VARIABLE, netns::Topology};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

pub use self::plan::Plan;
use self::{
    case::{CASES, Case, Stage},
    cpu::CpuMoment,
    figures::{AGENT_SWITCHES, Figure, QUIET_P99, RSS, STALLED, figures},
    machine::Machine,
    measure::{Measure, Sample},
    results::{Results, Row},
    stalled::{Memory, memory, patience},
    stats::{median, rounded},
};
use crate::interrupts::Interrupts;

/// What the bench is asked to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// How much to measure.
    pub plan: Plan,
    /// Where to write the results for programs.
    pub json: Option<PathBuf>,
}

/// How a run ended. Everything it made has been removed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ending {
    /// All was measured.
    Done,
    /// It was told to end before it was done.
    Interrupted,
}

/// Measures everything, and tells what came of it on `out`.
///
/// # Errors
///
/// Something could not be measured, or a case did not take the path that it names.
pub async fn run(options: Options, out: &mut (impl Write + Send)) -> Result<Ending> {
    check_place(&options)?;
    // Before anything is made, so that nothing is left by whoever is impatient.
    let mut interrupts = Interrupts::listen()?;
    Topology::sweep_leftovers()?;
    let mut bench = Bench {
        plan: options.plan,
        machine: Machine::look()?,
        stages: Vec::new(),
        results: Results::default(),
        backgrounds: Vec::new(),
        began: Instant::now(),
        out,
    };
    let measured = tokio::select! {
        biased;
        () = interrupts.next() => None,
        measured = bench.measure() => Some(measured),
    };
    match measured {
        None => return Ok(Ending::Interrupted),
        // The terminal's Ctrl-C also ends what we have started, which then fails.
        Some(Err(_)) if interrupts.came().await => return Ok(Ending::Interrupted),
        Some(Err(error)) => {
            bench.tell_last_words()?;
            return Err(error);
        }
        Some(Ok(())) => {}
    }
    bench.tell()?;
    if let Some(path) = &options.json {
        write_json(path, &bench.to_json())?;
    }
    Ok(Ending::Done)
}

/// One run.
struct Bench<'a, W> {
    plan: Plan,
    machine: Machine,
    stages: Vec<Stage>,
    results: Results,
    /// What the machine spent by itself, in processor seconds per second, in each round.
    backgrounds: Vec<f64>,
    began: Instant,
    out: &'a mut W,
}

impl<W: Write + Send> Bench<'_, W> {
    async fn measure(&mut self) -> Result<()> {
        self.say(&format!("proxymux bench, {} run", self.plan.name))?;
        self.say(&self.machine.line())?;
        for &case in CASES {
            // Making machines blocks for a while; a signal then waits for the next step.
            let stage = tokio::task::block_in_place(|| Stage::set(case));
            let context = || format!("cannot set the stage for case {}", case.name);
            self.stages.push(stage.with_context(context)?);
        }
        self.measure_idle().await?;
        self.measure_rounds().await?;
        self.measure_stalled().await?;
        self.measure_fleet().await
    }

    /// Before anything has been asked of the daemons.
    async fn measure_idle(&mut self) -> Result<()> {
        for at in 0..self.stages.len() {
            let Some((case, daemons)) = self.daemons_of(at) else {
                continue;
            };
            let switches = footprint::switches_per_second(daemons.agent.pid(), self.plan.idle);
            let of_master = footprint::switches_per_second(daemons.master.pid(), self.plan.idle);
            let (of_agent, of_master) = tokio::try_join!(switches, of_master)?;
            let mut row = memory_row(case, 0, Memory::of(daemons)?);
            row.more.push((AGENT_SWITCHES, of_agent));
            row.more
                .push(("master_voluntary_switches_per_s", of_master));
            row.more.push(("window_s", self.plan.idle.as_secs_f64()));
            self.say(&format!(
                "{}: idle for {:?}: agent {of_agent:.1} and master {of_master:.1} voluntary \
                 context switches per second",
                case.name, self.plan.idle
            ))?;
            self.results.rows.push(row);
        }
        Ok(())
    }

    async fn measure_rounds(&mut self) -> Result<()> {
        let measures = Measure::all(&self.plan);
        let mut samples = vec![vec![Vec::new(); self.stages.len()]; measures.len()];
        for round in 1..=self.plan.rounds {
            let background = self.measure_background(round).await?;
            for (measure, samples) in measures.iter().zip(&mut samples) {
                // In turn, because the speed of the machine changes.
                for (stage, samples) in self.stages.iter().zip(samples) {
                    let sample = measure.take(stage, &self.plan, background).await?;
                    let line = format!(
                        "  {:<9}  {:<8}  {}: {}",
                        stage.case.name,
                        measure.metric(),
                        measure.streams(),
                        sample.words()
                    );
                    writeln!(self.out, "{line}").context(CANNOT_WRITE)?;
                    samples.push(sample);
                }
            }
        }
        for (measure, samples) in measures.iter().zip(&samples) {
            for (stage, samples) in self.stages.iter().zip(samples) {
                self.results.rows.push(Row {
                    case: stage.case.name,
                    metric: measure.metric(),
                    streams: measure.streams(),
                    sample: Sample::median_of(samples),
                    ..Row::default()
                });
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

    async fn measure_stalled(&mut self) -> Result<()> {
        for at in 0..self.stages.len() {
            let Some((case, _)) = self.daemons_of(at) else {
                continue;
            };
            let (streams, beside) = (self.plan.memory.streams, self.plan.beside.streams);
            self.say(&format!("{}: {streams} stalled downloads", case.name))?;
            let stage = self
                .stages
                .get(at)
                .context("the stage has just been there")?;
            let memory = memory(stage, self.plan.memory).await?;
            self.results.rows.push(memory_row(case, streams, memory));
            self.say(&format!(
                "{}: requests beside {beside} stalled downloads and alone, in turns",
                case.name
            ))?;
            let stage = self
                .stages
                .get(at)
                .context("the stage has just been there")?;
            let patience = patience(stage, &self.plan).await?;
            self.results.rows.push(Row {
                case: case.name,
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

    /// A stage's daemons, if it has any.
    fn daemons_of(&self, at: usize) -> Option<(Case, case::Daemons<'_>)> {
        let stage = self.stages.get(at)?;
        Some((stage.case, stage.daemons()?))
    }

    fn background(&self) -> f64 {
        median(self.backgrounds.iter().copied()).unwrap_or_default()
    }

    fn figures(&self) -> Vec<Figure> {
        figures(&self.results, &self.plan)
    }

    fn tell(&mut self) -> Result<()> {
        let background = self.background();
        let mut text = format!("\n{}\n", self.results.table());
        text.push_str(&format!(
            "medians, rounds: {}; idle background {background:.3} CPU s/s, subtracted\n",
            self.plan.rounds
        ));
        if background > BUSY {
            text.push_str(
                "the machine was busy with something else: these figures are worth little\n",
            );
        }
        text.push_str(&format!("\n{}\n\nfigures to reach:\n", self.machine.line()));
        for figure in self.figures() {
            text.push_str(&format!("{}\n", figure.line()));
        }
        let took = self.began.elapsed().as_secs();
        text.push_str(&format!("\nThe {} run took {took} s.", self.plan.name));
        self.say(&text)
    }

    /// After a failure: what the daemons said last.
    fn tell_last_words(&mut self) -> Result<()> {
        let mut text = String::new();
        for daemon in self
            .stages
            .iter()
            .filter_map(Stage::daemons)
            .flat_map(case::Daemons::both)
        {
            let lines = daemon.lines();
            let last = lines.len().saturating_sub(LAST_LINES);
            text.push_str(&format!("\nthe last lines of {}:\n", daemon.name()));
            for line in lines.iter().skip(last) {
                text.push_str(&format!("{line}\n"));
            }
        }
        self.say(&text)
    }

    fn to_json(&self) -> Value {
        let figures: Vec<_> = self.figures().iter().map(Figure::to_json).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "machine": self.machine.to_json(),
            "plan": self.plan.to_json(),
            "background_cpu_s_per_s": rounded(self.background(), 4),
            "results": self.results.rows_to_json(),
            "ratios": self.results.ratios_to_json(),
            "figures": figures,
        })
    }

    fn say(&mut self, text: &str) -> Result<()> {
        writeln!(self.out, "{text}").context(CANNOT_WRITE)
    }
}

fn memory_row(case: Case, streams: u64, memory: Memory) -> Row {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 KiB")]
    let file = |resident: footprint::Resident| resident.file_kib as f64;
    Row {
        case: case.name,
        metric: RSS,
        streams,
        agent_rss_kib: Some(memory.agent.kib),
        master_rss_kib: Some(memory.master.kib),
        more: vec![
            ("agent_rss_file_kib", file(memory.agent)),
            ("master_rss_file_kib", file(memory.master)),
        ],
        ..Row::default()
    }
}

/// What would only be noticed after minutes.
fn check_place(options: &Options) -> Result<()> {
    if let Some(reason) = Topology::unavailable() {
        bail!("the bench cannot start: {reason}");
    }
    if env::var_os(BIN_DIR_VARIABLE).is_none() {
        bail!(
            "{BIN_DIR_VARIABLE} is not set: start it as `cargo xtask bench`, which builds the daemons"
        );
    }
    if let Some(path) = &options.json {
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        if parent.is_some_and(|parent| !parent.is_dir()) || path.is_dir() {
            bail!(
                "cannot write {}: no such directory, or it is one",
                path.display()
            );
        }
    }
    Ok(())
}

fn write_json(path: &Path, results: &Value) -> Result<()> {
    let text = format!("{results:#}\n");
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

const CANNOT_WRITE: &str = "cannot write to the standard output";

/// Enough to see how it came to a failure.
const LAST_LINES: usize = 12;

/// Processor seconds per second: a tenth of one processor.
const BUSY: f64 = 0.1;
