//! The running master's side of a take-over.
//!
//! Owns the socket at which new masters come, and gives way to one of them at a time. Until that
//! one has the front doors, everything can still be taken back, and is when it falls silent.
//! Read [`Giver::run`].

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use proxymux_transport::{
    socket::send_descriptors,
    telemetry::chain,
    unix_socket::{UnixSocket, is_of_our_user},
};
use tokio::{net::UnixStream, pin, sync::watch};

use super::meet;
use super::words::{
    ANSWER_LIMIT, BUSY, BYE, DOORS, HERE, NODES, READY, TAKEOVER, Talk, TalkError, VERSION,
};
use crate::master::Master;

/// Whether agents are to go over to another master.
#[derive(Debug)]
pub(crate) struct Moving {
    on: watch::Sender<bool>,
    /// The front doors' paths are another master's now.
    pub(crate) done: Arc<AtomicBool>,
}

/// Lets other masters take over from this one.
pub(crate) struct Giver {
    socket: UnixSocket,
    /// Second handles to our listeners, by name; they go with this.
    listeners: Vec<(String, OwnedFd)>,
    /// Opens those Unix sockets of front doors again at which nobody listens.
    reopen: Reopen,
    master: Arc<Master>,
}

/// Opens lost front doors again.
pub(crate) type Reopen = Box<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// How a talk with a new master ended.
enum Outcome {
    HandedOver,
    BrokenOff(TalkError),
}

/// Agents are to go over for as long as this lives, or for good once all is done.
struct MovingGuard<'a>(&'a Moving);

impl Moving {
    pub(crate) fn new() -> Self {
        Self {
            on: watch::Sender::new(false),
            done: Arc::default(),
        }
    }

    /// Whether another master has taken over.
    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// Tells whether agents are to go over, from now on.
    pub(crate) fn watch(&self) -> watch::Receiver<bool> {
        let mut on = self.on.subscribe();
        on.mark_changed();
        on
    }
}

impl Drop for MovingGuard<'_> {
    fn drop(&mut self) {
        if !self.0.done.load(Ordering::Acquire) {
            self.0.on.send_replace(false);
        }
    }
}

impl Giver {
    pub(crate) fn new(
        mut socket: UnixSocket,
        listeners: Vec<(String, OwnedFd)>,
        reopen: Reopen,
        master: Arc<Master>,
    ) -> Self {
        socket.may_be_replaced(Arc::clone(&master.moving.done));
        Self {
            socket,
            listeners,
            reopen,
            master,
        }
    }

    /// Gives way to new masters until this one drains, which it does when one has taken over.
    pub(crate) async fn run(mut self) {
        let drain = self.master.shutdown.drain.clone();
        let handed_over = tokio::select! {
            () = self.give_way() => true,
            () = drain.cancelled() => false,
        };
        if handed_over {
            tracing::info!("another master has taken over, this one drains");
            // Whoever connected to our sockets before they were replaced is still let in.
            tokio::time::sleep(STRAGGLERS).await;
            drain.cancel();
        }
    }

    async fn give_way(&mut self) {
        loop {
            match self.give_way_to(self.next().await).await {
                Outcome::HandedOver => return,
                Outcome::BrokenOff(error) => {
                    let error = chain(&error);
                    tracing::warn!(error, "take-over was broken off, this master goes on");
                    self.reclaim().await;
                }
            }
        }
    }

    async fn give_way_to(&self, stream: UnixStream) -> Outcome {
        let talk = self.talk_with(stream);
        pin!(talk);
        loop {
            tokio::select! {
                outcome = &mut talk => return outcome,
                other = self.next() => turn_away(other).await,
            }
        }
    }

    /// Gets back what a new master that died had already put its own in the place of.
    async fn reclaim(&mut self) {
        (self.reopen)().await;
        if self.socket.is_in_place() {
            return;
        }
        match meet(self.socket.path()).await {
            Ok(mut socket) => {
                socket.may_be_replaced(Arc::clone(&self.master.moving.done));
                self.socket = socket;
            }
            Err(error) => {
                let error = chain(&error);
                tracing::error!(error, "no master can take over from this one any more");
            }
        }
    }

    /// The next new master.
    async fn next(&self) -> UnixStream {
        loop {
            match self.socket.listener().accept().await {
                Ok((stream, _)) if is_of_our_user(&stream) => return stream,
                Ok(_) => tracing::warn!("somebody of another user wants to take over, refused"),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept masters that want to take over");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn talk_with(&self, stream: UnixStream) -> Outcome {
        match self.hand_over(Talk::new(stream)).await {
            Ok(()) => Outcome::HandedOver,
            Err(error) => Outcome::BrokenOff(error),
        }
    }

    async fn hand_over(&self, mut talk: Talk) -> Result<(), TalkError> {
        let hello = talk.hear(ANSWER_LIMIT).await?;
        let Some(pid) = pid_in(&hello) else {
            // It may be of a later version, which is to be told what it deals with.
            talk.say(&format!("{BUSY} speaks version {VERSION} only"))
                .await?;
            return Err(TalkError::Unexpected(hello));
        };
        tracing::info!(
            pid,
            nodes = self.nodes().len(),
            "another master wants to take over"
        );
        self.send_listeners(&talk).await?;
        expect(&mut talk, READY).await?;
        let moving = MovingGuard(&self.master.moving);
        moving.0.on.send_replace(true);
        loop {
            let line = talk.hear(SILENCE_LIMIT).await?;
            match line.as_str() {
                NODES => {
                    let nodes = self.nodes().join(" ");
                    talk.say(&format!("{NODES} {nodes}")).await?;
                }
                DOORS => break,
                _ => return Err(TalkError::Unexpected(line)),
            }
        }
        moving.0.done.store(true, Ordering::Release);
        // It has all it needs, whether it hears this or not.
        if let Err(error) = talk.say(BYE).await {
            tracing::debug!(
                error = chain(&error),
                "the new master did not hear the last word"
            );
        }
        Ok(())
    }

    async fn send_listeners(&self, talk: &Talk) -> Result<(), TalkError> {
        let mut line = HERE.to_owned();
        for (name, _) in &self.listeners {
            line.push(' ');
            line.push_str(name);
        }
        line.push('\n');
        let descriptors: Vec<BorrowedFd<'_>> =
            self.listeners.iter().map(|(_, fd)| fd.as_fd()).collect();
        send_descriptors(talk.stream(), line.as_bytes(), &descriptors)
            .await
            .map_err(TalkError::Io)
    }

    /// The nodes that have a session with this master.
    fn nodes(&self) -> Vec<String> {
        let nodes = self.master.registry.connected();
        nodes.iter().map(ToString::to_string).collect()
    }
}

async fn expect(talk: &mut Talk, word: &str) -> Result<(), TalkError> {
    let line = talk.hear(SILENCE_LIMIT).await?;
    if line == word {
        Ok(())
    } else {
        Err(TalkError::Unexpected(line))
    }
}

async fn turn_away(stream: UnixStream) {
    tracing::warn!("one more master wants to take over, refused");
    let mut talk = Talk::new(stream);
    let told = async {
        // Closed with its first line unread, the connection would be reset under our answer.
        talk.hear(TURNED_AWAY_WITHIN).await?;
        talk.say(&format!("{BUSY} another master is taking over already"))
            .await
    };
    if let Err(error) = told.await {
        tracing::debug!(error = chain(&error), "it is gone already");
    }
}

fn pid_in(hello: &str) -> Option<&str> {
    match hello.split(' ').collect::<Vec<_>>().as_slice() {
        [TAKEOVER, VERSION, pid] => Some(pid),
        _ => None,
    }
}

/// A new master that lives asks for our nodes several times a second. One that does not must not
/// keep agents from coming in here.
const SILENCE_LIMIT: Duration = Duration::from_secs(10);

/// A new master says its first line at once. The one that is taking over waits meanwhile.
const TURNED_AWAY_WITHIN: Duration = Duration::from_secs(1);

/// From finding a socket's file to standing in its queue a client needs microseconds.
const STRAGGLERS: Duration = Duration::from_secs(1);

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
