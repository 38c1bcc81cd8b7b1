//! Simulated machines: network namespaces joined by real veth links.
//!
//! A [`Topology`] owns the namespaces and removes them on drop, also while panicking; a
//! [`Host`] is one machine of it, where programs, links and in-process servers live.
//! What is inside such a program is the business of [`crate::process`].
//! Needs root, and the programs `ip` and `nft` (Debian: iproute2, nftables).

mod command;
mod host;
mod plan;
mod runtime;
mod sweep;
mod wire;

use std::{
    env, process,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use anyhow::{Context, Result, ensure};

use self::plan::{JUMBO_MTU, MASTER_MTU, Plan};
pub use self::{
    host::Host,
    plan::{MAX_MASTERS, MAX_NODES},
    runtime::{HostRuntime, Running},
};

/// Masters and nodes on two sides of a router, like a control plane and a private subnet.
///
/// ```text
///  master  eth0 192.0.2.10/24  ----(MTU 1500)---- wan   router   nodes ----(MTU 9000)---- ens3  node
///          2001:db8::10/64                 192.0.2.1     |       10.0.10.1       10.0.10.10/24
///                                          2001:db8::1   |       fd00:10::1      fd00:10::10/64
/// ```
///
/// Further nodes are 10.0.10.11, 10.0.10.12 and so on in the same subnet, further masters
/// 192.0.2.11 and so on. Whether a master can dial a node is the [`Reach`].
///
/// On drop every process that is still inside is killed and the namespaces go. A topology that
/// is dropped by a panic prints how each host is entered; with the environment variable
/// `PROXYMUX_TESTKIT_KEEP` set it is then left running for a look.
///
/// ```no_run
/// use proxymux_testkit::netns::Topology;
///
/// # fn main() -> anyhow::Result<()> {
/// let topology = Topology::new()?;
/// let links = topology.node().ip(&["-brief", "link"])?;
/// assert!(links.contains("ens3"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Topology {
    masters: Vec<Host>,
    router: Host,
    nodes: Vec<Host>,
    keep: bool,
}

/// A direction across the router.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Towards {
    /// From the nodes' side to the masters'.
    Masters,
    /// From the masters' side to the nodes'.
    Nodes,
}

/// Whether new connections get from the masters' side to the nodes' side.
///
/// What a node starts itself always gets through, in both directions.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Reach {
    /// The nodes are behind a NAT; who dials one is answered with a reset at once.
    #[default]
    Nat,
    /// The nodes are behind a NAT; what is dialled in is dropped without a word.
    SilentNat,
    /// Plain routing both ways, as in a cluster whose nodes have routable addresses.
    Routed,
}

impl Topology {
    /// One master, one node, [`Reach::Nat`].
    ///
    /// # Errors
    ///
    /// Not root, or `ip` or `nft` failed; the error holds what they printed.
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// A topology with other numbers or another reach.
    pub fn builder() -> TopologyBuilder {
        TopologyBuilder::default()
    }

    /// Removes namespaces whose process is gone, killing what still runs in them.
    ///
    /// Returns the names of what was removed. A test that was itself killed had no chance to
    /// clean up; call this before a run.
    ///
    /// # Errors
    ///
    /// A namespace could not be removed.
    pub fn sweep_leftovers() -> Result<Vec<String>> {
        sweep::leftovers()
    }

    /// Why namespaces cannot be made here, `None` where they can.
    ///
    /// A test prints the reason and returns.
    pub fn unavailable() -> Option<String> {
        if !command::is_privileged() {
            let reason = "network namespaces need root with CAP_SYS_ADMIN and CAP_NET_ADMIN";
            return Some(reason.to_owned());
        }
        ["ip", "nft"]
            .into_iter()
            .find(|program| !command::is_installed(program))
            .map(|program| format!("network namespaces need the program {program}"))
    }

    /// Leaves the namespaces running when the topology is dropped; [`Topology::sweep_leftovers`]
    /// removes them once this process is gone.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Changes whether masters can dial nodes. Connections that stand are not touched, except
    /// that a change to or from [`Reach::Routed`] changes the address new ones come from.
    ///
    /// # Errors
    ///
    /// `nft` failed.
    pub fn set_reach(&self, reach: Reach) -> Result<()> {
        self.router.nft(&plan::reach_ruleset(reach))
    }

    /// Makes the router forward packets of at most `mtu` bytes this way, as if the next link were
    /// narrower than its interface; larger ones are answered with ICMP, unless
    /// [`Topology::say_too_big`] says otherwise.
    ///
    /// # Errors
    ///
    /// `ip` failed.
    pub fn narrow(&self, towards: Towards, mtu: u16) -> Result<()> {
        for route in plan::narrow_routes(towards, mtu) {
            self.router
                .ip(&route.split(' ').collect::<Vec<_>>())
                .map(drop)?;
        }
        Ok(())
    }

    /// Takes back [`Topology::narrow`].
    ///
    /// # Errors
    ///
    /// `ip` failed.
    pub fn widen(&self, towards: Towards) -> Result<()> {
        self.narrow(towards, JUMBO_MTU)
    }

    /// Limits what the router forwards one way to `rate` (as `tc` writes it: `2mbit`), like a slow
    /// line in the middle: the rest queues for up to 200 ms and is then dropped.
    ///
    /// # Errors
    ///
    /// `tc` failed.
    pub fn shape(&self, towards: Towards, rate: &str) -> Result<()> {
        let device = towards.router_interface();
        let line =
            format!("qdisc replace dev {device} root tbf rate {rate} burst 32k latency 200ms");
        self.router
            .tc(&line.split(' ').collect::<Vec<_>>())
            .map(drop)
    }

    /// Makes the router lose so many of a hundred packets one way, at random.
    ///
    /// # Errors
    ///
    /// `nft` failed.
    pub fn lose(&self, towards: Towards, percent: u8) -> Result<()> {
        self.router.nft(&plan::loss_ruleset(towards, percent))
    }

    /// Whether the router says that a packet was too large for the next link. Many firewalls do
    /// not: they drop all ICMP.
    ///
    /// # Errors
    ///
    /// `nft` failed.
    pub fn say_too_big(&self, said: bool) -> Result<()> {
        self.router.nft(&plan::too_big_ruleset(said))
    }

    /// Makes the router drop all that `host` sends or is sent, without any sign to either end:
    /// no reset, no loss of carrier. Undone by [`Topology::restore`].
    ///
    /// Hosts on one side of the router still reach each other.
    ///
    /// # Errors
    ///
    /// `nft` failed.
    pub fn silence(&self, host: &Host) -> Result<()> {
        self.router.nft(&plan::silence_ruleset(host))
    }

    /// Lets a silenced host speak again.
    ///
    /// # Errors
    ///
    /// `nft` failed.
    pub fn restore(&self, host: &Host) -> Result<()> {
        self.router.nft(&plan::restore_ruleset(host))
    }

    /// The first (in most tests: the only) master.
    pub fn master(&self) -> &Host {
        self.masters
            .first()
            .expect("the builder makes at least one")
    }

    /// All masters, in the order of their addresses.
    pub fn masters(&self) -> &[Host] {
        &self.masters
    }

    /// What joins the two sides.
    pub fn router(&self) -> &Host {
        &self.router
    }

    /// The first (in most tests: the only) node.
    pub fn node(&self) -> &Host {
        self.nodes.first().expect("the builder makes at least one")
    }

    /// All nodes, in the order of their addresses.
    pub fn nodes(&self) -> &[Host] {
        &self.nodes
    }

    /// Every host: masters, router, nodes.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.masters.iter().chain([&self.router]).chain(&self.nodes)
    }

    /// One line per host: its name and the line a person types to enter it.
    pub fn enter_hints(&self) -> String {
        self.hosts()
            .map(|host| format!("{:<8} {}\n", host.name(), host.enter_hint()))
            .collect()
    }

    fn remove(&self) {
        for host in self.hosts() {
            if let Err(error) = sweep::remove(host.namespace()) {
                eprintln!("namespace {} was not removed: {error:#}", host.namespace());
            }
        }
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        let failed = thread::panicking();
        let keep = self.keep || (failed && env::var_os(KEEP_VARIABLE).is_some());
        if keep {
            eprintln!("left running, enter with:\n{}", self.enter_hints());
            return;
        }
        if failed {
            eprintln!(
                "the hosts of this test are removed; run it with {KEEP_VARIABLE}=1 to keep them \
                 and enter with lines like:\n{}",
                self.enter_hints()
            );
        }
        self.remove();
    }
}

/// Numbers and reach of a [`Topology`] to be made.
#[derive(Clone, Copy, Debug)]
pub struct TopologyBuilder {
    masters: u8,
    nodes: u8,
    reach: Reach,
    master_mtu: u16,
}

impl TopologyBuilder {
    /// How many masters, 1 to [`MAX_MASTERS`].
    pub fn masters(mut self, masters: u8) -> Self {
        self.masters = masters;
        self
    }

    /// How many nodes, 1 to [`MAX_NODES`].
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    /// Whether masters can dial nodes.
    pub fn reach(mut self, reach: Reach) -> Self {
        self.reach = reach;
        self
    }

    /// Gives the masters' side links as wide as the nodes', with an MTU of 9000.
    pub fn jumbo(mut self) -> Self {
        self.master_mtu = JUMBO_MTU;
        self
    }

    /// Makes the namespaces and links.
    ///
    /// # Errors
    ///
    /// A number out of range, not root, or `ip` or `nft` failed.
    pub fn build(self) -> Result<Topology> {
        let Self {
            masters,
            nodes,
            reach,
            master_mtu,
        } = self;
        ensure!(
            (1..=MAX_MASTERS).contains(&masters),
            "{masters} masters asked for, expected 1 to {MAX_MASTERS}"
        );
        ensure!(
            (1..=MAX_NODES).contains(&nodes),
            "{nodes} nodes asked for, expected 1 to {MAX_NODES}"
        );
        if let Some(reason) = Topology::unavailable() {
            anyhow::bail!(reason);
        }
        let plan = Plan::new(&unique_prefix(), masters, nodes, master_mtu);
        sweep::remove_stale(&plan)?;
        // From here on the topology's own drop removes what a failing step leaves behind.
        let topology = Topology {
            masters: plan.masters.iter().map(Host::new).collect(),
            router: Host::new(&plan.router),
            nodes: plan.nodes.iter().map(Host::new).collect(),
            keep: false,
        };
        command::ip_batch(None, &plan.creation()).context("cannot make namespaces and links")?;
        for host in topology.hosts() {
            host.configure()
                .with_context(|| format!("cannot configure host {}", host.name()))?;
        }
        topology.set_reach(reach)?;
        Ok(topology)
    }
}

impl Default for TopologyBuilder {
    fn default() -> Self {
        Self {
            masters: 1,
            nodes: 1,
            reach: Reach::default(),
            master_mtu: MASTER_MTU,
        }
    }
}

/// Tests run as processes in parallel, and as threads in one process: hence both numbers.
fn unique_prefix() -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{}{}-{count}", sweep::PREFIX, process::id())
}

const KEEP_VARIABLE: &str = "PROXYMUX_TESTKIT_KEEP";
