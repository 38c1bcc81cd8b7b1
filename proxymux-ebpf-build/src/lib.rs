//! Builds the eBPF objects: one cargo inside another.
//!
//! Owns the command and its environment; [`toolchain`] owns which Rust and which linker are used.
//! Used by the agent's build script and by `cargo xtask build-ebpf`, never by a daemon.
//! Read [`build`] first. Everything is built in a target directory of its own, because the outer
//! cargo holds the lock of its own one.

pub mod toolchain;

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use toolchain::Toolchain;

/// Which of the two builds of the one source.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Build {
    /// The one used by default: no ring buffer, loads from kernel 5.8 on without CAP_PERFMON.
    Silent,
    /// With lines of log for what opens connections.
    Logging,
}

impl Build {
    pub const ALL: [Self; 2] = [Self::Silent, Self::Logging];

    /// The name of its object file.
    #[must_use]
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Silent => "proxymux-silent.o",
            Self::Logging => "proxymux-logging.o",
        }
    }
}

/// Why there is no object.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Toolchain(#[from] toolchain::ToolchainError),
    #[error("cannot start `{program}`")]
    Start { program: String, source: io::Error },
    #[error("building the eBPF programs failed ({status}): `{command}`")]
    Failed { command: String, status: ExitStatus },
    #[error("cannot write to {}", path.display())]
    Place { path: PathBuf, source: io::Error },
    #[error("the linker's output {} is no object file that can be read", path.display())]
    Object {
        path: PathBuf,
        source: object::build::Error,
    },
}

/// Builds `build` of the crate in `crate_directory`, and hands back where the object is: in
/// `directory`. Everything else that the build makes is in `target`, which several builds may
/// share, at the same time too.
///
/// # Errors
///
/// A part of the toolchain is missing (the text says what to type), or the build failed.
pub fn build(
    build: Build,
    crate_directory: &Path,
    target: &Path,
    directory: &Path,
) -> Result<PathBuf, BuildError> {
    let toolchain = Toolchain::find()?;
    let _lock = lock(target).map_err(|source| BuildError::Place {
        path: target.to_owned(),
        source,
    })?;
    let mut command = command(&toolchain, build, crate_directory, target);
    let status = command.status().map_err(|source| BuildError::Start {
        program: command.get_program().to_string_lossy().into_owned(),
        source,
    })?;
    if !status.success() {
        return Err(BuildError::Failed {
            command: format!("{command:?}"),
            status,
        });
    }
    let built = target.join(TARGET).join("release").join(PROGRAM);
    let path = directory.join(build.file_name());
    let place = |path: &Path| {
        let path = path.to_owned();
        |source| BuildError::Place { path, source }
    };
    let linked = fs::read(&built).map_err(place(&built))?;
    let object = without_dwarf(&linked).map_err(|source| BuildError::Object {
        path: built,
        source,
    })?;
    fs::create_dir_all(directory).map_err(place(directory))?;
    fs::write(&path, object).map_err(place(&path))?;
    Ok(path)
}

/// The object without what only debuggers read, which is most of it. The linker has made BTF out of
/// that, which the kernel reads and shows beside its verifier's complaints, and which stays.
fn without_dwarf(linked: &[u8]) -> Result<Vec<u8>, object::build::Error> {
    let mut object = object::build::elf::Builder::read(linked)?;
    for section in &mut object.sections {
        let name = section.name.as_slice();
        let name = name.strip_prefix(b".rel").unwrap_or(name);
        section.delete = name.starts_with(b".debug_");
    }
    object.delete_orphans();
    // Rust's names have a hash in them of where the crates lie. Nobody asks for these by name:
    // programs are found by their sections, and BTF has the names that people read.
    for (number, symbol) in (0_u32..).zip(&mut object.symbols) {
        if is_mangled(symbol.name.as_slice()) {
            symbol.name = format!("function_{number}").into_bytes().into();
        }
    }
    // LLVM keeps the names of sections among the others; who writes the file keeps them apart.
    let names = object.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.data = object::build::elf::SectionData::SectionString;
    let mut bytes = Vec::new();
    object.write(&mut bytes)?;
    Ok(bytes)
}

fn is_mangled(name: &[u8]) -> bool {
    name.starts_with(b"_R") || name.starts_with(b"_ZN")
}

/// Keeps others from building in `target` until it is dropped: both builds put their object at the
/// same place, and cargo's own lock is gone before it is copied.
fn lock(target: &Path) -> io::Result<fs::File> {
    fs::create_dir_all(target)?;
    let file = fs::File::create(target.join("proxymux.lock"))?;
    file.lock()?;
    Ok(file)
}

const TARGET: &str = "bpfel-unknown-none";

/// The name of the binary in the manifest of `proxymux-ebpf`.
const PROGRAM: &str = "proxymux";

fn command(toolchain: &Toolchain, build: Build, crate_directory: &Path, target: &Path) -> Command {
    let mut command = toolchain.cargo();
    command
        .current_dir(crate_directory)
        .args([
            "build",
            "--quiet",
            "--locked",
            "--release",
            "-Z",
            "build-std=core",
        ])
        .args(["--target", TARGET, "--target-dir"])
        .arg(target);
    if build == Build::Logging {
        command.args(["--features", "logging"]);
    }
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_of_the_outer_cargo) {
            command.env_remove(name);
        }
    }
    let mut flags = vec![
        format!("-Clinker={}", toolchain.linker().display()),
        // The types of maps and programs, made from the debugging information.
        "-Clink-arg=--btf".to_owned(),
        // aya-ebpf asks for whom it is built, to know the layout of registers.
        format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
    ];
    flags.extend(without_paths(toolchain, crate_directory));
    command
        // aya-ebpf and build-std use unstable features, which a stable compiler has behind this.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    command
}

/// Flags that keep this machine's directories out of the object, so that it is the same wherever it
/// is built: lines of the source stand in its BTF.
fn without_paths(toolchain: &Toolchain, crate_directory: &Path) -> impl Iterator<Item = String> {
    let sources = fs::canonicalize(crate_directory).ok();
    let checkout = sources.as_deref().and_then(Path::parent);
    [
        (toolchain.source(), "/rust"),
        (cargo_home(), "/cargo"),
        (checkout.map(Path::to_owned), "/proxymux"),
    ]
    .into_iter()
    .filter_map(|(from, to)| Some(format!("--remap-path-prefix={}={to}", from?.display())))
}

/// Where cargo keeps the sources of dependencies.
#[must_use]
pub fn cargo_home() -> Option<PathBuf> {
    let set = env::var_os("CARGO_HOME").map(PathBuf::from);
    set.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
}

/// Variables that tell of the outer build or configure it, and would leak into this one: flags,
/// wrappers (clippy is one), profiles. What configures registries and networks stays.
fn is_of_the_outer_cargo(name: &str) -> bool {
    const STAYS: [&str; 6] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
    ];
    const OF_RUST: [&str; 6] = [
        "RUSTC",
        "RUSTFLAGS",
        "RUSTDOC",
        "RUSTDOCFLAGS",
        "RUSTUP_TOOLCHAIN",
        "CARGO",
    ];
    if STAYS.iter().any(|start| name.starts_with(start)) {
        return false;
    }
    name.starts_with("CARGO_") || name.starts_with("RUSTC_") || OF_RUST.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_wrappers_of_the_outer_build_do_not_reach_the_inner_one() {
        for name in [
            "CARGO",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_TARGET_DIR",
            "CARGO_PROFILE_RELEASE_LTO",
            "RUSTC",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
        ] {
            assert!(is_of_the_outer_cargo(name), "{name}");
        }
    }

    #[test]
    fn what_finds_the_registry_and_the_toolchains_does() {
        for name in [
            "PATH",
            "HOME",
            "CARGO_HOME",
            "CARGO_HTTP_PROXY",
            "CARGO_REGISTRIES_CRATES_IO_PROTOCOL",
            "RUSTUP_HOME",
        ] {
            assert!(!is_of_the_outer_cargo(name), "{name}");
        }
    }
}
