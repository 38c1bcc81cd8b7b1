//! The ways that are compared, and the machines for each.
//!
//! Owns the table of [`CASES`]: a new way is a row there. Each case has machines of its own with a
//! far end and a client ([`Stage`]), and daemons only if it is about them; all stand at the same
//! time, and only one is used at a time.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use anyhow::Result;
use proxymux_testkit::{
    apiserver::{ApiServer, FrontDoor},
    cluster::Cluster,
    netns::{HostRuntime, Reach, Running},
    process::Daemon,
};

use super::{client::Client, far_end::FarEnd};

/// One way from the client to the far end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    /// As it stands in the results.
    pub(super) name: &'static str,
    /// `None` where the client dials the far end itself and no daemon runs.
    pub(super) tunnel: Option<Way>,
}

/// One way through the daemons.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    /// What both access logs call the path that the case is about.
    pub(super) path: &'static str,
    /// Lines of both daemons' configurations that leave no other path.
    lines: &'static str,
}

/// In the order in which they take turns. The first is the limit that the others are held against.
pub(super) const CASES: &[Case] = &[
    Case {
        name: PLAIN_TCP,
        tunnel: None,
    },
    Case {
        name: SESSION,
        tunnel: Some(Way {
            path: "session",
            lines: "fast-path: off",
        }),
    },
];

pub(super) const PLAIN_TCP: &str = "plain-tcp";
pub(super) const SESSION: &str = "session";

/// A case with everything that it needs, running.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) case: Case,
    // Dropped in this order: the client, the far end, the machines.
    client: HostRuntime,
    far_end: Running<FarEnd>,
    cluster: Cluster,
}

impl Stage {
    /// Makes the machines and starts what the case needs. Blocks until it is up.
    pub(super) fn set(case: Case) -> Result<Self> {
        // Routed, so that the limit and the tunnel go through the same router and links.
        let builder = Cluster::builder()
            .reach(Reach::Routed)
            .verbosity("info")
            .log_files();
        let mut cluster = match case.tunnel {
            None => builder.build()?,
            Some(way) => builder
                .master_lines(way.lines)
                .agent_lines(way.lines)
                .start()?,
        };
        cluster.stop_kubelet(NODE);
        let far_end = cluster.node(NODE).run(|| FarEnd::start(KUBELET_PORT))?;
        Ok(Self {
            case,
            client: cluster.topology().master().runtime()?,
            far_end,
            cluster,
        })
    }

    /// Where tasks of the client run: on the master's machine, as kube-apiserver does.
    pub(super) fn client_host(&self) -> &HostRuntime {
        &self.client
    }

    /// A client that takes this case's way.
    pub(super) fn client(&self) -> Result<Client> {
        let door = match self.case.tunnel {
            None => FrontDoor::Transparent,
            Some(_) => FrontDoor::Unix(self.front_door()),
        };
        Ok(Client {
            api: ApiServer::new(door)?,
            target: self.cluster.target(NODE),
        })
    }

    pub(super) fn far_end(&self) -> &FarEnd {
        &self.far_end
    }

    /// From where the far end is dialled if the case is what it says.
    pub(super) fn dialled_from(&self) -> IpAddr {
        match self.case.tunnel {
            None => self.cluster.topology().master().ipv4().into(),
            Some(_) => self.cluster.node(NODE).ipv4().into(),
        }
    }

    /// The daemons, if the case has any.
    pub(super) fn daemons(&self) -> Option<Daemons<'_>> {
        self.case.tunnel?;
        let (master, agent) = self.cluster.daemons(MASTER, NODE)?;
        Some(Daemons { master, agent })
    }

    fn front_door(&self) -> PathBuf {
        self.cluster.socket(MASTER)
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

/// The only one.
const NODE: usize = 0;
const MASTER: usize = 0;

/// The far end stands in the kubelet's place, where an agent may dial without being told.
const KUBELET_PORT: u16 = 10250;
