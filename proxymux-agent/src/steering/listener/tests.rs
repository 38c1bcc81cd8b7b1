//! Tests of the accept loop and of what becomes of a connection, with ordinary listeners: what
//! comes to 127.0.0.2 at the kubelet's port is taken for steered, the kubelet is at 127.0.0.1.

use std::sync::atomic::{AtomicUsize, Ordering};

use proxymux_proto::{AbortCode, FlowAbort, FlowDirection, FlowMessage, FlowOpen};
use proxymux_transport::{
    flow::FlowConnection, limits::raise_open_files, shutdown::Shutdown, socket,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
    time::timeout,
};

use super::*;
use crate::{
    config::Config,
    flows::{
        self, SessionFlows, Way,
        testing::{FakeMaster, request},
    },
    steering::Steering,
};

/// Counts what it is told.
#[derive(Clone, Default)]
struct Counted(Arc<Counts>);

#[derive(Default)]
struct Counts {
    beats: AtomicUsize,
    opened: AtomicUsize,
    closed: AtomicUsize,
}

impl Gate for Counted {
    fn beat(&self) -> Told {
        self.0.beats.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn open(&self, _: Family, _: &TcpListener) -> Told {
        self.0.opened.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn close(&self) -> Told {
        self.0.closed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn is_own(&self, ip: IpAddr) -> bool {
        ip == STEERED
    }
}

/// An agent that accepts, and its kubelet.
struct Rig {
    agent: Arc<Agent>,
    shutdown: Shutdown,
    gate: Counted,
    kubelet: TcpListener,
    at: SocketAddr,
    running: JoinHandle<()>,
}

impl Rig {
    async fn start(lines: &str) -> Self {
        let kubelet = TcpListener::bind((KUBELET, 0)).await.unwrap();
        let port = kubelet.local_addr().unwrap().port();
        Self::of(lines, kubelet, (STEERED, port).into()).await
    }

    /// The listener is at `at`.
    async fn of(lines: &str, kubelet: TcpListener, at: SocketAddr) -> Self {
        let kubelet_at = kubelet.local_addr().unwrap();
        let file = format!(
            "node-name: worker-1\nserver-addr: https://192.0.2.10\nkubelet-addr: {kubelet_at}\n\
             drain-deadline: 1s\n{lines}"
        );
        let (config, _) = Config::parse(&file, "test.yaml").unwrap();
        let shutdown = Shutdown::default();
        let agent = Agent::new(config, Steering::userspace("a test"), shutdown.clone());
        let gate = Counted::default();
        let listeners = Listeners::of(TcpListener::bind(at).await.unwrap());
        let at = listeners.v4.local_addr().unwrap();
        let acceptor = Acceptor::new(Arc::clone(&agent), gate.clone(), listeners);
        let detached = CancellationToken::new();
        detached.cancel();
        Self {
            agent,
            shutdown,
            gate,
            kubelet,
            at,
            running: tokio::spawn(acceptor.run(detached)),
        }
    }

    /// A session of a master that uses fast paths, without idle flows: nobody listens for them.
    fn session(&self) -> SessionFlows {
        let way = Way {
            master: self.at,
            largest_segment: None,
        };
        let keys = flows::testing::keys(1);
        let registered = flows::testing::registered(1);
        let session = SessionFlows::start(&self.agent, Some(&keys), &registered, way).unwrap();
        session.want(0);
        session
    }

    /// A flow that the master has dialled, with what it asks for.
    async fn flow(&self, master: &FakeMaster, open: &FlowMessage) -> FlowConnection {
        let connection = self.client().await;
        let direction = FlowDirection::Direct;
        let dialled =
            FlowConnection::dial(connection, &master.session, direction, Some(open)).await;
        dialled.unwrap()
    }

    /// The kubelet under the node's name.
    fn target(&self) -> String {
        format!("worker-1:{}", self.kubelet.local_addr().unwrap().port())
    }

    /// Waits until the metrics have this line.
    async fn until(&self, line: &str) {
        let line = format!("proxymux_agent_{line}");
        let seen = async {
            while !self.agent.metrics.scrape().lines().any(|l| l == line) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(timeout(LIMIT, seen).await.is_ok(), "{line}");
    }

    async fn client(&self) -> TcpStream {
        TcpStream::connect(self.at).await.unwrap()
    }

    /// A client that is relayed, and the kubelet's end of it.
    async fn relayed(&self) -> (TcpStream, TcpStream) {
        let mut client = self.client().await;
        client.write_all(HELLO).await.unwrap();
        let accepted = timeout(LIMIT, self.kubelet.accept()).await.unwrap();
        let (mut kubelet, _) = accepted.unwrap();
        let mut hello = [0; HELLO.len()];
        kubelet.read_exact(&mut hello).await.unwrap();
        assert_eq!(hello, HELLO);
        (client, kubelet)
    }

    fn accepted(&self) -> u64 {
        self.agent.metrics.steered.accepted.get()
    }

    async fn ended(self) {
        timeout(LIMIT, self.running).await.unwrap().unwrap();
    }

    fn refused(&self, reason: &str) -> bool {
        let line = format!("steered_refused_total{{reason=\"{reason}\"}} 1");
        self.agent.metrics.scrape().contains(&line)
    }
}

async fn assert_reset(client: &mut TcpStream) {
    let read = timeout(LIMIT, client.read(&mut [0])).await.unwrap();
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_connection_that_begins_with_tls_is_relayed_both_ways_to_its_end() {
    let rig = Rig::start("").await;

    let (mut client, mut kubelet) = rig.relayed().await;
    client.write_all(b"request").await.unwrap();
    client.shutdown().await.unwrap();
    let mut request = String::new();
    kubelet.read_to_string(&mut request).await.unwrap();
    kubelet.write_all(b"answer").await.unwrap();
    drop(kubelet);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();

    assert_eq!((&*request, &*answer), ("request", "answer"));
    assert_eq!(rig.accepted(), 1);
    let scrape = rig.agent.metrics.scrape();
    let opened = "proxymux_agent_streams_opened_total{path=\"steered\"} 1";
    assert!(scrape.contains(opened), "{scrape}");
}

#[tokio::test]
async fn a_hello_in_two_pieces_is_still_one() {
    let rig = Rig::start("").await;
    let mut client = rig.client().await;
    client.set_nodelay(true).unwrap();

    let (first, second) = HELLO.split_at(1);
    client.write_all(first).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    client.write_all(second).await.unwrap();

    let accepted = timeout(LIMIT, rig.kubelet.accept()).await.unwrap();
    let mut hello = [0; HELLO.len()];
    accepted.unwrap().0.read_exact(&mut hello).await.unwrap();
    assert_eq!(hello, HELLO);
}

#[tokio::test]
async fn what_is_no_tls_is_closed_with_a_reason() {
    let rig = Rig::start("").await;
    let mut client = rig.client().await;

    client
        .write_all(b"GET /healthz HTTP/1.1\r\n")
        .await
        .unwrap();

    let read = timeout(LIMIT, client.read(&mut [0])).await.unwrap();
    assert_eq!(read.unwrap(), 0);
    assert!(rig.refused("not-tls"));
}

#[tokio::test]
async fn a_client_that_leaves_without_a_word_costs_no_dial() {
    let rig = Rig::start("").await;

    drop(rig.client().await);

    let gone = async {
        while !rig.refused("gone") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, gone).await.unwrap();
    let dialled = timeout(Duration::from_millis(50), rig.kubelet.accept()).await;
    assert!(dialled.is_err());
}

#[tokio::test]
async fn steer_plain_refuse_resets_what_begins_with_tls() {
    let rig = Rig::start("steer-plain: refuse\n").await;
    let mut client = rig.client().await;

    client.write_all(HELLO).await.unwrap();

    assert_reset(&mut client).await;
    assert!(rig.refused("policy"));
}

#[tokio::test]
async fn who_found_the_listener_without_being_steered_is_refused() {
    let kubelet = TcpListener::bind((KUBELET, 0)).await.unwrap();
    let rig = Rig::of("", kubelet, (STEERED, 0).into()).await;
    let mut client = rig.client().await;

    client.write_all(HELLO).await.unwrap();

    assert_reset(&mut client).await;
    assert!(rig.refused("not-steered"));
    assert_eq!(rig.accepted(), 0);
}

#[tokio::test]
async fn a_kubelet_that_is_not_there_is_a_reset_and_a_reason() {
    let mut rig = Rig::start("").await;
    rig.kubelet = TcpListener::bind((KUBELET, 0)).await.unwrap();
    let mut client = rig.client().await;

    client.write_all(HELLO).await.unwrap();

    assert_reset(&mut client).await;
    assert!(rig.refused("unreachable"));
}

#[tokio::test]
async fn the_loop_beats_for_as_long_as_it_accepts_and_closes_the_gate_when_it_drains() {
    let rig = Rig::start("").await;
    let counts = Arc::clone(&rig.gate.0);
    let beating = async {
        while counts.beats.load(Ordering::Relaxed) < 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, beating).await.unwrap();
    assert_eq!(counts.opened.load(Ordering::Relaxed), 1);
    assert_eq!(counts.closed.load(Ordering::Relaxed), 0);

    rig.shutdown.drain.cancel();
    rig.ended().await;

    assert_eq!(counts.closed.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_drain_lets_connections_finish_and_cuts_them_off_when_it_is_out_of_time() {
    let rig = Rig::start("").await;
    let (mut finishing, mut kubelet) = rig.relayed().await;
    let (mut staying, _kubelet) = rig.relayed().await;

    rig.shutdown.drain.cancel();
    kubelet.write_all(b"last").await.unwrap();
    drop(kubelet);
    let mut last = [0; 4];
    finishing.read_exact(&mut last).await.unwrap();

    assert_eq!(&last, b"last");
    assert_reset(&mut staying).await;
    rig.ended().await;
}

#[tokio::test]
async fn what_waits_to_be_accepted_when_the_drain_begins_is_served() {
    let rig = Rig::start("").await;
    // Nothing is accepted before this test waits for something.
    rig.shutdown.drain.cancel();
    let (mut client, mut kubelet) = rig.relayed().await;

    kubelet.write_all(b"answer").await.unwrap();

    client.read_exact(&mut [0; 6]).await.unwrap();
}

#[tokio::test]
async fn a_crowd_closes_the_gate_before_it_is_turned_away() {
    // Three descriptors for each of them.
    raise_open_files();
    let rig = Rig::start("").await;
    let counts = Arc::clone(&rig.gate.0);
    let mut clients = Vec::new();
    for _ in 0..CLOSE_AT {
        let mut client = rig.client().await;
        socket::reset_on_close(&client).unwrap();
        client.write_all(HELLO).await.unwrap();
        clients.push(client);
    }

    let closed = async {
        while counts.closed.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, closed).await.unwrap();
    drop(clients);
    let opened = async {
        while counts.opened.load(Ordering::Relaxed) < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, opened).await.unwrap();
}

#[tokio::test]
async fn a_flow_of_a_master_is_opened_in_one_flight_and_relayed() {
    let rig = Rig::start("").await;
    let session = rig.session();
    let master = FakeMaster::listen(1).await;

    let mut flow = rig.flow(&master, &request(&rig.target())).await;
    assert_eq!(flow.hear().await.unwrap(), FlowMessage::Accepted);
    assert_eq!(flow.hear().await.unwrap(), FlowMessage::Opened);
    let mut kubelet = timeout(LIMIT, rig.kubelet.accept())
        .await
        .unwrap()
        .unwrap()
        .0;
    let mut client = flow.into_connection();
    client.write_all(HELLO).await.unwrap();
    let mut hello = [0; HELLO.len()];
    kubelet.read_exact(&mut hello).await.unwrap();
    kubelet.write_all(b"answer").await.unwrap();
    drop(kubelet);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();

    assert_eq!((&hello[..], &*answer), (HELLO, "answer"));
    rig.until("streams_opened_total{path=\"direct\"} 1").await;
    assert_eq!(session.view().relaying(FlowDirection::Direct), 1);
    drop(client);
    rig.until("streams_closed_total{path=\"direct\",outcome=\"done\"} 1")
        .await;
}

#[tokio::test]
async fn a_probe_is_answered_and_costs_the_kubelet_nothing() {
    let rig = Rig::start("").await;
    let _session = rig.session();
    let master = FakeMaster::listen(1).await;

    let mut flow = rig.flow(&master, &FlowMessage::Open(FlowOpen::Probe)).await;

    assert_eq!(flow.hear().await.unwrap(), FlowMessage::Accepted);
    let read = flow.into_connection().read(&mut [0]).await;
    assert_eq!(read.unwrap(), 0);
    rig.until("flow_probes_total 1").await;
    let dialled = timeout(Duration::from_millis(50), rig.kubelet.accept()).await;
    assert!(dialled.is_err());
}

#[tokio::test]
async fn a_hello_that_is_not_believed_is_reset_and_counted_by_its_reason() {
    let rig = Rig::start("").await;
    let _session = rig.session();
    let master = FakeMaster::listen(1).await;
    let stranger = FakeMaster::listen(2).await;
    let (_, good) = master.session.hello(FlowDirection::Direct);
    let mut forged = master.session.hello(FlowDirection::Direct).1.to_vec();
    forged[40] ^= 1;
    let open = request(&rig.target());
    drop(rig.flow(&master, &FlowMessage::Open(FlowOpen::Probe)).await);

    for (word, bytes) in [
        ("forged", forged),
        (
            "wrong-direction",
            master.session.hello(FlowDirection::Reverse).1.to_vec(),
        ),
        (
            "unknown-session",
            stranger.session.hello(FlowDirection::Direct).1.to_vec(),
        ),
    ] {
        let mut client = rig.client().await;
        client.write_all(&bytes).await.unwrap();
        assert_reset(&mut client).await;
        rig.until(&format!(
            "flows_broken_total{{path=\"direct\",reason=\"{word}\"}} 1"
        ))
        .await;
    }
    // The first one of two that are alike is believed.
    let mut first = rig.client().await;
    first.write_all(&good).await.unwrap();
    rig.until("flows_broken_total{path=\"direct\",reason=\"replayed\"} 0")
        .await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut second = rig.client().await;
    second.write_all(&good).await.unwrap();
    assert_reset(&mut second).await;
    rig.until("flows_broken_total{path=\"direct\",reason=\"replayed\"} 1")
        .await;
    rig.until("steered_refused_total{reason=\"hello\"} 4").await;

    // And a proper one after all of these is served.
    let mut flow = rig.flow(&master, &open).await;
    assert_eq!(flow.hear().await.unwrap(), FlowMessage::Accepted);
    assert_eq!(flow.hear().await.unwrap(), FlowMessage::Opened);
}

#[tokio::test]
async fn garbage_and_silence_starve_no_flow() {
    let rig = Rig::start("").await;
    let _session = rig.session();
    let master = FakeMaster::listen(1).await;
    let mut running = rig.flow(&master, &request(&rig.target())).await;
    assert_eq!(running.hear().await.unwrap(), FlowMessage::Accepted);
    assert_eq!(running.hear().await.unwrap(), FlowMessage::Opened);
    let mut kubelet = timeout(LIMIT, rig.kubelet.accept())
        .await
        .unwrap()
        .unwrap()
        .0;

    let mut flood = Vec::new();
    for at in 0..MAX_HALF_OPEN * 3 {
        let mut client = rig.client().await;
        let bytes: &[u8] = match at % 3 {
            0 => b"",
            1 => b"PXMF and then no more",
            _ => b"garbage",
        };
        client.write_all(bytes).await.unwrap();
        flood.push(client);
    }

    let mut flow = rig.flow(&master, &request(&rig.target())).await;
    assert_eq!(flow.hear().await.unwrap(), FlowMessage::Accepted);
    assert_eq!(flow.hear().await.unwrap(), FlowMessage::Opened);
    let mut client = running.into_connection();
    client.write_all(HELLO).await.unwrap();
    kubelet.read_exact(&mut [0; HELLO.len()]).await.unwrap();
    assert_eq!(rig.gate.0.closed.load(Ordering::Relaxed), 0);
    assert!(rig.agent.metrics.scrape().contains("reason=\"full\"}"));
}

#[tokio::test]
async fn a_flow_takes_no_place_from_what_is_relayed_and_outlives_the_gate() {
    let rig = Rig::start("").await;
    let mut session = rig.session();
    let master = FakeMaster::listen(1).await;
    let mut flow = rig.flow(&master, &request(&rig.target())).await;
    assert_eq!(flow.hear().await.unwrap(), FlowMessage::Accepted);
    assert_eq!(flow.hear().await.unwrap(), FlowMessage::Opened);
    let mut kubelet = timeout(LIMIT, rig.kubelet.accept())
        .await
        .unwrap()
        .unwrap()
        .0;
    let mut client = flow.into_connection();
    client.write_all(b"no TLS").await.unwrap();

    assert_reset(&mut client).await;
    assert_reset(&mut kubelet).await;
    let abort = timeout(LIMIT, session.next_abort()).await.unwrap();
    let expected = FlowAbort {
        direction: FlowDirection::Direct,
        counter: 1,
        code: AbortCode::NotTls,
    };
    assert_eq!(abort, expected);

    let mut flow = rig.flow(&master, &request(&rig.target())).await;
    assert_eq!(flow.hear().await.unwrap(), FlowMessage::Accepted);
    assert_eq!(flow.hear().await.unwrap(), FlowMessage::Opened);
    rig.shutdown.drain.cancel();
    let Rig { running, .. } = rig;
    // Its own loop has nothing to wait for.
    timeout(LIMIT, running).await.unwrap().unwrap();
    assert!(flow.is_quiet());
}

/// What an agent in a test takes for the node's own address.
const STEERED: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));
const KUBELET: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const HELLO: &[u8] = &[0x16, 0x03, 0x01, 0x00, 0x05, 1, 2, 3, 4, 5];
const LIMIT: Duration = Duration::from_secs(30);
