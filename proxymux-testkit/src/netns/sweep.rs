//! Removing namespaces: one's own, and those that dead processes left behind.
//!
//! A name is `pxm-<pid>-<counter>-<host>`, so that a leftover tells whose it was. A process
//! number that has come round again hides a leftover until that process ends; nothing else is
//! lost by it.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{self, Command},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{command, plan::Plan};
use crate::wait::poll_until;

/// What every namespace of the testkit starts with.
pub(super) const PREFIX: &str = "pxm-";

/// Where `ip netns` mounts the namespace of that name.
pub(super) fn mount_path(namespace: &str) -> PathBuf {
    Path::new(MOUNTS).join(namespace)
}

/// Removes the namespaces of processes that are gone.
pub(super) fn leftovers() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for name in existing()? {
        let orphaned = owner(&name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        if orphaned {
            remove(&name)?;
            removed.push(name);
        }
    }
    removed.sort();
    Ok(removed)
}

/// Removes namespaces of the plan's names. They can only be those of a dead process that had our
/// number, since ours are counted.
pub(super) fn remove_stale(plan: &Plan) -> Result<()> {
    plan.hosts().try_for_each(|host| remove(&host.namespace))
}

/// Kills what is inside and removes the namespace; one that is not there is no error.
pub(super) fn remove(namespace: &str) -> Result<()> {
    let path = mount_path(namespace);
    if !path.exists() {
        return Ok(());
    }
    kill_inside(&path)?;
    let mut command = Command::new("ip");
    command.args(["netns", "del", namespace]);
    match command::run(&mut command, "") {
        // Two sweeps at once may meet at the same leftover.
        Err(_) if !path.exists() => Ok(()),
        other => other.map(drop),
    }
}

/// Kills the processes of a namespace and waits until they have left it: as long as one is in
/// there, its sockets and the links live on without a name.
fn kill_inside(path: &Path) -> Result<()> {
    for pid in inside(path)? {
        match kill(pid, Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot kill process {pid}")),
        }
    }
    poll_until(KILL_LIMIT, || {
        inside(path).is_ok_and(|left| left.is_empty()).then_some(())
    })
    .with_context(|| format!("processes do not leave {}", path.display()))
}

/// The processes whose network namespace is the one at `path`, without this one.
fn inside(path: &Path) -> Result<Vec<Pid>> {
    let namespace = match fs::metadata(path) {
        Ok(metadata) => (metadata.dev(), metadata.ino()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot look at {}", path.display()));
        }
    };
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot list /proc")? {
        let entry = entry.context("cannot list /proc")?;
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        // A process that ends meanwhile, or a zombie, has no namespace any more.
        let Ok(metadata) = fs::metadata(entry.path().join("ns/net")) else {
            continue;
        };
        if (metadata.dev(), metadata.ino()) == namespace && pid.unsigned_abs() != process::id() {
            found.push(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

/// Names of all namespaces that the testkit made.
fn existing() -> Result<Vec<String>> {
    let entries = match fs::read_dir(MOUNTS) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot list {MOUNTS}")),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry
            .with_context(|| format!("cannot list {MOUNTS}"))?
            .file_name();
        names.extend(
            name.into_string()
                .ok()
                .filter(|name| name.starts_with(PREFIX)),
        );
    }
    Ok(names)
}

/// The process that made a namespace, by its name.
fn owner(namespace: &str) -> Option<u32> {
    namespace
        .strip_prefix(PREFIX)?
        .split('-')
        .next()?
        .parse()
        .ok()
}

const MOUNTS: &str = "/run/netns";
/// SIGKILL takes effect at once unless the machine is badly overloaded.
const KILL_LIMIT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_owner() {
        assert_eq!(owner("pxm-4711-0-node12"), Some(4711));
        assert_eq!(owner("pxm--0-node"), None);
        assert_eq!(owner("pxm-x-0-node"), None);
        assert_eq!(owner("cni-4711-0-node"), None);
    }
}
