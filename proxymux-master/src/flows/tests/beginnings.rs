//! What the client's first bytes decide, and what happens when the flow dies before them.

use bytes::Bytes;
use proxymux_proto::{AbortCode, FlowAbort};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    task::JoinHandle,
};

use super::*;
use crate::{
    front_door::{Arrival, Client, Gateway as _, RequestInfo},
    gateway::{Gateway, Tunnel},
    testing::target,
};

const TARGET: &str = "10.0.10.10:10250";
const CLIENT_HELLO: &[u8] = b"\x16\x03\x01\x00\x05hello";

/// A request whose flow is open and whose client was told 200.
struct Standing {
    stage: Stage,
    client: UnixStream,
    agent: TcpStream,
    relay: JoinHandle<()>,
}

impl Standing {
    async fn with(lines: &str, early: &'static [u8]) -> Self {
        let stage = Stage::with(lines).await;
        let flow = stage.idle().await;
        let (tunnel, agent) = open(&stage, flow).await;
        let (client, near) = UnixStream::pair().unwrap();
        let relay = relay(&stage, near.into(), early, tunnel);
        Self {
            stage,
            client,
            agent: agent.into_connection(),
            relay,
        }
    }

    fn opened(&self, path: &'static str) -> bool {
        let scraped = self.stage.master.metrics.scrape();
        let sample = format!("proxymux_master_streams_opened_total{{path=\"{path}\"}} 1");
        scraped.lines().any(|line| line == sample)
    }

    fn closed(&self, path: &'static str, outcome: &'static str) -> bool {
        let scraped = self.stage.master.metrics.scrape();
        let sample = format!(
            "proxymux_master_streams_closed_total{{path=\"{path}\",outcome=\"{outcome}\"}} 1"
        );
        scraped.lines().any(|line| line == sample)
    }

    fn passed_over(&self, word: &'static str) -> u64 {
        self.stage.master.metrics.flows.passed_over.get(word).get()
    }

    async fn over(self) {
        tokio::time::timeout(SOON, self.relay)
            .await
            .expect("in time")
            .unwrap();
    }
}

async fn open(stage: &Stage, mut flow: FlowConnection) -> (Tunnel, FlowConnection) {
    let gateway = Gateway::new(Arc::clone(&stage.master));
    let target = target(TARGET);
    let agent = async {
        let open = flow.hear().await.unwrap();
        assert!(matches!(open, FlowMessage::Open(FlowOpen::Target(_))));
        flow.say(&FlowMessage::Opened).await.unwrap();
        flow
    };
    let (tunnel, flow) = tokio::join!(gateway.open(&target, Duration::from_secs(8)), agent);
    (tunnel.unwrap(), flow)
}

fn relay(stage: &Stage, client: Client, early: &'static [u8], tunnel: Tunnel) -> JoinHandle<()> {
    let gateway = Gateway::new(Arc::clone(&stage.master));
    let request = RequestInfo {
        target: target(TARGET),
        arrival: Arrival {
            door: "unix",
            peer: "a test".to_owned(),
            client_name: None,
            accepted_at: Instant::now(),
        },
    };
    tokio::spawn(async move {
        gateway
            .relay(client, Bytes::from_static(early), tunnel, request)
            .await;
    })
}

async fn reads(from: &mut (impl AsyncReadExt + Unpin), expected: &[u8]) {
    let mut received = vec![0; expected.len()];
    let read = tokio::time::timeout(SOON, from.read_exact(&mut received)).await;
    read.expect("in time").unwrap();
    assert_eq!(received, expected);
}

#[tokio::test]
async fn what_begins_with_tls_goes_on_the_flow_byte_by_byte_or_not() {
    for early in [CLIENT_HELLO, &CLIENT_HELLO[..1], b""] {
        let mut standing = Standing::with("", early).await;
        for byte in &CLIENT_HELLO[early.len()..] {
            assert!(early.len() > 2 || !standing.opened("session"));
            standing.client.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        reads(&mut standing.agent, CLIENT_HELLO).await;
        assert!(standing.opened("reverse"));

        standing.agent.write_all(b"answer").await.unwrap();
        standing.agent.shutdown().await.unwrap();
        reads(&mut standing.client, b"answer").await;
        assert_eq!(standing.client.read(&mut [0]).await.unwrap(), 0);
        standing.client.write_all(b"rest").await.unwrap();
        standing.client.shutdown().await.unwrap();
        reads(&mut standing.agent, b"rest").await;
        assert_eq!(standing.agent.read(&mut [0]).await.unwrap(), 0);
        let node = Arc::clone(&standing.stage.flows().node);
        eventually(|| standing.closed("reverse", "done")).await;
        standing.over().await;
        assert_eq!(node.len(), 0);
    }
}

#[tokio::test]
async fn what_is_no_tls_goes_by_the_session_and_the_flow_carries_none_of_it() {
    for early in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"P", b""] {
        let mut standing = Standing::with("", early).await;
        if early.len() < 2 {
            standing.client.write_all(b"OST /").await.unwrap();
        }

        eventually(|| standing.opened("session")).await;

        assert_eq!(standing.passed_over("not-tls"), 1);
        let end = standing.agent.read(&mut [0; 16]).await;
        assert!(matches!(end, Err(_) | Ok(0)), "{end:?}");
        assert!(!standing.opened("reverse"));
    }
}

/// What is no plain socket, as a client with TLS at a front door is none.
#[tokio::test]
async fn a_client_that_cannot_be_spliced_is_copied() {
    let stage = Stage::with("").await;
    let flow = stage.idle().await;
    let (tunnel, agent) = open(&stage, flow).await;
    let (mut client, near) = tokio::io::duplex(64 * 1024);
    let relay = relay(&stage, near.into(), CLIENT_HELLO, tunnel);
    let mut agent = agent.into_connection();
    reads(&mut agent, CLIENT_HELLO).await;

    agent.write_all(b"answer").await.unwrap();
    agent.shutdown().await.unwrap();
    client.write_all(b"rest").await.unwrap();
    client.shutdown().await.unwrap();

    reads(&mut client, b"answer").await;
    reads(&mut agent, b"rest").await;
    tokio::time::timeout(SOON, relay).await.unwrap().unwrap();
    assert_eq!(stage.master.flows.pipes.relays_spliced(), 0);
}

#[tokio::test]
async fn a_client_that_ends_without_a_byte_is_served_by_the_session() {
    let mut standing = Standing::with("", b"").await;
    standing.client.shutdown().await.unwrap();
    eventually(|| standing.opened("session")).await;
    let end = standing.agent.read(&mut [0]).await;
    assert!(matches!(end, Err(_) | Ok(0)), "{end:?}");
}

#[tokio::test]
async fn a_flow_that_dies_before_the_first_byte_is_replaced_by_the_session() {
    for resets in [true, false] {
        let standing = Standing::with("", b"").await;
        if resets {
            proxymux_transport::socket::reset_on_close(&standing.agent).unwrap();
        }
        let Standing {
            stage,
            mut client,
            agent,
            relay,
        } = standing;
        drop(agent);

        let passed_over = || {
            stage
                .master
                .metrics
                .flows
                .passed_over
                .get("flow-lost")
                .get()
        };
        eventually(|| passed_over() == 1).await;
        client.write_all(CLIENT_HELLO).await.unwrap();

        assert!(!relay.is_finished());
        let streams = stage.session.handle.relays.len();
        assert_eq!(streams, 1);
    }
}

#[tokio::test]
async fn a_flow_that_speaks_before_the_client_is_not_believed() {
    let mut standing = Standing::with("", b"").await;
    standing.agent.write_all(b"220 welcome").await.unwrap();
    eventually(|| standing.opened("session")).await;
    assert_eq!(standing.passed_over("flow-lost"), 1);
}

#[tokio::test]
async fn a_reset_of_either_side_is_passed_on() {
    let mut standing = Standing::with("", CLIENT_HELLO).await;
    reads(&mut standing.agent, CLIENT_HELLO).await;
    proxymux_transport::socket::reset_on_close(&standing.agent).unwrap();
    let Standing {
        stage,
        mut client,
        agent,
        relay,
    } = standing;
    drop(agent);
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
    tokio::time::timeout(SOON, relay).await.unwrap().unwrap();
    let scraped = stage.master.metrics.scrape();
    let sample = "streams_closed_total{path=\"reverse\",outcome=\"peer-reset\"} 1";
    assert!(scraped.contains(sample), "{scraped}");
}

#[tokio::test]
async fn the_agents_own_reason_is_the_outcome() {
    let mut standing = Standing::with("", CLIENT_HELLO).await;
    reads(&mut standing.agent, CLIENT_HELLO).await;
    proxymux_transport::socket::reset_on_close(&standing.agent).unwrap();
    let Standing {
        stage,
        client: _client,
        agent,
        relay,
    } = standing;
    drop(agent);
    // It goes by the session and may come later than the reset.
    tokio::time::sleep(Duration::from_millis(50)).await;

    stage.flows().aborted(&FlowAbort {
        direction: FlowDirection::Reverse,
        counter: 1,
        code: AbortCode::NotTls,
    });

    tokio::time::timeout(SOON, relay).await.unwrap().unwrap();
    let scraped = stage.master.metrics.scrape();
    let sample = "streams_closed_total{path=\"reverse\",outcome=\"peer-not-tls\"} 1";
    assert!(scraped.contains(sample), "{scraped}");
}

#[tokio::test]
async fn a_relaying_flow_ends_when_its_agent_has_had_no_session_for_a_while() {
    let mut standing = Standing::with("", CLIENT_HELLO).await;
    reads(&mut standing.agent, CLIENT_HELLO).await;

    standing.stage.lease = None;
    let began = Instant::now();
    let end = tokio::time::timeout(SOON, standing.client.read(&mut [0])).await;

    assert!(matches!(end, Ok(Ok(0) | Err(_))), "{end:?}");
    assert!(began.elapsed() >= Duration::from_secs(14));
    let end = standing.agent.read(&mut [0]).await.unwrap_err();
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
    eventually(|| standing.closed("reverse", "session-lost")).await;
}

#[tokio::test]
async fn an_idle_limit_counts_from_the_200_on() {
    let mut standing = Standing::with("idle-timeout: 1s\n", b"").await;
    let end = tokio::time::timeout(SOON, standing.client.read(&mut [0])).await;
    assert!(matches!(end, Ok(Ok(0))), "{end:?}");
    standing.over().await;
}

#[tokio::test]
async fn a_drain_that_is_out_of_time_cuts_flows_off() {
    for early in [CLIENT_HELLO, b""] {
        let mut standing = Standing::with("", early).await;
        if !early.is_empty() {
            reads(&mut standing.agent, CLIENT_HELLO).await;
        }
        standing.stage.master.cut.cancel();
        assert_eq!(standing.client.read(&mut [0]).await.unwrap_or(0), 0);
        let master = Arc::clone(&standing.stage.master);
        standing.over().await;
        assert_eq!(master.cut_off(), 1);
    }
}
