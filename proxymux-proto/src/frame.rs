//! Length-delimited messages: four bytes of length, most significant first, then the message.
//!
//! Owns the delimiting and its limit; what the bytes mean is `control.rs` and `open.rs`.
//! The control stream and the first part of every other stream are made of such frames.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The longest message, its length field not counted.
///
/// The largest message within the limits of this crate fits twice over, and a hostile peer can
/// make us hold no more than this per stream, besides the stream's window.
pub const MAX_FRAME_LEN: usize = 64 * 1024;

/// A frame's length is beyond [`MAX_FRAME_LEN`]; nothing after it can be trusted.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("message of {len} bytes, expected at most {MAX_FRAME_LEN}")]
pub struct FrameError {
    /// The length announced.
    pub len: usize,
}

/// Splits a byte stream into messages.
///
/// ```
/// use proxymux_proto::{FrameDecoder, encode_frame};
/// let mut decoder = FrameDecoder::default();
/// decoder.push(&encode_frame(b"one")?);
/// assert_eq!(decoder.next()?.as_deref(), Some(&b"one"[..]));
/// assert_eq!(decoder.next()?, None);
/// # Ok::<(), proxymux_proto::FrameError>(())
/// ```
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: BytesMut,
}

impl FrameDecoder {
    /// How many more bytes the message under way wants, its length field included.
    ///
    /// A caller that pushes no more than this never hands over bytes that belong to what follows.
    /// Zero says that a whole message waits for [`FrameDecoder::next`]; before the length field is
    /// complete, the rest of that field is all that is wanted.
    ///
    /// # Errors
    ///
    /// When the message announces more than [`MAX_FRAME_LEN`] bytes.
    pub fn wanted(&self) -> Result<usize, FrameError> {
        match self.announced()? {
            None => Ok(LENGTH_SIZE - self.buffer.len()),
            Some(len) => Ok((LENGTH_SIZE + len).saturating_sub(self.buffer.len())),
        }
    }

    /// Takes in bytes from the stream.
    ///
    /// They are kept until [`FrameDecoder::next`] takes them out, so memory is bounded only for a
    /// caller that asks for messages after each piece and stops at an error.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes out the next whole message, if there is one.
    ///
    /// # Errors
    ///
    /// When the message announces more than [`MAX_FRAME_LEN`] bytes.
    #[expect(
        clippy::should_implement_trait,
        reason = "fallible, and more bytes may follow None"
    )]
    pub fn next(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(len) = self.announced()? else {
            return Ok(None);
        };
        if self.buffer.len() < LENGTH_SIZE + len {
            return Ok(None);
        }
        self.buffer.advance(LENGTH_SIZE);
        Ok(Some(self.buffer.split_to(len).freeze()))
    }

    /// Whether bytes are held that no message has been made of yet.
    ///
    /// After [`FrameDecoder::next`] said `None`: whether a message has begun and is not complete.
    #[must_use]
    pub fn is_midway(&self) -> bool {
        !self.buffer.is_empty()
    }

    fn announced(&self) -> Result<Option<usize>, FrameError> {
        let Some(field) = self.buffer.first_chunk::<LENGTH_SIZE>() else {
            return Ok(None);
        };
        let len = usize::try_from(u32::from_be_bytes(*field)).unwrap_or(usize::MAX);
        if len > MAX_FRAME_LEN {
            Err(FrameError { len })
        } else {
            Ok(Some(len))
        }
    }
}

/// Puts the length in front of a message.
///
/// # Errors
///
/// When the message is longer than [`MAX_FRAME_LEN`].
pub fn encode_frame(message: &[u8]) -> Result<Bytes, FrameError> {
    let too_long = FrameError { len: message.len() };
    let len = u32::try_from(message.len()).map_err(|_| too_long)?;
    if message.len() > MAX_FRAME_LEN {
        return Err(too_long);
    }
    let mut frame = BytesMut::with_capacity(LENGTH_SIZE + message.len());
    frame.put_u32(len);
    frame.put_slice(message);
    Ok(frame.freeze())
}

const LENGTH_SIZE: usize = 4;
