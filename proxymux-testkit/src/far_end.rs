//! The plain TCP far end of a tunnel test: it does what a script says and checks every byte.
//!
//! A client's first line is the [`Script`] ([`FarEnd::scripted`]), or the script is fixed for
//! all connections ([`FarEnd::fixed`]: for a client that says nothing, or is no client at all).
//! [`drive()`] plays the client's part over any stream. What each connection came to is kept as
//! an [`Outcome`], because after some scripts there is nobody left to tell.

mod drive;
mod play;
mod script;
mod transfer;

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::net::{TcpListener, TcpStream};

pub use self::{
    drive::{DriveError, Driven, drive, drive_fixed, drive_record},
    play::PlayError,
    script::{Closer, DEFAULT_CHUNK, Payload, Script, ScriptError},
    transfer::TransferError,
};
use crate::acceptor::Acceptor;

/// A listening far end. Dropping it ends its connections.
///
/// ```
/// use proxymux_testkit::far_end::{FarEnd, Script, drive};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let far_end = FarEnd::scripted("127.0.0.1:0").await?;
/// let stream = tokio::net::TcpStream::connect(far_end.local_addr()).await?;
/// let driven = drive(stream, &Script::duplex(1 << 20, 7)).await?;
/// assert_eq!((driven.sent, driven.received), (1 << 20, 1 << 20));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct FarEnd {
    local_addr: SocketAddr,
    shared: Arc<Shared>,
    _acceptor: Acceptor,
}

impl FarEnd {
    /// Listens at `address`; each client says in its first line what shall happen.
    ///
    /// # Errors
    ///
    /// The address cannot be listened at.
    pub async fn scripted(address: impl tokio::net::ToSocketAddrs) -> io::Result<Self> {
        Self::start(TcpListener::bind(address).await?, None)
    }

    /// Listens at `address` and plays `script` on every connection, without a first line.
    ///
    /// # Errors
    ///
    /// The address cannot be listened at.
    pub async fn fixed(
        address: impl tokio::net::ToSocketAddrs,
        script: Script,
    ) -> io::Result<Self> {
        Self::start(TcpListener::bind(address).await?, Some(script))
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// How many connections were accepted so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// How many connections are being played now. A [`Script::Hole`] does not notice that its
    /// client is gone.
    pub fn open(&self) -> u64 {
        self.accepted() - self.shared.outcomes().len() as u64
    }

    /// What the connections that are over came to, in the order in which they ended.
    pub fn outcomes(&self) -> Vec<Outcome> {
        self.shared.outcomes().clone()
    }

    fn start(listener: TcpListener, script: Option<Script>) -> io::Result<Self> {
        let local_addr = listener.local_addr()?;
        let shared = Arc::<Shared>::default();
        let connections = Arc::clone(&shared);
        let acceptor = Acceptor::spawn("far end", listener, move |stream, peer, _| {
            connections.accepted.fetch_add(1, Ordering::Relaxed);
            play(stream, peer, script.clone(), Arc::clone(&connections))
        });
        Ok(Self {
            local_addr,
            shared,
            _acceptor: acceptor,
        })
    }
}

/// What one connection came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Who it was with.
    pub peer: SocketAddr,
    /// What was asked for; `None` where the first line was no script.
    pub script: Option<Script>,
    /// Payload bytes sent.
    pub sent: u64,
    /// Payload bytes received, the first line not among them.
    pub received: u64,
    /// Why it did not end as the script says; `None` where it did.
    pub problem: Option<String>,
}

impl Outcome {
    /// Whether all went as the script says.
    pub fn is_clean(&self) -> bool {
        self.problem.is_none()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            peer,
            sent,
            received,
            ..
        } = self;
        write!(f, "{peer}: sent {sent}, received {received}: ")?;
        f.write_str(self.problem.as_deref().unwrap_or("as asked for"))
    }
}

#[derive(Debug, Default)]
struct Shared {
    accepted: AtomicU64,
    outcomes: Mutex<Vec<Outcome>>,
}

impl Shared {
    /// Every change is one push, so that the list is whole even if a thread panicked.
    fn outcomes(&self) -> std::sync::MutexGuard<'_, Vec<Outcome>> {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn play(stream: TcpStream, peer: SocketAddr, script: Option<Script>, shared: Arc<Shared>) {
    let mut player = play::Player::new(stream);
    let result = player.play(script).await;
    let outcome = Outcome {
        peer,
        script: player.script.clone(),
        sent: player.moved.sent,
        received: player.moved.received,
        problem: result.err().map(|error| error.to_string()),
    };
    if !outcome.is_clean() {
        // The client may see no more than a reset; the reason belongs beside its failure.
        eprintln!("far end: {outcome}");
    }
    shared.outcomes().push(outcome);
    // Closed only now, so that a client that has seen the end finds the outcome there.
    drop(player);
}

#[cfg(test)]
mod tests;
