//! The Node objects themselves and their history, which outlive the server that shows them.
//!
//! What is kept is what tests say about a node; `object` makes the whole object of it when one is
//! asked for, so that thousands of them can be served by a test that is small itself.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::json;
use tokio::sync::watch;

use super::object::object;

/// What a test wants a Node object to have.
#[derive(Clone, Debug, Default)]
pub struct NodeFields {
    /// Of `status.addresses`: type and address.
    pub addresses: Vec<(String, String)>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<String>,
    /// `status.daemonEndpoints.kubeletEndpoint.Port`; 10250 if not set.
    pub kubelet_port: Option<u16>,
}

impl NodeFields {
    /// A node with these addresses.
    pub fn with_addresses<'a>(all: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let addresses = all
            .into_iter()
            .map(|(kind, address)| (kind.to_owned(), address.to_owned()));
        Self {
            addresses: addresses.collect(),
            ..Self::default()
        }
    }

    /// The networks of its pods.
    pub fn pod_cidrs(mut self, nets: &[&str]) -> Self {
        self.pod_cidrs = nets.iter().map(|net| (*net).to_owned()).collect();
        self
    }
}

/// All Node objects, and what has become of them. Clones are the same store.
#[derive(Clone, Debug)]
pub struct NodeStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    /// Changes up to here are forgotten.
    oldest: u64,
    /// Each with the version in which it was written last.
    nodes: BTreeMap<String, (NodeFields, u64)>,
    history: Vec<(u64, Change)>,
    /// Grows when running watches are to be told that they are too old.
    expired: u64,
    /// Grows when running watches are to end.
    ended: u64,
    is_forbidden: bool,
}

#[derive(Clone, Debug)]
enum Change {
    Added(String, NodeFields),
    Modified(String, NodeFields),
    Deleted(String, NodeFields),
    Bookmark,
}

/// What a watch is to be sent.
#[derive(Debug)]
pub(super) enum Since {
    Events(Vec<Event>),
    Gone,
}

/// One line of a watch.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) version: u64,
    pub(super) is_bookmark: bool,
    pub(super) text: String,
}

impl Default for NodeStore {
    fn default() -> Self {
        let state = State {
            version: 1000,
            ..State::default()
        };
        Self(Arc::new(Inner {
            state: Mutex::new(state),
            changed: watch::Sender::new(()),
        }))
    }
}

impl NodeStore {
    /// Writes a Node object, a new one or one that is there.
    pub fn set(&self, name: &str, fields: &NodeFields) {
        self.change(|state| {
            state.version += 1;
            let now = (fields.clone(), state.version);
            let before = state.nodes.insert(name.to_owned(), now);
            let (name, fields) = (name.to_owned(), fields.clone());
            let change = match before {
                Some(_) => Change::Modified(name, fields),
                None => Change::Added(name, fields),
            };
            state.history.push((state.version, change));
        });
    }

    /// Deletes one.
    pub fn delete(&self, name: &str) {
        self.change(|state| {
            let Some((fields, _)) = state.nodes.remove(name) else {
                return;
            };
            state.version += 1;
            let change = Change::Deleted(name.to_owned(), fields);
            state.history.push((state.version, change));
        });
    }

    /// Other objects have changed: watches that want bookmarks get one.
    pub fn bookmark(&self) {
        self.change(|state| {
            state.version += 10;
            state.history.push((state.version, Change::Bookmark));
        });
    }

    /// Forgets all that has happened, as a compaction does: who has not seen the last version is
    /// told 410 when it comes.
    pub fn forget(&self) {
        self.change(|state| {
            state.oldest = state.version;
            state.history.clear();
        });
    }

    /// Tells all running watches that they are too old, and ends them.
    pub fn expire_watches(&self) {
        self.change(|state| state.expired += 1);
    }

    /// Ends all running watches, as the API server does with each after some minutes.
    pub fn end_watches(&self) {
        self.change(|state| state.ended += 1);
    }

    /// Whether the user may not read nodes, as without a role.
    pub fn forbid(&self, is_forbidden: bool) {
        self.change(|state| state.is_forbidden = is_forbidden);
    }

    pub(super) fn is_forbidden(&self) -> bool {
        self.lock().is_forbidden
    }

    pub(super) fn expired(&self) -> u64 {
        self.lock().expired
    }

    pub(super) fn ended(&self) -> u64 {
        self.lock().ended
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    /// The version, the objects from the one after `after` on, and the last of them if there are
    /// more.
    pub(super) fn page(
        &self,
        after: Option<&str>,
        size: usize,
    ) -> (u64, Vec<String>, Option<String>) {
        let state = self.lock();
        let from = state
            .nodes
            .iter()
            .filter(|(name, _)| after.is_none_or(|after| name.as_str() > after));
        let mut page: Vec<_> = from.take(size + 1).collect();
        let has_more = page.len() > size;
        page.truncate(size);
        let next = page
            .last()
            .filter(|_| has_more)
            .map(|(name, _)| (*name).clone());
        let objects = page
            .into_iter()
            .map(|(name, (fields, version))| object(name, fields, *version));
        (state.version, objects.collect(), next)
    }

    /// What has happened after a version.
    pub(super) fn since(&self, version: u64) -> Since {
        let state = self.lock();
        if version < state.oldest {
            return Since::Gone;
        }
        let events = state.history.iter().filter(|(at, _)| *at > version);
        Since::Events(events.map(|(at, change)| change.event(*at)).collect())
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.0.changed.send_replace(());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Change {
    fn event(&self, version: u64) -> Event {
        let (kind, object) = match self {
            Self::Added(name, fields) => ("ADDED", object(name, fields, version)),
            Self::Modified(name, fields) => ("MODIFIED", object(name, fields, version)),
            Self::Deleted(name, fields) => ("DELETED", object(name, fields, version)),
            Self::Bookmark => {
                let object = json!({
                    "kind": "Node", "apiVersion": "v1",
                    "metadata": { "resourceVersion": version.to_string(),
                                  "creationTimestamp": null },
                    "spec": {}, "status": {},
                });
                ("BOOKMARK", object.to_string())
            }
        };
        Event {
            version,
            is_bookmark: matches!(self, Self::Bookmark),
            text: format!("{{\"type\":\"{kind}\",\"object\":{object}}}"),
        }
    }
}
