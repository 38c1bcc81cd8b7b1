//! What steering and guard tell of themselves: in the status, and as metrics.
//!
//! Owns the form of both, and the [`Tally`] of what the agent accepted, which is compared with what
//! the programs assigned. The programs' counts are read from their maps when somebody asks.
//! Without eBPF the status has nothing of it, and every metric is there, at 0.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use ipnet::IpNet;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        gauge::ConstGauge,
    },
    registry::{Registry, Unit},
};
use proxymux_common::{Counter as Packets, Guard, Verdict};
use proxymux_transport::telemetry::{chain, millis};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    PlaceStatus, Steering,
    cost::Cost,
    drift::{CAUSES, Change, Counts, Drift, LOOK_EVERY},
};

/// All that is told of steering and guard at one moment.
#[derive(Clone, Debug, Default)]
struct Report {
    /// Whose connections are steered.
    sources: Vec<IpNet>,
    /// Where they are accepted.
    listeners: Vec<SocketAddr>,
    /// How long ago the agent told the programs that it lives.
    heartbeat: Option<Duration>,
    /// `off`, `audit` or `enforce`, as the programs have it.
    guard: &'static str,
    /// Whom the guard lets in besides.
    allowed: Vec<IpNet>,
    /// By the number of the [`Verdict`].
    counters: [Packets; Verdict::ALL.len()],
    /// Of steered connections, by the agent.
    accepted: Option<u64>,
    /// What was assigned and accepted when there was drift last, and there still is.
    drift: Option<Counts>,
    /// What could not be read, if anything.
    trouble: Option<String>,
}

/// What the agent has seen of steered connections.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Connections that the steered listeners accepted; nothing while there is no listener, and
    /// then nothing to compare either.
    pub(crate) accepted: OnceLock<Counter>,
    drift: Mutex<Drift>,
}

impl Tally {
    /// What was assigned and accepted when drift was last seen, while there is any.
    fn drifting(&self) -> Option<Counts> {
        self.drift().drifting()
    }

    fn accepted(&self) -> Option<u64> {
        self.accepted.get().map(Counter::get)
    }

    fn drift(&self) -> MutexGuard<'_, Drift> {
        self.drift.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Compares what was assigned with what was accepted, and says so when it does not fit, until
/// `stop` is cancelled. Without eBPF there is nothing to compare.
pub(crate) async fn watch(steering: Arc<Steering>, tally: Arc<Tally>, stop: CancellationToken) {
    let Some(maps) = steering.maps() else {
        return;
    };
    while timeout(LOOK_EVERY, stop.cancelled()).await.is_err() {
        let Some(accepted) = tally.accepted() else {
            continue;
        };
        // What cannot be read is in the status; a later look compares more.
        let Ok(statistics) = maps.statistics() else {
            continue;
        };
        let assigned = counted(&statistics, Verdict::Assigned).packets;
        let counts = Counts { assigned, accepted };
        match tally.drift().look(Instant::now(), counts) {
            Some(Change::Began(Counts { assigned, accepted })) => tracing::warn!(
                assigned,
                accepted,
                reason = CAUSES,
                "steered connections do not come to the agent"
            ),
            Some(Change::Ended) => tracing::info!("steered connections come to the agent again"),
            None => {}
        }
    }
}

/// Where each program is or should be, what runs before it, and what it costs.
pub(crate) fn attachments(steering: &Steering) -> Vec<Value> {
    let places = steering.places();
    let shown = places
        .iter()
        .map(|place| show_place(place, &steering.cost(place.program)));
    shown.collect()
}

/// The status of steering and guard; null without eBPF.
pub(crate) fn status(steering: &Steering, tally: &Tally) -> Value {
    Report::of(steering, tally).map_or(Value::Null, |report| report.json())
}

impl Report {
    /// What there is to tell now; nothing without eBPF.
    fn of(steering: &Steering, tally: &Tally) -> Option<Self> {
        let maps = steering.maps()?;
        let (counters, trouble) = match maps.statistics() {
            Ok(counters) => (counters, None),
            Err(error) => (Default::default(), Some(chain(&error))),
        };
        Some(Self {
            sources: maps.sources(),
            listeners: maps.listeners(),
            heartbeat: maps.heartbeat_age(),
            guard: guard_word(maps.settings().guard),
            allowed: maps.allowed(),
            counters,
            accepted: tally.accepted(),
            drift: tally.drifting(),
            trouble,
        })
    }
}

/// Why there is nothing to ask the programs for.
pub(super) fn no_ebpf(steering: &Steering) -> String {
    let (mode, reason) = steering.mode();
    format!(
        "the agent runs in mode {mode} ({reason}): no eBPF program is loaded, every packet passes"
    )
}

/// The word of the configuration for what the programs have.
pub(super) fn guard_word(number: u32) -> &'static str {
    let all = [
        (Guard::Off, "off"),
        (Guard::Audit, "audit"),
        (Guard::Enforce, "enforce"),
    ];
    let found = all.iter().find(|(guard, _)| *guard as u32 == number);
    found.map_or("unknown", |(_, word)| word)
}

fn counted(counters: &[Packets; Verdict::ALL.len()], verdict: Verdict) -> Packets {
    let counter = counters.get(verdict as usize);
    counter.copied().unwrap_or_default()
}

impl Report {
    /// The packets of one verdict.
    pub(crate) fn counter(&self, verdict: Verdict) -> Packets {
        counted(&self.counters, verdict)
    }

    fn json(&self) -> Value {
        let counters = Verdict::ALL.map(|verdict| {
            let Packets { packets, bytes } = self.counter(verdict);
            json!({ "verdict": verdict.word(), "packets": packets, "bytes": bytes })
        });
        json!({
            "steer_from": texts(&self.sources),
            "listeners": texts(&self.listeners),
            "heartbeat_age_ms": self.heartbeat.map(millis),
            "guard": self.guard,
            "guard_allow": texts(&self.allowed),
            "counters": counters,
            "accepted": self.accepted,
            "drift": self.drift.map(|counts| json!({
                "assigned": counts.assigned,
                "accepted": counts.accepted,
                "causes": CAUSES,
            })),
            "trouble": self.trouble,
        })
    }
}

fn show_place(place: &PlaceStatus, cost: &Cost) -> Value {
    let attached = place.attached.as_ref();
    let position = match place.before.as_slice() {
        [] => "first".to_owned(),
        [one] => format!("after {one}"),
        several => format!("after {}", several.join(", ")),
    };
    json!({
        "program": place.program,
        "wanted": place.wanted,
        "device": attached.map(|(device, _)| &device.name),
        "attach": attached.map(|(_, kind)| kind.word()),
        "position": attached.map(|_| position),
        "before": place.before,
        "problem": place.problem,
        "ns_per_packet": cost.nanoseconds(),
        "cost": cost.to_string(),
    })
}

/// The metrics of steering and guard.
#[derive(Debug)]
pub(crate) struct SteeringCollector {
    steering: Arc<Steering>,
    tally: Arc<Tally>,
}

impl SteeringCollector {
    /// Registers the metrics.
    pub(crate) fn register(registry: &mut Registry, steering: &Arc<Steering>, tally: &Arc<Tally>) {
        registry.register_collector(Box::new(Self {
            steering: Arc::clone(steering),
            tally: Arc::clone(tally),
        }));
    }
}

impl Collector for SteeringCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let now = Report::of(&self.steering, &self.tally).unwrap_or_default();
        let e = &mut encoder;
        per_verdict(
            e,
            (
                "steering_packets",
                "Packets that the programs saw, by what became of them; 0 without eBPF.",
            ),
            None,
            |verdict| now.counter(verdict).packets,
        )?;
        per_verdict(
            e,
            ("steering", "Their length from the link layer's header on."),
            Some(&Unit::Bytes),
            |verdict| now.counter(verdict).bytes,
        )?;
        let drift = e.encode_descriptor(
            "steering_drift",
            "1 while connections are assigned and do not come to the agent.",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(i64::from(now.drift.is_some())).encode(drift)?;
        let age = e.encode_descriptor(
            "steering_heartbeat_age",
            "How long ago the agent told the programs that it lives; no sample without eBPF.",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        match now.heartbeat {
            Some(age_of_it) => ConstGauge::new(age_of_it.as_secs_f64()).encode(age),
            None => Ok(()),
        }
    }
}

fn per_verdict(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    unit: Option<&Unit>,
    count: impl Fn(Verdict) -> u64,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
    for verdict in Verdict::ALL {
        let labels = [("verdict", verdict.word())];
        ConstCounter::new(count(verdict)).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}
