//! Frames as they would be on the wire.
//!
//! Owns their form only. Checksums are left zero: the programs do not look at them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMP_V6: u8 = 58;

pub(crate) const SYN: u8 = 0x02;
pub(crate) const ACK: u8 = 0x10;

const MORE_FRAGMENTS: u16 = 0x2000;

/// A frame from one address to another; a SYN unless told otherwise.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    source: SocketAddr,
    destination: SocketAddr,
    pub(crate) protocol: u8,
    pub(crate) flags: u8,
    /// Bytes of IPv4 options, a multiple of 4.
    pub(crate) options: u8,
    /// IPv4's field of flags and offset.
    pub(crate) fragment: u16,
    /// The type of an IPv6 extension header to put in.
    pub(crate) extension: Option<u8>,
}

impl Frame {
    pub(crate) fn new(source: &str, destination: &str) -> Self {
        Self::between(
            source.parse().expect("a test's address"),
            destination.parse().expect("a test's address"),
        )
    }

    pub(crate) fn between(source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            source,
            destination,
            protocol: TCP,
            flags: SYN,
            options: 0,
            fragment: 0x4000,
            extension: None,
        }
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub(crate) fn first_fragment(self) -> Self {
        self.with(|frame| frame.fragment = MORE_FRAGMENTS)
    }

    pub(crate) fn last_fragment(self) -> Self {
        self.with(|frame| frame.fragment = 100)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => self.v4(source, destination),
            (IpAddr::V6(source), IpAddr::V6(destination)) => self.v6(source, destination),
            _ => unreachable!("a frame has one family: {self:?}"),
        }
    }

    fn v4(&self, source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
        let payload = self.payload();
        let header = 20 + self.options;
        let length = u16::from(header) + length(&payload);
        let mut bytes = ethernet(0x0800);
        bytes.extend([0x40 | (header / 4), 0]);
        bytes.extend(length.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([64, self.protocol, 0, 0]);
        bytes.extend(source.octets());
        bytes.extend(destination.octets());
        // "No operation", as often as it takes.
        bytes.extend(vec![1; self.options.into()]);
        bytes.extend(payload);
        bytes
    }

    fn v6(&self, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
        let mut payload = self.payload();
        if self.extension.is_some() {
            // Eight bytes; for options, padding.
            let header = [self.protocol, 0, 1, 4, 0, 0, 0, 0];
            payload.splice(0..0, header);
        }
        let mut bytes = ethernet(0x86dd);
        bytes.extend([0x60, 0, 0, 0]);
        bytes.extend(length(&payload).to_be_bytes());
        bytes.extend([self.extension.unwrap_or(self.protocol), 64]);
        bytes.extend(source.octets());
        bytes.extend(destination.octets());
        bytes.extend(payload);
        bytes
    }

    /// The transport's header; that of UDP is as long as is needed for both.
    fn payload(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.source.port().to_be_bytes());
        bytes.extend(self.destination.port().to_be_bytes());
        bytes.extend([
            0, 0, 0, 1, 0, 0, 0, 0, 0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0,
        ]);
        bytes
    }
}

/// The first `length` bytes.
pub(crate) fn cut(mut frame: Vec<u8>, length: usize) -> Vec<u8> {
    frame.truncate(length);
    frame
}

/// With another byte at `index`.
pub(crate) fn changed(mut frame: Vec<u8>, index: usize, value: u8) -> Vec<u8> {
    frame.splice(index..=index, [value]);
    frame
}

/// A frame whose protocol is neither IPv4 nor IPv6 to the kernel.
pub(crate) fn other(protocol: u16) -> Vec<u8> {
    let mut bytes = ethernet(protocol);
    bytes.extend([0; 46]);
    bytes
}

fn ethernet(protocol: u16) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    bytes.extend(protocol.to_be_bytes());
    bytes
}

fn length(payload: &[u8]) -> u16 {
    u16::try_from(payload.len()).expect("tests send short packets")
}
