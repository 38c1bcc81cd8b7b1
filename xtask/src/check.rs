//! `cargo xtask check`: what must hold before a commit, apart from tests.
//!
//! Every step runs even if an earlier one failed, cheap ones first; the error names those that
//! failed. Nothing is fetched but crates, except with `--advisories`.

mod sources;

use anyhow::{Result, bail};

use crate::{
    command::Command,
    fuzz,
    setup::{self, Job, ThisMachine},
    workspace::Workspace,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Check for known vulnerabilities too; fetches the advisory database from GitHub
    #[arg(long)]
    advisories: bool,
    /// Run each fuzz target for a minute too
    #[arg(long)]
    long: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let workspace = Workspace::enter()?;
    setup::ensure(&[Job::Check], &ThisMachine)?;
    let steps = run_steps(&workspace);
    let advisories = if options.advisories {
        deny(&["advisories"])
    } else {
        Ok(())
    };
    let fuzzed = if options.long {
        fuzz::run(&fuzz::Options::every_target())
    } else {
        Ok(())
    };
    steps.and(advisories).and(fuzzed)
}

struct Step {
    name: &'static str,
    run: fn(&Workspace) -> Result<()>,
}

const STEPS: &[Step] = &[
    Step {
        name: "format",
        run: |_| Command::cargo(["fmt", "--all", "--check"]).run(),
    },
    Step {
        name: "source form",
        run: sources::check,
    },
    Step {
        name: "dependencies",
        run: |_| deny(&["licenses", "bans", "sources"]),
    },
    Step {
        name: "lints",
        // All targets: tests and fuzz targets are held to the same lints.
        run: |_| {
            Command::cargo(["clippy", "--locked", "--keep-going", "--workspace"])
                .args(["--all-targets", "--", "-D", "warnings"])
                .run()
        },
    },
    Step {
        name: "eBPF programs",
        // A workspace of its own, which the steps above do not see. For this machine instead of
        // eBPF, so that the ordinary clippy will do.
        run: |_| {
            let manifest = ["--manifest-path", "proxymux-ebpf/Cargo.toml"];
            Command::cargo(["fmt", "--check"]).args(manifest).run()?;
            Command::cargo(["clippy", "--locked", "--target-dir", "target/ebpf-lints"])
                .args(manifest)
                .args(["--all-features", "--", "-D", "warnings"])
                .run()
        },
    },
    Step {
        name: "agent without eBPF",
        run: |_| {
            Command::cargo(["clippy", "--locked", "--package", "proxymux-agent"])
                .args(["--no-default-features", "--", "-D", "warnings"])
                .run()
        },
    },
    Step {
        name: "documents",
        // With private items, because their documents are for developers, and so that public
        // documents may link to them.
        run: |_| {
            Command::cargo(["doc", "--locked", "--keep-going", "--workspace"])
                .args(["--no-deps", "--document-private-items"])
                .env("RUSTDOCFLAGS", "-D warnings")
                .run()
        },
    },
    Step {
        name: "fuzz targets",
        // Lints see them too, but only building shows that they link.
        run: |_| Command::cargo(["build", "--locked", "--package", "proxymux-fuzz"]).run(),
    },
];

/// Runs every step, and names those that failed.
pub(crate) fn run_steps(workspace: &Workspace) -> Result<()> {
    let mut failed = Vec::new();
    for step in STEPS {
        println!("--- {}", step.name);
        if let Err(error) = (step.run)(workspace) {
            println!("{}: {error:#}", step.name);
            failed.push(step.name);
        }
    }
    if !failed.is_empty() {
        bail!("checks failed: {}", failed.join(", "));
    }
    Ok(())
}

fn deny(checks: &[&str]) -> Result<()> {
    // Warnings too: an entry of deny.toml that nothing needs any more is removed.
    Command::cargo(["deny", "--locked", "check", "--deny", "warnings"])
        .args(checks.iter().copied())
        .run()
}
