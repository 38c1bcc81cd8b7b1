//! How much memory clients that do not read, and nodes that mean harm, can make the master hold.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use proxymux_testkit::{
    apiserver::{ApiServer, ConnectError, Tunnel},
    cluster::Cluster,
    far_end::Script,
    pki::CertFiles,
};
use proxymux_tests::{
    access::access_lines_now,
    endless::{EndlessNode, flood},
    events::wait_for_message,
    far_target::{ALLOW, far_target, scripted_far_end},
    following::Following,
    limits::{SOON, within},
    rogue::RogueHost,
};
use proxymux_transport::limits::raise_open_files;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy, sink},
    task::JoinSet,
    time::{sleep, timeout},
};

/// 5,000 readers that stall would hold 1.25 GiB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_readers_of_fifty_nodes_stay_within_the_masters_memory() -> Result<()> {
    let mut stage = Stage::new("max-memory: 384MiB").await?;
    let before = stage.resident()?;
    let nodes = stage.endless_nodes(50).await?;

    let stalling = stage.stall(50, 100);
    let (stalled, most) = stage.watch(stalling).await?;

    let per_stream = |count: usize| count * 256 / 1024;
    eprintln!(
        "MiB resident: {} at rest, {} at most; {} readers stalled, {} requests got 503 \
         (all of them would hold {} MiB)",
        before >> 20,
        most >> 20,
        stalled.tunnels.len(),
        stalled.refused.len(),
        per_stream(stalled.tunnels.len()),
    );
    ensure!(most < 512 << 20, "{} MiB resident", most >> 20);
    let reason = stalled.refused.first().context("nobody was refused")?;
    ensure!(
        reason.contains(" of 384 MiB of memory for all streams are in use"),
        "{reason}"
    );
    stage.someone_was_cut_off(&stalled.tunnels)?;
    ensure!(!nodes.iter().any(EndlessNode::is_over), "a session ended");
    stage.the_rest_is_served().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_byte_frames_on_many_streams_stay_within_the_memory_of_a_session() -> Result<()> {
    let mut stage = Stage::new("max-memory-per-session: 64MiB").await?;
    let before = stage.resident()?;
    let identity = stage.identity(&node_name(0))?;
    let master = stage.cluster.master_addr(0).parse()?;
    let io = stage.host.secure(master, &identity).await?;
    let flooding = tokio::spawn(async move {
        // Just below the number at which a stream is reset for having too many.
        flood(io, &node_name(0), 500, 9_000).await
    });

    let stalling = stage.stall(1, 500);
    let (stalled, most) = stage.watch(stalling).await?;

    eprintln!(
        "MiB resident: {} at rest, {} at most with {} streams",
        before >> 20,
        most >> 20,
        stalled.tunnels.len(),
    );
    // They would hold 420 MiB. Half of the limit again may be on its way out, and the allocator
    // keeps some of that.
    ensure!(most < before + (144 << 20), "{} MiB resident", most >> 20);
    stage.someone_was_cut_off(&stalled.tunnels)?;
    ensure!(!flooding.is_finished(), "the session ended");
    flooding.abort();
    stage.the_rest_is_served().await
}

/// A download that ran has filled buffers which one that never ran has not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn downloads_that_ran_and_then_stall_keep_little_memory_on_either_end() -> Result<()> {
    let mut cluster = Cluster::builder().agent_lines(ALLOW).start()?;
    let _far_end = scripted_far_end(&cluster, 0)?;
    let (api, target) = (cluster.api()?, far_target(&cluster, 0));
    let mut stalled = Vec::new();

    for _ in 0..200 {
        let mut tunnel = within(SOON, "connect", api.connect(&target)).await?;
        let script = format!("{}\n", Script::source(1 << 40, 1));
        tunnel.write_all(script.as_bytes()).await?;
        let (mut first, mut nowhere) = ((&mut tunnel).take(8 << 20), sink());
        within(SOON, "download", copy(&mut first, &mut nowhere)).await?;
        stalled.push(tunnel);
    }

    sleep(SETTLE).await;
    let master = cluster.master(0).usage()?.rss_bytes >> 20;
    let agent = cluster.agent(0).usage()?.rss_bytes >> 20;
    eprintln!("MiB resident with 200 stalled downloads: master {master}, agent {agent}");
    ensure!(master <= 64, "the master has {master} MiB resident");
    ensure!(agent <= 64, "the agent has {agent} MiB resident");
    for tunnel in &mut stalled {
        within(SOON, "go on", tunnel.read_u8()).await?;
    }
    Ok(())
}

/// One healthy node with a user, and a machine from which nodes come that are none.
struct Stage {
    cluster: Cluster,
    host: RogueHost,
    following: Following,
}

/// Clients that read nothing.
#[derive(Default)]
struct Stalled {
    tunnels: Vec<Tunnel>,
    /// The reasons of those that were not let in.
    refused: Vec<String>,
}

impl Stage {
    async fn new(lines: &str) -> Result<Self> {
        raise_open_files();
        let mut cluster = Cluster::builder()
            .nodes(2)
            .verbosity("info")
            .master_lines(lines)
            .build()?;
        cluster.start_master(0)?;
        cluster.start_agent(0)?;
        wait_for_message(cluster.agent(0), 0, SOON, "session up")?;
        let following = Following::start(&cluster.api()?, &cluster.target(0)).await?;
        Ok(Self {
            host: RogueHost::on(&cluster, cluster.node(1))?,
            cluster,
            following,
        })
    }

    async fn endless_nodes(&self, count: usize) -> Result<Vec<EndlessNode>> {
        let master = self.cluster.master_addr(0).parse()?;
        let mut nodes = Vec::new();
        for number in 0..count {
            let name = node_name(number);
            let identity = self.identity(&name)?;
            let node = EndlessNode::join(&self.host, master, &identity, &name).await;
            nodes.push(node.with_context(|| name)?);
        }
        Ok(nodes)
    }

    fn identity(&self, node: &str) -> Result<CertFiles> {
        self.cluster.pki().node_client(node)?;
        let dir = self.cluster.pki().node_dir(node);
        let both = dir.join("kubelet-client-current.pem");
        Ok(CertFiles {
            cert: both.clone(),
            key: both,
        })
    }

    /// Asks so many nodes for so many downloads each, and reads none.
    fn stall(&self, nodes: usize, each: usize) -> impl Future<Output = Result<Stalled>> + use<> {
        let api = self.cluster.api();
        async move {
            let api = Arc::new(api?);
            let mut asking = JoinSet::new();
            for number in 0..nodes {
                asking.spawn(stall_on(Arc::clone(&api), node_name(number), each));
            }
            let mut all = Stalled::default();
            while let Some(stalled) = asking.join_next().await {
                let stalled = stalled??;
                all.tunnels.extend(stalled.tunnels);
                all.refused.extend(stalled.refused);
            }
            // What was sent for them is to arrive.
            sleep(SETTLE).await;
            Ok(all)
        }
    }

    /// Does something and says how much memory the master had at most meanwhile.
    async fn watch<T>(&mut self, doing: impl Future<Output = Result<T>>) -> Result<(T, u64)> {
        let mut doing = std::pin::pin!(doing);
        let mut most = 0;
        loop {
            let done = timeout(SAMPLE, &mut doing).await;
            most = most.max(self.resident()?);
            if let Ok(done) = done {
                return Ok((done?, most));
            }
        }
    }

    fn resident(&mut self) -> Result<u64> {
        Ok(self.cluster.master(0).usage()?.rss_bytes)
    }

    /// Some of them have been cut off, with the reason in the log, and not all.
    fn someone_was_cut_off(&mut self, stalled: &[Tunnel]) -> Result<()> {
        let lines = access_lines_now(self.cluster.master(0));
        let cut = lines.iter().filter(|l| l.text("outcome") == Some("memory"));
        let cut = cut.count();
        eprintln!("{cut} of {} were cut off", stalled.len());
        ensure!(cut > 0 && cut < stalled.len(), "{cut} were cut off");
        let told = "out of memory for streams, those that stalled longest are cut off";
        wait_for_message(self.cluster.master(0), 0, SOON, told)?;
        Ok(())
    }

    /// The log that was followed before goes on, and who asks now is served, at the second attempt
    /// if there was no memory at the first.
    async fn the_rest_is_served(&mut self) -> Result<()> {
        self.following.goes_on().await?;
        let (api, target) = (self.cluster.api()?, self.cluster.target(0));
        let mut refused = 0;
        loop {
            match within(SOON, "ask", api.get(&target, "/healthz")).await {
                Ok(reply) => {
                    ensure!(reply.status == 200, "status {}", reply.status);
                    return Ok(());
                }
                Err(error) if refused < ATTEMPTS => {
                    eprintln!("not yet served: {error:#}");
                    refused += 1;
                    sleep(PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

async fn stall_on(api: Arc<ApiServer>, node: String, count: usize) -> Result<Stalled> {
    let target = format!("{node}:10250");
    let mut stalled = Stalled::default();
    for _ in 0..count {
        let connected = timeout(SOON, api.connect(&target)).await;
        match connected.with_context(|| format!("no answer for {target}"))? {
            Ok(mut tunnel) => {
                // So that the target's bytes may come at once. If it was cut off, that is counted
                // elsewhere.
                let _ = tunnel.write_all(b"!").await;
                stalled.tunnels.push(tunnel);
            }
            Err(ConnectError::Refused {
                code: 503, status, ..
            }) => stalled.refused.push(status),
            Err(error) => return Err(error).with_context(|| format!("ask for {target}")),
        }
    }
    Ok(stalled)
}

fn node_name(number: usize) -> String {
    format!("endless-{number}.example")
}

/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_millis(100);

/// How long windows take to fill.
const SETTLE: Duration = Duration::from_secs(3);

const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(200);
