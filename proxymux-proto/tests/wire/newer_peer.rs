//! What a newer peer adds is skipped, and what it does not send is missing by name.

use proxymux_proto::{
    AbortCode, Chunk, ChunkDecoder, ControlMessage, EndCode, OpenAnswer, OpenRequest, RefuseCode,
};

use crate::raw::{self, RawMessage};

#[test]
fn unknown_fields_around_a_message_are_skipped() {
    let plain = raw::control(1, raw::register());
    let newer = RawMessage::default()
        .unknown_fields()
        .message(1, raw::register())
        .unknown_fields()
        .into_bytes();

    assert_eq!(
        ControlMessage::decode(&newer).unwrap(),
        ControlMessage::decode(&plain).unwrap()
    );
}

#[test]
fn unknown_fields_inside_every_message_are_skipped() {
    let range = || {
        RawMessage::default()
            .text(1, "10.0.0.0/8")
            .uint(2, 1)
            .uint(3, 2)
    };
    let refusal = || RawMessage::default().text(1, "10.0.0.1").text(2, "taken");
    let addresses = || RawMessage::default().text(1, "10.0.0.2");
    let empty = RawMessage::default;
    type Part = fn(RawMessage) -> RawMessage;
    let build = |extra: Part| {
        [
            raw::control(1, extra(raw::register().message(6, extra(range())))),
            raw::control(2, extra(raw::registered().message(3, extra(addresses())))),
            raw::control(3, extra(addresses().message(2, extra(refusal())))),
            raw::control(4, extra(empty().uint(1, 5).text(2, "busy").uint(3, 1000))),
            raw::control(7, extra(empty().uint(1, 1000).text(2, "update"))),
            raw::control(8, extra(empty().uint(1, 2).uint(2, 1))),
        ]
    };

    let plain = build(|message| message);
    let newer = build(RawMessage::unknown_fields);

    for (plain, newer) in plain.iter().zip(&newer) {
        assert_ne!(plain, newer);
        assert_eq!(
            ControlMessage::decode(newer).unwrap(),
            ControlMessage::decode(plain).unwrap()
        );
    }
}

#[test]
fn unknown_fields_in_the_messages_of_an_opening_are_skipped() {
    let request = || RawMessage::default().text(1, "node:1").uint(2, 8000);
    let refused = || RawMessage::default().uint(1, 2).text(2, "gone");
    let request_plain = OpenRequest::decode(&request().into_bytes()).unwrap();
    let request_newer = OpenRequest::decode(&request().unknown_fields().into_bytes()).unwrap();
    let answer_newer = RawMessage::default()
        .message(3, refused().unknown_fields())
        .unknown_fields();

    assert_eq!(request_newer, request_plain);
    assert_eq!(
        OpenAnswer::decode(&answer_newer.into_bytes()).unwrap(),
        OpenAnswer::Refused {
            code: RefuseCode::Unreachable,
            message: "gone".to_owned()
        }
    );
    for (tag, answer) in [(1, OpenAnswer::Dialing), (2, OpenAnswer::Opened)] {
        let newer = RawMessage::default().message(tag, RawMessage::default().unknown_fields());
        assert_eq!(OpenAnswer::decode(&newer.into_bytes()).unwrap(), answer);
    }
}

#[test]
fn padding_changes_no_message_but_pings_and_their_answers() {
    let padded = |tag, body| {
        RawMessage::default()
            .message(tag, body)
            .bytes(16, &[0; 9])
            .uint(17, 9)
            .into_bytes()
    };
    let end = || RawMessage::default().uint(1, 5).text(2, "busy");

    assert_eq!(
        ControlMessage::decode(&padded(1, raw::register())).unwrap(),
        ControlMessage::decode(&raw::control(1, raw::register())).unwrap()
    );
    assert_eq!(
        ControlMessage::decode(&padded(4, end())).unwrap(),
        ControlMessage::decode(&raw::control(4, end())).unwrap()
    );
}

#[test]
fn unknown_message_types_are_recognised_as_such() {
    let control = raw::control(12, RawMessage::default().text(1, "something new"));
    let answer = RawMessage::default()
        .message(4, RawMessage::default().uint(1, 1))
        .into_bytes();

    assert_eq!(
        ControlMessage::decode(&control).unwrap(),
        ControlMessage::Unknown
    );
    assert_eq!(
        ControlMessage::decode(&[]).unwrap(),
        ControlMessage::Unknown
    );
    assert_eq!(OpenAnswer::decode(&answer).unwrap(), OpenAnswer::Unknown);
    assert_eq!(OpenAnswer::decode(&[]).unwrap(), OpenAnswer::Unknown);
}

#[test]
fn unknown_codes_keep_their_number_and_have_one_word() {
    let end = raw::control(4, RawMessage::default().uint(1, 4711));
    let abort = raw::control(8, RawMessage::default().uint(1, 2).uint(2, 77));
    let refused = RawMessage::default()
        .message(3, RawMessage::default().uint(1, 4711))
        .into_bytes();

    let ControlMessage::End(end) = ControlMessage::decode(&end).unwrap() else {
        panic!("an End decodes to something else");
    };
    assert_eq!(
        (end.code, end.code.as_str()),
        (EndCode::Other(4711), "other")
    );
    assert_eq!(
        ControlMessage::decode(&abort).unwrap(),
        ControlMessage::Abort {
            stream: 2,
            code: AbortCode::Other(77)
        }
    );
    assert_eq!(
        OpenAnswer::decode(&refused).unwrap(),
        OpenAnswer::Refused {
            code: RefuseCode::Other(4711),
            message: String::new()
        }
    );
}

#[test]
fn an_abort_code_too_large_for_a_byte_is_the_same_unknown_code_in_both_places() {
    let message = raw::control(8, RawMessage::default().uint(1, 2).uint(2, 0x101));
    let chunk = ChunkDecoder::default().decode(&mut &[2, 0, 1, 1][..]);

    assert_eq!(
        ControlMessage::decode(&message).unwrap(),
        ControlMessage::Abort {
            stream: 2,
            code: AbortCode::Other(255)
        }
    );
    assert_eq!(chunk, Ok(Some(Chunk::Aborted(AbortCode::Other(255)))));
}

#[test]
fn an_end_mark_may_carry_a_number_that_a_newer_peer_means_something_by() {
    assert_eq!(
        ChunkDecoder::default().decode(&mut &[1, 0, 0, 9][..]),
        Ok(Some(Chunk::End))
    );
}

#[test]
fn a_registration_of_another_version_is_decoded_so_that_it_can_be_answered() {
    let bytes = raw::control(1, raw::register().uint(1, 2));

    let message = ControlMessage::decode(&bytes).unwrap();

    let ControlMessage::Register(registration) = message else {
        panic!("decoded {message:?}");
    };
    assert_eq!(registration.version, 2);
}

#[test]
fn of_several_types_in_one_message_the_last_known_one_counts() {
    let bytes = RawMessage::default()
        .message(1, raw::register())
        .message(4, RawMessage::default().uint(1, 5))
        .message(99, RawMessage::default())
        .into_bytes();

    assert_eq!(ControlMessage::decode(&bytes).unwrap().name(), "End");
}
