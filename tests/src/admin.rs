//! Asking the daemons of a cluster at their admin addresses, and running their commands.
//!
//! [`scrape`] reads metrics into [`Metrics`], in which a test looks a sample up by its text;
//! [`status`] and [`ready`] are the other paths. Unix sockets can be reached from every namespace,
//! TCP addresses only on the machine itself.

use std::{collections::BTreeMap, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use proxymux_testkit::cluster::{Cluster, program};
use proxymux_transport::{
    admin::{Reply, fetch},
    config_file::values::AdminAddr,
};
use serde_json::Value;

/// One scrape: the number of each sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// As it came.
    pub text: String,
    samples: BTreeMap<String, f64>,
}

/// What a command has printed, and its exit code.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Printed {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Its answer.
    pub stdout: String,
    /// What went wrong.
    pub stderr: String,
}

/// Where the first master answers.
pub fn at_master(cluster: &Cluster) -> AdminAddr {
    AdminAddr::Unix(cluster.dir().join("master-0.admin"))
}

/// Where a node's agent answers.
pub fn at_agent(cluster: &Cluster, node: usize) -> AdminAddr {
    AdminAddr::Unix(cluster.dir().join(format!("agent-{node}.admin")))
}

/// Asks for the metrics.
///
/// # Errors
///
/// There is no answer, or a line of it is none of Prometheus' text form.
pub async fn scrape(at: &AdminAddr) -> Result<Metrics> {
    let reply = ask(at, "/metrics").await?;
    ensure!(reply.status == 200, "{reply:?}");
    let mut samples = BTreeMap::new();
    for line in reply.body.lines().filter(|line| !line.starts_with('#')) {
        let (sample, number) = line.rsplit_once(' ').context("a sample and its number")?;
        let number = number
            .parse()
            .with_context(|| format!("number in {line}"))?;
        ensure!(
            samples.insert(sample.to_owned(), number).is_none(),
            "twice: {sample}"
        );
    }
    Ok(Metrics {
        text: reply.body,
        samples,
    })
}

/// Asks for the status.
///
/// # Errors
///
/// There is no answer, or it is no JSON.
pub async fn status(at: &AdminAddr) -> Result<Value> {
    let reply = ask(at, "/status").await?;
    ensure!(reply.status == 200, "{reply:?}");
    serde_json::from_str(&reply.body).context("a status")
}

/// Asks whether the daemon is ready: its reasons if it is not.
///
/// # Errors
///
/// There is no answer.
pub async fn ready(at: &AdminAddr) -> Result<Result<(), String>> {
    let reply = ask(at, "/readyz").await?;
    Ok(match reply.status {
        200 => Ok(()),
        _ => Err(reply.body),
    })
}

/// Asks for any path.
///
/// # Errors
///
/// There is no answer.
pub async fn ask(at: &AdminAddr, path: &'static str) -> Result<Reply> {
    fetch(at, "the daemon", path)
        .await
        .with_context(|| format!("{path} at {at}"))
}

/// Runs a daemon's command to its end.
///
/// # Errors
///
/// It could not be started.
pub fn command(daemon: &str, arguments: &[&str]) -> Result<Printed> {
    let output = Command::new(program(daemon)?).args(arguments).output();
    let output = output.with_context(|| format!("{daemon} {arguments:?}"))?;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).context("output is UTF-8");
    Ok(Printed {
        code: output.status.code(),
        stdout: text(output.stdout)?,
        stderr: text(output.stderr)?,
    })
}

/// The configuration file of a daemon of the cluster, such as `agent-0`.
pub fn config_file(cluster: &Cluster, daemon: &str) -> PathBuf {
    cluster.dir().join(format!("{daemon}.yaml"))
}

impl Metrics {
    /// The number of a sample such as `x_streams_open{path="session"}`; without one, not a number,
    /// which equals nothing.
    pub fn get(&self, sample: &str) -> f64 {
        self.samples.get(sample).copied().unwrap_or(f64::NAN)
    }

    /// Names and numbers of the samples whose name begins like this.
    pub fn beginning_with<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        let samples = self.samples.iter();
        samples
            .filter(move |(sample, _)| sample.starts_with(name))
            .map(|(sample, number)| (sample.as_str(), *number))
    }
}
