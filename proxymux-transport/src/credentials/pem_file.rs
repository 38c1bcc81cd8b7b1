//! Reading PEM files, with bounds, and finding in them what is wanted.
//!
//! Owns the file system's side of `credentials` and the choice of sections; leaves to
//! `credentials` whether the certificates and keys found are any good together.

use std::{
    fs,
    io::{self, Read},
    path::Path,
};

use rustls::pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{PemObject, SectionKind},
};

use super::{CredentialsError, Hint, PemFault};
use crate::certificate::CertificateInfo;

pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, CredentialsError> {
    let unreadable = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => CredentialsError::Missing {
            path: path.to_owned(),
        },
        _ => CredentialsError::Unreadable {
            path: path.to_owned(),
            source,
        },
    };
    // Looked at before it is opened: opening a named pipe would wait for its other end.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(CredentialsError::NotAFile {
            path: path.to_owned(),
        });
    }
    let mut content = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE_LEN + 1).read_to_end(&mut content))
        .map_err(unreadable)?;
    if u64::try_from(content.len()).is_ok_and(|len| len <= MAX_FILE_LEN) {
        Ok(content)
    } else {
        Err(CredentialsError::TooLong {
            path: path.to_owned(),
        })
    }
}

/// The certificates of a file that is to hold an end-entity certificate first.
pub(super) fn end_entity_chain(
    path: &Path,
    content: &[u8],
) -> Result<(Vec<CertificateDer<'static>>, CertificateInfo), CredentialsError> {
    let chain = certificates_in(path, content)?;
    let mut infos = chain
        .iter()
        .enumerate()
        .map(|(index, der)| parse_certificate(path, index, der))
        .collect::<Result<Vec<_>, _>>()?;
    let info = infos.swap_remove(0);
    let path = path.to_owned();
    let subject = info.subject.clone();
    if info.is_ca {
        return Err(CredentialsError::IsCa { path, subject });
    }
    if !info.is_version_3 {
        return Err(CredentialsError::OldVersion { path, subject });
    }
    Ok((chain, info))
}

/// Every certificate in the file, at least one.
pub(super) fn certificates_in(
    path: &Path,
    content: &[u8],
) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let sections = sections_in(path, content)?;
    let hint = hint_for(content, &sections);
    let certificates: Vec<_> = sections
        .into_iter()
        .filter_map(|(kind, der)| CertificateDer::from_pem(kind, der))
        .collect();
    if certificates.is_empty() {
        return Err(CredentialsError::NoCertificate {
            path: path.to_owned(),
            hint,
        });
    }
    Ok(certificates)
}

/// The first private key in the file, as every other program that reads such files has it.
pub(super) fn private_key(
    path: &Path,
    content: &[u8],
) -> Result<PrivateKeyDer<'static>, CredentialsError> {
    let sections = sections_in(path, content)?;
    let hint = hint_for(content, &sections);
    let mut keys = sections
        .into_iter()
        .filter_map(|(kind, der)| PrivateKeyDer::from_pem(kind, der));
    if let Some(key) = keys.next() {
        return Ok(key);
    }
    let path = path.to_owned();
    if contains(content, PKCS8_ENCRYPTED) {
        return Err(CredentialsError::EncryptedKey { path });
    }
    Err(CredentialsError::NoKey { path, hint })
}

fn sections_in(
    path: &Path,
    content: &[u8],
) -> Result<Vec<(SectionKind, Vec<u8>)>, CredentialsError> {
    <(SectionKind, Vec<u8>)>::pem_slice_iter(content)
        .collect::<Result<_, _>>()
        .map_err(|source| {
            let path = path.to_owned();
            // The old form of encryption puts headers in front of the base64, which then fails.
            if contains(content, LEGACY_ENCRYPTED) {
                CredentialsError::EncryptedKey { path }
            } else {
                CredentialsError::BadPem {
                    path,
                    source: PemFault(source),
                }
            }
        })
}

/// What a file holds in which the wanted kind of section was not found.
fn hint_for(content: &[u8], sections: &[(SectionKind, Vec<u8>)]) -> Hint {
    let all = |wanted: fn(SectionKind) -> bool| sections.iter().all(|(kind, _)| wanted(*kind));
    match content.first() {
        None => Hint::Empty,
        // Every certificate and key in DER is a SEQUENCE.
        Some(0x30) if sections.is_empty() => Hint::Der,
        Some(_) if sections.is_empty() => Hint::None,
        Some(_) if all(is_certificate) => Hint::OnlyCertificates,
        Some(_) if all(is_private_key) => Hint::OnlyKeys,
        Some(_) => Hint::None,
    }
}

fn is_certificate(kind: SectionKind) -> bool {
    kind == SectionKind::Certificate
}

fn is_private_key(kind: SectionKind) -> bool {
    matches!(
        kind,
        SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey
    )
}

pub(super) fn parse_certificate(
    path: &Path,
    index: usize,
    der: &CertificateDer<'_>,
) -> Result<CertificateInfo, CredentialsError> {
    CertificateInfo::parse(der).map_err(|source| CredentialsError::BadCertificate {
        path: path.to_owned(),
        number: index.saturating_add(1),
        source,
    })
}

fn contains(content: &[u8], text: &[u8]) -> bool {
    content.windows(text.len()).any(|window| window == text)
}

/// How much of a file is read at most. A bundle of all public CAs has 250 KiB.
pub const MAX_FILE_LEN: u64 = 1024 * 1024;

/// The start of a private key that is encrypted in the way of PKCS #8.
const PKCS8_ENCRYPTED: &[u8] = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";

/// The header of a private key that is encrypted in the way of RFC 1421.
const LEGACY_ENCRYPTED: &[u8] = b"Proc-Type: 4,ENCRYPTED";
