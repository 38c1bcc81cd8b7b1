//! The Node objects themselves and their history, which outlive the server that shows them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::{Value, json};
use tokio::sync::watch;

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
    nodes: BTreeMap<String, Value>,
    history: Vec<(u64, Value)>,
    /// Grows when running watches are to be told that they are too old.
    expired: u64,
    is_forbidden: bool,
}

/// What a watch is to be sent.
#[derive(Debug)]
pub(super) enum Since {
    Events(Vec<(u64, Value)>),
    Gone,
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
            let object = object(name, fields, state.version);
            let before = state.nodes.insert(name.to_owned(), object.clone());
            let kind = if before.is_some() {
                "MODIFIED"
            } else {
                "ADDED"
            };
            let event = json!({ "type": kind, "object": object });
            state.history.push((state.version, event));
        });
    }

    /// Deletes one.
    pub fn delete(&self, name: &str) {
        self.change(|state| {
            let Some(mut object) = state.nodes.remove(name) else {
                return;
            };
            state.version += 1;
            if let Some(version) = object.pointer_mut("/metadata/resourceVersion") {
                *version = json!(state.version.to_string());
            }
            let event = json!({ "type": "DELETED", "object": object });
            state.history.push((state.version, event));
        });
    }

    /// Other objects have changed: watches that want bookmarks get one.
    pub fn bookmark(&self) {
        self.change(|state| {
            state.version += 10;
            let event = json!({ "type": "BOOKMARK", "object": {
                "kind": "Node", "apiVersion": "v1",
                "metadata": { "resourceVersion": state.version.to_string(),
                              "creationTimestamp": null },
                "spec": {}, "status": {} } });
            state.history.push((state.version, event));
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

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    /// The version, the objects from the one after `after` on, and the last of them if there are
    /// more.
    pub(super) fn page(
        &self,
        after: Option<&str>,
        size: usize,
    ) -> (u64, Vec<Value>, Option<String>) {
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
        let objects = page.into_iter().map(|(_, object)| object.clone());
        (state.version, objects.collect(), next)
    }

    /// What has happened after a version.
    pub(super) fn since(&self, version: u64) -> Since {
        let state = self.lock();
        if version < state.oldest {
            return Since::Gone;
        }
        let events = state.history.iter().filter(|(at, _)| *at > version);
        Since::Events(events.cloned().collect())
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.0.changed.send_replace(());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn object(name: &str, fields: &NodeFields, version: u64) -> Value {
    let addresses = fields
        .addresses
        .iter()
        .map(|(kind, address)| json!({ "type": kind, "address": address }));
    let padding: Vec<_> = (0..20)
        .map(|i| json!({ "names": [format!("registry.example/image-{i}@sha256:{i:064}")] }))
        .collect();
    json!({
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {
            "name": name,
            "uid": format!("uid-of-{name}"),
            "resourceVersion": version.to_string(),
            "labels": { "kubernetes.io/hostname": name, "kubernetes.io/os": "linux" },
        },
        "spec": { "podCIDR": fields.pod_cidrs.first(), "podCIDRs": fields.pod_cidrs },
        "status": {
            "addresses": addresses.collect::<Vec<_>>(),
            "daemonEndpoints": {
                "kubeletEndpoint": { "Port": fields.kubelet_port.unwrap_or(10250) },
            },
            "images": padding,
        },
    })
}
