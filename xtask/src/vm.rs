//! `cargo xtask vm`: end-to-end tests in virtual machines with Debian's kernels.
//!
//! qemu emulates the processor, so that it works wherever qemu does, and is ten times slower than
//! this machine: a list of tests that depend on the kernel ([`RUNS`]), one kernel after another.
//! [`kernels`] gets what is booted, [`programs`] builds what is tested, [`image`] packs both,
//! [`results`] reads what the guest said. All that a guest wrote stays in `target/vm/KERNEL.log`.

mod image;
mod kernels;
mod modules;
mod programs;
mod results;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::builder::PossibleValuesParser;

use self::kernels::{RELEASES, Release, text};
use crate::{
    command::Command,
    setup::{self, Job, ThisMachine},
    test::Counts,
    workspace::Workspace,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Boot this kernel only
    #[arg(long, value_parser = PossibleValuesParser::new(RELEASES.iter().map(|release| release.name)))]
    kernel: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let workspace = Workspace::enter()?;
    setup::ensure(&[Job::Vm], &ThisMachine)?;
    let releases = RELEASES.iter().filter(|release| {
        options
            .kernel
            .as_ref()
            .is_none_or(|name| name == release.name)
    });
    let mut counts = Counts::default();
    let result = test_on(releases, &workspace, &mut counts);
    println!("{counts}");
    result.and_then(|()| counts.accept(true))
}

/// The group of `cargo xtask test`: every kernel.
pub(crate) fn group(workspace: &Workspace, counts: &mut Counts) -> Result<()> {
    test_on(RELEASES.iter(), workspace, counts)
}

/// A test program with the part of a name that says which of its tests run.
#[derive(Debug, Eq, PartialEq)]
struct TestRun {
    program: &'static str,
    filter: &'static str,
}

/// As it stands in the guest's list, and in what the guest says.
impl fmt::Display for TestRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.program, self.filter)
    }
}

/// What runs on every kernel: tests whose result depends on it.
///
/// Of the table of steering these are who has a connection when the agent runs, was killed or is
/// stopped, those from before and in TIME_WAIT, SYN cookies and reverse path filters, and what
/// netfilter and bridges make of it. Of the guard: connections from before, an overlay, and an
/// agent that hangs or was killed. The tests ask which ways to attach the kernel has.
///
/// Left to the machine's own kernel: `listeners` and the guard's commands, which are the agent's
/// own doing; `frames`, as `devices` has a real VLAN device; `restarts` and `cost`, which would
/// take many minutes of an emulated processor.
const RUNS: &[TestRun] = &[
    run_of(
        "tunnel",
        "requests::a_kubelet_that_cannot_be_dialled_answers_through_its_session",
    ),
    run_of("vm", "auto::"),
    run_of("vm", "guard::"),
    run_of("vm", "devices::"),
    run_of("steering_table", "agents::"),
    run_of("steering_table", "connections::"),
    run_of("steering_table", "filters::"),
    run_of("steering_table", "settings::"),
    run_of("guard", "a_running_connection"),
    run_of("guard", "an_overlay"),
    run_of("guard", "nobody_is_locked_out"),
];

const fn run_of(program: &'static str, filter: &'static str) -> TestRun {
    TestRun { program, filter }
}

/// A kernel on which tests fail does not keep the others from being tested.
fn test_on<'a>(
    releases: impl Iterator<Item = &'a Release>,
    workspace: &Workspace,
    counts: &mut Counts,
) -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the kernels are for x86_64, and this machine is not");
    }
    let place = Place::new(workspace)?;
    image::common(workspace, &place.root, RUNS)?;
    let mut problems = Vec::new();
    for release in releases {
        if let Err(error) = place.test(release, counts) {
            println!("kernel {}: {error:#}", release.name);
            problems.push(format!("kernel {}: {error:#}", release.name));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    bail!("{}", problems.join("; "))
}

/// Where everything is kept, below the target directory.
struct Place {
    directory: PathBuf,
    /// What becomes the guest's file system.
    root: PathBuf,
}

impl Place {
    fn new(workspace: &Workspace) -> Result<Self> {
        let directory = workspace.target.join("vm");
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(Self {
            root: directory.join("root"),
            directory,
        })
    }

    fn test(&self, release: &Release, counts: &mut Counts) -> Result<()> {
        let kernel = kernels::kernel(release, &self.directory)?;
        let archive = self.directory.join("initramfs");
        image::pack(&self.root, &modules::in_order(&kernel.modules)?, &archive)?;
        let (output, console) = self.boot(release, &kernel.image, &archive)?;
        let log = self.directory.join(format!("{}.log", release.name));
        fs::write(&log, format!("{output}\n--- console:\n{console}"))
            .with_context(|| format!("cannot write {}", log.display()))?;
        let mut here = Counts::default();
        let result = results::count(&output, RUNS, &mut here);
        println!(
            "kernel {}: {here}; its output is in {}",
            release.name,
            log.display()
        );
        for name in &mut here.failures {
            *name = format!("{name} (kernel {})", release.name);
        }
        counts.add(here);
        if result.is_err() {
            println!("the end of its console:\n{}", tail(&console));
        }
        result
    }

    /// What the tests wrote, and what the kernel did.
    fn boot(&self, release: &Release, image: &Path, archive: &Path) -> Result<(String, String)> {
        let console = self.directory.join(format!("{}.console", release.name));
        let command = Command::new("timeout", ["--foreground", "--kill-after=5", BOOT_LIMIT])
            .args(QEMU.split_whitespace())
            .args(["-kernel", text(image)?, "-initrd", text(archive)?])
            .args([
                "-append",
                &format!("{KERNEL_LINE} PROXYMUX_VM_KERNEL={}", release.name),
            ])
            .args(["-serial", &format!("file:{}", text(&console)?)])
            .args(["-serial", "stdio"]);
        let (status, output) = command.run_keeping_output()?;
        let console =
            fs::read(&console).with_context(|| format!("cannot read {}", console.display()))?;
        if !status.success() {
            // What it said until then says more than the code, and is looked at by the caller.
            println!("qemu ended with {status}; 124 means that {BOOT_LIMIT} were not enough");
        }
        Ok((output, String::from_utf8_lossy(&console).into_owned()))
    }
}

/// The last lines of a text.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.len().saturating_sub(TAIL_LINES);
    lines.get(start..).unwrap_or_default().join("\n")
}

/// A boot takes 5 to 15 seconds, the tests some three minutes, and more on a busy machine.
const BOOT_LIMIT: &str = "600s";

/// No devices but two serial ports: the first is the kernel's, the second the tests'. A guest
/// that restarts ends instead.
const QEMU: &str = "qemu-system-x86_64 -accel tcg,thread=multi -machine pc -cpu max -smp 2 \
                    -m 1024 -nodefaults -no-user-config -display none -no-reboot";

/// A variable that the kernel does not know goes into the environment of the first process.
const KERNEL_LINE: &str = "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off \
                           random.trust_cpu=on";

const TAIL_LINES: usize = 60;
