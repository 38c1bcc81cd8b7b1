//! The daemons with no more privilege than their units and manifests give them.
//!
//! What a unit grants is read from it, so that a capability that is taken away there is missing
//! here too.

use std::{fs, os::unix::fs::chown, path::Path, process::Command};

use anyhow::{Context, Result};
use proxymux_testkit::{
    cluster::{AGENT, Cluster, MASTER, program},
    process::Daemon,
};
use proxymux_tests::{
    events::{complaints, wait_for_message},
    limits::{SOON, within},
    programs::{Scratch, config_flag},
};
use serde_json::json;

use crate::yaml::{deploy, list, render_one};

/// The agent's capabilities in its unit, such as `bpf`.
fn of_the_unit() -> Result<Vec<String>> {
    let unit = fs::read_to_string(deploy("systemd/proxymux-agent.service"))?;
    let set = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let set = set.context("a bounding set")?.split_whitespace();
    Ok(set
        .map(|name| name.trim_start_matches("CAP_").to_ascii_lowercase())
        .collect())
}

/// The same in the DaemonSet.
fn of_the_daemon_set() -> Result<Vec<String>> {
    let set = render_one("kubernetes/agent/overlays/capabilities")?;
    let added = "/spec/template/spec/containers/0/securityContext/capabilities/add";
    let names = list(&set, added).iter().filter_map(|name| name.as_str());
    Ok(names.map(str::to_ascii_lowercase).collect())
}

/// Words for `setpriv` that leave these capabilities and no way to others.
fn with_only(capabilities: &[String]) -> [String; 3] {
    let mut set = "-all".to_owned();
    for name in capabilities {
        set.push_str(",+");
        set.push_str(name);
    }
    [
        format!("--bounding-set={set}"),
        "--inh-caps=-all".to_owned(),
        "--no-new-privs".to_owned(),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_steers_with_the_capabilities_of_its_unit_and_no_other() -> Result<()> {
    let capabilities = of_the_unit()?;
    assert_eq!(
        of_the_daemon_set()?,
        capabilities,
        "unit and DaemonSet agree"
    );
    let mut cluster = Cluster::builder().build()?;
    cluster.start_master(0)?;
    let config = cluster.dir().join("agent.yaml");
    fs::write(&config, format!("{}mode: ebpf\n", cluster.agent_config(0)?))?;
    let mut command = cluster.node(0).command("setpriv");
    command.args(with_only(&capabilities));
    command
        .arg(program(AGENT)?)
        .arg(config_flag(&config))
        .arg("--verbosity=debug");

    let mut agent = Daemon::spawn("agent with few capabilities", command)?;

    wait_for_message(&mut agent, 0, SOON, "session up")?;
    let chosen = wait_for_message(&mut agent, 0, SOON, "mode chosen")?;
    assert_eq!(chosen.text("mode"), Some("ebpf"), "{chosen:?}");
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = u64::from_str_radix(effective.context("CapEff")?.trim(), 16)?;
    assert_eq!(
        effective.count_ones() as usize,
        capabilities.len(),
        "{effective:x}"
    );
    let api = cluster.api()?;
    let reply = within(SOON, "ask", api.get(&cluster.target(0), "/healthz")).await?;
    assert_eq!(reply.status, 200);
    assert_eq!(complaints(&agent, 0), []);
    Ok(())
}

#[test]
fn the_master_works_as_nobody_without_a_capability() -> Result<()> {
    let scratch = Scratch::new()?;
    let config = scratch.write("config.yaml", scratch.master_config())?;
    give_away(scratch.dir())?;
    let mut command = Command::new("setpriv");
    command.args(with_only(&[]));
    command.args([&format!("--reuid={NOBODY}"), &format!("--regid={NOBODY}")]);
    command.arg("--clear-groups");
    command.arg(program(MASTER)?).arg(config_flag(&config));

    let mut master = Daemon::spawn("master as nobody", command)?;

    wait_for_message(&mut master, 0, SOON, "master is up")?;
    let status = fs::read_to_string(format!("/proc/{}/status", master.pid()))?;
    for none in ["CapEff", "CapPrm", "CapBnd"] {
        assert!(
            status.contains(&format!("{none}:\t0000000000000000\n")),
            "{status}"
        );
    }
    assert!(
        status.contains(&format!("Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t")),
        "{status}"
    );
    assert_eq!(complaints(&master, 0), []);
    Ok(())
}

#[test]
fn the_masters_unit_has_no_capability_and_its_image_no_root() -> Result<()> {
    let unit = fs::read_to_string(deploy("systemd/proxymux-master.service"))?;
    let rendered = crate::yaml::render("kubernetes/master/deployment")?;
    let deployment = crate::yaml::find(&rendered, "Deployment", "proxymux-master")?;

    assert!(unit.lines().any(|line| line == "CapabilityBoundingSet="));
    assert!(unit.lines().any(|line| line == "User=proxymux"));
    assert_eq!(
        deployment.pointer("/spec/template/spec/securityContext/runAsUser"),
        Some(&json!(NOBODY))
    );
    Ok(())
}

/// Makes everything in a directory the property of [`NOBODY`].
fn give_away(path: &Path) -> Result<()> {
    chown(path, Some(NOBODY), Some(NOBODY))?;
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            let path = entry?.path();
            if !path.is_symlink() {
                give_away(&path)?;
            }
        }
    }
    Ok(())
}

/// As in the Deployment, and in the image.
const NOBODY: u32 = 65532;
