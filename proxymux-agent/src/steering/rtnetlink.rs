//! What the agent asks the kernel about qdiscs and filters, and hears about changes.
//!
//! Owns the few route netlink messages that are needed, written and read by hand: `aya` attaches
//! filters but lists none, and the libraries that do bring a stack of their own for three messages.
//! The kernel answers within the call; the limit on waiting is for a kernel that does not.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv,
            send, setsockopt, socket, sockopt::ReceiveTimeout,
        },
        time::TimeVal,
    },
};
use tokio::net::UdpSocket;

pub(crate) use self::links::{Link, links};

mod links;

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

/// A message of the kernel, without its header.
struct Message<'a>(&'a [u8]);

impl<'a> Message<'a> {
    fn ifindex(&self) -> u32 {
        number(self.0, 4)
    }

    fn handle(&self) -> u32 {
        number(self.0, 8)
    }

    /// The upper half of `tcm_info`; the lower one is the protocol.
    fn priority(&self) -> u16 {
        u16::try_from(number(self.0, 16) >> 16).unwrap_or_default()
    }

    fn attributes(&self) -> &'a [u8] {
        self.0.get(TCMSG_LEN..).unwrap_or_default()
    }
}

/// Sends one request and shows the answers, until the kernel says that it is done.
fn ask(kind: u16, flags: u16, body: &[u8], mut show: impl FnMut(&Message<'_>)) -> io::Result<()> {
    let socket = open(SockFlag::empty(), 0)?;
    let limit = TimeVal::new(2, 0);
    setsockopt(&socket, ReceiveTimeout, &limit)?;
    let length = u32::try_from(HEADER_LEN + body.len()).unwrap_or_default();
    let mut request = Vec::with_capacity(HEADER_LEN + body.len());
    request.extend(length.to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    request.extend([0; 8]);
    request.extend(body);
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while rest.len() >= HEADER_LEN {
            let length = number(rest, 0) as usize;
            let kind = u16::from_ne_bytes(bytes(rest, 4));
            let body = rest.get(HEADER_LEN..length).unwrap_or_default();
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return answer(body),
                _ => show(&Message(body)),
            }
            rest = rest
                .get(aligned(length.max(HEADER_LEN))..)
                .unwrap_or_default();
        }
    }
}

/// An error of 0 is a confirmation.
fn answer(body: &[u8]) -> io::Result<()> {
    match i32::from_ne_bytes(bytes(body, 0)) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

fn open(flags: SockFlag, groups: u32) -> io::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        flags | SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

/// `struct tcmsg`.
fn tcmsg(ifindex: u32, handle: u32, parent: u32) -> Vec<u8> {
    let fields = [0, ifindex, handle, parent, 0];
    fields
        .iter()
        .flat_map(|field| field.to_ne_bytes())
        .collect()
}

/// The value of the first attribute of this kind.
fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    while attributes.len() >= ATTRIBUTE_HEADER {
        let length = usize::from(u16::from_ne_bytes(bytes(attributes, 0)));
        let found = u16::from_ne_bytes(bytes(attributes, 2)) & NLA_TYPE_MASK;
        if found == kind {
            return attributes.get(ATTRIBUTE_HEADER..length);
        }
        attributes = attributes.get(aligned(length.max(ATTRIBUTE_HEADER))..)?;
    }
    None
}

/// A string that ends with a NUL.
fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0);
    let value = value.get(..end.unwrap_or(value.len())).unwrap_or_default();
    String::from_utf8_lossy(value).into_owned()
}

/// Zeroes where the message is too short.
fn bytes<const N: usize>(message: &[u8], at: usize) -> [u8; N] {
    let found = message.get(at..at + N);
    found
        .and_then(|found| found.try_into().ok())
        .unwrap_or([0; N])
}

fn number(message: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes(message, at))
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

const CLSACT: &str = "clsact";
const CLSACT_HANDLE: u32 = 0xffff_0000;
const CLSACT_PARENT: u32 = 0xffff_fff1;

const HEADER_LEN: usize = 16;
const TCMSG_LEN: usize = 20;
const ATTRIBUTE_HEADER: usize = 4;
const NLA_TYPE_MASK: u16 = 0x3fff;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;

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

    fn attribute_of(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap();
        let mut all = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        all.extend(value);
        all.resize(aligned(all.len()), 0);
        all
    }

    #[test]
    fn an_attribute_is_found_behind_others_and_in_another() {
        let options = attribute_of(TCA_BPF_NAME, b"proxymux_steer\0");
        let all = [
            attribute_of(TCA_KIND, b"bpf\0"),
            // The kernel marks what holds others.
            attribute_of(TCA_OPTIONS | 0x8000, &options),
        ]
        .concat();

        assert_eq!(attribute(&all, TCA_KIND).map(text).as_deref(), Some("bpf"));
        let inner = attribute(&all, TCA_OPTIONS).unwrap();
        let name = attribute(inner, TCA_BPF_NAME).map(text);
        assert_eq!(name.as_deref(), Some("proxymux_steer"));
        assert_eq!(attribute(&all, 9), None);
    }

    #[test]
    fn cut_off_attributes_end_the_search() {
        let whole = attribute_of(TCA_KIND, b"clsact\0");
        for length in 0..whole.len() {
            let cut = whole.get(..length).unwrap();
            assert!(attribute(cut, TCA_OPTIONS).is_none());
        }
        // A length of 0 would never end.
        assert_eq!(attribute(&[0; 64], TCA_OPTIONS), None);
    }

    #[test]
    fn the_priority_of_a_filter_stands_above_its_protocol() {
        let mut message = tcmsg(7, 1, Hook::Ingress as u32);
        message.truncate(16);
        message.extend((0xfffe_0003_u32).to_ne_bytes());

        assert_eq!(Message(&message).priority(), 0xfffe);
        assert_eq!(Message(&[]).priority(), 0);
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
