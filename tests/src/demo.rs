//! `cargo xtask demo`: a small cluster in network namespaces, told step by step.
//!
//! [`run`] plays the parts in order and cleans up on every way out. Each part says what it does
//! and checks that it happened (`checks`); the first check that fails ends the demo.
//! The daemons are real, found through `PROXYMUX_BIN_DIR`; kube-apiserver and kubelet are the
//! testkit's stand-ins.

mod access;
mod checks;
mod evidence;
mod fast_paths;
mod keep;
mod kubectl;
mod machines;
mod outages;
mod place;
mod screen;
mod session;
mod stage;
mod steering;
mod traffic;
mod without;

use std::{env, fs, io, process};

use anyhow::{Context, Result, bail};
use proxymux_testkit::{cluster::BIN_DIR_VARIABLE, netns::Topology};
use tokio::time::Instant;

use self::{
    checks::{CheckFailed, Checks},
    place::Place,
    screen::{Screen, span},
    stage::{Stage, Who},
};
use crate::interrupts::Interrupts;

/// What the demo is asked to do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Leave everything running until it is interrupted.
    pub keep: bool,
}

/// How the demo ended. Everything it made has been removed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ending {
    /// Every check passed.
    Passed,
    /// A check failed, or the demo could not go on; it has been said which and why.
    Failed,
    /// It was told to end before it was done.
    Interrupted,
}

/// Plays the demo on the standard output.
pub async fn run(options: Options) -> Ending {
    let mut show = Checks::new(Screen::stdout());
    match prepare_and_play(&mut show, options).await {
        Ok(ending) => ending,
        Err(error) => {
            show.screen.verdict(false, &format!("{error:#}"));
            Ending::Failed
        }
    }
}

async fn prepare_and_play(show: &mut Checks, options: Options) -> Result<Ending> {
    if let Some(reason) = Topology::unavailable() {
        bail!("the demo cannot start: {reason}");
    }
    if env::var_os(BIN_DIR_VARIABLE).is_none() {
        bail!(
            "{BIN_DIR_VARIABLE} is not set: start it as `cargo xtask demo`, which builds the daemons"
        );
    }
    // Before anything is made, so that nothing is left by whoever is impatient.
    let mut interrupts = Interrupts::listen()?;
    let started = Instant::now();
    show.screen
        .title("proxymux: reaching a kubelet that cannot be dialled");
    show.screen.gap();
    show.screen.say(INTRODUCTION);
    let leftovers = Stage::sweep()?;
    if !leftovers.is_empty() {
        show.screen.gap();
        let names = leftovers.join(", ");
        show.screen.say(&format!(
            "Removed what killed demos and tests have left: {names}."
        ));
    }
    let mut stage = Stage::build()?;
    let result = tokio::select! {
        biased;
        () = interrupts.next() => None,
        result = play(show, &mut stage) => Some(result),
    };
    let took = span(started.elapsed());
    let result = match result {
        // The terminal's Ctrl-C also ends what we have started, which then fails.
        Some(Err(_)) if interrupts.came().await => None,
        Some(Ok(())) if options.keep => Some(keep_on(show, &stage, &mut interrupts).await),
        result => result,
    };
    if let Some(Err(error)) = &result {
        explain(show, &stage, error);
    }
    drop(stage);
    conclude(show, options, result, &took)
}

async fn play(show: &mut Checks, stage: &mut Stage) -> Result<()> {
    machines::play(show, stage).await?;
    without::play(show, stage).await?;
    session::play(show, stage).await?;
    let metrics = traffic::play(show, stage).await?;
    outages::play(show, stage).await?;
    steering::play(show, stage).await?;
    evidence::play(show, stage, metrics).await?;
    fast_paths::play(show, stage).await
}

/// Sums up, says how to play with the machines, and waits until they are no longer wanted.
async fn keep_on(show: &mut Checks, stage: &Stage, interrupts: &mut Interrupts) -> Result<()> {
    sum_up(show);
    let told = tokio::select! {
        biased;
        () = interrupts.next() => return Ok(()),
        told = keep::play(show, stage) => told,
    };
    // As above: what we try out may be what the signal has ended.
    if told.is_err() && interrupts.came().await {
        return Ok(());
    }
    told?;
    interrupts.next().await;
    Ok(())
}

/// After a failure: what the daemons said last.
fn explain(show: &mut Checks, stage: &Stage, error: &anyhow::Error) {
    match error.downcast_ref() {
        Some(CheckFailed { expected, seen }) => show.screen.failed(expected, seen),
        None => show
            .screen
            .failed("the demo can go on", &format!("{error:#}")),
    }
    for who in Who::BOTH {
        show.screen.gap();
        match stage.log_of(who) {
            Ok(log) if log.is_empty() => {
                show.screen
                    .say(&format!("{} has written nothing.", who.program()));
            }
            Ok(log) => {
                show.screen
                    .say(&format!("The last lines of {}:", who.program()));
                let lines: Vec<_> = log.lines().collect();
                let last = lines.get(lines.len().saturating_sub(LAST_LINES)..);
                show.screen.verbatim(&last.unwrap_or_default().join("\n"));
            }
            Err(error) => show.screen.say(&format!("{error:#}")),
        }
    }
}

/// Checks that nothing is left, and sums up.
fn conclude(
    show: &mut Checks,
    options: Options,
    result: Option<Result<()>>,
    took: &str,
) -> Result<Ending> {
    let left = left_behind()?;
    let (clean, left) = (left.is_empty(), left.join(", "));
    let rest = if clean {
        "What the demo made has been removed.".to_owned()
    } else {
        format!("Could not be removed: {left}.")
    };
    let count = show.count();
    match result {
        None => {
            show.screen.verdict(false, &format!("Interrupted. {rest}"));
            Ok(Ending::Interrupted)
        }
        Some(Err(_)) => {
            let text = format!("The demo failed after {count} checks that passed. {rest}");
            show.screen.verdict(false, &text);
            Ok(Ending::Failed)
        }
        Some(Ok(())) => {
            show.screen.gap();
            let seen = if clean {
                "no namespace, no file"
            } else {
                &left
            };
            show.check(clean, "nothing of the demo is left on this machine", seen)?;
            if !options.keep {
                sum_up(show);
            }
            let text = format!("All {} checks passed. The demo took {took}.", count + 1);
            show.screen.verdict(true, &text);
            Ok(Ending::Passed)
        }
    }
}

fn sum_up(show: &mut Checks) {
    show.screen
        .heading("All of it in short: what was expected, and what was seen");
    show.sum_up();
}

/// The namespaces of this process and the files of the demo that are still there.
fn left_behind() -> Result<Vec<String>> {
    let mut left = Place::of_this_process();
    let ours = format!("pxm-{}-", process::id());
    let cannot_list = || format!("cannot list {NAMESPACES}");
    let entries = match fs::read_dir(NAMESPACES) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(left),
        Err(error) => return Err(error).with_context(cannot_list),
    };
    for entry in entries {
        let name = entry.with_context(cannot_list)?.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&ours) {
            left.push(name.into_owned());
        }
    }
    Ok(left)
}

const INTRODUCTION: &str = "For kubectl logs, for exec and for metrics a control plane connects to \
    the kubelet of a node. Where nodes stand in a private subnet it cannot. Here each node's agent \
    dials out to the master and keeps one session there, and the master carries kube-apiserver's \
    requests back through it. What follows happens on this machine as you read it, takes half \
    a minute, and is checked step by step.";

/// Enough to see how it came to a failure.
const LAST_LINES: usize = 12;
const NAMESPACES: &str = "/run/netns";
