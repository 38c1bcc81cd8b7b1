//! The TLS connection under a session, once its handshake is over.
//!
//! Owns moving bytes between the TLS library and the connection, in large pieces: tokio-rustls,
//! which does the handshake, reads a record at a time and writes at every call, and under bulk
//! each of these is a system call and, at the other end, a wake-up. Here reading goes ahead by
//! several records, and records gather until they are flushed or are many.
//! Leaves all of TLS to rustls. A connection at rest holds no buffer for reading: it is lent by
//! the thread, and goes back when it is empty.

use std::{
    cell::RefCell,
    fmt,
    io::{self, BufRead as _, IoSlice, Read, Write},
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustls::Connection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{client, server};

/// A TLS connection that is past its handshake.
///
/// What is written is on its way only after a flush.
pub struct TlsStream<T> {
    io: T,
    tls: Connection,
    ahead: ReadAhead,
    /// The peer's side of the connection is closed.
    at_end: bool,
}

impl<T> TlsStream<T> {
    fn new(io: T, mut tls: Connection) -> Self {
        tls.set_buffer_limit(Some(WRITE_BUFFER_LIMIT));
        Self {
            io,
            tls,
            ahead: ReadAhead::default(),
            at_end: false,
        }
    }
}

impl<T> From<client::TlsStream<T>> for TlsStream<T> {
    fn from(stream: client::TlsStream<T>) -> Self {
        let (io, tls) = stream.into_inner();
        Self::new(io, tls.into())
    }
}

impl<T> From<server::TlsStream<T>> for TlsStream<T> {
    fn from(stream: server::TlsStream<T>) -> Self {
        let (io, tls) = stream.into_inner();
        Self::new(io, tls.into())
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> TlsStream<T> {
    /// Hands the next bytes of the connection to TLS; ready when there were some, or the end.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() && ready!(self.ahead.poll_fill(&mut self.io, cx))? == 0 {
            self.at_end = true;
        }
        let taken = self.tls.read_tls(&mut self.ahead);
        let processed = taken.and_then(|_| {
            let processed = self.tls.process_new_packets();
            processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        });
        if processed.is_err() {
            // There may be an alert to tell the peer why. If that has to wait, it is not told.
            let _ = self.poll_send(cx);
        }
        Poll::Ready(processed.map(drop))
    }

    /// Writes out records until none is left.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            let mut connection = SyncWriter {
                io: &mut self.io,
                cx,
            };
            match self.tls.write_tls(&mut connection) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while !this.at_end && this.tls.wants_read() {
            ready!(this.poll_receive(cx))?;
        }
        // An end without the goodbye of TLS is an error here.
        let mut reader = this.tls.reader();
        let plain = reader.fill_buf()?;
        let n = plain.len().min(buf.remaining());
        buf.put_slice(plain.get(..n).unwrap_or_default());
        reader.consume(n);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            // Nothing is taken when too much is waiting, or when there was nothing to take.
            let n = self.tls.writer().write_vectored(bufs)?;
            if n > 0 || bufs.iter().all(|buf| buf.is_empty()) {
                return Poll::Ready(Ok(n));
            }
            ready!(self.poll_send(cx))?;
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Only the first call has an effect.
        self.tls.send_close_notify();
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<T: fmt::Debug> fmt::Debug for TlsStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream")
            .field("io", &self.io)
            .field("at_end", &self.at_end)
            .finish_non_exhaustive()
    }
}

/// Bytes that were read and that TLS has not asked for yet.
#[derive(Default)]
struct ReadAhead {
    /// Empty, or [`READ_BUFFER_LEN`] bytes of which `used..filled` are waiting.
    buffer: Vec<u8>,
    used: usize,
    filled: usize,
}

impl ReadAhead {
    fn is_empty(&self) -> bool {
        self.used == self.filled
    }

    /// Reads once; how much came, which is 0 at the end.
    fn poll_fill(
        &mut self,
        io: &mut (impl AsyncRead + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.buffer.is_empty() {
            let spare = SPARE.with_borrow_mut(Option::take);
            self.buffer = spare.unwrap_or_else(|| vec![0; READ_BUFFER_LEN]);
        }
        let mut room = ReadBuf::new(&mut self.buffer);
        let read = Pin::new(io).poll_read(cx, &mut room);
        (self.used, self.filled) = (0, room.filled().len());
        self.give_back_if_empty();
        read.map_ok(|()| self.filled)
    }

    fn give_back_if_empty(&mut self) {
        if self.is_empty() {
            let buffer = std::mem::take(&mut self.buffer);
            SPARE.with_borrow_mut(|spare| *spare = Some(buffer));
        }
    }
}

impl Read for ReadAhead {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let waiting = self.buffer.get(self.used..self.filled).unwrap_or_default();
        let n = waiting.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..n), waiting.get(..n)) {
            to.copy_from_slice(from);
        }
        self.used += n;
        if n > 0 {
            self.give_back_if_empty();
        }
        Ok(n)
    }
}

/// The connection's writing side as rustls wants it.
struct SyncWriter<'a, 'b, T> {
    io: &'a mut T,
    cx: &'a mut Context<'b>,
}

impl<T: AsyncWrite + Unpin> Write for SyncWriter<'_, '_, T> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        would_block(Pin::new(&mut *self.io).poll_write(self.cx, buf))
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        would_block(Pin::new(&mut *self.io).poll_write_vectored(self.cx, bufs))
    }

    fn flush(&mut self) -> io::Result<()> {
        would_block(Pin::new(&mut *self.io).poll_flush(self.cx))
    }
}

fn would_block<T>(outcome: Poll<io::Result<T>>) -> io::Result<T> {
    match outcome {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

thread_local! {
    /// The buffer that the connections of this thread take in turns; while one keeps it, because
    /// TLS has not asked for all of it, another gets one made.
    static SPARE: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// What a peer that is busy sends at a time: eight full records.
const READ_BUFFER_LEN: usize = 8 * (16 * 1024 + RECORD_OVERHEAD);

/// What a record has besides its payload: header, type and tag (RFC 8446, 5.2).
const RECORD_OVERHEAD: usize = 5 + 1 + 16;

/// Records that may wait for a flush: two chunks of a stream at their longest.
const WRITE_BUFFER_LIMIT: usize = 8 * (16 * 1024 + RECORD_OVERHEAD);

#[cfg(test)]
mod tests;
