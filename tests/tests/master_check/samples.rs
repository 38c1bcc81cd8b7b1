//! The samples in `deploy`: a host that has them is one about which a check has nothing to say.
//!
//! They are as they stand there, but for the directories and addresses of this test.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use proxymux_testkit::pki::{Leaf, Usage};

use crate::stage::{CONFIG, DOOR_NAME, SELECTOR, Stage};

fn sample(stage: &Stage, path: &str) -> Result<String> {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes/master");
    let text = fs::read_to_string(deploy.join(path)).context(path.to_owned())?;
    let dir = stage.pki().dir().display().to_string();
    let mut text = text.replace("0.0.0.0", &stage.ip().to_string());
    for (theirs, ours) in [
        ("/etc/proxymux/pki", "master"),
        ("/etc/proxymux-tls", "tls"),
        ("/etc/proxymux", ""),
        ("/etc/kubernetes/pki", ""),
        ("/etc/kubernetes/egress", "egress"),
        ("/run/proxymux", "run"),
    ] {
        text = text.replace(theirs, format!("{dir}/{ours}").trim_end_matches('/'));
    }
    Ok(text)
}

/// Puts a sample of the master's file and one of a selector in place.
fn place(stage: &Stage, master: &str, selector: &str) -> Result<()> {
    let text = sample(stage, &format!("{master}/master.yaml"))?;
    let dir = stage.pki().dir().display();
    // Not to wait for nodes that are not there, and not to ask a master of this machine.
    let more =
        format!("connect-budget: 100ms\nadmin: unix:{dir}/run/master.sock\nlog-format: json\n");
    stage.write(CONFIG, &format!("{text}{more}"))?;
    let list = sample(stage, &format!("{master}/node-addresses.yaml"))?;
    stage.write("node-addresses.yaml", &list)?;
    stage.write(
        SELECTOR,
        &sample(stage, &format!("egress-selector/{selector}"))?,
    )
}

#[test]
fn the_static_pods_samples_are_ok() -> Result<()> {
    let stage = Stage::new()?;
    place(&stage, "static-pod", "unix-socket.yaml")?;
    let _master = stage.start()?;

    let told = stage.check_with(&["--egress-selector=DIR/egress/selector.yaml"])?;

    let levels = told.findings.iter().map(|finding| finding.level.as_str());
    assert!(levels.clone().all(|level| level == "ok"), "{told:#?}");
    assert!(levels.count() >= 10, "{told:#?}");
    assert_eq!(told.code, Some(0));
    Ok(())
}

#[test]
fn the_deployments_samples_are_ok() -> Result<()> {
    let stage = Stage::new()?;
    let server = |names: &[&str]| {
        Leaf::new("master")
            .usages([Usage::Server])
            .names(names.iter().copied())
    };
    let ip = stage.ip().to_string();
    stage.pki().pair("tls/master", &server(&[&ip]))?;
    stage.pki().pair("tls/front-door", &server(&[DOOR_NAME]))?;
    let client = Leaf::new("kube-apiserver").usages([Usage::Client]);
    stage.pki().pair("egress/kube-apiserver", &client)?;
    for to in ["tls/ca.crt", "egress/ca.crt"] {
        fs::copy(stage.path("ca.crt"), stage.path(to))?;
    }
    place(&stage, "deployment", "tcp.yaml")?;
    let _master = stage.start()?;

    let told = stage.check_with(&["--egress-selector=DIR/egress/selector.yaml"])?;

    let levels = told.findings.iter().map(|finding| finding.level.as_str());
    assert!(levels.clone().all(|level| level == "ok"), "{told:#?}");
    let asked = "asked with kube-apiserver's certificate";
    assert!(
        told.findings
            .iter()
            .any(|finding| finding.found.ends_with(asked)),
        "{told:#?}"
    );
    Ok(())
}
