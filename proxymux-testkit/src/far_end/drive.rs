//! The client's part in a script, over any stream: a socket, a tunnel, TLS inside a tunnel.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};

use super::{
    script::{Closer, Payload, Script},
    transfer::{self, Duplex, Moved, TransferError},
};
use crate::pattern::Pattern;

/// What a script came to, seen from the client.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Driven {
    /// Payload bytes sent, the script's line not among them.
    pub sent: u64,
    /// Payload bytes received.
    pub received: u64,
    /// The line that the far end ended with, where the script has one.
    pub report: Option<String>,
}

/// Why a script did not go as it says.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The streams.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The far end found something wrong with what it got, or did not report.
    #[error("the far end reports {0:?}")]
    Report(String),
    /// The far end resets, and an ordinary end was seen here.
    #[error("an end of stream instead of a reset")]
    EndInsteadOfReset,
}

/// Sends the script's line to a [scripted](super::FarEnd::scripted) far end and plays the
/// client's part.
///
/// Returns when both directions have ended, except for [`Script::Hole`], where there is nothing
/// to do: pass `&mut stream` to go on with it.
///
/// # Errors
///
/// It did not go as the script says.
pub async fn drive<T>(mut stream: T, script: &Script) -> Result<Driven, DriveError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let line = format!("{script}\n");
    let written = stream.write_all(line.as_bytes()).await;
    written.map_err(|error| Moved::default().failed(error))?;
    let flushed = stream.flush().await;
    flushed.map_err(|error| Moved::default().failed(error))?;
    drive_fixed(stream, script).await
}

/// As [`drive()`], with the line in a [record of TLS](Script::record).
///
/// # Errors
///
/// It did not go as the script says.
pub async fn drive_record<T>(mut stream: T, script: &Script) -> Result<Driven, DriveError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let written = stream.write_all(&script.record()).await;
    written.map_err(|error| Moved::default().failed(error))?;
    let flushed = stream.flush().await;
    flushed.map_err(|error| Moved::default().failed(error))?;
    drive_fixed(stream, script).await
}

/// Plays the client's part with a [fixed](super::FarEnd::fixed) far end.
///
/// # Errors
///
/// It did not go as the script says.
pub async fn drive_fixed<T>(stream: T, script: &Script) -> Result<Driven, DriveError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (reader, writer) = split(stream);
    let client = Client {
        reader,
        writer,
        moved: Moved::default(),
    };
    match *script {
        Script::Source {
            bytes, seed, first, ..
        } => client.source(Payload { bytes, seed }, first).await,
        Script::Sink { payload } => client.sink(payload.unwrap_or(NOTHING)).await,
        Script::Echo { payload } => client.echo(payload.unwrap_or(NOTHING)).await,
        Script::Duplex {
            bytes,
            seed,
            chunk,
            first,
        } => client.duplex(Payload { bytes, seed }, chunk, first).await,
        Script::Hole => Ok(client.driven(None)),
        Script::Reset { after } => client.reset(after).await,
    }
}

struct Client<R, W> {
    reader: R,
    writer: W,
    moved: Moved,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Client<R, W> {
    async fn source(
        mut self,
        Payload { bytes, seed }: Payload,
        first: Closer,
    ) -> Result<Driven, DriveError> {
        if first == Closer::Client {
            self.shutdown().await?;
        }
        let received = &mut self.moved.received;
        let pattern = Pattern::new(seed);
        let tail = transfer::receive(&mut self.reader, &pattern, bytes, received).await;
        let tail = tail.map_err(|failure| failure.at(self.moved))?;
        expect_nothing(&tail, bytes)?;
        if first == Closer::FarEnd {
            self.shutdown().await?;
        }
        Ok(self.driven(None))
    }

    async fn sink(mut self, Payload { bytes, seed }: Payload) -> Result<Driven, DriveError> {
        let (writer, sent) = (&mut self.writer, &mut self.moved.sent);
        let pattern = Pattern::new(seed);
        let result = transfer::send(writer, &pattern, bytes, super::DEFAULT_CHUNK, sent).await;
        result.map_err(|error| self.moved.failed(error))?;
        self.shutdown().await?;
        let nothing = Pattern::new(0);
        let tail = transfer::receive(&mut self.reader, &nothing, 0, &mut 0).await;
        let tail = tail.map_err(|failure| failure.at(self.moved))?;
        self.reported(tail)
    }

    async fn echo(self, Payload { bytes, seed }: Payload) -> Result<Driven, DriveError> {
        let chunk = super::DEFAULT_CHUNK;
        let (send, expect) = (Pattern::new(seed), Pattern::new(seed));
        let first = true;
        let duplex = Duplex {
            send,
            expect,
            bytes,
            chunk,
            first,
            tail: false,
        };
        self.run(duplex)
            .await
            .map(|(client, _)| client.driven(None))
    }

    async fn duplex(
        self,
        Payload { bytes, seed }: Payload,
        chunk: usize,
        first: Closer,
    ) -> Result<Driven, DriveError> {
        let first = first == Closer::Client;
        let duplex = Duplex {
            send: Pattern::new(seed.wrapping_add(1)),
            expect: Pattern::new(seed),
            bytes,
            chunk,
            first,
            tail: first,
        };
        let (mut client, tail) = self.run(duplex).await?;
        if first {
            return client.reported(tail);
        }
        client.shutdown().await?;
        Ok(client.driven(None))
    }

    async fn reset(mut self, after: u64) -> Result<Driven, DriveError> {
        let (writer, sent) = (&mut self.writer, &mut self.moved.sent);
        let pattern = Pattern::new(0);
        let result = transfer::send(writer, &pattern, after, super::DEFAULT_CHUNK, sent).await;
        result.map_err(|error| self.moved.failed(error))?;
        match self.reader.read_u8().await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(DriveError::EndInsteadOfReset)
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(self.driven(None)),
            Err(error) => Err(self.moved.failed(error).into()),
            Ok(_) => Err(DriveError::Transfer(TransferError::Long {
                expected: 0,
                extra: 1,
            })),
        }
    }

    async fn run(mut self, duplex: Duplex) -> Result<(Self, Vec<u8>), DriveError> {
        let (reader, writer) = (&mut self.reader, &mut self.writer);
        let tail = duplex.run(reader, writer, &mut self.moved).await?;
        Ok((self, tail))
    }

    async fn shutdown(&mut self) -> Result<(), DriveError> {
        let shutdown = self.writer.shutdown().await;
        shutdown.map_err(|error| self.moved.failed(error).into())
    }

    fn reported(self, tail: Vec<u8>) -> Result<Driven, DriveError> {
        let text = String::from_utf8_lossy(&tail).into_owned();
        let ok = format!("ok received={}", self.moved.sent);
        match text.strip_suffix('\n') {
            Some(line) if line == ok || line.starts_with(&format!("{ok} ")) => {
                Ok(self.driven(Some(line.to_owned())))
            }
            _ => Err(DriveError::Report(text)),
        }
    }

    fn driven(&self, report: Option<String>) -> Driven {
        Driven {
            sent: self.moved.sent,
            received: self.moved.received,
            report,
        }
    }
}

fn expect_nothing(tail: &[u8], expected: u64) -> Result<(), TransferError> {
    match tail.len() as u64 {
        0 => Ok(()),
        extra => Err(TransferError::Long { expected, extra }),
    }
}

const NOTHING: Payload = Payload { bytes: 0, seed: 0 };
