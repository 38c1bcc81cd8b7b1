//! Listeners that are reached by steering alone.
//!
//! Owns their addresses, which no host routes: they are bound to without being there
//! (`IP_FREEBIND`), so that a connection to one leaves this host or has no way at all. A listener
//! at a loopback address could be dialled by every local process, which could fill its queue.
//! The kernel's `sk_assign` hands packets to a listener whatever it is bound to.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;

/// Listens at an address of this family that nobody can dial, at a port of the kernel's choice.
///
/// `SO_REUSEADDR` is set: a connection that was given to the listener has the port to which it was
/// made, and without the option its owner could not bind that port again while the connection
/// lives. `SO_REUSEPORT` is not: kernels before 6.6 assign nothing to such a listener.
///
/// # Errors
///
/// When there is no such family on this host, or no descriptor left.
pub fn listen_unrouted(family: Family) -> io::Result<TcpListener> {
    let (domain, address) = match family {
        Family::V4 => (Domain::IPV4, IpAddr::V4(UNROUTED_V4)),
        Family::V6 => (Domain::IPV6, IpAddr::V6(UNROUTED_V6)),
    };
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    match family {
        Family::V4 => socket.set_freebind_v4(true)?,
        Family::V6 => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)?;
        }
    }
    socket.bind(&SocketAddr::new(address, 0).into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Which protocol a listener is for: a connection by the other one cannot be given to it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6 alone.
    V6,
}

/// "Dummy address" of RFC 7600, neither a source nor a destination that is forwarded.
const UNROUTED_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// Of the prefix that is to be discarded (RFC 6666).
const UNROUTED_V6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1);

/// Connections that wait to be accepted; one that finds the queue full is tried again by its
/// client a second later. The agent accepts within milliseconds.
const BACKLOG: i32 = 1024;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use socket2::SockRef;

    use super::*;

    #[tokio::test]
    async fn a_listener_is_bound_to_what_is_not_there_and_its_port_can_be_shared() {
        for family in [Family::V4, Family::V6] {
            let listener = listen_unrouted(family).unwrap();

            let at = listener.local_addr().unwrap();
            assert_eq!(at.is_ipv6(), family == Family::V6);
            assert!(std::net::UdpSocket::bind((at.ip(), 0)).is_err(), "{at}");
            let socket = listener.as_fd();
            let socket = SockRef::from(&socket);
            assert!(socket.reuse_address().unwrap());
            assert!(!socket.reuse_port().unwrap());
            assert!(family == Family::V4 || socket.only_v6().unwrap());
        }
    }
}
