//! What the kernel holds for a daemon: its sockets' buffers and its pipes.
//!
//! Resident memory does not show these, and a relay that stalls keeps bytes nowhere else if it
//! splices. Sockets are asked for with `ss`, whose `skmem` is the kernel's own account, with the
//! room that it wastes. Of pipes it is the bytes in them; those of standard input, output and error
//! are not the daemon's own.

use std::{
    collections::BTreeSet,
    fs,
    ops::Add,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use nix::{fcntl::OFlag, unistd::Pid};
use proxymux_testkit::netns::Host;
use rustix::io::ioctl_fionread;

/// At one moment, of one process or of several together.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct KernelMemory {
    /// All that is in queues of its sockets, with what the kernel spends on keeping it.
    pub(super) socket_bytes: u64,
    /// What is in its pipes.
    pub(super) pipe_bytes: u64,
}

impl KernelMemory {
    /// Of a process on a host.
    pub(super) fn of(host: &Host, pid: Pid) -> Result<Self> {
        let mut ss = host.command("ss");
        // One line for each: TCP and Unix, numbers, memory, processes.
        let output = ss.arg("-HOtxnmp").output().context("cannot start ss")?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "ss failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(Self {
            socket_bytes: sockets(&text, pid)?,
            pipe_bytes: pipes(pid)?.iter().sum(),
        })
    }

    pub(super) fn bytes(self) -> u64 {
        self.socket_bytes + self.pipe_bytes
    }
}

impl Add for KernelMemory {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            socket_bytes: self.socket_bytes + other.socket_bytes,
            pipe_bytes: self.pipe_bytes + other.pipe_bytes,
        }
    }
}

/// What is held for the sockets of a process.
fn sockets(text: &str, pid: Pid) -> Result<u64> {
    let owner = format!("pid={pid},");
    let own = text.lines().filter(|line| line.contains(&owner));
    own.map(|line| {
        held(line).with_context(|| format!("ss has written no memory that can be read: {line}"))
    })
    .sum()
}

/// Received (`r`), to be sent (`w`; `t` for Unix sockets, which have no `w`), set aside (`f`),
/// options (`o`) and what waits for a lock (`bl`). See ss(8).
fn held(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("skmem:(")?;
    let (numbers, _) = rest.split_once(')')?;
    let of = |name: &str| -> Option<u64> {
        numbers.split(',').find_map(|number| {
            let digits = number.strip_prefix(name)?;
            digits.parse().ok()
        })
    };
    Some(of("r")? + of("w")?.max(of("t")?) + of("f")? + of("o")? + of("bl")?)
}

/// How much is in each pipe of a process.
fn pipes(pid: Pid) -> Result<Vec<u64>> {
    let directory = PathBuf::from(format!("/proc/{pid}/fd"));
    let (mut standard, mut own) = (BTreeSet::new(), Vec::new());
    let cannot_list = || format!("cannot list {}", directory.display());
    for entry in fs::read_dir(&directory).with_context(cannot_list)? {
        let path = entry.with_context(cannot_list)?.path();
        // It may have been closed between the list and the question.
        let Ok(link) = fs::read_link(&path) else {
            continue;
        };
        let name = link.display().to_string();
        if name.starts_with("pipe:") {
            let number = path
                .file_name()
                .and_then(|name| name.to_str()?.parse().ok());
            if number.is_some_and(|number: u32| number <= STANDARD_ERROR) {
                standard.insert(name);
            } else {
                own.push((name, path));
            }
        }
    }
    let mut seen = BTreeSet::new();
    own.retain(|(name, _)| !standard.contains(name) && seen.insert(name.clone()));
    Ok(own.iter().filter_map(|(_, path)| waiting(path)).collect())
}

/// `None` if it has been closed meanwhile.
fn waiting(path: &Path) -> Option<u64> {
    let mut options = fs::OpenOptions::new();
    options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
    let pipe = options.open(path).ok()?;
    ioctl_fionread(pipe).ok()
}

const STANDARD_ERROR: u32 = 2;

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_a_socket_holds_is_added_up() {
        let text = "ESTAB 0 0 10.0.10.10:10250 10.0.10.10:5 users:((\"a\",pid=7,fd=9)) \
                    skmem:(r1000,rb262144,t20,tb262144,f300,w400,o5,bl6,d9)\n\
                    u_str ESTAB 0 0 * 1 * 2 users:((\"a\",pid=7,fd=3)) \
                    skmem:(r0,rb212992,t5000,tb212992,f0,w0,o0,bl0,d0)\n\
                    ESTAB 0 0 10.0.10.10:1 10.0.10.10:2 users:((\"b\",pid=70,fd=9)) \
                    skmem:(r7,rb1,t0,tb1,f0,w0,o0,bl0,d0)\n";
        assert_eq!(sockets(text, Pid::from_raw(7)).unwrap(), 1711 + 5000);
        assert_eq!(sockets(text, Pid::from_raw(8)).unwrap(), 0);
        assert!(sockets("x pid=7,fd=1", Pid::from_raw(7)).is_err());
    }

    #[test]
    fn a_pipe_of_this_process_is_found_with_what_is_in_it() {
        let (_out, mut into) = std::io::pipe().unwrap();
        into.write_all(&[7; 4711]).unwrap();
        let all = pipes(Pid::this()).unwrap();
        assert!(all.contains(&4711), "{all:?}");
    }
}
