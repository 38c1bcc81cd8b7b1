//! Certificates on disk, written so that a watching daemon never sees half a file.

use std::{
    fmt, fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// Where a certificate and its key are; the same path twice where they share a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertFiles {
    /// The certificate chain in PEM.
    pub cert: PathBuf,
    /// The private key in PEM.
    pub key: PathBuf,
}

/// A certificate that was issued and not yet written.
#[derive(Clone)]
pub struct Issued {
    cert_pem: String,
    key_pem: String,
}

impl Issued {
    pub(super) fn new(cert_pem: String, key_pem: String) -> Self {
        Self { cert_pem, key_pem }
    }

    /// The certificate.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The private key.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Writes certificate and key to a file each, key first: whoever watches the certificate
    /// finds its key there. Directories are made, files replaced.
    ///
    /// # Errors
    ///
    /// A file could not be written.
    pub fn write_pair(
        &self,
        cert: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Result<CertFiles> {
        let files = CertFiles {
            cert: cert.into(),
            key: key.into(),
        };
        write_atomically(&files.key, &self.key_pem, PRIVATE)?;
        write_atomically(&files.cert, &self.cert_pem, PRIVATE)?;
        Ok(files)
    }

    /// Writes both to one file, the certificate first.
    ///
    /// # Errors
    ///
    /// The file could not be written.
    pub fn write_combined(&self, path: impl Into<PathBuf>) -> Result<CertFiles> {
        let path = path.into();
        let both = format!("{}{}", self.cert_pem, self.key_pem);
        write_atomically(&path, &both, PRIVATE)?;
        Ok(CertFiles {
            cert: path.clone(),
            key: path,
        })
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("cert_pem", &self.cert_pem)
            .finish_non_exhaustive()
    }
}

/// Readable by the owner alone, as the kubelet's certificates are too.
const PRIVATE: u32 = 0o600;
/// As a cluster's `ca.crt` is.
pub(super) const PUBLIC: u32 = 0o644;

/// Writes beside `path` and moves over it.
pub(super) fn write_atomically(path: &Path, content: &str, mode: u32) -> Result<()> {
    let context = || format!("cannot write {}", path.display());
    make_parent(path).with_context(context)?;
    let fresh = beside(path);
    fs::write(&fresh, content).with_context(context)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(mode)).with_context(context)?;
    fs::rename(&fresh, path).with_context(context)
}

/// Makes `path` a symbolic link to `target`, in place of the one there is.
pub(super) fn link_atomically(target: &Path, path: &Path) -> Result<()> {
    let context = || format!("cannot link {} to {}", path.display(), target.display());
    make_parent(path).with_context(context)?;
    let fresh = beside(path);
    symlink(target, &fresh).with_context(context)?;
    fs::rename(&fresh, path).with_context(context)
}

fn make_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}
