//! Whether the peer of a session that stands would still be let in.
//!
//! Owns the two reasons for which it would not: its certificate has expired, or no CA in force
//! vouches for it any more. Leaves what follows to the daemons, which replace such a session and
//! let its streams finish. Read [`PeerTrust::check`].
//!
//! A wall clock that jumps must not end sessions. So a certificate has expired only when the
//! clock says so *and* as much time has passed since the handshake as the certificate then had
//! left; and a chain is verified under other CAs as of the moment at which it was verified first.

use std::time::{Duration, SystemTime};

use rustls::pki_types::ServerName;
use tokio::time::Instant;

use crate::{
    certificate::{Validity, utc},
    clock::WallClock,
    credentials::{ContentId, Roots},
    tls::{Peer, TlsFault, verify_agent_chain, verify_master_chain},
};

/// What is known of a session's peer from its handshake.
#[derive(Debug)]
pub struct PeerTrust {
    peer: Peer,
    /// The name that a master had to have; `None` for an agent.
    server_name: Option<ServerName<'static>>,
    clock: WallClock,
    verified_at: SystemTime,
    /// The CAs that vouched for it last.
    verified_under: ContentId,
    /// When to ask the wall clock whether it has expired: first when that is so if the clock was
    /// right at the handshake. `None` is beyond all sessions.
    next_check: Option<Instant>,
}

/// Why a peer would not be let in any more.
#[derive(Debug, thiserror::Error)]
pub enum TrustLost {
    /// Its certificate is out of date.
    #[error("certificate `{subject}` expired at {}", utc(*.not_after))]
    Expired {
        /// Whose certificate.
        subject: String,
        /// When.
        not_after: SystemTime,
    },
    /// Its certificate is not believed under the CAs that are in force now.
    #[error("not trusted under the CAs now in force")]
    Untrusted(#[source] TlsFault),
}

impl PeerTrust {
    /// A master that has just been verified under `roots` to be `server_name`.
    #[must_use]
    pub fn of_master(
        peer: Peer,
        server_name: ServerName<'static>,
        roots: &Roots,
        clock: WallClock,
    ) -> Self {
        Self::new(peer, Some(server_name), roots, clock)
    }

    /// An agent that has just been verified under `roots`.
    #[must_use]
    pub fn of_agent(peer: Peer, roots: &Roots, clock: WallClock) -> Self {
        Self::new(peer, None, roots, clock)
    }

    fn new(
        peer: Peer,
        server_name: Option<ServerName<'static>>,
        roots: &Roots,
        clock: WallClock,
    ) -> Self {
        let verified_at = clock.now();
        let left = match peer.certificate.validity_at(verified_at) {
            Validity::Current { remaining } => remaining,
            // The handshake read a clock a moment earlier, and found it good.
            Validity::NotYetValid { .. } | Validity::Expired { .. } => Duration::ZERO,
        };
        Self {
            peer,
            server_name,
            clock,
            verified_at,
            verified_under: roots.content(),
            next_check: Instant::now().checked_add(left),
        }
    }

    /// The serial number of the peer's certificate, for logs.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.peer.certificate.serial
    }

    /// When the peer's certificate expires.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.peer.certificate.not_after
    }

    /// Looks at the dates again, and at the chain if `roots` are others than before.
    ///
    /// # Errors
    ///
    /// Says why the peer would be refused today.
    pub fn check(&mut self, roots: &Roots) -> Result<(), TrustLost> {
        if self.has_expired() {
            return Err(TrustLost::Expired {
                subject: self.peer.certificate.subject.clone(),
                not_after: self.peer.certificate.not_after,
            });
        }
        if self.verified_under == roots.content() {
            return Ok(());
        }
        let (chain, at) = (&self.peer.chain, self.verified_at);
        match &self.server_name {
            Some(name) => verify_master_chain(chain, name, roots, at),
            None => verify_agent_chain(chain, roots, at),
        }
        .map_err(TrustLost::Untrusted)?;
        self.verified_under = roots.content();
        Ok(())
    }

    /// When [`Self::check`] is to be called though no CA has changed; `None` is never.
    #[must_use]
    pub fn next_check(&self) -> Option<Instant> {
        self.next_check
    }

    fn has_expired(&mut self) -> bool {
        let now = Instant::now();
        if self.next_check.is_none_or(|at| now < at) {
            return false;
        }
        self.next_check = now.checked_add(LOOK_AGAIN);
        self.clock.now() > self.peer.certificate.not_after
    }
}

/// How soon a wall clock is asked again that is behind what has passed since the handshake.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
