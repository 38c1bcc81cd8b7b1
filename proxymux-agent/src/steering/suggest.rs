//! `proxymux-agent guard suggest`: whom the guard would have to let in.
//!
//! Owns both ends of it: what the running agent answers, and the lines that are printed, which are
//! YAML to be put into the configuration. Each source is a line of its own. Wider networks are not
//! guessed: whoever lets a network in should have decided to.

use std::net::IpAddr;

use ipnet::IpNet;
use proxymux_transport::{
    command::{number, text},
    telemetry::chain,
};
use serde_json::{Value, json};

use super::{
    Steering,
    report::{guard_word, no_ebpf},
};

/// The path at the admin address.
pub const PATH: &str = "/guard";

/// What the running agent answers.
pub(crate) fn answer(steering: &Steering) -> Result<Value, String> {
    let maps = steering.maps().ok_or_else(|| no_ebpf(steering))?;
    let audited = maps.audited().map_err(|error| chain(&error))?;
    let guard = guard_word(maps.settings().guard);
    Ok(seen(guard, &maps.allowed(), &audited))
}

/// Whom the guard dropped or would have dropped, and how often, the most
/// first; and whom it lets in already, who are to be kept.
fn seen(guard: &str, allowed: &[IpNet], audited: &[(IpAddr, u64)]) -> Value {
    // Whoever has been let in meanwhile is remembered all the same.
    let open = |ip: &IpAddr| !allowed.iter().any(|net| net.contains(ip));
    let audited: Vec<_> = audited
        .iter()
        .filter(|(ip, _)| open(ip))
        .map(|(ip, connections)| json!({ "source": ip.to_string(), "connections": connections }))
        .collect();
    let allowed: Vec<_> = allowed.iter().map(ToString::to_string).collect();
    json!({ "guard": guard, "guard_allow": allowed, "audited": audited })
}

/// The answer as lines for the configuration, or why there are none.
#[must_use]
pub fn show(answer: &Value) -> String {
    let list = |name| {
        let list = answer.get(name).and_then(Value::as_array);
        list.map(Vec::as_slice).unwrap_or_default()
    };
    let guard = text(answer, "/guard");
    let audited = list("audited");
    if audited.is_empty() {
        return match guard.as_str() {
            "off" => "# guard is off, so that nobody is remembered; set `guard: audit` first\n"
                .to_owned(),
            _ => "# nobody was seen whom the guard does not let in\n".to_owned(),
        };
    }
    let done = match guard.as_str() {
        "enforce" => "dropped",
        _ => "would have been dropped",
    };
    let mut lines = "guard-allow:\n".to_owned();
    for net in list("guard_allow") {
        lines.push_str(&format!("  - \"{}\" # let in already\n", text(net, "")));
    }
    for source in audited {
        let count = number(source, "/connections").unwrap_or_default();
        let connections = match count {
            1 => "1 connection".to_owned(),
            count => format!("{count} connections"),
        };
        // What is no address is no line of ours, whoever answers.
        if let Ok(ip) = text(source, "/source").parse::<IpAddr>() {
            let net = IpNet::from(ip);
            lines.push_str(&format!("  - \"{net}\" # {connections} {done}\n"));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(guard: &str, allowed: &[&str], audited: &[(&str, u64)]) -> String {
        let allowed: Vec<_> = allowed.iter().map(|net| net.parse().unwrap()).collect();
        let audited: Vec<_> = audited
            .iter()
            .map(|(ip, count)| (ip.parse().unwrap(), *count))
            .collect();
        show(&seen(guard, &allowed, &audited))
    }

    #[test]
    fn each_source_is_a_line_with_what_it_did() {
        let shown = shown("audit", &[], &[("10.0.10.11", 12), ("fd00::11", 1)]);

        assert_eq!(
            shown,
            "\
guard-allow:
  - \"10.0.10.11/32\" # 12 connections would have been dropped
  - \"fd00::11/128\" # 1 connection would have been dropped
"
        );
    }

    #[test]
    fn who_is_let_in_already_is_kept_and_not_suggested_again() {
        let shown = shown(
            "enforce",
            &["10.0.10.0/28"],
            &[("10.0.10.11", 3), ("10.0.10.99", 2)],
        );

        assert_eq!(
            shown,
            "\
guard-allow:
  - \"10.0.10.0/28\" # let in already
  - \"10.0.10.99/32\" # 2 connections dropped
"
        );
    }

    #[test]
    fn without_anybody_seen_it_says_so() {
        assert!(shown("audit", &[], &[]).contains("nobody was seen"));
        assert!(shown("enforce", &["::/0"], &[("::1", 1)]).contains("nobody was seen"));
        assert!(shown("off", &[], &[]).contains("set `guard: audit` first"));
    }
}
