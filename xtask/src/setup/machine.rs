//! The machine that xtask runs on.

use std::{
    env, fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::Result;
use proxymux_ebpf_build::toolchain::Rust;

use super::Machine;
use crate::command::{Command, search_path};

#[derive(Debug)]
pub(crate) struct ThisMachine;

impl Machine for ThisMachine {
    fn has_program(&self, name: &str) -> bool {
        program_directories()
            .iter()
            .any(|directory| is_executable(&directory.join(name)))
    }

    fn toolchain_has_program(&self, name: &str) -> bool {
        Command::new("rustc", ["--print", "sysroot"])
            .output()
            .is_ok_and(|sysroot| is_executable(&Path::new(sysroot.trim()).join("bin").join(name)))
    }

    fn has_library(&self, name: &str) -> bool {
        // Debian has a directory for each architecture there.
        fs::read_dir("/usr/lib").is_ok_and(|entries| {
            entries
                .flatten()
                .any(|entry| entry.path().join(name).is_file())
        })
    }

    fn cargo_tool_version(&self, name: &str) -> Option<String> {
        if !self.has_program(name) {
            return None;
        }
        let subcommand = name.strip_prefix("cargo-")?;
        let output = Command::cargo([subcommand, "--version"]).output().ok()?;
        version_in(&output, name)
    }

    fn ebpf_llvm(&self) -> Option<u32> {
        Rust::find()?.llvm()
    }

    fn has_package_lists(&self) -> bool {
        let Ok(entries) = fs::read_dir("/var/lib/apt/lists") else {
            return false;
        };
        entries
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
    }

    fn is_root(&self) -> bool {
        // A process's directory belongs to its effective user.
        fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
    }

    fn run(&self, command: &Command) -> Result<()> {
        command.run()
    }

    fn say(&self, line: &str) {
        println!("{line}");
    }
}

/// Cargo finds its subcommands in its own directory, whether that is in the search path or not.
fn program_directories() -> Vec<PathBuf> {
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from).or(home);
    env::split_paths(&search_path())
        .chain(cargo_home.map(|directory| directory.join("bin")))
        .collect()
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// The version in a line such as `cargo-nextest 0.9.151 (0123abc 2026-01-01)`.
fn version_in(output: &str, name: &str) -> Option<String> {
    output
        .lines()
        .find_map(|line| line.strip_prefix(name)?.split_whitespace().next())
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_of_the_system_is_found_and_a_made_up_one_is_not() {
        assert!(ThisMachine.has_program("sh"));
        assert!(!ThisMachine.has_program("no-such-program"));
    }

    #[test]
    fn toolchain_has_a_compiler_and_no_made_up_program() {
        assert!(ThisMachine.toolchain_has_program("rustc"));
        assert!(!ThisMachine.toolchain_has_program("no-such-program"));
    }

    #[test]
    fn a_made_up_library_is_not_found() {
        assert!(!ThisMachine.has_library("no-such/library.so.1"));
    }

    #[test]
    fn missing_cargo_tool_has_no_version() {
        assert_eq!(ThisMachine.cargo_tool_version("cargo-no-such-tool"), None);
    }

    #[test]
    fn version_is_found_behind_the_name() {
        let nextest = "cargo-nextest 0.9.151 (0123abc 2026-01-01)\nrelease: 0.9.151\n";

        assert_eq!(
            version_in(nextest, "cargo-nextest").as_deref(),
            Some("0.9.151")
        );
        assert_eq!(
            version_in("cargo-deny 0.20.2\n", "cargo-deny").as_deref(),
            Some("0.20.2")
        );
        assert_eq!(version_in("", "cargo-deny"), None);
    }
}
