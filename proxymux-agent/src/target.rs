//! What this agent may dial, and dialling it.
//!
//! Owns the rule: this node's kubelet under any of the node's names and addresses, plus what
//! `allow:` names, and nothing else. The master asks; the node's own configuration decides.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use proxymux_proto::{AllowedRange, Host, Measure, NodeName, RefuseCode, TargetAddr};
use proxymux_transport::socket;
use tokio::net::TcpStream;

use crate::{config::Config, far_end::FarEnds};

/// Decides which targets may be dialled, and where each really is.
#[derive(Debug)]
pub(crate) struct TargetPolicy {
    node: NodeName,
    own_addresses: Vec<IpAddr>,
    kubelet: SocketAddr,
    allow: Vec<AllowedRange>,
    far_ends: FarEnds,
}

/// Why a target was not connected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("target {target} is not allowed by the configuration of node {node}")]
    NotAllowed { target: TargetAddr, node: NodeName },
    #[error("target {target} is not the kubelet of node {node}, to which alone flows lead")]
    NotKubelet { target: TargetAddr, node: NodeName },
    #[error("node {node} lets no master measure: its configuration has perf: off")]
    PerfOff { node: NodeName },
    #[error("node {node} has no end for measuring with the number {number}")]
    NoSuchEnd { number: u32, node: NodeName },
    #[error("node {node} cannot connect to {what} at {at}")]
    Failed {
        node: NodeName,
        what: &'static str,
        at: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("node {node} got no answer from {what} at {at} within {} ms", .limit.as_millis())]
    TimedOut {
        node: NodeName,
        what: &'static str,
        at: SocketAddr,
        limit: Duration,
    },
}

/// A target that may be dialled.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Destination {
    at: SocketAddr,
    what: &'static str,
    /// It is played by this agent.
    measure: Option<Measure>,
}

impl TargetPolicy {
    pub(crate) fn new(config: &Config) -> Self {
        let mut own_addresses = config.claimed_addresses();
        own_addresses.extend(config.node_name.as_ip());
        own_addresses.push(config.kubelet_addr.ip());
        Self {
            node: config.node_name.clone(),
            own_addresses,
            kubelet: config.kubelet_addr,
            allow: config.allow.clone(),
            far_ends: FarEnds::new(config.perf),
        }
    }

    /// Where `target` is to be dialled.
    ///
    /// # Errors
    ///
    /// When the configuration does not allow it.
    pub(crate) fn decide(&self, target: &TargetAddr) -> Result<Destination, DialError> {
        if self.is_kubelet(target) {
            return Ok(self.kubelet());
        }
        target
            .as_socket_addr()
            .filter(|at| self.allow.iter().any(|range| covers(range, *at)))
            .map(|at| Destination {
                at,
                what: "target",
                measure: None,
            })
            .ok_or_else(|| DialError::NotAllowed {
                target: target.clone(),
                node: self.node.clone(),
            })
    }

    /// Where `target` is to be dialled for a flow: those lead to the kubelet and nowhere else.
    ///
    /// # Errors
    ///
    /// When the target is another, whatever the configuration allows.
    pub(crate) fn decide_flow(&self, target: &TargetAddr) -> Result<Destination, DialError> {
        if self.is_kubelet(target) {
            return Ok(self.kubelet());
        }
        Err(DialError::NotKubelet {
            target: target.clone(),
            node: self.node.clone(),
        })
    }

    fn is_kubelet(&self, target: &TargetAddr) -> bool {
        let is_this_node = match &target.host {
            Host::Name(name) => *name == self.node,
            Host::Ip(ip) => self.own_addresses.contains(ip),
        };
        is_this_node && target.port() == self.kubelet.port()
    }

    /// This node's kubelet, for those who have come for nothing else.
    pub(crate) fn kubelet(&self) -> Destination {
        Destination {
            at: self.kubelet,
            what: "its kubelet",
            measure: None,
        }
    }

    /// An end for measuring, in the kubelet's place.
    ///
    /// # Errors
    ///
    /// When the configuration does not allow it, or it is not known.
    pub(crate) fn decide_measure(&self, measure: Measure) -> Result<Destination, DialError> {
        let node = self.node.clone();
        match measure {
            _ if self.far_ends.is_off() => Err(DialError::PerfOff { node }),
            Measure::Other(number) => Err(DialError::NoSuchEnd { number, node }),
            measure => Ok(Destination {
                at: self.kubelet,
                what: "an end for measuring",
                measure: Some(measure),
            }),
        }
    }

    /// Connects to a target that was decided on, within `limit`.
    ///
    /// # Errors
    ///
    /// When the connection does not stand by then.
    pub(crate) async fn dial(
        &self,
        destination: Destination,
        limit: Duration,
    ) -> Result<TcpStream, DialError> {
        let dialled = self.dial_with(destination, limit, socket::prepare_relayed);
        let (connection, ()) = dialled.await?;
        Ok(connection)
    }

    /// The same with settings of the caller's for the connection, and what they result in.
    ///
    /// # Errors
    ///
    /// When the connection does not stand by then.
    pub(crate) async fn dial_with<G>(
        &self,
        destination: Destination,
        limit: Duration,
        prepare: impl FnOnce(&TcpStream) -> io::Result<G>,
    ) -> Result<(TcpStream, G), DialError> {
        let Destination { at, what, measure } = destination;
        let node = self.node.clone();
        let connecting = async {
            match measure {
                None => TcpStream::connect(at).await,
                Some(measure) => self.far_ends.connect(measure).await,
            }
        };
        let connected = match tokio::time::timeout(limit, connecting).await {
            Ok(connected) => connected,
            Err(_) => {
                return Err(DialError::TimedOut {
                    node,
                    what,
                    at,
                    limit,
                });
            }
        };
        connected
            .and_then(|connection| prepare(&connection).map(|prepared| (connection, prepared)))
            .map_err(|source| DialError::Failed {
                node,
                what,
                at,
                source,
            })
    }
}

impl DialError {
    /// The code under which the master hears of it.
    pub(crate) fn code(&self) -> RefuseCode {
        match self {
            Self::NotAllowed { .. }
            | Self::NotKubelet { .. }
            | Self::PerfOff { .. }
            | Self::NoSuchEnd { .. } => RefuseCode::NotAllowed,
            Self::Failed { source, .. } if source.kind() == io::ErrorKind::ResourceBusy => {
                RefuseCode::Busy
            }
            Self::Failed { source, .. } if source.kind() == io::ErrorKind::TimedOut => {
                RefuseCode::TimedOut
            }
            Self::Failed { .. } => RefuseCode::Unreachable,
            Self::TimedOut { .. } => RefuseCode::TimedOut,
        }
    }
}

fn covers(range: &AllowedRange, at: SocketAddr) -> bool {
    range.net.contains(&at.ip()) && range.ports.contains(&at.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
node-name: Worker-1
server-addr: https://192.0.2.10:12250
private-ip-address: 10.0.10.10
public-ip-address: 198.51.100.7
kubelet-addr: 127.0.0.1:10250
allow: [ { cidr: 10.244.2.0/24, ports: 8000-8999 }, { cidr: 'fd00::/64', ports: 443 } ]
";

    fn policy() -> TargetPolicy {
        TargetPolicy::new(&Config::parse(FILE, "test.yaml").unwrap().0)
    }

    fn decide(target: &str) -> Result<String, String> {
        policy()
            .decide(&target.parse().unwrap())
            .map(|destination| destination.at.to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_kubelet_is_reached_under_every_name_of_the_node() {
        for target in [
            "worker-1:10250",
            "WORKER-1:10250",
            "10.0.10.10:10250",
            "198.51.100.7:10250",
        ] {
            assert_eq!(decide(target).as_deref(), Ok("127.0.0.1:10250"), "{target}");
        }
    }

    #[test]
    fn allowed_ranges_are_dialled_as_they_are() {
        assert_eq!(decide("10.244.2.9:8080").as_deref(), Ok("10.244.2.9:8080"));
        assert_eq!(decide("[fd00::9]:443").as_deref(), Ok("[fd00::9]:443"));
    }

    #[test]
    fn ends_for_measuring_are_there_unless_the_configuration_says_no() {
        policy().decide_measure(Measure::Echo).unwrap();
        let unknown = policy().decide_measure(Measure::Other(9)).unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "node worker-1 has no end for measuring with the number 9"
        );
        let file = format!("{FILE}perf: off\n");
        let policy = TargetPolicy::new(&Config::parse(&file, "test.yaml").unwrap().0);
        let error = policy.decide_measure(Measure::Echo).unwrap_err();
        assert_eq!(error.code(), RefuseCode::NotAllowed);
        assert_eq!(
            error.to_string(),
            "node worker-1 lets no master measure: its configuration has perf: off"
        );
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        for target in [
            "10.0.10.10:22",
            "10.0.10.11:10250",
            "worker-2:10250",
            "10.244.2.9:80",
            "10.244.3.9:8080",
            "[fd00::9]:444",
        ] {
            let expected =
                format!("target {target} is not allowed by the configuration of node worker-1");
            assert_eq!(decide(target), Err(expected));
        }
    }

    #[test]
    fn a_flow_leads_to_the_kubelet_and_not_to_what_is_allowed_besides() {
        let decide = |target: &str| policy().decide_flow(&target.parse().unwrap());
        for target in ["worker-1:10250", "10.0.10.10:10250", "198.51.100.7:10250"] {
            let decided = decide(target).unwrap();
            assert_eq!(decided.at.to_string(), "127.0.0.1:10250", "{target}");
        }
        for target in ["10.244.2.9:8080", "10.0.10.10:22", "10.0.10.11:10250"] {
            let error = decide(target).unwrap_err();
            assert_eq!(error.code(), RefuseCode::NotAllowed);
            let expected = format!(
                "target {target} is not the kubelet of node worker-1, to which alone flows lead"
            );
            assert_eq!(error.to_string(), expected);
        }
    }

    #[tokio::test]
    async fn a_refused_dial_names_node_target_and_cause() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        drop(listener);

        let destination = Destination {
            at,
            what: "its kubelet",
            measure: None,
        };
        let error = policy()
            .dial(destination, Duration::from_secs(5))
            .await
            .unwrap_err();

        assert_eq!(error.code(), RefuseCode::Unreachable);
        let reason = proxymux_transport::telemetry::chain(&error);
        let expected = format!("node worker-1 cannot connect to its kubelet at {at}: ");
        assert!(reason.starts_with(&expected), "{reason}");
        assert!(
            reason.ends_with("Connection refused (os error 111)"),
            "{reason}"
        );
        assert_eq!(reason.matches("refused").count(), 1, "{reason}");
    }
}
