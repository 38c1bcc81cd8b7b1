//! Between the 200 and the first byte that a flow carries.
//!
//! Owns the wait for the client's first bytes, and the judgement on them: only what begins with TLS
//! goes on a flow, since a flow adds no encryption; and only if the flow still lives at that
//! moment. Everything else goes by the session, and the client does not notice.
//! Leaves the relay, and opening a stream instead, to `gateway.rs`. Read [`judge`].

use std::{io, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use proxymux_transport::{beginning::Beginning, memory::HeldBytes, relay::Outcome};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use super::{OpenFlow, Why};
use crate::front_door::{Client, early_bytes};

/// What is to become of a connection whose flow is open.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It goes on the flow, these bytes first.
    Flow(Bytes),
    /// It goes by the session, these bytes first.
    Session(Bytes, Why),
    /// It is over before it began.
    Over(Outcome, Option<io::Error>),
}

/// What ends the wait besides client and flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits<'a> {
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) cut: &'a CancellationToken,
}

/// Waits until the client's first bytes say where they go. `early` is what it has sent already.
///
/// The wait has no limit but that for idle connections: a client that keeps a connection in
/// reserve says nothing for as long as it likes, and a flow that dies meanwhile is replaced.
pub(crate) async fn judge(
    client: &mut Client,
    early: Bytes,
    open: &OpenFlow,
    account: HeldBytes,
    limits: Limits<'_>,
) -> Verdict {
    if let Some(verdict) = judged(&early, open) {
        return verdict(early);
    }
    let mut received = BytesMut::from(&early[..]);
    let idle = async {
        match limits.idle_timeout {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(idle);
    loop {
        let read = tokio::select! {
            read = read_some(client, &mut received) => read,
            () = flow_stirs(open) => {
                return Verdict::Session(early_bytes(received, account), Why::FlowLost);
            }
            () = &mut idle => return Verdict::Over(Outcome::Idle, None),
            () = limits.cut.cancelled() => return Verdict::Over(Outcome::Drained, None),
        };
        match read {
            // What has said nothing has nothing to be kept secret, but may have an answer to get.
            Ok(0) => return Verdict::Session(early_bytes(received, account), Why::NotTls),
            Ok(_) => {}
            Err(error) => return Verdict::Over(Outcome::LocalReset, Some(error)),
        }
        if let Some(verdict) = judged(&received, open) {
            return verdict(early_bytes(received, account));
        }
    }
}

/// What these first bytes mean; `None` while they are too few.
fn judged(first: &[u8], open: &OpenFlow) -> Option<fn(Bytes) -> Verdict> {
    match Beginning::of(first) {
        Beginning::Unclear => None,
        // Looked at last: from here on the client would notice.
        Beginning::Tls if open.flow.is_quiet() => Some(Verdict::Flow),
        Beginning::Tls => Some(|early| Verdict::Session(early, Why::FlowLost)),
        Beginning::Flow | Beginning::Http | Beginning::Other => {
            Some(|early| Verdict::Session(early, Why::NotTls))
        }
    }
}

/// Room is only taken when there is something to be read.
///
/// Cancel-safe: what was read is in `received`.
async fn read_some(client: &mut Client, received: &mut BytesMut) -> io::Result<usize> {
    received.reserve(FIRST_READ);
    client.read_buf(&mut received.limit(FIRST_READ)).await
}

/// Becomes ready when the flow has ended, failed, or says something, none of which it may before
/// the client's first byte; or when its agent has had no session for too long.
///
/// Cancel-safe.
async fn flow_stirs(open: &OpenFlow) {
    let mut byte = [0];
    tokio::select! {
        // Whatever it is: bytes, an end, or an error.
        _ = open.flow.connection().peek(&mut byte) => {}
        () = open.guard.over() => {}
    }
}

/// Room for a ClientHello, most of which fit into one segment.
const FIRST_READ: usize = 2048;
