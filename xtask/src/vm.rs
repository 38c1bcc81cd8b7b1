//! `cargo xtask vm`: end-to-end tests in virtual machines with Debian's kernels.
//!
//! qemu emulates the processors, so that it works wherever qemu does, and is ten times slower than
//! this machine: a list of tests that depend on the kernel ([`RUNS`]), as many kernels at a time as
//! there are processors.
//! [`kernels`] gets what is booted, [`programs`] builds what is tested, [`image`] packs both,
//! [`results`] reads what the guest said. All that a guest wrote stays in `target/vm/KERNEL.log`.

mod image;
mod kernels;
mod modules;
mod programs;
mod results;

use std::{fmt, fs, num::NonZero, path::PathBuf, thread};

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
    let mut guests = Vec::new();
    for release in releases {
        match place.guest(release) {
            Ok(guest) => guests.push(guest),
            Err(error) => problems.push(format!("kernel {}: {error:#}", release.name)),
        }
    }
    let at_once = thread::available_parallelism().map_or(1, NonZero::get);
    for together in guests.chunks(at_once) {
        for (guest, output) in together.iter().zip(Guest::run_all(together)) {
            let result = output.and_then(|output| place.count(guest, &output, counts));
            if let Err(error) = result {
                problems.push(format!("kernel {}: {error:#}", guest.release));
            }
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

    fn guest(&self, release: &Release) -> Result<Guest> {
        let kernel = kernels::kernel(release, &self.directory)?;
        let guest = Guest {
            release: release.name,
            image: kernel.image,
            archive: self.directory.join(format!("{}.initramfs", release.name)),
            console: self.directory.join(format!("{}.console", release.name)),
        };
        let modules = modules::in_order(&kernel.modules)?;
        image::pack(&self.root, &modules, &guest.archive)?;
        Ok(guest)
    }

    /// Keeps what a guest wrote, and adds its tests.
    fn count(&self, guest: &Guest, output: &Output, counts: &mut Counts) -> Result<()> {
        let Output { tests, console } = output;
        let log = self.directory.join(format!("{}.log", guest.release));
        fs::write(&log, format!("{tests}\n--- console:\n{console}"))
            .with_context(|| format!("cannot write {}", log.display()))?;
        let mut here = Counts::default();
        let result = results::count(tests, RUNS, &mut here);
        println!(
            "kernel {}: {here}; its output is in {}",
            guest.release,
            log.display()
        );
        for name in &mut here.failures {
            *name = format!("{name} (kernel {})", guest.release);
        }
        counts.add(here);
        if result.is_err() {
            println!("the end of its console:\n{}", tail(console));
        }
        result
    }
}

/// A machine that is ready to be started.
struct Guest {
    release: &'static str,
    image: PathBuf,
    archive: PathBuf,
    console: PathBuf,
}

/// What a guest wrote: its tests, and its kernel.
struct Output {
    tests: String,
    console: String,
}

impl Guest {
    /// All at the same time; what they say is shown as it comes, each line with its kernel.
    fn run_all(guests: &[Self]) -> Vec<Result<Output>> {
        thread::scope(|scope| {
            let running: Vec<_> = guests
                .iter()
                .map(|guest| scope.spawn(|| guest.run()))
                .collect();
            running
                .into_iter()
                .map(|guest| {
                    guest
                        .join()
                        .unwrap_or_else(|_panic| bail!("what reads its output panicked"))
                })
                .collect()
        })
    }

    fn run(&self) -> Result<Output> {
        let (image, archive) = (text(&self.image)?, text(&self.archive)?);
        let command = Command::new("timeout", ["--foreground", "--kill-after=5", BOOT_LIMIT])
            .args(QEMU.split_whitespace())
            .args(["-kernel", image, "-initrd", archive])
            .args([
                "-append",
                &format!("{KERNEL_LINE} PROXYMUX_VM_KERNEL={}", self.release),
            ])
            .args(["-serial", &format!("file:{}", text(&self.console)?)])
            .args(["-serial", "stdio"]);
        let (status, tests) = command.run_keeping_output(&format!("{} | ", self.release))?;
        let console = fs::read(&self.console)
            .with_context(|| format!("cannot read {}", self.console.display()))?;
        if !status.success() {
            // What it said until then says more than the code, and is looked at by the caller.
            println!(
                "{} | qemu ended with {status}; 124 means that {BOOT_LIMIT} were not enough",
                self.release
            );
        }
        Ok(Output {
            tests,
            console: String::from_utf8_lossy(&console).into_owned(),
        })
    }
}

/// The last lines of a text.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.len().saturating_sub(TAIL_LINES);
    lines.get(start..).unwrap_or_default().join("\n")
}

/// A boot takes 5 to 15 seconds, the tests some three minutes, and more on a busy machine.
const BOOT_LIMIT: &str = "900s";

/// No devices but two serial ports: the first is the kernel's, the second the tests'. A guest
/// that restarts ends instead.
///
/// Both processors of a guest take turns in one thread. With a thread for each, one of them can
/// run into an instruction that the other is just replacing, and the guest's kernel dies of it
/// ("Oops: int3" in `tc_run`): attaching and detaching a program under traffic does that within
/// seconds to 6.12 in qemu 7.2, and a run of these tests ended with a panic at such a moment. In
/// turns it was not seen.
const QEMU: &str = "qemu-system-x86_64 -accel tcg,thread=single -machine pc -cpu max -smp 2 \
                    -m 1024 -nodefaults -no-user-config -display none -no-reboot";

/// A variable that the kernel does not know goes into the environment of the first process.
const KERNEL_LINE: &str = "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off \
                           random.trust_cpu=on";

const TAIL_LINES: usize = 60;
