//! What the unit tests of registry, gateway and sessions share.
//!
//! Owns a master without listeners, sessions as the registry sees them ([`session`]), and whole
//! ones whose agent a test plays ([`Agent`]). Everything is in memory, so that clocks can be
//! paused.

pub(crate) mod log;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use proxymux_proto::{
    ControlMessage, FlowKeys, InstanceId, NodeName, OpenAnswer, PROTOCOL_VERSION, Registration,
    TargetAddr,
};
use proxymux_testkit::pki::{Authority, Leaf, Pki};
use proxymux_transport::{
    certificate::{CertificateInfo, NodeIdentity},
    clock::WallClock,
    control::ControlStream,
    mux::{self, Incoming, MuxLimits, Role, SessionFault},
    reload::Certificates,
    session::{Event, SessionCore, SessionOver, drive},
    shutdown::Shutdown,
    socket::SessionSocket,
    tls::Peer,
    trust::PeerTrust,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tokio::{net::UnixStream, sync::mpsc, task::JoinHandle, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    about::About,
    certificates::CertificateFiles,
    claims::{Evidence, Policy},
    config::Config,
    flows::SessionFlows,
    master::Master,
    registry::{Admitted, Registry, SessionCommand, SessionHandle},
    session::{self, Candidate},
};

/// A node whose name is its address, as on OKE.
pub(crate) const NODE: &str = "10.0.10.10";

/// Where the master's end of a session is.
pub(crate) const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10));

/// A master with these lines in its configuration besides the usual ones.
pub(crate) fn master(lines: &str) -> Arc<Master> {
    let text = format!("cert: /m.crt\nkey: /m.key\nclient-ca: /ca.crt\n{lines}");
    let (config, _) = Config::parse(&text, "test.yaml").unwrap();
    // Whom masters believe. Nobody connects, so who they are themselves does not matter. The files
    // go once they have been read.
    let pki = Pki::temporary().unwrap();
    let own = pki.master(&["master.example"]).unwrap();
    let files = CertificateFiles {
        prefix: String::new(),
        cert: own.cert,
        key: own.key,
        client_ca: pki.ca_file(),
    };
    let certificates = Certificates::new("agents", files, clock());
    certificates.look().unwrap();
    Master::new(config, Policy::Declared, certificates, Shutdown::default())
}

/// A wall clock that goes with the runtime's, which a test may pause and advance.
fn clock() -> WallClock {
    let (date, started) = (WallClock::system().now(), Instant::now());
    WallClock::from_fn(move || date + started.elapsed())
}

/// An agent with such a certificate, as if a handshake had found it good.
fn trust(master: &Master, leaf: &Leaf) -> PeerTrust {
    let issued = Authority::new("any-ca").unwrap().issue(leaf).unwrap();
    let der = CertificateDer::from_pem_slice(issued.cert_pem().as_bytes()).unwrap();
    let peer = Peer {
        certificate: CertificateInfo::parse(&der).unwrap(),
        chain: vec![der],
    };
    let certificates = &master.certificates;
    let roots = &certificates.in_force().unwrap().roots;
    PeerTrust::of_agent(peer, roots, certificates.clock().clone())
}

pub(crate) fn name(text: &str) -> NodeName {
    NodeName::parse(text).unwrap()
}

pub(crate) fn target(text: &str) -> TargetAddr {
    text.parse().unwrap()
}

/// The id of a run of an agent.
pub(crate) fn run_id(number: u8) -> InstanceId {
    InstanceId::from_bytes([number; 16])
}

/// A session as the rest of the master sees it, with its other ends.
#[derive(Debug)]
pub(crate) struct TestSession {
    pub(crate) handle: Arc<SessionHandle>,
    pub(crate) commands: mpsc::Receiver<SessionCommand>,
    agent: Option<Incoming>,
    drivers: [JoinHandle<SessionFault>; 2],
}

/// A session of this run of a node's agent, which nobody has let in yet. It uses no flows.
pub(crate) fn session(node: &str, run: u8) -> TestSession {
    session_of(&registration(node, run), None)
}

/// A session of this agent, with these flows.
pub(crate) fn session_of(registration: &Registration, flows: Option<SessionFlows>) -> TestSession {
    let [run, ..] = *registration.instance.as_bytes();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (mux, _, driver) = mux::start(near, Role::Master, LIMITS);
    let (_, agent, agents_driver) = mux::start(far, Role::Agent, LIMITS);
    let (command_tx, commands) = mpsc::channel(16);
    let handle = Arc::new(SessionHandle {
        node: registration.node.clone(),
        instance: registration.instance,
        peer: peer(run),
        mux,
        commands: command_tx,
        relays: TaskTracker::new(),
        lost: 0.into(),
        cut: CancellationToken::new(),
        registered: CancellationToken::new(),
        open: true.into(),
        leaving: false.into(),
        kubelet_port: registration.kubelet.map_or(10250, |kubelet| kubelet.port()),
        flows,
        about: About::new(registration, SystemTime::UNIX_EPOCH),
    });
    handle.registered.cancel();
    TestSession {
        handle,
        commands,
        agent: Some(agent),
        drivers: [drive(driver), drive(agents_driver)],
    }
}

impl TestSession {
    /// Lets the session in.
    pub(crate) fn admit(
        &self,
        registry: &Registry,
    ) -> Result<Admitted, proxymux_proto::SessionEnd> {
        self.admit_as(registry, &[])
    }

    /// Lets the session in, of a node whose certificate names these addresses.
    pub(crate) fn admit_as(
        &self,
        registry: &Registry,
        addresses: &[IpAddr],
    ) -> Result<Admitted, proxymux_proto::SessionEnd> {
        let identity = NodeIdentity {
            name: self.handle.node.clone(),
            ip_sans: addresses.to_vec(),
        };
        let evidence = Evidence {
            ip_sans: addresses,
            claims: addresses,
            allow: &[],
            source: self.handle.peer.ip(),
        };
        registry.admit(&self.handle, &identity, evidence)
    }

    /// Answers every request for a stream in this way, and keeps the streams.
    pub(crate) fn answer(&mut self, answer: OpenAnswer) {
        let mut agent = self.agent.take().expect("answered once");
        tokio::spawn(async move {
            let mut streams = Vec::new();
            while let Some(mut stream) = agent.next().await {
                if matches!(stream.receive().await, Ok(Some(_))) {
                    stream.send(&answer.encode().unwrap()).await.unwrap();
                }
                streams.push(stream);
            }
        });
    }

    /// Breaks the session's connection.
    pub(crate) async fn break_off(&mut self) {
        for driver in &mut self.drivers {
            driver.abort();
            let _ = driver.await;
        }
        assert!(self.handle.mux.is_over());
    }
}

/// The agent's end of a whole session.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) core: SessionCore,
    _incoming: Incoming,
}

impl Agent {
    /// Comes to a master with a certificate for `certified`, and registers.
    pub(crate) async fn connect(
        master: &Arc<Master>,
        certified: &str,
        registration: Registration,
    ) -> Self {
        let leaf = Leaf::node_client(certified);
        Self::connect_with(master, certified, registration, &leaf).await
    }

    /// As [`Agent::connect`], with any certificate.
    pub(crate) async fn connect_with(
        master: &Arc<Master>,
        certified: &str,
        registration: Registration,
        leaf: &Leaf,
    ) -> Self {
        let trust = trust(master, leaf);
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (mux, incoming, driver) = mux::start(far, Role::Agent, LIMITS);
        let driver = drive(driver);
        let control = ControlStream::new(mux.open().await.unwrap());
        let mut core = SessionCore::new(mux, control, no_socket(), driver);
        let [run, ..] = *registration.instance.as_bytes();
        core.send(&ControlMessage::Register(registration)).unwrap();
        let identity = NodeIdentity {
            name: name(certified),
            ip_sans: Vec::new(),
        };
        let master = Arc::clone(master);
        tokio::spawn(async move {
            let (mux, mut incoming, driver) = mux::start(near, Role::Master, LIMITS);
            let driver = drive(driver);
            let control = session::control_stream(&mut incoming).await.unwrap();
            let candidate = Candidate {
                core: SessionCore::new(mux, control, no_socket(), driver),
                incoming,
                identity,
                flow_keys: flow_keys(run),
                trust,
                peer: peer(run),
                local: LOCAL,
            };
            session::run(candidate, master).await;
        });
        Self {
            core,
            _incoming: incoming,
        }
    }

    /// Comes to a master and is let in.
    pub(crate) async fn admitted(master: &Arc<Master>, node: &str, run: u8) -> Self {
        let mut agent = Self::connect(master, node, registration(node, run)).await;
        let answer = agent.message().await;
        assert!(
            matches!(answer, ControlMessage::Registered(_)),
            "{answer:?}"
        );
        agent
    }

    /// The next message; pings are answered meanwhile.
    pub(crate) async fn message(&mut self) -> ControlMessage {
        loop {
            match self.core.next().await {
                Event::Message(message) => return message,
                Event::Over(over) => panic!("session is over: {over}"),
                Event::Pong(_) | Event::WornOut | Event::Segments(_) => {}
            }
        }
    }

    /// Waits for the session's end; no message may come before.
    pub(crate) async fn over(&mut self) -> SessionOver {
        loop {
            match self.core.next().await {
                Event::Over(over) => return over,
                Event::Message(message) => panic!("another message: {message:?}"),
                Event::Pong(_) | Event::WornOut | Event::Segments(_) => {}
            }
        }
    }

    /// Does what an agent does for a while, during which no message may come.
    pub(crate) async fn idle(&mut self, time: Duration) {
        let over = tokio::time::timeout(time, self.over()).await;
        assert!(over.is_err(), "session is over: {over:?}");
    }
}

/// What an agent says of its node, claiming nothing.
pub(crate) fn registration(node: &str, run: u8) -> Registration {
    Registration {
        version: PROTOCOL_VERSION,
        node: name(node),
        instance: run_id(run),
        addresses: Vec::new(),
        kubelet: None,
        allow: Vec::new(),
        cluster_id: None,
        node_id: None,
        software: "test".to_owned(),
        labels: BTreeMap::new(),
        held_masters: Vec::new(),
        fast_path: false,
    }
}

/// What both ends of a session of this run of an agent have for its flows.
pub(crate) fn flow_keys(run: u8) -> Arc<FlowKeys> {
    let export = |context: &[u8], secret: &mut [u8]| {
        secret.fill(
            context
                .iter()
                .fold(run, |sum, byte| sum.wrapping_mul(31) ^ byte),
        );
        Ok::<(), Infallible>(())
    };
    let Ok(keys) = FlowKeys::export(export);
    Arc::new(keys)
}

/// Runs of agents come from addresses of their own.
fn peer(run: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, run], 40_000))
}

/// In the place of the connection under a session: the kernel knows nothing of it.
fn no_socket() -> SessionSocket {
    let (near, _) = UnixStream::pair().unwrap();
    SessionSocket::new(&near).unwrap()
}

pub(crate) const LIMITS: MuxLimits = MuxLimits {
    max_streams: 64,
    max_pending: 16,
    worn_out_at: u32::MAX,
};
