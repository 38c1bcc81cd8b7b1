//! A fleet: many agents in one process, each with a node name and certificate of its own, and one
//! real master.
//!
//! The agents are the real agent's code behind its `main` (the program `proxymux-fleet`), with
//! files of their own; they share one machine, so each has its kubelet at a loopback address of
//! its own ([`kubelet_ip`]), which answers with that address: so it can be told who was reached.
//! Read [`Fleet`].

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use proxymux_testkit::{
    apiserver::ApiServer,
    cluster::Cluster,
    netns::Running,
    process::{Daemon, LogEvent},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    events::complaints,
    limits::{SOON, within},
};

/// Machines, files, one master, and the agents once they are started.
#[derive(Debug)]
pub struct Fleet {
    agents: Option<Daemon>,
    _kubelets: Running<Kubelets>,
    program: PathBuf,
    size: usize,
    cluster: Cluster,
}

impl Fleet {
    /// Makes everything and starts the master; `program` is where `proxymux-fleet` is.
    ///
    /// # Errors
    ///
    /// No root, the daemons have not been built, or the master did not come up.
    pub fn build(size: usize, program: impl Into<PathBuf>) -> Result<Self> {
        ensure!(
            size <= MAX_SIZE,
            "{size} agents, expected at most {MAX_SIZE}"
        );
        let mut cluster = Cluster::builder().verbosity("info").log_files().build()?;
        cluster.stop_kubelet(NODE);
        for number in 0..size {
            cluster.pki().node_client(&node_name(number))?;
            let (path, config) = (config_file(cluster.dir(), number), config(&cluster, number));
            fs::write(&path, config).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let kubelets = cluster.node(NODE).run(Kubelets::start)?;
        cluster.start_master(MASTER)?;
        Ok(Self {
            agents: None,
            _kubelets: kubelets,
            program: program.into(),
            size,
            cluster,
        })
    }

    /// Starts all agents at once and waits until each has a session; says how long that took.
    ///
    /// # Errors
    ///
    /// Some had none within `limit`.
    pub async fn start_agents(&mut self, limit: Duration) -> Result<Duration> {
        let began = Instant::now();
        let mut command = self.cluster.node(NODE).command(&self.program);
        command.arg("--dir").arg(self.cluster.dir());
        command.arg("--size").arg(self.size.to_string());
        let log = self.cluster.dir().join("fleet.log");
        self.agents = Some(Daemon::spawn_logging_to("fleet", command, &log)?);
        self.all_connected(began, limit).await
    }

    /// Kills the master and starts another in its place; says how long it took from then until
    /// every agent was back.
    ///
    /// # Errors
    ///
    /// As [`Fleet::start_agents`].
    pub async fn restart_master(&mut self, limit: Duration) -> Result<Duration> {
        let began = Instant::now();
        self.cluster.start_master(MASTER)?;
        self.all_connected(began, limit).await
    }

    /// Connects to every node's kubelet through the front door, one after the other.
    ///
    /// # Errors
    ///
    /// A node was not reached, or another than the one that was asked for.
    pub async fn reach_all(&self) -> Result<()> {
        let api = self.cluster.api()?;
        for number in 0..self.size {
            let name = node_name(number);
            let target = format!("{name}:{KUBELET_PORT}");
            let reached = within(SOON, "reach", reach(&api, &target)).await;
            let reached = reached.with_context(|| format!("node {name}"))?;
            let expected = kubelet_ip(number);
            ensure!(
                reached == expected,
                "node {name}: the kubelet at {reached} answered, expected {expected}"
            );
        }
        Ok(())
    }

    /// The running master.
    pub fn master(&mut self) -> &mut Daemon {
        self.cluster.master(MASTER)
    }

    /// What master and agents have said about something that took too long or found no room.
    /// Being told to come back later is neither.
    pub fn too_slow(&mut self) -> Vec<LogEvent> {
        let mut all = complaints(self.cluster.master(MASTER), 0);
        if let Some(agents) = &self.agents {
            all.extend(complaints(agents, 0));
        }
        all.retain(|event| {
            let texts = event.fields.values().filter_map(|value| value.as_str());
            texts
                .into_iter()
                .any(|text| WORDS_OF_TIME.iter().any(|word| text.contains(word)))
        });
        all
    }

    /// Waits for the present master's word about every agent.
    async fn all_connected(&mut self, began: Instant, limit: Duration) -> Result<Duration> {
        loop {
            let connected = self.master().count_lines(SESSION_UP);
            if connected >= self.size {
                return Ok(began.elapsed());
            }
            let took = began.elapsed();
            ensure!(
                took < limit,
                "{connected} of {} agents have a session after {took:?}",
                self.size
            );
            ensure!(
                self.agents
                    .as_mut()
                    .is_none_or(|a| a.is_running().unwrap_or(false)),
                "the agents' process has ended"
            );
            sleep(INTERVAL).await;
        }
    }
}

/// The file with an agent's configuration.
pub fn config_file(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("fleet-{number:04}.yaml"))
}

/// An agent's node. No address: all of them would claim the same one.
fn node_name(number: usize) -> String {
    format!("node-{number:04}.example")
}

/// Where an agent's kubelet is.
fn kubelet_ip(number: usize) -> Ipv4Addr {
    let number = u32::try_from(number).expect("a fleet has at most MAX_SIZE agents");
    Ipv4Addr::from_bits(FIRST_KUBELET.to_bits() + number)
}

fn config(cluster: &Cluster, number: usize) -> String {
    let (name, pki) = (node_name(number), cluster.pki());
    format!(
        "node-name: {name}\n\
         server-addr: https://{master}\n\
         kubelet-addr: {kubelet}:{KUBELET_PORT}\n\
         cert-path: {certs}\n\
         ca-file: {ca}\n\
         admin: unix:{dir}/fleet-{number:04}.admin\n",
        master = cluster.master_addr(MASTER),
        kubelet = kubelet_ip(number),
        certs = pki.node_dir(&name).display(),
        ca = pki.ca_file().display(),
        dir = cluster.dir().display(),
    )
}

async fn reach(api: &ApiServer, target: &str) -> Result<IpAddr> {
    let mut tunnel = api.connect(target).await?;
    tunnel.write_all(b"?").await?;
    tunnel.shutdown().await?;
    let mut answer = String::new();
    tunnel.read_to_string(&mut answer).await?;
    answer
        .parse()
        .with_context(|| format!("the kubelet answered {answer:?}"))
}

/// All kubelets of the machine: whoever asks is told the address that was dialled.
#[derive(Debug)]
struct Kubelets(#[expect(dead_code, reason = "ends with this")] AbortOnDropHandle<()>);

impl Kubelets {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, KUBELET_PORT))
            .await
            .context("kubelets cannot listen")?;
        let serving = tokio::spawn(async move {
            let mut asked = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        if let Ok((connection, _)) = accepted {
                            // Whoever asked notices what went wrong.
                            asked.spawn(async move { drop(answer(connection).await) });
                        }
                    }
                    Some(_) = asked.join_next() => {}
                }
            }
        });
        Ok(Self(AbortOnDropHandle::new(serving)))
    }
}

async fn answer(mut connection: TcpStream) -> std::io::Result<()> {
    let dialled = connection.local_addr()?.ip().to_string();
    connection.read_u8().await?;
    connection.write_all(dialled.as_bytes()).await?;
    connection.shutdown().await
}

/// The agents' machine, and the master.
const NODE: usize = 0;
const MASTER: usize = 0;

const KUBELET_PORT: u16 = 10250;

/// The first of so many loopback addresses.
const FIRST_KUBELET: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 0);
const MAX_SIZE: usize = 10_000;

const SESSION_UP: &str = "\"message\":\"session up\"";

/// How the daemons say that time or room ran out, whatever it was for.
const WORDS_OF_TIME: [&str; 4] = ["within", "not over after", "timed out", "half-open"];

const INTERVAL: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kubelet_has_a_loopback_address_of_its_own() {
        assert_eq!(kubelet_ip(0).to_string(), "127.1.0.0");
        assert_eq!(kubelet_ip(999).to_string(), "127.1.3.231");
        assert!(kubelet_ip(MAX_SIZE).is_loopback());
    }
}
