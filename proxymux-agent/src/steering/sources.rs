//! Whose connections to the kubelet are steered.
//!
//! Owns the list: `steer-from` if it is set, else the addresses that `server-addr` stands for and
//! those that masters have named when they accepted this agent. What a master has named is
//! forgotten with its session. Leaves the kernel's copy of the list to `maps.rs`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ipnet::IpNet;
use proxymux_transport::telemetry::chain;
use tokio::sync::watch;

use crate::{
    agent::Agent,
    config::{Config, ServerAddr},
};

/// The sources of steering, shared by all who learn of one.
#[derive(Debug)]
pub(crate) struct Sources {
    configured: Vec<IpNet>,
    /// A master on this host does not come in by a NIC; its address is no source.
    own: Vec<IpAddr>,
    known: Mutex<Known>,
    current: watch::Sender<Vec<IpNet>>,
}

#[derive(Debug, Default)]
struct Known {
    /// By the entry of `server-addr`.
    resolved: BTreeMap<String, BTreeSet<IpAddr>>,
    /// By the number of the session.
    named: BTreeMap<u64, Vec<IpAddr>>,
    next: u64,
}

/// What a master has named, until its session ends.
#[derive(Debug)]
pub(crate) struct NamedSources {
    sources: Arc<Sources>,
    number: u64,
}

impl Sources {
    pub(crate) fn new(config: &Config) -> Arc<Self> {
        let mut own = config.claimed_addresses();
        own.push(config.kubelet_addr.ip());
        Arc::new(Self {
            configured: config.steer_from.clone(),
            own,
            known: Mutex::default(),
            current: watch::Sender::new(config.steer_from.clone()),
        })
    }

    /// Takes note of what an entry of `server-addr` stands for now.
    pub(crate) fn resolved(&self, server: &ServerAddr, addresses: BTreeSet<IpAddr>) {
        let mut known = self.lock();
        known.resolved.insert(server.to_string(), addresses);
        self.publish(&known);
    }

    /// Takes note of the addresses from which a master dials, until the result is dropped.
    pub(crate) fn named(self: &Arc<Self>, addresses: &[IpAddr]) -> NamedSources {
        let mut known = self.lock();
        let number = known.next;
        known.next += 1;
        known.named.insert(number, addresses.to_vec());
        self.publish(&known);
        NamedSources {
            sources: Arc::clone(self),
            number,
        }
    }

    /// The list, and its changes.
    pub(crate) fn watch(&self) -> watch::Receiver<Vec<IpNet>> {
        self.current.subscribe()
    }

    fn publish(&self, known: &Known) {
        if !self.configured.is_empty() {
            return;
        }
        let resolved = known.resolved.values().flatten();
        let all = resolved.chain(known.named.values().flatten());
        let mut list = Vec::new();
        for ip in all.map(IpAddr::to_canonical) {
            let net = IpNet::from(ip);
            if list.len() < MAX_SOURCES && self.is_usable(ip) && !list.contains(&net) {
                list.push(net);
            }
        }
        self.current.send_if_modified(|current| {
            let changed = *current != list;
            *current = list;
            changed
        });
    }

    fn is_usable(&self, ip: IpAddr) -> bool {
        let nobody = ip.is_loopback() || ip.is_unspecified() || ip.is_multicast();
        !nobody && !self.own.contains(&ip)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // What a panic leaves behind is one entry more or less.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for NamedSources {
    fn drop(&mut self) {
        let mut known = self.sources.lock();
        known.named.remove(&self.number);
        self.sources.publish(&known);
    }
}

/// Tells the kernel whose connections are to be steered, until the agent drains.
pub(crate) async fn keep(agent: Arc<Agent>) {
    let Some(maps) = agent.steering.maps().cloned() else {
        return;
    };
    let mut current = agent.sources.watch();
    let drain = agent.shutdown.drain.clone();
    loop {
        let mut list = current.borrow_and_update().clone();
        // The node has addresses that its configuration does not name.
        let own = maps.addresses();
        list.retain(|net| net.prefix_len() < net.max_prefix_len() || !own.contains(&net.addr()));
        let shown: Vec<_> = list.iter().map(ToString::to_string).collect();
        let shown = shown.join(",");
        match maps.set_sources(&list) {
            Ok(()) => {
                tracing::info!(sources = shown, "connections from these are steered");
                agent.steering.changes.announce();
            }
            Err(error) => {
                let reason = chain(&error);
                tracing::error!(
                    reason,
                    sources = shown,
                    "cannot tell the kernel of the sources"
                );
            }
        }
        tokio::select! {
            () = drain.cancelled() => return,
            // The sender is in the agent, which we hold.
            _ = current.changed() => {}
        }
    }
}

/// Masters have one address or two; a name that stands for more is a mistake in its zone.
const MAX_SOURCES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(lines: &str) -> (Config, Arc<Sources>) {
        let file = format!(
            "node-name: worker-1\nserver-addr: [ https://192.0.2.10, \"https://[2001:db8::1]\" ]\n\
             private-ip-address: 10.0.10.10\nkubelet-addr: 10.0.10.11:10250\n{lines}"
        );
        let (config, _) = Config::parse(&file, "test.yaml").unwrap();
        let sources = Sources::new(&config);
        (config, sources)
    }

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    fn shown(sources: &Sources) -> Vec<String> {
        let current = sources.watch();
        let list = current.borrow();
        list.iter().map(ToString::to_string).collect()
    }

    fn resolve(config: &Config, sources: &Sources, entry: usize, to: &[&str]) {
        let server = config.server_addrs.get(entry).unwrap();
        sources.resolved(server, ips(to).into_iter().collect());
    }

    #[test]
    fn the_masters_addresses_are_sources_and_change_with_them() {
        let (config, sources) = sources("");
        assert!(shown(&sources).is_empty());

        resolve(&config, &sources, 0, &["192.0.2.10", "::ffff:192.0.2.11"]);
        resolve(&config, &sources, 1, &["2001:db8::1"]);
        let all = ["192.0.2.10/32", "192.0.2.11/32", "2001:db8::1/128"];
        assert_eq!(shown(&sources).len(), 3);
        assert!(
            all.iter()
                .all(|net| shown(&sources).contains(&(*net).to_owned()))
        );

        resolve(&config, &sources, 0, &["192.0.2.12"]);
        let mut now = shown(&sources);
        now.sort();
        assert_eq!(now, ["192.0.2.12/32", "2001:db8::1/128"]);
    }

    #[test]
    fn what_a_master_names_is_forgotten_with_its_session() {
        let (config, sources) = sources("");
        resolve(&config, &sources, 0, &["192.0.2.10"]);

        let first = sources.named(&ips(&["198.51.100.1", "192.0.2.10"]));
        let second = sources.named(&ips(&["198.51.100.1"]));
        assert_eq!(shown(&sources), ["192.0.2.10/32", "198.51.100.1/32"]);
        drop(first);
        assert_eq!(shown(&sources), ["192.0.2.10/32", "198.51.100.1/32"]);
        drop(second);

        assert_eq!(shown(&sources), ["192.0.2.10/32"]);
    }

    #[test]
    fn steer_from_is_the_list_and_nothing_is_added_to_it() {
        let (config, sources) = sources("steer-from: [ 203.0.113.0/24 ]\n");

        resolve(&config, &sources, 0, &["192.0.2.10"]);
        let _named = sources.named(&ips(&["198.51.100.1"]));

        assert_eq!(shown(&sources), ["203.0.113.0/24"]);
    }

    #[test]
    fn a_master_on_the_same_host_and_nobodys_addresses_are_no_sources() {
        let (_, sources) = sources("");

        let own = ["10.0.10.10", "10.0.10.11", "127.0.0.1", "::1"];
        let _own = sources.named(&ips(&own));
        let _nobody = sources.named(&ips(&["0.0.0.0", "::", "224.0.0.1", "ff02::1"]));

        assert_eq!(shown(&sources), Vec::<String>::new());
    }

    #[test]
    fn there_are_never_more_than_sixteen() {
        let (config, sources) = sources("");
        let many: Vec<String> = (0..40).map(|n| format!("198.51.100.{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();

        let _named = sources.named(&ips(&many));
        resolve(&config, &sources, 0, &["192.0.2.10"]);

        let list = shown(&sources);
        assert_eq!(list.len(), MAX_SOURCES);
        // What the configuration names comes first.
        assert_eq!(list.first().map(String::as_str), Some("192.0.2.10/32"));
    }

    #[test]
    fn a_list_that_stays_the_same_is_no_news() {
        let (config, sources) = sources("");
        resolve(&config, &sources, 0, &["192.0.2.10"]);
        let mut watch = sources.watch();
        watch.borrow_and_update();

        resolve(&config, &sources, 0, &["192.0.2.10"]);
        drop(sources.named(&ips(&["192.0.2.10"])));

        assert!(!watch.has_changed().unwrap());
    }
}
