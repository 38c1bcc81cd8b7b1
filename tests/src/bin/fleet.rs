//! Many agents in one process, for [`proxymux_tests::fleet`].
//!
//! Each is the real agent behind its `main`, with a configuration file of its own. What a process
//! has once is here: the log (JSON, from `info` up), the signals, the limit of open files.
//! Exit codes: 0 ended by a signal, 1 an agent's configuration is wrong or it could not start.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use proxymux_agent::{app, config::Config};
use proxymux_tests::fleet::config_file;
use proxymux_transport::{
    config_file::values::LogFormat, limits::raise_open_files, shutdown::Shutdown, telemetry,
};
use tokio::task::JoinSet;

/// Runs many agents until it is told to end.
#[derive(Debug, Parser)]
#[command(name = "proxymux-fleet", version)]
struct Args {
    /// Where the configuration files are
    #[arg(long)]
    dir: PathBuf,
    /// How many there are
    #[arg(long)]
    size: usize,
}

fn main() -> ExitCode {
    match try_main(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("proxymux-fleet: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn try_main(args: &Args) -> Result<()> {
    let verbosity = "info".parse().expect("info is a verbosity");
    telemetry::init(LogFormat::Json, verbosity);
    raise_open_files();
    let configs = (0..args.size)
        .map(|number| {
            let path = config_file(&args.dir, number);
            let (config, _warnings) =
                Config::load(&path).map_err(|error| anyhow!("{}", error.lines().join("; ")))?;
            Ok(config)
        })
        .collect::<Result<Vec<_>>>()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // Certificates are read there; one agent has need of one such thread.
        .max_blocking_threads(READERS)
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(run(configs))
}

async fn run(configs: Vec<Config>) -> Result<()> {
    let shutdown = Shutdown::on_signals().context("cannot listen for signals")?;
    let mut agents = JoinSet::new();
    for config in configs {
        agents.spawn(app::keep_sessions(config, shutdown.clone()));
    }
    while let Some(ended) = agents.join_next().await {
        ended.context("an agent's task")?;
    }
    Ok(())
}

const READERS: usize = 4;
