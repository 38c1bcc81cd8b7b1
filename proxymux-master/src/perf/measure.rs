//! What is measured on one path to a node.
//!
//! Owns the steps and the sums: opening, requests, download, upload, and the processor time of both
//! daemons. Leaves which paths, and showing the figures, to `perf.rs`.
//! The near end is a Unix socket of this process, as kube-apiserver's usually is, and so the time of
//! this master includes that of filling and emptying it.

use std::{sync::Mutex, time::Duration};

use bytes::Bytes;
use proxymux_proto::{Host, Measure, TargetAddr};
use proxymux_transport::{
    measure::{OPENING, cpu_time},
    telemetry::{Path, chain},
};
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

use super::{Order, State, lock};
use crate::{flows::choose::OnlyFailure, front_door::Client, gateway::Gateway};

/// A path's figures under way.
struct Probe<'a> {
    gateway: &'a Gateway,
    order: &'a Order,
    target: TargetAddr,
    path: Path,
}

/// A connection that is relayed to an end for measuring; the relay ends with it.
struct Connection {
    io: UnixStream,
    _relay: AbortOnDropHandle<()>,
}

/// Why a path has no figures.
#[derive(Debug, thiserror::Error)]
enum MeasureError {
    #[error("not usable now: {0}")]
    Unusable(&'static str),
    #[error("{0}")]
    Refused(String),
    #[error("connection failed")]
    Io(#[from] std::io::Error),
    #[error("the agent gave no number")]
    NoNumber,
    #[error("nothing came within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("cannot name the node's kubelet")]
    NoTarget,
}

/// Measures path after path; each has its figures or the reason why not in `state`.
pub(super) async fn run(gateway: &Gateway, order: &Order, state: &Mutex<State>) {
    for &path in &order.paths {
        let mut figures = Map::new();
        figures.insert("path".to_owned(), json!(path.as_str()));
        if let Err(error) = measure(gateway, order, path, &mut figures, state).await {
            figures.insert("problem".to_owned(), json!(chain(&error)));
        }
        lock(state).paths.push(Value::Object(figures));
    }
}

async fn measure(
    gateway: &Gateway,
    order: &Order,
    path: Path,
    figures: &mut Map<String, Value>,
    state: &Mutex<State>,
) -> Result<(), MeasureError> {
    let host = match order.session.node.as_ip() {
        Some(ip) => Host::Ip(ip),
        None => Host::Name(order.session.node.clone()),
    };
    let target = TargetAddr::new(host, order.session.kubelet_port).ok_or(MeasureError::NoTarget)?;
    let probe = Probe {
        gateway,
        order,
        target,
        path,
    };
    let says = |what: &str| lock(state).doing = format!("{}: {what}", path.as_str());

    says("opening connections");
    let opens = probe.opens().await?;
    figures.insert("open_p50_us".to_owned(), json!(percentile(&opens, 50)));
    figures.insert("open_p99_us".to_owned(), json!(percentile(&opens, 99)));
    says("requests of 512 bytes");
    let requests = probe.requests().await?;
    figures.insert(
        "request_p50_us".to_owned(),
        json!(percentile(&requests, 50)),
    );
    figures.insert(
        "request_p99_us".to_owned(),
        json!(percentile(&requests, 99)),
    );
    for (name, measure) in [("download", Measure::Source), ("upload", Measure::Sink)] {
        says(name);
        let moved = probe.bulk(measure).await?;
        let gib = moved.bytes / GIB;
        figures.insert(
            format!("{name}_gib_per_s"),
            json!(gib / moved.time.as_secs_f64()),
        );
        let per_gib = |cpu: Duration| json!(cpu.as_secs_f64() / gib);
        figures.insert(
            format!("{name}_master_cpu_s_per_gib"),
            per_gib(moved.master),
        );
        figures.insert(format!("{name}_agent_cpu_s_per_gib"), per_gib(moved.agent));
    }
    Ok(())
}

/// What a download or upload has moved, and at what cost.
struct Moved {
    bytes: f64,
    time: Duration,
    master: Duration,
    agent: Duration,
}

impl Probe<'_> {
    /// From asking until the first byte has come back, many times.
    async fn opens(&self) -> Result<Vec<Duration>, MeasureError> {
        let mut times = Vec::with_capacity(OPENS);
        for _ in 0..OPENS {
            let began = Instant::now();
            let mut connection = self.connect(self.path, Measure::Echo).await?;
            connection.round_trip(1).await?;
            times.push(began.elapsed());
        }
        Ok(times)
    }

    /// Round trips on one connection.
    async fn requests(&self) -> Result<Vec<Duration>, MeasureError> {
        let mut connection = self.connect(self.path, Measure::Echo).await?;
        let until = Instant::now() + self.order.time.min(REQUESTS_TIME);
        let mut times = Vec::new();
        while Instant::now() < until {
            let began = Instant::now();
            connection.round_trip(REQUEST_LEN).await?;
            times.push(began.elapsed());
        }
        Ok(times)
    }

    async fn bulk(&self, measure: Measure) -> Result<Moved, MeasureError> {
        let mut connection = self.connect(self.path, measure).await?;
        let agent = self.agents_time().await?;
        let (master, began) = (cpu_time()?, Instant::now());
        let until = began + self.order.time;
        let bytes = match measure {
            Measure::Source => connection.read_until(until).await?,
            _ => connection.write_until(until).await?,
        };
        let (time, master) = (began.elapsed(), cpu_time()?.saturating_sub(master));
        drop(connection);
        Ok(Moved {
            bytes,
            time,
            master,
            agent: self.agents_time().await?.saturating_sub(agent),
        })
    }

    /// The processor time that the agent has used so far, asked by the session.
    async fn agents_time(&self) -> Result<Duration, MeasureError> {
        let mut connection = self.connect(Path::Session, Measure::Usage).await?;
        connection.number().await.map(Duration::from_micros)
    }

    async fn connect(&self, path: Path, measure: Measure) -> Result<Connection, MeasureError> {
        let deadline = Instant::now() + OPEN_LIMIT;
        let (session, target) = (&self.order.session, &self.target);
        let tunnel = self
            .gateway
            .open_measure(session, target, (path, measure), deadline)
            .await
            .map_err(|failure| match failure {
                OnlyFailure::Not(why) => MeasureError::Unusable(why.as_str()),
                OnlyFailure::Refused(refusal) => MeasureError::Refused(refusal.phrase()),
            })?;
        let (io, far) = UnixStream::pair()?;
        let (gateway, target) = (self.gateway.clone(), target.clone());
        let relay = tokio::spawn(async move {
            let opening = Bytes::from_static(&OPENING);
            gateway
                .relay_measure(Client::from(far), opening, tunnel, target)
                .await;
        });
        Ok(Connection {
            io,
            _relay: AbortOnDropHandle::new(relay),
        })
    }
}

impl Connection {
    async fn round_trip(&mut self, len: usize) -> Result<(), MeasureError> {
        let mut buffer = [0; REQUEST_LEN];
        let request = buffer.get_mut(..len).unwrap_or_default();
        let exchanged = async {
            self.io.write_all(request).await?;
            self.io.read_exact(request).await.map(|_| ())
        };
        within(exchanged).await
    }

    async fn read_until(&mut self, until: Instant) -> Result<f64, MeasureError> {
        let mut buffer = vec![0; BUFFER_LEN];
        let mut bytes = 0.0;
        while Instant::now() < until {
            match within(self.io.read(&mut buffer)).await? {
                0 => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
                n => bytes += as_f64(n),
            }
        }
        Ok(bytes)
    }

    /// Writes, and counts what has arrived.
    async fn write_until(&mut self, until: Instant) -> Result<f64, MeasureError> {
        let buffer = vec![b'x'; BUFFER_LEN];
        while Instant::now() < until {
            within(self.io.write_all(&buffer)).await?;
        }
        self.io.shutdown().await?;
        let bytes = self.number().await?;
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        Ok(bytes as f64)
    }

    async fn number(&mut self) -> Result<u64, MeasureError> {
        let mut text = String::new();
        let mut limited = (&mut self.io).take(MAX_NUMBER_LEN);
        within(limited.read_to_string(&mut text)).await?;
        text.parse().map_err(|_| MeasureError::NoNumber)
    }
}

/// A path that loses everything is to be told, and not waited for.
async fn within<T>(io: impl Future<Output = std::io::Result<T>>) -> Result<T, MeasureError> {
    match tokio::time::timeout(SILENCE_LIMIT, io).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(MeasureError::Silent(SILENCE_LIMIT)),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn as_f64(n: usize) -> f64 {
    n as f64
}

/// Of times that are there: microseconds that so many in a hundred do not exceed.
fn percentile(times: &[Duration], of_hundred: usize) -> u64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * of_hundred).div_ceil(100).max(1) - 1;
    let time = sorted.get(rank).copied().unwrap_or_default();
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Enough for a 99th percentile, and few enough to be no load.
const OPENS: usize = 100;

const REQUEST_LEN: usize = 512;

/// Some thousand round trips on most networks.
const REQUESTS_TIME: Duration = Duration::from_secs(2);

const BUFFER_LEN: usize = 64 * 1024;

/// As a request of the API server has.
const OPEN_LIMIT: Duration = Duration::from_secs(8);

/// Longer than TCP takes to find its way around a lost packet or three.
const SILENCE_LIMIT: Duration = Duration::from_secs(10);

/// Twenty digits of a number of 64 bits, and some.
const MAX_NUMBER_LEN: u64 = 32;

const GIB: f64 = (1_u64 << 30) as f64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let times: Vec<_> = (1..=200).rev().map(Duration::from_micros).collect();
        assert_eq!(percentile(&times, 50), 100);
        assert_eq!(percentile(&times, 99), 198);
        assert_eq!(percentile(&times[..1], 99), 200);
    }
}
