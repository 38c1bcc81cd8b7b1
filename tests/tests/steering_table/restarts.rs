//! Thousands of connections through a steered port whose agent is killed again and again.
//!
//! A connection whose handshake falls into the moment of a kill may be refused or reset; none may
//! be left hanging, and whoever then tries again is answered, by the next agent or the kubelet.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use proxymux_testkit::netns::HostRuntime;
use proxymux_tests::visitors::Family;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use crate::stage;

/// What became of the connections.
#[derive(Debug, Default)]
struct Outcomes {
    /// Somebody said something, which is how both the kubelet and a relay answer nonsense.
    answered: AtomicUsize,
    /// Ended by a reset or an end before a word: they died with their agent.
    ended: AtomicUsize,
    /// Nothing came within the limit.
    hanging: AtomicUsize,
    enough: AtomicBool,
}

#[test]
fn ten_thousand_connections_while_the_agent_is_killed_again_and_again_and_none_hangs() -> Result<()>
{
    let mut stage = stage::start("netlink")?;
    let clients = stage.cluster.topology().master().runtime()?;
    let outcomes = Arc::new(Outcomes::default());
    let targets = Family::ALL.map(|family| family.kubelet(stage.node()));
    let crowd = crowd(&clients, targets, &outcomes);

    let mut kills = 0;
    while !outcomes.enough.load(Ordering::Relaxed) {
        stage.cluster.agent(0).kill()?;
        kills += 1;
        stage.start_agent().context("after a kill")?;
    }

    clients.block_on(crowd).context("the clients")?;
    let read = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    let (answered, ended) = (read(&outcomes.answered), read(&outcomes.ended));
    eprintln!("{answered} answered, {ended} ended with an agent, {kills} kills");
    assert_eq!(read(&outcomes.hanging), 0, "{outcomes:?}");
    assert_eq!(answered + ended, CONNECTIONS);
    assert!(kills >= 3, "{kills} kills are no test");
    assert!(
        ended <= kills * CLIENTS * 4,
        "{ended} ended, {kills} agents had at most a few of each client"
    );
    Ok(())
}

/// Clients that connect one time after the other, until there were enough.
fn crowd(
    clients: &HostRuntime,
    targets: [SocketAddr; 2],
    outcomes: &Arc<Outcomes>,
) -> tokio::task::JoinHandle<()> {
    let outcomes = Arc::clone(outcomes);
    clients.spawn(async move {
        let mut all = JoinSet::new();
        for client in 0..CLIENTS {
            let outcomes = Arc::clone(&outcomes);
            let target = if client % 2 == 0 {
                targets[0]
            } else {
                targets[1]
            };
            all.spawn(async move {
                for _ in 0..CONNECTIONS / CLIENTS {
                    let counter = match timeout(HANGS, speak(target)).await {
                        Ok(Ok(())) => &outcomes.answered,
                        Ok(Err(_)) => &outcomes.ended,
                        Err(_) => &outcomes.hanging,
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        while all.join_next().await.is_some() {}
        outcomes.enough.store(true, Ordering::Relaxed);
    })
}

/// Says what begins like a TLS handshake and is none, so that no time goes into cryptography: the
/// kubelet answers with an alert, through a relay too.
async fn speak(target: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(target).await?;
    // An end would leave the port waiting, and there are not 10,000 to spare.
    stream.set_zero_linger()?;
    stream.write_all(BROKEN_HELLO).await?;
    stream.read_u8().await.context("no answer")?;
    Ok(())
}

const CONNECTIONS: usize = 10_000;
const CLIENTS: usize = 20;
/// Far beyond the 5 s after which a heartbeat expires.
const HANGS: Duration = Duration::from_secs(12);
/// A record of a handshake, 4 bytes long, with a message that a client does not send.
const BROKEN_HELLO: &[u8] = &[0x16, 3, 1, 0, 4, 0x63, 0, 0, 0];
