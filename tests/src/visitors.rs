//! Clients that dial a kubelet themselves, as a control plane does that can, and who serves them.
//!
//! A [`Visit`] is an open connection with TLS on it; [`holder`] says which process on the node has
//! the other end: the kubelet stand-in, which lives in the test's own process, or the agent, to
//! which it was steered. Clients run on a machine of their own, so that tests may block.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use proxymux_testkit::{
    apiserver::{ApiServer, FrontDoor, KubeletConnection},
    cluster::Cluster,
    netns::{Host, HostRuntime},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{Instant, sleep, timeout},
};

use crate::limits::{SOON, within};

/// A machine from which the kubelet is dialled.
#[derive(Debug)]
pub struct Visitors {
    host: Host,
    runtime: HostRuntime,
    api: ApiServer,
}

/// An open connection to port 10250 of a node.
#[derive(Debug)]
pub struct Visit<'a> {
    visitors: &'a Visitors,
    from: SocketAddr,
    /// Away only while it is being used.
    connection: Option<KubeletConnection>,
}

/// The address families, each with its own listener of the agent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Which process has the node's end of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Holder {
    /// The connection was steered.
    Agent,
    /// It was not.
    Kubelet,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// A machine's address of this family.
    pub fn of(self, host: &Host) -> IpAddr {
        match self {
            Self::V4 => host.ipv4().into(),
            Self::V6 => host.ipv6().into(),
        }
    }

    /// Where a node's kubelet is dialled.
    pub fn kubelet(self, node: &Host) -> SocketAddr {
        SocketAddr::new(self.of(node), KUBELET_PORT)
    }
}

impl Visitors {
    /// Clients on this machine, with the certificate that kubelets know kube-apiserver by.
    ///
    /// # Errors
    ///
    /// A certificate could not be made, or the machine not be entered.
    pub fn on(host: &Host, cluster: &Cluster) -> Result<Self> {
        let client = cluster.pki().apiserver_kubelet_client()?;
        let api = ApiServer::new(FrontDoor::Transparent)?;
        Ok(Self {
            host: host.clone(),
            runtime: host.runtime()?,
            api: api.with_kubelet_client(cluster.pki().ca_file(), &client)?,
        })
    }

    /// Connects to a node's kubelet, up to the end of the TLS handshake.
    ///
    /// # Errors
    ///
    /// Nobody answered, or not as a kubelet does.
    pub fn visit(&self, node: &Host, family: Family) -> Result<Visit<'_>> {
        self.visit_from(0, node, family)
    }

    /// The same from a port of the caller's choice.
    ///
    /// # Errors
    ///
    /// As there, or the port is taken.
    pub fn visit_from(&self, port: u16, node: &Host, family: Family) -> Result<Visit<'_>> {
        let (from, to) = (self.address(port, family), family.kubelet(node));
        let api = self.api.clone();
        let (connection, from) = self.runtime.block_on(async move {
            let stream = within(SOON, "connect", dial(from, to)).await?;
            let from = stream.local_addr()?;
            let target = to.to_string();
            let spoken = api.connect_kubelet_over(stream, &target);
            anyhow::Ok((within(SOON, "TLS", spoken).await?, from))
        })?;
        Ok(Visit {
            visitors: self,
            from,
            connection: Some(connection),
        })
    }

    /// Says something that is no TLS and waits until the other side has ended the connection.
    ///
    /// # Errors
    ///
    /// Nobody answered, or the connection stays.
    pub fn speak_plainly(&self, port: u16, node: &Host, family: Family) -> Result<()> {
        let (from, to) = (self.address(port, family), family.kubelet(node));
        self.runtime.block_on(async move {
            let mut stream = within(SOON, "connect", dial(from, to)).await?;
            stream.write_all(b"this is no TLS\r\n\r\n").await?;
            let mut rest = Vec::new();
            within(SOON, "end", stream.read_to_end(&mut rest)).await?;
            Ok(())
        })
    }

    /// Connects, says nothing, and waits until a process on the node has taken the connection.
    ///
    /// # Errors
    ///
    /// Nobody answered, or nobody took it within a second: it waits in a queue.
    pub fn who_takes(&self, node: &Host, family: Family) -> Result<Holder> {
        let (from, to) = (self.address(0, family), family.kubelet(node));
        self.runtime.block_on({
            let node = node.clone();
            async move {
                let stream = within(SOON, "connect", dial(from, to)).await?;
                let from = stream.local_addr()?;
                let deadline = Instant::now() + TAKEN_WITHIN;
                loop {
                    match holder(&node, from) {
                        Err(error) if Instant::now() >= deadline => return Err(error),
                        Err(_) => sleep(TAKEN_WITHIN / 20).await,
                        found => return found,
                    }
                }
            }
        })
    }

    /// Whether anybody answers a first packet within a second and a half, in which the kernel
    /// sends it twice.
    pub fn is_answered(&self, node: &Host, family: Family) -> bool {
        let (from, to) = (self.address(0, family), family.kubelet(node));
        let dialled = async move { timeout(TWO_PACKETS, dial(from, to)).await };
        matches!(self.runtime.block_on(dialled), Ok(Ok(_)))
    }

    fn address(&self, port: u16, family: Family) -> SocketAddr {
        SocketAddr::new(family.of(&self.host), port)
    }
}

async fn dial(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = match to {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(from)?;
    socket.connect(to).await
}

impl Visit<'_> {
    /// The client's address.
    pub fn from(&self) -> SocketAddr {
        self.from
    }

    /// Asks for the kubelet's health.
    ///
    /// # Errors
    ///
    /// It is not told, or not healthy.
    pub fn ask(&mut self) -> Result<()> {
        let connection = self.connection.take();
        let mut connection = connection.context("the last request failed")?;
        let (connection, status) = self.visitors.runtime.block_on(async move {
            let reply = within(SOON, "healthz", connection.get("/healthz")).await?;
            anyhow::Ok((connection, reply.status))
        })?;
        self.connection = Some(connection);
        match status {
            200 => Ok(()),
            other => bail!("the kubelet answers {other}"),
        }
    }

    /// Who has the node's end.
    ///
    /// # Errors
    ///
    /// Nobody has.
    pub fn holder(&self, node: &Host) -> Result<Holder> {
        holder(node, self.from)
    }
}

/// Which process has the node's end of the connection from this address.
///
/// # Errors
///
/// There is no such connection, or `ss` failed.
pub fn holder(node: &Host, from: SocketAddr) -> Result<Holder> {
    let mut command = node.command("ss");
    command.args(["-Htnp", "state", "connected", "sport", "=", ":10250"]);
    command.args(["and", "dport", "=", &format!(":{}", from.port())]);
    let output = command.output().context("cannot run ss")?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().find(|line| line.contains("users:")) {
        Some(line) if line.contains("\"proxymux-agent\"") => Ok(Holder::Agent),
        Some(_) => Ok(Holder::Kubelet),
        None => bail!("nobody has the connection from {from}: {text:?}"),
    }
}

/// Where kubelets listen.
pub const KUBELET_PORT: u16 = 10250;

/// Both the kubelet and an agent that lives take a connection within milliseconds.
const TAKEN_WITHIN: Duration = Duration::from_secs(1);

/// The kernel sends a first packet again after a second.
const TWO_PACKETS: Duration = Duration::from_millis(1500);
