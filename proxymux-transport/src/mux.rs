//! The multiplexer of one session and the task that drives it.
//!
//! [`start`] gives the three parts: the [`Mux`] handle that opens streams, the [`Driver`] future
//! that moves frames (one task; nothing else touches the carrier), and the [`Incoming`] streams
//! of the peer. The count of streams and their end are in `mux/guard.rs`.
//! Leaves control messages and liveness to the session code.
//!
//! The crate ends the whole session when its own limit of streams is reached, so streams are
//! counted here, and the crate's limit is twice ours.

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use futures_util::{Stream, stream::SelectAll};
use proxymux_proto::AbortCode;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, TryAcquireError, mpsc, oneshot},
    time::{Instant, timeout_at},
};

use crate::{
    carrier::{Broken, Carrier},
    memory::{MemoryFull, SessionMemory},
    stream::MessageStream,
};

mod guard;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub(crate) use guard::StreamGuard;
use guard::{Lingering, MuxShared, Slot};

/// Which end of a session this is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// The yamux client; opens the control stream, ends streams.
    Agent,
    /// The yamux server; opens every other stream.
    Master,
}

/// The limits of one session.
#[derive(Clone, Copy, Debug)]
pub struct MuxLimits {
    /// Streams besides the control stream.
    pub max_streams: usize,
    /// Streams that were opened and not yet answered. More wait for their turn, or are refused.
    ///
    /// The crate opens no stream while 256 are not acknowledged, so more than 255 count as 255.
    pub max_pending: usize,
    /// The stream id at which the session asks to be replaced.
    pub worn_out_at: u32,
}

/// Opens streams on a session and tells its end.
#[derive(Clone, Debug)]
pub struct Mux {
    shared: Arc<MuxShared>,
    opens: mpsc::Sender<OpenCommand>,
}

/// The streams that the peer opens.
#[derive(Debug)]
pub struct Incoming {
    streams: mpsc::Receiver<MessageStream>,
}

/// Moves the frames of a session until it ends; see the module's text.
pub struct Driver<T> {
    connection: yamux::Connection<Carrier<T>>,
    carrier: Carrier<T>,
    shared: Arc<MuxShared>,
    opens: mpsc::Receiver<OpenCommand>,
    opening: Option<OpenCommand>,
    /// There until the end.
    incoming: Option<mpsc::Sender<MessageStream>>,
    lingering: SelectAll<Lingering>,
}

/// Why no stream could be opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OpenError {
    /// The session has as many streams as it may.
    #[error("session has {0} streams open, its limit")]
    TooManyStreams(usize),
    /// Too many streams wait for the peer's answer.
    #[error("session has {0} dials pending, its limit")]
    TooManyPending(usize),
    /// The streams that are open hold as much memory as they may.
    #[error(transparent)]
    NoMemory(MemoryFull),
    /// The session is over.
    #[error("session ended")]
    SessionGone,
}

/// How a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionFault {
    /// The peer closed the session, or its connection, in an orderly way.
    #[error("closed by the peer")]
    Closed,
    /// This side closed it.
    #[error("closed by this side")]
    ClosedHere,
    /// The connection ended without the goodbyes of TLS and the multiplexer: the peer died, or
    /// something between us cut it.
    #[error("connection was closed without a goodbye")]
    CutOff,
    /// The connection failed.
    #[error("connection failed")]
    Io(#[source] io::Error),
    /// The peer broke the multiplexer's protocol.
    #[error("peer broke the multiplexer's protocol")]
    Protocol(#[source] yamux::ConnectionError),
}

/// Puts a multiplexer on a connection, without a limit of memory.
pub fn start<T>(io: T, role: Role, limits: MuxLimits) -> (Mux, Incoming, Driver<T>)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    start_within(io, role, limits, SessionMemory::unlimited())
}

/// Puts a multiplexer on a connection. Its streams hold no more than `memory` allows.
pub fn start_within<T>(
    io: T,
    role: Role,
    mut limits: MuxLimits,
    memory: Arc<SessionMemory>,
) -> (Mux, Incoming, Driver<T>)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    limits.max_pending = limits.max_pending.min(CRATE_MAX_PENDING);
    let shared = Arc::new(MuxShared::new(role, limits, memory));
    let (opens_tx, opens) = mpsc::channel(OPEN_QUEUE);
    // Every stream in this queue holds a slot, so there is room for all there can be.
    let (incoming_tx, incoming) = mpsc::channel(limits.max_streams + CONTROL_STREAMS);
    let carrier = Carrier::new(
        io,
        Arc::clone(&shared.table),
        Arc::clone(&shared.bytes_received),
    );
    let mode = match role {
        Role::Agent => yamux::Mode::Client,
        Role::Master => yamux::Mode::Server,
    };
    let driver = Driver {
        connection: yamux::Connection::new(carrier.clone(), crate_config(limits), mode),
        carrier,
        shared: Arc::clone(&shared),
        opens,
        opening: None,
        incoming: Some(incoming_tx),
        lingering: SelectAll::new(),
    };
    (
        Mux {
            shared,
            opens: opens_tx,
        },
        Incoming { streams: incoming },
        driver,
    )
}

impl Mux {
    /// Opens a stream. The peer learns of it with the first message sent.
    ///
    /// Cancel-safe: a stream that nobody waits for any more is given up.
    ///
    /// # Errors
    ///
    /// At once when a limit is reached, or when the session is over.
    pub async fn open(&self) -> Result<MessageStream, OpenError> {
        self.open_with(&[]).await
    }

    /// Opens a stream like [`Mux::open`], whose first message leaves with it: a wake-up of the
    /// driver sooner than one that is sent once the stream is open.
    ///
    /// What there is no room for waits in the stream, for [`MessageStream::poll_send`].
    ///
    /// Cancel-safe: a stream that nobody waits for any more is given up, also at the peer.
    ///
    /// # Errors
    ///
    /// As [`Mux::open`].
    pub async fn open_with(&self, first: &[u8]) -> Result<MessageStream, OpenError> {
        let slot = self.take_slot()?;
        let pending = Arc::clone(&self.shared.pending).try_acquire_owned();
        let pending = pending.map_err(|error| match error {
            TryAcquireError::Closed => OpenError::SessionGone,
            TryAcquireError::NoPermits => {
                OpenError::TooManyPending(self.shared.limits().max_pending)
            }
        })?;
        self.open_in_slot(slot, pending, first).await
    }

    /// Opens a stream like [`Mux::open`], and waits while too many are pending: first come, first
    /// served. Who waits counts as a stream, so that no more can wait than there may be streams.
    ///
    /// Cancel-safe: the place among those who wait is given up.
    ///
    /// # Errors
    ///
    /// When the turn has not come by the deadline; at once when another limit is reached, or when
    /// the session is over or takes nothing new.
    pub async fn open_in_turn(&self, deadline: Instant) -> Result<MessageStream, OpenError> {
        let slot = self.take_slot()?;
        let turn = Arc::clone(&self.shared.pending).acquire_owned();
        let pending = timeout_at(deadline, turn)
            .await
            .map_err(|_| OpenError::TooManyPending(self.shared.limits().max_pending))?
            .map_err(|_| OpenError::SessionGone)?;
        // Those who came before may have filled what was free.
        self.check_memory().map_err(OpenError::NoMemory)?;
        self.open_in_slot(slot, pending, &[]).await
    }

    fn take_slot(&self) -> Result<Slot, OpenError> {
        if self.shared.is_closing() || self.shared.is_over() {
            return Err(OpenError::SessionGone);
        }
        self.check_memory().map_err(OpenError::NoMemory)?;
        let max = self.shared.limits().max_streams;
        Slot::for_opening(&self.shared).ok_or(OpenError::TooManyStreams(max))
    }

    async fn open_in_slot(
        &self,
        slot: Slot,
        pending: OwnedSemaphorePermit,
        first: &[u8],
    ) -> Result<MessageStream, OpenError> {
        let gone = OpenError::SessionGone;
        let (reply, answer) = oneshot::channel();
        let command = OpenCommand {
            slot,
            pending,
            first: first.into(),
            reply,
        };
        self.opens.send(command).await.map_err(|_| gone)?;
        answer.await.map_err(|_| gone)
    }

    /// Whether there is memory for another stream.
    ///
    /// # Errors
    ///
    /// When there is none; then some is made, by cutting off streams that stall, for those that
    /// ask later.
    pub fn check_memory(&self) -> Result<(), MemoryFull> {
        let table = &self.shared.table;
        table.memory().check_room(table)
    }

    /// Opens nothing more; who waits for a turn is told at once that the session is gone.
    ///
    /// Streams that are open, or that have had their turn, go on.
    pub fn take_nothing_new(&self) {
        self.shared.pending.close();
    }

    /// Ends the session in an orderly way, and with it all its streams.
    ///
    /// The driver then writes out what is queued, for as long as the peer takes to read it; who
    /// does not want to wait drops the driver.
    pub fn close(&self) {
        self.shared.close();
    }

    /// Whether the driver has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.shared.is_over()
    }

    /// Hands on the peer's word, from the control stream, that it gave a stream up.
    pub fn abort_received(&self, stream: u32, code: AbortCode) {
        self.shared.table.abort(stream, code);
    }

    /// Waits for a stream that was given up here, to be told to the peer on the control stream.
    ///
    /// Cancel-safe.
    pub async fn next_abort(&self) -> (u32, AbortCode) {
        loop {
            let added = self.shared.abort_added.notified();
            if let Some(abort) = self.shared.next_abort() {
                return abort;
            }
            added.await;
        }
    }

    /// Waits until the session has used up most of its stream ids and wants to be replaced.
    pub async fn worn_out(&self) {
        self.shared.worn_out.notified().await;
    }

    /// Streams that count against the limit, the control stream among them.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.shared.streams()
    }

    /// Streams in the table of the session.
    #[cfg(test)]
    pub(crate) fn streams_known(&self) -> usize {
        self.shared.table.len()
    }

    /// Bytes that ever arrived on this session.
    #[must_use]
    pub fn bytes_received(&self) -> u64 {
        self.shared.bytes_received.load(Ordering::Relaxed)
    }
}

impl Incoming {
    /// Waits for the peer's next stream; `None` when the session is over.
    ///
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<MessageStream> {
        self.streams.recv().await
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Future for Driver<T> {
    type Output = SessionFault;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<SessionFault> {
        let over = self.poll_turn(cx);
        if over.is_ready() {
            self.end();
        }
        over
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<SessionFault> {
        self.shared.driver.register(cx.waker());
        let released_before = self.shared.released();
        if self.shared.is_closing() {
            return self.poll_close(cx);
        }
        // A peer that sends without a pause uses up what the runtime grants us for one turn, so
        // writing has to come first now and then.
        if self.carrier.is_behind()
            && let Poll::Ready(Err(error)) = self.carrier.poll_flush_now(cx)
        {
            return Poll::Ready(SessionFault::Io(error));
        }
        if let Poll::Ready(fault) = self.poll_opens(cx) {
            return Poll::Ready(fault);
        }
        self.poll_lingering(cx);
        if let Poll::Ready(fault) = self.poll_incoming(cx) {
            // What the peer is told of its fault. If that has to wait, it is not told.
            let _ = self.carrier.poll_flush_now(cx);
            return Poll::Ready(fault);
        }
        if released_before > 0 && !self.carrier.is_blocked() {
            self.shared.give_back(released_before);
            if self.opening.is_some() {
                // The crate counts dropped streams as not acknowledged until it sees their end.
                cx.waker().wake_by_ref();
            }
        }
        match self.carrier.poll_flush_now(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(SessionFault::Io(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    }

    fn poll_opens(&mut self, cx: &mut Context<'_>) -> Poll<SessionFault> {
        loop {
            if self
                .opening
                .as_ref()
                .is_some_and(|open| open.reply.is_closed())
            {
                self.opening = None;
            }
            if self.opening.is_some() {
                match self.connection.poll_new_outbound(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(error)) => return Poll::Ready(error.into()),
                    Poll::Ready(Ok(stream)) => self.give_out(stream, cx),
                }
            }
            match self.opens.poll_recv(cx) {
                Poll::Ready(Some(open)) => self.opening = Some(open),
                // Without a handle nobody can open any more; the peer still can.
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<SessionFault> {
        loop {
            match self.connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(stream))) => self.take_in(stream),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(error.into()),
                Poll::Ready(None) => return Poll::Ready(SessionFault::Closed),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn give_out(&mut self, stream: yamux::Stream, cx: &mut Context<'_>) {
        let Some(open) = self.opening.take() else {
            return;
        };
        let guard = StreamGuard::opened(stream, open.slot, open.pending);
        if guard.id() >= self.shared.limits().worn_out_at {
            self.shared.worn_out.notify_one();
        }
        let mut stream = MessageStream::new(guard);
        if !open.first.is_empty() {
            stream.queue(&open.first);
            // Who takes the stream sends what is left, and meets an error again.
            let _ = stream.poll_send(cx);
        }
        // If nobody waits any more, the stream comes back and is dropped, which gives it up.
        let _ = open.reply.send(stream);
    }

    fn take_in(&mut self, stream: yamux::Stream) {
        // Over the limit, or nobody takes streams any more: dropping it resets it, alone.
        match (Slot::for_accepted(&self.shared), &self.incoming) {
            (Some(slot), Some(incoming)) => {
                let guard = StreamGuard::accepted(stream, slot);
                let _ = incoming.try_send(MessageStream::new(guard));
            }
            _ => self.shared.table.forget(stream.id().val()),
        }
    }

    fn poll_lingering(&mut self, cx: &mut Context<'_>) {
        self.lingering.extend(self.shared.take_retired());
        // What still arrives is thrown away; a stream leaves the set when the agent has ended it.
        while let Poll::Ready(Some(())) = Pin::new(&mut self.lingering).poll_next(cx) {}
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<SessionFault> {
        self.shared.table.end_all();
        self.opening = None;
        while let Poll::Ready(Some(open)) = self.opens.poll_recv(cx) {
            drop(open);
        }
        self.connection.poll_close(cx).map(|closed| match closed {
            Err(yamux::ConnectionError::Io(error)) if !is_gone(&error) => SessionFault::Io(error),
            // A peer that is gone already is all that was wanted.
            _ => SessionFault::ClosedHere,
        })
    }
}

impl<T> Driver<T> {
    /// Leaves nobody waiting, also if the finished future is kept.
    fn end(&mut self) {
        self.shared.end();
        self.lingering.clear();
        self.incoming = None;
        self.opening = None;
        self.opens.close();
        while let Ok(open) = self.opens.try_recv() {
            drop(open);
        }
    }
}

impl<T> Drop for Driver<T> {
    fn drop(&mut self) {
        self.end();
    }
}

impl<T> fmt::Debug for Driver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

impl From<yamux::ConnectionError> for SessionFault {
    fn from(error: yamux::ConnectionError) -> Self {
        use yamux::{ConnectionError as E, FrameDecodeError as D};
        match error {
            E::Closed => Self::Closed,
            E::Io(error) | E::Decode(D::Io(error)) if is_broken(&error) => {
                Self::Protocol(E::Io(error))
            }
            E::Io(error) | E::Decode(D::Io(error)) => match error.kind() {
                io::ErrorKind::UnexpectedEof => Self::CutOff,
                _ => Self::Io(error),
            },
            other => Self::Protocol(other),
        }
    }
}

/// Whether the carrier made this error of the crate's word that the peer broke the protocol.
fn is_broken(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|source| source.is::<Broken>())
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(
        error.kind(),
        K::BrokenPipe | K::ConnectionReset | K::NotConnected
    )
}

#[derive(Debug)]
struct OpenCommand {
    slot: Slot,
    pending: OwnedSemaphorePermit,
    /// What goes out with the stream.
    first: Box<[u8]>,
    reply: oneshot::Sender<MessageStream>,
}

/// The crate's settings for our limits: windows that cannot grow, and room for twice as many
/// streams as we count.
fn crate_config(limits: MuxLimits) -> yamux::Config {
    let streams = 2 * (limits.max_streams + CONTROL_STREAMS);
    let mut config = yamux::Config::default();
    // The setters panic when the two disagree: first lower the streams, then set the window,
    // then raise the streams.
    config.set_max_num_streams(1);
    config.set_max_connection_receive_window(Some(streams * yamux::DEFAULT_CREDIT as usize));
    config.set_max_num_streams(streams);
    config.set_split_send_size(FRAME_BODY);
    config
}

/// The control stream, which has a slot like any other.
const CONTROL_STREAMS: usize = 1;

/// The crate opens no stream while 256 are not acknowledged, and says no word of it.
const CRATE_MAX_PENDING: usize = 255;

/// A full chunk with its header; with the frame's own header it fills four TLS records.
const FRAME_BODY: usize = proxymux_proto::MAX_CHUNK_LEN + proxymux_proto::ChunkHeader::LEN;

/// Opens that wait for the driver's next turn; each waiter already holds a slot.
const OPEN_QUEUE: usize = 64;
