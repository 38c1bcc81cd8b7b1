//! Sending and checking patterned streams: the same work on both ends of a connection.

use std::io;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::oneshot,
};

use crate::pattern::{Digest, Mismatch, Pattern};

/// Why a stream did not get through as it should.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The connection failed.
    #[error("after {sent} bytes sent and {received} received: {source}")]
    Io {
        /// Payload bytes sent before.
        sent: u64,
        /// Payload bytes received before.
        received: u64,
        /// What happened.
        source: io::Error,
    },
    /// A byte was wrong.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// The end came too early.
    #[error("stream ended after {received} bytes, expected {expected}")]
    Short {
        /// How much came.
        received: u64,
        /// How much should have.
        expected: u64,
    },
    /// More came than there should.
    #[error("{extra} bytes behind the {expected} expected")]
    Long {
        /// How much should have come.
        expected: u64,
        /// How much more there was when it was noticed.
        extra: u64,
    },
}

/// Payload bytes moved so far, also when the future that moved them failed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moved {
    pub(super) sent: u64,
    pub(super) received: u64,
}

impl Moved {
    pub(super) fn failed(self, source: io::Error) -> TransferError {
        TransferError::Io {
            sent: self.sent,
            received: self.received,
            source,
        }
    }
}

/// One side of a transfer in both directions at once.
pub(super) struct Duplex {
    pub(super) send: Pattern,
    pub(super) expect: Pattern,
    pub(super) bytes: u64,
    pub(super) chunk: usize,
    /// Whether this side half-closes first. If not, it holds its last byte back until it has
    /// seen the other's end, and leaves its own end to the caller.
    pub(super) first: bool,
    /// Whether something may follow the other's stream.
    pub(super) tail: bool,
}

impl Duplex {
    /// Returns what followed the other's stream.
    pub(super) async fn run(
        &self,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
        moved: &mut Moved,
    ) -> Result<Vec<u8>, TransferError> {
        let Moved { sent, received } = moved;
        let (saw_end, end_seen) = oneshot::channel();
        let sending = async {
            if self.first {
                send(writer, &self.send, self.bytes, self.chunk, sent).await?;
                return writer.shutdown().await;
            }
            send(
                writer,
                &self.send,
                self.bytes.saturating_sub(1),
                self.chunk,
                sent,
            )
            .await?;
            // An error means that receiving has failed, and that ends both.
            if end_seen.await.is_ok() {
                send(writer, &self.send, self.bytes, self.chunk, sent).await?;
            }
            Ok(())
        };
        let receiving = async {
            let tail = receive(reader, &self.expect, self.bytes, received).await?;
            if !self.tail && !tail.is_empty() {
                let (expected, extra) = (self.bytes, tail.len() as u64);
                return Err(Failure::Transfer(TransferError::Long { expected, extra }));
            }
            // Nobody waits for it if this side was the first to end.
            let _ = saw_end.send(());
            Ok(tail)
        };
        let sending = async { sending.await.map_err(Failure::Io) };
        let outcome = tokio::try_join!(sending, receiving);
        outcome
            .map(|((), tail)| tail)
            .map_err(|failure| failure.at(*moved))
    }
}

/// Sends bytes of `pattern` from `*sent` up to `to`.
pub(super) async fn send(
    writer: &mut (impl AsyncWrite + Unpin),
    pattern: &Pattern,
    to: u64,
    chunk: usize,
    sent: &mut u64,
) -> io::Result<()> {
    while *sent < to {
        let left = usize::try_from(to - *sent).unwrap_or(usize::MAX);
        let piece = pattern.at(*sent, left.min(chunk));
        writer.write_all(piece).await?;
        *sent += piece.len() as u64;
    }
    writer.flush().await
}

/// Reads to the end, checks the first `bytes` and returns what follows them (at most a line's
/// worth).
pub(super) async fn receive(
    reader: &mut (impl AsyncRead + Unpin),
    pattern: &Pattern,
    bytes: u64,
    received: &mut u64,
) -> Result<Vec<u8>, Failure> {
    let mut verifier = pattern.verifier();
    let mut buffer = vec![0; READ_SIZE];
    let mut tail = Vec::new();
    loop {
        let length = reader.read(&mut buffer).await.map_err(Failure::Io)?;
        let data = buffer.get(..length).unwrap_or_default();
        if data.is_empty() {
            break;
        }
        let left = usize::try_from(bytes - *received).unwrap_or(usize::MAX);
        let (stream, behind) = data.split_at(left.min(data.len()));
        verifier.check(stream).map_err(TransferError::from)?;
        *received += stream.len() as u64;
        tail.extend_from_slice(behind);
        if tail.len() > MAX_TAIL {
            let (expected, extra) = (bytes, tail.len() as u64);
            return Err(TransferError::Long { expected, extra }.into());
        }
    }
    if *received < bytes {
        let (received, expected) = (*received, bytes);
        return Err(TransferError::Short { received, expected }.into());
    }
    Ok(tail)
}

/// Reads to the end and digests.
pub(super) async fn digest(
    reader: &mut (impl AsyncRead + Unpin),
    received: &mut u64,
) -> io::Result<u64> {
    let mut digest = Digest::default();
    let mut buffer = vec![0; READ_SIZE];
    loop {
        let length = reader.read(&mut buffer).await?;
        if length == 0 {
            return Ok(digest.finish());
        }
        digest.update(buffer.get(..length).unwrap_or_default());
        *received = digest.length();
    }
}

/// A failure that does not know yet how far both directions had come.
pub(super) enum Failure {
    Io(io::Error),
    Transfer(TransferError),
}

impl Failure {
    pub(super) fn at(self, moved: Moved) -> TransferError {
        match self {
            Self::Io(source) => moved.failed(source),
            Self::Transfer(error) => error,
        }
    }
}

impl From<TransferError> for Failure {
    fn from(error: TransferError) -> Self {
        Self::Transfer(error)
    }
}

const READ_SIZE: usize = 256 * 1024;
/// A report is one short line.
const MAX_TAIL: usize = 4096;
