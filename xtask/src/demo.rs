//! `cargo xtask demo`: a cluster in network namespaces, logs through the tunnel.
//!
//! Builds the two daemons and the demo, which is a program of the package `proxymux-tests`, and
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
    /// Leave everything running at the end, and say how to play with it
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let workspace = Workspace::enter()?;
    let keep = options.keep.then_some("--keep");
    if !ThisMachine.is_root() {
        bail!(
            "needs root to make network namespaces; type: \
             sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask demo{}",
            keep.map(|keep| format!(" {keep}")).unwrap_or_default()
        );
    }
    setup::ensure(&[Job::Demo], &ThisMachine)?;
    build::daemons(build::TESTED_PROFILE)?;
    Command::cargo(["build", "--locked", "--profile", build::TESTED_PROFILE])
        .args(["--package", PACKAGE, "--bin", PROGRAM])
        .run()?;
    let programs = workspace.target.join(build::TESTED_PROFILE);
    let mut demo = std::process::Command::new(programs.join(PROGRAM));
    demo.args(keep)
        .env("PATH", search_path())
        .env("PROXYMUX_BIN_DIR", &programs);
    let error = demo.exec();
    Err(error).with_context(|| format!("cannot start {}", programs.join(PROGRAM).display()))
}

const PACKAGE: &str = "proxymux-tests";
const PROGRAM: &str = "proxymux-demo";
