//! The two front doors that speak HTTP CONNECT, side by side on one master.
//!
//! Owns the configuration for both and the API server stand-in of each. The TCP door is in the
//! master's namespace, so its clients have to run there: [`at_master`].

use std::{fmt, net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use proxymux_testkit::{
    apiserver::{ApiServer, ConnectError, FrontDoor},
    cluster::{Cluster, ClusterBuilder},
    pki::CertFiles,
};
use tokio::time::timeout;

use crate::limits::SOON;

/// One of the front doors.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Door {
    /// HTTP CONNECT on a Unix socket.
    Unix,
    /// HTTP CONNECT on TCP with TLS and certificates on both sides.
    Tcp,
}

/// Both, for tests that hold for either.
pub const DOORS: [Door; 2] = [Door::Unix, Door::Tcp];

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unix => "unix",
            Self::Tcp => "tcp",
        })
    }
}

impl Door {
    /// kube-apiserver at this door.
    ///
    /// # Errors
    ///
    /// A certificate could not be made.
    pub fn api(self, cluster: &Cluster) -> Result<ApiServer> {
        match self {
            Self::Unix => cluster.api(),
            Self::Tcp => {
                let client = cluster.pki().apiserver_egress_client()?;
                tcp_api(cluster, &cluster.pki().ca_file(), Some(client))
            }
        }
    }

    /// How the master's access log names a client of this door.
    pub fn peer(self, cluster: &Cluster) -> String {
        match self {
            Self::Unix => format!("unix:pid={}", std::process::id()),
            Self::Tcp => format!("{}:", cluster.topology().master().ipv4()),
        }
    }
}

/// kube-apiserver at the TCP door with any certificate, or none, and any CA for the master.
///
/// # Errors
///
/// A certificate could not be made or read.
pub fn tcp_api(cluster: &Cluster, ca: &Path, client: Option<CertFiles>) -> Result<ApiServer> {
    let address = tcp_door(cluster)?;
    let door = FrontDoor::Tcp {
        address,
        server_name: address.ip().to_string(),
        ca: ca.to_owned(),
        client,
    };
    let kubelet_client = cluster.pki().apiserver_kubelet_client()?;
    ApiServer::new(door)?.with_kubelet_client(cluster.pki().ca_file(), &kubelet_client)
}

/// A cluster whose only master has both doors, everything running.
///
/// # Errors
///
/// As [`ClusterBuilder::start`].
pub fn start_with_both_doors(builder: ClusterBuilder) -> Result<Cluster> {
    let mut cluster = builder.build()?;
    start_master_with_both_doors(&mut cluster)?;
    for node in 0..cluster.topology().nodes().len() {
        cluster.start_agent(node)?;
    }
    cluster.wait_for_sessions()?;
    Ok(cluster)
}

/// Starts the only master of a cluster with both doors, in place of the one that runs.
///
/// # Errors
///
/// It did not come up.
pub fn start_master_with_both_doors(cluster: &mut Cluster) -> Result<()> {
    let config = both_doors(cluster)?;
    let master = cluster.start_master_with(0, &config)?;
    master.wait_for_line("master is up", UP_LIMIT)?;
    Ok(())
}

/// The configuration of a master with both doors.
///
/// # Errors
///
/// As [`Cluster::master_config`].
pub fn both_doors(cluster: &Cluster) -> Result<String> {
    let socket = cluster.socket(0);
    let dir = cluster.dir().display();
    let doors = format!(
        "front-doors:\n\
         - {{ unix: {socket}, mode: \"0660\" }}\n\
         - {{ listen: \"{tcp}\", cert: {dir}/master/master.crt, key: {dir}/master/master.key, \
         client-ca: {ca}, client-names: [ kube-apiserver ] }}",
        socket = socket.display(),
        tcp = tcp_door(cluster)?,
        ca = cluster.pki().ca_file().display(),
    );
    let config = cluster.master_config(0)?;
    let usual = config.lines().find(|line| line.starts_with("front-doors:"));
    let usual = usual.context("a master's configuration has front-doors")?;
    Ok(config.replace(usual, &doors))
}

/// Runs a test's body on the first master's machine, where both doors can be reached.
pub fn at_master<F>(cluster: &Cluster, body: F) -> F::Output
where
    F: Future + Send,
    F::Output: Send,
{
    cluster.topology().master().block_on(body)
}

/// Dials a target that must not be reached, and returns what the client is told.
///
/// # Errors
///
/// It was reached, or there was no answer.
pub async fn refused(api: &ApiServer, target: &str) -> Result<ConnectError> {
    match timeout(SOON, api.connect(target)).await {
        Ok(Err(refused)) => Ok(refused),
        Ok(Ok(_)) => bail!("{target} was reached, expected a refusal"),
        Err(_) => bail!("{target}: no answer after {SOON:?}"),
    }
}

fn tcp_door(cluster: &Cluster) -> Result<SocketAddr> {
    let master = cluster.topology().master().ipv4();
    format!("{master}:8131")
        .parse()
        .context("address of the TCP front door")
}

const UP_LIMIT: Duration = Duration::from_secs(20);
