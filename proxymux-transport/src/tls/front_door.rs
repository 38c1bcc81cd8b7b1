//! Who may come in at a front door that speaks TLS.
//!
//! Owns the decision about a client whose certificate a handshake has verified; leaves to `tls`
//! the handshake, and to the master what an admitted client may ask for.

use std::{collections::BTreeSet, fmt};

use proxymux_proto::printable;

use crate::certificate::{CertificateInfo, quoted};

/// The clients that a front door admits, by the common name of their certificate.
#[derive(Clone, Debug)]
pub struct FrontDoorPolicy {
    /// Never empty.
    client_names: BTreeSet<String>,
}

/// The name under which a client was admitted: one of those in the configuration.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct ClientName(String);

/// A front door for nobody, or, if it were read the other way, for everybody.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the list of client names is empty, expected at least one")]
pub struct EmptyClientNames;

/// Why a client was not admitted.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FrontDoorRefusal {
    /// The client is a node.
    #[error(
        "client certificate `{subject}` belongs to a node (organization `system:nodes`): no node \
         may use a front door, listed or not"
    )]
    IsNode {
        /// The certificate's subject.
        subject: String,
    },
    /// The certificate has no name that could be on the list, or several.
    #[error("client certificate `{subject}` has {count} common names, expected one")]
    NotOneName {
        /// The certificate's subject.
        subject: String,
        /// How many.
        count: usize,
    },
    /// The certificate's name is not on the list.
    #[error(
        "client certificate `{subject}` has the common name `{seen}`, expected {}",
        quoted(.admitted, "name")
    )]
    NotListed {
        /// The certificate's subject.
        subject: String,
        /// The common name seen.
        seen: String,
        /// The names on the list.
        admitted: Vec<String>,
    },
}

impl FrontDoorPolicy {
    /// A policy that admits the clients with these common names. Letter case matters, as it does
    /// to Kubernetes, for which a common name is a user's name.
    ///
    /// # Errors
    ///
    /// If there is no name.
    pub fn new(client_names: impl IntoIterator<Item = String>) -> Result<Self, EmptyClientNames> {
        let client_names: BTreeSet<_> = client_names.into_iter().collect();
        if client_names.is_empty() {
            return Err(EmptyClientNames);
        }
        Ok(Self { client_names })
    }

    /// Decides about a client whose certificate a handshake has verified.
    ///
    /// # Errors
    ///
    /// Says what about the certificate was not accepted.
    pub fn admits(&self, certificate: &CertificateInfo) -> Result<ClientName, FrontDoorRefusal> {
        let subject = certificate.subject.clone();
        // Comes first and cannot be configured away: through a front door a node could reach the
        // kubelet of every other node.
        if certificate.is_in_nodes_group() {
            return Err(FrontDoorRefusal::IsNode { subject });
        }
        let Some(name) = certificate.common_name() else {
            let count = certificate.common_names.len();
            return Err(FrontDoorRefusal::NotOneName { subject, count });
        };
        match self.client_names.get(name) {
            Some(listed) => Ok(ClientName(listed.clone())),
            None => Err(FrontDoorRefusal::NotListed {
                subject,
                seen: printable(name, MAX_NAME_LEN),
                admitted: self.client_names.iter().cloned().collect(),
            }),
        }
    }
}

impl ClientName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClientName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How much of a refused name is shown.
const MAX_NAME_LEN: usize = 300;
