//! Steering: the kernel gives masters' connections to the kubelet's port to this agent; and the
//! guard of that port.
//!
//! Owns the mode in force and everything of BPF that the agent has: the loaded programs, where they
//! are attached, their maps. Read [`Steering::start`], then `places` for what is attached where.
//! A failure after the start is logged and tried again; sessions never suffer from it. Without the
//! cargo feature `ebpf` there is only the mode `userspace`.

#[cfg(feature = "ebpf")]
mod attach;
#[cfg(feature = "ebpf")]
pub(crate) mod chain;
#[cfg(feature = "ebpf")]
mod claim;
#[cfg_attr(
    not(feature = "ebpf"),
    expect(dead_code, reason = "without programs nothing costs anything")
)]
mod cost;
mod drift;
pub mod explain;
pub(crate) mod listener;
#[cfg(feature = "ebpf")]
pub(crate) mod load;
#[cfg(feature = "ebpf")]
mod log;
#[cfg(feature = "ebpf")]
mod maps;
#[cfg(not(feature = "ebpf"))]
#[path = "steering/no_maps.rs"]
mod maps;
mod metrics;
#[cfg(feature = "ebpf")]
pub mod object;
#[cfg(feature = "ebpf")]
pub(crate) mod places;
#[cfg(feature = "ebpf")]
pub(crate) mod privileges;
pub(crate) mod report;
#[cfg(feature = "ebpf")]
mod rtnetlink;
pub(crate) mod sources;
pub(crate) mod standing;
mod steered;
pub mod suggest;
#[cfg(feature = "ebpf")]
pub(crate) mod trial;
#[cfg(feature = "ebpf")]
mod watch;

#[cfg(feature = "ebpf")]
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{fmt, sync::Arc};

#[cfg(feature = "ebpf")]
use proxymux_transport::telemetry::chain as line;
use tokio_util::sync::CancellationToken;

use self::cost::Cost;
#[cfg(feature = "ebpf")]
use self::maps::MapFault;
pub(crate) use self::{
    maps::Maps,
    metrics::SteeringMetrics,
    sources::{NamedSources, Sources},
    standing::Dialled,
    steered::SteeredMetrics,
};
use crate::config::{Config, Guard, Mode};

/// The version of IP.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What the agent has of BPF, or why it has nothing.
#[derive(Debug)]
pub(crate) struct Steering {
    mode: &'static str,
    reason: String,
    /// Cancelled when nothing is attached any more, for good: no connection will be steered.
    pub(crate) detached: CancellationToken,
    /// Told of whatever may change whether steering stands.
    pub(crate) changes: standing::Changes,
    engine: Option<Engine>,
}

/// The loaded programs.
#[derive(Debug)]
struct Engine {
    maps: Arc<Maps>,
    #[cfg(feature = "ebpf")]
    places: Mutex<places::Places>,
    #[cfg(feature = "ebpf")]
    log: Mutex<Option<log::ProgramLog>>,
}

/// A device as it is now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) index: u32,
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum AttachKind {
    /// By a link of the kernel's newer kind.
    Tcx,
    /// By a filter at a clsact qdisc.
    Netlink,
}

/// One place where a program should be, as `status` shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct PlaceStatus {
    /// The program: `proxymux_steer` or `proxymux_guard`.
    pub(crate) program: &'static str,
    /// The device that is wanted: a name, or whatever holds an address.
    pub(crate) wanted: String,
    /// The device and how the program is attached to it, if it is.
    pub(crate) attached: Option<(Device, AttachKind)>,
    /// Why it is not attached.
    pub(crate) problem: Option<String>,
    /// The programs that see a packet first, and may hide it.
    pub(crate) before: Vec<String>,
}

/// Why the agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum SteeringError {
    /// The configuration insists on eBPF.
    #[error("mode `ebpf`: {0}; set `mode: auto` or `userspace` to do without")]
    Mode(String),
    /// The configuration wants the kubelet's port guarded.
    #[error("guard `enforce` needs eBPF: {0}; nothing would be guarded, set `guard: off`")]
    Guard(String),
}

impl Steering {
    /// Finds out what this kernel offers, and attaches the programs unless the mode is userspace.
    ///
    /// # Errors
    ///
    /// When the configuration insists on what cannot be had.
    pub(crate) async fn start(config: &Config) -> Result<Arc<Self>, SteeringError> {
        let begun = Engine::begin().await;
        if config.mode == Mode::Userspace {
            return Ok(Self::userspace("configured"));
        }
        let started = begun.and_then(|begun| Engine::start(config, begun));
        let steering = match started {
            Ok(engine) => Self::with(engine, config.mode),
            Err(why) if config.mode == Mode::Ebpf => return Err(SteeringError::Mode(why)),
            Err(why) if config.guard == Guard::Enforce => return Err(SteeringError::Guard(why)),
            Err(why) => {
                if config.guard == Guard::Audit {
                    tracing::warn!(reason = why, "nothing is audited, the guard needs eBPF");
                }
                Self::userspace(why)
            }
        };
        Ok(steering)
    }

    /// An agent without BPF.
    pub(crate) fn userspace(reason: impl Into<String>) -> Arc<Self> {
        let detached = CancellationToken::new();
        detached.cancel();
        Arc::new(Self {
            mode: "userspace",
            reason: reason.into(),
            detached,
            changes: standing::Changes::default(),
            engine: None,
        })
    }

    fn with(engine: Engine, configured: Mode) -> Arc<Self> {
        let reason = match configured {
            Mode::Ebpf => "configured",
            Mode::Auto | Mode::Userspace => "the kernel takes the eBPF programs",
        };
        Arc::new(Self {
            mode: "ebpf",
            reason: reason.to_owned(),
            detached: CancellationToken::new(),
            changes: standing::Changes::default(),
            engine: Some(engine),
        })
    }

    /// The mode in force, and why it is that.
    pub(crate) fn mode(&self) -> (&'static str, &str) {
        (self.mode, &self.reason)
    }

    /// The maps of the loaded programs; `None` in mode userspace.
    pub(crate) fn maps(&self) -> Option<&Arc<Maps>> {
        self.engine.as_ref().map(|engine| &engine.maps)
    }

    /// Keeps the programs where they should be until `drain` is cancelled, then takes them off.
    pub(crate) async fn watch(
        self: Arc<Self>,
        drain: CancellationToken,
        metrics: &SteeringMetrics,
    ) {
        metrics.show(&self);
        #[cfg(feature = "ebpf")]
        if let Some(engine) = &self.engine {
            watch::run(&self, engine, &drain, metrics).await;
        }
        #[cfg(not(feature = "ebpf"))]
        drop(drain);
        self.detached.cancel();
        self.changes.announce();
        metrics.show(&self);
    }

    /// What a program costs, by its name.
    pub(crate) fn cost(&self, program: &str) -> Cost {
        #[cfg(feature = "ebpf")]
        if let Some(engine) = &self.engine {
            return engine.places().cost(program);
        }
        let _ = program;
        Cost::default()
    }

    /// What is attached where, and what should be; empty in mode userspace.
    pub(crate) fn places(&self) -> Vec<PlaceStatus> {
        #[cfg(feature = "ebpf")]
        if let Some(engine) = &self.engine {
            return engine.places().status();
        }
        Vec::new()
    }
}

/// What an agent has that may attach programs.
#[cfg(feature = "ebpf")]
type Begun = claim::Claim;
#[cfg(not(feature = "ebpf"))]
type Begun = std::convert::Infallible;

#[cfg(feature = "ebpf")]
impl Engine {
    /// Makes sure that no other agent has programs here, dead or alive.
    async fn begin() -> Result<Begun, String> {
        let claim = claim::Claim::take().await;
        let claim = claim.map_err(|error| error.to_string())?;
        places::clear_leftovers();
        Ok(claim)
    }

    fn start(config: &Config, claim: Begun) -> Result<Self, String> {
        let wanted = places::wanted(config)?;
        let logging = tracing::enabled!(tracing::Level::DEBUG);
        let mut loaded = load::Loaded::load(logging).map_err(|error| line(&error))?;
        let maps = Maps::take(loaded.ebpf()).map_err(|error| line(&error))?;
        let log = loaded.log.take();
        let mut places = places::Places::new(config, wanted, loaded, Arc::clone(&maps), claim);
        places.fill(config).map_err(|error| line(&error))?;
        places.first_look()?;
        Ok(Self {
            maps,
            places: Mutex::new(places),
            log: Mutex::new(log),
        })
    }

    fn take_log(&self) -> Option<log::ProgramLog> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.take()
    }

    fn places(&self) -> MutexGuard<'_, places::Places> {
        // A panic leaves a place as it was before or after: the next look sees which.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(not(feature = "ebpf"))]
impl Engine {
    #[expect(
        clippy::unused_async,
        reason = "with eBPF there is something to wait for"
    )]
    async fn begin() -> Result<Begun, String> {
        Err("this agent was built without eBPF".to_owned())
    }

    fn start(_: &Config, begun: Begun) -> Result<Self, String> {
        match begun {}
    }
}

impl AttachKind {
    /// The word for status, metrics and configuration.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Netlink => "netlink",
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
