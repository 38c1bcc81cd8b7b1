//! Drift: connections that the program assigned and that never came to the agent.
//!
//! Owns the comparison over time and its thresholds; where the two counts come from is the
//! report's. The kernel says "assigned" before netfilter and the handshake have had their say, so
//! that what is undone afterwards shows only here.
//!
//! The two counts never agree exactly, and a difference alone means little:
//! * A connection that is under way is assigned and not yet accepted.
//! * A SYN that a port scan leaves behind, or that is repeated because its answer was lost, is
//!   assigned for nothing. With `net.ipv4.tcp_syncookies=2` nothing remembers a SYN, so that each
//!   repetition counts, and the ACK is assigned once more (that is `followed`, and not counted
//!   here): half of them accepted is as good as all.
//!
//! So drift is said only when less than half of what was assigned is accepted, with some room
//! for what is under way: within [`WINDOW`], or, where connections are rare, since the last one
//! that was accepted. It ends when enough is accepted again, not when it is quiet.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// How often the counts are to be compared.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How far back is looked.
pub(crate) const WINDOW: Duration = Duration::from_secs(30);

/// So many assignments may be under way, repeated or a scan's.
const ROOM: u64 = 5;

/// What to look at, in the order of how often it is the cause.
pub(crate) const CAUSES: &str = "likely causes: NAT or a redirect in PREROUTING; an INPUT rule \
     that drops the kubelet's port; the NIC is a bridge's port and bridge-nf-call-iptables is 1; \
     rp_filter is 1 and answers leave by another device; SYNs that are repeated because the answers \
     are lost, the more so with tcp_syncookies=2";

/// Both counts at one moment.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Counts {
    /// By the program, in [`proxymux_common::Verdict::Assigned`].
    pub(crate) assigned: u64,
    /// By the steered listeners.
    pub(crate) accepted: u64,
}

/// What is to be told when it begins or ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Change {
    /// So much was assigned and accepted in the time looked at.
    Began(Counts),
    /// Assigned connections are accepted again.
    Ended,
}

/// Compares the counts again and again.
#[derive(Debug, Default)]
pub(crate) struct Drift {
    looks: VecDeque<(Instant, Counts)>,
    /// The counts when a look last saw that one more had been accepted.
    last_accepted: Counts,
    drifting: Option<Counts>,
}

impl Drift {
    /// What was assigned and accepted when drift was last seen, while there is any.
    pub(crate) fn drifting(&self) -> Option<Counts> {
        self.drifting
    }

    /// Takes the counts of now; tells what has changed by them.
    pub(crate) fn look(&mut self, now: Instant, counts: Counts) -> Option<Change> {
        let last = self
            .looks
            .back()
            .map_or(Counts::default(), |(_, counts)| *counts);
        if counts.assigned < last.assigned || counts.accepted < last.accepted {
            // The maps are new ones.
            *self = Self {
                last_accepted: counts,
                ..Self::default()
            };
        }
        // One that is as old as the window stays: what is compared is the time since then.
        while self.looks.get(1).is_some_and(|(at, _)| now - *at >= WINDOW) {
            self.looks.pop_front();
        }
        self.looks.push_back((now, counts));
        let oldest = self.looks.front().map_or(counts, |(_, counts)| *counts);
        let within = counts.since(oldest);
        if counts.accepted > self.last_accepted.accepted {
            self.last_accepted = counts;
        }
        let silent = counts.since(self.last_accepted);
        let seen = [within, silent].into_iter().find(|grown| grown.drift());
        let before = self.drifting;
        match (before, seen) {
            (None, Some(grown)) => {
                self.drifting = Some(grown);
                Some(Change::Began(grown))
            }
            (Some(_), Some(grown)) => {
                self.drifting = Some(grown);
                None
            }
            (Some(_), None) if within.accepted > 0 => {
                self.drifting = None;
                Some(Change::Ended)
            }
            (_, None) => None,
        }
    }
}

impl Counts {
    fn since(self, earlier: Self) -> Self {
        Self {
            assigned: self.assigned.saturating_sub(earlier.assigned),
            accepted: self.accepted.saturating_sub(earlier.accepted),
        }
    }

    /// Whether fewer than half were accepted, and not only because some are under way.
    fn drift(self) -> bool {
        self.assigned >= self.accepted.saturating_mul(2).saturating_add(ROOM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks every five seconds at these counts; what each look tells.
    fn looks(drift: &mut Drift, from: Instant, counts: &[(u64, u64)]) -> Vec<Option<Change>> {
        let mut at = from;
        let seen = counts.iter().map(|&(assigned, accepted)| {
            at += LOOK_EVERY;
            drift.look(at, Counts { assigned, accepted })
        });
        seen.collect()
    }

    fn told(counts: &[(u64, u64)]) -> Vec<Option<Change>> {
        let mut all = vec![(0, 0)];
        all.extend_from_slice(counts);
        let told = looks(&mut Drift::default(), Instant::now(), &all);
        told.into_iter().skip(1).collect()
    }

    fn began(assigned: u64, accepted: u64) -> Option<Change> {
        Some(Change::Began(Counts { assigned, accepted }))
    }

    #[test]
    fn five_that_never_arrive_are_drift_and_told_of_once() {
        assert_eq!(told(&[(4, 0), (5, 0), (9, 0)]), [None, began(5, 0), None]);
    }

    #[test]
    fn connections_under_way_are_no_drift() {
        assert_eq!(told(&[(4, 0), (8, 4), (12, 8), (12, 12)]), [None; 4]);
    }

    #[test]
    fn twice_as_many_assignments_are_repeated_syns_and_no_drift() {
        assert_eq!(told(&[(10, 5), (23, 11), (1000, 499)]), [None; 3]);
    }

    #[test]
    fn fewer_than_half_that_arrive_are_drift() {
        assert_eq!(told(&[(20, 20), (60, 30)]), [None, None]);
        assert_eq!(told(&[(20, 5)]), [began(20, 5)]);
    }

    #[test]
    fn rare_connections_that_never_arrive_are_drift_in_the_end() {
        // One a minute: never five within the window.
        let slow: Vec<_> = (1..=60).map(|look| (look / 12, 0)).collect();

        let told = told(&slow);

        assert_eq!(told.iter().flatten().count(), 1, "{told:?}");
        assert_eq!(told.last(), Some(&began(5, 0)));
    }

    #[test]
    fn a_burst_long_ago_does_not_hide_what_is_lost_now() {
        let told = told(&[(1000, 1000), (1002, 1000), (1006, 1000)]);

        assert_eq!(told, [None, None, began(6, 0)]);
    }

    #[test]
    fn drift_lasts_through_silence_and_ends_when_connections_arrive() {
        let mut drift = Drift::default();
        let start = Instant::now();
        let told = looks(&mut drift, start, &[(0, 0), (6, 0), (6, 0)]);
        assert_eq!(told, [None, began(6, 0), None]);

        let quiet = start + Duration::from_secs(3600);
        let told = looks(&mut drift, quiet, &[(6, 0), (8, 2)]);

        assert_eq!(told, [None, Some(Change::Ended)]);
        assert_eq!(drift.drifting(), None);
    }

    #[test]
    fn new_maps_begin_a_new_comparison() {
        let told = told(&[(500, 500), (2, 500), (4, 502), (8, 502)]);

        assert_eq!(told, [None; 4]);
    }
}
