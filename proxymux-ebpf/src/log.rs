//! Lines of log for what opens connections, in the build that has them.
//!
//! Owns which verdicts are worth a line: decisions on connections, never one per packet.

use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use proxymux_common::{
    Verdict,
    packet::{Family, Headers, Parsed},
};

#[inline(always)]
pub(crate) fn verdict(context: &TcContext, parsed: &Parsed, verdict: Verdict) {
    let Parsed::Tcp(headers) = parsed else {
        return;
    };
    if !headers.opens || !is_decision(verdict) {
        return;
    }
    let [.., a, b, c, d] = headers.source;
    match headers.family {
        Family::V4 => debug!(
            context,
            "verdict {} for a connection from {:i} port {}",
            verdict as u32,
            u32::from_be_bytes([a, b, c, d]),
            headers.source_port
        ),
        Family::V6 => line_v6(context, headers, verdict),
    }
}

#[inline(always)]
fn line_v6(context: &TcContext, headers: &Headers, verdict: Verdict) {
    debug!(
        context,
        "verdict {} for a connection from {:i} port {}",
        verdict as u32,
        headers.source,
        headers.source_port
    );
}

#[inline(always)]
const fn is_decision(verdict: Verdict) -> bool {
    matches!(
        verdict,
        Verdict::Assigned
            | Verdict::NoListener
            | Verdict::Stale
            | Verdict::AssignFailed
            | Verdict::Audited
            | Verdict::Dropped
    )
}
