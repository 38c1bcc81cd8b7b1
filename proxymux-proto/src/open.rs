//! The opening of a stream: the master's request and the agent's answers.
//!
//! Owns what the two messages carry; who may ask for what is the agent's decision.
//! The agent answers [`OpenAnswer::Dialing`] at once and then one of the other two, after the
//! target's connection stands or has failed; unknown answers are skipped.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use crate::{
    DecodeError, FrameError, MAX_REASON_LEN, TargetAddr, encode_frame, field::Field, printable,
};

/// The master asks an agent to connect a stream to a target.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OpenRequest {
    /// Where the stream is to end.
    pub target: TargetAddr,
    /// How long the agent may try before nobody waits for the answer any more.
    ///
    /// Whole milliseconds from 1 to 2^32 - 1; the agent has a limit of its own besides.
    pub budget: Duration,
    /// Instead of the target, one of the agent's own ends for measuring; the target is then only
    /// shown, and names the node's kubelet.
    pub measure: Option<Measure>,
}

/// What an agent does at its end of a connection that measures a path. The numbers are the wire's.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Measure {
    /// Sends without an end.
    Source,
    /// Reads to the end, and then says how many bytes there were.
    Sink,
    /// Sends back what comes.
    Echo,
    /// Says how much processor time the agent has used.
    Usage,
    /// An end that this version does not know.
    Other(u32),
}

/// The agent's answer to an open request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum OpenAnswer {
    /// The request has arrived and the target is being dialled.
    Dialing,
    /// The target's connection stands; chunks follow in both directions.
    Opened,
    /// There will be no connection.
    Refused {
        /// The kind of failure.
        code: RefuseCode,
        /// The cause in words for the user, in printable ASCII.
        message: String,
    },
    /// An answer that this version does not know, to be skipped.
    Unknown,
}

/// Why an open request was refused. The numbers are the wire's.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum RefuseCode {
    /// The agent's configuration does not allow the target.
    NotAllowed,
    /// The target refused the connection, or could not be reached.
    Unreachable,
    /// The target did not answer in time.
    TimedOut,
    /// The agent is at one of its limits.
    Busy,
    /// The request made no sense to the agent.
    BadRequest,
    /// The agent drains this session; another may take the request.
    Draining,
    /// A code that this version does not know.
    Other(u32),
}

impl OpenRequest {
    /// The request as one length-delimited frame.
    ///
    /// # Errors
    ///
    /// Never for a target that was parsed; the frame's limit is far away.
    pub fn encode(&self) -> Result<Bytes, FrameError> {
        encode_frame(&self.encode_message())
    }

    /// The request without the length in front of it.
    pub(crate) fn encode_message(&self) -> Bytes {
        let wire = wire::OpenRequest {
            target: self.target.to_string(),
            // Zero would read as missing.
            budget_ms: u32::try_from(self.budget.as_millis())
                .unwrap_or(u32::MAX)
                .max(1),
            measure: self.measure.map_or(0, Measure::to_wire),
        };
        wire.encode_to_vec().into()
    }

    /// Reads the request from a frame's content.
    ///
    /// # Errors
    ///
    /// When the bytes are no request, its target is none, or it sets no limit.
    pub fn decode(content: &[u8]) -> Result<Self, DecodeError> {
        let wire = wire::OpenRequest::decode(content)?;
        let at = |field| Field {
            message: "OpenRequest",
            field,
        };
        if wire.target.is_empty() {
            return Err(at("target").missing());
        }
        // A dial without a limit would be one that nobody waits for and nobody ends.
        if wire.budget_ms == 0 {
            return Err(at("budget_ms").missing());
        }
        Ok(Self {
            target: at("target").parse(&wire.target)?,
            budget: Duration::from_millis(u64::from(wire.budget_ms)),
            measure: Measure::from_wire(wire.measure),
        })
    }
}

impl OpenAnswer {
    /// The answer as one length-delimited frame.
    ///
    /// # Errors
    ///
    /// Never: messages are cut to [`MAX_REASON_LEN`] bytes.
    pub fn encode(&self) -> Result<Bytes, FrameError> {
        encode_frame(&self.encode_message())
    }

    /// The answer without the length in front of it.
    pub(crate) fn encode_message(&self) -> Bytes {
        use wire::open_answer::Answer;
        let answer = match self {
            Self::Dialing => Some(Answer::Dialing(wire::Empty {})),
            Self::Opened => Some(Answer::Opened(wire::Empty {})),
            Self::Refused { code, message } => Some(Answer::Refused(wire::Refused {
                code: code.to_wire(),
                message: printable(message, MAX_REASON_LEN),
            })),
            Self::Unknown => None,
        };
        wire::OpenAnswer { answer }.encode_to_vec().into()
    }

    /// Reads an answer from a frame's content.
    ///
    /// # Errors
    ///
    /// When the bytes are no answer.
    pub fn decode(content: &[u8]) -> Result<Self, DecodeError> {
        use wire::open_answer::Answer;
        Ok(match wire::OpenAnswer::decode(content)?.answer {
            None => Self::Unknown,
            Some(Answer::Dialing(_)) => Self::Dialing,
            Some(Answer::Opened(_)) => Self::Opened,
            Some(Answer::Refused(refused)) => Self::Refused {
                code: RefuseCode::from_wire(refused.code),
                message: printable(&refused.message, MAX_REASON_LEN),
            },
        })
    }
}

impl Measure {
    fn to_wire(self) -> u32 {
        match self {
            Self::Source => 1,
            Self::Sink => 2,
            Self::Echo => 3,
            Self::Usage => 4,
            Self::Other(number) => number,
        }
    }

    fn from_wire(number: u32) -> Option<Self> {
        match number {
            0 => None,
            1 => Some(Self::Source),
            2 => Some(Self::Sink),
            3 => Some(Self::Echo),
            4 => Some(Self::Usage),
            other => Some(Self::Other(other)),
        }
    }
}

impl RefuseCode {
    /// Every word of [`RefuseCode::as_str`].
    pub const WORDS: &[&str] = &[
        "not-allowed",
        "unreachable",
        "timed-out",
        "busy",
        "bad-request",
        "draining",
        "other",
    ];

    /// The word for logs and metric labels, from a closed list.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotAllowed => "not-allowed",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed-out",
            Self::Busy => "busy",
            Self::BadRequest => "bad-request",
            Self::Draining => "draining",
            Self::Other(_) => "other",
        }
    }

    fn to_wire(self) -> u32 {
        match self {
            Self::NotAllowed => 1,
            Self::Unreachable => 2,
            Self::TimedOut => 3,
            Self::Busy => 4,
            Self::BadRequest => 5,
            Self::Draining => 6,
            Self::Other(code) => code,
        }
    }

    fn from_wire(code: u32) -> Self {
        match code {
            1 => Self::NotAllowed,
            2 => Self::Unreachable,
            3 => Self::TimedOut,
            4 => Self::Busy,
            5 => Self::BadRequest,
            6 => Self::Draining,
            other => Self::Other(other),
        }
    }
}

/// The protobuf form; `docs/protocol.md` has it as a `.proto` text.
mod wire {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct OpenRequest {
        #[prost(string, tag = "1")]
        pub(super) target: String,
        #[prost(uint32, tag = "2")]
        pub(super) budget_ms: u32,
        #[prost(uint32, tag = "3")]
        pub(super) measure: u32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct OpenAnswer {
        #[prost(oneof = "open_answer::Answer", tags = "1, 2, 3")]
        pub(super) answer: Option<open_answer::Answer>,
    }

    pub(super) mod open_answer {
        #[derive(Clone, PartialEq, prost::Oneof)]
        pub(crate) enum Answer {
            #[prost(message, tag = "1")]
            Dialing(super::Empty),
            #[prost(message, tag = "2")]
            Opened(super::Empty),
            #[prost(message, tag = "3")]
            Refused(super::Refused),
        }
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Empty {}

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Refused {
        #[prost(uint32, tag = "1")]
        pub(super) code: u32,
        #[prost(string, tag = "2")]
        pub(super) message: String,
    }
}
