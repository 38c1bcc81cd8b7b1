//! What steering and guard need of kernel, device and firewall.
//!
//! Owns how much each lack matters, which the configured mode decides ([`Need`]), and what the
//! running agent says of its programs. Without the cargo feature `ebpf` there is one line.

use std::{collections::BTreeSet, net::IpAddr};

use proxymux_transport::command::{Report, text};
use serde_json::Value;

use super::{security, settings::Settings};
use crate::config::{Config, Guard, Mode};

/// How much eBPF is wanted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Need {
    /// The agent does not start without it.
    Required,
    /// Without it everything goes by sessions.
    Wanted,
    /// The mode does without.
    No,
}

/// Blocks, on the kernel and on other programs.
pub(super) fn look(
    settings: &Settings,
    masters: &BTreeSet<IpAddr>,
    status: &Option<Value>,
) -> Report {
    let mut report = Report::default();
    let need = Need::of(settings.config.as_ref());
    if let Some(status) = status {
        running(&mut report, need, status);
    }
    #[cfg(feature = "ebpf")]
    {
        let refused = super::kernel::look(&mut report, need, settings.config.as_ref());
        super::kernel::splicing(&mut report);
        security::look(&mut report, refused);
        if let Some(config) = &settings.config
            && need != Need::No
        {
            let nic = super::nic::look(&mut report, need, config, status.as_ref());
            if let Some(nic) = &nic {
                super::reverse_path::look(&mut report, config, nic, masters, status.as_ref());
            }
            super::firewall::look(&mut report, config, nic.as_ref());
        }
    }
    #[cfg(not(feature = "ebpf"))]
    {
        let _ = masters;
        need.lacks(
            &mut report,
            MODE,
            "this agent was built without eBPF",
            "install a build with the cargo feature `ebpf`, or set `mode: userspace`",
        );
        security::look(&mut report, false);
    }
    report
}

/// What the running agent has of steering, and what is wrong with it.
fn running(report: &mut Report, need: Need, status: &Value) {
    let (mode, reason) = (text(status, "/mode"), text(status, "/mode_reason"));
    let found = format!("the running agent is in mode {mode}: {reason}");
    if mode == "userspace" && need != Need::No {
        need.lacks(
            report,
            MODE,
            &found,
            "mend what is said of the kernel and the device here, then restart the agent",
        );
    } else {
        report.ok(MODE, found);
    }
    let places = status.get("attachments").and_then(Value::as_array);
    for place in places.into_iter().flatten() {
        let problem = text(place, "/problem");
        if !problem.is_empty() {
            need.lacks(
                report,
                MODE,
                &format!(
                    "{} is not on {}: {problem}",
                    text(place, "/program"),
                    text(place, "/wanted")
                ),
                "mend what is said of the device here; the agent tries again every few seconds",
            );
        }
    }
    let drift = text(status, "/steering/drift/causes");
    if !drift.is_empty() {
        report.warning(
            DRIFT,
            format!(
                "{} connections were assigned to the running agent lately and {} came to it",
                text(status, "/steering/drift/assigned"),
                text(status, "/steering/drift/accepted")
            ),
            drift,
        );
    }
}

impl Need {
    fn of(config: Option<&Config>) -> Self {
        match config {
            Some(config) if config.mode == Mode::Userspace => Self::No,
            Some(config) if config.mode == Mode::Ebpf || config.guard == Guard::Enforce => {
                Self::Required
            }
            Some(_) | None => Self::Wanted,
        }
    }

    /// Something that steering needs is not there.
    pub(super) fn lacks(self, report: &mut Report, topic: &'static str, found: &str, fix: &str) {
        match self {
            Self::Required => report.error(topic, found, fix),
            Self::Wanted => report.warning(
                topic,
                format!("{found}; without it connections go by sessions"),
                fix,
            ),
            Self::No => report.ok(topic, format!("{found}; not needed in mode userspace")),
        }
    }
}

const MODE: &str = "mode";
const DRIFT: &str = "drift";

#[cfg(test)]
mod tests {
    use proxymux_transport::command::Level;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_lack_is_as_bad_as_the_mode_makes_it() {
        let level = |need: Need| {
            let mut report = Report::default();
            need.lacks(&mut report, MODE, "no eBPF", "get it");
            report.worst()
        };
        assert_eq!(level(Need::Required), Level::Error);
        assert_eq!(level(Need::Wanted), Level::Warning);
        assert_eq!(level(Need::No), Level::Ok);
    }

    #[test]
    fn the_running_agents_troubles_are_told() {
        let mut report = Report::default();
        let status = json!({
            "mode": "ebpf", "mode_reason": "configured",
            "attachments": [
                { "program": "proxymux_steer", "wanted": "the interface ens3", "problem": null },
                { "program": "proxymux_guard", "wanted": "the interface vx0", "problem": "gone" },
            ],
            "steering": { "drift": { "assigned": 9, "accepted": 0, "causes": "NAT" } },
        });
        running(&mut report, Need::Required, &status);
        let told: Vec<_> = report
            .findings()
            .iter()
            .map(|f| (f.topic, f.level))
            .collect();
        assert_eq!(
            told,
            [
                (MODE, Level::Ok),
                (MODE, Level::Error),
                (DRIFT, Level::Warning)
            ]
        );
    }
}
