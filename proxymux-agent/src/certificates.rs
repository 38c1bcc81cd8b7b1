//! Where the agent's certificate and its CA come from, for as long as it runs.
//!
//! Owns the [`Source`] that `proxymux_transport::reload` looks at again and again; which of the
//! node's files is the agent's certificate is decided by `discovery.rs`, at each look anew.

use std::{path::PathBuf, sync::Arc};

use proxymux_transport::{
    clock::WallClock,
    credentials::{Credentials, CredentialsError, Roots, load_roots},
    reload::{Certificates, Source},
};

use crate::{
    config::{ClientIdentity, Config},
    discovery::{self, Discovery, DiscoveryError},
};

/// The agent's certificates, none of which has been looked for yet.
pub(crate) fn of_agent(config: &Config) -> Arc<Certificates> {
    let files = AgentFiles {
        identity: config.client_identity.clone(),
        ca_file: config.ca_file.clone(),
    };
    Certificates::new("sessions", files, WallClock::system())
}

/// Why the agent has no certificates.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificatesError {
    /// They are not there yet.
    #[error("{0}")]
    Waiting(String),
    /// The certificate cannot be used.
    #[error(transparent)]
    Credentials(DiscoveryError),
    /// The CA cannot be used.
    #[error("no usable CA")]
    Roots(#[source] CredentialsError),
}

struct AgentFiles {
    identity: ClientIdentity,
    ca_file: PathBuf,
}

impl Source for AgentFiles {
    type Error = CertificatesError;

    fn credential_files(&self) -> Vec<PathBuf> {
        discovery::files(&self.identity)
    }

    fn roots_file(&self) -> PathBuf {
        self.ca_file.clone()
    }

    fn credentials(&self) -> Result<Credentials, CertificatesError> {
        match discovery::discover(&self.identity) {
            Ok(Discovery::Found(credentials)) => Ok(credentials),
            Ok(Discovery::Waiting { message }) => Err(CertificatesError::Waiting(message)),
            Err(error) => Err(CertificatesError::Credentials(error)),
        }
    }

    fn roots(&self) -> Result<Roots, CertificatesError> {
        load_roots(&self.ca_file).map_err(|error| {
            if error.is_missing() {
                CertificatesError::Waiting(format!("waiting for the CA: {error}"))
            } else {
                CertificatesError::Roots(error)
            }
        })
    }
}
