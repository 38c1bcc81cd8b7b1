//! Conversations between two ends of a flow, and what is not believed.
//!
//! Keys are made up; the exact bytes stand in `docs/protocol.md` and are compared in
//! `tests/wire/golden.rs`.

use std::{sync::Arc, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::{OpenRequest, RefuseCode};

/// Keys as two ends of one session have them; another `session` has others.
fn keys(session: u8) -> Arc<FlowKeys> {
    let export = |context: &[u8], out: &mut [u8]| {
        for (i, byte) in out.iter_mut().enumerate() {
            let of_context = context.get(i % context.len()).copied().unwrap_or(0);
            *byte = session ^ of_context ^ u8::try_from(i).unwrap();
        }
        Ok::<(), ()>(())
    };
    Arc::new(FlowKeys::export(export).unwrap())
}

fn request() -> FlowMessage {
    FlowMessage::Open(FlowOpen::Target(OpenRequest {
        target: "10.0.10.10:10250".parse().unwrap(),
        budget: Duration::from_secs(8),
        measure: None,
    }))
}

fn refusal() -> FlowMessage {
    FlowMessage::Refused {
        code: RefuseCode::Unreachable,
        message: "connection refused".to_owned(),
    }
}

fn hello_of(bytes: &[u8]) -> [u8; FLOW_HELLO_LEN] {
    bytes.try_into().unwrap()
}

fn hear(end: &mut FlowConversation, bytes: &[u8]) -> Result<FlowMessage, FlowError> {
    let (header, rest) = bytes.split_first_chunk::<FLOW_HEADER_LEN>().unwrap();
    assert_eq!(FlowConversation::rest_len(*header)?, rest.len());
    end.hear(*header, rest)
}

fn pair(direction: FlowDirection) -> (FlowConversation, FlowConversation) {
    let (dialler, hello) = FlowConversation::dial(keys(1), direction, 7);
    let other = FlowConversation::accept(&hello_of(&hello), keys(1)).unwrap();
    (dialler, other)
}

fn tell(from: &mut FlowConversation, to: &mut FlowConversation, message: &FlowMessage) {
    let bytes = from.say(message).unwrap();
    assert_eq!(hear(to, &bytes).unwrap(), *message);
}

#[test]
fn a_reverse_flow_says_hello_answer_open_result() {
    for result in [FlowMessage::Opened, refusal()] {
        let (mut agent, mut master) = pair(FlowDirection::Reverse);
        tell(&mut master, &mut agent, &FlowMessage::Accepted);
        tell(&mut master, &mut agent, &request());
        tell(&mut agent, &mut master, &result);
    }
}

#[test]
fn a_direct_flow_says_hello_open_answer_result() {
    for (open, result) in [
        (request(), FlowMessage::Opened),
        (FlowMessage::Open(FlowOpen::Probe), refusal()),
    ] {
        let (mut master, mut agent) = pair(FlowDirection::Direct);
        tell(&mut master, &mut agent, &open);
        tell(&mut agent, &mut master, &FlowMessage::Accepted);
        tell(&mut agent, &mut master, &result);
    }
}

#[test]
fn a_hello_can_be_refused() {
    let (mut agent, mut master) = pair(FlowDirection::Reverse);
    tell(&mut master, &mut agent, &refusal());
}

#[test]
fn a_hello_of_another_session_is_forged() {
    let (_, hello) = FlowConversation::dial(keys(2), FlowDirection::Reverse, 1);
    let error = FlowConversation::accept(&hello_of(&hello), keys(1)).unwrap_err();
    assert_eq!(error.as_str(), "forged");
}

#[test]
fn what_is_no_hello_is_named() {
    let (_, hello) = FlowConversation::dial(keys(1), FlowDirection::Reverse, 1);
    for (at, word) in [(0, "not-a-hello"), (4, "version"), (5, "direction")] {
        let mut bytes = hello_of(&hello);
        bytes[at] = 0xff;
        let error = FlowConversation::accept(&bytes, keys(1)).unwrap_err();
        assert_eq!(error.as_str(), word);
    }
}

#[test]
fn an_open_of_one_flow_means_nothing_on_another() {
    let (mut agent, mut master) = pair(FlowDirection::Reverse);
    tell(&mut master, &mut agent, &FlowMessage::Accepted);
    let open = master.say(&request()).unwrap();

    let (dialler, hello) = FlowConversation::dial(keys(1), FlowDirection::Reverse, 8);
    let mut other_agent = dialler;
    let mut other_master = FlowConversation::accept(&hello_of(&hello), keys(1)).unwrap();
    tell(&mut other_master, &mut other_agent, &FlowMessage::Accepted);

    assert_eq!(
        hear(&mut other_agent, &open).unwrap_err().as_str(),
        "forged"
    );
}

#[test]
fn a_message_out_of_turn_proves_nothing() {
    let (mut agent, mut master) = pair(FlowDirection::Reverse);
    // An open where the answer belongs.
    let open = master.say(&request()).unwrap();
    assert_eq!(hear(&mut agent, &open).unwrap_err().as_str(), "unexpected");
}

#[test]
fn a_body_beyond_the_limit_is_refused_before_it_is_read() {
    let error = FlowConversation::rest_len([OPEN_KIND, 0, 0x04, 0x01]).unwrap_err();
    assert_eq!(error.as_str(), "too-long");
    assert_eq!(
        FlowConversation::rest_len([OPEN_KIND, 0, 0x04, 0x00]).unwrap(),
        MAX_FLOW_BODY_LEN + FLOW_MAC_LEN
    );
}

proptest! {
    #[test]
    fn no_changed_byte_of_a_hello_is_believed(at in 0..FLOW_HELLO_LEN, flip in 1..=255_u8) {
        let (_, hello) = FlowConversation::dial(keys(1), FlowDirection::Direct, 3);
        let mut bytes = hello_of(&hello);
        bytes[at] ^= flip;
        prop_assert!(FlowConversation::accept(&bytes, keys(1)).is_err());
    }

    #[test]
    fn no_changed_byte_of_a_message_is_believed(at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
        let (mut agent, mut master) = pair(FlowDirection::Reverse);
        tell(&mut master, &mut agent, &FlowMessage::Accepted);
        let mut open = master.say(&request()).unwrap().to_vec();
        let at = at.index(open.len());
        open[at] ^= flip;
        let (header, rest) = open.split_first_chunk::<FLOW_HEADER_LEN>().unwrap();
        prop_assert!(agent.hear(*header, rest).is_err());
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(
        hello in proptest::array::uniform32(any::<u8>()),
        header in any::<[u8; FLOW_HEADER_LEN]>(),
        rest in proptest::collection::vec(any::<u8>(), 0..1100),
    ) {
        let mut bytes = [0; FLOW_HELLO_LEN];
        bytes[..32].copy_from_slice(&hello);
        prop_assert!(FlowConversation::accept(&bytes, keys(1)).is_err());
        let (mut agent, _) = pair(FlowDirection::Reverse);
        prop_assert!(agent.hear(header, &rest).is_err());
    }
}

const OPEN_KIND: u8 = 2;
