//! What the agent is doing about each master, for whoever asks.
//!
//! Owns a row for every address that is dialled or waited for, and for every session, also one
//! that only finishes its streams. Who works on something writes its row ([`Row`]), which goes
//! when it is dropped; nobody decides anything by what stands here.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use proxymux_proto::{Addresses, InstanceId, SteeringStatus};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::flows::FlowsView;

/// All rows.
#[derive(Debug, Default)]
pub(crate) struct Board {
    rows: Mutex<Rows>,
}

#[derive(Debug, Default)]
struct Rows {
    next: u64,
    by_number: BTreeMap<u64, Entry>,
}

/// Somebody's row on the board, until it is dropped.
#[derive(Debug)]
pub(crate) struct Row {
    board: Arc<Board>,
    number: u64,
}

/// What stands in a row.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// As in `server-addr`.
    pub(crate) server: String,
    /// `None` while the name is not resolved.
    pub(crate) at: Option<SocketAddr>,
    pub(crate) state: State,
    /// Since when it is in this state.
    pub(crate) since: Instant,
    /// Since when there is no session; of a session, since when there is one.
    pub(crate) without_since: Instant,
    /// Why the last attempt failed, or the last session ended; kept while a new one stands.
    pub(crate) last_error: Option<String>,
    /// When the next attempt is made.
    pub(crate) retry_at: Option<Instant>,
    pub(crate) session: Option<SessionEntry>,
}

/// What is known of a session.
#[derive(Clone, Debug)]
pub(crate) struct SessionEntry {
    pub(crate) master: InstanceId,
    pub(crate) addresses: Addresses,
    pub(crate) rtt: Option<Duration>,
    /// The tasks of the session's streams.
    pub(crate) streams: TaskTracker,
    /// Its flows, if its master uses fast paths.
    pub(crate) flows: Option<FlowsView>,
    /// Whether the master's connections are steered, as it was told.
    pub(crate) steering: Option<SteeringStatus>,
}

/// What is being done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum State {
    /// The name is being resolved.
    Resolving,
    /// A session is being established.
    Dialling,
    /// Until the next attempt.
    Waiting,
    /// Enough masters are held; this address is only dialled when one is lost.
    Standby,
    /// There is a session, which has its own row.
    Held,
    /// This is a session, which takes new streams.
    Connected,
    /// This is a session, which takes no new streams.
    Draining,
}

impl Board {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A row for an entry of `server-addr`, or for one address that it stands for.
    pub(crate) fn row(
        self: &Arc<Self>,
        server: &impl fmt::Display,
        at: Option<SocketAddr>,
        state: State,
    ) -> Row {
        self.add(Entry {
            server: server.to_string(),
            at,
            state,
            since: Instant::now(),
            without_since: Instant::now(),
            last_error: None,
            retry_at: None,
            session: None,
        })
    }

    /// Everything that is being done now, except that there are sessions, which speak for
    /// themselves.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let rows = self.lock();
        let shown = rows
            .by_number
            .values()
            .filter(|entry| entry.state != State::Held);
        shown.cloned().collect()
    }

    fn add(self: &Arc<Self>, entry: Entry) -> Row {
        let mut rows = self.lock();
        let number = rows.next;
        rows.next += 1;
        rows.by_number.insert(number, entry);
        Row {
            board: Arc::clone(self),
            number,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Rows> {
        // Nothing in here leaves the rows half-changed on a panic.
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Row {
    /// Says what is being done now.
    pub(crate) fn set(&self, state: State) {
        self.update(|entry| entry.enter(state));
    }

    /// Says why there is no session, and when it is tried again.
    pub(crate) fn failed(&self, error: String, pause: Duration) {
        self.update(|entry| {
            entry.enter(State::Waiting);
            entry.last_error = Some(error);
            entry.retry_at = Some(Instant::now() + pause);
        });
    }

    /// A row for a session that has come of this one's work.
    pub(crate) fn session(&self, session: SessionEntry) -> Self {
        self.set(State::Held);
        let entry = self.board.lock().by_number.get(&self.number).cloned();
        let (server, at, last_error) = entry.map_or_else(Default::default, |entry| {
            (entry.server, entry.at, entry.last_error)
        });
        self.board.add(Entry {
            server,
            at,
            state: State::Connected,
            since: Instant::now(),
            without_since: Instant::now(),
            last_error,
            retry_at: None,
            session: Some(session),
        })
    }

    /// Notes a round trip of this session.
    pub(crate) fn round_trip(&self, rtt: Duration) {
        self.update_session(|session| session.rtt = Some(rtt));
    }

    /// Notes which addresses the master lets lead to this node.
    pub(crate) fn addresses(&self, addresses: &Addresses) {
        self.update_session(|session| session.addresses = addresses.clone());
    }

    /// Notes what the master was told of steering.
    pub(crate) fn steering(&self, status: &SteeringStatus) {
        self.update_session(|session| session.steering = Some(status.clone()));
    }

    fn update_session(&self, change: impl FnOnce(&mut SessionEntry)) {
        self.update(|entry| {
            if let Some(session) = &mut entry.session {
                change(session);
            }
        });
    }

    fn update(&self, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.board.lock().by_number.get_mut(&self.number) {
            change(entry);
        }
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        self.board.lock().by_number.remove(&self.number);
    }
}

impl Entry {
    fn enter(&mut self, state: State) {
        if self.state != state {
            if self.state == State::Held {
                self.without_since = Instant::now();
            }
            self.state = state;
            self.since = Instant::now();
        }
        self.retry_at = None;
    }

    /// The master, why there is no session with it, and for how long, in a few words: they are
    /// all that `kubectl describe pod` shows.
    pub(crate) fn describe(&self) -> String {
        let master = self
            .at
            .map_or_else(|| self.server.clone(), |at| at.to_string());
        let why = match (&self.last_error, self.state) {
            (Some(error), State::Resolving | State::Dialling | State::Waiting) => brief(error),
            (_, state) => state.word().to_owned(),
        };
        format!(
            "{master}: {why} for {}",
            how_long(self.without_since.elapsed())
        )
    }
}

/// An error without what goes without saying beside the master's address.
fn brief(error: &str) -> String {
    if let Some(reason) = error.strip_prefix("last session: ") {
        return format!("no session ({reason})");
    }
    let cause = error.strip_prefix("cannot connect: ").unwrap_or(error);
    // The kernel's words, such as "Connection refused (os error 111)".
    let Some((words, _)) = cause.split_once(" (os error ") else {
        return cause.to_owned();
    };
    let mut letters = words.chars();
    let first = letters.next().map(|letter| letter.to_ascii_lowercase());
    first.into_iter().chain(letters).collect()
}

fn how_long(time: Duration) -> String {
    match time.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

impl State {
    /// The word for status and tables.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Resolving => "resolving",
            Self::Dialling => "dialling",
            Self::Waiting => "waiting",
            Self::Standby => "standby",
            Self::Held | Self::Connected => "connected",
            Self::Draining => "draining",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(board: &Board) -> Vec<(String, State)> {
        let entries = board.entries();
        let shown = entries.into_iter().map(|entry| (entry.server, entry.state));
        shown.collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_stands_for_its_address_until_it_ends() {
        let board = Board::new();
        let at = "192.0.2.10:12250".parse().ok();
        let row = board.row(&"https://m:12250", at, State::Dialling);
        row.failed("refused".to_owned(), Duration::from_secs(3));
        assert_eq!(
            board.entries().first().unwrap().describe(),
            "192.0.2.10:12250: refused for 0 s"
        );

        row.set(State::Dialling);
        let session = row.session(SessionEntry {
            master: InstanceId::from_bytes([1; 16]),
            addresses: Addresses::default(),
            rtt: None,
            streams: TaskTracker::new(),
            flows: None,
            steering: None,
        });
        session.round_trip(Duration::from_millis(2));

        let entries = board.entries();
        let entry = entries.first().unwrap();
        assert_eq!((entries.len(), entry.state), (1, State::Connected));
        assert_eq!(entry.last_error.as_deref(), Some("refused"));
        let rtt = entry.session.as_ref().unwrap().rtt;
        assert_eq!(rtt, Some(Duration::from_millis(2)));

        session.set(State::Draining);
        row.set(State::Dialling);
        let server = "https://m:12250".to_owned();
        let both = [
            (server.clone(), State::Dialling),
            (server.clone(), State::Draining),
        ];
        assert_eq!(states(&board), both);
        drop(session);
        assert_eq!(states(&board), [(server, State::Dialling)]);
        drop(row);
        assert!(states(&board).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_state_lasts_from_its_beginning() {
        let board = Board::new();
        let row = board.row(&"s", None, State::Resolving);
        tokio::time::advance(Duration::from_secs(5)).await;
        row.set(State::Resolving);
        let since = |board: &Board| board.entries().first().unwrap().since.elapsed();
        assert_eq!(since(&board), Duration::from_secs(5));
        row.failed("x".to_owned(), Duration::ZERO);
        assert_eq!(since(&board), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_the_matter_is_said_in_a_line_with_the_time_since_there_was_a_session() {
        let board = Board::new();
        let row = board.row(&"https://m:12250", None, State::Resolving);
        let line = || board.entries().first().unwrap().describe();
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(line(), "https://m:12250: resolving for 2 s");
        drop(row);

        let at = "192.0.2.10:12250".parse().ok();
        let row = board.row(&"https://m:12250", at, State::Dialling);
        let refused = "cannot connect: Connection refused (os error 111)";
        row.failed(refused.to_owned(), Duration::ZERO);
        tokio::time::advance(Duration::from_secs(42)).await;
        assert_eq!(line(), "192.0.2.10:12250: connection refused for 42 s");
        row.set(State::Dialling);
        row.failed("master speaks another protocol".to_owned(), Duration::ZERO);
        tokio::time::advance(Duration::from_secs(78)).await;
        assert_eq!(
            line(),
            "192.0.2.10:12250: master speaks another protocol for 2 min"
        );

        row.set(State::Held);
        tokio::time::advance(Duration::from_secs(9000)).await;
        row.failed("last session: lost".to_owned(), Duration::ZERO);
        assert_eq!(line(), "192.0.2.10:12250: no session (lost) for 0 s");
        tokio::time::advance(Duration::from_secs(7200)).await;
        assert_eq!(line(), "192.0.2.10:12250: no session (lost) for 2 h");
    }
}
