//! What becomes of a master that runs: sockets that others touch, and a file that has changed.
//!
//! Each row has a master of its own, since most fixes are a restart.

use std::{
    cell::RefCell,
    fs::{self, Permissions},
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use proxymux_testkit::process::Daemon;
use proxymux_tests::limits::SOON;

use crate::stage::{CONFIG, MANIFEST, Mend, Row, Stage};

#[test]
fn a_running_master_is_asked_and_its_door_too() -> Result<()> {
    let stage = Stage::new()?;
    let _master = stage.start()?;

    let told = stage.check()?;

    assert!(told.complaints().is_empty(), "{told:#?}");
    let door = format!(
        "a master answers at {}",
        stage.path("run/egress.sock").display()
    );
    for (topic, found) in [
        ("master", "0 of 0 known nodes have a session"),
        ("front door", &*door),
        ("egress selector", "`cluster` leads to "),
        ("kube-apiserver", "it verifies kubelets' certificates"),
        ("clock", "no certificate contradicts it"),
    ] {
        let is_it = told
            .findings
            .iter()
            .any(|finding| finding.topic == topic && finding.found.contains(found));
        assert!(is_it, "{topic} {found}: {told:#?}");
    }
    Ok(())
}

#[test]
fn what_others_do_to_a_running_master_is_told() -> Result<()> {
    let master: RefCell<Option<Daemon>> = RefCell::new(None);
    let restart = |stage: &Stage| -> Result<()> {
        if let Some(mut running) = master.take() {
            running.signal(Signal::SIGTERM)?;
            running.wait(SOON)?;
        }
        master.replace(Some(stage.start()?));
        Ok(())
    };
    let chmod = |stage: &Stage, name: &str, mode: u32| -> Result<()> {
        Ok(fs::set_permissions(
            stage.path(name),
            Permissions::from_mode(mode),
        )?)
    };
    let listening: RefCell<Option<UnixListener>> = RefCell::new(None);
    let rows = [
        Row {
            what: "its socket was removed",
            spoil: &|stage| Ok(fs::remove_file(stage.path("run/egress.sock"))?),
            told: (
                "error",
                "front door",
                "nobody listens at DIR/run/egress.sock",
                "restart the master",
            ),
            mend: Mend::By(&restart),
        },
        Row {
            what: "another program took its place",
            spoil: &|stage| {
                let path = stage.path("run/egress.sock");
                fs::remove_file(&path)?;
                listening.replace(Some(UnixListener::bind(path)?));
                Ok(())
            },
            told: (
                "error",
                "front door",
                "does not answer as a master does",
                "end it, then restart",
            ),
            mend: Mend::By(&|stage| {
                listening.replace(None);
                restart(stage)
            }),
        },
        Row {
            what: "its file has another door",
            spoil: &|stage| stage.edit(CONFIG, "IP:8131", "IP:8133"),
            told: ("warning", "master", "front-doors is `", "restart it"),
            mend: Mend::By(&restart),
        },
        Row {
            what: "its socket's mode was changed",
            spoil: &|stage| chmod(stage, "run/egress.sock", 0o666),
            told: ("warning", "front door", "has mode 0666", "chmod 0660"),
            mend: Mend::Obey,
        },
        Row {
            what: "kube-apiserver is of another user",
            spoil: &|stage| {
                chmod(stage, "run", 0o750)?;
                stage.edit(
                    MANIFEST,
                    "hostNetwork: true",
                    "hostNetwork: true\n  securityContext: { runAsUser: 65532, runAsGroup: 65532 }",
                )
            },
            told: (
                "error",
                "front door",
                "kube-apiserver's user 65532 may not",
                "supplementalGroups: [",
            ),
            mend: Mend::By(&|stage| {
                // The group of this test's own process, which the socket has.
                let group = format!("65532, supplementalGroups: [{}]", nix::unistd::getegid());
                stage.edit(
                    MANIFEST,
                    "runAsGroup: 65532",
                    &format!("runAsGroup: {group}"),
                )
            }),
        },
    ];
    for row in rows {
        let stage = Stage::new()?;
        master.replace(Some(stage.start()?));
        row.prove(&stage, &Stage::check).context(row.what)?;
        master.replace(None);
    }
    Ok(())
}

#[test]
fn a_master_of_another_file_holds_the_door() -> Result<()> {
    let stage = Stage::new()?;
    let master = RefCell::new(Some(stage.start()?));
    let row = Row {
        what: "another admin address",
        spoil: &|stage| stage.edit(CONFIG, "admin: unix:DIR/run/", "admin: unix:DIR/"),
        told: (
            "error",
            "front door",
            "`proxymux-master`, process ",
            "give its file with --config",
        ),
        mend: Mend::By(&|stage| stage.edit(CONFIG, "admin: unix:DIR/", "admin: unix:DIR/run/")),
    };
    row.prove(&stage, &Stage::check).context(row.what)?;
    drop(master.take());
    Ok(())
}
