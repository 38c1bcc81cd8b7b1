//! What the host, the configuration and the certificates can be like before a master starts.
//!
//! No master runs here, so that ports and places of sockets are tried. Each row has a stage of its
//! own.

use std::{
    cell::RefCell,
    fs::{self, Permissions},
    net::TcpListener,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use proxymux_testkit::pki::{Leaf, Usage, Validity};
use proxymux_tests::limits::SOON;

use crate::stage::{CONFIG, Mend, Row, Stage, is_served, prove_each};

#[test]
fn a_good_host_has_only_no_master() -> Result<()> {
    let stage = Stage::new()?;

    let told = stage.check()?;

    assert!(told.complaints().is_empty(), "{told:#?}");
    let none = told.findings.iter().filter(|finding| finding.level != "ok");
    let none: Vec<_> = none.map(|finding| finding.found.as_str()).collect();
    assert_eq!(none.len(), 1, "{told:#?}");
    assert_eq!(told.code, Some(0), "a warning is no error");
    Ok(())
}

#[test]
fn a_check_takes_nothing_and_leaves_nothing_behind() -> Result<()> {
    let stage = Stage::new()?;
    stage.check()?;

    let left: Vec<_> = fs::read_dir(stage.path("run"))?.collect();
    assert!(left.is_empty(), "{left:?}");
    let mut master = stage.start()?;
    let before = master.lines().len();
    let told = stage.check()?;
    assert!(told.complaints().is_empty(), "{told:#?}");
    assert!(is_served(&stage.path("run/egress.sock")));
    assert!(master.is_running()?, "{before} {:#?}", master.lines());
    Ok(())
}

#[test]
fn the_configuration_is_told_line_by_line() -> Result<()> {
    let file: RefCell<Option<String>> = RefCell::new(None);
    prove_each(&[
        Row {
            what: "no file",
            spoil: &|stage| {
                file.replace(Some(fs::read_to_string(stage.path(CONFIG))?));
                Ok(fs::remove_file(stage.path(CONFIG))?)
            },
            told: (
                "error",
                "configuration",
                "DIR/master.yaml: cannot be read",
                "static-pod/master.yaml",
            ),
            mend: Mend::By(&|stage| {
                let text = file.borrow().clone();
                stage.write(CONFIG, &text.context("a file")?)
            }),
        },
        Row {
            what: "an unknown key",
            spoil: &|stage| stage.edit(CONFIG, "listen: IP:12250", "listne: IP:12250"),
            told: (
                "error",
                "configuration",
                "DIR/master.yaml:1: listne: is no known key",
                "mend that line",
            ),
            mend: Mend::By(&|stage| stage.edit(CONFIG, "listne", "listen")),
        },
        Row {
            what: "a door for everybody",
            spoil: &|stage| {
                stage.edit(
                    CONFIG,
                    "run/egress.sock\n",
                    "run/egress.sock\n  mode: \"0666\"\n",
                )
            },
            told: (
                "warning",
                "configuration",
                "lets every process on this host",
                "change it",
            ),
            mend: Mend::By(&|stage| stage.edit(CONFIG, "0666", "0660")),
        },
        Row {
            what: "no file of node addresses",
            spoil: &|stage| Ok(fs::remove_file(stage.path("nodes.yaml"))?),
            told: (
                "error",
                "node addresses",
                "cannot be read",
                "`node-addresses: declared`",
            ),
            mend: Mend::By(&|stage| {
                stage.edit(
                    CONFIG,
                    "node-addresses: { file: DIR/nodes.yaml }",
                    "node-addresses: declared",
                )
            }),
        },
        Row {
            what: "an address that is two nodes'",
            spoil: &|stage| stage.write("nodes.yaml", "a: 10.0.10.10\nb: 10.0.10.10\n"),
            told: (
                "error",
                "node addresses",
                "DIR/nodes.yaml:2: b: \"10.0.10.10\": is listed for a",
                "mend that line",
            ),
            mend: Mend::By(&|stage| stage.write("nodes.yaml", "a: 10.0.10.10\n")),
        },
    ])
}

#[test]
fn certificates_are_told() -> Result<()> {
    let issue = |stage: &Stage, leaf: Leaf| stage.pki().pair("master/master", &leaf).map(drop);
    let good = |stage: &Stage| {
        let ip = stage.ip().to_string();
        Leaf::new("proxymux-master")
            .usages([Usage::Server])
            .names([ip])
    };
    let mend = |stage: &Stage| issue(stage, good(stage));
    prove_each(&[
        Row {
            what: "no certificate",
            spoil: &|stage| Ok(fs::remove_file(stage.path("master/master.crt"))?),
            told: (
                "error",
                "certificate",
                "`DIR/master/master.crt` does not exist",
                "",
            ),
            mend: Mend::By(&mend),
        },
        Row {
            what: "expired",
            spoil: &|stage| issue(stage, good(stage).validity(Validity::Expired)),
            told: ("error", "certificate", "expired", "renew it"),
            mend: Mend::By(&mend),
        },
        Row {
            what: "for clients only",
            spoil: &|stage| issue(stage, good(stage).usages([Usage::Client])),
            told: (
                "error",
                "certificate",
                "is not for server authentication",
                "serverAuth",
            ),
            mend: Mend::By(&mend),
        },
        Row {
            what: "another's key",
            spoil: &|stage| issue(stage, good(stage).with_foreign_key()),
            told: ("error", "certificate", "does not match certificate", ""),
            mend: Mend::By(&mend),
        },
        Row {
            what: "another host's",
            spoil: &|stage| issue(stage, good(stage).without_names().names(["192.0.2.99"])),
            told: (
                "warning",
                "certificate",
                "it is for 192.0.2.99, and this host is",
                "`server-addr`",
            ),
            mend: Mend::By(&mend),
        },
        Row {
            what: "a CA that is none",
            spoil: &|stage| {
                stage.edit(
                    CONFIG,
                    "client-ca: DIR/ca.crt\nfront",
                    "client-ca: DIR/master/door.crt\nfront",
                )
            },
            told: ("error", "client CA", "holds no CA certificate", ""),
            mend: Mend::By(&|stage| {
                stage.edit(
                    CONFIG,
                    "client-ca: DIR/master/door.crt",
                    "client-ca: DIR/ca.crt",
                )
            }),
        },
        Row {
            what: "a front door's certificate that is not valid yet",
            spoil: &|stage| {
                let ip = stage.ip().to_string();
                let leaf = Leaf::new("front-door").usages([Usage::Server]).names([ip]);
                stage
                    .pki()
                    .pair("master/door", &leaf.validity(Validity::NotYet))
                    .map(drop)
            },
            told: ("error", "clock", "yet certificate", "set the clock"),
            mend: Mend::By(&|stage| {
                let ip = stage.ip().to_string();
                let leaf = Leaf::new("front-door").usages([Usage::Server]).names([ip]);
                stage.pki().pair("master/door", &leaf).map(drop)
            }),
        },
    ])
}

#[test]
fn ports_that_cannot_be_had_are_told() -> Result<()> {
    let taken = RefCell::new(None);
    let take = |stage: &Stage, port: u16| -> Result<()> {
        taken.replace(Some(TcpListener::bind((stage.ip(), port))?));
        Ok(())
    };
    let this = format!("process {}", std::process::id());
    prove_each(&[
        Row {
            what: "the agents' port in use",
            spoil: &|stage| take(stage, 12250),
            told: (
                "error",
                "agents' port",
                &this,
                "end that process, or set another `listen`",
            ),
            mend: Mend::By(&|_| {
                taken.replace(None);
                Ok(())
            }),
        },
        Row {
            what: "a front door's port in use",
            spoil: &|stage| take(stage, 8131),
            told: (
                "error",
                "front door",
                "IP:8131 is in use",
                "set another `front-doors`",
            ),
            mend: Mend::By(&|stage| stage.edit(CONFIG, "IP:8131", "IP:8132")),
        },
        Row {
            what: "an address of another host",
            spoil: &|stage| {
                taken.replace(None);
                stage.edit(CONFIG, "listen: IP:12250", "listen: 192.0.2.77:12250")
            },
            told: (
                "error",
                "agents' port",
                "192.0.2.77 is no address of this host",
                "an address of this host",
            ),
            mend: Mend::By(&|stage| stage.edit(CONFIG, "192.0.2.77:12250", "IP:12250")),
        },
    ])
}

#[test]
fn places_of_sockets_are_told() -> Result<()> {
    let listening: RefCell<Option<UnixListener>> = RefCell::new(None);
    let mode = |stage: &Stage, mode: u32| -> Result<()> {
        Ok(fs::set_permissions(
            stage.path("run"),
            Permissions::from_mode(mode),
        )?)
    };
    let this = format!(
        "process {}, listens at DIR/run/egress.sock",
        std::process::id()
    );
    prove_each(&[
        Row {
            what: "no directory, and none above it",
            spoil: &|stage| {
                stage.edit(
                    CONFIG,
                    "admin: unix:DIR/run/master.sock",
                    "admin: unix:DIR/a/b/master.sock",
                )
            },
            told: (
                "error",
                "admin address",
                "directory DIR/a/b does not exist",
                "install -d",
            ),
            mend: Mend::Obey,
        },
        Row {
            what: "a directory that is none",
            spoil: &|stage| {
                stage.write("file", "")?;
                stage.edit(CONFIG, "admin: unix:DIR/run/", "admin: unix:DIR/file/")
            },
            told: ("error", "admin address", "DIR/file is no directory", "mv"),
            mend: Mend::Obey,
        },
        Row {
            what: "a directory for everybody",
            spoil: &|stage| mode(stage, 0o777),
            told: (
                "warning",
                "front door",
                "in the place of the master's",
                "chmod o-w",
            ),
            mend: Mend::Obey,
        },
        Row {
            what: "a file in the place of a socket",
            spoil: &|stage| stage.write("run/egress.sock", "precious"),
            told: ("error", "front door", "is no socket", "mv"),
            mend: Mend::Obey,
        },
        Row {
            what: "the front door of a dead master",
            spoil: &|stage| leave(stage, "run/egress.sock"),
            told: (
                "warning",
                "front door",
                "was left by a master that died",
                "rm DIR",
            ),
            mend: Mend::Obey,
        },
        Row {
            what: "the admin socket of a dead master",
            spoil: &|stage| leave(stage, "run/master.sock"),
            told: (
                "warning",
                "admin address",
                "was left by a master that died",
                "start a master",
            ),
            mend: Mend::By(&|stage| {
                let mut master = stage.start()?;
                ensure!(is_served(&stage.path("run/master.sock")), "it was replaced");
                master.signal(Signal::SIGTERM)?;
                master.wait(SOON).map(drop)
            }),
        },
        Row {
            what: "another program at the door",
            spoil: &|stage| {
                listening.replace(Some(UnixListener::bind(stage.path("run/egress.sock"))?));
                Ok(())
            },
            told: ("error", "front door", &this, "end it"),
            mend: Mend::By(&|stage| {
                listening.replace(None);
                Ok(fs::remove_file(stage.path("run/egress.sock"))?)
            }),
        },
        Row {
            what: "a file in the place of take-overs",
            spoil: &|stage| {
                stage.edit(
                    CONFIG,
                    "log-format",
                    "takeover: true\ntakeover-socket: DIR/nodes.yaml\nlog-format",
                )
            },
            told: ("error", "take-over", "is no socket", "mv"),
            mend: Mend::By(&|stage| {
                stage.edit(CONFIG, "takeover-socket: DIR/", "takeover-socket: DIR/run/")
            }),
        },
    ])
}

/// A socket at which nobody listens any more.
fn leave(stage: &Stage, name: &str) -> Result<()> {
    drop(UnixListener::bind(stage.path(name))?);
    Ok(())
}

#[test]
fn limits_of_the_host_are_told() -> Result<()> {
    let mut stage = Stage::new()?;
    let limited = "ulimit -n 4500; exec \"$@\"";
    stage.by = ["sh", "-ec", limited, "sh"].map(str::to_owned).to_vec();
    let row = Row {
        what: "open files",
        spoil: &|_| Ok(()),
        told: (
            "warning",
            "open files",
            "may have 4500",
            "`max-sessions: 404`",
        ),
        mend: Mend::By(&|stage| stage.edit(CONFIG, "max-sessions: 1000", "max-sessions: 404")),
    };
    row.prove(&stage, &Stage::check).context(row.what)?;

    let mut stage = Stage::new()?;
    // In a network namespace of its own, whose number it is.
    let shell = "ip link set lo up; cat \"$0\" >/proc/sys/net/core/somaxconn; exec \"$@\"";
    let number = stage.path("somaxconn").display().to_string();
    stage.by = ["unshare", "--net", "sh", "-ec", shell, &number]
        .map(str::to_owned)
        .to_vec();
    let row = Row {
        what: "the queue of connections",
        spoil: &|stage| stage.write("somaxconn", "128\n"),
        told: (
            "warning",
            "accept queue",
            "no more than 128",
            "sysctl -w net.core.somaxconn=4096",
        ),
        mend: Mend::By(&|stage| stage.write("somaxconn", "4096\n")),
    };
    row.prove(&stage, &Stage::check).context(row.what)
}
