//! The figures of `proxymux-master perf` as people see them.
//!
//! Owns the table that is made of the state that the admin address gives. It is read from a running
//! master, which may be of another version, so that what is not there is left out.

use proxymux_transport::command::{Table, number, rtt, text};
use serde_json::Value;

/// The figures as text.
#[must_use]
pub fn show(state: &Value) -> String {
    let mut table = Table::new(&[
        "PATH", "DOWNLOAD", "CPU", "UPLOAD", "CPU", "REQUEST", "P99", "OPEN", "P99",
    ]);
    let paths = state.get("paths").and_then(Value::as_array);
    let mut problems = String::new();
    for path in paths.into_iter().flatten() {
        let time = |field| number(path, field).map(rtt).unwrap_or_default();
        table.row([
            text(path, "/path"),
            rate(path, "/download_gib_per_s"),
            cpu(path, "download"),
            rate(path, "/upload_gib_per_s"),
            cpu(path, "upload"),
            time("/request_p50_us"),
            time("/request_p99_us"),
            time("/open_p50_us"),
            time("/open_p99_us"),
        ]);
        if let Some(problem) = path.get("problem").and_then(Value::as_str) {
            let path = text(path, "/path");
            problems.push_str(&format!("{path}: {problem}\n"));
        }
    }
    let mut shown = format!(
        "node {}, {} s each way on one connection\n\n{}\nCPU: seconds for each GiB, of \
         master+agent; REQUEST, OPEN: medians\n",
        text(state, "/node"),
        text(state, "/seconds"),
        table.show()
    );
    if !problems.is_empty() {
        shown.push_str(&format!("\n{problems}"));
    }
    shown
}

/// What is being measured now.
#[must_use]
pub fn progress(state: &Value) -> String {
    text(state, "/doing")
}

/// Whether nothing more will come.
#[must_use]
pub fn is_over(state: &Value) -> bool {
    state.get("done").and_then(Value::as_bool) == Some(true)
}

fn rate(path: &Value, field: &str) -> String {
    let rate = path.pointer(field).and_then(Value::as_f64);
    rate.map(|gib| format!("{:.0} MiB/s", gib * 1024.0))
        .unwrap_or_default()
}

fn cpu(path: &Value, way: &str) -> String {
    let of = |who: &str| {
        let field = format!("/{way}_{who}_cpu_s_per_gib");
        path.pointer(&field).and_then(Value::as_f64)
    };
    match (of("master"), of("agent")) {
        (Some(master), Some(agent)) => format!("{master:.2}+{agent:.2}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_are_rows_and_problems_stand_below() {
        let state = json!({ "node": "10.0.10.10", "seconds": 5, "done": true, "paths": [
            { "path": "session", "open_p50_us": 420, "open_p99_us": 900,
              "request_p50_us": 150, "request_p99_us": 300,
              "download_gib_per_s": 0.5, "download_master_cpu_s_per_gib": 0.7,
              "download_agent_cpu_s_per_gib": 0.93, "upload_gib_per_s": 0.25,
              "upload_master_cpu_s_per_gib": 1.0, "upload_agent_cpu_s_per_gib": 1.254 },
            { "path": "direct", "problem": "not usable now: not-steered" },
        ] });
        assert_eq!(
            show(&state),
            "\
node 10.0.10.10, 5 s each way on one connection

PATH     DOWNLOAD   CPU        UPLOAD     CPU        REQUEST  P99     OPEN    P99
session  512 MiB/s  0.70+0.93  256 MiB/s  1.00+1.25  0.15ms   0.30ms  0.42ms  0.90ms
direct   -          -          -          -          -        -       -       -

CPU: seconds for each GiB, of master+agent; REQUEST, OPEN: medians

direct: not usable now: not-steered
"
        );
        assert!(is_over(&state));
    }
}
