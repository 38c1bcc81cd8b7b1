//! Who verifies a peer's certificate, and with which rule of ours on top.
//!
//! Owns the two verifiers, which leave the chain, the dates, the purpose and the name to webpki;
//! the rule that a node's certificate never makes a master; and the memory of which certificate
//! was refused, because the TLS library's errors do not say whose it was.

use std::{cell::RefCell, sync::Arc, time::SystemTime};

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use super::{TlsFault, provider};
use crate::{certificate::CertificateInfo, credentials::Roots};

tokio::task_local! {
    /// The certificate that a verifier refused during the handshake that this task performs.
    static REFUSED: RefCell<Option<Box<CertificateInfo>>>;
}

/// Performs `handshake` and also returns the certificate that was refused in it, if one was.
///
/// A verifier is shared by all connections of a configuration and its error type has no place for
/// the certificate, but it always runs inside the poll of the one handshake that needs it.
pub(super) async fn remember_refused<T>(
    handshake: impl Future<Output = T>,
) -> (T, Option<Box<CertificateInfo>>) {
    REFUSED
        .scope(RefCell::new(None), async {
            let outcome = handshake.await;
            (outcome, REFUSED.with(RefCell::take))
        })
        .await
}

/// Passes `result` on, remembering the certificate if it was refused.
fn remember<T>(end_entity: &CertificateDer<'_>, result: Result<T, Error>) -> Result<T, Error> {
    if result.is_err()
        && let Ok(info) = CertificateInfo::parse(end_entity)
    {
        // Outside a handshake of ours nobody asks: then there is no place and no need.
        let _ = REFUSED.try_with(|refused| refused.replace(Some(Box::new(info))));
    }
    result
}

/// A node's certificate was shown by a server.
///
/// A kubelet's serving certificate is valid for TLS servers and has the node's address as its
/// name; without this rule the key of any one node would make a master for agents that dial an
/// address which that node has got hold of.
#[derive(Debug, thiserror::Error)]
#[error("a node's certificate (organization `system:nodes`) cannot be a master's")]
pub(super) struct NodeCertificateAsMaster;

/// Verifies a master's certificate on an agent.
#[derive(Debug)]
pub(super) struct MasterVerifier {
    webpki: Arc<WebPkiServerVerifier>,
}

impl MasterVerifier {
    pub(super) fn new(roots: &Roots) -> Arc<Self> {
        let webpki = WebPkiServerVerifier::builder_with_provider(roots.store(), provider())
            .build()
            .expect("roots are never empty, and there are no revocation lists to be malformed");
        Arc::new(Self { webpki })
    }
}

impl ServerCertVerifier for MasterVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self
            .webpki
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            .and_then(|verified| refuse_node(end_entity).map(|()| verified));
        remember(end_entity, verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// Verifies an agent's or a front door client's certificate on the master.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    webpki: Arc<dyn ClientCertVerifier>,
}

impl ClientVerifier {
    pub(super) fn new(roots: &Roots) -> Arc<Self> {
        let webpki = WebPkiClientVerifier::builder_with_provider(roots.store(), provider())
            .build()
            .expect("roots are never empty, and there are no revocation lists to be malformed");
        Arc::new(Self { webpki })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        remember(
            end_entity,
            self.webpki
                .verify_client_cert(end_entity, intermediates, now),
        )
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// Verifies again the chain of an agent whose session stands, as at `now` and against `roots`.
///
/// For the master after its CAs have changed or an agent's certificate may have expired.
///
/// # Errors
///
/// The fault that the same chain would cause in a handshake.
pub fn verify_agent_chain(
    chain: &[CertificateDer<'static>],
    roots: &Roots,
    now: SystemTime,
) -> Result<(), TlsFault> {
    verify_again(chain, now, None, |end_entity, intermediates, now| {
        ClientVerifier::new(roots)
            .verify_client_cert(end_entity, intermediates, now)
            .map(drop)
    })
}

/// Verifies again the chain of a master with which a session stands.
///
/// # Errors
///
/// The fault that the same chain would cause in a handshake.
pub fn verify_master_chain(
    chain: &[CertificateDer<'static>],
    server_name: &ServerName<'static>,
    roots: &Roots,
    now: SystemTime,
) -> Result<(), TlsFault> {
    verify_again(
        chain,
        now,
        Some(server_name),
        |end_entity, intermediates, now| {
            MasterVerifier::new(roots)
                .verify_server_cert(end_entity, intermediates, server_name, &[], now)
                .map(drop)
        },
    )
}

fn verify_again(
    chain: &[CertificateDer<'static>],
    now: SystemTime,
    expected: Option<&ServerName<'static>>,
    verify: impl FnOnce(&CertificateDer<'_>, &[CertificateDer<'_>], UnixTime) -> Result<(), Error>,
) -> Result<(), TlsFault> {
    let Some((end_entity, intermediates)) = chain.split_first() else {
        return Err(TlsFault::PeerNoCertificate);
    };
    // Before 1970 no certificate is valid, so the earliest moment that can be said will do.
    let since_1970 = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let now = UnixTime::since_unix_epoch(since_1970);
    verify(end_entity, intermediates, now).map_err(|error| {
        let refused = CertificateInfo::parse(end_entity).ok();
        TlsFault::from_tls(error, refused.as_ref(), expected)
    })
}

fn refuse_node(end_entity: &CertificateDer<'_>) -> Result<(), Error> {
    let info = CertificateInfo::parse(end_entity).map_err(|error| {
        // webpki has read it and we cannot: whether it is a node's is unknown, so it is refused.
        let error = rustls::CertificateError::Other(OtherError(Arc::new(error)));
        Error::InvalidCertificate(error)
    })?;
    if info.is_in_nodes_group() {
        let error = OtherError(Arc::new(NodeCertificateAsMaster));
        return Err(Error::InvalidCertificate(rustls::CertificateError::Other(
            error,
        )));
    }
    Ok(())
}
