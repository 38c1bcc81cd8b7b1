//! Node names.
//!
//! Owns what a node name may look like; that a peer really has the name is the certificate's
//! business, in `proxymux-transport`.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

/// The name of a Kubernetes node, in lower case.
///
/// Names compare case-insensitively, which lower-casing at the door makes true everywhere.
/// A name may be the text of an IP address, as on OKE: see [`NodeName::as_ip`].
///
/// ```
/// use proxymux_proto::NodeName;
/// assert_eq!(NodeName::parse("Node-A")?, NodeName::parse("node-a")?);
/// assert!(NodeName::parse("no de").is_err());
/// # Ok::<(), proxymux_proto::NodeNameError>(())
/// ```
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeName(String);

/// Why a text is no node name.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NodeNameError {
    /// The text is empty.
    #[error("is empty, expected the name of a node")]
    Empty,
    /// The text is longer than a Kubernetes object's name may be.
    #[error("has {len} bytes, expected at most {MAX_NAME_LEN}")]
    TooLong {
        /// The length seen.
        len: usize,
    },
    /// A character that no DNS-1123 subdomain has, in a text that is no IPv6 address either.
    #[error(
        "has '{}' at byte {at}, expected letters, digits, '-' or '.', or an IPv6 address",
        .found.escape_default()
    )]
    BadCharacter {
        /// The first such character.
        found: char,
        /// Where it stands.
        at: usize,
    },
}

impl NodeName {
    /// Reads a node name.
    ///
    /// # Errors
    ///
    /// Says what about the text no node name can have. A little more is allowed than Kubernetes
    /// itself does (an IPv6 address, dots and hyphens anywhere), never less.
    pub fn parse(text: &str) -> Result<Self, NodeNameError> {
        if text.is_empty() {
            return Err(NodeNameError::Empty);
        }
        if text.len() > MAX_NAME_LEN {
            return Err(NodeNameError::TooLong { len: text.len() });
        }
        let bad = text
            .char_indices()
            .find(|(_, c)| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '.')));
        match bad {
            // A colon in anything but an IPv6 address would be read as the start of a port.
            Some((_, ':')) if text.parse::<Ipv6Addr>().is_ok() => {}
            Some((at, found)) => return Err(NodeNameError::BadCharacter { found, at }),
            None => {}
        }
        Ok(Self(text.to_ascii_lowercase()))
    }

    /// The name as text, in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address that the name is the text of, if it is one.
    ///
    /// An IPv4-mapped IPv6 address is the IPv4 address it stands for, as in [`crate::Host`].
    #[must_use]
    pub fn as_ip(&self) -> Option<IpAddr> {
        self.0.parse().ok().map(|ip: IpAddr| ip.to_canonical())
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The longest name of a Kubernetes object (a DNS-1123 subdomain).
const MAX_NAME_LEN: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_folded_to_lower_case() {
        assert_eq!(
            NodeName::parse("NODE.Example").unwrap().as_str(),
            "node.example"
        );
    }

    #[test]
    fn an_address_is_a_name_and_is_recognised() {
        let name = NodeName::parse("10.0.10.10").unwrap();
        assert_eq!(name.as_ip(), Some("10.0.10.10".parse().unwrap()));
        assert_eq!(
            NodeName::parse("FD00::1").unwrap().as_ip(),
            Some("fd00::1".parse().unwrap())
        );
        assert_eq!(
            NodeName::parse("::ffff:10.0.10.10").unwrap().as_ip(),
            Some("10.0.10.10".parse().unwrap())
        );
        assert_eq!(NodeName::parse("worker-1").unwrap().as_ip(), None);
    }

    #[test]
    fn bad_names_say_what_is_wrong() {
        assert_eq!(NodeName::parse("").unwrap_err(), NodeNameError::Empty);
        assert_eq!(
            NodeName::parse(&"a".repeat(254)).unwrap_err(),
            NodeNameError::TooLong { len: 254 }
        );
        assert_eq!(
            NodeName::parse("a\r\nb").unwrap_err().to_string(),
            "has '\\r' at byte 1, expected letters, digits, '-' or '.', or an IPv6 address"
        );
        assert_eq!(
            NodeName::parse("nö").unwrap_err().to_string(),
            "has '\\u{f6}' at byte 1, expected letters, digits, '-' or '.', or an IPv6 address"
        );
    }

    #[test]
    fn a_colon_is_part_of_an_ipv6_address_or_wrong() {
        for text in ["a:1", "10.0.0.1:80", "::1%eth0", ":", "fd00::1:"] {
            assert!(NodeName::parse(text).is_err(), "{text}");
        }
    }
}
