//! The promises of the fast paths.
//!
//! Owns how they are held against the floor of two bare splice hops, against plain TCP, against the
//! session path and against the program in pure user space, all in the same run.

use super::{
    super::{
        case::{CASES, DIRECT, PLAIN_TCP, REVERSE, SESSION, SPLICE_FLOOR, USERSPACE},
        confined::{CONFINED_DOWNLOAD, CONFINED_STALLED, CONFINED_UPLOAD, GONE_ON},
        measure::{DOWNLOAD, OPEN, REQUEST, UPLOAD},
        plan::Plan,
        results::Results,
    },
    Bound, Figure, IDLE_CONNECTIONS, KERNEL_FIRST, KERNEL_LATER, PIPES, RSS, mib,
};

pub(super) fn figures(results: &Results, plan: &Plan) -> Vec<Figure> {
    let mut all = Vec::new();
    for case in FAST {
        all.extend(of_bulk(results, case));
        all.push(of_requests(results, case));
    }
    let open = |case| results.row(case, OPEN, 1)?.sample.p50_us;
    all.push(Figure {
        name: format!("{REVERSE}: open, p50"),
        bound: Bound::AtMost(open(SESSION).unwrap_or(f64::NAN)),
        unit: "us (session)",
        measured: open(SESSION).and_then(|_| open(REVERSE)),
    });
    all.extend(of_idle_connections(results, plan));
    all.extend(of_stalled(results, plan));
    all.extend(of_small_groups(results, plan));
    all
}

fn of_bulk(results: &Results, case: &str) -> Vec<Figure> {
    let mut all = Vec::new();
    for metric in [DOWNLOAD, UPLOAD] {
        for (base, of_base, speed, cpu) in [
            (SPLICE_FLOOR, "of splice-floor", 0.85, 1.15),
            (PLAIN_TCP, "of plain TCP", 0.38, 2.8),
        ] {
            all.push(Figure {
                name: format!("{case}: {metric}, one connection: CPU per GiB"),
                bound: Bound::AtMost(cpu),
                unit: of_base,
                measured: results.ratio(case, base, metric, |sample| sample.cpu_s_per_gib),
            });
            all.push(Figure {
                name: format!("{case}: {metric}, one connection: throughput"),
                bound: Bound::AtLeast(speed),
                unit: of_base,
                measured: results.ratio(case, base, metric, |sample| sample.gib_per_s),
            });
        }
    }
    all
}

fn of_requests(results: &Results, case: &str) -> Figure {
    let p50 = |case| results.row(case, REQUEST, 1)?.sample.p50_us;
    let bases = p50(PLAIN_TCP).zip(p50(SPLICE_FLOOR));
    let most = bases.map(|(plain, floor)| (4.0 * plain).max(floor + 40.0));
    Figure {
        name: format!("{case}: request, p50"),
        bound: Bound::AtMost(most.unwrap_or(f64::NAN)),
        unit: "us (4 times plain TCP, or splice-floor and 40 us)",
        measured: most.and_then(|_| p50(case)),
    }
}

fn of_idle_connections(results: &Results, plan: &Plan) -> Vec<Figure> {
    let count = plan.idle_connections;
    let of = |case| {
        let row = results.row(case, IDLE_CONNECTIONS, count);
        [
            Figure {
                name: format!("{case}: agent with {count} idle connections: memory"),
                bound: Bound::Below(24.0),
                unit: "MiB",
                measured: row.and_then(|row| row.agent_rss_kib).map(mib),
            },
            Figure {
                name: format!("{case}: agent with {count} idle connections: pipes in use"),
                bound: Bound::AtMost(0.0),
                unit: "pipes",
                measured: row.and_then(|row| row.more(PIPES)),
            },
        ]
    };
    FAST.into_iter().flat_map(of).collect()
}

fn of_stalled(results: &Results, plan: &Plan) -> Vec<Figure> {
    let streams = plan.memory.streams;
    let of = |case| {
        let row = results.row(case, RSS, streams);
        let first = row.and_then(|row| row.more(KERNEL_FIRST));
        let later = row.and_then(|row| row.more(KERNEL_LATER));
        [
            Figure {
                name: format!("{case}: {streams} stalled downloads: sockets and pipes of both"),
                bound: Bound::Below(200.0),
                unit: "MiB",
                measured: later,
            },
            Figure {
                name: format!("{case}: {streams} stalled downloads: what these grow later"),
                // Acknowledgements and keepalives come and go.
                bound: Bound::AtMost(1.0),
                unit: "MiB",
                measured: later.zip(first).map(|(later, first)| later - first),
            },
        ]
    };
    FAST.into_iter().flat_map(of).collect()
}

fn of_small_groups(results: &Results, plan: &Plan) -> Vec<Figure> {
    let mut all = Vec::new();
    for case in FAST {
        for metric in [CONFINED_DOWNLOAD, CONFINED_UPLOAD] {
            all.push(Figure {
                name: format!("{case}: {metric}: throughput"),
                bound: Bound::AtLeast(3.0),
                unit: "times userspace",
                measured: results.ratio(case, USERSPACE, metric, |sample| sample.gib_per_s),
            });
        }
    }
    let streams = plan.confined.stalling.streams;
    for case in CASES.iter().filter(|case| case.tunnel().is_some()) {
        let row = results.row(case.name, CONFINED_STALLED, streams);
        #[expect(clippy::cast_precision_loss, reason = "hundreds")]
        let every = streams as f64;
        all.push(Figure {
            name: format!("{}: {streams} stalled downloads that then go on", case.name),
            bound: Bound::AtLeast(every),
            unit: "of them, in a group of half a processor and 256 MiB",
            measured: row.and_then(|row| row.more(GONE_ON)),
        });
    }
    all
}

const FAST: [&str; 2] = [REVERSE, DIRECT];
