//! A cluster whose every process can be killed, and the record of when each was away.
//!
//! The kubelets are processes here ([`Victim::Kubelet`]), so that their death is what it is on a
//! node. A [`Window`] is the time in which requests may fail, and says whose; outside of all
//! windows none may.

use std::{fmt, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use proxymux_testkit::{
    apiserver::ApiServer,
    cluster::{Cluster, ClusterBuilder},
    process::Daemon,
};
use tokio::time::{Instant, sleep, timeout};

/// The cluster.
#[derive(Debug)]
pub struct Stage {
    kubelets: Vec<Daemon>,
    /// The machines and the daemons on them.
    pub cluster: Cluster,
    /// How to speak to the master.
    pub api: ApiServer,
    program: PathBuf,
    /// What was done so far.
    pub windows: Vec<Window>,
}

/// A process that can be killed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Victim {
    /// A node's agent.
    Agent(usize),
    /// The master.
    Master,
    /// A node's kubelet.
    Kubelet(usize),
}

/// A time in which requests may fail.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Of this node only; of all if there is none.
    pub node: Option<usize>,
    /// From here.
    pub began: Instant,
    /// To here.
    pub ended: Instant,
}

impl Victim {
    /// Any process of a stage with so many nodes.
    pub fn any(random: &mut Rng, nodes: usize) -> Self {
        let node = random.usize(..nodes);
        match random.u8(..3) {
            0 => Self::Agent(node),
            1 => Self::Master,
            _ => Self::Kubelet(node),
        }
    }

    /// Whose requests suffer from its death.
    pub fn node(self) -> Option<usize> {
        match self {
            Self::Agent(node) | Self::Kubelet(node) => Some(node),
            Self::Master => None,
        }
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(node) => write!(f, "agent {node}"),
            Self::Master => f.write_str("master"),
            Self::Kubelet(node) => write!(f, "kubelet {node}"),
        }
    }
}

impl Window {
    /// Whether a request of `node` between these moments may fail.
    pub fn excuses(&self, node: usize, began: Instant, ended: Instant) -> bool {
        self.node.is_none_or(|affected| affected == node)
            && began <= self.ended
            && ended >= self.began
    }
}

impl Stage {
    /// Starts everything; `program` is the kubelet stand-in.
    ///
    /// # Errors
    ///
    /// Something did not come up.
    pub fn start(builder: ClusterBuilder, program: impl Into<PathBuf>) -> Result<Self> {
        let mut cluster = builder.build()?;
        let nodes = cluster.topology().nodes().len();
        for node in 0..nodes {
            cluster.stop_kubelet(node);
        }
        let mut stage = Self {
            kubelets: Vec::new(),
            api: cluster.api()?,
            cluster,
            program: program.into(),
            windows: Vec::new(),
        };
        for node in 0..nodes {
            let kubelet = stage.spawn_kubelet(node)?;
            stage.kubelets.push(kubelet);
        }
        stage.cluster.start_master(0)?;
        for node in 0..nodes {
            stage.cluster.start_agent(node)?;
        }
        stage.cluster.wait_for_sessions()?;
        Ok(stage)
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.kubelets.len()
    }

    /// What kube-apiserver asks for to reach each node's kubelet.
    pub fn targets(&self) -> Vec<String> {
        (0..self.nodes())
            .map(|node| self.cluster.target(node))
            .collect()
    }

    /// Kills a process with SIGKILL, starts it again after `pause`, and waits until all nodes are
    /// served. Returns how long that took from the new start on.
    ///
    /// # Errors
    ///
    /// It does not come back, or a node is not served within `limit`.
    pub async fn kill(
        &mut self,
        victim: Victim,
        pause: Duration,
        limit: Duration,
    ) -> Result<Duration> {
        let began = Instant::now();
        self.process(victim)?.kill()?;
        sleep(pause).await;
        let restarted = Instant::now();
        match victim {
            Victim::Agent(node) => drop(self.cluster.start_agent(node)?),
            Victim::Master => drop(self.cluster.start_master(0)?),
            Victim::Kubelet(node) => {
                let kubelet = self.spawn_kubelet(node)?;
                *self
                    .kubelets
                    .get_mut(node)
                    .context("there is such a node")? = kubelet;
            }
        }
        self.all_served(limit)
            .await
            .with_context(|| format!("after the death of {victim}"))?;
        self.windows.push(Window {
            node: victim.node(),
            began,
            ended: Instant::now(),
        });
        Ok(restarted.elapsed())
    }

    /// Waits until a request to each node is answered.
    ///
    /// # Errors
    ///
    /// One is not, within `limit`; says what the last answer was.
    pub async fn all_served(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        for target in self.targets() {
            loop {
                let asked = timeout(ANSWER_LIMIT, self.api.get(&target, "/healthz")).await;
                let problem = match asked {
                    Ok(Ok(reply)) if reply.status == 200 => break,
                    Ok(Ok(reply)) => format!("{} {}", reply.status, reply.text()),
                    Ok(Err(error)) => format!("{:#}", anyhow::Error::new(error)),
                    Err(_) => format!("no answer within {ANSWER_LIMIT:?}"),
                };
                ensure!(Instant::now() < deadline, "{target}: {problem}");
                sleep(AGAIN).await;
            }
        }
        Ok(())
    }

    fn process(&mut self, victim: Victim) -> Result<&mut Daemon> {
        match victim {
            Victim::Agent(node) => Ok(self.cluster.agent(node)),
            Victim::Master => Ok(self.cluster.master(0)),
            Victim::Kubelet(node) => self.kubelets.get_mut(node).context("there is such a node"),
        }
    }

    fn spawn_kubelet(&self, node: usize) -> Result<Daemon> {
        let (cluster, host) = (&self.cluster, self.cluster.node(node));
        let name = cluster.node_name(node);
        let serving = cluster.pki().kubelet_serving(&name, &host.addresses())?;
        let mut command: Command = host.command(&self.program);
        command
            .args(["--listen", "[::]:10250", "--cert"])
            .arg(&serving.cert);
        command.arg("--key").arg(&serving.key);
        command.arg("--client-ca").arg(cluster.pki().ca_file());
        let log = cluster.dir().join(format!("kubelet-{node}.log"));
        let name = format!("kubelet on {}", host.name());
        let mut kubelet = Daemon::spawn_logging_to(name, command, &log)?;
        kubelet.wait_for_line("kubelet is up", UP_LIMIT)?;
        Ok(kubelet)
    }
}

const UP_LIMIT: Duration = Duration::from_secs(20);

/// The budget of a request is 8 s.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

const AGAIN: Duration = Duration::from_millis(20);
