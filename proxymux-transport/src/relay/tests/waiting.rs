//! Relays in which nothing moves.
//!
//! The idle limit, and what waiting costs: wake-ups and memory.
//! Time is paused wherever it matters.

use std::sync::atomic::AtomicUsize;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_relay_in_which_nothing_moves_ends_at_the_idle_limit() {
    let limit = Duration::from_secs(3600);
    let options = RelayOptions {
        idle_timeout: Some(limit),
        ..options()
    };
    let mut session = Session::in_memory(LIMITS);
    session.play_control();
    let (mut agent, master) = session.open_relay().await;
    let (mut client, near) = UnixStream::pair().unwrap();
    let mut relay = Running::start(near, master, &options);
    // Either direction counts as moving.
    tokio::time::sleep(limit - Duration::from_secs(1)).await;
    client.write_all(b"some").await.unwrap();
    receive(&mut agent).await.unwrap();
    tokio::time::sleep(limit - Duration::from_secs(1)).await;
    send(&mut agent, b"some").await.unwrap();
    client.read_exact(&mut [0; 4]).await.unwrap();
    let before = Instant::now();

    assert_eq!((&mut relay.outcome).await.unwrap(), Outcome::Idle);

    let idle = before.elapsed();
    assert!(
        (limit..limit + 2 * WATCH_PERIOD).contains(&idle),
        "{idle:?}"
    );
    let error = receive(&mut agent).await.unwrap_err();
    assert!(matches!(error, StreamError::Aborted(AbortCode::Idle)));
    assert_eq!(read_all(&mut client).await.unwrap(), b"");
}

#[tokio::test(start_paused = true)]
async fn a_stalled_relay_ends_at_the_idle_limit_too() {
    let limit = Duration::from_secs(60);
    let options = RelayOptions {
        idle_timeout: Some(limit),
        ..options()
    };
    let mut session = Session::in_memory(LIMITS);
    let (_agent, master) = session.open_relay().await;
    let (mut client, near) = UnixStream::pair().unwrap();
    let mut relay = Running::start(near, master, &options);
    tokio::spawn(async move {
        let _ = client.write_all(&vec![7; 1 << 20]).await;
        client
    });
    let before = Instant::now();
    assert_eq!((&mut relay.outcome).await.unwrap(), Outcome::Idle);
    assert!(before.elapsed() < limit + 2 * WATCH_PERIOD);
}

/// A future that counts how often it is polled.
struct Counted<F>(F, Arc<AtomicUsize>);

impl<F: Future + Unpin> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.0).poll(cx)
    }
}

/// How often a relay is polled in an hour.
async fn polls_in_an_hour(idle_timeout: Option<Duration>, stalled: bool) -> usize {
    let mut session = Session::in_memory(LIMITS);
    let (agent, master) = session.open_relay().await;
    let (client, near) = UnixStream::pair().unwrap();
    let options = RelayOptions {
        idle_timeout,
        ..options()
    };
    let polls = Arc::new(AtomicUsize::new(0));
    let relay = relay(near, master, Bytes::new(), &options, Arc::default());
    let relay = tokio::spawn(Counted(Box::pin(relay), Arc::clone(&polls)));
    if stalled {
        while timeout(Duration::from_secs(1), client.writable())
            .await
            .is_ok()
        {
            let _ = client.try_write(&[7; 100_000]);
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = polls.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!relay.is_finished());
    drop((agent, client));
    polls.load(Ordering::Relaxed) - before
}

#[tokio::test(start_paused = true)]
async fn a_relay_at_rest_is_not_woken() {
    assert_eq!(polls_in_an_hour(None, false).await, 0);
    let idle_timeout = Some(Duration::from_secs(7000));
    assert!(polls_in_an_hour(idle_timeout, false).await <= 1);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_relay_is_woken_twice_a_second_at_most() {
    let polls = polls_in_an_hour(None, true).await;
    assert!((3600..=2 * 3600 + 2).contains(&polls), "{polls} polls");
}

#[tokio::test]
async fn the_future_of_a_relay_is_small() {
    let mut session = Session::in_memory(LIMITS);
    let (_agent, master) = session.open_relay().await;
    let (_client, near) = tcp_pair(None).await;
    let relay = relay(near, master, Bytes::new(), &options(), Arc::default());
    let size = size_of_val(&relay);
    println!("{size} bytes");
    // 5,000 of them in less than 3 MiB; sockets, timers and the crate's own state come on top.
    assert!(size <= 512, "{size} bytes");
}
