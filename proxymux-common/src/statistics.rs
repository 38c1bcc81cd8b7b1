//! What the programs count, by what became of a packet.

/// Packets and their bytes, one per [`Verdict`] and processor.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Counter {
    /// How many packets.
    pub packets: u64,
    /// Their length from the link layer's header on.
    pub bytes: u64,
}

const _: () = assert!(size_of::<Counter>() == 16);

/// What became of a packet, and the index of its [`Counter`].
///
/// Each packet counts once. "Kubelet-bound" is TCP to one of the node's own addresses and the
/// kubelet's port.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u32)]
pub enum Verdict {
    /// Not kubelet-bound, and nothing of the tunnel's: most of what a NIC sees.
    Unrelated = 0,
    /// From a master's port: a session.
    Session = 1,
    /// Kubelet-bound, of a connection that stands or has just ended, steered or not: a steered
    /// connection has the very addresses and ports that the kubelet's would have, so that nothing
    /// in its socket tells them apart.
    Connected = 2,
    /// Opens a connection, and was assigned to the agent's listener.
    Assigned = 3,
    /// Opens none, finds none, and was assigned: the ACK that answers a SYN cookie, or a stray.
    Followed = 4,
    /// To be steered, but the agent has no listener of this family.
    NoListener = 5,
    /// To be steered, but the agent's heartbeat is stale.
    Stale = 6,
    /// To be steered, but the kernel refused the assignment.
    AssignFailed = 7,
    /// Kubelet-bound from elsewhere: passed, as the guard is off or lets it in.
    Passed = 8,
    /// Kubelet-bound from elsewhere: the guard would have dropped it.
    Audited = 9,
    /// Kubelet-bound from elsewhere: dropped by the guard.
    Dropped = 10,
    /// Its headers could not be read.
    Unreadable = 11,
    /// Kubelet-bound by its addresses, but a fragment, tagged, or with extension headers: passed
    /// unseen.
    Opaque = 12,
}

impl Verdict {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 13] = [
        Self::Unrelated,
        Self::Session,
        Self::Connected,
        Self::Assigned,
        Self::Followed,
        Self::NoListener,
        Self::Stale,
        Self::AssignFailed,
        Self::Passed,
        Self::Audited,
        Self::Dropped,
        Self::Unreadable,
        Self::Opaque,
    ];

    /// Its word in metrics and tables.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unrelated => "unrelated",
            Self::Session => "session",
            Self::Connected => "connected",
            Self::Assigned => "assigned",
            Self::Followed => "followed",
            Self::NoListener => "no-listener",
            Self::Stale => "stale",
            Self::AssignFailed => "assign-failed",
            Self::Passed => "passed",
            Self::Audited => "audited",
            Self::Dropped => "dropped",
            Self::Unreadable => "unreadable",
            Self::Opaque => "opaque",
        }
    }
}
