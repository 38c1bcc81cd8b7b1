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
    if !table.is_empty() {
        shown.push('\n');
        shown.push_str(&table.show());
    }
    shown
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
    fn a_status_of_another_version_is_shown_as_far_as_it_goes() {
        let shown = show(&json!({ "node": "n", "ready": false, "reasons": ["a", "b"] }));
        assert!(shown.starts_with("node:  n\nready: no: a; b\n"), "{shown}");
    }
}
