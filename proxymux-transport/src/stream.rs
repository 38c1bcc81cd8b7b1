//! Streams of a session as the daemons use them.
//!
//! Owns reading length-delimited messages from a stream ([`MessageStream`], used for control and
//! for opening) and the chunked relay form with its explicit end marks ([`RelayStream`]).
//! Leaves the carrier and the accounting of streams to `mux.rs`, and moving bytes to `relay.rs`.
//!
//! A stream belongs to one task: all of its methods share one waker.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use proxymux_proto::{
    AbortCode, Chunk, ChunkDecoder, ChunkError, ChunkHeader, FrameDecoder, FrameError,
    MAX_CHUNK_LEN,
};

use crate::{
    memory::MemoryFull,
    mux::StreamGuard,
    stream_state::{StreamEnd, StreamShared},
};

/// A stream that carries length-delimited messages.
#[derive(Debug)]
pub struct MessageStream {
    raw: RawStream,
    decoder: FrameDecoder,
}

/// A stream that carries chunks: one relayed connection.
///
/// Dropping it gives the stream up; see [`RelayStream::finish`].
#[derive(Debug)]
pub struct RelayStream {
    raw: RawStream,
    decoder: ChunkDecoder,
    ended: bool,
}

/// What [`RelayStream::poll_fill`] found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Filled {
    /// [`RelayStream::data`] is not empty.
    Data,
    /// The peer ended its direction.
    End,
}

/// Why a stream is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The peer gave the stream up.
    #[error("peer aborted the stream: {}", .0.as_str())]
    Aborted(AbortCode),
    /// The stream was reset without the mark of an end.
    #[error("stream was cut off without an end mark")]
    CutOff,
    /// The peer broke the framing of chunks.
    #[error("peer broke the stream's framing")]
    Chunk(#[from] ChunkError),
    /// The peer sent a message that is too long.
    #[error("peer broke the stream's framing")]
    Frame(#[from] FrameError),
    /// The session under the stream has ended.
    #[error("session ended")]
    SessionGone,
    /// There was no memory for what waited here, and this stream had stalled for the longest.
    #[error("out of memory for what waits on stalled streams")]
    NoMemory,
}

impl MessageStream {
    pub(crate) fn new(guard: StreamGuard) -> Self {
        Self {
            raw: RawStream::new(guard),
            decoder: FrameDecoder::default(),
        }
    }

    /// The multiplexer's id of the stream.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.raw.guard.id()
    }

    /// Waits for the next message; `None` when the peer ended the stream between two messages.
    ///
    /// What arrived before the end comes first, also where the session has ended since: a peer
    /// may say why and close. Cancel-safe: what has arrived is kept.
    ///
    /// # Errors
    ///
    /// When the stream was given up, or the peer sent something too long.
    pub async fn receive(&mut self) -> Result<Option<Bytes>, StreamError> {
        std::future::poll_fn(|cx| self.poll_receive(cx)).await
    }

    /// As [`MessageStream::receive`], to be polled together with sending in one task.
    ///
    /// # Errors
    ///
    /// As [`MessageStream::receive`].
    pub fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        loop {
            if let Some(message) = self.decoder.next()? {
                return Poll::Ready(Ok(Some(message)));
            }
            if !ready!(self.raw.poll_fill(cx))? {
                let cut_off = self.decoder.is_midway();
                return Poll::Ready(if cut_off {
                    Err(StreamError::CutOff)
                } else {
                    Ok(None)
                });
            }
            let wanted = self.decoder.wanted()?;
            let available = self.raw.available();
            let taken = available.get(..wanted).unwrap_or(available);
            self.decoder.push(taken);
            let n = taken.len();
            self.raw.consume(n);
        }
    }

    /// Sends a frame made by the `encode` of a message.
    ///
    /// Not cancel-safe: a part may have been sent.
    ///
    /// # Errors
    ///
    /// When the stream was given up.
    pub async fn send(&mut self, frame: &[u8]) -> Result<(), StreamError> {
        self.queue(frame);
        std::future::poll_fn(|cx| self.poll_send(cx)).await
    }

    /// Whether there is memory for a stream such as this; see [`crate::mux::Mux::check_memory`].
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn check_memory(&self) -> Result<(), MemoryFull> {
        self.raw.guard.check_memory()
    }

    /// Puts a frame behind those that wait to be sent by [`MessageStream::poll_send`].
    pub fn queue(&mut self, frame: &[u8]) {
        self.raw.pending.extend_from_slice(frame);
    }

    /// How many bytes wait to be sent.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.raw.pending.len()
    }

    /// Sends what was queued; ready when nothing is left.
    ///
    /// # Errors
    ///
    /// When the stream was given up.
    pub fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.raw.poll_send_pending(cx)
    }

    /// Waits until the stream is given up from outside of it: by the peer, or with its session.
    ///
    /// For a side that waits for something else. Cancel-safe.
    pub async fn given_up(&mut self) -> StreamError {
        std::future::poll_fn(|cx| self.poll_given_up(cx)).await
    }

    /// As [`MessageStream::given_up`], to be polled together with something else in one task.
    pub fn poll_given_up(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        if let Some(error) = self.raw.given_up(cx) {
            return Poll::Ready(error);
        }
        // A bare reset shows only to who reads; what is read is kept.
        match ready!(self.raw.poll_fill(cx)) {
            Ok(true) => Poll::Pending,
            Ok(false) => Poll::Ready(StreamError::CutOff),
            Err(error) => Poll::Ready(error),
        }
    }

    /// Goes over to chunks, which both sides do once the stream is open.
    #[must_use]
    pub fn into_relay(mut self) -> RelayStream {
        self.raw.guard.no_longer_pending();
        RelayStream {
            raw: self.raw,
            decoder: ChunkDecoder::default(),
            ended: false,
        }
    }

    /// Gives the stream up, telling the peer why.
    pub fn abort(self, code: AbortCode) {
        self.raw.guard.abort(code);
    }

    /// Lets go of a stream on which the peer expects nothing more.
    pub fn finish(self) {
        self.raw.guard.finish();
    }
}

impl RelayStream {
    /// The multiplexer's id of the stream.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.raw.guard.id()
    }

    /// Bytes held for the stream here, besides what the multiplexer holds.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.raw.available().len() + self.raw.pending.len()
    }

    /// Waits for payload or the end of the peer's direction.
    ///
    /// # Errors
    ///
    /// When the stream was given up, by the peer or with its session, or the framing is broken.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<Filled, StreamError>> {
        loop {
            if self.decoder.has_ended() {
                return Poll::Ready(Ok(Filled::End));
            }
            if !ready!(self.raw.poll_fill(cx))? {
                return Poll::Ready(Err(StreamError::CutOff));
            }
            if self.decoder.payload_left() > 0 {
                return Poll::Ready(Ok(Filled::Data));
            }
            let mut rest = self.raw.available();
            let before = rest.len();
            let chunk = self.decoder.decode(&mut rest)?;
            let used = before - rest.len();
            self.raw.consume(used);
            if let Some(Chunk::Aborted(code)) = chunk {
                return Poll::Ready(Err(StreamError::Aborted(code)));
            }
        }
    }

    /// Waits until the stream is given up from outside of it: by the peer, or with its session.
    ///
    /// A relay asks on every turn, since it does not read while its other end is slow.
    pub fn poll_given_up(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        if let Some(error) = self.raw.given_up(cx) {
            return Poll::Ready(error);
        }
        if self.decoder.has_ended() && !self.ended {
            // Nothing more is to be read but a reset, and nobody else looks for it.
            return match ready!(self.raw.poll_fill(cx)) {
                Ok(true) => Poll::Ready(ChunkError::AfterEnd.into()),
                Ok(false) => Poll::Ready(StreamError::CutOff),
                Err(error) => Poll::Ready(error),
            };
        }
        Poll::Pending
    }

    /// Payload that has arrived; not empty after [`Filled::Data`].
    #[must_use]
    pub fn data(&self) -> &[u8] {
        let available = self.raw.available();
        available
            .get(..self.decoder.payload_left())
            .unwrap_or(available)
    }

    /// Says that `n` bytes of [`RelayStream::data`] have been used.
    pub fn consume(&mut self, n: usize) {
        self.raw.consume(n);
        self.decoder.take_payload(n);
    }

    /// Ready when everything handed to [`RelayStream::send_chunk`] is on its way.
    ///
    /// # Errors
    ///
    /// When the stream was given up.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.raw.poll_send_pending(cx)
    }

    /// How long the next chunk had better be, at most: no longer than the peer has room for, so
    /// that a stream that has to wait holds [`SMALL_CHUNK_LEN`] bytes and not a whole chunk.
    #[must_use]
    pub fn chunk_room(&self) -> usize {
        let credit = self.raw.shared.credit();
        credit
            .saturating_sub(ChunkHeader::LEN)
            .clamp(SMALL_CHUNK_LEN, MAX_CHUNK_LEN)
    }

    /// Sends a chunk; to be called after [`RelayStream::poll_ready`] said ready.
    ///
    /// `frame` is room for a chunk header followed by 1 to [`proxymux_proto::MAX_CHUNK_LEN`]
    /// payload bytes; the header is written here, so that the whole goes out in one piece.
    ///
    /// # Errors
    ///
    /// When the stream was given up, or the payload's length is not allowed.
    pub fn send_chunk(
        &mut self,
        cx: &mut Context<'_>,
        frame: &mut [u8],
    ) -> Result<(), StreamError> {
        let len = frame.len().saturating_sub(ChunkHeader::LEN);
        let header = ChunkHeader::data(len).ok_or(ChunkError::Length(len))?;
        if let Some(room) = frame.first_chunk_mut() {
            *room = *header.as_bytes();
        }
        self.raw.send_now(cx, frame)
    }

    /// Ends this side's direction; the other goes on.
    ///
    /// # Errors
    ///
    /// When the stream was given up.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        if !self.ended {
            ready!(self.poll_ready(cx))?;
            self.raw
                .pending
                .extend_from_slice(ChunkHeader::end().as_bytes());
            self.ended = true;
        }
        self.raw.poll_send_pending(cx)
    }

    /// Gives the stream up, telling the peer why.
    ///
    /// The mark in the stream itself is best effort, since there may be no credit for it; the
    /// control stream carries the same.
    pub fn abort(mut self, code: AbortCode) {
        if self.raw.pending.is_empty() && !self.ended {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let mark = ChunkHeader::aborted(code);
            let _ = self.raw.guard.poll_write(&mut cx, mark.as_bytes());
        }
        self.raw.guard.abort(code);
    }

    /// Lets go of a stream whose both directions have ended, or that the peer gave up.
    pub fn finish(self) {
        self.raw.guard.finish();
    }
}

/// A multiplexer's stream with what has been read and not yet used, and what waits to be sent.
#[derive(Debug)]
struct RawStream {
    guard: StreamGuard,
    shared: Arc<StreamShared>,
    packet: Option<yamux::Packet>,
    used: usize,
    /// Bytes without credit or room; holds a small chunk, a whole one while the session itself
    /// takes nothing, or queued messages.
    pending: Vec<u8>,
}

impl RawStream {
    fn new(guard: StreamGuard) -> Self {
        let shared = guard.shared();
        Self {
            guard,
            shared,
            packet: None,
            used: 0,
            pending: Vec::new(),
        }
    }

    fn available(&self) -> &[u8] {
        self.packet
            .as_ref()
            .and_then(|p| p.as_ref().get(self.used..))
            .unwrap_or_default()
    }

    fn consume(&mut self, n: usize) {
        self.used += n;
        if self.available().is_empty() {
            if let Some(packet) = self.packet.take() {
                self.shared.frame_used(packet.as_ref().len());
            }
            self.used = 0;
        }
    }

    /// Waits until [`RawStream::available`] is not empty; false when the stream was ended or
    /// reset, which look the same here.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, StreamError>> {
        while self.available().is_empty() {
            match self.guard.poll_next(cx) {
                Poll::Ready(Some(Ok(packet))) => {
                    self.shared.frame_read();
                    self.packet = Some(packet);
                    self.used = 0;
                }
                // The crate reports a closed command channel, that is a gone session, as an error.
                Poll::Ready(None | Some(Err(_))) => {
                    return Poll::Ready(self.given_up(cx).map_or(Ok(false), Err));
                }
                Poll::Pending => {
                    return self
                        .given_up(cx)
                        .map_or(Poll::Pending, |error| Poll::Ready(Err(error)));
                }
            }
        }
        Poll::Ready(Ok(true))
    }

    /// The end of the stream from outside of it; if there was none, the task is woken by it.
    fn given_up(&self, cx: &mut Context<'_>) -> Option<StreamError> {
        self.shared.poll_ended(cx.waker()).map(|end| match end {
            StreamEnd::Aborted(code) => StreamError::Aborted(code),
            StreamEnd::SessionGone => StreamError::SessionGone,
            StreamEnd::NoMemory => StreamError::NoMemory,
        })
    }

    /// Sends as much of `bytes` as there is credit and room for.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, StreamError>> {
        match self.guard.poll_write(cx, bytes) {
            Poll::Ready(Ok(n)) => {
                self.shared.credit_used(n);
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(_)) => {
                Poll::Ready(Err(self.given_up(cx).unwrap_or(StreamError::CutOff)))
            }
            Poll::Pending => self
                .given_up(cx)
                .map_or(Poll::Pending, |error| Poll::Ready(Err(error))),
        }
    }

    fn poll_send_pending(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        while !self.pending.is_empty() {
            let mut pending = std::mem::take(&mut self.pending);
            let sent = self.poll_write(cx, &pending);
            if let Poll::Ready(Ok(n)) = sent {
                pending.drain(..n);
                self.shared.memory().release(n);
            }
            // A stream at rest holds no buffer.
            if !pending.is_empty() {
                self.pending = pending;
            }
            ready!(sent)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Sends `bytes`, keeping what there is no credit or room for.
    fn send_now(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Result<(), StreamError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.poll_write(cx, rest)? {
                Poll::Ready(n) => rest = rest.get(n..).unwrap_or_default(),
                Poll::Pending => {
                    self.shared.memory().hold(rest.len());
                    self.pending.extend_from_slice(rest);
                    break;
                }
            }
        }
        Ok(())
    }
}

/// What a stream without credit may hold at most.
const SMALL_CHUNK_LEN: usize = 16 * 1024 - ChunkHeader::LEN;

#[cfg(test)]
mod tests;
