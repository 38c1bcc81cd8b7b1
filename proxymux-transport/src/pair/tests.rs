//! Tests of the relay between two connections, with real sockets at all four ends.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::mux::testing::tcp_pair;

/// A client and a server, with the relay between them.
struct Rig {
    client: TcpStream,
    server: TcpStream,
    relay: JoinHandle<Outcome>,
    bytes: Arc<RelayBytes>,
    cancel: CancellationToken,
}

async fn rig(early: &'static [u8], idle_timeout: Option<Duration>) -> Rig {
    let (client, near) = tcp_pair(Some(SMALL_BUFFER)).await;
    let (far, server) = tcp_pair(Some(SMALL_BUFFER)).await;
    let (bytes, cancel) = (Arc::default(), CancellationToken::new());
    let options = RelayOptions {
        idle_timeout,
        cancel: cancel.clone(),
    };
    let early = Bytes::from_static(early);
    let relay = relay_pair(near, far, early, &options, Arc::clone(&bytes));
    Rig {
        client,
        server,
        relay: tokio::spawn(relay),
        bytes,
        cancel,
    }
}

impl Rig {
    async fn outcome(&mut self) -> Outcome {
        timeout(LIMIT, &mut self.relay).await.unwrap().unwrap()
    }
}

fn reset(connection: TcpStream) {
    socket::reset_on_close(&connection).unwrap();
}

async fn assert_reset(connection: &mut TcpStream) {
    let read = timeout(LIMIT, connection.read_to_end(&mut Vec::new())).await;
    let error = read.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn what_came_early_goes_first_and_everything_is_counted() {
    let mut rig = rig(b"early ", None).await;

    rig.client.write_all(b"and late").await.unwrap();
    rig.client.shutdown().await.unwrap();
    let mut request = Vec::new();
    rig.server.read_to_end(&mut request).await.unwrap();
    rig.server.write_all(b"answer").await.unwrap();
    rig.server.shutdown().await.unwrap();
    let mut answer = Vec::new();
    rig.client.read_to_end(&mut answer).await.unwrap();

    assert_eq!(
        (&*request, &*answer),
        (&b"early and late"[..], &b"answer"[..])
    );
    assert_eq!(rig.outcome().await, Outcome::Done);
    assert_eq!((rig.bytes.to_stream(), rig.bytes.from_stream()), (14, 6));
    assert_eq!(rig.bytes.problem(), None);
}

#[tokio::test]
async fn much_data_passes_both_ways_at_once_unchanged() {
    let rig = rig(b"", None).await;
    let data: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let (mut client_in, mut client_out) = rig.client.into_split();
    let (mut server_in, mut server_out) = rig.server.into_split();
    let send_there = async {
        client_out.write_all(&data).await.unwrap();
        client_out.shutdown().await.unwrap();
    };
    let send_back = async {
        server_out.write_all(&data).await.unwrap();
        server_out.shutdown().await.unwrap();
    };
    let (mut at_server, mut at_client) = (Vec::new(), Vec::new());

    let all = async {
        tokio::join!(
            send_there,
            send_back,
            server_in.read_to_end(&mut at_server),
            client_in.read_to_end(&mut at_client)
        )
    };
    let ((), (), server, client) = timeout(LIMIT, all).await.unwrap();

    assert!(server.is_ok() && client.is_ok());
    assert!(at_server == data && at_client == data);
    assert_eq!(rig.relay.await.unwrap(), Outcome::Done);
}

#[tokio::test]
async fn a_reset_is_passed_on_and_the_outcome_says_whose_it_was() {
    for client_resets in [true, false] {
        let mut rig = rig(b"", None).await;
        rig.client.write_all(b"some").await.unwrap();
        rig.server.read_exact(&mut [0; 4]).await.unwrap();

        let expected = if client_resets {
            reset(std::mem::replace(&mut rig.client, tcp_pair(None).await.0));
            assert_reset(&mut rig.server).await;
            Outcome::LocalReset
        } else {
            reset(std::mem::replace(&mut rig.server, tcp_pair(None).await.0));
            assert_reset(&mut rig.client).await;
            Outcome::PeerAborted(AbortCode::Reset)
        };

        assert_eq!(rig.outcome().await, expected);
        assert!(rig.bytes.problem().is_some());
    }
}

#[tokio::test]
async fn a_client_that_resets_while_the_server_reads_nothing_is_noticed() {
    let mut rig = rig(b"", None).await;
    // Until the relay reads no more.
    let mut unread = timeout(PAUSE, rig.client.write_all(&[7; 1 << 20])).await;
    while unread.is_ok() {
        unread = timeout(PAUSE, rig.client.write_all(&[7; 1 << 20])).await;
    }

    reset(rig.client);

    let outcome = timeout(LIMIT, &mut rig.relay).await.unwrap().unwrap();
    assert_eq!(outcome, Outcome::LocalReset);
    assert!(rig.bytes.blocked_for() > Duration::ZERO);
}

#[tokio::test]
async fn a_client_that_closes_at_once_is_no_failure_if_the_server_then_ends() {
    let mut rig = rig(b"", None).await;
    rig.client.write_all(b"request").await.unwrap();
    drop(rig.client);
    let mut request = Vec::new();
    rig.server.read_to_end(&mut request).await.unwrap();

    // The goodbye of TLS: its receiver has gone.
    for _ in 0..3 {
        rig.server.write_all(b"goodbye").await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(rig.server);

    let outcome = timeout(LIMIT, rig.relay).await.unwrap().unwrap();
    assert_eq!(outcome, Outcome::Done);
}

#[tokio::test]
async fn a_client_that_closes_in_the_middle_of_an_answer_resets_the_server() {
    let mut rig = rig(b"", None).await;
    drop(rig.client);
    let mut failed = false;
    let writing = async {
        while rig.server.write_all(&[7; 4096]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        failed = true;
    };
    timeout(LIMIT, writing).await.unwrap();

    let outcome = timeout(LIMIT, &mut rig.relay).await.unwrap().unwrap();
    assert_eq!((outcome, failed), (Outcome::LocalReset, true));
}

#[tokio::test]
async fn a_silent_relay_ends_at_its_limit_and_one_that_moves_does_not() {
    let mut rig = rig(b"", Some(Duration::from_millis(600))).await;
    for _ in 0..4 {
        rig.client.write_all(b"x").await.unwrap();
        rig.server.read_exact(&mut [0; 1]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(!rig.relay.is_finished());

    assert_eq!(rig.outcome().await, Outcome::Idle);
    assert_reset(&mut rig.server).await;
}

#[tokio::test]
async fn a_drain_that_is_out_of_time_resets_both() {
    let mut rig = rig(b"", None).await;

    rig.cancel.cancel();

    assert_eq!(rig.outcome().await, Outcome::Drained);
    assert_reset(&mut rig.client).await;
    assert_reset(&mut rig.server).await;
}

const LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(300);
const SMALL_BUFFER: u32 = 16 * 1024;
