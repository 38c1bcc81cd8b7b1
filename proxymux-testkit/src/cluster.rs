//! A whole small cluster: topology, PKI, kubelets, masters and agents, ready to be asked.
//!
//! [`Cluster`] knows which file goes where and which program is started how, so that a test reads
//! as what is special about it. The parts stay in reach: hosts, certificates, daemons.
//! The daemons are the real programs, found through `PROXYMUX_BIN_DIR`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    apiserver::{ApiServer, FrontDoor},
    kubelet::{Kubelet, KubeletConfig},
    netns::{Host, Reach, Running, Topology, TopologyBuilder},
    pki::Pki,
    process::Daemon,
};

/// Masters and nodes with everything that runs on them.
///
/// ```no_run
/// use proxymux_testkit::cluster::Cluster;
///
/// # async fn example() -> anyhow::Result<()> {
/// let cluster = Cluster::started()?;
/// let reply = cluster.api()?.get(&cluster.target(0), "/healthz").await?;
/// assert_eq!(reply.status, 200);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: daemons, then what they talk to, then the machines.
    masters: Vec<Option<Daemon>>,
    agents: Vec<Option<Daemon>>,
    kubelets: Vec<Option<Running<Kubelet>>>,
    pki: Pki,
    topology: Topology,
    settings: ClusterBuilder,
}

/// What a [`Cluster`] is to be like.
#[derive(Clone, Debug)]
pub struct ClusterBuilder {
    topology: TopologyBuilder,
    master_lines: String,
    agent_lines: String,
    log_format: &'static str,
    verbosity: &'static str,
    dir: Option<PathBuf>,
    log_files: bool,
}

impl Default for ClusterBuilder {
    fn default() -> Self {
        Self {
            topology: TopologyBuilder::default(),
            master_lines: String::new(),
            agent_lines: String::new(),
            log_format: "json",
            verbosity: "debug",
            dir: None,
            log_files: false,
        }
    }
}

impl ClusterBuilder {
    /// How many masters.
    pub fn masters(mut self, masters: u8) -> Self {
        self.topology = self.topology.masters(masters);
        self
    }

    /// How many nodes.
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.topology = self.topology.nodes(nodes);
        self
    }

    /// Whether masters can dial nodes.
    pub fn reach(mut self, reach: Reach) -> Self {
        self.topology = self.topology.reach(reach);
        self
    }

    /// Gives the masters' side an MTU of 9000, which the nodes' side has anyway.
    pub fn jumbo(mut self) -> Self {
        self.topology = self.topology.jumbo();
        self
    }

    /// Lines for every master's configuration besides the usual ones.
    pub fn master_lines(mut self, lines: impl Into<String>) -> Self {
        self.master_lines = lines.into();
        self
    }

    /// Lines for every agent's configuration besides the usual ones.
    pub fn agent_lines(mut self, lines: impl Into<String>) -> Self {
        self.agent_lines = lines.into();
        self
    }

    /// `text` or `json`, which is the default, for [`Daemon::events`].
    pub fn log_format(mut self, format: &'static str) -> Self {
        self.log_format = format;
        self
    }

    /// The daemons' `--verbosity`; `debug` if not set.
    pub fn verbosity(mut self, verbosity: &'static str) -> Self {
        self.verbosity = verbosity;
        self
    }

    /// The directory for certificates, configuration files and sockets. It is made, and is the
    /// caller's to remove; without this it is a temporary one. A socket's path may have 107 bytes.
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Keeps what the daemons log in files beside their configuration, over restarts too:
    /// `master-0.log`, `agent-0.log`.
    pub fn log_files(mut self) -> Self {
        self.log_files = true;
        self
    }

    /// Makes machines, certificates and kubelets. No daemon runs yet.
    ///
    /// # Errors
    ///
    /// No root, a program is missing, or the daemons have not been built.
    pub fn build(self) -> Result<Cluster> {
        // Asked here too, so that a test without daemons fails before it has made anything.
        program(AGENT)?;
        program(MASTER)?;
        let topology = self.topology.build()?;
        let pki = match &self.dir {
            Some(dir) => Pki::new(dir)?,
            None => Pki::temporary()?,
        };
        let mut cluster = Cluster {
            masters: topology.masters().iter().map(|_| None).collect(),
            agents: topology.nodes().iter().map(|_| None).collect(),
            kubelets: topology.nodes().iter().map(|_| None).collect(),
            pki,
            topology,
            settings: self,
        };
        let names: Vec<String> = cluster
            .topology
            .masters()
            .iter()
            .flat_map(Host::addresses)
            .map(|a| a.to_string())
            .collect();
        cluster
            .pki
            .master(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
        for node in 0..cluster.agents.len() {
            cluster.pki.node_client(&cluster.node_name(node))?;
            cluster.start_kubelet(node)?;
        }
        Ok(cluster)
    }

    /// Makes everything, starts all daemons and waits until every node has a session with every
    /// master.
    ///
    /// # Errors
    ///
    /// As [`ClusterBuilder::build`], or a daemon did not come up.
    pub fn start(self) -> Result<Cluster> {
        let mut cluster = self.build()?;
        for master in 0..cluster.masters.len() {
            cluster.start_master(master)?;
        }
        for node in 0..cluster.agents.len() {
            cluster.start_agent(node)?;
        }
        cluster.wait_for_sessions()?;
        Ok(cluster)
    }
}

impl Cluster {
    /// One master, one node, everything running.
    ///
    /// # Errors
    ///
    /// As [`ClusterBuilder::start`].
    pub fn started() -> Result<Self> {
        Self::builder().start()
    }

    /// Another kind of cluster.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder::default()
    }

    /// The machines.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// To leave the machines running: see [`Topology::keep`].
    pub fn topology_mut(&mut self) -> &mut Topology {
        &mut self.topology
    }

    /// The certificates.
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// Where configuration files and sockets are.
    pub fn dir(&self) -> &Path {
        self.pki.dir()
    }

    /// A node's name: its IPv4 address, as on OKE.
    ///
    /// # Panics
    ///
    /// When there is no such node.
    pub fn node_name(&self, node: usize) -> String {
        self.node(node).ipv4().to_string()
    }

    /// What kube-apiserver asks for to reach a node's kubelet.
    pub fn target(&self, node: usize) -> String {
        format!("{}:10250", self.node_name(node))
    }

    /// A node's machine.
    ///
    /// # Panics
    ///
    /// When there is no such node.
    #[expect(
        clippy::indexing_slicing,
        reason = "a test that asks for what is not there fails"
    )]
    pub fn node(&self, node: usize) -> &Host {
        &self.topology.nodes()[node]
    }

    /// Where a master listens for agents.
    ///
    /// # Panics
    ///
    /// When there is no such master.
    #[expect(
        clippy::indexing_slicing,
        reason = "a test that asks for what is not there fails"
    )]
    pub fn master_addr(&self, master: usize) -> String {
        format!("{}:12250", self.topology.masters()[master].ipv4())
    }

    /// The Unix socket of a master's front door.
    pub fn socket(&self, master: usize) -> PathBuf {
        self.dir().join(format!("egress-{master}.sock"))
    }

    /// kube-apiserver beside the first master, at its Unix socket.
    ///
    /// # Errors
    ///
    /// A certificate could not be made.
    pub fn api(&self) -> Result<ApiServer> {
        self.api_of(0)
    }

    /// kube-apiserver beside a master, at its Unix socket.
    ///
    /// # Errors
    ///
    /// A certificate could not be made.
    pub fn api_of(&self, master: usize) -> Result<ApiServer> {
        let client = self.pki.apiserver_kubelet_client()?;
        ApiServer::new(FrontDoor::Unix(self.socket(master)))?
            .with_kubelet_client(self.pki.ca_file(), &client)
    }

    /// A running master.
    ///
    /// # Panics
    ///
    /// When it was not started.
    #[expect(
        clippy::indexing_slicing,
        reason = "a test that asks for what is not there fails"
    )]
    pub fn master(&mut self, master: usize) -> &mut Daemon {
        self.masters[master]
            .as_mut()
            .expect("the test has started this master")
    }

    /// A running agent.
    ///
    /// # Panics
    ///
    /// When it was not started.
    #[expect(
        clippy::indexing_slicing,
        reason = "a test that asks for what is not there fails"
    )]
    pub fn agent(&mut self, node: usize) -> &mut Daemon {
        self.agents[node]
            .as_mut()
            .expect("the test has started this agent")
    }

    /// A master and a node's agent side by side; `None` unless both were started.
    pub fn daemons(&self, master: usize, node: usize) -> Option<(&Daemon, &Daemon)> {
        let master = self.masters.get(master)?.as_ref()?;
        Some((master, self.agents.get(node)?.as_ref()?))
    }

    /// All daemons that run: masters first, then agents.
    pub fn all_daemons(&self) -> impl Iterator<Item = &Daemon> {
        self.masters.iter().chain(&self.agents).flatten()
    }

    /// A running kubelet.
    ///
    /// # Panics
    ///
    /// When it was stopped.
    #[expect(
        clippy::indexing_slicing,
        reason = "a test that asks for what is not there fails"
    )]
    pub fn kubelet(&self, node: usize) -> &Running<Kubelet> {
        self.kubelets[node]
            .as_ref()
            .expect("the test has not stopped this kubelet")
    }

    /// Starts a node's kubelet; one that runs is replaced.
    ///
    /// # Errors
    ///
    /// It could not listen.
    #[expect(
        clippy::indexing_slicing,
        reason = "a test that asks for what is not there fails"
    )]
    pub fn start_kubelet(&mut self, node: usize) -> Result<()> {
        self.kubelets[node] = None;
        let host = self.node(node).clone();
        let serving = self
            .pki
            .kubelet_serving(&self.node_name(node), &host.addresses())?;
        let listen = "[::]:10250".parse().context("address of the kubelet")?;
        let config = KubeletConfig::new(listen, serving, self.pki.ca_file());
        self.kubelets[node] = Some(host.run(|| Kubelet::start(config))?);
        Ok(())
    }

    /// Ends a node's kubelet.
    #[expect(
        clippy::indexing_slicing,
        reason = "a test that asks for what is not there fails"
    )]
    pub fn stop_kubelet(&mut self, node: usize) {
        self.kubelets[node] = None;
    }

    /// The configuration that [`Cluster::start_master`] writes.
    ///
    /// # Errors
    ///
    /// Its certificate is not there.
    pub fn master_config(&self, master: usize) -> Result<String> {
        let Self { settings, pki, .. } = self;
        let dir = pki.dir().display();
        let doors = if settings.master_lines.contains("front-doors:") {
            String::new()
        } else {
            let path = self.socket(master);
            format!(
                "front-doors: [ {{ unix: {}, mode: \"0660\" }} ]\n",
                path.display()
            )
        };
        Ok(format!(
            "listen: \"{listen}\"\n\
             cert: {dir}/master/master.crt\n\
             key: {dir}/master/master.key\n\
             client-ca: {ca}\n\
             admin: unix:{dir}/master-{master}.admin\n\
             log-format: {log}\n\
             {doors}{lines}\n",
            listen = "[::]:12250",
            ca = pki.ca_file().display(),
            log = settings.log_format,
            lines = settings.master_lines,
        ))
    }

    /// The configuration that [`Cluster::start_agent`] writes: that of a node on OKE.
    ///
    /// # Errors
    ///
    /// Never for a node that is there.
    pub fn agent_config(&self, node: usize) -> Result<String> {
        let Self { settings, pki, .. } = self;
        let host = self.node(node);
        let servers = if settings.agent_lines.contains("server-addr:") {
            String::new()
        } else {
            let all: Vec<_> = (0..self.masters.len())
                .map(|master| format!("\"https://{}\"", self.master_addr(master)))
                .collect();
            format!("server-addr: [ {} ]\n", all.join(", "))
        };
        Ok(format!(
            "node-id: ocid1.instance.oc1.ap-tokyo-1.example\n\
             net-inf: ens3\n\
             tm-id: oke\n\
             public-ip-address: \n\
             private-ip-address: {ip}\n\
             node-name: {ip}\n\
             cert-path: {certs}\n\
             tenancy-id: ocid1.tenancy.oc1..example\n\
             bind-addr: {ip}\n\
             oci-realm: oc1\n\
             ca-file: {ca}\n\
             admin: unix:{dir}/agent-{node}.admin\n\
             log-format: {log}\n\
             {servers}{lines}\n",
            ip = host.ipv4(),
            certs = pki.node_dir(&self.node_name(node)).display(),
            ca = pki.ca_file().display(),
            dir = pki.dir().display(),
            log = settings.log_format,
            lines = settings.agent_lines,
        ))
    }

    /// Starts a master with [`Cluster::master_config`]; one that runs is killed first.
    ///
    /// # Errors
    ///
    /// It did not come up.
    pub fn start_master(&mut self, master: usize) -> Result<&mut Daemon> {
        let config = self.master_config(master)?;
        self.start_master_with(master, &config)?;
        let daemon = self.master(master);
        daemon.wait_for_line("master is up", UP_LIMIT)?;
        Ok(daemon)
    }

    /// Starts a master with any configuration, and does not wait for it.
    ///
    /// # Errors
    ///
    /// It could not be started.
    #[expect(
        clippy::indexing_slicing,
        reason = "a test that asks for what is not there fails"
    )]
    pub fn start_master_with(&mut self, master: usize, config: &str) -> Result<&mut Daemon> {
        self.masters[master] = None;
        let host = &self.topology.masters()[master];
        let file = format!("master-{master}.yaml");
        let daemon = self.spawn(host, MASTER, &file, config)?;
        Ok(self.masters[master].insert(daemon))
    }

    /// Starts an agent with [`Cluster::agent_config`]; one that runs is killed first.
    ///
    /// # Errors
    ///
    /// It could not be started.
    pub fn start_agent(&mut self, node: usize) -> Result<&mut Daemon> {
        let config = self.agent_config(node)?;
        self.start_agent_with(node, &config)
    }

    /// Starts an agent with any configuration.
    ///
    /// # Errors
    ///
    /// It could not be started.
    #[expect(
        clippy::indexing_slicing,
        reason = "a test that asks for what is not there fails"
    )]
    pub fn start_agent_with(&mut self, node: usize, config: &str) -> Result<&mut Daemon> {
        self.agents[node] = None;
        let daemon = self.spawn_agent(node, &format!("agent-{node}.yaml"), config)?;
        Ok(self.agents[node].insert(daemon))
    }

    /// Starts one more agent on a node's machine, for the caller to keep.
    ///
    /// # Errors
    ///
    /// It could not be started.
    pub fn spawn_agent(&self, node: usize, file: &str, config: &str) -> Result<Daemon> {
        self.spawn(self.node(node), AGENT, file, config)
    }

    /// Starts one more master on a master's machine, for the caller to keep.
    ///
    /// # Errors
    ///
    /// It could not be started.
    ///
    /// # Panics
    ///
    /// When there is no such master.
    #[expect(
        clippy::indexing_slicing,
        reason = "a test that asks for what is not there fails"
    )]
    pub fn spawn_master(&self, master: usize, file: &str, config: &str) -> Result<Daemon> {
        let host = &self.topology.masters()[master];
        self.spawn(host, MASTER, file, config)
    }

    /// Waits until every agent has a session with every master.
    ///
    /// # Errors
    ///
    /// One has not after half a minute.
    pub fn wait_for_sessions(&mut self) -> Result<()> {
        let addresses: Vec<_> = (0..self.masters.len())
            .map(|m| self.master_addr(m))
            .collect();
        for agent in self.agents.iter_mut().flatten() {
            for address in &addresses {
                agent
                    .wait_for_line(
                        |line: &str| line.contains("session up") && line.contains(address),
                        SESSION_LIMIT,
                    )
                    .with_context(|| format!("no session with {address}"))?;
            }
        }
        Ok(())
    }

    fn spawn(&self, host: &Host, program: &str, file: &str, config: &str) -> Result<Daemon> {
        let path = self.dir().join(file);
        fs::write(&path, config).with_context(|| format!("cannot write {}", path.display()))?;
        let mut command = host.command(self::program(program)?);
        command.arg(format!("--config={}", path.display()));
        command.arg(format!("--verbosity={}", self.settings.verbosity));
        let name = format!("{program} on {}", host.name());
        if self.settings.log_files {
            Daemon::spawn_logging_to(name, command, &path.with_extension("log"))
        } else {
            Daemon::spawn(name, command)
        }
    }
}

/// Where a daemon that is to be tested is, for a test that starts it itself.
///
/// # Errors
///
/// The daemons have not been built, or nobody says where they are.
pub fn program(name: &str) -> Result<PathBuf> {
    let Some(dir) = env::var_os(BIN_DIR_VARIABLE) else {
        bail!("{BIN_DIR_VARIABLE} is not set; run these tests with `cargo xtask test netns`");
    };
    let path = Path::new(&dir).join(name);
    if !path.is_file() {
        bail!(
            "{} is not there; run these tests with `cargo xtask test netns`",
            path.display()
        );
    }
    Ok(path)
}

/// Names the directory with the daemons that are to be tested.
pub const BIN_DIR_VARIABLE: &str = "PROXYMUX_BIN_DIR";

/// The agent's program, for [`program`].
pub const AGENT: &str = "proxymux-agent";

/// The master's program, for [`program`].
pub const MASTER: &str = "proxymux-master";

const UP_LIMIT: Duration = Duration::from_secs(20);
const SESSION_LIMIT: Duration = Duration::from_secs(30);
