//! The agent's command: arguments, log, exit code.
//!
//! Exit codes: 0 done, 1 failed while starting or running (a drain that a second signal cut short
//! among them; of `status --ready`: not ready; of `check`: an error was found), 2 wrong arguments or
//! configuration.
//! Everything else is in the library.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use proxymux_agent::{
    app, check,
    config::Config,
    status,
    steering::{
        explain::{self, Source},
        suggest,
    },
};
use proxymux_transport::{
    command::{Program, Question, TerminationLog},
    config_file::values::{AdminAddr, admin_addr},
    telemetry::{self, Verbosity},
};
use serde_json::Value;

/// Connects this node's kubelet to the control plane, through a session that the node opens.
///
/// Without a command it runs until it is told to end.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    /// The configuration file.
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        default_value = "/etc/proxymux/config.yaml"
    )]
    config: PathBuf,
    /// How much to log: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    verbosity: Verbosity,
    #[command(flatten)]
    termination_log: TerminationLog,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what the running agent is doing: masters, streams, certificates.
    Status {
        #[command(flatten)]
        question: Question,
        /// Only say whether it is ready, in one line and by the exit code.
        #[arg(long, conflicts_with_all = ["json", "watch"])]
        ready: bool,
    },
    /// Say what becomes of a new connection from an address to the kubelet, and why.
    Explain {
        /// The address, and the port if it matters: 192.0.2.10 or [fd00::10]:40000.
        #[arg(value_name = "SRC[:PORT]")]
        source: Source,
        #[command(flatten)]
        asked: Asked,
    },
    /// Look at everything that this node's agent needs, and say what to do about what is wrong.
    ///
    /// Safe beside a running agent. Exit code 1 if there was an error; warnings do not count.
    Check {
        /// Print the findings as JSON.
        #[arg(long)]
        json: bool,
    },
    /// The guard of the kubelet's port.
    Guard {
        #[command(subcommand)]
        command: GuardCommand,
    },
}

#[derive(Debug, Subcommand)]
enum GuardCommand {
    /// Print the guard-allow lines for those whom the guard has dropped or would have.
    Suggest {
        #[command(flatten)]
        asked: Asked,
    },
}

/// How a running agent is asked once.
#[derive(Debug, clap::Args)]
struct Asked {
    /// Where to ask; without it, at the `admin` address in the configuration file.
    #[arg(long, value_name = "ADDR", value_parser = admin_addr)]
    admin: Option<AdminAddr>,
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match &args.command {
        None => run(&args),
        Some(Command::Status { question, ready }) => match admin(&args, question.admin.as_ref()) {
            Ok(at) if *ready => AGENT.ask_ready(&at),
            Ok(at) => AGENT.ask(&at, question, status::show),
            Err(code) => code,
        },
        Some(Command::Check { json }) => match check::run(&args.config) {
            Ok(report) => AGENT.report(&report, *json),
            Err(error) => AGENT.fail(&format!("cannot start the runtime: {error}")),
        },
        Some(Command::Explain { source, asked }) => {
            ask_for(&args, asked, &source.question(), explain::show)
        }
        Some(Command::Guard {
            command: GuardCommand::Suggest { asked },
        }) => ask_for(&args, asked, suggest::PATH, suggest::show),
    }
}

fn ask_for(args: &Args, asked: &Asked, path: &str, show: fn(&Value) -> String) -> ExitCode {
    match admin(args, asked.admin.as_ref()) {
        Ok(at) => AGENT.ask_for(&at, path, asked.json, show),
        Err(code) => code,
    }
}

fn run(args: &Args) -> ExitCode {
    let daemon = AGENT.daemon(&args.termination_log);
    let (config, warnings) = match Config::load(&args.config) {
        Ok(loaded) => loaded,
        Err(error) => return daemon.refuse(&error),
    };
    telemetry::init(config.log_format, args.verbosity);
    // One thread is enough for a node, and keeps the agent within its few megabytes.
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return daemon.fail(&format!("cannot start the runtime: {error}")),
    };
    let ended = runtime.block_on(app::run(config, &warnings));
    // Looking up a name blocks a thread, for as long as a name server is silent.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => daemon.fail(&error.line()),
    }
}

/// Where the running agent answers.
fn admin(args: &Args, given: Option<&AdminAddr>) -> Result<AdminAddr, ExitCode> {
    match given {
        Some(at) => Ok(at.clone()),
        None => Config::load(&args.config)
            .map(|(config, _)| config.admin)
            .map_err(|error| AGENT.refuse(&error)),
    }
}

const AGENT: Program = Program("proxymux-agent");
