//! What kube-apiserver's egress selector means for this master.
//!
//! Owns the findings on each selection: that `cluster` leads to a front door of this master, in
//! the protocol that it speaks, and that nothing else does. Leaves the file's form to `selector`,
//! and the door on TCP with its certificates to `tls_door`. Read [`look`].

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use proxymux_transport::{command::Report, config_file::ConfigError};

use super::{
    apiserver::{self, mount},
    pod::{Pod, Seen},
    running::Running,
    selector::{EgressSelector, Selection},
    sockets::parent,
    tls_door::{self, TcpDoor},
};
use crate::config::{Config, FrontDoor};

/// What the selector is compared with.
#[derive(Debug)]
pub(super) struct Master<'a> {
    pub(super) config: &'a Config,
    pub(super) running: &'a Running,
    /// The front doors on TCP, with what could be read of their certificates.
    pub(super) tcp: Vec<TcpDoor>,
    pub(super) now: SystemTime,
}

/// Which file it is, if there is any to look at: what kube-apiserver reads, what was given, or
/// the usual one.
pub(super) fn file(
    report: &mut Report,
    pod: Option<&Pod>,
    given: Option<&Path>,
) -> Option<PathBuf> {
    if let Some(pod) = pod {
        return apiserver::selector(report, pod, given);
    }
    if let Some(given) = given {
        return Some(given.to_owned());
    }
    let usual = Path::new(FILE);
    if usual.exists() {
        return Some(usual.to_owned());
    }
    report.ok(
        TOPIC,
        format!("not looked at: there is no {FILE}, and no --egress-selector was given"),
    );
    None
}

/// Reads the file and looks at all that it selects.
pub(super) async fn look(report: &mut Report, file: &Path, pod: Option<&Pod>, master: &Master<'_>) {
    let selector = match EgressSelector::load(file) {
        Ok(selector) => selector,
        Err(error) => return unreadable(report, file, &error),
    };
    if !is_one(report, file, &selector) {
        return;
    }
    let mut seen: Vec<String> = Vec::new();
    for selection in &selector.selections {
        // As kube-apiserver compares them.
        let name = selection.name.to_ascii_lowercase();
        if seen.contains(&name) {
            report.error(
                TOPIC,
                format!("`{name}` is selected twice, with which kube-apiserver does not start"),
                format!("take one `- name: {name}` out of {}", file.display()),
            );
            continue;
        }
        match name.as_str() {
            CLUSTER => cluster(report, selection, pod, master).await,
            "controlplane" | "etcd" => other(report, selection, master),
            _ => misnamed(report, selection),
        }
        seen.push(name);
    }
    if !seen.iter().any(|name| name == CLUSTER || name == "master") {
        report.error(
            TOPIC,
            format!(
                "{} selects no `{CLUSTER}`: kube-apiserver dials nodes itself",
                file.display()
            ),
            "add the selection `- name: cluster` of \
             deploy/kubernetes/master/egress-selector/unix-socket.yaml to it",
        );
    }
}

fn unreadable(report: &mut Report, file: &Path, error: &ConfigError) {
    for line in error.lines() {
        let fix = match error {
            ConfigError::Read { .. } => format!(
                "`install -D -m 0644 deploy/kubernetes/master/egress-selector/unix-socket.yaml {}`",
                file.display()
            ),
            _ => "mend that line: kube-apiserver does not start with such a file; \
                  deploy/kubernetes/master/egress-selector has samples"
                .to_owned(),
        };
        report.error(TOPIC, line, fix);
    }
}

/// Whether it says of itself that it is an egress selector.
fn is_one(report: &mut Report, file: &Path, selector: &EgressSelector) -> bool {
    let shown = file.display();
    for (key, seen, expected) in [
        ("kind", &selector.kind, KIND),
        ("apiVersion", &selector.api_version, API_VERSION),
    ] {
        if seen != expected {
            report.error(
                TOPIC,
                format!("{shown} has `{key}: {seen}`, expected {expected}"),
                format!("set `{key}: {expected}` in it"),
            );
            return false;
        }
    }
    true
}

async fn cluster(
    report: &mut Report,
    selection: &Selection,
    pod: Option<&Pod>,
    master: &Master<'_>,
) {
    match selection.protocol.as_str() {
        "HTTPConnect" => {}
        "Direct" => {
            return report.error(
                TOPIC,
                "`cluster` has `proxyProtocol: Direct`: kube-apiserver dials nodes itself",
                format!(
                    "set `proxyProtocol: HTTPConnect`, and {}",
                    transport(master.config)
                ),
            );
        }
        other => {
            return report.error(
                TOPIC,
                format!("`cluster` has `proxyProtocol: {other}`, and proxymux speaks HTTPConnect"),
                "set `proxyProtocol: HTTPConnect`",
            );
        }
    }
    match (&selection.uds, &selection.tcp) {
        (Some(uds), None) => unix(report, uds, pod, master.config),
        (None, Some(tcp)) => tls_door::look(report, tcp, pod, master).await,
        (Some(_), Some(_)) => report.error(
            TOPIC,
            "`cluster` has both `uds` and `tcp`, with which kube-apiserver does not start",
            "take one of them out",
        ),
        (None, None) => report.error(
            TOPIC,
            "`cluster` says not where to connect, with which kube-apiserver does not start",
            transport(master.config),
        ),
    }
}

/// What a transport to this master looks like.
fn transport(config: &Config) -> String {
    match unix_doors(config).first() {
        Some(door) => format!("set `transport: {{uds: {{udsName: {}}}}}`", door.display()),
        None => "set `transport: {tcp: ...}` as in \
                 deploy/kubernetes/master/egress-selector/tcp.yaml"
            .to_owned(),
    }
}

/// A selection that is not for nodes.
fn other(report: &mut Report, selection: &Selection, master: &Master<'_>) {
    let name = &selection.name;
    let uds = selection.uds.as_deref().map(Path::new);
    let to_us = uds.is_some_and(|uds| unix_doors(master.config).contains(&uds));
    if to_us {
        return report.warning(
            TOPIC,
            format!(
                "`{name}` leads to this master too, which refuses what is no node and in no route"
            ),
            format!(
                "take `- name: {name}` out, or give it `proxyProtocol: Direct` and no transport"
            ),
        );
    }
    if selection.protocol == "Direct" && selection.has_transport {
        return report.error(
            TOPIC,
            format!(
                "`{name}` is Direct and has a transport, with which kube-apiserver does not start"
            ),
            "take its `transport` out",
        );
    }
    report.ok(TOPIC, format!("`{name}` is none of this master's"));
}

fn misnamed(report: &mut Report, selection: &Selection) {
    let name = &selection.name;
    let fix = "set `name: cluster` for what leads to nodes, and take out what is for nothing else";
    if name == "master" {
        report.error(
            TOPIC,
            "`master` is the old name of `controlplane`, and not that of what leads to nodes; \
             kube-apiserver does not start with it",
            fix,
        );
    } else {
        report.error(
            TOPIC,
            format!(
                "`{name}` is no selection that there is, with which kube-apiserver does not start"
            ),
            fix,
        );
    }
}

/// `cluster` by a Unix socket.
fn unix(report: &mut Report, uds: &str, pod: Option<&Pod>, config: &Config) {
    let inside = Path::new(uds);
    if !inside.is_absolute() {
        // `unix://` is what other proxies' documentation has.
        return report.error(
            TOPIC,
            format!("`udsName: {uds}` is no absolute path"),
            transport(config),
        );
    }
    let doors = unix_doors(config);
    let at = match pod {
        None => inside.to_owned(),
        Some(pod) => match seen(report, pod, inside) {
            Some(at) => at,
            None => return,
        },
    };
    let Some(door) = doors.iter().find(|door| is_same_place(door, &at)) else {
        return elsewhere(report, (inside, &at), &doors);
    };
    let through = if at == inside {
        String::new()
    } else {
        format!(", in its pod {uds}")
    };
    report.ok(
        TOPIC,
        format!(
            "`cluster` leads to {}, which is a front door of this master{through}",
            door.display()
        ),
    );
}

/// Where the socket is on the host that kube-apiserver's pod finds at a path.
fn seen(report: &mut Report, pod: &Pod, inside: &Path) -> Option<PathBuf> {
    if pod.has_mount_at(inside) && matches!(pod.seen(inside), Seen::At(_)) {
        let directory = parent(inside);
        let directory = directory.display();
        report.error(
            TOPIC,
            format!(
                "kube-apiserver's pod has the socket {} mounted and not its directory: after the \
                 next start of the master it holds one that is dead",
                inside.display()
            ),
            mount(&directory.to_string(), &directory.to_string()),
        );
        return None;
    }
    apiserver::on_host(report, TOPIC, pod, inside)
}

/// A socket that is no front door.
fn elsewhere(report: &mut Report, (inside, at): (&Path, &Path), doors: &[&Path]) {
    let all: Vec<String> = doors
        .iter()
        .map(|door| door.display().to_string())
        .collect();
    let (shown, host) = (inside.display(), at.display());
    let Some(door) = doors.first() else {
        return report.error(
            TOPIC,
            format!("`cluster` leads to the Unix socket {shown}, and this master has none"),
            format!("add `- unix: {host}` to `front-doors` in the master's file"),
        );
    };
    let fix = if doors.contains(&inside) {
        let (host, inside) = (parent(door), parent(inside));
        mount(&host.display().to_string(), &inside.display().to_string())
    } else {
        format!("set `udsName: {}`", door.display())
    };
    report.error(
        TOPIC,
        format!(
            "`cluster` leads to {shown}, which is {host} on this host, and no front door of this \
             master: {}",
            all.join(", ")
        ),
        fix,
    );
}

fn unix_doors(config: &Config) -> Vec<&Path> {
    let doors = config.front_doors.iter().filter_map(|door| match door {
        FrontDoor::Unix { path, .. } => Some(path.as_path()),
        FrontDoor::Tcp { .. } => None,
    });
    doors.collect()
}

/// Whether two paths are the same, also by way of a link such as `/var/run`. The socket itself
/// need not be there.
fn is_same_place(one: &Path, other: &Path) -> bool {
    let directory = |path: &Path| {
        let directory = parent(path);
        fs::canonicalize(&directory).unwrap_or(directory)
    };
    one.file_name() == other.file_name() && directory(one) == directory(other)
}

pub(super) const TOPIC: &str = "egress selector";

/// Where the documentation has it.
const FILE: &str = "/etc/kubernetes/egress/egress-selector.yaml";

const CLUSTER: &str = "cluster";
const KIND: &str = "EgressSelectorConfiguration";
const API_VERSION: &str = "apiserver.k8s.io/v1beta1";

#[cfg(test)]
mod tests;
