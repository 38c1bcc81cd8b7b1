//! Manifests as kubeadm writes them and as others do, and texts that are none.
//!
//! What a flag means is not tested here.

use super::*;

const PROGRAM: &str = "kube-apiserver";

fn parse(text: &str) -> Result<Pod, ConfigError> {
    Pod::from_document(Document::parse(text, "pod.yaml")?, PROGRAM)
}

fn with_command(command: &str) -> Pod {
    let text = format!("kind: Pod\nspec: {{ containers: [ {{ name: a, {command} }} ] }}\n");
    parse(&text).unwrap()
}

/// As kubeadm 1.29 writes it, shortened.
const KUBEADM: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  annotations:
    kubeadm.kubernetes.io/kube-apiserver.advertise-address.endpoint: 192.0.2.10:6443
  creationTimestamp: null
  name: kube-apiserver
spec:
  containers:
  - command:
    - kube-apiserver
    - --advertise-address=192.0.2.10
    - --egress-selector-config-file=/etc/kubernetes/egress/egress-selector.yaml
    - --enable-bootstrap-token-auth=true
    image: registry.k8s.io/kube-apiserver:v1.29.0
    name: kube-apiserver
    livenessProbe:
      httpGet: { host: 192.0.2.10, path: /livez, port: 6443, scheme: HTTPS }
    volumeMounts:
    - mountPath: /etc/ssl/certs
      name: ca-certs
      readOnly: true
    - mountPath: /etc/kubernetes/egress/
      name: egress-selector
      readOnly: true
    - mountPath: /run/proxymux
      name: proxymux
  hostNetwork: true
  priority: 2000001000
  securityContext:
    seccompProfile: { type: RuntimeDefault }
  volumes:
  - hostPath: { path: /etc/ssl/certs, type: DirectoryOrCreate }
    name: ca-certs
  - hostPath: { path: /etc/kubernetes/egress, type: Directory }
    name: egress-selector
  - hostPath: { path: /var/run/other }
    name: proxymux
status: {}
"#;

#[test]
fn kubeadms_manifest_has_flags_mounts_and_a_user() {
    let pod = parse(KUBEADM).unwrap();

    assert!(pod.has_container && pod.host_network);
    assert_eq!(pod.kind, "Pod");
    assert_eq!(pod.run_as, RunAs::default());
    let file = pod.flag("egress-selector-config-file");
    assert_eq!(file, Some("/etc/kubernetes/egress/egress-selector.yaml"));
    assert_eq!(pod.flag("kubelet-certificate-authority"), None);
    for (path, seen) in [
        (
            "/etc/kubernetes/egress/egress-selector.yaml",
            Seen::At("/etc/kubernetes/egress/egress-selector.yaml".into()),
        ),
        (
            "/run/proxymux/egress.sock",
            Seen::At("/var/run/other/egress.sock".into()),
        ),
        ("/run/proxymux", Seen::At("/var/run/other".into())),
        ("/run/proxymuxer/egress.sock", Seen::NotMounted),
        ("/etc/kubernetes/pki/ca.crt", Seen::NotMounted),
    ] {
        assert_eq!(pod.seen(Path::new(path)), seen, "{path}");
    }
    assert!(pod.has_mount_at(Path::new("/run/proxymux")));
    assert!(!pod.has_mount_at(Path::new("/run/proxymux/egress.sock")));
}

#[test]
fn flags_are_read_in_every_form() {
    for (command, expected) in [
        ("command: [ kube-apiserver, --a-b=c=d ]", Some("c=d")),
        ("command: [ kube-apiserver, --a-b, c ]", Some("c")),
        ("command: [ kube-apiserver, --a_b=c ]", Some("c")),
        ("command: [ kube-apiserver, --a-b=c, --a-b=d ]", Some("d")),
        ("command: [ kube-apiserver, --a-b, --other ]", Some("")),
        ("command: [ kube-apiserver, --a-b ]", Some("")),
        ("command: [ kube-apiserver, -a-b=c ]", None),
        (
            "command: [ /usr/local/bin/kube-apiserver ], args: [ --a-b=c ]",
            Some("c"),
        ),
        ("args: [ kube-apiserver, --a-b=5 ]", Some("5")),
        (
            "command: [ /bin/sh, -c, 'exec kube-apiserver --a-b=c >>/log' ]",
            Some("c"),
        ),
        ("command: [ kube-apiserver, '--a-b=c d' ]", Some("c d")),
    ] {
        let pod = with_command(command);
        assert!(pod.has_container, "{command}");
        assert_eq!(pod.flag("a-b"), expected, "{command}");
    }
}

#[test]
fn the_container_is_found_among_others() {
    for (containers, found) in [
        (
            "[ { name: x }, { name: y, command: [ /bin/kube-apiserver, --a-b=c ] } ]",
            true,
        ),
        (
            "[ { name: x }, { name: kube-apiserver, args: [ --a-b=c ] } ]",
            true,
        ),
        (
            "[ { name: x, command: [ kube-apiserver-proxy, --a-b=c ] } ]",
            false,
        ),
        ("[]", false),
        ("", false),
    ] {
        let text = format!("spec:\n  containers: {containers}\n");
        let pod = parse(&text).unwrap();
        assert_eq!(pod.has_container, found, "{containers}");
        assert_eq!(pod.flag("a-b").is_some(), found, "{containers}");
    }
}

#[test]
fn the_user_is_the_containers_and_else_the_pods() {
    let text = "spec:\n  \
                securityContext: { runAsUser: 1, runAsGroup: 2, fsGroup: 3, supplementalGroups: [ 4 ] }\n  \
                containers:\n  \
                - { name: kube-apiserver, securityContext: { runAsUser: 5 } }\n";

    let pod = parse(text).unwrap();

    assert_eq!(pod.run_as.user, Some(5));
    assert_eq!(pod.run_as.group, Some(2));
    assert_eq!(pod.run_as.more_groups, [4, 3]);
}

#[test]
fn a_volume_that_is_not_the_hosts_and_a_sub_path_are_told() {
    let text = "spec:\n  \
                containers:\n  \
                - name: kube-apiserver\n    \
                  volumeMounts:\n    \
                  - { name: memory, mountPath: /run }\n    \
                  - { name: nowhere, mountPath: /nowhere }\n    \
                  - { name: etc, mountPath: /egress, subPath: kubernetes/egress }\n  \
                volumes: [ { name: memory, emptyDir: {} }, { name: etc, hostPath: { path: /etc } } ]\n";

    let pod = parse(text).unwrap();

    for (path, volume) in [
        ("/run/proxymux/egress.sock", "memory"),
        ("/nowhere/x", "nowhere"),
    ] {
        let volume = volume.to_owned();
        assert_eq!(pod.seen(Path::new(path)), Seen::NotOfHost { volume });
    }
    assert_eq!(
        pod.seen(Path::new("/egress/a.yaml")),
        Seen::At("/etc/kubernetes/egress/a.yaml".into())
    );
}

#[test]
fn what_has_the_wrong_form_is_refused_with_its_line() {
    for (text, problem) in [
        ("", "pod.yaml: is empty"),
        ("kind: [Pod]", "pod.yaml:1: kind: a list: must be a string"),
        ("spec: 5", "pod.yaml:1: spec: 5: must be a mapping"),
        (
            "spec:\n  containers: {}",
            "pod.yaml:2: spec.containers: a mapping: must be a list",
        ),
        ("spec: { containers: [ x ] }", "must be a mapping"),
        (
            "spec: { containers: [ { command: kube-apiserver } ] }",
            "must be a list",
        ),
        (
            "spec: { containers: [ { command: [ [] ] } ] }",
            "must be a string",
        ),
        (
            "spec: { containers: [ { securityContext: { runAsUser: root } } ] }",
            "must be a whole number",
        ),
        (
            "spec: { volumes: [ { hostPath: { path: {} } } ] }",
            "must be a string",
        ),
        ("kind: Pod\n---\nkind: Pod", "pod.yaml"),
        ("spec: *x", "pod.yaml"),
        ("\u{0}", "is not allowed in YAML"),
    ] {
        let error = parse(text).unwrap_err().one_line();
        assert!(error.contains(problem), "{text:?}: {error}");
    }
}
