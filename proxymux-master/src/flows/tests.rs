//! Flows with the agent's end played by the test, over connections of the loopback device.
//!
//! Owns [`Stage`]: a master whose door for agents is open, a session that uses flows, and the
//! agent's secrets. What is tested where: hellos and pools in `hellos`, the choice and the race in
//! `races`, the first bytes in `beginnings`, probes in `probes`. Where these need a limit it is the
//! real one, so that clocks run.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use proxymux_proto::{
    FlowDirection, FlowMessage, FlowOpen, OpenAnswer, RefuseCode, Registration, SteeringStatus,
};
use proxymux_transport::flow::{FlowConnection, FlowSession, FlowTable};
use tokio::{
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::{SessionLease, direct};
use crate::{
    agents::AgentDoor,
    master::Master,
    testing::{self, NODE, TestSession, flow_keys, registration, session_of},
};

mod beginnings;
mod hellos;
mod pools;
mod probes;
mod races;

/// What a master needs to use fast paths.
const VERIFIED: &str = "kubelet-certificates: verified\nlisten: 127.0.0.1:0\n";

/// Longer than anything here takes.
const SOON: Duration = Duration::from_secs(20);

/// A master and one session that uses flows.
struct Stage {
    master: Arc<Master>,
    session: TestSession,
    /// Where agents come in.
    door: SocketAddr,
    /// The agent's end of the session's flows.
    agent: FlowSession<()>,
    table: FlowTable<()>,
    /// As the session's own task has it.
    lease: Option<SessionLease>,
    _accepting: AbortOnDropHandle<()>,
}

impl Stage {
    /// With these lines in the master's configuration.
    async fn with(lines: &str) -> Self {
        Self::of(lines, &with_flows(1, None), OpenAnswer::Opened).await
    }

    /// The agent has registered so, and answers requests on the session in this way.
    async fn of(lines: &str, registration: &Registration, answer: OpenAnswer) -> Self {
        let master = testing::master(&format!("{VERIFIED}{lines}"));
        let [run, ..] = *registration.instance.as_bytes();
        let flows = master.flows.of_session(registration, flow_keys(run));
        let lease = flows.as_ref().map(|flows| flows.node.session());
        let mut session = session_of(registration, flows);
        session.answer(answer);
        let addresses: Vec<_> = registration.kubelet.iter().map(SocketAddr::ip).collect();
        session.admit_as(&master.registry, &addresses).unwrap();
        let door = AgentDoor::bind(Arc::clone(&master), TaskTracker::new(), None);
        let door = door.await.unwrap();
        let at = std::net::TcpListener::from(door.handle().unwrap());
        let accepting = tokio::spawn(door.run(master.shutdown.drain.clone()));
        let table = FlowTable::new();
        Self {
            session,
            door: at.local_addr().unwrap(),
            agent: table.enter(flow_keys(run), ()),
            table,
            lease,
            master,
            _accepting: AbortOnDropHandle::new(accepting),
        }
    }

    fn flows(&self) -> &super::SessionFlows {
        self.session.handle.flows.as_ref().unwrap()
    }

    /// Dials the master and says hello; the answer is not heard yet.
    async fn hello(&self) -> FlowConnection {
        let connection = TcpStream::connect(self.door).await.unwrap();
        FlowConnection::dial(connection, &self.agent, FlowDirection::Reverse, None)
            .await
            .unwrap()
    }

    /// An idle flow of the pool; its agent's end.
    async fn idle(&self) -> FlowConnection {
        let before = self.flows().pool.len();
        let mut flow = self.hello().await;
        let answer = tokio::time::timeout(SOON, flow.hear()).await.unwrap();
        assert_eq!(answer.unwrap(), FlowMessage::Accepted);
        eventually(|| self.flows().pool.len() > before).await;
        flow
    }

    fn refused(&self, word: &'static str) -> u64 {
        self.master.metrics.flows.hellos_refused.get(word).get()
    }
}

/// What an agent says that uses flows, whose kubelet is there.
fn with_flows(run: u8, kubelet: Option<SocketAddr>) -> Registration {
    Registration {
        fast_path: true,
        kubelet,
        ..registration(NODE, run)
    }
}

/// Waits until something holds.
async fn eventually(condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, holds).await.expect("in time");
}
