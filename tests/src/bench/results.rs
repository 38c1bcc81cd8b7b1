//! What was measured, as rows, as a table for people and as JSON for programs.
//!
//! Owns the form of both. Fields of a row are never renamed and always there, `null` where a
//! metric has no such number; new ones may come. Whether a figure is good enough is
//! `figures.rs`, what a comparison of two cases says is `gains.rs`, and the form of documents is
//! `markdown.rs`.

use serde_json::{Map, Value, json};

use super::{
    case::{CASES, PLAIN_TCP, USERSPACE},
    measure::{DOWNLOAD, LOGS, OPEN, REQUEST, Sample, UPLOAD},
    stats::{micros, rounded},
};
use crate::latency::Latencies;

/// One line of the results.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    pub(super) case: &'static str,
    pub(super) metric: &'static str,
    pub(super) streams: u64,
    pub(super) sample: Sample,
    /// What the sample is the median of, in the order of the rounds.
    pub(super) rounds: Vec<Sample>,
    pub(super) agent_rss_kib: Option<u64>,
    pub(super) master_rss_kib: Option<u64>,
    /// Numbers that only this metric has, by their name.
    pub(super) more: Vec<(&'static str, f64)>,
}

/// All rows of a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Results {
    pub(super) rows: Vec<Row>,
    pub(super) distributions: Vec<Distribution>,
}

/// How long so many percent of all took at most, of all rounds together.
#[derive(Clone, Debug)]
pub(super) struct Distribution {
    pub(super) case: &'static str,
    pub(super) metric: &'static str,
    /// Percent, and microseconds.
    pub(super) points: Vec<(usize, f64)>,
}

impl Distribution {
    pub(super) fn of(case: &'static str, metric: &'static str, latencies: &Latencies) -> Self {
        let percents = (1..100).collect::<Vec<_>>();
        let values = latencies.percentiles(&percents);
        let points = percents.into_iter().zip(values.into_iter().map(micros));
        Self {
            case,
            metric,
            points: points.collect(),
        }
    }

    fn to_json(&self) -> Value {
        let points: Vec<_> = self
            .points
            .iter()
            .map(|(percent, us)| json!([percent, rounded(*us, 1)]))
            .collect();
        json!({
            "case": self.case,
            "metric": self.metric,
            "percent_and_us": points,
        })
    }
}

impl Row {
    /// A number that only this metric has.
    pub(super) fn more(&self, name: &str) -> Option<f64> {
        let mut all = self.more.iter();
        all.find_map(|(key, value)| (*key == name).then_some(*value))
    }

    fn to_json(&self) -> Value {
        let number = |value: Option<f64>| json!(value.map(|value| rounded(value, DECIMALS)));
        let mut row = Map::from_iter(
            [
                ("case", json!(self.case)),
                ("metric", json!(self.metric)),
                ("streams", json!(self.streams)),
                ("gib_per_s", number(self.sample.gib_per_s)),
                ("cpu_s_per_gib", number(self.sample.cpu_s_per_gib)),
                ("p50_us", number(self.sample.p50_us)),
                ("p99_us", number(self.sample.p99_us)),
                ("agent_rss_kib", json!(self.agent_rss_kib)),
                ("master_rss_kib", json!(self.master_rss_kib)),
                (
                    "agent_cpu_s_per_gib",
                    number(self.sample.agent_cpu_s_per_gib),
                ),
                (
                    "master_cpu_s_per_gib",
                    number(self.sample.master_cpu_s_per_gib),
                ),
            ]
            .map(|(key, value)| (key.to_owned(), value)),
        );
        for (key, of) in ROUNDS {
            let all: Vec<_> = self.rounds.iter().filter_map(of).collect();
            if !all.is_empty() {
                let all: Vec<_> = all.into_iter().map(|one| rounded(one, DECIMALS)).collect();
                row.insert((*key).to_owned(), json!(all));
            }
        }
        for (key, value) in &self.more {
            row.insert((*key).to_owned(), number(Some(*value)));
        }
        row.into()
    }

    fn cells(&self) -> [String; COLUMNS.len()] {
        let number = |value: Option<f64>, decimals: usize| {
            value.map_or_else(String::new, |value| format!("{value:.decimals$}"))
        };
        let kib = |value: Option<u64>| value.map_or_else(String::new, |value| value.to_string());
        [
            self.case.to_owned(),
            self.metric.to_owned(),
            self.streams.to_string(),
            number(self.sample.gib_per_s, 2),
            number(self.sample.cpu_s_per_gib, 2),
            number(self.sample.agent_cpu_s_per_gib, 2),
            number(self.sample.master_cpu_s_per_gib, 2),
            number(self.sample.p50_us, 0),
            number(self.sample.p99_us, 0),
            kib(self.agent_rss_kib),
            kib(self.master_rss_kib),
        ]
    }
}

impl Results {
    /// The row of a metric with so many streams.
    pub(super) fn row(&self, case: &str, metric: &str, streams: u64) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| (row.case, row.metric, row.streams) == (case, metric, streams))
    }

    /// How many times the base's number another case's is, with one connection.
    pub(super) fn ratio(
        &self,
        case: &str,
        base: &str,
        metric: &str,
        number: Number,
    ) -> Option<f64> {
        let of = |case| number(&self.row(case, metric, 1)?.sample);
        let (ours, base) = (of(case)?, of(base)?);
        (base > 0.0).then(|| ours / base)
    }

    pub(super) fn rows_to_json(&self) -> Value {
        self.rows.iter().map(Row::to_json).collect()
    }

    pub(super) fn distributions_to_json(&self) -> Value {
        let all = self.distributions.iter();
        all.map(Distribution::to_json).collect()
    }

    /// Every other case against each base, with one connection.
    pub(super) fn ratios_to_json(&self) -> Value {
        let mut all = Map::new();
        for base in BASES {
            for case in CASES.iter().filter(|case| case.name != *base) {
                let ratios: Map<String, Value> = RATIOS
                    .iter()
                    .map(|(name, metric, number)| {
                        let ratio = self.ratio(case.name, base, metric, *number);
                        let ratio = ratio.map(|ratio| rounded(ratio, DECIMALS));
                        ((*name).to_owned(), json!(ratio))
                    })
                    .collect();
                all.insert(format!("{}/{base}", case.name), ratios.into());
            }
        }
        all.into()
    }

    /// The rows in columns, the ratios below, and what only some metrics have.
    pub(super) fn table(&self) -> String {
        let mut lines = vec![COLUMNS.map(|(name, _)| name.to_owned())];
        lines.extend(self.rows.iter().map(Row::cells));
        let mut text = aligned(&lines);
        for row in self.rows.iter().filter(|row| !row.more.is_empty()) {
            let more: Vec<_> = row
                .more
                .iter()
                .map(|(name, value)| format!("{name} {}", rounded(*value, 1)))
                .collect();
            let Row {
                case,
                metric,
                streams,
                ..
            } = row;
            text.push_str(&format!("{case} {metric} {streams}: {}\n", more.join(", ")));
        }
        for base in BASES {
            for case in CASES.iter().filter(|case| case.name != *base) {
                let ratios: Vec<_> = RATIOS
                    .iter()
                    .filter_map(|(name, metric, number)| {
                        let ratio = self.ratio(case.name, base, metric, *number)?;
                        Some(format!("{name} {ratio:.2}"))
                    })
                    .collect();
                let ratios = ratios.join(", ");
                text.push_str(&format!("{}/{base}: {ratios}\n", case.name));
            }
        }
        text
    }
}

fn aligned(lines: &[[String; COLUMNS.len()]]) -> String {
    let mut widths = [0; COLUMNS.len()];
    for line in lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.len().max(*width);
        }
    }
    let mut text = String::new();
    for line in lines {
        let cells = line
            .iter()
            .zip(&COLUMNS)
            .zip(widths)
            .map(|((cell, (_, side)), width)| match side {
                Side::Left => format!("{cell:<width$}"),
                Side::Right => format!("{cell:>width$}"),
            });
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Where a column's cells stand.
#[derive(Clone, Copy)]
enum Side {
    Left,
    Right,
}

const COLUMNS: [(&str, Side); 11] = [
    ("case", Side::Left),
    ("metric", Side::Left),
    ("streams", Side::Right),
    ("GiB/s", Side::Right),
    ("CPU s/GiB", Side::Right),
    ("of agent", Side::Right),
    ("of master", Side::Right),
    ("p50 us", Side::Right),
    ("p99 us", Side::Right),
    ("agent KiB", Side::Right),
    ("master KiB", Side::Right),
];

/// Takes a number out of a sample.
pub(super) type Number = fn(&Sample) -> Option<f64>;

/// What the others are held against.
pub(super) const BASES: &[&str] = &[PLAIN_TCP, USERSPACE];

/// The numbers of each round that a row tells.
const ROUNDS: &[(&str, Number)] = &[
    ("gib_per_s_rounds", |sample| sample.gib_per_s),
    ("cpu_s_per_gib_rounds", |sample| sample.cpu_s_per_gib),
    ("p50_us_rounds", |sample| sample.p50_us),
    ("p99_us_rounds", |sample| sample.p99_us),
];

/// The ratios of the results: name, metric, number.
const RATIOS: &[(&str, &str, Number)] = &[
    ("download_throughput", DOWNLOAD, |sample| sample.gib_per_s),
    ("download_cpu", DOWNLOAD, |sample| sample.cpu_s_per_gib),
    ("upload_throughput", UPLOAD, |sample| sample.gib_per_s),
    ("upload_cpu", UPLOAD, |sample| sample.cpu_s_per_gib),
    ("request_p50", REQUEST, |sample| sample.p50_us),
    ("open_p50", OPEN, |sample| sample.p50_us),
    ("kubelet_tls_throughput", LOGS, |sample| sample.gib_per_s),
    ("kubelet_tls_cpu", LOGS, |sample| sample.cpu_s_per_gib),
];

/// Of every number in JSON.
const DECIMALS: i32 = 4;

#[cfg(test)]
mod tests {
    use super::{super::case::SESSION, *};

    fn row(case: &'static str, metric: &'static str, speed: f64, p50: f64) -> Row {
        Row {
            case,
            metric,
            streams: 1,
            sample: Sample {
                gib_per_s: Some(speed),
                cpu_s_per_gib: Some(1.0 / speed),
                p50_us: Some(p50),
                ..Sample::default()
            },
            ..Row::default()
        }
    }

    fn results() -> Results {
        Results {
            rows: vec![
                row(PLAIN_TCP, DOWNLOAD, 4.0, 0.0),
                row(SESSION, DOWNLOAD, 1.0, 0.0),
                row(PLAIN_TCP, OPEN, 1.0, 100.0),
                row(SESSION, OPEN, 1.0, 450.0),
            ],
            ..Results::default()
        }
    }

    #[test]
    fn a_row_has_every_field_of_the_form_even_without_a_number() {
        let row = Row {
            case: SESSION,
            metric: "rss",
            agent_rss_kib: Some(7000),
            more: vec![("agent_rss_file_kib", 5000.0)],
            ..Row::default()
        };
        let json = row.to_json();
        let object = json.as_object().expect("an object");
        for key in [
            "case",
            "metric",
            "streams",
            "gib_per_s",
            "cpu_s_per_gib",
            "p50_us",
            "p99_us",
            "agent_rss_kib",
            "master_rss_kib",
        ] {
            assert!(object.contains_key(key), "{key}");
        }
        assert_eq!(json["gib_per_s"], Value::Null);
        assert_eq!(json["agent_rss_kib"], 7000);
        assert_eq!(json["agent_rss_file_kib"], 5000.0);
    }

    #[test]
    fn ratios_are_ours_over_the_limit() {
        let ratios = &results().ratios_to_json()["session/plain-tcp"];
        assert_eq!(ratios["download_throughput"], 0.25);
        assert_eq!(ratios["download_cpu"], 4.0);
        assert_eq!(ratios["open_p50"], 4.5);
        assert_eq!(ratios["upload_cpu"], Value::Null, "it was not measured");
        assert_eq!(ratios.as_object().expect("an object").len(), RATIOS.len());
    }

    #[test]
    fn nothing_is_divided_by_nothing() {
        let mut results = results();
        results.rows[0].sample.gib_per_s = Some(0.0);
        assert_eq!(
            results.ratio(SESSION, PLAIN_TCP, DOWNLOAD, |s| s.gib_per_s),
            None
        );
    }

    #[test]
    fn each_round_is_told_beside_the_median() {
        let mut row = row(SESSION, DOWNLOAD, 1.0, 0.0);
        let sample = row.sample;
        row.rounds = vec![sample, sample];
        assert_eq!(row.to_json()["gib_per_s_rounds"], json!([1.0, 1.0]));
    }

    #[test]
    fn a_distribution_has_every_percent() {
        let mut latencies = Latencies::default();
        for us in 1..=1000 {
            latencies.add(std::time::Duration::from_micros(us));
        }
        let all = Distribution::of(SESSION, OPEN, &latencies);
        assert_eq!(all.points.len(), 99);
        assert_eq!(all.points[49], (50, 500.0));
    }

    #[test]
    fn columns_of_the_table_line_up() {
        let table = results().table();
        let mut lines = table.lines();
        let head = lines.next().expect("a head");
        let first = lines.next().expect("a row");
        let end = head.find("GiB/s").expect("a column") + "GiB/s".len();
        assert_eq!(&first[end - 4..end], "4.00", "{table}");
        assert!(
            table.contains("session/plain-tcp: download_throughput 0.25"),
            "{table}"
        );
    }
}
