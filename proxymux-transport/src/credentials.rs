//! Certificates and keys read from files, checked before they are used.
//!
//! Owns the way from paths to [`Credentials`] (what we show to a peer) and [`Roots`] (whom we
//! believe), and the errors that tell a person which file is wrong and how.
//! Leaves to callers where the files are, when to read them again (compare [`ContentId`]s), and to
//! `tls` what is done with them. An expired certificate is loaded: it is for the peer to refuse,
//! and for the caller to warn with [`CertificateInfo::validity_at`].
//! All functions here block on the file system; files are at most 1 MiB ([`MAX_FILE_LEN`]).

pub mod check;
mod error;
mod pem_file;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore,
    crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::CertifiedKey,
};

use self::pem_file::{
    certificates_in, end_entity_chain, parse_certificate, private_key, read_file,
};
pub use self::{
    error::{CredentialsError, Hint, PemFault},
    pem_file::MAX_FILE_LEN,
};
use crate::{certificate::CertificateInfo, telemetry::chain, tls};

/// A certificate, the chain behind it and its private key: what we show to a peer.
///
/// Cheap to clone.
#[derive(Clone)]
pub struct Credentials(Arc<Loaded>);

struct Loaded {
    /// The key belongs to the first certificate, and that one is an end-entity certificate that
    /// a TLS peer can read.
    certified: Arc<CertifiedKey>,
    info: CertificateInfo,
    content: ContentId,
    cert_file: PathBuf,
    key_file: PathBuf,
}

/// The certification authorities that we believe.
#[derive(Clone)]
pub struct Roots {
    /// Never empty.
    store: Arc<RootCertStore>,
    certificates: Vec<CertificateInfo>,
    ignored: Vec<String>,
    content: ContentId,
    file: PathBuf,
}

/// Stands for the content of the files that something was read from.
///
/// Equal content means equal files, so a watcher need not keep them, nor trust their dates:
/// a Kubernetes volume swaps a symbolic link, and a restored file may be older than what it
/// replaces.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct ContentId([u8; 32]);

impl Credentials {
    /// Reads a certificate (with the chain behind it) and its private key.
    ///
    /// Without `key_file` both are in `cert_file`, which is then read once, so that a rotation
    /// cannot come between them. With two files it can: a [`CredentialsError::KeyMismatch`] then
    /// goes away when they are read again.
    ///
    /// # Errors
    ///
    /// Names the file and what is wrong with it. [`CredentialsError::is_missing`] tells a file
    /// that may still appear.
    pub fn load(cert_file: &Path, key_file: Option<&Path>) -> Result<Self, CredentialsError> {
        let cert_pem = read_file(cert_file)?;
        let (chain, info) = end_entity_chain(cert_file, &cert_pem)?;
        let mut hash = Hash::new();
        hash.update(&cert_pem);

        let key_path = key_file.unwrap_or(cert_file);
        let key = match key_file {
            None => private_key(cert_file, &cert_pem)?,
            Some(key_file) => {
                let key_pem = read_file(key_file)?;
                hash.update(&key_pem);
                private_key(key_file, &key_pem)?
            }
        };
        let certified = certify(cert_file, key_path, chain, &info, key)?;
        Ok(Self(Arc::new(Loaded {
            certified: Arc::new(certified),
            info,
            content: hash.finish(),
            cert_file: cert_file.to_owned(),
            key_file: key_path.to_owned(),
        })))
    }

    /// What our own certificate says.
    #[must_use]
    pub fn info(&self) -> &CertificateInfo {
        &self.0.info
    }

    /// Stands for the content of the files.
    #[must_use]
    pub fn content(&self) -> ContentId {
        self.0.content
    }

    /// The file that the certificate came from.
    #[must_use]
    pub fn cert_file(&self) -> &Path {
        &self.0.cert_file
    }

    /// The file that the key came from; the same if both are in one.
    #[must_use]
    pub fn key_file(&self) -> &Path {
        &self.0.key_file
    }

    /// Our certificate first, then what is to be sent along with it.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0.certified.cert
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0.certified)
    }
}

impl Roots {
    /// The store of trust anchors, never empty.
    ///
    /// An anchor's own dates are not checked in a handshake (RFC 5280 6.1.1 has no place for
    /// them); warn about [`Self::certificates`] instead.
    pub(crate) fn store(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.store)
    }

    /// What the CA certificates say, in the order of the file.
    #[must_use]
    pub fn certificates(&self) -> &[CertificateInfo] {
        &self.certificates
    }

    /// The subjects of certificates in the file that are left out because they are no CAs.
    #[must_use]
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// Stands for the content of the file.
    #[must_use]
    pub fn content(&self) -> ContentId {
        self.content
    }

    /// The file that they came from.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }
}

/// Reads a bundle of CA certificates. Several are fine: that is how a CA is rotated.
///
/// A certificate that is no CA's is left out and listed in [`Roots::ignored`]: as a trust anchor
/// it would be allowed to sign others, which is what its issuer did not want.
///
/// # Errors
///
/// Names the file and what is wrong with it, above all that no certificate in it is a CA's.
pub fn load_roots(path: &Path) -> Result<Roots, CredentialsError> {
    let content = read_file(path)?;
    let mut store = RootCertStore::empty();
    let mut certificates = Vec::new();
    let mut ignored = Vec::new();
    for (index, der) in certificates_in(path, &content)?.into_iter().enumerate() {
        let info = parse_certificate(path, index, &der)?;
        if !info.is_ca {
            ignored.push(info.subject);
            continue;
        }
        store
            .add(der)
            .map_err(|source| CredentialsError::UnusableCertificate {
                path: path.to_owned(),
                subject: info.subject.clone(),
                source,
            })?;
        certificates.push(info);
    }
    if certificates.is_empty() {
        return Err(CredentialsError::NoCa {
            path: path.to_owned(),
            subjects: ignored,
        });
    }
    let mut hash = Hash::new();
    hash.update(&content);
    Ok(Roots {
        store: Arc::new(store),
        certificates,
        ignored,
        content: hash.finish(),
        file: path.to_owned(),
    })
}

/// Stands for what is in these files now, or for why it cannot be read.
///
/// For a watcher, which need not take certificates apart at each look. Comparable with what this
/// function gives for the same paths only.
#[must_use]
pub fn content_of(paths: &[impl AsRef<Path>]) -> ContentId {
    let mut hash = Hash::new();
    for path in paths {
        match read_file(path.as_ref()) {
            Ok(content) => hash.update(&content),
            // No file has this length and content: the text names the file.
            Err(error) => hash.update(chain(&error).as_bytes()),
        }
    }
    hash.finish()
}

/// Reads only the first certificate of a file, to find out what it is good for.
///
/// # Errors
///
/// As [`Credentials::load`], less everything about keys.
pub fn read_certificate(path: &Path) -> Result<CertificateInfo, CredentialsError> {
    let content = read_file(path)?;
    let (_, info) = end_entity_chain(path, &content)?;
    Ok(info)
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("subject", &self.0.info.subject)
            .field("cert_file", &self.0.cert_file)
            .field("key_file", &self.0.key_file)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subjects: Vec<_> = self.certificates.iter().map(|c| &c.subject).collect();
        f.debug_struct("Roots")
            .field("subjects", &subjects)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Enough to tell two apart in a log.
        let [a, b, c, d, ..] = self.0;
        write!(f, "ContentId({a:02x}{b:02x}{c:02x}{d:02x})")
    }
}

fn certify(
    cert_file: &Path,
    key_file: &Path,
    chain: Vec<CertificateDer<'static>>,
    info: &CertificateInfo,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, CredentialsError> {
    let key = tls::provider()
        .key_provider
        .load_private_key(key)
        .map_err(|source| CredentialsError::UnusableKey {
            path: key_file.to_owned(),
            source,
        })?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        // `Unknown` never comes from the keys of our provider, which all know their public half;
        // were it to come, an unchecked pair is not what this function promises.
        Err(rustls::Error::InconsistentKeys(_)) => Err(CredentialsError::KeyMismatch {
            key_file: key_file.to_owned(),
            cert_file: cert_file.to_owned(),
            subject: info.subject.clone(),
        }),
        Err(source) => Err(CredentialsError::UnusableCertificate {
            path: cert_file.to_owned(),
            subject: info.subject.clone(),
            source,
        }),
    }
}

/// SHA-256 by way of the TLS library's own implementation, so that no second one is linked.
struct Hash(Box<dyn rustls::crypto::hash::Context>);

impl Hash {
    fn new() -> Self {
        let suite = TLS13_AES_128_GCM_SHA256
            .tls13()
            .expect("a constant of TLS 1.3 is a TLS 1.3 suite");
        Self(suite.common.hash_provider.start())
    }

    /// The length goes first, so that bytes moved from one file to the next make a difference.
    fn update(&mut self, file: &[u8]) {
        self.0.update(&file.len().to_be_bytes());
        self.0.update(file);
    }

    fn finish(self) -> ContentId {
        let output = self.0.finish();
        let digest = output.as_ref().first_chunk::<32>();
        ContentId(*digest.expect("SHA-256 has 32 bytes"))
    }
}

#[cfg(test)]
mod tests;
