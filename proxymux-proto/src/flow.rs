//! Flows: the TCP connections of the fast paths, until they carry raw bytes.
//!
//! Owns the hello that binds a flow to a session, the few messages after it, and the proof that
//! each of them carries; `docs/protocol.md` is the prose.
//! Leaves sockets, deadlines, and which sessions there are to `proxymux_transport::flow`.
//! Read [`FlowHello`], [`FlowMessage`] and [`FlowConversation`] first.
//! Lengths are hard limits: what waits for a stranger is never more than
//! [`MAX_FLOW_MESSAGE_LEN`] bytes.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

mod conversation;
mod keys;
mod replay;

pub use conversation::{FlowConversation, FlowMessage, FlowOpen};
pub use keys::{FLOW_EXPORTER_LABEL, FLOW_MAC_LEN, FlowKeys};
pub use replay::{REPLAY_WINDOW, ReplayWindow};

use crate::DecodeError;

/// The first bytes of every flow. No TLS record begins so, which is how the port of sessions and
/// the steered port tell flows from TLS by their first byte.
pub const FLOW_MAGIC: [u8; 4] = *b"PXMF";

/// The version of the flow's messages.
pub const FLOW_VERSION: u8 = 1;

/// The bytes of a hello, its proof included.
pub const FLOW_HELLO_LEN: usize = HELLO_FIELDS_LEN + FLOW_MAC_LEN;

/// The bytes in front of every other message: its type, a zero, and the length of its body.
pub const FLOW_HEADER_LEN: usize = 4;

/// The most bytes of a message's body: an open request is at most some 270, a refusal some 210.
pub const MAX_FLOW_BODY_LEN: usize = 1024;

/// The most bytes of a message after the hello, header and proof included.
pub const MAX_FLOW_MESSAGE_LEN: usize = FLOW_HEADER_LEN + MAX_FLOW_BODY_LEN + FLOW_MAC_LEN;

/// Names one session on both of its ends, and on no other pair: it comes from TLS.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct FlowSessionId([u8; 16]);

/// Who dialled a flow.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum FlowDirection {
    /// The agent dialled the master: the reverse path.
    Reverse,
    /// The master dialled the node: the direct path.
    Direct,
}

/// What a hello says, once it is proven.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FlowHello {
    /// Who dialled.
    pub direction: FlowDirection,
    /// The session that the flow belongs to.
    pub session: FlowSessionId,
    /// Counts the hellos of a session in one direction, from 1.
    pub counter: u64,
}

/// Why bytes of a flow were not believed. A closed list: metrics use it.
#[derive(Debug, thiserror::Error)]
pub enum FlowError {
    /// The connection does not begin as a flow does.
    #[error("connection does not begin with the hello of a flow")]
    NotAHello,
    /// The hello is of a version that we do not speak.
    #[error("hello of version {seen}, expected {FLOW_VERSION}")]
    Version {
        /// The version seen.
        seen: u8,
    },
    /// A field of the hello has no meaning, or another than this place expects.
    #[error("hello with a bad direction {seen}")]
    Direction {
        /// The number seen.
        seen: u8,
    },
    /// The hello is one of the other direction.
    #[error("hello of the {seen} direction, expected {expected}")]
    WrongDirection {
        /// The direction seen.
        seen: &'static str,
        /// The one that this place takes.
        expected: &'static str,
    },
    /// The session is not one of ours, or not any more.
    #[error("hello of session {0}, which is not one of ours")]
    UnknownSession(FlowSessionId),
    /// The proof does not fit what was received.
    #[error("{what} with a wrong proof")]
    Forged {
        /// The message.
        what: &'static str,
    },
    /// The hello was received before.
    #[error("hello {counter} was received before")]
    Replayed {
        /// The hello's counter.
        counter: u64,
    },
    /// The hello is so old that it cannot be known whether it was received before.
    #[error("hello {counter} is older than the last {REPLAY_WINDOW}")]
    Stale {
        /// The hello's counter.
        counter: u64,
    },
    /// A message's body is longer than any may be.
    #[error("message of {len} bytes, expected at most {MAX_FLOW_BODY_LEN}")]
    TooLong {
        /// The length announced.
        len: usize,
    },
    /// A message that may not come now, or whose type means nothing.
    #[error("message of type {seen}, expected {expected}")]
    Unexpected {
        /// The type seen.
        seen: u8,
        /// What may come.
        expected: &'static str,
    },
    /// A proven message makes no sense.
    #[error("{what} that cannot be read")]
    Malformed {
        /// The message.
        what: &'static str,
        /// Why.
        #[source]
        source: DecodeError,
    },
}

impl FlowError {
    /// Every word of [`FlowError::as_str`].
    pub const WORDS: &[&str] = &[
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
            Self::NotAHello => "not-a-hello",
            Self::Version { .. } => "version",
            Self::Direction { .. } => "direction",
            Self::WrongDirection { .. } => "wrong-direction",
            Self::UnknownSession(_) => "unknown-session",
            Self::Forged { .. } => "forged",
            Self::Replayed { .. } => "replayed",
            Self::Stale { .. } => "stale",
            Self::TooLong { .. } => "too-long",
            Self::Unexpected { .. } => "unexpected",
            Self::Malformed { .. } => "malformed",
        }
    }
}

impl FlowHello {
    /// Reads a hello without believing it, to learn whose keys prove it.
    ///
    /// # Errors
    ///
    /// When the bytes are no hello of this version.
    pub fn read_unproven(bytes: &[u8; FLOW_HELLO_LEN]) -> Result<Self, FlowError> {
        let [m0, m1, m2, m3, version, direction, _, _, rest @ ..] = bytes;
        if [*m0, *m1, *m2, *m3] != FLOW_MAGIC {
            return Err(FlowError::NotAHello);
        }
        if *version != FLOW_VERSION {
            return Err(FlowError::Version { seen: *version });
        }
        let direction = FlowDirection::from_wire(*direction)
            .ok_or(FlowError::Direction { seen: *direction })?;
        let (session, rest) = rest
            .split_first_chunk::<SESSION_ID_LEN>()
            .expect("56 bytes follow");
        let (counter, _) = rest.split_first_chunk::<8>().expect("40 bytes follow");
        Ok(Self {
            direction,
            session: FlowSessionId(*session),
            counter: u64::from_be_bytes(*counter),
        })
    }

    /// The hello without its proof.
    fn fields(&self) -> BytesMut {
        let mut bytes = BytesMut::with_capacity(FLOW_HELLO_LEN);
        bytes.put_slice(&FLOW_MAGIC);
        bytes.put_u8(FLOW_VERSION);
        bytes.put_u8(self.direction.to_wire());
        bytes.put_u16(0);
        bytes.put_slice(&self.session.0);
        bytes.put_u64(self.counter);
        bytes
    }
}

impl FlowDirection {
    /// The word for logs and metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reverse => "reverse",
            Self::Direct => "direct",
        }
    }

    pub(crate) fn to_wire(self) -> u8 {
        match self {
            Self::Reverse => 1,
            Self::Direct => 2,
        }
    }

    pub(crate) fn from_wire(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Reverse),
            2 => Some(Self::Direct),
            _ => None,
        }
    }
}

impl FlowSessionId {
    /// An id from the bytes that TLS gave for it.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; SESSION_ID_LEN]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for FlowSessionId {
    /// The first four bytes in hex: enough to tell sessions apart in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(4).try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for FlowSessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A message's header and body in one piece, without its proof.
fn unproven(kind: u8, body: &[u8]) -> Bytes {
    let len = u16::try_from(body.len()).expect("bodies are far shorter than 65,536 bytes");
    let mut bytes = BytesMut::with_capacity(FLOW_HEADER_LEN + body.len() + FLOW_MAC_LEN);
    bytes.put_u8(kind);
    bytes.put_u8(0);
    bytes.put_u16(len);
    bytes.put_slice(body);
    bytes.freeze()
}

const SESSION_ID_LEN: usize = 16;

/// Magic, version, direction, two zeros, session id, counter.
const HELLO_FIELDS_LEN: usize = 4 + 1 + 1 + 2 + SESSION_ID_LEN + 8;

#[cfg(test)]
mod tests;
