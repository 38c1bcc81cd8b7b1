//! The byte carrier under the multiplexer.
//!
//! Owns what the yamux crate's behaviour asks of the layer below it: frames share TLS records,
//! a stream that is flooded with tiny frames is ended alone, streams hear of the session's end
//! before the crate resets them, and the crate's own pings never leave. It knows the 12-byte
//! frame header (yamux specification, "Framing") and nothing of streams' content.
//!
//! Pings: the crate reads nothing while its answer to one waits for room, so two ends that are
//! both saturated and both asked would wait for each other for ever. Without them, windows stay
//! at the specification's 256 KiB.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::stream_state::StreamTable;

/// The carrier, shared by the multiplexer (which reads and writes frames) and the driver (which
/// flushes). Both run in one task, so the lock is never waited for.
pub(crate) struct Carrier<T> {
    inner: Arc<Mutex<Inner<T>>>,
}

struct Inner<T> {
    io: T,
    inbound: Inbound,
    outbound: Outbound,
    streams: Arc<StreamTable>,
    bytes_received: Arc<AtomicU64>,
}

/// Where the reading side stands in the frames that arrive.
#[derive(Default)]
struct Inbound {
    header: [u8; HEADER_SIZE],
    /// Bytes of `header` that have arrived; when complete, they are handed on.
    arrived: usize,
    /// Bytes of a complete `header` that the multiplexer has taken.
    handed_on: usize,
    body_left: usize,
    /// Body bytes of a frame that the multiplexer never sees.
    skip_left: usize,
}

/// Frames that wait to be written, and where the last of them stands.
#[derive(Default)]
struct Outbound {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that the layer below has taken; fewer than it holds, or none.
    written: usize,
    body_left: usize,
    /// The multiplexer wanted to write and could not.
    blocked: bool,
    /// The layer below has taken bytes and has not been flushed since.
    unflushed: bool,
    /// The multiplexer has told the peer that it broke the protocol.
    broken: Option<Broken>,
    /// Turns since the last one that wrote much.
    quiet_turns: u32,
}

/// The peer broke the protocol, and was told so.
///
/// The crate only tells it, and would go on for as long as the peer does not mind.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("session ended with go-away code {code}")]
pub(crate) struct Broken {
    code: usize,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Carrier<T> {
    /// `bytes_received` is counted up by all that arrives, as a sign of life.
    pub(crate) fn new(io: T, streams: Arc<StreamTable>, bytes_received: Arc<AtomicU64>) -> Self {
        let inner = Inner {
            io,
            inbound: Inbound::default(),
            outbound: Outbound::default(),
            streams,
            bytes_received,
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    /// Whether a frame of the multiplexer is waiting for room.
    pub(crate) fn is_blocked(&self) -> bool {
        self.lock().outbound.blocked
    }

    /// Whether frames wait from a turn before, in which the layer below took no more.
    pub(crate) fn is_behind(&self) -> bool {
        let outbound = &self.lock().outbound;
        outbound.unflushed || !outbound.waiting().is_empty()
    }

    /// Writes out all frames; the multiplexer's own flushes do nothing.
    pub(crate) fn poll_flush_now(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        inner.outbound.count_turn();
        inner.poll_flush(cx)
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        // A panic below would end the driver's task, and with it the carrier's only user.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Carrier<T> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Inner<T> {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if let Some(broken) = self.outbound.broken {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, broken)));
        }
        loop {
            if self.inbound.arrived == HEADER_SIZE {
                return Poll::Ready(Ok(self.inbound.hand_on_header(buf)));
            }
            let n = if self.inbound.skip_left > 0 {
                ready!(self.poll_skip(cx))?
            } else if self.inbound.body_left > 0 {
                return self.poll_body(cx, buf);
            } else {
                ready!(self.poll_header(cx))?
            };
            if n == 0 {
                // The multiplexer has seen nothing of this frame and would take it for an end.
                let midway = self.inbound.arrived > 0 || self.inbound.skip_left > 0;
                let truncated = || Err(io::ErrorKind::UnexpectedEof.into());
                return Poll::Ready(if midway { truncated() } else { Ok(0) });
            }
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let want = self.inbound.body_left.min(buf.len());
        let n = ready!(self.poll_io(cx, buf.get_mut(..want).unwrap_or_default()))?;
        self.inbound.body_left -= n;
        Poll::Ready(Ok(n))
    }

    fn poll_skip(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut scratch = [0; SKIP_SIZE];
        let want = self.inbound.skip_left.min(SKIP_SIZE);
        let n = ready!(self.poll_io(cx, scratch.get_mut(..want).unwrap_or_default()))?;
        self.inbound.skip_left -= n;
        Poll::Ready(Ok(n))
    }

    fn poll_header(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut header = self.inbound.header;
        let missing = header.get_mut(self.inbound.arrived..).unwrap_or_default();
        let n = ready!(self.poll_io(cx, missing))?;
        self.inbound.header = header;
        self.inbound.arrived += n;
        if self.inbound.arrived == HEADER_SIZE {
            self.decide_on_frame();
        }
        Poll::Ready(Ok(n))
    }

    /// Lets the frame pass whose header has just become complete, unless its stream already has
    /// more frames waiting than it may.
    fn decide_on_frame(&mut self) {
        let header = Header::read(self.inbound.header);
        if header.ends_session() {
            self.streams.end_all();
            // The multiplexer stops at the header.
            return;
        }
        if header.opens_stream() {
            self.streams.get_or_add(header.stream);
        }
        if header.gives_credit()
            && let Some(stream) = self.streams.find(header.stream)
        {
            stream.credit_received(header.len);
        }
        if header.kind != KIND_DATA {
            return;
        }
        // A reset costs nothing, and is the last thing that should get lost.
        let counted = header.len > 0 && !header.has(FLAG_RST);
        let stream = counted.then(|| self.streams.find(header.stream)).flatten();
        if stream.is_none_or(|stream| self.streams.admit_frame(header.stream, &stream, header.len))
        {
            self.inbound.body_left = header.len;
        } else {
            self.inbound.arrived = 0;
            self.inbound.skip_left = header.len;
        }
    }

    fn poll_io(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(buf);
        let read = ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf));
        let n = buf.filled().len();
        if n == 0 || read.is_err() {
            // Before the multiplexer resets the streams, so that they know why they ended.
            self.streams.end_all();
        }
        read?;
        self.bytes_received.fetch_add(n as u64, Ordering::Relaxed);
        Poll::Ready(Ok(n))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let at_header = self.outbound.body_left == 0;
        // The crate writes each header in one piece, and we take it whole.
        let header = at_header
            .then(|| bytes.first_chunk().copied().map(Header::read))
            .flatten();
        if header.is_some_and(|header| header.is_ping_request()) {
            return Poll::Ready(Ok(HEADER_SIZE));
        }
        self.outbound.blocked = true;
        if header.is_none() && bytes.len() >= WRITE_THROUGH_LEN {
            let taken = ready!(self.poll_write_through(cx, bytes))?;
            self.outbound.blocked = false;
            return Poll::Ready(Ok(taken));
        }
        if !self.outbound.has_room() {
            // A part of what waits may be enough.
            let drained = self.poll_drain(cx)?;
            if !self.outbound.has_room() {
                ready!(drained);
            }
        }
        self.outbound.blocked = false;
        let taken = match header {
            Some(header) => {
                self.begin_frame(header);
                bytes.get(..HEADER_SIZE).unwrap_or(bytes)
            }
            None => {
                let taken = bytes.get(..self.outbound.body_left).unwrap_or(bytes);
                self.outbound.body_left -= taken.len();
                taken
            }
        };
        self.outbound.add(taken);
        Poll::Ready(Ok(taken.len()))
    }

    fn begin_frame(&mut self, header: Header) {
        match header.kind {
            KIND_DATA => self.outbound.body_left = header.len,
            KIND_GO_AWAY if header.len != GO_AWAY_NORMAL => {
                self.outbound.broken = Some(Broken { code: header.len });
                self.streams.end_all();
            }
            _ => {}
        }
    }

    /// Hands a part of a body to the layer below as it is, behind what waits: TLS makes its records
    /// of both together, so that bulk is not copied here.
    fn poll_write_through(&mut self, cx: &mut Context<'_>, body: &[u8]) -> Poll<io::Result<usize>> {
        let body = body.get(..self.outbound.body_left).unwrap_or(body);
        loop {
            let waiting = self.outbound.waiting().len();
            let parts = [IoSlice::new(self.outbound.waiting()), IoSlice::new(body)];
            let written = Pin::new(&mut self.io).poll_write_vectored(cx, &parts);
            let n = match ready!(written) {
                Ok(0) => return self.failed(io::ErrorKind::WriteZero.into()),
                Ok(n) => n,
                Err(error) => return self.failed(error),
            };
            self.outbound.taken(n.min(waiting));
            if let Some(taken) = n.checked_sub(waiting).filter(|taken| *taken > 0) {
                self.outbound.body_left -= taken;
                return Poll::Ready(Ok(taken));
            }
        }
    }

    /// Hands waiting frames to the layer below until none is left.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outbound.waiting().is_empty() {
            let written = Pin::new(&mut self.io).poll_write(cx, self.outbound.waiting());
            match ready!(written) {
                Ok(0) => return self.failed(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.outbound.taken(n),
                Err(error) => return self.failed(error),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        match ready!(Pin::new(&mut self.io).poll_flush(cx)) {
            Ok(()) => {
                self.outbound.unflushed = false;
                Poll::Ready(Ok(()))
            }
            Err(error) => self.failed(error),
        }
    }

    fn failed<R>(&self, error: io::Error) -> Poll<io::Result<R>> {
        self.streams.end_all();
        Poll::Ready(Err(error))
    }
}

impl Inbound {
    fn hand_on_header(&mut self, buf: &mut [u8]) -> usize {
        let rest = self.header.get(self.handed_on..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..n), rest.get(..n)) {
            to.copy_from_slice(from);
        }
        self.handed_on += n;
        if self.handed_on == HEADER_SIZE {
            self.arrived = 0;
            self.handed_on = 0;
        }
        n
    }
}

impl Outbound {
    fn waiting(&self) -> &[u8] {
        self.buffer.get(self.written..).unwrap_or_default()
    }

    fn has_room(&self) -> bool {
        self.waiting().len() < WRITE_BUFFER_LIMIT
    }

    fn add(&mut self, bytes: &[u8]) {
        // A layer below that never takes all of it must not make it grow; and what moves here is
        // less than what was taken, so that each byte moves once at most.
        if self.written > self.waiting().len() {
            self.buffer.drain(..self.written);
            self.written = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    fn taken(&mut self, n: usize) {
        self.unflushed = true;
        self.written += n;
        if self.waiting().is_empty() {
            self.buffer.clear();
            self.written = 0;
        }
    }

    /// Gives back the memory of a burst some turns after it, so that an idle session holds none
    /// and a busy one does not allocate in every turn.
    fn count_turn(&mut self) {
        if self.waiting().len() > QUIET_LEN {
            self.quiet_turns = 0;
            return;
        }
        self.quiet_turns = self.quiet_turns.saturating_add(1);
        let large = self.buffer.capacity() > QUIET_LEN;
        if large && self.buffer.is_empty() && self.quiet_turns >= QUIET_TURNS {
            self.buffer = Vec::new();
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> futures_io::AsyncRead for Carrier<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.lock().poll_read(cx, buf)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> futures_io::AsyncWrite for Carrier<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.lock().poll_write(cx, bytes)
    }

    /// Does nothing: the crate flushes after every frame, which would give each its own records.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        ready!(inner.poll_flush(cx))?;
        Pin::new(&mut inner.io).poll_shutdown(cx)
    }
}

/// A frame's header, as far as the carrier needs it.
#[derive(Clone, Copy)]
struct Header {
    version: u8,
    kind: u8,
    flags: u16,
    stream: u32,
    len: usize,
}

impl Header {
    fn read(bytes: [u8; HEADER_SIZE]) -> Self {
        let [version, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3] = bytes;
        Self {
            version,
            kind,
            flags: u16::from_be_bytes([f0, f1]),
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            len: u32::from_be_bytes([l0, l1, l2, l3]) as usize,
        }
    }

    fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    fn is_ping_request(self) -> bool {
        self.kind == KIND_PING && self.has(FLAG_SYN)
    }

    /// The crate makes a stream of such a frame, or ends the session.
    fn opens_stream(self) -> bool {
        let of_stream = matches!(self.kind, KIND_DATA | KIND_WINDOW_UPDATE);
        of_stream && self.has(FLAG_SYN) && !self.has(FLAG_RST)
    }

    fn gives_credit(self) -> bool {
        self.kind == KIND_WINDOW_UPDATE && !self.has(FLAG_RST)
    }

    /// The peer's word that it is over, or something that the crate cannot read on from.
    fn ends_session(self) -> bool {
        let oversized = self.kind == KIND_DATA && self.len > MAX_BODY_LEN;
        self.version != VERSION || self.kind >= KIND_GO_AWAY || oversized
    }
}

/// The size of every frame's header.
const HEADER_SIZE: usize = 12;

const VERSION: u8 = 0;
const KIND_DATA: u8 = 0;
const KIND_WINDOW_UPDATE: u8 = 1;
const KIND_PING: u8 = 2;
const KIND_GO_AWAY: u8 = 3;
const FLAG_SYN: u16 = 1;
const FLAG_RST: u16 = 8;
const GO_AWAY_NORMAL: usize = 0;

/// The longest body that the crate reads (its `MAX_FRAME_BODY_LEN`, which is private).
const MAX_BODY_LEN: usize = 1024 * 1024;

/// Frames gathered before the layer below is asked to take them: four full TLS records.
/// One frame more may wait, since a frame is taken whole where there is any room.
const WRITE_BUFFER_LIMIT: usize = 64 * 1024;

/// From this length on a body is not gathered with other frames: copying it would cost more than
/// the record that it may have to begin.
const WRITE_THROUGH_LEN: usize = 4 * 1024;

/// What a session writes in a turn in which it has nothing to do but control messages.
const QUIET_LEN: usize = 4 * 1024;
const QUIET_TURNS: u32 = 16;

/// Bytes thrown away at a time; on the stack.
const SKIP_SIZE: usize = 2048;

#[cfg(test)]
mod tests;
