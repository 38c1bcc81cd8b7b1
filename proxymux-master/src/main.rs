//! The master's command: arguments, log, exit code.
//!
//! Exit codes: 0 done, 1 failed while starting or running (a drain that a second signal cut short
//! among them), 2 wrong arguments or configuration.
//! Everything else is in the library.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use proxymux_master::{app, config::Config};
use proxymux_transport::{
    config_file::ConfigError,
    telemetry::{self, Verbosity},
};

/// Leads kube-apiserver's connections to kubelets, through sessions that the nodes open.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    /// The configuration file.
    #[arg(long, value_name = "PATH", default_value = "/etc/proxymux/master.yaml")]
    config: PathBuf,
    /// How much to log: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    verbosity: Verbosity,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let (config, warnings) = match Config::load(&args.config) {
        Ok(loaded) => loaded,
        Err(error) => return refuse(&error),
    };
    telemetry::init(config.log_format, args.verbosity);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &format!("cannot start the runtime: {error}")),
    };
    match runtime.block_on(app::run(config, &warnings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &error.line()),
    }
}

/// Says all that is wrong with the configuration, each mistake on a line that stands for itself.
fn refuse(error: &ConfigError) -> ExitCode {
    for line in error.lines() {
        eprintln!("proxymux-master: config {line}");
    }
    ExitCode::from(2)
}

fn fail(code: u8, message: &str) -> ExitCode {
    eprintln!("proxymux-master: {message}");
    ExitCode::from(code)
}
