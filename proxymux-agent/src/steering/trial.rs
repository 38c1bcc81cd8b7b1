//! Trying out what the kernel offers, without a packet seeing any of it.
//!
//! Owns the trial that `check` makes: the programs are loaded as for real, and attached to the
//! loopback device of a network namespace that is made for it and goes with it. Neither a running
//! agent's programs nor its claim are touched. Read [`run`].

use std::thread;

use nix::sched::{CloneFlags, unshare};
use proxymux_common::{names, user::tcx_ingress};

use super::{
    Device,
    attach::Attachment,
    load::{LoadError, Loaded},
};
use crate::config::Attach;

/// What came of it.
#[derive(Debug)]
pub(crate) struct Trial {
    /// Whether the kernel takes the programs.
    pub(crate) loaded: Result<(), LoadError>,
    /// Whether they can be attached, if they could be loaded.
    pub(crate) attached: Option<Attached>,
}

/// Whether the programs can be attached.
#[derive(Debug)]
pub(crate) enum Attached {
    /// Both ways were tried.
    Tried {
        /// By TCX.
        tcx: Result<(), String>,
        /// By a filter at a clsact qdisc.
        clsact: Result<(), String>,
    },
    /// There may be no namespace to try it in.
    NotTried {
        /// Why not.
        why: String,
        /// Whether the kernel answers questions about TCX.
        knows_tcx: bool,
    },
}

/// Loads and attaches. Blocks, for as long as the kernel's verifier takes.
pub(crate) fn run() -> Trial {
    let mut loaded = match Loaded::load(false) {
        Ok(loaded) => loaded,
        Err(error) => {
            return Trial {
                loaded: Err(error),
                attached: None,
            };
        }
    };
    // A namespace belongs to a thread, and goes with the last one in it.
    let attached = thread::scope(|scope| {
        let trying = thread::Builder::new()
            .name("trial".to_owned())
            .spawn_scoped(scope, || attach(&mut loaded));
        match trying.map(thread::ScopedJoinHandle::join) {
            Ok(Ok(attached)) => attached,
            Ok(Err(_)) => not_tried("the thread for it panicked".to_owned()),
            Err(error) => not_tried(format!("no thread for it: {error}")),
        }
    });
    Trial {
        loaded: Ok(()),
        attached: Some(attached),
    }
}

fn attach(loaded: &mut Loaded) -> Attached {
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
        return not_tried(format!("no network namespace to try it in: {error}"));
    }
    let mut by = |how| {
        let device = loopback();
        let program = loaded
            .program(names::STEER)
            .map_err(|error| error.to_string())?;
        let attachment = Attachment::new(program, names::STEER, &device, (how, PRIORITY));
        attachment.map(drop).map_err(|error| error.to_string())
    };
    Attached::Tried {
        tcx: by(Attach::Tcx),
        clsact: by(Attach::Netlink),
    }
}

fn not_tried(why: String) -> Attached {
    Attached::NotTried {
        why,
        knows_tcx: tcx_ingress(loopback().index).is_ok(),
    }
}

/// It is the first of every namespace.
fn loopback() -> Device {
    Device {
        name: "lo".to_owned(),
        index: 1,
    }
}

/// Any: there is no other filter.
const PRIORITY: u16 = 1;
