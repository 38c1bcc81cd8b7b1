//! Clients at the front door on a real Unix socket.
//!
//! The socket's file has its tests in `proxymux_transport::unix_socket`.

use std::path::PathBuf;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::*;
use crate::front_door::{
    FrontDoors,
    tests::{Fake, LIMITS, Plan, REQUEST, expect_established},
};

/// A running front door at a socket of its own.
struct Running {
    path: PathBuf,
    stop: CancellationToken,
    tracker: TaskTracker,
    accepting: tokio::task::JoinHandle<()>,
    _directory: TempDir,
}

async fn run(gateway: Fake, room: usize) -> Running {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("egress.sock");
    let door = UnixDoor::bind(&path, 0o660).await.unwrap();
    let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
    let doors = FrontDoors::new(gateway, LIMITS, tracker.clone()).with_room_for(room);
    let accepting = {
        let stop = stop.clone();
        tokio::spawn(async move { doors.run_unix(door, stop).await })
    };
    Running {
        path,
        stop,
        tracker,
        accepting,
        _directory: directory,
    }
}

#[tokio::test]
async fn a_client_is_named_served_and_waited_for() {
    let (gateway, mut relayed) = Fake::new(Plan::Open);
    let running = run(gateway, 10).await;
    let mut client = UnixStream::connect(&running.path).await.unwrap();
    client.write_all(REQUEST).await.unwrap();
    expect_established(&mut client).await;

    running.stop.cancel();
    running.accepting.await.unwrap();
    running.tracker.close();

    assert!(
        !running.path.exists(),
        "the socket is gone as soon as nobody accepts"
    );
    assert_eq!(running.tracker.len(), 1, "the client is still served");
    client.write_all(b"after the stop").await.unwrap();
    drop(client);
    running.tracker.wait().await;
    let relayed = relayed.recv().await.unwrap();
    let uid = nix::unistd::getuid();
    let expected = format!("unix:pid={},uid={uid}", std::process::id());
    assert_eq!(relayed.request.arrival.peer, expected);
    assert_eq!(
        [&relayed.early[..], &relayed.rest.unwrap()].concat(),
        b"after the stop"
    );
}

#[tokio::test]
async fn a_client_without_a_place_is_told_at_once_and_the_next_one_is_served() {
    let (gateway, _relayed) = Fake::new(Plan::Open);
    let running = run(gateway, 1).await;
    let mut first = UnixStream::connect(&running.path).await.unwrap();
    first.write_all(REQUEST).await.unwrap();
    expect_established(&mut first).await;

    let mut second = UnixStream::connect(&running.path).await.unwrap();
    // As kube-apiserver, which does not look whether its request could be written.
    let _ = second.write_all(REQUEST).await;
    let mut answer = [0; 256];
    let read = second.read(&mut answer).await.unwrap();
    let answer = std::str::from_utf8(answer.get(..read).unwrap()).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 503 front doors are full"),
        "{answer}"
    );

    drop(first);
    running.tracker.close();
    running.tracker.wait().await;
    let mut third = UnixStream::connect(&running.path).await.unwrap();
    third.write_all(REQUEST).await.unwrap();
    expect_established(&mut third).await;
}
