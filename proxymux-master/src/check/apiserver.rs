//! kube-apiserver's flags, as far as they decide what becomes of its connections to kubelets.
//!
//! Owns the findings on its static pod's manifest: whether there is an egress selector, whether
//! kubelets' certificates are verified as the master believes, with what it proves itself to
//! kubelets, and by which addresses it asks for nodes. Leaves the egress selector's file to
//! `egress`, and reading the manifest to `pod`. Read [`look`].

use std::path::{Path, PathBuf};

use proxymux_transport::{
    command::{Report, text},
    config_file::{ConfigError, values::AutoOff},
    credentials::{check, load_roots},
};
use serde_json::Value;

use super::{
    pod::{Pod, Seen},
    running::Running,
};
use crate::config::{Config, KubeletCertificates};

/// Reads the manifest: the one that was given, which must be there, or the usual one if there is
/// any. `None` if there is no pod to look at.
pub(super) fn read(report: &mut Report, given: Option<&Path>) -> Option<Pod> {
    let path = given.unwrap_or(Path::new(MANIFEST));
    let shown = path.display();
    if given.is_none() && !path.exists() {
        report.ok(
            TOPIC,
            format!("not looked at: there is no {shown}, and no --apiserver-manifest was given"),
        );
        return None;
    }
    let pod = match Pod::load(path, PROGRAM) {
        Ok(pod) => pod,
        Err(error) => {
            unreadable(report, &error);
            return None;
        }
    };
    if pod.kind != "Pod" || !pod.has_container {
        report.error(
            TOPIC,
            format!("{shown} is no pod in which {PROGRAM} runs"),
            format!(
                "give the manifest of kube-apiserver's static pod by --apiserver-manifest; kubeadm \
                 has it in {MANIFEST}"
            ),
        );
        return None;
    }
    Some(pod)
}

fn unreadable(report: &mut Report, error: &ConfigError) {
    for line in error.lines() {
        let fix = match error {
            ConfigError::Read { .. } => {
                "give the manifest's path by --apiserver-manifest, and run this check as root"
            }
            _ => "mend that line: the kubelet does not start a pod from such a manifest",
        };
        report.error(TOPIC, line, fix);
    }
}

/// Looks at its flags.
pub(super) fn look(report: &mut Report, pod: &Pod, config: &Config, running: &Running) {
    kubelet_authority(report, pod, config);
    client_certificate(report, pod);
    address_types(report, pod, running);
}

/// The host's path of the egress selector's file that kube-apiserver reads, if it reads one and
/// can; `given` by an argument comes first, and must be the same.
pub(super) fn selector(report: &mut Report, pod: &Pod, given: Option<&Path>) -> Option<PathBuf> {
    let given = given.map(Path::to_owned);
    let Some(file) = pod.flag(SELECTOR_FLAG).filter(|file| !file.is_empty()) else {
        report.warning(
            TOPIC,
            format!("it runs without --{SELECTOR_FLAG}, and so dials nodes itself"),
            format!(
                "add `- --{SELECTOR_FLAG}=/etc/kubernetes/egress/egress-selector.yaml` to its \
                 command, and mount that directory and the front door's: \
                 deploy/kubernetes/master/egress-selector/kubeadm.yaml has all of it"
            ),
        );
        return given;
    };
    let file = Path::new("/").join(file);
    let host = on_host(report, TOPIC, pod, &file)?;
    match given {
        Some(given) if !is_same(&given, &host) => {
            report.warning(
                TOPIC,
                format!(
                    "it reads {}, and {} is checked",
                    host.display(),
                    given.display()
                ),
                format!(
                    "`cp {} {}`, or leave --egress-selector out",
                    given.display(),
                    host.display()
                ),
            );
            Some(given)
        }
        _ => Some(host),
    }
}

/// Where a file that kube-apiserver opens is on the host; a finding if its pod does not see it.
pub(super) fn on_host(
    report: &mut Report,
    topic: &'static str,
    pod: &Pod,
    path: &Path,
) -> Option<PathBuf> {
    let (shown, directory) = (path.display(), super::sockets::parent(path));
    let directory = directory.display();
    match pod.seen(path) {
        Seen::At(host) => Some(host),
        Seen::NotMounted => {
            report.error(
                topic,
                format!("kube-apiserver's pod does not see {shown}: no volume is mounted there"),
                mount(&directory.to_string(), &directory.to_string()),
            );
            None
        }
        Seen::NotOfHost { volume } => {
            report.error(
                topic,
                format!(
                    "kube-apiserver's pod does not see the host's {shown}: volume `{volume}`, which \
                     is mounted there, has no hostPath"
                ),
                mount(&directory.to_string(), &directory.to_string()),
            );
            None
        }
    }
}

/// How to mount a directory of the host.
pub(super) fn mount(host: &str, inside: &str) -> String {
    format!(
        "give its pod a volume with `hostPath: {{path: {host}}}`, and mount that at `mountPath: \
         {inside}`"
    )
}

fn kubelet_authority(report: &mut Report, pod: &Pod, config: &Config) {
    let file = pod.flag(AUTHORITY_FLAG).filter(|file| !file.is_empty());
    match (file, config.kubelet_certificates) {
        (None, KubeletCertificates::Verified) => report.error(
            TOPIC,
            format!(
                "the master's file says `kubelet-certificates: verified`, and kube-apiserver runs \
                 without --{AUTHORITY_FLAG}: what fast paths carry is then protected against \
                 listeners only"
            ),
            format!(
                "add `- --{AUTHORITY_FLAG}=/etc/kubernetes/pki/ca.crt` to its command, or set \
                 `kubelet-certificates: unverified`"
            ),
        ),
        (None, KubeletCertificates::Unverified) => report.ok(
            TOPIC,
            "it does not verify kubelets' certificates, and the master keeps to sessions",
        ),
        (Some(file), certificates) => {
            let Some(host) = on_host(report, TOPIC, pod, &Path::new("/").join(file)) else {
                return;
            };
            if let Err(error) = load_roots(&host) {
                return check::unusable(report, TOPIC, &error);
            }
            verified(report, certificates, config.fast_path);
        }
    }
}

/// What follows from kubelets' certificates being verified.
fn verified(report: &mut Report, certificates: KubeletCertificates, fast_path: AutoOff) {
    if certificates == KubeletCertificates::Unverified && fast_path == AutoOff::Auto {
        return report.warning(
            TOPIC,
            "it verifies kubelets' certificates, and the master does not know: fast paths are not \
             used",
            "set `kubelet-certificates: verified` in the master's file, or `fast-path: off`",
        );
    }
    report.ok(
        TOPIC,
        format!("it verifies kubelets' certificates (--{AUTHORITY_FLAG})"),
    );
}

fn client_certificate(report: &mut Report, pod: &Pod) {
    let missing: Vec<String> = ["kubelet-client-certificate", "kubelet-client-key"]
        .into_iter()
        .filter(|flag| pod.flag(flag).is_none_or(str::is_empty))
        .map(|flag| format!("--{flag}"))
        .collect();
    if missing.is_empty() {
        return report.ok(
            TOPIC,
            "it has a certificate for kubelets (--kubelet-client-certificate)",
        );
    }
    report.warning(
        TOPIC,
        format!(
            "it runs without {}: kubelets answer `Unauthorized`, unless they let everybody in",
            missing.join(" and ")
        ),
        "add `- --kubelet-client-certificate=/etc/kubernetes/pki/apiserver-kubelet-client.crt` and \
         `- --kubelet-client-key=/etc/kubernetes/pki/apiserver-kubelet-client.key` to its command",
    );
}

fn address_types(report: &mut Report, pod: &Pod, running: &Running) {
    let types = pod.flag(ADDRESSES_FLAG).filter(|types| !types.is_empty());
    let types = types.unwrap_or(DEFAULT_TYPES);
    let first = types.split(',').next().unwrap_or_default().trim();
    let nodes = running.status().map(without_address).unwrap_or_default();
    match first {
        "InternalIP" if nodes.is_empty() => {
            report.ok(
                TOPIC,
                "it asks for nodes by InternalIP, which agents have to prove",
            );
        }
        "InternalIP" => report.warning(
            TOPIC,
            format!(
                "it asks for nodes by InternalIP, and no address leads to {}",
                nodes.join(", ")
            ),
            "list the nodes' addresses in a file, and set `node-addresses: {file: PATH}`; \
             `proxymux-master nodes` then shows them",
        ),
        "Hostname" => report.ok(
            TOPIC,
            "it asks for nodes by Hostname, which in most clusters is the node's name",
        ),
        other => report.warning(
            TOPIC,
            format!(
                "it asks for nodes by {other}, and the master knows them by their names and by the \
                 addresses that they prove"
            ),
            format!("set `--{ADDRESSES_FLAG}=InternalIP,Hostname`"),
        ),
    }
}

/// The nodes that have a session and no address that is one.
fn without_address(status: &Value) -> Vec<String> {
    let nodes = status.get("nodes").and_then(Value::as_array);
    let no_address = |node: &&Value| {
        let connected = node.get("connected").and_then(Value::as_bool);
        let is_ip = |address: &str| address.parse::<std::net::IpAddr>().is_ok();
        connected == Some(true) && !text(node, "/addresses").split(',').any(is_ip)
    };
    let nodes = nodes.into_iter().flatten().filter(no_address);
    nodes
        .map(|node| text(node, "/name"))
        .take(MAX_NODES)
        .collect()
}

fn is_same(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}

const TOPIC: &str = "kube-apiserver";

/// Where kubeadm has it.
const MANIFEST: &str = "/etc/kubernetes/manifests/kube-apiserver.yaml";

/// The program in the pod.
const PROGRAM: &str = "kube-apiserver";

const SELECTOR_FLAG: &str = "egress-selector-config-file";
const AUTHORITY_FLAG: &str = "kubelet-certificate-authority";
const ADDRESSES_FLAG: &str = "kubelet-preferred-address-types";

/// What kube-apiserver does without the flag.
const DEFAULT_TYPES: &str = "Hostname,InternalDNS,InternalIP,ExternalDNS,ExternalIP";

/// Nobody reads more names than these.
const MAX_NODES: usize = 5;

#[cfg(test)]
mod tests {
    use proxymux_transport::command::Level;
    use serde_json::json;

    use super::*;

    fn pod(flags: &str) -> Pod {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!(
            "kind: Pod\nspec: {{ containers: [ {{ name: a, command: [ kube-apiserver{flags} ] }} ] }}"
        );
        std::fs::write(file.path(), text).unwrap();
        Pod::load(file.path(), PROGRAM).unwrap()
    }

    #[test]
    fn nodes_are_asked_for_by_what_a_master_knows() {
        let running = |addresses: Value| Running::Yes {
            status: json!({ "nodes": [
                { "name": "worker-1", "connected": true, "addresses": addresses },
                { "name": "worker-2", "connected": false, "addresses": [] },
            ]}),
            pid: None,
        };
        for (types, addresses, level) in [
            ("", json!(["worker-1"]), Level::Ok),
            (
                ", --kubelet-preferred-address-types=Hostname",
                json!(["worker-1"]),
                Level::Ok,
            ),
            (
                ", '--kubelet-preferred-address-types=InternalIP,Hostname'",
                json!(["worker-1", "10.0.10.11"]),
                Level::Ok,
            ),
            (
                ", --kubelet-preferred-address-types=InternalIP",
                json!(["worker-1"]),
                Level::Warning,
            ),
            (
                ", --kubelet-preferred-address-types=ExternalDNS",
                json!(["worker-1"]),
                Level::Warning,
            ),
        ] {
            let mut report = Report::default();
            address_types(&mut report, &pod(types), &running(addresses));
            assert_eq!(report.worst(), level, "{types}: {report:?}");
            assert!(!report.show().contains("worker-2"), "{report:?}");
        }
    }

    #[test]
    fn a_certificate_for_kubelets_takes_both_flags() {
        for (flags, level) in [
            ("", Level::Warning),
            (", --kubelet-client-certificate=/c", Level::Warning),
            (
                ", --kubelet-client-certificate=/c, --kubelet-client-key=/k",
                Level::Ok,
            ),
        ] {
            let mut report = Report::default();
            client_certificate(&mut report, &pod(flags));
            assert_eq!(report.worst(), level, "{flags}: {report:?}");
        }
    }

    #[test]
    fn verifying_and_believing_so_have_to_agree() {
        use AutoOff::{Auto, Off};
        use KubeletCertificates::{Unverified, Verified};
        for (certificates, fast_path, level) in [
            (Verified, Auto, Level::Ok),
            (Unverified, Auto, Level::Warning),
            (Unverified, Off, Level::Ok),
        ] {
            let mut report = Report::default();
            verified(&mut report, certificates, fast_path);
            assert_eq!(report.worst(), level, "{certificates:?} {fast_path:?}");
        }
    }
}
