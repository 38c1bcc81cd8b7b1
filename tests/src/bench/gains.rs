//! Which gain comes from what: pairs of cases that differ in one thing.
//!
//! Owns the pairs and the arithmetic. Both cases of a pair took turns in each round, so they are
//! compared round by round: a change is told as one only if it went the same way in every round and
//! is larger than [`TOO_SMALL`]. Zero and negative gains are told like the others.

use serde_json::{Value, json};

use super::{
    case::{DIRECT, PLAIN_TCP, REVERSE, REVERSE_COPY, SESSION, STEERED_PLAIN, USERSPACE},
    measure::{DOWNLOAD, OPEN, REQUEST, UPLOAD},
    results::{Number, Results},
    stats::{median, rounded},
};

/// What a pair of cases shows.
#[derive(Clone, Debug)]
pub(super) struct Gain {
    pair: &'static Pair,
    changes: Vec<Change>,
}

/// Two cases that differ in one thing.
#[derive(Debug)]
struct Pair {
    what: &'static str,
    from: &'static str,
    to: &'static str,
}

/// How many times the number of the first case the second's is.
#[derive(Clone, Copy, Debug)]
struct Change {
    name: &'static str,
    ratio: f64,
    /// The same way in every round, and not too small.
    certain: bool,
}

const PAIRS: &[Pair] = &[
    Pair {
        what: "no second encryption and no multiplexer",
        from: SESSION,
        to: REVERSE_COPY,
    },
    Pair {
        what: "splice instead of copying",
        from: REVERSE_COPY,
        to: REVERSE,
    },
    Pair {
        what: "steering, which lets the master dial, instead of flows that the agent dialled",
        from: REVERSE,
        to: DIRECT,
    },
    Pair {
        what: "steering of a connection that could go to the kubelet by itself",
        from: PLAIN_TCP,
        to: STEERED_PLAIN,
    },
    Pair {
        what: "eBPF on the NIC, on a path that it does not steer",
        from: USERSPACE,
        to: SESSION,
    },
    Pair {
        what: "all of it, where the node cannot be dialled",
        from: USERSPACE,
        to: REVERSE,
    },
    Pair {
        what: "all of it, where the node can be dialled",
        from: USERSPACE,
        to: DIRECT,
    },
];

/// Pairs of which both cases were measured.
pub(super) fn gains(results: &Results) -> Vec<Gain> {
    let all = PAIRS.iter().map(|pair| Gain {
        pair,
        changes: NUMBERS
            .iter()
            .filter_map(|(name, metric, number)| change(results, pair, name, metric, *number))
            .collect(),
    });
    all.filter(|gain| !gain.changes.is_empty()).collect()
}

fn change(
    results: &Results,
    pair: &Pair,
    name: &'static str,
    metric: &str,
    number: Number,
) -> Option<Change> {
    let rounds = |case| -> Option<Vec<f64>> {
        let row = results.row(case, metric, 1)?;
        row.rounds.iter().map(number).collect()
    };
    let (from, to) = (rounds(pair.from)?, rounds(pair.to)?);
    let ratios: Vec<f64> = from
        .into_iter()
        .zip(to)
        .filter(|(from, _)| *from > 0.0)
        .map(|(from, to)| to / from)
        .collect();
    let ratio = median(ratios.iter().copied())?;
    let all = |side: fn(&f64) -> bool| ratios.iter().all(side);
    let one_way = all(|ratio| *ratio > 1.0) || all(|ratio| *ratio < 1.0);
    Some(Change {
        name,
        ratio,
        certain: one_way && (ratio - 1.0).abs() > TOO_SMALL,
    })
}

impl Gain {
    /// The thing in which both differ.
    pub(super) fn what(&self) -> &'static str {
        self.pair.what
    }

    /// The names of both cases.
    pub(super) fn cases(&self) -> (&'static str, &'static str) {
        (self.pair.from, self.pair.to)
    }

    /// One cell for each of [`names`].
    pub(super) fn cells(&self) -> Vec<String> {
        let cell = |name: &&str| {
            let change = self.changes.iter().find(|change| change.name == *name);
            change.map_or_else(String::new, |change| change.words())
        };
        names().iter().map(cell).collect()
    }

    /// One line for people.
    pub(super) fn line(&self) -> String {
        let Pair { what, from, to } = self.pair;
        let changes: Vec<_> = self
            .changes
            .iter()
            .map(|change| format!("{} {}", change.name, change.words()))
            .collect();
        format!("{what} ({from} -> {to}): {}", changes.join("; "))
    }

    pub(super) fn to_json(&self) -> Value {
        let changes: Vec<_> = self
            .changes
            .iter()
            .map(|change| {
                json!({
                    "name": change.name,
                    "ratio": rounded(change.ratio, 4),
                    "certain": change.certain,
                })
            })
            .collect();
        json!({
            "what": self.pair.what,
            "from": self.pair.from,
            "to": self.pair.to,
            "changes": changes,
        })
    }
}

impl Change {
    fn words(self) -> String {
        let times = format!("{:.2} times", self.ratio);
        if self.certain {
            times
        } else {
            format!("{times} (noise)")
        }
    }
}

/// What is compared.
pub(super) fn names() -> Vec<&'static str> {
    NUMBERS.iter().map(|(name, ..)| *name).collect()
}

const NUMBERS: &[(&str, &str, Number)] = &[
    ("download speed", DOWNLOAD, |sample| sample.gib_per_s),
    ("download CPU", DOWNLOAD, |sample| sample.cpu_s_per_gib),
    ("upload speed", UPLOAD, |sample| sample.gib_per_s),
    ("upload CPU", UPLOAD, |sample| sample.cpu_s_per_gib),
    ("request p50", REQUEST, |sample| sample.p50_us),
    ("open p50", OPEN, |sample| sample.p50_us),
];

/// What the same case differs by from round to round on a machine that others use.
const TOO_SMALL: f64 = 0.03;

#[cfg(test)]
mod tests {
    use super::{
        super::{measure::Sample, results::Row},
        *,
    };

    fn row(case: &'static str, speeds: &[f64]) -> Row {
        let sample = |speed: &f64| Sample {
            gib_per_s: Some(*speed),
            ..Sample::default()
        };
        Row {
            case,
            metric: DOWNLOAD,
            streams: 1,
            rounds: speeds.iter().map(sample).collect(),
            ..Row::default()
        }
    }

    fn words(from: &[f64], to: &[f64]) -> String {
        let rows = vec![row(REVERSE_COPY, from), row(REVERSE, to)];
        let results = Results {
            rows,
            ..Results::default()
        };
        let all = gains(&results);
        assert_eq!(all.len(), 1, "only one pair was measured");
        all[0].line()
    }

    #[test]
    fn what_went_the_same_way_in_every_round_is_a_change() {
        let line = words(&[1.0, 2.0, 1.0], &[1.5, 3.0, 1.2]);
        let expected = "splice instead of copying (reverse-copy -> reverse): \
                        download speed 1.50 times";
        assert_eq!(line, expected);
        assert!(words(&[1.0, 1.0], &[0.5, 0.5]).ends_with("0.50 times"));
    }

    #[test]
    fn what_is_small_or_goes_both_ways_is_noise() {
        for to in [[1.01, 1.02, 1.01], [1.5, 0.9, 1.5]] {
            let line = words(&[1.0, 1.0, 1.0], &to);
            assert!(line.ends_with("(noise)"), "{line}");
        }
    }
}
