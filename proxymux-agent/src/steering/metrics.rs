//! The metrics of where the programs are.
//!
//! Owns their names and closed lists of labels. What the programs count is elsewhere.

use proxymux_common::names;
use proxymux_transport::metrics::{Counter, Gauges, Registry, counter};

use super::{AttachKind, Steering};

/// The mode, and the attachments.
#[derive(Debug)]
pub(crate) struct SteeringMetrics {
    modes: Gauges,
    attached: Gauges<2>,
    before: Gauges,
    /// How often a program was found to be off its device.
    #[cfg_attr(
        not(feature = "ebpf"),
        expect(dead_code, reason = "without programs none is lost")
    )]
    pub(crate) lost: Counter,
    /// How often a program could not be attached.
    #[cfg_attr(
        not(feature = "ebpf"),
        expect(dead_code, reason = "without programs none is attached")
    )]
    pub(crate) failed: Counter,
}

impl SteeringMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let modes = Gauges::new("mode", MODES);
        registry.register("mode", "1 for the mode in force", modes.clone());
        let attached = Gauges::of_pairs(["program", "attach"], PROGRAMS, ATTACH);
        registry.register(
            "programs_attached",
            "On how many devices an eBPF program is, by how it is attached",
            attached.clone(),
        );
        let before = Gauges::new("program", PROGRAMS);
        registry.register(
            "programs_before",
            "Programs of others that come before ours, over all devices; each may hide packets from it",
            before.clone(),
        );
        Self {
            modes,
            attached,
            before,
            lost: counter(
                registry,
                "programs_lost",
                "Times that a program was found to be off its device: the device or the qdisc was removed, or somebody took the program off",
            ),
            failed: counter(
                registry,
                "program_attach_failures",
                "Times that a program could not be attached to a device that is there",
            ),
        }
    }

    /// Shows how things are.
    pub(crate) fn show(&self, steering: &Steering) {
        let (mode, _) = steering.mode();
        for word in MODES {
            self.modes.get(word).set((*word == mode).into());
        }
        let places = steering.places();
        for program in PROGRAMS {
            for kind in [AttachKind::Tcx, AttachKind::Netlink] {
                let here = places.iter().filter(|place| {
                    let attached = place.attached.as_ref();
                    place.program == *program && attached.is_some_and(|(_, how)| *how == kind)
                });
                let count = i64::try_from(here.count()).unwrap_or(i64::MAX);
                self.attached.get_pair([program, kind.word()]).set(count);
            }
            let here = places.iter().filter(|place| place.program == *program);
            let before: usize = here.map(|place| place.before.len()).sum();
            let before = i64::try_from(before).unwrap_or(i64::MAX);
            self.before.get(program).set(before);
        }
    }
}

const MODES: &[&str] = &["ebpf", "userspace"];
const PROGRAMS: &[&str] = &[names::STEER, names::GUARD];
const ATTACH: &[&str] = &["tcx", "netlink"];
