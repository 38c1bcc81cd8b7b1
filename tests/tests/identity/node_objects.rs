//! Addresses that only the API server knows: `node-addresses: kubernetes`.
//!
//! The stand-in API server is on the master's own machine, as kube-apiserver is. Node 0 has an
//! address in its Node object that its agent knows nothing of, and node 1 is the one that is
//! tempted.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use proxymux_testkit::{
    apiserver::ApiServer,
    cluster::Cluster,
    netns::Running,
    node_api::{NodeApi, NodeApiConfig, NodeApiStats, NodeFields, NodeStore},
    pki::{CertFiles, Leaf, Usage},
    wait::eventually,
};
use proxymux_tests::{
    admin::{at_master, status},
    events::{since, wait_for, wait_for_message, with_message},
    limits::{SOON, within},
};

/// An address that no interface has: only what the API server says leads anywhere.
const EXTERNAL: &str = "198.51.100.7";
const OTHER: &str = "198.51.100.8";
const LISTEN: &str = "127.0.0.1:6443";
const USER: &str = "proxymux-master";

struct Stage {
    cluster: Cluster,
    store: NodeStore,
    serving: CertFiles,
    /// `None` while it is away.
    running: Option<Running<NodeApi>>,
}

impl Stage {
    /// A cluster whose master is to watch Node objects; nothing of it is started.
    fn new(nodes: u8) -> Result<Self> {
        let cluster = Cluster::builder().nodes(nodes).build()?;
        let serving = Leaf::new("kube-apiserver")
            .names(["127.0.0.1"])
            .usages([Usage::Server]);
        let serving = cluster.pki().pair("kube-apiserver", &serving)?;
        Ok(Self {
            cluster,
            store: NodeStore::default(),
            serving,
            running: None,
        })
    }

    fn start_api(&mut self) -> Result<()> {
        let config = NodeApiConfig {
            listen: LISTEN.parse()?,
            serving: self.serving.clone(),
            client_ca: self.cluster.pki().ca_file(),
            user: USER.to_owned(),
            token: None,
            page: 1,
        };
        let store = self.store.clone();
        let hosts = self.cluster.topology().masters();
        let host = hosts.first().context("a master's machine")?;
        self.running = Some(host.run(|| NodeApi::start(config, store))?);
        Ok(())
    }

    fn stats(&self) -> NodeApiStats {
        self.running
            .as_ref()
            .map(|api| api.stats())
            .unwrap_or_default()
    }

    /// A kubeconfig for this user, as `kubeadm kubeconfig user` writes it.
    fn write_kubeconfig(&self, path: &Path, user: &str) -> Result<()> {
        let leaf = Leaf::new(user).usages([Usage::Client]);
        let files = self.cluster.pki().pair(user, &leaf)?;
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
             contexts: [{{name: here, context: {{cluster: here, user: me}}}}]\n\
             clusters: [{{name: here, cluster: {{server: 'https://{LISTEN}', \
             certificate-authority: {ca}}}}}]\n\
             users: [{{name: me, user: {{client-certificate: {cert}, client-key: {key}}}}}]\n",
            ca = self.cluster.pki().ca_file().display(),
            cert = files.cert.display(),
            key = files.key.display(),
        );
        fs::write(path, text)?;
        Ok(())
    }

    fn start_master(&mut self) -> Result<()> {
        let path = self.cluster.dir().join("kubeconfig");
        self.write_kubeconfig(&path, USER)?;
        self.start_master_with(&path)
    }

    fn start_master_with(&mut self, kubeconfig: &Path) -> Result<()> {
        let lines = format!(
            "node-addresses: {{ kubernetes: {{ kubeconfig: {} }} }}\nconnect-budget: 2s\n",
            kubeconfig.display()
        );
        let config = self.cluster.master_config(0)?;
        let master = self
            .cluster
            .start_master_with(0, &format!("{config}{lines}"))?;
        master.wait_for_line("master is up", SOON)?;
        Ok(())
    }

    fn start_agents(&mut self, nodes: usize) -> Result<()> {
        for node in 0..nodes {
            self.cluster.start_agent(node)?;
        }
        self.cluster.wait_for_sessions()
    }

    /// What the node's Node object has at first: its own address, and others.
    fn fields(&self, node: usize, others: &[&str]) -> NodeFields {
        let own = self.cluster.node_name(node);
        let mut all = vec![("InternalIP", &*own), ("Hostname", &*own)];
        all.extend(others.iter().map(|other| ("ExternalIP", *other)));
        NodeFields::with_addresses(all)
    }

    fn set(&self, node: usize, others: &[&str]) {
        let fields = self.fields(node, others);
        self.store.set(&self.cluster.node_name(node), &fields);
    }

    /// Waits until the master has told a node's agent about an address, after `mark` of its log.
    fn told(&mut self, node: usize, mark: usize, message: &str, address: &str) -> Result<String> {
        let told = wait_for(self.cluster.agent(node), mark, SOON, |event| {
            event.message == message && event.text("address") == Some(address)
        })?;
        Ok(told.text("reason").unwrap_or_default().to_owned())
    }
}

/// Asks for a kubelet under an address or a name, which must lead to one.
async fn reaches(api: &ApiServer, address: &str) -> Result<()> {
    let target = format!("{address}:10250");
    within(SOON, &target, async {
        drop(api.connect(&target).await?);
        Ok::<_, anyhow::Error>(())
    })
    .await
}

/// The answer to a request that must fail.
async fn refused(api: &ApiServer, address: &str) -> Result<String> {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_reached_by_what_only_its_node_object_says_and_loses_it_with_that() -> Result<()>
{
    let mut stage = Stage::new(2)?;
    stage.store.set(
        &stage.cluster.node_name(0),
        &stage
            .fields(0, &[EXTERNAL, "node-a.internal.example"])
            .pod_cidrs(&["10.244.0.0/24"]),
    );
    stage.set(1, &[]);
    stage.start_api()?;
    stage.start_master()?;
    stage.start_agents(2)?;
    let api = stage.cluster.api()?;
    stage.told(0, 0, GRANTED, EXTERNAL)?;

    reaches(&api, EXTERNAL).await?;
    reaches(&api, "node-a.internal.example").await?;
    let stats = stage.stats();
    assert_eq!((stats.lists, stats.pages), (1, 1), "{stats:?}");
    let shown = status(&at_master(&stage.cluster)).await?;
    assert_eq!(shown["node_addresses"]["objects"], 2, "{shown}");
    assert_eq!(shown["node_addresses"]["watching"], true, "{shown}");
    assert_eq!(shown["nodes"][0]["node_object"]["kubelet_port"], 10250);

    // It moves to the other node, and the one that had it is told.
    let marks = [stage.cluster.agent(0).mark(), stage.cluster.agent(1).mark()];
    stage.set(0, &[]);
    stage.set(1, &[EXTERNAL]);
    stage.told(1, marks[1], GRANTED, EXTERNAL)?;
    reaches(&api, EXTERNAL).await?;
    eventually(SOON, || {
        stage.cluster.kubelet(1).stats().connections_accepted > 0
    });

    // Both say it: nobody has it.
    stage.set(0, &[EXTERNAL]);
    let reason = stage.told(1, marks[1], REFUSED, EXTERNAL)?;
    let other = stage.cluster.node_name(0);
    assert_eq!(
        reason,
        format!("the Node object of node {other} has it too, expected one of them")
    );
    let said = refused(&api, EXTERNAL).await?;
    assert!(said.contains("no node has this address"), "{said}");

    // A deleted object takes only what it alone has proven.
    let mark = stage.cluster.agent(0).mark();
    stage.store.delete(&stage.cluster.node_name(1));
    stage.told(0, mark, GRANTED, EXTERNAL)?;
    stage.store.delete(&stage.cluster.node_name(0));
    // Its agent claims nothing of that, so that it is told no reason.
    let said = until("the address leads nowhere", async || {
        refused(&api, EXTERNAL).await
    })
    .await?;
    assert!(said.contains("no node has this address"), "{said}");
    reaches(&api, &stage.cluster.node_name(0)).await?;
    assert_eq!(with_message(stage.cluster.agent(0), "session up").len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_starts_without_the_api_server_and_keeps_what_it_knows_without_it() -> Result<()> {
    let mut stage = Stage::new(2)?;
    // Not even the file is there.
    let kubeconfig = stage.cluster.dir().join("kubeconfig");
    stage.start_master_with(&kubeconfig)?;
    let said = wait_for_message(
        stage.cluster.master(0),
        0,
        SOON,
        "node objects are not known yet",
    )?;
    let error = said.text("error").unwrap_or_default().to_owned();
    assert!(error.starts_with("cannot read the kubeconfig"), "{error}");
    stage.start_agents(2)?;
    let api = stage.cluster.api()?;
    let own = stage.cluster.node_name(0);
    reaches(&api, &own).await?;
    let ready = status(&at_master(&stage.cluster)).await?;
    assert_eq!(ready["ready"], true, "{ready}");

    // File, then API server, in the order in which a control plane comes up.
    stage.write_kubeconfig(&kubeconfig, USER)?;
    wait_for(stage.cluster.master(0), 0, SOON, |event| {
        let error = event.text("error").unwrap_or_default();
        event.message == "node objects are not known yet" && error.contains("cannot connect")
    })?;
    stage.set(0, &[EXTERNAL]);
    stage.start_api()?;
    stage.told(0, 0, GRANTED, EXTERNAL)?;
    reaches(&api, EXTERNAL).await?;

    // Away: what was read stays in force, for what is new too.
    let mark = stage.cluster.master(0).mark();
    stage.running = None;
    wait_for_message(
        stage.cluster.master(0),
        mark,
        SOON,
        "the node objects read last stay in force",
    )?;
    reaches(&api, EXTERNAL).await?;
    let shown = status(&at_master(&stage.cluster)).await?;
    assert_eq!(shown["node_addresses"]["watching"], false, "{shown}");
    assert!(shown["node_addresses"]["error"].is_string(), "{shown}");
    assert_eq!(shown["ready"], true, "{shown}");

    // Meanwhile the address moves, and the API server forgets how: it answers 410.
    stage.set(0, &[OTHER]);
    stage.set(1, &[EXTERNAL]);
    stage.store.forget();
    let mark = stage.cluster.agent(1).mark();
    stage.start_api()?;
    stage.told(1, mark, GRANTED, EXTERNAL)?;
    stage.told(0, 0, GRANTED, OTHER)?;
    reaches(&api, OTHER).await?;
    let stats = stage.stats();
    assert!(stats.gone >= 1 && stats.lists == 1, "{stats:?}");

    // 410 within the watch.
    let mark = stage.cluster.master(0).mark();
    stage.store.forget();
    stage.store.expire_watches();
    wait_for_message(stage.cluster.master(0), mark, SOON, "node objects are read")?;
    let mark = stage.cluster.agent(1).mark();
    stage.set(1, &[OTHER]);
    let reason = stage.told(1, mark, REFUSED, OTHER)?;
    assert!(reason.contains("has it too"), "{reason}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_role_is_told_once_with_the_fix_and_a_role_is_noticed() -> Result<()> {
    let mut stage = Stage::new(1)?;
    stage.set(0, &[EXTERNAL]);
    stage.store.forbid(true);
    stage.start_api()?;
    stage.start_master()?;
    stage.start_agents(1)?;
    let said = wait_for_message(
        stage.cluster.master(0),
        0,
        SOON,
        "node objects are not known yet",
    )?;
    let error = said.text("error").unwrap_or_default().to_owned();
    assert!(
        error.contains("nodes is forbidden: User \"proxymux-master\"")
            && error.contains("needs get, list and watch on nodes"),
        "{error}"
    );
    eventually(SOON, || stage.stats().refused >= 3);
    let told = since(stage.cluster.master(0), 0);
    let told = told.iter().filter(|event| event.message == said.message);
    assert_eq!(told.count(), 1, "each state is told once");

    stage.store.forbid(false);

    stage.told(0, 0, GRANTED, EXTERNAL)?;
    wait_for_message(
        stage.cluster.master(0),
        0,
        SOON,
        "node objects are watched again",
    )?;
    reaches(&stage.cluster.api()?, EXTERNAL).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bookmarks_save_a_list_and_a_claim_is_no_proof_against_a_node_object() -> Result<()> {
    let mut stage = Stage::new(2)?;
    stage.set(0, &[EXTERNAL]);
    stage.set(1, &[]);
    stage.start_api()?;
    stage.start_master()?;
    stage.cluster.start_agent(0)?;
    stage.cluster.wait_for_sessions()?;
    // Node 1 has its own certificate, and says that it has node 0's addresses.
    let stolen = stage.cluster.node_name(0);
    let config = stage.cluster.agent_config(1)?.replace(
        "public-ip-address: \n",
        &format!("public-ip-address: {EXTERNAL}\n"),
    );
    stage.cluster.start_agent_with(1, &config)?;
    let reason = stage.told(1, 0, REFUSED, EXTERNAL)?;
    assert!(
        reason.starts_with("not proven: expected a place in its Node object"),
        "{reason}"
    );
    let api = stage.cluster.api()?;
    reaches(&api, EXTERNAL).await?;
    reaches(&api, &stolen).await?;
    assert_eq!(stage.cluster.kubelet(1).stats().connections_accepted, 0);

    see_bookmark(&stage).await?;
    stage.store.forget();
    let mark = stage.cluster.master(0).mark();
    stage.running = None;
    wait_for_message(
        stage.cluster.master(0),
        mark,
        SOON,
        "the node objects read last stay in force",
    )?;
    stage.start_api()?;
    wait_for_message(
        stage.cluster.master(0),
        mark,
        SOON,
        "node objects are watched again",
    )?;
    let stats = stage.stats();
    assert_eq!((stats.lists, stats.gone), (0, 0), "{stats:?}");
    Ok(())
}

/// Sends a bookmark, and waits until the master has seen it.
async fn see_bookmark(stage: &Stage) -> Result<()> {
    let at = at_master(&stage.cluster);
    let heard = async || -> Result<u64> {
        let shown = status(&at).await?;
        let heard = shown.pointer("/node_addresses/heard_s");
        heard
            .and_then(|heard| heard.as_u64())
            .context("it has heard something")
    };
    // So that it can be told from what was heard before.
    until("nothing is heard", async || {
        ensure!(heard().await? >= 1);
        Ok(())
    })
    .await?;
    stage.store.bookmark();
    until("a bookmark is heard", async || {
        ensure!(heard().await? == 0);
        Ok(())
    })
    .await
}

/// Tries again and again, which takes as long as the thing tried and a little more.
async fn until<T>(what: &str, mut attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
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

const GRANTED: &str = "address leads to this node";
const REFUSED: &str = "address does not lead to this node";
