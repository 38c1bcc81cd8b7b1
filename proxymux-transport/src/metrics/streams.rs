//! Metrics of relayed connections.
//!
//! Owns their count by path and outcome, the bytes that they have moved, also those of relays
//! that still run, and for how long one of them has been waiting for a slow side.
//! Read [`StreamMetrics::open`]: what it gives is closed by being dropped.
//!
//! Bytes are counted by the relays themselves ([`RelayBytes`]) and only added up when somebody
//! asks, so that nothing is counted twice per read.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use super::{Counters, GaugeGuard, Gauges, Registry, Unit, pairs};
use crate::{
    relay::{Outcome, RelayBytes},
    telemetry::{Path, Side},
};

/// Metrics of all relayed connections of a daemon.
#[derive(Debug)]
pub struct StreamMetrics {
    opened: Counters,
    open: Gauges,
    closed: Counters<2>,
    live: Arc<Live>,
}

/// A relayed connection that is open, until it is dropped.
#[derive(Debug)]
pub struct OpenStream {
    path: Path,
    closed: Counters<2>,
    live: Arc<Live>,
    number: u64,
    outcome: &'static str,
    _open: GaugeGuard,
}

/// The relays that run, and what those that have ended have moved.
#[derive(Debug)]
struct Live {
    paths: &'static [Path],
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    relays: HashMap<u64, Relay>,
    /// By path, to the target and from it.
    ended: HashMap<&'static str, [u64; 2]>,
}

#[derive(Debug)]
struct Relay {
    path: Path,
    side: Side,
    bytes: Arc<RelayBytes>,
}

impl StreamMetrics {
    /// Registers the metrics of a daemon whose connections travel by these paths.
    #[must_use]
    pub fn register(registry: &mut Registry, paths: &'static [Path]) -> Self {
        let words: Vec<_> = paths.iter().map(|path| path.as_str()).collect();
        let opened = Counters::new("path", &words);
        registry.register(
            "streams_opened",
            "Connections whose relay began",
            opened.clone(),
        );
        let open = Gauges::new("path", &words);
        registry.register(
            "streams_open",
            "Connections that are relayed now",
            open.clone(),
        );
        let outcomes: Vec<_> = Outcome::WORDS.iter().copied().chain([CANCELLED]).collect();
        let closed = Counters::of_pairs(["path", "outcome"], &words, &outcomes);
        registry.register(
            "streams_closed",
            "Connections whose relay ended, by the outcome that the access log has",
            closed.clone(),
        );
        let live = Arc::new(Live {
            paths,
            state: Mutex::default(),
        });
        registry.register_collector(Box::new(Arc::clone(&live)));
        Self {
            opened,
            open,
            closed,
            live,
        }
    }

    /// Counts a connection whose relay begins and uses these counters.
    #[must_use]
    pub fn open(&self, path: Path, side: Side, bytes: Arc<RelayBytes>) -> OpenStream {
        self.opened.get(path.as_str()).inc();
        OpenStream {
            path,
            closed: self.closed.clone(),
            live: Arc::clone(&self.live),
            number: self.live.add(Relay { path, side, bytes }),
            outcome: CANCELLED,
            _open: GaugeGuard::new(&self.open.get(path.as_str())),
        }
    }

    /// How many connections are relayed now.
    #[must_use]
    pub fn count(&self) -> usize {
        self.live.lock().relays.len()
    }
}

impl OpenStream {
    /// Says how the relay ended; without a word it was cancelled.
    pub fn set_outcome(&mut self, outcome: Outcome) {
        self.outcome = outcome.as_str();
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.live.remove(self.number);
        let words = [self.path.as_str(), self.outcome];
        self.closed.get_pair(words).inc();
    }
}

impl Live {
    fn add(&self, relay: Relay) -> u64 {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.relays.insert(number, relay);
        number
    }

    /// In one step, so that a byte is counted exactly once whenever somebody looks.
    fn remove(&self, number: u64) {
        let mut state = self.lock();
        if let Some(relay) = state.relays.remove(&number) {
            let ended = state.ended.entry(relay.path.as_str()).or_default();
            add(ended, relay.moved());
        }
    }

    fn moved(&self, path: Path) -> [u64; 2] {
        let state = self.lock();
        let mut moved = state.ended.get(path.as_str()).copied().unwrap_or_default();
        for relay in state.relays.values().filter(|relay| relay.path == path) {
            add(&mut moved, relay.moved());
        }
        moved
    }

    fn longest_blocked(&self) -> Duration {
        let state = self.lock();
        let blocked = state.relays.values().map(|relay| relay.bytes.blocked_for());
        blocked.max().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here leaves the state half-changed on a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Relay {
    fn moved(&self) -> [u64; 2] {
        self.side.to_and_from_target(&self.bytes)
    }
}

impl Collector for Live {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut bytes = encoder.encode_descriptor(
            "relayed",
            "Payload relayed, that of open connections included.",
            Some(&Unit::Bytes),
            MetricType::Counter,
        )?;
        for path in self.paths {
            for (direction, moved) in DIRECTIONS.into_iter().zip(self.moved(*path)) {
                let labels = pairs(["path", "direction"], [path.as_str(), direction]);
                ConstCounter::new(moved).encode(bytes.encode_family(&labels)?)?;
            }
        }
        let blocked = encoder.encode_descriptor(
            "oldest_blocked_stream",
            "For how long a connection has been waiting for its slow side; of several the longest.",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        ConstGauge::new(self.longest_blocked().as_secs_f64()).encode(blocked)
    }
}

fn add(sums: &mut [u64; 2], more: [u64; 2]) {
    for (sum, more) in sums.iter_mut().zip(more) {
        *sum = sum.saturating_add(more);
    }
}

/// The word for a relay that was dropped before it had an outcome, as in the access log.
const CANCELLED: &str = "cancelled";

const DIRECTIONS: [&str; 2] = ["to-target", "from-target"];
