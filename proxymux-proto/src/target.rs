//! What a client asks to be connected to: a host and a port.
//!
//! Owns reading and writing the authority form of a CONNECT request (RFC 9110, section 7.1) and
//! the same text inside an open request; which node or rule the host stands for is decided by
//! the master's routes and the agent's allow-list.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use crate::{NodeName, NodeNameError};

/// Where a relayed connection is to end.
///
/// ```
/// use proxymux_proto::TargetAddr;
/// let target: TargetAddr = "[FD00::1]:10250".parse()?;
/// assert_eq!(target.to_string(), "[fd00::1]:10250");
/// # Ok::<(), proxymux_proto::TargetError>(())
/// ```
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct TargetAddr {
    /// The host part.
    ///
    /// A name that is the text of an address, as node names on OKE are, belongs in [`Host::Ip`]:
    /// [`TargetAddr::new`] sees to it.
    pub host: Host,
    /// The port, never 0.
    port: u16,
}

/// The host part of a target.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Host {
    /// An IPv4 address, or an IPv6 address that was written in brackets.
    Ip(IpAddr),
    /// A name, in lower case.
    Name(NodeName),
}

/// Why a text is no target.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TargetError {
    /// No `:port` at the end.
    #[error("target has no port, expected host:port")]
    NoPort,
    /// The port is no number from 1 to 65535.
    #[error("target has a bad port, expected 1 to 65535")]
    BadPort,
    /// Brackets that hold no IPv6 address, or an IPv6 address without brackets.
    #[error("target has a bad IPv6 address, expected [address]:port")]
    BadIpv6,
    /// A host that is neither an address nor a name.
    #[error("target host {0}")]
    BadName(#[from] NodeNameError),
}

impl TargetAddr {
    /// A target from its parts; `None` for port 0, which nothing listens on.
    ///
    /// The host comes out as reading the target's text would have it: an address is the address
    /// of one form, also when it was given as a name.
    #[must_use]
    pub fn new(host: Host, port: u16) -> Option<Self> {
        let host = match host {
            Host::Ip(ip) => Host::Ip(ip.to_canonical()),
            Host::Name(name) => name.as_ip().map_or(Host::Name(name), Host::Ip),
        };
        (port != 0).then_some(Self { host, port })
    }

    /// The port, from 1 to 65535.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The socket address, where the host is one.
    #[must_use]
    pub fn as_socket_addr(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ip(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Name(_) => None,
        }
    }
}

impl Host {
    /// Reads a host without brackets: an address of either family, or a name.
    ///
    /// An IPv4-mapped IPv6 address is the IPv4 address it stands for, so that one host has one
    /// form.
    ///
    /// # Errors
    ///
    /// When the text is neither an address nor a name.
    pub fn parse(text: &str) -> Result<Self, NodeNameError> {
        match text.parse::<IpAddr>() {
            Ok(ip) => Ok(Self::Ip(ip.to_canonical())),
            Err(_) => NodeName::parse(text).map(Self::Name),
        }
    }
}

impl FromStr for TargetAddr {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (host, port) = text.rsplit_once(':').ok_or(TargetError::NoPort)?;
        if port.is_empty() {
            return Err(TargetError::NoPort);
        }
        // `u16::from_str` would also take a leading plus sign.
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        let port = port
            .parse()
            .ok()
            .filter(|&p| digits && p != 0)
            .ok_or(TargetError::BadPort)?;
        let host = match host.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
            Some(inner) => {
                let ip: Ipv6Addr = inner
                    .and_then(|i| i.parse().ok())
                    .ok_or(TargetError::BadIpv6)?;
                Host::Ip(IpAddr::V6(ip).to_canonical())
            }
            None if host.contains(':') => return Err(TargetError::BadIpv6),
            None => Host::parse(host)?,
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for TargetAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = match &self.host {
            Host::Ip(ip) => Some(*ip),
            // An IPv6 address without its brackets would not be read back.
            Host::Name(name) => name.as_ip(),
        };
        match ip {
            Some(ip) => SocketAddr::new(ip, self.port).fmt(f),
            None => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<TargetAddr, TargetError> {
        text.parse()
    }

    #[test]
    fn every_form_of_a_host_is_read() {
        for (text, shown) in [
            ("10.0.10.10:10250", "10.0.10.10:10250"),
            ("[fd00:10::10]:10250", "[fd00:10::10]:10250"),
            ("[::ffff:10.0.10.10]:1", "10.0.10.10:1"),
            ("Node-A.example:65535", "node-a.example:65535"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn a_name_that_is_an_address_becomes_the_address() {
        let name = |text| Host::Name(NodeName::parse(text).unwrap());

        let v4 = TargetAddr::new(name("10.0.10.10"), 10250).unwrap();
        let v6 = TargetAddr::new(name("fd00::1"), 10250).unwrap();
        let mapped = TargetAddr::new(Host::Ip("::ffff:10.0.0.1".parse().unwrap()), 1).unwrap();

        assert_eq!(v4, parse("10.0.10.10:10250").unwrap());
        assert_eq!(v6, parse("[fd00::1]:10250").unwrap());
        assert_eq!(mapped, parse("10.0.0.1:1").unwrap());
    }

    #[test]
    fn a_host_set_to_the_name_of_an_address_is_still_read_back() {
        let mut target = parse("node:10250").unwrap();

        target.host = Host::Name(NodeName::parse("fd00::1").unwrap());

        assert_eq!(target.to_string(), "[fd00::1]:10250");
    }

    #[test]
    fn bad_targets_say_what_is_wrong() {
        for (text, error) in [
            ("", TargetError::NoPort),
            ("host", TargetError::NoPort),
            ("host:", TargetError::NoPort),
            ("host:0", TargetError::BadPort),
            ("host:65536", TargetError::BadPort),
            ("host:+1", TargetError::BadPort),
            ("host:1x", TargetError::BadPort),
            ("fd00::1:10250", TargetError::BadIpv6),
            ("[fd00::1:10250", TargetError::BadIpv6),
            ("[10.0.0.1]:10250", TargetError::BadIpv6),
            ("[]:1", TargetError::BadIpv6),
            (":1", TargetError::BadName(NodeNameError::Empty)),
        ] {
            assert_eq!(parse(text).unwrap_err(), error, "{text:?}");
        }
    }
}
