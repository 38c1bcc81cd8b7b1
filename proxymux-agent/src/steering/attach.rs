//! Attaching a program to a device, by TCX or by netlink, and taking it off again.
//!
//! Owns the order among other programs, the fixed name and handle of our filters, and the clsact
//! qdiscs that were made for them. TCX is tried first: its link goes with the process. A netlink
//! filter survives SIGKILL, so what a killed agent left is removed by [`remove_leftovers`].

use std::io;

use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    links::FdLink,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
};
use nix::{errno::Errno, net::if_::if_indextoname};
use proxymux_common::{names, user::tcx_ingress};
use proxymux_transport::telemetry::chain;

use super::{
    AttachKind, Device,
    rtnetlink::{self, Filter, Hook},
};
use crate::config::Attach;

/// A program on a device, until it is taken off or dropped.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) device: Device,
    held: Held,
    name: &'static str,
}

#[derive(Debug)]
enum Held {
    Tcx {
        /// The kernel takes the program off when this is closed.
        _link: FdLink,
        id: u32,
    },
    Netlink {
        link: Option<SchedClassifierLink>,
        priority: u16,
        made_clsact: bool,
    },
}

/// Why a program is on no device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    /// The way that the configuration insists on.
    #[error("cannot attach to {device} by {kind}: {why}")]
    One {
        /// Where.
        device: String,
        /// How.
        kind: &'static str,
        /// What the kernel said.
        why: String,
    },
    /// Both ways were tried.
    #[error("cannot attach to {device}: by tcx: {tcx}; by netlink: {netlink}")]
    Both {
        /// Where.
        device: String,
        /// What the kernel said to the first way.
        tcx: String,
        /// And to the second.
        netlink: String,
    },
}

impl Attachment {
    /// Attaches `program`, called `name`, in the way that is configured, at `priority` if that is
    /// netlink.
    pub(super) fn new(
        program: &mut SchedClassifier,
        name: &'static str,
        device: &Device,
        (how, priority): (Attach, u16),
    ) -> Result<Self, AttachError> {
        let one = |kind: AttachKind| {
            move |why| AttachError::One {
                device: device.name.clone(),
                kind: kind.word(),
                why,
            }
        };
        let held = match how {
            Attach::Tcx => by_tcx(program, device).map_err(one(AttachKind::Tcx))?,
            Attach::Netlink => {
                by_netlink(program, device, priority).map_err(one(AttachKind::Netlink))?
            }
            Attach::Auto => by_tcx(program, device).or_else(|tcx| {
                tracing::debug!(device = device.name, reason = tcx, "no TCX, trying netlink");
                by_netlink(program, device, priority).map_err(|netlink| AttachError::Both {
                    device: device.name.clone(),
                    tcx,
                    netlink,
                })
            })?,
        };
        Ok(Self {
            device: device.clone(),
            held,
            name,
        })
    }

    pub(super) fn kind(&self) -> AttachKind {
        match self.held {
            Held::Tcx { .. } => AttachKind::Tcx,
            Held::Netlink { .. } => AttachKind::Netlink,
        }
    }

    /// Why the program is not on the device any more, if it is not.
    pub(super) fn lost(&self) -> Option<String> {
        match &self.held {
            Held::Tcx { id, .. } => match tcx_ingress(self.device.index) {
                Ok(entries) if entries.iter().any(|entry| entry.link == *id) => None,
                Ok(_) => Some("its TCX link was detached".to_owned()),
                Err(error) => Some(device_error(&error)),
            },
            Held::Netlink { .. } => match rtnetlink::filters(self.device.index, Hook::Ingress) {
                Ok(filters) if filters.iter().any(|filter| self.is(filter)) => None,
                Ok(_) => Some("its filter or the clsact qdisc was removed".to_owned()),
                Err(error) => Some(device_error(&error)),
            },
        }
    }

    /// The id of the TCX link, or 0.
    pub(super) fn link_id(&self) -> u32 {
        match self.held {
            Held::Tcx { id, .. } => id,
            Held::Netlink { .. } => 0,
        }
    }

    /// Whether this is our filter.
    pub(super) fn is(&self, filter: &Filter) -> bool {
        let Held::Netlink { priority, .. } = &self.held else {
            return false;
        };
        filter.priority == *priority
            && filter.handle == u32::from(HANDLE)
            && filter.name.as_deref() == Some(self.name)
    }

    /// Takes the filter off, and the clsact qdisc if it was made for it and serves nobody else.
    fn detach(&mut self) {
        let Held::Netlink {
            link, made_clsact, ..
        } = &mut self.held
        else {
            // The link is closed with this.
            return;
        };
        drop(link.take());
        if *made_clsact {
            remove_unused_clsact(&self.device);
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.detach();
    }
}

/// Removes the filters that a killed agent left on any device; how many they were.
pub(super) fn remove_leftovers() -> Result<usize, String> {
    let mut removed = 0;
    for qdisc in rtnetlink::ingress_qdiscs().map_err(|error| error.to_string())? {
        let index = qdisc.ifindex;
        let found = rtnetlink::filters(index, Hook::Ingress).map_err(|error| error.to_string())?;
        let ours = |name: &str| {
            let mut names = found.iter().filter_map(|filter| filter.name.as_deref());
            names.any(|found| found == name)
        };
        let Some(device) = device_of(index) else {
            continue;
        };
        for name in [names::STEER, names::GUARD] {
            if ours(name) {
                tc::qdisc_detach_program(&device.name, TcAttachType::Ingress, name)
                    .map_err(|error| format!("{name} on {}: {}", device.name, chain(&error)))?;
                tracing::info!(
                    program = name,
                    device = device.name,
                    "removed what a killed agent left"
                );
                removed += 1;
                // It was alone there: the killed agent had made the qdisc for it.
                remove_unused_clsact(&device);
            }
        }
    }
    Ok(removed)
}

fn by_tcx(program: &mut SchedClassifier, device: &Device) -> Result<Held, String> {
    let options = TcAttachOptions::TcxOrder(LinkOrder::first());
    let link = attach(program, device, options)?;
    let link = FdLink::try_from(link).map_err(|error| chain(&error))?;
    let id = link.info().map_err(|error| chain(&error))?.id();
    Ok(Held::Tcx { _link: link, id })
}

fn by_netlink(
    program: &mut SchedClassifier,
    device: &Device,
    priority: u16,
) -> Result<Held, String> {
    let made_clsact = match tc::qdisc_add_clsact(&device.name) {
        Ok(()) => true,
        // `clsact` or `ingress`: both have a place for the filter.
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(Errno::EEXIST as i32) => {
            false
        }
        Err(error) => return Err(format!("no clsact qdisc: {}", chain(&error))),
    };
    let options = TcAttachOptions::Netlink(NlOptions {
        priority,
        handle: HANDLE,
        classid: None,
    });
    match attach(program, device, options) {
        Ok(link) => Ok(Held::Netlink {
            link: Some(link),
            priority,
            made_clsact,
        }),
        Err(error) => {
            if made_clsact {
                remove_unused_clsact(device);
            }
            Err(format!(
                "{error} (another filter may have priority {priority}, see steer-priority)"
            ))
        }
    }
}

fn attach(
    program: &mut SchedClassifier,
    device: &Device,
    options: TcAttachOptions,
) -> Result<SchedClassifierLink, String> {
    let attached = program.attach_with_options(&device.name, TcAttachType::Ingress, options);
    let link = attached.and_then(|id| program.take_link(id));
    link.map_err(|error: ProgramError| chain(&error))
}

/// Filters that somebody else has put there keep the qdisc.
fn remove_unused_clsact(device: &Device) {
    let unused = |hook| rtnetlink::filters(device.index, hook).map(|found| found.is_empty());
    let removed = match (unused(Hook::Ingress), unused(Hook::Egress)) {
        (Ok(true), Ok(true)) => rtnetlink::remove_clsact(device.index),
        (Ok(_), Ok(_)) => return,
        (Err(error), _) | (_, Err(error)) => Err(error),
    };
    // With the device its qdisc has gone too.
    if let Err(error) = removed
        && device_of(device.index).is_some()
    {
        tracing::warn!(device = device.name, reason = %error, "the clsact qdisc stays");
    }
}

fn device_of(index: u32) -> Option<Device> {
    let name = if_indextoname(index).ok()?;
    Some(Device {
        name: name.to_string_lossy().into_owned(),
        index,
    })
}

fn device_error(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENODEV) => "the device is gone".to_owned(),
        _ => format!("it cannot be asked for: {error}"),
    }
}

/// "pxmu", so that it is nobody else's.
const HANDLE: TcHandle = TcHandle::new(0x7078, 0x6d75);
