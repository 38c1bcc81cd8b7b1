//! The client: where kube-apiserver stands, and the same code whatever the path.
//!
//! Owns what is measured and when the clock runs; a [`Client`] only knows that it can connect.
//! Every byte is counted ([`Traffic`]), so that the access logs can be held against it.
//! Nothing here is checked besides lengths: the client must not be what is measured.

use std::{ops::AddAssign, time::Duration};

use anyhow::{Context, Result, ensure};
use proxymux_testkit::apiserver::{ApiServer, Tunnel};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::Instant,
};

use super::{
    cpu::{CpuMoment, Spent},
    far_end::{BUFFER_LEN, COMMAND_LEN, Command, MESSAGE_LEN, cut},
};
use crate::{
    latency::Latencies,
    limits::{SOON, within},
};

/// Can connect to the far end, one way or another.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) api: ApiServer,
    pub(super) target: String,
}

/// Which way the bytes of a transfer go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Direction {
    /// From the node, as logs do.
    Download,
    /// To the node, as `kubectl cp` does.
    Upload,
}

/// What went over connections that have ended, as the client counted it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Traffic {
    pub(super) connections: u64,
    pub(super) sent: u64,
    pub(super) received: u64,
}

/// A bulk transfer that is done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer {
    pub(super) spent: Spent,
    pub(super) traffic: Traffic,
}

/// A series of small things, one after the other.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) latencies: Latencies,
    pub(super) traffic: Traffic,
}

/// Downloads that have come to a stop because nobody reads on.
#[derive(Debug)]
pub(super) struct Stalled {
    tunnels: Vec<Tunnel>,
    pub(super) traffic: Traffic,
}

/// Connections on which nothing moves.
#[derive(Debug)]
pub(super) struct Idle(Vec<Tunnel>);

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.connections += other.connections;
        self.sent += other.sent;
        self.received += other.received;
    }
}

impl Traffic {
    fn of_one(sent: u64, received: u64) -> Self {
        Self {
            connections: 1,
            sent,
            received,
        }
    }
}

impl Client {
    async fn connect(&self) -> Result<Tunnel> {
        within(SOON, "connect", self.api.connect(&self.target)).await
    }

    /// Moves `bytes` over so many connections, which stand when the clock starts.
    pub(super) async fn transfer(
        self,
        direction: Direction,
        streams: u64,
        bytes: u64,
    ) -> Result<Transfer> {
        let share = bytes / streams;
        let mut tunnels = Vec::new();
        for _ in 0..streams {
            tunnels.push(self.connect().await?);
        }
        let mut moving = JoinSet::new();
        let began = CpuMoment::now()?;
        for tunnel in tunnels {
            moving.spawn(async move {
                match direction {
                    Direction::Download => download(tunnel, share).await,
                    Direction::Upload => upload(tunnel, share).await,
                }
            });
        }
        let mut traffic = Traffic::default();
        let all = async {
            while let Some(moved) = moving.join_next().await {
                traffic += moved.context("a transfer's task")??;
            }
            anyhow::Ok(())
        };
        within(TRANSFER_LIMIT, "transfer", all).await?;
        Ok(Transfer {
            spent: began.spent()?,
            traffic,
        })
    }

    /// Reads a kubelet's whole log over TLS, as `kubectl logs` does; the log has so many bytes.
    pub(super) async fn logs(self, bytes: u64) -> Result<Transfer> {
        let began = CpuMoment::now()?;
        let path = "/containerLogs/default/web-0/main";
        let reading = async {
            let mut log = self.api.get_stream(&self.target, path).await?;
            anyhow::Ok(log.skip_to_end().await?)
        };
        let received = within(TRANSFER_LIMIT, "log", reading).await?;
        ensure!(
            received == bytes,
            "{received} bytes of log, expected {bytes}"
        );
        Ok(Transfer {
            spent: began.spent()?,
            traffic: Traffic::of_one(0, received),
        })
    }

    /// Sends so many requests of [`MESSAGE_LEN`] bytes over one connection and waits for the
    /// answer to each.
    pub(super) async fn requests(self, count: u64) -> Result<Series> {
        let mut tunnel = self.connect().await?;
        tunnel.write_all(&Command::Echo.encode()).await?;
        let mut latencies = Latencies::default();
        let all = async {
            for _ in 0..WARM_UP {
                request(&mut tunnel).await?;
            }
            for _ in 0..count {
                latencies.add(request(&mut tunnel).await?);
            }
            anyhow::Ok(())
        };
        within(TRANSFER_LIMIT, "requests", all).await?;
        let messages = (WARM_UP + count) * MESSAGE_LEN as u64;
        finish(tunnel).await?;
        Ok(Series {
            latencies,
            traffic: Traffic::of_one(COMMAND_LEN as u64 + messages, messages),
        })
    }

    /// Opens so many connections, one after the other; each is measured from connecting to the
    /// first byte back from the far end.
    pub(super) async fn opens(self, count: u64) -> Result<Series> {
        let mut series = Series {
            latencies: Latencies::default(),
            traffic: Traffic::default(),
        };
        for _ in 0..count {
            let began = Instant::now();
            let mut tunnel = self.connect().await?;
            tunnel.write_all(&Command::Byte.encode()).await?;
            within(SOON, "first byte", tunnel.read_u8()).await?;
            series.latencies.add(began.elapsed());
            series.traffic += Traffic::of_one(COMMAND_LEN as u64, 1);
            // Outside the clock, and so that its end does not disturb the next one's beginning.
            finish(tunnel).await?;
        }
        Ok(series)
    }

    /// Opens so many connections and makes one request on each.
    pub(super) async fn idle(self, count: u64) -> Result<Idle> {
        let mut tunnels = Vec::new();
        for _ in 0..count {
            let mut tunnel = self.connect().await?;
            tunnel.write_all(&Command::Echo.encode()).await?;
            within(SOON, "answer", request(&mut tunnel)).await?;
            tunnels.push(tunnel);
        }
        Ok(Idle(tunnels))
    }

    /// Starts so many endless downloads, one after the other; each runs as fast as it can for
    /// `run_in` bytes and is then not read any more.
    pub(super) async fn stall(self, count: u64, run_in: u64) -> Result<Stalled> {
        let mut stalled = Stalled {
            tunnels: Vec::new(),
            traffic: Traffic::default(),
        };
        let mut buffer = vec![0; BUFFER_LEN];
        for _ in 0..count {
            let mut tunnel = self.connect().await?;
            tunnel.write_all(&Command::Source(ENDLESS).encode()).await?;
            let running = async {
                let mut received = 0;
                while received < run_in {
                    let n = tunnel.read(&mut buffer).await?;
                    ensure!(n > 0, "a download ended after {received} bytes");
                    received += n as u64;
                }
                Ok(received)
            };
            let received = within(TRANSFER_LIMIT, "download", running).await?;
            stalled.traffic += Traffic::of_one(COMMAND_LEN as u64, received);
            stalled.tunnels.push(tunnel);
        }
        Ok(stalled)
    }
}

impl Idle {
    /// Makes one more request on each, and ends them all in order.
    pub(super) async fn finish(self) -> Result<Traffic> {
        let mut traffic = Traffic::default();
        for mut tunnel in self.0 {
            within(SOON, "answer", request(&mut tunnel)).await?;
            finish(tunnel).await?;
            let messages = 2 * MESSAGE_LEN as u64;
            traffic += Traffic::of_one(COMMAND_LEN as u64 + messages, messages);
        }
        Ok(traffic)
    }
}

impl Stalled {
    /// Reads more of each than can have waited for it on the way, then ends them as
    /// [`Stalled::end`] does.
    pub(super) async fn go_on(mut self) -> Result<Traffic> {
        let mut buffer = vec![0; BUFFER_LEN];
        for tunnel in &mut self.tunnels {
            let mut more = 0;
            while more < GOES_ON {
                let read = within(SOON, "more of a download", tunnel.read(&mut buffer)).await?;
                ensure!(read > 0, "a download that had stalled ended");
                more += read as u64;
            }
            self.traffic.received += more;
        }
        Ok(self.end())
    }

    /// Ends them all, and says what the client has seen of them. More was on its way.
    pub(super) fn end(self) -> Traffic {
        drop(self.tunnels);
        self.traffic
    }
}

async fn download(mut tunnel: Tunnel, length: u64) -> Result<Traffic> {
    tunnel.write_all(&Command::Source(length).encode()).await?;
    let mut buffer = vec![0; BUFFER_LEN];
    let mut received = 0;
    loop {
        let n = tunnel.read(&mut buffer).await?;
        if n == 0 {
            break;
        }
        received += n as u64;
    }
    ensure!(
        received == length,
        "{received} bytes came, expected {length}"
    );
    finish(tunnel).await?;
    Ok(Traffic::of_one(COMMAND_LEN as u64, received))
}

async fn upload(mut tunnel: Tunnel, length: u64) -> Result<Traffic> {
    tunnel.write_all(&Command::Sink(length).encode()).await?;
    let piece = vec![0xa5; BUFFER_LEN];
    let mut left = length;
    while left > 0 {
        let piece = cut(&piece, left);
        tunnel.write_all(piece).await?;
        left -= piece.len() as u64;
    }
    let taken = tunnel.read_u64().await?;
    ensure!(taken == length, "{taken} bytes arrived, expected {length}");
    finish(tunnel).await?;
    Ok(Traffic::of_one(
        COMMAND_LEN as u64 + length,
        u64::try_from(size_of::<u64>())?,
    ))
}

async fn request(tunnel: &mut Tunnel) -> Result<Duration> {
    let mut message = [0x33; MESSAGE_LEN];
    let began = Instant::now();
    tunnel.write_all(&message).await?;
    tunnel.read_exact(&mut message).await?;
    Ok(began.elapsed())
}

/// Ends a connection in order, both ways.
async fn finish(mut tunnel: Tunnel) -> Result<()> {
    let ended = async {
        tunnel.shutdown().await?;
        tunnel.read(&mut [0]).await
    };
    let rest = within(SOON, "end", ended).await?;
    ensure!(rest == 0, "more bytes came than were asked for");
    Ok(())
}

/// No transfer takes as long on a machine that works.
const TRANSFER_LIMIT: Duration = Duration::from_secs(300);

/// Requests that are not measured: the first ones fill caches and find buffers' sizes.
const WARM_UP: u64 = 200;

/// All buffers and a window of a connection hold less.
const GOES_ON: u64 = 4 << 20;

/// More than anybody reads.
const ENDLESS: u64 = 1 << 50;
