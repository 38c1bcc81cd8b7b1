//! What a certificate says: names, uses, validity. Signing it is the
//! [`Authority`](super::Authority)'s part.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    SanType,
};
use time::{Duration, OffsetDateTime};

use super::KeyForm;

/// A certificate to be issued: a good one at first, and each method changes one thing.
///
/// ```
/// use proxymux_testkit::pki::{Authority, Leaf, Validity};
///
/// # fn main() -> anyhow::Result<()> {
/// let stranger = Authority::new("another-ca")?;
/// let leaf = Leaf::node_client("10.0.10.10").validity(Validity::Expired);
/// assert!(stranger.issue(&leaf)?.cert_pem().starts_with("-----BEGIN CERTIFICATE-----"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Leaf {
    common_name: String,
    organisations: Vec<String>,
    names: Vec<String>,
    usages: Vec<Usage>,
    validity: Validity,
    key_form: KeyForm,
    foreign_key: bool,
}

/// What a certificate may be used for (extended key usage).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Usage {
    /// `clientAuth`.
    Client,
    /// `serverAuth`.
    Server,
}

/// When a certificate is valid.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Validity {
    /// From an hour ago for a year.
    Year,
    /// Until an hour ago.
    Expired,
    /// From an hour ahead.
    NotYet,
    /// From an hour ago until this many seconds from now, to see a live one expire.
    Seconds(u32),
    /// From yesterday for ten years.
    Ca,
}

impl Leaf {
    /// A certificate with this common name, valid now, without organisation, names or uses.
    pub fn new(common_name: impl Into<String>) -> Self {
        Self {
            common_name: common_name.into(),
            organisations: Vec::new(),
            names: Vec::new(),
            usages: Vec::new(),
            validity: Validity::Year,
            key_form: KeyForm::Pkcs8,
            foreign_key: false,
        }
    }

    /// What a kubelet authenticates with: `CN=system:node:NAME`, `O=system:nodes`, for clients.
    pub fn node_client(node: &str) -> Self {
        Self::new(format!("system:node:{node}"))
            .organisations(["system:nodes"])
            .usages([Usage::Client])
            .key_form(KeyForm::Sec1)
    }

    /// What a kubelet serves: the same subject, for servers, with the node's name and addresses.
    pub fn kubelet_serving(node: &str, addresses: &[IpAddr]) -> Self {
        let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
        Self::new(format!("system:node:{node}"))
            .organisations(["system:nodes"])
            .usages([Usage::Server])
            .names([node])
            .names(addresses)
    }

    /// Another common name.
    pub fn common_name(mut self, common_name: impl Into<String>) -> Self {
        self.common_name = common_name.into();
        self
    }

    /// The organisations, in place of those there are; at most two.
    pub fn organisations<S: Into<String>>(mut self, all: impl IntoIterator<Item = S>) -> Self {
        self.organisations = all.into_iter().map(Into::into).collect();
        self
    }

    /// More subject alternative names; what reads as an address becomes one.
    pub fn names<S: Into<String>>(mut self, more: impl IntoIterator<Item = S>) -> Self {
        for name in more.into_iter().map(Into::into) {
            if !self.names.contains(&name) {
                self.names.push(name);
            }
        }
        self
    }

    /// Takes all subject alternative names away.
    pub fn without_names(mut self) -> Self {
        self.names.clear();
        self
    }

    /// The uses, in place of those there are. None at all means that it says nothing about it.
    pub fn usages(mut self, usages: impl IntoIterator<Item = Usage>) -> Self {
        self.usages = usages.into_iter().collect();
        self
    }

    /// When it is valid.
    pub fn validity(mut self, validity: Validity) -> Self {
        self.validity = validity;
        self
    }

    /// How its key is written.
    pub fn key_form(mut self, form: KeyForm) -> Self {
        self.key_form = form;
        self
    }

    /// Writes a key that is not the certificate's: what is on disk between two writes of a
    /// rotation that was interrupted.
    pub fn with_foreign_key(mut self) -> Self {
        self.foreign_key = true;
        self
    }

    pub(super) fn has_foreign_key(&self) -> bool {
        self.foreign_key
    }

    pub(super) fn wanted_key_form(&self) -> KeyForm {
        self.key_form
    }

    pub(super) fn params(&self) -> Result<CertificateParams> {
        let mut params = CertificateParams::default();
        params.distinguished_name = self.subject()?;
        params.subject_alt_names = self
            .names
            .iter()
            .map(|name| san(name))
            .collect::<Result<_>>()?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = self.usages.iter().map(|usage| usage.purpose()).collect();
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = self.validity.bounds();
        Ok(params)
    }

    fn subject(&self) -> Result<DistinguishedName> {
        let mut subject = DistinguishedName::new();
        // The builder keeps one value per type. Spelled as a number the organisation is another
        // type to it, and the same one in the certificate.
        match self.organisations.as_slice() {
            [] => {}
            [only] => subject.push(DnType::OrganizationName, only.as_str()),
            [first, second] => {
                subject.push(DnType::OrganizationName, first.as_str());
                let numbered = DnType::CustomDnType(ORGANISATION_OID.to_vec());
                subject.push(numbered, second.as_str());
            }
            more => bail!("{} organisations, expected at most 2", more.len()),
        }
        subject.push(DnType::CommonName, self.common_name.as_str());
        Ok(subject)
    }
}

impl Usage {
    fn purpose(self) -> ExtendedKeyUsagePurpose {
        match self {
            Self::Client => ExtendedKeyUsagePurpose::ClientAuth,
            Self::Server => ExtendedKeyUsagePurpose::ServerAuth,
        }
    }
}

impl Validity {
    pub(super) fn bounds(self) -> (OffsetDateTime, OffsetDateTime) {
        let now = OffsetDateTime::now_utc();
        let hour = Duration::HOUR;
        match self {
            Self::Year => (now - hour, now + Duration::days(365)),
            Self::Expired => (now - Duration::days(365), now - hour),
            Self::NotYet => (now + hour, now + Duration::days(365)),
            Self::Seconds(seconds) => (now - hour, now + Duration::seconds(seconds.into())),
            Self::Ca => (now - Duration::DAY, now + Duration::days(3650)),
        }
    }
}

fn san(name: &str) -> Result<SanType> {
    match name.parse::<IpAddr>() {
        Ok(address) => Ok(SanType::IpAddress(address)),
        Err(_) => {
            let name = name
                .try_into()
                .with_context(|| format!("name {name:?} cannot stand in a certificate"))?;
            Ok(SanType::DnsName(name))
        }
    }
}

/// id-at-organizationName.
const ORGANISATION_OID: [u64; 4] = [2, 5, 4, 10];
