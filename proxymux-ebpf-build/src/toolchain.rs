//! Which Rust builds the eBPF programs, and which linker.
//!
//! The target `bpfel-unknown-none` has no ready-made `core`: it is built along, and so its source
//! has to be there. rustup's nightly with `rust-src` is asked first, then Debian's packages, which
//! have compiler and source of the same version under `/usr`.
//! Owns the search only; what installs the parts is `cargo xtask setup`.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A Rust that can build for eBPF, and the linker.
#[derive(Debug)]
pub struct Toolchain {
    rust: Rust,
    linker: PathBuf,
}

/// Where compiler and source of `core` come from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rust {
    /// rustup's toolchain `nightly`, with its component `rust-src`.
    Nightly,
    /// Debian's packages.
    Debian,
}

/// What is missing, and what to type.
#[derive(Debug, thiserror::Error)]
pub enum ToolchainError {
    #[error(
        "no Rust here can build eBPF programs: there is neither rustup's nightly with rust-src nor \
         Debian's Rust with its source; type\n  cargo xtask setup\nor by hand either\n  \
         rustup toolchain install nightly --component rust-src\nor, on Debian,\n  \
         apt-get install --no-install-recommends rustc-web cargo-web rust-web-src\n\
         or build the agent without eBPF: --no-default-features"
    )]
    NoRust,
    #[error(
        "there is no bpf-linker, which links eBPF programs; type\n  cargo xtask setup\n\
         or by hand\n  cargo install bpf-linker --version 0.13.0\n\
         or build the agent without eBPF: --no-default-features"
    )]
    NoLinker,
}

impl Toolchain {
    /// Looks for one.
    ///
    /// # Errors
    ///
    /// Names the part that is missing, with the commands that install it.
    pub fn find() -> Result<Self, ToolchainError> {
        let rust = Rust::find().ok_or(ToolchainError::NoRust)?;
        let linker = find_linker().ok_or(ToolchainError::NoLinker)?;
        Ok(Self { rust, linker })
    }

    #[must_use]
    pub const fn rust(&self) -> Rust {
        self.rust
    }

    #[must_use]
    pub fn linker(&self) -> &Path {
        &self.linker
    }

    /// Its cargo, told to use its compiler.
    pub(crate) fn cargo(&self) -> Command {
        match self.rust {
            Rust::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo"]);
                command
            }
            Rust::Debian => {
                // The directory comes first, so that cargo does not find rustup's compiler.
                let path = env::var_os("PATH").unwrap_or_default();
                let mut command = Command::new("/usr/bin/cargo");
                command.env("PATH", with_first("/usr/bin", &path));
                command
            }
        }
    }
}

impl Rust {
    /// The first that is complete.
    #[must_use]
    pub fn find() -> Option<Self> {
        [Self::Nightly, Self::Debian]
            .into_iter()
            .find(|rust| rust.sysroot().is_some_and(|root| has_source(&root)))
    }

    /// The number of the LLVM in it, which the linker has to use too.
    #[must_use]
    pub fn llvm(self) -> Option<u32> {
        llvm_in(&self.ask(&["--version", "--verbose"])?)
    }

    fn sysroot(self) -> Option<PathBuf> {
        Some(self.ask(&["--print", "sysroot"])?.trim().into())
    }

    /// What its compiler says.
    fn ask(self, args: &[&str]) -> Option<String> {
        let mut command = match self {
            Self::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "rustc"]);
                command
            }
            Self::Debian => Command::new("/usr/bin/rustc"),
        };
        let output = command
            .args(args)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then_some(text)
    }
}

/// The number in the line `LLVM version: 22.1.8`.
fn llvm_in(text: &str) -> Option<u32> {
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

fn has_source(sysroot: &Path) -> bool {
    sysroot
        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
        .is_file()
}

/// In cargo's own directory too, which is not in everybody's search path.
fn find_linker() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from).or(home);
    env::split_paths(&path)
        .chain(cargo_home.map(|directory| directory.join("bin")))
        .map(|directory| directory.join("bpf-linker"))
        .find(|program| program.is_file())
}

fn with_first(directory: &str, path: &OsStr) -> std::ffi::OsString {
    let mut directories = std::ffi::OsString::from(directory);
    directories.push(":");
    directories.push(path);
    directories
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_source_is_no_toolchain_for_this() {
        assert!(!has_source(Path::new("/nonexistent")));
    }

    #[test]
    fn llvm_is_the_first_number_of_its_version() {
        let text = "rustc 1.96.0\nrelease: 1.96.0\nLLVM version: 22.1.8\n";

        assert_eq!(llvm_in(text), Some(22));
        assert_eq!(llvm_in("rustc 1.96.0\n"), None);
    }

    #[test]
    fn what_is_missing_comes_with_the_commands_that_install_it() {
        let rust = ToolchainError::NoRust.to_string();
        let linker = ToolchainError::NoLinker.to_string();

        assert!(rust.contains("\n  rustup toolchain install nightly --component rust-src\n"));
        assert!(rust.contains("apt-get install --no-install-recommends rustc-web"));
        assert!(linker.contains("\n  cargo install bpf-linker --version 0.13.0\n"));
        assert!(rust.contains("--no-default-features") && linker.contains("--no-default-features"));
    }

    #[test]
    fn the_directory_put_first_is_searched_first() {
        assert_eq!(
            with_first("/usr/bin", OsStr::new("/a:/b")),
            "/usr/bin:/a:/b"
        );
    }
}
