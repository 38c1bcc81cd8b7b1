//! One master, one node with a healthy agent and a user, and the machine of another node on which
//! there is no agent: from there the test itself comes to the master.
//!
//! [`Stage`] also keeps count of what the master's log complained about, so that a test which has
//! waited for each complaint can ask in the end whether there was another one.

use std::{collections::HashSet, net::SocketAddr};

use anyhow::{Context, Result};
use proxymux_testkit::{
    cluster::{Cluster, ClusterBuilder},
    netns::Host,
    pki::CertFiles,
    process::LogEvent,
};
use proxymux_tests::{
    bystander::Bystander,
    events::{complaints, since, wait_for},
    limits::SOON,
    rogue::{RogueHost, RogueSession},
};
use tokio::net::TcpStream;

/// A healthy node with a user, and the machine of another from which strangers come.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) bystander: Bystander,
    pub(crate) host: RogueHost,
    pub(crate) master: SocketAddr,
    /// How many lines of the master's log have been dealt with.
    read: usize,
    /// How many warnings were waited for.
    troubles: usize,
    /// What they were: message and words.
    told: HashSet<(String, String)>,
}

impl Stage {
    pub(crate) async fn new() -> Result<Self> {
        Self::with(Cluster::builder().nodes(2)).await
    }

    /// A stage whose cluster has something special.
    pub(crate) async fn with(builder: ClusterBuilder) -> Result<Self> {
        let mut cluster = builder.build()?;
        cluster.start_master(0)?;
        cluster.start_agent(0)?;
        cluster.wait_for_sessions()?;
        let bystander = Bystander::of_node(&mut cluster, 0).await?;
        Ok(Self {
            host: RogueHost::on(&cluster, cluster.node(1))?,
            master: cluster.master_addr(0).parse()?,
            read: cluster.master(0).mark(),
            troubles: 0,
            told: HashSet::new(),
            cluster,
            bystander,
        })
    }

    pub(crate) async fn connect(&self) -> Result<TcpStream> {
        self.host.connect(self.master).await
    }

    /// A session with the certificate of the node that has no agent, not registered yet.
    pub(crate) async fn session(&self) -> Result<RogueSession> {
        let files = self.identity();
        let stream = self.host.secure(self.master, &files).await?;
        RogueSession::as_agent(stream).await
    }

    /// The name of the node that has no agent.
    pub(crate) fn rogue(&self) -> String {
        self.cluster.node_name(1)
    }

    /// Its certificate, which is a good one.
    pub(crate) fn identity(&self) -> CertFiles {
        let dir = self.cluster.pki().node_dir(&self.rogue());
        let both = dir.join("kubelet-client-current.pem");
        CertFiles {
            cert: both.clone(),
            key: both,
        }
    }

    /// Why the master has refused the next stranger.
    pub(crate) fn refusal(&mut self) -> Result<String> {
        let event = self.trouble("connection refused")?;
        let peer = event.text("peer").context("a peer")?;
        // What the router makes of all nodes' addresses.
        assert!(peer.contains("192.0.2.1"), "{event:?}");
        Ok(event.text("error").context("an error")?.to_owned())
    }

    /// The next event with this message, which must be a warning; or it is of a refusal of which
    /// the same warning has been given a moment ago, and is not repeated.
    pub(crate) fn trouble(&mut self, message: &str) -> Result<LogEvent> {
        let event = self.event(|event| event.message == message)?;
        let fault = event.text("reason").or(event.text("error"));
        let fault = (message.to_owned(), fault.unwrap_or_default().to_owned());
        let refusal = message != "session lost";
        if refusal && !self.told.insert(fault) {
            assert_eq!(event.level, "DEBUG", "{event:?}");
        } else {
            assert_eq!(event.level, "WARN", "{event:?}");
            self.troubles += 1;
        }
        Ok(event)
    }

    /// The next event for which `wanted` is true, leaving out those before it.
    pub(crate) fn event(&mut self, wanted: impl Fn(&LogEvent) -> bool) -> Result<LogEvent> {
        let master = self.cluster.master(0);
        let event = wait_for(master, self.read, SOON, &wanted)?;
        let at = since(master, self.read).iter().position(&wanted);
        self.read += at.context("it was there a moment ago")? + 1;
        Ok(event)
    }

    /// The user of the other node has noticed nothing, and the master has no more to complain of.
    pub(crate) async fn nobody_noticed(mut self) -> Result<()> {
        self.bystander.did_not_notice(&mut self.cluster).await?;
        let mut complaints = complaints(self.cluster.master(0), 0);
        // Of others, the multiplexer has its own words about a fault that the master tells of.
        complaints.retain(|event| event.target.starts_with("proxymux"));
        assert_eq!(complaints.len(), self.troubles, "{complaints:#?}");
        Ok(())
    }
}

/// The machine on which a test plays a master itself.
pub(crate) fn second_master(cluster: &Cluster) -> Result<&Host> {
    let host = cluster.topology().masters().get(1);
    host.context("a cluster with two masters")
}
