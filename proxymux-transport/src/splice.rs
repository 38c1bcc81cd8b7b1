//! Relaying one plain connection to another without its payload entering user memory.
//!
//! Owns moving bytes with `splice(2)` ([`Splicing`]), from one socket into a pipe and out of it into
//! the other, and going on by copying where the kernel refuses that. What a relay is, and when it
//! ends, is that of `pair`; the pipes are in `pipes`. Read [`relay_spliced`].
//!
//! A pipe is filled only when it is empty, and emptied before it is filled again. So "would block"
//! never is ambiguous: while filling it is the source that has nothing, while emptying it is the
//! sink that takes nothing, and exactly that readiness is cleared.

use std::{
    io,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use nix::errno::Errno;
use tokio::{
    io::Interest,
    net::{TcpStream, UnixStream},
};

use self::pipes::{FIRST_CAPACITY, HeldPipe, MAX_CAPACITY};
pub use self::{
    attempt::attempt,
    pipes::{Fallback, Pipes},
};
use crate::{
    pair::{Copying, Fault, Fetched, Mover, relay_with},
    relay::{Endpoint, Outcome, RelayBytes, RelayOptions},
};

mod attempt;
mod pipes;

/// A connection that is a plain socket of the kernel: what is read from its descriptor are the
/// bytes that were sent.
pub trait PlainSocket: Endpoint {
    /// Ready when something may be read; else the task is woken.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ready when something may be written; else the task is woken.
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Calls `io`, and takes the socket for not ready that way if it would block.
    ///
    /// # Errors
    ///
    /// Those of `io`, and [`io::ErrorKind::WouldBlock`] without calling it if the socket is known
    /// not to be ready.
    fn try_io<R>(&self, way: Interest, io: impl FnOnce() -> io::Result<R>) -> io::Result<R>;
}

/// Relays as [`relay_pair`](crate::pair::relay_pair) does, with the same ends, through pipes.
///
/// Bytes that came early go first. Where pipes cannot be had, or not be used, the relay copies,
/// and no byte is lost; [`Pipes`] counts that.
pub fn relay_spliced<C: PlainSocket, T: PlainSocket>(
    client: C,
    target: T,
    early: Bytes,
    options: &RelayOptions,
    bytes: Arc<RelayBytes>,
    pipes: &Pipes,
) -> impl Future<Output = Outcome> + Send + use<C, T> {
    let relay = Arc::new(Relay {
        pipes: pipes.clone(),
        fallback: OnceLock::new(),
    });
    if pipes.are_off() {
        relay.falls_back(Fallback::Off);
    } else {
        pipes.count_relay();
    }
    let movers = (
        Splicing::new(early, Arc::clone(&relay)),
        Splicing::new(Bytes::new(), relay),
    );
    relay_with(client, target, movers, options, bytes)
}

/// What both directions of a relay share.
#[derive(Debug)]
struct Relay {
    pipes: Pipes,
    /// Why one of them has gone on by copying; the first counts.
    fallback: OnceLock<Fallback>,
}

/// Moves bytes through a pipe, for as long as the kernel lets it.
#[derive(Debug)]
struct Splicing {
    /// What came early, and everything while pipes are refused.
    copying: Copying,
    way: Way,
    /// There while it has bytes, and between filling and emptying.
    pipe: Option<HeldPipe>,
    /// How much is fetched at once.
    wanted: usize,
    /// How often in a row the pipe was found full and then emptied without waiting.
    full: u32,
    /// Nothing has been fetched since the source was last waited for.
    woken: bool,
    relay: Arc<Relay>,
}

/// How a direction moves bytes now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    Splices,
    /// Pipes were refused; they are asked for again after so many reads, if ever.
    Copies {
        reads_left: Option<u32>,
    },
}

impl Relay {
    fn falls_back(&self, reason: Fallback) {
        self.fallback.get_or_init(|| {
            self.pipes.count_fallback(reason);
            reason
        });
    }
}

impl Splicing {
    fn new(early: Bytes, relay: Arc<Relay>) -> Self {
        Self {
            copying: Copying::new(early),
            way: if relay.pipes.are_off() {
                Way::Copies { reads_left: None }
            } else {
                Way::Splices
            },
            pipe: None,
            wanted: FIRST_CAPACITY,
            full: 0,
            woken: true,
            relay,
        }
    }

    fn falls_back(&mut self, reason: Fallback) {
        self.way = Way::Copies {
            reads_left: reason.may_pass().then_some(READS_BEFORE_RETRY),
        };
        self.relay.falls_back(reason);
    }

    /// Before each read; whether it is to be done by splicing.
    fn splices_next(&mut self) -> bool {
        match &mut self.way {
            Way::Copies {
                reads_left: Some(0),
            } => self.way = Way::Splices,
            Way::Copies {
                reads_left: Some(left),
            } => *left -= 1,
            Way::Splices | Way::Copies { reads_left: None } => {}
        }
        self.way == Way::Splices
    }

    /// Puts what the source has into the pipe, which is empty; how much that was.
    ///
    /// Zero is the end, or an urgent byte that is in the way, which does not go into a pipe: the
    /// kernel then calls the source empty, and at its end ended. Reading tells which it is.
    fn poll_fill<S: PlainSocket>(
        &mut self,
        cx: &mut Context<'_>,
        source: &S,
    ) -> Poll<Result<usize, Filling>> {
        loop {
            let Poll::Ready(readable) = source.poll_readable(cx) else {
                self.pipe = None;
                self.woken = true;
                return Poll::Pending;
            };
            readable.map_err(Filling::Failed)?;
            let pipe = match &mut self.pipe {
                Some(pipe) if pipe.capacity() >= self.wanted => pipe,
                pipe => {
                    // First what it has goes back, which may be all that there is.
                    *pipe = None;
                    let taken = self.relay.pipes.take(self.wanted);
                    let taken = pipe.insert(taken.map_err(Filling::Refused)?);
                    self.wanted = self.wanted.min(taken.capacity());
                    taken
                }
            };
            let fill = || match pipe.fill(source.socket(), self.wanted) {
                Err(error) if self.woken && error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                result => result,
            };
            match source.try_io(Interest::READABLE, fill) {
                Ok(n) => {
                    self.woken = false;
                    self.count_full(n);
                    return Poll::Ready(Ok(n));
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                    _ => return Poll::Ready(Err(Filling::from(error))),
                },
            }
        }
    }

    /// A segment takes a whole slot of a pipe, of which there is one for each 4 KiB, however short
    /// it is: one that is full of segments of 1,448 bytes has a third of what it could have.
    fn count_full(&mut self, filled: usize) {
        if filled < self.wanted / 4 {
            self.full = 0;
            return;
        }
        self.full += 1;
        if self.full == FULL_BEFORE_GROWTH {
            self.full = 0;
            self.wanted = (self.wanted * GROWTH).min(MAX_CAPACITY);
        }
    }

    /// Hands what is in the pipe to the sink, once.
    fn poll_empty<K: PlainSocket>(
        &mut self,
        cx: &mut Context<'_>,
        sink: &K,
        moved: &mut usize,
    ) -> Poll<Result<(), Fault>> {
        let Some(pipe) = &mut self.pipe else {
            return Poll::Ready(Ok(()));
        };
        let Poll::Ready(writable) = sink.poll_writable(cx) else {
            // A bigger pipe would only hold more of what waits.
            self.full = 0;
            return Poll::Pending;
        };
        writable.map_err(Fault::Sink)?;
        let emptied = sink.try_io(Interest::WRITABLE, || pipe.empty(sink.socket()));
        match emptied {
            Ok(0) => Poll::Ready(Err(Fault::Sink(io::ErrorKind::WriteZero.into()))),
            Ok(n) => {
                *moved += n;
                Poll::Ready(Ok(()))
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Poll::Ready(Ok(())),
                _ => match refusal(&error) {
                    Some(reason) => {
                        self.falls_back(reason);
                        Poll::Ready(Ok(()))
                    }
                    None => Poll::Ready(Err(Fault::Sink(error))),
                },
            },
        }
    }
}

impl<S: PlainSocket, K: PlainSocket> Mover<S, K> for Splicing {
    fn holds(&self) -> bool {
        Mover::<S, K>::holds(&self.copying) || self.pipe.as_ref().is_some_and(HeldPipe::has_bytes)
    }

    fn discard(&mut self) {
        Mover::<S, K>::discard(&mut self.copying);
        self.pipe = None;
    }

    fn poll_write_out(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut K,
        moved: &mut usize,
    ) -> Poll<Result<(), Fault>> {
        loop {
            // What was read out of the pipe came before what is still in it.
            ready!(Mover::<S, K>::poll_write_out(
                &mut self.copying,
                cx,
                sink,
                moved
            ))?;
            match &mut self.pipe {
                Some(pipe) if pipe.has_bytes() => match self.way {
                    Way::Splices => ready!(self.poll_empty(cx, sink, moved))?,
                    Way::Copies { .. } => {
                        let read = pipe.read_out().map_err(Fault::Source)?;
                        self.copying = Copying::new(read);
                    }
                },
                _ => return Poll::Ready(Ok(())),
            }
        }
    }

    fn poll_fetch(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        sink: &mut K,
        moved: &mut usize,
    ) -> Poll<Result<Fetched, Fault>> {
        if self.splices_next() {
            match ready!(self.poll_fill(cx, source)) {
                Ok(0) => {}
                Ok(_) => return Poll::Ready(Ok(Fetched::Bytes)),
                Err(Filling::Refused(reason)) => self.falls_back(reason),
                Err(Filling::Failed(error)) => return Poll::Ready(Err(Fault::Source(error))),
            }
        }
        self.pipe = None;
        self.copying.poll_fetch(cx, source, sink, moved)
    }
}

/// Why a pipe was not filled.
#[derive(Debug)]
enum Filling {
    Refused(Fallback),
    Failed(io::Error),
}

impl From<io::Error> for Filling {
    fn from(error: io::Error) -> Self {
        match refusal(&error) {
            Some(reason) => Self::Refused(reason),
            None => Self::Failed(error),
        }
    }
}

/// What says that the kernel does not splice this, and nothing of the connection. If it is the
/// connection's after all, reading or writing fails in the same way.
fn refusal(error: &io::Error) -> Option<Fallback> {
    match Errno::from_raw(error.raw_os_error()?) {
        Errno::EINVAL | Errno::ENOSYS | Errno::EPERM | Errno::EOPNOTSUPP => {
            Some(Fallback::Unsupported)
        }
        Errno::ENOMEM => Some(Fallback::Kernel),
        _ => None,
    }
}

impl PlainSocket for TcpStream {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(cx)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_write_ready(cx)
    }

    fn try_io<R>(&self, way: Interest, io: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
        Self::try_io(self, way, io)
    }
}

impl PlainSocket for UnixStream {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(cx)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_write_ready(cx)
    }

    fn try_io<R>(&self, way: Interest, io: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
        Self::try_io(self, way, io)
    }
}

/// A bulk transfer of 16 MiB asks again, a log that trickles hardly ever.
const READS_BEFORE_RETRY: u32 = 1024;

/// Growing costs a system call and an allocation in the kernel; a single burst is not worth it.
const FULL_BEFORE_GROWTH: u32 = 4;

/// From 64 KiB to 1 MiB in two steps.
const GROWTH: usize = 4;

#[cfg(test)]
mod tests;
