//! Strangers by the thousand at the ports that take flows, beside a log that is followed on a flow.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use proxymux_proto::{FLOW_HELLO_LEN, FlowDirection, FlowKeys};
use proxymux_testkit::{cluster::Cluster, netns::Host};
use proxymux_tests::{
    events::since,
    following::Following,
    limits::{SOON, within},
    rogue::RogueHost,
};
use proxymux_transport::{flow::FlowTable, limits::raise_open_files};
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet};

use crate::stage::{counts, direct, goes_by, metrics, reverse};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_hellos_at_the_port_for_agents_disturb_neither_sessions_nor_flows() -> Result<()> {
    raise_open_files();
    let mut cluster = reverse().nodes(2).build()?;
    cluster.start_master(0)?;
    cluster.start_agent(0)?;
    cluster.wait_for_sessions()?;
    goes_by(&cluster, 0, "reverse").await?;
    let strangers = cluster.node(1).clone();
    let at = cluster.master_addr(0).parse()?;
    undisturbed(&mut cluster, &strangers, at).await?;

    let metrics = metrics(&cluster, 0).await?;
    let refused = |word: &str| {
        let sample = format!("proxymux_master_flow_hellos_refused_total{{reason=\"{word}\"}}");
        metrics.get(&sample)
    };
    for word in [
        "unknown-session",
        "version",
        "connection",
        "wrong-direction",
    ] {
        ensure!(refused(word) > 0.0, "{word}: {}", metrics.text);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_hellos_at_the_steered_port_disturb_neither_sessions_nor_flows() -> Result<()> {
    raise_open_files();
    let mut cluster = direct().start()?;
    goes_by(&cluster, 0, "direct").await?;
    // What is steered comes from the master's machine.
    let strangers = cluster.topology().master().clone();
    let at = SocketAddr::new(cluster.node(0).ipv4().into(), 10250);
    undisturbed(&mut cluster, &strangers, at).await
}

/// A log that is followed on a flow, and other users, while strangers come.
async fn undisturbed(cluster: &mut Cluster, strangers: &Host, at: SocketAddr) -> Result<()> {
    let (api, target) = (cluster.api()?, cluster.target(0));
    let following = Following::start(&api, &target).await?;
    let marks = (cluster.master(0).mark(), cluster.agent(0).mark());
    let strangers = RogueHost::on(cluster, strangers)?;
    let began = following.lines();

    for round in 0..ROUNDS {
        let mut connections = JoinSet::new();
        for number in 0..AT_ONCE {
            let mut stranger = match strangers.connect(at).await {
                Ok(stranger) => stranger,
                // A queue that is full is one way of being refused.
                Err(_) => continue,
            };
            let bytes = nonsense(round * AT_ONCE + number)?;
            connections.spawn(async move {
                // It may be refused before it has said everything.
                let _ = stranger.write_all(&bytes).await;
                stranger
            });
        }
        let stand: Vec<TcpStream> = connections.join_all().await;
        let reply = within(SOON, "healthz", api.get(&target, "/healthz")).await?;
        ensure!(reply.status == 200, "{}", reply.text());
        following.goes_on().await?;
        drop(stand);
    }

    ensure!(following.lines() > began && !following.is_over());
    let mut said = since(cluster.master(0), marks.0);
    said.extend(since(cluster.agent(0), marks.1));
    let lost = said.iter().filter(|event| event.message == "session lost");
    ensure!(lost.count() == 0, "a session was lost");
    let opened = "proxymux_master_streams_opened_total{path=\"session\"}";
    let by_session = metrics(cluster, 0).await?.get(opened);
    ensure!(
        by_session < f64::from(ROUNDS),
        "nothing went by a flow any more"
    );
    counts(cluster, "proxymux_master_sessions_open", 1.0).await
}

/// What a stranger says: hellos with proofs that fit no session, parts of one, and anything.
fn nonsense(number: u32) -> Result<Vec<u8>> {
    let seed = u8::try_from(number % 251).context("small")?;
    let export = |_: &[u8], secret: &mut [u8]| {
        secret.fill(seed);
        anyhow::Ok(())
    };
    let table = FlowTable::new();
    let session = table.enter(FlowKeys::export(export)?.into(), ());
    let hello = |direction| session.hello(direction).1.to_vec();
    Ok(match number % 6 {
        0 => hello(FlowDirection::Reverse),
        1 => hello(FlowDirection::Direct),
        2 => {
            let mut half = hello(FlowDirection::Reverse);
            half.truncate(FLOW_HELLO_LEN / 2);
            half
        }
        3 => b"PXMF".iter().copied().cycle().take(4096).collect(),
        4 => Vec::new(),
        _ => vec![seed; 200],
    })
}

const ROUNDS: u32 = 10;
const AT_ONCE: u32 = 200;
