//! Somebody who has nothing to do with what a test does to others, and must not notice it.
//!
//! A [`Bystander`] follows a container's log through a node's session from before the trouble.
//! Afterwards [`Bystander::did_not_notice`] wants more lines of it, a prompt answer to a new
//! request, and a log of the node's agent that tells of one session and of no trouble.

use anyhow::{Result, ensure};
use proxymux_testkit::{apiserver::ApiServer, cluster::Cluster};

use crate::{
    events::{complaints, with_message},
    following::Following,
    limits::{SOON, within},
};

/// A user of one node, whose agent runs.
#[derive(Debug)]
pub struct Bystander {
    node: usize,
    target: String,
    api: ApiServer,
    following: Following,
    mark: usize,
    sessions: usize,
}

impl Bystander {
    /// Begins to follow a log of this node's kubelet, through the first master.
    ///
    /// # Errors
    ///
    /// The log could not be opened.
    pub async fn of_node(cluster: &mut Cluster, node: usize) -> Result<Self> {
        let (api, target) = (cluster.api()?, cluster.target(node));
        let following = Following::start(&api, &target).await?;
        let agent = cluster.agent(node);
        Ok(Self {
            mark: agent.mark(),
            sessions: with_message(agent, SESSION_UP).len(),
            node,
            target,
            api,
            following,
        })
    }

    /// Fails if anything of what has happened since the beginning could be noticed.
    ///
    /// # Errors
    ///
    /// Says what was noticed.
    pub async fn did_not_notice(&self, cluster: &mut Cluster) -> Result<()> {
        self.is_served().await?;
        let agent = cluster.agent(self.node);
        let complaints = complaints(agent, self.mark);
        ensure!(
            complaints.is_empty(),
            "the bystander's agent complains: {complaints:#?}"
        );
        let sessions = with_message(agent, SESSION_UP).len();
        ensure!(
            sessions == self.sessions,
            "the bystander's agent has come {sessions} times, expected {}",
            self.sessions
        );
        Ok(())
    }

    /// Fails if the log stands still or a new request is not answered.
    ///
    /// # Errors
    ///
    /// Says which of them.
    pub async fn is_served(&self) -> Result<()> {
        self.following.goes_on().await?;
        let asked = self.api.get(&self.target, "/healthz");
        let reply = within(SOON, "the bystander's request", asked).await?;
        ensure!(
            reply.status == 200,
            "the bystander's request: {}",
            reply.status
        );
        Ok(())
    }
}

const SESSION_UP: &str = "session up";
