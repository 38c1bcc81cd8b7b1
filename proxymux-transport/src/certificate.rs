//! What a certificate says, read once and kept as plain values.
//!
//! Owns reading a certificate ([`CertificateInfo`]) and the one identity that a certificate can
//! give in proxymux, that of a node ([`NodeIdentity`]).
//! Leaves to `tls` whether a certificate is to be believed at all: everything here is only what it
//! *claims* until a handshake has verified it, and is made safe to log for that reason.
//! Read [`CertificateInfo::parse`] first. No input makes anything here panic.

use std::{
    fmt::{self, Write as _},
    net::IpAddr,
    time::{Duration, SystemTime},
};

use proxymux_proto::{NodeName, NodeNameError, printable};
use rustls::pki_types::CertificateDer;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use x509_parser::{
    certificate::X509Certificate,
    error::X509Error,
    extensions::GeneralName,
    oid_registry as oid,
    prelude::FromDer,
    time::ASN1Time,
    x509::{AttributeTypeAndValue, X509Name, X509Version},
};

/// The organization that makes a certificate one of a node.
pub const NODES_GROUP: &str = "system:nodes";

/// What the common name of a node's certificate begins with; the node's name follows.
pub const NODE_NAME_PREFIX: &str = "system:node:";

/// What one certificate says.
///
/// Text in here is as it stands in the certificate, except [`subject`](Self::subject) and
/// [`issuer`](Self::issuer), which are for logs.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct CertificateInfo {
    /// The subject as one line of printable text of bounded length, for logs and errors.
    pub subject: String,
    /// The issuer, in the same form as `subject`.
    pub issuer: String,
    /// The serial number in hexadecimal, as `openssl x509 -serial` shows it.
    pub serial: String,
    /// Every common name of the subject; see [`Self::common_name`].
    pub common_names: Vec<String>,
    /// Every organization of the subject. Kubernetes reads these as groups.
    pub organizations: Vec<String>,
    /// The DNS names in the subject's alternative names.
    pub dns_names: Vec<String>,
    /// The addresses in the subject's alternative names.
    pub ip_addresses: Vec<IpAddr>,
    /// The first moment at which the certificate is valid.
    pub not_before: SystemTime,
    /// The last moment at which the certificate is valid.
    pub not_after: SystemTime,
    /// Whether its holder may act as a TLS client.
    ///
    /// A certificate without the extension "extended key usage" may, as RFC 5280 has it.
    /// `anyExtendedKeyUsage` alone does not count: the verifiers that both ends use want the
    /// purpose itself, and a certificate that we would call fit and the peer refuses helps nobody.
    pub permits_client_auth: bool,
    /// Whether its holder may act as a TLS server, by the same rules.
    pub permits_server_auth: bool,
    /// Whether it may sign other certificates (basic constraints with CA set).
    pub is_ca: bool,
    /// Whether it is X.509 version 3, the only one that a TLS peer accepts.
    pub is_version_3: bool,
}

/// Why the bytes of a certificate could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The bytes are no X.509 certificate.
    #[error("is not an X.509 certificate")]
    Malformed(#[source] Box<X509Error>),
    /// There is more than one certificate in the bytes.
    #[error("has {len} bytes behind the certificate, expected none")]
    TrailingBytes {
        /// How many.
        len: usize,
    },
    /// An extension that decides what the certificate is good for cannot be read.
    #[error("`{subject}`: extension {extension} cannot be read")]
    BadExtension {
        /// Whose certificate.
        subject: String,
        /// The extension's name.
        extension: &'static str,
        /// What is wrong with it.
        #[source]
        source: Box<X509Error>,
    },
    /// A date that the system's clock has no value for.
    #[error("`{subject}`: {field} is {seconds} s from 1970, which this system's clock cannot hold")]
    BadTime {
        /// Whose certificate.
        subject: String,
        /// Which of the two dates.
        field: &'static str,
        /// The date seen, in seconds from 1970.
        seconds: i64,
    },
}

/// How a certificate's dates stand to a moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Validity {
    /// The moment lies between the two dates.
    Current {
        /// How much longer it is valid.
        remaining: Duration,
    },
    /// The moment lies before the first date: the certificate is new, or a clock is wrong.
    NotYetValid {
        /// How long until it is valid.
        begins_in: Duration,
    },
    /// The moment lies behind the last date.
    Expired {
        /// For how long it has been expired.
        since: Duration,
    },
}

/// The node whose certificate it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeIdentity {
    /// The node's name, from the common name.
    pub name: NodeName,
    /// The addresses that the certificate itself vouches for.
    pub ip_sans: Vec<IpAddr>,
}

/// Why a certificate is not one of a node.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum IdentityError {
    /// The subject has no common name.
    #[error("certificate `{subject}` has no common name, expected `system:node:<node-name>`")]
    NoCommonName {
        /// The certificate's subject.
        subject: String,
    },
    /// The subject has several common names, so that readers could disagree on which one counts.
    #[error(
        "certificate `{subject}` has {count} common names, expected one, `system:node:<node-name>`"
    )]
    SeveralCommonNames {
        /// The certificate's subject.
        subject: String,
        /// How many.
        count: usize,
    },
    /// The common name is not that of a node.
    #[error(
        "certificate `{subject}` has the common name `{seen}`, expected `system:node:<node-name>`"
    )]
    NotANodeName {
        /// The certificate's subject.
        subject: String,
        /// The common name seen.
        seen: String,
    },
    /// What follows `system:node:` can be no node's name.
    #[error("certificate `{subject}`: the node's name in `{seen}` {reason}")]
    BadNodeName {
        /// The certificate's subject.
        subject: String,
        /// The common name seen.
        seen: String,
        /// What is wrong with it.
        reason: NodeNameError,
    },
    /// The certificate has the name of a node but not the group.
    #[error("certificate `{subject}` has {}, expected organization `system:nodes`", quoted(.seen, "organization"))]
    NotInNodesGroup {
        /// The certificate's subject.
        subject: String,
        /// The organizations seen.
        seen: Vec<String>,
    },
}

impl CertificateInfo {
    /// Reads a certificate. Says nothing about whether anyone should believe it.
    ///
    /// # Errors
    ///
    /// If the bytes are not exactly one certificate whose purpose, names and dates can be read.
    pub fn parse(der: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let (rest, certificate) = X509Certificate::from_der(der)
            .map_err(|e| CertificateError::Malformed(Box::new(nom_to_x509(e))))?;
        if !rest.is_empty() {
            return Err(CertificateError::TrailingBytes { len: rest.len() });
        }
        let subject = name_line(certificate.subject());
        let bad_extension = |extension| {
            let subject = subject.clone();
            move |source| CertificateError::BadExtension {
                subject,
                extension,
                source: Box::new(source),
            }
        };

        let purposes = certificate
            .extended_key_usage()
            .map_err(bad_extension("extended key usage"))?;
        let constraints = certificate
            .basic_constraints()
            .map_err(bad_extension("basic constraints"))?;
        let alternative_names = certificate
            .subject_alternative_name()
            .map_err(bad_extension("subject alternative name"))?;
        let names = alternative_names
            .map(|extension| extension.value.general_names.as_slice())
            .unwrap_or_default();

        Ok(Self {
            issuer: name_line(certificate.issuer()),
            serial: serial_line(certificate.raw_serial()),
            common_names: values_of(certificate.subject().iter_common_name()),
            organizations: values_of(certificate.subject().iter_organization()),
            dns_names: names.iter().filter_map(dns_name).collect(),
            ip_addresses: names.iter().filter_map(ip_address).collect(),
            not_before: system_time(certificate.validity().not_before, "not before", &subject)?,
            not_after: system_time(certificate.validity().not_after, "not after", &subject)?,
            permits_client_auth: purposes.as_ref().is_none_or(|p| p.value.client_auth),
            permits_server_auth: purposes.as_ref().is_none_or(|p| p.value.server_auth),
            is_ca: constraints.is_some_and(|c| c.value.ca),
            is_version_3: certificate.version() == X509Version::V3,
            subject,
        })
    }

    /// The common name, if the subject has exactly one.
    ///
    /// With several, programs differ on which one counts; so none does here.
    #[must_use]
    pub fn common_name(&self) -> Option<&str> {
        match self.common_names.as_slice() {
            [only] => Some(only),
            _ => None,
        }
    }

    /// Whether the certificate is in the group of the nodes, whatever its name.
    #[must_use]
    pub fn is_in_nodes_group(&self) -> bool {
        self.organizations.iter().any(|o| o == NODES_GROUP)
    }

    /// How the certificate's dates stand to `now`.
    #[must_use]
    pub fn validity_at(&self, now: SystemTime) -> Validity {
        if let Ok(begins_in) = self.not_before.duration_since(now)
            && !begins_in.is_zero()
        {
            return Validity::NotYetValid { begins_in };
        }
        match self.not_after.duration_since(now) {
            Ok(remaining) => Validity::Current { remaining },
            Err(past) => Validity::Expired {
                since: past.duration(),
            },
        }
    }

    /// The names and addresses that the certificate is valid for as a server, for logs.
    #[must_use]
    pub fn server_names(&self) -> Vec<String> {
        let names = self.dns_names.iter().map(|n| printable(n, MAX_VALUE_LEN));
        let addresses = self.ip_addresses.iter().map(IpAddr::to_string);
        names.chain(addresses).collect()
    }
}

impl NodeIdentity {
    /// Takes the node's identity from a certificate that a handshake has verified.
    ///
    /// # Errors
    ///
    /// If the certificate is not `CN=system:node:<node-name>, O=system:nodes`.
    pub fn from_certificate(info: &CertificateInfo) -> Result<Self, IdentityError> {
        let subject = info.subject.clone();
        let common_name = match info.common_names.as_slice() {
            [only] => only,
            [] => return Err(IdentityError::NoCommonName { subject }),
            several => {
                let count = several.len();
                return Err(IdentityError::SeveralCommonNames { subject, count });
            }
        };
        let seen = printable(common_name, MAX_VALUE_LEN);
        let Some(name) = common_name.strip_prefix(NODE_NAME_PREFIX) else {
            return Err(IdentityError::NotANodeName { subject, seen });
        };
        let name = match NodeName::parse(name) {
            Ok(name) => name,
            Err(reason) => {
                return Err(IdentityError::BadNodeName {
                    subject,
                    seen,
                    reason,
                });
            }
        };
        if !info.is_in_nodes_group() {
            let seen = info
                .organizations
                .iter()
                .map(|o| printable(o, MAX_VALUE_LEN))
                .collect();
            return Err(IdentityError::NotInNodesGroup { subject, seen });
        }
        Ok(Self {
            name,
            ip_sans: info.ip_addresses.clone(),
        })
    }
}

/// A moment as logs and errors show it: UTC, to the second.
///
/// A moment outside the years that a certificate can name is shown as the distance from 1970.
#[must_use]
pub fn utc(moment: SystemTime) -> String {
    let seconds = match moment.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => {
            i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds)
        }
    };
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|date| date.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{seconds} s from 1970"))
}

/// `names` in backquotes behind what they are: "organization `a`", "no organization".
pub(crate) fn quoted(names: &[String], what: &str) -> String {
    match names {
        [] => format!("no {what}"),
        [one] => format!("{what} `{one}`"),
        several => format!("{what}s `{}`", several.join("`, `")),
    }
}

/// A distinguished name in the notation of RFC 4514 but in the certificate's own order, which is
/// what `openssl x509 -subject` shows.
fn name_line(name: &X509Name<'_>) -> String {
    let mut line = String::new();
    for attribute in name.iter_attributes() {
        if line.len() >= MAX_NAME_LINE_LEN {
            line.push_str(", ...");
            break;
        }
        if !line.is_empty() {
            line.push_str(", ");
        }
        line.push_str(&attribute_label(attribute));
        line.push('=');
        push_escaped(&mut line, &printable(&text_of(attribute), MAX_VALUE_LEN));
    }
    line
}

/// RFC 5280 allows twenty bytes, of which a leading zero only keeps the number positive.
fn serial_line(bytes: &[u8]) -> String {
    let bytes = match bytes {
        [0, rest @ ..] if !rest.is_empty() => rest,
        all => all,
    };
    let mut line = String::with_capacity(2 * MAX_SERIAL_LEN);
    for byte in bytes.iter().take(MAX_SERIAL_LEN) {
        // Writing to a string does not fail.
        let _ = write!(line, "{byte:02X}");
    }
    line
}

/// Appends `value` so that it cannot be taken for more than one attribute: a common name of
/// `a, O=system:nodes` must not read as an organization. Backquotes are what errors quote with.
fn push_escaped(line: &mut String, value: &str) {
    for c in value.chars() {
        if matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';' | '`') {
            line.push('\\');
        }
        line.push(c);
    }
}

fn attribute_label(attribute: &AttributeTypeAndValue<'_>) -> String {
    let attribute_type = attribute.attr_type();
    LABELS
        .iter()
        .find(|(known, _)| known == attribute_type)
        .map_or_else(
            || printable(&attribute_type.to_string(), MAX_VALUE_LEN),
            |(_, label)| (*label).to_owned(),
        )
}

fn values_of<'a>(attributes: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>) -> Vec<String> {
    attributes.map(text_of).collect()
}

/// The text of an attribute's value, whatever kind of string it is.
///
/// Total on purpose: if a value in one of the old encodings were skipped, an organization
/// `system:nodes` written that way would escape the rules that refuse it.
fn text_of(attribute: &AttributeTypeAndValue<'_>) -> String {
    use x509_parser::der_parser::asn1_rs::Tag;

    let bytes = attribute.attr_value().data;
    match attribute.attr_value().tag() {
        Tag::BmpString => {
            let units = bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|pair| u16::from_be_bytes(*pair));
            char::decode_utf16(units)
                .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
                .collect()
        }
        Tag::UniversalString => bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|four| {
                char::from_u32(u32::from_be_bytes(*four)).unwrap_or(char::REPLACEMENT_CHARACTER)
            })
            .collect(),
        Tag::T61String => bytes.iter().copied().map(char::from).collect(),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    }
}

fn dns_name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    }
}

fn ip_address(name: &GeneralName<'_>) -> Option<IpAddr> {
    let GeneralName::IPAddress(bytes) = name else {
        return None;
    };
    if let Ok(v4) = <[u8; 4]>::try_from(*bytes) {
        return Some(IpAddr::from(v4));
    }
    // Another length is an address range of a name constraint, or garbage: no address.
    <[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from)
}

fn system_time(
    time: ASN1Time,
    field: &'static str,
    subject: &str,
) -> Result<SystemTime, CertificateError> {
    let seconds = time.timestamp();
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let moment = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    moment.ok_or_else(|| CertificateError::BadTime {
        subject: subject.to_owned(),
        field,
        seconds,
    })
}

fn nom_to_x509(error: x509_parser::nom::Err<X509Error>) -> X509Error {
    match error {
        x509_parser::nom::Err::Error(e) | x509_parser::nom::Err::Failure(e) => e,
        x509_parser::nom::Err::Incomplete(_) => X509Error::InvalidCertificate,
    }
}

impl fmt::Display for Validity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |d: Duration| humantime::format_duration(Duration::from_secs(d.as_secs()));
        match self {
            Self::Current { remaining } => write!(f, "valid for {}", whole(*remaining)),
            Self::NotYetValid { begins_in } => write!(f, "not valid for {}", whole(*begins_in)),
            Self::Expired { since } => write!(f, "expired {} ago", whole(*since)),
        }
    }
}

/// The attributes that people know by a short label (RFC 4514, and `serialNumber`).
const LABELS: &[(oid::Oid<'static>, &str)] = &[
    (oid::OID_X509_COMMON_NAME, "CN"),
    (oid::OID_X509_ORGANIZATION_NAME, "O"),
    (oid::OID_X509_ORGANIZATIONAL_UNIT, "OU"),
    (oid::OID_X509_COUNTRY_NAME, "C"),
    (oid::OID_X509_STATE_OR_PROVINCE_NAME, "ST"),
    (oid::OID_X509_LOCALITY_NAME, "L"),
    (oid::OID_X509_SERIALNUMBER, "serialNumber"),
    (oid::OID_DOMAIN_COMPONENT, "DC"),
    (oid::OID_PKCS9_EMAIL_ADDRESS, "emailAddress"),
];

/// Behind this many bytes a serial number is cut; none that follows the rules is longer.
const MAX_SERIAL_LEN: usize = 20;

/// The most characters of one value that a log line shows; a node's name has at most 253.
const MAX_VALUE_LEN: usize = 300;

/// Behind this many characters no further attribute is shown.
const MAX_NAME_LINE_LEN: usize = 300;

#[cfg(test)]
pub(crate) mod test_pki;
#[cfg(test)]
mod tests;
