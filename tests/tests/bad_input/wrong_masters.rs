//! What the agent says of a master that is none: another service at the address in `server-addr`,
//! or one that does not answer.
//!
//! The agent always has a healthy master besides, whose user must not notice.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use proxymux_testkit::{
    cluster::Cluster,
    kubelet::{Kubelet, KubeletConfig},
    netns::Running,
    pki::CertFiles,
};
use proxymux_tests::{
    bystander::Bystander,
    events::{complaints, since, wait_for},
    limits::SOON,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::stage::second_master;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_http_server_is_said_to_speak_no_tls() -> Result<()> {
    let stage = WrongMaster::new(|_, at| {
        serve(at, |mut stream| async move {
            // Whatever it is asked, it does not understand.
            drop(stream.read(&mut [0; 4096]).await);
            drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await);
        })
    })
    .await?;

    stage
        .agent_says(
            "TLS handshake with the master failed: it does not speak TLS, but plain HTTP or \
             another protocol",
        )
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_https_server_is_said_to_speak_no_proxymux() -> Result<()> {
    let stage = WrongMaster::new(|cluster, at| {
        let pki = cluster.pki();
        let files = CertFiles {
            cert: pki.dir().join("master/master.crt"),
            key: pki.dir().join("master/master.key"),
        };
        https_server(at, files, cluster)
    })
    .await?;

    stage
        .agent_says(
            "TLS handshake with the master failed: it does not speak proxymux/1 (no application \
             protocol was agreed on); Oracle's own control plane and agent do not",
        )
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubelet_is_said_to_be_a_node() -> Result<()> {
    let stage = WrongMaster::new(|cluster, at| {
        let files = cluster.pki().kubelet_serving("10.0.10.77", &[at.ip()])?;
        https_server(at, files, cluster)
    })
    .await?;

    stage
        .agent_says(
            "TLS handshake with the master failed: its certificate `O=system:nodes, \
             CN=system:node:10.0.10.77` belongs to a node (organization `system:nodes`), which \
             cannot be a master",
        )
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_closes_at_once_is_said_to_do_so() -> Result<()> {
    let stage = WrongMaster::new(|_, at| serve(at, |stream| async { drop(stream) })).await?;

    // Whether it closes before or after our first bytes is chance, so the agent may say either,
    // and need not say the other one as news.
    stage
        .agent_says_one_of(&[
            "TLS handshake with the master failed: it closed the connection during the handshake",
            "TLS handshake with the master failed: the connection was reset during the \
             handshake: Connection reset by peer (os error 104)",
            "TLS handshake with the master failed: the connection was reset during the \
             handshake: Broken pipe (os error 32)",
        ])
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_says_nothing_is_given_up_and_said_to_do_so() -> Result<()> {
    let stage = WrongMaster::new(|_, at| {
        serve(at, |mut stream| async move {
            drop(stream.read_to_end(&mut Vec::new()).await);
        })
    })
    .await?;

    stage
        .agent_says("master did not answer the TLS handshake within 11 s")
        .await
}

/// One node that has two masters in its configuration, the second of which is none.
struct WrongMaster {
    cluster: Cluster,
    bystander: Bystander,
    // Held for as long as the test runs.
    _server: Running<Server>,
}

/// Something that listens.
type Server = Box<dyn std::any::Any + Send>;

impl WrongMaster {
    async fn new(start: impl FnOnce(&Cluster, SocketAddr) -> Result<ServerStart>) -> Result<Self> {
        let mut cluster = Cluster::builder().masters(2).build()?;
        let at = cluster.master_addr(1).parse()?;
        let start = start(&cluster, at)?;
        let server = second_master(&cluster)?.run(move || start)?;
        cluster.start_master(0)?;
        cluster.start_agent(0)?;
        let healthy = cluster.master_addr(0);
        let is_up = |line: &str| line.contains("session up") && line.contains(&healthy);
        cluster.agent(0).wait_for_line(is_up, SOON)?;
        let bystander = Bystander::of_node(&mut cluster, 0).await?;
        Ok(Self {
            cluster,
            bystander,
            _server: server,
        })
    }

    async fn agent_says(self, error: &str) -> Result<()> {
        self.agent_says_one_of(&[error]).await
    }

    /// The agent says this once, goes on trying, and the user of the other session is served.
    async fn agent_says_one_of(mut self, errors: &[&str]) -> Result<()> {
        let wrong = self.cluster.master_addr(1);
        let agent = self.cluster.agent(0);
        let said = wait_for(agent, 0, GIVEN_UP, |event| event.message == "no session")?;
        let error = said.text("error").context("an error")?;
        assert!(errors.contains(&error), "{error}");
        assert_eq!(said.level, "WARN");
        assert_eq!(said.text("master"), Some(&*wrong));
        assert!(said.number("retry_in_ms").is_some(), "{said:?}");

        wait_for(agent, 0, GIVEN_UP, |event| {
            event.message == "still no session"
        })?;
        let complaints = complaints(agent, 0);
        assert_eq!(complaints.len(), 1, "said more than once: {complaints:#?}");
        self.bystander.is_served().await?;
        let sessions = since(self.cluster.agent(0), 0)
            .into_iter()
            .filter(|event| event.message.starts_with("session"));
        assert_eq!(
            sessions.count(),
            1,
            "the healthy session has come once and not gone"
        );
        Ok(())
    }
}

type ServerStart = std::pin::Pin<Box<dyn Future<Output = Result<Server>> + Send>>;

fn https_server(at: SocketAddr, files: CertFiles, cluster: &Cluster) -> Result<ServerStart> {
    let config = KubeletConfig::new(at, files, cluster.pki().ca_file());
    Ok(Box::pin(async {
        let server: Server = Box::new(Kubelet::start(config).await?);
        Ok(server)
    }))
}

/// A server that does the same with every connection.
fn serve<F>(at: SocketAddr, treat: impl Fn(TcpStream) -> F + Send + 'static) -> Result<ServerStart>
where
    F: Future<Output = ()> + Send,
{
    Ok(Box::pin(async move {
        let listener = TcpListener::bind(at).await?;
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                treat(stream).await;
            }
        });
        let server: Server = Box::new(accepting);
        Ok(server)
    }))
}

/// An agent waits for a handshake for 20 s, since a master may have a whole fleet's to perform.
const GIVEN_UP: Duration = Duration::from_secs(45);
