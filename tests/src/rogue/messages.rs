//! Control messages as a rogue sends them.
//!
//! [`register`] and [`registered`] are what a proper agent and a proper master say, for a test to
//! change; [`handmade_registration`] is for what the product's own encoder would never write.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use proxymux_proto::{
    Addresses, ControlMessage, InstanceId, NodeName, OpenRequest, PROTOCOL_VERSION, Registered,
    Registration, encode_frame,
};

/// A proper registration of `node`.
///
/// # Errors
///
/// The name is none.
pub fn registration(node: &str) -> Result<Registration> {
    Ok(Registration {
        version: PROTOCOL_VERSION,
        node: NodeName::parse(node)?,
        instance: ROGUE,
        addresses: Vec::new(),
        kubelet: None,
        allow: Vec::new(),
        cluster_id: None,
        node_id: None,
        software: "rogue".to_owned(),
        labels: BTreeMap::new(),
        held_masters: Vec::new(),
        fast_path: false,
    })
}

/// The same as a message.
///
/// # Errors
///
/// The name is none.
pub fn register(node: &str) -> Result<ControlMessage> {
    Ok(ControlMessage::Register(registration(node)?))
}

/// A proper answer to a registration.
pub fn registered() -> Registered {
    Registered {
        version: PROTOCOL_VERSION,
        master: ROGUE,
        addresses: Addresses::default(),
        max_streams: 64,
        dial_sources: Vec::new(),
        advertise: None,
        flow_pool: 0,
    }
}

/// A registration of version 1 and a proper instance id, with any name, as one frame.
///
/// # Errors
///
/// The name is longer than a frame.
pub fn handmade_registration(node: &[u8]) -> Result<Vec<u8>> {
    let mut body = vec![FIELD_1_NUMBER, 1];
    body.extend(field(FIELD_2_BYTES, node)?);
    body.extend(field(FIELD_3_BYTES, ROGUE.as_bytes())?);
    Ok(encode_frame(&field(FIELD_1_BYTES, &body)?)?.to_vec())
}

/// A message of a type that does not exist yet, as one frame.
///
/// # Errors
///
/// Never: it is short.
pub fn message_of_the_future() -> Result<Vec<u8>> {
    Ok(encode_frame(&field(FIELD_15_BYTES, b"whatever it may be")?)?.to_vec())
}

/// A proper request for a target, as one frame.
///
/// # Errors
///
/// The target is none.
pub fn open_request(target: &str) -> Result<Vec<u8>> {
    let request = OpenRequest {
        target: target.parse()?,
        budget: Duration::from_secs(8),
        measure: None,
    };
    Ok(request.encode()?.to_vec())
}

/// A field of protobuf: its key, its length in base 128, its content.
fn field(key: u8, content: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = vec![key];
    let mut len = content.len();
    while len >= 0x80 {
        bytes.push(u8::try_from(len & 0x7f)? | 0x80);
        len >>= 7;
    }
    bytes.push(u8::try_from(len)?);
    bytes.extend_from_slice(content);
    Ok(bytes)
}

const ROGUE: InstanceId = InstanceId::from_bytes(*b"a rogue instance");

const FIELD_1_NUMBER: u8 = 1 << 3;
const FIELD_1_BYTES: u8 = 1 << 3 | 2;
const FIELD_2_BYTES: u8 = 2 << 3 | 2;
const FIELD_3_BYTES: u8 = 3 << 3 | 2;
const FIELD_15_BYTES: u8 = 15 << 3 | 2;
