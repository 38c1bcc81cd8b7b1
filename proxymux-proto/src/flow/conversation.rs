//! What is said on a flow before it carries payload, on either end.
//!
//! Owns the order of messages and their proofs: each is a MAC over all that was said before and
//! itself, in both directions, so that nothing can be left out, moved or answered twice.
//! Leaves reading from and writing to a socket to the caller, which must read exactly what
//! [`FlowConversation::rest_len`] says, because payload follows the last message.
//!
//! On the reverse path the order is hello, answer, open, result; the flow waits between the second
//! and the third. On the direct path it is hello, open, answer, result, as the first two travel
//! together.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::{
    FLOW_HEADER_LEN, FLOW_HELLO_LEN, FLOW_MAC_LEN, FlowDirection, FlowError, FlowHello, FlowKeys,
    HELLO_FIELDS_LEN, MAX_FLOW_BODY_LEN, keys::Purpose, unproven,
};
use crate::{DecodeError, FrameError, OpenAnswer, OpenRequest, RefuseCode};

/// One flow's messages so far, on either end.
#[derive(Debug)]
pub struct FlowConversation {
    keys: Arc<FlowKeys>,
    direction: FlowDirection,
    counter: u64,
    /// Everything said, with proofs, in the order of the protocol.
    said: BytesMut,
    /// The steps that are over.
    step: usize,
}

/// A message after the hello.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum FlowMessage {
    /// The hello is believed.
    Accepted,
    /// The master wants a target.
    Open(FlowOpen),
    /// The target's connection stands; raw bytes follow in both directions.
    Opened,
    /// Instead of [`FlowMessage::Accepted`] or [`FlowMessage::Opened`]: this flow is over.
    Refused {
        /// The kind of failure.
        code: RefuseCode,
        /// The cause in words, in printable ASCII.
        message: String,
    },
}

/// What a master wants of a flow.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum FlowOpen {
    /// A connection to a target.
    Target(OpenRequest),
    /// Only to know that an agent answers here; the flow ends after the answer.
    Probe,
}

impl FlowConversation {
    /// Begins a flow: the hello to be sent first. `counter` must not have been used before on this
    /// session in this direction.
    #[must_use]
    pub fn dial(keys: Arc<FlowKeys>, direction: FlowDirection, counter: u64) -> (Self, Bytes) {
        let hello = FlowHello {
            direction,
            session: keys.session(),
            counter,
        };
        let mut this = Self {
            keys,
            direction,
            counter,
            said: hello.fields(),
            step: 1,
        };
        let proof = this.keys.sign(direction, Purpose::Hello, &this.said);
        this.said.extend_from_slice(&proof);
        let hello = Bytes::copy_from_slice(&this.said);
        (this, hello)
    }

    /// Takes in a flow whose hello is proven by `keys`, which are those of its session.
    ///
    /// Whether it was received before is for [`super::ReplayWindow`] to say, afterwards.
    ///
    /// # Errors
    ///
    /// When the bytes are no hello, or its proof does not fit.
    pub fn accept(bytes: &[u8; FLOW_HELLO_LEN], keys: Arc<FlowKeys>) -> Result<Self, FlowError> {
        let hello = FlowHello::read_unproven(bytes)?;
        let (fields, proof) = bytes.split_at(HELLO_FIELDS_LEN);
        if hello.session != keys.session()
            || !keys.verify(hello.direction, Purpose::Hello, fields, proof)
        {
            return Err(FlowError::Forged { what: "hello" });
        }
        Ok(Self {
            keys,
            direction: hello.direction,
            counter: hello.counter,
            said: BytesMut::from(&bytes[..]),
            step: 1,
        })
    }

    /// Who dialled the flow.
    #[must_use]
    pub fn direction(&self) -> FlowDirection {
        self.direction
    }

    /// The hello's counter, which names the flow within its session and direction.
    #[must_use]
    pub fn counter(&self) -> u64 {
        self.counter
    }

    /// The bytes of the next message to be said. Nothing may be said after [`FlowMessage::Opened`]
    /// or [`FlowMessage::Refused`].
    ///
    /// # Errors
    ///
    /// When the message is longer than any may be, which none of a parsed target is.
    pub fn say(&mut self, message: &FlowMessage) -> Result<Bytes, FrameError> {
        let body = message.body()?;
        if body.len() > MAX_FLOW_BODY_LEN {
            return Err(FrameError { len: body.len() });
        }
        let text = unproven(message.kind(), &body);
        let before = self.said.len();
        self.said.extend_from_slice(&text);
        let proof = self.keys.sign(self.direction, self.purpose(), &self.said);
        self.said.extend_from_slice(&proof);
        self.step += 1;
        Ok(Bytes::copy_from_slice(
            self.said.get(before..).unwrap_or_default(),
        ))
    }

    /// How many bytes follow a message's header: its body and its proof.
    ///
    /// # Errors
    ///
    /// When the header announces more than a message may have.
    pub fn rest_len(header: [u8; FLOW_HEADER_LEN]) -> Result<usize, FlowError> {
        let [_, _, high, low] = header;
        let len = usize::from(u16::from_be_bytes([high, low]));
        if len > MAX_FLOW_BODY_LEN {
            return Err(FlowError::TooLong { len });
        }
        Ok(len + FLOW_MAC_LEN)
    }

    /// Hears the next message: its header, and the [`FlowConversation::rest_len`] bytes behind it.
    ///
    /// # Errors
    ///
    /// When the proof does not fit, or the message is not one that may come now. Then the flow is
    /// of no more use.
    pub fn hear(
        &mut self,
        header: [u8; FLOW_HEADER_LEN],
        rest: &[u8],
    ) -> Result<FlowMessage, FlowError> {
        let purpose = self.purpose();
        let what = purpose.what();
        let [kind, ..] = header;
        let body_len = rest.len().checked_sub(FLOW_MAC_LEN);
        let (body, proof) = body_len
            .and_then(|len| rest.split_at_checked(len))
            .ok_or(FlowError::Forged { what })?;
        self.said.extend_from_slice(&header);
        self.said.extend_from_slice(body);
        if !self.keys.verify(self.direction, purpose, &self.said, proof) {
            return Err(FlowError::Forged { what });
        }
        self.said.extend_from_slice(proof);
        self.step += 1;
        FlowMessage::read(kind, body, purpose)
    }

    /// What the next message proves itself as.
    fn purpose(&self) -> Purpose {
        match (self.direction, self.step) {
            (FlowDirection::Reverse, 1) | (FlowDirection::Direct, 2) => Purpose::Answer,
            (FlowDirection::Reverse, 2) | (FlowDirection::Direct, 1) => Purpose::Open,
            _ => Purpose::Result,
        }
    }
}

impl Purpose {
    fn what(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Answer => "answer",
            Self::Open => "open request",
            Self::Result => "answer to an open request",
        }
    }
}

impl FlowMessage {
    fn kind(&self) -> u8 {
        match self {
            Self::Accepted => ACCEPTED,
            Self::Open(_) => OPEN,
            Self::Opened => OPENED,
            Self::Refused { .. } => REFUSED,
        }
    }

    fn body(&self) -> Result<Bytes, FrameError> {
        match self {
            Self::Accepted | Self::Opened | Self::Open(FlowOpen::Probe) => Ok(Bytes::new()),
            Self::Open(FlowOpen::Target(request)) => Ok(request.encode_message()),
            Self::Refused { code, message } => Ok(OpenAnswer::Refused {
                code: *code,
                message: message.clone(),
            }
            .encode_message()),
        }
    }

    fn read(kind: u8, body: &[u8], purpose: Purpose) -> Result<Self, FlowError> {
        let malformed = |source: DecodeError| FlowError::Malformed {
            what: purpose.what(),
            source,
        };
        match (kind, purpose) {
            (ACCEPTED, Purpose::Answer) => Ok(Self::Accepted),
            (OPENED, Purpose::Result) => Ok(Self::Opened),
            (OPEN, Purpose::Open) if body.is_empty() => Ok(Self::Open(FlowOpen::Probe)),
            (OPEN, Purpose::Open) => OpenRequest::decode(body)
                .map(|request| Self::Open(FlowOpen::Target(request)))
                .map_err(malformed),
            (REFUSED, Purpose::Answer | Purpose::Result) => {
                match OpenAnswer::decode(body).map_err(malformed)? {
                    OpenAnswer::Refused { code, message } => Ok(Self::Refused { code, message }),
                    // A refusal in a form of the future is a refusal all the same.
                    _ => Ok(Self::Refused {
                        code: RefuseCode::Other(0),
                        message: String::new(),
                    }),
                }
            }
            (seen, _) => Err(FlowError::Unexpected {
                seen,
                expected: purpose.what(),
            }),
        }
    }
}

const ACCEPTED: u8 = 1;
const OPEN: u8 = 2;
const OPENED: u8 = 3;
const REFUSED: u8 = 4;
