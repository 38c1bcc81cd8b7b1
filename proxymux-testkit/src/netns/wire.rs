//! Frames onto a link of a host, below all sockets, and the addresses of interfaces there.
//!
//! A packet socket sends what it is given, so that a test can send what the kernel would not.
//! The address of an interface is found as the kernel lists it, with its index inside.

use std::{io, os::fd::AsRawFd};

use anyhow::{Context, Result, ensure};
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket},
};

use super::Host;
use crate::frame::Mac;

impl Host {
    /// The address of an interface on its link.
    ///
    /// # Errors
    ///
    /// There is no such interface.
    pub fn mac(&self, interface: &str) -> Result<Mac> {
        let link = self.block_on(async { link_address(interface) })?;
        link.addr()
            .with_context(|| format!("{interface} has no address on its link"))
    }

    /// Sends a frame from an interface, as it is.
    ///
    /// # Errors
    ///
    /// There is no such interface, or it does not take the frame.
    pub fn send_frame(&self, interface: &str, frame: &[u8]) -> Result<()> {
        self.block_on(async {
            let link = link_address(interface)?;
            let raw = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                None,
            )
            .context("cannot make a packet socket")?;
            let sent = sendto(raw.as_raw_fd(), frame, &link, MsgFlags::empty());
            let sent = sent.with_context(|| format!("cannot send from {interface}"))?;
            ensure!(sent == frame.len(), "{sent} of {} bytes sent", frame.len());
            Ok(())
        })
    }
}

fn link_address(interface: &str) -> Result<LinkAddr> {
    let mut all = getifaddrs().context("cannot list the interfaces")?;
    let link = all.find_map(|entry| {
        let address = entry.address?;
        let link = address.as_link_addr()?;
        (entry.interface_name == interface).then_some(*link)
    });
    link.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        .with_context(|| format!("no interface {interface}"))
}
