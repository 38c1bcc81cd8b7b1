//! The front door on a Unix socket.
//!
//! Owns who its clients are, as far as the kernel tells, and how one is turned away.
//! Leaves the socket's file to `proxymux_transport::unix_socket`, accepting to `accept` and
//! clients to `serve`.

use std::{
    io,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

use proxymux_transport::unix_socket::{UnixBindError, UnixSocket};
use tokio::{
    net::{UnixStream, unix::UCred},
    sync::OwnedSemaphorePermit,
    time::Instant,
};

use super::{Arrival, FrontDoors, Gateway, Refusal, accept::Door, serve::serve};

/// A front door on a Unix socket. Dropping it removes the socket's file.
#[derive(Debug)]
pub(crate) struct UnixDoor(UnixSocket);

impl UnixDoor {
    /// Listens at `path`, with these permission bits on the socket's file.
    ///
    /// # Errors
    ///
    /// Says what is in the way, and leaves it there.
    pub(crate) async fn bind(path: &Path, mode: u32) -> Result<Self, UnixBindError> {
        UnixSocket::bind(path, mode, PURPOSE).await.map(Self)
    }

    /// Listens at `path` in the place of another master.
    ///
    /// # Errors
    ///
    /// As [`UnixDoor::bind`].
    pub(crate) async fn bind_over(path: &Path, mode: u32) -> Result<Self, UnixBindError> {
        UnixSocket::bind_over(path, mode, PURPOSE).await.map(Self)
    }

    /// Says that another master's socket in this one's place is in order once `replaced` is set.
    pub(crate) fn may_be_replaced(&mut self, replaced: Arc<AtomicBool>) {
        self.0.may_be_replaced(replaced);
    }
}

impl Door for UnixDoor {
    type Incoming = UnixStream;

    fn name(&self) -> String {
        format!("unix:{}", self.0.path().display())
    }

    async fn accept(&self) -> io::Result<UnixStream> {
        self.0
            .listener()
            .accept()
            .await
            .map(|(stream, _unnamed)| stream)
    }

    fn turn_away(&self, incoming: UnixStream, refusal: &Refusal) {
        // A new connection's buffer is empty and takes the answer at once. The client reads it
        // even though we close without having read the request: what was queued for it stays.
        if let Err(error) = incoming.try_write(refusal.answer().as_bytes()) {
            tracing::debug!(%error, "client left before its answer");
        }
    }

    fn serve<G: Gateway>(
        &self,
        incoming: UnixStream,
        doors: FrontDoors<G>,
        room: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + Send + 'static + use<G> {
        let arrival = Arrival {
            door: "unix",
            peer: describe(incoming.peer_cred()),
            client_name: None,
            accepted_at: Instant::now(),
        };
        async move {
            serve(incoming.into(), arrival, doors.limits, doors.gateway).await;
            drop(room);
        }
    }
}

/// Who is at the other end of a Unix socket, for logs.
fn describe(credentials: io::Result<UCred>) -> String {
    match credentials {
        // A process of another PID namespace has no number here.
        Ok(cred) => match cred.pid() {
            Some(pid) if pid > 0 => format!("unix:pid={pid},uid={}", cred.uid()),
            _ => format!("unix:uid={}", cred.uid()),
        },
        Err(_) => "unix".to_owned(),
    }
}

/// What the socket is for, in errors.
const PURPOSE: &str = "a front door";

#[cfg(test)]
mod tests;
