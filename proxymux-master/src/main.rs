//! The master's command: arguments, log, exit code.
//!
//! Exit codes: 0 done, 1 failed while starting or running (a drain that a second signal cut short
//! among them; of `nodes` and `perf`: no answer, or with `--ready` not ready; of `check`: an error was
//! found, in the configuration file too), 2 wrong arguments or configuration.
//! Everything else is in the library.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use proxymux_master::{
    app,
    check::{self, CheckArgs},
    config::Config,
    nodes, perf,
};
use proxymux_proto::NodeName;
use proxymux_transport::{
    command::{Program, Question, TerminationLog},
    config_file::values::{AdminAddr, admin_addr},
    telemetry::{self, Verbosity},
};

/// Leads kube-apiserver's connections to kubelets, through sessions that the nodes open.
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
        default_value = "/etc/proxymux/master.yaml"
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
    /// Show the nodes that the running master knows: addresses, path, streams, round trip, age.
    Nodes {
        #[command(flatten)]
        question: Question,
        /// Only say whether the master is ready, in one line and by the exit code.
        #[arg(long, conflicts_with_all = ["json", "watch"])]
        ready: bool,
    },
    /// Look for what keeps the master from its work: certificates, sockets, ports, limits, and
    /// kube-apiserver's own settings. Each finding comes with what to do about it.
    ///
    /// It may run beside a master. Exit code 1 if there is an error.
    Check(CheckArgs),
    /// Measure the paths to a node: throughput, processor time, requests, opening connections.
    ///
    /// It loads the node and this master as downloads do, for some 20 seconds a path. The agent plays
    /// the far end, unless its configuration has `perf: off`.
    Perf(PerfArgs),
}

#[derive(Debug, clap::Args)]
struct PerfArgs {
    /// The node's name.
    #[arg(long, value_name = "NAME", value_parser = NodeName::parse)]
    node: NodeName,
    /// Which path: all, session, reverse or direct.
    #[arg(long, value_name = "PATH", default_value = "all", value_parser = ["all", "session", "reverse", "direct"])]
    path: String,
    /// For how long to download, and then to upload.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Where to ask, a Unix socket; without it, at the `admin` address in the configuration file.
    #[arg(long, value_name = "ADDR", value_parser = admin_addr)]
    admin: Option<AdminAddr>,
    /// Print everything there is, as JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match &args.command {
        None => run(&args),
        Some(Command::Check(check)) => match check::run(&args.config, check) {
            Ok(report) => MASTER.report(&report, check.json),
            Err(error) => MASTER.fail(&format!("cannot start the runtime: {error}")),
        },
        Some(Command::Perf(perf)) => match admin(&args, perf.admin.as_ref()) {
            Ok(at) => measure(&at, perf),
            Err(code) => code,
        },
        Some(Command::Nodes { question, ready }) => match admin(&args, question.admin.as_ref()) {
            Ok(at) if *ready => MASTER.ask_ready(&at),
            Ok(at) => MASTER.ask(&at, question, nodes::show),
            Err(code) => code,
        },
    }
}

fn run(args: &Args) -> ExitCode {
    let daemon = MASTER.daemon(&args.termination_log);
    let (config, warnings) = match Config::load(&args.config) {
        Ok(loaded) => loaded,
        Err(error) => return daemon.refuse(&error),
    };
    telemetry::init(config.log_format, args.verbosity);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return daemon.fail(&format!("cannot start the runtime: {error}")),
    };
    match runtime.block_on(app::run(config, &warnings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => daemon.fail(&error.line()),
    }
}

fn measure(at: &AdminAddr, perf: &PerfArgs) -> ExitCode {
    let PerfArgs {
        node,
        path,
        seconds,
        json,
        ..
    } = perf;
    let order = format!("/perf?node={node}&path={path}&seconds={seconds}");
    let views = (
        perf::show as fn(&_) -> _,
        perf::progress as fn(&_) -> _,
        perf::is_over as fn(&_) -> _,
    );
    MASTER.order(at, &order, *json, views)
}

/// Where the running master answers.
fn admin(args: &Args, given: Option<&AdminAddr>) -> Result<AdminAddr, ExitCode> {
    match given {
        Some(at) => Ok(at.clone()),
        None => Config::load(&args.config)
            .map(|(config, _)| config.admin)
            .map_err(|error| MASTER.refuse(&error)),
    }
}

const MASTER: Program = Program("proxymux-master");
