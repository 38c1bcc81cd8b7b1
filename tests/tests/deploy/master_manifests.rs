//! The master's manifests, and whether what they say of each other agrees: sockets, ports, names.
//!
//! Most mistakes here would show only when kube-apiserver's first dial fails.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::yaml::{documents, find, leaves, list, named, read, read_one, render, text};

const DEPLOYMENT: &str = "kubernetes/master/deployment";
const STATIC_POD: &str = "kubernetes/master/static-pod/proxymux-master.yaml";
const STATIC_POD_FILE: &str = "kubernetes/master/static-pod/master.yaml";

#[test]
fn the_egress_selectors_socket_is_the_front_door_that_both_pods_see() -> Result<()> {
    let selector = read_one("kubernetes/master/egress-selector/unix-socket.yaml")?;
    let master = read_one(STATIC_POD_FILE)?;
    let pod = read_one(STATIC_POD)?;
    let kubeadm = read_one("kubernetes/master/egress-selector/kubeadm.yaml")?;

    let selection = selection(&selector)?;
    assert_eq!(text(selection, "/connection/proxyProtocol"), "HTTPConnect");
    let socket = text(selection, "/connection/transport/uds/udsName");
    assert_eq!(socket, "/run/proxymux/egress.sock");
    assert_eq!(text(&master, "/front-doors/0/unix"), socket);
    let directory = Path::new(socket).parent().and_then(Path::to_str);
    let directory = directory.context("the socket is in a directory")?;
    // In the master's pod and in kube-apiserver's, at the same place of the same host.
    let container = named(&pod, "/spec/containers", "proxymux-master")?;
    let mount = named(container, "/volumeMounts", "run")?;
    let volume = named(&pod, "/spec/volumes", "run")?;
    assert_eq!(text(mount, "/mountPath"), directory);
    assert_eq!(text(volume, "/hostPath/path"), directory);
    let volume = named(&kubeadm, "/apiServer/extraVolumes", "proxymux")?;
    assert_eq!(text(volume, "/hostPath"), directory);
    assert_eq!(text(volume, "/mountPath"), directory);
    let file = text(&kubeadm, "/apiServer/extraArgs/egress-selector-config-file");
    let volume = named(&kubeadm, "/apiServer/extraVolumes", "egress-selector")?;
    assert!(file.starts_with(text(volume, "/mountPath")), "{file}");
    Ok(())
}

#[test]
fn the_egress_selectors_url_is_the_deployments_front_door() -> Result<()> {
    let selector = read_one("kubernetes/master/egress-selector/tcp.yaml")?;
    let rendered = render(DEPLOYMENT)?;
    let (_, master) = configuration(&rendered)?;

    let tcp = selection(&selector)?.pointer("/connection/transport/tcp");
    let tcp = tcp.context("a TCP transport")?;
    assert_eq!(
        text(tcp, "/url"),
        "https://proxymux-master.kube-system.svc:8131"
    );
    for place in ["caBundle", "clientCert", "clientKey"] {
        assert!(!text(tcp, &format!("/tlsConfig/{place}")).is_empty());
    }
    let service = find(&rendered, "Service", "proxymux-master")?;
    assert_eq!(service.pointer("/spec/ports/0/port"), Some(&json!(8131)));
    assert_eq!(port(&rendered, service)?, json!(8131));
    assert_eq!(text(&master, "/front-doors/0/listen"), "0.0.0.0:8131");
    assert_eq!(
        master.pointer("/front-doors/0/client-names"),
        Some(&json!(["kube-apiserver"]))
    );
    let service = find(&rendered, "Service", "proxymux-master-agents")?;
    assert_eq!(port(&rendered, service)?, json!(12250));
    assert_eq!(text(&master, "/listen"), "0.0.0.0:12250");
    Ok(())
}

/// The container's port that a Service leads to.
fn port(rendered: &[Value], service: &Value) -> Result<Value> {
    let container = container(rendered)?;
    let target = text(service, "/spec/ports/0/targetPort");
    let port = named(container, "/ports", target)?;
    assert_eq!(
        service.pointer("/spec/selector"),
        find(rendered, "Deployment", "proxymux-master")?.pointer("/spec/selector/matchLabels")
    );
    Ok(port.get("containerPort").cloned().unwrap_or_default())
}

#[test]
fn the_deployments_files_are_where_its_arguments_and_its_file_say() -> Result<()> {
    let rendered = render(DEPLOYMENT)?;
    let (map, master) = configuration(&rendered)?;
    let deployment = find(&rendered, "Deployment", "proxymux-master")?;
    let pod = deployment.pointer("/spec/template/spec").context("a pod")?;
    let container = container(&rendered)?;

    // kustomize names the map after its content, so that a change of it is a new pod.
    let volume = named(pod, "/volumes", "config")?;
    assert_eq!(text(volume, "/configMap/name"), text(map, "/metadata/name"));
    let mounted_at = |name: &str| -> Result<String> {
        let mount = named(container, "/volumeMounts", name)?;
        Ok(format!("{}/", text(mount, "/mountPath")))
    };
    let (config, tls, run) = (
        mounted_at("config")?,
        mounted_at("tls")?,
        mounted_at("run")?,
    );
    assert_eq!(
        list(container, "/args").first(),
        Some(&json!(format!("--config={config}master.yaml")))
    );
    let addresses = text(&master, "/node-addresses/file");
    let name = addresses.strip_prefix(&config).context("in the map")?;
    assert!(map.pointer(&format!("/data/{name}")).is_some(), "{name}");
    for (place, value) in leaves(&master) {
        let is_secret = ["/cert", "/key", "/client-ca"].contains(&place.as_str());
        let value = value.as_str().unwrap_or_default();
        assert!(!is_secret || value.starts_with(&tls), "{place}: {value}");
    }
    assert_eq!(
        run, "/run/proxymux/",
        "where the admin address is by default"
    );
    Ok(())
}

#[test]
fn no_master_has_a_privilege_and_the_deployments_is_no_root() -> Result<()> {
    let rendered = render(DEPLOYMENT)?;
    let deployment = find(&rendered, "Deployment", "proxymux-master")?;
    let static_pod = read_one(STATIC_POD)?;
    let in_static_pod = named(&static_pod, "/spec/containers", "proxymux-master")?;

    for container in [container(&rendered)?, in_static_pod] {
        let context = container.get("securityContext").context("a context")?;
        assert_eq!(context.get("allowPrivilegeEscalation"), Some(&json!(false)));
        assert_eq!(
            context.get("capabilities"),
            Some(&json!({ "drop": ["ALL"] }))
        );
        assert_eq!(context.get("readOnlyRootFilesystem"), Some(&json!(true)));
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            text(container, "/image"),
            format!("localhost/proxymux-master:{version}")
        );
        let probe = container.pointer("/readinessProbe/exec/command");
        let argument = list(container, "/args").first();
        let argument = argument.context("an argument")?;
        assert_eq!(
            probe,
            Some(&json!([
                "/bin/proxymux-master",
                "nodes",
                "--ready",
                argument
            ]))
        );
    }
    let context = deployment.pointer("/spec/template/spec/securityContext");
    let context = context.context("a context of the pod")?;
    assert_eq!(context.get("runAsNonRoot"), Some(&json!(true)));
    assert_eq!(context.get("fsGroup"), context.get("runAsGroup"));
    Ok(())
}

#[test]
fn both_masters_have_routes_for_services_and_for_pods() -> Result<()> {
    let expected = json!([
        { "cidr": "10.96.0.0/12", "via": "direct" },
        { "cidr": "10.244.0.0/16", "via": "node" },
    ]);
    let rendered = render(DEPLOYMENT)?;

    assert_eq!(read_one(STATIC_POD_FILE)?.get("routes"), Some(&expected));
    assert_eq!(configuration(&rendered)?.1.get("routes"), Some(&expected));
    Ok(())
}

#[test]
fn the_master_may_read_nodes_and_nothing_else() -> Result<()> {
    let rendered = render("kubernetes/master/rbac")?;

    let role = find(&rendered, "ClusterRole", "proxymux-master")?;
    assert_eq!(
        role.get("rules"),
        Some(&json!([{
            "apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"],
        }]))
    );
    let binding = find(&rendered, "ClusterRoleBinding", "proxymux-master")?;
    assert_eq!(text(binding, "/roleRef/name"), "proxymux-master");
    let subjects = list(binding, "/subjects");
    let subjects = subjects
        .iter()
        .map(|subject| (text(subject, "/kind"), text(subject, "/name")));
    assert_eq!(
        subjects.collect::<Vec<_>>(),
        [
            ("ServiceAccount", "proxymux-master"),
            ("User", "proxymux-master")
        ]
    );
    find(&rendered, "ServiceAccount", "proxymux-master")?;
    assert_eq!(rendered.len(), 3);
    Ok(())
}

fn selection(selector: &Value) -> Result<&Value> {
    assert_eq!(text(selector, "/kind"), "EgressSelectorConfiguration");
    assert_eq!(text(selector, "/apiVersion"), "apiserver.k8s.io/v1beta1");
    assert_eq!(list(selector, "/egressSelections").len(), 1);
    named(selector, "/egressSelections", "cluster")
}

fn container(rendered: &[Value]) -> Result<&Value> {
    let deployment = find(rendered, "Deployment", "proxymux-master")?;
    named(
        deployment,
        "/spec/template/spec/containers",
        "proxymux-master",
    )
}

/// The Deployment's ConfigMap, and the master's file in it.
fn configuration(rendered: &[Value]) -> Result<(&Value, Value)> {
    let mut maps = rendered
        .iter()
        .filter(|one| text(one, "/kind") == "ConfigMap");
    let map = maps.next().context("a ConfigMap")?;
    assert!(text(map, "/metadata/name").starts_with("proxymux-master-"));
    let mut files = documents(text(map, "/data/master.yaml"))?;
    Ok((map, files.pop().context("the master's file")?))
}

#[test]
fn the_static_pod_is_one_document_of_the_kind_that_kubelets_read() -> Result<()> {
    let documents = read(STATIC_POD)?;

    assert_eq!(documents.len(), 1);
    let pod = find(&documents, "Pod", "proxymux-master")?;
    assert_eq!(text(pod, "/apiVersion"), "v1");
    assert_eq!(pod.pointer("/spec/hostNetwork"), Some(&json!(true)));
    // A static pod may refer to no object of the API.
    for place in ["serviceAccountName", "serviceAccount"] {
        assert_eq!(pod.pointer(&format!("/spec/{place}")), None);
    }
    for volume in list(pod, "/spec/volumes") {
        assert!(volume.get("hostPath").is_some(), "{volume}");
    }
    Ok(())
}
