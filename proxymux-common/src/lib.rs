//! What the eBPF programs and the agent share: names of programs and maps, and what is in the maps.
//!
//! Owns the layout of every map's keys and values, and what is decided about a packet. Nothing here
//! allocates, blocks or asks the kernel; the kernel side is `proxymux-ebpf`, the user side the agent's `steering`.
//! Read [`Settings`], [`Verdict`] and [`decide()`] first.
//! Addresses are 16 bytes in network byte order, IPv4 ones mapped (`::ffff:a.b.c.d`); numbers are in
//! the order of this host.

#![no_std]
#![cfg_attr(feature = "user", allow(unsafe_code))]

#[cfg(feature = "user")]
extern crate std;

mod decide;
pub mod names;
pub mod packet;
mod settings;
mod statistics;
#[cfg(feature = "user")]
pub mod user;

pub use self::{
    decide::{Assignment, Device, Socket, View, decide},
    settings::{Guard, SETTINGS_FLAG_GUARD_NIC, SETTINGS_FLAG_STEER, Settings},
    statistics::{Counter, Verdict},
};

/// An IPv6 address, or an IPv4 address mapped into one, in network byte order.
pub type Address = [u8; 16];

/// `address` as the maps have it.
///
/// Arithmetic on one number and not an array of bytes, which the compiler would fill with a loop
/// that the kernel refuses to those who have CAP_BPF alone.
#[must_use]
#[inline(always)]
pub const fn mapped(address: [u8; 4]) -> Address {
    (0xffff_0000_0000 | u32::from_be_bytes(address) as u128).to_be_bytes()
}

/// The slot of the listener for IPv4 in [`names::LISTENERS`].
pub const LISTENER_V4: u32 = 0;
/// The slot of the listener for IPv6.
pub const LISTENER_V6: u32 = 1;

/// The agent is taken for dead or hung when its heartbeat is as old as this, in nanoseconds.
pub const HEARTBEAT_EXPIRES_NS: u64 = 5_000_000_000;

/// Whether an agent whose last heartbeat was at `beat` is taken for alive at `now`, both as
/// [`names::HEARTBEAT`] has them; a `beat` of 0 is none at all.
///
/// A heartbeat of another processor may be a little ahead of this one's clock.
#[must_use]
#[inline(always)]
pub const fn is_alive(beat: u64, now: u64) -> bool {
    beat != 0 && now.saturating_sub(beat) < HEARTBEAT_EXPIRES_NS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_is_mapped_as_the_standard_library_does() {
        let address = core::net::Ipv4Addr::new(192, 0, 2, 10);

        assert_eq!(mapped(address.octets()), address.to_ipv6_mapped().octets());
    }

    #[test]
    fn an_agent_lives_until_its_heartbeat_is_as_old_as_the_limit() {
        let beat = 7;
        for (beat, now, alive) in [
            (0, 1, false),
            (beat, beat, true),
            (beat, beat - 1, true),
            (beat, beat + HEARTBEAT_EXPIRES_NS - 1, true),
            (beat, beat + HEARTBEAT_EXPIRES_NS, false),
        ] {
            assert_eq!(is_alive(beat, now), alive, "{beat} {now}");
        }
    }
}
