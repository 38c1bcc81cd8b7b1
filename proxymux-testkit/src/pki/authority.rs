//! A CA: its key, its certificate, and the signature under a leaf.

use std::fmt;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};

use super::{Issued, Leaf, Validity, key};

/// A certificate authority. [`Pki`](super::Pki) has one; a test makes another for a certificate
/// that must not be trusted, or for a rotation of the CA.
pub struct Authority {
    common_name: String,
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A CA of that name with a new key, valid from yesterday for ten years.
    ///
    /// # Errors
    ///
    /// The system has no randomness to give.
    pub fn new(common_name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
        ];
        (params.not_before, params.not_after) = Validity::Ca.bounds();
        let key = new_key()?;
        let certificate = params
            .self_signed(&key)
            .with_context(|| format!("cannot sign CA {common_name}"))?;
        Ok(Self {
            common_name: common_name.to_owned(),
            certificate,
            issuer: Issuer::new(params, key),
        })
    }

    /// Its certificate.
    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// Signs `leaf` with a new key of its own.
    ///
    /// # Errors
    ///
    /// A name in it cannot stand in a certificate.
    pub fn issue(&self, leaf: &Leaf) -> Result<Issued> {
        let key = new_key()?;
        let certificate = leaf
            .params()?
            .signed_by(&key, &self.issuer)
            .with_context(|| format!("cannot sign {leaf:?}"))?;
        let written_key = if leaf.has_foreign_key() {
            new_key()?
        } else {
            key
        };
        Ok(Issued::new(
            certificate.pem(),
            key::to_pem(&written_key, leaf.wanted_key_form())?,
        ))
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("common_name", &self.common_name)
            .finish_non_exhaustive()
    }
}

fn new_key() -> Result<KeyPair> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("cannot make a key")
}
