//! The agent's status as people see it: `proxymux-agent status`.
//!
//! Owns the table that is made of what `admin.rs` answers. It is read from a running agent, which
//! may be of another version, so that what is not there is left out.

use proxymux_transport::command::{Table, age, lines, number, reasons, rtt, text};
use serde_json::Value;

/// The status as text.
#[must_use]
pub fn show(status: &Value) -> String {
    let mode = format!(
        "{} ({})",
        text(status, "/mode"),
        text(status, "/mode_reason")
    );
    let mut shown = lines([
        ("node", text(status, "/node")),
        ("node-id", text(status, "/node_id")),
        ("ready", ready(status)),
        ("version", text(status, "/version")),
        (
            "up",
            number(status, "/uptime_s").map(age).unwrap_or_default(),
        ),
        ("mode", mode),
        ("fast paths", fast_paths(status)),
        ("steer from", text(status, "/steering/steer_from")),
        ("listeners", text(status, "/steering/listeners")),
        ("heartbeat", heartbeat(status)),
        ("steered", steered(status)),
        ("drift", drift(status)),
        ("guard", text(status, "/steering/guard")),
        ("guard allows", text(status, "/steering/guard_allow")),
        ("not counted", text(status, "/steering/trouble")),
        ("kubelet", text(status, "/kubelet")),
        ("streams", text(status, "/streams")),
        ("certificate expires", text(status, "/certificates/expires")),
        ("CA expires", text(status, "/certificates/first_ca_expires")),
    ]);
    let masters = status.get("masters").and_then(Value::as_array);
    let mut table = Table::new(&[
        "SERVER",
        "ADDRESS",
        "STATE",
        "SINCE",
        "RTT",
        "STREAMS",
        "LAST ERROR",
    ]);
    for master in masters.into_iter().flatten() {
        table.row([
            text(master, "/server"),
            text(master, "/address"),
            text(master, "/state"),
            number(master, "/since_s").map(age).unwrap_or_default(),
            number(master, "/rtt_us").map(rtt).unwrap_or_default(),
            text(master, "/streams"),
            text(master, "/last_error"),
        ]);
    }
    for table in [table, flows(status), programs(status), verdicts(status)] {
        if !table.is_empty() {
            shown.push('\n');
            shown.push_str(&table.show());
        }
    }
    shown
}

fn fast_paths(status: &Value) -> String {
    match text(status, "/fast_path_off") {
        why if why.is_empty() => text(status, "/fast_path"),
        why => format!("off ({why})"),
    }
}

/// What bypasses the sessions, for each master that uses fast paths.
fn flows(status: &Value) -> Table {
    let mut table = Table::new(&[
        "FLOWS OF", "IDLE", "REVERSE", "DIRECT", "STEERED", "PROBLEM",
    ]);
    for master in list(status, "/masters") {
        if master.pointer("/flows").is_none_or(Value::is_null) {
            continue;
        }
        let idle = format!(
            "{} of {}",
            text(master, "/flows/idle"),
            text(master, "/flows/wanted")
        );
        table.row([
            text(master, "/address"),
            idle,
            text(master, "/flows/reverse"),
            text(master, "/flows/direct"),
            steered_by(master),
            text(master, "/flows/last_error"),
        ]);
    }
    table
}

/// Whether a master's connections to the kubelet come to the agent, and on which device or why not.
fn steered_by(master: &Value) -> String {
    let reason = text(master, "/steering/reason");
    match master.pointer("/steering/stands").and_then(Value::as_bool) {
        Some(true) => format!("on {reason}"),
        Some(false) => format!("no: {reason}"),
        None => String::new(),
    }
}

/// Where the eBPF programs are, or why they are not.
fn programs(status: &Value) -> Table {
    let mut table = Table::new(&["PROGRAM", "DEVICE", "ATTACH", "POSITION", "COST", "PROBLEM"]);
    for place in list(status, "/attachments") {
        let device = match text(place, "/device") {
            device if device.is_empty() => text(place, "/wanted"),
            device => device,
        };
        table.row([
            text(place, "/program"),
            device,
            text(place, "/attach"),
            text(place, "/position"),
            text(place, "/cost"),
            text(place, "/problem"),
        ]);
    }
    table
}

/// What the programs have counted.
fn verdicts(status: &Value) -> Table {
    let mut table = Table::new(&["VERDICT", "PACKETS", "BYTES"]);
    for counter in list(status, "/steering/counters") {
        table.row([
            text(counter, "/verdict"),
            text(counter, "/packets"),
            text(counter, "/bytes"),
        ]);
    }
    table
}

fn list<'a>(status: &'a Value, place: &str) -> impl Iterator<Item = &'a Value> {
    let list = status.pointer(place).and_then(Value::as_array);
    list.into_iter().flatten()
}

fn heartbeat(status: &Value) -> String {
    let age = number(status, "/steering/heartbeat_age_ms");
    age.map(|ms| format!("{ms} ms ago")).unwrap_or_default()
}

/// What the programs gave to the agent, and what came to it.
fn steered(status: &Value) -> String {
    let mut counters = list(status, "/steering/counters");
    let assigned = counters.find(|counter| text(counter, "/verdict") == "assigned");
    let assigned = assigned.and_then(|counter| number(counter, "/packets"));
    match (assigned, number(status, "/steering/accepted")) {
        (Some(assigned), Some(accepted)) => format!("{assigned} assigned, {accepted} accepted"),
        _ => String::new(),
    }
}

fn drift(status: &Value) -> String {
    let count = |place| number(status, place);
    let counts = (
        count("/steering/drift/assigned"),
        count("/steering/drift/accepted"),
    );
    match counts {
        (Some(assigned), Some(accepted)) => format!(
            "{assigned} assigned and {accepted} accepted lately; {}",
            text(status, "/steering/drift/causes")
        ),
        _ => String::new(),
    }
}

fn ready(status: &Value) -> String {
    match status.get("ready").and_then(Value::as_bool) {
        Some(true) => "yes".to_owned(),
        _ => format!("no: {}", reasons(status)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_is_a_few_lines_and_a_table_of_masters() {
        let status = json!({
            "node": "10.0.10.10", "node_id": null, "ready": true, "reasons": [], "version": "0.1.0",
            "uptime_s": 3723, "mode": "userspace", "mode_reason": "configured",
            "kubelet": "10.0.10.10:10250", "streams": 2,
            "certificates": { "expires": "2027-01-01T00:00:00Z" },
            "masters": [
                { "server": "https://a:12250", "address": "192.0.2.10:12250",
                  "state": "connected", "since_s": 61, "rtt_us": 1534, "streams": 2 },
                { "server": "https://b:12250", "state": "waiting", "since_s": 5,
                  "last_error": "cannot connect" },
            ],
        });
        assert_eq!(
            show(&status),
            "\
node:                10.0.10.10
ready:               yes
version:             0.1.0
up:                  1h2m
mode:                userspace (configured)
kubelet:             10.0.10.10:10250
streams:             2
certificate expires: 2027-01-01T00:00:00Z

SERVER           ADDRESS           STATE      SINCE  RTT     STREAMS  LAST ERROR
https://a:12250  192.0.2.10:12250  connected  1m1s   1.53ms  2        -
https://b:12250  -                 waiting    5s     -       -        cannot connect
"
        );
    }

    #[test]
    fn steering_is_a_few_lines_and_tables_of_programs_and_verdicts() {
        let status = json!({
            "node": "10.0.10.10", "ready": true, "mode": "ebpf", "mode_reason": "configured",
            "attachments": [
                { "program": "proxymux_steer", "wanted": "the interface ens3", "device": "ens3",
                  "attach": "tcx", "position": "first", "problem": null,
                  "cost": "not measured: kernel.bpf_stats_enabled is 0" },
                { "program": "proxymux_guard", "wanted": "the interface vx0", "device": null,
                  "problem": "the interface vx0 does not exist", "cost": "" },
            ],
            "steering": {
                "steer_from": ["192.0.2.10/32"], "listeners": ["127.0.0.1:4000"],
                "heartbeat_age_ms": 412, "guard": "audit", "guard_allow": [],
                "counters": [
                    { "verdict": "assigned", "packets": 12, "bytes": 888 },
                    { "verdict": "dropped", "packets": 0, "bytes": 0 },
                ],
                "accepted": 3, "trouble": null,
                "drift": { "assigned": 9, "accepted": 0, "causes": "likely causes: NAT" },
            },
        });
        assert_eq!(
            show(&status),
            "\
node:       10.0.10.10
ready:      yes
mode:       ebpf (configured)
steer from: 192.0.2.10/32
listeners:  127.0.0.1:4000
heartbeat:  412 ms ago
steered:    12 assigned, 3 accepted
drift:      9 assigned and 0 accepted lately; likely causes: NAT
guard:      audit

PROGRAM         DEVICE             ATTACH  POSITION  COST                                         PROBLEM
proxymux_steer  ens3               tcx     first     not measured: kernel.bpf_stats_enabled is 0  -
proxymux_guard  the interface vx0  -       -         -                                            the interface vx0 does not exist

VERDICT   PACKETS  BYTES
assigned  12       888
dropped   0        0
"
        );
    }

    #[test]
    fn flows_are_a_line_and_a_table_of_the_masters_that_use_them() {
        let flows = |idle: usize, error: Option<&str>| {
            json!({
                "wanted": 4, "idle": idle, "dialling": 0, "reverse": 2, "direct": 1,
                "last_error": error, "retry_in_ms": null,
            })
        };
        let status = json!({
            "node": "n", "ready": true, "fast_path": "auto", "fast_path_off": null,
            "masters": [
                { "server": "https://a", "address": "192.0.2.10:12250", "flows": flows(4, None),
                  "steering": { "stands": true, "reason": "ens3" } },
                { "server": "https://b", "address": "192.0.2.11:12250",
                  "flows": flows(0, Some("cannot connect: refused")),
                  "steering": { "stands": false, "reason": "agent runs in mode userspace: x" } },
                { "server": "https://c", "address": "192.0.2.12:12250", "flows": null },
            ],
        });
        let shown = show(&status);
        assert!(shown.contains("fast paths: auto\n"), "{shown}");
        let table = "\
FLOWS OF          IDLE    REVERSE  DIRECT  STEERED                              PROBLEM
192.0.2.10:12250  4 of 4  2        1       on ens3                              -
192.0.2.11:12250  0 of 4  2        1       no: agent runs in mode userspace: x  cannot connect: refused
";
        assert!(shown.ends_with(table), "{shown}");
        let off = show(&json!({ "fast_path": "off", "fast_path_off": "configured" }));
        assert!(off.contains("off (configured)\n"), "{off}");
    }

    #[test]
    fn a_status_of_another_version_is_shown_as_far_as_it_goes() {
        let shown = show(&json!({ "node": "n", "ready": false, "reasons": ["a", "b"] }));
        assert!(shown.starts_with("node:  n\nready: no: a; b\n"), "{shown}");
    }
}
