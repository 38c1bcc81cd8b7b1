//! TLS as proxymux speaks it: 1.3 only, both sides authenticated, nothing resumed.
//!
//! Owns the TLS settings of every place that speaks it (an agent's session, the master's port, a
//! front door) and the two handshakes, [`connect`] and [`accept`], which end in a verified peer or
//! in a [`TlsError`] that a person can act on.
//! Leaves to callers the sockets, the reading of files (`credentials`), and who of those who are
//! verified may do what: a node's identity is `certificate::NodeIdentity`, and who may use a front
//! door is [`FrontDoorPolicy`].
//! A client learns that its certificate was refused only when it reads for the first time after
//! the handshake: the session's code asks [`describe_io_error`] then.

mod fault;
mod front_door;
mod look;
mod verifier;

use std::{
    io,
    sync::{Arc, LazyLock},
    time::Duration,
};

use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs, aws_lc_rs::cipher_suite},
    pki_types::{CertificateDer, ServerName},
    server::NoServerSessionStorage,
    sign::SingleCertAndKey,
    version::TLS13,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

pub use self::{
    fault::{
        AlpnMismatch, ChainLink, Refusal, TlsError, TlsFault, TlsFaultKind, describe_io_error,
    },
    front_door::{ClientName, EmptyClientNames, FrontDoorPolicy, FrontDoorRefusal},
    look::look,
    verifier::{verify_agent_chain, verify_master_chain},
};
use crate::{
    certificate::CertificateInfo,
    credentials::{Credentials, Roots},
};

/// The application protocol that both ends of a session must have agreed on.
pub const ALPN: &[u8] = b"proxymux/1";

/// The only application protocol of a front door.
///
/// A client that offers none is served all the same: kube-apiserver offers none. One that also
/// offers `h2` must be kept from speaking it.
pub const FRONT_DOOR_ALPN: &[u8] = b"http/1.1";

/// Who is on the other side of a handshake, by the part that it plays.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PeerRole {
    /// The master that an agent connects to.
    Master,
    /// An agent that connects to the master.
    Agent,
    /// Somebody who connects to a front door.
    Client,
    /// A server that is no proxymux, and is only looked at.
    Server,
}

/// A peer whose certificate a handshake has verified.
#[derive(Clone, Debug)]
pub struct Peer {
    /// What its certificate says.
    pub certificate: CertificateInfo,
    /// Its certificate and what it sent along with it, to be verified again when our own CAs
    /// change ([`verify_agent_chain`], [`verify_master_chain`]).
    pub chain: Vec<CertificateDer<'static>>,
}

/// A stream whose handshake is over, and who is on the other side.
#[derive(Debug)]
pub struct Established<T> {
    /// The stream, ready for payload.
    pub stream: T,
    /// Who is on the other side.
    pub peer: Peer,
}

/// The cryptography of every TLS connection of this process.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            // AES-128-GCM first. Everything relayed on a session is encrypted a second time here,
            // so this cipher is most of what a session costs; ten rounds instead of fourteen make
            // it the cheapest one where the processor has AES instructions, which all that run
            // nodes have, and 128 bits are enough for keys that live as long as a session.
            cipher_suites: vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            ..aws_lc_rs::default_provider()
        })
    });
    Arc::clone(&PROVIDER)
}

/// How an agent speaks TLS to a master.
#[must_use]
pub fn agent_config(credentials: &Credentials, roots: &Roots) -> Arc<ClientConfig> {
    client_config(credentials, roots, &[ALPN])
}

/// How kube-apiserver speaks TLS to a front door, for those who try whether it could: without an
/// application protocol, as it does.
#[must_use]
pub fn front_door_client_config(credentials: &Credentials, roots: &Roots) -> Arc<ClientConfig> {
    client_config(credentials, roots, &[])
}

/// How a master speaks TLS to agents: every agent must show a certificate.
///
/// A client certificate without the extension "extended key usage" is accepted, as RFC 5280 has it
/// and kube-apiserver does: without the extension the issuer has not restricted the purpose. One
/// with the extension must name client authentication. Who the agent is comes from its name and
/// group either way.
#[must_use]
pub fn master_config(credentials: &Credentials, client_ca: &Roots) -> Arc<ServerConfig> {
    server_config(credentials, client_ca, ALPN)
}

/// How a front door speaks TLS to its clients: every client must show a certificate.
///
/// Any certificate of that CA gets through the handshake; ask [`FrontDoorPolicy`] afterwards.
#[must_use]
pub fn front_door_config(credentials: &Credentials, client_ca: &Roots) -> Arc<ServerConfig> {
    server_config(credentials, client_ca, FRONT_DOOR_ALPN)
}

/// Performs the handshake of an agent with a master that must be `server_name`.
///
/// Success says that the master is who it should be and speaks proxymux/1, but not yet that it
/// accepts us: see the module's documentation.
///
/// Not cancel-safe in the sense that dropping the future drops the stream.
///
/// # Errors
///
/// Says which side's certificate or which step failed. At `deadline` the attempt is given up.
pub async fn connect<S>(
    stream: S,
    config: Arc<ClientConfig>,
    server_name: ServerName<'static>,
    deadline: Instant,
) -> Result<Established<client::TlsStream<S>>, TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let expected = server_name.clone();
    let handshake = TlsConnector::from(config)
        .connect(server_name, stream)
        .into_fallible();
    let mut stream = perform(handshake, deadline)
        .await
        .map_err(|failure| failure.into_error(PeerRole::Master, Some(&expected)))?;

    let connection = stream.get_ref().1;
    let alpn = connection.alpn_protocol().map(<[u8]>::to_vec);
    let chain = connection.peer_certificates().map(<[_]>::to_vec);
    match proxymux_peer(alpn.as_deref(), chain) {
        Ok(peer) => Ok(Established { stream, peer }),
        Err(fault) => {
            say_goodbye(&mut stream, deadline).await;
            Err(TlsError::new(PeerRole::Master, fault))
        }
    }
}

/// Performs the handshake of a master with an agent.
///
/// # Errors
///
/// As [`connect`].
pub async fn accept<S>(
    stream: S,
    config: Arc<ServerConfig>,
    deadline: Instant,
) -> Result<Established<server::TlsStream<S>>, TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut stream = accept_as(PeerRole::Agent, stream, config, deadline).await?;
    let connection = stream.get_ref().1;
    let alpn = connection.alpn_protocol().map(<[u8]>::to_vec);
    let chain = connection.peer_certificates().map(<[_]>::to_vec);
    match proxymux_peer(alpn.as_deref(), chain) {
        Ok(peer) => Ok(Established { stream, peer }),
        Err(fault) => {
            say_goodbye(&mut stream, deadline).await;
            Err(TlsError::new(PeerRole::Agent, fault))
        }
    }
}

/// Performs the handshake of a front door with a client. Whether that client may come in is for
/// [`FrontDoorPolicy::admits`] to say.
///
/// # Errors
///
/// As [`connect`], without the application protocol.
pub async fn accept_client<S>(
    stream: S,
    config: Arc<ServerConfig>,
    deadline: Instant,
) -> Result<Established<server::TlsStream<S>>, TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let stream = accept_as(PeerRole::Client, stream, config, deadline).await?;
    let chain = stream.get_ref().1.peer_certificates().map(<[_]>::to_vec);
    let peer = Peer::from_chain(chain).map_err(|f| TlsError::new(PeerRole::Client, f))?;
    Ok(Established { stream, peer })
}

async fn accept_as<S>(
    role: PeerRole,
    stream: S,
    config: Arc<ServerConfig>,
    deadline: Instant,
) -> Result<server::TlsStream<S>, TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = TlsAcceptor::from(config).accept(stream).into_fallible();
    perform(handshake, deadline)
        .await
        .map_err(|failure| failure.into_error(role, None))
}

/// A handshake that failed, and whose certificate it was about, if any.
enum Failure {
    TimedOut {
        after: Duration,
    },
    Failed {
        error: io::Error,
        refused: Option<Box<CertificateInfo>>,
    },
}

impl Failure {
    fn into_error(self, role: PeerRole, expected: Option<&ServerName<'static>>) -> TlsError {
        let fault = match self {
            Self::TimedOut { after } => TlsFault::TimedOut { after },
            Self::Failed { error, refused } => {
                TlsFault::from_handshake(error, refused.as_deref(), expected)
            }
        };
        TlsError::new(role, fault)
    }
}

async fn perform<T, S>(
    handshake: impl Future<Output = Result<T, (io::Error, S)>>,
    deadline: Instant,
) -> Result<T, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let started = Instant::now();
    let (outcome, refused) = verifier::remember_refused(timeout_at(deadline, handshake)).await;
    match outcome {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err((error, stream))) => {
            if we_sent_an_alert(&error) {
                linger(stream, deadline).await;
            }
            Err(Failure::Failed { error, refused })
        }
        Err(_elapsed) => Err(Failure::TimedOut {
            // What it was given, which is the same each time, and not how late we are.
            after: deadline.saturating_duration_since(started),
        }),
    }
}

fn client_config(credentials: &Credentials, roots: &Roots, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has suites of TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier::MasterVerifier::new(roots))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.certified())));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    // A resumed session would skip the certificates: an expired one, or one whose CA has been
    // removed, would go on being believed.
    config.resumption = Resumption::disabled();
    // Early data can be replayed by anyone who has seen it.
    config.enable_early_data = false;
    Arc::new(config)
}

fn server_config(credentials: &Credentials, client_ca: &Roots, alpn: &[u8]) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has suites of TLS 1.3")
        .with_client_cert_verifier(verifier::ClientVerifier::new(client_ca))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.certified())));
    config.alpn_protocols = vec![alpn.to_vec()];
    // No resumption, for the reason given in `client_config`: nothing is stored, and no ticket is
    // sent with which a client could bring the state along itself.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Arc::new(config)
}

/// The peer of a finished handshake, if proxymux/1 was agreed on.
fn proxymux_peer(
    alpn: Option<&[u8]>,
    chain: Option<Vec<CertificateDer<'static>>>,
) -> Result<Peer, TlsFault> {
    // A server that knows no application protocols ignores the offer, and a server that does
    // accepts a client that offers none: TLS itself refuses only a mismatch.
    if alpn != Some(ALPN) {
        return Err(TlsFault::not_proxymux(alpn));
    }
    Peer::from_chain(chain)
}

impl Peer {
    fn from_chain(chain: Option<Vec<CertificateDer<'static>>>) -> Result<Self, TlsFault> {
        let chain = chain.unwrap_or_default();
        let Some(first) = chain.first() else {
            return Err(TlsFault::PeerNoCertificate);
        };
        let certificate = CertificateInfo::parse(first)
            .map_err(|source| TlsFault::PeerCertificateUnreadable { source })?;
        Ok(Self { certificate, chain })
    }
}

/// Whether the handshake failed by our own decision, of which an alert tells the peer.
fn we_sent_an_alert(error: &io::Error) -> bool {
    match fault::tls_cause(error) {
        Some(rustls::Error::AlertReceived(_)) | None => false,
        Some(_) => true,
    }
}

/// Closes a connection behind an alert so that the alert arrives.
///
/// A socket that is closed while bytes of the peer are unread sends a reset, and a peer that then
/// writes sees the reset before the alert: its log would not say why. So the peer gets a moment to
/// close first. What it sends is read and dropped, up to a bound, for it has no claim on us.
async fn linger<S>(mut stream: S, deadline: Instant)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let drained = async {
        // An error means that the connection is gone, and with it what there was to wait for.
        stream.shutdown().await?;
        let mut rest = stream.take(MAX_LINGER_BYTES);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    let limit = deadline
        .saturating_duration_since(Instant::now())
        .min(MAX_LINGER);
    // All three ends are good enough: closed by the peer, failed, or no longer worth waiting for.
    let _: Result<io::Result<u64>, _> = timeout(limit, drained).await;
}

/// Ends a TLS connection with a notice, so that the peer's log has no truncated stream.
async fn say_goodbye<S>(stream: &mut S, deadline: Instant)
where
    S: AsyncWrite + Unpin,
{
    let limit = deadline
        .saturating_duration_since(Instant::now())
        .min(MAX_LINGER);
    // The fault that leads here is what is reported; a notice that cannot be sent adds nothing.
    let _: Result<io::Result<()>, _> = timeout(limit, stream.shutdown()).await;
}

/// How long a refused peer may take to read why: a few round trips, and short enough that refused
/// peers do not fill the table of half-open connections.
const MAX_LINGER: Duration = Duration::from_secs(1);

/// What a refused peer may still send: more than the first flight of any client of ours.
const MAX_LINGER_BYTES: u64 = 64 * 1024;

#[cfg(test)]
mod tests;
