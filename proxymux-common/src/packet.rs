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

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{vec, vec::Vec};

    use super::*;

    struct Wire {
        bytes: Vec<u8>,
        tagged: bool,
    }

    impl Bytes for Wire {
        fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
            let start = usize::try_from(offset).ok()?;
            self.bytes.get(start..start + N)?.try_into().ok()
        }

        fn protocol(&self) -> u16 {
            u16::from_be_bytes([self.bytes[12], self.bytes[13]])
        }

        fn is_tagged(&self) -> bool {
            self.tagged
        }
    }

    const NODE: [u8; 4] = [10, 0, 10, 10];

    /// A SYN from 192.0.2.10:40000 to 10.0.10.10:10250.
    fn v4() -> Wire {
        let mut bytes = vec![0; 12];
        bytes.extend([0x08, 0x00]);
        bytes.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0, 192, 0, 2, 10]);
        bytes.extend(NODE);
        bytes.extend(TCP_HEADER);
        Wire {
            bytes,
            tagged: false,
        }
    }

    /// The same from 2001:db8::10 to fd00:10::10.
    fn v6() -> Wire {
        let mut bytes = vec![0; 12];
        bytes.extend([0x86, 0xdd]);
        bytes.extend([0x60, 0, 0, 0, 0, 20, TCP, 64]);
        bytes.extend(
            "2001:db8::10"
                .parse::<std::net::Ipv6Addr>()
                .unwrap()
                .octets(),
        );
        bytes.extend(
            "fd00:10::10"
                .parse::<std::net::Ipv6Addr>()
                .unwrap()
                .octets(),
        );
        bytes.extend(TCP_HEADER);
        Wire {
            bytes,
            tagged: false,
        }
    }

    const TCP_HEADER: [u8; 20] = [
        0x9c, 0x40, 0x28, 0x0a, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, SYN, 0, 0, 0, 0, 0, 0,
    ];

    fn with(mut wire: Wire, index: usize, value: u8) -> Parsed {
        wire.bytes[index] = value;
        parse(&wire)
    }

    #[test]
    fn addresses_ports_and_family_are_read() {
        let expected = Headers {
            family: Family::V4,
            source: mapped([192, 0, 2, 10]),
            destination: mapped(NODE),
            source_port: 40000,
            destination_port: 10250,
            opens: true,
        };

        assert_eq!(parse(&v4()), Parsed::Tcp(expected));
        let Parsed::Tcp(headers) = parse(&v6()) else {
            panic!("{:?}", parse(&v6()));
        };
        assert_eq!(headers.family, Family::V6);
        assert_eq!(headers.source[..4], [0x20, 0x01, 0x0d, 0xb8]);
        assert_eq!(headers.destination[..4], [0xfd, 0, 0, 0x10]);
        assert_eq!(
            (headers.source_port, headers.destination_port),
            (40000, 10250)
        );
    }

    #[test]
    fn options_push_the_ports_back() {
        let mut wire = v4();
        wire.bytes[14] = 0x47;
        wire.bytes.splice(34..34, [1; 8]);

        let Parsed::Tcp(headers) = parse(&wire) else {
            panic!("{:?}", parse(&wire));
        };

        assert_eq!(headers.destination_port, 10250);
    }

    #[test]
    fn only_a_syn_without_an_ack_opens() {
        for (flags, opens) in [
            (0x02, true),
            (0xc2, true),
            (0x12, false),
            (0x10, false),
            (0, false),
        ] {
            let Parsed::Tcp(headers) = with(v4(), 14 + 20 + 13, flags) else {
                panic!("not TCP");
            };

            assert_eq!(headers.opens, opens, "{flags:#x}");
        }
    }

    /// The kernel takes the tag off, so that no test run can show it a tagged frame.
    #[test]
    fn tagged_frames_and_fragments_are_opaque() {
        let mut tagged = v4();
        tagged.tagged = true;
        assert_eq!(parse(&tagged), Parsed::Opaque(mapped(NODE)));
        let mut tagged = v6();
        tagged.tagged = true;
        assert!(matches!(parse(&tagged), Parsed::Opaque(_)));
        // More fragments; an offset; and the bit that forbids fragments, which says nothing.
        assert_eq!(with(v4(), 20, 0x20), Parsed::Opaque(mapped(NODE)));
        assert_eq!(with(v4(), 21, 0x01), Parsed::Opaque(mapped(NODE)));
        assert!(matches!(with(v4(), 20, 0x40), Parsed::Tcp(_)));
    }

    #[test]
    fn extension_headers_are_opaque_and_other_protocols_are_not() {
        for next in [0, 43, 44, 51, 60, 135] {
            assert!(matches!(with(v6(), 20, next), Parsed::Opaque(_)), "{next}");
        }
        for next in [17, 58, 59, 132] {
            assert_eq!(with(v6(), 20, next), Parsed::Other, "{next}");
        }
        assert_eq!(with(v4(), 23, 17), Parsed::Other);
        assert_eq!(with(v4(), 13, 0x06), Parsed::Other);
    }

    #[test]
    fn a_frame_that_ends_too_early_is_unreadable_wherever_it_ends() {
        for (wire, enough) in [(v4(), 14 + 20 + 14), (v6(), 14 + 40 + 14)] {
            for length in 14..wire.bytes.len() {
                let cut = Wire {
                    bytes: wire.bytes[..length].to_vec(),
                    tagged: false,
                };

                let parsed = parse(&cut);

                assert_eq!(
                    parsed == Parsed::Unreadable,
                    length < enough,
                    "{length}: {parsed:?}"
                );
            }
        }
    }

    #[test]
    fn a_version_or_length_that_cannot_be_is_unreadable() {
        for first in [0x44, 0x40, 0x65, 0x05, 0x4f] {
            assert_eq!(with(v4(), 14, first), Parsed::Unreadable, "{first:#x}");
        }
        assert_eq!(with(v6(), 14, 0x45), Parsed::Unreadable);
    }
}
