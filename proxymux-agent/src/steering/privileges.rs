//! Which of the capabilities that loading needs this process has.
//!
//! Owns the words for what is missing. Asked only after the kernel has refused, so that nothing
//! depends on a list of ours: older kernels want more, and others are patched.

use std::fs;

/// What is missing of what this kernel asks for, as people write it.
pub(crate) fn missing() -> Vec<&'static str> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap_or_default();
    missing_of(effective(&status), last.trim().parse().unwrap_or(0))
}

/// `last` is the number of the newest capability that this kernel knows.
fn missing_of(effective: u64, last: u32) -> Vec<&'static str> {
    let has = |number: u32| effective & (1 << number) != 0;
    if has(SYS_ADMIN) && has(NET_ADMIN) {
        return Vec::new();
    }
    // A kernel that does not know CAP_BPF has CAP_SYS_ADMIN in its place.
    let bpf = if last >= BPF {
        ("CAP_BPF", has(BPF) || has(SYS_ADMIN))
    } else {
        ("CAP_SYS_ADMIN", has(SYS_ADMIN))
    };
    let needed = [bpf, ("CAP_NET_ADMIN", has(NET_ADMIN))];
    let missing = needed.into_iter().filter(|(_, has)| !has);
    missing.map(|(name, _)| name).collect()
}

fn effective(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .unwrap_or(0)
}

const NET_ADMIN: u32 = 12;
const SYS_ADMIN: u32 = 21;
const BPF: u32 = 39;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_depends_on_what_the_kernel_knows() {
        let net = 1 << NET_ADMIN;
        for (effective, last, expected) in [
            (0, 40, vec!["CAP_BPF", "CAP_NET_ADMIN"]),
            (net, 40, vec!["CAP_BPF"]),
            (1 << BPF, 40, vec!["CAP_NET_ADMIN"]),
            (net | 1 << BPF, 40, vec![]),
            (net | 1 << SYS_ADMIN, 40, vec![]),
            (net, 37, vec!["CAP_SYS_ADMIN"]),
            (net | 1 << SYS_ADMIN, 37, vec![]),
        ] {
            assert_eq!(
                missing_of(effective, last),
                expected,
                "{effective:x} {last}"
            );
        }
    }

    #[test]
    fn the_effective_set_is_read_from_the_status() {
        let status = "CapPrm:\t000001ffffffffff\nCapEff:\t0000008000001000\nCapBnd:\t0\n";
        assert_eq!(effective(status), 1 << BPF | 1 << NET_ADMIN);
        assert_eq!(effective("Name:\tx\n"), 0);
    }
}
