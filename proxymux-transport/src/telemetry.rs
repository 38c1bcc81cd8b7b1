//! Logs: setting them up, and the one line per relayed connection.
//!
//! Owns the log's form, the words that `--verbosity` takes, and [`AccessLog`], which writes its
//! line when it is dropped, so that a cancelled connection has one too.
//! Everything goes to stderr; stdout belongs to commands that answer a question.

use std::{
    fmt,
    panic::PanicHookInfo,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use proxymux_proto::{FlowDirection, TargetAddr};
use tokio::time::Instant;
use tracing_subscriber::{
    Layer, filter::LevelFilter, fmt::layer, layer::SubscriberExt, util::SubscriberInitExt,
};

use crate::{
    config_file::values::LogFormat,
    metrics::{OpenStream, StreamMetrics},
    relay::{Outcome, RelayBytes},
};

/// How much is logged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Verbosity(LevelFilter);

/// A word that is no verbosity.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("unknown verbosity `{seen}`, expected error, warn, info, debug or trace")]
pub struct VerbosityError {
    seen: String,
}

impl FromStr for Verbosity {
    type Err = VerbosityError;

    fn from_str(word: &str) -> Result<Self, VerbosityError> {
        let level = match word.to_ascii_lowercase().as_str() {
            "error" => LevelFilter::ERROR,
            "warn" | "warning" => LevelFilter::WARN,
            "info" => LevelFilter::INFO,
            "debug" => LevelFilter::DEBUG,
            "trace" => LevelFilter::TRACE,
            _ => {
                return Err(VerbosityError {
                    seen: word.to_owned(),
                });
            }
        };
        Ok(Self(level))
    }
}

/// Sets up the process's log; to be called once, by `main`.
///
/// Libraries below us are only heard from warnings up, unless everything is asked for.
pub fn init(form: LogFormat, verbosity: Verbosity) {
    let others = if verbosity.0 == LevelFilter::TRACE {
        verbosity.0
    } else {
        LevelFilter::WARN
    };
    let filter = tracing_subscriber::filter::Targets::new()
        .with_default(others.min(verbosity.0))
        .with_target("proxymux", verbosity.0)
        // It logs what it hands to us as an error too, and we know whose session it was.
        .with_target(
            "yamux",
            if verbosity.0 == LevelFilter::TRACE {
                others
            } else {
                LevelFilter::OFF
            },
        )
        .with_target(ACCESS, verbosity.0);
    let lines = layer().with_writer(std::io::stderr);
    let lines = match form {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(false).boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .init();
    // A task's panic ends that task only. The usual text would stand between the log's lines.
    std::panic::set_hook(Box::new(note_panic));
}

/// How many panics there were since [`init`].
pub(crate) fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

fn note_panic(info: &PanicHookInfo<'_>) {
    PANICS.fetch_add(1, Ordering::Relaxed);
    let reason = info.payload_as_str().unwrap_or("unknown");
    let at = info.location().map(tracing::field::display);
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    tracing::error!(reason, at, thread, "panic, which is a bug");
}

/// The text of an error with all its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some libraries repeat their cause in their own text.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text.replace(['\r', '\n'], " ")
}

/// One relayed connection, for its line in the access log.
#[derive(Debug)]
pub struct AccessLog {
    node: String,
    target: TargetAddr,
    peer: String,
    path: Path,
    /// Why it is not a faster one.
    path_reason: Option<&'static str>,
    /// Which of the two counters leads to the target.
    side: Side,
    started: Instant,
    opened: Option<Instant>,
    bytes: Arc<RelayBytes>,
    outcome: Option<Outcome>,
    /// The same connection in the metrics, once it is open.
    counted: Option<OpenStream>,
}

/// How the bytes of a relayed connection travel.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Path {
    /// By a stream of the session.
    Session,
    /// By a flow that the agent has dialled.
    Reverse,
    /// By a flow that the master has dialled.
    Direct,
    /// The master dialled the target itself, as one of its routes says.
    Route,
    /// The target's own connection, given to the agent on the node and relayed from there.
    Steered,
    /// There was no connection.
    None,
}

/// Where the one who logs stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// The stream leads to the target: the master.
    StreamLeadsToTarget,
    /// The connection leads to the target: the agent.
    ConnectionLeadsToTarget,
}

impl AccessLog {
    /// Begins with the request; `started` is when it came.
    #[must_use]
    pub fn new(
        node: impl fmt::Display,
        target: TargetAddr,
        peer: impl fmt::Display,
        side: Side,
        started: Instant,
    ) -> Self {
        Self {
            node: node.to_string(),
            target,
            peer: peer.to_string(),
            path: Path::Session,
            path_reason: None,
            side,
            started,
            opened: None,
            bytes: Arc::default(),
            outcome: None,
            counted: None,
        }
    }

    /// Says that the connection travels by another path than the session's.
    pub fn set_path(&mut self, path: Path) {
        self.path = path;
    }

    /// Says why the connection does not travel by a faster path, in a word of a closed list.
    pub fn set_path_reason(&mut self, reason: Option<&'static str>) {
        self.path_reason = reason;
    }

    /// Says that the target's connection stands, and counts it from here on.
    pub fn opened(&mut self, metrics: &StreamMetrics) {
        self.opened = Some(Instant::now());
        self.counted = Some(metrics.open(self.path, self.side, self.bytes()));
    }

    /// The counters that the relay is to use.
    #[must_use]
    pub fn bytes(&self) -> Arc<RelayBytes> {
        Arc::clone(&self.bytes)
    }

    /// Says how the relay ended, and writes the line.
    pub fn finish(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
        if let Some(counted) = &mut self.counted {
            counted.set_outcome(outcome);
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        let [to_target, from_target] = self.side.to_and_from_target(&self.bytes);
        let opened = self.opened.unwrap_or_else(Instant::now);
        tracing::info!(
            target: ACCESS,
            node = self.node,
            path = self.path.as_str(),
            path.reason = self.path_reason,
            target = %self.target,
            peer.addr = self.peer,
            bytes_to_target = to_target,
            bytes_from_target = from_target,
            open_ms = millis(opened - self.started),
            duration_ms = millis(self.started.elapsed()),
            outcome = self.outcome.map_or("cancelled", Outcome::as_str),
            error = self.bytes.problem(),
            "connection closed",
        );
    }
}

impl Side {
    /// Which of the counters leads to the target, and which from it.
    pub(crate) fn to_and_from_target(self, bytes: &RelayBytes) -> [u64; 2] {
        let (to_stream, from_stream) = (bytes.to_stream(), bytes.from_stream());
        match self {
            Self::StreamLeadsToTarget => [to_stream, from_stream],
            Self::ConnectionLeadsToTarget => [from_stream, to_stream],
        }
    }
}

impl From<FlowDirection> for Path {
    fn from(direction: FlowDirection) -> Self {
        match direction {
            FlowDirection::Reverse => Self::Reverse,
            FlowDirection::Direct => Self::Direct,
        }
    }
}

impl Path {
    /// The word for logs and metric labels, from a closed list.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Reverse => "reverse",
            Self::Direct => "direct",
            Self::Route => "route",
            Self::Steered => "steered",
            Self::None => "none",
        }
    }
}

/// Whole milliseconds, for a field of a log line.
#[must_use]
pub fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Whole microseconds, for a status.
#[must_use]
pub fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The log target of access lines.
pub const ACCESS: &str = "access";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbosity_takes_the_documented_words_only() {
        for word in ["error", "warn", "info", "debug", "trace", "INFO"] {
            assert!(word.parse::<Verbosity>().is_ok(), "{word}");
        }
        assert_eq!(
            "loud".parse::<Verbosity>().unwrap_err().to_string(),
            "unknown verbosity `loud`, expected error, warn, info, debug or trace"
        );
    }

    #[test]
    fn a_chain_is_one_line_with_every_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("inner\nline"));
        assert_eq!(chain(&error), "outer: inner line");
    }

    #[test]
    fn a_panic_of_a_task_is_counted() {
        std::panic::set_hook(Box::new(note_panic));
        let before = panics();

        let ended = std::thread::spawn(|| panic!("on purpose")).join();

        assert!(ended.is_err());
        assert_eq!(panics(), before + 1);
    }
}
