//! Opening the front doors when a master starts, alone or in the place of another.
//!
//! Owns the order: certificates are read and TCP listeners opened first, because they can fail;
//! Unix sockets last, because with them another master's are gone. Read [`Doors::plan`].

use std::{net::SocketAddr, os::fd::OwnedFd, path::PathBuf, sync::Arc};

use proxymux_transport::{
    reload::{Certificates, Derived},
    telemetry::chain,
    tls::{self, FrontDoorPolicy},
    unix_socket::UnixBindError,
};
use tokio_util::task::TaskTracker;

use super::AppError;
use crate::{
    certificates::CertificateFiles,
    config::{Config, FrontDoor},
    front_door::{FrontDoors, RequestLimits, TcpDoor, TlsSettings, UnixDoor},
    gateway::Gateway,
    master::Master,
    takeover::{self, Reopen, Taker},
};

/// The front doors, at which nobody is served yet.
#[derive(Debug, Default)]
pub(super) struct Doors {
    /// Of those on TCP, to be renewed.
    pub(super) certificates: Vec<Arc<Certificates>>,
    planned_unix: Vec<(PathBuf, u32)>,
    planned_tcp: Vec<(SocketAddr, TlsSettings)>,
    unix: Vec<UnixDoor>,
    tcp: Vec<TcpDoor>,
}

impl Doors {
    /// Reads what the doors need.
    pub(super) fn plan(config: &Config) -> Result<Self, AppError> {
        let mut doors = Self::default();
        for (number, door) in config.front_doors.iter().enumerate() {
            match door {
                FrontDoor::Unix { path, mode } => doors.planned_unix.push((path.clone(), *mode)),
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
                    doors.certificates.push(Arc::clone(&certificates));
                    let tls = Derived::new(certificates, tls::front_door_config);
                    let policy = FrontDoorPolicy::new(client_names.iter().cloned())
                        .map_err(|error| AppError::Listen(chain(&error)))?;
                    let settings = TlsSettings {
                        config: Arc::new(move || tls.made()),
                        policy,
                    };
                    doors.planned_tcp.push((*listen, settings));
                }
            }
        }
        Ok(doors)
    }

    /// Opens the doors on TCP, with another master's listeners where it has them. The handles are
    /// for whoever takes over from this one.
    pub(super) async fn open_tcp(
        &mut self,
        taker: Option<&mut Taker>,
    ) -> Result<Vec<(String, OwnedFd)>, AppError> {
        let mut taker = taker;
        let mut handles = Vec::new();
        for (at, settings) in self.planned_tcp.drain(..) {
            let listener = taker.as_mut().and_then(|t| t.listener(DOOR, at));
            let door = match listener {
                Some(listener) => TcpDoor::take_over(listener, at, settings),
                None => TcpDoor::bind(at, settings).await,
            };
            let door = door.map_err(|error| AppError::Listen(chain(&error)))?;
            let handle = door
                .handle()
                .map_err(|error| AppError::Listen(chain(&error)))?;
            handles.push((takeover::listener_name(DOOR, at), handle));
            self.tcp.push(door);
        }
        Ok(handles)
    }

    /// Opens the doors on Unix sockets, in the place of another master's if `over` it.
    pub(super) async fn open_unix(&mut self, over: bool, master: &Master) -> Result<(), AppError> {
        for (path, mode) in self.planned_unix.drain(..) {
            let door = if over {
                UnixDoor::bind_over(&path, mode).await
            } else {
                UnixDoor::bind(&path, mode).await
            };
            let mut door = door.map_err(|error| AppError::Listen(chain(&error)))?;
            door.may_be_replaced(Arc::clone(&master.moving.done));
            self.unix.push(door);
        }
        Ok(())
    }

    /// Lets clients in until the master drains. What is returned opens Unix sockets again that
    /// somebody has put another in the place of and then died.
    pub(super) fn run(
        self,
        master: &Arc<Master>,
        requests: &TaskTracker,
        tasks: &TaskTracker,
    ) -> Reopen {
        let gateway = Gateway::new(Arc::clone(master));
        let limits = RequestLimits {
            budget: master.config.connect_budget,
            header_len: master.config.max_connect_header.bytes(),
            header_time: master.config.connect_header_timeout,
        };
        let front_doors = FrontDoors::new(gateway, limits, requests.clone());
        for door in self.unix {
            let (front_doors, stop) = (front_doors.clone(), master.shutdown.drain.clone());
            tasks.spawn(async move { front_doors.run_unix(door, stop).await });
        }
        for door in self.tcp {
            let (front_doors, stop) = (front_doors.clone(), master.shutdown.drain.clone());
            tasks.spawn(async move { front_doors.run_tcp(door, stop).await });
        }
        let lost = Lost {
            master: Arc::clone(master),
            front_doors,
            tasks: tasks.clone(),
        };
        Box::new(move || Box::pin(lost.clone().reopen()))
    }
}

/// What it takes to open a Unix socket again.
#[derive(Clone)]
struct Lost {
    master: Arc<Master>,
    front_doors: FrontDoors<Gateway>,
    tasks: TaskTracker,
}

impl Lost {
    async fn reopen(self) {
        for door in &self.master.config.front_doors {
            let FrontDoor::Unix { path, mode } = door else {
                continue;
            };
            match UnixDoor::bind(path, *mode).await {
                Ok(mut door) => {
                    tracing::warn!(path = %path.display(), "socket was lost, and is made anew");
                    door.may_be_replaced(Arc::clone(&self.master.moving.done));
                    let front_doors = self.front_doors.clone();
                    let stop = self.master.shutdown.drain.clone();
                    self.tasks
                        .spawn(async move { front_doors.run_unix(door, stop).await });
                }
                // Ours, as long as nobody has touched it.
                Err(UnixBindError::InUse { .. }) => {}
                Err(error) => {
                    let error = chain(&error);
                    tracing::error!(error, "a front door is lost");
                }
            }
        }
    }
}

/// What the listeners are for, in the names that masters tell each other.
const DOOR: &str = "door";
