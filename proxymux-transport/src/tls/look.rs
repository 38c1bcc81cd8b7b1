//! A handshake that believes whatever certificate it is shown, only to look at it.
//!
//! Owns [`look`], for the checks: nothing is ever said on such a connection. Whether anybody would
//! believe the certificate is asked afterwards, of [`verify_master_chain`](super::verify_master_chain)
//! for one.

use std::sync::Arc;

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    version::TLS13,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};
use tokio_rustls::TlsConnector;

use super::{Peer, PeerRole, TlsError, perform, provider, say_goodbye};

/// Shows no certificate of ours, looks at that of a server which is no proxymux, and closes.
///
/// # Errors
///
/// When there is no handshake by `deadline`.
pub async fn look<S>(
    stream: S,
    server_name: ServerName<'static>,
    deadline: Instant,
) -> Result<Peer, TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has suites of TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider())))
        .with_no_client_auth();
    config.enable_early_data = false;
    let handshake = TlsConnector::from(Arc::new(config))
        .connect(server_name, stream)
        .into_fallible();
    let mut stream = perform(handshake, deadline)
        .await
        .map_err(|failure| failure.into_error(PeerRole::Server, None))?;
    let chain = stream.get_ref().1.peer_certificates().map(<[_]>::to_vec);
    say_goodbye(&mut stream, deadline).await;
    Peer::from_chain(chain).map_err(|fault| TlsError::new(PeerRole::Server, fault))
}

/// Believes every certificate whose key the server has.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
