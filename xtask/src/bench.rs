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
    /// Less of everything, done within a minute once it is built
    #[arg(long)]
    quick: bool,
    /// Write the results to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    // Before the root of the checkout becomes the current directory.
    let arguments = arguments(options)?;
    let workspace = Workspace::enter()?;
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
        .args(["--package", PACKAGE, "--bin", PROGRAM, "--bin", FLEET])
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
    if let Some(file) = &options.json {
        let file = absolute(file)
            .with_context(|| format!("cannot say where {} would be", file.display()))?;
        arguments.push("--json".into());
        arguments.push(file.into());
    }
    Ok(arguments)
}

const PACKAGE: &str = "proxymux-tests";
const PROGRAM: &str = "proxymux-bench";

/// What the bench starts for many agents at once; it looks for it beside itself.
const FLEET: &str = "proxymux-fleet";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_meant_from_where_the_command_was_typed() {
        let options = Options {
            quick: true,
            json: Some("results.json".into()),
        };

        let arguments = arguments(&options).unwrap();

        let file = std::env::current_dir().unwrap().join("results.json");
        assert_eq!(
            arguments,
            ["--quick".into(), "--json".into(), file.into_os_string()]
        );
    }

    #[test]
    fn without_options_the_bench_is_told_nothing() {
        let options = Options {
            quick: false,
            json: None,
        };

        assert!(arguments(&options).unwrap().is_empty());
    }
}
