//! The soak's command: arguments and exit code. `cargo xtask soak` builds and starts it.
//!
//! Exit codes: 0 nothing was wrong, 1 something was, 2 wrong arguments, 130 interrupted before it
//! was done.

use std::{env, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use proxymux_tests::faults::soak::{self, Ending, Options};

/// Kills, cuts links and gives up, under load, and looks whether anything is left behind.
///
/// Needs root, and the directory of the two daemons in PROXYMUX_BIN_DIR: `cargo xtask soak`
/// builds them and sets it.
#[derive(Debug, Parser)]
#[command(name = "proxymux-soak", version)]
struct Args {
    /// For how long
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    minutes: u32,
    /// Repeats the random choices of an earlier soak
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    match try_main(&Args::parse()) {
        Ok(Ending::Done) => ExitCode::SUCCESS,
        Ok(Ending::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            eprintln!("proxymux-soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn try_main(args: &Args) -> Result<Ending> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let options = Options {
        minutes: args.minutes,
        seed: args
            .seed
            .unwrap_or_else(|| fastrand::u64(..u64::from(u32::MAX))),
        kubelet: beside_us(KUBELET)?,
    };
    runtime.block_on(soak::run(options))
}

/// A program that was built together with this one.
fn beside_us(program: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("cannot find this program")?;
    Ok(own.with_file_name(program))
}

const KUBELET: &str = "proxymux-kubelet-stand-in";

/// What shells report for a program that Ctrl-C has ended.
const INTERRUPTED: u8 = 130;
