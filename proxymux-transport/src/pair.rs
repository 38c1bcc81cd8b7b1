//! Relaying one connection to another, with no session in between.
//!
//! Owns passing on half-close and reset, the idle limit, a side whose packets vanish (`vanished`),
//! and the count of bytes, as `relay` does for a connection and a stream. Leaves opening either end,
//! and logging, to the daemons, and how bytes get from one socket to the other to a [`Mover`]:
//! [`Copying`], or that of `splice`. Read [`relay_pair`].

use std::{
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use proxymux_proto::AbortCode;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::{
    relay::{Endpoint, Outcome, RelayBytes, RelayOptions},
    socket::{self, HangUp},
};

mod copying;
mod vanished;

pub(crate) use self::copying::{Copying, READ_LEN};
use self::{
    copying::poll_throw_away,
    vanished::{Account, NothingAcknowledged, Vanished, Vanishing},
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
    let movers = (Copying::new(early), Copying::new(Bytes::new()));
    relay_with(client, target, movers, options, bytes)
}

/// As [`relay_pair`], with a mover from the client to the target, and one back.
pub(crate) fn relay_with<C, T, M>(
    mut client: C,
    mut target: T,
    (there, back): (M, M),
    options: &RelayOptions,
    bytes: Arc<RelayBytes>,
) -> impl Future<Output = Outcome> + Send + use<C, T, M>
where
    C: Endpoint,
    T: Endpoint,
    M: Mover<C, T> + Mover<T, C>,
{
    // The kernel closes the connections of a process that is killed, which their peers must not take
    // for an end: here no mark tells the two apart. Relays end in order only by saying so.
    client.reset_on_close();
    target.reset_on_close();
    let now = Instant::now();
    Pair {
        client,
        target,
        there: Direction::new(there),
        back: Direction::new(back),
        bytes,
        over: false,
        last_moved: now,
        last_watched: now,
        vanishing: Vanishing::new(now),
        idle_timeout: options.idle_timeout,
        watch: Box::pin(tokio::time::sleep(WATCH_PERIOD)),
        cancelled: Box::pin(options.cancel.clone().cancelled_owned()),
    }
}

/// How the bytes of one direction get from its source to its sink.
///
/// It wakes the task when what it waits for can go on, as a future does.
pub(crate) trait Mover<S, K>: Send + Unpin + 'static {
    /// Whether something was read and is not written.
    fn holds(&self) -> bool;

    /// Throws away what it holds; nobody wants it any more.
    fn discard(&mut self);

    /// Writes what it holds, and adds to `moved` what was taken; ready when it holds nothing.
    fn poll_write_out(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut K,
        moved: &mut usize,
    ) -> Poll<Result<(), Fault>>;

    /// Reads once when it holds nothing. It may write some of it at once, and holds the rest.
    fn poll_fetch(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        sink: &mut K,
        moved: &mut usize,
    ) -> Poll<Result<Fetched, Fault>>;
}

/// What a source gave.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fetched {
    Bytes,
    End,
}

/// Which connection of a direction has failed.
#[derive(Debug)]
pub(crate) enum Fault {
    Source(io::Error),
    Sink(io::Error),
}

struct Pair<C: Endpoint, T: Endpoint, M> {
    client: C,
    target: T,
    /// From the client to the target.
    there: Direction<M>,
    /// From the target to the client.
    back: Direction<M>,
    bytes: Arc<RelayBytes>,
    /// Both directions have ended in order, and closing is no reset.
    over: bool,
    last_moved: Instant,
    last_watched: Instant,
    vanishing: Vanishing,
    idle_timeout: Option<Duration>,
    watch: Pin<Box<Sleep>>,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// One way through the relay.
struct Direction<M> {
    state: State,
    mover: M,
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

impl<C, T, M> Future for Pair<C, T, M>
where
    C: Endpoint,
    T: Endpoint,
    M: Mover<C, T> + Mover<T, C>,
{
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let outcome = ready!(self.poll_outcome(cx));
        if outcome == Outcome::Done {
            self.over = true;
            self.client.end_on_close();
            self.target.end_on_close();
        }
        Poll::Ready(outcome)
    }
}

impl<C, T, M> Pair<C, T, M>
where
    C: Endpoint,
    T: Endpoint,
    M: Mover<C, T> + Mover<T, C>,
{
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
            self.note_move();
        }
        if Mover::<C, T>::holds(&self.there.mover) {
            self.bytes.sending_waits();
        } else {
            self.bytes.sending_moves();
        }
        match fault {
            Some(Fault::Source(error)) => Err(self.client_failed(&error)),
            Some(Fault::Sink(_)) if self.back.state != State::Open => {
                self.there.sink_has_left::<C, T>();
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
            self.note_move();
        }
        if Mover::<T, C>::holds(&self.back.mover) {
            self.bytes.receiving_waits();
        } else {
            self.bytes.receiving_moves();
        }
        match fault {
            Some(Fault::Source(error)) => Err(self.target_failed(&error)),
            // Most clients close both ways at once, and the goodbye of TLS finds them gone.
            Some(Fault::Sink(_)) if self.there.state != State::Open => {
                self.back.sink_has_left::<T, C>();
                self.poll_back(cx)
            }
            Some(Fault::Sink(error)) => Err(self.client_failed(&error)),
            None => Ok(()),
        }
    }

    fn note_move(&mut self) {
        self.last_moved = Instant::now();
        self.vanishing.moved(self.last_moved);
    }

    fn client_failed(&self, error: &dyn std::error::Error) -> Outcome {
        self.bytes.failed(error);
        Outcome::LocalReset
    }

    fn target_failed(&self, error: &dyn std::error::Error) -> Outcome {
        self.bytes.failed(error);
        Outcome::PeerAborted(AbortCode::Reset)
    }

    /// Looks after what no wake-up tells: a connection that was reset while it is not being read, one
    /// whose packets vanish, and the idle limit. A relay that reads both, of which nothing is under
    /// way and that has no limit, is not woken for this.
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
            if let Err(outcome) = self.look_for_vanished(now) {
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
        let stalled = self.there.is_stalled::<C, T>() || self.back.is_stalled::<T, C>();
        let look = stalled.then(|| self.last_watched + WATCH_PERIOD);
        let leave = [self.there.leave_due(), self.back.leave_due()];
        let dues = [look, self.idle_due(), self.vanishing.due()];
        let dues = dues.into_iter().chain(leave);
        dues.flatten().min()
    }

    fn look_at_connections(&self) -> Result<(), Outcome> {
        if self.there.is_stalled::<C, T>()
            && socket::hang_up(&self.client.socket()) == HangUp::Failed
        {
            return Err(self.client_failed(&socket::take_error(&self.client.socket())));
        }
        if self.back.is_stalled::<T, C>()
            && socket::hang_up(&self.target.socket()) == HangUp::Failed
        {
            return Err(self.target_failed(&socket::take_error(&self.target.socket())));
        }
        Ok(())
    }

    fn look_for_vanished(&mut self, now: Instant) -> Result<(), Outcome> {
        if self.vanishing.due().is_none_or(|due| due > now) {
            return Ok(());
        }
        let client = Account::of(&self.client.socket());
        let target = Account::of(&self.target.socket());
        match self.vanishing.look(now, client, target) {
            None => Ok(()),
            Some(Vanished::Client) => Err(self.client_failed(&NothingAcknowledged)),
            Some(Vanished::Target) => Err(self.target_failed(&NothingAcknowledged)),
        }
    }

    fn idle_due(&self) -> Option<Instant> {
        self.idle_timeout
            .and_then(|limit| self.last_moved.checked_add(limit))
    }
}

impl<C: Endpoint, T: Endpoint, M> Drop for Pair<C, T, M> {
    fn drop(&mut self) {
        if !self.over {
            self.client.reset_on_close();
            self.target.reset_on_close();
        }
    }
}

impl<M> Direction<M> {
    fn new(mover: M) -> Self {
        Self {
            state: State::Open,
            mover,
            left_at: None,
        }
    }

    /// The source is not read for as long as something is held.
    fn is_stalled<S, K>(&self) -> bool
    where
        M: Mover<S, K>,
    {
        self.state == State::Open && self.mover.holds()
    }

    /// What still comes is thrown away for as long as [`LEAVE_GRACE`], so that the source has time
    /// for an orderly end of its own.
    fn sink_has_left<S, K>(&mut self)
    where
        M: Mover<S, K>,
    {
        self.left_at.get_or_insert_with(Instant::now);
        self.mover.discard();
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
    fn poll<S, K>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        sink: &mut K,
    ) -> (usize, Option<Fault>)
    where
        S: Endpoint,
        K: Endpoint,
        M: Mover<S, K>,
    {
        let mut moved = 0;
        let fault = match self.poll_move(cx, source, sink, &mut moved) {
            Poll::Ready(Err(fault)) => Some(fault),
            Poll::Ready(Ok(())) | Poll::Pending => None,
        };
        (moved, fault)
    }

    fn poll_move<S, K>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        sink: &mut K,
        moved: &mut usize,
    ) -> Poll<Result<(), Fault>>
    where
        S: Endpoint,
        K: Endpoint,
        M: Mover<S, K>,
    {
        loop {
            ready!(self.mover.poll_write_out(cx, sink, moved))?;
            match self.state {
                State::Ending if self.left_at.is_some() => self.state = State::Ended,
                State::Open if *moved >= MAX_MOVED_PER_POLL => {
                    give_way(cx);
                    return Poll::Pending;
                }
                State::Open => {
                    let fetched = if self.left_at.is_some() {
                        poll_throw_away(cx, source)
                    } else {
                        self.mover.poll_fetch(cx, source, sink, moved)
                    };
                    if ready!(fetched)? == Fetched::End {
                        self.state = State::Ending;
                    }
                }
                State::Ending => {
                    ready!(Pin::new(&mut *sink).poll_shutdown(cx)).map_err(Fault::Sink)?;
                    self.state = State::Ended;
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
        }
    }
}

/// Has the task polled again once other tasks, and sockets that have become ready, had their turn.
///
/// Waking it here would not do: a runtime of one thread looks after its sockets only when it has
/// nothing else to run, or after 61 other polls.
fn give_way(cx: &mut Context<'_>) {
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}

/// What a direction moves before others have their turn: a fraction of a millisecond's work.
const MAX_MOVED_PER_POLL: usize = 1 << 20;

/// How often a relay looks after what no wake-up tells.
const WATCH_PERIOD: Duration = Duration::from_millis(500);

/// How long a side may take to end after the other has gone; then it is told of a reset.
const LEAVE_GRACE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests;
