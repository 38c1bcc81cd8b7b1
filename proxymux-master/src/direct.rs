//! Connections that the master dials itself, for routes that say `direct`.
//!
//! Owns dialling and the relay between two connections. Webhooks, aggregated APIs and services
//! take this way when the API server sends everything for the cluster through its egress.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use proxymux_transport::{
    relay::{Endpoint, Outcome, RelayBytes, RelayOptions},
    socket,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    time::Instant,
};

use crate::front_door::{Client, Refusal, Status};

/// Dials a target by `deadline`.
///
/// # Errors
///
/// With the answer for the user.
pub(crate) async fn dial(at: SocketAddr, deadline: Instant) -> Result<TcpStream, Refusal> {
    let dialled = tokio::time::timeout_at(deadline, TcpStream::connect(at)).await;
    let connection = dialled.map_err(|_| {
        let reason = format!("target {at} did not answer within the budget");
        Refusal::new(Status::GatewayTimeout, reason)
    })?;
    connection
        .and_then(|connection| socket::prepare_relayed(&connection).map(|()| connection))
        .map_err(|error| {
            let reason = format!("master cannot connect to target {at}: {}", error.kind());
            Refusal::new(Status::BadGateway, reason)
        })
}

/// Relays until both directions have ended, or one side failed.
pub(crate) async fn relay(
    mut client: Client,
    target: TcpStream,
    early: Bytes,
    options: &RelayOptions,
    bytes: &RelayBytes,
) -> Outcome {
    let mut target = Counted {
        connection: target,
        bytes,
    };
    let copied = async {
        target.write_all(&early).await?;
        tokio::io::copy_bidirectional(&mut client, &mut target).await
    };
    let outcome = tokio::select! {
        copied = copied => match copied {
            Ok(_) => Outcome::Done,
            Err(error) => {
                bytes.failed(&error);
                Outcome::LocalReset
            }
        },
        () = idle(options.idle_timeout, bytes) => Outcome::Idle,
        () = options.cancel.cancelled() => Outcome::Drained,
    };
    if outcome != Outcome::Done {
        client.reset_on_close();
        target.connection.reset_on_close();
    }
    outcome
}

/// Becomes ready when nothing has moved for `limit`.
async fn idle(limit: Option<Duration>, bytes: &RelayBytes) {
    let Some(limit) = limit else {
        return std::future::pending().await;
    };
    let mut seen = bytes.total();
    let mut moved = Instant::now();
    while moved.elapsed() < limit {
        tokio::time::sleep_until(moved + limit).await;
        if bytes.total() != seen {
            // At some time since the last look, so the limit may be overrun by as much again.
            seen = bytes.total();
            moved = Instant::now();
        }
    }
}

/// The target's connection, counting what goes each way.
struct Counted<'a> {
    connection: TcpStream,
    bytes: &'a RelayBytes,
}

impl AsyncRead for Counted<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.connection).poll_read(cx, buf))?;
        self.bytes.add_from_stream(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.connection).poll_write(cx, bytes))?;
        self.bytes.add_to_stream(n);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }
}
