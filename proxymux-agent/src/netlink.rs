//! What is asked of the kernel by route netlink, for which there is no other way.
//!
//! Owns the form: one request, its answers, and the attributes in them, written and read by hand.
//! The libraries that do it bring a stack of their own for a handful of messages. What the messages
//! mean is in [`route`], `links` and `steering/rtnetlink.rs`.
//! The kernel answers within the call; the limit on waiting is for a kernel that does not.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
        setsockopt, socket, sockopt::ReceiveTimeout,
    },
    time::TimeVal,
};

#[cfg(feature = "ebpf")]
pub(crate) mod links;
pub(crate) mod route;

/// A message of the kernel, without its header.
pub(crate) struct Message<'a>(pub(crate) &'a [u8]);

impl<'a> Message<'a> {
    /// A field of the fixed part.
    pub(crate) fn number(&self, at: usize) -> u32 {
        number(self.0, at)
    }

    /// What comes behind the fixed part, which is so long.
    pub(crate) fn attributes(&self, fixed: usize) -> &'a [u8] {
        self.0.get(fixed..).unwrap_or_default()
    }
}

/// Sends one request and shows the answers, until the kernel says that it is done.
pub(crate) fn ask(
    kind: u16,
    flags: u16,
    body: &[u8],
    mut show: impl FnMut(&Message<'_>),
) -> io::Result<()> {
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

pub(crate) fn open(flags: SockFlag, groups: u32) -> io::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        flags | SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

/// The value of the first attribute of this kind.
pub(crate) fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
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
#[cfg(feature = "ebpf")]
pub(crate) fn text(value: &[u8]) -> String {
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

pub(crate) fn number(message: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes(message, at))
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// Asks for a confirmation, which also ends the answer to a question with one answer.
pub(crate) const ACK: u16 = 4;
/// Asks for all there are.
#[cfg(feature = "ebpf")]
pub(crate) const DUMP: u16 = 0x300;

const HEADER_LEN: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
const NLA_TYPE_MASK: u16 = 0x3fff;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: u16 = 1;
    const OPTIONS: u16 = 2;
    const NAME: u16 = 7;

    fn attribute_of(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap();
        let mut all = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        all.extend(value);
        all.resize(aligned(all.len()), 0);
        all
    }

    #[test]
    fn an_attribute_is_found_behind_others_and_in_another() {
        let options = attribute_of(NAME, b"proxymux_steer\0");
        let all = [
            attribute_of(KIND, b"bpf\0"),
            // The kernel marks what holds others.
            attribute_of(OPTIONS | 0x8000, &options),
        ]
        .concat();

        assert_eq!(attribute(&all, KIND), Some(&b"bpf\0"[..]));
        let inner = attribute(&all, OPTIONS).unwrap();
        assert_eq!(attribute(inner, NAME), Some(&b"proxymux_steer\0"[..]));
        assert_eq!(attribute(&all, 9), None);
    }

    #[cfg(feature = "ebpf")]
    #[test]
    fn a_string_ends_with_its_nul_or_its_attribute() {
        assert_eq!(text(b"bpf\0rest"), "bpf");
        assert_eq!(text(b"bpf"), "bpf");
    }

    #[test]
    fn cut_off_attributes_end_the_search() {
        let whole = attribute_of(KIND, b"clsact\0");
        for length in 0..whole.len() {
            let cut = whole.get(..length).unwrap();
            assert!(attribute(cut, OPTIONS).is_none());
        }
        // A length of 0 would never end.
        assert_eq!(attribute(&[0; 64], OPTIONS), None);
    }
}
