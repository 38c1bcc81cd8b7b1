//! A Node object as the API server writes it, and what of it proves something.
//!
//! Owns the few fields that are read: everything else of the text is skipped while it is parsed,
//! so that the objects of a large cluster are never in memory as a whole. Leaves what follows from
//! it to `claims`. Read [`RawNode::reduce`].

use std::net::IpAddr;

use ipnet::IpNet;
use proxymux_proto::{MAX_ADDRESSES, NodeName};
use proxymux_transport::config_file::values;
use serde::Deserialize;

use crate::{claims::NodeObject, routes::canonical};

/// A Node object, or one of a list.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct RawNode {
    pub(super) metadata: RawMeta,
    #[serde(default)]
    spec: Option<RawSpec>,
    #[serde(default)]
    status: Option<RawStatus>,
}

/// What is read of its metadata.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawMeta {
    pub(super) name: String,
    #[serde(default)]
    pub(super) resource_version: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct RawSpec {
    #[serde(default, rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(default, rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawStatus {
    #[serde(default)]
    addresses: Option<Vec<RawAddress>>,
    #[serde(default)]
    daemon_endpoints: Option<RawEndpoints>,
}

/// Of which type it is (`InternalIP`, `Hostname` and so on) does not matter: a host name may be an
/// address, and all are what others reach the node under.
#[derive(Clone, Debug, Deserialize)]
struct RawAddress {
    #[serde(default)]
    address: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEndpoints {
    #[serde(default)]
    kubelet_endpoint: Option<RawEndpoint>,
}

#[derive(Clone, Debug, Deserialize)]
struct RawEndpoint {
    /// With a capital letter, unlike everything else.
    #[serde(default, rename = "Port")]
    port: i64,
}

/// One page of a list.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct RawList {
    #[serde(default)]
    pub(super) metadata: RawListMeta,
    #[serde(default)]
    pub(super) items: Vec<RawNode>,
}

/// What is read of a list's metadata.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawListMeta {
    #[serde(default)]
    pub(super) resource_version: Option<String>,
    /// Where the next page begins, if there is one.
    #[serde(default, rename = "continue")]
    pub(super) next: Option<String>,
}

impl RawNode {
    /// What it proves, for the node that is named; `None` if no node can be called so. What cannot
    /// be read, and what cannot tell one host from others, proves nothing.
    pub(super) fn reduce(self) -> Option<(NodeName, NodeObject)> {
        let name = NodeName::parse(&self.metadata.name).ok()?;
        let status = self.status;
        let mut object = NodeObject {
            kubelet_port: status.as_ref().and_then(RawStatus::kubelet_port),
            pod_cidrs: self.spec.map_or_else(Vec::new, RawSpec::pod_cidrs),
            ..NodeObject::default()
        };
        // A node is reached under its name, which may be an address.
        let own = name.as_ip().into_iter();
        let addresses = status.and_then(|status| status.addresses);
        let texts: Vec<_> = addresses
            .into_iter()
            .flatten()
            .map(|address| address.address)
            .collect();
        let ips = texts.iter().filter_map(|text| values::node_ip(text).ok());
        for ip in own.chain(ips) {
            push(&mut object.addresses, ip.to_canonical());
        }
        for text in texts.iter().filter(|text| text.parse::<IpAddr>().is_err()) {
            if let Ok(other) = NodeName::parse(text)
                && other != name
            {
                push(&mut object.names, other);
            }
        }
        Some((name, object))
    }
}

impl RawStatus {
    fn kubelet_port(&self) -> Option<u16> {
        let endpoint = self.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref()?;
        // 0 is what one that does not know it says.
        u16::try_from(endpoint.port).ok().filter(|port| *port != 0)
    }
}

impl RawSpec {
    fn pod_cidrs(self) -> Vec<IpNet> {
        let mut nets = Vec::new();
        let texts = self.pod_cidrs.into_iter().flatten().chain(self.pod_cidr);
        for net in texts.filter_map(|text| text.parse::<IpNet>().ok()) {
            push(&mut nets, canonical(net).trunc());
        }
        nets
    }
}

/// Appends what is not there yet. A node has a few of each; one that has more than can be told to
/// it is not made worse by a longer search.
fn push<T: PartialEq>(all: &mut Vec<T>, one: T) {
    if all.len() < MAX_ADDRESSES && !all.contains(&one) {
        all.push(one);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reduce(text: &str) -> (String, NodeObject) {
        let node: RawNode = serde_json::from_str(text).unwrap();
        let (name, object) = node.reduce().unwrap();
        (name.to_string(), object)
    }

    #[test]
    fn of_a_whole_object_only_what_proves_something_is_left() {
        let (name, object) = reduce(
            r#"{
              "kind": "Node", "apiVersion": "v1",
              "metadata": { "name": "Worker-1", "uid": "8d1f", "resourceVersion": "42",
                            "labels": { "kubernetes.io/os": "linux" } },
              "spec": { "podCIDR": "10.244.1.0/24",
                        "podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"],
                        "providerID": "x" },
              "status": {
                "capacity": { "cpu": "2" },
                "addresses": [
                  { "type": "InternalIP", "address": "10.0.10.11" },
                  { "type": "ExternalIP", "address": "198.51.100.11" },
                  { "type": "InternalIP", "address": "fd00:10::11" },
                  { "type": "Hostname", "address": "worker-1" },
                  { "type": "InternalDNS", "address": "Worker-1.internal.example" }
                ],
                "daemonEndpoints": { "kubeletEndpoint": { "Port": 10250 } },
                "images": [ { "names": ["a"], "sizeBytes": 1 } ]
              }
            }"#,
        );
        assert_eq!(name, "worker-1");
        let ips = ["10.0.10.11", "198.51.100.11", "fd00:10::11"];
        assert_eq!(
            object.addresses,
            ips.map(|ip| ip.parse::<IpAddr>().unwrap())
        );
        assert_eq!(
            object.names,
            [NodeName::parse("worker-1.internal.example").unwrap()]
        );
        let nets = ["10.244.1.0/24", "fd00:10:244:1::/64"];
        assert_eq!(
            object.pod_cidrs,
            nets.map(|net| net.parse::<IpNet>().unwrap())
        );
        assert_eq!(object.kubelet_port, Some(10250));
    }

    #[test]
    fn an_object_that_says_nothing_proves_nothing_but_a_name_that_is_an_address() {
        let (name, object) = reduce(r#"{"metadata":{"name":"10.0.10.10"}}"#);
        assert_eq!(name, "10.0.10.10");
        assert_eq!(object.addresses, ["10.0.10.10".parse::<IpAddr>().unwrap()]);

        let empty = r#"{"metadata":{"name":"a"},"spec":{},"status":{"addresses":null,
                        "daemonEndpoints":{"kubeletEndpoint":{"Port":0}}}}"#;
        assert_eq!(reduce(empty).1, NodeObject::default());
    }

    #[test]
    fn what_is_no_address_of_one_host_or_no_network_is_left_out() {
        let text = r#"{"metadata":{"name":"a"},
            "spec":{"podCIDR":"10.244.1.7/24","podCIDRs":["nonsense"]},
            "status":{"addresses":[{"address":"127.0.0.1"},{"address":"0.0.0.0"},
              {"address":"224.0.0.1"},{"address":""},{"address":"a b"},{"address":"10.0.0.1"},
              {"address":"::ffff:10.0.0.1"}, {"address":"a"}],
             "daemonEndpoints":{"kubeletEndpoint":{"Port":70000}}}}"#;
        let (_, object) = reduce(text);
        assert_eq!(object.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(object.names, []);
        assert_eq!(
            object.pod_cidrs,
            ["10.244.1.0/24".parse::<IpNet>().unwrap()]
        );
        assert_eq!(object.kubelet_port, None);
    }

    #[test]
    fn a_name_that_no_node_can_have_is_no_node() {
        let node: RawNode = serde_json::from_str(r#"{"metadata":{"name":"a/b"}}"#).unwrap();
        assert!(node.reduce().is_none());
    }

    #[test]
    fn an_object_has_no_more_than_its_agent_can_be_told() {
        let all: Vec<_> = (0..200)
            .map(|i| format!(r#"{{"address":"10.0.0.{i}"}}"#))
            .collect();
        let text = format!(
            r#"{{"metadata":{{"name":"a"}},"status":{{"addresses":[{}]}}}}"#,
            all.join(",")
        );
        assert_eq!(reduce(&text).1.addresses.len(), MAX_ADDRESSES);
    }
}
