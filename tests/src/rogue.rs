//! Peers of a test's own making, which speak to the real daemons and do something wrong.
//!
//! [`RogueHost`] is the machine they are on and makes their connections; [`RogueSession`] speaks
//! the session's protocol properly up to the point at which a test wants it otherwise, and
//! [`frames`] is for those who do not even keep to the multiplexer's. [`messages`] has control
//! messages, good ones and others.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::{Context, Result, bail};
use proxymux_proto::{ControlMessage, MAX_STREAMS, PaddedPing, Registered};
use proxymux_testkit::{
    cluster::Cluster,
    netns::{Host, HostRuntime},
    pki::CertFiles,
};
use proxymux_transport::{
    credentials::{Credentials, load_roots},
    mux::{self, Incoming, Mux, MuxLimits, Role, SessionFault},
    stream::MessageStream,
    tls,
};
use rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsConnector, client, server};

use crate::limits::{SOON, within};

pub mod frames;
pub mod messages;

/// A machine on which the test itself plays an agent or a master.
#[derive(Debug)]
pub struct RogueHost {
    runtime: HostRuntime,
    ca: PathBuf,
}

impl RogueHost {
    /// Prepares to make connections on `host`.
    ///
    /// # Errors
    ///
    /// The host's namespace could not be entered.
    pub fn on(cluster: &Cluster, host: &Host) -> Result<Self> {
        let runtime = host.runtime()?;
        Ok(Self {
            runtime,
            ca: cluster.pki().ca_file(),
        })
    }

    /// A bare connection.
    ///
    /// # Errors
    ///
    /// There is none.
    pub async fn connect(&self, at: SocketAddr) -> Result<TcpStream> {
        let connecting = self.runtime.spawn(TcpStream::connect(at));
        let stream = timeout(SOON, connecting).await.context("no connection")??;
        let stream = stream.with_context(|| format!("connect to {at}"))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A listener.
    ///
    /// # Errors
    ///
    /// The address cannot be listened at.
    pub async fn listen(&self, at: SocketAddr) -> Result<TcpListener> {
        let listening = self.runtime.spawn(TcpListener::bind(at));
        listening.await?.with_context(|| format!("listen at {at}"))
    }

    /// A connection that is a proper agent's up to the end of the TLS handshake.
    ///
    /// # Errors
    ///
    /// The master does not take part.
    pub async fn secure(
        &self,
        at: SocketAddr,
        identity: &CertFiles,
    ) -> Result<client::TlsStream<TcpStream>> {
        let config = self.agent_config(identity)?;
        self.secure_with(at, config).await
    }

    /// The TLS settings of an agent, for a test to spoil.
    ///
    /// # Errors
    ///
    /// A file is no good.
    pub fn agent_config(&self, identity: &CertFiles) -> Result<Arc<ClientConfig>> {
        Ok(tls::agent_config(
            &credentials(identity)?,
            &load_roots(&self.ca)?,
        ))
    }

    /// A connection with any TLS settings, application protocols above all.
    ///
    /// # Errors
    ///
    /// The handshake failed, as far as a client learns of it.
    pub async fn secure_with(
        &self,
        at: SocketAddr,
        config: Arc<ClientConfig>,
    ) -> Result<client::TlsStream<TcpStream>> {
        let stream = self.connect(at).await?;
        let name = ServerName::from(at.ip());
        within(
            SOON,
            "TLS",
            TlsConnector::from(config).connect(name, stream),
        )
        .await
    }

    /// The TLS settings of a master.
    ///
    /// # Errors
    ///
    /// A file is no good.
    pub fn master_config(&self, identity: &CertFiles) -> Result<Arc<ServerConfig>> {
        Ok(tls::master_config(
            &credentials(identity)?,
            &load_roots(&self.ca)?,
        ))
    }
}

fn credentials(files: &CertFiles) -> Result<Credentials> {
    let key = (files.key != files.cert).then_some(files.key.as_path());
    Ok(Credentials::load(&files.cert, key)?)
}

/// Takes an agent's connection as a proper master does, up to the end of the TLS handshake.
///
/// # Errors
///
/// None comes, or not one of an agent.
pub async fn accept(
    listener: &TcpListener,
    config: Arc<ServerConfig>,
) -> Result<server::TlsStream<TcpStream>> {
    let (stream, _) = within(SOON, "accept an agent", listener.accept()).await?;
    stream.set_nodelay(true)?;
    let accepted = tls::accept(stream, config, Instant::now() + SOON).await;
    Ok(accepted.context("accept an agent")?.stream)
}

/// A session of which the test is one end, and its control stream.
#[derive(Debug)]
pub struct RogueSession {
    /// Opens streams.
    pub mux: Mux,
    /// What the other side opens.
    pub incoming: Incoming,
    /// The control stream.
    pub control: MessageStream,
    driver: JoinHandle<SessionFault>,
}

impl RogueSession {
    /// Opens the control stream, as an agent does.
    ///
    /// # Errors
    ///
    /// The session is over already.
    pub async fn as_agent<T>(stream: T) -> Result<Self>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (mux, incoming, driver) = mux::start(stream, Role::Agent, LIMITS);
        let driver = tokio::spawn(driver);
        let control = mux.open().await?;
        Ok(Self {
            mux,
            incoming,
            control,
            driver,
        })
    }

    /// Waits for the control stream, as a master does.
    ///
    /// # Errors
    ///
    /// It does not come.
    pub async fn as_master<T>(stream: T) -> Result<Self>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (mux, mut incoming, driver) = mux::start(stream, Role::Master, LIMITS);
        let driver = tokio::spawn(driver);
        let control = timeout(SOON, incoming.next())
            .await
            .context("no control stream")?;
        Ok(Self {
            mux,
            incoming,
            control: control.context("the session is over")?,
            driver,
        })
    }

    /// Sends a control message.
    ///
    /// # Errors
    ///
    /// The session is over.
    pub async fn send(&mut self, message: &ControlMessage) -> Result<()> {
        let frame = message.encode()?;
        self.send_bytes(&frame).await
    }

    /// Sends anything on the control stream.
    ///
    /// # Errors
    ///
    /// The session is over.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        within(SOON, "send on the control stream", self.control.send(bytes)).await
    }

    /// The next control message that is no ping; those are answered.
    ///
    /// # Errors
    ///
    /// None comes, or the session is over.
    pub async fn next(&mut self) -> Result<ControlMessage> {
        loop {
            let content = within(SOON, "a control message", self.control.receive()).await?;
            let content = content.context("the control stream has ended")?;
            match ControlMessage::decode(&content)? {
                // The session may be over, and the message that says why still be to come.
                ControlMessage::Ping(number) => {
                    drop(self.send(&ControlMessage::Pong(number)).await);
                }
                // As a peer that knows no padding.
                ControlMessage::PaddedPing(PaddedPing { number, .. }) => {
                    drop(self.send(&ControlMessage::Pong(number)).await);
                }
                ControlMessage::Pong(_) => {}
                message => return Ok(message),
            }
        }
    }

    /// Registers as `node`, which the master must accept.
    ///
    /// # Errors
    ///
    /// It does not.
    pub async fn register(&mut self, node: &str) -> Result<Registered> {
        self.send(&messages::register(node)?).await?;
        match self.next().await? {
            ControlMessage::Registered(registered) => Ok(registered),
            other => bail!("the master answers {other:?}"),
        }
    }

    /// Waits until the session is over, and says how it ended here.
    ///
    /// # Errors
    ///
    /// It goes on.
    pub async fn ends(mut self) -> Result<SessionFault> {
        let ended = timeout(SOON, &mut self.driver).await;
        Ok(ended.context("the session goes on")??)
    }

    /// Whether the session is over.
    pub fn is_over(&self) -> bool {
        self.driver.is_finished()
    }
}

impl Drop for RogueSession {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// As generous as possible: it is the daemon's limits that are tested.
const LIMITS: MuxLimits = MuxLimits {
    max_streams: MAX_STREAMS as usize,
    max_pending: 255,
    worn_out_at: u32::MAX,
};
