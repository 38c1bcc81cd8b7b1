//! What can go wrong between two TLS peers, in words for the log of the side that sees it.
//!
//! Owns the closed list of faults ([`TlsFault`]), their names for metrics ([`TlsFaultKind`]), and
//! the way there from the errors of the TLS library and of the operating system.
//! The same fault has the same text each time, so that who logs only what is news can compare it.
//! In these texts "it" is the peer and "our" is this side; [`TlsError`] says who the peer is.
//! Names out of a certificate that was refused are claims; they are made printable and cut.

mod detail;
mod kind;

use std::{
    error::Error as StdError,
    fmt, io,
    time::{Duration, SystemTime},
};

use proxymux_proto::printable;
use rustls::{
    AlertDescription, InvalidMessage, PeerIncompatible, PeerMisbehaved,
    pki_types::{ServerName, UnixTime},
};

pub use self::{
    detail::{AlpnMismatch, ChainLink, Refusal},
    kind::TlsFaultKind,
};
use super::{PeerRole, verifier::NodeCertificateAsMaster};
use crate::certificate::{CertificateError, CertificateInfo, quoted, utc};

/// A handshake that failed.
#[derive(Debug)]
pub struct TlsError {
    /// Who was on the other side.
    pub peer: PeerRole,
    /// What went wrong.
    pub fault: TlsFault,
}

/// What went wrong between us and a TLS peer.
#[derive(Debug, thiserror::Error)]
pub enum TlsFault {
    /// The peer's certificate, or one in its chain, is no longer valid.
    #[error("{link} `{subject}` expired at {} by this host's clock", utc(*.not_after))]
    PeerCertificateExpired {
        /// Which certificate of the chain.
        link: ChainLink,
        /// Whose certificate the peer showed.
        subject: String,
        /// When it expired.
        not_after: SystemTime,
    },
    /// The peer's certificate, or one in its chain, is not valid yet, or our clock is slow.
    #[error("{link} `{subject}` is not valid before {} by this host's clock", utc(*.not_before))]
    PeerCertificateNotYetValid {
        /// Which certificate of the chain.
        link: ChainLink,
        /// Whose certificate the peer showed.
        subject: String,
        /// When it becomes valid.
        not_before: SystemTime,
    },
    /// No CA of ours has the name of the peer's issuer.
    #[error(
        "its certificate `{subject}`, issued by `{issuer}`, is not signed by a CA that we trust"
    )]
    PeerUnknownCa {
        /// Whose certificate the peer showed.
        subject: String,
        /// Who signed it, by its own account.
        issuer: String,
    },
    /// A CA of ours has the name of the peer's issuer, but not the key.
    #[error(
        "its certificate `{subject}` is not signed with the key of the CA `{issuer}` that we \
         trust; was that CA made anew under the same name?"
    )]
    PeerOtherCaKey {
        /// Whose certificate the peer showed.
        subject: String,
        /// The name that both CAs have.
        issuer: String,
    },
    /// The peer's certificate is not for the name that we expect there.
    #[error("its certificate `{subject}` is not valid for `{expected}`, but for {}", names(.presented))]
    PeerWrongName {
        /// Whose certificate the peer showed.
        subject: String,
        /// The name that we expect.
        expected: String,
        /// The names that the certificate has.
        presented: Vec<String>,
    },
    /// The peer's certificate is not for what the peer does with it.
    #[error("its certificate `{subject}` is not for {required}, but for {presented}")]
    PeerWrongPurpose {
        /// Whose certificate the peer showed.
        subject: String,
        /// What the certificate must be for.
        required: String,
        /// What the certificate is for.
        presented: String,
    },
    /// The peer's certificate has been revoked.
    #[error("its certificate `{subject}` is revoked")]
    PeerCertificateRevoked {
        /// Whose certificate the peer showed.
        subject: String,
    },
    /// The peer is to be a master and shows the certificate of a node.
    #[error(
        "its certificate `{subject}` belongs to a node (organization `system:nodes`), which \
         cannot be a master"
    )]
    PeerIsNode {
        /// Whose certificate the peer showed.
        subject: String,
    },
    /// The peer's certificate is damaged, or of a form that TLS does not allow.
    #[error("its certificate `{subject}` cannot be accepted{hint}")]
    PeerCertificateInvalid {
        /// Whose certificate the peer showed.
        subject: String,
        /// What is probably behind it.
        hint: &'static str,
        /// What the verifier said.
        #[source]
        source: rustls::Error,
    },
    /// The TLS library accepted the peer's certificate, and we cannot read it.
    #[error("its certificate cannot be read")]
    PeerCertificateUnreadable {
        /// What is wrong with it.
        #[source]
        source: CertificateError,
    },
    /// The peer showed no certificate.
    #[error("it showed no certificate")]
    PeerNoCertificate,
    /// The peer showed a certificate and does not have the key.
    #[error("it could not prove that it holds the key of its certificate")]
    PeerWithoutKey,
    /// The peer refused the certificate that we showed.
    #[error("it refused our certificate: {} (alert {})", .refusal.words(), .refusal.alert_name())]
    OurCertificateRefused {
        /// What the peer said.
        refusal: Refusal,
    },
    /// The peer speaks TLS but not proxymux.
    #[error("it does not speak proxymux/1 ({how}); Oracle's own control plane and agent do not")]
    NotProxymux {
        /// How that showed.
        how: AlpnMismatch,
    },
    /// A front door's client wants to speak something else than HTTP/1.1.
    #[error("it offers application protocols, but not http/1.1")]
    NotHttp1,
    /// The peer does not speak TLS 1.3.
    #[error("it does not speak TLS 1.3, and we speak nothing older")]
    TlsVersion,
    /// The peer speaks TLS 1.3, but has no cipher, group or signature in common with us.
    #[error("it has no cipher, key exchange or signature scheme in common with us")]
    NothingInCommon {
        /// What is missing.
        #[source]
        source: rustls::Error,
    },
    /// What came was not TLS.
    #[error("it does not speak TLS, but plain HTTP or another protocol")]
    NotTls,
    /// The peer broke off with an alert about something else than certificates.
    #[error("it broke off with alert {alert}")]
    BrokeOff {
        /// The alert's name.
        alert: String,
    },
    /// The peer did something that TLS does not allow, or bytes were changed on the way.
    #[error("it broke the rules of TLS, or bytes were changed on the way")]
    Protocol {
        /// What was wrong.
        #[source]
        source: rustls::Error,
    },
    /// The peer ended the connection without saying why.
    #[error("it closed the connection during the handshake")]
    Closed,
    /// The connection was reset.
    #[error("the connection was reset during the handshake")]
    Reset {
        /// As the operating system has it.
        #[source]
        source: io::Error,
    },
    /// The handshake did not end in time.
    #[error("the handshake was not over after {after:.0?}")]
    TimedOut {
        /// For how long we waited.
        after: Duration,
    },
    /// The connection failed.
    #[error("the connection failed during the handshake")]
    Io {
        /// As the operating system has it.
        #[source]
        source: io::Error,
    },
    /// Something failed on our side.
    #[error("TLS failed on our side")]
    Internal {
        /// What failed.
        #[source]
        source: rustls::Error,
    },
}

impl TlsError {
    pub(super) fn new(peer: PeerRole, fault: TlsFault) -> Self {
        let fault = match (peer, fault) {
            // A front door offers no proxymux/1; the mismatch is about what it does offer.
            (PeerRole::Client, TlsFault::NotProxymux { .. }) => TlsFault::NotHttp1,
            (PeerRole::Client | PeerRole::Master | PeerRole::Agent | PeerRole::Server, fault) => {
                fault
            }
        };
        Self { peer, fault }
    }

    /// The fault's name for metrics and decisions.
    #[must_use]
    pub fn kind(&self) -> TlsFaultKind {
        self.fault.kind()
    }
}

impl TlsFault {
    /// The fault's name for metrics and decisions.
    #[must_use]
    pub fn kind(&self) -> TlsFaultKind {
        use TlsFaultKind as Kind;
        match self {
            Self::PeerCertificateExpired { .. } => Kind::PeerCertificateExpired,
            Self::PeerCertificateNotYetValid { .. } => Kind::PeerCertificateNotYetValid,
            Self::PeerUnknownCa { .. } | Self::PeerOtherCaKey { .. } => Kind::PeerUnknownCa,
            Self::PeerWrongName { .. } => Kind::PeerWrongName,
            Self::PeerWrongPurpose { .. } => Kind::PeerWrongPurpose,
            Self::PeerCertificateRevoked { .. } => Kind::PeerCertificateRevoked,
            Self::PeerIsNode { .. } => Kind::PeerIsNode,
            Self::PeerCertificateInvalid { .. }
            | Self::PeerCertificateUnreadable { .. }
            | Self::PeerWithoutKey => Kind::PeerCertificateInvalid,
            Self::PeerNoCertificate => Kind::PeerNoCertificate,
            Self::OurCertificateRefused { refusal } => refusal.kind(),
            Self::NotProxymux { .. } => Kind::NotProxymux,
            Self::NotHttp1 => Kind::NotHttp1,
            Self::TlsVersion => Kind::TlsVersion,
            Self::NothingInCommon { .. } => Kind::NothingInCommon,
            Self::NotTls => Kind::NotTls,
            Self::BrokeOff { .. } => Kind::BrokeOff,
            Self::Protocol { .. } => Kind::Protocol,
            Self::Closed => Kind::Closed,
            Self::Reset { .. } => Kind::Reset,
            Self::TimedOut { .. } => Kind::TimedOut,
            Self::Io { .. } => Kind::Io,
            Self::Internal { .. } => Kind::Internal,
        }
    }

    /// From the error with which a handshake ended; `refused` is the certificate that our verifier
    /// refused in it, and `expected` the name that we asked for.
    pub(super) fn from_handshake(
        error: io::Error,
        refused: Option<&CertificateInfo>,
        expected: Option<&ServerName<'static>>,
    ) -> Self {
        if let Some(cause) = tls_cause(&error) {
            return Self::from_tls(cause.clone(), refused, expected);
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed,
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Self::Reset { source: error },
            _ => Self::Io { source: error },
        }
    }

    /// From an error of the TLS library, whose list may grow: what it adds is first taken for a
    /// peer that breaks the rules.
    pub(super) fn from_tls(
        error: rustls::Error,
        refused: Option<&CertificateInfo>,
        expected: Option<&ServerName<'static>>,
    ) -> Self {
        use rustls::Error as E;
        match error {
            E::InvalidCertificate(cause) => Self::from_refused(cause, refused, expected),
            E::NoCertificatesPresented => Self::PeerNoCertificate,
            E::AlertReceived(alert) => Self::from_alert(alert),
            E::NoApplicationProtocol => Self::NotProxymux {
                how: AlpnMismatch::NotOffered,
            },
            E::PeerMisbehaved(PeerMisbehaved::SelectedUnofferedApplicationProtocol) => {
                Self::NotProxymux {
                    how: AlpnMismatch::SelectedUnoffered,
                }
            }
            E::PeerIncompatible(
                PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::Tls13RequiredForQuic,
            ) => Self::TlsVersion,
            E::PeerIncompatible(_) => Self::NothingInCommon { source: error },
            E::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            ) => Self::NotTls,
            E::UnsupportedNameType
            | E::EncryptError
            | E::InvalidCertRevocationList(_)
            | E::General(_)
            | E::FailedToGetCurrentTime
            | E::FailedToGetRandomBytes
            | E::HandshakeNotComplete
            | E::BadMaxFragmentSize
            | E::InconsistentKeys(_)
            | E::Other(_) => Self::Internal { source: error },
            _ => Self::Protocol { source: error },
        }
    }

    pub(super) fn not_proxymux(selected: Option<&[u8]>) -> Self {
        let how = selected.map_or(AlpnMismatch::NoneSelected, |alpn| {
            AlpnMismatch::Selected(printable(&String::from_utf8_lossy(alpn), MAX_ALPN_LEN))
        });
        Self::NotProxymux { how }
    }

    /// From our own verifier's verdict on the peer's certificate.
    fn from_refused(
        cause: rustls::CertificateError,
        refused: Option<&CertificateInfo>,
        expected: Option<&ServerName<'static>>,
    ) -> Self {
        use rustls::CertificateError as E;
        let subject = refused.map_or_else(|| "?".to_owned(), |info| info.subject.clone());
        let issuer = refused.map_or_else(|| "?".to_owned(), |info| info.issuer.clone());
        match cause {
            E::ExpiredContext { not_after, .. } => Self::PeerCertificateExpired {
                link: ChainLink::of(refused, |info| info.not_after, not_after),
                subject,
                not_after: moment(not_after),
            },
            E::NotValidYetContext { not_before, .. } => Self::PeerCertificateNotYetValid {
                link: ChainLink::of(refused, |info| info.not_before, not_before),
                subject,
                not_before: moment(not_before),
            },
            E::UnknownIssuer => Self::PeerUnknownCa { subject, issuer },
            // The chain is verified before the handshake's signature, and only a chain is
            // remembered as refused.
            E::BadSignature if refused.is_none() => Self::PeerWithoutKey,
            E::BadSignature => Self::PeerOtherCaKey { subject, issuer },
            E::NotValidForName | E::NotValidForNameContext { .. } => Self::PeerWrongName {
                subject,
                expected: expected
                    .map_or_else(|| "?".to_owned(), |name| name.to_str().into_owned()),
                presented: refused
                    .map(CertificateInfo::server_names)
                    .unwrap_or_default(),
            },
            E::InvalidPurposeContext {
                required,
                presented,
            } => Self::PeerWrongPurpose {
                subject,
                required: purpose(&required),
                presented: presented.iter().map(purpose).collect::<Vec<_>>().join(", "),
            },
            E::Revoked => Self::PeerCertificateRevoked { subject },
            E::Other(ref other) if other.0.is::<NodeCertificateAsMaster>() => {
                Self::PeerIsNode { subject }
            }
            // The rest is rare, and the library may add to it; its own words go along.
            cause => Self::PeerCertificateInvalid {
                subject,
                hint: hint(refused),
                source: rustls::Error::InvalidCertificate(cause),
            },
        }
    }

    fn from_alert(alert: AlertDescription) -> Self {
        use AlertDescription as A;
        let refusal = match alert {
            A::CertificateExpired => Refusal::Expired,
            A::UnknownCA => Refusal::UnknownCa,
            A::UnsupportedCertificate => Refusal::WrongPurpose,
            A::CertificateRevoked => Refusal::Revoked,
            A::BadCertificate => Refusal::Bad,
            A::DecryptError => Refusal::BadSignature,
            A::CertificateRequired | A::NoCertificate => Refusal::Missing,
            A::AccessDenied => Refusal::Denied,
            A::CertificateUnknown => Refusal::Unsaid,
            A::NoApplicationProtocol => {
                return Self::NotProxymux {
                    how: AlpnMismatch::Refused,
                };
            }
            A::ProtocolVersion => return Self::TlsVersion,
            A::HandshakeFailure | A::InsufficientSecurity => {
                return Self::NothingInCommon {
                    source: rustls::Error::AlertReceived(alert),
                };
            }
            // No other alert says anything that we could act upon differently.
            other => {
                let alert = format!("{other:?}");
                return Self::BrokeOff { alert };
            }
        };
        Self::OurCertificateRefused { refusal }
    }
}

/// Explains an error that came up on an established TLS stream, if it is about TLS.
///
/// The first read on a client's stream is where it learns that the server has refused its
/// certificate: in TLS 1.3 the client's handshake is over before the server has seen it.
///
/// An end of the stream without a notice, and errors of the operating system, are not about TLS.
#[must_use]
pub fn describe_io_error(error: &io::Error) -> Option<TlsFault> {
    tls_cause(error).map(|cause| TlsFault::from_tls(cause.clone(), None, None))
}

/// The TLS library's error inside an IO error.
pub(super) fn tls_cause(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn names(presented: &[String]) -> String {
    match presented {
        // People who made the certificate with a common name only should not search for long.
        [] => "no name at all (a common name does not count)".to_owned(),
        some => quoted(some, "name"),
    }
}

fn purpose(purpose: &rustls::ExtendedKeyPurpose) -> String {
    match purpose {
        rustls::ExtendedKeyPurpose::Other(oid) => {
            let arcs: Vec<_> = oid.iter().map(usize::to_string).collect();
            printable(&arcs.join("."), MAX_OID_LEN)
        }
        known => known.to_string(),
    }
}

/// What people do wrong most often when they make certificates by hand.
fn hint(refused: Option<&CertificateInfo>) -> &'static str {
    match refused {
        Some(info) if info.is_ca => ": it is a CA certificate, expected an end-entity one",
        Some(info) if !info.is_version_3 => {
            ": it is not of X.509 version 3 (it was made without extensions)"
        }
        Some(_) | None => "",
    }
}

fn moment(time: UnixTime) -> SystemTime {
    // What a certificate can name fits; a clock beyond that is shown as what it is not.
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(time.as_secs()))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peer = match self.peer {
            PeerRole::Master => "master",
            PeerRole::Agent => "agent",
            PeerRole::Client => "client",
            PeerRole::Server => "server",
        };
        write!(f, "TLS handshake with the {peer} failed: {}", self.fault)
    }
}

impl StdError for TlsError {
    /// The fault itself is part of the text, so what follows is the fault's own source.
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.fault.source()
    }
}

/// The longest application protocol that TLS can carry.
const MAX_ALPN_LEN: usize = 255;

/// How much of an unknown purpose's object identifier is shown.
const MAX_OID_LEN: usize = 64;
