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

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use super::*;
    use crate::{mapped, packet::Family};

    const NODE: Address = mapped([10, 0, 10, 10]);
    const MASTER: Address = mapped([192, 0, 2, 10]);
    const FRIEND: Address = mapped([198, 51, 100, 1]);
    const STRANGER: Address = mapped([203, 0, 113, 1]);

    /// A node whose agent lives.
    struct Node {
        alive: bool,
        socket: Socket,
        assignment: Assignment,
        assigned: Cell<u32>,
        remembered: Cell<Option<Address>>,
    }

    const fn node() -> Node {
        Node {
            alive: true,
            socket: Socket::Listening,
            assignment: Assignment::Done,
            assigned: Cell::new(0),
            remembered: Cell::new(None),
        }
    }

    impl View for Node {
        fn is_own(&self, address: &Address) -> bool {
            *address == NODE
        }
        fn is_source(&self, headers: &Headers) -> bool {
            headers.source == MASTER
        }
        fn is_allowed(&self, headers: &Headers) -> bool {
            headers.source == FRIEND
        }
        fn is_alive(&self) -> bool {
            self.alive
        }
        fn socket(&self, _: &Headers) -> Socket {
            self.socket
        }
        fn assign(&self, _: &Headers) -> Assignment {
            self.assigned.set(self.assigned.get() + 1);
            self.assignment
        }
        fn remember(&self, source: &Address) {
            self.remembered.set(Some(*source));
        }
    }

    fn settings(flags: u32, guard: Guard) -> Settings {
        Settings {
            flags,
            guard: guard as u32,
            kubelet_port: 10250,
            master_port: 12250,
            padding: 0,
        }
    }

    fn syn(source: Address) -> Headers {
        Headers {
            family: Family::V4,
            source,
            destination: NODE,
            source_port: 40000,
            destination_port: 10250,
            opens: true,
        }
    }

    fn steering(headers: Headers, node: &Node) -> Verdict {
        let settings = settings(SETTINGS_FLAG_STEER, Guard::Off);
        decide(&Parsed::Tcp(headers), &settings, Device::Nic, node)
    }

    fn guarding(headers: Headers, mode: Guard, node: &Node) -> Verdict {
        let settings = settings(SETTINGS_FLAG_STEER, mode);
        decide(&Parsed::Tcp(headers), &settings, Device::Guarded, node)
    }

    #[test]
    fn what_has_no_connection_yet_is_assigned_whatever_its_flags() {
        for socket in [Socket::Absent, Socket::Listening] {
            let node = Node { socket, ..node() };
            let ack = Headers {
                opens: false,
                ..syn(MASTER)
            };

            assert_eq!(steering(syn(MASTER), &node), Verdict::Assigned);
            assert_eq!(steering(ack, &node), Verdict::Followed);
            assert_eq!(node.assigned.get(), 2);
        }
    }

    #[test]
    fn what_has_a_connection_is_never_assigned() {
        for socket in [Socket::Standing, Socket::Ended] {
            let node = Node { socket, ..node() };

            assert_eq!(steering(syn(MASTER), &node), Verdict::Connected);
            assert_eq!(node.assigned.get(), 0);
        }
    }

    #[test]
    fn what_cannot_be_assigned_says_why() {
        let dead = Node {
            alive: false,
            ..node()
        };
        assert_eq!(steering(syn(MASTER), &dead), Verdict::Stale);
        assert_eq!(dead.assigned.get(), 0);
        for (assignment, verdict) in [
            (Assignment::NoListener, Verdict::NoListener),
            (Assignment::Failed, Verdict::AssignFailed),
        ] {
            let node = Node {
                assignment,
                ..node()
            };
            assert_eq!(steering(syn(MASTER), &node), verdict);
        }
    }

    #[test]
    fn the_guard_stops_strangers_only() {
        for (source, mode, verdict) in [
            (STRANGER, Guard::Off, Verdict::Passed),
            (STRANGER, Guard::Audit, Verdict::Audited),
            (STRANGER, Guard::Enforce, Verdict::Dropped),
            (FRIEND, Guard::Enforce, Verdict::Passed),
            (MASTER, Guard::Enforce, Verdict::Passed),
        ] {
            let node = node();

            assert_eq!(guarding(syn(source), mode, &node), verdict);
            let stopped = matches!(verdict, Verdict::Audited | Verdict::Dropped);
            assert_eq!(node.remembered.get(), stopped.then_some(source));
            assert_eq!(node.assigned.get(), 0, "only the NIC steers");
        }
    }

    #[test]
    fn the_guard_cuts_no_connection_and_dies_with_the_agent() {
        let ack = Headers {
            opens: false,
            ..syn(STRANGER)
        };
        assert_eq!(guarding(ack, Guard::Enforce, &node()), Verdict::Passed);
        let dead = Node {
            alive: false,
            ..node()
        };
        assert_eq!(
            guarding(syn(STRANGER), Guard::Enforce, &dead),
            Verdict::Passed
        );
        let standing = Node {
            socket: Socket::Standing,
            ..node()
        };
        assert_eq!(
            guarding(syn(STRANGER), Guard::Enforce, &standing),
            Verdict::Connected
        );
        // A new connection where an old one has just ended is a new one.
        let ended = Node {
            socket: Socket::Ended,
            ..node()
        };
        assert_eq!(
            guarding(syn(STRANGER), Guard::Enforce, &ended),
            Verdict::Dropped
        );
    }

    #[test]
    fn on_the_nic_the_guard_works_if_the_settings_say_so() {
        for (flags, verdict) in [
            (0, Verdict::Passed),
            (SETTINGS_FLAG_GUARD_NIC, Verdict::Dropped),
        ] {
            let parsed = Parsed::Tcp(syn(STRANGER));
            let settings = settings(flags, Guard::Enforce);

            assert_eq!(decide(&parsed, &settings, Device::Nic, &node()), verdict);
        }
    }

    #[test]
    fn what_is_not_kubelet_bound_is_unrelated_or_of_a_session() {
        let elsewhere = Headers {
            destination: FRIEND,
            ..syn(MASTER)
        };
        let another_port = Headers {
            destination_port: 443,
            ..syn(MASTER)
        };
        let session = Headers {
            source_port: 12250,
            ..another_port
        };

        assert_eq!(steering(elsewhere, &node()), Verdict::Unrelated);
        assert_eq!(steering(another_port, &node()), Verdict::Unrelated);
        assert_eq!(steering(session, &node()), Verdict::Session);
    }

    #[test]
    fn before_the_settings_are_filled_in_nothing_matches() {
        let zero = Headers {
            source_port: 0,
            destination_port: 0,
            ..syn(MASTER)
        };
        for parsed in [
            Parsed::Tcp(zero),
            Parsed::Tcp(syn(MASTER)),
            Parsed::Opaque(NODE),
        ] {
            let verdict = decide(&parsed, &Settings::default(), Device::Nic, &node());

            assert_eq!(verdict, Verdict::Unrelated);
        }
    }

    #[test]
    fn opaque_packets_count_if_they_are_for_this_node() {
        let settings = settings(SETTINGS_FLAG_STEER, Guard::Enforce);
        for (parsed, verdict) in [
            (Parsed::Opaque(NODE), Verdict::Opaque),
            (Parsed::Opaque(FRIEND), Verdict::Unrelated),
            (Parsed::Other, Verdict::Unrelated),
            (Parsed::Unreadable, Verdict::Unreadable),
        ] {
            assert_eq!(decide(&parsed, &settings, Device::Nic, &node()), verdict);
        }
    }
}
