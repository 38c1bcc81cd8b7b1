//! What a selector means for a master with a door on a Unix socket.
//!
//! Each line of the table is one mistake, and what must be said about it. Doors on TCP, whose
//! certificates count, are in the end-to-end tests.

use std::path::Path;

use proxymux_transport::command::{Level, Report};
use tempfile::TempDir;

use super::*;

const SOCKET: &str = "/run/proxymux/egress.sock";

/// deploy's sample, with these words in the place of others.
fn sample(changes: &[(&str, &str)]) -> String {
    let mut text = format!(
        "apiVersion: apiserver.k8s.io/v1beta1\n\
         kind: EgressSelectorConfiguration\n\
         egressSelections:\n\
         - name: cluster\n  \
           connection:\n    \
             proxyProtocol: HTTPConnect\n    \
             transport: {{ uds: {{ udsName: {SOCKET} }} }}\n"
    );
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    text
}

fn config(lines: &str) -> Config {
    let text = format!("cert: /c\nkey: /k\nclient-ca: /ca\n{lines}");
    Config::parse(&text, "master.yaml").unwrap().0
}

fn looked(text: &str, pod: Option<&Pod>, config: &Config) -> Report {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("egress.yaml");
    fs::write(&file, text).unwrap();
    let master = Master {
        config,
        running: &Running::No,
        tcp: Vec::new(),
        now: SystemTime::UNIX_EPOCH,
    };
    let mut report = Report::default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(look(&mut report, &file, pod, &master));
    report
}

fn pod(mounts: &str, volumes: &str) -> Pod {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("pod.yaml");
    let text = format!(
        "kind: Pod\nspec:\n  \
         containers: [ {{ name: kube-apiserver, volumeMounts: [ {mounts} ] }} ]\n  \
         volumes: [ {volumes} ]\n"
    );
    fs::write(&file, text).unwrap();
    Pod::load(&file, "kube-apiserver").unwrap()
}

#[test]
fn the_sample_is_ok() {
    let report = looked(&sample(&[]), None, &config(""));
    assert_eq!(report.worst(), Level::Ok, "{report:?}");
    assert!(
        report
            .show()
            .contains("`cluster` leads to /run/proxymux/egress.sock")
    );
}

#[test]
fn each_mistake_is_told_with_what_to_do() {
    let etcd = format!(
        "- name: etcd\n  connection: {{ proxyProtocol: HTTPConnect, transport: {{ uds: {{ udsName: \
         {SOCKET} }} }} }}\n"
    );
    let both = "uds: { udsName: /x }, tcp: { url: https://a:1 }";
    for (changes, level, found, fix) in [
        (
            vec![("kind: E", "kind: e")],
            Level::Error,
            "expected EgressSel",
            "set `kind: Egress",
        ),
        (
            vec![("v1beta1", "v1alpha1")],
            Level::Error,
            "apiVersion",
            "apiserver.k8s.io/v1beta1",
        ),
        (
            vec![("HTTPConnect", "GRPC")],
            Level::Error,
            "speaks HTTPConnect",
            "HTTPConnect",
        ),
        (
            vec![("HTTPConnect", "Direct")],
            Level::Error,
            "dials nodes itself",
            SOCKET,
        ),
        (
            vec![("HTTPConnect", "\"\"")],
            Level::Error,
            "speaks HTTPConnect",
            "HTTPConnect",
        ),
        (
            vec![("name: cluster", "name: master")],
            Level::Error,
            "old name",
            "name: cluster",
        ),
        (
            vec![("name: cluster", "name: nodes")],
            Level::Error,
            "no selection",
            "name: cluster",
        ),
        (
            vec![("name: cluster", "name: etcd")],
            Level::Error,
            "selects no `cluster`",
            "name: cluster",
        ),
        (
            vec![("name: cluster", "name: Cluster")],
            Level::Ok,
            "front door of this master",
            "",
        ),
        (
            vec![(SOCKET, "/run/konnectivity.sock")],
            Level::Error,
            "no front door",
            SOCKET,
        ),
        (
            vec![(SOCKET, "unix:///run/proxymux/egress.sock")],
            Level::Error,
            "no absolute",
            SOCKET,
        ),
        (
            vec![("udsName", "path")],
            Level::Error,
            "is no known key",
            "does not start",
        ),
        (
            vec![("{ uds: { udsName: /run/proxymux/egress.sock } }", "{}")],
            Level::Error,
            "not where",
            SOCKET,
        ),
        (
            vec![("uds: { udsName: /run/proxymux/egress.sock }", both)],
            Level::Error,
            "both",
            "take one",
        ),
        (
            vec![("egressSelections:\n", etcd_first(&etcd).as_str())],
            Level::Warning,
            "`etcd` leads",
            "take `- name: etcd`",
        ),
    ] {
        let report = looked(&sample(&changes), None, &config(""));
        assert_eq!(report.worst(), level, "{changes:?}: {report:?}");
        let matches = report.findings().iter().any(|finding| {
            let advised = finding.fix.clone().unwrap_or_default();
            finding.found.contains(found) && advised.contains(fix)
        });
        assert!(matches, "{changes:?}: {report:?}");
    }
}

fn etcd_first(etcd: &str) -> String {
    format!("egressSelections:\n{etcd}")
}

#[test]
fn a_selection_that_is_there_twice_is_told() {
    let text = sample(&[]);
    let again = text.split_once("egressSelections:\n").unwrap().1;
    let report = looked(&format!("{text}{again}"), None, &config(""));
    assert_eq!(report.worst(), Level::Error);
    assert!(
        report.show().contains("`cluster` is selected twice"),
        "{report:?}"
    );
}

#[test]
fn a_socket_needs_a_door_on_a_unix_socket() {
    let tcp = "front-doors: [ { listen: 127.0.0.1:1, cert: /c, key: /k, client-ca: /ca, \
               client-names: [ a ] } ]\n";
    let report = looked(&sample(&[]), None, &config(tcp));
    assert_eq!(report.worst(), Level::Error);
    assert!(
        report
            .show()
            .contains("add `- unix: /run/proxymux/egress.sock`"),
        "{report:?}"
    );
}

#[test]
fn the_pod_has_to_see_the_doors_directory() {
    let host = |path: &str| format!("{{ name: run, hostPath: {{ path: {path} }} }}");
    let at = |path: &str| format!("{{ name: run, mountPath: {path} }}");
    for (mounts, volumes, level, fix) in [
        (at("/run/proxymux"), host("/run/proxymux"), Level::Ok, ""),
        (at("/run"), host("/run"), Level::Ok, ""),
        (
            at("/run/other"),
            host("/run/other"),
            Level::Error,
            "hostPath: {path: /run/proxymux}`, and mount that at `mountPath: /run/proxymux`",
        ),
        (
            at("/run/proxymux"),
            host("/run/other"),
            Level::Error,
            "hostPath: {path: /run/proxymux}`, and mount that at `mountPath: /run/proxymux`",
        ),
        (
            at("/run/proxymux"),
            "{ name: run, emptyDir: {} }".to_owned(),
            Level::Error,
            "hostPath: {path: /run/proxymux}`",
        ),
        (
            at(SOCKET),
            host(SOCKET),
            Level::Error,
            "mount that at `mountPath: /run/proxymux`",
        ),
    ] {
        let pod = pod(&mounts, &volumes);
        let report = looked(&sample(&[]), Some(&pod), &config(""));
        assert_eq!(report.worst(), level, "{mounts} {volumes}: {report:?}");
        let mut fixes = report
            .findings()
            .iter()
            .filter_map(|finding| finding.fix.as_ref());
        let is_advised = fixes.any(|advised| advised.contains(fix));
        assert!(
            level == Level::Ok || is_advised,
            "{mounts} {volumes}: {report:?}"
        );
    }
}

#[test]
fn another_path_in_the_pod_is_fine_if_it_leads_to_the_door() {
    let pod = pod(
        "{ name: run, mountPath: /egress }",
        "{ name: run, hostPath: { path: /run/proxymux } }",
    );
    let text = sample(&[(SOCKET, "/egress/egress.sock")]);
    let report = looked(&text, Some(&pod), &config(""));
    assert_eq!(report.worst(), Level::Ok, "{report:?}");
}

#[test]
fn a_link_to_the_doors_directory_is_the_same_place() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("run")).unwrap();
    std::os::unix::fs::symlink("run", dir.path().join("link")).unwrap();

    let door = dir.path().join("run/egress.sock");
    assert!(is_same_place(&door, &dir.path().join("link/egress.sock")));
    assert!(!is_same_place(&door, &dir.path().join("link/other.sock")));
    assert!(is_same_place(
        Path::new("/nowhere/a"),
        Path::new("/nowhere/a")
    ));
}

#[test]
fn texts_that_are_no_selectors_are_findings() {
    let bomb = format!("a: &a [{}]\nb: [*a, *a, *a]\n", "x,".repeat(1000));
    for text in [
        "",
        "\u{0}",
        "[",
        "- a",
        "kind: {",
        "%YAML 9",
        "kind: 1",
        bomb.as_str(),
    ] {
        let report = looked(text, None, &config(""));
        assert_eq!(report.worst(), Level::Error, "{text:?}");
    }
}
