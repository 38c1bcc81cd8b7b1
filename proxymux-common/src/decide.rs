//! What is done with a packet: the one decision of both programs.
//!
//! Owns the order of the questions. What only the kernel can answer is asked through [`View`],
//! which `proxymux-ebpf` implements with the kernel's helpers, `explain` with system calls, and the
//! tests with tables. Every answer but [`Verdict::Dropped`] lets the packet go on its way.

use crate::{
    Address, Guard, SETTINGS_FLAG_GUARD_NIC, SETTINGS_FLAG_STEER, Settings, Verdict,
    packet::{Headers, Parsed},
};

/// The device that a packet came in at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Device {
    /// The node's NIC: steered, and guarded if [`SETTINGS_FLAG_GUARD_NIC`] is set.
    Nic,
    /// Another device of `guard-inf`: guarded only.
    Guarded,
}

/// The socket that the node has for a packet's addresses and ports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Socket {
    /// None at all.
    Absent,
    /// One that waits for connections.
    Listening,
    /// Of a connection that has ended: TIME_WAIT.
    Ended,
    /// Of a connection that stands, or is being opened.
    Standing,
}

/// What came of giving a packet to the agent's listener.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Assignment {
    Done,
    /// The agent has no listener of this family.
    NoListener,
    /// The kernel refused.
    Failed,
}

/// What the decision asks of its surroundings.
pub trait View {
    /// Whether `address` is one of the node's own.
    fn is_own(&self, address: &Address) -> bool;
    /// Whether connections from `headers.source` are steered.
    fn is_source(&self, headers: &Headers) -> bool;
    /// Whether the guard lets `headers.source` in.
    fn is_allowed(&self, headers: &Headers) -> bool;
    /// Whether the agent's heartbeat is fresh.
    fn is_alive(&self) -> bool;
    /// The socket for the packet.
    fn socket(&self, headers: &Headers) -> Socket;
    /// Gives the packet to the agent's listener of its family.
    fn assign(&self, headers: &Headers) -> Assignment;
    /// Remembers what the guard dropped or would have.
    fn remember(&self, source: &Address);
}

/// Decides, and does it, except for dropping.
#[inline(always)]
pub fn decide(parsed: &Parsed, settings: &Settings, device: Device, view: &impl View) -> Verdict {
    match parsed {
        Parsed::Other => Verdict::Unrelated,
        Parsed::Unreadable => Verdict::Unreadable,
        Parsed::Opaque(destination) if settings.kubelet_port != 0 && view.is_own(destination) => {
            Verdict::Opaque
        }
        Parsed::Opaque(_) => Verdict::Unrelated,
        Parsed::Tcp(headers) => decide_tcp(headers, settings, device, view),
    }
}

/// Ports are compared before any map is asked: most packets end there.
#[inline(always)]
fn decide_tcp(headers: &Headers, settings: &Settings, device: Device, view: &impl View) -> Verdict {
    // Port 0 is no port: settings that are not filled in match nothing.
    let to_kubelet =
        settings.kubelet_port != 0 && headers.destination_port == settings.kubelet_port;
    let from_master = settings.master_port != 0 && headers.source_port == settings.master_port;
    if !(to_kubelet || from_master) || !view.is_own(&headers.destination) {
        return Verdict::Unrelated;
    }
    if !to_kubelet {
        return Verdict::Session;
    }
    let is_nic = matches!(device, Device::Nic);
    if view.is_source(headers) {
        return if is_nic && settings.flags & SETTINGS_FLAG_STEER != 0 {
            steer(headers, view)
        } else {
            Verdict::Passed
        };
    }
    if is_nic && settings.flags & SETTINGS_FLAG_GUARD_NIC == 0 {
        return Verdict::Passed;
    }
    guard(headers, settings.guard, view)
}

/// Decides on the socket and not on the SYN flag: with SYN cookies nothing remembers the SYN, and
/// the ACK that opens the connection finds the kubelet's listener unless it is assigned too.
#[inline(always)]
fn steer(headers: &Headers, view: &impl View) -> Verdict {
    match view.socket(headers) {
        // The stack finds it by itself. A new connection over one in TIME_WAIT hangs if assigned.
        Socket::Standing | Socket::Ended => return Verdict::Connected,
        Socket::Absent | Socket::Listening => {}
    }
    if !view.is_alive() {
        return Verdict::Stale;
    }
    match view.assign(headers) {
        Assignment::Done if headers.opens => Verdict::Assigned,
        Assignment::Done => Verdict::Followed,
        Assignment::NoListener => Verdict::NoListener,
        Assignment::Failed => Verdict::AssignFailed,
    }
}

/// Stops only what opens a connection: a running one may have no socket here, because it was
/// redirected into a container, or was opened with a SYN cookie.
#[inline(always)]
fn guard(headers: &Headers, mode: u32, view: &impl View) -> Verdict {
    if mode == Guard::Off as u32 || !headers.opens || view.is_allowed(headers) || !view.is_alive() {
        return Verdict::Passed;
    }
    if matches!(view.socket(headers), Socket::Standing) {
        return Verdict::Connected;
    }
    view.remember(&headers.source);
    if mode == Guard::Enforce as u32 {
        Verdict::Dropped
    } else {
        Verdict::Audited
    }
}
