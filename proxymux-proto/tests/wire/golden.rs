//! One of everything, byte by byte, so that the format cannot change by accident.
//!
//! The bytes stand in `docs/protocol.md` under "Test vectors" and nowhere else: each block there
//! has a name, and the value of that name stands here.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use proxymux_proto::{
    AbortCode, AddressRefusal, Addresses, AllowedRange, Chunk, ChunkDecoder, ChunkHeader,
    ControlMessage, Drain, EndCode, FlowAbort, FlowConversation, FlowDirection, FlowKeys,
    FlowMessage, FlowOpen, InstanceId, Measure, NodeName, OpenAnswer, OpenRequest, PaddedPing,
    RefuseCode, Registered, Registration, SessionEnd, SteeringStatus,
};

use crate::{document, raw::content};

#[test]
fn every_value_has_the_bytes_that_the_document_shows() {
    let shown = document::vectors();
    let values = values();

    let names: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
    let shown_names: Vec<&str> = shown.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(shown_names, names);
    for ((name, value), (_, bytes)) in values.iter().zip(&shown) {
        assert_eq!(
            document::hex(&value.encode()),
            document::hex(bytes),
            "the bytes of `{name}` have changed"
        );
    }
}

#[test]
fn the_bytes_that_the_document_shows_are_read_as_every_value() {
    for ((name, value), (_, bytes)) in values().iter().zip(document::vectors()) {
        value.assert_read_from(name, &bytes);
    }
}

/// Something that has bytes of its own on a session or flow.
enum Value {
    Control(ControlMessage),
    Request(OpenRequest),
    Answer(OpenAnswer),
    Data(&'static [u8]),
    End,
    Aborted(AbortCode),
    /// A message of a flow: which flow, and its place in it.
    Flow(Flow, usize),
}

/// The two flows of the vectors.
#[derive(Clone, Copy)]
enum Flow {
    Reverse,
    Direct,
}

impl Value {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Control(message) => message.encode().unwrap().to_vec(),
            Self::Request(request) => request.encode().unwrap().to_vec(),
            Self::Answer(answer) => answer.encode().unwrap().to_vec(),
            Self::Data(payload) => {
                let header = ChunkHeader::data(payload.len()).unwrap();
                [&header.as_bytes()[..], payload].concat()
            }
            Self::End => ChunkHeader::end().as_bytes().to_vec(),
            Self::Aborted(code) => ChunkHeader::aborted(*code).as_bytes().to_vec(),
            Self::Flow(flow, place) => flow.messages().swap_remove(*place),
        }
    }

    fn assert_read_from(&self, name: &str, bytes: &[u8]) {
        let chunk = |mut bytes: &[u8]| {
            let chunk = ChunkDecoder::default().decode(&mut bytes).unwrap().unwrap();
            (chunk, bytes.to_vec())
        };
        match self {
            Self::Control(message) => {
                assert_eq!(
                    &ControlMessage::decode(&content(bytes)).unwrap(),
                    message,
                    "{name}"
                );
            }
            Self::Request(request) => {
                assert_eq!(
                    &OpenRequest::decode(&content(bytes)).unwrap(),
                    request,
                    "{name}"
                );
            }
            Self::Answer(answer) => {
                assert_eq!(
                    &OpenAnswer::decode(&content(bytes)).unwrap(),
                    answer,
                    "{name}"
                );
            }
            Self::Data(payload) => {
                let expected = (Chunk::Data(payload.len()), payload.to_vec());
                assert_eq!(chunk(bytes), expected, "{name}");
            }
            Self::End => assert_eq!(chunk(bytes), (Chunk::End, Vec::new()), "{name}"),
            Self::Aborted(code) => {
                assert_eq!(chunk(bytes), (Chunk::Aborted(*code), Vec::new()), "{name}");
            }
            Self::Flow(flow, place) => flow.assert_heard(*place, bytes, name),
        }
    }
}

impl Flow {
    /// What is said after the hello.
    fn said(self) -> [FlowMessage; 3] {
        let open = FlowMessage::Open(FlowOpen::Target(OpenRequest {
            target: "10.0.10.10:10250".parse().unwrap(),
            budget: Duration::from_secs(8),
            measure: None,
        }));
        match self {
            Self::Reverse => [FlowMessage::Accepted, open, FlowMessage::Opened],
            Self::Direct => [
                open,
                FlowMessage::Accepted,
                FlowMessage::Refused {
                    code: RefuseCode::Unreachable,
                    message: "connection refused".to_owned(),
                },
            ],
        }
    }

    fn dial(self) -> (FlowConversation, Bytes) {
        match self {
            Self::Reverse => FlowConversation::dial(flow_keys(), FlowDirection::Reverse, 1),
            Self::Direct => FlowConversation::dial(flow_keys(), FlowDirection::Direct, 300),
        }
    }

    /// All its messages as they travel.
    fn messages(self) -> Vec<Vec<u8>> {
        let (mut conversation, hello) = self.dial();
        let said = self.said();
        let said = said.iter().map(|m| conversation.say(m).unwrap().to_vec());
        std::iter::once(hello.to_vec()).chain(said).collect()
    }

    /// Hears everything up to a place, and these bytes there.
    fn assert_heard(self, place: usize, bytes: &[u8], name: &str) {
        let mut messages = self.messages();
        messages[place] = bytes.to_vec();
        let hello = messages[0][..].try_into().unwrap();
        let mut other = FlowConversation::accept(hello, flow_keys()).unwrap();
        for (message, said) in messages[1..=place].iter().zip(self.said()) {
            let (header, rest) = message.split_first_chunk().unwrap();
            assert_eq!(other.hear(*header, rest).unwrap(), said, "{name}");
        }
    }
}

/// The keys that the document names for its vectors: counting up in the order of its table.
fn flow_keys() -> Arc<FlowKeys> {
    const CONTEXTS: [&str; 8] = [
        "reverse hello",
        "reverse answer",
        "reverse open",
        "reverse result",
        "direct hello",
        "direct answer",
        "direct open",
        "direct result",
    ];
    let export = |context: &[u8], secret: &mut [u8]| {
        match CONTEXTS
            .iter()
            .position(|known| known.as_bytes() == context)
        {
            Some(at) => secret.fill(u8::try_from(at + 1).unwrap()),
            None => {
                assert_eq!(context, b"session id");
                secret.copy_from_slice(&std::array::from_fn::<u8, 16, _>(|i| {
                    u8::try_from(i).unwrap()
                }));
            }
        }
        Ok::<(), ()>(())
    };
    Arc::new(FlowKeys::export(export).unwrap())
}

/// Names and values in the document's order; every field of every message is set in one of them.
fn values() -> Vec<(&'static str, Value)> {
    vec![
        (
            "register",
            Value::Control(ControlMessage::Register(registration())),
        ),
        (
            "registered",
            Value::Control(ControlMessage::Registered(registered())),
        ),
        (
            "addresses",
            Value::Control(ControlMessage::Addresses(addresses())),
        ),
        (
            "end",
            Value::Control(ControlMessage::End(
                SessionEnd::new(EndCode::Busy, "too many sessions")
                    .retry_after(Duration::from_secs(5)),
            )),
        ),
        ("ping", Value::Control(ControlMessage::Ping(1))),
        (
            "pong",
            Value::Control(ControlMessage::Pong(0x0102_0304_0506_0708)),
        ),
        (
            "padded-ping",
            Value::Control(ControlMessage::PaddedPing(PaddedPing {
                number: 1,
                padding: 3,
                answer: 4,
            })),
        ),
        (
            "padded-pong",
            Value::Control(ControlMessage::PaddedPong {
                number: 1,
                padding: 4,
            }),
        ),
        (
            "drain",
            Value::Control(ControlMessage::Drain(Drain {
                deadline: Duration::from_secs(30),
                reason: "update".to_owned(),
                takes_new: true,
            })),
        ),
        (
            "abort",
            Value::Control(ControlMessage::Abort {
                stream: 300,
                code: AbortCode::Overflow,
            }),
        ),
        ("flow-pool", Value::Control(ControlMessage::FlowPool(8))),
        (
            "steering",
            Value::Control(ControlMessage::Steering(SteeringStatus {
                stands: true,
                reason: "ens3".to_owned(),
            })),
        ),
        (
            "flow-abort",
            Value::Control(ControlMessage::FlowAbort(FlowAbort {
                direction: FlowDirection::Reverse,
                counter: 300,
                code: AbortCode::NotTls,
            })),
        ),
        (
            "open-request",
            Value::Request(OpenRequest {
                target: "10.0.10.10:10250".parse().unwrap(),
                budget: Duration::from_secs(8),
                measure: None,
            }),
        ),
        (
            "open-request-measure",
            Value::Request(OpenRequest {
                target: "10.0.10.10:10250".parse().unwrap(),
                budget: Duration::from_secs(8),
                measure: Some(Measure::Echo),
            }),
        ),
        (
            "open-request-ipv6",
            Value::Request(OpenRequest {
                target: "[fd00:10::10]:10250".parse().unwrap(),
                budget: Duration::from_secs(8),
                measure: None,
            }),
        ),
        ("dialing", Value::Answer(OpenAnswer::Dialing)),
        ("opened", Value::Answer(OpenAnswer::Opened)),
        (
            "refused",
            Value::Answer(OpenAnswer::Refused {
                code: RefuseCode::Unreachable,
                message: "connection refused".to_owned(),
            }),
        ),
        ("chunk-data", Value::Data(b"hello")),
        ("chunk-end", Value::End),
        ("chunk-aborted", Value::Aborted(AbortCode::Reset)),
        ("flow-reverse-hello", Value::Flow(Flow::Reverse, 0)),
        ("flow-reverse-accepted", Value::Flow(Flow::Reverse, 1)),
        ("flow-reverse-open", Value::Flow(Flow::Reverse, 2)),
        ("flow-reverse-opened", Value::Flow(Flow::Reverse, 3)),
        ("flow-direct-hello", Value::Flow(Flow::Direct, 0)),
        ("flow-direct-open", Value::Flow(Flow::Direct, 1)),
        ("flow-direct-accepted", Value::Flow(Flow::Direct, 2)),
        ("flow-direct-refused", Value::Flow(Flow::Direct, 3)),
    ]
}

fn registration() -> Registration {
    Registration {
        version: 1,
        node: NodeName::parse("10.0.10.10").unwrap(),
        instance: instance(0x10),
        addresses: vec![
            "10.0.10.10".parse().unwrap(),
            "fd00:10::10".parse().unwrap(),
        ],
        kubelet: Some("10.0.10.10:10250".parse().unwrap()),
        allow: vec![AllowedRange {
            net: "10.244.2.0/24".parse().unwrap(),
            ports: 1..=65535,
        }],
        cluster_id: Some("cluster-1".to_owned()),
        node_id: Some("instance-1".to_owned()),
        software: "proxymux-agent 0.1.0".to_owned(),
        labels: BTreeMap::from([
            ("oci-realm".to_owned(), "oc1".to_owned()),
            ("tm-id".to_owned(), "oke".to_owned()),
        ]),
        held_masters: vec![instance(0x20)],
        fast_path: true,
    }
}

fn registered() -> Registered {
    Registered {
        version: 1,
        master: instance(0x20),
        addresses: addresses(),
        max_streams: 1024,
        dial_sources: vec!["192.0.2.10".parse().unwrap()],
        advertise: Some("192.0.2.10:12250".to_owned()),
        flow_pool: 4,
    }
}

fn addresses() -> Addresses {
    Addresses {
        granted: vec!["10.0.10.10".parse().unwrap()],
        refused: vec![AddressRefusal {
            address: "fd00:10::10".parse().unwrap(),
            reason: "no proof".to_owned(),
        }],
    }
}

/// Sixteen bytes counting up.
fn instance(first: u8) -> InstanceId {
    InstanceId::from_bytes(std::array::from_fn(|i| first + u8::try_from(i).unwrap()))
}
