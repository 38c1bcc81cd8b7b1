//! Rules of the host that undo steering, or keep packets from the kubelet's port.
//!
//! Owns running `nft` or `iptables-save`, both with a limit and for reading only, and the settings
//! of the kernel that matter; reading what they print is in `rules`. An image of the agent has
//! neither program, and then the line says which command to type on the node.

use std::{
    io::{self, Read as _},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use proxymux_transport::command::Report;

use super::rules::{Harm, Rule, from_iptables, from_nft};
use crate::{config::Config, netlink::links::Link};

/// Reads the rules, and the settings beside them.
pub(super) fn look(report: &mut Report, config: &Config, nic: Option<&Link>) {
    let port = config.kubelet_addr.port();
    let mut why = Vec::new();
    let mut rules: Vec<Rule> = Vec::new();
    let mut looked = Vec::new();
    let sources: [(&'static str, &[&str], Reader); 3] = [
        ("nft", &["-j", "list", "ruleset"], from_nft),
        ("iptables-save", &[], from_iptables),
        ("ip6tables-save", &[], from_iptables),
    ];
    for (program, arguments, read) in sources {
        match output(program, arguments) {
            Ok(text) => match read(&text, port) {
                Ok(found) => {
                    rules.extend(found);
                    looked.push(program);
                }
                Err(error) => why.push(format!("{program}: {error}")),
            },
            Err(error) => why.push(format!("{program}: {error}")),
        }
    }
    if looked.is_empty() {
        report.warning(
            FIREWALL,
            format!("cannot be looked at: {}", why.join("; ")),
            format!(
                "on the node, as root: `nft list ruleset | grep -E 'redirect|dnat|{port}'`; no rule \
                 may redirect or drop the kubelet's port"
            ),
        );
    } else if rules.is_empty() {
        report.ok(
            FIREWALL,
            format!(
                "{} show no rule that redirects or drops port {port}",
                looked.join(" and ")
            ),
        );
    }
    // What iptables has written shows in nft as well.
    rules.sort();
    rules.dedup();
    for rule in rules {
        match rule.harm {
            Harm::Redirects => report.warning(
                FIREWALL,
                format!(
                    "{rule} sends connections to port {port} elsewhere: NAT comes after \
                         steering and undoes it"
                ),
                format!("delete the rule, or leave port {port} out of it"),
            ),
            Harm::Drops => report.warning(
                FIREWALL,
                format!("{rule} drops packets to port {port}, steered or not"),
                "accept the masters' addresses before it, or delete it",
            ),
        }
    }
    settings(report, nic);
}

type Reader = fn(&str, u16) -> Result<Vec<Rule>, String>;

/// Settings of the kernel that have a part in it.
fn settings(report: &mut Report, nic: Option<&Link>) {
    let on = |path: &str| std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "1");
    // The setting is only there with the module that it is of.
    let bridged = nic.is_some_and(|link| link.master.is_some());
    if bridged && on("/proc/sys/net/bridge/bridge-nf-call-iptables") {
        report.warning(
            SETTINGS,
            "the device is part of a bridge and net.bridge.bridge-nf-call-iptables is 1: netfilter \
             sees its packets before the node does, and undoes steering",
            "name the bridge in net-inf, or set net.bridge.bridge-nf-call-iptables to 0 if nothing \
             else needs it",
        );
    }
    let cookies = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_syncookies");
    if cookies.is_ok_and(|text| text.trim() == "2") {
        report.warning(
            SETTINGS,
            "net.ipv4.tcp_syncookies is 2: each repeated SYN is assigned anew, and counts as drift",
            "set net.ipv4.tcp_syncookies to 1, the default",
        );
    }
}

/// What a program prints, if it is there and ends in time.
fn output(program: &str, arguments: &[&str]) -> Result<String, String> {
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "not installed here".to_owned(),
        _ => error.to_string(),
    })?;
    let out = child.stdout.take().map(read_all);
    let err = child.stderr.take().map(read_all);
    let out = out.and_then(|text| text.recv_timeout(LIMIT).ok());
    let Some(out) = out else {
        // That it has ended meanwhile is no error.
        let _ = child.kill();
        let _ = child.wait();
        return Err(format!("not over within {} s", LIMIT.as_secs()));
    };
    let status = child.wait().map_err(|error| error.to_string())?;
    if status.success() {
        return Ok(out);
    }
    let said = err.and_then(|text| text.recv_timeout(LIMIT).ok());
    let said = said.unwrap_or_default();
    let first = said.lines().next().unwrap_or("it failed without a word");
    Err(first.trim().to_owned())
}

/// Reads to the end on a thread of its own, which goes when the program does.
fn read_all(pipe: impl io::Read + Send + 'static) -> mpsc::Receiver<String> {
    let (done, text) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What does not arrive shows in the exit code. Nobody waits any more: then it is too late.
        let _ = pipe.take(MAX_OUTPUT).read_to_end(&mut bytes);
        let _ = done.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    text
}

const FIREWALL: &str = "firewall";
const SETTINGS: &str = "network settings";

/// A node with thousands of services has tens of thousands of rules.
const LIMIT: Duration = Duration::from_secs(3);

const MAX_OUTPUT: u64 = 64 << 20;
