//! Flows: opening and accepting them, until they can be relayed.
//!
//! Owns what both ends do alike: the secrets from TLS ([`keys`]), which sessions there are and
//! which hellos they have had ([`FlowTable`]), and saying and hearing messages on a connection
//! ([`FlowConnection`]). What is said is `proxymux_proto::FlowConversation`.
//! Leaves to the daemons when to dial, what to do with an accepted flow, and all deadlines beyond
//! that of the hello: every wait here is to be bounded by its caller, and may be cancelled by
//! dropping the connection.

use std::{io, os::fd::AsRawFd, sync::Arc};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};
use proxymux_proto::{
    FLOW_EXPORTER_LABEL, FLOW_HEADER_LEN, FLOW_HELLO_LEN, FlowConversation, FlowDirection,
    FlowError, FlowKeys, FlowMessage, FrameError,
};
use rustls::ConnectionCommon;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::TcpStream,
};

mod table;

pub use table::{FlowSession, FlowTable};

/// Takes a session's secrets for flows out of its TLS connection, after the handshake.
///
/// # Errors
///
/// Only before the end of the handshake.
pub fn keys<D>(connection: &ConnectionCommon<D>) -> Result<Arc<FlowKeys>, rustls::Error> {
    let keys = FlowKeys::export(|context, secret| {
        connection
            .export_keying_material(secret, FLOW_EXPORTER_LABEL, Some(context))
            .map(|_| ())
    })?;
    Ok(Arc::new(keys))
}

/// A flow that carries no payload yet.
///
/// Dropping it resets its connection, as an end without a word could be taken for one in order.
#[derive(Debug)]
pub struct FlowConnection {
    /// There until it is handed over.
    connection: Option<TcpStream>,
    conversation: FlowConversation,
}

/// Why a flow came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum FlowFault {
    /// What the peer sent is not to be believed.
    #[error("bad flow")]
    Peer(#[from] FlowError),
    /// The connection failed or ended.
    #[error("connection of the flow failed")]
    Io(#[from] io::Error),
    /// A message of ours is too long.
    #[error("message of a flow too long")]
    TooLong(#[from] FrameError),
}

impl FlowFault {
    /// Every word of [`FlowFault::as_str`].
    pub const WORDS: &[&str] = &[
        "connection",
        "not-a-hello",
        "version",
        "direction",
        "wrong-direction",
        "unknown-session",
        "forged",
        "replayed",
        "stale",
        "too-long",
        "unexpected",
        "malformed",
    ];

    /// The word for logs and metric labels, from a closed list.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Peer(error) => error.as_str(),
            Self::Io(_) => "connection",
            Self::TooLong(_) => "too-long",
        }
    }
}

impl FlowConnection {
    /// Begins a flow on a connection that was just dialled, with `hello` from
    /// [`FlowSession::hello`]; `first` are messages to be sent together with it.
    ///
    /// # Errors
    ///
    /// When the connection fails.
    pub async fn dial<T>(
        connection: TcpStream,
        session: &FlowSession<T>,
        direction: FlowDirection,
        first: Option<&FlowMessage>,
    ) -> Result<Self, FlowFault> {
        let (conversation, hello) = session.hello(direction);
        let mut this = Self {
            connection: Some(connection),
            conversation,
        };
        let mut bytes = hello.to_vec();
        if let Some(message) = first {
            bytes.extend_from_slice(&this.conversation.say(message)?);
        }
        this.connection_mut().write_all(&bytes).await?;
        Ok(this)
    }

    /// Reads the hello of a connection that was accepted, and finds the session that it belongs
    /// to. `early` is what was read of the connection before, at most a hello.
    ///
    /// # Errors
    ///
    /// When it is no hello of one of these sessions in this direction, or was received before.
    pub async fn accept<T: Clone>(
        mut connection: TcpStream,
        early: &[u8],
        table: &FlowTable<T>,
        direction: FlowDirection,
    ) -> Result<(Self, T), FlowFault> {
        let mut hello = [0; FLOW_HELLO_LEN];
        let read = async {
            let (read, missing) = hello
                .split_at_mut_checked(early.len())
                .ok_or(FlowError::NotAHello)?;
            read.copy_from_slice(early);
            connection.read_exact(missing).await?;
            Ok::<_, FlowFault>(())
        };
        let accepted = match read.await {
            Ok(()) => table.accept(&hello, direction).map_err(FlowFault::from),
            Err(fault) => Err(fault),
        };
        match accepted {
            Ok((conversation, of)) => {
                let this = Self {
                    connection: Some(connection),
                    conversation,
                };
                Ok((this, of))
            }
            Err(fault) => {
                // Fails only on a connection that is gone already.
                let _ = crate::socket::reset_on_close(&connection);
                Err(fault)
            }
        }
    }

    /// Says a message.
    ///
    /// # Errors
    ///
    /// When the connection fails.
    pub async fn say(&mut self, message: &FlowMessage) -> Result<(), FlowFault> {
        let bytes = self.conversation.say(message)?;
        Ok(self.connection_mut().write_all(&bytes).await?)
    }

    /// Hears the next message, and reads nothing of what follows it.
    ///
    /// Not cancel-safe: a message that was begun is lost, and the flow with it.
    ///
    /// # Errors
    ///
    /// When the connection fails or ends, or the message is not to be believed.
    pub async fn hear(&mut self) -> Result<FlowMessage, FlowFault> {
        let mut header = [0; FLOW_HEADER_LEN];
        self.connection_mut().read_exact(&mut header).await?;
        let mut rest = vec![0; FlowConversation::rest_len(header)?];
        self.connection_mut().read_exact(&mut rest).await?;
        Ok(self.conversation.hear(header, &rest)?)
    }

    /// Becomes ready when something can be read of the flow, which for an idle one means a
    /// message, its end, or an error. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When the connection fails.
    pub async fn readable(&self) -> io::Result<()> {
        loop {
            self.connection().readable().await?;
            // The kernel has the last word: after a message that was read to its last byte, tokio
            // takes the connection for readable until a read has found nothing.
            let asked = self.connection().try_io(Interest::READABLE, || {
                if self.is_quiet() {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(())
            });
            match asked {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                asked => return asked,
            }
        }
    }

    /// Whether the flow is still there with nothing sent by its peer, as far as the kernel knows.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let mut byte = [0];
        // The kernel is asked and not tokio, which knows of an end only after its next turn.
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let read = recv(self.connection().as_raw_fd(), &mut byte, flags);
        read == Err(Errno::EAGAIN)
    }

    /// The socket, for its addresses and options.
    #[must_use]
    pub fn connection(&self) -> &TcpStream {
        self.connection
            .as_ref()
            .expect("it is taken only by `into_connection`")
    }

    /// Who dialled it.
    #[must_use]
    pub fn direction(&self) -> FlowDirection {
        self.conversation.direction()
    }

    /// The counter of its hello, which names it within its session and direction.
    #[must_use]
    pub fn counter(&self) -> u64 {
        self.conversation.counter()
    }

    /// The connection, on which from now on raw bytes travel.
    #[must_use]
    pub fn into_connection(mut self) -> TcpStream {
        self.connection.take().expect("it is taken only here")
    }

    fn connection_mut(&mut self) -> &mut TcpStream {
        self.connection
            .as_mut()
            .expect("it is taken only by `into_connection`")
    }
}

impl Drop for FlowConnection {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection {
            // Fails only on a connection that is gone already.
            let _ = crate::socket::reset_on_close(connection);
        }
    }
}

#[cfg(test)]
mod tests;
