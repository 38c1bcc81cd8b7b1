//! What two masters say to each other while one takes over, in lines of text.
//!
//! Owns the words, their limits, and the descriptors of listeners that go with one of them. Both
//! masters are of the same user and may be of different versions: the first line has a number.

// The new one says what is on the left, the running one what is in the middle:
//
//     new                running
//     takeover 1 PID
//                        here NAME NAME ...    with a listener for each name
//     ready                                    the new one accepts agents
//     nodes              nodes NAME NAME ...   whom the running one has, again and again
//     doors              bye                   the new one has the front doors

use std::{io, os::fd::OwnedFd, time::Duration};

use proxymux_transport::socket::receive_descriptors;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream},
    net::UnixStream,
    time::timeout,
};

/// The version of these words.
pub(super) const VERSION: &str = "1";

pub(super) const TAKEOVER: &str = "takeover";
pub(super) const HERE: &str = "here";
pub(super) const BUSY: &str = "busy";
pub(super) const READY: &str = "ready";
pub(super) const NODES: &str = "nodes";
pub(super) const DOORS: &str = "doors";
pub(super) const BYE: &str = "bye";

/// What the listener for agents is called in its name.
pub(crate) const AGENTS: &str = "agents";

/// The name of a listener: what it is for, and the address in the configuration.
pub(crate) fn listener_name(kind: &str, at: std::net::SocketAddr) -> String {
    format!("{kind}={at}")
}

/// Why a talk ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TalkError {
    #[error("the other master has closed the connection")]
    Closed,
    #[error("the other master has said nothing for {} s", .0.as_secs())]
    Silent(Duration),
    #[error("the other master has said `{0}`, which is out of turn")]
    Unexpected(String),
    #[error("connection between the masters failed")]
    Io(#[source] io::Error),
}

/// A talk between two masters.
#[derive(Debug)]
pub(super) struct Talk(BufStream<UnixStream>);

impl Talk {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self(BufStream::new(stream))
    }

    pub(super) fn stream(&self) -> &UnixStream {
        self.0.get_ref()
    }

    /// Says a line.
    pub(super) async fn say(&mut self, line: &str) -> Result<(), TalkError> {
        let said = async {
            self.0.write_all(line.as_bytes()).await?;
            self.0.write_all(b"\n").await?;
            self.0.flush().await
        };
        match timeout(SAY_LIMIT, said).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Err(TalkError::Closed),
            Ok(Err(error)) => Err(TalkError::Io(error)),
            Err(_) => Err(TalkError::Silent(SAY_LIMIT)),
        }
    }

    /// Waits for a line. Not to be called again after an error.
    pub(super) async fn hear(&mut self, limit: Duration) -> Result<String, TalkError> {
        let mut line = String::new();
        let mut bounded = (&mut self.0).take(MAX_LINE);
        match timeout(limit, bounded.read_line(&mut line)).await {
            Err(_) => Err(TalkError::Silent(limit)),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
                Err(TalkError::Closed)
            }
            Ok(Err(error)) => Err(TalkError::Io(error)),
            Ok(Ok(_)) => match line.strip_suffix('\n') {
                Some(line) => Ok(line.to_owned()),
                None => Err(TalkError::Closed),
            },
        }
    }

    /// Waits for the line with which listeners come. Nothing else may have been heard yet.
    pub(super) async fn hear_with_listeners(
        &mut self,
    ) -> Result<(String, Vec<OwnedFd>), TalkError> {
        let mut line = Vec::new();
        let mut listeners = Vec::new();
        let all = async {
            while !line.ends_with(b"\n") {
                let mut bytes = [0; FIRST_LINE];
                let stream = self.0.get_ref();
                let (len, more) = receive_descriptors(stream, &mut bytes, MAX_LISTENERS)
                    .await
                    .map_err(TalkError::Io)?;
                if len == 0 || line.len() > FIRST_LINE {
                    return Err(TalkError::Closed);
                }
                line.extend_from_slice(bytes.get(..len).unwrap_or_default());
                listeners.extend(more);
            }
            Ok(())
        };
        timeout(ANSWER_LIMIT, all)
            .await
            .map_err(|_| TalkError::Silent(ANSWER_LIMIT))??;
        let line = String::from_utf8_lossy(&line);
        Ok((line.trim_end_matches('\n').to_owned(), listeners))
    }
}

/// A line into an empty buffer of the kernel, or to a process that reads.
const SAY_LIMIT: Duration = Duration::from_secs(5);

/// How long the running master may take to answer: it has nothing to wait for.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Names of 16,384 nodes, each as long as they may be.
const MAX_LINE: u64 = 16_384 * 256;

/// The names of all listeners, which are addresses.
const FIRST_LINE: usize = 16 * 1024;

/// Each front door may have one. The kernel sends at most 253 (SCM_MAX_FD).
const MAX_LISTENERS: usize = 128;
