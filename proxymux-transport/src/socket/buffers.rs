//! How much the kernel may hold for a relayed connection.
//!
//! Owns the two buffers of a socket: bounded, or left to the kernel for as many connections as a
//! budget of the process allows. Left to itself the kernel gives one stalled connection as much as
//! `net.ipv4.tcp_rmem` and `tcp_wmem` say, which is megabytes, so each is counted at that.
//! Read [`FlowBuffers`]. Where the kernel is told a size it is doubled by it, to have room for its
//! own account (socket(7), `SO_RCVBUF`): about half of it is payload.

use std::{
    io,
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
};

use nix::sys::socket::{
    setsockopt,
    sockopt::{RcvBufForce, SndBufForce},
};
use socket2::SockRef;

use crate::config_file::values::FlowBuffer;

/// What flows and the connections that they are relayed to have for buffers, in this process.
#[derive(Clone, Debug)]
pub struct FlowBuffers {
    buffer: FlowBuffer,
    autotuned: Arc<Autotuned>,
}

/// A share in the budget for connections whose buffers the kernel chooses, if this is one of them;
/// given back when it is dropped.
#[derive(Debug)]
#[must_use = "the share is given back when this is dropped"]
pub struct FlowBuffersGuard(Option<Arc<Autotuned>>);

#[derive(Debug)]
struct Autotuned {
    /// What one such connection may have in the kernel; `None` where that is not known.
    each: Option<usize>,
    budget: usize,
    held: Mutex<usize>,
}

impl FlowBuffers {
    /// Buffers as the configuration has them (`flow-buffer`).
    #[must_use]
    pub fn new(buffer: FlowBuffer) -> Self {
        Self::with_budget(buffer, AUTOTUNED_BUDGET)
    }

    fn with_budget(buffer: FlowBuffer, budget: usize) -> Self {
        let autotuned = Arc::new(Autotuned {
            each: largest_of_autotuned(),
            budget,
            held: Mutex::new(0),
        });
        Self { buffer, autotuned }
    }

    /// How many connections have buffers that the kernel chooses.
    #[must_use]
    pub fn autotuned(&self) -> usize {
        let held = self.autotuned.held.lock();
        let held = *held.unwrap_or_else(PoisonError::into_inner);
        held / self.autotuned.each.unwrap_or(1).max(1)
    }

    /// Sets a TCP socket's buffers; what it receives may be `received` times as much.
    pub(super) fn apply(
        &self,
        socket: &impl AsFd,
        received: usize,
    ) -> io::Result<FlowBuffersGuard> {
        let size = match self.buffer {
            FlowBuffer::Bounded(size) => size.bytes(),
            FlowBuffer::Auto if self.autotuned.take() => {
                return Ok(FlowBuffersGuard(Some(Arc::clone(&self.autotuned))));
            }
            FlowBuffer::Auto => FlowBuffer::DEFAULT_SIZE.bytes(),
        };
        bound(socket, size.saturating_mul(received), size)?;
        Ok(FlowBuffersGuard(None))
    }
}

impl FlowBuffersGuard {
    /// Whether the kernel chooses this connection's buffers.
    #[must_use]
    pub fn is_autotuned(&self) -> bool {
        self.0.is_some()
    }
}

impl Drop for FlowBuffersGuard {
    fn drop(&mut self) {
        if let Some(autotuned) = &self.0 {
            autotuned.give_back();
        }
    }
}

impl Autotuned {
    fn take(&self) -> bool {
        let Some(each) = self.each else { return false };
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let after = held.saturating_add(each);
        if after <= self.budget {
            *held = after;
        }
        after <= self.budget
    }

    fn give_back(&self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        *held = held.saturating_sub(self.each.unwrap_or(0));
    }
}

/// Bounds what the kernel holds for a socket: what it received, and what it is to send.
///
/// What goes beyond `net.core.rmem_max` and `wmem_max` (208 KiB unless changed, so 416 KiB when
/// doubled) needs `CAP_NET_ADMIN`, which an agent that steers has; without it the kernel gives
/// what these allow, and says nothing.
pub(super) fn bound(socket: &impl AsFd, received: usize, sent: usize) -> io::Result<()> {
    let told = [received / 2, sent / 2];
    let options = SockRef::from(socket);
    options.set_recv_buffer_size(told[0])?;
    options.set_send_buffer_size(told[1])?;
    if options.recv_buffer_size()? < received && setsockopt(socket, RcvBufForce, &told[0]).is_err()
    {
        return Ok(());
    }
    if options.send_buffer_size()? < sent {
        // The same want of the same capability.
        let _ = setsockopt(socket, SndBufForce, &told[1]);
    }
    Ok(())
}

/// What the kernel gives to one connection at most, both ways together.
fn largest_of_autotuned() -> Option<usize> {
    let received = last_number(&std::fs::read_to_string(TCP_RMEM).ok()?)?;
    let sent = last_number(&std::fs::read_to_string(TCP_WMEM).ok()?)?;
    received.checked_add(sent).filter(|&both| both > 0)
}

/// The third of the least, the first and the largest size.
fn last_number(sizes: &str) -> Option<usize> {
    sizes.split_ascii_whitespace().nth(2)?.parse().ok()
}

/// In the reader's network namespace, which is that of its sockets.
const TCP_RMEM: &str = "/proc/sys/net/ipv4/tcp_rmem";
const TCP_WMEM: &str = "/proc/sys/net/ipv4/tcp_wmem";

/// Half of what OKE lets its agent have, which is 256 MiB, kernel memory included. With the
/// kernel's own maxima (6 and 4 MiB) that is 12 connections.
const AUTOTUNED_BUDGET: usize = 128 << 20;

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;
    use crate::{
        config_file::values::ByteSize,
        mux::testing::tcp_pair,
        socket::{prepare_flow, prepare_flow_at_node},
    };

    fn sizes(socket: &TcpStream) -> (usize, usize) {
        let socket = SockRef::from(socket);
        (
            socket.recv_buffer_size().unwrap(),
            socket.send_buffer_size().unwrap(),
        )
    }

    #[tokio::test]
    async fn a_size_is_what_the_kernel_then_holds() {
        let (near, far) = tcp_pair(None).await;
        let buffers = FlowBuffers::new(FlowBuffer::Bounded(ByteSize::kib(128)));

        let guard = prepare_flow(&near, &buffers).unwrap();

        assert_eq!(sizes(&near), (128 * 1024, 128 * 1024));
        assert!(SockRef::from(&near).tcp_nodelay().unwrap());
        assert!(SockRef::from(&near).keepalive().unwrap());
        assert!(!guard.is_autotuned());
        let _guard = prepare_flow(&far, &FlowBuffers::new(FlowBuffer::default())).unwrap();
        assert_eq!(sizes(&far), (256 * 1024, 256 * 1024));
        let _guard = prepare_flow_at_node(&far, &buffers).unwrap();
        assert_eq!(sizes(&far), (256 * 1024, 128 * 1024));
    }

    #[tokio::test]
    async fn what_is_beyond_the_limit_of_the_machine_takes_a_capability() {
        let (near, _far) = tcp_pair(None).await;
        let buffers = FlowBuffers::new(FlowBuffer::Bounded(ByteSize::mib(8)));

        let _guard = prepare_flow(&near, &buffers).unwrap();

        let (received, sent) = sizes(&near);
        if nix::unistd::geteuid().is_root() {
            assert_eq!((received, sent), (8 << 20, 8 << 20));
        } else {
            assert!(received >= 256 * 1024 && sent >= 256 * 1024);
        }
    }

    #[tokio::test]
    async fn only_as_many_are_left_to_the_kernel_as_the_budget_holds_at_their_largest() {
        let each = largest_of_autotuned().unwrap();
        let buffers = FlowBuffers::with_budget(FlowBuffer::Auto, 2 * each + each / 2);
        let (near, far) = tcp_pair(None).await;
        let untouched = sizes(&near);

        let first = prepare_flow(&near, &buffers).unwrap();
        let second = prepare_flow(&far, &buffers).unwrap();

        assert!(first.is_autotuned() && second.is_autotuned());
        assert_eq!((sizes(&near), buffers.autotuned()), (untouched, 2));
        let (third, fourth) = tcp_pair(None).await;
        assert!(!prepare_flow(&third, &buffers).unwrap().is_autotuned());
        assert_eq!(sizes(&third), (256 * 1024, 256 * 1024));
        drop(first);
        assert!(prepare_flow(&fourth, &buffers).unwrap().is_autotuned());
        assert_eq!(buffers.autotuned(), 1);
    }

    #[test]
    fn the_kernel_lists_three_sizes() {
        assert_eq!(last_number("4096\t131072\t6291456\n"), Some(6_291_456));
        assert_eq!(last_number("4096 131072"), None);
        assert_eq!(last_number("a b c"), None);
    }
}
