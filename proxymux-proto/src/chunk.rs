//! The framing of a relayed stream, after it has been opened: chunks.
//!
//! Owns the four-byte header in front of every chunk and the explicit marks that end a direction.
//! The multiplexer cannot tell a reset from a clean end, so a direction that ends without
//! [`Chunk::End`] was cut off, and is never passed on as an end.
//! Payload bytes are not copied here: the decoder says how many of the next bytes are payload.

/// The most payload bytes in one chunk.
///
/// Four full TLS records of 16,384 bytes hold a multiplexer header (12), a chunk header (4) and
/// this: what is relayed in bulk costs a system call and a wake-up for four records, not for each.
pub const MAX_CHUNK_LEN: usize = 64 * 1024 - 16;

/// One step of a relayed stream's direction.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Chunk {
    /// So many payload bytes follow.
    Data(usize),
    /// The sender will send nothing more; the other direction goes on.
    End,
    /// The sender gave up both directions.
    Aborted(AbortCode),
}

/// Why one side gave up a relayed stream. The numbers are the wire's.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum AbortCode {
    /// The connection at the sender's end was reset or failed.
    Reset,
    /// Nothing moved for the configured idle limit.
    Idle,
    /// A drain ran out of time.
    Drain,
    /// The receiver of this code broke the stream's framing.
    Protocol,
    /// Too many frames waited in the stream.
    Overflow,
    /// Whoever asked for the stream went away before it was open.
    Cancelled,
    /// The sender was out of memory, and nothing had moved on this stream for the longest.
    Memory,
    /// What came on a flow does not begin as TLS does.
    NotTls,
    /// A code that this version does not know.
    Other(u8),
}

/// The bytes in front of a chunk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ChunkHeader([u8; Self::LEN]);

/// The peer broke the framing of a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ChunkError {
    /// A kind of chunk that does not exist.
    #[error("chunk of kind {0}, expected 0 (data), 1 (end) or 2 (aborted)")]
    Kind(u8),
    /// A data chunk that is empty or too long.
    #[error("data chunk of {0} bytes, expected 1 to {MAX_CHUNK_LEN}")]
    Length(usize),
    /// Something after the mark that ends a direction.
    #[error("bytes after the end of a stream's direction")]
    AfterEnd,
}

/// Reads chunks from one direction of a stream.
///
/// Feed it what arrived with [`ChunkDecoder::decode`]; after [`Chunk::Data`] take payload with
/// [`ChunkDecoder::take_payload`] before decoding on.
#[derive(Debug, Default)]
pub struct ChunkDecoder {
    /// Bytes of a header that came in pieces.
    header: [u8; ChunkHeader::LEN],
    header_len: usize,
    /// Payload bytes of the current chunk that have not been taken.
    payload_left: usize,
    ended: bool,
}

impl ChunkDecoder {
    /// Payload bytes of the current chunk that have not been taken yet.
    #[must_use]
    pub fn payload_left(&self) -> usize {
        self.payload_left
    }

    /// Whether the direction has ended, by either mark.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Says that `n` payload bytes have been used; more than are left count as all that are left.
    pub fn take_payload(&mut self, n: usize) {
        self.payload_left = self.payload_left.saturating_sub(n);
    }

    /// Reads the next chunk's header from the front of `input`, which it shortens.
    ///
    /// `None` when `input` ran out first, or while payload of the last chunk is left.
    ///
    /// # Errors
    ///
    /// When the peer broke the framing; the stream is of no more use.
    pub fn decode(&mut self, input: &mut &[u8]) -> Result<Option<Chunk>, ChunkError> {
        if self.payload_left > 0 || input.is_empty() {
            return Ok(None);
        }
        if self.ended {
            return Err(ChunkError::AfterEnd);
        }
        while self.header_len < ChunkHeader::LEN {
            let Some((first, rest)) = input.split_first() else {
                return Ok(None);
            };
            if let Some(slot) = self.header.get_mut(self.header_len) {
                *slot = *first;
            }
            self.header_len += 1;
            *input = rest;
        }
        self.header_len = 0;
        let chunk = ChunkHeader(self.header).chunk()?;
        match chunk {
            Chunk::Data(len) => self.payload_left = len,
            Chunk::End | Chunk::Aborted(_) => self.ended = true,
        }
        Ok(Some(chunk))
    }
}

impl ChunkHeader {
    /// The header's size on the wire.
    pub const LEN: usize = 4;

    /// The header of a chunk with `len` payload bytes; `None` unless 1 to [`MAX_CHUNK_LEN`].
    #[must_use]
    pub fn data(len: usize) -> Option<Self> {
        let value = u32::try_from(len)
            .ok()
            .filter(|_| (1..=MAX_CHUNK_LEN).contains(&len))?;
        Some(Self::new(KIND_DATA, value))
    }

    /// The mark of a clean end.
    #[must_use]
    pub fn end() -> Self {
        Self::new(KIND_END, 0)
    }

    /// The mark of an abort.
    #[must_use]
    pub fn aborted(code: AbortCode) -> Self {
        Self::new(KIND_ABORTED, u32::from(code.to_wire()))
    }

    /// The bytes to send.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    fn new(kind: u8, value: u32) -> Self {
        let [_, high, middle, low] = value.to_be_bytes();
        Self([kind, high, middle, low])
    }

    fn chunk(self) -> Result<Chunk, ChunkError> {
        let [kind, high, middle, low] = self.0;
        let value = u32::from_be_bytes([0, high, middle, low]);
        match kind {
            KIND_DATA => match usize::try_from(value).unwrap_or(usize::MAX) {
                len @ 1..=MAX_CHUNK_LEN => Ok(Chunk::Data(len)),
                len => Err(ChunkError::Length(len)),
            },
            KIND_END => Ok(Chunk::End),
            KIND_ABORTED => Ok(Chunk::Aborted(AbortCode::from_number(value))),
            other => Err(ChunkError::Kind(other)),
        }
    }
}

impl AbortCode {
    /// Every word of [`AbortCode::as_str`].
    pub const WORDS: &[&str] = &[
        "reset",
        "idle",
        "drain",
        "protocol",
        "overflow",
        "cancelled",
        "memory",
        "not-tls",
        "other",
    ];

    /// The number on the wire.
    #[must_use]
    pub fn to_wire(self) -> u8 {
        match self {
            Self::Reset => 1,
            Self::Idle => 2,
            Self::Drain => 3,
            Self::Protocol => 4,
            Self::Overflow => 5,
            Self::Cancelled => 6,
            Self::Memory => 7,
            Self::NotTls => 8,
            Self::Other(code) => code,
        }
    }

    /// The code of a number on the wire; every number is one.
    #[must_use]
    pub fn from_wire(code: u8) -> Self {
        match code {
            1 => Self::Reset,
            2 => Self::Idle,
            3 => Self::Drain,
            4 => Self::Protocol,
            5 => Self::Overflow,
            6 => Self::Cancelled,
            7 => Self::Memory,
            8 => Self::NotTls,
            other => Self::Other(other),
        }
    }

    /// The code of a wider number, as chunk headers and control messages have it.
    ///
    /// One too large for the code is a code that we do not know, in both places the same.
    pub(crate) fn from_number(number: u32) -> Self {
        Self::from_wire(u8::try_from(number).unwrap_or(u8::MAX))
    }

    /// The word for logs and metric labels, from a closed list.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Idle => "idle",
            Self::Drain => "drain",
            Self::Protocol => "protocol",
            Self::Overflow => "overflow",
            Self::Cancelled => "cancelled",
            Self::Memory => "memory",
            Self::NotTls => "not-tls",
            Self::Other(_) => "other",
        }
    }
}

const KIND_DATA: u8 = 0;
const KIND_END: u8 = 1;
const KIND_ABORTED: u8 = 2;
