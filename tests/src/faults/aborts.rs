//! Clients that give up, and targets that do, at each stage of a connection.
//!
//! [`storm`] makes many connections, each ended at a [`Moment`] of the list. Nobody is left
//! waiting: what remains of them in the daemons is a leak.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use fastrand::Rng;
use proxymux_testkit::apiserver::{ApiServer, Tunnel, connect_request};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::target::Wish;

/// When a connection is given up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Moment {
    /// In the middle of the request.
    InRequest,
    /// Behind the request, at once.
    BeforeAnswer,
    /// While the agent dials a target that does not answer.
    WhileDialling,
    /// Behind the answer, without having said anything.
    AfterAnswer,
    /// With bytes on their way to the client.
    InDownload,
    /// With bytes on their way both ways.
    InEcho,
    /// After the client's own end, without having read the other side's.
    HalfClosed,
    /// By the target.
    ByTarget,
}

/// Every moment.
pub const MOMENTS: [Moment; 8] = [
    Moment::InRequest,
    Moment::BeforeAnswer,
    Moment::WhileDialling,
    Moment::AfterAnswer,
    Moment::InDownload,
    Moment::InEcho,
    Moment::HalfClosed,
    Moment::ByTarget,
];

/// Where the connections lead.
#[derive(Clone, Debug)]
pub struct Targets {
    /// To a [`super::Dispenser`].
    pub dispenser: String,
    /// To a host that is not there.
    pub nobody: String,
}

/// Makes `count` connections, a few dozen at a time, and gives up each.
///
/// # Errors
///
/// One of them got something else than a connection before it gave up, or hung.
pub async fn storm(api: &ApiServer, targets: &Targets, count: usize, seed: u64) -> Result<()> {
    let mut random = Rng::with_seed(seed);
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut clients = JoinSet::new();
    for (number, moment) in (0..count).zip(MOMENTS.into_iter().cycle()) {
        let place = Arc::clone(&places).acquire_owned().await?;
        let (api, targets) = (api.clone(), targets.clone());
        let mut random = Rng::with_seed(random.u64(..));
        clients.spawn(async move {
            let _place = place;
            let ended = timeout(LIMIT, give_up(&api, &targets, moment, &mut random)).await;
            ended
                .with_context(|| format!("hangs for {LIMIT:?}"))
                .flatten()
                .with_context(|| format!("connection {number}, {moment:?}"))
        });
        while let Some(ended) = clients.try_join_next() {
            ended??;
        }
    }
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    Ok(())
}

async fn give_up(
    api: &ApiServer,
    targets: &Targets,
    moment: Moment,
    random: &mut Rng,
) -> Result<()> {
    match moment {
        Moment::InRequest => {
            let request = connect_request(&targets.dispenser);
            let part = request
                .get(..random.usize(..request.len()))
                .unwrap_or_default();
            let mut client = api.raw().await?;
            client.send(part.as_bytes()).await?;
            end(client.into_tunnel(), random)
        }
        Moment::BeforeAnswer => {
            let mut client = api.raw().await?;
            client
                .send(connect_request(&targets.dispenser).as_bytes())
                .await?;
            end(client.into_tunnel(), random)
        }
        Moment::WhileDialling => {
            let mut client = api.raw().await?;
            client
                .send(connect_request(&targets.nobody).as_bytes())
                .await?;
            sleep(WAIT.mul_f64(random.f64())).await;
            end(client.into_tunnel(), random)
        }
        Moment::AfterAnswer => end(api.connect(&targets.dispenser).await?, random),
        Moment::InDownload => {
            let mut tunnel = ask(api, targets, Wish::Source).await?;
            // From the first byte to a few chunks.
            let mut left = random.usize(1..MAX_READ);
            let mut buffer = vec![0; 16 * 1024];
            while left > 0 {
                let read = tunnel.read(&mut buffer).await?;
                anyhow::ensure!(read > 0, "a source without end has ended");
                left = left.saturating_sub(read);
            }
            end(tunnel, random)
        }
        Moment::InEcho => {
            let mut tunnel = ask(api, targets, Wish::Echo).await?;
            tunnel
                .write_all(&vec![1; random.usize(1..MAX_WRITE)])
                .await?;
            tunnel.flush().await?;
            end(tunnel, random)
        }
        Moment::HalfClosed => {
            let mut tunnel = ask(api, targets, Wish::Echo).await?;
            tunnel
                .write_all(&vec![1; random.usize(1..MAX_WRITE)])
                .await?;
            tunnel.shutdown().await?;
            if random.bool() {
                tunnel.read_u8().await?;
            }
            end(tunnel, random)
        }
        Moment::ByTarget => {
            let mut tunnel = ask(api, targets, Wish::Reset).await?;
            tunnel.write_all(&[1; 16]).await?;
            tunnel.flush().await?;
            // However it ends; a Unix socket cannot tell a reset from an end.
            let _ = tunnel.read_to_end(&mut Vec::new()).await;
            Ok(())
        }
    }
}

async fn ask(api: &ApiServer, targets: &Targets, wish: Wish) -> Result<Tunnel> {
    let mut tunnel = api.connect(&targets.dispenser).await?;
    tunnel.write_all(&wish.bytes()).await?;
    tunnel.flush().await?;
    Ok(tunnel)
}

/// With a reset or a close, where there is a difference.
fn end(tunnel: Tunnel, random: &mut Rng) -> Result<()> {
    if random.bool() {
        tunnel.abort()?;
    }
    Ok(())
}

/// Fewer than the dials that a master lets wait for one node.
const AT_ONCE: usize = 48;

/// No client waits for anything that takes longer than a dial.
const LIMIT: Duration = Duration::from_secs(30);

/// How long a client waits for a dial that leads nowhere.
const WAIT: Duration = Duration::from_millis(30);

const MAX_READ: usize = 64 * 1024;
const MAX_WRITE: usize = 8 * 1024;
