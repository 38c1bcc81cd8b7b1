//! Tests of the relay, with real sockets at both ends and an in-memory session in between.
//!
//! Here is what they share and what is relayed at all; ends of all kinds, waiting, and much data
//! have files of their own.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    task::JoinHandle,
    time::timeout,
};

use super::*;
use crate::mux::testing::*;

mod bulk;
mod endings;
mod waiting;

fn options() -> RelayOptions {
    RelayOptions {
        idle_timeout: None,
        cancel: CancellationToken::new(),
    }
}

/// A relay in a task of its own, and what it counted.
struct Running {
    outcome: JoinHandle<Outcome>,
    bytes: Arc<RelayBytes>,
}

impl Running {
    fn start<E: Endpoint>(connection: E, stream: RelayStream, options: &RelayOptions) -> Self {
        Self::with_early(connection, stream, b"", options)
    }

    fn with_early<E: Endpoint>(
        connection: E,
        stream: RelayStream,
        early: &[u8],
        options: &RelayOptions,
    ) -> Self {
        let bytes = Arc::default();
        let early = Bytes::copy_from_slice(early);
        let outcome = relay(connection, stream, early, options, Arc::clone(&bytes));
        Self {
            outcome: tokio::spawn(outcome),
            bytes,
        }
    }

    async fn outcome(&mut self) -> Outcome {
        timeout(LIMIT, &mut self.outcome).await.unwrap().unwrap()
    }

    fn counted(&self) -> (u64, u64) {
        (self.bytes.to_stream(), self.bytes.from_stream())
    }
}

/// Client, master, agent and server: two connections and the stream between them.
struct Rig<C, S> {
    client: C,
    master: Running,
    agent: Running,
    server: S,
}

async fn tcp_rig(session: &mut Session) -> Rig<TcpStream, TcpStream> {
    let (client, master) = tcp_pair(None).await;
    let (agent, server) = tcp_pair(None).await;
    rig(session, (client, master), (agent, server)).await
}

async fn unix_rig(session: &mut Session) -> Rig<UnixStream, UnixStream> {
    let client = UnixStream::pair().unwrap();
    rig(session, client, UnixStream::pair().unwrap()).await
}

async fn rig<C, M: Endpoint, A: Endpoint, S>(
    session: &mut Session,
    (client, master): (C, M),
    (agent, server): (A, S),
) -> Rig<C, S> {
    let (agent_stream, master_stream) = session.open_relay().await;
    Rig {
        client,
        master: Running::start(master, master_stream, &options()),
        agent: Running::start(agent, agent_stream, &options()),
        server,
    }
}

/// Reads up to the end; an error if the connection was reset.
async fn read_all(socket: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    timeout(LIMIT, socket.read_to_end(&mut all))
        .await
        .unwrap()?;
    Ok(all)
}

async fn assert_reset(socket: &mut (impl AsyncRead + Unpin)) {
    let error = read_all(socket).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

fn reset(socket: TcpStream) {
    socket::reset_on_close(&socket).unwrap();
    drop(socket);
}

#[tokio::test]
async fn a_question_and_its_answer_pass_and_are_counted() {
    let mut session = Session::in_memory(LIMITS);
    let mut rig = tcp_rig(&mut session).await;
    rig.client.write_all(b"question").await.unwrap();
    rig.client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut rig.server).await.unwrap(), b"question");
    rig.server.write_all(b"the answer").await.unwrap();
    drop(rig.server);
    assert_eq!(read_all(&mut rig.client).await.unwrap(), b"the answer");

    assert_eq!(rig.master.outcome().await, Outcome::Done);
    assert_eq!(rig.agent.outcome().await, Outcome::Done);
    assert_eq!(rig.master.counted(), (8, 10));
    assert_eq!(rig.agent.counted(), (10, 8));
    session.is_empty().await;
}

#[tokio::test]
async fn early_bytes_go_first() {
    let mut session = Session::in_memory(LIMITS);
    let (mut agent, master) = session.open_relay().await;
    let (mut client, near) = tcp_pair(None).await;
    client.write_all(b" and late").await.unwrap();
    client.shutdown().await.unwrap();
    let early = vec![b'e'; 40_000];

    let relay = Running::with_early(near, master, &early, &options());

    let all = receive_all(&mut agent).await.unwrap();
    assert_eq!(all, [&early[..], b" and late"].concat());
    assert_eq!(relay.counted(), (40_009, 0));
}

#[tokio::test]
async fn a_relay_lets_go_of_the_early_bytes_and_what_they_are_a_part_of() {
    /// A request's buffer that says when it is freed.
    struct Buffer {
        _kept: Arc<()>,
    }
    impl AsRef<[u8]> for Buffer {
        fn as_ref(&self) -> &[u8] {
            b"request and early"
        }
    }
    let mut session = Session::in_memory(LIMITS);
    let (mut agent, master) = session.open_relay().await;
    let (_client, near) = tcp_pair(None).await;
    let kept = Arc::new(());
    let buffer = Bytes::from_owner(Buffer {
        _kept: Arc::clone(&kept),
    });
    let early = buffer.slice(12..);
    drop(buffer);
    let relay = relay(near, master, early, &options(), Arc::default());
    let relay = tokio::spawn(relay);
    assert_eq!(receive(&mut agent).await.unwrap().unwrap(), b"early");
    assert_eq!(Arc::strong_count(&kept), 1);
    assert!(!relay.is_finished());
}

#[tokio::test]
async fn a_lost_session_is_a_reset_for_both_connections() {
    for way in 0..4 {
        let mut session = Session::in_memory(LIMITS);
        let mut rig = tcp_rig(&mut session).await;
        rig.client.write_all(&[7; 100_000]).await.unwrap();
        rig.server.write_all(&[7; 100_000]).await.unwrap();
        let mut some = [0; 50_000];
        rig.server.read_exact(&mut some).await.unwrap();
        rig.client.read_exact(&mut some).await.unwrap();
        match way {
            0 => session.master.driver.abort(),
            1 => session.agent.driver.abort(),
            2 => session.master.mux.close(),
            _ => session.agent.mux.close(),
        }
        assert_eq!(rig.master.outcome().await, Outcome::SessionLost);
        assert_eq!(rig.agent.outcome().await, Outcome::SessionLost);
        assert_reset(&mut rig.client).await;
        assert_reset(&mut rig.server).await;
        session.is_empty().await;
    }
}

#[tokio::test]
async fn a_dropped_relay_resets_both_connections() {
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    for master_is_dropped in [true, false] {
        let mut rig = tcp_rig(&mut session).await;
        rig.client.write_all(b"some").await.unwrap();
        rig.server.read_exact(&mut [0; 4]).await.unwrap();
        let (dropped, left) = if master_is_dropped {
            (rig.master, &mut rig.agent)
        } else {
            (rig.agent, &mut rig.master)
        };

        dropped.outcome.abort();

        assert_reset(&mut rig.client).await;
        assert_reset(&mut rig.server).await;
        let peer = Outcome::PeerAborted(AbortCode::Reset);
        assert_eq!(left.outcome().await, peer);
        session.is_empty().await;
    }
}

#[tokio::test]
async fn a_cancelled_relay_resets_its_connection_and_says_why() {
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    let (mut client, near) = tcp_pair(None).await;
    let (agent_connection, mut server) = tcp_pair(None).await;
    let (agent, master) = session.open_relay().await;
    let drained = options();
    let mut master = Running::start(near, master, &drained);
    let mut agent = Running::start(agent_connection, agent, &options());

    drained.cancel.cancel();

    assert_eq!(master.outcome().await, Outcome::Drained);
    let peer = Outcome::PeerAborted(AbortCode::Drain);
    assert_eq!(agent.outcome().await, peer);
    assert_reset(&mut client).await;
    assert_reset(&mut server).await;
    session.is_empty().await;
}

#[tokio::test]
async fn a_peer_that_breaks_the_framing_loses_the_stream() {
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    let (mut agent, master) = session.open().await;
    let (mut client, near) = tcp_pair(None).await;
    let mut relay = Running::start(near, master.into_relay(), &options());
    agent.send(&[3, 0, 0, 0]).await.unwrap();
    assert_eq!(relay.outcome().await, Outcome::Protocol);
    assert_reset(&mut client).await;
    let error = agent.given_up().await;
    assert!(matches!(error, StreamError::Aborted(AbortCode::Protocol)));
    agent.finish();
    session.is_empty().await;
    session.assert_alive();
}

#[tokio::test]
async fn unix_sockets_are_relayed_and_closed() {
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    let mut rig = unix_rig(&mut session).await;
    rig.client.write_all(b"question").await.unwrap();
    rig.client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut rig.server).await.unwrap(), b"question");
    rig.server.write_all(b"the answer").await.unwrap();
    rig.server.shutdown().await.unwrap();
    assert_eq!(read_all(&mut rig.client).await.unwrap(), b"the answer");
    assert_eq!(rig.master.outcome().await, Outcome::Done);
    assert_eq!(rig.agent.outcome().await, Outcome::Done);

    // A client that goes without a word: its close is an end, the server's data has nowhere to go.
    let mut rig = unix_rig(&mut session).await;
    drop(rig.client);
    assert_eq!(read_all(&mut rig.server).await.unwrap(), b"");
    let _ = rig.server.write_all(b"too late").await;
    assert_eq!(rig.master.outcome().await, Outcome::LocalReset);
    let peer = Outcome::PeerAborted(AbortCode::Reset);
    assert_eq!(rig.agent.outcome().await, peer);
    session.is_empty().await;
}

const LIMIT: Duration = Duration::from_secs(20);
