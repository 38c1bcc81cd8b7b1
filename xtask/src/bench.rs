//! `cargo xtask bench`: what the tunnel costs, held against plain TCP in the same run.
//!
//! Builds the two daemons as they are shipped, and the bench, which is a program of the package
//! `proxymux-tests`, and becomes that program, so that Ctrl-C and the exit code are its own.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt,
    path::{PathBuf, absolute},
};

use anyhow::{Context, Result, bail};

use crate::{
    build,
    command::{Command, search_path},
    setup::{self, Job, Machine as _, ThisMachine},
    workspace::Workspace,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Less of everything, done within two minutes once it is built
    #[arg(long)]
    quick: bool,
    /// As the full run with half as much in a round and no fleet
    #[arg(long, conflicts_with = "quick")]
    short: bool,
    /// Measure only the rounds of this case; may be given more than once
    #[arg(long, value_name = "CASE", conflicts_with = "docs")]
    only: Vec<String>,
    /// Write the results to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write them to this file as a document, too
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Draw them into this directory as SVG files
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Write docs/performance.md and its pictures
    #[arg(long, conflicts_with_all = ["markdown", "plots", "quick"])]
    docs: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    // Before the root of the checkout becomes the current directory.
    let mut arguments = arguments(options)?;
    let workspace = Workspace::enter()?;
    if options.docs {
        for (option, place) in DOCUMENT {
            arguments.push(option.into());
            arguments.push(absolute(place)?.into());
        }
    }
    if !ThisMachine.is_root() {
        bail!(
            "needs root to make network namespaces; type: \
             sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask bench"
        );
    }
    setup::ensure(&[Job::Netns], &ThisMachine)?;
    build::daemons(build::SHIPPED_PROFILE)?;
    // All that it does itself is to move bytes: whole-program optimisation would cost minutes
    // and change nothing.
    Command::cargo(["build", "--locked", "--profile", build::TESTED_PROFILE])
        .args(["--package", PACKAGE, "--bin", PROGRAM])
        .args(BESIDE.iter().flat_map(|program| ["--bin", program]))
        .run()?;
    let program = workspace.target.join(build::TESTED_PROFILE).join(PROGRAM);
    let mut bench = std::process::Command::new(&program);
    bench.args(arguments).env("PATH", search_path()).env(
        "PROXYMUX_BIN_DIR",
        workspace.target.join(build::SHIPPED_PROFILE),
    );
    let error = bench.exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}

/// What the bench is told.
fn arguments(options: &Options) -> Result<Vec<OsString>> {
    let mut arguments = Vec::new();
    if options.quick {
        arguments.push("--quick".into());
    }
    if options.short {
        arguments.push("--short".into());
    }
    for case in &options.only {
        arguments.extend(["--only".into(), case.into()]);
    }
    for (option, place) in [
        ("--json", &options.json),
        ("--markdown", &options.markdown),
        ("--plots", &options.plots),
    ] {
        let Some(place) = place else { continue };
        let place = absolute(place)
            .with_context(|| format!("cannot say where {} would be", place.display()))?;
        arguments.push(option.into());
        arguments.push(place.into());
    }
    Ok(arguments)
}

const PACKAGE: &str = "proxymux-tests";
const PROGRAM: &str = "proxymux-bench";

/// What the bench starts: many agents at once, and the hops without a protocol. It looks for them
/// beside itself.
const BESIDE: &[&str] = &["proxymux-fleet", "proxymux-splice-hop"];

/// What is made of a run for `--docs`, from the root of the checkout.
const DOCUMENT: [(&str, &str); 2] = [
    ("--markdown", "docs/performance.md"),
    ("--plots", "docs/performance"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_meant_from_where_the_command_was_typed() {
        let options = Options {
            quick: true,
            only: vec!["reverse".to_owned()],
            json: Some("results.json".into()),
            plots: Some("plots".into()),
            ..NOTHING
        };

        let arguments = arguments(&options).unwrap();

        let here = std::env::current_dir().unwrap();
        let place = |name| here.join(name).into_os_string();
        assert_eq!(
            arguments,
            [
                "--quick".into(),
                "--only".into(),
                "reverse".into(),
                "--json".into(),
                place("results.json"),
                "--plots".into(),
                place("plots"),
            ]
        );
    }

    #[test]
    fn without_options_the_bench_is_told_nothing() {
        assert!(arguments(&NOTHING).unwrap().is_empty());
    }

    const NOTHING: Options = Options {
        quick: false,
        short: false,
        only: Vec::new(),
        json: None,
        markdown: None,
        plots: None,
        docs: false,
    };
}
