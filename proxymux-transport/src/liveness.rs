//! Whether a session's peer is alive.
//!
//! Owns the rule and its numbers; the caller owns the clock, and calls [`Liveness::tick`] when
//! [`Liveness::next_tick`] says, with what it knows of the connection. Pings also measure the
//! round trip. A session that is idle wakes its process as seldom as can be.

use std::time::Duration;

use tokio::time::Instant;

use crate::socket::TcpProgress;

/// The state of one session's liveness.
#[derive(Debug)]
pub struct Liveness {
    last_life: Instant,
    last_tick: Option<Instant>,
    bytes_received: u64,
    /// As of the last tick.
    progress: Option<TcpProgress>,
    last_ping: Option<Ping>,
    next_number: u64,
    rtt: Option<Duration>,
}

/// What a tick found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Nothing to do.
    Alive,
    /// Send a ping with this number.
    Ping(u64),
    /// Neither a byte nor an acknowledgement for so long: end the session.
    Dead(Duration),
}

#[derive(Clone, Copy, Debug)]
struct Ping {
    number: u64,
    sent: Instant,
    answered: bool,
}

impl Liveness {
    /// A session that has just been established.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            last_life: now,
            last_tick: None,
            bytes_received: 0,
            progress: None,
            last_ping: None,
            next_number: 0,
            rtt: None,
        }
    }

    /// Looks at the connection's counters, which only ever grow.
    ///
    /// Any byte received is life. So is progress of what was already waiting at the last tick,
    /// where the kernel tells: on a slow link under load a ping and its answer queue behind bulk
    /// data. Without such a load acknowledgements say nothing: the kernel of a peer that is
    /// stopped goes on acknowledging our pings.
    ///
    /// When the last byte came is taken from the kernel, where it tells: the last tick may be long
    /// ago. It is never put before that tick, since what the kernel has had for long may have
    /// been taken from it only now.
    pub fn tick(&mut self, now: Instant, received: u64, progress: Option<TcpProgress>) -> Verdict {
        let advances = match (self.progress, progress) {
            (Some(before), Some(after)) => before.outstanding && after.acked != before.acked,
            _ => false,
        };
        if advances {
            self.last_life = now;
        } else if received != self.bytes_received {
            let unheard = progress.map_or(Duration::ZERO, |progress| progress.unheard);
            let since_tick = now.saturating_duration_since(self.last_tick.unwrap_or(now));
            self.last_life = self.last_life.max(now - unheard.min(since_tick));
        }
        self.last_tick = Some(now);
        self.bytes_received = received;
        self.progress = progress;
        let silent = now.saturating_duration_since(self.last_life);
        if silent >= DEAD_AFTER {
            return Verdict::Dead(silent);
        }
        let due = self
            .last_ping
            .is_none_or(|ping| now.saturating_duration_since(ping.sent) >= PING_EVERY);
        if due {
            Verdict::Ping(self.ping(now))
        } else {
            Verdict::Alive
        }
    }

    /// When [`Liveness::tick`] is to be called next: at once at first, and seldom while all is
    /// well. An answer that comes in between moves it.
    #[must_use]
    pub fn next_tick(&self, now: Instant) -> Instant {
        let Some(last) = self.last_tick else {
            return now;
        };
        let waits = self.progress.is_none_or(|progress| progress.outstanding)
            || self.last_ping.is_none_or(|ping| !ping.answered);
        last + if waits { TICK } else { IDLE_TICK }
    }

    /// The number for a ping that is sent now.
    pub fn ping(&mut self, now: Instant) -> u64 {
        let number = self.next_number;
        self.next_number = self.next_number.wrapping_add(1);
        self.last_ping = Some(Ping {
            number,
            sent: now,
            answered: false,
        });
        number
    }

    /// Takes in an answer; the round trip if it is the answer to the last ping.
    pub fn pong(&mut self, number: u64, now: Instant) -> Option<Duration> {
        let ping = self
            .last_ping
            .as_mut()
            .filter(|p| p.number == number && !p.answered)?;
        ping.answered = true;
        self.rtt = Some(now.saturating_duration_since(ping.sent));
        self.rtt
    }

    /// The last round trip measured.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }
}

/// How often [`Liveness::tick`] is to be called while an answer or an acknowledgement is waited
/// for: a dead peer is noticed within [`DEAD_AFTER`] and one tick.
pub const TICK: Duration = Duration::from_secs(1);

/// The same while nothing is waited for, and the kernel will say when the last byte came. Each
/// tick is two wake-ups of the process, since a timer this long is approached in two steps.
const IDLE_TICK: Duration = Duration::from_millis(2_500);

/// How often a ping is sent.
pub const PING_EVERY: Duration = Duration::from_secs(5);

/// Two pings and their answers may be lost on the way; a third is a dead peer.
pub const DEAD_AFTER: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    /// Ticks once a second, with counters by second; the first verdict of death and when.
    fn first_death(
        seconds: u64,
        counters: impl Fn(u64) -> (u64, Option<TcpProgress>),
    ) -> Option<(u64, Duration)> {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        (1..=seconds).find_map(|second| {
            let (received, progress) = counters(second);
            match liveness.tick(start + Duration::from_secs(second), received, progress) {
                Verdict::Dead(silent) => Some((second, silent)),
                _ => None,
            }
        })
    }

    fn loaded(acked: u64) -> Option<TcpProgress> {
        Some(TcpProgress {
            acked,
            outstanding: true,
            unheard: Duration::ZERO,
        })
    }

    fn quiet(acked: u64) -> Option<TcpProgress> {
        Some(TcpProgress {
            acked,
            outstanding: false,
            unheard: Duration::ZERO,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_is_dead_after_fifteen_seconds() {
        let silent_from_ten = |second: u64| (second.min(10), loaded(7));
        assert_eq!(
            first_death(60, silent_from_ten),
            Some((25, Duration::from_secs(15)))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn any_byte_is_life() {
        assert_eq!(first_death(600, |second| (second / 14, None)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_a_load_slowly_is_alive() {
        assert_eq!(first_death(600, |second| (0, loaded(second / 14))), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopped_peer_whose_kernel_acknowledges_pings_is_dead() {
        assert_eq!(first_death(60, |second| (0, quiet(second))).unwrap().0, 15);
    }

    #[tokio::test(start_paused = true)]
    async fn without_the_kernels_word_only_bytes_count() {
        assert_eq!(first_death(60, |_| (0, None)).unwrap().0, 15);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_session_is_looked_at_twice_for_each_ping_and_a_silent_one_every_second() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        let mut now = start;
        let mut ticks = Vec::new();
        // Answered up to and with the third ping.
        loop {
            now = liveness.next_tick(now);
            ticks.push((now - start).as_millis());
            let answers = now - start <= PING_EVERY * 2;
            let received = (now - start).min(PING_EVERY * 2).as_secs();
            match liveness.tick(now, received, quiet(0)) {
                Verdict::Ping(number) if answers => drop(liveness.pong(number, now)),
                Verdict::Dead(silent) => break assert!(silent >= DEAD_AFTER),
                _ => {}
            }
        }
        assert_eq!(ticks.get(..5), Some(&[0, 2_500, 5_000, 7_500, 10_000][..]));
        assert_eq!(ticks.get(5..8), Some(&[12_500, 15_000, 16_000][..]));
        assert_eq!(ticks.last(), Some(&25_000));
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_byte_counts_from_when_it_came_and_not_from_when_it_was_looked_for() {
        let start = Instant::now();
        let second = |second: u64| start + Duration::from_secs(second);
        let with_unheard = |seconds| {
            quiet(0).map(|progress| TcpProgress {
                unheard: Duration::from_secs(seconds),
                ..progress
            })
        };
        let mut liveness = Liveness::new(start);
        liveness.tick(second(1), 1, with_unheard(0));
        // It came at 3, and then nothing more.
        liveness.tick(second(5), 2, with_unheard(2));

        let verdicts = [17, 18].map(|at| liveness.tick(second(at), 2, with_unheard(at - 3)));

        assert!(!matches!(verdicts[0], Verdict::Dead(_)), "{verdicts:?}");
        assert_eq!(verdicts[1], Verdict::Dead(DEAD_AFTER));
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_that_the_kernel_has_had_for_long_counts_from_the_last_tick() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        liveness.tick(start + Duration::from_secs(14), 0, quiet(0));
        let late = quiet(0).map(|progress| TcpProgress {
            unheard: Duration::from_secs(40),
            ..progress
        });

        let verdict = liveness.tick(start + Duration::from_secs(15), 1, late);

        assert!(!matches!(verdict, Verdict::Dead(_)), "{verdict:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn pings_go_out_every_five_seconds_and_measure_the_round_trip() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        let mut sent = Vec::new();
        for second in 1..=20 {
            let now = start + Duration::from_secs(second);
            if let Verdict::Ping(number) = liveness.tick(now, second, None) {
                sent.push(second);
                assert_eq!(
                    liveness.pong(number + 1, now),
                    None,
                    "not an answer to this ping"
                );
                let answered = now + Duration::from_millis(3);
                assert_eq!(
                    liveness.pong(number, answered),
                    Some(Duration::from_millis(3))
                );
                assert_eq!(liveness.pong(number, answered), None, "answered twice");
            }
        }
        assert_eq!(sent, [1, 6, 11, 16]);
        assert_eq!(liveness.rtt(), Some(Duration::from_millis(3)));
    }
}
