//! The table of tools: which program, needed for what, and where it comes from.
//!
//! There is no row for the C compiler and the C library's headers: without them xtask itself
//! could not have been linked. The fuzzers need nothing beyond the stable toolchain and `c++`.
//! What builds the agent needs what builds the eBPF programs in it: every job does.

use super::{Job, Machine};
use crate::command::Command;

#[derive(Debug)]
pub(super) struct Tool {
    /// The program whose presence says that the tool is there; a library of [`Source::Library`].
    pub(super) program: &'static str,
    pub(super) jobs: &'static [Job],
    /// Completes "needed to ...".
    pub(super) purpose: &'static str,
    pub(super) source: Source,
}

#[derive(Debug)]
pub(super) enum Source {
    /// A Debian package.
    Debian(&'static str),
    /// A Debian package that has a library and no program.
    Library(&'static str),
    /// A crate from the registry. An installed version from `oldest` on will do; lower ones do not
    /// know what our configuration files ask for.
    Crate {
        name: &'static str,
        version: &'static str,
        oldest: &'static str,
        features: &'static [&'static str],
    },
    /// A part of the Rust toolchain: a component where rustup keeps it, else a Debian package.
    Component {
        component: &'static str,
        debian: &'static str,
    },
    /// A Rust that can build for eBPF: rustup's nightly with its source if there is one, else
    /// Debian's packages.
    EbpfRust,
    /// The linker of eBPF programs. It has to use the same LLVM as the Rust for eBPF, which is
    /// known only once that Rust is there.
    BpfLinker,
}

/// Compiler and the source of `core` in one version, which rustup has for its nightly only.
const DEBIAN_EBPF_RUST: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// What Debian's [`DEBIAN_EBPF_RUST`] uses at the time of writing; for messages only.
const USUAL_LLVM: u32 = 22;

const BPF_LINKER_VERSION: &str = "0.13.0";

pub(super) const TOOLS: &[Tool] = &[
    Tool {
        program: "ip",
        jobs: &[Job::Demo, Job::Netns, Job::Vm],
        purpose: "make network namespaces and the links between them",
        source: Source::Debian("iproute2"),
    },
    Tool {
        program: "nft",
        jobs: &[Job::Demo, Job::Netns, Job::Vm],
        purpose: "redirect connections to the transparent front door",
        source: Source::Debian("nftables"),
    },
    Tool {
        program: "faketime/libfaketime.so.1",
        jobs: &[Job::Netns],
        purpose: "let the daemons' clocks jump, and not the machine's",
        source: Source::Library("libfaketime"),
    },
    Tool {
        program: "kubectl",
        jobs: &[Job::Netns],
        purpose: "render the manifests",
        source: Source::Debian("kubernetes-client"),
    },
    Tool {
        program: "systemd-analyze",
        jobs: &[Job::Netns],
        purpose: "verify the units",
        source: Source::Debian("systemd"),
    },
    Tool {
        program: "openssl",
        jobs: &[Job::Netns],
        purpose: "make certificates as an operator does",
        source: Source::Debian("openssl"),
    },
    Tool {
        program: "qemu-system-x86_64",
        jobs: &[Job::Vm],
        purpose: "boot other kernels",
        source: Source::Debian("qemu-system-x86"),
    },
    Tool {
        program: "busybox",
        jobs: &[Job::Vm],
        purpose: "be the shell of a virtual machine",
        source: Source::Debian("busybox-static"),
    },
    Tool {
        program: "xz",
        jobs: &[Job::Vm],
        purpose: "unpack kernel modules",
        source: Source::Debian("xz-utils"),
    },
    Tool {
        program: "c++",
        jobs: Job::ALL.as_slice(),
        purpose: "build libFuzzer for the fuzz targets, and link bpf-linker",
        source: Source::Debian("g++"),
    },
    Tool {
        program: "git",
        jobs: &[Job::Check],
        purpose: "list the tracked files whose form is checked",
        source: Source::Debian("git"),
    },
    Tool {
        program: "cargo-fmt",
        jobs: &[Job::Check],
        purpose: "check the format",
        source: Source::Component {
            component: "rustfmt",
            debian: "rustfmt",
        },
    },
    Tool {
        program: "cargo-clippy",
        jobs: &[Job::Check],
        purpose: "run the lints",
        source: Source::Component {
            component: "clippy",
            debian: "rust-clippy",
        },
    },
    Tool {
        program: "cargo-nextest",
        jobs: &[Job::Unit, Job::Netns],
        purpose: "run the tests, each in a process of its own",
        source: Source::Crate {
            name: "cargo-nextest",
            version: "0.9.151",
            oldest: "0.9.95",
            // Without the part that replaces itself.
            features: &["--no-default-features", "--features", "default-no-update"],
        },
    },
    Tool {
        program: "cargo-deny",
        jobs: &[Job::Check],
        purpose: "check licences, versions and sources of the dependencies",
        source: Source::Crate {
            name: "cargo-deny",
            version: "0.20.2",
            oldest: "0.19.0",
            features: &[],
        },
    },
    Tool {
        program: "Rust for eBPF",
        jobs: Job::ALL.as_slice(),
        purpose: "build the eBPF programs that the agent carries",
        source: Source::EbpfRust,
    },
    Tool {
        program: "bpf-linker",
        jobs: Job::ALL.as_slice(),
        purpose: "link the eBPF programs that the agent carries",
        source: Source::BpfLinker,
    },
];

impl Tool {
    pub(super) fn is_installed(&self, machine: &impl Machine) -> bool {
        match self.source {
            Source::Debian(_) | Source::BpfLinker => machine.has_program(self.program),
            Source::EbpfRust => machine.ebpf_llvm().is_some(),
            Source::Library(_) => machine.has_library(self.program),
            Source::Component { .. } => machine.toolchain_has_program(self.program),
            Source::Crate { oldest, .. } => machine
                .cargo_tool_version(self.program)
                .is_some_and(|version| numbers(&version) >= numbers(oldest)),
        }
    }
}

impl Source {
    /// Where the tool would be taken from on this machine.
    pub(super) fn describe(&self, machine: &impl Machine) -> String {
        match self {
            Self::Component { component, .. } if machine.has_program("rustup") => {
                format!("rustup component {component}")
            }
            Self::Debian(debian) | Self::Library(debian) | Self::Component { debian, .. } => {
                format!("Debian package {debian}")
            }
            Self::Crate {
                name,
                version,
                oldest,
                ..
            } => format!(
                "crate {name} {version}, {oldest} at the least; takes some minutes to build"
            ),
            Self::EbpfRust => format!("Debian packages {}", DEBIAN_EBPF_RUST.join(" ")),
            Self::BpfLinker => format!(
                "crate bpf-linker {BPF_LINKER_VERSION} with Debian package {}; takes some minutes \
                 to build",
                llvm_package(machine)
            ),
        }
    }

    /// The Debian packages that the tool is, or needs to be built; none for what comes from rustup.
    pub(super) fn packages(&self, machine: &impl Machine) -> Vec<String> {
        match self {
            Self::Component { .. } if machine.has_program("rustup") => Vec::new(),
            Self::Component { debian, .. } | Self::Debian(debian) | Self::Library(debian) => {
                vec![(*debian).to_owned()]
            }
            Self::Crate { .. } => Vec::new(),
            Self::EbpfRust => DEBIAN_EBPF_RUST.map(str::to_owned).into(),
            Self::BpfLinker => vec![llvm_package(machine)],
        }
    }

    /// The command that installs the tool, behind its packages; `None` if they are all it takes.
    pub(super) fn command(&self, machine: &impl Machine) -> Option<Command> {
        match self {
            Self::Component { component, .. } if machine.has_program("rustup") => {
                Some(Command::new("rustup", ["component", "add", component]))
            }
            Self::Crate {
                name,
                version,
                features,
                ..
            } => Some(cargo_install(name, version, features)),
            Self::BpfLinker => {
                let llvm = llvm(machine);
                let features = [
                    "--no-default-features",
                    "--features",
                    &format!("llvm-{llvm}"),
                ];
                let install = cargo_install("bpf-linker", BPF_LINKER_VERSION, &features);
                Some(install.env("LLVM_PREFIX", &format!("/usr/lib/llvm-{llvm}")))
            }
            _ => None,
        }
    }
}

fn llvm(machine: &impl Machine) -> u32 {
    machine.ebpf_llvm().unwrap_or(USUAL_LLVM)
}

fn llvm_package(machine: &impl Machine) -> String {
    format!("llvm-{}-dev", llvm(machine))
}

fn cargo_install(name: &str, version: &str, features: &[&str]) -> Command {
    // The tools run for seconds but are built on every new machine: their own settings, whole
    // program optimisation among them, would double the minutes that this takes.
    let quick_to_build = [
        "profile.release.lto=\"off\"",
        "profile.release.codegen-units=16",
        "profile.release.opt-level=1",
    ];
    let configuration = quick_to_build
        .into_iter()
        .flat_map(|setting| ["--config", setting]);
    Command::cargo(["install", "--locked", "--version", version])
        .args(configuration)
        .args(features.iter().copied())
        .args([name])
}

/// The numbers of a version, to be compared in order; what is not a number counts as 0.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split('.')
        .map(|part| part.parse().unwrap_or(0))
        .collect()
}
