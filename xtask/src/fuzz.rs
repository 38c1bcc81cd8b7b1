//! `cargo xtask fuzz`: runs the fuzz targets of the decoders, on the stable toolchain.
//!
//! The coverage that libFuzzer steers by is a pass of LLVM that stable rustc can switch on. What
//! only nightly has, the address sanitiser, would look for faults that safe decoders cannot have.
//! New inputs are kept in `fuzz/corpus`, inputs that crash in `fuzz/artifacts`; neither is tracked.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::{
    command::Command,
    setup::{self, Job, ThisMachine},
    workspace::Workspace,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Fuzz this target only
    target: Option<String>,
    /// How long to fuzz each target
    #[arg(long, default_value_t = DEFAULT_SECONDS)]
    seconds: u32,
}

impl Options {
    /// Each target for as long as it is fuzzed unless somebody says otherwise.
    pub(crate) fn every_target() -> Self {
        Self {
            target: None,
            seconds: DEFAULT_SECONDS,
        }
    }
}

/// Long enough to get through what the corpus leads to, and short enough to run all targets
/// before a release.
const DEFAULT_SECONDS: u32 = 60;

const PACKAGE: &str = "proxymux-fuzz";

/// Counts edges and compares, the way cargo-fuzz does.
const COVERAGE: &str = "-C passes=sancov-module \
    -C llvm-args=-sanitizer-coverage-level=4 \
    -C llvm-args=-sanitizer-coverage-inline-8bit-counters \
    -C llvm-args=-sanitizer-coverage-pc-table \
    -C llvm-args=-sanitizer-coverage-trace-compares \
    -C codegen-units=1 -C debug-assertions=on -C overflow-checks=on";

pub(crate) fn run(options: &Options) -> Result<()> {
    let workspace = Workspace::enter()?;
    let known = workspace.binaries(PACKAGE);
    let targets = chosen(&known, options.target.as_deref())?;
    setup::ensure(&[Job::Fuzz], &ThisMachine)?;
    let host = host_triple()?;
    // Named even though it is the host: only then cargo keeps the flags away from build scripts,
    // which have no libFuzzer to link with.
    Command::cargo(["build", "--locked", "--release", "--package", PACKAGE])
        .args(["--target", &host, "--target-dir", "target/fuzz"])
        .args(["--config", "profile.release.lto=\"off\""])
        .args(targets.iter().flat_map(|target| ["--bin", target]))
        .env("RUSTFLAGS", COVERAGE)
        .run()?;
    let programs = format!("target/fuzz/{host}/release");
    targets
        .into_iter()
        .try_for_each(|target| fuzz(&programs, target, options.seconds))
}

fn chosen<'a>(known: &'a [String], wanted: Option<&str>) -> Result<Vec<&'a str>> {
    let targets: Vec<&str> = known
        .iter()
        .map(String::as_str)
        .filter(|name| wanted.is_none_or(|wanted| wanted == *name))
        .collect();
    if targets.is_empty() {
        bail!(
            "no fuzz target {}; there are: {}",
            wanted.unwrap_or("at all"),
            known.join(", ")
        );
    }
    Ok(targets)
}

fn host_triple() -> Result<String> {
    let command = Command::new("rustc", ["--version", "--verbose"]);
    command
        .output()?
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .with_context(|| format!("no host in the output of `{command}`"))
}

fn fuzz(programs: &str, target: &str, seconds: u32) -> Result<()> {
    let corpus = format!("fuzz/corpus/{target}");
    let artifacts = format!("fuzz/artifacts/{target}/");
    for directory in [&corpus, &artifacts] {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {directory}"))?;
    }
    Command::new(
        &format!("{programs}/{target}"),
        [
            format!("-max_total_time={seconds}"),
            format!("-artifact_prefix={artifacts}"),
            // The largest message of the protocol, and some.
            "-max_len=70000".to_owned(),
            // A decoder that takes seconds for one message is as bad as one that panics.
            "-timeout=5".to_owned(),
            "-verbosity=0".to_owned(),
            "-print_final_stats=1".to_owned(),
            corpus,
        ],
    )
    .args(seeds(target))
    .run()
}

/// Where good inputs to start from are, if not in the corpus: a configuration is found too rarely
/// by chance.
fn seeds(target: &str) -> Option<&'static str> {
    target.ends_with("_config").then_some("deploy/samples")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_name_every_target_is_chosen() {
        let known = ["chunk".to_owned(), "open".to_owned()];

        assert_eq!(chosen(&known, None).unwrap(), ["chunk", "open"]);
        assert_eq!(chosen(&known, Some("open")).unwrap(), ["open"]);
    }

    #[test]
    fn unknown_target_is_refused_with_the_known_ones() {
        let known = ["chunk".to_owned(), "open".to_owned()];

        let error = chosen(&known, Some("opne")).unwrap_err().to_string();

        assert_eq!(error, "no fuzz target opne; there are: chunk, open");
    }

    #[test]
    fn every_file_of_fuzz_targets_is_a_target() {
        let workspace = Workspace::enter().unwrap();
        let mut files: Vec<String> = fs::read_dir("fuzz/fuzz_targets")
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
            .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        files.sort();

        assert_eq!(workspace.binaries(PACKAGE), files);
    }
}
