//! The figures to reach, beside what was measured.
//!
//! Owns the promises and the arithmetic that holds the results against them. A figure that is
//! missed is told and does not fail a run: how fast a machine is, and what else it does, is not
//! for a bench to judge. Those of the fast paths are in `figures/fast.rs`.

mod fast;

use serde_json::{Value, json};

use super::{
    case::{PLAIN_TCP, SESSION},
    measure::{DOWNLOAD, OPEN, REQUEST, UPLOAD},
    results::Results,
    stats::rounded,
};

/// One promise and what came of it.
#[derive(Clone, Debug)]
pub(super) struct Figure {
    name: String,
    bound: Bound,
    unit: &'static str,
    /// `None` where this run has not measured it.
    measured: Option<f64>,
}

#[derive(Clone, Copy, Debug)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
    Below(f64),
}

/// All figures, in the order of the promises.
pub(super) fn figures(results: &Results, plan: &super::Plan) -> Vec<Figure> {
    let mut all = Vec::new();
    for (metric, least, most) in [(DOWNLOAD, 0.2, 5.0), (UPLOAD, 0.2, 5.0)] {
        all.push(Figure {
            name: format!("{metric}, one connection: CPU per GiB"),
            bound: Bound::AtMost(most),
            unit: "times plain TCP",
            measured: results.ratio(SESSION, PLAIN_TCP, metric, |sample| sample.cpu_s_per_gib),
        });
        all.push(Figure {
            name: format!("{metric}, one connection: throughput"),
            bound: Bound::AtLeast(least),
            unit: "of plain TCP",
            measured: results.ratio(SESSION, PLAIN_TCP, metric, |sample| sample.gib_per_s),
        });
    }
    let open_p50 = |case| results.row(case, OPEN, 1)?.sample.p50_us;
    all.push(Figure {
        name: "open, p50 above plain TCP".to_owned(),
        bound: Bound::AtMost(500.0),
        unit: "us",
        measured: open_p50(SESSION)
            .zip(open_p50(PLAIN_TCP))
            .map(|(o, p)| o - p),
    });
    all.push(Figure {
        name: "request, p50".to_owned(),
        bound: Bound::AtMost(7.0),
        unit: "times plain TCP",
        measured: results.ratio(SESSION, PLAIN_TCP, REQUEST, |sample| sample.p50_us),
    });
    all.extend(of_memory(results, plan));
    all.extend(of_patience(results, plan));
    all.extend(of_the_fleet(results, plan));
    all.extend(fast::figures(results, plan));
    all
}

fn of_memory(results: &Results, plan: &super::Plan) -> Vec<Figure> {
    let idle = results.row(SESSION, RSS, 0);
    let streams = plan.memory.streams;
    let stalled = results.row(SESSION, RSS, streams);
    vec![
        Figure {
            name: "agent idle: memory".to_owned(),
            bound: Bound::AtMost(8.0),
            unit: "MiB",
            measured: idle.and_then(|row| row.agent_rss_kib).map(mib),
        },
        Figure {
            name: "agent idle: voluntary context switches".to_owned(),
            bound: Bound::AtMost(3.0),
            unit: "per second",
            measured: idle.and_then(|row| row.more(AGENT_SWITCHES)),
        },
        Figure {
            name: format!("agent with {streams} stalled downloads: memory"),
            bound: Bound::AtMost(64.0),
            unit: "MiB",
            measured: stalled.and_then(|row| row.agent_rss_kib).map(mib),
        },
        Figure {
            name: format!("master with {streams} stalled downloads: memory"),
            bound: Bound::AtMost(64.0),
            unit: "MiB",
            measured: stalled.and_then(|row| row.master_rss_kib).map(mib),
        },
    ]
}

fn of_patience(results: &Results, plan: &super::Plan) -> Option<Figure> {
    let streams = plan.beside.streams;
    let row = results.row(SESSION, STALLED, streams)?;
    Some(Figure {
        name: format!("request beside {streams} stalled readers: p99"),
        bound: Bound::AtMost(row.more(QUIET_P99)? * 1.5 + 100.0),
        unit: "us (1.5 times the quiet one and 100 us)",
        measured: row.sample.p99_us,
    })
}

fn of_the_fleet(results: &Results, plan: &super::Plan) -> Vec<Figure> {
    let agents = plan.fleet as u64;
    let Some(row) = results.row(SESSION, FLEET, agents) else {
        return Vec::new();
    };
    let figure = |what: &str, bound, unit, name| Figure {
        name: format!("{agents} agents: {what}"),
        bound,
        unit,
        measured: row.more(name),
    };
    vec![
        figure("all connected", Bound::Below(60.0), "s", FLEET_CONNECTED),
        figure(
            "all back after a restart",
            Bound::Below(60.0),
            "s",
            FLEET_BACK,
        ),
        figure(
            "master's memory per session",
            Bound::Below(96.0),
            "KiB",
            FLEET_SESSION,
        ),
        figure(
            "failed for want of time",
            Bound::AtMost(0.0),
            "of them",
            FLEET_TOO_SLOW,
        ),
    ]
}

fn mib(kib: u64) -> f64 {
    super::stats::gib(kib << 10) * 1024.0
}

impl Figure {
    pub(super) fn is_reached(&self) -> Option<bool> {
        let measured = self.measured?;
        Some(match self.bound {
            Bound::AtMost(most) => measured <= most,
            Bound::AtLeast(least) => measured >= least,
            Bound::Below(limit) => measured < limit,
        })
    }

    /// One line for people.
    pub(super) fn line(&self) -> String {
        let [verdict, name, measured, wanted] = self.cells();
        if measured.is_empty() {
            return format!("{verdict:<12}  {name}: {wanted}");
        }
        format!("{verdict:<12}  {name}: {measured}, {wanted}")
    }

    /// Verdict, name, what was measured, and what is wanted.
    pub(super) fn cells(&self) -> [String; 4] {
        let (words, bound) = self.bound.parts();
        let verdict = match self.is_reached() {
            None => "not measured",
            Some(true) => "reached",
            Some(false) => "NOT REACHED",
        };
        let measured = self
            .measured
            .map(|measured| rounded(measured, 2).to_string());
        [
            verdict.to_owned(),
            self.name.clone(),
            measured.unwrap_or_default(),
            format!("{words} {} {}", rounded(bound, 2), self.unit),
        ]
    }

    pub(super) fn to_json(&self) -> Value {
        let (words, bound) = self.bound.parts();
        json!({
            "name": self.name,
            "wanted": format!("{words} {} {}", rounded(bound, 2), self.unit),
            "measured": self.measured.map(|measured| rounded(measured, 4)),
            "reached": self.is_reached(),
        })
    }
}

impl Bound {
    fn parts(self) -> (&'static str, f64) {
        match self {
            Self::AtMost(bound) => ("at most", bound),
            Self::AtLeast(bound) => ("at least", bound),
            Self::Below(bound) => ("below", bound),
        }
    }
}

/// Names of metrics and of their own numbers, as they stand in the results.
pub(super) const RSS: &str = "rss";
pub(super) const IDLE_CONNECTIONS: &str = "idle-connections";
/// Of the agent, that it can hold anything in.
pub(super) const PIPES: &str = "agent_pipes_held";
/// Sockets and pipes of both daemons with stalled downloads, at two moments.
pub(super) const KERNEL_FIRST: &str = "kernel_mib_first";
pub(super) const KERNEL_LATER: &str = "kernel_mib_later";
pub(super) const STALLED: &str = "stalled";
pub(super) const FLEET: &str = "fleet";
pub(super) const AGENT_SWITCHES: &str = "agent_voluntary_switches_per_s";
pub(super) const QUIET_P99: &str = "quiet_p99_us";
pub(super) const FLEET_CONNECTED: &str = "all_connected_s";
pub(super) const FLEET_BACK: &str = "all_back_s";
pub(super) const FLEET_TOO_SLOW: &str = "failed_for_time";
pub(super) const FLEET_SESSION: &str = "master_rss_per_session_kib";

#[cfg(test)]
mod tests {
    use super::{
        super::{Plan, measure::Sample, results::Row},
        *,
    };

    fn with_sample(case: &'static str, metric: &'static str, sample: Sample) -> Row {
        Row {
            case,
            metric,
            streams: 1,
            sample,
            ..Row::default()
        }
    }

    fn verdict(rows: Vec<Row>, name: &str) -> Option<bool> {
        let all = figures(
            &Results {
                rows,
                ..Results::default()
            },
            &Plan::full(),
        );
        let figure = all.iter().find(|figure| figure.name.starts_with(name));
        figure
            .unwrap_or_else(|| panic!("no figure {name}"))
            .is_reached()
    }

    #[test]
    fn cpu_is_held_against_that_of_plain_tcp() {
        let cpu = |seconds| Sample {
            cpu_s_per_gib: Some(seconds),
            ..Sample::default()
        };
        for (ours, reached) in [(2.2, true), (2.3, false)] {
            let rows = vec![
                with_sample(PLAIN_TCP, DOWNLOAD, cpu(0.45)),
                with_sample(SESSION, DOWNLOAD, cpu(ours)),
            ];
            assert_eq!(
                verdict(rows, "download, one connection: CPU"),
                Some(reached)
            );
        }
    }

    #[test]
    fn opening_may_take_half_a_millisecond_more() {
        let p50 = |us| Sample {
            p50_us: Some(us),
            ..Sample::default()
        };
        for (ours, reached) in [(590.0, true), (610.0, false)] {
            let rows = vec![
                with_sample(PLAIN_TCP, OPEN, p50(100.0)),
                with_sample(SESSION, OPEN, p50(ours)),
            ];
            assert_eq!(verdict(rows, "open, p50"), Some(reached));
        }
    }

    #[test]
    fn a_stalled_crowd_is_held_against_the_quiet_blocks_of_the_same_run() {
        for (p99, reached) in [(240.0, true), (260.0, false)] {
            let row = Row {
                case: SESSION,
                metric: STALLED,
                streams: 100,
                sample: Sample {
                    p99_us: Some(p99),
                    ..Sample::default()
                },
                more: vec![(QUIET_P99, 100.0)],
                ..Row::default()
            };
            assert_eq!(verdict(vec![row], "request beside 100"), Some(reached));
        }
    }

    #[test]
    fn what_was_not_measured_is_neither_reached_nor_missed() {
        assert_eq!(verdict(Vec::new(), "agent idle: memory"), None);
        let all = figures(&Results::default(), &Plan::full());
        assert!(
            all[0].line().starts_with("not measured"),
            "{}",
            all[0].line()
        );
        assert_eq!(all[0].to_json()["reached"], Value::Null);
    }
}
