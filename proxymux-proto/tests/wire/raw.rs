//! Messages written by hand, field by field, as a newer or hostile peer could write them.
//!
//! Owns just enough of the protobuf encoding for that, independently of the library under test.

use bytes::Bytes;
use proxymux_proto::FrameDecoder;

/// Fields under way to becoming a message.
#[derive(Default)]
pub(crate) struct RawMessage(Vec<u8>);

impl RawMessage {
    pub(crate) fn uint(mut self, tag: u32, value: u64) -> Self {
        self.key(tag, 0);
        self.varint(value);
        self
    }

    pub(crate) fn bytes(mut self, tag: u32, value: &[u8]) -> Self {
        self.key(tag, 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    pub(crate) fn text(self, tag: u32, value: &str) -> Self {
        self.bytes(tag, value.as_bytes())
    }

    pub(crate) fn message(self, tag: u32, value: RawMessage) -> Self {
        self.bytes(tag, &value.0)
    }

    /// The same field `count` times.
    pub(crate) fn texts(self, tag: u32, count: usize, value: impl Fn(usize) -> String) -> Self {
        (0..count).fold(self, |message, i| message.text(tag, &value(i)))
    }

    /// A field of each of the encoding's shapes, under tags that no version knows.
    pub(crate) fn unknown_fields(mut self) -> Self {
        self = self.uint(200, u64::MAX).text(201, "from the future");
        self.key(202, 1);
        self.0.extend_from_slice(&[0xff; 8]);
        self.key(203, 5);
        self.0.extend_from_slice(&[0xff; 4]);
        self.key(204, 3);
        self = self.uint(1, 7);
        self.key(204, 4);
        self
    }

    /// A group inside a group, `depth` times, never closed.
    pub(crate) fn nested_groups(mut self, depth: usize) -> Self {
        for _ in 0..depth {
            self.key(204, 3);
        }
        self
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn key(&mut self, tag: u32, shape: u32) {
        self.varint(u64::from(tag << 3 | shape));
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.0.push(value.to_le_bytes()[0]);
    }
}

/// A registration with only what it cannot do without.
pub(crate) fn register() -> RawMessage {
    RawMessage::default()
        .uint(1, 1)
        .text(2, "node-a")
        .bytes(3, &[7; 16])
}

/// A registration's acceptance with only what it cannot do without.
pub(crate) fn registered() -> RawMessage {
    RawMessage::default()
        .uint(1, 1)
        .bytes(2, &[7; 16])
        .uint(4, 1)
}

/// `body` as a control message of the type with this tag.
pub(crate) fn control(tag: u32, body: RawMessage) -> Vec<u8> {
    RawMessage::default().message(tag, body).into_bytes()
}

/// The content of a frame that an encoder made.
pub(crate) fn content(frame: &[u8]) -> Bytes {
    let mut decoder = FrameDecoder::default();
    decoder.push(frame);
    let content = decoder
        .next()
        .unwrap()
        .expect("an encoder makes whole frames");
    assert!(!decoder.is_midway(), "an encoder makes one frame");
    content
}
