//! TLS settings of the stand-ins, from files: TLS 1.3, certificates checked on both sides.
//!
//! What the product makes of the same files is its own business, on purpose not shared: a mistake
//! made once would else be made on both ends.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientCertVerifierBuilder, WebPkiClientVerifier},
};

use crate::pki::CertFiles;

/// A client that trusts `ca` and shows `identity`, if it is given one.
pub(crate) fn client_config(ca: &Path, identity: Option<&CertFiles>) -> Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(ca)?);
    let Some(files) = identity else {
        return Ok(builder.with_no_client_auth());
    };
    let (chain, key) = identity_of(files)?;
    builder
        .with_client_auth_cert(chain, key)
        .with_context(|| format!("cannot use {}", files.cert.display()))
}

/// A server that requires a client certificate signed by `client_ca`.
pub(crate) fn server_config(identity: &CertFiles, client_ca: &Path) -> Result<ServerConfig> {
    server_config_with(identity, client_ca, |clients| clients)
}

/// A server that lets in clients without a certificate too, who may have a token.
pub(crate) fn server_config_for_anybody(
    identity: &CertFiles,
    client_ca: &Path,
) -> Result<ServerConfig> {
    server_config_with(
        identity,
        client_ca,
        ClientCertVerifierBuilder::allow_unauthenticated,
    )
}

fn server_config_with(
    identity: &CertFiles,
    client_ca: &Path,
    clients: impl FnOnce(ClientCertVerifierBuilder) -> ClientCertVerifierBuilder,
) -> Result<ServerConfig> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(client_ca)?), provider());
    let verifier = clients(verifier)
        .build()
        .with_context(|| format!("cannot verify clients by {}", client_ca.display()))?;
    let (chain, key) = identity_of(identity)?;
    ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .with_context(|| format!("cannot use {}", identity.cert.display()))
}

fn roots(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .with_context(|| format!("cannot trust a certificate of {}", path.display()))?;
    }
    Ok(roots)
}

fn identity_of(
    files: &CertFiles,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .with_context(|| format!("cannot read the key in {}", files.key.display()))?;
    Ok((certificates(&files.cert)?, key))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let context = || format!("cannot read certificates in {}", path.display());
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .with_context(context)?
        .collect::<Result<_, _>>()
        .with_context(context)?;
    ensure!(
        !certificates.is_empty(),
        "no certificate in {}",
        path.display()
    );
    Ok(certificates)
}

/// Named, so that what a test or a daemon installs as the process's default does not matter.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}
