//! The master as a whole: what is started in which order, and how it ends.
//!
//! Owns the wiring; it is the one place that knows every part. Read [`run`].

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use proxymux_transport::{
    admin::Admin,
    config_file::Warning,
    limits::raise_open_files,
    reload::{self, Certificates, Derived},
    shutdown::Shutdown,
    telemetry::chain,
    tls::{self, FrontDoorPolicy},
};
use tokio_util::task::TaskTracker;

use crate::{
    admin::MasterAnswers,
    agents::AgentDoor,
    certificates::CertificateFiles,
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
    #[error(transparent)]
    Certificates(Box<dyn std::error::Error + Send + Sync>),
    /// The file of `node-addresses` cannot be used.
    #[error("node-addresses: {0}")]
    NodeAddresses(String),
    /// Connections were cut off because nobody wanted to wait for them.
    #[error("ended at once by a second signal")]
    Forced,
    /// The signal handlers cannot be installed.
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
    /// There is no thread for the admin address.
    #[error("cannot start the thread of the admin address")]
    Admin(#[source] std::io::Error),
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
    let files = CertificateFiles {
        prefix: String::new(),
        cert: config.cert.clone(),
        key: config.key.clone(),
        client_ca: config.client_ca.clone(),
    };
    let certificates = files.load("agents").map_err(AppError::Certificates)?;
    let policy = read_policy(&config.node_addresses)?;
    let master = Master::new(config, policy, certificates, shutdown);

    let answers = Arc::new(MasterAnswers(Arc::clone(&master)));
    let admin = Admin::start(master.config.admin.clone(), answers).map_err(AppError::Admin)?;
    let (sessions, requests, doors) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());
    let agents = AgentDoor::bind(Arc::clone(&master), sessions.clone()).await;
    let agents = agents.map_err(|error| AppError::Listen(chain(&error)))?;
    let mut renewed = Vec::new();
    let front_doors = bind_front_doors(&master.config, &mut renewed).await?;
    // Nobody is let in by a master that may still fail to start.
    doors.spawn(agents.run(master.shutdown.drain.clone()));
    master.readiness.agents.store(true, Ordering::Release);
    run_front_doors(front_doors, &master, &requests, &doors);
    master.readiness.doors.store(true, Ordering::Release);
    doors.spawn(upkeep(Arc::clone(&master)));
    doors.spawn(renewal(Arc::clone(&master), renewed));
    tracing::info!(master.id = %master.id, "master is up");

    master.shutdown.drain.cancelled().await;
    let drained = drain(&master, &requests, &sessions).await;
    doors.close();
    doors.wait().await;
    // It answers until the drain is over.
    drop(admin);
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

/// Opens the front doors, and adds their certificates to `renewed`.
async fn bind_front_doors(
    config: &Config,
    renewed: &mut Vec<Arc<Certificates>>,
) -> Result<Vec<BoundDoor>, AppError> {
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
                let name = format!("front-doors[{number}]");
                let files = CertificateFiles {
                    prefix: format!("{name}."),
                    cert: cert.clone(),
                    key: key.clone(),
                    client_ca: client_ca.clone(),
                };
                let certificates = files.load(&name).map_err(AppError::Certificates)?;
                renewed.push(Arc::clone(&certificates));
                let tls = Derived::new(certificates, tls::front_door_config);
                let policy = FrontDoorPolicy::new(client_names.iter().cloned())
                    .map_err(|error| AppError::Listen(chain(&error)))?;
                let settings = TlsSettings {
                    config: Arc::new(move || tls.made()),
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

/// Looks for renewed certificates, at the session port and at the front doors.
async fn renewal(master: Arc<Master>, doors: Vec<Arc<Certificates>>) {
    let mut all = doors.clone();
    all.push(Arc::clone(&master.certificates));
    let stop = master.shutdown.drain.clone();
    let looked = || master.metrics.show_expiry(&master.certificates, &doors);
    reload::watch(all, looked, stop).await;
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
