//! Whether the path under a running session loses large segments and carries small ones.
//!
//! That happens where a link has a smaller MTU than both ends and the ICMP messages that should
//! say so are dropped. TCP then waits for ever for a segment that never arrives, while everything
//! small still passes. Owns the signs of it, in [`SegmentWatch`]; the caller owns the clock and
//! calls when [`crate::liveness::Liveness::next_tick`] says. What follows from a sign is the
//! agent's business: only another session with small segments can tell it from a peer that hangs.

use std::time::Duration;

use tokio::time::Instant;

use crate::socket::{TcpProgress, TcpSegments};

/// The direction in which large segments seem to be lost.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// What we send does not arrive.
    ToPeer,
    /// What the peer sends does not arrive.
    FromPeer,
}

/// What a look at the connection says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sign {
    /// Large segments seem to be lost this way. Said once.
    Stalled(Direction),
    /// What had stalled moves again. Said once.
    Moves,
}

/// One look at a connection; its counters only ever grow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Look {
    /// Bytes received from the peer.
    pub received: u64,
    /// What the kernel says about our own bytes.
    pub progress: TcpProgress,
    /// What the kernel says about segments.
    pub segments: TcpSegments,
}

/// Looks for the signs on one session.
#[derive(Debug)]
pub struct SegmentWatch {
    /// Since when nothing of ours was acknowledged that the kernel has sent again, and what had
    /// been received by then.
    unacknowledged: Option<(Instant, Look)>,
    /// Since when nothing was received, and the look at that time.
    unheard: (Instant, Look),
    last: Look,
    stalled: Option<Direction>,
    told: bool,
}

impl SegmentWatch {
    /// Begins to watch.
    #[must_use]
    pub fn new(now: Instant, look: Look) -> Self {
        Self {
            unacknowledged: None,
            unheard: (now, look),
            last: look,
            stalled: None,
            told: false,
        }
    }

    /// Takes another look.
    pub fn tick(&mut self, now: Instant, look: Look) -> Option<Sign> {
        let acknowledged = look.progress.acked != self.last.progress.acked;
        let heard = look.received != self.last.received;
        self.last = look;
        if acknowledged || !look.progress.outstanding || look.segments.timeouts == 0 {
            self.unacknowledged = None;
        } else if self.unacknowledged.is_none() {
            self.unacknowledged = Some((now, look));
        }
        if heard {
            self.unheard = (now, look);
        }
        match self.stalled {
            None if self.told => None,
            None => {
                self.stalled = self.find(now);
                self.told = self.stalled.is_some();
                self.stalled.map(Sign::Stalled)
            }
            Some(direction) => {
                let moves = match direction {
                    Direction::ToPeer => acknowledged,
                    Direction::FromPeer => heard,
                };
                moves.then(|| {
                    self.stalled = None;
                    Sign::Moves
                })
            }
        }
    }

    fn find(&self, now: Instant) -> Option<Direction> {
        if self.is_lost_on_the_way_to_the_peer(now) {
            Some(Direction::ToPeer)
        } else if self.is_lost_on_the_way_from_the_peer(now) {
            Some(Direction::FromPeer)
        } else {
            None
        }
    }

    /// The kernel sends again and again in vain, and meanwhile the peer is heard: its pings are
    /// small. On a link that is dead nothing is heard, on one that is slow nothing is in vain.
    fn is_lost_on_the_way_to_the_peer(&self, now: Instant) -> bool {
        self.unacknowledged.is_some_and(|(since, before)| {
            now.saturating_duration_since(since) >= IN_VAIN_FOR
                && self.last.segments.timeouts >= IN_VAIN
                && self.last.received != before.received
        })
    }

    /// Nothing is heard, though the peer has had a ping to answer and its kernel has acknowledged
    /// it: small segments pass both ways. On a link that is dead the kernel sends in vain, on one
    /// that is slow something is always heard.
    fn is_lost_on_the_way_from_the_peer(&self, now: Instant) -> bool {
        let (since, before) = self.unheard;
        now.saturating_duration_since(since) >= UNHEARD_FOR
            && self.last.progress.acked != before.progress.acked
            && self.last.segments.timeouts == 0
    }
}

/// Long enough for a retransmission or two, and for a ping of the peer, to have arrived.
const IN_VAIN_FOR: Duration = Duration::from_secs(3);

/// With this many retransmissions lost in a row even a path that loses a third of all packets
/// would have let one through, 99 times out of 100.
const IN_VAIN: u8 = 4;

/// More than the time between two pings, so that at least one was sent meanwhile, and little
/// enough to leave time for another session before the peer calls this one dead.
const UNHEARD_FOR: Duration = Duration::from_secs(7);

#[cfg(test)]
mod tests;
