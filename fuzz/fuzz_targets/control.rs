//! Control messages: no bytes make the decoder panic, and what it accepts survives a round trip.
//!
//! A message that is understood is encoded and read again; the second reading must say the same,
//! or the two ends of a session could disagree about what was said.

#![no_main]

use proxymux_proto::{ControlMessage, FrameDecoder};

libfuzzer_sys::fuzz_target!(|content: &[u8]| {
    let Ok(message) = ControlMessage::decode(content) else {
        return;
    };
    // What a peer may make us believe is bounded, well below what a frame holds.
    let frame = message
        .encode()
        .expect("a message within the limits fits a frame");
    let mut frames = FrameDecoder::default();
    frames.push(&frame);
    let content = frames
        .next()
        .expect("a frame that we encoded is in bounds")
        .expect("a frame that we encoded is whole");
    assert!(!frames.is_midway(), "bytes behind the frame");
    let again = ControlMessage::decode(&content).expect("a message that we encoded is readable");
    assert_eq!(again, message);
});
