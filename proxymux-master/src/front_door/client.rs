//! The connection of a client at a front door, whatever it runs over.
//!
//! Owns one type for Unix socket, TCP and TLS, so that everything behind the front doors is
//! written once. Leaves accepting to the listeners and the request to `serve`.
//! A read error that was met before the relay began is kept and met again by the relay's first
//! read: the kernel tells of an error once, and says "end" from then on.

use std::{
    fmt,
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    task::{Context, Poll},
};

use proxymux_transport::{relay::Endpoint, socket};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::server::TlsStream;

/// A client's connection: a byte stream that can be relayed.
pub(crate) struct Client {
    io: Io,
    /// What the next read is to meet.
    failed: Option<io::Error>,
}

/// A client's connection that is a plain socket.
#[derive(Debug)]
pub(crate) enum Plain {
    Unix(UnixStream),
    Tcp(TcpStream),
}

enum Io {
    Unix(UnixStream),
    Tcp(TcpStream),
    /// Boxed: it is twenty times the size of the others.
    Tls(Box<TlsStream<TcpStream>>),
    /// A pipe in memory, which a paused clock does not overtake.
    #[cfg(test)]
    Memory(tokio::io::DuplexStream, std::fs::File),
}

impl Client {
    /// Has the next read meet this error instead of the end that would follow it.
    pub(crate) fn fail_next_read(&mut self, error: io::Error) {
        self.failed = Some(error);
    }

    /// The socket under the connection, if what is read from it are the client's bytes and nothing
    /// is to be met by the next read.
    pub(crate) fn into_plain(self) -> Result<Plain, Self> {
        match (self.io, self.failed) {
            (Io::Unix(stream), None) => Ok(Plain::Unix(stream)),
            (Io::Tcp(stream), None) => Ok(Plain::Tcp(stream)),
            (io, failed) => Err(Self { io, failed }),
        }
    }
}

impl From<UnixStream> for Client {
    fn from(stream: UnixStream) -> Self {
        Self {
            io: Io::Unix(stream),
            failed: None,
        }
    }
}

impl From<TcpStream> for Client {
    fn from(stream: TcpStream) -> Self {
        Self {
            io: Io::Tcp(stream),
            failed: None,
        }
    }
}

impl From<TlsStream<TcpStream>> for Client {
    fn from(stream: TlsStream<TcpStream>) -> Self {
        Self {
            io: Io::Tls(Box::new(stream)),
            failed: None,
        }
    }
}

#[cfg(test)]
impl From<tokio::io::DuplexStream> for Client {
    fn from(stream: tokio::io::DuplexStream) -> Self {
        let socket = std::fs::File::open("/dev/null").unwrap();
        Self {
            io: Io::Memory(stream, socket),
            failed: None,
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.io {
            Io::Unix(_) => "unix",
            Io::Tcp(_) => "tcp",
            Io::Tls(_) => "tls",
            #[cfg(test)]
            Io::Memory(..) => "memory",
        };
        f.debug_struct("Client")
            .field("io", &kind)
            .field("failed", &self.failed)
            .finish()
    }
}

impl Endpoint for Client {
    fn socket(&self) -> BorrowedFd<'_> {
        match &self.io {
            Io::Unix(stream) => stream.as_fd(),
            Io::Tcp(stream) => stream.as_fd(),
            Io::Tls(stream) => stream.get_ref().0.as_fd(),
            #[cfg(test)]
            Io::Memory(_, socket) => socket.as_fd(),
        }
    }

    fn reset_on_close(&mut self) {
        match &self.io {
            // A Unix socket knows no reset: its peer sees the connection close.
            Io::Unix(_) => {}
            // The option is refused only for a connection that is gone already.
            Io::Tcp(stream) => drop(socket::reset_on_close(stream)),
            Io::Tls(stream) => drop(socket::reset_on_close(stream.get_ref().0)),
            #[cfg(test)]
            Io::Memory(..) => {}
        }
    }

    fn end_on_close(&mut self) {
        match &self.io {
            Io::Unix(_) => {}
            // The option is refused only for a connection that is gone already.
            Io::Tcp(stream) => drop(socket::end_on_close(stream)),
            Io::Tls(stream) => drop(socket::end_on_close(stream.get_ref().0)),
            #[cfg(test)]
            Io::Memory(..) => {}
        }
    }
}

/// Calls the same method of whichever stream is inside.
macro_rules! delegate {
    ($self:expr, $stream:ident => $call:expr) => {
        match &mut $self.get_mut().io {
            Io::Unix(inner) => {
                let $stream = Pin::new(inner);
                $call
            }
            Io::Tcp(inner) => {
                let $stream = Pin::new(inner);
                $call
            }
            Io::Tls(inner) => {
                let $stream = Pin::new(inner.as_mut());
                $call
            }
            #[cfg(test)]
            Io::Memory(inner, _) => {
                let $stream = Pin::new(inner);
                $call
            }
        }
    };
}

impl AsyncRead for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        delegate!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Client {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, stream => stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Unix(stream) => stream.is_write_vectored(),
            Io::Tcp(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
            #[cfg(test)]
            Io::Memory(stream, _) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, stream => stream.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_kept_error_is_met_once_and_then_the_stream_goes_on() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut client = Client::from(near);
        far.write_all(b"x").await.unwrap();

        client.fail_next_read(io::ErrorKind::ConnectionReset.into());

        let error = client.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(client.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn a_tcp_client_can_be_reset_and_a_unix_client_is_closed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (far, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut tcp_far, mut tcp) = (far.unwrap(), Client::from(accepted.unwrap().0));
        let (near, mut unix_far) = UnixStream::pair().unwrap();
        let mut unix = Client::from(near);

        for client in [&mut tcp, &mut unix] {
            client.reset_on_close();
        }
        drop((tcp, unix));

        let error = tcp_far.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(unix_far.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_and_a_half_close_is_passed_on() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut client = Client::from(near);
        assert!(client.is_write_vectored());

        let parts = [IoSlice::new(b"ab"), IoSlice::new(b"cd")];
        assert_eq!(client.write_vectored(&parts).await.unwrap(), 4);
        client.shutdown().await.unwrap();
        far.write_all(b"answer").await.unwrap();
        far.shutdown().await.unwrap();

        let (mut at_far, mut at_client) = (String::new(), String::new());
        far.read_to_string(&mut at_far).await.unwrap();
        client.read_to_string(&mut at_client).await.unwrap();
        assert_eq!((at_far.as_str(), at_client.as_str()), ("abcd", "answer"));
    }
}
