//! Relaying one connection over one stream of a session.
//!
//! Owns moving bytes both ways, passing on half-close and reset, the idle limit, and the count
//! of bytes. Leaves opening either end, and logging, to the daemons.
//! Read [`relay`] first. Both directions run in one future, as the multiplexer wants.
//!
//! Payload is read into a buffer of the thread and only kept (16 KiB at most) while the
//! stream has no credit, so that a relay at rest holds no buffer.

use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use proxymux_proto::{AbortCode, ChunkHeader, MAX_CHUNK_LEN};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    time::{Instant, Sleep},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::{
    socket::{self, HangUp},
    stream::{Filled, RelayStream, StreamError},
    telemetry::{chain, millis},
};

/// A connection that can be relayed.
pub trait Endpoint: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// The socket under the connection, to notice that it was reset while nothing is read.
    fn socket(&self) -> BorrowedFd<'_>;

    /// Makes closing the connection a reset where it can be one; elsewhere it is a close.
    fn reset_on_close(&mut self);

    /// Undoes [`Endpoint::reset_on_close`].
    fn end_on_close(&mut self);
}

/// How a relay is to behave.
#[derive(Clone, Debug)]
pub struct RelayOptions {
    /// End the relay when nothing moved for so long.
    pub idle_timeout: Option<Duration>,
    /// End the relay when this is cancelled: a drain that ran out of time.
    pub cancel: CancellationToken,
}

/// Bytes relayed so far, and whether a side is slow; readable while the relay runs and after it
/// was dropped.
#[derive(Debug, Default)]
pub struct RelayBytes {
    to_stream: AtomicU64,
    from_stream: AtomicU64,
    sending: Wait,
    receiving: Wait,
    /// Why the relay failed, as far as the error says more than its outcome.
    problem: OnceLock<Box<str>>,
}

/// How a relay ended. A closed list: access log and metrics use it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Outcome {
    /// Both directions ended in an orderly way.
    Done,
    /// The connection at this end was reset or failed.
    LocalReset,
    /// The other end gave up.
    PeerAborted(AbortCode),
    /// The session under the stream ended.
    SessionLost,
    /// Nothing moved for the idle limit.
    Idle,
    /// A drain ran out of time.
    Drained,
    /// The peer broke the stream's framing.
    Protocol,
    /// This end was out of memory, and the relay had stalled for the longest.
    Memory,
    /// What came on a flow does not begin as TLS does, so that none of it was passed on.
    NotTls,
}

impl RelayBytes {
    /// Bytes read from the connection and handed to the stream.
    #[must_use]
    pub fn to_stream(&self) -> u64 {
        self.to_stream.load(Ordering::Relaxed)
    }

    /// Bytes that came by the stream and were written to the connection.
    #[must_use]
    pub fn from_stream(&self) -> u64 {
        self.from_stream.load(Ordering::Relaxed)
    }

    /// Bytes both ways.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.to_stream().wrapping_add(self.from_stream())
    }

    /// Why the relay failed, if there was an error.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        self.problem.get().map(AsRef::as_ref)
    }

    /// Notes why the relay fails; what happened first is the reason.
    pub fn failed(&self, error: &dyn std::error::Error) {
        self.problem.get_or_init(|| chain(error).into());
    }

    /// For how long the relay has been waiting for a side that takes nothing: a connection that
    /// is not read, or a stream without credit. Zero if it does not wait.
    #[must_use]
    pub fn blocked_for(&self) -> Duration {
        self.sending.lasts().max(self.receiving.lasts())
    }

    /// Notes that the stream takes nothing more for now.
    pub(crate) fn sending_waits(&self) {
        self.sending.begin();
    }

    /// Notes that the stream takes bytes.
    pub(crate) fn sending_moves(&self) {
        self.sending.end();
    }

    /// Notes that the connection takes nothing more for now.
    pub(crate) fn receiving_waits(&self) {
        self.receiving.begin();
    }

    /// Notes that the connection takes bytes.
    pub(crate) fn receiving_moves(&self) {
        self.receiving.end();
    }

    /// Counts bytes for a relay without a stream, whose far end takes the stream's place.
    pub fn add_to_stream(&self, n: usize) {
        self.to_stream.fetch_add(n as u64, Ordering::Relaxed);
    }

    /// As [`RelayBytes::add_to_stream`], for bytes that came from there.
    pub fn add_from_stream(&self, n: usize) {
        self.from_stream.fetch_add(n as u64, Ordering::Relaxed);
    }
}

impl Outcome {
    /// Every word of [`Outcome::as_str`].
    pub const WORDS: &[&str] = &[
        "done",
        "reset",
        "peer-reset",
        "peer-idle",
        "peer-drain",
        "peer-protocol",
        "overflow",
        "peer-cancelled",
        "session-lost",
        "idle",
        "drain",
        "protocol",
        "memory",
        "peer-memory",
        "not-tls",
        "peer-not-tls",
    ];

    /// The word for logs and metric labels, from a closed list.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::LocalReset => "reset",
            Self::PeerAborted(AbortCode::Reset | AbortCode::Other(_)) => "peer-reset",
            Self::PeerAborted(AbortCode::Idle) => "peer-idle",
            Self::PeerAborted(AbortCode::Drain) => "peer-drain",
            Self::PeerAborted(AbortCode::Protocol) => "peer-protocol",
            Self::PeerAborted(AbortCode::Overflow) => "overflow",
            Self::PeerAborted(AbortCode::Cancelled) => "peer-cancelled",
            Self::PeerAborted(AbortCode::Memory) => "peer-memory",
            Self::PeerAborted(AbortCode::NotTls) => "peer-not-tls",
            Self::SessionLost => "session-lost",
            Self::Idle => "idle",
            Self::Drained => "drain",
            Self::Protocol => "protocol",
            Self::Memory => "memory",
            Self::NotTls => "not-tls",
        }
    }
}

/// Relays until both directions have ended, or one side gave up.
///
/// `early` is what the connection's peer sent before the relay began; it goes first.
/// Dropping the future gives up both ends, and the connection's peer sees a reset.
pub fn relay<E: Endpoint>(
    connection: E,
    stream: RelayStream,
    early: Bytes,
    options: &RelayOptions,
    bytes: Arc<RelayBytes>,
) -> impl Future<Output = Outcome> + Send + use<E> {
    let now = Instant::now();
    // Not `async`: that would keep a second place for each argument.
    Relay {
        connection: GivenUpOnDrop(connection, true),
        stream: Some(stream),
        early,
        sending: Direction::Open,
        receiving: Direction::Open,
        bytes,
        reads_connection: true,
        last_moved: now,
        last_watched: now,
        left_at: None,
        idle_timeout: options.idle_timeout,
        watch: Box::pin(tokio::time::sleep(WATCH_PERIOD)),
        cancelled: Box::pin(options.cancel.clone().cancelled_owned()),
    }
}

struct Relay<E: Endpoint> {
    connection: GivenUpOnDrop<E>,
    /// There until the end.
    stream: Option<RelayStream>,
    early: Bytes,
    /// From the connection to the stream.
    sending: Direction,
    /// From the stream to the connection.
    receiving: Direction,
    bytes: Arc<RelayBytes>,
    /// A reset would be noticed by reading.
    reads_connection: bool,
    last_moved: Instant,
    last_watched: Instant,
    /// When the connection was found closed both ways by its peer.
    left_at: Option<Instant>,
    idle_timeout: Option<Duration>,
    watch: Pin<Box<Sleep>>,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// The connection's peer has closed it both ways, and the other side did not end in time.
#[derive(Debug, thiserror::Error)]
#[error("closed by its peer with bytes on their way to it")]
struct PeerLeft;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Direction {
    Open,
    /// The source has ended; its end is being passed on.
    Ending,
    Ended,
}

/// A connection that is reset unless it is told otherwise.
struct GivenUpOnDrop<E: Endpoint>(E, bool);

impl<E: Endpoint> Drop for GivenUpOnDrop<E> {
    fn drop(&mut self) {
        if self.1 {
            self.0.reset_on_close();
        }
    }
}

impl<E: Endpoint> Future for Relay<E> {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let Some(mut stream) = self.stream.take() else {
            return Poll::Ready(Outcome::Done);
        };
        let outcome = self.poll_both(cx, &mut stream);
        match outcome {
            Poll::Ready(outcome) => self.end(stream, outcome),
            Poll::Pending => self.stream = Some(stream),
        }
        outcome
    }
}

impl<E: Endpoint> Relay<E> {
    fn poll_both(&mut self, cx: &mut Context<'_>, stream: &mut RelayStream) -> Poll<Outcome> {
        // A stream whose both directions have ended has nothing left to lose.
        let stream_matters = self.receiving == Direction::Open || self.sending != Direction::Ended;
        if stream_matters && let Poll::Ready(error) = stream.poll_given_up(cx) {
            return Poll::Ready(self.stream_failed(error));
        }
        if self.cancelled.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Outcome::Drained);
        }
        if let Poll::Ready(Err(outcome)) = self.poll_receiving(cx, stream) {
            return Poll::Ready(outcome);
        }
        if let Poll::Ready(Err(outcome)) = self.poll_sending(cx, stream) {
            return Poll::Ready(outcome);
        }
        if self.receiving == Direction::Ended && self.sending == Direction::Ended {
            return Poll::Ready(Outcome::Done);
        }
        self.poll_watch(cx)
    }

    fn poll_receiving(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut RelayStream,
    ) -> Poll<Result<(), Outcome>> {
        while self.receiving == Direction::Open {
            let filled = match stream.poll_fill(cx) {
                Poll::Ready(filled) => filled.map_err(|error| self.stream_failed(error))?,
                Poll::Pending => {
                    // TLS may hold back a part of what it took.
                    let flushed = ready!(Pin::new(&mut self.connection.0).poll_flush(cx));
                    return Poll::Ready(flushed.or_else(|error| self.cannot_write(&error)));
                }
            };
            match filled {
                Filled::End => self.receiving = Direction::Ending,
                Filled::Data if self.left_at.is_some() => {
                    let n = stream.data().len();
                    stream.consume(n);
                }
                Filled::Data => {
                    let written = Pin::new(&mut self.connection.0).poll_write(cx, stream.data());
                    if written.is_pending() {
                        self.bytes.receiving_waits();
                    }
                    match ready!(written) {
                        Err(error) => self.cannot_write(&error)?,
                        Ok(0) => {
                            let error = io::Error::from(io::ErrorKind::WriteZero);
                            return Poll::Ready(Err(self.connection_failed(&error)));
                        }
                        Ok(n) => {
                            stream.consume(n);
                            let bytes = &self.bytes.from_stream;
                            bytes.fetch_add(n as u64, Ordering::Relaxed);
                            self.bytes.receiving_moves();
                            self.last_moved = Instant::now();
                        }
                    }
                }
            }
        }
        if self.receiving == Direction::Ending {
            let ended = ready!(Pin::new(&mut self.connection.0).poll_shutdown(cx));
            ended.or_else(|error| self.cannot_write(&error))?;
            self.receiving = Direction::Ended;
        }
        Poll::Ready(Ok(()))
    }

    fn connection_failed(&self, error: &dyn std::error::Error) -> Outcome {
        self.bytes.failed(error);
        Outcome::LocalReset
    }

    fn stream_failed(&self, error: StreamError) -> Outcome {
        self.bytes.failed(&error);
        error.into()
    }

    /// The connection takes nothing more. A reset is one, unless the end was read before.
    fn cannot_write(&mut self, error: &io::Error) -> Result<(), Outcome> {
        // Closed both ways, and not reset: what was sent before, and the end, are to be read.
        let closed = error.kind() == io::ErrorKind::BrokenPipe;
        if self.sending == Direction::Open && !closed {
            return Err(self.connection_failed(error));
        }
        self.peer_has_left();
        Ok(())
    }

    /// The connection's peer has closed it both ways, as most do, without waiting for the last
    /// bytes (a goodbye of TLS) and for the end of the other side.
    ///
    /// These are thrown away for as long as [`LEAVE_GRACE`], so that the other side has time for
    /// an orderly end of its own.
    fn peer_has_left(&mut self) {
        self.left_at.get_or_insert_with(Instant::now);
    }

    fn poll_sending(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut RelayStream,
    ) -> Poll<Result<(), Outcome>> {
        while self.sending == Direction::Open {
            let ready = stream.poll_ready(cx);
            self.reads_connection = ready.map_err(|error| self.stream_failed(error))?.is_ready();
            if !self.reads_connection {
                self.bytes.sending_waits();
                return Poll::Pending;
            }
            self.bytes.sending_moves();
            match ready!(self.poll_send_chunk(cx, stream))? {
                0 => {
                    self.sending = Direction::Ending;
                    self.reads_connection = false;
                }
                n => {
                    self.bytes.to_stream.fetch_add(n as u64, Ordering::Relaxed);
                    self.last_moved = Instant::now();
                }
            }
        }
        if self.sending == Direction::Ending {
            ready!(stream.poll_end(cx)).map_err(|error| self.stream_failed(error))?;
            self.sending = Direction::Ended;
            // Only now can the other side know.
            self.left_at = self.left_at.map(|_| Instant::now());
        }
        Poll::Ready(Ok(()))
    }

    /// Moves what the connection has, up to a chunk; 0 at its end.
    fn poll_send_chunk(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut RelayStream,
    ) -> Poll<Result<usize, Outcome>> {
        CHUNK.with_borrow_mut(|chunk| {
            let room = ChunkHeader::LEN..ChunkHeader::LEN + stream.chunk_room();
            let payload = chunk.get_mut(room).unwrap_or_default();
            let n = if self.early.has_remaining() {
                let n = self.early.remaining().min(payload.len());
                self.early
                    .copy_to_slice(payload.get_mut(..n).unwrap_or_default());
                if self.early.is_empty() {
                    // Even empty it would keep what it is a part of.
                    self.early = Bytes::new();
                }
                n
            } else {
                let mut payload = ReadBuf::new(payload);
                let read = Pin::new(&mut self.connection.0).poll_read(cx, &mut payload);
                ready!(read).map_err(|error| self.connection_failed(&error))?;
                payload.filled().len()
            };
            if n > 0 {
                let frame = chunk.get_mut(..ChunkHeader::LEN + n).unwrap_or_default();
                let sent = stream.send_chunk(cx, frame);
                sent.map_err(|error| self.stream_failed(error))?;
            }
            Poll::Ready(Ok(n))
        })
    }

    /// Looks after what no wake-up tells: a connection that was reset while it is not being
    /// read, and the limits of time. A relay that reads and has no limit is not woken for this.
    fn poll_watch(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        while let Some(due) = self.watch_due() {
            // When something moves, `due` moves away; then the timer finds out when it fires.
            if due < self.watch.deadline() || self.watch.is_elapsed() {
                self.watch.as_mut().reset(due);
            }
            ready!(self.watch.as_mut().poll(cx));
            let now = Instant::now();
            if let Err(outcome) = self.look_at_connection(now) {
                return Poll::Ready(outcome);
            }
            if self.leave_due().is_some_and(|due| due <= now) {
                return Poll::Ready(self.connection_failed(&PeerLeft));
            }
            if self.idle_due().is_some_and(|due| due <= now) {
                return Poll::Ready(Outcome::Idle);
            }
        }
        Poll::Pending
    }

    fn look_at_connection(&mut self, now: Instant) -> Result<(), Outcome> {
        if !self.watches_connection() {
            return Ok(());
        }
        self.last_watched = now;
        match socket::hang_up(&self.connection.0.socket()) {
            HangUp::Failed if self.sending == Direction::Open => {
                let error = socket::take_error(&self.connection.0.socket());
                return Err(self.connection_failed(&error));
            }
            // There may be something left to read.
            HangUp::Closed if self.sending == Direction::Open => {}
            HangUp::Failed | HangUp::Closed => self.peer_has_left(),
            HangUp::No => {}
        }
        Ok(())
    }

    fn watch_due(&self) -> Option<Instant> {
        let look = self
            .watches_connection()
            .then(|| self.last_watched + WATCH_PERIOD);
        [look, self.leave_due(), self.idle_due()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Nobody reads the connection, and there is still something that it could fail to take.
    ///
    /// One that has taken everything and given everything may close while the stream still has
    /// to get the last of it.
    fn watches_connection(&self) -> bool {
        let gives_or_takes = self.sending == Direction::Open || self.receiving != Direction::Ended;
        gives_or_takes && !self.reads_connection && self.left_at.is_none()
    }

    fn leave_due(&self) -> Option<Instant> {
        let left_at = self.left_at.filter(|_| self.sending == Direction::Ended);
        left_at.map(|left_at| left_at + LEAVE_GRACE)
    }

    fn idle_due(&self) -> Option<Instant> {
        self.idle_timeout
            .and_then(|limit| self.last_moved.checked_add(limit))
    }

    fn end(&mut self, stream: RelayStream, outcome: Outcome) {
        match outcome {
            Outcome::Done => {
                self.connection.1 = false;
                stream.finish();
            }
            Outcome::LocalReset => stream.abort(AbortCode::Reset),
            Outcome::Idle => stream.abort(AbortCode::Idle),
            Outcome::Drained => stream.abort(AbortCode::Drain),
            Outcome::Protocol => stream.abort(AbortCode::Protocol),
            Outcome::Memory => stream.abort(AbortCode::Memory),
            // No stream ends so: what is not TLS has them.
            Outcome::NotTls => stream.abort(AbortCode::NotTls),
            // It may be our own limit, of which the peer does not know.
            Outcome::PeerAborted(AbortCode::Overflow) => stream.abort(AbortCode::Overflow),
            Outcome::PeerAborted(_) | Outcome::SessionLost => stream.finish(),
        }
    }
}

impl From<StreamError> for Outcome {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Aborted(code) => Self::PeerAborted(code),
            StreamError::CutOff => Self::PeerAborted(AbortCode::Reset),
            StreamError::Chunk(_) | StreamError::Frame(_) => Self::Protocol,
            StreamError::SessionGone => Self::SessionLost,
            StreamError::NoMemory => Self::Memory,
        }
    }
}

impl Endpoint for TcpStream {
    fn socket(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    fn reset_on_close(&mut self) {
        // Fails only on a socket that is already dead.
        let _ = socket::reset_on_close(self);
    }

    fn end_on_close(&mut self) {
        // The same.
        let _ = socket::end_on_close(self);
    }
}

impl Endpoint for UnixStream {
    fn socket(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    /// A Unix socket has no reset: its peer sees the close.
    fn reset_on_close(&mut self) {}

    fn end_on_close(&mut self) {}
}

/// Since when one direction of a relay waits, in milliseconds of the process's own count; 0 if it
/// does not. Written by the relay when that changes, and read by whoever wants to know.
#[derive(Debug, Default)]
struct Wait(AtomicU64);

impl Wait {
    fn begin(&self) {
        if self.0.load(Ordering::Relaxed) == 0 {
            self.0.store(process_millis(), Ordering::Relaxed);
        }
    }

    fn end(&self) {
        if self.0.load(Ordering::Relaxed) != 0 {
            self.0.store(0, Ordering::Relaxed);
        }
    }

    fn lasts(&self) -> Duration {
        match self.0.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => Duration::from_millis(process_millis().saturating_sub(since)),
        }
    }
}

/// A count of milliseconds that fits into an atomic and is never 0.
fn process_millis() -> u64 {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    let began = *BEGAN.get_or_init(Instant::now);
    millis(began.elapsed()).saturating_add(1)
}

thread_local! {
    /// Room for one chunk with its header.
    static CHUNK: RefCell<Box<[u8]>> =
        RefCell::new(vec![0; ChunkHeader::LEN + MAX_CHUNK_LEN].into_boxed_slice());
}

/// How often a relay looks after what no wake-up tells.
const WATCH_PERIOD: Duration = Duration::from_millis(500);

/// How long the other side may take to end after the connection's peer has gone; then it is told
/// of a reset. With the period above, that is within a second.
const LEAVE_GRACE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests;
