//! How much of a fleet comes in at once, and how much in all.
//!
//! Owns the number of TLS handshakes that run at the same time ([`Admission::turn`]), the number
//! of sessions, and how many agents may register within a second ([`Admission::register`]). Who
//! has to wait outside is told when to return, spread over the time in which there is room.
//! Leaves to `half_open` those who have not said who they are, and to the registry which session
//! a node is reached by.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use proxymux_proto::{EndCode, SessionEnd};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout},
};

use crate::{config::Config, trouble::Trouble};

/// What a master takes in.
#[derive(Debug)]
pub(crate) struct Admission {
    turns: Arc<Semaphore>,
    max_sessions: usize,
    registrations_per_second: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    sessions: usize,
    pace: Pace,
    crowd: Trouble,
}

/// The right to perform a handshake.
#[derive(Debug)]
pub(crate) struct Turn(OwnedSemaphorePermit);

/// One session, until it is dropped.
#[derive(Debug)]
pub(crate) struct SessionPlace(Arc<Admission>);

/// Nobody's handshake has come to its end for a long time.
#[derive(Debug, thiserror::Error)]
#[error("handshake did not get its turn within {} s", TURN_LIMIT.as_secs())]
pub(crate) struct NoTurn;

/// What the master knows of a node that registers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Presence {
    /// It has a session, which the new one replaces.
    Here,
    /// It had one a moment ago, and requests may be waiting for it.
    Awaited,
    /// Nobody waits for it.
    Away,
}

impl Admission {
    pub(crate) fn new(config: &Config) -> Arc<Self> {
        let per_second = config.max_registrations_per_second.get();
        Arc::new(Self {
            turns: Arc::new(Semaphore::new(count(config.max_handshakes.get()))),
            max_sessions: count(config.max_sessions.get()),
            registrations_per_second: per_second,
            state: Mutex::new(State {
                sessions: 0,
                pace: Pace::new(per_second, Instant::now()),
                crowd: Trouble::default(),
            }),
        })
    }

    /// Waits for the turn to perform a handshake. First come, first served; cancel-safe.
    ///
    /// # Errors
    ///
    /// When there was none for a long time.
    pub(crate) async fn turn(&self) -> Result<Turn, NoTurn> {
        match timeout(TURN_LIMIT, Arc::clone(&self.turns).acquire_owned()).await {
            Ok(Ok(turn)) => Ok(Turn(turn)),
            Err(_) => Err(NoTurn),
            Ok(Err(_)) => unreachable!("nobody closes the semaphore"),
        }
    }

    /// Takes in a session.
    ///
    /// # Errors
    ///
    /// With the answer for an agent that has to come back later.
    pub(crate) fn register(
        self: &Arc<Self>,
        presence: Presence,
    ) -> Result<SessionPlace, SessionEnd> {
        let now = Instant::now();
        let mut state = self.lock();
        // A session that replaces another is let in beyond the limit: the other one is about to
        // go, and the node must not be cut off meanwhile.
        let max = match presence {
            Presence::Here => self.max_sessions.saturating_mul(2),
            Presence::Awaited | Presence::Away => self.max_sessions,
        };
        if state.sessions >= max {
            let sessions = state.sessions;
            state.is_crowded("max-sessions", self.max_sessions);
            let text = format!("master has {sessions} sessions, its limit is max-sessions");
            return Err(SessionEnd::new(EndCode::Busy, &text).retry_after(FULL_RETRY));
        }
        if let Err(pause) = state.pace.admit(now) {
            let limit = self.registrations_per_second;
            state.is_crowded("max-registrations-per-second", count(limit));
            let text = format!(
                "master takes in {limit} agents per second, its limit is \
                 max-registrations-per-second"
            );
            let pause = match presence {
                Presence::Awaited => pause.min(AWAITED_RETRY),
                Presence::Here | Presence::Away => pause,
            };
            return Err(SessionEnd::new(EndCode::Busy, &text).retry_after(pause));
        }
        state.sessions += 1;
        Ok(SessionPlace(Arc::clone(self)))
    }

    /// Sessions that stand, those that only finish their streams among them.
    #[cfg(test)]
    pub(crate) fn sessions(&self) -> usize {
        self.lock().sessions
    }

    /// Says that agents are let in again, if that is news; to be called now and then.
    pub(crate) fn calm_down(&self) {
        let over = self.lock().crowd.is_over();
        if let Some(turned_away) = over {
            tracing::warn!(turned_away, "agents are let in again");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Numbers only, each changed in one step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// Performs the handshake. One that waits for its peer for long goes on without its turn, so
    /// that peers which are slow, or mean to be, do not keep the others waiting.
    pub(crate) async fn perform<T>(self, handshake: impl Future<Output = T>) -> T {
        let mut handshake = std::pin::pin!(handshake);
        tokio::select! {
            done = &mut handshake => return done,
            () = sleep(TURN_LENGTH) => drop(self.0),
        }
        handshake.await
    }
}

impl Drop for SessionPlace {
    fn drop(&mut self) {
        self.0.lock().sessions -= 1;
    }
}

impl State {
    fn is_crowded(&mut self, key: &'static str, limit: usize) {
        if self.crowd.begins() {
            tracing::warn!(
                key,
                limit,
                "too many agents, some are told to come back later"
            );
        }
    }
}

/// So many per second on average, a second's share at once, and a queue of those who were told to
/// come back.
#[derive(Debug)]
struct Pace {
    interval: Duration,
    /// When the next would come if they came evenly.
    due: Instant,
    /// When the last of those who were told to come back should.
    told: Instant,
}

impl Pace {
    fn new(per_second: u32, now: Instant) -> Self {
        Self {
            interval: Duration::from_secs(1) / per_second.max(1),
            due: now,
            told: now,
        }
    }

    /// Lets one more in, or says when it should come back.
    fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        let due = self.due.max(now);
        if due < now + AT_ONCE {
            self.due = due + self.interval;
            return Ok(());
        }
        self.told = self.told.max(now) + self.interval;
        let pause = self.told - now;
        if pause > LONGEST_RETRY {
            self.told = now + LONGEST_RETRY;
            return Err(LONGEST_RETRY.mul_f64(0.5 + fastrand::f64() / 2.0));
        }
        Err(pause.max(LEAST_RETRY))
    }
}

fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// How long a handshake may wait for its turn: as long as it takes to perform a fleet's, as many
/// as may be half-open, on a processor that has other work too.
const TURN_LIMIT: Duration = Duration::from_secs(10);

/// Three round trips around the world and the work of a busy machine.
const TURN_LENGTH: Duration = Duration::from_secs(1);

/// The share of how much time may come at once.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Sooner there is no room either.
const LEAST_RETRY: Duration = Duration::from_millis(500);

/// Agents wait for up to twice as long as they are told.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// With the agent's jitter a node is back within the 15 s for which requests wait for it.
const AWAITED_RETRY: Duration = Duration::from_secs(5);

/// Room for a session comes when a node goes, which is seldom.
const FULL_RETRY: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    fn admission(lines: &str) -> Arc<Admission> {
        let text = format!("cert: /m.crt\nkey: /m.key\nclient-ca: /ca.crt\n{lines}");
        Admission::new(&Config::parse(&text, "test.yaml").unwrap().0)
    }

    fn retry_after(refused: Result<SessionPlace, SessionEnd>) -> Duration {
        let end = refused.unwrap_err();
        assert_eq!(end.code, EndCode::Busy);
        end.retry_after.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_beyond_the_limit_are_told_to_come_back() {
        let admission = admission("max-sessions: 2");
        let first = admission.register(Presence::Away).unwrap();
        let _second = admission.register(Presence::Away).unwrap();

        let refused = admission.register(Presence::Awaited);

        let end = refused.unwrap_err();
        assert_eq!(
            end.message,
            "master has 2 sessions, its limit is max-sessions"
        );
        assert_eq!(end.retry_after, Some(FULL_RETRY));
        drop(first);
        assert!(admission.register(Presence::Away).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_replaces_another_is_let_in_at_the_limit() {
        let admission = admission("max-sessions: 1");
        let _old = admission.register(Presence::Away).unwrap();

        let _new = admission.register(Presence::Here).unwrap();

        assert_eq!(admission.sessions(), 2);
        assert!(admission.register(Presence::Here).is_err(), "not for ever");
    }

    #[tokio::test(start_paused = true)]
    async fn a_fleet_that_comes_at_once_is_told_to_come_back_one_after_the_other() {
        let admission = admission("max-registrations-per-second: 100");
        let mut places = Vec::new();
        let mut pauses = Vec::new();
        for _ in 0..1000 {
            match admission.register(Presence::Away) {
                Ok(place) => places.push(place),
                Err(end) => pauses.push(end.retry_after.unwrap()),
            }
        }

        assert_eq!(places.len(), 100, "a second's share");
        assert!(pauses.is_sorted());
        assert_eq!(pauses.first(), Some(&LEAST_RETRY));
        assert_eq!(pauses.last(), Some(&Duration::from_secs(9)));
        // Each second of the next nine has its share.
        for second in 1..8 {
            let within = |pause: &&Duration| pause.as_secs() == second;
            assert_eq!(pauses.iter().filter(within).count(), 100);
        }
    }

    /// What agents make of what they are told: up to twice as long.
    #[tokio::test(start_paused = true)]
    async fn a_whole_fleet_is_in_after_twice_the_time_that_it_takes_at_the_least() {
        let admission = admission("max-registrations-per-second: 250");
        let mut waiting = vec![Instant::now(); 5000];
        let began = Instant::now();
        let mut places = Vec::new();
        let mut refusals = 0;
        while !waiting.is_empty() {
            let now = Instant::now();
            let (due, mut later): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|at| *at <= now);
            for _ in due {
                match admission.register(Presence::Away) {
                    Ok(place) => places.push(place),
                    Err(end) => {
                        refusals += 1;
                        let told = end.retry_after.unwrap();
                        later.push(now + told + told.mul_f64(fastrand::f64()));
                    }
                }
            }
            waiting = later;
            advance(Duration::from_millis(10)).await;
        }

        // 5,000 at 250 per second take 20 s.
        let took = began.elapsed();
        assert!(took < Duration::from_secs(60), "{took:?}");
        assert!(refusals < 10_000, "{refusals} refusals for 5,000 agents");
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_requests_wait_for_is_told_to_hurry() {
        let admission = admission("max-registrations-per-second: 1");
        let _first = admission.register(Presence::Away).unwrap();
        for _ in 0..100 {
            let _ = admission.register(Presence::Away);
        }

        assert!(retry_after(admission.register(Presence::Away)) > Duration::from_secs(10));
        assert_eq!(
            retry_after(admission.register(Presence::Awaited)),
            AWAITED_RETRY
        );
    }

    #[tokio::test(start_paused = true)]
    async fn handshakes_have_their_turns_in_order() {
        let admission = admission("max-handshakes: 1");
        let first = admission.turn().await.unwrap();
        let mut second = std::pin::pin!(admission.turn());
        assert!(timeout(Duration::from_secs(9), &mut second).await.is_err());

        first.perform(async {}).await;

        assert!(second.await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_handshake_that_waits_for_its_peer_keeps_nobody_waiting() {
        let admission = admission("max-handshakes: 1");
        let slow = admission.turn().await.unwrap();
        let slow = tokio::spawn(slow.perform(sleep(Duration::from_secs(4))));
        let began = Instant::now();

        let _next = admission.turn().await.unwrap();

        assert_eq!(began.elapsed(), TURN_LENGTH);
        slow.await.unwrap();
        assert_eq!(began.elapsed(), Duration::from_secs(4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_never_comes_is_not_waited_for_for_ever() {
        let admission = admission("max-handshakes: 1");
        let _first = admission.turn().await.unwrap();

        let refused = admission.turn().await.unwrap_err();

        assert_eq!(
            refused.to_string(),
            "handshake did not get its turn within 10 s"
        );
    }
}
