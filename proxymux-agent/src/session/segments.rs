//! Whether sessions with one master have to do with small segments.
//!
//! Owns what is remembered of it from session to session, in [`SegmentMemory`], a state machine
//! that is told what happened and asked what to do next; the caller owns the clock. It believes
//! that large segments are lost only when a session stands with small ones right after one with
//! large ones failed: a master that hangs or a dead link fails both.

use std::{fmt, time::Duration};

use proxymux_transport::{segments::Direction, socket::TcpSegments};
use tokio::time::Instant;

/// What is known of the path to one master.
#[derive(Debug, Default)]
pub(super) struct SegmentMemory {
    state: State,
    /// How often in a row large segments have been tried again and were lost again.
    trials: u32,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// Segments are as large as the kernel makes them.
    #[default]
    Large,
    /// Large ones may have been lost; whether small ones pass is the next thing to find out.
    Suspected(Loss),
    /// Small ones passed where large ones did not. Large ones are tried again at this time.
    Small { until: Instant },
}

/// Where large segments were lost, as far as can be told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Loss {
    ToMaster,
    FromMaster,
}

/// How large the segments of one session are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Segments {
    /// As large as the kernel makes them.
    Large,
    /// No larger than [`SMALL`].
    Small,
}

/// Something that is worth a line in the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum News {
    /// Large segments do not pass.
    Lost(Loss),
    /// They still do not.
    StillLost(Loss),
    /// They pass again, or do after all.
    Pass,
}

impl Segments {
    /// The most bytes of a segment, where that is not the kernel's to say.
    pub(super) fn largest(self) -> Option<u16> {
        match self {
            Self::Large => None,
            Self::Small => Some(SMALL),
        }
    }
}

impl SegmentMemory {
    /// The segments that the next session is to have.
    pub(super) fn next(&self, now: Instant) -> Segments {
        match self.state {
            State::Suspected(_) => Segments::Small,
            State::Small { until } if now < until => Segments::Small,
            State::Large | State::Small { .. } => Segments::Large,
        }
    }

    /// When a session with small segments is to make room for one with large ones.
    pub(super) fn small_until(&self) -> Option<Instant> {
        match self.state {
            State::Small { until } => Some(until),
            State::Large | State::Suspected(_) => None,
        }
    }

    /// Takes in that a session stands.
    pub(super) fn stands(&mut self, segments: Segments, now: Instant) -> Option<News> {
        match (self.state, segments) {
            (State::Suspected(loss), Segments::Small) => {
                let again = self.trials > 0;
                let wait = FIRST_TRIAL.saturating_mul(1 << self.trials.min(MAX_DOUBLINGS));
                self.trials = self.trials.saturating_add(1);
                self.state = State::Small {
                    until: now + wait.min(LAST_TRIAL),
                };
                Some(if again {
                    News::StillLost(loss)
                } else {
                    News::Lost(loss)
                })
            }
            (State::Small { .. }, Segments::Large) => {
                *self = Self::default();
                Some(News::Pass)
            }
            (State::Small { .. }, Segments::Small) => None,
            // What was suspected is refuted if large ones pass.
            (State::Suspected(_), Segments::Large) | (State::Large, _) => {
                *self = Self::default();
                None
            }
        }
    }

    /// Takes in that a session did not come to stand, and whether large segments may have been
    /// lost on the way.
    pub(super) fn failed(&mut self, segments: Segments, loss: Option<Loss>) {
        match (self.state, segments, loss) {
            (_, Segments::Large, Some(loss)) => self.state = State::Suspected(loss),
            // It was not the segments, or not only: nothing is known.
            (State::Suspected(_), Segments::Small, _) => self.state = State::Large,
            _ => {}
        }
    }

    /// Takes in that a session that stands seems to lose large segments.
    pub(super) fn stalled(&mut self, loss: Loss) {
        self.state = State::Suspected(loss);
    }

    /// Takes in that such a session moves again: it was not the segments, or they pass by now.
    pub(super) fn moves(&mut self) -> Option<News> {
        let believed = matches!(self.state, State::Small { .. });
        *self = Self::default();
        believed.then_some(News::Pass)
    }
}

impl Loss {
    /// Where that is lost whose answer has not come: the kernel knows whether it sends in vain.
    pub(super) fn of_unanswered(segments: TcpSegments) -> Self {
        if segments.timeouts > 0 {
            Self::ToMaster
        } else {
            Self::FromMaster
        }
    }
}

impl From<Direction> for Loss {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::ToPeer => Self::ToMaster,
            Direction::FromPeer => Self::FromMaster,
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ToMaster => "to the master",
            Self::FromMaster => "from the master",
        })
    }
}

/// What passes everywhere: every link that carries IPv6 carries packets of 1280 bytes (RFC 8200,
/// section 5), of which IP takes 40 and TCP 20.
pub(super) const SMALL: u16 = 1220;

/// Large segments are tried again soon at first: what was believed may have been a coincidence,
/// or the operator is just mending the path.
const FIRST_TRIAL: Duration = Duration::from_secs(60);

/// And at least once a day, for a path that is mended years later.
const LAST_TRIAL: Duration = Duration::from_secs(24 * 3600);

/// Enough to get from the first trial to the last.
const MAX_DOUBLINGS: u32 = 11;

#[cfg(test)]
mod tests {
    use super::*;

    const LOSS: Loss = Loss::FromMaster;

    fn after(seconds: u64) -> impl Fn(Instant) -> Instant {
        move |start| start + Duration::from_secs(seconds)
    }

    #[test]
    fn small_segments_that_stand_where_large_ones_failed_are_remembered() {
        let now = Instant::now();
        let mut memory = SegmentMemory::default();
        assert_eq!(memory.next(now), Segments::Large);

        memory.failed(Segments::Large, Some(LOSS));
        assert_eq!(memory.next(now), Segments::Small);
        assert_eq!(memory.stands(Segments::Small, now), Some(News::Lost(LOSS)));

        assert_eq!(memory.stands(Segments::Small, now), None);
        assert_eq!(memory.next(after(59)(now)), Segments::Small);
        // A master that is away meanwhile changes nothing.
        memory.failed(Segments::Small, None);
        assert_eq!(memory.next(after(59)(now)), Segments::Small);
        assert_eq!(memory.small_until(), Some(after(60)(now)));
    }

    #[test]
    fn what_small_segments_do_not_mend_was_not_the_segments() {
        let now = Instant::now();
        let mut memory = SegmentMemory::default();

        memory.failed(Segments::Large, Some(LOSS));
        memory.failed(Segments::Small, Some(LOSS));

        assert_eq!(memory.next(now), Segments::Large);
        assert_eq!(memory.stands(Segments::Large, now), None);
    }

    #[test]
    fn a_failure_of_another_kind_is_no_reason_for_small_segments() {
        let mut memory = SegmentMemory::default();
        memory.failed(Segments::Large, None);
        assert_eq!(memory.next(Instant::now()), Segments::Large);
    }

    #[test]
    fn large_segments_are_tried_again_and_ever_more_seldom() {
        let mut now = Instant::now();
        let mut memory = SegmentMemory::default();
        let mut waits = Vec::new();
        for _ in 0..20 {
            assert_eq!(memory.next(now), Segments::Large);
            memory.failed(Segments::Large, Some(LOSS));
            assert!(memory.stands(Segments::Small, now).is_some());
            let until = memory.small_until().unwrap();
            waits.push(until.duration_since(now).as_secs());
            now = until;
        }
        assert_eq!(waits[..4], [60, 120, 240, 480]);
        assert_eq!(waits[12..], [24 * 3600; 8]);

        assert_eq!(memory.stands(Segments::Large, now), Some(News::Pass));
        assert_eq!(memory.small_until(), None);
    }

    #[test]
    fn only_the_first_loss_is_news() {
        let now = Instant::now();
        let mut memory = SegmentMemory::default();
        for news in [News::Lost(LOSS), News::StillLost(LOSS)] {
            memory.failed(Segments::Large, Some(LOSS));
            assert_eq!(memory.stands(Segments::Small, now), Some(news));
        }
    }

    #[test]
    fn a_session_that_moves_again_takes_everything_back() {
        let now = Instant::now();
        let mut memory = SegmentMemory::default();

        memory.stalled(LOSS);
        assert_eq!(memory.next(now), Segments::Small);
        assert_eq!(memory.moves(), None);
        assert_eq!(memory.stands(Segments::Small, now), None);

        memory.stalled(LOSS);
        assert!(memory.stands(Segments::Small, now).is_some());
        assert_eq!(memory.moves(), Some(News::Pass));
        assert_eq!(memory.next(now), Segments::Large);
    }
}
