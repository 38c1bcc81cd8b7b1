//! The master as a whole: what is started in which order, and how it ends.
//!
//! Owns the wiring; it is the one place that knows every part. Read [`run`].

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use proxymux_transport::{
    admin::Admin,
    config_file::Warning,
    limits::raise_open_files,
    reload::{self, Certificates},
    shutdown::Shutdown,
    telemetry::{chain, millis},
    unix_socket::UnixSocket,
};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::{
    admin::MasterAnswers,
    agents::AgentDoor,
    certificates::CertificateFiles,
    claims::{NodeList, NodeListError, NodeObjects, Policy},
    config::{Config, NodeAddressFile, NodeAddresses},
    kubernetes,
    master::Master,
    takeover::{self, Giver, TakeoverError, Taker},
};

mod doors;

use self::doors::Doors;

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
    /// Another master runs, and this one has not taken over from it.
    #[error("cannot take over: {0}")]
    Takeover(String),
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
    master.flows.log();

    let answers = Arc::new(MasterAnswers::new(Arc::clone(&master)));
    let admin = Admin::start(master.config.admin.clone(), answers).map_err(AppError::Admin)?;
    let (sessions, requests, tasks) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());
    // Before the listeners, and not waited for: the API server may need this master to come up.
    if let (NodeAddresses::Kubernetes(kubeconfig), Some(health)) =
        (&master.config.node_addresses, &master.node_objects)
    {
        let (kubeconfig, health) = (kubeconfig.clone(), Arc::clone(health));
        tasks.spawn(kubernetes::follow(Arc::clone(&master), kubeconfig, health));
    }
    open(&master, &sessions, &requests, &tasks).await?;
    tracing::info!(master.id = %master.id, "master is up");

    master.shutdown.drain.cancelled().await;
    // It answers until the drain is over, unless the next master wants the address.
    let admin = Some(admin).filter(|_| !master.moving.is_done());
    let drained = drain(&master, &requests, &sessions).await;
    tasks.close();
    tasks.wait().await;
    drop(admin);
    drained?;
    tracing::info!("master ends");
    Ok(())
}

/// Opens everything, alone or in the place of another master.
async fn open(
    master: &Arc<Master>,
    sessions: &TaskTracker,
    requests: &TaskTracker,
    tasks: &TaskTracker,
) -> Result<(), AppError> {
    let config = &master.config;
    let mut doors = Doors::plan(config)?;
    let mut taker = find_running(config).await?;
    // Two that start at the same moment are told apart here, before anything else is open.
    let alone = config.takeover && taker.is_none();
    let mut meeting = if alone {
        Some(meet(config, false).await?)
    } else {
        None
    };

    let theirs = taker
        .as_mut()
        .and_then(|t| t.listener(takeover::AGENTS, config.listen));
    let agents = AgentDoor::bind(Arc::clone(master), sessions.clone(), theirs).await;
    let agents = agents.map_err(|error| AppError::Listen(chain(&error)))?;
    let mut handles = doors.open_tcp(taker.as_mut()).await?;
    let handle = agents
        .handle()
        .map_err(|error| AppError::Listen(chain(&error)))?;
    handles.push((
        takeover::listener_name(takeover::AGENTS, config.listen),
        handle,
    ));

    let stop = master.shutdown.drain.clone();
    if let Some(taker) = &mut taker {
        tasks.spawn(agents.run(stop));
        master.readiness.agents.store(true, Ordering::Release);
        wait_for_agents(taker, master).await?;
        if let Some(health) = &master.node_objects {
            // The one that runs knows them, and goes on meanwhile.
            health.wait_for_objects(OBJECTS_LIMIT).await;
        }
        let over = taker.is_of_a_living();
        doors.open_unix(over, master).await?;
        meeting = Some(meet(config, over).await?);
    } else {
        doors.open_unix(false, master).await?;
        // Nobody is let in by a master that may still fail to start.
        tasks.spawn(agents.run(stop));
        master.readiness.agents.store(true, Ordering::Release);
    }
    tasks.spawn(upkeep(Arc::clone(master)));
    tasks.spawn(renewal(Arc::clone(master), doors.certificates.clone()));
    let reopen = doors.run(master, requests, tasks);
    master.readiness.doors.store(true, Ordering::Release);
    if let Some(meeting) = meeting {
        tasks.spawn(Giver::new(meeting, handles, reopen, Arc::clone(master)).run());
    }
    if let Some(taker) = taker {
        taker.finish().await;
    }
    Ok(())
}

/// The master to take over from, if this one is to and another runs.
async fn find_running(config: &Config) -> Result<Option<Taker>, AppError> {
    if !config.takeover {
        return Ok(None);
    }
    let found = takeover::begin(&config.takeover_socket).await;
    found.map_err(|error| AppError::Takeover(chain(&error)))
}

/// The socket at which the next master comes, in the place of a running one's if `over` it.
async fn meet(config: &Config, over: bool) -> Result<UnixSocket, AppError> {
    let path = &config.takeover_socket;
    let bound = if over {
        takeover::meet_instead(path).await
    } else {
        takeover::meet(path).await
    };
    bound.map_err(|error| AppError::Takeover(chain(&TakeoverError::Socket(error))))
}

async fn wait_for_agents(taker: &mut Taker, master: &Master) -> Result<(), AppError> {
    let back = tokio::select! {
        back = taker.wait_for_agents(&master.registry) => back,
        () = master.shutdown.drain.cancelled() => Err(TakeoverError::ToldToEnd),
    };
    back.map_err(|error| AppError::Takeover(chain(&error)))
}

/// Takes nothing new, lets what is open finish until the deadline, then ends the rest.
async fn drain(
    master: &Master,
    requests: &TaskTracker,
    sessions: &TaskTracker,
) -> Result<(), AppError> {
    let deadline = master.config.drain_deadline;
    let (open, began) = (requests.len(), Instant::now());
    let (agents, deadline_s) = (sessions.len(), deadline.as_secs());
    tracing::info!(
        open,
        agents,
        deadline_s,
        "drain begins, listeners are closed"
    );
    requests.close();
    sessions.close();
    let all = async {
        requests.wait().await;
        sessions.wait().await;
    };
    tokio::pin!(all);
    let cut_before = master.cut_off();
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
    // Those that nothing could end are cut off by our own end.
    let cut = master.cut_off() - cut_before + requests.len();
    let (ended, took_ms) = (open.saturating_sub(cut), millis(began.elapsed()));
    tracing::info!(ended, cut, took_ms, "drain is over");
    if forced {
        Err(AppError::Forced)
    } else {
        Ok(())
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
        NodeAddresses::Kubernetes(_) => Ok(Policy::Objects(NodeObjects::default())),
    }
}

pub(crate) fn policy_of(file: &NodeAddressFile) -> Result<Policy, String> {
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
    let mut odd_ports = BTreeSet::new();
    // Node objects are kept up by a task of their own.
    let is_file = matches!(master.config.node_addresses, NodeAddresses::File(_));
    let mut in_force = read_policy(&master.config.node_addresses).ok();
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = master.shutdown.drain.cancelled() => return,
        }
        master.registry.expire();
        master.admission.calm_down();
        master.refused.expire();
        let odd: BTreeSet<_> = master.registry.odd_ports().into_iter().collect();
        for (node, agent, node_object) in odd.difference(&odd_ports) {
            tracing::warn!(%node, agent, node_object, "kubelet is at another port than its agent says");
        }
        odd_ports = odd;
        if !is_file {
            continue;
        }
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

/// What a take-over waits for Node objects: longer than it takes to read those of a large cluster.
const OBJECTS_LIMIT: Duration = Duration::from_secs(5);

/// What sessions are given to say goodbye.
const GRACE: Duration = Duration::from_secs(5);
