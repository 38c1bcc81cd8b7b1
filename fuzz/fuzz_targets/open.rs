//! Open requests and answers: no bytes make the decoders panic, and what they accept survives a
//! round trip.
//!
//! The target of a request decides what an agent dials, so above all it must not read differently
//! the second time.

#![no_main]

use proxymux_proto::{FrameDecoder, OpenAnswer, OpenRequest};

libfuzzer_sys::fuzz_target!(|content: &[u8]| {
    if let Ok(request) = OpenRequest::decode(content) {
        let frame = request.encode().expect("a request fits a frame");
        let again = OpenRequest::decode(&unframed(&frame)).expect("our own request is readable");
        assert_eq!(again, request);
    }
    if let Ok(answer) = OpenAnswer::decode(content) {
        let frame = answer.encode().expect("an answer fits a frame");
        let again = OpenAnswer::decode(&unframed(&frame)).expect("our own answer is readable");
        assert_eq!(again, answer);
    }
});

fn unframed(frame: &[u8]) -> Vec<u8> {
    let mut frames = FrameDecoder::default();
    frames.push(frame);
    frames
        .next()
        .expect("a frame that we encoded is in bounds")
        .expect("a frame that we encoded is whole")
        .to_vec()
}
