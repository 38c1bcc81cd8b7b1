//! A connection through the front door, once the answer has been read: raw bytes both ways.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::client::TlsStream;

/// Raw bytes to the target and back. [`AsyncWriteExt::shutdown`](tokio::io::AsyncWriteExt)
/// half-closes; dropping it closes.
#[derive(Debug)]
pub struct Tunnel {
    wire: Wire,
}

#[derive(Debug)]
enum Wire {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Tunnel {
    pub(super) fn unix(stream: UnixStream) -> Self {
        Self {
            wire: Wire::Unix(stream),
        }
    }

    pub(super) fn tcp(stream: TcpStream) -> Self {
        Self {
            wire: Wire::Tcp(stream),
        }
    }

    pub(super) fn tls(stream: TlsStream<TcpStream>) -> Self {
        Self {
            wire: Wire::Tls(Box::new(stream)),
        }
    }

    /// Ends the connection by a reset where it is TCP. A Unix socket knows none: it is closed,
    /// and what the peer then writes fails.
    ///
    /// # Errors
    ///
    /// The socket refuses.
    pub fn abort(self) -> io::Result<()> {
        match &self.wire {
            Wire::Unix(_) => Ok(()),
            Wire::Tcp(stream) => stream.set_zero_linger(),
            Wire::Tls(stream) => stream.get_ref().0.set_zero_linger(),
        }
    }
}

/// Calls the method on whichever stream it is.
macro_rules! on_wire {
    ($self:ident, $stream:ident => $call:expr) => {
        match &mut $self.get_mut().wire {
            Wire::Unix($stream) => $call,
            Wire::Tcp($stream) => $call,
            Wire::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Tunnel {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        on_wire!(self, stream => Pin::new(stream).poll_read(context, buffer))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        on_wire!(self, stream => Pin::new(stream).poll_write(context, data))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_wire!(self, stream => Pin::new(stream).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_wire!(self, stream => Pin::new(stream).poll_shutdown(context))
    }
}
