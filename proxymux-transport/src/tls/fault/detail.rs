//! What some faults are told apart by, and the words for it.
//!
//! Owns which link of a chain is at fault, what an alert about our certificate means, and how it
//! showed that a peer does not speak proxymux; leaves to `fault` the sentences around these words.

use std::{fmt, time::SystemTime};

use rustls::pki_types::UnixTime;

use super::{TlsFaultKind, moment};
use crate::certificate::CertificateInfo;

/// Which certificate of the chain that a peer showed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ChainLink {
    /// The peer's own.
    EndEntity,
    /// One that it sent along, or a CA of ours.
    Issuer,
}

/// Why a peer refused our certificate, as far as an alert can say it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// `certificate_expired`.
    Expired,
    /// `unknown_ca`.
    UnknownCa,
    /// `unsupported_certificate`.
    WrongPurpose,
    /// `certificate_revoked`.
    Revoked,
    /// `bad_certificate`.
    Bad,
    /// `decrypt_error`.
    BadSignature,
    /// `certificate_required`.
    Missing,
    /// `access_denied`.
    Denied,
    /// `certificate_unknown`.
    Unsaid,
}

/// How it showed that a peer does not speak proxymux/1.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AlpnMismatch {
    /// The handshake ended without any application protocol.
    NoneSelected,
    /// The handshake ended with another application protocol.
    Selected(String),
    /// The client offers application protocols, none of which is ours.
    NotOffered,
    /// The server refused ours with an alert.
    Refused,
    /// The server selected one that we had not offered.
    SelectedUnoffered,
}

impl ChainLink {
    /// The peer's own certificate, unless the date complained about is not one of its dates.
    pub(super) fn of(
        refused: Option<&CertificateInfo>,
        date: impl Fn(&CertificateInfo) -> SystemTime,
        complaint: UnixTime,
    ) -> Self {
        match refused {
            Some(info) if date(info) != moment(complaint) => Self::Issuer,
            Some(_) | None => Self::EndEntity,
        }
    }
}

impl Refusal {
    pub(super) fn kind(self) -> TlsFaultKind {
        match self {
            Self::Expired => TlsFaultKind::OurCertificateExpired,
            Self::UnknownCa | Self::BadSignature => TlsFaultKind::OurUnknownCa,
            Self::WrongPurpose => TlsFaultKind::OurWrongPurpose,
            Self::Revoked => TlsFaultKind::OurCertificateRevoked,
            Self::Bad => TlsFaultKind::OurCertificateInvalid,
            Self::Missing => TlsFaultKind::OurCertificateMissing,
            Self::Denied | Self::Unsaid => TlsFaultKind::OurCertificateRefused,
        }
    }

    pub(super) fn alert_name(self) -> &'static str {
        match self {
            Self::Expired => "certificate_expired",
            Self::UnknownCa => "unknown_ca",
            Self::WrongPurpose => "unsupported_certificate",
            Self::Revoked => "certificate_revoked",
            Self::Bad => "bad_certificate",
            Self::BadSignature => "decrypt_error",
            Self::Missing => "certificate_required",
            Self::Denied => "access_denied",
            Self::Unsaid => "certificate_unknown",
        }
    }

    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Expired => "by its clock it is expired or not valid yet",
            Self::UnknownCa => "it is not signed by a CA that the peer trusts",
            Self::WrongPurpose => "it is not for this purpose (extended key usage)",
            Self::Revoked => "it is revoked",
            Self::Bad => "it is damaged, or not valid for the name that the peer expects",
            Self::BadSignature => {
                "a signature is wrong; the CA that the peer trusts may have the same name as ours \
                 but another key"
            }
            Self::Missing => "we showed none, and it requires one",
            Self::Denied => "it is valid but not admitted",
            Self::Unsaid => "for a reason that only its own log tells",
        }
    }
}

impl fmt::Display for ChainLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EndEntity => "its certificate",
            Self::Issuer => "an issuer of its certificate",
        })
    }
}

impl fmt::Display for AlpnMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoneSelected => f.write_str("no application protocol was agreed on"),
            Self::Selected(other) => write!(f, "application protocol `{other}` was agreed on"),
            Self::NotOffered => f.write_str("it offers other application protocols"),
            Self::Refused => f.write_str("it refused the application protocol"),
            Self::SelectedUnoffered => {
                f.write_str("it selected an application protocol that was not offered")
            }
        }
    }
}
