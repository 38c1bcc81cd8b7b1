//! What the API server says about nodes: `node-addresses: kubernetes`.
//!
//! Owns the watch on Node objects: when they are read, when watched, and how long to pause after a
//! failure. Leaves how the API server is reached to `access`, the requests to `api`, what of an
//! object proves something to `object`, and what follows from it to `claims`. Read [`follow`].
//!
//! The master stands beside kube-apiserver, which needs it: nothing ever waits for the API server
//! but this task, and what was read last stays in force while it is away.

use std::{collections::HashMap, sync::Arc, time::Duration};

use proxymux_transport::telemetry::chain;
use tokio::time::Instant;

use crate::{claims::ObjectChange, config::Kubeconfig, master::Master, registry::Registry};

mod access;
mod api;
mod connection;
mod health;
mod object;

pub(crate) use self::health::{Health, ObjectMetrics};
use self::{
    access::{Access, AccessError},
    api::{ApiError, Event, Watch},
};

/// Why Node objects are not watched any more.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("the API server: {0}")]
    Api(#[from] ApiError),
}

/// Keeps the registry told of Node objects until the master drains.
pub(crate) async fn follow(master: Arc<Master>, kubeconfig: Kubeconfig, health: Arc<Health>) {
    let mut follower = Follower::new(Arc::clone(&master.registry), health);
    let following = follower.run(&kubeconfig);
    master.shutdown.drain.run_until_cancelled(following).await;
}

/// Whether Node objects can be read, for `check`; says of whom.
///
/// # Errors
///
/// Why they cannot, on one line.
pub(crate) async fn check(kubeconfig: &Kubeconfig) -> Result<String, String> {
    let trying = async {
        let Access { client, server } = access::open(kubeconfig).await?;
        api::list(&client, None).await?;
        Ok::<_, FollowError>(server)
    };
    trying.await.map_err(|error| error.line())
}

struct Follower {
    registry: Arc<Registry>,
    health: Arc<Health>,
    /// Up to where changes have been seen; `None` if all has to be read.
    version: Option<String>,
}

impl Follower {
    fn new(registry: Arc<Registry>, health: Arc<Health>) -> Self {
        Self {
            registry,
            health,
            version: None,
        }
    }

    /// Each round is from files and connection to the end of a watch, so that renewed certificates
    /// and tokens, and another address of the API server, are in use after minutes.
    async fn run(&mut self, kubeconfig: &Kubeconfig) {
        let mut failures = 0;
        loop {
            let began = Instant::now();
            let opened = access::open(kubeconfig).await;
            self.round(opened).await;
            failures = if began.elapsed() > STEADY {
                0
            } else {
                failures + 1
            };
            tokio::time::sleep(pause(failures)).await;
        }
    }

    async fn round(&mut self, opened: Result<Access, AccessError>) {
        match self.ask(opened).await {
            Ok(()) => self.health.pausing(),
            Err(error) => {
                if error.is_gone() {
                    self.version = None;
                }
                self.health.failed(&error);
            }
        }
    }

    async fn ask(&mut self, opened: Result<Access, AccessError>) -> Result<(), FollowError> {
        let Access { client, server } = opened?;
        self.health.asks(&server);
        let mut version = match self.version.take() {
            Some(version) => version,
            None => self.read_all(&client).await?,
        };
        let watched = self.watch(&client, &mut version).await;
        self.version = Some(version);
        watched
    }

    /// Reads all objects. Nothing changes before the last one is there.
    async fn read_all(&mut self, client: &kube_client::Client) -> Result<String, ApiError> {
        let mut all = HashMap::new();
        let mut next: Option<String> = None;
        loop {
            let page = api::list(client, next.as_deref()).await?;
            all.extend(page.items.into_iter().filter_map(|node| node.reduce()));
            next = page.metadata.next.filter(|next| !next.is_empty());
            if next.is_none() {
                let objects = all.len();
                self.registry.replace_objects(all);
                self.health.read(objects);
                return Ok(page.metadata.resource_version.unwrap_or_default());
            }
        }
    }

    async fn watch(
        &mut self,
        client: &kube_client::Client,
        version: &mut String,
    ) -> Result<(), FollowError> {
        let lasts = Duration::from_secs(fastrand::u64(WATCH_SECONDS));
        let mut watch = Watch::open(client, version, lasts).await?;
        self.health.watching();
        while let Some(events) = watch.next().await? {
            let mut updates: Vec<ObjectChange> = Vec::new();
            for event in events {
                let (node, is_gone) = match event {
                    Event::Is(node) => (node, false),
                    Event::Gone(node) => (node, true),
                    Event::Version(seen) => {
                        *version = seen;
                        continue;
                    }
                };
                if let Some(seen) = &node.metadata.resource_version {
                    version.clone_from(seen);
                }
                if let Some((name, object)) = node.reduce() {
                    updates.push((name, (!is_gone).then_some(object)));
                }
            }
            if !updates.is_empty() {
                self.registry.update_objects(updates);
            }
            self.health.heard(self.registry.objects());
        }
        Ok(())
    }
}

impl FollowError {
    fn word(&self) -> &'static str {
        match self {
            Self::Access(_) => AccessError::WORD,
            Self::Api(error) => error.word(),
        }
    }

    fn is_gone(&self) -> bool {
        matches!(self, Self::Api(ApiError::Gone(_)))
    }

    /// The error and its causes on one line.
    fn line(&self) -> String {
        proxymux_proto::printable(&chain(self), MAX_LINE)
    }
}

/// How long to wait before the next attempt: full jitter, so that several masters do not come at
/// once, and soon enough that an API server which is back is not waited for.
fn pause(failures: u32) -> Duration {
    let ceiling = FIRST_PAUSE
        .saturating_mul(1 << failures.min(8))
        .min(LONGEST_PAUSE);
    SHORTEST_PAUSE + ceiling.mul_f64(fastrand::f64())
}

/// How long a watch lasts, in seconds. The API server ends it earlier if it likes; kubelets' own
/// last five to ten minutes.
const WATCH_SECONDS: std::ops::Range<u64> = 180..300;

/// A round that has lasted so long is no failed attempt.
const STEADY: Duration = Duration::from_secs(10);

const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// One small request from each master: the API server of any cluster bears that.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Of an error in log and status.
const MAX_LINE: usize = 600;

#[cfg(test)]
mod tests;
