//! The machines of the demo, what runs on them, and how kube-apiserver asks.
//!
//! Owns the two configuration files and the order in which things are removed; leaves what is
//! said and checked to the steps. All waiting is asynchronous, so that Ctrl-C ends the demo at
//! once wherever it is.

use std::{fs, process::ExitStatus, time::Duration};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use proxymux_testkit::{
    apiserver::{ApiServer, FrontDoor, LogLines, Reply, RequestError},
    cluster::Cluster,
    netns::{Host, HostRuntime, Topology},
    process::Daemon,
};
use tokio::time::{Instant, sleep, timeout};

use super::{checks::CheckFailed, place::Place};

/// A small cluster.
#[derive(Debug)]
pub(super) struct Stage {
    // Dropped in this order: threads on the machines, daemons and machines, their files.
    master_side: HostRuntime,
    node_side: HostRuntime,
    api: ApiServer,
    direct: ApiServer,
    cluster: Cluster,
    /// How often kube-apiserver has come to the front door.
    dials: usize,
    place: Place,
}

/// One of the two daemons.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Who {
    Master,
    Agent,
}

/// What became of a request, and how long that took.
#[derive(Debug)]
pub(super) struct Answer<T = Reply> {
    pub(super) result: Result<T, RequestError>,
    pub(super) took: Duration,
}

impl Stage {
    /// Removes what demos left behind that were killed, and says what that was.
    pub(super) fn sweep() -> Result<Vec<String>> {
        let mut removed = Topology::sweep_leftovers()?;
        removed.extend(Place::sweep()?);
        Ok(removed)
    }

    /// Makes machines, certificates and the kubelet. No daemon runs yet.
    pub(super) fn build() -> Result<Self> {
        let place = Place::make()?;
        let cluster = Cluster::builder()
            .dir(place.path())
            .log_files()
            .log_format("text")
            .verbosity("info")
            .build()?;
        cluster.pki().apiserver_egress_client()?;
        let kubelet_client = cluster.pki().apiserver_kubelet_client()?;
        let direct = ApiServer::new(FrontDoor::Transparent)?
            .with_kubelet_client(cluster.pki().ca_file(), &kubelet_client)?;
        Ok(Self {
            master_side: cluster.topology().master().runtime()?,
            node_side: cluster.topology().node().runtime()?,
            api: cluster.api()?,
            direct,
            cluster,
            dials: 0,
            place,
        })
    }

    /// The kubelet as kube-apiserver asks for it.
    pub(super) fn target(&self) -> String {
        self.cluster.target(0)
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    pub(super) fn master_host(&self) -> &Host {
        self.cluster.topology().master()
    }

    pub(super) fn node_host(&self) -> &Host {
        self.cluster.topology().node()
    }

    /// A file of the demo, by its name.
    pub(super) fn path(&self, name: &str) -> String {
        self.place.path().join(name).display().to_string()
    }

    pub(super) fn dials(&self) -> usize {
        self.dials
    }

    /// The master's configuration file.
    pub(super) fn master_file(&self) -> String {
        let dir = self.place.path().display();
        format!(
            "listen: 0.0.0.0:12250\n\
             cert: {dir}/master/master.crt\n\
             key: {dir}/master/master.key\n\
             client-ca: {dir}/ca.crt\n\
             connect-budget: {budget}s    # 8s by default; short, so that refusals come soon\n\
             front-doors:\n\
             \x20 - unix: {door}\n\
             \x20 - listen: {ip}:{DOOR_PORT}\n\
             \x20   cert: {dir}/master/master.crt\n\
             \x20   key: {dir}/master/master.key\n\
             \x20   client-ca: {dir}/ca.crt\n\
             \x20   client-names: [kube-apiserver]\n\
             admin: unix:{dir}/master.admin\n",
            budget = BUDGET.as_secs(),
            door = self.door(),
            ip = self.master_host().ipv4(),
        )
    }

    /// The agent's configuration file: the sample, with the paths of this machine.
    pub(super) fn agent_file(&self) -> String {
        let dir = self.place.path().display();
        let pki = self.cluster.pki().node_dir(&self.cluster.node_name(0));
        let sample = SEED_FILE.replace(SEED_PKI, &pki.display().to_string());
        format!("{sample}ca-file: {dir}/ca.crt\nadmin: unix:{dir}/agent.admin\n")
    }

    /// The Unix socket of the front door.
    pub(super) fn door(&self) -> String {
        self.cluster.socket(0).display().to_string()
    }

    /// Starts the master and waits until it is up; says how long that took.
    pub(super) async fn start_master(&mut self) -> Result<Duration> {
        self.start_master_with("").await
    }

    /// The same, with these lines at the end of its file.
    pub(super) async fn start_master_with(&mut self, lines: &str) -> Result<Duration> {
        let file = format!("{}{lines}", self.master_file());
        let started = Instant::now();
        self.cluster.start_master_with(0, &file)?;
        self.line_of(Who::Master, 0, "master is up", UP_LIMIT)
            .await?;
        Ok(started.elapsed())
    }

    /// Starts the agent and does not wait for it.
    pub(super) fn start_agent(&mut self) -> Result<()> {
        self.start_agent_with("")
    }

    /// The same, with these lines at the end of its file.
    pub(super) fn start_agent_with(&mut self, lines: &str) -> Result<()> {
        let file = format!("{}{lines}", self.agent_file());
        self.cluster.start_agent_with(0, &file)?;
        Ok(())
    }

    pub(super) fn daemon(&mut self, who: Who) -> &mut Daemon {
        match who {
            Who::Master => self.cluster.master(0),
            Who::Agent => self.cluster.agent(0),
        }
    }

    /// Waits for a line that a daemon writes after its first `mark` ones.
    pub(super) async fn line_of(
        &mut self,
        who: Who,
        mark: usize,
        text: &str,
        limit: Duration,
    ) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            let running = self.daemon(who).is_running()?;
            let lines = self.daemon(who).lines();
            if let Some(line) = lines.iter().skip(mark).find(|line| line.contains(text)) {
                return Ok(line.clone());
            }
            if !running {
                let status = self.daemon(who).wait(Duration::ZERO)?;
                bail!("{} has ended: {status}", who.program());
            }
            if Instant::now() >= deadline {
                bail!("{} has not logged {text:?} within {limit:?}", who.program());
            }
            sleep(INTERVAL).await;
        }
    }

    /// Tells a daemon to end, as systemd and Kubernetes do, and waits until it has.
    pub(super) async fn end(&mut self, who: Who) -> Result<(ExitStatus, Duration)> {
        let told = Instant::now();
        self.daemon(who).signal(Signal::SIGTERM)?;
        while self.daemon(who).is_running()? {
            if told.elapsed() > END_LIMIT {
                bail!("{} still runs {END_LIMIT:?} after SIGTERM", who.program());
            }
            sleep(INTERVAL).await;
        }
        let status = self.daemon(who).wait(Duration::ZERO)?;
        Ok((status, told.elapsed()))
    }

    /// A request through the front door, as kube-apiserver makes it.
    pub(super) async fn ask(&mut self, path: &str) -> Result<Answer> {
        let (api, target) = self.dial();
        answer(api.get(&target, path)).await
    }

    /// A log through the front door, line by line.
    pub(super) async fn follow(&mut self, path: &str) -> Result<Answer<LogLines>> {
        let (api, target) = self.dial();
        answer(api.get_stream(&target, path)).await
    }

    /// The API server at the front door, for one more request.
    pub(super) fn dial(&mut self) -> (ApiServer, String) {
        self.dials += 1;
        (self.api.clone(), self.target())
    }

    /// The API server that dials kubelets itself.
    pub(super) fn direct(&self) -> &ApiServer {
        &self.direct
    }

    /// A request without a tunnel, from the control plane's machine.
    pub(super) async fn ask_from_master(&self, path: &str) -> Result<Answer> {
        ask_on(&self.master_side, &self.direct, self.target(), path).await
    }

    /// A request without a tunnel, from the node itself.
    pub(super) async fn ask_from_node(&self, path: &str) -> Result<Answer> {
        ask_on(&self.node_side, &self.direct, self.target(), path).await
    }

    /// All that a daemon has logged, in all its lives; nothing if it was never started.
    pub(super) fn log_of(&self, who: Who) -> Result<String> {
        let path = self.path(who.log_name());
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(error).with_context(|| format!("cannot read {path}")),
        }
    }
}

impl Who {
    pub(super) const BOTH: [Self; 2] = [Self::Master, Self::Agent];

    pub(super) fn program(self) -> &'static str {
        match self {
            Self::Master => "proxymux-master",
            Self::Agent => "proxymux-agent",
        }
    }

    pub(super) fn file_name(self) -> &'static str {
        match self {
            Self::Master => "master-0.yaml",
            Self::Agent => "agent-0.yaml",
        }
    }

    pub(super) fn log_name(self) -> &'static str {
        match self {
            Self::Master => "master-0.log",
            Self::Agent => "agent-0.log",
        }
    }
}

async fn ask_on(host: &HostRuntime, api: &ApiServer, target: String, path: &str) -> Result<Answer> {
    let (api, path) = (api.clone(), path.to_owned());
    let asked = async move { answer(api.get(&target, &path)).await };
    host.spawn(asked).await.context("the request panicked")?
}

/// Waits for what is to come within the limit, and measures.
pub(super) async fn answer<T>(
    request: impl Future<Output = Result<T, RequestError>>,
) -> Result<Answer<T>> {
    let asked = Instant::now();
    match timeout(ANSWER_LIMIT, request).await {
        Ok(result) => Ok(Answer {
            result,
            took: asked.elapsed(),
        }),
        Err(_) => Err(CheckFailed {
            expected: format!("an answer to this request within {ANSWER_LIMIT:?}"),
            seen: "none".to_owned(),
        }
        .into()),
    }
}

/// The master's `connect-budget`: short, so that what is refused is refused soon.
pub(super) const BUDGET: Duration = Duration::from_secs(3);
/// Of the front door for clients on other machines.
pub(super) const DOOR_PORT: u16 = 8131;

/// How long one answer may take; beyond the budget there is the kubelet's own time.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const UP_LIMIT: Duration = Duration::from_secs(10);
const END_LIMIT: Duration = Duration::from_secs(10);
/// Short, because what is waited for is also measured.
const INTERVAL: Duration = Duration::from_millis(2);

/// The configuration file of a node on OKE, unchanged.
const SEED_FILE: &str = include_str!("../../../deploy/samples/agent-seed.yaml");
/// Where that file expects the node's certificates.
const SEED_PKI: &str = "/var/lib/kubelet/pki";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_names_the_machines_of_the_demo_and_the_directory_that_is_replaced() {
        for line in [
            "server-addr: https://192.0.2.10:12250",
            "private-ip-address: 10.0.10.10",
            "node-name: 10.0.10.10",
            "net-inf: ens3",
            "cert-path: /var/lib/kubelet/pki",
        ] {
            assert!(SEED_FILE.lines().any(|seen| seen == line), "{line}");
        }
        assert_eq!(SEED_FILE.matches(SEED_PKI).count(), 1);
        assert!(SEED_FILE.ends_with('\n'));
    }
}
