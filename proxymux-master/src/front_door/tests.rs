//! The contract with kube-apiserver, line by line, and what a front door does with other clients.
//!
//! Owns the gateway that the tests put behind the front door. Connections are pipes in memory
//! where time matters (the clock stands still and jumps), and Unix sockets where the kernel does.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use proxymux_proto::TargetAddr;
use proxymux_transport::{config_file::values::ByteSize, memory::MemoryBudget};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::{serve::serve, *};
use proxymux_transport::metrics::Registry;

mod contract;
mod log;
mod order;

pub(super) const REQUEST: &[u8] = b"CONNECT 10.0.10.10:10250 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
pub(super) const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";
pub(super) const BUDGET: Duration = Duration::from_secs(8);
pub(super) const LIMITS: RequestLimits = RequestLimits {
    budget: BUDGET,
    header_len: 16 * 1024,
    header_time: Duration::from_secs(5),
};

/// A gateway that does as it was told, and remembers.
#[derive(Clone, Debug)]
pub(super) struct Fake(Arc<FakeState>);

#[derive(Debug)]
struct FakeState {
    plan: Plan,
    /// What the target says as soon as the relay begins.
    greeting: &'static [u8],
    asked: Mutex<Vec<(String, Duration)>>,
    cancelled: AtomicUsize,
    relayed: mpsc::Sender<Relayed>,
    metrics: DoorMetrics,
}

#[derive(Debug)]
pub(super) enum Plan {
    Open,
    OpenAfter(Duration),
    Refuse(Refusal),
    /// Refuses when the budget it was given has run out, in these words.
    RefuseAtDeadline(&'static str),
    Never,
}

/// What a relay saw.
#[derive(Debug)]
pub(super) struct Relayed {
    pub(super) request: RequestInfo,
    pub(super) early: Bytes,
    /// What came after the early bytes, up to the client's end.
    pub(super) rest: io::Result<Vec<u8>>,
}

/// Counts an opening that was dropped before it was over.
struct Opening<'a> {
    state: &'a FakeState,
    over: bool,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.state.cancelled.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Fake {
    pub(super) fn new(plan: Plan) -> (Self, mpsc::Receiver<Relayed>) {
        Self::that_greets(plan, b"")
    }

    pub(super) fn that_greets(
        plan: Plan,
        greeting: &'static [u8],
    ) -> (Self, mpsc::Receiver<Relayed>) {
        let (relayed, receiver) = mpsc::channel(16);
        let (asked, cancelled) = (Mutex::default(), AtomicUsize::new(0));
        (
            Self(Arc::new(FakeState {
                plan,
                greeting,
                asked,
                cancelled,
                relayed,
                metrics: DoorMetrics::register(&mut Registry::default()),
            })),
            receiver,
        )
    }

    pub(super) fn cancelled(&self) -> usize {
        self.0.cancelled.load(Ordering::Relaxed)
    }

    pub(super) fn asked(&self) -> Vec<(String, Duration)> {
        self.0.asked.lock().unwrap().clone()
    }
}

impl Gateway for Fake {
    type Tunnel = ();

    fn metrics(&self) -> &DoorMetrics {
        &self.0.metrics
    }

    async fn open(&self, target: &TargetAddr, budget: Duration) -> Result<(), Refusal> {
        self.0
            .asked
            .lock()
            .unwrap()
            .push((target.to_string(), budget));
        let mut opening = Opening {
            state: &self.0,
            over: false,
        };
        let outcome = match &self.0.plan {
            Plan::Open => Ok(()),
            Plan::OpenAfter(time) => {
                sleep(*time).await;
                Ok(())
            }
            Plan::Refuse(refusal) => Err(refusal.clone()),
            Plan::RefuseAtDeadline(reason) => {
                sleep(budget).await;
                Err(Refusal::new(Status::GatewayTimeout, *reason))
            }
            Plan::Never => std::future::pending().await,
        };
        opening.over = true;
        outcome
    }

    fn account(&self) -> HeldBytes {
        MemoryBudget::new(ByteSize::mib(64)).other()
    }

    async fn relay(&self, mut client: Client, early: Bytes, (): (), request: RequestInfo) {
        // A client that is gone shows in what is read.
        let _ = client.write_all(self.0.greeting).await;
        let mut rest = Vec::new();
        let read = client.read_to_end(&mut rest).await;
        let relayed = Relayed {
            request,
            early,
            rest: read.map(|_| rest),
        };
        self.0.relayed.send(relayed).await.unwrap();
    }
}

pub(super) fn arrival() -> Arrival {
    Arrival {
        door: "unix",
        peer: "unix:pid=7,uid=0".to_owned(),
        client_name: None,
        accepted_at: Instant::now(),
    }
}

/// A client of a front door, in memory.
fn connect(gateway: &Fake) -> DuplexStream {
    connect_with_budget(gateway, BUDGET)
}

fn connect_with_budget(gateway: &Fake, budget: Duration) -> DuplexStream {
    let (near, far) = duplex(256 * 1024);
    tokio::spawn(serve(
        near.into(),
        arrival(),
        RequestLimits { budget, ..LIMITS },
        gateway.clone(),
    ));
    far
}

/// Everything up to the front door's end of the connection.
async fn read_all(client: &mut DuplexStream) -> String {
    let mut all = String::new();
    client.read_to_string(&mut all).await.unwrap();
    all
}

/// What a client gets that sends this and then waits for the answer.
async fn answer_to(bytes: &[u8], gateway: &Fake) -> String {
    let mut client = connect(gateway);
    client.write_all(bytes).await.unwrap();
    read_all(&mut client).await
}

pub(super) async fn expect_established(client: &mut (impl AsyncReadExt + Unpin)) {
    let mut answer = vec![0; ESTABLISHED.len()];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, ESTABLISHED);
}

/// Whether nothing can be read, and the connection is open, for that long.
async fn is_silent_for(client: &mut DuplexStream, time: Duration) -> bool {
    timeout(time, client.read(&mut [0; 1])).await.is_err()
}
