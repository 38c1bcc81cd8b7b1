//! Tests of the TLS connection under a session, over pipes in memory and real handshakes.

use std::{future::poll_fn, time::Duration};

use proptest::prelude::*;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::{Instant, timeout},
};

use super::*;
use crate::{
    certificate::test_pki::{Ca, Request},
    tls,
};

const MASTER: &str = "master.example";

/// Far longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(20);

/// Both ends of a connection whose pipe holds so many bytes each way.
async fn pair(pipe: usize) -> (TlsStream<DuplexStream>, TlsStream<DuplexStream>) {
    let (agent, master) = handshake(pipe).await;
    (agent.into(), master.into())
}

async fn handshake(
    pipe: usize,
) -> (
    client::TlsStream<DuplexStream>,
    server::TlsStream<DuplexStream>,
) {
    let ca = Ca::new("test CA");
    let node = ca.issue(&Request::node("10.0.10.3")).credentials();
    let master = ca.issue(&Request::master(MASTER)).credentials();
    let (near, far) = duplex(pipe);
    let deadline = Instant::now() + LIMIT;
    let (agent, master) = tokio::join!(
        tls::connect(
            near,
            tls::agent_config(&node, &ca.roots()),
            ServerName::try_from(MASTER).unwrap(),
            deadline,
        ),
        tls::accept(far, tls::master_config(&master, &ca.roots()), deadline),
    );
    (agent.unwrap().stream, master.unwrap().stream)
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(LIMIT, future).await.expect("it takes no time")
}

#[tokio::test]
async fn records_gather_until_they_are_flushed() {
    let (mut agent, mut master) = pair(1 << 20).await;
    for part in [&b"one "[..], b"two"] {
        agent.write_all(part).await.unwrap();
    }
    let mut buf = [0; 16];
    let early = timeout(Duration::from_millis(20), master.read(&mut buf)).await;
    assert!(early.is_err(), "nothing has left yet");

    agent.flush().await.unwrap();

    within(master.read_exact(&mut buf[..7])).await.unwrap();
    assert_eq!(&buf[..7], b"one two");
}

#[tokio::test]
async fn records_that_wait_are_bounded() {
    let (mut agent, _master) = pair(4 * 1024).await;
    let megabyte = vec![7; 1 << 20];

    let taken = timeout(Duration::from_millis(50), agent.write_all(&megabyte)).await;

    assert!(taken.is_err(), "nobody reads");
    let waiting = poll_fn(|cx| {
        let n = Pin::new(&mut agent).poll_write(cx, &megabyte);
        Poll::Ready(n.is_pending())
    });
    assert!(waiting.await);
    let mut records = Vec::new();
    while agent.tls.wants_write() {
        agent.tls.write_tls(&mut records).unwrap();
    }
    // One record may be over the limit, which counts before it is encrypted.
    let most = WRITE_BUFFER_LIMIT + 16 * 1024 + 9 * RECORD_OVERHEAD;
    assert!(records.len() <= most, "{} bytes", records.len());
}

#[tokio::test]
async fn what_came_with_the_end_of_the_handshake_is_not_lost() {
    let (mut agent, master) = handshake(1 << 20).await;
    agent.write_all(b"registration").await.unwrap();
    agent.flush().await.unwrap();
    let mut agent = TlsStream::from(agent);
    let mut master = TlsStream::from(master);
    let mut buf = [0; 12];
    within(master.read_exact(&mut buf)).await.unwrap();
    assert_eq!(&buf, b"registration");

    master.write_all(b"answer").await.unwrap();
    master.flush().await.unwrap();
    within(agent.read_exact(&mut buf[..6])).await.unwrap();
    assert_eq!(&buf[..6], b"answer");
}

#[tokio::test]
async fn a_goodbye_is_an_end_and_a_cut_is_an_error() {
    for orderly in [true, false] {
        let (mut agent, mut master) = pair(1 << 20).await;
        agent.write_all(b"last words").await.unwrap();
        if orderly {
            agent.shutdown().await.unwrap();
        } else {
            agent.flush().await.unwrap();
        }
        drop(agent);
        let mut all = Vec::new();

        let end = within(master.read_to_end(&mut all)).await;

        assert_eq!(all, b"last words");
        let kind = end.err().map(|error| error.kind());
        let expected = (!orderly).then_some(io::ErrorKind::UnexpectedEof);
        assert_eq!(kind, expected, "orderly: {orderly}");
    }
}

#[tokio::test]
async fn garbage_is_an_error_of_which_the_peer_is_told() {
    let (mut agent, mut master) = pair(1 << 20).await;
    let nonsense = b"\x17\x03\x03\x00\x20not encrypted with any key of us";
    agent.io.write_all(nonsense).await.unwrap();

    let error = within(master.read(&mut [0; 16])).await.unwrap_err();

    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    let told = within(agent.read(&mut [0; 16])).await.unwrap_err();
    let cause = told.get_ref().and_then(|e| e.downcast_ref());
    let alert = rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac);
    assert_eq!(cause, Some(&alert), "{told}");
}

#[tokio::test]
async fn a_connection_at_rest_holds_no_buffer_for_reading() {
    let (mut agent, mut master) = pair(1 << 20).await;
    agent.write_all(&[7; 100_000]).await.unwrap();
    agent.flush().await.unwrap();
    let mut buf = vec![0; 100_000];
    within(master.read_exact(&mut buf[..10])).await.unwrap();
    assert!(!master.ahead.buffer.is_empty(), "more than was asked for");

    within(master.read_exact(&mut buf[10..])).await.unwrap();

    assert!(master.ahead.buffer.is_empty());
    let idle = timeout(Duration::from_millis(20), master.read(&mut buf)).await;
    assert!(idle.is_err());
    assert!(master.ahead.buffer.is_empty(), "while it waits, too");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn bytes_arrive_as_they_were_whatever_the_pieces(
        pieces in prop::collection::vec(1..70_000_usize, 1..6),
        pipe in prop_oneof![500..5_000_usize, 1_000..200_000_usize],
        reads in 1..80_000_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let sent: Vec<u8> = (0..pieces.iter().sum()).map(|n: usize| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
        let received = runtime.block_on(async {
            let (mut agent, mut master) = pair(pipe).await;
            let send = async {
                let mut rest = &sent[..];
                for len in &pieces {
                    let (piece, after) = rest.split_at(*len);
                    // In two parts, as the multiplexer's header and body come.
                    let parts = piece.split_at(piece.len().min(12));
                    let n = poll_fn(|cx| {
                        let parts = [IoSlice::new(parts.0), IoSlice::new(parts.1)];
                        Pin::new(&mut agent).poll_write_vectored(cx, &parts)
                    });
                    let n = n.await.unwrap();
                    agent.write_all(&piece[n..]).await.unwrap();
                    rest = after;
                }
                agent.shutdown().await.unwrap();
            };
            let receive = async {
                let (mut all, mut buf) = (Vec::new(), vec![0; reads]);
                loop {
                    match master.read(&mut buf).await.unwrap() {
                        0 => return all,
                        n => all.extend_from_slice(&buf[..n]),
                    }
                }
            };
            within(async { tokio::join!(send, receive).1 }).await
        });
        prop_assert!(received == sent);
    }
}
