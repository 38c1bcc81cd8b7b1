//! The agent as a whole: what is started in which order, and how it ends.
//!
//! Owns the wiring; it is the one place that knows every part. Read [`run`].

use std::sync::Arc;

use proxymux_transport::{
    admin::Admin, config_file::Warning, limits::raise_open_files, program_pages::ProgramPages,
    reload, shutdown::Shutdown, telemetry::chain,
};
use tokio_util::task::TaskTracker;

use crate::{
    admin::AgentAnswers,
    agent::Agent,
    closing,
    config::Config,
    flows::Flows,
    link, rest,
    steering::{Steering, SteeringError, listener, report, sources},
};

/// Why the agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The configuration insists on eBPF, which cannot be had.
    #[error(transparent)]
    Steering(#[from] SteeringError),
    /// Streams were cut off because nobody wanted to wait for them.
    #[error("ended at once by a second signal")]
    Forced,
    /// There is no thread for the admin address.
    #[error("cannot start the thread of the admin address")]
    Admin(#[source] std::io::Error),
    /// The signal handlers cannot be installed.
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
}

/// Runs the agent until it is told to end, and through its drain.
///
/// # Errors
///
/// When it cannot start, or a second signal ended it before its drain was over. Everything else
/// that can go wrong later is logged, and tried again.
pub async fn run(config: Config, warnings: &[Warning]) -> Result<(), AppError> {
    // Before there is a thread, or a file is mapped.
    let pages = ProgramPages::at_start();
    let shutdown = Shutdown::on_signals().map_err(AppError::Signals)?;
    for warning in warnings {
        tracing::warn!(reason = %warning, "configuration");
    }
    tracing::info!(
        open_files = raise_open_files(),
        version = env!("CARGO_PKG_VERSION"),
        settings = %config.settings(),
        "agent starts"
    );
    let steering = choose_mode(&config).await?;
    let agent = Agent::new(config, steering, shutdown.clone());
    let answers = Arc::new(AgentAnswers(Arc::clone(&agent)));
    let admin = Admin::start(agent.config.admin.clone(), answers).map_err(AppError::Admin)?;
    let resting = rest::run(&agent.rest, pages, shutdown.drain.clone());
    tokio::join!(serve_masters(Arc::clone(&agent)), resting);
    // It answers until the drain is over.
    drop(admin);
    if shutdown.force.is_cancelled() {
        return Err(AppError::Forced);
    }
    tracing::info!("agent ends");
    Ok(())
}

/// Keeps sessions with all masters until `shutdown` drains, and through the drain.
///
/// This is an agent without what a process has only once: signals, log, limits, admin address.
/// A process may run many.
pub async fn keep_sessions(config: Config, shutdown: Shutdown) {
    let steering = Steering::userspace("one of many agents in a process");
    serve_masters(Agent::new(config, steering, shutdown)).await;
}

async fn serve_masters(agent: Arc<Agent>) {
    let links = TaskTracker::new();
    for server in agent.config.server_addrs.clone() {
        links.spawn(link::run(agent.clone(), server));
    }
    links.spawn(renewal(Arc::clone(&agent)));
    links.spawn(steer(Arc::clone(&agent)));
    links.spawn(report::watch(
        Arc::clone(&agent.steering),
        Arc::clone(&agent.metrics.tally),
        agent.shutdown.drain.clone(),
    ));
    links.spawn(sources::keep(Arc::clone(&agent)));
    links.spawn(listener::run(Arc::clone(&agent)));
    links.spawn(close(Arc::clone(&agent)));
    links.spawn(Flows::finish(Arc::clone(&agent)));
    links.close();
    links.wait().await;
}

/// Looks for renewed certificates until the agent drains.
async fn renewal(agent: Arc<Agent>) {
    let certificates = vec![Arc::clone(&agent.certificates)];
    let stop = agent.shutdown.drain.clone();
    let looked = || agent.metrics.show_expiry(&agent.certificates);
    reload::watch(certificates, looked, stop).await;
}

/// Keeps the eBPF programs where they should be until the agent drains.
async fn steer(agent: Arc<Agent>) {
    let stop = agent.shutdown.drain.clone();
    let steering = Arc::clone(&agent.steering);
    steering.watch(stop, &agent.metrics.steering).await;
}

/// Sees to it that the agent, once it was told to end, takes nothing new in time.
async fn close(agent: Arc<Agent>) {
    closing::run(&agent).await;
}

/// Says which mode is in force and why, or that the one configured cannot be had.
async fn choose_mode(config: &Config) -> Result<Arc<Steering>, AppError> {
    let steering = Steering::start(config).await?;
    let (mode, reason) = steering.mode();
    tracing::info!(mode, reason, "mode chosen");
    Ok(steering)
}

impl AppError {
    /// The error and its causes on one line.
    #[must_use]
    pub fn line(&self) -> String {
        chain(self)
    }
}
