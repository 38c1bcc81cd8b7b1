//! `cargo xtask bench`: what the tunnel costs, held against plain TCP in the same run.
//!
//! [`run`] measures every case in turn (`case.rs`, `steps.rs`), makes sure that each took the path
//! that it names (`path.rs`), and tells the results as a table and as JSON (`results.rs`), as a
//! document (`markdown.rs`) and as pictures (`plots.rs`), beside the figures to reach
//! (`figures.rs`) and what made the difference (`gains.rs`). How much is measured is a [`Plan`].
//! The daemons are the real ones, found through `PROXYMUX_BIN_DIR`.

mod case;
mod client;
mod confined;
mod confinement;
mod cpu;
mod crowd;
mod far_end;
mod figures;
mod footprint;
mod gains;
mod kernel_memory;
mod machine;
mod markdown;
mod measure;
mod path;
mod plan;
mod plots;
mod results;
mod stalled;
mod stats;
mod steps;

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use proxymux_testkit::{cluster::BIN_DIR_VARIABLE, netns::Topology};
use serde_json::{Value, json};
use tokio::time::Instant;

pub use self::plan::Plan;
use self::{
    case::Stage,
    figures::{Figure, figures},
    gains::{Gain, gains},
    machine::Machine,
    markdown::Document,
    plots::{Plot, plots},
    results::Results,
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
    /// Where to write them as a document for people.
    pub markdown: Option<PathBuf>,
    /// The directory for pictures of them; it is made.
    pub plots: Option<PathBuf>,
}

/// The names of all cases, in the order in which they take turns.
pub fn case_names() -> impl Iterator<Item = &'static str> {
    case::CASES.iter().map(|case| case.name)
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
        plan: options.plan.clone(),
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
            bench.tell_last_words(&error)?;
            return Err(error);
        }
        Some(Ok(())) => {}
    }
    bench.tell()?;
    if let Some(path) = &options.json {
        write(path, &format!("{:#}\n", bench.to_json()))?;
    }
    bench.draw(&options)?;
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
    fn background(&self) -> f64 {
        median(self.backgrounds.iter().copied()).unwrap_or_default()
    }

    fn figures(&self) -> Vec<Figure> {
        figures(&self.results, &self.plan)
    }

    fn gains(&self) -> Vec<Gain> {
        gains(&self.results)
    }

    /// Writes the pictures and the document, if they are wanted.
    fn draw(&self, options: &Options) -> Result<()> {
        let plots = plots(&self.results);
        if let Some(directory) = &options.plots {
            let context = || format!("cannot make {}", directory.display());
            fs::create_dir_all(directory).with_context(context)?;
            for plot in &plots {
                plot.draw(&self.results, directory)?;
            }
        }
        let Some(path) = &options.markdown else {
            return Ok(());
        };
        let plots_at = options.plots.as_deref().map(|plots| seen_from(path, plots));
        write(path, &self.document(&plots, plots_at.as_deref()))
    }

    fn document(&self, plots: &[Plot], plots_at: Option<&str>) -> String {
        let document = Document {
            machine: &self.machine,
            plan: &self.plan,
            results: &self.results,
            gains: &self.gains(),
            figures: &self.figures(),
            background: self.background(),
            plots,
            plots_at,
        };
        document.text()
    }

    fn tell(&mut self) -> Result<()> {
        let background = self.background();
        let mut text = format!("\n{}\n", self.results.table());
        text.push_str(&format!(
            "medians, rounds: {}; idle background {background:.3} CPU s/s\n",
            self.plan.rounds
        ));
        if background > BUSY {
            text.push_str(
                "the machine was busy with something else: CPU is that of the processes on the way by \
                 their own accounts, and speeds are worth little\n",
            );
        }
        text.push_str("\nwhere the gains come from:\n");
        for gain in self.gains() {
            text.push_str(&format!("{}\n", gain.line()));
        }
        text.push_str(&format!("\n{}\n\nfigures to reach:\n", self.machine.line()));
        for figure in self.figures() {
            text.push_str(&format!("{}\n", figure.line()));
        }
        let took = self.began.elapsed().as_secs();
        text.push_str(&format!("\nThe {} run took {took} s.", self.plan.name));
        self.say(&text)
    }

    /// After a failure: what the daemons of the case said last, or of all if it names none.
    fn tell_last_words(&mut self, error: &anyhow::Error) -> Result<()> {
        let mut text = String::new();
        let told = format!("{error:#}");
        let is_named = |stage: &&Stage| told.contains(&format!("case {} ", stage.case.name));
        let named: Vec<_> = self.stages.iter().filter(is_named).collect();
        let stages = if named.is_empty() {
            self.stages.iter().collect()
        } else {
            named
        };
        for daemon in stages
            .into_iter()
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
        let gains: Vec<_> = self.gains().iter().map(Gain::to_json).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "machine": self.machine.to_json(),
            "plan": self.plan.to_json(),
            "cpu_of": if self.background() > BUSY { "processes" } else { "machine" },
            "background_cpu_s_per_s": rounded(self.background(), 4),
            "results": self.results.rows_to_json(),
            "distributions": self.results.distributions_to_json(),
            "ratios": self.results.ratios_to_json(),
            "gains": gains,
            "figures": figures,
        })
    }

    fn say(&mut self, text: &str) -> Result<()> {
        writeln!(self.out, "{text}").context(CANNOT_WRITE)
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
    for path in [&options.json, &options.markdown].into_iter().flatten() {
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

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// How a document links to a directory: beside it or below, or else by its whole path.
fn seen_from(document: &Path, directory: &Path) -> String {
    let beside = document
        .parent()
        .map(|parent| directory.strip_prefix(parent));
    let seen = beside.and_then(Result::ok).unwrap_or(directory);
    seen.display().to_string()
}

const CANNOT_WRITE: &str = "cannot write to the standard output";

/// Enough to see how it came to a failure.
const LAST_LINES: usize = 12;

/// Processor seconds per second: a tenth of one processor.
const BUSY: f64 = 0.1;
