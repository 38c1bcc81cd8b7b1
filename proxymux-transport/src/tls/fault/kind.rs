//! The names of faults, for metrics and decisions.
//!
//! Owns the closed list, the labels, and which of the faults pass by themselves; leaves to `fault`
//! what each of them is about. Labels are part of what dashboards rely on: do not rename one.

/// A [`TlsFault`](super::TlsFault) without its details, for metrics and decisions.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[expect(
    missing_docs,
    reason = "each is explained at the fault of the same name"
)]
pub enum TlsFaultKind {
    PeerCertificateExpired,
    PeerCertificateNotYetValid,
    PeerUnknownCa,
    PeerWrongName,
    PeerWrongPurpose,
    PeerCertificateRevoked,
    PeerIsNode,
    PeerCertificateInvalid,
    PeerNoCertificate,
    OurCertificateExpired,
    OurUnknownCa,
    OurWrongPurpose,
    OurCertificateRevoked,
    OurCertificateInvalid,
    OurCertificateMissing,
    OurCertificateRefused,
    NotProxymux,
    NotHttp1,
    TlsVersion,
    NothingInCommon,
    NotTls,
    BrokeOff,
    Protocol,
    Closed,
    Reset,
    TimedOut,
    Io,
    Internal,
}

impl TlsFaultKind {
    /// Every kind, in the order of the list.
    pub const ALL: [Self; 28] = [
        Self::PeerCertificateExpired,
        Self::PeerCertificateNotYetValid,
        Self::PeerUnknownCa,
        Self::PeerWrongName,
        Self::PeerWrongPurpose,
        Self::PeerCertificateRevoked,
        Self::PeerIsNode,
        Self::PeerCertificateInvalid,
        Self::PeerNoCertificate,
        Self::OurCertificateExpired,
        Self::OurUnknownCa,
        Self::OurWrongPurpose,
        Self::OurCertificateRevoked,
        Self::OurCertificateInvalid,
        Self::OurCertificateMissing,
        Self::OurCertificateRefused,
        Self::NotProxymux,
        Self::NotHttp1,
        Self::TlsVersion,
        Self::NothingInCommon,
        Self::NotTls,
        Self::BrokeOff,
        Self::Protocol,
        Self::Closed,
        Self::Reset,
        Self::TimedOut,
        Self::Io,
        Self::Internal,
    ];

    /// The kind as the value of a metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PeerCertificateExpired => "peer_certificate_expired",
            Self::PeerCertificateNotYetValid => "peer_certificate_not_yet_valid",
            Self::PeerUnknownCa => "peer_unknown_ca",
            Self::PeerWrongName => "peer_wrong_name",
            Self::PeerWrongPurpose => "peer_wrong_purpose",
            Self::PeerCertificateRevoked => "peer_certificate_revoked",
            Self::PeerIsNode => "peer_is_node",
            Self::PeerCertificateInvalid => "peer_certificate_invalid",
            Self::PeerNoCertificate => "peer_no_certificate",
            Self::OurCertificateExpired => "our_certificate_expired",
            Self::OurUnknownCa => "our_unknown_ca",
            Self::OurWrongPurpose => "our_wrong_purpose",
            Self::OurCertificateRevoked => "our_certificate_revoked",
            Self::OurCertificateInvalid => "our_certificate_invalid",
            Self::OurCertificateMissing => "our_certificate_missing",
            Self::OurCertificateRefused => "our_certificate_refused",
            Self::NotProxymux => "not_proxymux",
            Self::NotHttp1 => "not_http1",
            Self::TlsVersion => "tls_version",
            Self::NothingInCommon => "nothing_in_common",
            Self::NotTls => "not_tls",
            Self::BrokeOff => "broke_off",
            Self::Protocol => "protocol",
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::TimedOut => "timed_out",
            Self::Io => "io",
            Self::Internal => "internal",
        }
    }

    /// Whether the same attempt may succeed later although nobody changes anything on either side.
    ///
    /// Where it cannot, an agent goes on trying (certificates are rotated), but need not hurry.
    #[must_use]
    pub fn retry_can_help(self) -> bool {
        match self {
            // The first of these ends by the mere passing of time.
            Self::PeerCertificateNotYetValid
            | Self::BrokeOff
            | Self::Protocol
            | Self::Closed
            | Self::Reset
            | Self::TimedOut
            | Self::Io
            | Self::Internal => true,
            Self::PeerCertificateExpired
            | Self::PeerUnknownCa
            | Self::PeerWrongName
            | Self::PeerWrongPurpose
            | Self::PeerCertificateRevoked
            | Self::PeerIsNode
            | Self::PeerCertificateInvalid
            | Self::PeerNoCertificate
            | Self::OurCertificateExpired
            | Self::OurUnknownCa
            | Self::OurWrongPurpose
            | Self::OurCertificateRevoked
            | Self::OurCertificateInvalid
            | Self::OurCertificateMissing
            | Self::OurCertificateRefused
            | Self::NotProxymux
            | Self::NotHttp1
            | Self::TlsVersion
            | Self::NothingInCommon
            | Self::NotTls => false,
        }
    }
}
