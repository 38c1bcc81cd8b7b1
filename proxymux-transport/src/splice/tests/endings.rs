//! Tests of how a spliced relay ends: in order, by a reset, or by being dropped.

use proxymux_proto::AbortCode;

use super::*;

async fn assert_reset(connection: &mut TcpStream) {
    let read = timeout(LIMIT, connection.read_to_end(&mut Vec::new())).await;
    let error = read.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn each_direction_may_end_first_and_the_other_goes_on() {
    for client_first in [true, false] {
        let mut rig = tcp_rig(b"").await;
        let (first, second) = if client_first {
            (&mut rig.client, &mut rig.server)
        } else {
            (&mut rig.server, &mut rig.client)
        };

        first.write_all(b"question").await.unwrap();
        first.shutdown().await.unwrap();
        let mut question = Vec::new();
        second.read_to_end(&mut question).await.unwrap();
        let answer = pattern(2 << 20, 3);
        let mut received = Vec::new();
        let both = async {
            tokio::join!(
                async {
                    second.write_all(&answer).await.unwrap();
                    second.shutdown().await.unwrap();
                },
                first.read_to_end(&mut received)
            )
        };
        timeout(LIMIT, both).await.unwrap().1.unwrap();

        assert_eq!(question, b"question");
        assert!(received == answer);
        assert_eq!(rig.outcome().await, Outcome::Done);
        assert_eq!(rig.bytes.problem(), None);
    }
}

#[tokio::test]
async fn an_end_with_bytes_still_in_the_pipe_comes_after_them() {
    let mut rig = tcp_rig(b"").await;
    let sent = fill(&mut rig.client, &[9; 4096]).await;
    rig.client.shutdown().await.unwrap();
    tokio::time::sleep(PAUSE).await;
    assert_eq!(rig.pipes.held(), 1);

    let mut received = Vec::new();
    let read = timeout(LIMIT, rig.server.read_to_end(&mut received)).await;

    read.unwrap().unwrap();
    assert_eq!(received.len(), sent);
    assert_eq!(rig.pipes.held(), 0);
    rig.server.shutdown().await.unwrap();
    assert_eq!(rig.outcome().await, Outcome::Done);
}

#[tokio::test]
async fn a_reset_is_passed_on_and_the_outcome_says_whose_it_was() {
    for client_resets in [true, false] {
        let mut rig = tcp_rig(b"").await;
        rig.client.write_all(b"some").await.unwrap();
        rig.server.read_exact(&mut [0; 4]).await.unwrap();
        let (gone, stays, expected) = if client_resets {
            (rig.client, &mut rig.server, Outcome::LocalReset)
        } else {
            let expected = Outcome::PeerAborted(AbortCode::Reset);
            (rig.server, &mut rig.client, expected)
        };

        socket::reset_on_close(&gone).unwrap();
        drop(gone);

        assert_reset(stays).await;
        let outcome = timeout(LIMIT, rig.relay).await.unwrap().unwrap();
        assert_eq!(outcome, expected);
        assert!(rig.bytes.problem().is_some());
    }
}

#[tokio::test]
async fn a_reset_of_the_server_closes_a_client_on_a_unix_socket() {
    let mut rig = unix_rig(b"").await;
    rig.client.write_all(b"some").await.unwrap();
    rig.server.read_exact(&mut [0; 4]).await.unwrap();

    socket::reset_on_close(&rig.server).unwrap();
    drop(rig.server);

    let mut rest = Vec::new();
    let read = timeout(LIMIT, rig.client.read_to_end(&mut rest)).await;
    // With bytes of the client unread it could be a reset, here all were.
    assert_eq!(read.unwrap().unwrap(), 0);
    let outcome = timeout(LIMIT, rig.relay).await.unwrap().unwrap();
    assert_eq!(outcome, Outcome::PeerAborted(AbortCode::Reset));
}

#[tokio::test]
async fn a_client_that_vanishes_from_a_unix_socket_in_the_middle_of_an_answer_is_a_reset() {
    let mut rig = unix_rig(b"").await;
    let sent = fill(&mut rig.server, &[7; 4096]).await;
    assert!(sent > 0);

    drop(rig.client);

    let writing = async { while rig.server.write_all(&[7; 4096]).await.is_ok() {} };
    timeout(LIMIT, writing).await.unwrap();
    let outcome = timeout(LIMIT, rig.relay).await.unwrap().unwrap();
    assert_eq!(outcome, Outcome::LocalReset);
    assert_eq!(rig.pipes.held(), 0);
}

#[tokio::test]
async fn a_client_that_resets_while_the_server_reads_nothing_is_noticed() {
    let mut rig = tcp_rig(b"").await;
    fill(&mut rig.client, &[7; 1 << 20]).await;
    assert_eq!(rig.pipes.held(), 1);

    socket::reset_on_close(&rig.client).unwrap();
    drop(rig.client);

    let outcome = timeout(LIMIT, rig.relay).await.unwrap().unwrap();
    assert_eq!(outcome, Outcome::LocalReset);
    // Its bytes went with it, so it is not one to be used again.
    assert_eq!((rig.pipes.held(), rig.pipes.free()), (0, 0));
    assert_eq!(rig.pipes.capacity(), 0);
}

#[tokio::test]
async fn a_client_that_closes_at_once_is_no_failure_if_the_server_then_ends() {
    let mut rig = tcp_rig(b"").await;
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
async fn a_drain_that_is_out_of_time_resets_both_with_bytes_in_the_pipe() {
    let mut rig = tcp_rig(b"").await;
    fill(&mut rig.client, &[7; 4096]).await;

    rig.cancel.cancel();

    assert_eq!(rig.outcome().await, Outcome::Drained);
    assert_reset(&mut rig.server).await;
    assert_eq!(rig.pipes.held(), 0);
}

#[tokio::test]
async fn an_urgent_byte_is_no_end() {
    use nix::sys::socket::{MsgFlags, send};
    use std::os::fd::AsRawFd as _;
    let mut rig = tcp_rig(b"").await;
    rig.client.write_all(b"before").await.unwrap();
    rig.server.read_exact(&mut [0; 6]).await.unwrap();

    send(rig.client.as_raw_fd(), b"!", MsgFlags::MSG_OOB).unwrap();
    rig.client.write_all(b"after").await.unwrap();

    let mut after = [0; 5];
    let read = timeout(LIMIT, rig.server.read_exact(&mut after)).await;
    read.unwrap().unwrap();
    assert_eq!(&after, b"after");
    assert!(!rig.relay.is_finished());
}
