//! Ethernet frames byte by byte, for what no socket would send: a first packet with a VLAN tag.
//!
//! Owns the layout and the checksums; [`Host::send_frame`](crate::netns::Host::send_frame) puts a
//! frame onto a link. Nothing here touches the system.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// The address of an interface on its link.
pub type Mac = [u8; 6];

/// The first packet of a TCP connection.
///
/// ```
/// use proxymux_testkit::frame::Syn;
///
/// let from = "192.0.2.10:40000".parse().unwrap();
/// let to = "10.0.10.10:10250".parse().unwrap();
/// let syn = Syn::new(([2; 6], from), ([4; 6], to));
/// assert_eq!(syn.frame().len(), 14 + 20 + 20);
/// assert_eq!(syn.tagged(7).frame().len(), 18 + 20 + 20);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Syn {
    from: (Mac, SocketAddr),
    to: (Mac, SocketAddr),
    vlan: Option<u16>,
}

impl Syn {
    /// From one end to the other; both addresses are of one family.
    pub fn new(from: (Mac, SocketAddr), to: (Mac, SocketAddr)) -> Self {
        let vlan = None;
        Self { from, to, vlan }
    }

    /// The same with a tag for this VLAN.
    pub fn tagged(mut self, vlan: u16) -> Self {
        self.vlan = Some(vlan);
        self
    }

    /// The frame as it goes onto the wire.
    ///
    /// # Panics
    ///
    /// When the two addresses are of different families.
    #[expect(clippy::panic, reason = "a panic is how a test fails")]
    pub fn frame(&self) -> Vec<u8> {
        let Self { from, to, vlan } = *self;
        let mut frame = [to.0, from.0].concat();
        if let Some(vlan) = vlan {
            frame.extend(ETHERTYPE_VLAN.to_be_bytes());
            frame.extend(vlan.to_be_bytes());
        }
        let ports = [from.1.port(), to.1.port()];
        match (from.1, to.1) {
            (SocketAddr::V4(from), SocketAddr::V4(to)) => {
                frame.extend(ETHERTYPE_IPV4.to_be_bytes());
                frame.extend(ipv4(*from.ip(), *to.ip(), ports));
            }
            (SocketAddr::V6(from), SocketAddr::V6(to)) => {
                frame.extend(ETHERTYPE_IPV6.to_be_bytes());
                frame.extend(ipv6(*from.ip(), *to.ip(), ports));
            }
            (from, to) => panic!("{from} and {to} are of different families"),
        }
        frame
    }
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, ports: [u16; 2]) -> Vec<u8> {
    let mut header = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, TTL, TCP, 0, 0];
    header.extend(from.octets());
    header.extend(to.octets());
    let sum = checksum(&header).to_be_bytes();
    header.splice(10..12, sum);
    let addresses = [from.octets(), to.octets()].concat();
    [header, tcp(&addresses, ports)].concat()
}

fn ipv6(from: Ipv6Addr, to: Ipv6Addr, ports: [u16; 2]) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0, 0, 20, TCP, TTL];
    let addresses = [from.octets(), to.octets()].concat();
    header.extend(&addresses);
    [header, tcp(&addresses, ports)].concat()
}

/// A header without options, SYN alone set.
fn tcp(addresses: &[u8], [from, to]: [u16; 2]) -> Vec<u8> {
    let mut header = [from.to_be_bytes(), to.to_be_bytes()].concat();
    // Numbers, acknowledgement, length and flags, window, checksum, urgent pointer.
    header.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let pseudo = [addresses, &[0, TCP, 0, 20], &header].concat();
    let sum = checksum(&pseudo).to_be_bytes();
    header.splice(16..18, sum);
    header
}

/// The internet checksum of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks_exact(2) {
        let word = pair
            .iter()
            .fold(0, |word, byte| word << 8 | u32::from(*byte));
        sum += word;
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const TCP: u8 = 6;
const TTL: u8 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_usual_example() {
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0x00,
            0x01, 0xc0, 0xa8, 0x00, 0xc7,
        ];

        assert_eq!(checksum(&header), 0xb861);
    }

    #[test]
    fn a_header_with_its_checksum_sums_up_to_zero() {
        let to = ([2; 6], "[fd00:10::10]:10250".parse().unwrap());
        let from = ([4; 6], "[2001:db8::10]:40000".parse().unwrap());
        let frame = Syn::new(from, to).frame();

        let (addresses, tcp) = (&frame[22..54], &frame[54..]);

        let pseudo = [addresses, &[0, TCP, 0, 20], tcp].concat();
        assert_eq!(checksum(&pseudo), 0);
    }
}
