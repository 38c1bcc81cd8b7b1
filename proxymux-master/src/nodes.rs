//! The master's nodes as people see them: `proxymux-master nodes`.
//!
//! Owns the table that is made of what `admin.rs` answers. It is read from a running master, which
//! may be of another version, so that what is not there is left out.

use proxymux_transport::command::{Table, age, number, reasons, rtt, text};
use serde_json::Value;

/// The nodes as text.
#[must_use]
pub fn show(status: &Value) -> String {
    let nodes = status.get("nodes").and_then(Value::as_array);
    let mut table = Table::new(&[
        "NODE",
        "ADDRESSES",
        "PATH",
        "WHY",
        "DIRECT",
        "IDLE",
        "FLOWS",
        "STREAMS",
        "RTT",
        "AGE",
        "VERSION",
        "NODE-ID",
        "CERT EXPIRES",
    ]);
    for node in nodes.into_iter().flatten() {
        table.row([
            text(node, "/name"),
            text(node, "/addresses"),
            text(node, "/session/path"),
            text(node, "/session/path_reason"),
            direct(node),
            text(node, "/session/idle_flows"),
            text(node, "/session/flows"),
            text(node, "/session/streams"),
            number(node, "/session/rtt_us").map(rtt).unwrap_or_default(),
            since(node),
            text(node, "/session/software"),
            text(node, "/session/node_id"),
            text(node, "/session/certificate_expires"),
        ]);
    }
    let mut shown = table.show();
    if table.is_empty() {
        shown = "no node has come yet\n".to_owned();
    }
    if let Some(line) = node_objects(status) {
        shown.push_str(&format!("\n{line}\n"));
    }
    let reasons = reasons(status);
    if !reasons.is_empty() {
        shown.push_str(&format!("\nnot ready: {reasons}\n"));
    }
    shown
}

/// How the watch on Node objects is doing, where there is one.
fn node_objects(status: &Value) -> Option<String> {
    let at = |place: &str| text(status, &format!("/node_addresses/{place}"));
    let ago = |place| number(status, place).map(|seconds| format!("{} ago", age(seconds)));
    if at("source") != "kubernetes" {
        return None;
    }
    let objects = match ago("/node_addresses/read_s") {
        None => "not read yet".to_owned(),
        Some(read) => {
            let heard = ago("/node_addresses/heard_s").unwrap_or_else(|| read.clone());
            let objects = at("objects");
            format!("{objects}, read {read}, heard of {heard}")
        }
    };
    let error = at("error");
    let trouble = if error.is_empty() {
        String::new()
    } else {
        format!("; {error}")
    };
    Some(format!("Node objects: {objects}{trouble}"))
}

/// Whether it is found on the direct path, or what a probe met there last, or why there is none.
fn direct(node: &Value) -> String {
    let at = |place: &str| text(node, &format!("/session/direct/{place}"));
    match at("reason") {
        reason if reason.is_empty() && at("proven").is_empty() => String::new(),
        reason if reason.is_empty() => "proven".to_owned(),
        reason if reason == "unproven" && !at("last_probe").is_empty() => at("last_probe"),
        reason => reason,
    }
}

/// For how long it has had its session, or been away.
fn since(node: &Value) -> String {
    match (number(node, "/session/age_s"), number(node, "/last_seen_s")) {
        (Some(with), _) => age(with),
        (None, Some(away)) => format!("away {}", age(away)),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nodes_are_a_table_those_that_are_away_too() {
        let status = json!({ "reasons": [], "nodes": [
            { "name": "10.0.10.10", "connected": true, "addresses": ["10.0.10.10", "fd00::1"],
              "last_seen_s": null,
              "session": { "path": "reverse", "path_reason": "unproven", "idle_flows": 4, "flows": 1,
                           "direct": { "proven": false, "reason": "unproven",
                                       "last_probe": "timed-out" },
                           "streams": 3, "rtt_us": 420, "age_s": 90,
                           "software": "proxymux-agent 0.1.0", "node_id": "ocid1.x",
                           "certificate_expires": "2027-01-01T00:00:00Z" } },
            { "name": "10.0.10.11", "connected": false, "addresses": [], "last_seen_s": 42,
              "session": null },
        ] });
        assert_eq!(
            show(&status),
            "\
NODE        ADDRESSES           PATH     WHY       DIRECT     IDLE  FLOWS  STREAMS  RTT     AGE       VERSION               NODE-ID  CERT EXPIRES
10.0.10.10  10.0.10.10,fd00::1  reverse  unproven  timed-out  4     1      3        0.42ms  1m30s     proxymux-agent 0.1.0  ocid1.x  2027-01-01T00:00:00Z
10.0.10.11  -                   -        -         -          -     -      -        -       away 42s  -                     -        -
"
        );
    }

    #[test]
    fn what_is_known_of_node_objects_stands_below_and_what_is_wrong_with_it() {
        let mut status = json!({ "reasons": [], "nodes": [], "node_addresses": {
            "source": "kubernetes", "server": "https://10.0.0.1:6443/", "watching": true,
            "objects": 3, "read_s": 90, "heard_s": 2, "error": null } });
        assert_eq!(
            show(&status),
            "no node has come yet\n\nNode objects: 3, read 1m30s ago, heard of 2s ago\n"
        );
        status["node_addresses"] = json!({
            "source": "kubernetes", "objects": 0, "read_s": null, "heard_s": null,
            "error": "cannot read the kubeconfig /k" });
        assert_eq!(
            show(&status),
            "no node has come yet\n\nNode objects: not read yet; cannot read the kubeconfig /k\n"
        );
        status["node_addresses"] = json!({ "source": "file" });
        assert_eq!(show(&status), "no node has come yet\n");
    }

    #[test]
    fn a_master_without_nodes_says_so_and_why_it_is_not_ready() {
        let status = json!({ "reasons": ["draining"], "nodes": [] });
        assert_eq!(
            show(&status),
            "no node has come yet\n\nnot ready: draining\n"
        );
    }
}
