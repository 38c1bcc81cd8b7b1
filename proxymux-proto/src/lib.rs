//! The wire format between proxymux agent and master.
//!
//! This crate owns what travels on a session: control messages, the opening of a stream, the
//! chunks of a relayed stream, and the names and addresses inside them; and what travels on a flow
//! before it carries payload.
//! It leaves IO, clocks, TLS and the multiplexer to `proxymux-transport`, and every decision
//! (who may register, what may be dialled) to the two daemons.
//! Read [`ControlMessage`], [`OpenRequest`] and [`Chunk`] first; `docs/protocol.md` is the prose.
//!
//! Every decoder here takes bytes that a peer chose: none panics, and all have hard limits.

mod chunk;
mod control;
mod field;
mod flow;
mod frame;
mod id;
mod name;
mod open;
mod target;
mod text;

pub use chunk::{AbortCode, Chunk, ChunkDecoder, ChunkError, ChunkHeader, MAX_CHUNK_LEN};
pub use control::{
    AddressRefusal, Addresses, AllowedRange, ControlMessage, Drain, EndCode, FlowAbort,
    MAX_ADDRESSES, MAX_ALLOWED_RANGES, MAX_FLOW_POOL, MAX_HELD_MASTERS, MAX_ID_LEN, MAX_LABELS,
    MAX_PADDING, MAX_RETRY_AFTER, MAX_STREAMS, PaddedPing, Registered, Registration, SessionEnd,
    SteeringStatus,
};
pub use flow::{
    FLOW_EXPORTER_LABEL, FLOW_HEADER_LEN, FLOW_HELLO_LEN, FLOW_MAC_LEN, FLOW_MAGIC, FLOW_VERSION,
    FlowConversation, FlowDirection, FlowError, FlowHello, FlowKeys, FlowMessage, FlowOpen,
    FlowSessionId, MAX_FLOW_BODY_LEN, MAX_FLOW_MESSAGE_LEN, REPLAY_WINDOW, ReplayWindow,
};
pub use frame::{FrameDecoder, FrameError, MAX_FRAME_LEN, encode_frame};
pub use id::{InstanceId, InstanceIdError};
pub use name::{NodeName, NodeNameError};
pub use open::{Measure, OpenAnswer, OpenRequest, RefuseCode};
pub use target::{Host, TargetAddr, TargetError};
pub use text::{MAX_REASON_LEN, printable};

/// The version of the messages on a session, announced in [`Registration::version`].
///
/// It changes when an old peer could misunderstand a new one; fields and message types that an
/// old peer may ignore do not change it.
pub const PROTOCOL_VERSION: u32 = 1;

/// The TCP port on which a master accepts agents unless configured otherwise.
pub const DEFAULT_SESSION_PORT: u16 = 12250;

/// The TCP port on which a kubelet serves unless its Node object says otherwise.
pub const DEFAULT_KUBELET_PORT: u16 = 10250;

/// A message could not be decoded.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are not the encoding of any message.
    #[error("malformed message")]
    Malformed(#[source] prost::DecodeError),
    /// A field that the message cannot do without is missing.
    #[error("message `{message}` has no `{field}`")]
    MissingField {
        /// The message's name in `docs/protocol.md`.
        message: &'static str,
        /// The field's name.
        field: &'static str,
    },
    /// A field's value is not one that the message allows.
    #[error("message `{message}`: `{field}`: {reason}")]
    BadField {
        /// The message's name in `docs/protocol.md`.
        message: &'static str,
        /// The field's name.
        field: &'static str,
        /// What is wrong with the value, in printable ASCII.
        reason: String,
    },
}

impl From<prost::DecodeError> for DecodeError {
    fn from(error: prost::DecodeError) -> Self {
        Self::Malformed(error)
    }
}
