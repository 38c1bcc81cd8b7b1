//! `cargo xtask build-ebpf`: the two objects that the agent carries, for looking at them.
//!
//! Owns nothing: the agent's build makes its own with the very same code.

use std::fs;

use anyhow::{Context, Result};
use proxymux_ebpf_build::Build;

use crate::{
    setup::{self, Job, ThisMachine},
    workspace::Workspace,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {}

pub(crate) fn run(_options: &Options) -> Result<()> {
    let workspace = Workspace::enter()?;
    setup::ensure(&[Job::Build], &ThisMachine)?;
    // The agent's build uses the same.
    let target = workspace.target.join("ebpf");
    for build in Build::ALL {
        let sources = workspace.root.join("proxymux-ebpf");
        let object = proxymux_ebpf_build::build(build, &sources, &target, &target)?;
        let size = fs::metadata(&object)
            .with_context(|| format!("cannot look at {}", object.display()))?
            .len();
        println!("{} ({size} bytes)", object.display());
    }
    Ok(())
}
