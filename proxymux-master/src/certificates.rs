//! The certificates of the session port and of the front doors, from the files that are configured.
//!
//! Owns the [`Source`] for three files and the words for what is wrong with them at the start.
//! Leaves renewal to `proxymux_transport::reload`.

use std::{path::PathBuf, sync::Arc};

use proxymux_transport::{
    clock::WallClock,
    credentials::{Credentials, CredentialsError, Roots, load_roots},
    reload::{Certificates, Source},
};

/// Three files, and the setting in which they stand.
#[derive(Clone, Debug)]
pub(crate) struct CertificateFiles {
    /// What is put before the keys: nothing, or `front-doors[0].`.
    pub(crate) prefix: String,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) client_ca: PathBuf,
}

/// What is wrong with a file, and which setting names it.
#[derive(Debug, thiserror::Error)]
#[error("{key}")]
pub(crate) struct CertificateFilesError {
    key: String,
    #[source]
    source: CredentialsError,
}

impl CertificateFiles {
    /// Reads the files for the first time.
    ///
    /// # Errors
    ///
    /// A master does not start with files that cannot be used.
    pub(crate) fn load(
        self,
        purpose: &str,
    ) -> Result<Arc<Certificates>, Box<dyn std::error::Error + Send + Sync>> {
        let certificates = Certificates::new(purpose, self, WallClock::system());
        certificates.look()?;
        Ok(certificates)
    }
}

impl Source for CertificateFiles {
    type Error = CertificateFilesError;

    fn credential_files(&self) -> Vec<PathBuf> {
        vec![self.cert.clone(), self.key.clone()]
    }

    fn roots_file(&self) -> PathBuf {
        self.client_ca.clone()
    }

    fn credentials(&self) -> Result<Credentials, CertificateFilesError> {
        Credentials::load(&self.cert, Some(&self.key)).map_err(|source| CertificateFilesError {
            key: format!("{0}cert and {0}key", self.prefix),
            source,
        })
    }

    fn roots(&self) -> Result<Roots, CertificateFilesError> {
        load_roots(&self.client_ca).map_err(|source| CertificateFilesError {
            key: format!("{}client-ca", self.prefix),
            source,
        })
    }
}
