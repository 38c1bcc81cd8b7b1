//! What can be wrong with files of certificates and keys, in words that name the file.
//!
//! Owns the closed list ([`CredentialsError`]); leaves to `credentials` when which of them is
//! found. Causes are in the errors' sources.

use std::{fmt, io, path::PathBuf};

use proxymux_proto::printable;
use rustls::pki_types::pem;

use super::pem_file::MAX_FILE_LEN;
use crate::certificate::CertificateError;

/// Why credentials or roots could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// There is no such file (yet).
    #[error("`{}` does not exist", path.display())]
    Missing {
        /// The path looked at.
        path: PathBuf,
    },
    /// The file is there but cannot be read.
    #[error("cannot read `{}`", path.display())]
    Unreadable {
        /// The path looked at.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The path leads to something that cannot hold a certificate.
    #[error("`{}` is not a regular file", path.display())]
    NotAFile {
        /// The path looked at.
        path: PathBuf,
    },
    /// The file is too long to be what it should be.
    #[error("`{}` has more than {MAX_FILE_LEN} bytes", path.display())]
    TooLong {
        /// The path looked at.
        path: PathBuf,
    },
    /// The file is damaged, or still being written.
    #[error("`{}` is not valid PEM", path.display())]
    BadPem {
        /// The path looked at.
        path: PathBuf,
        /// Where it goes wrong.
        #[source]
        source: PemFault,
    },
    /// There is no certificate in the file.
    #[error("`{}` holds no certificate{hint}", path.display())]
    NoCertificate {
        /// The path looked at.
        path: PathBuf,
        /// What it may hold instead.
        hint: Hint,
    },
    /// One of the certificates in the file cannot be read.
    #[error("`{}`: certificate {number}", path.display())]
    BadCertificate {
        /// The path looked at.
        path: PathBuf,
        /// Which certificate in the file, counted from 1.
        number: usize,
        /// What is wrong with it.
        #[source]
        source: CertificateError,
    },
    /// The first certificate may sign others, which peers refuse in a handshake.
    #[error(
        "`{}`: its first certificate, `{subject}`, is a CA certificate, expected the end-entity \
         certificate first",
        path.display()
    )]
    IsCa {
        /// The path looked at.
        path: PathBuf,
        /// Whose certificate.
        subject: String,
    },
    /// The first certificate is of a version that TLS peers refuse.
    #[error(
        "`{}`: `{subject}` is not an X.509 version 3 certificate (it was made without \
         extensions), which TLS peers refuse",
        path.display()
    )]
    OldVersion {
        /// The path looked at.
        path: PathBuf,
        /// Whose certificate.
        subject: String,
    },
    /// There is no private key in the file.
    #[error("`{}` holds no private key{hint}", path.display())]
    NoKey {
        /// The path looked at.
        path: PathBuf,
        /// What it may hold instead.
        hint: Hint,
    },
    /// The private key is protected by a passphrase, and there is nobody to ask.
    #[error("the private key in `{}` is encrypted, expected one without a passphrase", path.display())]
    EncryptedKey {
        /// The path looked at.
        path: PathBuf,
    },
    /// The private key is of a kind that cannot sign a TLS 1.3 handshake, or damaged.
    #[error("the private key in `{}` cannot be used", path.display())]
    UnusableKey {
        /// The path looked at.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rustls::Error,
    },
    /// The certificate's public key does not belong to the private key.
    #[error(
        "the private key in `{}` does not match certificate `{subject}` in `{}`",
        key_file.display(),
        cert_file.display()
    )]
    KeyMismatch {
        /// Where the key is.
        key_file: PathBuf,
        /// Where the certificate is.
        cert_file: PathBuf,
        /// Whose certificate.
        subject: String,
    },
    /// The TLS library cannot use the certificate, although it can be read.
    #[error("certificate `{subject}` in `{}` cannot be used", path.display())]
    UnusableCertificate {
        /// The path looked at.
        path: PathBuf,
        /// Whose certificate.
        subject: String,
        /// Why not.
        #[source]
        source: rustls::Error,
    },
    /// The file holds certificates, but none that may sign others.
    #[error("`{}` holds no CA certificate: `{}`", path.display(), subjects.join("`, `"))]
    NoCa {
        /// The path looked at.
        path: PathBuf,
        /// The subjects of what it holds.
        subjects: Vec<String>,
    },
}

/// What a file without the wanted PEM section looks like it holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hint {
    /// Nothing to say.
    None,
    /// The file has no bytes.
    Empty,
    /// The file looks like DER.
    Der,
    /// The file holds only private keys.
    OnlyKeys,
    /// The file holds only certificates.
    OnlyCertificates,
}

/// What is wrong with a PEM file. The library's own text shows what it has read as numbers.
#[derive(Debug)]
pub struct PemFault(pub(super) pem::Error);

impl CredentialsError {
    /// Whether the error is that a file is not there, which may change without anybody's help:
    /// on a new node the kubelet writes its certificate after the agent has started.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }

    /// What a person can do about it, in a few words.
    #[must_use]
    pub fn fix(&self) -> String {
        match self {
            Self::Missing { path } => format!(
                "put the file there (`ls -l {}`), or name the right one in the configuration",
                path.display()
            ),
            Self::Unreadable { path, source } => match source.kind() {
                io::ErrorKind::PermissionDenied => format!(
                    "run this as the user that may read `{}`, or let this one",
                    path.display()
                ),
                _ => format!("see why: `ls -lL {}`, and the kernel's log", path.display()),
            },
            Self::NotAFile { .. } | Self::TooLong { .. } => {
                "name the right file in the configuration".to_owned()
            }
            Self::BadPem { .. } | Self::NoCertificate { .. } | Self::BadCertificate { .. } => {
                "write the file anew, whole and in PEM, or name the right one in the configuration"
                    .to_owned()
            }
            Self::IsCa { .. } => "put the end-entity certificate first in the file".to_owned(),
            Self::OldVersion { .. } => {
                "have it issued anew with extensions (openssl: `-extfile`)".to_owned()
            }
            Self::NoKey { .. } => {
                "put the key there, or name the file that has it in the configuration".to_owned()
            }
            Self::EncryptedKey { path } => format!(
                "write it without a passphrase: `openssl pkey -in {}`",
                path.display()
            ),
            Self::UnusableKey { .. } => {
                "make a new key, ECDSA P-256 or RSA of 2048 bits or more, and have a certificate \
                 issued for it"
                    .to_owned()
            }
            Self::KeyMismatch { .. } => {
                "put certificate and key of one pair there; if they are just being replaced, look \
                 again"
                    .to_owned()
            }
            Self::UnusableCertificate { .. } => "have the certificate issued anew".to_owned(),
            Self::NoCa { .. } => {
                "put the CA's certificate there, with basic constraints CA:TRUE".to_owned()
            }
        }
    }
}

impl fmt::Display for PemFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |bytes: &[u8]| printable(&String::from_utf8_lossy(bytes), MAX_SHOWN_LEN);
        match &self.0 {
            pem::Error::MissingSectionEnd { end_marker } => {
                write!(
                    f,
                    "the line `-----END {}-----` is missing",
                    shown(end_marker)
                )
            }
            pem::Error::IllegalSectionStart { line } => {
                write!(f, "the line `{}` is no start of a section", shown(line))
            }
            other => other.fmt(f),
        }
    }
}

impl std::error::Error for PemFault {}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "",
            Self::Empty => ": it is empty",
            Self::Der => ": it looks like DER, expected PEM",
            Self::OnlyKeys => ", only a private key",
            Self::OnlyCertificates => ", only certificates",
        })
    }
}

/// How much of a file's line is shown.
const MAX_SHOWN_LEN: usize = 80;
