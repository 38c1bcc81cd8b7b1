//! A new master takes over from one that runs on the same host, and no request fails for it.
//!
//! Owns what the two say to each other at the socket of `takeover-socket`, and the order of it.
//! The running one's side is [`Giver`] (`giving`), the new one's is [`Taker`] (`taking`); `app`
//! calls both.

// The order of things:
//
// 1. The new one gets the running one's TCP listeners, and accepts agents from then on.
// 2. The running one accepts no more agents, and asks each of its own to open another session.
//    Its sessions stay as they are, so that its front doors go on serving meanwhile.
// 3. The new one waits until the agents are back, and puts its sockets over the old paths.
// 4. The running one drains, as if it had been told to end.
//
// Whoever of the two dies before 3 leaves the other one serving.

mod giving;
mod taking;
mod words;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use proxymux_transport::unix_socket::{UnixBindError, UnixSocket};

pub(crate) use self::{
    giving::{Giver, Moving, Reopen},
    taking::{Taker, begin},
    words::{AGENTS, listener_name},
};

/// The socket at which the next master comes.
///
/// # Errors
///
/// When another master is there, among others.
pub(crate) async fn meet(at: &Path) -> Result<UnixSocket, UnixBindError> {
    UnixSocket::bind(at, MEETING_MODE, MEETING).await
}

/// As [`meet`], in the place of a master that lives.
///
/// # Errors
///
/// When that cannot be.
pub(crate) async fn meet_instead(at: &Path) -> Result<UnixSocket, UnixBindError> {
    UnixSocket::bind_over(at, MEETING_MODE, MEETING).await
}

/// Why a master did not take over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeoverError {
    #[error("takeover-socket")]
    Socket(#[source] UnixBindError),
    #[error("cannot ask the running master at {}", .at.display())]
    Unreachable {
        at: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the running master refuses: {0}")]
    Refused(String),
    #[error("the running master has given up on this one, which has not gone on in time")]
    GivenUp,
    #[error(
        "only {back} of {expected} agents have come within {} s, among the missing: {missing}; \
         the running master goes on", .limit.as_secs()
    )]
    AgentsMissing {
        back: usize,
        expected: usize,
        limit: Duration,
        missing: String,
    },
    #[error("told to end before it had taken over")]
    ToldToEnd,
    #[error("talk with the running master failed")]
    Talk(#[source] words::TalkError),
}

/// What the socket is for, in errors.
const MEETING: &str = "take-overs";

/// Whoever may take over gets everything: nobody but our own user.
const MEETING_MODE: u32 = 0o600;

#[cfg(test)]
mod tests;
