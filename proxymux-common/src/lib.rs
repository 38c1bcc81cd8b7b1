//! What the eBPF programs and the agent share: names of programs and maps, and what is in the maps.
//!
//! Owns the layout of every map's keys and values. Nothing here allocates, blocks or asks the
//! kernel; the kernel side is `proxymux-ebpf`, the user side the agent's `steering`.
//! Read [`Settings`] and [`Verdict`] first.
//! Addresses are 16 bytes in network byte order, IPv4 ones mapped (`::ffff:a.b.c.d`); numbers are in
//! the order of this host.

#![no_std]

pub mod names;
mod settings;
mod statistics;

pub use self::{
    settings::{Guard, SETTINGS_FLAG_GUARD_NIC, SETTINGS_FLAG_STEER, Settings},
    statistics::{Counter, Verdict},
};

/// An IPv6 address, or an IPv4 address mapped into one, in network byte order.
pub type Address = [u8; 16];

/// `address` as the maps have it.
#[must_use]
pub const fn mapped(address: [u8; 4]) -> Address {
    let [a, b, c, d] = address;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// The slot of the listener for IPv4 in [`names::LISTENERS`].
pub const LISTENER_V4: u32 = 0;
/// The slot of the listener for IPv6.
pub const LISTENER_V6: u32 = 1;

/// The agent is taken for dead or hung when its heartbeat is older than this, in nanoseconds.
pub const HEARTBEAT_EXPIRES_NS: u64 = 5_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_is_mapped_as_the_standard_library_does() {
        let address = core::net::Ipv4Addr::new(192, 0, 2, 10);

        assert_eq!(mapped(address.octets()), address.to_ipv6_mapped().octets());
    }
}
