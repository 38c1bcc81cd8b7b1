//! Length-delimited messages: the pieces in which bytes arrive make no difference.
//!
//! Reads the same bytes once in one piece and once in pieces no larger than the decoder wants and
//! the first byte says, and wants the same messages; encoded again they are the bytes that were
//! read.

#![no_main]

use proxymux_proto::{FrameDecoder, FrameError, encode_frame};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((size, bytes)) = input.split_first() else {
        return;
    };
    let (messages, error) = read_at_once(bytes);
    let size = usize::from(*size).max(1);
    assert_eq!(read_as_wanted(bytes, size), (messages.clone(), error));

    let mut encoded = Vec::new();
    for message in &messages {
        encoded.extend_from_slice(&encode_frame(message).expect("a message that was read fits"));
    }
    assert!(bytes.starts_with(&encoded), "encoding changed the bytes");
});

type Reading = (Vec<Vec<u8>>, Option<FrameError>);

fn read_at_once(bytes: &[u8]) -> Reading {
    let mut decoder = FrameDecoder::default();
    let mut messages = Vec::new();
    decoder.push(bytes);
    let error = take_messages(&mut decoder, &mut messages).err();
    (messages, error)
}

fn read_as_wanted(mut bytes: &[u8], size: usize) -> Reading {
    let mut decoder = FrameDecoder::default();
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let wanted = match decoder.wanted() {
            Ok(wanted) => wanted,
            Err(error) => return (messages, Some(error)),
        };
        assert!(wanted > 0, "wants nothing, yet has no message");
        let (piece, rest) = bytes.split_at(wanted.min(size).min(bytes.len()));
        decoder.push(piece);
        bytes = rest;
        if let Err(error) = take_messages(&mut decoder, &mut messages) {
            return (messages, Some(error));
        }
    }
    (messages, None)
}

fn take_messages(
    decoder: &mut FrameDecoder,
    messages: &mut Vec<Vec<u8>>,
) -> Result<(), FrameError> {
    while let Some(message) = decoder.next()? {
        messages.push(message.to_vec());
    }
    Ok(())
}
