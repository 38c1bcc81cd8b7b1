//! Tests of which pipes relays hold, and of going on without any.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::*;

/// Descriptors of this process; nextest gives each test one of its own.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// One exchange by a relay that has begun.
async fn ping(rig: &mut Rig<TcpStream, TcpStream>) {
    for (from, to) in [(0, 1), (1, 0)] {
        let ends = [&mut rig.client, &mut rig.server];
        ends[from].write_all(b"ping").await.unwrap();
        let mut ping = [0; 4];
        let read = timeout(LIMIT, ends[to].read_exact(&mut ping)).await;
        read.unwrap().unwrap();
        assert_eq!(&ping, b"ping");
    }
}

#[tokio::test]
async fn relays_at_rest_hold_no_pipe_and_leave_few_behind() {
    let pipes = Pipes::new(BUDGET);
    let mut rigs = Vec::new();
    for _ in 0..200 {
        let (client, server) = (tcp_pair(None).await, tcp_pair(None).await);
        rigs.push(Rig::new(client, server, Bytes::new(), &pipes));
    }
    let without_pipes = descriptors() - 2 * pipes.free();

    for rig in &mut rigs {
        ping(rig).await;
    }

    assert_eq!((pipes.held(), pipes.relays_spliced()), (0, 200));
    assert!(pipes.free() >= 1 && pipes.free() <= 16, "{}", pipes.free());
    assert_eq!(descriptors(), without_pipes + 2 * pipes.free());
}

#[tokio::test]
async fn a_relay_that_is_dropped_at_any_stage_leaves_no_descriptor() {
    let pipes = Pipes::new(BUDGET);
    let before = descriptors();
    for stage in 0..4 {
        let client = tcp_pair(Some(SMALL_BUFFER)).await;
        let server = tcp_pair(Some(SMALL_BUFFER)).await;
        let mut rig = Rig::new(client, server, Bytes::from_static(b"early"), &pipes);
        if stage > 0 {
            rig.server.read_exact(&mut [0; 5]).await.unwrap();
        }
        if stage > 1 {
            ping(&mut rig).await;
        }
        if stage > 2 {
            fill(&mut rig.client, &[7; 4096]).await;
            fill(&mut rig.server, &[7; 4096]).await;
            assert_eq!(pipes.held(), 2);
        }
        rig.relay.abort();
        let ended = timeout(LIMIT, &mut rig.relay).await.unwrap();
        assert!(ended.unwrap_err().is_cancelled());
        assert_eq!(pipes.held(), 0);
    }
    assert_eq!(descriptors(), before + 2 * pipes.free());
    assert_eq!(pipes.capacity(), pipes.free() * FIRST_CAPACITY);
}

#[tokio::test]
async fn relays_that_stall_keep_the_first_pipe() {
    let pipes = Pipes::new(BUDGET);
    let mut rigs = Vec::new();
    for _ in 0..2 {
        let client = tcp_pair(Some(SMALL_BUFFER)).await;
        let server = tcp_pair(Some(SMALL_BUFFER)).await;
        rigs.push(Rig::new(client, server, Bytes::new(), &pipes));
    }

    for rig in &mut rigs {
        fill(&mut rig.client, &[7; 1 << 16]).await;
        // Slowly, and then not at all.
        for _ in 0..5 {
            rig.server.read_exact(&mut [0; 10_000]).await.unwrap();
            fill(&mut rig.client, &[7; 1 << 16]).await;
        }
    }

    assert_eq!(pipes.held(), 2);
    assert_eq!(pipes.capacity(), (2 + pipes.free()) * FIRST_CAPACITY);
}

#[tokio::test]
async fn without_pipes_everything_is_copied_and_that_is_counted() {
    for (pipes, reason) in [
        (Pipes::off(), Fallback::Off),
        (Pipes::new(FIRST_CAPACITY - 1), Fallback::Budget),
    ] {
        let client = UnixStream::pair().unwrap();
        let server = tcp_pair(Some(SMALL_BUFFER)).await;
        let pipes = exchange(Rig::new(client, server, Bytes::new(), &pipes), 31).await;
        assert_eq!(pipes.relays_copied(reason), 1);
        assert_eq!(pipes.capacity(), 0);
    }
}

#[tokio::test]
async fn where_all_pipes_are_in_use_a_relay_copies() {
    let pipes = Pipes::new(FIRST_CAPACITY);
    let client = tcp_pair(Some(SMALL_BUFFER)).await;
    let server = tcp_pair(Some(SMALL_BUFFER)).await;
    let mut stalled = Rig::new(client, server, Bytes::new(), &pipes);
    fill(&mut stalled.client, &[7; 4096]).await;

    let (client, server) = (tcp_pair(None).await, tcp_pair(None).await);
    exchange(Rig::new(client, server, Bytes::new(), &pipes), 41).await;

    assert_eq!(pipes.relays_copied(Fallback::Budget), 1);
    assert_eq!((pipes.held(), pipes.capacity()), (1, FIRST_CAPACITY));
}

#[tokio::test]
async fn a_relay_that_copies_goes_back_to_pipes_when_there_are_some() {
    let pipes = Pipes::new(FIRST_CAPACITY);
    let only = pipes.take(FIRST_CAPACITY).unwrap();
    let (client, server) = (tcp_pair(None).await, tcp_pair(None).await);
    let mut rig = Rig::new(client, server, Bytes::new(), &pipes);
    ping(&mut rig).await;
    assert_eq!(pipes.relays_copied(Fallback::Budget), 1);
    drop(only);

    let mut held = 0;
    for _ in 0..2 * READS_BEFORE_RETRY {
        ping(&mut rig).await;
    }
    // Only a relay with bytes in a pipe holds one.
    for _ in 0..200 {
        let _ = rig.client.try_write(&[7; 1 << 16]);
        tokio::task::yield_now().await;
        held = held.max(pipes.held());
    }
    assert_eq!(held, 1);
    assert_eq!(pipes.relays_copied(Fallback::Budget), 1);
}

#[tokio::test]
async fn many_relays_share_few_pipes_without_mixing_up_their_bytes() {
    let pipes = Pipes::new(6 * FIRST_CAPACITY);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(3)
        .enable_all()
        .build()
        .unwrap();
    let mut relays = Vec::new();
    for seed in 0..12 {
        let pipes = pipes.clone();
        relays.push(runtime.spawn(async move {
            let client = UnixStream::pair().unwrap();
            let server = tcp_pair(Some(SMALL_BUFFER)).await;
            let rig = Rig::new(client, server, Bytes::new(), &pipes);
            exchange(rig, 100 * seed).await;
        }));
    }

    for relay in relays {
        relay.await.unwrap();
    }

    assert_eq!((pipes.held(), pipes.relays_spliced()), (0, 12));
    assert_eq!(pipes.capacity(), pipes.free() * FIRST_CAPACITY);
    runtime.shutdown_background();
}

#[tokio::test]
async fn without_descriptors_a_relay_copies() {
    let pipes = Pipes::new(BUDGET);
    let client = tcp_pair(Some(SMALL_BUFFER)).await;
    let server = tcp_pair(Some(SMALL_BUFFER)).await;
    let rig = Rig::new(client, server, Bytes::new(), &pipes);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // Those that are open stay so.
    setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();

    let pipes = exchange(rig, 51).await;

    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    assert_eq!(pipes.relays_copied(Fallback::Descriptors), 1);
    assert_eq!(pipes.capacity(), 0);
}

#[tokio::test]
async fn what_is_in_a_pipe_when_splicing_is_refused_is_copied_out_of_it() {
    let relay = Arc::new(Relay {
        pipes: Pipes::new(BUDGET),
        fallback: OnceLock::new(),
    });
    let mut mover = Splicing::new(Bytes::new(), Arc::clone(&relay));
    let (mut client, mut near) = tcp_pair(None).await;
    let (mut far, mut server) = tcp_pair(None).await;
    let data = pattern(50_000, 8);
    client.write_all(&data).await.unwrap();
    client.shutdown().await.unwrap();
    let moving = async {
        std::future::poll_fn(|cx| mover.poll_fill(cx, &near))
            .await
            .unwrap();
        assert!(mover.pipe.as_ref().is_some_and(HeldPipe::has_bytes));
        // As after an error of the kernel.
        mover.falls_back(Fallback::Unsupported);
        let mut moved = 0;
        loop {
            let step = std::future::poll_fn(|cx| {
                ready!(Mover::<TcpStream, _>::poll_write_out(
                    &mut mover, cx, &mut far, &mut moved
                ))?;
                mover.poll_fetch(cx, &mut near, &mut far, &mut moved)
            });
            if step.await.unwrap() == Fetched::End {
                return moved;
            }
        }
    };

    let moved = timeout(LIMIT, moving).await.unwrap();

    let mut received = vec![0; data.len()];
    server.read_exact(&mut received).await.unwrap();
    assert!(received == data && moved == data.len());
    let pipes = &relay.pipes;
    assert_eq!(pipes.relays_copied(Fallback::Unsupported), 1);
    assert_eq!((pipes.held(), pipes.free()), (0, 1));
}

#[tokio::test]
async fn a_pipe_grows_while_it_is_found_full_within_half_of_the_budget() {
    let pipes = Pipes::new(4 * MAX_CAPACITY);
    let wanted = 256 << 10;
    let held = pipes.take(wanted).unwrap();
    assert_eq!(held.capacity(), wanted);
    assert_eq!(pipes.take(MAX_CAPACITY).unwrap().capacity(), MAX_CAPACITY);
    // The free one of 1 MiB fits too, and is the only one.
    let second = pipes.take(FIRST_CAPACITY).unwrap();
    let third = pipes.take(MAX_CAPACITY).unwrap();
    assert_eq!(second.capacity(), MAX_CAPACITY);
    assert_eq!(third.capacity(), FIRST_CAPACITY);
    drop((held, second, third));

    assert_eq!(
        pipes.take(FIRST_CAPACITY).unwrap().capacity(),
        FIRST_CAPACITY
    );
    assert_eq!(pipes.take(128 << 10).unwrap().capacity(), wanted);
    assert_eq!((pipes.held(), pipes.free()), (0, 3));
}

#[test]
fn a_spliced_relay_is_small() {
    let options = RelayOptions {
        idle_timeout: None,
        cancel: CancellationToken::new(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let ((client, _), (target, _)) = (UnixStream::pair().unwrap(), tcp_pair(None).await);
        let pipes = Pipes::new(BUDGET);
        let relay = relay_spliced(
            client,
            target,
            Bytes::new(),
            &options,
            Arc::default(),
            &pipes,
        );
        assert!(size_of_val(&relay) <= 512, "{}", size_of_val(&relay));
    });
}
