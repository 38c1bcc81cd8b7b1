//! Much data, small buffers and random pauses.
//!
//! Every byte arrives once and in order, every relay comes to its end, and nothing is left.
//! The bytes are drawn from seeds, so that both ends know them.

use std::sync::atomic::AtomicU64;

use tokio::task::JoinSet;

use super::*;

/// What a direction carries: the same bytes for the same seed, in pieces of random lengths.
struct Pattern {
    bytes: fastrand::Rng,
    lengths: fastrand::Rng,
    left: usize,
    longest: usize,
}

impl Pattern {
    fn new(seed: u64, len: usize, longest: usize) -> Self {
        Self {
            bytes: fastrand::Rng::with_seed(seed),
            lengths: fastrand::Rng::with_seed(!seed),
            left: len,
            longest,
        }
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        if self.left == 0 {
            return None;
        }
        let len = self.lengths.usize(1..=self.longest).min(self.left);
        let mut piece = vec![0; len];
        self.bytes.fill(&mut piece);
        self.left -= len;
        Some(piece)
    }
}

/// Sends `sent` and its end while reading all that comes, which must be `expected`.
async fn exchange(
    socket: impl AsyncRead + AsyncWrite + Send + 'static,
    mut sent: Pattern,
    mut expected: Pattern,
    pauses: Option<u64>,
) {
    let (mut reading, mut writing) = tokio::io::split(socket);
    let writer = async {
        let mut random = fastrand::Rng::with_seed(pauses.unwrap_or_default());
        while let Some(piece) = sent.next() {
            writing.write_all(&piece).await.unwrap();
            if pauses.is_some() && random.u8(0..4) == 0 {
                tokio::time::sleep(Duration::from_micros(random.u64(0..3000))).await;
            }
        }
        writing.shutdown().await.unwrap();
    };
    let reader = async {
        let mut random = fastrand::Rng::with_seed(pauses.unwrap_or_default());
        while let Some(piece) = expected.next() {
            let mut read = vec![0; piece.len()];
            reading.read_exact(&mut read).await.unwrap();
            assert!(read == piece, "bytes differ with {} left", expected.left);
            if pauses.is_some() && random.u8(0..4) == 0 {
                tokio::time::sleep(Duration::from_micros(random.u64(0..3000))).await;
            }
        }
        assert_eq!(reading.read(&mut [0]).await.unwrap(), 0);
    };
    tokio::join!(writer, reader);
}

async fn exchange_through<C, S>(
    mut rig: Rig<C, S>,
    seed: u64,
    (up, down): (usize, usize),
    longest: usize,
    pauses: bool,
) where
    C: AsyncRead + AsyncWrite + Send + 'static,
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let client = exchange(
        rig.client,
        Pattern::new(2 * seed, up, longest),
        Pattern::new(2 * seed + 1, down, longest / 2 + 1),
        pauses.then_some(seed),
    );
    let server = exchange(
        rig.server,
        Pattern::new(2 * seed + 1, down, longest / 2 + 1),
        Pattern::new(2 * seed, up, longest),
        pauses.then_some(!seed),
    );
    tokio::join!(tokio::spawn(client), tokio::spawn(server))
        .0
        .unwrap();
    assert_eq!(rig.master.outcome().await, Outcome::Done);
    assert_eq!(rig.agent.outcome().await, Outcome::Done);
    let counted = (up as u64, down as u64);
    assert_eq!(rig.master.counted(), counted);
    assert_eq!(rig.agent.counted(), (counted.1, counted.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_relays_move_much_both_ways_at_once() {
    let (agent, master) = tcp_pair(None).await;
    let mut session = Session::over(agent, master, LIMITS);
    let mut relays = JoinSet::new();
    for seed in 0..3 {
        let rig = tcp_rig(&mut session).await;
        let much = 64 << 20;
        relays.spawn(exchange_through(rig, seed, (much, much), 100_000, false));
    }
    relays.join_all().await;
    session.is_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_socket_buffers_at_every_place_lose_nothing() {
    let (agent, master) = tcp_pair(Some(8192)).await;
    let mut session = Session::over(agent, master, LIMITS);
    let mut relays = JoinSet::new();
    for seed in 0..3 {
        let client = tcp_pair(Some(8192)).await;
        let server = tcp_pair(Some(8192)).await;
        let rig = rig(&mut session, client, server).await;
        relays.spawn(exchange_through(
            rig,
            seed,
            (2 << 20, 2 << 20),
            20_000,
            false,
        ));
    }
    relays.join_all().await;
    session.is_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_closed_connection_carries_much_the_other_way() {
    let mut session = Session::in_memory(LIMITS);
    for (seed, amounts) in [(8 << 20, 0), (0, 8 << 20), (0, 0), (1, 8 << 20)]
        .into_iter()
        .enumerate()
    {
        let rig = tcp_rig(&mut session).await;
        exchange_through(rig, seed as u64, amounts, 50_000, false).await;
        let rig = unix_rig(&mut session).await;
        exchange_through(rig, seed as u64, amounts, 50_000, false).await;
    }
    session.is_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wake_up_is_lost_over_many_small_relays() {
    let (agent, master) = tokio::io::duplex(10_000);
    let mut session = Session::over(agent, master, LIMITS);
    session.play_control();
    let mut random = fastrand::Rng::with_seed(7);
    let mut relays = JoinSet::new();
    for seed in 0..600 {
        // About a window, so that every kind of waiting occurs.
        let amounts = (random.usize(0..400_000), random.usize(0..400_000));
        let longest = [10_000, 100_000][random.usize(0..2)];
        if random.bool() {
            let rig = tcp_rig(&mut session).await;
            relays.spawn(exchange_through(rig, seed, amounts, longest, true));
        } else {
            let rig = unix_rig(&mut session).await;
            relays.spawn(exchange_through(rig, seed, amounts, longest, true));
        }
        while relays.len() > 40 {
            relays.join_next().await.unwrap().unwrap();
        }
    }
    relays.join_all().await;
    session.is_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aborts_at_every_stage_leave_nothing() {
    let (agent, master) = tokio::io::duplex(10_000);
    let mut session = Session::over(agent, master, LIMITS);
    session.play_control();
    let moved = Arc::new(AtomicU64::new(0));
    let mut random = fastrand::Rng::with_seed(8);
    let mut relays = JoinSet::new();
    for _ in 0..600 {
        let mut rig = tcp_rig(&mut session).await;
        let (kind, pause) = (random.u8(0..6), random.u64(0..5000));
        let moved = Arc::clone(&moved);
        relays.spawn(async move {
            for socket in [&mut rig.client, &mut rig.server] {
                let _ = timeout(
                    Duration::from_micros(pause),
                    socket.write_all(&[7; 400_000]),
                )
                .await;
            }
            match kind {
                0 => reset(rig.client),
                1 => reset(rig.server),
                2 => rig.master.outcome.abort(),
                3 => rig.agent.outcome.abort(),
                4 => {
                    rig.client.shutdown().await.unwrap();
                    reset(rig.server);
                }
                _ => {
                    rig.server.shutdown().await.unwrap();
                    reset(rig.client);
                }
            }
            for relay in [&mut rig.master, &mut rig.agent] {
                let outcome = timeout(LIMIT, &mut relay.outcome).await.unwrap();
                let aborted = [Outcome::LocalReset, Outcome::PeerAborted(AbortCode::Reset)];
                // No outcome: the relay was dropped.
                assert!(outcome.is_err() || aborted.contains(&outcome.unwrap()));
                moved.fetch_add(relay.counted().0, Ordering::Relaxed);
            }
        });
        while relays.len() > 20 {
            relays.join_next().await.unwrap().unwrap();
        }
    }
    relays.join_all().await;
    println!("{} bytes moved", moved.load(Ordering::Relaxed));
    session.is_empty().await;
    session.assert_alive();
}
