//! Tests of the spliced relay, with real sockets at all four ends.
//!
//! Here: bytes of every shape, both kinds of sockets, and slow readers. In `tests/endings` how a
//! relay ends, in `tests/holding` which pipes it holds and what happens without them.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{mux::testing::tcp_pair, socket};

mod endings;
mod holding;

/// A client and a server, with the relay between them.
struct Rig<C, S> {
    client: C,
    server: S,
    relay: JoinHandle<Outcome>,
    bytes: Arc<RelayBytes>,
    pipes: Pipes,
    cancel: CancellationToken,
}

impl<C: PlainSocket, S: PlainSocket> Rig<C, S> {
    fn new((client, near): (C, C), (far, server): (S, S), early: Bytes, pipes: &Pipes) -> Self {
        let (bytes, cancel) = (Arc::default(), CancellationToken::new());
        let options = RelayOptions {
            idle_timeout: None,
            cancel: cancel.clone(),
        };
        let relay = relay_spliced(near, far, early, &options, Arc::clone(&bytes), pipes);
        Self {
            client,
            server,
            relay: tokio::spawn(relay),
            bytes,
            pipes: pipes.clone(),
            cancel,
        }
    }

    async fn outcome(&mut self) -> Outcome {
        timeout(LIMIT, &mut self.relay).await.unwrap().unwrap()
    }
}

/// Between TCP connections with buffers that are soon full.
async fn tcp_rig(early: &'static [u8]) -> Rig<TcpStream, TcpStream> {
    let client = tcp_pair(Some(SMALL_BUFFER)).await;
    let server = tcp_pair(Some(SMALL_BUFFER)).await;
    Rig::new(
        client,
        server,
        Bytes::from_static(early),
        &Pipes::new(BUDGET),
    )
}

/// As on a master with its front door on a Unix socket.
async fn unix_rig(early: &'static [u8]) -> Rig<UnixStream, TcpStream> {
    let client = UnixStream::pair().unwrap();
    let server = tcp_pair(Some(SMALL_BUFFER)).await;
    Rig::new(
        client,
        server,
        Bytes::from_static(early),
        &Pipes::new(BUDGET),
    )
}

/// Bytes of which no two stretches are alike.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}

/// Writes everything in chunks of random sizes, most of them small, then ends.
async fn send(mut sink: impl AsyncWrite + Unpin, data: &[u8], seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut rest = data;
    while !rest.is_empty() {
        let most = 1 << random.u32(0..20);
        let n = random.usize(1..=most).min(rest.len());
        let (chunk, after) = rest.split_at(n);
        sink.write_all(chunk).await.unwrap();
        rest = after;
        if random.u8(..) < 4 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    sink.shutdown().await.unwrap();
}

/// Reads to the end in pieces of random sizes, with pauses.
async fn receive(mut source: impl AsyncRead + Unpin, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut received, mut piece) = (Vec::new(), vec![0; 1 << 18]);
    loop {
        let room = random.usize(1..=piece.len());
        let n = source.read(&mut piece[..room]).await.unwrap();
        if n == 0 {
            return received;
        }
        received.extend_from_slice(&piece[..n]);
        if random.u8(..) < 8 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Sends a lot both ways at once, and compares.
async fn exchange<C: PlainSocket, S: PlainSocket>(rig: Rig<C, S>, seed: u64) -> Pipes {
    exchange_of(rig, [LONG, LONG + 7], seed).await
}

/// Sends so much to the server and so much to the client at once, and compares.
async fn exchange_of<C: PlainSocket, S: PlainSocket>(
    rig: Rig<C, S>,
    [there, back]: [usize; 2],
    seed: u64,
) -> Pipes {
    let there = pattern(there, seed);
    let back = pattern(back, seed + 1);
    let (client_in, client_out) = tokio::io::split(rig.client);
    let (server_in, server_out) = tokio::io::split(rig.server);

    let all = async {
        tokio::join!(
            send(client_out, &there, seed),
            send(server_out, &back, seed + 1),
            receive(server_in, seed + 2),
            receive(client_in, seed + 3)
        )
    };
    let ((), (), at_server, at_client) = timeout(LIMIT, all).await.unwrap();

    assert!(at_server == there && at_client == back);
    let outcome = timeout(LIMIT, rig.relay).await.unwrap().unwrap();
    assert_eq!(outcome, Outcome::Done);
    let counted = (rig.bytes.to_stream(), rig.bytes.from_stream());
    assert_eq!(counted, (there.len() as u64, back.len() as u64));
    rig.pipes
}

/// Writes until nothing is taken for a while, or only a little now and then; how much was.
async fn fill(sink: &mut (impl AsyncWrite + Unpin), chunk: &[u8]) -> usize {
    let (mut sent, began) = (0, Instant::now());
    while began.elapsed() < LONG_FILL
        && let Ok(n) = timeout(PAUSE, sink.write(chunk)).await
    {
        sent += n.unwrap();
    }
    sent
}

#[tokio::test]
async fn chunks_of_all_sizes_pass_both_ways_at_once_unchanged_between_tcp_connections() {
    let pipes = exchange(tcp_rig(b"").await, 1).await;
    assert_eq!((pipes.held(), pipes.relays_spliced()), (0, 1));
    for reason in Fallback::ALL {
        assert_eq!(pipes.relays_copied(*reason), 0, "{reason:?}");
    }
}

#[tokio::test]
async fn chunks_of_all_sizes_pass_both_ways_at_once_unchanged_from_a_unix_socket() {
    let pipes = exchange(unix_rig(b"").await, 11).await;
    assert_eq!((pipes.held(), pipes.relays_spliced()), (0, 1));
    for reason in Fallback::ALL {
        assert_eq!(pipes.relays_copied(*reason), 0, "{reason:?}");
    }
}

#[tokio::test]
async fn chunks_of_all_sizes_pass_with_buffers_as_large_as_they_come() {
    let client = tcp_pair(None).await;
    let server = tcp_pair(None).await;
    let rig = Rig::new(client, server, Bytes::new(), &Pipes::new(BUDGET));
    let pipes = exchange(rig, 21).await;
    assert_eq!(pipes.held(), 0);
}

#[tokio::test]
async fn a_direction_may_be_empty_or_end_at_any_length() {
    let mut random = fastrand::Rng::with_seed(7);
    let pipes = Pipes::new(BUDGET);
    for seed in 0..40 {
        let mut len = || match random.u8(0..6) {
            0 => 0,
            1 => FIRST_CAPACITY,
            _ => random.usize(1..300_000),
        };
        let lens = [len(), len()];
        let client = tcp_pair(Some(SMALL_BUFFER)).await;
        let server = tcp_pair(Some(SMALL_BUFFER)).await;
        let rig = Rig::new(client, server, Bytes::new(), &pipes);
        exchange_of(rig, lens, 1000 + 10 * seed).await;
    }
    assert_eq!(pipes.held(), 0);
}

#[tokio::test]
async fn a_pipe_that_is_full_of_single_bytes_loses_no_wake_up() {
    let client = tcp_pair(Some(TINY_BUFFER)).await;
    let server = tcp_pair(Some(TINY_BUFFER)).await;
    let mut rig = Rig::new(client, server, Bytes::new(), &Pipes::new(BUDGET));
    // Far more segments than a pipe has slots, until nothing moves any more.
    let mut sent = 0;
    let filling = async {
        while rig.bytes.blocked_for() < PAUSE {
            for _ in 0..64 {
                sent += rig.client.try_write(b"x").unwrap_or(0);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LIMIT, filling).await.unwrap();
    assert!(sent > 100 && rig.pipes.held() == 1, "{sent}");
    let mut received = vec![0; sent];
    rig.server.read_exact(&mut received).await.unwrap();
    assert!(received.iter().all(|&byte| byte == b'x'));

    for _ in 0..3 {
        tokio::time::sleep(PAUSE).await;
        rig.client.write_all(b"y").await.unwrap();
        let mut last = [0; 1];
        let read = timeout(LIMIT, rig.server.read_exact(&mut last)).await;
        read.unwrap().unwrap();
        assert_eq!(&last, b"y");
    }
    assert_eq!(rig.bytes.to_stream(), sent as u64 + 3);
}

#[tokio::test]
async fn a_reader_that_stalls_gets_everything_when_it_goes_on() {
    let mut rig = unix_rig(b"").await;
    let data = pattern(1 << 20, 5);
    for _ in 0..3 {
        let (mut client_in, mut client_out) = tokio::io::split(rig.client);
        let sending = client_out.write_all(&data);
        let reading = async {
            tokio::time::sleep(PAUSE).await;
            assert!(rig.bytes.blocked_for() > Duration::ZERO);
            let mut received = vec![0; data.len()];
            rig.server.read_exact(&mut received).await.unwrap();
            assert!(received == data);
            rig.server.write_all(b"ok").await.unwrap();
            client_in.read_exact(&mut [0; 2]).await.unwrap();
        };
        let both = async { tokio::join!(sending, reading) };
        timeout(LIMIT, both).await.unwrap().0.unwrap();
        assert_eq!(rig.bytes.blocked_for(), Duration::ZERO);
        rig.client = client_in.unsplit(client_out);
    }
}

#[tokio::test]
async fn what_came_early_goes_first_even_if_the_target_does_not_take_it_at_once() {
    let early = Bytes::from(pattern(4 << 20, 6));
    let client = tcp_pair(Some(SMALL_BUFFER)).await;
    let server = tcp_pair(Some(SMALL_BUFFER)).await;
    let mut rig = Rig::new(client, server, early.clone(), &Pipes::new(BUDGET));
    rig.client.write_all(b"late").await.unwrap();
    tokio::time::sleep(PAUSE).await;

    let mut received = vec![0; early.len() + 4];
    let read = timeout(LIMIT, rig.server.read_exact(&mut received)).await;

    read.unwrap().unwrap();
    assert!(received.starts_with(&early) && received.ends_with(b"late"));
}

#[tokio::test]
async fn a_relay_under_load_lets_another_one_on_its_thread_go_on() {
    let (client, server) = (tcp_pair(None).await, tcp_pair(None).await);
    let mut busy = Rig::new(client, server, Bytes::new(), &Pipes::new(BUDGET));
    // Other threads, so that the relay always finds something to do.
    let (source, sink) = (
        busy.client.into_std().unwrap(),
        busy.server.into_std().unwrap(),
    );
    let threads = [
        std::thread::spawn(move || saturate(source)),
        std::thread::spawn(move || take_all(sink)),
    ];
    let mut other = tcp_rig(b"").await;

    let mut moved = Vec::new();
    for _ in 0..200 {
        other.client.write_all(b"ping").await.unwrap();
        let mut ping = [0; 4];
        let read = timeout(LIMIT, other.server.read_exact(&mut ping)).await;
        read.unwrap().unwrap();
        moved.push(busy.bytes.to_stream());
    }

    // A round trip takes a few polls of the tasks here, and so of the busy relay.
    let (first, last) = (moved[0], moved[moved.len() - 1]);
    let per_round = (last - first) / 199;
    assert!(per_round > 0 && per_round < 64 << 20, "{per_round}");
    busy.cancel.cancel();
    assert_eq!(
        timeout(LIMIT, &mut busy.relay).await.unwrap().unwrap(),
        Outcome::Drained
    );
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Until the relay ends.
fn saturate(mut source: std::net::TcpStream) {
    use std::io::Write as _;
    source.set_nonblocking(false).unwrap();
    let data = vec![7; 1 << 20];
    while source.write_all(&data).is_ok() {}
}

/// Until the relay ends.
fn take_all(mut sink: std::net::TcpStream) {
    use std::io::Read as _;
    sink.set_nonblocking(false).unwrap();
    let mut data = vec![0; 1 << 20];
    while sink.read(&mut data).is_ok_and(|n| n > 0) {}
}

const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(300);
const LONG_FILL: Duration = Duration::from_secs(2);
const SMALL_BUFFER: u32 = 16 * 1024;
const TINY_BUFFER: u32 = 2 * 1024;
const BUDGET: usize = 64 << 20;
const LONG: usize = 12 << 20;
