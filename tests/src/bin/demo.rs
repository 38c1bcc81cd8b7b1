//! The demo's command: arguments and exit code. `cargo xtask demo` builds and starts it.
//!
//! Exit codes: 0 everything happened as promised, 1 something did not, 2 wrong arguments,
//! 130 interrupted before it was done.

use std::process::ExitCode;

use clap::Parser;
use proxymux_tests::demo::{self, Ending, Options};

/// Shows proxymux in a small cluster of network namespaces, step by step; every step is checked.
///
/// Needs root, and the directory of the two daemons in PROXYMUX_BIN_DIR: `cargo xtask demo`
/// builds them and sets it.
#[derive(Debug, Parser)]
#[command(name = "proxymux-demo", version)]
struct Args {
    /// Leave everything running at the end, and say how to play with it
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let Args { keep } = Args::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("proxymux-demo: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(demo::run(Options { keep })) {
        Ending::Passed => ExitCode::SUCCESS,
        Ending::Failed => ExitCode::FAILURE,
        Ending::Interrupted => ExitCode::from(INTERRUPTED),
    }
}

/// What shells report for a program that Ctrl-C has ended.
const INTERRUPTED: u8 = 130;
