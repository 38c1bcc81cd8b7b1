//! The far end's part in a script.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    script::{Closer, Payload, RECORD, RECORD_HEAD, Script, ScriptError},
    transfer::{self, Duplex, Failure, Moved, TransferError},
};
use crate::pattern::Pattern;

/// Why a connection did not go as its script says.
#[derive(Debug, thiserror::Error)]
pub enum PlayError {
    /// The first line is no script.
    #[error("first line: {0}")]
    Script(#[from] ScriptError),
    /// The client ended, or went on for too long, before it had finished its first line.
    #[error("first line is not there: {0:?}")]
    NoLine(String),
    /// The streams.
    #[error(transparent)]
    Transfer(#[from] TransferError),
}

/// One connection being played.
#[derive(Debug)]
pub(super) struct Player {
    pub(super) script: Option<Script>,
    pub(super) moved: Moved,
    stream: TcpStream,
}

impl Player {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            script: None,
            moved: Moved::default(),
            stream,
        }
    }

    /// Plays the given script, or the one in the first line. Does not close the stream: whoever
    /// drops the player does.
    pub(super) async fn play(&mut self, fixed: Option<Script>) -> Result<(), PlayError> {
        self.io(|stream| stream.set_nodelay(true))?;
        let script = match fixed {
            Some(script) => script,
            None => self.read_script().await?,
        };
        match *self.script.insert(script) {
            Script::Source {
                bytes,
                seed,
                chunk,
                first,
            } => self.source(Payload { bytes, seed }, chunk, first).await?,
            Script::Sink { payload: None } => self.digest().await?,
            Script::Sink {
                payload: Some(payload),
            } => self.check(payload).await?,
            Script::Echo { .. } => self.echo().await?,
            Script::Duplex {
                bytes,
                seed,
                chunk,
                first,
            } => self.duplex(Payload { bytes, seed }, chunk, first).await?,
            Script::Hole => std::future::pending().await,
            Script::Reset { after } => self.reset(after).await?,
        }
        Ok(())
    }

    /// Byte by byte, because what follows the line is payload and stays in the socket. The line may
    /// be in a record of TLS, see [`Script::record`].
    async fn read_script(&mut self) -> Result<Script, PlayError> {
        let mut line = Vec::new();
        while line.len() < MAX_LINE {
            let byte = match self.stream.read_u8().await {
                Ok(b'\n') => return Ok(String::from_utf8_lossy(&line).parse()?),
                Ok(RECORD) if line.is_empty() => {
                    let rest = self.stream.read_exact(&mut [0; RECORD_HEAD - 1]).await;
                    rest.map_err(|error| self.moved.failed(error))?;
                    continue;
                }
                Ok(byte) => byte,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(self.moved.failed(error).into()),
            };
            line.push(byte);
        }
        Err(PlayError::NoLine(
            String::from_utf8_lossy(&line).into_owned(),
        ))
    }

    async fn source(
        &mut self,
        Payload { bytes, seed }: Payload,
        chunk: usize,
        first: Closer,
    ) -> Result<(), TransferError> {
        let pattern = Pattern::new(seed);
        if first == Closer::Client {
            self.expect_end().await?;
        }
        let sent = transfer::send(
            &mut self.stream,
            &pattern,
            bytes,
            chunk,
            &mut self.moved.sent,
        );
        sent.await.map_err(|error| self.moved.failed(error))?;
        if first == Closer::FarEnd {
            let shutdown = self.stream.shutdown().await;
            shutdown.map_err(|error| self.moved.failed(error))?;
            self.expect_end().await?;
        }
        Ok(())
    }

    async fn digest(&mut self) -> Result<(), TransferError> {
        let digest = transfer::digest(&mut self.stream, &mut self.moved.received).await;
        let digest = digest.map_err(|error| self.moved.failed(error))?;
        let received = self.moved.received;
        self.report(&format!("ok received={received} digest={digest:016x}\n"))
            .await
    }

    /// A client that is still sending would not see an answer, so that a mismatch is reported
    /// when all has been read.
    async fn check(&mut self, Payload { bytes, seed }: Payload) -> Result<(), TransferError> {
        let (stream, received) = (&mut self.stream, &mut self.moved.received);
        let checked = transfer::receive(stream, &Pattern::new(seed), bytes, received).await;
        let verdict = match checked {
            Ok(tail) if tail.is_empty() => Ok(()),
            Ok(tail) => Err(TransferError::Long {
                expected: bytes,
                extra: tail.len() as u64,
            }),
            Err(Failure::Io(error)) => return Err(self.moved.failed(error)),
            Err(Failure::Transfer(error)) => {
                let rest = transfer::digest(&mut self.stream, &mut 0).await;
                rest.map_err(|error| self.moved.failed(error))?;
                Err(error)
            }
        };
        self.report(&report_line(&verdict, self.moved.received))
            .await?;
        verdict
    }

    async fn echo(&mut self) -> Result<(), TransferError> {
        let mut buffer = vec![0; ECHO_SIZE];
        loop {
            let length = self.stream.read(&mut buffer).await;
            let length = length.map_err(|error| self.moved.failed(error))?;
            if length == 0 {
                return Ok(());
            }
            self.moved.received += length as u64;
            let data = buffer.get(..length).unwrap_or_default();
            let written = self.stream.write_all(data).await;
            written.map_err(|error| self.moved.failed(error))?;
            self.moved.sent += length as u64;
        }
    }

    async fn duplex(
        &mut self,
        Payload { bytes, seed }: Payload,
        chunk: usize,
        first: Closer,
    ) -> Result<(), TransferError> {
        let duplex = Duplex {
            send: Pattern::new(seed),
            expect: Pattern::new(seed.wrapping_add(1)),
            bytes,
            chunk,
            first: first == Closer::FarEnd,
            tail: false,
        };
        let (mut reader, mut writer) = self.stream.split();
        duplex
            .run(&mut reader, &mut writer, &mut self.moved)
            .await?;
        if first == Closer::Client {
            self.report(&report_line(&Ok(()), self.moved.received))
                .await?;
        }
        Ok(())
    }

    async fn reset(&mut self, after: u64) -> Result<(), TransferError> {
        let mut payload = (&mut self.stream).take(after);
        let read = tokio::io::copy(&mut payload, &mut tokio::io::sink()).await;
        self.moved.received = read.map_err(|error| self.moved.failed(error))?;
        if self.moved.received < after {
            return Err(TransferError::Short {
                received: self.moved.received,
                expected: after,
            });
        }
        self.io(TcpStream::set_zero_linger)
    }

    async fn expect_end(&mut self) -> Result<(), TransferError> {
        let received = &mut self.moved.received;
        let rest = transfer::digest(&mut self.stream, received).await;
        rest.map_err(|error| self.moved.failed(error))?;
        match self.moved.received {
            0 => Ok(()),
            extra => Err(TransferError::Long { expected: 0, extra }),
        }
    }

    async fn report(&mut self, line: &str) -> Result<(), TransferError> {
        let written = self.stream.write_all(line.as_bytes()).await;
        written.map_err(|error| self.moved.failed(error))
    }

    fn io(&self, call: impl FnOnce(&TcpStream) -> io::Result<()>) -> Result<(), TransferError> {
        call(&self.stream).map_err(|error| self.moved.failed(error))
    }
}

fn report_line(verdict: &Result<(), TransferError>, received: u64) -> String {
    match verdict {
        Ok(()) => format!("ok received={received}\n"),
        Err(error) => format!("bad {error}\n"),
    }
}

/// The longest script has 90 bytes.
const MAX_LINE: usize = 256;
const ECHO_SIZE: usize = 64 * 1024;
