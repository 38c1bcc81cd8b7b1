//! The messages of the control stream.
//!
//! Owns what each message carries and its checked form; [`ControlMessage`] is the type to read
//! first. What to do about a message is the session code's business in the two daemons.
//! Unknown message types decode to [`ControlMessage::Unknown`], unknown fields are skipped.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    time::Duration,
};

use bytes::Bytes;
use ipnet::IpNet;
use prost::Message;

use crate::{
    AbortCode, DecodeError, FlowDirection, FrameError, InstanceId, MAX_REASON_LEN, NodeName,
    encode_frame, printable,
};

mod wire;

/// The most addresses in one list of a message.
///
/// A node has a handful; the limit keeps one agent from filling the master's table of addresses.
pub const MAX_ADDRESSES: usize = 64;

/// The most [`AllowedRange`]s in a registration: each costs the master a look for every target
/// that is no node.
pub const MAX_ALLOWED_RANGES: usize = 64;

/// The most bytes of an id that others made up, and of a label's name or value.
///
/// The identifiers of Oracle's cloud may have as many.
pub const MAX_ID_LEN: usize = 255;

/// The most labels in a registration; they are only shown to people, who read no more.
pub const MAX_LABELS: usize = 32;

/// The most masters that an agent may say it has sessions with; clusters have three or five.
pub const MAX_HELD_MASTERS: usize = 64;

/// The most streams that a master may announce for one session, and an agent has room for.
///
/// Far more than the pods of a node are ever watched through; windows of 256 KiB add up to 4 GiB.
pub const MAX_STREAMS: u32 = 16 * 1024;

/// The most bytes of padding in a ping or its answer.
///
/// More than the largest segment of any Ethernet, and small beside what waits for a peer anyway.
pub const MAX_PADDING: u16 = 16 * 1024;

/// The most idle flows that a master may ask an agent to keep ready.
///
/// A burst of as many requests at once finds one each; more cost descriptors on both ends for
/// nothing, as a flow that was used is replaced within a round trip.
pub const MAX_FLOW_POOL: u32 = 64;

/// The longest that one side keeps another away; a longer wish is cut to this.
///
/// Without it one wrong number from a master would cost a fleet its sessions for weeks.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

/// One message of the control stream.
#[derive(Clone, Debug, PartialEq)]
pub enum ControlMessage {
    /// Agent to master, the first message: who I am.
    Register(Registration),
    /// Master to agent: you are in.
    Registered(Registered),
    /// Master to agent: which of your addresses lead to you has changed.
    Addresses(Addresses),
    /// Either way: this session ends, and why. Instead of [`ControlMessage::Registered`] it is
    /// the refusal of a registration.
    End(SessionEnd),
    /// Either way: answer with [`ControlMessage::Pong`] and the same number.
    Ping(u64),
    /// The answer to [`ControlMessage::Ping`].
    Pong(u64),
    /// Either way: a ping that shows whether large segments pass. Older peers read it as
    /// [`ControlMessage::Ping`].
    PaddedPing(PaddedPing),
    /// The answer to [`ControlMessage::PaddedPing`]. Older peers answer with
    /// [`ControlMessage::Pong`].
    PaddedPong {
        /// The ping's number.
        number: u64,
        /// How many bytes of padding there are, as the ping asked: 1 to [`MAX_PADDING`].
        padding: u16,
    },
    /// Either way: expect no new streams, let the open ones finish.
    Drain(Drain),
    /// Either way: a relayed stream was given up, without waiting for credit on it.
    Abort {
        /// The multiplexer's id of the stream.
        stream: u32,
        /// Why.
        code: AbortCode,
    },
    /// Master to agent: keep so many idle flows ready on the reverse path from now on, up to
    /// [`MAX_FLOW_POOL`].
    FlowPool(u32),
    /// Agent to master: whether the master may find this agent on the direct path.
    Steering(SteeringStatus),
    /// Agent to master: a flow was given up, and why; a TCP reset cannot say it.
    FlowAbort(FlowAbort),
    /// A message that this version does not know, to be skipped.
    Unknown,
}

/// What an agent says of its node and itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration {
    /// [`crate::PROTOCOL_VERSION`] of the agent. Any number is let through here, so that one that
    /// the master does not speak is answered with [`EndCode::Version`].
    pub version: u32,
    /// The node's name; the master compares it with the certificate's.
    pub node: NodeName,
    /// Tells this run of the agent from others with the same certificate.
    pub instance: InstanceId,
    /// Addresses under which the agent wants its node to be reached. Claims, not facts.
    ///
    /// Each once, and no more than [`MAX_ADDRESSES`].
    pub addresses: Vec<IpAddr>,
    /// Where the kubelet is expected by those who dial the node themselves.
    pub kubelet: Option<SocketAddr>,
    /// Targets besides the kubelet that this agent dials, no more than [`MAX_ALLOWED_RANGES`].
    pub allow: Vec<AllowedRange>,
    /// The cluster that the node belongs to, if its configuration says.
    ///
    /// Because it is compared, it is never cut: at most [`MAX_ID_LEN`] bytes of printable ASCII, or
    /// the message is refused.
    pub cluster_id: Option<String>,
    /// The provider's id of the machine, shown to people.
    pub node_id: Option<String>,
    /// The agent's software version, shown to people.
    pub software: String,
    /// Labels from the agent's configuration, shown to people; no more than [`MAX_LABELS`].
    pub labels: BTreeMap<String, String>,
    /// The masters with which this run of the agent has sessions already, by the ids of
    /// [`Registered::master`]; no more than [`MAX_HELD_MASTERS`]. A master that finds itself here
    /// answers with [`EndCode::AlreadyConnected`] and leaves the session alone that stands.
    pub held_masters: Vec<InstanceId>,
    /// Whether the agent speaks flows and is configured to.
    pub fast_path: bool,
}

/// Whether connections of the master to the kubelet's address are given to the agent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SteeringStatus {
    /// The master's connections are steered.
    pub stands: bool,
    /// What is steered or why nothing is, in printable ASCII, shown to people.
    pub reason: String,
}

/// A flow that the agent gave up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FlowAbort {
    /// Who dialled it.
    pub direction: FlowDirection,
    /// The counter of its hello.
    pub counter: u64,
    /// Why.
    pub code: AbortCode,
}

/// A ping, at least one direction of which is padded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PaddedPing {
    /// Means nothing to the other side, which sends it back.
    pub number: u64,
    /// How many bytes of padding it brings, up to [`MAX_PADDING`].
    pub padding: u16,
    /// How many bytes of padding its answer is to bring, up to [`MAX_PADDING`].
    pub answer: u16,
}

/// Targets that an agent dials besides its kubelet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AllowedRange {
    /// The addresses; bits behind the prefix are zero once it has travelled.
    pub net: IpNet,
    /// The ports, from 1 to 65535 and in order.
    pub ports: RangeInclusive<u16>,
}

/// The master's acceptance of a registration.
#[derive(Clone, Debug, PartialEq)]
pub struct Registered {
    /// The version that both speak from here on: the registration's.
    pub version: u32,
    /// Tells this run of the master from others at the same address.
    pub master: InstanceId,
    /// Which claimed addresses lead to the node now.
    pub addresses: Addresses,
    /// How many streams the master will have open on this session at most: 1 to [`MAX_STREAMS`].
    pub max_streams: u32,
    /// The addresses from which this master dials nodes, no more than [`MAX_ADDRESSES`].
    pub dial_sources: Vec<IpAddr>,
    /// Where the agent is to dial flows, `host:port`, if not where the session goes.
    pub advertise: Option<String>,
    /// How many idle flows the agent is to keep ready, up to [`MAX_FLOW_POOL`]; 0 if this master
    /// uses no fast path, and then it accepts no flow either.
    pub flow_pool: u32,
}

/// The fate of an agent's claimed addresses, no more than [`MAX_ADDRESSES`] of either kind.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Addresses {
    /// These lead to the node.
    pub granted: Vec<IpAddr>,
    /// These do not, and why.
    pub refused: Vec<AddressRefusal>,
}

/// A claimed address that does not lead to the node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AddressRefusal {
    /// The address.
    pub address: IpAddr,
    /// Why, in printable ASCII.
    pub reason: String,
}

/// The end of a session, said by the side that ends it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SessionEnd {
    /// The kind of end.
    pub code: EndCode,
    /// The cause in words, in printable ASCII.
    pub message: String,
    /// How long the other side is asked to stay away, up to [`MAX_RETRY_AFTER`].
    pub retry_after: Option<Duration>,
}

/// Why a session ends or a registration is refused. The numbers are the wire's.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum EndCode {
    /// The registration names another node than the certificate, or one that may not come in.
    Identity,
    /// The registration names another cluster.
    Cluster,
    /// No common version of the protocol.
    Version,
    /// A newer session of the same node, from another run of the agent, has taken over.
    Superseded,
    /// The side that says so is at one of its limits.
    Busy,
    /// The side that says so is ending.
    ShuttingDown,
    /// The other side broke the protocol.
    Protocol,
    /// This run of the agent has another session with this very master, which goes on.
    AlreadyConnected,
    /// A code that this version does not know.
    Other(u32),
}

/// A wish that nothing new be opened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Drain {
    /// How long open streams may go on, in whole milliseconds.
    pub deadline: Duration,
    /// The cause in words, in printable ASCII.
    pub reason: String,
    /// New streams are served all the same until a successor has a session, or this is said again
    /// without it. Only agents say that.
    pub takes_new: bool,
}

impl ControlMessage {
    /// The message as one length-delimited frame.
    ///
    /// Text to be shown is cut and made printable on the way. Lists are not cut, and a list
    /// beyond its limit is refused by the peer: configurations are held to the limits instead.
    ///
    /// # Errors
    ///
    /// When the message is longer than a frame may be, which none within the limits is.
    pub fn encode(&self) -> Result<Bytes, FrameError> {
        encode_frame(&wire::ControlMessage::from(self).encode_to_vec())
    }

    /// Reads a message from a frame's content.
    ///
    /// # Errors
    ///
    /// When the bytes are no message, or a field has no usable value, or a list is too long.
    pub fn decode(content: &[u8]) -> Result<Self, DecodeError> {
        wire::ControlMessage::decode(content)?.try_into()
    }

    /// The message's name in `docs/protocol.md`, for logs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Register(_) => "Register",
            Self::Registered(_) => "Registered",
            Self::Addresses(_) => "Addresses",
            Self::End(_) => "End",
            Self::Ping(_) => "Ping",
            Self::Pong(_) => "Pong",
            Self::PaddedPing(_) => "PaddedPing",
            Self::PaddedPong { .. } => "PaddedPong",
            Self::Drain(_) => "Drain",
            Self::Abort { .. } => "Abort",
            Self::FlowPool(_) => "FlowPool",
            Self::Steering(_) => "Steering",
            Self::FlowAbort(_) => "FlowAbort",
            Self::Unknown => "Unknown",
        }
    }
}

impl SessionEnd {
    /// An end with its cause in words.
    #[must_use]
    pub fn new(code: EndCode, message: &str) -> Self {
        Self {
            code,
            message: printable(message, MAX_REASON_LEN),
            retry_after: None,
        }
    }

    /// The same, asking the other side to stay away for a while.
    #[must_use]
    pub fn retry_after(mut self, pause: Duration) -> Self {
        self.retry_after = Some(pause);
        self
    }
}

impl EndCode {
    /// Every word of [`EndCode::as_str`].
    pub const WORDS: &[&str] = &[
        "identity",
        "cluster",
        "version",
        "superseded",
        "busy",
        "shutting-down",
        "protocol",
        "already-connected",
        "other",
    ];

    /// The word for logs and metric labels, from a closed list.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Cluster => "cluster",
            Self::Version => "version",
            Self::Superseded => "superseded",
            Self::Busy => "busy",
            Self::ShuttingDown => "shutting-down",
            Self::Protocol => "protocol",
            Self::AlreadyConnected => "already-connected",
            Self::Other(_) => "other",
        }
    }

    fn to_wire(self) -> u32 {
        match self {
            Self::Identity => 1,
            Self::Cluster => 2,
            Self::Version => 3,
            Self::Superseded => 4,
            Self::Busy => 5,
            Self::ShuttingDown => 6,
            Self::Protocol => 7,
            Self::AlreadyConnected => 8,
            Self::Other(code) => code,
        }
    }

    fn from_wire(code: u32) -> Self {
        match code {
            1 => Self::Identity,
            2 => Self::Cluster,
            3 => Self::Version,
            4 => Self::Superseded,
            5 => Self::Busy,
            6 => Self::ShuttingDown,
            7 => Self::Protocol,
            8 => Self::AlreadyConnected,
            other => Self::Other(other),
        }
    }
}
