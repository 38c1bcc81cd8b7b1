//! kube-apiserver's flags, mounts and egress selector, beside one master that runs.
//!
//! Only its two files are spoilt, which the master never reads. What the selector's fields mean
//! is a table of the master's own unit tests; here is what takes files, mounts and a master.

use std::fs;

use anyhow::Result;

use crate::stage::{CONFIG, MANIFEST, Mend, Row, SELECTOR, Stage, prove_beside};

const SELECTOR_FLAG: &str =
    "    - --egress-selector-config-file=/etc/kubernetes/egress/selector.yaml\n";
const AUTHORITY_FLAG: &str = "    - --kubelet-certificate-authority=/etc/kubernetes/pki/ca.crt\n";
const KEY_FLAG: &str = "    - --kubelet-client-key=/etc/kubernetes/pki/kubelet-client.key\n";

/// Puts a line back behind the program's name.
fn add(stage: &Stage, line: &str) -> Result<()> {
    let program = "    - kube-apiserver\n";
    stage.edit(MANIFEST, program, &format!("{program}{line}"))
}

#[test]
fn flags_and_mounts_are_told() -> Result<()> {
    let stage = Stage::new()?;
    let _master = stage.start()?;
    prove_beside(
        &stage,
        &[
            Row {
                what: "no egress selector",
                spoil: &|stage| stage.edit(MANIFEST, SELECTOR_FLAG, ""),
                told: (
                    "warning",
                    "kube-apiserver",
                    "dials nodes itself",
                    "add `- --egress-selector-config-file=",
                ),
                mend: Mend::By(&|stage| add(stage, SELECTOR_FLAG)),
            },
            Row {
                what: "its file's directory is not mounted",
                spoil: &|stage| {
                    stage.edit(MANIFEST, "    - { name: egress, mountPath: /etc/kubernetes/egress, readOnly: true }\n", "")
                },
                told: (
                    "error",
                    "kube-apiserver",
                    "does not see /etc/kubernetes/egress/selector.yaml",
                    "mountPath: /etc/kubernetes/egress",
                ),
                mend: Mend::By(&|stage| {
                    stage.edit(MANIFEST, "    volumeMounts:\n", "    volumeMounts:\n    - { name: egress, mountPath: /etc/kubernetes/egress }\n")
                }),
            },
            Row {
                what: "its file is not there",
                spoil: &|stage| Ok(fs::remove_file(stage.path(SELECTOR))?),
                told: (
                    "error",
                    "egress selector",
                    "DIR/egress/selector.yaml: cannot be read",
                    "egress-selector/unix-socket.yaml DIR/egress/selector.yaml",
                ),
                mend: Mend::By(&|stage| {
                    let sample = concat!(
                        env!("CARGO_MANIFEST_DIR"),
                        "/../deploy/kubernetes/master/egress-selector/unix-socket.yaml"
                    );
                    stage.write(SELECTOR, &fs::read_to_string(sample)?)
                }),
            },
            Row {
                what: "the socket's directory is not mounted",
                spoil: &|stage| {
                    stage.edit(
                        MANIFEST,
                        "    - { name: proxymux, mountPath: /run/proxymux }\n",
                        "",
                    )
                },
                told: (
                    "error",
                    "egress selector",
                    "does not see /run/proxymux/egress.sock",
                    "mountPath: /run/proxymux`",
                ),
                mend: Mend::By(&|stage| {
                    stage.edit(
                        MANIFEST,
                        "    volumeMounts:\n",
                        "    volumeMounts:\n    - { name: proxymux, mountPath: /run/proxymux }\n",
                    )
                }),
            },
            Row {
                what: "another directory is mounted in its place",
                spoil: &|stage| stage.edit(MANIFEST, "path: DIR/run }", "path: DIR/egress }"),
                told: (
                    "error",
                    "egress selector",
                    "which is DIR/egress/egress.sock on this host, and no front door",
                    "set `udsName: DIR/run/egress.sock`",
                ),
                mend: Mend::By(&|stage| {
                    stage.edit(
                        MANIFEST,
                        "mountPath: /run/proxymux }",
                        "mountPath: DIR/run }",
                    )?;
                    stage.edit(
                        MANIFEST,
                        "name: proxymux, hostPath: { path: DIR/egress }",
                        "name: proxymux, hostPath: { path: DIR/run }",
                    )?;
                    stage.edit(SELECTOR, "/run/proxymux/egress.sock", "DIR/run/egress.sock")
                }),
            },
            Row {
                what: "the socket is mounted, and not its directory",
                spoil: &|stage| {
                    stage.edit(
                        MANIFEST,
                        "mountPath: /run/proxymux",
                        "mountPath: /run/proxymux/egress.sock",
                    )?;
                    stage.edit(MANIFEST, "path: DIR/run }", "path: DIR/run/egress.sock }")
                },
                told: (
                    "error",
                    "egress selector",
                    "and not its directory",
                    "mountPath: /run/proxymux`",
                ),
                mend: Mend::By(&|stage| {
                    stage.edit(
                        MANIFEST,
                        "mountPath: /run/proxymux/egress.sock",
                        "mountPath: /run/proxymux",
                    )?;
                    stage.edit(MANIFEST, "path: DIR/run/egress.sock }", "path: DIR/run }")
                }),
            },
            Row {
                what: "konnectivity's protocol",
                spoil: &|stage| stage.edit(SELECTOR, "HTTPConnect", "GRPC"),
                told: (
                    "error",
                    "egress selector",
                    "proxymux speaks HTTPConnect",
                    "set `proxyProtocol: HTTPConnect`",
                ),
                mend: Mend::By(&|stage| stage.edit(SELECTOR, "GRPC", "HTTPConnect")),
            },
            Row {
                what: "a selector of another kind",
                spoil: &|stage| {
                    stage.edit(
                        SELECTOR,
                        "apiserver.k8s.io/v1beta1",
                        "apiserver.config.k8s.io/v1",
                    )
                },
                told: (
                    "error",
                    "egress selector",
                    "expected apiserver.k8s.io/v1beta1",
                    "set `apiVersion: apiserver.k8s.io/v1beta1`",
                ),
                mend: Mend::By(&|stage| {
                    stage.edit(
                        SELECTOR,
                        "apiserver.config.k8s.io/v1",
                        "apiserver.k8s.io/v1beta1",
                    )
                }),
            },
            Row {
                what: "kubelets are not verified, and the master believes so",
                spoil: &|stage| stage.edit(MANIFEST, AUTHORITY_FLAG, ""),
                told: (
                    "error",
                    "kube-apiserver",
                    "runs without --kubelet-certificate-authority",
                    "add `- --kubelet-certificate-authority=",
                ),
                mend: Mend::By(&|stage| add(stage, AUTHORITY_FLAG)),
            },
            Row {
                what: "the same, and the master's file changed",
                spoil: &|stage| stage.edit(MANIFEST, AUTHORITY_FLAG, ""),
                told: (
                    "error",
                    "kube-apiserver",
                    "`kubelet-certificates: verified`",
                    "`kubelet-certificates: unverified`",
                ),
                mend: Mend::By(&|stage| {
                    stage.edit(
                        CONFIG,
                        "kubelet-certificates: verified",
                        "kubelet-certificates: unverified",
                    )
                }),
            },
            Row {
                what: "kubelets are verified, and the master does not know",
                spoil: &|stage| stage.edit(CONFIG, "kubelet-certificates: verified\n", ""),
                told: (
                    "warning",
                    "kube-apiserver",
                    "fast paths are not used",
                    "set `kubelet-certificates: verified`",
                ),
                mend: Mend::By(&|stage| {
                    stage.edit(
                        CONFIG,
                        "log-format",
                        "kubelet-certificates: verified\nlog-format",
                    )
                }),
            },
            Row {
                what: "the authority's file is not there",
                spoil: &|stage| stage.edit(MANIFEST, "pki/ca.crt", "pki/kubelet-ca.crt"),
                told: (
                    "error",
                    "kube-apiserver",
                    "`DIR/kubelet-ca.crt` does not exist",
                    "",
                ),
                mend: Mend::By(&|stage| {
                    Ok(fs::copy(stage.path("ca.crt"), stage.path("kubelet-ca.crt")).map(drop)?)
                }),
            },
            Row {
                what: "no key for kubelets",
                spoil: &|stage| stage.edit(MANIFEST, KEY_FLAG, ""),
                told: (
                    "warning",
                    "kube-apiserver",
                    "it runs without --kubelet-client-key",
                    "add `- --kubelet-client-certificate=",
                ),
                mend: Mend::By(&|stage| add(stage, KEY_FLAG)),
            },
            Row {
                what: "nodes are asked for by a name that no master knows",
                spoil: &|stage| {
                    stage.edit(
                        MANIFEST,
                        "=InternalIP,ExternalIP",
                        "=ExternalDNS,ExternalIP",
                    )
                },
                told: (
                    "warning",
                    "kube-apiserver",
                    "it asks for nodes by ExternalDNS",
                    "=InternalIP,Hostname`",
                ),
                mend: Mend::By(&|stage| {
                    stage.edit(
                        MANIFEST,
                        "=ExternalDNS,ExternalIP,Hostname",
                        "=InternalIP,Hostname",
                    )
                }),
            },
            Row {
                what: "a manifest of something else",
                spoil: &|stage| {
                    stage.edit(MANIFEST, "- kube-apiserver\n", "- kube-scheduler\n")?;
                    stage.edit(
                        MANIFEST,
                        "- name: kube-apiserver\n",
                        "- name: kube-scheduler\n",
                    )
                },
                told: (
                    "error",
                    "kube-apiserver",
                    "is no pod in which kube-apiserver runs",
                    "--apiserver-manifest",
                ),
                mend: Mend::By(&Stage::write_all),
            },
            Row {
                what: "a manifest that is none",
                spoil: &|stage| {
                    stage.edit(
                        MANIFEST,
                        "    command:\n",
                        "    command: kube-apiserver\n    args:\n",
                    )
                },
                told: (
                    "error",
                    "kube-apiserver",
                    "kube-apiserver.yaml:9: spec.containers[0].command: \"kube-apiserver\": must be a list",
                    "mend that line",
                ),
                mend: Mend::By(&|stage| {
                    stage.edit(
                        MANIFEST,
                        "command: kube-apiserver\n    args:\n",
                        "command:\n",
                    )
                }),
            },
        ],
    )
}

#[test]
fn what_is_given_is_compared_with_what_kube_apiserver_reads() -> Result<()> {
    let stage = Stage::new()?;
    let _master = stage.start()?;
    let both = [
        "--egress-selector=DIR/other.yaml",
        "--apiserver-manifest=DIR/manifests/kube-apiserver.yaml",
    ];
    let row = Row {
        what: "two selectors",
        spoil: &|stage| {
            let text = fs::read_to_string(stage.path(SELECTOR))?;
            stage.write("other.yaml", &text)?;
            stage.write(SELECTOR, "")
        },
        told: (
            "warning",
            "kube-apiserver",
            "it reads DIR/egress/selector.yaml, and DIR/other.yaml is checked",
            "leave --egress-selector out",
        ),
        mend: Mend::By(&|stage| {
            // As a link, so that it is the same one.
            fs::remove_file(stage.path(SELECTOR))?;
            Ok(std::os::unix::fs::symlink(
                "../other.yaml",
                stage.path(SELECTOR),
            )?)
        }),
    };
    row.prove(&stage, &|stage| stage.check_with(&both))?;

    let row = Row {
        what: "no manifest where one was given",
        spoil: &|_| Ok(()),
        told: (
            "error",
            "kube-apiserver",
            "DIR/none.yaml: cannot be read",
            "--apiserver-manifest",
        ),
        mend: Mend::By(&|stage| {
            fs::copy(stage.path(MANIFEST), stage.path("none.yaml"))?;
            Ok(())
        }),
    };
    row.prove(&stage, &|stage| {
        stage.check_with(&["--apiserver-manifest=DIR/none.yaml"])
    })
}
