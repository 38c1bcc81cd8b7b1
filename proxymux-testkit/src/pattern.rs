//! Bytes that tell where they belong: every end of a test makes and checks the same stream.
//!
//! The byte at an offset is a function of offset and seed. It repeats every [`PERIOD`] bytes, a
//! prime, so that data misplaced by any buffer, frame or window size is noticed; only a shift by
//! a multiple of the prime itself would not be. Checking is a comparison of slices, which keeps
//! up with gigabytes in an unoptimised build.

use std::{fmt, sync::Arc};

/// The largest prime below 64 Ki.
pub const PERIOD: usize = 65_521;

/// An endless stream of bytes, the same for the same seed.
///
/// ```
/// use proxymux_testkit::pattern::Pattern;
///
/// let pattern = Pattern::new(7);
/// let mut verifier = pattern.verifier();
/// verifier.check(pattern.at(0, 1000)).unwrap();
/// verifier.check(pattern.at(1000, 10)).unwrap();
/// let mismatch = verifier.check(pattern.at(2000, 32)).unwrap_err();
/// assert_eq!((mismatch.offset, mismatch.looks_like), (1010, Some(2000)));
/// ```
#[derive(Clone)]
pub struct Pattern {
    seed: u64,
    /// Two periods, so that a period's length is contiguous from any offset in the first.
    block: Arc<[u8]>,
}

impl Pattern {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Self {
        // xorshift64*; its state must not be zero.
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut period = Vec::with_capacity(PERIOD + 8);
        while period.len() < PERIOD {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            period.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_be_bytes());
        }
        period.truncate(PERIOD);
        Self {
            seed,
            block: period.repeat(2).into(),
        }
    }

    /// The seed it was made from.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Up to `length` bytes from `offset` on; at most [`PERIOD`] at a time.
    pub fn at(&self, offset: u64, length: usize) -> &[u8] {
        let start = phase(offset);
        self.block
            .get(start..start + length.min(PERIOD))
            .expect("the block holds two periods")
    }

    /// What checks this stream from its beginning.
    pub fn verifier(&self) -> Verifier {
        Verifier {
            pattern: self.clone(),
            offset: 0,
        }
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({})", self.seed)
    }
}

/// Checks a stream piece by piece.
#[derive(Clone, Debug)]
pub struct Verifier {
    pattern: Pattern,
    offset: u64,
}

impl Verifier {
    /// How many bytes have been found right so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Checks the next bytes of the stream.
    ///
    /// # Errors
    ///
    /// The first byte that is not what it must be. The verifier is then of no further use.
    pub fn check(&mut self, data: &[u8]) -> Result<(), Mismatch> {
        let mut rest = data;
        while !rest.is_empty() {
            let expected = self.pattern.at(self.offset, rest.len());
            let (found, more) = rest.split_at(expected.len());
            if found != expected {
                return Err(self.locate(rest, expected));
            }
            self.offset += found.len() as u64;
            rest = more;
        }
        Ok(())
    }

    fn locate(&self, found: &[u8], expected: &[u8]) -> Mismatch {
        let right = found
            .iter()
            .zip(expected)
            .take_while(|(a, b)| a == b)
            .count();
        let offset = self.offset + right as u64;
        let wrong = found.get(right..).unwrap_or_default();
        Mismatch {
            seed: self.pattern.seed,
            offset,
            expected: *self
                .pattern
                .at(offset, 1)
                .first()
                .expect("one was asked for"),
            found: *wrong.first().expect("the pieces differ"),
            looks_like: self.nearest(wrong, offset),
        }
    }

    /// The offset nearest to `offset` at which these bytes would have been right.
    fn nearest(&self, found: &[u8], offset: u64) -> Option<u64> {
        let sample = found.get(..SAMPLE)?;
        let block = self.pattern.block.get(..PERIOD + SAMPLE)?;
        let position = block.windows(SAMPLE).position(|window| window == sample)? as u64;
        let period = PERIOD as u64;
        let behind = (phase(offset) as u64 + period - position) % period;
        Some(match offset.checked_sub(behind) {
            Some(earlier) if behind <= period / 2 => earlier,
            _ => offset + (period - behind),
        })
    }
}

/// Where a stream went wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mismatch {
    /// The seed of the stream that was expected.
    pub seed: u64,
    /// The offset of the first wrong byte.
    pub offset: u64,
    /// What was expected there.
    pub expected: u8,
    /// What was there.
    pub found: u8,
    /// The offset where the found bytes belong, if they are of this stream at all.
    pub looks_like: Option<u64>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            seed,
            offset,
            expected,
            found,
            looks_like,
        } = self;
        write!(
            f,
            "byte {offset} of stream {seed} is {found:#04x}, expected {expected:#04x}; "
        )?;
        match looks_like {
            Some(position) => write!(f, "it looks like byte {position}"),
            None => write!(f, "it is not of this stream"),
        }
    }
}

impl std::error::Error for Mismatch {}

/// A cheap digest for bodies that follow no pattern: FNV-1a, 64 bits, over words of eight bytes
/// in little-endian order (the last one filled up with zeros), then over the length.
///
/// Words instead of bytes make it eight times as fast; it is no longer the FNV of other tools.
///
/// ```
/// use proxymux_testkit::pattern::Digest;
///
/// let mut pieces = Digest::default();
/// pieces.update(b"half a ");
/// pieces.update(b"sentence");
/// assert_eq!(pieces.finish(), Digest::of(b"half a sentence"));
/// ```
#[derive(Clone, Debug)]
pub struct Digest {
    state: u64,
    length: u64,
    /// The bytes behind the last full word; always fewer than eight.
    pending: Vec<u8>,
}

impl Digest {
    /// The digest of one piece.
    pub fn of(data: &[u8]) -> u64 {
        let mut digest = Self::default();
        digest.update(data);
        digest.finish()
    }

    /// Adds the next bytes.
    pub fn update(&mut self, mut data: &[u8]) {
        self.length += data.len() as u64;
        if !self.pending.is_empty() {
            let missing = WORD - self.pending.len();
            let (head, rest) = data.split_at(missing.min(data.len()));
            self.pending.extend_from_slice(head);
            data = rest;
            if self.pending.len() == WORD {
                let word = std::mem::take(&mut self.pending);
                self.mix_word(&word);
            }
        }
        let words = data.chunks_exact(WORD);
        self.pending.extend_from_slice(words.remainder());
        words.for_each(|word| self.mix_word(word));
    }

    /// The digest of all bytes so far.
    pub fn finish(&self) -> u64 {
        let mut last = self.clone();
        if !last.pending.is_empty() {
            last.pending.resize(WORD, 0);
            let word = std::mem::take(&mut last.pending);
            last.mix_word(&word);
        }
        last.mix(self.length);
        last.state
    }

    /// How many bytes have been added.
    pub fn length(&self) -> u64 {
        self.length
    }

    fn mix_word(&mut self, word: &[u8]) {
        self.mix(u64::from_le_bytes(
            word.try_into().expect("words are eight bytes"),
        ));
    }

    fn mix(&mut self, word: u64) {
        self.state = (self.state ^ word).wrapping_mul(FNV_PRIME);
    }
}

impl Default for Digest {
    fn default() -> Self {
        Self {
            state: FNV_BASIS,
            length: 0,
            pending: Vec::new(),
        }
    }
}

fn phase(offset: u64) -> usize {
    usize::try_from(offset % PERIOD as u64).expect("below the period")
}

/// Long enough that sixteen bytes of another place do not match by chance.
const SAMPLE: usize = 16;
const WORD: usize = 8;
const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_make_the_same_stream() {
        let pattern = Pattern::new(3);
        let mut whole = Vec::new();
        for piece in [1, 7, 4096, PERIOD, 65_536, 3, 100_000] {
            let mut left = piece;
            while left > 0 {
                let bytes = pattern.at(whole.len() as u64, left);
                left -= bytes.len();
                whole.extend_from_slice(bytes);
            }
        }
        let mut verifier = pattern.verifier();
        for piece in whole.chunks(8191) {
            verifier.check(piece).unwrap();
        }
        assert_eq!(verifier.offset(), whole.len() as u64);
        assert_eq!(whole[PERIOD..2 * PERIOD], whole[..PERIOD]);
    }

    #[test]
    fn one_flipped_bit_is_located() {
        let pattern = Pattern::new(1);
        let mut data = pattern.at(0, 5000).to_vec();
        data[4321] ^= 0x10;
        let mismatch = pattern.verifier().check(&data).unwrap_err();
        assert_eq!(mismatch.offset, 4321);
        assert_eq!(mismatch.found, mismatch.expected ^ 0x10);
        assert_eq!(mismatch.looks_like, None);
    }

    #[test]
    fn a_lost_and_a_repeated_piece_tell_where_the_data_belongs() {
        let pattern = Pattern::new(1);
        let mut verifier = pattern.verifier();
        verifier.check(pattern.at(0, 4096)).unwrap();
        let lost = verifier.clone().check(pattern.at(8192, 4096)).unwrap_err();
        assert_eq!((lost.offset, lost.looks_like), (4096, Some(8192)));
        let repeated = verifier.check(pattern.at(1024, 4096)).unwrap_err();
        assert_eq!((repeated.offset, repeated.looks_like), (4096, Some(1024)));
        assert!(
            repeated.to_string().ends_with("it looks like byte 1024"),
            "{repeated}"
        );
    }

    #[test]
    fn seeds_make_different_streams() {
        let (one, two) = (Pattern::new(1), Pattern::new(2));
        assert_ne!(one.at(0, 64), two.at(0, 64));
        let mismatch = one.verifier().check(two.at(0, 64)).unwrap_err();
        assert_eq!(mismatch.looks_like, None);
    }

    #[test]
    fn a_digest_depends_on_every_byte_and_the_length_but_not_on_the_pieces() {
        let data = Pattern::new(5).at(0, 1003).to_vec();
        let whole = Digest::of(&data);
        for size in [1, 2, 7, 8, 9, 500] {
            let mut digest = Digest::default();
            data.chunks(size).for_each(|piece| digest.update(piece));
            assert_eq!((digest.finish(), digest.length()), (whole, 1003));
        }
        for index in [0, 7, 8, 1002] {
            let mut other = data.clone();
            other[index] ^= 1;
            assert_ne!(Digest::of(&other), whole);
        }
        let longer = [data.as_slice(), &[0]].concat();
        assert_ne!(Digest::of(&longer), whole);
    }
}
