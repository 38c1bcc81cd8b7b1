//! What the kernel offers for steering, one by one, by trying it.
//!
//! Owns the words; the trial itself is `steering/trial.rs`. Nothing is judged by the kernel's
//! version, since distributions carry features back.

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported},
};
use proxymux_transport::{command::Report, splice, telemetry::chain};

use super::steering::Need;
use crate::{
    config::{Attach, Config},
    steering::{
        load::LoadError,
        privileges,
        trial::{self, Attached},
    },
};

/// Whether the kernel has refused the programs without a reason of its own.
pub(super) fn look(report: &mut Report, need: Need, config: Option<&Config>) -> bool {
    let missing = privileges::missing();
    if !missing.is_empty() {
        need.lacks(
            report,
            CAPABILITIES,
            &format!(
                "this process lacks {}, so that nothing of eBPF can be tried",
                missing.join(" and ")
            ),
            "run the check as root; give them to the agent: CapabilityBoundingSet= in its unit, \
             securityContext in its pod (overlays/capabilities)",
        );
        return false;
    }
    report.ok(CAPABILITIES, "this process has what eBPF needs");
    let lpm = is_map_supported(MapType::LpmTrie).map_err(|error| chain(&error));
    let assign = is_helper_supported(ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_sk_assign);
    feature(report, need, LPM, "4.11", lpm);
    feature(
        report,
        need,
        ASSIGN,
        "5.7",
        assign.map_err(|error| chain(&error)),
    );
    match is_map_supported(MapType::RingBuf) {
        Ok(true) => report.ok(RING, "there"),
        Ok(false) => report.ok(
            RING,
            "not there (Linux 5.8 has it): only the programs that log at debug need it",
        ),
        Err(error) => report.ok(RING, format!("cannot be tried: {}", chain(&error))),
    }
    let trial = trial::run();
    match &trial.loaded {
        Ok(()) => report.ok(PROGRAMS, "the kernel takes them"),
        Err(error) => need.lacks(report, PROGRAMS, &chain(error), load_fix(error)),
    }
    if let Some(attached) = &trial.attached {
        let how = config.map_or(Attach::Auto, |config| config.attach);
        tell_attached(report, need, how, attached);
    }
    matches!(trial.loaded, Err(LoadError::Forbidden))
}

/// Whether payload can be moved without being copied.
pub(super) fn splicing(report: &mut Report) {
    match splice::attempt() {
        Ok(capacity) => report.ok(SPLICE, format!("works, through pipes of {capacity} bytes")),
        Err(splice::Fallback::UserPages) => report.warning(
            SPLICE,
            "this user has so many pipes that new ones are tiny; relays copy instead",
            "raise fs.pipe-user-pages-soft, or run the agent as root",
        ),
        Err(reason) => report.warning(
            SPLICE,
            format!("does not work ({}); relays copy instead", reason.as_str()),
            "see the limit of open files, and whether a seccomp filter forbids splice",
        ),
    }
}

fn feature(
    report: &mut Report,
    need: Need,
    topic: &'static str,
    since: &str,
    supported: Result<bool, String>,
) {
    match supported {
        Ok(true) => report.ok(topic, "there"),
        Ok(false) => need.lacks(
            report,
            topic,
            &format!("not there; it came with Linux {since}"),
            NEWER_KERNEL,
        ),
        Err(why) => need.lacks(report, topic, &format!("cannot be tried: {why}"), FORBIDDEN),
    }
}

fn tell_attached(report: &mut Report, need: Need, how: Attach, attached: &Attached) {
    let (tcx, clsact) = match attached {
        Attached::Tried { tcx, clsact } => (tcx, clsact),
        Attached::NotTried { why, knows_tcx } => {
            if *knows_tcx {
                report.ok(
                    TCX,
                    format!("the kernel knows it; attaching was not tried: {why}"),
                );
            } else {
                report.warning(
                    TCX,
                    format!("attaching was not tried: {why}"),
                    "run the check as root (CAP_SYS_ADMIN), which may make namespaces",
                );
            }
            return;
        }
    };
    let (tcx_matters, clsact_matters) = match how {
        Attach::Tcx => (true, false),
        Attach::Netlink => (false, true),
        // One of both is enough.
        Attach::Auto => (clsact.is_err(), tcx.is_err()),
    };
    for (topic, tried, matters, fix) in [
        (
            TCX,
            tcx,
            tcx_matters,
            "Linux 6.6 has it; `attach: auto` does without",
        ),
        (
            CLSACT,
            clsact,
            clsact_matters,
            "load the kernel's modules sch_ingress and cls_bpf (`modprobe sch_ingress cls_bpf`)",
        ),
    ] {
        match tried {
            Ok(()) => report.ok(topic, "works, tried in a namespace of its own"),
            Err(why) if matters => need.lacks(report, topic, why, fix),
            Err(why) => report.ok(topic, format!("does not work, and is not needed: {why}")),
        }
    }
}

fn load_fix(error: &LoadError) -> &'static str {
    match error {
        LoadError::Capabilities(_) | LoadError::Forbidden => FORBIDDEN,
        LoadError::NoBpf | LoadError::NoAssign => NEWER_KERNEL,
        LoadError::NoProgram(_)
        | LoadError::Refused { .. }
        | LoadError::Log(_)
        | LoadError::Object(_)
        | LoadError::Map(_) => {
            "report it with this line and `uname -r`; `mode: userspace` does without"
        }
    }
}

const CAPABILITIES: &str = "capabilities";
const LPM: &str = "kernel lpm trie";
const ASSIGN: &str = "kernel sk_assign";
const RING: &str = "kernel ring buffer";
const PROGRAMS: &str = "kernel programs";
const TCX: &str = "kernel tcx";
const CLSACT: &str = "kernel clsact";
const SPLICE: &str = "splice";

const NEWER_KERNEL: &str = "use a newer kernel, or `mode: userspace`, which does without";
const FORBIDDEN: &str = "see what is said of lockdown, SELinux and AppArmor here; a user namespace \
     forbids it too (`hostUsers: true` in a pod)";

#[cfg(test)]
mod tests {
    use proxymux_transport::command::Level;

    use super::*;

    fn told(how: Attach, tcx: bool, clsact: bool) -> Vec<Level> {
        let tried = |works: bool| works.then_some(()).ok_or_else(|| "no".to_owned());
        let attached = Attached::Tried {
            tcx: tried(tcx),
            clsact: tried(clsact),
        };
        let mut report = Report::default();
        tell_attached(&mut report, Need::Required, how, &attached);
        report
            .findings()
            .iter()
            .map(|finding| finding.level)
            .collect()
    }

    #[test]
    fn one_way_to_attach_is_enough_unless_the_configuration_wants_the_other() {
        let (fine, wrong) = (Level::Ok, Level::Error);
        assert_eq!(told(Attach::Auto, false, true), [fine, fine]);
        assert_eq!(told(Attach::Auto, true, false), [fine, fine]);
        assert_eq!(told(Attach::Auto, false, false), [wrong, wrong]);
        assert_eq!(told(Attach::Tcx, false, true), [wrong, fine]);
        assert_eq!(told(Attach::Netlink, true, false), [fine, wrong]);
    }
}
