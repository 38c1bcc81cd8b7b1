//! Chunks of a relayed stream: the pieces in which bytes arrive make no difference.
//!
//! Reads the same bytes once in one piece and once in small ones, and wants the same payload, the
//! same marks and the same error. The first byte is the size of the small pieces.

#![no_main]

use proxymux_proto::{AbortCode, Chunk, ChunkDecoder, ChunkError};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((size, bytes)) = input.split_first() else {
        return;
    };
    let size = usize::from(*size).max(1);
    assert_eq!(read([bytes].into_iter()), read(bytes.chunks(size)));
});

/// Everything that a direction carried.
#[derive(Debug, Default, PartialEq)]
struct Direction {
    payload: Vec<u8>,
    ended: bool,
    aborted: Option<AbortCode>,
    error: Option<ChunkError>,
}

fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Direction {
    let mut direction = Direction::default();
    let mut decoder = ChunkDecoder::default();
    for mut piece in pieces {
        if let Err(error) = read_piece(&mut decoder, &mut piece, &mut direction) {
            direction.error = Some(error);
            return direction;
        }
        assert!(piece.is_empty(), "{} bytes were not read", piece.len());
        assert_eq!(
            decoder.has_ended(),
            direction.ended || direction.aborted.is_some()
        );
    }
    direction
}

fn read_piece(
    decoder: &mut ChunkDecoder,
    piece: &mut &[u8],
    direction: &mut Direction,
) -> Result<(), ChunkError> {
    loop {
        let (payload, rest) = piece.split_at(decoder.payload_left().min(piece.len()));
        direction.payload.extend_from_slice(payload);
        decoder.take_payload(payload.len());
        *piece = rest;
        match decoder.decode(piece)? {
            None => return Ok(()),
            Some(Chunk::Data(len)) => assert_eq!(decoder.payload_left(), len),
            Some(Chunk::End) => direction.ended = true,
            Some(Chunk::Aborted(code)) => direction.aborted = Some(code),
        }
    }
}
