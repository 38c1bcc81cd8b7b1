//! Installs what the other verbs need, and nothing that is there already.
//!
//! [`tools::TOOLS`] says what is needed and for which [`Job`]; [`Machine`] is everything this
//! module asks of the computer, so that tests can stand in for one. A tool is looked for by its
//! program or library, never by asking a package manager: a second run takes milliseconds.
//! Where we cannot install (not root, no apt-get, no network) the error holds the commands to type.

mod machine;
#[cfg(test)]
mod tests;
mod tools;

use anyhow::{Result, bail};

pub(crate) use machine::ThisMachine;
use tools::{Source, TOOLS, Tool};

use crate::command::Command;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {}

pub(crate) fn run(_options: &Options) -> Result<()> {
    ensure(&Job::ALL, &ThisMachine)?;
    println!("everything that the verbs need is there");
    Ok(())
}

/// What a tool is needed for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Job {
    Demo,
    Check,
    Unit,
    Netns,
    Fuzz,
    Vm,
    Build,
}

impl Job {
    const ALL: [Self; 7] = [
        Self::Demo,
        Self::Check,
        Self::Unit,
        Self::Netns,
        Self::Fuzz,
        Self::Vm,
        Self::Build,
    ];
}

/// What set-up asks of the computer.
pub(crate) trait Machine {
    /// Whether `name` is in one of the directories where programs are looked for.
    fn has_program(&self, name: &str) -> bool;
    /// Whether `name` belongs to the Rust toolchain in use; rustup leaves a program of that name
    /// in the search path even where the component is not installed.
    fn toolchain_has_program(&self, name: &str) -> bool;
    /// Whether a library, as `directory/file`, is in one of the directories where packages put them.
    fn has_library(&self, name: &str) -> bool;
    /// The version of an installed cargo subcommand, `None` where it is missing.
    fn cargo_tool_version(&self, name: &str) -> Option<String>;
    /// The number of the LLVM in the Rust that can build for eBPF, `None` if there is no such Rust.
    fn ebpf_llvm(&self) -> Option<u32>;
    fn has_package_lists(&self) -> bool;
    fn is_root(&self) -> bool;
    fn run(&self, command: &Command) -> Result<()>;
    fn say(&self, line: &str);
}

/// Installs what is missing for `jobs`; says what and why first.
///
/// # Errors
///
/// Something is missing and could not be installed. The text holds the commands to type.
pub(crate) fn ensure(jobs: &[Job], machine: &impl Machine) -> Result<()> {
    let missing: Vec<&Tool> = TOOLS
        .iter()
        .filter(|tool| tool.jobs.iter().any(|job| jobs.contains(job)))
        .filter(|tool| !tool.is_installed(machine))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    for tool in &missing {
        let (name, source) = (tool.program, tool.source.describe(machine));
        machine.say(&format!(
            "missing: {name} ({source}), needed to {}",
            tool.purpose
        ));
    }
    Plan::new(&missing, machine).refuse_the_impossible(machine)?;
    // Which packages the linker needs is known for certain once the rest is there.
    let (last, first): (Vec<&Tool>, Vec<&Tool>) = missing
        .iter()
        .partition(|tool| matches!(tool.source, Source::BpfLinker));
    for stage in [first, last] {
        Plan::new(&stage, machine).carry_out(machine)?;
    }
    match missing.iter().find(|tool| !tool.is_installed(machine)) {
        None => Ok(()),
        Some(tool) => bail!(
            "installed {}, yet there is no {}",
            tool.source.describe(machine),
            tool.program
        ),
    }
}

/// The commands that install what is missing, in order.
struct Plan {
    packages: Vec<String>,
    others: Vec<Command>,
}

impl Plan {
    fn new(missing: &[&Tool], machine: &impl Machine) -> Self {
        Self {
            packages: missing
                .iter()
                .flat_map(|tool| tool.source.packages(machine))
                .collect(),
            others: missing
                .iter()
                .filter_map(|tool| tool.source.command(machine))
                .collect(),
        }
    }

    /// Fails before anything is changed if the packages cannot be installed from here.
    fn refuse_the_impossible(&self, machine: &impl Machine) -> Result<()> {
        if self.packages.is_empty() {
            return Ok(());
        }
        if !machine.has_program("apt-get") {
            let mut commands = String::new();
            for command in &self.others {
                commands.push_str(&format!("\n  {command}"));
            }
            bail!(
                "no apt-get here to install packages with; by this system's own means install what \
                 Debian calls: {}{}{commands}",
                self.packages.join(" "),
                if self.others.is_empty() {
                    ""
                } else {
                    "\nand type:"
                },
            );
        }
        if !machine.is_root() {
            bail!(
                "only root can install packages; type:{}",
                self.to_type(true)
            );
        }
        Ok(())
    }

    fn carry_out(&self, machine: &impl Machine) -> Result<()> {
        let installed = if self.packages.is_empty() {
            Ok(())
        } else {
            self.install_packages(machine)
        };
        let result = installed.and_then(|()| {
            self.others
                .iter()
                .try_for_each(|command| machine.run(command))
        });
        match result {
            Ok(()) => Ok(()),
            Err(error) => bail!(
                "cannot install what is missing: {error:#}\nmend that, or type:{}",
                self.to_type(false)
            ),
        }
    }

    fn install_packages(&self, machine: &impl Machine) -> Result<()> {
        let install = apt_install(&self.packages);
        let had_lists = machine.has_package_lists();
        if !had_lists {
            machine.run(&apt_update())?;
        }
        match machine.run(&install) {
            // Lists that are too old name files that the mirror no longer has.
            Err(error) if had_lists => {
                machine.say(&format!("{error:#}; once more with fresh package lists"));
                machine.run(&apt_update())?;
                machine.run(&install)
            }
            result => result,
        }
    }

    /// Every command of the plan on a line of its own.
    fn to_type(&self, with_sudo: bool) -> String {
        let sudo = if with_sudo { "sudo " } else { "" };
        let mut lines = String::new();
        if !self.packages.is_empty() {
            lines.push_str(&format!("\n  {sudo}{}", apt_update()));
            lines.push_str(&format!("\n  {sudo}{}", apt_install(&self.packages)));
        }
        for command in &self.others {
            lines.push_str(&format!("\n  {command}"));
        }
        lines
    }
}

fn apt_update() -> Command {
    Command::new("apt-get", ["update"])
}

fn apt_install(packages: &[String]) -> Command {
    // A machine that has just booted may be upgrading itself: wait for its lock.
    // `env` and not our own variable, so that the line works behind sudo too.
    Command::new(
        "env",
        [
            "DEBIAN_FRONTEND=noninteractive",
            "apt-get",
            "-o",
            "DPkg::Lock::Timeout=300",
            "install",
            "-y",
            "--no-install-recommends",
        ],
    )
    .args(packages.iter().cloned())
}
