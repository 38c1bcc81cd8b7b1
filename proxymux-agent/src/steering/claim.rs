//! Which agent's programs are on the devices of a network namespace: one agent's only.
//!
//! Two agents would take each other's filter for what a killed one left, and each put its own back
//! when the other has removed it. So whoever attaches holds a name among the abstract Unix sockets,
//! which belong to the namespace and go with their process, however that ends. Nothing is ever sent.
//! Anybody in the namespace can hold a name: one that another user holds is not respected.

use std::{
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, UnixAddr, UnixCredentials, connect, getsockopt, socket,
        sockopt::PeerCredentials,
    },
    unistd::geteuid,
};
use tokio::time::{Instant, sleep};

/// The claim of this agent, until it is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    /// Nothing where the name could not be had, and no agent has it.
    #[cfg_attr(not(test), expect(dead_code, reason = "it is held, and never used"))]
    held: Option<UnixListener>,
}

/// Another agent has attached its programs here, and lives.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "another agent, process {0}, has its programs in this network namespace; end it first: two \
     would remove each other's"
)]
pub(super) struct Claimed(i32);

impl Claim {
    /// Takes it, or says who has it. One that has just begun to drain is about to give it up.
    pub(super) async fn take() -> Result<Self, Claimed> {
        Self::take_name(NAME, GIVEN_UP_WITHIN).await
    }

    async fn take_name(name: &[u8], limit: Duration) -> Result<Self, Claimed> {
        let deadline = Instant::now() + limit;
        loop {
            let reason = match try_to_take(name) {
                Ok(held) => return Ok(Self { held: Some(held) }),
                Err(Refusal::Agent(_) | Refusal::Silent) if Instant::now() < deadline => {
                    sleep(GIVEN_UP_WITHIN / 40).await;
                    continue;
                }
                Err(Refusal::Agent(process)) => return Err(Claimed(process)),
                Err(Refusal::Silent) => "nobody listens at the name that agents take".to_owned(),
                Err(Refusal::Other(reason)) => reason,
            };
            tracing::warn!(
                reason,
                "whether another agent has its programs here is not known"
            );
            return Ok(Self { held: None });
        }
    }
}

/// Why the name cannot be had.
enum Refusal {
    /// The process of an agent has it.
    Agent(i32),
    /// Somebody has it who does not listen: an agent that is just coming or going, or a stranger.
    Silent,
    Other(String),
}

fn try_to_take(name: &[u8]) -> Result<UnixListener, Refusal> {
    let address = SocketAddr::from_abstract_name(name);
    match address.and_then(|address| UnixListener::bind_addr(&address)) {
        Ok(held) => Ok(held),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(match holder(name) {
            Ok(holder) if holder.uid() == geteuid().as_raw() => Refusal::Agent(holder.pid()),
            Ok(holder) => Refusal::Other(format!(
                "process {} of user {} has the name that agents take",
                holder.pid(),
                holder.uid()
            )),
            Err(Errno::ECONNREFUSED) => Refusal::Silent,
            Err(error) => Refusal::Other(format!("who has the name is not told: {error}")),
        }),
        Err(error) => Err(Refusal::Other(error.to_string())),
    }
}

/// Who listens there.
fn holder(name: &[u8]) -> nix::Result<UnixCredentials> {
    // A queue that is full must not make us wait.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let asking: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(asking.as_raw_fd(), &UnixAddr::new_abstract(name)?)?;
    getsockopt(&asking, PeerCredentials)
}

const NAME: &[u8] = b"proxymux-agent.steering";

/// An agent takes its programs off as soon as it is told to end.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use nix::sys::socket::bind;

    use super::*;

    /// A name of this test's own.
    fn name(of: &str) -> Vec<u8> {
        format!("proxymux-agent.test.{of}.{}", std::process::id()).into_bytes()
    }

    #[tokio::test]
    async fn the_second_agent_learns_who_the_first_is_and_may_come_after_it() {
        let name = name("second");
        let first = Claim::take_name(&name, Duration::ZERO).await.unwrap();

        let refused = Claim::take_name(&name, Duration::ZERO).await.unwrap_err();

        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(refused, Claimed(own));
        assert!(refused.to_string().contains(&format!("process {own},")));
        drop(first);
        let next = Claim::take_name(&name, Duration::ZERO).await.unwrap();
        assert!(next.held.is_some());
    }

    #[tokio::test]
    async fn one_that_is_about_to_end_is_waited_for() {
        let name = name("ending");
        let first = Claim::take_name(&name, Duration::ZERO).await.unwrap();
        let ends = tokio::spawn(async move {
            sleep(Duration::from_millis(100)).await;
            drop(first);
        });

        let next = Claim::take_name(&name, Duration::from_secs(20)).await;

        assert!(next.is_ok_and(|next| next.held.is_some()));
        ends.await.unwrap();
    }

    #[tokio::test]
    async fn a_name_at_which_nobody_listens_stops_no_agent() {
        let name = name("stranger");
        let flags = SockFlag::SOCK_CLOEXEC;
        let stranger = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        let address = UnixAddr::new_abstract(&name).unwrap();
        bind(stranger.as_raw_fd(), &address).unwrap();

        let claim = Claim::take_name(&name, Duration::ZERO).await.unwrap();

        assert!(claim.held.is_none());
    }
}
