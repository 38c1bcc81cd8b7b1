//! `cargo xtask gen-docs`: writes anew what documents say about the code.
//!
//! Each daemon's test of `docs/metrics.md` knows what belongs there; here it is told to write it
//! instead of comparing. One after the other, since both write into the same file.

use anyhow::Result;

use crate::{command::Command, workspace::Workspace};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {}

pub(crate) fn run(_options: &Options) -> Result<()> {
    let _workspace = Workspace::enter()?;
    for package in ["proxymux-agent", "proxymux-master"] {
        Command::cargo(["test", "--quiet", "--locked", "--lib", "--package", package])
            .args(["the_document_of_metrics_is_up_to_date"])
            .env("PROXYMUX_UPDATE_DOCS", "1")
            .run()?;
    }
    Ok(())
}
