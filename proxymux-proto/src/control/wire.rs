//! The protobuf form of control messages, and the road between it and the checked form.
//!
//! Owns the field numbers, which never change their meaning; `docs/protocol.md` has the same as
//! a `.proto` text. Everything that arrives is checked here, so that no other code sees a value
//! that a peer could have made up freely.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;

use super::{
    AddressRefusal, Addresses, AllowedRange, ControlMessage as Checked, Drain, EndCode, FlowAbort,
    MAX_ADDRESSES, MAX_ALLOWED_RANGES, MAX_FLOW_POOL, MAX_HELD_MASTERS, MAX_ID_LEN, MAX_LABELS,
    MAX_PADDING, MAX_RETRY_AFTER, MAX_STREAMS, PaddedPing, Registered, Registration, SessionEnd,
    SteeringStatus,
};
use crate::{
    AbortCode, DecodeError, FlowDirection, MAX_REASON_LEN, NodeName, TargetAddr, field::Field,
    printable,
};

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ControlMessage {
    #[prost(oneof = "Body", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11")]
    body: Option<Body>,
    #[prost(bytes = "vec", tag = "16")]
    padding: Vec<u8>,
    #[prost(uint32, tag = "17")]
    answer_padding: u32,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Body {
    #[prost(message, tag = "1")]
    Register(RegisterMsg),
    #[prost(message, tag = "2")]
    Registered(RegisteredMsg),
    #[prost(message, tag = "3")]
    Addresses(AddressesMsg),
    #[prost(message, tag = "4")]
    End(EndMsg),
    #[prost(fixed64, tag = "5")]
    Ping(u64),
    #[prost(fixed64, tag = "6")]
    Pong(u64),
    #[prost(message, tag = "7")]
    Drain(DrainMsg),
    #[prost(message, tag = "8")]
    Abort(AbortMsg),
    #[prost(uint32, tag = "9")]
    FlowPool(u32),
    #[prost(message, tag = "10")]
    Steering(SteeringMsg),
    #[prost(message, tag = "11")]
    FlowAbort(FlowAbortMsg),
}

#[derive(Clone, PartialEq, prost::Message)]
struct RegisterMsg {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(string, tag = "2")]
    node_name: String,
    #[prost(bytes = "vec", tag = "3")]
    instance: Vec<u8>,
    #[prost(string, repeated, tag = "4")]
    addresses: Vec<String>,
    #[prost(string, tag = "5")]
    kubelet: String,
    #[prost(message, repeated, tag = "6")]
    allow: Vec<AllowedRangeMsg>,
    #[prost(string, tag = "7")]
    cluster_id: String,
    #[prost(string, tag = "8")]
    node_id: String,
    #[prost(string, tag = "9")]
    software: String,
    #[prost(btree_map = "string, string", tag = "10")]
    labels: BTreeMap<String, String>,
    #[prost(bytes = "vec", repeated, tag = "11")]
    held_masters: Vec<Vec<u8>>,
    #[prost(bool, tag = "12")]
    fast_path: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AllowedRangeMsg {
    #[prost(string, tag = "1")]
    cidr: String,
    #[prost(uint32, tag = "2")]
    first_port: u32,
    #[prost(uint32, tag = "3")]
    last_port: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RegisteredMsg {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(bytes = "vec", tag = "2")]
    master: Vec<u8>,
    #[prost(message, optional, tag = "3")]
    addresses: Option<AddressesMsg>,
    #[prost(uint32, tag = "4")]
    max_streams: u32,
    #[prost(string, repeated, tag = "5")]
    dial_sources: Vec<String>,
    #[prost(string, tag = "6")]
    advertise: String,
    #[prost(uint32, tag = "7")]
    flow_pool: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AddressesMsg {
    #[prost(string, repeated, tag = "1")]
    granted: Vec<String>,
    #[prost(message, repeated, tag = "2")]
    refused: Vec<RefusedAddressMsg>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RefusedAddressMsg {
    #[prost(string, tag = "1")]
    address: String,
    #[prost(string, tag = "2")]
    reason: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EndMsg {
    #[prost(uint32, tag = "1")]
    code: u32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(uint32, tag = "3")]
    retry_after_ms: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DrainMsg {
    #[prost(uint32, tag = "1")]
    deadline_ms: u32,
    #[prost(string, tag = "2")]
    reason: String,
    #[prost(bool, tag = "3")]
    takes_new: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AbortMsg {
    #[prost(uint32, tag = "1")]
    stream: u32,
    #[prost(uint32, tag = "2")]
    code: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SteeringMsg {
    #[prost(bool, tag = "1")]
    stands: bool,
    #[prost(string, tag = "2")]
    reason: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct FlowAbortMsg {
    #[prost(uint32, tag = "1")]
    direction: u32,
    #[prost(uint64, tag = "2")]
    counter: u64,
    #[prost(uint32, tag = "3")]
    code: u32,
}

impl From<&Checked> for ControlMessage {
    fn from(message: &Checked) -> Self {
        let body = match message {
            Checked::Register(m) => Some(Body::Register(m.into())),
            Checked::Registered(m) => Some(Body::Registered(m.into())),
            Checked::Addresses(m) => Some(Body::Addresses(m.into())),
            Checked::End(m) => Some(Body::End(m.into())),
            Checked::Ping(number) => Some(Body::Ping(*number)),
            Checked::Pong(number) => Some(Body::Pong(*number)),
            Checked::PaddedPing(m) => {
                return Self::padded(Body::Ping(m.number), m.padding, m.answer);
            }
            Checked::PaddedPong { number, padding } => {
                return Self::padded(Body::Pong(*number), *padding, 0);
            }
            Checked::Drain(m) => Some(Body::Drain(DrainMsg {
                deadline_ms: millis(m.deadline),
                reason: shown(&m.reason),
                takes_new: m.takes_new,
            })),
            Checked::Abort { stream, code } => Some(Body::Abort(AbortMsg {
                stream: *stream,
                code: u32::from(code.to_wire()),
            })),
            Checked::FlowPool(wanted) => Some(Body::FlowPool(*wanted)),
            Checked::Steering(m) => Some(Body::Steering(SteeringMsg {
                stands: m.stands,
                reason: shown(&m.reason),
            })),
            Checked::FlowAbort(m) => Some(Body::FlowAbort(FlowAbortMsg {
                direction: u32::from(m.direction.to_wire()),
                counter: m.counter,
                code: u32::from(m.code.to_wire()),
            })),
            Checked::Unknown => None,
        };
        Self {
            body,
            ..Self::default()
        }
    }
}

impl ControlMessage {
    fn padded(body: Body, padding: u16, answer: u16) -> Self {
        Self {
            body: Some(body),
            padding: vec![0; usize::from(padding)],
            answer_padding: u32::from(answer),
        }
    }

    /// The padding that is there, and that which is asked for.
    fn paddings(&self) -> Result<(u16, u16), DecodeError> {
        let within = |field, len| {
            let padding = u16::try_from(len).ok().filter(|len| *len <= MAX_PADDING);
            let at = Field {
                message: "ControlMessage",
                field,
            };
            padding
                .ok_or_else(|| at.bad(format_args!("{len} bytes, expected at most {MAX_PADDING}")))
        };
        Ok((
            within("padding", self.padding.len())?,
            within(
                "answer_padding",
                usize::try_from(self.answer_padding).unwrap_or(usize::MAX),
            )?,
        ))
    }
}

impl TryFrom<ControlMessage> for Checked {
    type Error = DecodeError;

    fn try_from(message: ControlMessage) -> Result<Self, DecodeError> {
        let (padding, answer) = message.paddings()?;
        Ok(match message.body {
            None => Self::Unknown,
            Some(Body::Register(m)) => Self::Register(m.try_into()?),
            Some(Body::Registered(m)) => Self::Registered(m.try_into()?),
            Some(Body::Addresses(m)) => Self::Addresses(m.try_into()?),
            Some(Body::End(m)) => Self::End(m.into()),
            Some(Body::Ping(number)) if padding == 0 && answer == 0 => Self::Ping(number),
            Some(Body::Ping(number)) => Self::PaddedPing(PaddedPing {
                number,
                padding,
                answer,
            }),
            Some(Body::Pong(number)) if padding == 0 => Self::Pong(number),
            Some(Body::Pong(number)) => Self::PaddedPong { number, padding },
            Some(Body::Drain(m)) => Self::Drain(Drain {
                deadline: from_millis(m.deadline_ms),
                reason: shown(&m.reason),
                takes_new: m.takes_new,
            }),
            Some(Body::Abort(m)) => Self::Abort {
                stream: m.stream,
                code: AbortCode::from_number(m.code),
            },
            Some(Body::FlowPool(wanted)) => Self::FlowPool(flow_pool("ControlMessage", wanted)?),
            Some(Body::Steering(m)) => Self::Steering(SteeringStatus {
                stands: m.stands,
                reason: shown(&m.reason),
            }),
            Some(Body::FlowAbort(m)) => Self::FlowAbort(m.try_into()?),
        })
    }
}

impl TryFrom<FlowAbortMsg> for FlowAbort {
    type Error = DecodeError;

    fn try_from(m: FlowAbortMsg) -> Result<Self, DecodeError> {
        let at = Field {
            message: "FlowAbort",
            field: "direction",
        };
        let number = u8::try_from(m.direction).unwrap_or(u8::MAX);
        let direction = FlowDirection::from_wire(number)
            .ok_or_else(|| at.bad(format_args!("{}, expected 1 or 2", m.direction)))?;
        Ok(Self {
            direction,
            counter: m.counter,
            code: AbortCode::from_number(m.code),
        })
    }
}

fn flow_pool(message: &'static str, wanted: u32) -> Result<u32, DecodeError> {
    let at = Field {
        message,
        field: "flow_pool",
    };
    if wanted > MAX_FLOW_POOL {
        let why = format_args!("{wanted} flows, expected at most {MAX_FLOW_POOL}");
        return Err(at.bad(why));
    }
    Ok(wanted)
}

impl From<&SessionEnd> for EndMsg {
    fn from(m: &SessionEnd) -> Self {
        Self {
            code: m.code.to_wire(),
            message: shown(&m.message),
            // Zero means "none", so a shorter time than a millisecond becomes one.
            retry_after_ms: m.retry_after.map_or(0, |pause| millis(pause).max(1)),
        }
    }
}

impl From<EndMsg> for SessionEnd {
    fn from(m: EndMsg) -> Self {
        Self {
            code: EndCode::from_wire(m.code),
            message: shown(&m.message),
            retry_after: (m.retry_after_ms > 0)
                .then(|| from_millis(m.retry_after_ms).min(MAX_RETRY_AFTER)),
        }
    }
}

impl From<&Registration> for RegisterMsg {
    fn from(m: &Registration) -> Self {
        Self {
            version: m.version,
            node_name: m.node.to_string(),
            instance: m.instance.as_bytes().to_vec(),
            addresses: m.addresses.iter().map(IpAddr::to_string).collect(),
            kubelet: m.kubelet.map(|a| a.to_string()).unwrap_or_default(),
            allow: m.allow.iter().map(Into::into).collect(),
            cluster_id: m.cluster_id.clone().unwrap_or_default(),
            node_id: m.node_id.as_deref().map(shown_id).unwrap_or_default(),
            software: shown(&m.software),
            labels: shown_labels(&m.labels),
            held_masters: m
                .held_masters
                .iter()
                .map(|id| id.as_bytes().to_vec())
                .collect(),
            fast_path: m.fast_path,
        }
    }
}

impl TryFrom<RegisterMsg> for Registration {
    type Error = DecodeError;

    fn try_from(m: RegisterMsg) -> Result<Self, DecodeError> {
        let at = |field| Field {
            message: "Register",
            field,
        };
        if m.node_name.is_empty() {
            return Err(at("node_name").missing());
        }
        if m.labels.len() > MAX_LABELS {
            return Err(at("labels").too_many(m.labels.len(), MAX_LABELS));
        }
        at("allow").at_most(MAX_ALLOWED_RANGES, &m.allow)?;
        Ok(Self {
            version: m.version,
            node: NodeName::parse(&m.node_name)
                .map_err(|e| at("node_name").bad_text(&m.node_name, e))?,
            instance: at("instance").instance(&m.instance)?,
            addresses: at("addresses").ips(MAX_ADDRESSES, &m.addresses)?,
            kubelet: match m.kubelet.as_str() {
                "" => None,
                text => Some(socket_addr(at("kubelet"), text)?),
            },
            allow: m
                .allow
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            cluster_id: at("cluster_id").exact(m.cluster_id)?,
            node_id: (!m.node_id.is_empty()).then(|| shown_id(&m.node_id)),
            software: shown(&m.software),
            labels: shown_labels(&m.labels),
            held_masters: at("held_masters")
                .at_most(MAX_HELD_MASTERS, &m.held_masters)?
                .iter()
                .map(|id| at("held_masters").instance(id))
                .collect::<Result<_, _>>()?,
            fast_path: m.fast_path,
        })
    }
}

impl From<&AllowedRange> for AllowedRangeMsg {
    fn from(m: &AllowedRange) -> Self {
        Self {
            cidr: m.net.trunc().to_string(),
            first_port: u32::from(*m.ports.start()),
            last_port: u32::from(*m.ports.end()),
        }
    }
}

impl TryFrom<AllowedRangeMsg> for AllowedRange {
    type Error = DecodeError;

    fn try_from(m: AllowedRangeMsg) -> Result<Self, DecodeError> {
        let at = |field| Field {
            message: "Register",
            field,
        };
        let net: IpNet = at("allow.cidr").parse(&m.cidr)?;
        match (u16::try_from(m.first_port), u16::try_from(m.last_port)) {
            (Ok(first), Ok(last)) if 0 < first && first <= last => Ok(Self {
                net: net.trunc(),
                ports: first..=last,
            }),
            _ => Err(at("allow").bad(format_args!(
                "ports {} to {}, expected two from 1 to 65535 in order",
                m.first_port, m.last_port
            ))),
        }
    }
}

impl From<&Registered> for RegisteredMsg {
    fn from(m: &Registered) -> Self {
        Self {
            version: m.version,
            master: m.master.as_bytes().to_vec(),
            addresses: Some((&m.addresses).into()),
            max_streams: m.max_streams,
            dial_sources: m.dial_sources.iter().map(IpAddr::to_string).collect(),
            advertise: m.advertise.clone().unwrap_or_default(),
            flow_pool: m.flow_pool,
        }
    }
}

impl TryFrom<RegisteredMsg> for Registered {
    type Error = DecodeError;

    fn try_from(m: RegisteredMsg) -> Result<Self, DecodeError> {
        let at = |field| Field {
            message: "Registered",
            field,
        };
        Ok(Self {
            version: m.version,
            master: at("master").instance(&m.master)?,
            addresses: m.addresses.unwrap_or_default().try_into()?,
            max_streams: match m.max_streams {
                0 => return Err(at("max_streams").missing()),
                n @ 1..=MAX_STREAMS => n,
                n => {
                    let why = format_args!("{n} streams, expected at most {MAX_STREAMS}");
                    return Err(at("max_streams").bad(why));
                }
            },
            dial_sources: at("dial_sources").ips(MAX_ADDRESSES, &m.dial_sources)?,
            advertise: match m.advertise.as_str() {
                "" => None,
                text => Some(at("advertise").parse::<TargetAddr>(text)?.to_string()),
            },
            flow_pool: flow_pool("Registered", m.flow_pool)?,
        })
    }
}

/// Reads an address that somebody may dial.
fn socket_addr(at: Field, text: &str) -> Result<SocketAddr, DecodeError> {
    let addr: SocketAddr = at.parse(text)?;
    if addr.port() == 0 {
        return Err(at.bad_text(text, "expected a port from 1 to 65535"));
    }
    Ok(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
}

impl From<&Addresses> for AddressesMsg {
    fn from(m: &Addresses) -> Self {
        Self {
            granted: m.granted.iter().map(IpAddr::to_string).collect(),
            refused: m
                .refused
                .iter()
                .map(|r| RefusedAddressMsg {
                    address: r.address.to_string(),
                    reason: shown(&r.reason),
                })
                .collect(),
        }
    }
}

impl TryFrom<AddressesMsg> for Addresses {
    type Error = DecodeError;

    fn try_from(m: AddressesMsg) -> Result<Self, DecodeError> {
        let at = |field| Field {
            message: "Addresses",
            field,
        };
        Ok(Self {
            granted: at("granted").ips(MAX_ADDRESSES, &m.granted)?,
            refused: at("refused")
                .at_most(MAX_ADDRESSES, &m.refused)?
                .iter()
                .map(|r| {
                    Ok(AddressRefusal {
                        address: at("refused.address").ip(&r.address)?,
                        reason: shown(&r.reason),
                    })
                })
                .collect::<Result<_, DecodeError>>()?,
        })
    }
}

/// The wire's number for a time; longer ones than it can say become the longest.
fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn from_millis(ms: u32) -> Duration {
    Duration::from_millis(u64::from(ms))
}

/// Text that is shown to people and means nothing to us.
fn shown(text: &str) -> String {
    printable(text, MAX_REASON_LEN)
}

fn shown_id(text: &str) -> String {
    printable(text, MAX_ID_LEN)
}

fn shown_labels(labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let pairs = labels.iter();
    pairs.map(|(k, v)| (shown_id(k), shown_id(v))).collect()
}
