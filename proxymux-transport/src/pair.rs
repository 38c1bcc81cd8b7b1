//! Relaying one connection to another, with no session in between.
//!
//! Owns moving bytes both ways, passing on half-close and reset, the idle limit, and the count of
//! bytes, as `relay` does for a connection and a stream. Leaves opening either end, and logging,
//! to the daemons. Read [`relay_pair`].
//!
//! Payload is read into a buffer of the thread; a direction keeps of it only what its slow side
//! has not taken (16 KiB at most), so that a relay at rest holds no buffer.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use proxymux_proto::AbortCode;
use tokio::{
    io::ReadBuf,
    time::{Instant, Sleep},
};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::{
    relay::{Endpoint, Outcome, RelayBytes, RelayOptions},
    socket::{self, HangUp},
};

/// Relays between a client and its target until both directions have ended, or one side failed.
///
/// `early` is what the client has sent before the relay began; it goes first. In `bytes` the
/// target takes the stream's place. A client that fails ends it as [`Outcome::LocalReset`], a
/// target as [`AbortCode::Reset`] of the peer. Dropping the future resets both connections.
pub fn relay_pair<C: Endpoint, T: Endpoint>(
    client: C,
    target: T,
    early: Bytes,
    options: &RelayOptions,
    bytes: Arc<RelayBytes>,
) -> impl Future<Output = Outcome> + Send + use<C, T> {
    let now = Instant::now();
    Pair {
        client,
        target,
        there: Direction::new(early),
        back: Direction::new(Bytes::new()),
        bytes,
        over: false,
        last_moved: now,
        last_watched: now,
        idle_timeout: options.idle_timeout,
        watch: Box::pin(tokio::time::sleep(WATCH_PERIOD)),
        cancelled: Box::pin(options.cancel.clone().cancelled_owned()),
    }
}

struct Pair<C: Endpoint, T: Endpoint> {
    client: C,
    target: T,
    /// From the client to the target.
    there: Direction,
    /// From the target to the client.
    back: Direction,
    bytes: Arc<RelayBytes>,
    /// Both directions have ended in order, and closing is no reset.
    over: bool,
    last_moved: Instant,
    last_watched: Instant,
    idle_timeout: Option<Duration>,
    watch: Pin<Box<Sleep>>,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// One way through the relay.
struct Direction {
    state: State,
    /// What was read and is not written.
    kept: Bytes,
    /// Since when the sink, having said its last word, takes nothing more.
    left_at: Option<Instant>,
}

/// A connection's peer has closed it both ways, and the other side did not end in time.
#[derive(Debug, thiserror::Error)]
#[error("closed by its peer with bytes on their way to it")]
struct PeerLeft;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Open,
    /// The source has ended; its end is being passed on.
    Ending,
    Ended,
}

/// Which connection of a direction has failed.
enum Fault {
    Source(io::Error),
    Sink(io::Error),
}

impl<C: Endpoint, T: Endpoint> Future for Pair<C, T> {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let outcome = ready!(self.poll_outcome(cx));
        self.over = outcome == Outcome::Done;
        Poll::Ready(outcome)
    }
}

impl<C: Endpoint, T: Endpoint> Pair<C, T> {
    fn poll_outcome(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        if self.cancelled.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Outcome::Drained);
        }
        if let Err(outcome) = self.poll_there(cx).and_then(|()| self.poll_back(cx)) {
            return Poll::Ready(outcome);
        }
        if self.there.state == State::Ended && self.back.state == State::Ended {
            return Poll::Ready(Outcome::Done);
        }
        self.poll_watch(cx)
    }

    fn poll_there(&mut self, cx: &mut Context<'_>) -> Result<(), Outcome> {
        let (n, fault) = self.there.poll(cx, &mut self.client, &mut self.target);
        if n > 0 {
            self.bytes.add_to_stream(n);
            self.last_moved = Instant::now();
        }
        if self.there.kept.is_empty() {
            self.bytes.sending_moves();
        } else {
            self.bytes.sending_waits();
        }
        match fault {
            Some(Fault::Source(error)) => Err(self.client_failed(&error)),
            Some(Fault::Sink(_)) if self.back.state != State::Open => {
                self.there.sink_has_left();
                self.poll_there(cx)
            }
            Some(Fault::Sink(error)) => Err(self.target_failed(&error)),
            None => Ok(()),
        }
    }

    fn poll_back(&mut self, cx: &mut Context<'_>) -> Result<(), Outcome> {
        let (n, fault) = self.back.poll(cx, &mut self.target, &mut self.client);
        if n > 0 {
            self.bytes.add_from_stream(n);
            self.last_moved = Instant::now();
        }
        if self.back.kept.is_empty() {
            self.bytes.receiving_moves();
        } else {
            self.bytes.receiving_waits();
        }
        match fault {
            Some(Fault::Source(error)) => Err(self.target_failed(&error)),
            // Most clients close both ways at once, and the goodbye of TLS finds them gone.
            Some(Fault::Sink(_)) if self.there.state != State::Open => {
                self.back.sink_has_left();
                self.poll_back(cx)
            }
            Some(Fault::Sink(error)) => Err(self.client_failed(&error)),
            None => Ok(()),
        }
    }

    fn client_failed(&self, error: &dyn std::error::Error) -> Outcome {
        self.bytes.failed(error);
        Outcome::LocalReset
    }

    fn target_failed(&self, error: &dyn std::error::Error) -> Outcome {
        self.bytes.failed(error);
        Outcome::PeerAborted(AbortCode::Reset)
    }

    /// Looks after what no wake-up tells: a connection that was reset while it is not being read,
    /// and the idle limit. A relay that reads both and has no limit is not woken for this.
    fn poll_watch(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        while let Some(due) = self.watch_due() {
            // When something moves, `due` moves away; then the timer finds out when it fires.
            if due < self.watch.deadline() || self.watch.is_elapsed() {
                self.watch.as_mut().reset(due);
            }
            ready!(self.watch.as_mut().poll(cx));
            let now = Instant::now();
            self.last_watched = now;
            if let Err(outcome) = self.look_at_connections() {
                return Poll::Ready(outcome);
            }
            if self.there.leave_due().is_some_and(|due| due <= now) {
                return Poll::Ready(self.target_failed(&PeerLeft));
            }
            if self.back.leave_due().is_some_and(|due| due <= now) {
                return Poll::Ready(self.client_failed(&PeerLeft));
            }
            if self.idle_due().is_some_and(|due| due <= now) {
                return Poll::Ready(Outcome::Idle);
            }
        }
        Poll::Pending
    }

    fn watch_due(&self) -> Option<Instant> {
        let stalled = self.there.is_stalled() || self.back.is_stalled();
        let look = stalled.then(|| self.last_watched + WATCH_PERIOD);
        let leave = [self.there.leave_due(), self.back.leave_due()];
        let dues = [look, self.idle_due()].into_iter().chain(leave);
        dues.flatten().min()
    }

    fn look_at_connections(&self) -> Result<(), Outcome> {
        if self.there.is_stalled() && socket::hang_up(&self.client.socket()) == HangUp::Failed {
            return Err(self.client_failed(&socket::take_error(&self.client.socket())));
        }
        if self.back.is_stalled() && socket::hang_up(&self.target.socket()) == HangUp::Failed {
            return Err(self.target_failed(&socket::take_error(&self.target.socket())));
        }
        Ok(())
    }

    fn idle_due(&self) -> Option<Instant> {
        self.idle_timeout
            .and_then(|limit| self.last_moved.checked_add(limit))
    }
}

impl<C: Endpoint, T: Endpoint> Drop for Pair<C, T> {
    fn drop(&mut self) {
        if !self.over {
            self.client.reset_on_close();
            self.target.reset_on_close();
        }
    }
}

impl Direction {
    fn new(early: Bytes) -> Self {
        Self {
            state: State::Open,
            kept: early,
            left_at: None,
        }
    }

    /// The source is not read for as long as something is kept.
    fn is_stalled(&self) -> bool {
        self.state == State::Open && !self.kept.is_empty()
    }

    /// What still comes is thrown away for as long as [`LEAVE_GRACE`], so that the source has time
    /// for an orderly end of its own.
    fn sink_has_left(&mut self) {
        self.left_at.get_or_insert_with(Instant::now);
        self.kept = Bytes::new();
        if self.state == State::Ending {
            self.state = State::Ended;
        }
    }

    fn leave_due(&self) -> Option<Instant> {
        let left_at = self.left_at.filter(|_| self.state != State::Ended);
        left_at.map(|left_at| left_at + LEAVE_GRACE)
    }

    /// Moves what can be moved now; how much it was, and what went wrong.
    ///
    /// A sink that has failed is not asked again, so a caller that forgives it has to poll once
    /// more to be woken by the source.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut impl Endpoint,
        sink: &mut impl Endpoint,
    ) -> (usize, Option<Fault>) {
        let mut moved = 0;
        let fault = match self.poll_move(cx, source, sink, &mut moved) {
            Poll::Ready(Err(fault)) => Some(fault),
            Poll::Ready(Ok(())) | Poll::Pending => None,
        };
        (moved, fault)
    }

    fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut impl Endpoint,
        sink: &mut impl Endpoint,
        moved: &mut usize,
    ) -> Poll<Result<(), Fault>> {
        loop {
            while self.kept.has_remaining() {
                let n = ready!(poll_write(cx, sink, &self.kept))?;
                self.kept.advance(n);
                *moved += n;
            }
            // Even empty it would keep what it is a part of.
            self.kept = Bytes::new();
            match self.state {
                State::Ending if self.left_at.is_some() => self.state = State::Ended,
                State::Open => *moved += ready!(self.poll_fetch(cx, source, sink))?,
                State::Ending => {
                    ready!(Pin::new(&mut *sink).poll_shutdown(cx)).map_err(Fault::Sink)?;
                    self.state = State::Ended;
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Reads once, and writes what the sink takes of it at once; the rest is kept.
    fn poll_fetch(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut impl Endpoint,
        sink: &mut impl Endpoint,
    ) -> Poll<Result<usize, Fault>> {
        BUFFER.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(buffer);
            let Poll::Ready(result) = Pin::new(&mut *source).poll_read(cx, &mut read) else {
                if self.left_at.is_none() {
                    // TLS may hold back a part of what it took.
                    ready!(Pin::new(&mut *sink).poll_flush(cx)).map_err(Fault::Sink)?;
                }
                return Poll::Pending;
            };
            result.map_err(Fault::Source)?;
            let read = read.filled();
            if read.is_empty() {
                self.state = State::Ending;
                return Poll::Ready(Ok(0));
            }
            if self.left_at.is_some() {
                return Poll::Ready(Ok(0));
            }
            let n = match poll_write(cx, sink, read) {
                Poll::Ready(written) => written?,
                Poll::Pending => 0,
            };
            self.kept = Bytes::copy_from_slice(read.get(n..).unwrap_or_default());
            Poll::Ready(Ok(n))
        })
    }
}

fn poll_write(
    cx: &mut Context<'_>,
    sink: &mut impl Endpoint,
    bytes: &[u8],
) -> Poll<Result<usize, Fault>> {
    match ready!(Pin::new(sink).poll_write(cx, bytes)) {
        Ok(0) => Poll::Ready(Err(Fault::Sink(io::ErrorKind::WriteZero.into()))),
        written => Poll::Ready(written.map_err(Fault::Sink)),
    }
}

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_LEN].into_boxed_slice());
}

/// As much as a record of TLS has, and all that a direction keeps for a slow side.
const READ_LEN: usize = 16 * 1024;

/// How often a relay looks after what no wake-up tells.
const WATCH_PERIOD: Duration = Duration::from_millis(500);

/// How long a side may take to end after the other has gone; then it is told of a reset.
const LEAVE_GRACE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests;
