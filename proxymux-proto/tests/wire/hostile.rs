//! Decoders given bytes that nobody honest sends: an error at worst, never a panic.

use proptest::{collection, prelude::*, sample::Index};
use proxymux_proto::{
    ChunkDecoder, ChunkError, ControlMessage, DecodeError, FrameDecoder, FrameError, Host,
    InstanceId, MAX_CHUNK_LEN, MAX_FRAME_LEN, NodeName, OpenAnswer, OpenRequest, TargetAddr,
    encode_frame, printable,
};

use crate::{
    arbitrary::{control_message, open_answer, open_request},
    raw::{self, RawMessage, content},
};

proptest! {
    #[test]
    fn arbitrary_bytes_do_not_panic_any_decoder(bytes in collection::vec(any::<u8>(), 0..2000)) {
        check_messages(&bytes);
        check_frames(&bytes);
        check_chunks(&bytes);
        // Whether it is one is not the question.
        let _ = InstanceId::try_from(bytes.as_slice());
    }

    #[test]
    fn arbitrary_text_does_not_panic_any_parser(text in any::<String>()) {
        check_text(&text);
    }

    #[test]
    fn text_like_a_target_does_not_panic_any_parser(text in r"[\[\]:.%+a-f0-9-]{0,40}") {
        check_text(&text);
    }

    #[test]
    fn messages_with_broken_bytes_do_not_panic(
        message in prop_oneof![
            control_message().prop_map(|m| m.encode().unwrap()),
            open_request().prop_map(|m| m.encode().unwrap()),
            open_answer().prop_map(|m| m.encode().unwrap()),
        ],
        damage in collection::vec((any::<Index>(), any::<u8>()), 1..8),
        cut in any::<Index>(),
    ) {
        let mut bytes = content(&message).to_vec();
        // The index needs something to point into.
        bytes.push(0);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        check_messages(&bytes);
        check_messages(&bytes[..cut.index(bytes.len())]);
    }
}

#[test]
fn an_oversized_frame_is_refused_by_its_length_alone() {
    let mut decoder = FrameDecoder::default();

    decoder.push(&[0, 1, 0, 1]);

    let error = FrameError {
        len: MAX_FRAME_LEN + 1,
    };
    assert_eq!(decoder.wanted(), Err(error));
    assert_eq!(decoder.next(), Err(error));
    assert_eq!(decoder.next(), Err(error), "the error stays");
    assert_eq!(
        error.to_string(),
        "message of 65537 bytes, expected at most 65536"
    );
}

#[test]
fn the_longest_frame_passes_and_a_longer_one_is_not_made() {
    let longest = vec![7; MAX_FRAME_LEN];

    let frame = encode_frame(&longest).unwrap();

    assert_eq!(content(&frame), longest);
    assert!(encode_frame(&vec![7; MAX_FRAME_LEN + 1]).is_err());
}

#[test]
fn a_truncated_frame_is_no_message_and_is_known_to_be_midway() {
    let frame = encode_frame(b"register").unwrap();
    for cut in 0..frame.len() {
        let mut decoder = FrameDecoder::default();

        decoder.push(&frame[..cut]);

        assert_eq!(decoder.next().unwrap(), None);
        assert_eq!(decoder.is_midway(), cut > 0);
    }
}

#[test]
fn groups_nested_without_end_are_an_error_and_no_stack_overflow() {
    let deep = RawMessage::default()
        .nested_groups(MAX_FRAME_LEN / 2)
        .into_bytes();

    assert!(matches!(
        ControlMessage::decode(&deep),
        Err(DecodeError::Malformed(_))
    ));
    assert!(matches!(
        OpenRequest::decode(&deep),
        Err(DecodeError::Malformed(_))
    ));
    assert!(matches!(
        OpenAnswer::decode(&deep),
        Err(DecodeError::Malformed(_))
    ));
}

#[test]
fn text_that_is_no_utf8_is_an_error() {
    let bytes = raw::control(1, raw::register().bytes(9, b"\xff\xfe"));

    assert!(matches!(
        ControlMessage::decode(&bytes),
        Err(DecodeError::Malformed(_))
    ));
}

#[test]
fn text_of_a_peer_cannot_break_a_line() {
    let bytes = raw::control(
        4,
        RawMessage::default().uint(1, 5).text(2, "a\r\nb\u{1b}[2Jü"),
    );

    let message = ControlMessage::decode(&bytes).unwrap();

    let ControlMessage::End(end) = message else {
        panic!("decoded {message:?}");
    };
    assert_eq!(end.message, "a??b?[2J?");
}

#[test]
fn broken_chunk_framing_says_what_was_seen() {
    for (bytes, error) in [
        (&[3, 0, 0, 1][..], ChunkError::Kind(3)),
        (&[255, 255, 255, 255], ChunkError::Kind(255)),
        (&[0, 0, 0, 0], ChunkError::Length(0)),
        (&[0, 0, 0xff, 0xf1], ChunkError::Length(MAX_CHUNK_LEN + 1)),
        (&[0, 255, 255, 255], ChunkError::Length(0xff_ffff)),
    ] {
        let seen = ChunkDecoder::default().decode(&mut &bytes[..]);
        assert_eq!(seen, Err(error), "{bytes:?}");
    }
}

#[test]
fn a_byte_behind_either_end_mark_is_an_error() {
    for mark in [[1, 0, 0, 0], [2, 0, 0, 1]] {
        let mut decoder = ChunkDecoder::default();
        decoder.decode(&mut &mark[..]).unwrap();

        assert!(decoder.has_ended());
        assert_eq!(decoder.decode(&mut &[][..]), Ok(None));
        assert_eq!(decoder.decode(&mut &[0][..]), Err(ChunkError::AfterEnd));
    }
}

/// Decodes as everything; what decodes must survive being sent on.
fn check_messages(bytes: &[u8]) {
    if let Ok(message) = ControlMessage::decode(bytes) {
        let again = content(
            &message
                .encode()
                .expect("a message within the limits fits a frame"),
        );
        assert_eq!(ControlMessage::decode(&again).unwrap(), message);
    }
    if let Ok(request) = OpenRequest::decode(bytes) {
        let again = content(&request.encode().unwrap());
        assert_eq!(OpenRequest::decode(&again).unwrap(), request);
    }
    if let Ok(answer) = OpenAnswer::decode(bytes) {
        let again = content(&answer.encode().unwrap());
        assert_eq!(OpenAnswer::decode(&again).unwrap(), answer);
    }
}

fn check_frames(bytes: &[u8]) {
    let mut decoder = FrameDecoder::default();
    decoder.push(bytes);
    while let Ok(Some(message)) = decoder.next() {
        check_messages(&message);
    }
}

fn check_chunks(mut bytes: &[u8]) {
    let mut decoder = ChunkDecoder::default();
    while let Ok(Some(_)) = decoder.decode(&mut bytes) {
        let payload = decoder.payload_left().min(bytes.len());
        decoder.take_payload(payload);
        bytes = &bytes[payload..];
    }
}

/// What parses must read back from its own text.
fn check_text(text: &str) {
    if let Ok(target) = text.parse::<TargetAddr>() {
        assert_eq!(target.to_string().parse::<TargetAddr>().unwrap(), target);
    }
    if let Ok(host) = Host::parse(text) {
        assert_eq!(Host::parse(&host.to_string()).unwrap(), host);
    }
    if let Ok(name) = NodeName::parse(text) {
        assert_eq!(NodeName::parse(name.as_str()).unwrap(), name);
    }
    let shown = printable(text, 50);
    assert!(shown.len() <= 50);
    assert!(shown.bytes().all(|b| (b' '..=b'~').contains(&b)));
}
