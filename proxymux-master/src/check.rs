//! `proxymux-master check`: what stands between a master and its work, and what to do about it.
//!
//! Owns the arguments of the command and the order in which things are looked at; each is a module
//! of its own. It may run beside a master: it takes no socket and no port, removes nothing, and
//! changes nothing. What it finds is told in the form of `proxymux_transport::command::Report`.
//! Read [`run`] first.

use std::{
    io,
    path::{Path, PathBuf},
};

use proxymux_transport::{
    clock::WallClock,
    command::Report,
    config_file::{ConfigError, values::AdminAddr},
    credentials::check,
};

use self::{
    certificates::{Files, Pair},
    egress::Master,
    running::Running,
    tls_door::TcpDoor,
    users::User,
};
use crate::{
    app::policy_of,
    config::{Config, FrontDoor, Kubeconfig, NodeAddressFile, NodeAddresses},
    kubernetes,
};

mod apiserver;
mod asking;
mod certificates;
mod doors;
mod egress;
mod limits;
mod pod;
mod ports;
mod running;
mod selector;
mod sockets;
mod tls_door;
mod users;

/// What the command takes besides the configuration file.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct CheckArgs {
    /// kube-apiserver's file of `--egress-selector-config-file`; without this argument the one in its
    /// manifest, or /etc/kubernetes/egress/egress-selector.yaml if there is one.
    #[arg(long, value_name = "FILE")]
    pub egress_selector: Option<PathBuf>,
    /// The manifest of kube-apiserver's static pod; without this argument
    /// /etc/kubernetes/manifests/kube-apiserver.yaml if there is one.
    #[arg(long, value_name = "FILE")]
    pub apiserver_manifest: Option<PathBuf>,
    /// Print the findings as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Looks at everything that the configuration file and the arguments lead to.
///
/// # Errors
///
/// When there can be no runtime. All else is a finding.
pub fn run(config: &Path, args: &CheckArgs) -> io::Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(look(config, args, &WallClock::system())))
}

async fn look(file: &Path, args: &CheckArgs, clock: &WallClock) -> Report {
    let mut report = Report::default();
    let Some(config) = configuration(&mut report, file) else {
        return report;
    };
    let now = clock.now();
    let running = running::look(&mut report, &config).await;
    let agents = certificates::of_agents(&mut report, &config, &running, now);
    agents_port(&mut report, &config, &running);
    let pod = apiserver::read(&mut report, args.apiserver_manifest.as_deref());
    let client = pod.as_ref().map(|pod| User::of_pod(&pod.run_as));
    let mut master = Master {
        config: &config,
        running: &running,
        tcp: Vec::new(),
        now,
    };
    front_doors(&mut report, &mut master, &client.unwrap_or_default()).await;
    other_sockets(&mut report, &config, &running).await;
    node_addresses(&mut report, &config.node_addresses).await;
    limits::look(&mut report, &config, &running);
    if let Some(pod) = &pod {
        apiserver::look(&mut report, pod, &config, &running);
    }
    let selector = egress::file(&mut report, pod.as_ref(), args.egress_selector.as_deref());
    if let Some(selector) = selector {
        egress::look(&mut report, &selector, pod.as_ref(), &master).await;
    }
    clock_by(&mut report, &agents, &master);
    report
}

fn configuration(report: &mut Report, file: &Path) -> Option<Config> {
    match Config::load(file) {
        Ok((config, warnings)) => {
            report.ok(CONFIGURATION, format!("{} can be used", file.display()));
            for warning in warnings {
                let fix =
                    "change it if it is not meant; docs/configuration.md says more of the key";
                report.warning(CONFIGURATION, warning.to_string(), fix);
            }
            Some(config)
        }
        Err(error) => {
            let fix = match error {
                ConfigError::Read { .. } => {
                    "write it, beginning with deploy/kubernetes/master/static-pod/master.yaml, or \
                     give another file with --config"
                }
                _ => "mend that line; docs/configuration.md has every key",
            };
            for line in error.lines() {
                report.error(CONFIGURATION, line, fix);
            }
            None
        }
    }
}

fn agents_port(report: &mut Report, config: &Config, running: &Running) {
    let listen = config.listen;
    match running {
        Running::No => ports::try_address(report, AGENTS_PORT, "listen", listen),
        Running::Yes { .. } => report.ok(AGENTS_PORT, format!("{listen} is held by the master")),
        // Said already that something is there.
        Running::Unknown => {}
    }
}

async fn front_doors(report: &mut Report, master: &mut Master<'_>, client: &User) {
    let Master {
        config,
        running,
        now,
        ..
    } = *master;
    for (number, door) in config.front_doors.iter().enumerate() {
        match door {
            FrontDoor::Unix { path, mode } => {
                let door = (path.as_path(), *mode);
                doors::unix(report, door, running, client, config.connect_budget).await;
            }
            FrontDoor::Tcp {
                listen,
                cert,
                key,
                client_ca,
                client_names,
            } => {
                doors::tcp(report, *listen, running);
                let files = Files {
                    cert,
                    key,
                    client_ca,
                };
                master.tcp.push(TcpDoor {
                    key: format!("front-doors[{number}]"),
                    listen: *listen,
                    client_names: client_names.clone(),
                    pair: certificates::of_door(report, files, now),
                });
            }
        }
    }
}

/// The admin address and the socket of take-overs, which a running master has.
async fn other_sockets(report: &mut Report, config: &Config, running: &Running) {
    if !running.is_none() {
        return;
    }
    match &config.admin {
        AdminAddr::Unix(path) => {
            sockets::place(report, "admin address", ("Unix socket", "admin"), path).await;
        }
        AdminAddr::Tcp(at) => ports::try_address(report, "admin address", "admin", *at),
    }
    if config.takeover {
        let (what, path) = (("Unix socket", "takeover-socket"), &config.takeover_socket);
        sockets::place(report, "take-over", what, path).await;
    }
}

async fn node_addresses(report: &mut Report, addresses: &NodeAddresses) {
    let fix = "mend that line; a running master keeps to the list that it has read last";
    let path = match addresses {
        NodeAddresses::Declared => {
            let found = "what agents can prove leads to them, and no file says more";
            return report.ok(NODE_ADDRESSES, found);
        }
        NodeAddresses::Kubernetes(kubeconfig) => return node_objects(report, kubeconfig).await,
        NodeAddresses::File(path) => path,
    };
    let shown = path.display();
    match NodeAddressFile::load(path) {
        Ok(file) => match policy_of(&file) {
            Ok(_) => {
                let nodes = file.iter().count();
                report.ok(NODE_ADDRESSES, format!("{shown} lists {nodes} nodes"));
            }
            Err(problem) => report.error(NODE_ADDRESSES, format!("{shown}: {problem}"), fix),
        },
        Err(error @ ConfigError::Read { .. }) => report.error(
            NODE_ADDRESSES,
            error.one_line(),
            "write that file, as deploy/kubernetes/master/static-pod/node-addresses.yaml says, or \
             set `node-addresses: declared`",
        ),
        Err(error) => {
            for line in error.lines() {
                report.error(NODE_ADDRESSES, line, fix);
            }
        }
    }
}

/// Asks the API server as a running master does. Without it a master works, knowing less.
async fn node_objects(report: &mut Report, kubeconfig: &Kubeconfig) {
    match kubernetes::check(kubeconfig).await {
        Ok(server) => report.ok(
            NODE_ADDRESSES,
            format!("{server} lets us read Node objects"),
        ),
        Err(problem) => report.warning(
            NODE_ADDRESSES,
            format!("Node objects cannot be read: {problem}"),
            "mend that; a master runs without them, and addresses lead to nodes as with \
             `node-addresses: declared`. `docs/operations.md` says how to make the kubeconfig",
        ),
    }
}

/// The clock, by every certificate that was seen.
fn clock_by(report: &mut Report, agents: &Pair, master: &Master<'_>) {
    let doors = master.tcp.iter().map(|door| &door.pair);
    let pairs = std::iter::once(agents).chain(doors);
    let certificates = pairs.flat_map(|pair| {
        let ours = pair.credentials.iter();
        let ours = ours.map(|credentials| ("certificate", credentials.info()));
        let cas = pair.roots.iter().flat_map(|roots| roots.certificates());
        ours.chain(cas.map(|ca| ("CA", ca)))
    });
    check::clock(report, "clock", certificates, master.now);
}

/// The daemon's name, as errors have it.
const PROGRAM: &str = "proxymux-master";

const CONFIGURATION: &str = "configuration";
const AGENTS_PORT: &str = "agents' port";
const NODE_ADDRESSES: &str = "node addresses";
