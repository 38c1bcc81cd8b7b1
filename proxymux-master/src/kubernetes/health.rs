//! How the watch on Node objects is doing, for log, status and metrics.
//!
//! Owns what is shown, and that the log tells a state once and not at each attempt. Leaves what is
//! done about it to `kubernetes`.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use proxymux_transport::{
    clock::WallClock,
    metrics::{Counters, Gauge, Moments, Registry, counters, gauge, moments},
};
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

use super::{FollowError, access::AccessError, api::ApiError};

/// What is counted about Node objects.
#[derive(Clone, Debug)]
pub(crate) struct ObjectMetrics {
    watching: Gauge,
    objects: Gauge,
    failures: Counters,
    heard: Moments,
}

/// How the watch is doing.
#[derive(Debug)]
pub(crate) struct Health {
    state: Mutex<State>,
    synced: watch::Sender<bool>,
    metrics: ObjectMetrics,
    clock: WallClock,
}

#[derive(Debug, Default)]
struct State {
    server: Option<String>,
    watching: bool,
    /// When all objects were read last.
    read: Option<Instant>,
    /// When anything was heard from the API server last.
    heard: Option<Instant>,
    /// What is wrong, as it was logged.
    trouble: Option<String>,
}

impl ObjectMetrics {
    /// Registers the metrics.
    pub(crate) fn register(r: &mut Registry) -> Self {
        let words: Vec<_> = ApiError::WORDS
            .iter()
            .copied()
            .chain([AccessError::WORD])
            .collect();
        Self {
            watching: gauge(
                r,
                "node_objects_watching",
                "Whether changes of Node objects are heard of: 1 or 0",
            ),
            objects: gauge(
                r,
                "node_objects",
                "Node objects that are known, with node-addresses: kubernetes",
            ),
            failures: counters(
                r,
                (
                    "node_objects_failures",
                    "Attempts to read or watch Node objects that failed, by why",
                ),
                "reason",
                &words,
            ),
            heard: moments(
                r,
                (
                    "node_objects_heard_timestamp",
                    "When something was heard from the API server last, in seconds since 1970",
                ),
                "source",
                SOURCES,
            ),
        }
    }

    /// As if something had been heard, for the list of metrics.
    #[cfg(test)]
    pub(crate) fn pretend(&self) {
        self.heard
            .set(KUBERNETES, Some(std::time::SystemTime::UNIX_EPOCH));
    }
}

impl Health {
    pub(crate) fn new(metrics: ObjectMetrics) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            synced: watch::Sender::new(false),
            metrics,
            clock: WallClock::system(),
        })
    }

    /// Waits until all Node objects have been read once, or the time is up.
    pub(crate) async fn wait_for_objects(&self, limit: Duration) {
        let mut synced = self.synced.subscribe();
        let waiting = synced.wait_for(|synced| *synced);
        // Either way the caller goes on.
        let _ = tokio::time::timeout(limit, waiting).await;
    }

    pub(super) fn asks(&self, server: &str) {
        self.lock().server = Some(server.to_owned());
    }

    /// All objects have been read.
    pub(super) fn read(&self, objects: usize) {
        let mut state = self.lock();
        state.read = Some(Instant::now());
        drop(state);
        self.heard(objects);
        tracing::info!(objects, "node objects are read");
        self.synced.send_replace(true);
    }

    /// Something has come.
    pub(super) fn heard(&self, objects: usize) {
        self.lock().heard = Some(Instant::now());
        let objects = i64::try_from(objects).unwrap_or(i64::MAX);
        self.metrics.objects.set(objects);
        self.metrics.heard.set(KUBERNETES, Some(self.clock.now()));
    }

    /// Changes are heard of from now on.
    pub(super) fn watching(&self) {
        let mut state = self.lock();
        state.watching = true;
        self.metrics.watching.set(1);
        if state.trouble.take().is_some() {
            tracing::info!(server = state.server, "node objects are watched again");
        }
    }

    /// They are not, though nothing is wrong with that.
    pub(super) fn pausing(&self) {
        self.lock().watching = false;
        self.metrics.watching.set(0);
    }

    /// They are not, and this is why.
    pub(super) fn failed(&self, error: &FollowError) {
        self.pausing();
        self.metrics.failures.get(error.word()).inc();
        if error.is_gone() {
            // What the API server keeps of the past is limited, and restoring a backup loses more.
            tracing::debug!(error = %error, "node objects have to be read anew");
            return;
        }
        let text = error.line();
        let mut state = self.lock();
        if state.trouble.as_ref() == Some(&text) {
            return;
        }
        let server = state.server.as_deref();
        if state.read.is_some() {
            tracing::warn!(
                server,
                error = text,
                "the node objects read last stay in force"
            );
        } else {
            tracing::warn!(server, error = text, "node objects are not known yet");
        }
        state.trouble = Some(text);
    }

    /// For the status.
    pub(crate) fn show(&self, objects: usize) -> Value {
        let state = self.lock();
        let ago = |when: Option<Instant>| when.map(|when| when.elapsed().as_secs());
        json!({
            "source": KUBERNETES,
            "server": state.server,
            "watching": state.watching,
            "objects": objects,
            "read_s": ago(state.read),
            "heard_s": ago(state.heard),
            "error": state.trouble,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole values are put in, so that a panic leaves nothing half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const KUBERNETES: &str = "kubernetes";

/// The sources of proof that can be heard from.
const SOURCES: &[&str] = &[KUBERNETES];
