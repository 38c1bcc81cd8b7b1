//! The master as a whole: what is started in which order, and how it ends.
//!
//! Owns the wiring; it is the one place that knows every part. Read [`run`].

use std::{path::PathBuf, sync::Arc, time::Duration};

use proxymux_transport::{
    config_file::Warning,
    credentials::{Credentials, CredentialsError, Roots, load_roots},
    limits::raise_open_files,
    shutdown::Shutdown,
    telemetry::chain,
    tls::{self, FrontDoorPolicy},
};
use rustls::ServerConfig;
use tokio_util::task::TaskTracker;

use crate::{
    agents::AgentDoor,
    claims::{NodeList, NodeListError, Policy},
    config::{Config, FrontDoor, NodeAddressFile, NodeAddresses},
    front_door::{FrontDoors, RequestLimits, TcpDoor, TlsSettings, UnixDoor},
    gateway::Gateway,
    master::Master,
};

/// Why the master does not start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A certificate or key for agents or a front door cannot be used.
    #[error("{key}")]
    Credentials {
        /// The setting that names the file.
        key: String,
        /// What is wrong with it.
        #[source]
        source: Box<CredentialsError>,
    },
    /// The file of `node-addresses` cannot be used.
    #[error("node-addresses: {0}")]
    NodeAddresses(String),
    /// Connections were cut off because nobody wanted to wait for them.
    #[error("ended at once by a second signal")]
    Forced,
    /// The signal handlers cannot be installed.
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
    /// A listener cannot be opened.
    #[error("{0}")]
    Listen(String),
}

/// Runs the master until it is told to end, and through its drain.
///
/// # Errors
///
/// When it cannot start, or a second signal ended it before its drain was over. Everything else
/// that can go wrong later is logged.
pub async fn run(config: Config, warnings: &[Warning]) -> Result<(), AppError> {
    let shutdown = Shutdown::on_signals().map_err(AppError::Signals)?;
    for warning in warnings {
        tracing::warn!(reason = %warning, "configuration");
    }
    tracing::info!(
        open_files = raise_open_files(),
        version = env!("CARGO_PKG_VERSION"),
        settings = %config.settings(),
        "master starts"
    );
    let agent_tls = server_config(
        ("cert", &config.cert),
        ("key", &config.key),
        ("client-ca", &config.client_ca),
        tls::master_config,
    )?;
    let policy = read_policy(&config.node_addresses)?;
    let master = Master::new(config, policy, shutdown);

    let (sessions, requests, doors) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());
    let agents = AgentDoor::bind(Arc::clone(&master), agent_tls, sessions.clone()).await;
    let agents = agents.map_err(|error| AppError::Listen(chain(&error)))?;
    let front_doors = bind_front_doors(&master.config).await?;
    // Nobody is let in by a master that may still fail to start.
    doors.spawn(agents.run(master.shutdown.drain.clone()));
    run_front_doors(front_doors, &master, &requests, &doors);
    doors.spawn(upkeep(Arc::clone(&master)));
    tracing::info!(master.id = %master.id, "master is up");

    master.shutdown.drain.cancelled().await;
    let drained = drain(&master, &requests, &sessions).await;
    doors.close();
    doors.wait().await;
    drained?;
    tracing::info!("master ends");
    Ok(())
}

/// Takes nothing new, lets what is open finish until the deadline, then ends the rest.
async fn drain(
    master: &Master,
    requests: &TaskTracker,
    sessions: &TaskTracker,
) -> Result<(), AppError> {
    let deadline = master.config.drain_deadline;
    let open = requests.len();
    let deadline_s = deadline.as_secs();
    tracing::info!(open, deadline_s, "drain begins, listeners are closed");
    requests.close();
    sessions.close();
    let all = async {
        requests.wait().await;
        sessions.wait().await;
    };
    tokio::pin!(all);
    let out_of_time = async {
        tokio::time::sleep(deadline).await;
        // Sessions look at the clock themselves.
        master.cut.cancel();
        tokio::time::sleep(GRACE).await;
    };
    let in_time = tokio::select! {
        () = &mut all => true,
        () = out_of_time => false,
        () = master.shutdown.force.cancelled() => false,
    };
    // Sessions and requests see it too, and may have been quicker than we.
    let forced = master.shutdown.force.is_cancelled();
    if !in_time {
        tracing::warn!(cut = requests.len(), "connections cut off");
        master.shutdown.force.cancel();
        master.cut.cancel();
        let _ = tokio::time::timeout(GRACE, all).await;
    }
    if forced {
        Err(AppError::Forced)
    } else {
        Ok(())
    }
}

/// A front door that is open, and at which nobody is served yet.
enum BoundDoor {
    Unix(UnixDoor),
    Tcp(TcpDoor),
}

async fn bind_front_doors(config: &Config) -> Result<Vec<BoundDoor>, AppError> {
    let mut bound = Vec::with_capacity(config.front_doors.len());
    for (number, door) in config.front_doors.iter().enumerate() {
        let door = match door {
            FrontDoor::Unix { path, mode } => {
                let door = UnixDoor::bind(path, *mode).await;
                BoundDoor::Unix(door.map_err(|error| AppError::Listen(chain(&error)))?)
            }
            FrontDoor::Tcp {
                listen,
                cert,
                key,
                client_ca,
                client_names,
            } => {
                let at = |key: &str| format!("front-doors[{number}].{key}");
                let tls = server_config(
                    (&at("cert"), cert),
                    (&at("key"), key),
                    (&at("client-ca"), client_ca),
                    tls::front_door_config,
                )?;
                let policy = FrontDoorPolicy::new(client_names.iter().cloned())
                    .map_err(|error| AppError::Listen(chain(&error)))?;
                let settings = TlsSettings {
                    config: Arc::new(move || Arc::clone(&tls)),
                    policy,
                };
                let door = TcpDoor::bind(*listen, settings).await;
                BoundDoor::Tcp(door.map_err(|error| AppError::Listen(chain(&error)))?)
            }
        };
        bound.push(door);
    }
    Ok(bound)
}

fn run_front_doors(
    bound: Vec<BoundDoor>,
    master: &Arc<Master>,
    requests: &TaskTracker,
    doors: &TaskTracker,
) {
    let gateway = Gateway::new(Arc::clone(master));
    let limits = RequestLimits {
        budget: master.config.connect_budget,
        header_len: master.config.max_connect_header.bytes(),
        header_time: master.config.connect_header_timeout,
    };
    let front_doors = FrontDoors::new(gateway, limits, requests.clone());
    for door in bound {
        let (front_doors, stop) = (front_doors.clone(), master.shutdown.drain.clone());
        doors.spawn(async move {
            match door {
                BoundDoor::Unix(door) => front_doors.run_unix(door, stop).await,
                BoundDoor::Tcp(door) => front_doors.run_tcp(door, stop).await,
            }
        });
    }
}

fn server_config(
    cert: (&str, &PathBuf),
    key: (&str, &PathBuf),
    client_ca: (&str, &PathBuf),
    make: impl Fn(&Credentials, &Roots) -> Arc<ServerConfig>,
) -> Result<Arc<ServerConfig>, AppError> {
    let credentials =
        Credentials::load(cert.1, Some(key.1)).map_err(|source| AppError::Credentials {
            key: format!("{} and {}", cert.0, key.0),
            source: source.into(),
        })?;
    let roots = load_roots(client_ca.1).map_err(|source| AppError::Credentials {
        key: client_ca.0.to_owned(),
        source: source.into(),
    })?;
    Ok(make(&credentials, &roots))
}

fn read_policy(node_addresses: &NodeAddresses) -> Result<Policy, AppError> {
    match node_addresses {
        NodeAddresses::Declared => Ok(Policy::Declared),
        NodeAddresses::File(path) => {
            let file = NodeAddressFile::load(path)
                .map_err(|error| AppError::NodeAddresses(error.one_line()))?;
            policy_of(&file).map_err(AppError::NodeAddresses)
        }
    }
}

fn policy_of(file: &NodeAddressFile) -> Result<Policy, String> {
    let entries = file
        .iter()
        .map(|(node, nets)| (node.clone(), nets.to_vec()));
    NodeList::new(entries)
        .map(Policy::Listed)
        .map_err(|errors: Vec<NodeListError>| {
            errors
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; ")
        })
}

/// What has to be done now and then: forgetting nodes, reading the list of addresses again.
async fn upkeep(master: Arc<Master>) {
    let mut every = tokio::time::interval(UPKEEP_EVERY);
    let mut trouble = None;
    let mut in_force = read_policy(&master.config.node_addresses).ok();
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = master.shutdown.drain.cancelled() => return,
        }
        master.registry.expire();
        master.admission.calm_down();
        master.refused.expire();
        match read_policy(&master.config.node_addresses) {
            Ok(policy) if in_force.as_ref() != Some(&policy) => {
                tracing::info!("node-addresses has changed and is in force");
                master.registry.replace_policy(policy.clone());
                in_force = Some(policy);
                trouble = None;
            }
            Ok(_) => trouble = None,
            Err(error) => {
                let text = error.to_string();
                if trouble.as_ref() != Some(&text) {
                    tracing::error!(error = text, "the list read last stays in force");
                    trouble = Some(text);
                }
            }
        }
    }
}

impl AppError {
    /// The error and its causes on one line.
    #[must_use]
    pub fn line(&self) -> String {
        chain(self)
    }
}

/// How often the file of addresses is looked at. It is small.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// What sessions are given to say goodbye.
const GRACE: Duration = Duration::from_secs(5);
