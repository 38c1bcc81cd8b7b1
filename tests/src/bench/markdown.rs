//! The results as a document for people.
//!
//! Owns its order and words; every number comes from the one run that it is made of, and what it
//! was made on stands at its top. `docs/performance.md` is such a document. Pictures are linked
//! where they were drawn.

use std::fmt::Write as _;

use super::{
    case::{CASES, PLAIN_TCP, SPLICE_FLOOR, USERSPACE},
    confined::{CONFINED_DOWNLOAD, CONFINED_STALLED, CONFINED_UPLOAD, GONE_ON, THROTTLED},
    figures::{
        FLEET, FLEET_BACK, FLEET_CONNECTED, FLEET_SESSION, Figure, IDLE_CONNECTIONS, KERNEL_FIRST,
        KERNEL_LATER, PIPES, QUIET_P99, RSS, STALLED,
    },
    gains::{self, Gain},
    machine::Machine,
    measure::{DOWNLOAD, LOGS, OPEN, REQUEST, UPLOAD},
    plan::Plan,
    plots::Plot,
    results::{Number, Results, Row},
    stats::median,
};

/// All that a document says.
pub(super) struct Document<'a> {
    pub(super) machine: &'a Machine,
    pub(super) plan: &'a Plan,
    pub(super) results: &'a Results,
    pub(super) gains: &'a [Gain],
    pub(super) figures: &'a [Figure],
    pub(super) background: f64,
    /// Pictures, and where they are from the document's point of view.
    pub(super) plots: &'a [Plot],
    pub(super) plots_at: Option<&'a str>,
}

impl Document<'_> {
    pub(super) fn text(&self) -> String {
        let mut text = String::from(HEAD);
        for part in [
            self.machine(),
            self.cases(),
            self.bulk(),
            self.latencies(),
            self.gains(),
            self.memory(),
            self.confined(),
            self.fleet(),
            self.promises(),
        ] {
            text.push_str(&part);
        }
        text.push_str(REPEAT);
        text
    }

    fn machine(&self) -> String {
        let mut text = format!("## The machine and its noise\n\n{}.\n", self.machine.line());
        let Plan { rounds, .. } = self.plan;
        let _ = write!(
            text,
            "A {} run: medians of {rounds} rounds, in each of which every case took its turn.\n\
             With nothing of this to do the machine spent {:.2} processor seconds per second on \
             other things.\n",
            self.plan.name, self.background
        );
        if self.background > super::BUSY {
            text.push_str(
                "That is a lot: speeds and latencies of this run are those of a crowded machine.\n",
            );
        }
        let rows = self.results.rows.iter();
        let spreads = rows
            .filter(|row| row.metric == DOWNLOAD || row.metric == UPLOAD)
            .filter_map(|row| spread(row, |sample| sample.gib_per_s));
        if rounds > &1
            && let Some(spread) = median(spreads)
        {
            let _ = writeln!(
                text,
                "From its slowest to its fastest round the throughput of a case differed by {:.0} \
                 percent of its median (the median of all bulk transfers).",
                spread * 100.0
            );
        }
        text
    }

    /// Whose processor time the tables have.
    fn cpu(&self) -> &'static str {
        if self.background > super::BUSY {
            "CPU is that of the client, the far end and what is between them, in seconds per GiB, by \
             their own accounts: on a machine that does other things the whole cannot be told apart, \
             and what the kernel does for them elsewhere is missing; beside it that of the agent and \
             the master (or the two hops).\n"
        } else {
            "CPU is that of the whole machine, with client and far end, in seconds per GiB; beside it \
             that of the agent and the master (or the two hops) by their own accounts.\n"
        }
    }

    fn cases(&self) -> String {
        let lines = CASES
            .iter()
            .map(|case| vec![format!("`{}`", case.name), case.what.to_owned()]);
        section(
            "What is compared",
            "Client and far end are the same in every case, and so are the router and the links \
             between them.\n\
             After each measurement the access logs and the counters of both daemons are held \
             against every byte that the client has counted: one that went by another path fails \
             the run.\n\
             The nodes keep nothing of connections that have ended (`net.ipv4.tcp_max_tw_buckets` is \
             0): elsewhere the kernel remembers them for a minute, and steering leaves a new \
             connection from the same address and port to the kubelet, some of a thousand here.\n",
            &["case", "what it is"],
            lines,
        )
    }

    fn bulk(&self) -> String {
        let mut text = String::new();
        for &streams in self.plan.streams {
            let connections = if streams == 1 {
                "one connection".to_owned()
            } else {
                format!("{streams} connections")
            };
            let lines = CASES.iter().filter_map(|case| {
                let of = |metric| self.results.row(case.name, metric, streams);
                let (down, up) = (of(DOWNLOAD)?, of(UPLOAD)?);
                Some(vec![
                    format!("`{}`", case.name),
                    decimals(down.sample.gib_per_s, 2),
                    decimals(down.sample.cpu_s_per_gib, 2),
                    own_cpu(down),
                    decimals(up.sample.gib_per_s, 2),
                    decimals(up.sample.cpu_s_per_gib, 2),
                    own_cpu(up),
                ])
            });
            text.push_str(&section(
                &format!("Bulk transfers, {connections}"),
                &format!(
                    "{} GiB each.\n{}",
                    decimals(Some(super::stats::gib(self.plan.transfer_bytes)), 2),
                    self.cpu()
                ),
                &[
                    "case",
                    "download GiB/s",
                    "CPU s/GiB",
                    "agent + master",
                    "upload GiB/s",
                    "CPU s/GiB",
                    "agent + master",
                ],
                lines,
            ));
        }
        text.push_str(&self.pictures(&["throughput.svg", "cpu.svg"]));
        for base in [PLAIN_TCP, USERSPACE, SPLICE_FLOOR] {
            text.push_str(&self.ratios(base));
        }
        let lines = CASES.iter().filter_map(|case| {
            let row = self.results.row(case.name, LOGS, 1)?;
            Some(vec![
                format!("`{}`", case.name),
                decimals(row.sample.gib_per_s, 2),
                decimals(row.sample.cpu_s_per_gib, 2),
                own_cpu(row),
            ])
        });
        text.push_str(&section(
            "Logs of a kubelet over TLS",
            "What `kubectl logs` does, end to end: the client speaks TLS with a stand-in for the \
             kubelet, which writes its log as it is read.\n\
             Both ends' own work, with TLS in each, is the same in every case and most of it.\n",
            &["case", "GiB/s", "CPU s/GiB", "agent + master"],
            lines,
        ));
        text
    }

    fn ratios(&self, base: &str) -> String {
        let ratio = |case, metric, number: Number| {
            decimals(self.results.ratio(case, base, metric, number), 2)
        };
        let mut lines = Vec::new();
        for case in CASES.iter().filter(|case| case.name != base) {
            if self.results.row(case.name, DOWNLOAD, 1).is_none() {
                continue;
            }
            lines.push(vec![
                format!("`{}`", case.name),
                ratio(case.name, DOWNLOAD, |sample| sample.gib_per_s),
                ratio(case.name, DOWNLOAD, |sample| sample.cpu_s_per_gib),
                ratio(case.name, UPLOAD, |sample| sample.gib_per_s),
                ratio(case.name, UPLOAD, |sample| sample.cpu_s_per_gib),
                ratio(case.name, REQUEST, |sample| sample.p50_us),
                ratio(case.name, OPEN, |sample| sample.p50_us),
                ratio(case.name, LOGS, |sample| sample.gib_per_s),
            ]);
        }
        section(
            &format!("In times of `{base}`"),
            "One connection.\n",
            &[
                "case",
                "download speed",
                "download CPU",
                "upload speed",
                "upload CPU",
                "request p50",
                "open p50",
                "logs speed",
            ],
            lines.into_iter(),
        )
    }

    fn latencies(&self) -> String {
        let lines = CASES.iter().filter_map(|case| {
            let request = self.results.row(case.name, REQUEST, 1)?.sample;
            let open = self.results.row(case.name, OPEN, 1)?.sample;
            Some(vec![
                format!("`{}`", case.name),
                decimals(request.p50_us, 0),
                decimals(request.p99_us, 0),
                decimals(open.p50_us, 0),
                decimals(open.p99_us, 0),
            ])
        });
        let mut text = section(
            "Latencies",
            "Microseconds; a request is 512 bytes and as many back on an open connection, opening \
             counts up to the first byte back from the far end.\n",
            &["case", "request p50", "p99", "open p50", "p99"],
            lines,
        );
        text.push_str(&self.pictures(&["request-latency.svg", "open-latency.svg"]));
        let mut beside = String::new();
        for row in self.rows(STALLED) {
            let _ = writeln!(
                beside,
                "* `{}`: a request beside {} stalled downloads takes {} us at the 99th percentile, \
                 and {} us without them.",
                row.case,
                row.streams,
                decimals(row.sample.p99_us, 0),
                decimals(row.more(QUIET_P99), 0)
            );
        }
        if !beside.is_empty() {
            let _ = write!(text, "\n{beside}");
        }
        text
    }

    fn gains(&self) -> String {
        let lines = self.gains.iter().map(|gain| {
            let (from, to) = gain.cases();
            let mut cells = vec![format!("{}: `{from}` to `{to}`", gain.what())];
            cells.extend(gain.cells());
            cells
        });
        let mut columns = vec!["what changes"];
        columns.extend(gains::names());
        section(
            "Where the gains come from",
            "Pairs of cases that differ in one thing, compared round by round; more speed is better, \
             more CPU and more time are worse.\n\
             A change that did not go the same way in every round, or is within 3 percent, is marked \
             as noise.\n\
             Steering avoids no copy: it lets the master dial a node, so `direct` is not to be \
             expected to be faster than `reverse`, and a connection that needs no tunnel pays for \
             being steered.\n",
            &columns,
            lines,
        )
    }

    fn memory(&self) -> String {
        let mib = |kib: Option<u64>| kib.map_or_else(String::new, |kib| (kib >> 10).to_string());
        let lines = self
            .rows(RSS)
            .chain(self.rows(IDLE_CONNECTIONS))
            .map(|row| {
                let what = match (row.metric, row.streams) {
                    (RSS, 0) => "idle".to_owned(),
                    (RSS, streams) => format!("{streams} stalled downloads"),
                    (_, streams) => format!("{streams} idle connections"),
                };
                vec![
                    format!("`{}`", row.case),
                    what,
                    mib(row.agent_rss_kib),
                    mib(row.master_rss_kib),
                    decimals(row.more("agent_kernel_mib"), 1),
                    decimals(row.more("master_kernel_mib"), 1),
                    decimals(row.more(KERNEL_FIRST), 1),
                    decimals(row.more(KERNEL_LATER), 1),
                    decimals(row.more(PIPES), 0),
                ]
            });
        let [first, later] = self.plan.looks;
        let idle = self.plan.idle;
        section(
            "Memory",
            &format!(
                "MiB: resident memory of each daemon, and what the kernel holds in sockets and pipes \
                 for each.\n\
                 Idle daemons are looked at after {idle:?}, before anything was asked of them; an agent \
                 at rest has then unmapped the pages of its program that it does not use.\n\
                 Stalled downloads ran at full speed for {} MiB each and were then not read any more; \
                 what both daemons' sockets and pipes hold is told {first:?} and {later:?} after the \
                 last of them stood.\n",
                self.plan.memory.run_in >> 20
            ),
            &[
                "case",
                "what",
                "agent RSS",
                "master RSS",
                "agent kernel",
                "master kernel",
                "both, at first",
                "both, later",
                "agent's pipes in use",
            ],
            lines,
        )
    }

    fn confined(&self) -> String {
        let lines = CASES.iter().filter_map(|case| {
            let of = |metric| self.results.row(case.name, metric, 1);
            let (down, up) = (of(CONFINED_DOWNLOAD)?, of(CONFINED_UPLOAD)?);
            let speed: Number = |sample| sample.gib_per_s;
            let times = |metric| {
                let ratio = self.results.ratio(case.name, USERSPACE, metric, speed);
                decimals(ratio, 2)
            };
            let stalled = self
                .rows(CONFINED_STALLED)
                .find(|row| row.case == case.name);
            Some(vec![
                format!("`{}`", case.name),
                decimals(down.sample.gib_per_s, 2),
                times(CONFINED_DOWNLOAD),
                decimals(down.more(THROTTLED), 2),
                decimals(up.sample.gib_per_s, 2),
                times(CONFINED_UPLOAD),
                decimals(up.more(THROTTLED), 2),
                decimals(stalled.and_then(|row| row.more(GONE_ON)), 0),
                decimals(stalled.and_then(|row| row.more("peak_mib")), 0),
            ])
        });
        section(
            "An agent with half a processor and 256 MiB",
            "The agent alone is in a control group with the limits of the DaemonSet that it \
             replaces; master, client and far end are not.\n\
             Held back is for how long the agent was kept from running, in seconds per GiB.\n",
            &[
                "case",
                "download GiB/s",
                "times userspace",
                "held back",
                "upload GiB/s",
                "times userspace",
                "held back",
                "stalled downloads that went on",
                "peak MiB",
            ],
            lines,
        )
    }

    fn fleet(&self) -> String {
        let mut text = String::new();
        for row in self.rows(FLEET) {
            let _ = write!(
                text,
                "\n## A fleet\n\n\
                 {} agents of one master are connected after {} s and back {} s after it was killed; \
                 each costs it {} KiB.\n",
                row.streams,
                decimals(row.more(FLEET_CONNECTED), 1),
                decimals(row.more(FLEET_BACK), 1),
                decimals(row.more(FLEET_SESSION), 0),
            );
        }
        text
    }

    fn promises(&self) -> String {
        let lines = self.figures.iter().map(|figure| figure.cells().to_vec());
        section(
            "Promises, and whether this run kept them",
            "",
            &["", "what", "measured", "wanted"],
            lines,
        )
    }

    fn rows(&self, metric: &'static str) -> impl Iterator<Item = &Row> {
        let rows = self.results.rows.iter();
        rows.filter(move |row| row.metric == metric)
    }

    fn pictures(&self, names: &[&str]) -> String {
        let mut text = String::new();
        let Some(at) = self.plots_at else { return text };
        for plot in self.plots.iter().filter(|plot| names.contains(&plot.name)) {
            let _ = write!(text, "\n![{}]({at}/{})\n", plot.title, plot.name);
        }
        text
    }
}

/// Nothing if the table would have no line.
fn section(
    title: &str,
    before: &str,
    columns: &[&str],
    lines: impl Iterator<Item = Vec<String>>,
) -> String {
    let lines: Vec<_> = lines.collect();
    if lines.is_empty() {
        return String::new();
    }
    let mut text = format!("\n## {title}\n\n");
    if !before.is_empty() {
        let _ = writeln!(text, "{before}");
    }
    let _ = writeln!(text, "| {} |", columns.join(" | "));
    let _ = writeln!(text, "|{}", "---|".repeat(columns.len()));
    for line in lines {
        let _ = writeln!(text, "| {} |", line.join(" | "));
    }
    text
}

fn decimals(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(String::new, |value| format!("{value:.decimals$}"))
}

/// Of both in the middle, if the case has any.
fn own_cpu(row: &Row) -> String {
    let sample = &row.sample;
    let both = sample.agent_cpu_s_per_gib.zip(sample.master_cpu_s_per_gib);
    both.map_or_else(String::new, |(agent, master)| {
        format!("{agent:.2} + {master:.2}")
    })
}

/// From the least to the largest of all rounds, as a share of the median.
fn spread(row: &Row, number: Number) -> Option<f64> {
    let all: Vec<_> = row.rounds.iter().filter_map(number).collect();
    let middle = median(all.iter().copied()).filter(|middle| *middle > 0.0)?;
    let least = all.iter().copied().fold(f64::MAX, f64::min);
    let most = all.iter().copied().fold(0.0, f64::max);
    Some((most - least) / middle)
}

const HEAD: &str = "\
# What it costs

This document is made from one run of the bench (`cargo xtask bench --docs`); nobody edits it.
Absolute figures are those of the machine below, on which client, far end, router and both daemons share the processors: compare within the run only.

";

const REPEAT: &str = "
## How to repeat it

```sh
cargo xtask bench                 # some minutes, as root; prints everything
cargo xtask bench --quick         # less of everything, within two minutes once built
cargo xtask bench --json results.json --markdown results.md --plots plots
cargo xtask bench --docs          # writes this document and its pictures
```

Let the machine do nothing else: the bench says what it did before and beside, and the spread of its rounds.
The daemons are built as they are shipped.
JSON has every round of every row, and the distribution of all latencies.
";

#[cfg(test)]
mod tests {
    use super::{
        super::{case::SESSION, gains::gains, measure::Sample, plots::plots},
        *,
    };

    fn row(case: &'static str, metric: &'static str, speed: f64) -> Row {
        let sample = Sample {
            gib_per_s: Some(speed),
            cpu_s_per_gib: Some(1.0 / speed),
            ..Sample::default()
        };
        Row {
            case,
            metric,
            streams: 1,
            sample,
            rounds: vec![sample, sample],
            ..Row::default()
        }
    }

    #[test]
    fn a_document_says_what_was_measured_and_on_what() {
        let machine = Machine::look().unwrap();
        let mut results = Results::default();
        for case in [PLAIN_TCP, USERSPACE, SESSION] {
            for metric in [DOWNLOAD, UPLOAD] {
                results.rows.push(row(case, metric, 2.0));
            }
        }
        let plots = plots(&results);
        let plan = Plan::full();
        let document = Document {
            machine: &machine,
            plan: &plan,
            results: &results,
            gains: &gains(&results),
            figures: &super::super::figures::figures(&results, &plan),
            background: 0.02,
            plots: &plots,
            plots_at: Some("performance"),
        };

        let text = document.text();

        for expected in [
            "# What it costs",
            &machine.line(),
            "| `session` | 2.00 | 0.50 |",
            "## In times of `plain-tcp`",
            "![Throughput of one connection](performance/throughput.svg)",
            "differed by 0 percent",
            "`userspace` to `session` | 1.00 times (noise)",
            "| not measured |",
            "cargo xtask bench --docs",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        assert!(!text.contains("A fleet"), "it was not measured");
    }

    #[test]
    fn the_spread_is_a_share_of_the_median() {
        let mut row = row(SESSION, DOWNLOAD, 2.0);
        for (sample, speed) in row.rounds.iter_mut().zip([1.0, 3.0]) {
            sample.gib_per_s = Some(speed);
        }
        assert_eq!(spread(&row, |sample| sample.gib_per_s), Some(1.0));
    }
}
