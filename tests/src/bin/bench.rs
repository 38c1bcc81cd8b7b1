//! The bench's command: arguments and exit code. `cargo xtask bench` builds and starts it.
//!
//! Exit codes: 0 all was measured, whatever the figures are, 1 something could not be or took
//! another path than its case names, 2 wrong arguments, 130 interrupted before it was done.

use std::{io, path::PathBuf, process::ExitCode};

use clap::{Parser, builder::PossibleValuesParser};
use proxymux_tests::bench::{self, Ending, Options, Plan};

/// Measures what the tunnel costs, in network namespaces, held against plain TCP.
///
/// Needs root, and the directory of the two daemons in PROXYMUX_BIN_DIR: `cargo xtask bench`
/// builds them and sets it.
#[derive(Debug, Parser)]
#[command(name = "proxymux-bench", version)]
struct Args {
    /// Less of everything, done within two minutes
    #[arg(long)]
    quick: bool,
    /// As the full run with half as much in a round and no fleet
    #[arg(long, conflicts_with = "quick")]
    short: bool,
    /// So little of everything that the figures are worth nothing: for testing the bench
    #[arg(long, hide = true, conflicts_with_all = ["quick", "short"])]
    tiny: bool,
    /// Measure only the rounds of this case; may be given more than once
    #[arg(long, value_name = "CASE", value_parser = PossibleValuesParser::new(bench::case_names()))]
    only: Vec<String>,
    /// Write the results to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write them to this file as a document, too
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Draw them into this directory as SVG files
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let plan = if args.quick {
        Plan::quick()
    } else if args.short {
        Plan::short()
    } else if args.tiny {
        Plan::tiny()
    } else {
        Plan::full()
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("proxymux-bench: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let only = bench::case_names().filter(|name| args.only.iter().any(|only| only == name));
    let options = Options {
        plan: plan.only(only.collect()),
        json: args.json,
        markdown: args.markdown,
        plots: args.plots,
    };
    let ended = runtime.block_on(bench::run(options, &mut io::stdout()));
    match ended {
        Ok(Ending::Done) => ExitCode::SUCCESS,
        Ok(Ending::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            eprintln!("proxymux-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What shells report for a program that Ctrl-C has ended.
const INTERRUPTED: u8 = 130;
