//! The random id of one run of a daemon.
//!
//! Owns its form on the wire and in logs; the randomness is the caller's.

use std::fmt;

/// Tells one run of an agent or a master from another with the same name or certificate.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct InstanceId([u8; 16]);

/// The bytes are no instance id.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("has {len} bytes, expected 16")]
pub struct InstanceIdError {
    /// The length seen.
    pub len: usize,
}

impl InstanceId {
    /// An id from random bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes as sent.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl TryFrom<&[u8]> for InstanceId {
    type Error = InstanceIdError;

    fn try_from(bytes: &[u8]) -> Result<Self, InstanceIdError> {
        bytes
            .try_into()
            .map(Self)
            .map_err(|_| InstanceIdError { len: bytes.len() })
    }
}

impl fmt::Display for InstanceId {
    /// The first four bytes in hex: enough to tell two daemons apart in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(4).try_for_each(|b| write!(f, "{b:02x}"))
    }
}
