//! Which Rust builds the eBPF programs, and which linker.
//!
//! The target `bpfel-unknown-none` has no ready-made `core`: it is built along, and so its source
//! has to be there. rustup's nightly with `rust-src` is asked first, then Debian's packages, which
//! have compiler and source of the same version under `/usr`.
//! Owns the search only; what installs the parts is `cargo xtask setup`.

use std::{
    env,
    ffi::OsStr,
    fs,
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
    #[error(
        "{} was built with LLVM {linkers}, which cannot read what the LLVM {compilers} of the Rust \
         for eBPF writes; with Debian's package llvm-{compilers}-dev type\n  \
         LLVM_PREFIX=/usr/lib/llvm-{compilers} cargo install --force --locked bpf-linker \
         --version 0.13.0 --no-default-features --features llvm-{compilers}\n\
         or build the agent without eBPF: --no-default-features",
        linker.display()
    )]
    OldLinker {
        linker: PathBuf,
        linkers: u32,
        compilers: u32,
    },
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
        // What does not say its number is tried.
        let linkers = fs::read(&linker).ok().and_then(|file| llvm_of(&file));
        if let (Some(linkers), Some(compilers)) = (linkers, rust.llvm()) {
            fitting(&linker, linkers, compilers)?;
        }
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

    /// Where the source of `core` is.
    pub(crate) fn source(&self) -> Option<PathBuf> {
        self.rust.sysroot().map(|root| root.join(SOURCE))
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

/// An LLVM reads what its own release and earlier ones write, never what a later one does.
fn fitting(linker: &Path, linkers: u32, compilers: u32) -> Result<(), ToolchainError> {
    if linkers >= compilers {
        return Ok(());
    }
    Err(ToolchainError::OldLinker {
        linker: linker.to_owned(),
        linkers,
        compilers,
    })
}

/// The number of the LLVM that a program was linked with. `bpf-linker` does not tell it: where LLVM
/// is a library of its own, that is named in the file, and where it is not, the file has the name
/// that LLVM writes into its output (`LLVM22.1.8`).
fn llvm_of(program: &[u8]) -> Option<u32> {
    const NAMES: [&[u8]; 3] = [b"libLLVM.so.", b"libLLVM-", b"LLVM"];
    let mut found = [None; NAMES.len()];
    let starts = program
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'L' || **byte == b'l');
    for (start, _) in starts {
        let rest = program.get(start..).unwrap_or_default();
        for (found, name) in found.iter_mut().zip(NAMES) {
            if found.is_none() {
                *found = rest.strip_prefix(name).and_then(release);
            }
        }
    }
    found.into_iter().flatten().next()
}

/// The first number of a version such as `22.1` or `22.so`.
fn release(text: &[u8]) -> Option<u32> {
    let [tens @ b'1'..=b'9', ones @ b'0'..=b'9', b'.', ..] = text else {
        return None;
    };
    Some(u32::from(tens - b'0') * 10 + u32::from(ones - b'0'))
}

fn has_source(sysroot: &Path) -> bool {
    sysroot
        .join(SOURCE)
        .join("library/core/Cargo.toml")
        .is_file()
}

/// Where a toolchain has the source of the standard library.
const SOURCE: &str = "lib/rustlib/src/rust";

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
    fn the_linkers_llvm_is_read_from_its_file() {
        for (program, llvm) in [
            (&b"\0libc.so.6\0libLLVM.so.22.1\0"[..], Some(22)),
            (b"LLVM21.1.0\0libLLVM-19.so.1\0", Some(19)),
            (b"the LLVM linker\0LLVM20.1.8\0", Some(20)),
            (b"\0libc.so.6\0LLVMContext\0LLVM 7\0", None),
            (b"libLLVM.so.2", None),
            (b"", None),
        ] {
            assert_eq!(llvm_of(program), llvm, "{}", program.escape_ascii());
        }
    }

    #[test]
    fn a_linker_with_an_older_llvm_than_the_compilers_is_refused_with_the_command_to_type() {
        let linker = Path::new("/usr/bin/bpf-linker");
        assert!(fitting(linker, 22, 22).is_ok());
        assert!(fitting(linker, 23, 22).is_ok());

        let error = fitting(linker, 21, 22).unwrap_err().to_string();

        assert!(
            error.starts_with(
                "/usr/bin/bpf-linker was built with LLVM 21, which cannot read what the LLVM 22 of"
            ),
            "{error}"
        );
        assert!(
            error.contains("\n  LLVM_PREFIX=/usr/lib/llvm-22 cargo install --force "),
            "{error}"
        );
    }

    #[test]
    fn the_linker_that_is_here_is_one_that_fits() {
        // Whoever builds the agent without eBPF has none.
        if let Some(linker) = find_linker() {
            let llvm = llvm_of(&fs::read(&linker).unwrap());
            assert!(llvm.is_some(), "{} does not say", linker.display());
        }
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
