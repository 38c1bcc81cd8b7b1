//! A control group in which a daemon has what a small pod has: a share of a processor, and memory.
//!
//! Owns making it, putting a process into it, and asking what that cost: for how long it was kept
//! from running, and whether the kernel had to kill. Both versions of control groups are spoken; in
//! the first, processor and memory are groups apart. Dropping it puts the process back.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::unistd::Pid;

/// Half a processor and 256 MiB: what the DaemonSet that this replaces is limited to.
pub(super) const CPU: f64 = 0.5;
pub(super) const MEMORY: u64 = 256 << 20;

/// A process in its group.
#[derive(Debug)]
pub(super) struct Confinement {
    pid: Pid,
    groups: Groups,
}

#[derive(Debug)]
enum Groups {
    /// Of processor and of memory.
    V1 {
        cpu: PathBuf,
        memory: PathBuf,
    },
    V2(PathBuf),
}

impl Confinement {
    /// Why no process can be confined here, `None` where one can.
    pub(super) fn unavailable() -> Option<String> {
        match Version::found() {
            Ok(_) => None,
            Err(error) => Some(format!("{error:#}")),
        }
    }

    /// Confines a process with all its threads.
    pub(super) fn of(pid: Pid) -> Result<Self> {
        let name = format!("proxymux-bench-{pid}");
        let groups = match Version::found()? {
            Version::V1 => Groups::V1 {
                cpu: Path::new(V1_CPU).join(&name),
                memory: Path::new(V1_MEMORY).join(&name),
            },
            Version::V2 => Groups::V2(Path::new(V2).join(&name)),
        };
        // From here on dropping it removes what there is.
        let confinement = Self { pid, groups };
        for group in confinement.directories() {
            fs::create_dir(group).with_context(|| format!("cannot make {}", group.display()))?;
        }
        let quota = format!("{:.0}", CPU * PERIOD_US);
        match &confinement.groups {
            Groups::V1 { cpu, memory } => {
                write(cpu, "cpu.cfs_period_us", &format!("{PERIOD_US:.0}"))?;
                write(cpu, "cpu.cfs_quota_us", &quota)?;
                write(memory, "memory.limit_in_bytes", &MEMORY.to_string())?;
            }
            Groups::V2(group) => {
                write(group, "cpu.max", &format!("{quota} {PERIOD_US:.0}"))?;
                write(group, "memory.max", &MEMORY.to_string())?;
            }
        }
        for group in confinement.directories() {
            write(group, "cgroup.procs", &pid.to_string())?;
        }
        Ok(confinement)
    }

    /// For how long it was kept from running although it wanted to, so far.
    pub(super) fn throttled(&self) -> Result<Duration> {
        Ok(match &self.groups {
            Groups::V1 { cpu, .. } => {
                Duration::from_nanos(number(&read(cpu, "cpu.stat")?, "throttled_time")?)
            }
            Groups::V2(group) => {
                Duration::from_micros(number(&read(group, "cpu.stat")?, "throttled_usec")?)
            }
        })
    }

    /// How often the kernel had to kill for want of memory.
    pub(super) fn kills(&self) -> Result<u64> {
        match &self.groups {
            Groups::V1 { memory, .. } => number(&read(memory, "memory.oom_control")?, "oom_kill"),
            Groups::V2(group) => number(&read(group, "memory.events")?, "oom_kill"),
        }
    }

    /// The most memory that it had at once, the kernel's for it included as far as this version
    /// of control groups counts it.
    pub(super) fn peak_bytes(&self) -> Result<u64> {
        let (group, file) = match &self.groups {
            Groups::V1 { memory, .. } => (memory, "memory.max_usage_in_bytes"),
            Groups::V2(group) => (group, "memory.peak"),
        };
        let text = read(group, file)?;
        text.trim()
            .parse()
            .with_context(|| format!("{file}: {text}"))
    }

    fn directories(&self) -> Vec<&Path> {
        match &self.groups {
            Groups::V1 { cpu, memory } => vec![cpu, memory],
            Groups::V2(group) => vec![group],
        }
    }
}

impl Drop for Confinement {
    fn drop(&mut self) {
        for group in self.directories() {
            if let Some(parent) = group.parent() {
                // One that has ended is in no group any more.
                let _ = write(parent, "cgroup.procs", &self.pid.to_string());
            }
            if let Err(error) = fs::remove_dir(group)
                && group.exists()
            {
                eprintln!("cannot remove {}: {error}", group.display());
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Version {
    V1,
    V2,
}

impl Version {
    fn found() -> Result<Self> {
        if let Ok(enabled) = read(Path::new(V2), "cgroup.subtree_control") {
            let has = |wanted| enabled.split_whitespace().any(|name| name == wanted);
            // Enabling them would change the machine for others.
            return if has("cpu") && has("memory") {
                Ok(Self::V2)
            } else {
                bail!("control groups of {V2} have not both cpu and memory, but {enabled:?}")
            };
        }
        let has = |group, file| Path::new(group).join(file).exists();
        if has(V1_CPU, "cpu.cfs_quota_us") && has(V1_MEMORY, "memory.limit_in_bytes") {
            return Ok(Self::V1);
        }
        bail!("there are no control groups at {V2} with which processor and memory can be limited")
    }
}

fn write(group: &Path, file: &str, text: &str) -> Result<()> {
    let path = group.join(file);
    fs::write(&path, text).with_context(|| format!("cannot write {text} to {}", path.display()))
}

fn read(group: &Path, file: &str) -> Result<String> {
    let path = group.join(file);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// The number on the line that begins with this word.
fn number(text: &str, name: &str) -> Result<u64> {
    let found = text.lines().find_map(|line| {
        let (key, number) = line.split_once(' ')?;
        (key == name).then(|| number.trim().parse().ok())?
    });
    found.with_context(|| format!("no {name} in {text:?}"))
}

const V2: &str = "/sys/fs/cgroup";
const V1_CPU: &str = "/sys/fs/cgroup/cpu";
const V1_MEMORY: &str = "/sys/fs/cgroup/memory";

/// What the kernel and Kubernetes use unless told otherwise.
const PERIOD_US: f64 = 100_000.0;

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn numbers_are_found_by_their_whole_name() {
        let stat = "nr_periods 10\nnr_throttled 3\nthrottled_time 4711\n";
        assert_eq!(number(stat, "throttled_time").unwrap(), 4711);
        assert!(number(stat, "throttled").is_err());
    }

    #[test]
    fn a_confined_process_is_told_apart_and_nothing_is_left() {
        if let Some(reason) = Confinement::unavailable() {
            println!("skipped: {reason}");
            return;
        }
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: control groups need root");
            return;
        }
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());

        let confinement = Confinement::of(pid).unwrap();

        let of_child = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(of_child.contains("proxymux-bench-"), "{of_child}");
        assert_eq!(confinement.kills().unwrap(), 0);
        confinement.throttled().unwrap();
        assert!(confinement.peak_bytes().unwrap() <= MEMORY);
        let directories: Vec<_> = confinement
            .directories()
            .iter()
            .map(|d| d.to_path_buf())
            .collect();
        drop(confinement);
        assert!(directories.iter().all(|directory| !directory.exists()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
