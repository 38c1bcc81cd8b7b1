//! What the agent asks the kernel about qdiscs and filters, and hears about changes.
//!
//! Owns the few messages that are needed, in the form of `netlink.rs`: `aya` attaches filters but
//! lists none.

use std::io;

use nix::{errno::Errno, sys::socket::SockFlag};
use tokio::net::UdpSocket;

use crate::netlink::{ACK, DUMP, Message, ask, attribute, open, text};

/// A qdisc for ingress.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Qdisc {
    pub(super) ifindex: u32,
    /// `clsact`, or `ingress`.
    pub(super) kind: String,
}

/// A filter.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Filter {
    /// Lower ones run first.
    pub(super) priority: u16,
    pub(super) handle: u32,
    /// `bpf`, `flower`, `u32`, ...
    pub(super) kind: String,
    /// What who attached a `bpf` filter calls it.
    pub(super) name: Option<String>,
}

/// Where a filter is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub(super) enum Hook {
    Ingress = 0xffff_fff2,
    Egress = 0xffff_fff3,
}

/// Word of changes to links, addresses, qdiscs and filters.
#[derive(Debug)]
pub(super) struct Changes(UdpSocket);

/// The qdiscs of all devices that filters for ingress can be at.
pub(super) fn ingress_qdiscs() -> io::Result<Vec<Qdisc>> {
    let mut found = Vec::new();
    ask(RTM_GETQDISC, DUMP, &tcmsg(0, 0, 0), |message| {
        let message = Tc(message);
        let kind = attribute(message.attributes(), TCA_KIND).map(text);
        if let Some(kind) = kind.filter(|kind| kind == CLSACT || kind == "ingress") {
            found.push(Qdisc {
                ifindex: message.ifindex(),
                kind,
            });
        }
    })?;
    Ok(found)
}

/// The filters of a device, in the order in which they run; none if it has no qdisc for them.
pub(super) fn filters(ifindex: u32, hook: Hook) -> io::Result<Vec<Filter>> {
    let mut found = Vec::new();
    ask(
        RTM_GETTFILTER,
        DUMP,
        &tcmsg(ifindex, 0, hook as u32),
        |message| {
            let message = Tc(message);
            // One message without a handle stands for all filters of a priority.
            if message.ifindex() != ifindex || message.handle() == 0 {
                return;
            }
            let attributes = message.attributes();
            let options = attribute(attributes, TCA_OPTIONS).unwrap_or_default();
            found.push(Filter {
                priority: message.priority(),
                handle: message.handle(),
                kind: attribute(attributes, TCA_KIND)
                    .map(text)
                    .unwrap_or_default(),
                name: attribute(options, TCA_BPF_NAME).map(text),
            });
        },
    )?;
    Ok(found)
}

/// Removes the clsact qdisc of a device with all filters at it.
pub(super) fn remove_clsact(ifindex: u32) -> io::Result<()> {
    let body = tcmsg(ifindex, CLSACT_HANDLE, CLSACT_PARENT);
    ask(RTM_DELQDISC, ACK, &body, |_| {})
}

impl Changes {
    /// Listens from now on.
    pub(super) fn listen() -> io::Result<Self> {
        let groups = RTMGRP_LINK | RTMGRP_TC | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR;
        let socket = open(SockFlag::SOCK_NONBLOCK, groups)?;
        // The runtime's own type for any file needs `unsafe`. Of this one only receiving is used,
        // which is the same for datagrams of every family.
        UdpSocket::from_std(socket.into()).map(Self)
    }

    /// Waits until something has changed. What it was is not said: who asks looks anyway.
    pub(super) async fn next(&self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        heard(self.0.recv(&mut buffer).await)?;
        // Everything that waits is one change. A limit, as others could go on and on.
        for _ in 0..MAX_AT_ONCE {
            match self.0.try_recv(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                received => heard(received)?,
            }
        }
        Ok(())
    }
}

/// That messages were lost is news too.
fn heard(received: io::Result<usize>) -> io::Result<()> {
    match received {
        Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => Ok(()),
        received => received.map(|_| ()),
    }
}

/// A message about a qdisc or a filter.
struct Tc<'a>(&'a Message<'a>);

impl<'a> Tc<'a> {
    fn ifindex(&self) -> u32 {
        self.0.number(4)
    }

    fn handle(&self) -> u32 {
        self.0.number(8)
    }

    /// The upper half of `tcm_info`; the lower one is the protocol.
    fn priority(&self) -> u16 {
        u16::try_from(self.0.number(16) >> 16).unwrap_or_default()
    }

    fn attributes(&self) -> &'a [u8] {
        self.0.attributes(TCMSG_LEN)
    }
}

/// `struct tcmsg`.
fn tcmsg(ifindex: u32, handle: u32, parent: u32) -> Vec<u8> {
    let fields = [0, ifindex, handle, parent, 0];
    fields
        .iter()
        .flat_map(|field| field.to_ne_bytes())
        .collect()
}

const CLSACT: &str = "clsact";
const CLSACT_HANDLE: u32 = 0xffff_0000;
const CLSACT_PARENT: u32 = 0xffff_fff1;

const TCMSG_LEN: usize = 20;

const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_GETTFILTER: u16 = 46;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;

const RTMGRP_LINK: u32 = 0x1;
const RTMGRP_TC: u32 = 0x8;
const RTMGRP_IPV4_IFADDR: u32 = 0x10;
const RTMGRP_IPV6_IFADDR: u32 = 0x100;

const MAX_AT_ONCE: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_priority_of_a_filter_stands_above_its_protocol() {
        let mut message = tcmsg(7, 1, Hook::Ingress as u32);
        message.truncate(16);
        message.extend((0xfffe_0003_u32).to_ne_bytes());

        assert_eq!(Tc(&Message(&message)).priority(), 0xfffe);
        assert_eq!(Tc(&Message(&[])).priority(), 0);
    }

    #[test]
    fn the_kernel_lists_qdiscs_and_filters_to_anybody() {
        let loopback = nix::net::if_::if_nametoindex("lo").unwrap();

        ingress_qdiscs().unwrap();
        assert_eq!(filters(loopback, Hook::Ingress).unwrap(), []);
    }

    #[test]
    fn an_error_of_the_kernel_has_its_number() {
        let error = remove_clsact(u32::try_from(i32::MAX).unwrap()).unwrap_err();
        let number = error.raw_os_error().map(Errno::from_raw);
        assert!(
            matches!(number, Some(Errno::ENODEV | Errno::EPERM)),
            "{error}"
        );
    }
}
