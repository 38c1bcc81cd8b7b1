//! Set-up on machines that do not exist: what is run, what is said, what is left to the person.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
};

use anyhow::anyhow;

use super::*;

/// A machine where everything is there and root may do anything, unless a test takes it away.
struct FakeMachine {
    programs: RefCell<BTreeSet<&'static str>>,
    nextest: RefCell<Option<&'static str>>,
    root: bool,
    package_lists: bool,
    /// The n-th command run fails, counted from 0.
    failing: Vec<usize>,
    /// Whether commands that succeed also put the programs in place.
    effective: bool,
    ran: RefCell<Vec<String>>,
    said: RefCell<Vec<String>>,
    asked: Cell<u32>,
}

impl FakeMachine {
    fn complete() -> Self {
        let mut programs: BTreeSet<_> = TOOLS.iter().map(|tool| tool.program).collect();
        programs.extend(["apt-get", "rustup"]);
        Self {
            programs: RefCell::new(programs),
            nextest: RefCell::new(Some("0.9.151")),
            root: true,
            package_lists: true,
            failing: Vec::new(),
            effective: true,
            ran: RefCell::default(),
            said: RefCell::default(),
            asked: Cell::new(0),
        }
    }

    fn without(programs: &[&'static str]) -> Self {
        let machine = Self::complete();
        machine
            .programs
            .borrow_mut()
            .retain(|program| !programs.contains(program));
        if programs.contains(&"cargo-nextest") {
            machine.nextest.replace(None);
        }
        machine
    }

    fn ran(&self) -> Vec<String> {
        self.ran.borrow().clone()
    }
}

impl Machine for FakeMachine {
    fn has_program(&self, name: &str) -> bool {
        self.asked.set(self.asked.get() + 1);
        self.programs.borrow().contains(name)
    }

    fn toolchain_has_program(&self, name: &str) -> bool {
        self.has_program(name)
    }

    fn has_library(&self, name: &str) -> bool {
        self.has_program(name)
    }

    fn cargo_tool_version(&self, name: &str) -> Option<String> {
        match name {
            "cargo-nextest" => self.nextest.borrow().map(str::to_owned),
            _ => self.has_program(name).then(|| "999.0.0".to_owned()),
        }
    }

    fn ebpf_llvm(&self) -> Option<u32> {
        self.has_program("Rust for eBPF").then_some(LLVM)
    }

    fn has_package_lists(&self) -> bool {
        self.package_lists
    }

    fn is_root(&self) -> bool {
        self.root
    }

    fn run(&self, command: &Command) -> Result<()> {
        let index = self.ran.borrow().len();
        self.ran.borrow_mut().push(command.to_string());
        if self.failing.contains(&index) {
            return Err(anyhow!("no network"));
        }
        if self.effective && !command.to_string().ends_with("update") {
            let installs_all = |tool: &&Tool| !matches!(tool.source, Source::BpfLinker);
            let tools: Vec<_> = if command.to_string().ends_with(" bpf-linker") {
                TOOLS.iter().collect()
            } else {
                TOOLS.iter().filter(installs_all).collect()
            };
            self.programs
                .borrow_mut()
                .extend(tools.iter().map(|tool| tool.program));
            self.nextest.replace(Some("0.9.151"));
        }
        Ok(())
    }

    fn say(&self, line: &str) {
        self.said.borrow_mut().push(line.to_owned());
    }
}

/// Of the Rust for eBPF, once it is there; not the one that messages assume before.
const LLVM: u32 = 23;

const INSTALL: &str = "env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
                       install -y --no-install-recommends";

#[test]
fn nothing_missing_runs_nothing_and_says_nothing() {
    let machine = FakeMachine::complete();

    ensure(&Job::ALL, &machine).unwrap();

    assert!(machine.asked.get() > 0);
    assert_eq!(machine.ran(), Vec::<String>::new());
    assert_eq!(*machine.said.borrow(), Vec::<String>::new());
}

#[test]
fn missing_packages_are_named_with_their_purpose_and_installed_in_one_go() {
    let machine = FakeMachine::without(&["ip", "nft"]);

    ensure(&[Job::Demo], &machine).unwrap();

    assert_eq!(machine.ran(), [format!("{INSTALL} iproute2 nftables")]);
    assert_eq!(
        *machine.said.borrow(),
        [
            "missing: ip (Debian package iproute2), needed to make network namespaces and the \
             links between them",
            "missing: nft (Debian package nftables), needed to redirect connections to the \
             transparent front door",
        ]
    );
}

#[test]
fn what_another_job_needs_is_not_installed() {
    let machine = FakeMachine::without(&["nft", "cargo-deny"]);

    ensure(&[Job::Unit], &machine).unwrap();

    assert_eq!(machine.ran(), Vec::<String>::new());
}

#[test]
fn package_lists_are_fetched_first_where_there_are_none() {
    let mut machine = FakeMachine::without(&["nft"]);
    machine.package_lists = false;

    ensure(&[Job::Netns], &machine).unwrap();

    assert_eq!(
        machine.ran(),
        ["apt-get update".to_owned(), format!("{INSTALL} nftables")]
    );
}

#[test]
fn failed_install_is_tried_once_more_with_fresh_lists() {
    let mut machine = FakeMachine::without(&["nft"]);
    machine.failing = vec![0];

    ensure(&[Job::Netns], &machine).unwrap();

    let install = format!("{INSTALL} nftables");
    assert_eq!(
        machine.ran(),
        [install.clone(), "apt-get update".to_owned(), install]
    );
}

#[test]
fn missing_cargo_tool_is_built_at_its_pinned_version() {
    let machine = FakeMachine::without(&["cargo-nextest"]);

    ensure(&[Job::Unit], &machine).unwrap();

    let [command] = &machine.ran()[..] else {
        panic!("one command expected, got {:?}", machine.ran());
    };
    assert!(
        command.starts_with("cargo install --locked --version 0.9.151 "),
        "{command}"
    );
    assert!(
        command.ends_with("--no-default-features --features default-no-update cargo-nextest"),
        "{command}"
    );
}

#[test]
fn cargo_tool_is_kept_from_the_oldest_version_that_will_do() {
    for (version, commands) in [("0.9.94", 1), ("0.9.95", 0), ("0.10.0", 0), ("1.0.0", 0)] {
        let machine = FakeMachine::complete();
        machine.nextest.replace(Some(version));

        ensure(&[Job::Unit], &machine).unwrap();

        assert_eq!(machine.ran().len(), commands, "{version}");
    }
}

#[test]
fn components_come_from_rustup_where_there_is_one_else_from_debian() {
    let with_rustup = FakeMachine::without(&["cargo-fmt", "cargo-clippy"]);
    let without_rustup = FakeMachine::without(&["cargo-fmt", "cargo-clippy", "rustup"]);

    ensure(&[Job::Check], &with_rustup).unwrap();
    ensure(&[Job::Check], &without_rustup).unwrap();

    assert_eq!(
        with_rustup.ran(),
        [
            "rustup component add rustfmt",
            "rustup component add clippy"
        ]
    );
    assert_eq!(
        without_rustup.ran(),
        [format!("{INSTALL} rustfmt rust-clippy")]
    );
}

#[test]
fn without_root_the_commands_to_type_are_all_that_happens() {
    let mut machine = FakeMachine::without(&["nft", "cargo-nextest"]);
    machine.root = false;

    let error = ensure(&[Job::Netns], &machine).unwrap_err().to_string();

    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(
        lines[..3],
        [
            "only root can install packages; type:",
            "  sudo apt-get update",
            &format!("  sudo {INSTALL} nftables"),
        ]
    );
    assert!(lines[3].starts_with("  cargo install --locked"), "{error}");
    assert_eq!(machine.ran(), Vec::<String>::new());
}

#[test]
fn without_root_what_needs_no_root_is_installed() {
    let mut machine = FakeMachine::without(&["cargo-nextest"]);
    machine.root = false;

    ensure(&[Job::Netns], &machine).unwrap();

    assert_eq!(machine.ran().len(), 1);
}

#[test]
fn without_apt_the_packages_are_named_and_nothing_is_run() {
    let machine = FakeMachine::without(&["nft", "c++", "cargo-deny", "apt-get"]);

    let error = ensure(&Job::ALL, &machine).unwrap_err().to_string();

    assert!(error.starts_with("no apt-get here"), "{error}");
    assert!(
        error.contains("nftables g++\nand type:\n  cargo install"),
        "{error}"
    );
    assert_eq!(machine.ran(), Vec::<String>::new());
}

#[test]
fn without_network_the_cause_and_the_commands_to_type_are_told() {
    let mut machine = FakeMachine::without(&["nft"]);
    machine.failing = vec![0, 1];

    let error = ensure(&[Job::Netns], &machine).unwrap_err().to_string();

    assert_eq!(
        error,
        format!(
            "cannot install what is missing: no network\nmend that, or type:\n  apt-get update\n  \
             {INSTALL} nftables"
        )
    );
}

#[test]
fn install_that_brings_no_program_is_an_error() {
    let mut machine = FakeMachine::without(&["nft"]);
    machine.effective = false;

    let error = ensure(&[Job::Netns], &machine).unwrap_err().to_string();

    assert_eq!(
        error,
        "installed Debian package nftables, yet there is no nft"
    );
}

#[test]
fn linker_for_ebpf_is_built_with_the_llvm_of_the_rust_that_was_just_installed() {
    let machine = FakeMachine::without(&["Rust for eBPF", "bpf-linker"]);

    ensure(&[Job::Build], &machine).unwrap();

    let [rust, llvm, linker] = &machine.ran()[..] else {
        panic!("three commands expected, got {:?}", machine.ran());
    };
    assert_eq!(*rust, format!("{INSTALL} rustc-web cargo-web rust-web-src"));
    assert_eq!(*llvm, format!("{INSTALL} llvm-23-dev"));
    assert!(
        linker.starts_with("LLVM_PREFIX=/usr/lib/llvm-23 cargo install --locked --version 0.13.0 "),
        "{linker}"
    );
    assert!(
        linker.ends_with("--no-default-features --features llvm-23 bpf-linker"),
        "{linker}"
    );
}

#[test]
fn without_root_all_commands_for_ebpf_are_told_at_once() {
    let mut machine = FakeMachine::without(&["Rust for eBPF", "bpf-linker"]);
    machine.root = false;

    let error = ensure(&[Job::Build], &machine).unwrap_err().to_string();

    assert!(
        error.contains(&format!(
            "\n  sudo {INSTALL} rustc-web cargo-web rust-web-src llvm-22-dev\n  \
             LLVM_PREFIX=/usr/lib/llvm-22 cargo install "
        )),
        "{error}"
    );
    assert_eq!(machine.ran(), Vec::<String>::new());
}

#[test]
fn every_tool_of_the_table_says_what_for() {
    for tool in TOOLS {
        assert!(!tool.jobs.is_empty(), "{}", tool.program);
        assert!(!tool.purpose.is_empty(), "{}", tool.program);
    }
}
