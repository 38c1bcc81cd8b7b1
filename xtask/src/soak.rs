//! `cargo xtask soak`: faults of every kind under load, for as long as one wants to wait.
//!
//! Builds the two daemons and the soak, which is a program of the package `proxymux-tests`, and
//! becomes that program, so that Ctrl-C and the exit code are its own.

use std::os::unix::process::CommandExt;

use anyhow::{Context, Result, bail};

use crate::{
    build,
    command::{Command, search_path},
    setup::{self, Job, Machine as _, ThisMachine},
    workspace::Workspace,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// For how long
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    minutes: u32,
    /// Repeats the random choices of an earlier soak, which has printed its seed
    #[arg(long)]
    seed: Option<u64>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let workspace = Workspace::enter()?;
    let minutes = options.minutes.to_string();
    if !ThisMachine.is_root() {
        bail!(
            "needs root to make network namespaces; type: \
             sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask soak --minutes {minutes}"
        );
    }
    setup::ensure(&[Job::Netns], &ThisMachine)?;
    build::daemons(build::TESTED_PROFILE)?;
    Command::cargo(["build", "--locked", "--profile", build::TESTED_PROFILE])
        .args(["--package", PACKAGE, "--bin", PROGRAM, "--bin", KUBELET])
        .run()?;
    let programs = workspace.target.join(build::TESTED_PROFILE);
    let mut soak = std::process::Command::new(programs.join(PROGRAM));
    soak.args(["--minutes", &minutes])
        .env("PATH", search_path())
        .env("PROXYMUX_BIN_DIR", &programs);
    if let Some(seed) = options.seed {
        soak.args(["--seed", &seed.to_string()]);
    }
    let error = soak.exec();
    Err(error).with_context(|| format!("cannot start {}", programs.join(PROGRAM).display()))
}

const PACKAGE: &str = "proxymux-tests";
const PROGRAM: &str = "proxymux-soak";

/// Started by the soak, which looks for it beside itself.
const KUBELET: &str = "proxymux-kubelet-stand-in";
