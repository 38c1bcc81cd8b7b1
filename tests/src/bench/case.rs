//! The ways that are compared, and the machines for each.
//!
//! Owns the table of [`CASES`]: a new way is a row there. Each case has machines of its own with a
//! far end and a client ([`Stage`]), and daemons or bare hops only if it is about them; all stand at
//! the same time, and only one is used at a time. All have the same topology, so that the ways
//! differ in nothing else.

use std::{
    env,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use proxymux_testkit::{
    apiserver::{ApiServer, FrontDoor},
    cluster::Cluster,
    kubelet::{Kubelet, KubeletConfig},
    netns::{HostRuntime, Reach, Running},
    process::Daemon,
};
use proxymux_transport::config_file::values::AdminAddr;
use tokio::time::sleep;

use super::{client::Client, far_end::FarEnd, kernel_memory::KernelMemory};
use crate::{
    admin::{at_agent, at_master, scrape},
    limits::{SOON, within},
};

/// One way from the client to the far end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    /// As it stands in the results.
    pub(super) name: &'static str,
    /// What it is, for whoever reads the results.
    pub(super) what: &'static str,
    pub(super) way: Way,
}

/// What is between the client and the far end.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// Nothing: the client dials the far end itself.
    Plain,
    /// Two bare hops where the daemons would be.
    Hops,
    /// The daemons.
    Daemons(Tunnel),
}

/// One way through the daemons.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tunnel {
    /// What access logs and metrics call the path that the case is about.
    pub(super) path: &'static str,
    pub(super) through: Through,
    /// Lines of the configurations that leave no other path.
    master: &'static str,
    agent: &'static str,
}

/// Which daemons a case's bytes go through.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Through {
    /// Both; the client asks at the master's front door.
    Both,
    /// The agent's; the client dials the node.
    Agent,
}

/// In the order in which they take turns. The first is the limit that the others are held against.
pub(super) const CASES: &[Case] = &[
    Case {
        name: PLAIN_TCP,
        what: "the client dials the far end through the router; no daemon",
        way: Way::Plain,
    },
    Case {
        name: SPLICE_FLOOR,
        what: "two bare splice hops where the daemons would be, without any protocol",
        way: Way::Hops,
    },
    Case {
        name: USERSPACE,
        what: "the session path with `mode: userspace`: no eBPF, no splice, no flows",
        way: Way::Daemons(Tunnel {
            path: "session",
            through: Through::Both,
            master: "fast-path: off",
            agent: "mode: userspace\nfast-path: off",
        }),
    },
    Case {
        name: SESSION,
        what: "the session path with `mode: auto`, so with eBPF on the NIC",
        way: Way::Daemons(Tunnel {
            path: "session",
            through: Through::Both,
            master: "fast-path: off",
            agent: "fast-path: off",
        }),
    },
    Case {
        name: REVERSE_COPY,
        what: "as `reverse`, but both daemons read and write (`splice: off`)",
        way: Way::Daemons(Tunnel {
            path: "reverse",
            through: Through::Both,
            master: "kubelet-certificates: verified\ndirect: off\nflow-pool: 64\nsplice: off",
            agent: "splice: off",
        }),
    },
    Case {
        name: REVERSE,
        what: "by flows that the agent has dialled and keeps ready (`flow-pool: 64`, so that one \
               always is)",
        way: Way::Daemons(Tunnel {
            path: "reverse",
            through: Through::Both,
            master: "kubelet-certificates: verified\ndirect: off\nflow-pool: 64",
            agent: "fast-path: auto",
        }),
    },
    Case {
        name: DIRECT,
        what: "by flows that the master dials to the kubelet's port, where steering takes them",
        way: Way::Daemons(Tunnel {
            path: "direct",
            through: Through::Both,
            master: "kubelet-certificates: verified",
            agent: "mode: ebpf",
        }),
    },
    Case {
        name: STEERED_PLAIN,
        what: "the client dials the node as in `plain-tcp`, steering gives it to the agent",
        way: Way::Daemons(Tunnel {
            path: "steered",
            through: Through::Agent,
            master: "fast-path: off",
            agent: "mode: ebpf\nfast-path: off",
        }),
    },
];

pub(super) const PLAIN_TCP: &str = "plain-tcp";
pub(super) const SPLICE_FLOOR: &str = "splice-floor";
pub(super) const USERSPACE: &str = "userspace";
pub(super) const SESSION: &str = "session";
pub(super) const REVERSE_COPY: &str = "reverse-copy";
pub(super) const REVERSE: &str = "reverse";
pub(super) const DIRECT: &str = "direct";
pub(super) const STEERED_PLAIN: &str = "steered-plain";

/// A case with everything that it needs, running.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) case: Case,
    // Dropped in this order: the client, what is between, the far end, the machines.
    client: HostRuntime,
    hops: Option<Hops>,
    far_end: Option<Running<FarEnd>>,
    kubelet: Option<Running<Kubelet>>,
    cluster: Cluster,
}

/// The two hops of a case without daemons.
#[derive(Debug)]
struct Hops {
    near: Daemon,
    far: Daemon,
}

impl Case {
    /// Whether its connections have a flow each.
    pub(super) fn has_flows(&self) -> bool {
        [REVERSE_COPY, REVERSE, DIRECT].contains(&self.name)
    }

    /// How the case's bytes go through the daemons, if they do.
    pub(super) fn tunnel(&self) -> Option<Tunnel> {
        match self.way {
            Way::Plain | Way::Hops => None,
            Way::Daemons(tunnel) => Some(tunnel),
        }
    }
}

impl Stage {
    /// Makes the machines and starts what the case needs. Blocks until it is up.
    pub(super) fn set(case: Case) -> Result<Self> {
        // Routed, so that the limit and the tunnel go through the same router and links.
        let builder = Cluster::builder()
            .reach(Reach::Routed)
            .verbosity("info")
            .log_files();
        let mut cluster = match case.tunnel() {
            None => builder.build()?,
            Some(tunnel) => builder
                .master_lines(tunnel.master)
                .agent_lines(tunnel.agent)
                .start()?,
        };
        cluster.stop_kubelet(NODE);
        // A kernel that still remembers an old connection with the same ports leaves a new one to
        // the kubelet. Thousands of openings within a minute, all from one address, meet that.
        cluster
            .node(NODE)
            .sysctl("net.ipv4.tcp_max_tw_buckets", "0")?;
        let hops = match case.way {
            Way::Hops => Some(Hops::start(&cluster)?),
            Way::Plain | Way::Daemons(_) => None,
        };
        let mut stage = Self {
            case,
            client: cluster.topology().master().runtime()?,
            hops,
            far_end: None,
            kubelet: None,
            cluster,
        };
        stage.start_far_end()?;
        stage.wait_until_ready()?;
        Ok(stage)
    }

    /// A case of a fast path begins when the master has what it takes: which is a moment after
    /// the session.
    fn wait_until_ready(&self) -> Result<()> {
        let wanted = match self.case.name {
            REVERSE | REVERSE_COPY => "proxymux_master_flows_idle",
            DIRECT => "proxymux_master_direct_probes_total{result=\"proven\"}",
            _ => return Ok(()),
        };
        let [master, _] = self.admin();
        let ready = async {
            loop {
                // One that is not there is not a number, and so not larger.
                if scrape(&master).await?.get(wanted) > 0.0 {
                    return anyhow::Ok(());
                }
                sleep(INTERVAL).await;
            }
        };
        let ready = within(SOON, "the fast path", ready);
        tokio::runtime::Handle::current().block_on(ready)
    }

    /// Where tasks of the client run: on the master's machine, as kube-apiserver does.
    pub(super) fn client_host(&self) -> &HostRuntime {
        &self.client
    }

    /// A client that takes this case's way.
    pub(super) fn client(&self) -> Result<Client> {
        Ok(Client {
            api: ApiServer::new(self.door())?,
            target: self.cluster.target(NODE),
        })
    }

    /// The same as kube-apiserver, which speaks TLS to the kubelet.
    pub(super) fn tls_client(&self) -> Result<Client> {
        let pki = self.cluster.pki();
        let certificate = pki.apiserver_kubelet_client()?;
        let api = ApiServer::new(self.door())?.with_kubelet_client(pki.ca_file(), &certificate)?;
        Ok(Client {
            api,
            target: self.cluster.target(NODE),
        })
    }

    /// Puts a kubelet in the far end's place, with a log of so many lines.
    pub(super) fn start_kubelet(&mut self, lines: u64) -> Result<()> {
        self.far_end = None;
        let host = self.cluster.node(NODE).clone();
        let (pki, name) = (self.cluster.pki(), self.cluster.node_name(NODE));
        let serving = pki.kubelet_serving(&name, &host.addresses())?;
        let listen = (Ipv4Addr::UNSPECIFIED, KUBELET_PORT).into();
        let mut config = KubeletConfig::new(listen, serving, pki.ca_file());
        config.log_history = lines;
        config.log_line_length = LOG_LINE - 1;
        config.metrics_bytes = 0;
        self.kubelet = Some(host.run(|| Kubelet::start(config))?);
        Ok(())
    }

    /// Puts the far end in the kubelet's place.
    pub(super) fn start_far_end(&mut self) -> Result<()> {
        self.kubelet = None;
        let far_end = self.cluster.node(NODE).run(|| FarEnd::start(KUBELET_PORT));
        self.far_end = Some(far_end?);
        Ok(())
    }

    /// Nothing while a kubelet is in its place.
    pub(super) fn far_end(&self) -> Option<&FarEnd> {
        self.far_end.as_deref()
    }

    /// From where the far end is dialled if the case is what it says.
    pub(super) fn dialled_from(&self) -> IpAddr {
        match self.case.way {
            Way::Plain => self.cluster.topology().master().ipv4().into(),
            Way::Hops | Way::Daemons(_) => self.cluster.node(NODE).ipv4().into(),
        }
    }

    /// From where a master asks in the background whether it reaches the agent, which the kernel
    /// leaves to the kubelet while it still remembers an old connection with the same ports.
    pub(super) fn probed_from(&self) -> Option<IpAddr> {
        let master = || self.cluster.topology().master().ipv4().into();
        (self.case.name == DIRECT).then(master)
    }

    /// The daemons, if the case has any.
    pub(super) fn daemons(&self) -> Option<Daemons<'_>> {
        self.case.tunnel()?;
        let (master, agent) = self.cluster.daemons(MASTER, NODE)?;
        Some(Daemons { master, agent })
    }

    /// What is between client and far end: the daemons, or the hops in their places.
    pub(super) fn between(&self) -> Option<Daemons<'_>> {
        let hops = self.hops.as_ref().map(|hops| Daemons {
            master: &hops.near,
            agent: &hops.far,
        });
        hops.or_else(|| self.daemons())
    }

    /// What the kernel holds for master and agent.
    pub(super) fn kernel_memory(&self) -> Result<[KernelMemory; 2]> {
        let daemons = self.daemons().context("the case has daemons")?;
        let [master, agent] = daemons.both().map(Daemon::pid);
        Ok([
            KernelMemory::of(self.cluster.topology().master(), master)?,
            KernelMemory::of(self.cluster.node(NODE), agent)?,
        ])
    }

    /// Where master and agent are asked for their metrics.
    pub(super) fn admin(&self) -> [AdminAddr; 2] {
        [at_master(&self.cluster), at_agent(&self.cluster, NODE)]
    }

    fn door(&self) -> FrontDoor {
        match self.case.way {
            Way::Hops => FrontDoor::Bare(Hops::socket(&self.cluster)),
            Way::Daemons(tunnel) if tunnel.through == Through::Both => {
                FrontDoor::Unix(self.cluster.socket(MASTER))
            }
            Way::Plain | Way::Daemons(_) => FrontDoor::Transparent,
        }
    }
}

impl Hops {
    fn start(cluster: &Cluster) -> Result<Self> {
        let program = beside(PROGRAM)?;
        let start = |name, from: String, to: String| {
            let host = match name {
                "far" => cluster.node(NODE),
                _ => cluster.topology().master(),
            };
            let mut command = host.command(&program);
            command.args([from, to]);
            let log = cluster.dir().join(format!("{name}-hop.log"));
            let mut hop = Daemon::spawn_logging_to(format!("{name} hop"), command, &log)?;
            hop.wait_for_line("listening", SOON)?;
            anyhow::Ok(hop)
        };
        let middle = format!("{}:{HOP_PORT}", cluster.node_name(NODE));
        let far = start("far", middle.clone(), cluster.target(NODE))?;
        let socket = Self::socket(cluster).display().to_string();
        let near = start("near", socket, middle)?;
        Ok(Self { near, far })
    }

    fn socket(cluster: &Cluster) -> PathBuf {
        cluster.dir().join("hop.sock")
    }
}

/// Both ends of a case's tunnel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Daemons<'a> {
    pub(super) master: &'a Daemon,
    pub(super) agent: &'a Daemon,
}

impl<'a> Daemons<'a> {
    pub(super) fn both(self) -> [&'a Daemon; 2] {
        [self.master, self.agent]
    }

    /// Processor time of each since its start, in the order of [`Daemons::both`].
    pub(super) fn cpu(self) -> Result<[Duration; 2]> {
        let [master, agent] = self.both().map(Daemon::usage);
        Ok([master?.cpu, agent?.cpu])
    }
}

/// A program that is built together with the bench.
pub(super) fn beside(program: &str) -> Result<PathBuf> {
    let bench = env::current_exe().context("cannot say where the bench is")?;
    let program = bench.with_file_name(program);
    ensure!(
        program.is_file(),
        "{} is not there: start the bench as `cargo xtask bench`, which builds it",
        program.display()
    );
    Ok(program)
}

/// The only one.
const NODE: usize = 0;
const MASTER: usize = 0;

/// The far end stands in the kubelet's place, where an agent may dial without being told.
const KUBELET_PORT: u16 = 10250;

/// Of a line of the kubelet's log, its end included.
pub(super) const LOG_LINE: usize = 200;

/// Where the far hop listens.
const HOP_PORT: u16 = 10251;

const PROGRAM: &str = "proxymux-splice-hop";

const INTERVAL: Duration = Duration::from_millis(20);
