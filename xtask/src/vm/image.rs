//! The guest's file system: a directory, packed by busybox into an archive for the kernel.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{
    TestRun,
    kernels::text,
    modules::Module,
    programs::{self, with_libraries},
};
use crate::{build::DAEMONS, command::Command, workspace::Workspace};

/// What is the same for every kernel: programs, tests, what the guest does with them.
///
/// # Errors
///
/// A build failed, a program is missing, or a file cannot be written.
pub(super) fn common(workspace: &Workspace, root: &Path, runs: &[TestRun]) -> Result<()> {
    empty(root)?;
    let executables = programs::build(workspace, runs)?;
    for (name, path) in &executables {
        let directory = if DAEMONS.contains(&name.as_str()) {
            "daemons"
        } else {
            "tests"
        };
        stripped(path, &root.join(directory).join(name))?;
    }
    for program in SYSTEM_PROGRAMS {
        let (path, libraries) = with_libraries(program)?;
        copy(&path, &root.join("bin").join(program))?;
        for library in libraries {
            let inside = library.strip_prefix("/").unwrap_or(&library);
            copy(&library, &root.join(inside))?;
        }
    }
    let list: String = runs.iter().map(|run| format!("{run}\n")).collect();
    write(&root.join("tests.list"), list.as_bytes())?;
    write(
        &root.join("etc/hosts"),
        b"127.0.0.1 localhost\n::1 localhost\n",
    )?;
    write(&root.join("etc/passwd"), b"root:x:0:0::/root:/busybox/sh\n")?;
    write(&root.join("etc/group"), b"root:x:0:\n")?;
    write(&root.join("init"), include_bytes!("init.sh"))?;
    let init = root.join("init");
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", init.display()))
}

/// Puts the modules of one kernel in the place of those of another, and packs everything.
///
/// # Errors
///
/// A file cannot be written, or busybox failed.
pub(super) fn pack(root: &Path, modules: &[Module], archive: &Path) -> Result<()> {
    let directory = root.join("modules");
    empty(&directory)?;
    for (number, Module { name, content }) in modules.iter().enumerate() {
        write(&directory.join(format!("{number:03}-{name}")), content)?;
    }
    let pack = format!(
        "cd '{}' && busybox find . | busybox cpio -o -H newc -R 0:0 2>/dev/null >'{}'",
        text(root)?,
        text(archive)?
    );
    Command::new("sh", ["-c", &pack]).run()
}

fn empty(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)
            .with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))
}

/// The guest has its files in memory; what a debugger reads is most of an executable.
fn stripped(from: &Path, to: &Path) -> Result<()> {
    make_parent(to)?;
    Command::new("strip", ["--strip-debug", "-o", text(to)?, text(from)?])
        .output()
        .map(drop)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    make_parent(to)?;
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    make_parent(path)?;
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

fn make_parent(path: &Path) -> Result<()> {
    let parent: PathBuf = path.parent().map(Path::to_owned).unwrap_or_default();
    fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))
}

/// What the testkit calls, and the shell and tools of the guest itself.
const SYSTEM_PROGRAMS: [&str; 5] = ["busybox", "ip", "ss", "tc", "nft"];
