//! Throwaway certificates for the tests of this crate.
//!
//! Owns a CA and what it issues, with every mistake that a test wants in it. Keys are ECDSA P-256,
//! the kind that kubelets make for themselves.

use std::{fs, net::IpAddr, path::PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;

use crate::credentials::{Credentials, Roots, load_roots};

/// A CA and its key.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
    pub(crate) der: CertificateDer<'static>,
}

/// What a certificate is to say.
pub(crate) struct Request {
    params: CertificateParams,
}

/// A certificate and its key.
pub(crate) struct Issued {
    pub(crate) cert_pem: String,
    pub(crate) key_pem: String,
    pub(crate) der: CertificateDer<'static>,
}

impl Ca {
    pub(crate) fn new(common_name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(common_name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    pub(crate) fn issue(&self, request: &Request) -> Issued {
        let key = KeyPair::generate().unwrap();
        let certificate = request.params.signed_by(&key, &self.issuer).unwrap();
        Issued {
            cert_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            der: certificate.der().clone(),
        }
    }

    /// A CA below this one.
    pub(crate) fn intermediate(&self, common_name: &str, not_after: i32) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(common_name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = date_time_ymd(not_after, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Self {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    pub(crate) fn roots(&self) -> Roots {
        roots(&[&self.pem])
    }
}

impl Request {
    /// `CN=system:node:<node_name>, O=system:nodes`, for clients, as the kubelet's.
    pub(crate) fn node(node_name: &str) -> Self {
        Self::new(&format!("system:node:{node_name}"), &["system:nodes"])
            .purposes(&[ExtendedKeyUsagePurpose::ClientAuth])
    }

    /// A master's, for servers.
    pub(crate) fn master(dns_name: &str) -> Self {
        Self::new("proxymux-master", &[])
            .dns(dns_name)
            .purposes(&[ExtendedKeyUsagePurpose::ServerAuth])
    }

    pub(crate) fn new(common_name: &str, organizations: &[&str]) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(common_name, organizations);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2120, 1, 1);
        Self { params }
    }

    pub(crate) fn purposes(mut self, purposes: &[ExtendedKeyUsagePurpose]) -> Self {
        self.params.extended_key_usages = purposes.to_vec();
        self
    }

    pub(crate) fn dns(mut self, dns_name: &str) -> Self {
        let name = dns_name.to_owned().try_into().unwrap();
        self.params.subject_alt_names.push(SanType::DnsName(name));
        self
    }

    pub(crate) fn ip(mut self, address: &str) -> Self {
        let address: IpAddr = address.parse().unwrap();
        self.params
            .subject_alt_names
            .push(SanType::IpAddress(address));
        self
    }

    /// Valid from the first of January of one year to that of the other.
    pub(crate) fn years(mut self, not_before: i32, not_after: i32) -> Self {
        self.params.not_before = date_time_ymd(not_before, 1, 1);
        self.params.not_after = date_time_ymd(not_after, 1, 1);
        self
    }

    pub(crate) fn ca(mut self) -> Self {
        self.params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        self
    }

    pub(crate) fn attribute(mut self, kind: DnType, value: impl Into<DnValue>) -> Self {
        self.params.distinguished_name.push(kind, value);
        self
    }
}

impl Issued {
    pub(crate) fn credentials(&self) -> Credentials {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("both.pem");
        fs::write(&path, format!("{}{}", self.cert_pem, self.key_pem)).unwrap();
        Credentials::load(&path, None).unwrap()
    }

    /// The credentials with the CA certificate sent along.
    pub(crate) fn credentials_with(&self, ca: &Ca) -> Credentials {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("both.pem");
        let text = format!("{}{}{}", self.cert_pem, ca.pem, self.key_pem);
        fs::write(&path, text).unwrap();
        Credentials::load(&path, None).unwrap()
    }
}

pub(crate) fn roots(pems: &[&str]) -> Roots {
    let dir = TempDir::new().unwrap();
    let path: PathBuf = dir.path().join("ca.crt");
    fs::write(&path, pems.concat()).unwrap();
    load_roots(&path).unwrap()
}

/// A subject. A second organization goes in under a type of its own with the same object
/// identifier, because rcgen keeps one value per type.
fn name(common_name: &str, organizations: &[&str]) -> DistinguishedName {
    let types = [DnType::OrganizationName, second(4, 10)];
    assert!(organizations.len() <= types.len());
    let mut name = DistinguishedName::new();
    for (kind, organization) in types.into_iter().zip(organizations) {
        name.push(kind, *organization);
    }
    if !common_name.is_empty() {
        name.push(DnType::CommonName, common_name);
    }
    name
}

/// The attribute 2.5.`a`.`b` under another key than rcgen's own.
pub(crate) fn second(a: u64, b: u64) -> DnType {
    DnType::CustomDnType(vec![2, 5, a, b])
}
