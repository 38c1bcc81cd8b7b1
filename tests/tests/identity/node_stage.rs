//! A cluster whose master watches Node objects, for the tests about them.
//!
//! Owns [`Stage`]: the stand-in API server, on the master's machine unless a test puts it elsewhere,
//! and kubeconfigs for it. Nothing is started before a test says so.

use std::{fs, path::Path, time::Duration};

use anyhow::{Result, bail};
use proxymux_testkit::{
    apiserver::ApiServer,
    cluster::Cluster,
    netns::{Host, Running},
    node_api::{NodeApi, NodeApiConfig, NodeApiStats, NodeFields, NodeStore},
    pki::{CertFiles, Leaf, Usage},
};
use proxymux_tests::{
    events::wait_for,
    limits::{SOON, within},
};

/// An address that no interface has: only what the API server says leads anywhere.
pub(crate) const EXTERNAL: &str = "198.51.100.7";
pub(crate) const OTHER: &str = "198.51.100.8";

/// The stand-in on the master's own machine.
pub(crate) const LOCAL: &str = "127.0.0.1:6443";
/// The stand-in on the router.
pub(crate) const REMOTE: &str = "192.0.2.1:6443";

pub(crate) const USER: &str = "proxymux-master";

/// What the master says when it can no longer watch.
pub(crate) const STAY: &str = "the node objects read last stay in force";

pub(crate) const GRANTED: &str = "address leads to this node";
pub(crate) const REFUSED: &str = "address does not lead to this node";

pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) store: NodeStore,
    serving: CertFiles,
    /// `None` while it is away.
    pub(crate) running: Option<Running<NodeApi>>,
}

impl Stage {
    /// A cluster whose master is to watch Node objects; nothing of it is started.
    pub(crate) fn new(nodes: u8) -> Result<Self> {
        let cluster = Cluster::builder().nodes(nodes).build()?;
        let serving = Leaf::new("kube-apiserver")
            .names(["127.0.0.1", "192.0.2.1"])
            .usages([Usage::Server]);
        let serving = cluster.pki().pair("kube-apiserver", &serving)?;
        Ok(Self {
            cluster,
            store: NodeStore::default(),
            serving,
            running: None,
        })
    }

    pub(crate) fn api_config(&self) -> Result<NodeApiConfig> {
        Ok(NodeApiConfig {
            listen: LOCAL.parse()?,
            serving: self.serving.clone(),
            client_ca: self.cluster.pki().ca_file(),
            user: USER.to_owned(),
            token: None,
            page: 1,
        })
    }

    pub(crate) fn start_api(&mut self) -> Result<()> {
        let config = self.api_config()?;
        let host = self.cluster.topology().master().clone();
        self.start_api_at(&host, config)
    }

    pub(crate) fn start_api_at(&mut self, host: &Host, config: NodeApiConfig) -> Result<()> {
        let store = self.store.clone();
        self.running = Some(host.run(|| NodeApi::start(config, store))?);
        Ok(())
    }

    pub(crate) fn stats(&self) -> NodeApiStats {
        self.running
            .as_ref()
            .map(|api| api.stats())
            .unwrap_or_default()
    }

    /// A kubeconfig for this user, as `kubeadm kubeconfig user` writes it.
    pub(crate) fn write_kubeconfig(&self, path: &Path, user: &str) -> Result<()> {
        self.write_kubeconfig_at(path, LOCAL, user)
    }

    /// The same for another server.
    pub(crate) fn write_kubeconfig_at(&self, path: &Path, server: &str, user: &str) -> Result<()> {
        let leaf = Leaf::new(user).usages([Usage::Client]);
        let files = self.cluster.pki().pair(user, &leaf)?;
        let credentials = format!(
            "client-certificate: {}, client-key: {}",
            files.cert.display(),
            files.key.display()
        );
        self.write_kubeconfig_with(path, server, &credentials)
    }

    /// A kubeconfig for a server, with these lines of its user.
    pub(crate) fn write_kubeconfig_with(
        &self,
        path: &Path,
        server: &str,
        credentials: &str,
    ) -> Result<()> {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
             contexts: [{{name: here, context: {{cluster: here, user: me}}}}]\n\
             clusters: [{{name: here, cluster: {{server: 'https://{server}', \
             certificate-authority: {ca}}}}}]\n\
             users: [{{name: me, user: {{{credentials}}}}}]\n",
            ca = self.cluster.pki().ca_file().display(),
        );
        fs::write(path, text)?;
        Ok(())
    }

    pub(crate) fn start_master(&mut self) -> Result<()> {
        let path = self.cluster.dir().join("kubeconfig");
        self.write_kubeconfig(&path, USER)?;
        self.start_master_with(&path, "")
    }

    /// With a kubeconfig that may not be there, and lines besides.
    pub(crate) fn start_master_with(&mut self, kubeconfig: &Path, lines: &str) -> Result<()> {
        let lines = format!(
            "node-addresses: {{ kubernetes: {{ kubeconfig: {} }} }}\nconnect-budget: 2s\n{lines}",
            kubeconfig.display()
        );
        let config = self.cluster.master_config(0)?;
        let master = self
            .cluster
            .start_master_with(0, &format!("{config}{lines}"))?;
        master.wait_for_line("master is up", SOON)?;
        Ok(())
    }

    pub(crate) fn start_agents(&mut self, nodes: usize) -> Result<()> {
        for node in 0..nodes {
            self.cluster.start_agent(node)?;
        }
        self.cluster.wait_for_sessions()
    }

    /// What the node's Node object has at first: its own address, and others.
    pub(crate) fn fields(&self, node: usize, others: &[&str]) -> NodeFields {
        let own = self.cluster.node_name(node);
        let mut all = vec![("InternalIP", &*own), ("Hostname", &*own)];
        all.extend(others.iter().map(|other| ("ExternalIP", *other)));
        NodeFields::with_addresses(all)
    }

    pub(crate) fn set(&self, node: usize, others: &[&str]) {
        let fields = self.fields(node, others);
        self.store.set(&self.cluster.node_name(node), &fields);
    }

    /// Waits until the master has told a node's agent about an address, after `mark` of its log.
    pub(crate) fn told(
        &mut self,
        node: usize,
        mark: usize,
        message: &str,
        address: &str,
    ) -> Result<String> {
        let told = wait_for(self.cluster.agent(node), mark, SOON, |event| {
            event.message == message && event.text("address") == Some(address)
        })?;
        Ok(told.text("reason").unwrap_or_default().to_owned())
    }
}

/// Asks for a kubelet under an address or a name, which must lead to one.
pub(crate) async fn reaches(api: &ApiServer, address: &str) -> Result<()> {
    let target = format!("{address}:10250");
    within(SOON, &target, async {
        drop(api.connect(&target).await?);
        Ok::<_, anyhow::Error>(())
    })
    .await
}

/// The answer to a request that must fail.
pub(crate) async fn refused(api: &ApiServer, address: &str) -> Result<String> {
    let target = format!("{address}:10250");
    let answer = within(SOON, &target, async {
        Ok::<_, anyhow::Error>(api.connect(&target).await)
    })
    .await?;
    match answer {
        Ok(_) => bail!("{target} leads somewhere"),
        Err(error) => Ok(error.to_string()),
    }
}

/// Tries again and again, which takes as long as the thing tried and a little more.
pub(crate) async fn until<T>(what: &str, mut attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    within(SOON, what, async {
        let mut every = tokio::time::interval(Duration::from_millis(50));
        loop {
            every.tick().await;
            if let Ok(done) = attempt().await {
                return Ok::<_, anyhow::Error>(done);
            }
        }
    })
    .await
}
