//! The other ends for tests of flows, on loopback: a master that speaks flows by the transport's
//! own code, and a kubelet of raw bytes.
//!
//! [`Rig::start`] is an agent with a session's flows and no session: what a session would do with
//! them is done by the test. The clock is the real one unless a test pauses it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use proxymux_proto::{
    Addresses, FlowAbort, FlowDirection, FlowKeys, FlowMessage, FlowOpen, InstanceId, OpenRequest,
    PROTOCOL_VERSION, RefuseCode, Registered,
};
use proxymux_transport::{
    flow::{FlowConnection, FlowSession, FlowTable},
    shutdown::Shutdown,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::{SessionFlows, Way};
use crate::{agent::Agent, config::Config, steering::Steering};

/// An agent, its kubelet, and the master's end of one session's flows.
pub(crate) struct Rig {
    pub(crate) agent: Arc<Agent>,
    pub(crate) shutdown: Shutdown,
    pub(crate) kubelet: TcpListener,
    pub(crate) master: FakeMaster,
    /// The session's; dropping it is the end of the session.
    pub(crate) flows: Option<SessionFlows>,
}

/// A master's end of a session's flows.
pub(crate) struct FakeMaster {
    pub(crate) listener: TcpListener,
    pub(crate) at: SocketAddr,
    pub(crate) table: FlowTable<()>,
    pub(crate) session: FlowSession<()>,
}

impl Rig {
    /// A rig whose agent keeps `idle` flows and has these lines in its file.
    pub(crate) async fn start(idle: u32, lines: &str) -> Self {
        let kubelet = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shutdown = Shutdown::default();
        let agent = agent(&kubelet, lines, &shutdown);
        let master = FakeMaster::listen(1).await;
        let mut rig = Self {
            agent,
            shutdown,
            kubelet,
            master,
            flows: None,
        };
        rig.flows = rig.session(idle, 1);
        rig
    }

    /// The flows of another session with the same run of the master, whose keys are of `number`.
    pub(crate) fn session(&self, idle: u32, number: u8) -> Option<SessionFlows> {
        let way = Way {
            master: self.master.at,
            largest_segment: None,
        };
        SessionFlows::start(&self.agent, Some(&keys(number)), &registered(idle), way)
    }

    /// The kubelet under the node's name.
    pub(crate) fn target(&self) -> String {
        format!("worker-1:{}", self.kubelet.local_addr().unwrap().port())
    }

    /// The next flow that the agent has dialled, accepted.
    pub(crate) async fn idle(&self) -> FlowConnection {
        let mut flow = self.master.hello().await;
        flow.say(&FlowMessage::Accepted).await.unwrap();
        flow
    }

    /// A flow that was opened to the kubelet, and the kubelet's end.
    pub(crate) async fn opened(&self) -> (TcpStream, TcpStream) {
        let mut flow = self.idle().await;
        assert_eq!(open(&mut flow, &self.target()).await, FlowMessage::Opened);
        (flow.into_connection(), self.kubelet_end().await)
    }

    /// A flow that is relaying, and the kubelet's end of it, which has read [`HELLO`].
    pub(crate) async fn relaying(&self) -> (TcpStream, TcpStream) {
        let (mut client, mut kubelet) = self.opened().await;
        client.write_all(HELLO).await.unwrap();
        assert_eq!(read(&mut kubelet, HELLO.len()).await, HELLO);
        (client, kubelet)
    }

    pub(crate) async fn kubelet_end(&self) -> TcpStream {
        within(self.kubelet.accept()).await.unwrap().0
    }

    /// What the session would tell its master next.
    pub(crate) async fn abort(&mut self) -> FlowAbort {
        within(self.flows.as_mut().unwrap().next_abort()).await
    }

    /// Whether the metrics have this line, without the prefix.
    pub(crate) fn counts(&self, line: &str) -> bool {
        let line = format!("proxymux_agent_{line}");
        self.agent.metrics.scrape().lines().any(|l| l == line)
    }

    /// Waits until the metrics have this line.
    pub(crate) async fn count(&self, line: &str) {
        let counted = async {
            while !self.counts(line) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let counted = timeout(LIMIT, counted).await;
        assert!(
            counted.is_ok(),
            "{line} in:\n{}",
            self.agent.metrics.scrape()
        );
    }
}

impl FakeMaster {
    /// A master with a session whose keys are of `number`.
    pub(crate) async fn listen(number: u8) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let table = FlowTable::new();
        Self {
            at: listener.local_addr().unwrap(),
            listener,
            session: table.enter(keys(number), ()),
            table,
        }
    }

    /// The next flow, whose hello is believed and not answered.
    pub(crate) async fn hello(&self) -> FlowConnection {
        let (connection, _) = within(self.listener.accept()).await.unwrap();
        self.accept(connection).await
    }

    pub(crate) async fn accept(&self, connection: TcpStream) -> FlowConnection {
        let accepted = FlowConnection::accept(connection, &[], &self.table, FlowDirection::Reverse);
        within(accepted).await.unwrap().0
    }

    /// Whether the agent dials no flow for a while.
    pub(crate) async fn is_left_alone(&self) -> bool {
        timeout(A_WHILE, self.listener.accept()).await.is_err()
    }
}

/// An agent that may use flows.
pub(crate) fn agent(kubelet: &TcpListener, lines: &str, shutdown: &Shutdown) -> Arc<Agent> {
    let kubelet = kubelet.local_addr().unwrap();
    let file = format!(
        "node-name: worker-1\nserver-addr: https://192.0.2.10\nkubelet-addr: {kubelet}\n\
         drain-deadline: 1s\n{lines}"
    );
    let (config, _) = Config::parse(&file, "test.yaml").unwrap();
    Agent::new(config, Steering::userspace("a test"), shutdown.clone())
}

/// What a master that wants flows answers.
pub(crate) fn registered(idle: u32) -> Registered {
    Registered {
        version: PROTOCOL_VERSION,
        master: InstanceId::from_bytes([1; 16]),
        addresses: Addresses::default(),
        max_streams: 64,
        dial_sources: Vec::new(),
        advertise: None,
        flow_pool: idle,
    }
}

/// The secrets of a session.
pub(crate) fn keys(session: u8) -> Arc<FlowKeys> {
    let export = |context: &[u8], out: &mut [u8]| {
        out.fill(session ^ context.iter().fold(0, |sum, byte| sum ^ byte));
        Ok::<(), ()>(())
    };
    Arc::new(FlowKeys::export(export).unwrap())
}

pub(crate) fn request(target: &str) -> FlowMessage {
    FlowMessage::Open(FlowOpen::Target(OpenRequest {
        target: target.parse().unwrap(),
        budget: Duration::from_secs(8),
        measure: None,
    }))
}

/// Asks for a target, and returns the result.
pub(crate) async fn open(flow: &mut FlowConnection, target: &str) -> FlowMessage {
    flow.say(&request(target)).await.unwrap();
    within(flow.hear()).await.unwrap()
}

/// The code and the words of a refusal.
pub(crate) fn refusal(message: FlowMessage) -> (RefuseCode, String) {
    match message {
        FlowMessage::Refused { code, message } => (code, message),
        other => panic!("a refusal, not {other:?}"),
    }
}

pub(crate) async fn read(connection: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    within(connection.read_exact(&mut bytes)).await.unwrap();
    bytes
}

pub(crate) async fn read_to_end(connection: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    within(connection.read_to_end(&mut bytes)).await.unwrap();
    bytes
}

pub(crate) async fn assert_reset(connection: &mut TcpStream) {
    let read = within(connection.read(&mut [0])).await;
    assert_eq!(
        read.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
}

pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    timeout(LIMIT, future).await.expect("within the limit")
}

/// Begins as TLS does.
pub(crate) const HELLO: &[u8] = &[0x16, 0x03, 0x01, 0x00, 0x05, 1, 2, 3, 4, 5];

/// Far beyond what anything here takes.
const LIMIT: Duration = Duration::from_secs(30);

/// How long it is looked whether nothing happens.
const A_WHILE: Duration = Duration::from_millis(100);
