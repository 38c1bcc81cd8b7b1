//! The list of what is in `deploy`, with the test that each kind of file has.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::yaml::{deploy, documents};

/// All of it. Who adds a file adds a test: manifests are compared in `agent_manifests` and
/// `master_manifests`, samples are loaded in `samples`, units are verified in `units`,
/// the Dockerfile is compared in the tests of group `dist`.
const FILES: &[&str] = &[
    "container/Dockerfile",
    "kubernetes/agent/base/daemonset.yaml",
    "kubernetes/agent/base/kustomization.yaml",
    "kubernetes/agent/overlays/bare-metal/every-node.yaml",
    "kubernetes/agent/overlays/bare-metal/kustomization.yaml",
    "kubernetes/agent/overlays/capabilities/capabilities.yaml",
    "kubernetes/agent/overlays/capabilities/kustomization.yaml",
    "kubernetes/agent/overlays/drop-in/kustomization.yaml",
    "kubernetes/agent/overlays/drop-in/names.yaml",
    "kubernetes/master/deployment/deployment.yaml",
    "kubernetes/master/deployment/kustomization.yaml",
    "kubernetes/master/deployment/master.yaml",
    "kubernetes/master/deployment/node-addresses.yaml",
    "kubernetes/master/deployment/services.yaml",
    "kubernetes/master/egress-selector/kubeadm.yaml",
    "kubernetes/master/egress-selector/tcp.yaml",
    "kubernetes/master/egress-selector/unix-socket.yaml",
    "kubernetes/master/rbac/kustomization.yaml",
    "kubernetes/master/rbac/rbac.yaml",
    "kubernetes/master/static-pod/master.yaml",
    "kubernetes/master/static-pod/node-addresses.yaml",
    "kubernetes/master/static-pod/proxymux-master.yaml",
    "pki/README.md",
    "pki/make-certificates.sh",
    "samples/agent-full.yaml",
    "samples/agent-seed.yaml",
    "samples/master-full.yaml",
    "samples/master-minimal.yaml",
    "samples/node-addresses.yaml",
    "systemd/proxymux-agent-before-5.8.conf",
    "systemd/proxymux-agent.service",
    "systemd/proxymux-master.service",
    "systemd/proxymux-master@.service",
    "systemd/proxymux.sysusers",
    "systemd/proxymux.tmpfiles",
];

#[test]
fn every_file_is_known_and_all_yaml_can_be_parsed() -> Result<()> {
    let root = deploy("");
    let mut found = Vec::new();
    walk(&root, &mut found)?;
    let names = found.iter().map(|path| path.strip_prefix(&root));
    let mut names: Vec<_> = names.collect::<Result<_, _>>()?;
    names.sort();

    assert_eq!(names, FILES.iter().map(Path::new).collect::<Vec<_>>());
    let yaml = found
        .iter()
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"));
    let mut parsed = 0;
    for path in yaml {
        let context = || path.display().to_string();
        let text = fs::read_to_string(path).with_context(context)?;
        let documents = documents(&text).with_context(context)?;
        assert!(!documents.is_empty(), "{}", path.display());
        assert!(
            !documents.iter().any(serde_json::Value::is_null),
            "{}",
            path.display()
        );
        parsed += 1;
    }
    assert_eq!(parsed, 26);
    Ok(())
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            walk(&path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

#[test]
fn who_could_replace_oracles_daemon_set_is_warned_first() -> Result<()> {
    let header = fs::read_to_string(deploy(
        "kubernetes/agent/overlays/drop-in/kustomization.yaml",
    ))?;
    let front_page = fs::read_to_string(deploy("../README.md"))?;

    assert!(header.starts_with("# WARNING: never apply this to a managed cluster."));
    let comment: String = header
        .lines()
        .map_while(|line| line.strip_prefix('#'))
        .collect();
    assert!(comment.contains("managed control plane does not speak this project's protocol"));
    assert!(comment.contains("Never delete or replace Oracle's DaemonSet on a managed cluster"));
    let first_screen: Vec<_> = front_page.lines().take(24).collect();
    let first_screen = first_screen.join(" ");
    for warning in [
        "Oracle's managed control plane does not speak this protocol",
        "Never delete or replace the `proxymux-client` DaemonSet on a managed cluster",
    ] {
        assert!(first_screen.contains(warning), "{warning}");
    }
    Ok(())
}
