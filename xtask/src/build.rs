//! `cargo xtask build`: the two daemons.

use anyhow::Result;

use crate::{
    command::Command,
    setup::{self, Job, ThisMachine},
    workspace::Workspace,
};

/// In which the demo and the tests in namespaces run the daemons, so that nothing is built twice.
/// The relay moves gigabytes there: it is optimised, with all checks on.
pub(crate) const TESTED_PROFILE: &str = "itest";

/// What is shipped, and what the bench measures: optimised as a whole.
pub(crate) const SHIPPED_PROFILE: &str = "release";

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Build what is shipped: optimised as a whole, takes minutes
    #[arg(long)]
    release: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let workspace = Workspace::enter()?;
    setup::ensure(&[Job::Build], &ThisMachine)?;
    let (profile, directory) = if options.release {
        (SHIPPED_PROFILE, SHIPPED_PROFILE)
    } else {
        ("dev", "debug")
    };
    daemons(profile)?;
    for daemon in DAEMONS {
        println!(
            "{}",
            workspace.target.join(directory).join(daemon).display()
        );
    }
    Ok(())
}

/// Package and program have the same name.
pub(crate) const DAEMONS: [&str; 2] = ["proxymux-agent", "proxymux-master"];

pub(crate) fn daemons(profile: &str) -> Result<()> {
    Command::cargo(["build", "--locked", "--profile", profile])
        .args(DAEMONS.iter().flat_map(|package| ["--package", package]))
        .run()
}
