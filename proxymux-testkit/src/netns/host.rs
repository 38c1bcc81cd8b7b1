//! One simulated machine: its addresses, its links, and ways to run things on it.
//!
//! Programs go through [`Host::command`], in-process servers and clients through [`Host::run`]
//! and [`Host::block_on`]. A `Host` is a cheap handle; it is good for as long as the
//! [`Topology`](super::Topology) that made it exists.

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    panic,
    path::PathBuf,
    process::Command,
    sync::Arc,
    thread,
};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use super::{
    HostRuntime, Running, command,
    plan::{HostPlan, Interface},
    runtime, sweep,
};

/// A machine of a topology.
#[derive(Clone, Debug)]
pub struct Host {
    plan: Arc<HostPlan>,
}

impl Host {
    pub(super) fn new(plan: &HostPlan) -> Self {
        Self {
            plan: Arc::new(plan.clone()),
        }
    }

    /// What it is called in its topology: `master`, `router`, `node`; `node0` where there are
    /// several.
    pub fn name(&self) -> &str {
        &self.plan.name
    }

    /// The namespace's name as `ip netns` knows it.
    pub fn namespace(&self) -> &str {
        &self.plan.namespace
    }

    /// The name of its interface: `ens3` on a node, `eth0` on a master, `wan` on the router.
    pub fn interface(&self) -> &'static str {
        self.main_interface().name
    }

    /// The IPv4 address on [`Host::interface`].
    pub fn ipv4(&self) -> Ipv4Addr {
        self.main_interface().ipv4
    }

    /// The IPv6 address on [`Host::interface`].
    pub fn ipv6(&self) -> Ipv6Addr {
        self.main_interface().ipv6
    }

    /// Both addresses, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.ipv4().into(), self.ipv6().into()]
    }

    /// The line a person types to get a shell on this host.
    pub fn enter_hint(&self) -> String {
        format!("sudo ip netns exec {} bash", self.namespace())
    }

    /// A command that will run on this host, with a `/sys` that shows this host's interfaces.
    ///
    /// `ip netns exec` becomes the program, so the child's process id is the program's own.
    /// The program has a mount namespace of its own in which what was mounted below `/sys`
    /// (bpffs, cgroups) is not there; see [`Host::command_with_outer_mounts`].
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", self.namespace()])
            .arg(program);
        command
    }

    /// Like [`Host::command`], but only the network is the host's: all mounts are the outer
    /// ones, so that something pinned in bpffs outlives the program. `/sys/class/net` then shows
    /// the outer interfaces.
    pub fn command_with_outer_mounts(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        let mut network = std::ffi::OsString::from("--net=");
        network.push(self.namespace_path());
        command.arg(network).arg("--").arg(program);
        command
    }

    /// [`Host::command`] for tokio.
    pub fn tokio_command(&self, program: impl AsRef<std::ffi::OsStr>) -> tokio::process::Command {
        self.command(program).into()
    }

    /// Starts a thread inside this host with a single-threaded runtime, and on it `start`.
    ///
    /// What `start` returns is handed back once it is there: a server is listening when `run`
    /// returns. Tasks it spawned go on until the returned [`Running`] is dropped, which joins
    /// the thread.
    ///
    /// # Errors
    ///
    /// The namespace could not be entered, or `start` failed.
    pub fn run<T, F, S>(&self, start: S) -> Result<Running<T>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>>,
        S: FnOnce() -> F + Send + 'static,
    {
        runtime::start(self, start)
    }

    /// A thread inside this host with a single-threaded runtime, to spawn tasks on.
    ///
    /// # Errors
    ///
    /// The namespace could not be entered.
    pub fn runtime(&self) -> Result<HostRuntime> {
        Ok(self.run(|| async { Ok(()) })?.into_runtime())
    }

    /// Runs `future` to its end on a thread inside this host, on a runtime of its own.
    ///
    /// # Panics
    ///
    /// When the future panics, or the namespace cannot be entered because the topology is gone.
    #[expect(clippy::panic, reason = "a panic is how a test fails")]
    pub fn block_on<F>(&self, future: F) -> F::Output
    where
        F: Future + Send,
        F::Output: Send,
    {
        let on_thread = || match self.enter_with_runtime() {
            Ok(runtime) => runtime.block_on(future),
            Err(error) => panic!("{error:#}"),
        };
        thread::scope(|scope| {
            thread::Builder::new()
                .name(self.name().to_owned())
                .spawn_scoped(scope, on_thread)
                .expect("the system has room for one more thread")
                .join()
                .unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }

    /// Runs `ip` with these arguments on this host and returns what it printed.
    ///
    /// # Errors
    ///
    /// `ip` failed; the error holds what it said.
    pub fn ip(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("ip");
        command.args(["-n", self.namespace()]).args(arguments);
        command::run(&mut command, "")
    }

    /// Runs `tc` with these arguments on this host and returns what it printed.
    ///
    /// # Errors
    ///
    /// `tc` failed; the error holds what it said.
    pub fn tc(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("tc");
        command.args(["-n", self.namespace()]).args(arguments);
        command::run(&mut command, "")
    }

    /// Applies an nftables ruleset on this host, in one transaction.
    ///
    /// # Errors
    ///
    /// `nft` failed; the error holds what it said.
    pub fn nft(&self, ruleset: &str) -> Result<()> {
        command::run(self.command("nft").args(["-f", "-"]), ruleset)
            .map(drop)
            .with_context(|| format!("ruleset for {}:\n{ruleset}", self.name()))
    }

    /// Sets a network setting of this host, `net.ipv4.ip_forward` for example.
    ///
    /// # Errors
    ///
    /// It starts with something else than `net.` (other settings are the whole machine's), there
    /// is no such setting, or it refuses the value.
    pub fn sysctl(&self, setting: &str, value: &str) -> Result<()> {
        self.sysctls(&[(setting, value)])
    }

    /// Limits what this host sends on its interface to `rate` (as `tc` writes it: `2mbit`), like
    /// a slow uplink: the rest queues for up to 100 ms and is then dropped.
    ///
    /// # Errors
    ///
    /// `tc` failed.
    pub fn limit_uplink(&self, rate: &str) -> Result<()> {
        let shape = [
            "root", "tbf", "rate", rate, "burst", "32k", "latency", "100ms",
        ];
        let mut arguments = vec!["qdisc", "replace", "dev", self.interface()];
        arguments.extend(shape);
        self.tc(&arguments).map(drop)
    }

    /// Takes the host's own interface down, as `ip link set down` does.
    ///
    /// # Errors
    ///
    /// `ip` failed.
    pub fn link_down(&self) -> Result<()> {
        self.ip(&["link", "set", self.interface(), "down"])
            .map(drop)
    }

    /// Brings the host's own interface up again, with the addresses and routes it had: the
    /// kernel forgets the default routes when a link goes down.
    ///
    /// # Errors
    ///
    /// `ip` failed.
    pub fn link_up(&self) -> Result<()> {
        let interface = self.main_interface();
        let mut lines = vec![format!("link set {} up", interface.name)];
        lines.extend(interface.addressing());
        command::ip_batch(Some(self.namespace()), &lines)
    }

    pub(super) fn configure(&self) -> Result<()> {
        self.sysctls(COMMON_SYSCTLS)?;
        // A router asks for its neighbours' IPv6 addresses from its link-local one, which is of
        // no use to it in its first second unless it skips duplicate address detection.
        for interface in &self.plan.interfaces {
            self.sysctl(&format!("net.ipv6.conf.{}.accept_dad", interface.name), "0")?;
        }
        if self.plan.forwards {
            self.sysctls(FORWARDING_SYSCTLS)?;
        }
        command::ip_batch(Some(self.namespace()), &self.plan.configuration())
    }

    /// Puts the calling thread into the namespace and makes it a runtime. The thread cannot leave
    /// again, hence never a thread that somebody else uses.
    pub(super) fn enter_with_runtime(&self) -> Result<tokio::runtime::Runtime> {
        self.enter()?;
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot make a runtime")
    }

    fn enter(&self) -> Result<()> {
        let path = self.namespace_path();
        let file = File::open(&path)
            .with_context(|| format!("cannot open namespace {}", path.display()))?;
        setns(file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter namespace {}", path.display()))
    }

    /// `/proc/sys/net` shows each thread the settings of its own namespace.
    fn sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        let write = || {
            self.enter()?;
            settings.iter().try_for_each(|(setting, value)| {
                let path = sysctl_path(setting)?;
                fs::write(&path, value)
                    .with_context(|| format!("cannot set {setting} to {value:?}"))
            })
        };
        thread::scope(|scope| {
            scope
                .spawn(write)
                .join()
                .unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }

    fn namespace_path(&self) -> PathBuf {
        sweep::mount_path(self.namespace())
    }

    fn main_interface(&self) -> &Interface {
        self.plan
            .interfaces
            .first()
            .expect("every host of a plan has an interface")
    }
}

fn sysctl_path(setting: &str) -> Result<PathBuf> {
    let name = setting
        .strip_prefix("net.")
        .filter(|name| !name.contains('/'))
        .ok_or_else(|| anyhow!("setting {setting}: expected one below net."))?;
    Ok(PathBuf::from("/proc/sys/net").join(name.replace('.', "/")))
}

/// A new namespace copies some settings from the outer one, which may be anything.
const COMMON_SYSCTLS: &[(&str, &str)] = &[
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    ("net.ipv6.conf.all.disable_ipv6", "0"),
    ("net.ipv6.conf.default.disable_ipv6", "0"),
    ("net.ipv6.conf.all.keep_addr_on_down", "1"),
    ("net.ipv6.conf.default.keep_addr_on_down", "1"),
];

const FORWARDING_SYSCTLS: &[(&str, &str)] = &[
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv6.conf.all.forwarding", "1"),
    ("net.ipv6.conf.default.forwarding", "1"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_network_settings_can_be_written() {
        let path = sysctl_path("net.ipv6.conf.all.forwarding").expect("a network setting");
        assert_eq!(
            path,
            PathBuf::from("/proc/sys/net/ipv6/conf/all/forwarding")
        );
        assert!(sysctl_path("kernel.panic").is_err());
        assert!(sysctl_path("net.ipv4/../../kernel/panic").is_err());
    }
}
