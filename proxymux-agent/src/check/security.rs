//! Kernel lockdown, SELinux and `AppArmor`, as far as files tell.
//!
//! Owns what is said of them. None forbids by being there, so each is fine by itself: where the
//! kernel has refused the programs although the capabilities are there, they are named as causes.

use std::fs;

use proxymux_transport::command::Report;

/// What of this is in force here.
#[derive(Debug, Default, Eq, PartialEq)]
struct Policies {
    lockdown: Option<String>,
    selinux: Option<String>,
    apparmor: Option<String>,
    /// The `AppArmor` profile, or the SELinux label, of this process.
    label: Option<String>,
}

/// `refused` is whether the kernel has refused the programs without a reason of its own.
pub(super) fn look(report: &mut Report, refused: bool) {
    let read = |path: &str| fs::read_to_string(path).ok();
    let policies = Policies {
        lockdown: read("/sys/kernel/security/lockdown"),
        selinux: read("/sys/fs/selinux/enforce"),
        apparmor: read("/sys/module/apparmor/parameters/enabled"),
        label: read("/proc/self/attr/current"),
    };
    policies.tell(report, refused);
}

impl Policies {
    fn tell(&self, report: &mut Report, refused: bool) {
        let lockdown = self.lockdown.as_deref().map(chosen);
        match lockdown {
            None => report.ok(
                LOCKDOWN,
                "no /sys/kernel/security/lockdown here: the kernel has none, or this does not see it",
            ),
            Some(mode) if mode != "none" && refused => report.warning(
                LOCKDOWN,
                format!("{mode}, and the kernel has refused the eBPF programs"),
                "see the kernel's log for `Lockdown:`; it comes with secure boot or `lockdown=`",
            ),
            Some(mode) => report.ok(LOCKDOWN, mode),
        }
        let label = self.label.as_deref().map(label).unwrap_or_default();
        match self.selinux.as_deref().map(str::trim) {
            None => report.ok(SELINUX, "not in force: no /sys/fs/selinux/enforce here"),
            Some("1") if refused => report.warning(
                SELINUX,
                format!("enforcing, this process is {label}, and the kernel has refused eBPF"),
                "see `ausearch -m avc -c proxymux-agent`; in a pod set seLinuxOptions `type: \
                 spc_t`",
            ),
            Some("1") => report.ok(SELINUX, format!("enforcing; this process is {label}")),
            Some(_) => report.ok(SELINUX, "permissive: it logs and forbids nothing"),
        }
        match self.apparmor.as_deref().map(str::trim) {
            Some("Y") if refused && label != UNCONFINED => report.warning(
                APPARMOR,
                format!("in force, this process is {label}, and the kernel has refused eBPF"),
                "see `journalctl -k | grep apparmor`; in a pod set appArmorProfile `type: \
                 Unconfined`",
            ),
            Some("Y") => report.ok(APPARMOR, format!("in force; this process is {label}")),
            Some(_) | None => report.ok(APPARMOR, "not in force"),
        }
    }
}

/// The mode in brackets: `none [integrity] confidentiality`.
fn chosen(modes: &str) -> String {
    let chosen = modes
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    chosen.map_or_else(|| modes.trim().to_owned(), |(mode, _)| mode.to_owned())
}

fn label(read: &str) -> String {
    match read.trim_end_matches(['\0', '\n']) {
        "" => UNCONFINED.to_owned(),
        label => label.to_owned(),
    }
}

const LOCKDOWN: &str = "lockdown";
const SELINUX: &str = "selinux";
const APPARMOR: &str = "apparmor";
const UNCONFINED: &str = "unconfined";

#[cfg(test)]
mod tests {
    use proxymux_transport::command::Level;

    use super::*;

    fn told(policies: &Policies, refused: bool) -> Vec<(Level, String)> {
        let mut report = Report::default();
        policies.tell(&mut report, refused);
        let findings = report.findings().iter();
        findings
            .map(|finding| (finding.level, finding.found.clone()))
            .collect()
    }

    #[test]
    fn what_is_not_there_is_fine() {
        let told = told(&Policies::default(), true);
        assert!(
            told.iter().all(|(level, _)| *level == Level::Ok),
            "{told:?}"
        );
    }

    #[test]
    fn what_is_in_force_is_a_cause_only_where_the_kernel_has_refused() {
        let policies = Policies {
            lockdown: Some("none integrity [confidentiality]\n".to_owned()),
            selinux: Some("1".to_owned()),
            apparmor: Some("Y\n".to_owned()),
            label: Some("containerd-default (enforce)\n".to_owned()),
        };
        let fine = told(&policies, false);
        assert!(
            fine.iter().all(|(level, _)| *level == Level::Ok),
            "{fine:?}"
        );
        let causes = told(&policies, true);
        assert!(
            causes.iter().all(|(level, _)| *level == Level::Warning),
            "{causes:?}"
        );
        assert!(
            causes
                .iter()
                .any(|(_, text)| text.starts_with("confidentiality"))
        );
    }
}
