//! What a packet's headers say, as far as steering and guard want to know.
//!
//! Owns the parsing: from an Ethernet frame to [`Parsed`]. Safe code that reads through [`Bytes`],
//! so that the kernel's programs and the tests on the host run the very same lines.
//! Only whole TCP segments become [`Headers`]: what is a fragment, tagged, or has IPv6 extension
//! headers is [`Parsed::Opaque`], because its ports are elsewhere or nowhere.

use crate::{Address, mapped};

/// A frame, from the link layer's header on.
pub trait Bytes {
    /// The `N` bytes from `offset` on, `None` if the frame is shorter.
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
    /// The protocol of the frame as the kernel has it, which has taken off a VLAN's tag.
    fn protocol(&self) -> u16;
    /// Whether the kernel has taken off a VLAN's tag.
    fn is_tagged(&self) -> bool;
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Family {
    V4,
    V6,
}

/// The headers of one TCP segment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Headers {
    pub family: Family,
    pub source: Address,
    pub destination: Address,
    pub source_port: u16,
    pub destination_port: u16,
    /// A connection is being opened: SYN without ACK.
    pub opens: bool,
}

/// What a frame turned out to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Parsed {
    /// A TCP segment.
    Tcp(Headers),
    /// Something that may be TCP, whose ports cannot be told; it goes to this address.
    Opaque(Address),
    /// Neither.
    Other,
    /// The frame ends within its headers, or they contradict each other.
    Unreadable,
}

const ETHERNET: u32 = 14;
const ETHERTYPE_V4: u16 = 0x0800;
const ETHERTYPE_V6: u16 = 0x86dd;
const TCP: u8 = 6;
/// More fragments, or an offset.
const FRAGMENT: u16 = 0x3fff;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Reads the headers of `frame`.
#[inline(always)]
pub fn parse(frame: &impl Bytes) -> Parsed {
    match frame.protocol() {
        ETHERTYPE_V4 => parse_v4(frame),
        ETHERTYPE_V6 => parse_v6(frame),
        _ => Parsed::Other,
    }
}

#[inline(always)]
fn parse_v4(frame: &impl Bytes) -> Parsed {
    let Some(header) = frame.read::<20>(ETHERNET) else {
        return Parsed::Unreadable;
    };
    #[rustfmt::skip]
    let [version, _, _, _, _, _, fragment_high, fragment_low, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = header;
    let length = u32::from(version & 0x0f) * 4;
    if version >> 4 != 4 || length < 20 {
        return Parsed::Unreadable;
    }
    if protocol != TCP {
        return Parsed::Other;
    }
    let destination = mapped([d0, d1, d2, d3]);
    let fragment = u16::from_be_bytes([fragment_high, fragment_low]) & FRAGMENT != 0;
    if fragment || frame.is_tagged() {
        return Parsed::Opaque(destination);
    }
    let source = mapped([s0, s1, s2, s3]);
    parse_tcp(frame, ETHERNET + length, Family::V4, source, destination)
}

#[inline(always)]
fn parse_v6(frame: &impl Bytes) -> Parsed {
    let Some([version, _, _, _, _, _, next, _]) = frame.read::<8>(ETHERNET) else {
        return Parsed::Unreadable;
    };
    if version >> 4 != 6 {
        return Parsed::Unreadable;
    }
    if next != TCP && !is_extension(next) {
        return Parsed::Other;
    }
    let Some(destination) = frame.read::<16>(ETHERNET + 24) else {
        return Parsed::Unreadable;
    };
    if next != TCP || frame.is_tagged() {
        return Parsed::Opaque(destination);
    }
    let Some(source) = frame.read::<16>(ETHERNET + 8) else {
        return Parsed::Unreadable;
    };
    parse_tcp(frame, ETHERNET + 40, Family::V6, source, destination)
}

/// Hop-by-hop options, routing, fragment, authentication, destination options, mobility.
#[inline(always)]
const fn is_extension(next: u8) -> bool {
    next == 0 || next == 43 || next == 44 || next == 51 || next == 60 || next == 135
}

#[inline(always)]
fn parse_tcp(
    frame: &impl Bytes,
    offset: u32,
    family: Family,
    source: Address,
    destination: Address,
) -> Parsed {
    let Some([s0, s1, d0, d1, _, _, _, _, _, _, _, _, _, flags]) = frame.read::<14>(offset) else {
        return Parsed::Unreadable;
    };
    Parsed::Tcp(Headers {
        family,
        source,
        destination,
        source_port: u16::from_be_bytes([s0, s1]),
        destination_port: u16::from_be_bytes([d0, d1]),
        opens: flags & (SYN | ACK) == SYN,
    })
}
