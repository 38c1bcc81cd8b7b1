//! The certificates of the master's port for agents and of its front doors on TCP.
//!
//! Owns which files belong together, whether the running master has the ones that are there, and
//! whether the names in them are names of this host. The findings on one certificate are
//! `proxymux_transport::credentials::check`'s.

use std::{collections::BTreeSet, fs, path::Path, time::SystemTime};

use nix::ifaddrs::getifaddrs;
use proxymux_proto::Host;
use proxymux_transport::{
    certificate::CertificateInfo,
    command::{Report, text},
    credentials::{
        Credentials, Roots,
        check::{self, Holder},
        load_roots,
    },
};

use super::running::Running;
use crate::config::Config;

/// What a listener shows, and whom it believes; nothing of what cannot be used.
#[derive(Debug, Default)]
pub(super) struct Pair {
    pub(super) credentials: Option<Credentials>,
    pub(super) roots: Option<Roots>,
}

/// The files of a listener.
#[derive(Clone, Copy, Debug)]
pub(super) struct Files<'a> {
    pub(super) cert: &'a Path,
    pub(super) key: &'a Path,
    pub(super) client_ca: &'a Path,
}

/// The pair that is shown to agents, and the CAs that theirs must lead to.
pub(super) fn of_agents(
    report: &mut Report,
    config: &Config,
    running: &Running,
    now: SystemTime,
) -> Pair {
    let files = Files {
        cert: &config.cert,
        key: &config.key,
        client_ca: &config.client_ca,
    };
    let pair = load(
        report,
        "certificate",
        "client CA",
        Holder::Master,
        files,
        now,
    );
    if let Some(credentials) = &pair.credentials {
        in_force(report, credentials.info(), running);
        if running.connected() == 0 {
            names(report, credentials.info(), &names_of_host(config));
        }
    }
    pair
}

/// The pair of a front door, and the CAs that kube-apiserver's certificate must lead to.
pub(super) fn of_door(report: &mut Report, files: Files<'_>, now: SystemTime) -> Pair {
    load(
        report,
        "door certificate",
        "door client CA",
        Holder::FrontDoor,
        files,
        now,
    )
}

fn load(
    report: &mut Report,
    topic: &'static str,
    ca_topic: &'static str,
    holder: Holder,
    files: Files<'_>,
    now: SystemTime,
) -> Pair {
    let mut pair = Pair::default();
    match Credentials::load(files.cert, Some(files.key)) {
        Ok(credentials) => {
            check::pair(report, topic, holder, &credentials, now);
            pair.credentials = Some(credentials);
        }
        Err(error) => check::unusable(report, topic, &error),
    }
    match load_roots(files.client_ca) {
        Ok(roots) => {
            check::cas(report, ca_topic, &roots, now);
            pair.roots = Some(roots);
        }
        Err(error) => check::unusable(report, ca_topic, &error),
    }
    pair
}

/// Whether the running master shows what is in the file.
fn in_force(report: &mut Report, info: &CertificateInfo, running: &Running) {
    let Some(status) = running.status() else {
        return;
    };
    let shown = text(status, "/certificates/serial");
    if !shown.is_empty() && shown != info.serial {
        report.warning(
            "certificate",
            format!(
                "the running master shows the one with serial {shown}, the file has {}",
                info.serial
            ),
            "check again in ten seconds, after which new files are in force; if they are not then, \
             the master's log says why, or restart it",
        );
    }
}

/// Whether agents that dial this host find its name in the certificate.
///
/// Behind a load balancer that is another host's, so that it is asked only while no agent has come.
fn names(report: &mut Report, info: &CertificateInfo, host: &BTreeSet<String>) {
    let certified = info.server_names();
    let fits = |name: &String| {
        let name = name.to_ascii_lowercase();
        host.contains(&name)
            || name.strip_prefix("*.").is_some_and(|domain| {
                host.iter()
                    .any(|one| one.split_once('.').is_some_and(|(_, rest)| rest == domain))
            })
    };
    // A certificate without names is told of already.
    if certified.is_empty() || certified.iter().any(fits) {
        return;
    }
    let host: Vec<&str> = host.iter().map(String::as_str).collect();
    report.warning(
        "certificate",
        format!(
            "it is for {}, and this host is {}: agents that dial this host refuse it",
            certified.join(", "),
            host.join(", ")
        ),
        "have it issued for the names and addresses in the agents' `server-addr`; this warning goes \
         once an agent has come, by a load balancer or otherwise",
    );
}

/// What agents may call this host.
fn names_of_host(config: &Config) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    match config.advertise.as_ref().map(|advertise| &advertise.host) {
        Some(Host::Name(name)) => {
            names.insert(name.to_string());
        }
        Some(Host::Ip(ip)) => {
            names.insert(ip.to_string());
        }
        None => {}
    }
    if let Ok(name) = fs::read_to_string("/proc/sys/kernel/hostname") {
        names.insert(name.trim().to_ascii_lowercase());
    }
    if !config.listen.ip().is_unspecified() {
        names.insert(config.listen.ip().to_string());
        return names;
    }
    for interface in getifaddrs().into_iter().flatten() {
        let Some(address) = interface.address else {
            continue;
        };
        let four = address.as_sockaddr_in().map(|at| at.ip().to_string());
        let six = address.as_sockaddr_in6().map(|at| at.ip().to_string());
        names.extend(four.or(six));
    }
    names
}

#[cfg(test)]
mod tests {
    use proxymux_testkit::pki::{Leaf, Pki, Usage};
    use proxymux_transport::credentials::read_certificate;
    use serde_json::json;

    use super::*;

    fn certificate(names: &[&str]) -> CertificateInfo {
        let pki = Pki::temporary().unwrap();
        let leaf = Leaf::new("master")
            .usages([Usage::Server])
            .names(names.iter().copied());
        let issued = pki.ca().issue(&leaf).unwrap();
        let path = pki.dir().join("x.pem");
        issued.write_combined(&path).unwrap();
        read_certificate(&path).unwrap()
    }

    #[test]
    fn a_certificate_of_another_host_is_told() {
        let host = ["192.0.2.10", "master.example"].map(str::to_owned).into();
        for (certified, told) in [
            (&["192.0.2.10"][..], false),
            (&["Master.Example"], false),
            (&["*.example"], false),
            (&["192.0.2.11", "other.example"], true),
            (&["*.elsewhere"], true),
            (&[], false),
        ] {
            let mut report = Report::default();
            names(&mut report, &certificate(certified), &host);
            assert_eq!(
                !report.findings().is_empty(),
                told,
                "{certified:?} {report:?}"
            );
        }
    }

    #[test]
    fn a_certificate_that_is_not_in_force_is_told() {
        let info = certificate(&["192.0.2.10"]);
        for (serial, told) in [(info.serial.as_str(), false), ("00FF", true), ("", false)] {
            let running = Running::Yes {
                status: json!({ "certificates": { "serial": serial } }),
                pid: None,
            };
            let mut report = Report::default();
            in_force(&mut report, &info, &running);
            assert_eq!(!report.findings().is_empty(), told, "{serial}");
        }
    }

    #[test]
    fn a_host_has_a_name_and_the_addresses_that_are_listened_at() {
        let config = |lines: &str| {
            let text = format!("cert: /c\nkey: /k\nclient-ca: /ca\n{lines}");
            Config::parse(&text, "master.yaml").unwrap().0
        };
        let all = names_of_host(&config("advertise: master-a.example:1\n"));
        assert!(
            all.contains("127.0.0.1") && all.contains("master-a.example"),
            "{all:?}"
        );

        let one = names_of_host(&config("listen: 192.0.2.10:1\n"));
        assert!(
            one.contains("192.0.2.10") && !one.contains("127.0.0.1"),
            "{one:?}"
        );
    }
}
