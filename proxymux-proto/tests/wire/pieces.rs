//! How the bytes are cut on their way makes no difference.

use proptest::{collection, prelude::*, sample::Index};
use proxymux_proto::{
    AbortCode, Chunk, ChunkDecoder, ChunkHeader, FrameDecoder, MAX_CHUNK_LEN, encode_frame,
};

use crate::arbitrary::abort_code;

proptest! {
    #[test]
    fn frames_in_any_pieces_are_the_same_messages(
        messages in collection::vec(collection::vec(any::<u8>(), 0..300), 0..12),
        cuts in collection::vec(any::<Index>(), 0..40),
    ) {
        let stream = frames(&messages);
        let mut decoder = FrameDecoder::default();
        let mut arrived = Vec::new();

        for piece in pieces(&stream, &cuts) {
            decoder.push(piece);
            while let Some(message) = decoder.next().unwrap() {
                arrived.push(message.to_vec());
            }
        }

        prop_assert_eq!(arrived, messages);
        prop_assert!(!decoder.is_midway());
    }

    #[test]
    fn a_reader_that_takes_what_is_wanted_leaves_what_follows_alone(
        message in collection::vec(any::<u8>(), 0..300),
        follows in collection::vec(any::<u8>(), 0..50),
        most in 1..20usize,
    ) {
        let stream = [&encode_frame(&message).unwrap()[..], &follows].concat();
        let mut rest = &stream[..];
        let mut decoder = FrameDecoder::default();

        let arrived = loop {
            if let Some(arrived) = decoder.next().unwrap() {
                break arrived;
            }
            let wanted = decoder.wanted().unwrap();
            prop_assert!(wanted > 0);
            let (piece, left) = rest.split_at(wanted.min(most));
            decoder.push(piece);
            rest = left;
        };

        prop_assert_eq!(&arrived[..], &message[..]);
        prop_assert_eq!(rest, &follows[..]);
    }

    #[test]
    fn chunks_in_any_pieces_are_the_same_chunks(
        payloads in collection::vec(payload(), 0..8),
        ending in ending(),
        cuts in collection::vec(any::<Index>(), 0..40),
    ) {
        let stream = chunks(&payloads, ending);
        let mut decoder = ChunkDecoder::default();
        let mut seen = Seen::default();

        for piece in pieces(&stream, &cuts) {
            seen.take(&mut decoder, piece);
        }

        let mut expected: Vec<Chunk> = payloads.iter().map(|p| Chunk::Data(p.len())).collect();
        expected.extend(ending);
        prop_assert_eq!(seen.chunks, expected);
        prop_assert_eq!(seen.payload, payloads.concat());
        prop_assert_eq!(decoder.payload_left(), 0);
        prop_assert_eq!(decoder.has_ended(), ending.is_some());
    }
}

#[test]
fn a_chunk_of_the_greatest_length_fills_four_tls_records_with_its_headers() {
    const MULTIPLEXER_HEADER: usize = 12;
    assert_eq!(
        MULTIPLEXER_HEADER + ChunkHeader::LEN + MAX_CHUNK_LEN,
        4 * 16_384
    );
}

#[test]
fn nothing_is_decoded_while_payload_is_left() {
    let mut decoder = ChunkDecoder::default();
    let mut input = &[0, 0, 0, 2, b'h', b'i'][..];

    assert_eq!(decoder.decode(&mut input), Ok(Some(Chunk::Data(2))));
    assert_eq!(decoder.decode(&mut input), Ok(None));
    assert_eq!(input, b"hi");

    decoder.take_payload(usize::MAX);
    assert_eq!(decoder.payload_left(), 0);
}

/// What came out of a decoder.
#[derive(Default)]
struct Seen {
    chunks: Vec<Chunk>,
    payload: Vec<u8>,
}

impl Seen {
    fn take(&mut self, decoder: &mut ChunkDecoder, mut piece: &[u8]) {
        while !piece.is_empty() {
            let (payload, rest) = piece.split_at(decoder.payload_left().min(piece.len()));
            self.payload.extend_from_slice(payload);
            decoder.take_payload(payload.len());
            piece = rest;
            self.chunks.extend(decoder.decode(&mut piece).unwrap());
        }
    }
}

fn frames(messages: &[Vec<u8>]) -> Vec<u8> {
    messages
        .iter()
        .flat_map(|message| encode_frame(message).unwrap())
        .collect()
}

fn chunks(payloads: &[Vec<u8>], ending: Option<Chunk>) -> Vec<u8> {
    let mut stream = Vec::new();
    for payload in payloads {
        stream.extend_from_slice(ChunkHeader::data(payload.len()).unwrap().as_bytes());
        stream.extend_from_slice(payload);
    }
    match ending {
        Some(Chunk::Aborted(code)) => stream.extend(ChunkHeader::aborted(code).as_bytes()),
        Some(_) => stream.extend(ChunkHeader::end().as_bytes()),
        None => {}
    }
    stream
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => collection::vec(any::<u8>(), 1..200),
        1 => Just(vec![0x55; MAX_CHUNK_LEN]),
    ]
}

fn ending() -> impl Strategy<Value = Option<Chunk>> {
    prop_oneof![
        Just(None),
        Just(Some(Chunk::End)),
        abort_code().prop_map(|code: AbortCode| Some(Chunk::Aborted(code))),
    ]
}

/// `stream` cut at each of `cuts`; empty pieces are among them.
fn pieces<'a>(stream: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
    at.extend([0, stream.len()]);
    at.sort_unstable();
    at.windows(2)
        .map(|ends| &stream[ends[0]..ends[1]])
        .collect()
}
