//! What both daemons' metrics are made of.
//!
//! Owns the kinds of metrics that the library lacks ([`Counters`], [`Moments`], [`GaugeGuard`]),
//! the metrics that both ends have alike ([`StreamMetrics`], [`SessionMetrics`],
//! [`ProcessMetrics`]) and their text form. Names get their prefix from the daemons' registries.
//!
//! Labels are closed lists: every word is known when a metric is made, and is a `&'static str`,
//! so that neither an address nor anything else that a peer says can become one.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, prometheus_text};
pub use prometheus_client::{
    encoding::prometheus_text::CONTENT_TYPE,
    metrics::{counter::Counter, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use prometheus_client::{
    metrics::{MetricType, gauge::ConstGauge},
    registry::Metric,
};

use crate::certificate::CertificateInfo;

mod document;
mod memory;
mod process;
mod sessions;
mod streams;

pub(crate) use self::process::status_bytes;
pub use self::{
    document::{document, with_section},
    memory::MemoryMetrics,
    process::ProcessMetrics,
    sessions::{DRAIN, SessionMetrics, end_word, end_words},
    streams::{OpenStream, StreamMetrics},
};

/// A counter for each word of a closed list, or for each pair of words of two lists.
///
/// ```
/// use proxymux_transport::metrics::Counters;
/// let refused = Counters::new("reason", &["busy", "unreachable"]);
/// refused.get("busy").inc();
/// assert_eq!((refused.get("busy").get(), refused.get("unreachable").get()), (1, 0));
/// ```
#[derive(Clone, Debug)]
pub struct Counters<const N: usize = 1>(Arc<Table<Counter, N>>);

/// A gauge for each word of a closed list.
#[derive(Clone, Debug)]
pub struct Gauges<const N: usize = 1>(Arc<Table<Gauge, N>>);

/// Moments in time for each word of a closed list, in seconds since 1970. One that is not known
/// has no sample.
#[derive(Clone, Debug)]
pub struct Moments(Arc<Table<AtomicI64, 1>>);

/// Adds one to a gauge for as long as it lives.
#[derive(Debug)]
pub struct GaugeGuard(Gauge);

/// What there is for each combination of words, in the order of the lists.
#[derive(Debug)]
struct Table<T, const N: usize> {
    labels: [&'static str; N],
    rows: Vec<([&'static str; N], T)>,
}

impl Counters {
    /// Counters that differ in one label.
    #[must_use]
    pub fn new(label: &'static str, words: &[&'static str]) -> Self {
        Self(Table::of_words(label, words))
    }

    /// The counter of a word, to be looked up once per connection.
    #[must_use]
    pub fn get(&self, word: &'static str) -> Counter {
        self.0.get([word]).cloned().unwrap_or_default()
    }
}

impl Counters<2> {
    /// Counters that differ in two labels.
    #[must_use]
    pub fn of_pairs(
        labels: [&'static str; 2],
        first: &[&'static str],
        second: &[&'static str],
    ) -> Self {
        Self(Table::of_pairs(labels, first, second))
    }

    /// The counter of two words.
    #[must_use]
    pub fn get_pair(&self, words: [&'static str; 2]) -> Counter {
        self.0.get(words).cloned().unwrap_or_default()
    }
}

impl Gauges {
    /// Gauges that differ in one label.
    #[must_use]
    pub fn new(label: &'static str, words: &[&'static str]) -> Self {
        Self(Table::of_words(label, words))
    }

    /// The gauge of a word.
    #[must_use]
    pub fn get(&self, word: &'static str) -> Gauge {
        self.0.get([word]).cloned().unwrap_or_default()
    }
}

impl Gauges<2> {
    /// Gauges that differ in two labels.
    #[must_use]
    pub fn of_pairs(
        labels: [&'static str; 2],
        first: &[&'static str],
        second: &[&'static str],
    ) -> Self {
        Self(Table::of_pairs(labels, first, second))
    }

    /// The gauge of two words.
    #[must_use]
    pub fn get_pair(&self, words: [&'static str; 2]) -> Gauge {
        self.0.get(words).cloned().unwrap_or_default()
    }
}

impl Moments {
    /// Moments that differ in one label; none is known.
    #[must_use]
    pub fn new(label: &'static str, words: &[&'static str]) -> Self {
        let rows = words.iter().map(|word| ([*word], AtomicI64::new(UNKNOWN)));
        Self(Arc::new(Table {
            labels: [label],
            rows: rows.collect(),
        }))
    }

    /// Says when it is, or that it is not known any more.
    pub fn set(&self, word: &'static str, moment: Option<SystemTime>) {
        if let Some(cell) = self.0.get([word]) {
            cell.store(moment.map_or(UNKNOWN, unix_seconds), Ordering::Relaxed);
        }
    }

    /// When it is, in seconds since 1970.
    #[must_use]
    pub fn get(&self, word: &'static str) -> Option<i64> {
        let cell = self.0.get([word])?;
        Some(cell.load(Ordering::Relaxed)).filter(|moment| *moment != UNKNOWN)
    }
}

impl GaugeGuard {
    /// Adds one until it is dropped.
    #[must_use]
    pub fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl<T, const N: usize> Table<T, N> {
    fn get(&self, words: [&'static str; N]) -> Option<&T> {
        let found = self.rows.iter().find(|(row, _)| *row == words);
        debug_assert!(found.is_some(), "{words:?} is not in the closed list");
        found.map(|(_, value)| value)
    }
}

impl<T: Default> Table<T, 1> {
    fn of_words(label: &'static str, words: &[&'static str]) -> Arc<Self> {
        let rows = words.iter().map(|word| ([*word], T::default()));
        Arc::new(Self {
            labels: [label],
            rows: rows.collect(),
        })
    }
}

impl<T: Default> Table<T, 2> {
    fn of_pairs(
        labels: [&'static str; 2],
        first: &[&'static str],
        second: &[&'static str],
    ) -> Arc<Self> {
        let rows = first
            .iter()
            .flat_map(|one| second.iter().map(|two| ([*one, *two], T::default())));
        Arc::new(Self {
            labels,
            rows: rows.collect(),
        })
    }
}

impl<T: EncodeMetric, const N: usize> Table<T, N> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (words, metric) in &self.rows {
            let labels = pairs(self.labels, *words);
            metric.encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl<const N: usize> EncodeMetric for Counters<N> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

impl<const N: usize> EncodeMetric for Gauges<N> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

impl EncodeMetric for Moments {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (words, cell) in &self.0.rows {
            let moment = cell.load(Ordering::Relaxed);
            if moment != UNKNOWN {
                let labels = pairs(self.0.labels, *words);
                ConstGauge::new(moment).encode(encoder.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

/// A registry whose names begin with `prefix`, and that says which version runs.
#[must_use]
pub fn registry(prefix: &str, version: &'static str) -> Registry {
    let mut registry = Registry::with_prefix(prefix);
    let build = Gauges::new("version", &[version]);
    build.get(version).set(1);
    registry.register("build_info", "Always 1; the version is the label", build);
    registry
}

/// Registers a counter that counts nothing but itself.
#[must_use]
pub fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    registered(registry, name, help, Counter::default())
}

/// Registers a gauge.
#[must_use]
pub fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    registered(registry, name, help, Gauge::default())
}

/// Registers counters that differ in one label.
#[must_use]
pub fn counters(
    registry: &mut Registry,
    (name, help): (&str, &str),
    label: &'static str,
    words: &[&'static str],
) -> Counters {
    registered(registry, name, help, Counters::new(label, words))
}

/// Registers a histogram of times, from half a millisecond to ten seconds: what opening a
/// connection or a round trip takes.
#[must_use]
pub fn times(registry: &mut Registry, name: &str, help: &str) -> Histogram {
    let times = Histogram::new(BUCKETS);
    registry.register_with_unit(name, help, Unit::Seconds, times.clone());
    times
}

/// Registers a histogram of times from a tenth of a second to an hour: what a drain takes.
#[must_use]
pub fn long_times(registry: &mut Registry, name: &str, help: &str) -> Histogram {
    let times = Histogram::new(LONG_BUCKETS);
    registry.register_with_unit(name, help, Unit::Seconds, times.clone());
    times
}

/// Registers when certificates expire.
#[must_use]
pub fn certificate_expiry(registry: &mut Registry, words: &[&'static str]) -> Moments {
    moments(
        registry,
        (
            "certificate_expiry_timestamp",
            "When the certificate in force expires, in seconds since 1970; of several the first",
        ),
        "certificate",
        words,
    )
}

/// Registers moments that differ in one label. The name ends in `_timestamp`.
#[must_use]
pub fn moments(
    registry: &mut Registry,
    (name, help): (&str, &str),
    label: &'static str,
    words: &[&'static str],
) -> Moments {
    let moments = Moments::new(label, words);
    registry.register_with_unit(name, help, Unit::Seconds, moments.clone());
    moments
}

/// When the first of these certificates expires.
#[must_use]
pub fn first_expiry<'a>(
    certificates: impl IntoIterator<Item = &'a CertificateInfo>,
) -> Option<SystemTime> {
    certificates.into_iter().map(|info| info.not_after).min()
}

/// All metrics of a registry in Prometheus' text form.
#[must_use]
pub fn encode(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing into a string fails only if a metric does, and none of ours can.
    if prometheus_text::encode(&mut text, registry).is_err() {
        tracing::error!("metrics cannot be written out");
    }
    text
}

fn registered<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

fn pairs<const N: usize>(
    labels: [&'static str; N],
    words: [&'static str; N],
) -> [(&'static str, &'static str); N] {
    std::array::from_fn(|at| {
        let label = labels.get(at).copied().unwrap_or_default();
        (label, words.get(at).copied().unwrap_or_default())
    })
}

fn unix_seconds(moment: SystemTime) -> i64 {
    let since = |from: SystemTime, to: SystemTime| {
        let duration = to.duration_since(from).unwrap_or(Duration::ZERO);
        i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
    };
    let epoch = SystemTime::UNIX_EPOCH;
    since(epoch, moment) - since(moment, epoch)
}

/// No moment that a certificate can name.
const UNKNOWN: i64 = i64::MIN;

const BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

const LONG_BUCKETS: [f64; 9] = [0.1, 1.0, 5.0, 15.0, 30.0, 60.0, 300.0, 900.0, 3600.0];

#[cfg(test)]
mod tests;
