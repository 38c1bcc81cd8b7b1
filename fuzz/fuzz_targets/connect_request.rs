//! Requests at a front door: the pieces in which bytes arrive make no difference.
//!
//! Reads the same bytes once in one piece and once in pieces whose sizes the input's first bytes
//! say. A request's header must lie inside the bytes and the limit, and a refusal must be a
//! status line that cannot be broken out of.

#![no_main]

use proxymux_master::front_door::connect::{Parsed, parse};

const MAX_HEADER_LEN: usize = 16 * 1024;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((sizes, bytes)) = input.split_first_chunk::<4>() else {
        return;
    };
    let parsed = parse(bytes, MAX_HEADER_LEN);
    assert_eq!(parse_in_pieces(bytes, sizes), parsed);
    match parsed {
        Parsed::NeedMore => assert!(bytes.len() < MAX_HEADER_LEN, "never says that it is enough"),
        Parsed::Request { header_len, .. } => {
            assert!(header_len <= bytes.len().min(MAX_HEADER_LEN));
        }
        Parsed::Refused(refusal) => {
            let answer = refusal.answer();
            assert_eq!(answer.matches("\r\n").count(), 4, "{answer:?}");
            assert!(answer.is_ascii());
        }
    }
});

fn parse_in_pieces(bytes: &[u8], sizes: &[u8]) -> Parsed {
    let mut end = 0_usize;
    let mut sizes = sizes.iter().cycle();
    loop {
        // Squared, so that both single bytes and whole headers are tried.
        let size = usize::from(*sizes.next().expect("there are four sizes"))
            .pow(2)
            .max(1);
        end = bytes.len().min(end + size);
        let piece = bytes.get(..end).expect("the end was cut to the length");
        let parsed = parse(piece, MAX_HEADER_LEN);
        if parsed != Parsed::NeedMore || end == bytes.len() {
            return parsed;
        }
    }
}
