//! The agent's DaemonSet and its overlays, field by field beside the one that it stands in for.
//!
//! What was published of OKE's `proxymux-client` is written here as it was; what ours has besides
//! is listed, so that nothing comes in unnoticed.

use anyhow::Result;
use serde_json::{Value, json};

use crate::yaml::{differences, leaves, list, named, render_one, text};

/// The DaemonSet of a cluster in 2020, as far as it was published. Its `apiVersion`,
/// `extensions/v1beta1`, is gone from Kubernetes since 1.16, and its image is not ours.
fn published() -> Value {
    json!({
        "kind": "DaemonSet",
        "metadata": {
            "annotations": { "scheduler.alpha.kubernetes.io/critical-pod": "" },
            "labels": { "oke-app": "proxymux-client-ds" },
            "name": "proxymux-client",
            "namespace": "kube-system",
        },
        "spec": {
            "selector": { "matchLabels": { "oke-app": "proxymux-client-ds" } },
            "template": {
                "metadata": { "labels": { "oke-app": "proxymux-client-ds" } },
                "spec": {
                    "containers": [{
                        "args": ["--config=/mnt/etc/proxymux/config.yaml", "--verbosity=info"],
                        "name": "proxymux-client",
                        "resources": {
                            "limits": { "cpu": "500m", "memory": "256Mi" },
                            "requests": { "cpu": "50m", "memory": "64Mi" },
                        },
                        "securityContext": { "privileged": true },
                        "volumeMounts": [
                            { "mountPath": "/mnt/etc/proxymux/", "name": "proxymux-cfg",
                              "readOnly": true },
                            { "mountPath": "/etc/kubernetes/", "name": "kubernetes-cfg",
                              "readOnly": true },
                        ],
                    }],
                    "dnsPolicy": "ClusterFirst",
                    "hostNetwork": true,
                    "nodeSelector": { "node.info.ds_proxymux_client": "true" },
                    "priority": 2_000_001_000,
                    "priorityClassName": "system-node-critical",
                    "volumes": [
                        { "name": "proxymux-cfg",
                          "hostPath": { "path": "/etc/proxymux/", "type": "" } },
                        { "name": "kubernetes-cfg",
                          "hostPath": { "path": "/etc/kubernetes/", "type": "" } },
                    ],
                },
            },
        },
    })
}

const BASE: &str = "kubernetes/agent/base";
const DROP_IN: &str = "kubernetes/agent/overlays/drop-in";
const BARE_METAL: &str = "kubernetes/agent/overlays/bare-metal";
const CAPABILITIES: &str = "kubernetes/agent/overlays/capabilities";
const POD: &str = "/spec/template/spec";

#[test]
fn the_drop_in_has_every_published_field_and_only_these_besides() -> Result<()> {
    let (published, ours) = (leaves(&published()), leaves(&render_one(DROP_IN)?));

    let missing: Vec<_> = published
        .iter()
        .filter(|leaf| !ours.contains(leaf))
        .collect();
    assert_eq!(missing, Vec::<&(String, Value)>::new());
    let besides = ours.iter().filter(|leaf| !published.contains(leaf));
    let besides: Vec<_> = besides.map(|(place, _)| place.as_str()).collect();
    let container = "/spec/template/spec/containers[proxymux-client]";
    assert_eq!(
        besides,
        [
            "/apiVersion",
            "/spec/minReadySeconds",
            "/spec/template/spec/automountServiceAccountToken",
            &format!("{container}/image"),
            &format!("{container}/imagePullPolicy"),
            &format!("{container}/readinessProbe/exec/command"),
            &format!("{container}/readinessProbe/failureThreshold"),
            &format!("{container}/readinessProbe/periodSeconds"),
            &format!("{container}/readinessProbe/timeoutSeconds"),
            &format!("{container}/securityContext/readOnlyRootFilesystem"),
            &format!("{container}/terminationMessagePath"),
            &format!("{container}/terminationMessagePolicy"),
            &format!("{container}/volumeMounts[kubelet-pki]/mountPath"),
            &format!("{container}/volumeMounts[kubelet-pki]/name"),
            &format!("{container}/volumeMounts[kubelet-pki]/readOnly"),
            &format!("{container}/volumeMounts[run]/mountPath"),
            &format!("{container}/volumeMounts[run]/name"),
            "/spec/template/spec/terminationGracePeriodSeconds",
            "/spec/template/spec/tolerations",
            "/spec/template/spec/volumes[kubelet-pki]/hostPath/path",
            "/spec/template/spec/volumes[kubelet-pki]/hostPath/type",
            "/spec/template/spec/volumes[kubelet-pki]/name",
            "/spec/template/spec/volumes[run]/emptyDir/medium",
            "/spec/template/spec/volumes[run]/emptyDir/sizeLimit",
            "/spec/template/spec/volumes[run]/name",
            "/spec/updateStrategy/rollingUpdate/maxUnavailable",
            "/spec/updateStrategy/type",
        ]
    );
    Ok(())
}

#[test]
fn what_the_daemon_set_has_besides_is_what_it_is_for() -> Result<()> {
    let set = render_one(BASE)?;
    let pod = set.pointer(POD).unwrap_or(&Value::Null);
    let container = named(pod, "/containers", "proxymux-agent")?;

    assert_eq!(text(&set, "/apiVersion"), "apps/v1");
    assert_eq!(
        pod.get("tolerations"),
        Some(&json!([{ "operator": "Exists" }])),
        "it runs before the node is ready, and where nothing else does"
    );
    // The link that the kubelet replaces may be absolute, so that its directory must be where it
    // is on the host.
    let mount = named(container, "/volumeMounts", "kubelet-pki")?;
    let volume = named(pod, "/volumes", "kubelet-pki")?;
    assert_eq!(text(mount, "/mountPath"), "/var/lib/kubelet/pki");
    assert_eq!(text(volume, "/hostPath/path"), "/var/lib/kubelet/pki");
    assert_eq!(mount.get("readOnly"), Some(&json!(true)));
    assert_eq!(
        container.pointer("/readinessProbe/exec/command"),
        Some(&json!([
            "/bin/proxymux-agent",
            "status",
            "--ready",
            "--config=/mnt/etc/proxymux/config.yaml"
        ]))
    );
    assert_eq!(
        text(container, "/terminationMessagePath"),
        "/dev/termination-log"
    );
    let image = text(container, "/image");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(image, format!("localhost/proxymux-agent:{version}"));
    Ok(())
}

#[test]
fn the_base_differs_from_the_drop_in_by_name_and_label_only() -> Result<()> {
    let (mut base, drop_in) = (render_one(BASE)?, render_one(DROP_IN)?);
    assert_eq!(text(&base, "/metadata/name"), "proxymux-agent");
    assert!(!base.to_string().contains("oke-app"), "{base}");
    assert!(!base.to_string().contains("proxymux-client"), "{base}");

    for (place, value) in [
        ("/metadata/name", json!("proxymux-client")),
        (
            "/spec/template/spec/containers/0/name",
            json!("proxymux-client"),
        ),
    ] {
        if let Some(field) = base.pointer_mut(place) {
            *field = value;
        }
    }

    assert_eq!(
        differences(&base, &drop_in),
        [
            "/metadata/labels/app.kubernetes.io/name",
            "/metadata/labels/oke-app",
            "/spec/selector/matchLabels/app.kubernetes.io/name",
            "/spec/selector/matchLabels/oke-app",
            "/spec/template/metadata/labels/app.kubernetes.io/name",
            "/spec/template/metadata/labels/oke-app",
        ]
    );
    Ok(())
}

#[test]
fn on_bare_metal_every_node_has_an_agent() -> Result<()> {
    let (base, bare_metal) = (render_one(BASE)?, render_one(BARE_METAL)?);

    assert_eq!(
        differences(&base, &bare_metal),
        ["/spec/template/spec/nodeSelector/node.info.ds_proxymux_client"]
    );
    assert_eq!(bare_metal.pointer("/spec/template/spec/nodeSelector"), None);
    Ok(())
}

#[test]
fn capabilities_take_the_place_of_privileged() -> Result<()> {
    let (bare_metal, capabilities) = (render_one(BARE_METAL)?, render_one(CAPABILITIES)?);

    let context = "/spec/template/spec/containers[proxymux-agent]/securityContext";
    assert_eq!(
        differences(&bare_metal, &capabilities),
        [
            format!("{context}/allowPrivilegeEscalation"),
            format!("{context}/capabilities/add"),
            format!("{context}/capabilities/drop"),
            format!("{context}/privileged"),
            format!("{context}/seLinuxOptions/type"),
        ]
    );
    let containers = list(&capabilities, "/spec/template/spec/containers");
    let context = containers.first().and_then(|c| c.get("securityContext"));
    assert_eq!(
        context.and_then(|context| context.get("capabilities")),
        Some(&json!({ "add": ["BPF", "NET_ADMIN", "PERFMON"], "drop": ["ALL"] }))
    );
    assert_eq!(context.and_then(|context| context.get("privileged")), None);
    Ok(())
}
