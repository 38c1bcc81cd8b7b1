//! The new master's side of a take-over.
//!
//! Owns finding the running master, the wait for its agents, and the decision to go on without
//! some of them or not at all. Read [`begin`] and [`Taker::wait_for_agents`].

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use proxymux_proto::NodeName;
use proxymux_transport::telemetry::chain;
use tokio::{
    net::UnixStream,
    time::{Instant, sleep, timeout},
};

use super::{
    TakeoverError,
    words::{
        ANSWER_LIMIT, BUSY, BYE, DOORS, HERE, NODES, READY, TAKEOVER, Talk, TalkError, VERSION,
        listener_name,
    },
};
use crate::registry::Registry;

/// A new master that takes over from a running one.
#[derive(Debug)]
pub(crate) struct Taker {
    at: PathBuf,
    /// `None` when the running master has died.
    talk: Option<Talk>,
    /// The running one's listeners that have not been asked for yet.
    listeners: Vec<(String, OwnedFd)>,
}

/// Asks the master that runs, if one does, for its listeners.
///
/// # Errors
///
/// When there is one and it does not give way.
pub(crate) async fn begin(at: &Path) -> Result<Option<Taker>, TakeoverError> {
    let unreachable = |source| TakeoverError::Unreachable {
        at: at.to_owned(),
        source,
    };
    let stream = match timeout(ANSWER_LIMIT, UnixStream::connect(at)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if nobody_is_there(&error) => return Ok(None),
        Ok(Err(error)) => return Err(unreachable(error)),
        Err(_) => return Err(unreachable(io::ErrorKind::TimedOut.into())),
    };
    let mut talk = Talk::new(stream);
    let hello = format!("{TAKEOVER} {VERSION} {}", std::process::id());
    talk.say(&hello).await.map_err(TakeoverError::Talk)?;
    let (line, descriptors) = talk
        .hear_with_listeners()
        .await
        .map_err(TakeoverError::Talk)?;
    let mut words = line.split(' ');
    match words.next() {
        Some(HERE) => {}
        Some(BUSY) => {
            let reason: Vec<_> = words.collect();
            return Err(TakeoverError::Refused(reason.join(" ")));
        }
        _ => return Err(TakeoverError::Talk(TalkError::Unexpected(line))),
    }
    let listeners: Vec<_> = words.map(str::to_owned).zip(descriptors).collect();
    tracing::info!(
        listeners = listeners.len(),
        "taking over from the running master"
    );
    Ok(Some(Taker {
        at: at.to_owned(),
        talk: Some(talk),
        listeners,
    }))
}

impl Taker {
    /// The running master's listener of this kind for this address, if it has one.
    pub(crate) fn listener(&mut self, kind: &str, at: SocketAddr) -> Option<TcpListener> {
        let wanted = listener_name(kind, at);
        let found = self
            .listeners
            .iter()
            .position(|(name, _)| *name == wanted)?;
        let (_, descriptor) = self.listeners.swap_remove(found);
        Some(descriptor.into())
    }

    /// Tells the running master that agents may come here, and waits until they have.
    ///
    /// A running master that dies meanwhile is not waited for: its agents come by themselves.
    ///
    /// # Errors
    ///
    /// When so many agents do not come that something must be wrong with this master, or the
    /// running one has given it up.
    pub(crate) async fn wait_for_agents(
        &mut self,
        registry: &Registry,
    ) -> Result<(), TakeoverError> {
        // What it listens for and we do not is of no use here.
        self.listeners.clear();
        let Some(talk) = &mut self.talk else {
            return Ok(());
        };
        match all_back(talk, registry).await {
            Ok(()) => Ok(()),
            Err(TakeoverError::Talk(error)) => {
                if is_there(&self.at).await {
                    return Err(TakeoverError::GivenUp);
                }
                let error = chain(&error);
                tracing::warn!(error, "the running master is gone, going on without it");
                self.talk = None;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the running master still serves.
    pub(crate) fn is_of_a_living(&self) -> bool {
        self.talk.is_some()
    }

    /// Tells the running master that the front doors are here now.
    pub(crate) async fn finish(self) {
        let Some(mut talk) = self.talk else {
            return;
        };
        let told = async {
            talk.say(DOORS).await?;
            talk.hear(ANSWER_LIMIT).await
        };
        match told.await {
            Ok(line) if line == BYE => tracing::info!("take-over is complete"),
            Ok(line) => tracing::warn!(line, "the old master says something else than good-bye"),
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(error, "the old master was gone before it was told");
            }
        }
    }
}

async fn all_back(talk: &mut Talk, registry: &Registry) -> Result<(), TakeoverError> {
    talk.say(READY).await.map_err(TakeoverError::Talk)?;
    let began = Instant::now();
    loop {
        talk.say(NODES).await.map_err(TakeoverError::Talk)?;
        let line = talk.hear(ANSWER_LIMIT).await.map_err(TakeoverError::Talk)?;
        let expected = nodes_in(&line).ok_or_else(|| {
            TakeoverError::Talk(TalkError::Unexpected(line.chars().take(100).collect()))
        })?;
        let missing: Vec<_> = expected
            .iter()
            .filter(|node| !registry.is_connected(node))
            .collect();
        if missing.is_empty() {
            let took_ms = began.elapsed().as_millis();
            tracing::info!(agents = expected.len(), took_ms, "all agents are back");
            return Ok(());
        }
        if began.elapsed() >= BACK_LIMIT {
            return decide(&expected, &missing);
        }
        sleep(ASK_EVERY).await;
    }
}

/// Whether to go on without those who have not come. A few may have their own trouble; many have
/// trouble with this master, and a running one that serves them is better than that.
fn decide(expected: &[NodeName], missing: &[&NodeName]) -> Result<(), TakeoverError> {
    let shown: Vec<_> = missing.iter().take(5).map(ToString::to_string).collect();
    let shown = shown.join(", ");
    if missing.len() * MAX_MISSING_OF > expected.len() {
        return Err(TakeoverError::AgentsMissing {
            back: expected.len() - missing.len(),
            expected: expected.len(),
            limit: BACK_LIMIT,
            missing: shown,
        });
    }
    tracing::warn!(
        missing = missing.len(),
        of = expected.len(),
        nodes = shown,
        "some agents have not come, going on without them"
    );
    Ok(())
}

/// The nodes in the running master's answer.
fn nodes_in(line: &str) -> Option<Vec<NodeName>> {
    let mut words = line.split(' ').filter(|word| !word.is_empty());
    if words.next() != Some(NODES) {
        return None;
    }
    words.map(|word| NodeName::parse(word).ok()).collect()
}

/// Whether a master is at its socket. It answers a connection at once or not at all.
async fn is_there(at: &Path) -> bool {
    match timeout(ANSWER_LIMIT, UnixStream::connect(at)).await {
        Ok(Err(error)) => !nobody_is_there(&error),
        Ok(Ok(_)) | Err(_) => true,
    }
}

fn nobody_is_there(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

/// How often the running master is asked whom it has.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// How long agents may take. A dead one is off the running master's list within 17 s; the others
/// come within a second, or as many a second as `max-registrations-per-second` says.
const BACK_LIMIT: Duration = Duration::from_secs(60);

/// At most one in so many agents may be missing.
const MAX_MISSING_OF: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(count: usize) -> Vec<NodeName> {
        let names = (0..count).map(|number| NodeName::parse(&format!("node-{number}")).unwrap());
        names.collect()
    }

    #[test]
    fn a_tenth_of_the_agents_may_be_missing_and_no_more() {
        let fleet = nodes(20);
        let missing: Vec<_> = fleet.iter().take(2).collect();
        assert!(decide(&fleet, &missing).is_ok());

        let missing: Vec<_> = fleet.iter().take(3).collect();
        let error = decide(&fleet, &missing).unwrap_err().to_string();
        assert_eq!(
            error,
            "only 17 of 20 agents have come within 60 s, among the missing: node-0, node-1, \
             node-2; the running master goes on"
        );
        let alone = nodes(1);
        assert!(decide(&alone, &alone.iter().collect::<Vec<_>>()).is_err());
    }

    #[test]
    fn an_answer_has_nodes_or_is_none() {
        assert_eq!(nodes_in("nodes "), Some(vec![]));
        assert_eq!(nodes_in("nodes node-0 node-1"), Some(nodes(2)));
        assert_eq!(nodes_in("doors"), None);
        assert_eq!(nodes_in("nodes node/1"), None);
    }
}
