//! systemd's units: whether systemd takes them, and how much it thinks they leave open.
//!
//! They are put into a directory that stands for the root of a machine, with programs where the
//! units expect them; nothing is started.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::yaml::deploy;

const UNITS: [&str; 3] = [
    "proxymux-agent.service",
    "proxymux-master.service",
    "proxymux-master@.service",
];

/// A machine's root with everything installed as docs/operations.md says.
fn installed() -> Result<TempDir> {
    let root = TempDir::with_prefix("proxymux-root-")?;
    let at = |path: &str| root.path().join(path);
    let put = |from: &str, to: &str| -> Result<()> {
        let to = at(to);
        fs::create_dir_all(to.parent().context("a directory")?)?;
        fs::copy(deploy("systemd").join(from), &to).with_context(|| from.to_owned())?;
        Ok(())
    };
    for unit in UNITS {
        put(unit, &format!("etc/systemd/system/{unit}"))?;
    }
    put(
        "proxymux-agent-before-5.8.conf",
        "etc/systemd/system/proxymux-agent.service.d/before-5.8.conf",
    )?;
    put("proxymux.sysusers", "usr/lib/sysusers.d/proxymux.conf")?;
    put("proxymux.tmpfiles", "usr/lib/tmpfiles.d/proxymux.conf")?;
    // The units name targets of systemd's own.
    let targets = at("usr/lib/systemd/system");
    fs::create_dir_all(&targets)?;
    for target in [
        "network-online",
        "multi-user",
        "sysinit",
        "basic",
        "shutdown",
    ] {
        fs::write(
            targets.join(format!("{target}.target")),
            "[Unit]\nDescription=x\n",
        )?;
    }
    let programs = at("usr/local/bin");
    fs::create_dir_all(&programs)?;
    for program in ["proxymux-agent", "proxymux-master"] {
        let path = programs.join(program);
        fs::write(&path, "#!/bin/sh\n")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    fs::create_dir_all(at("etc"))?;
    Ok(root)
}

fn systemd(program: &str, root: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command
        .arg(format!("--root={}", root.display()))
        .args(arguments);
    let output = command.output();
    let output = output.with_context(|| format!("{program}, of Debian's package systemd"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    if !output.status.success() {
        bail!("{command:?}: {}\n{stdout}{stderr}", output.status);
    }
    Ok(stdout + &stderr)
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() -> Result<()> {
    let root = installed()?;
    let units = [
        "proxymux-agent.service",
        "proxymux-master.service",
        "proxymux-master@b.service",
    ];

    let said = systemd(
        "systemd-analyze",
        root.path(),
        &[&["verify"], units.as_slice()].concat(),
    )?;

    let about_ours: Vec<_> = said
        .lines()
        .filter(|line| line.contains("proxymux"))
        .collect();
    assert_eq!(about_ours, Vec::<&str>::new());
    let program = root.path().join("usr/local/bin/proxymux-master");
    fs::remove_file(program)?;
    let missing = systemd(
        "systemd-analyze",
        root.path(),
        &["verify", "proxymux-master.service"],
    );
    assert!(
        missing.is_err(),
        "what is wrong would be noticed: {missing:?}"
    );
    Ok(())
}

#[test]
fn the_units_leave_little_open() -> Result<()> {
    let root = installed()?;
    // As installed on a kernel since 5.8.
    let before = "etc/systemd/system/proxymux-agent.service.d/before-5.8.conf";
    fs::remove_file(root.path().join(before))?;
    for (unit, limit) in [
        ("proxymux-agent.service", 4.0),
        ("proxymux-master.service", 2.0),
    ] {
        let arguments = ["security", "--offline=true", "--no-pager", unit];
        let said = systemd("systemd-analyze", root.path(), &arguments)?;
        println!("{said}");
        let overall = said
            .lines()
            .find(|line| line.contains("Overall exposure level"));
        let overall = overall.context("an overall level")?;
        let level = overall
            .split_whitespace()
            .find_map(|word| word.parse::<f64>().ok());
        let level = level.with_context(|| format!("a number in {overall}"))?;
        assert!(level < limit, "{overall}");
    }
    Ok(())
}

#[test]
fn the_template_is_the_unit_for_two_that_alternate() -> Result<()> {
    let read = |name: &str| -> Result<Vec<String>> {
        let text = fs::read_to_string(deploy("systemd").join(name))?;
        let settings = text.lines().filter(|line| !line.starts_with('#'));
        Ok(settings.map(str::to_owned).collect())
    };
    let (unit, template) = (
        read("proxymux-master.service")?,
        read("proxymux-master@.service")?,
    );

    let differing = unit
        .iter()
        .zip(&template)
        .filter(|(one, other)| one != other);
    let differing: Vec<_> = differing.map(|(one, _)| one.as_str()).collect();

    assert_eq!(unit.len(), template.len());
    assert_eq!(
        differing,
        ["Description=proxymux master: kube-apiserver's way to the kubelets"]
    );
    Ok(())
}

#[test]
fn the_sockets_directory_is_for_both_daemons_and_nobody_else() -> Result<()> {
    let root = installed()?;

    systemd("systemd-sysusers", root.path(), &["proxymux.conf"])?;
    systemd(
        "systemd-tmpfiles",
        root.path(),
        &["--create", "proxymux.conf"],
    )?;

    let users = fs::read_to_string(root.path().join("etc/passwd"))?;
    let user = users.lines().find(|line| line.starts_with("proxymux:"));
    let fields: Vec<_> = user.context("the user proxymux")?.split(':').collect();
    assert_eq!(fields.get(6), Some(&"/usr/sbin/nologin"), "{fields:?}");
    let group = fields.get(3).and_then(|gid| gid.parse().ok());
    let made = fs::metadata(root.path().join("run/proxymux"))?;
    assert_eq!(made.mode() & 0o7777, 0o1775);
    assert_eq!((made.uid(), Some(made.gid())), (0, group));
    Ok(())
}
