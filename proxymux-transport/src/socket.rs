//! Settings of sockets, and what the kernel knows of a connection.
//!
//! Owns every socket option that proxymux sets, so that the reason for each stands in one place.
//! One of two modules of the crate with `unsafe`, besides `program_pages`: the kernel's own account
//! of a TCP connection (`TCP_INFO`), and one of its newer options, have no safe wrapper. The sizes
//! of buffers are in `buffers`.

use std::{
    io,
    net::Shutdown,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt, Interest},
    net::{TcpStream, UnixStream},
};

use crate::config_file::values::FlowBuffer;

mod buffers;

pub use self::buffers::{FlowBuffers, FlowBuffersGuard};

/// Sets up a TCP connection that carries a session.
///
/// Small frames go out at once, little is queued in the kernel in front of a ping, and what is
/// lost is sent again every few seconds however long nothing came through, where the kernel can
/// be told so (since Linux 6.15).
///
/// # Errors
///
/// When the kernel refuses an option.
pub fn prepare_session(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(NOT_SENT_LOW_WATER)?;
    repeat_often(&*socket)
}

/// Has what is lost sent again every few seconds, however long nothing came through, where the
/// kernel can be told so.
fn repeat_often(socket: &impl AsFd) -> io::Result<()> {
    match set_retransmission_max(socket, RETRANSMISSION_MAX) {
        // An older kernel: what outlives a gap takes up to the gap's length to go on.
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(()),
        result => result,
    }
}

/// Limits the pause between two attempts to get a lost packet through, which otherwise doubles
/// each time: after a gap of twelve seconds the next attempt would be twelve seconds away.
fn set_retransmission_max(socket: &impl AsFd, max: Duration) -> io::Result<()> {
    let ms = libc::c_int::try_from(max.as_millis()).map_err(io::Error::other)?;
    let len = libc::socklen_t::try_from(size_of_val(&ms)).map_err(io::Error::other)?;
    #[expect(unsafe_code, reason = "TCP_RTO_MAX_MS has no safe wrapper")]
    // SAFETY: the descriptor is open for the call's length, being borrowed; `ms` is valid for
    // reads of `len` bytes.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_RTO_MAX_MS,
            (&raw const ms).cast(),
            len,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Bounds the segments of a TCP connection that is yet to be made, in both directions: what we
/// announce to the peer, and what we send ourselves.
///
/// The kernel looks at the option while it connects, and never again: on a connection that stands
/// it changes nothing (tried with Linux 6.18; `tcp_connect_init` and `tcp_mtu_to_mss`). The bound
/// is without TCP's options, as an MTU is counted: 12 bytes of it go to the timestamps.
///
/// # Errors
///
/// When the kernel refuses the option.
pub fn limit_segments(socket: &impl AsFd, largest: u16) -> io::Result<()> {
    SockRef::from(socket).set_tcp_mss(u32::from(largest))
}

/// Sets up a TCP connection that is relayed.
///
/// The kernel's buffers are bounded on both sides: left to itself the kernel lets one stalled
/// connection have megabytes, and bytes that wait that long have left the processor's cache by the
/// time they are copied. The throughput of one connection is bounded with them, to some 128 KiB of
/// payload for each round trip; both ends of a relay are nearby.
///
/// Keep-alive finds a peer that went without a word. `TCP_USER_TIMEOUT` is not set: it would end
/// a connection whose reader is merely slow.
///
/// # Errors
///
/// When the kernel refuses an option.
pub fn prepare_relayed(socket: &impl AsFd) -> io::Result<()> {
    let size = FlowBuffer::DEFAULT_SIZE.bytes();
    buffers::bound(socket, size, size)?;
    set_small_and_alive(socket)
}

/// As [`prepare_relayed`], for a flow, or for the connection that a flow is relayed to, with the
/// buffers that the configuration gives them. The guard is to be kept for as long as the socket.
///
/// What is lost is sent again as often as on a session: a gap that the session outlives is to cost
/// a flow no more.
///
/// # Errors
///
/// When the kernel refuses an option.
pub fn prepare_flow(socket: &impl AsFd, buffers: &FlowBuffers) -> io::Result<FlowBuffersGuard> {
    let guard = buffers.apply(socket, 1)?;
    prepare_idle(socket)?;
    Ok(guard)
}

/// As [`prepare_flow`], for the node's end of a flow: the kernel may hold twice as much of what
/// arrives there, for the kubelet.
///
/// With as much as elsewhere the sender of a fast upload waited for the receiver's window more
/// than a quarter of the time. More room in the buffers for sending made no such difference.
///
/// # Errors
///
/// When the kernel refuses an option.
pub fn prepare_flow_at_node(
    socket: &impl AsFd,
    buffers: &FlowBuffers,
) -> io::Result<FlowBuffersGuard> {
    let guard = buffers.apply(socket, 2)?;
    prepare_idle(socket)?;
    Ok(guard)
}

/// Sets up a flow that carries nothing yet: as [`prepare_flow`], which is for when it does, without
/// the buffers.
///
/// # Errors
///
/// When the kernel refuses an option.
pub fn prepare_idle(socket: &impl AsFd) -> io::Result<()> {
    set_small_and_alive(socket)?;
    repeat_often(socket)
}

/// Small writes go out at once, and a peer that is gone is found.
fn set_small_and_alive(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_PERIOD)
        .with_interval(KEEPALIVE_PERIOD)
        .with_retries(KEEPALIVE_RETRIES);
    socket.set_tcp_keepalive(&keepalive)
}

/// Makes closing a TCP connection reset it, so that its peer cannot take the close for an end.
///
/// # Errors
///
/// When the kernel refuses the option.
pub fn reset_on_close(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))
}

/// Undoes [`reset_on_close`]: what was written is still sent after a close.
///
/// # Errors
///
/// When the kernel refuses the option.
pub fn end_on_close(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(None)
}

/// What the kernel knows of a connection's end without reading from it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HangUp {
    /// The connection stands, or is half-closed.
    No,
    /// Both directions are closed; bytes that came before may still be read.
    Closed,
    /// The connection was reset or failed.
    Failed,
}

/// Asks the kernel whether a connection has ended.
#[must_use]
pub fn hang_up(socket: &impl AsFd) -> HangUp {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    // Errors and hang-ups are reported without being asked for (poll(2)).
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    let found = poll(&mut fds, PollTimeout::ZERO);
    let [fd] = fds;
    let events = fd.revents().unwrap_or(PollFlags::empty());
    match found {
        Ok(1..) if events.contains(PollFlags::POLLERR) => HangUp::Failed,
        Ok(1..) if events.contains(PollFlags::POLLHUP) => HangUp::Closed,
        _ => HangUp::No,
    }
}

/// Why a connection has failed of which [`hang_up`] has found that it did.
#[must_use]
pub fn take_error(socket: &impl AsFd) -> io::Error {
    let found = SockRef::from(socket).take_error();
    let unknown = || io::Error::other("connection failed");
    found.map_or_else(|error| error, |error| error.unwrap_or_else(unknown))
}

/// How far a TCP connection has got with what was handed to it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TcpProgress {
    /// Bytes that the peer's kernel has acknowledged.
    pub acked: u64,
    /// Whether bytes wait to be sent or to be acknowledged.
    pub outstanding: bool,
    /// How long ago the last bytes arrived.
    pub unheard: Duration,
}

/// What the kernel knows of a TCP connection's segments.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TcpSegments {
    /// The most bytes that it sends in one segment.
    pub largest_sent: u32,
    /// The most bytes that it has told its peer to send in one.
    pub largest_taken: u32,
    /// How often in a row a segment was sent again by its timer, in vain.
    pub timeouts: u8,
    /// Bytes that have arrived, none missing before them.
    pub received: u64,
}

/// Asks the kernel how far a TCP connection has got; `None` where it does not say (before
/// Linux 4.6, or no TCP socket).
#[must_use]
pub fn tcp_progress(socket: &impl AsFd) -> Option<TcpProgress> {
    let info = TcpInfo::of(socket)?;
    let acked = u64::from_ne_bytes(info.bytes(TCP_INFO_BYTES_ACKED)?);
    let outstanding = info.word(TCP_INFO_UNACKED)? > 0 || info.word(TCP_INFO_NOTSENT_BYTES)? > 0;
    let unheard = Duration::from_millis(info.word(TCP_INFO_LAST_DATA_RECV)?.into());
    Some(TcpProgress {
        acked,
        outstanding,
        unheard,
    })
}

/// Asks the kernel about a TCP connection's segments; `None` for other sockets.
#[must_use]
pub fn tcp_segments(socket: &impl AsFd) -> Option<TcpSegments> {
    let info = TcpInfo::of(socket)?;
    let [timeouts] = info.bytes(TCP_INFO_RETRANSMITS)?;
    Some(TcpSegments {
        largest_sent: info.word(TCP_INFO_SND_MSS)?,
        largest_taken: info.word(TCP_INFO_ADVMSS)?,
        timeouts,
        received: u64::from_ne_bytes(info.bytes(TCP_INFO_BYTES_RECEIVED)?),
    })
}

/// Asks the kernel whether it repeats itself on a TCP connection: a segment, or the question whether
/// a peer that takes nothing takes something again, was sent by its timer and is not answered yet.
/// `None` for other sockets.
#[must_use]
pub fn tcp_repeats_itself(socket: &impl AsFd) -> Option<bool> {
    let [timeouts, probes] = TcpInfo::of(socket)?.bytes(TCP_INFO_RETRANSMITS)?;
    Some(timeouts > 0 || probes > 0)
}

/// The kernel's account of a TCP connection, as long as this kernel makes it.
struct TcpInfo {
    bytes: [u8; TCP_INFO_SIZE],
    len: usize,
}

impl TcpInfo {
    fn of(socket: &impl AsFd) -> Option<Self> {
        let mut bytes = [0_u8; TCP_INFO_SIZE];
        let mut len = libc::socklen_t::try_from(bytes.len()).ok()?;
        #[expect(unsafe_code, reason = "TCP_INFO has no safe wrapper")]
        // SAFETY: the descriptor is open for the call's length, being borrowed; `bytes` is valid
        // for writes of `len` bytes, and the kernel writes no more than that.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                bytes.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        let len = usize::try_from(len).ok().filter(|_| result == 0)?;
        Some(Self { bytes, len })
    }

    fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.bytes
            .get(..self.len)?
            .get(at..)?
            .first_chunk()
            .copied()
    }

    fn word(&self, at: usize) -> Option<u32> {
        self.bytes(at).map(u32::from_ne_bytes)
    }
}

/// Sends bytes, and with the first of them descriptors, which the receiver gets as its own.
///
/// # Errors
///
/// When the peer does not take all of it at once, or is gone.
pub async fn send_descriptors(
    stream: &UnixStream,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let with = [ControlMessage::ScmRights(&raw)];
    let with = if raw.is_empty() { &[][..] } else { &with[..] };
    let send = || {
        let content = [io::IoSlice::new(bytes)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        Ok(sendmsg::<()>(
            stream.as_raw_fd(),
            &content,
            with,
            flags,
            None,
        )?)
    };
    match stream.async_io(Interest::WRITABLE, send).await? {
        sent if sent == bytes.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Receives bytes, and the descriptors that were sent with them, at most `max_descriptors`.
///
/// # Errors
///
/// When the connection failed, or more descriptors were sent. No bytes are its end.
pub async fn receive_descriptors(
    stream: &UnixStream,
    bytes: &mut [u8],
    max_descriptors: usize,
) -> io::Result<(usize, Vec<OwnedFd>)> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut space = vec![0; max_descriptors.saturating_mul(size_of::<RawFd>()) + CMSG_HEADER];
    let receive = || {
        let mut content = [io::IoSliceMut::new(bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut content, Some(&mut space), flags)?;
        let mut received = Vec::new();
        for control in message.cmsgs()? {
            let ControlMessageOwned::ScmRights(raw) = control else {
                continue;
            };
            for descriptor in raw {
                #[expect(unsafe_code, reason = "the kernel gives descriptors as numbers")]
                // SAFETY: the kernel has just opened this descriptor for us, and nobody else in
                // this process has its number.
                received.push(unsafe { OwnedFd::from_raw_fd(descriptor) });
            }
        }
        Ok((message.bytes, received))
    };
    stream.async_io(Interest::READABLE, receive).await
}

/// A second handle to the connection under a session, to ask the kernel about it and to end it.
///
/// The connection is only closed when both handles are; [`SessionSocket::shut_down`] ends it at
/// once.
#[derive(Debug)]
pub struct SessionSocket(OwnedFd);

impl SessionSocket {
    /// Makes the second handle.
    ///
    /// # Errors
    ///
    /// When the process has no descriptor left.
    pub fn new(connection: &impl AsFd) -> io::Result<Self> {
        connection.as_fd().try_clone_to_owned().map(Self)
    }

    /// How far the connection has got, where the kernel says.
    #[must_use]
    pub fn progress(&self) -> Option<TcpProgress> {
        tcp_progress(&self.0)
    }

    /// What the kernel says of the connection's segments.
    #[must_use]
    pub fn segments(&self) -> Option<TcpSegments> {
        tcp_segments(&self.0)
    }

    /// Waits for the peer's end of a connection whose own end has been sent, and throws away what
    /// still comes.
    ///
    /// A socket that is closed with bytes unread, or is sent more afterwards, is reset, and that
    /// can cost the peer what was sent to it last: the reason for the end.
    pub async fn linger(&self) {
        let again = self.0.try_clone().map(std::net::TcpStream::from);
        let Ok(mut connection) = again.and_then(TcpStream::from_std) else {
            return;
        };
        let mut scrap = [0; SCRAP_LEN];
        while connection.read(&mut scrap).await.is_ok_and(|n| n > 0) {}
    }

    /// Ends the connection both ways; its other handle sees the end.
    pub fn shut_down(&self) {
        // Fails only when the connection has ended already.
        let _ = SockRef::from(&self.0).shutdown(Shutdown::Both);
    }
}

/// What may wait unsent in the kernel of a session's connection: at 2 Mbit/s it delays a ping by
/// half a second at most, and it is ample for a fast link, whose buffer empties quickly.
const NOT_SENT_LOW_WATER: u32 = 128 * 1024;

/// A link that returns has its session, and its flows, moving again within this. The kernel counts its attempts,
/// of which it makes 15, at this pace too: 36 s, later than a silent peer is given up for dead.
const RETRANSMISSION_MAX: Duration = Duration::from_secs(3);

/// From include/uapi/linux/tcp.h.
const TCP_RTO_MAX_MS: libc::c_int = 44;

/// A relayed connection whose peer is gone is found within 5 + 3 * 5 s.
const KEEPALIVE_PERIOD: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;

/// Room for the header of a control message, with its padding (cmsg(3)): 16 bytes on every
/// 64-bit system.
const CMSG_HEADER: usize = 32;

/// On the stack, for a moment.
const SCRAP_LEN: usize = 4 * 1024;

/// Places in `struct tcp_info` (include/uapi/linux/tcp.h), which only ever grows at its end: after
/// 8 bytes, of which the third and fourth are `tcpi_retransmits` and `tcpi_probes`, come 24 words, of which `tcpi_snd_mss` is the
/// third, `tcpi_unacked` the fifth, `tcpi_last_data_recv` the twelfth and `tcpi_advmss` the
/// twentieth; then two 64-bit pacing rates, `tcpi_bytes_acked` and `tcpi_bytes_received`, two words, and `tcpi_notsent_bytes`.
const TCP_INFO_RETRANSMITS: usize = 2;
const TCP_INFO_SND_MSS: usize = 16;
const TCP_INFO_UNACKED: usize = 24;
const TCP_INFO_LAST_DATA_RECV: usize = 52;
const TCP_INFO_ADVMSS: usize = 84;
const TCP_INFO_BYTES_ACKED: usize = 120;
const TCP_INFO_BYTES_RECEIVED: usize = 128;
const TCP_INFO_NOTSENT_BYTES: usize = 144;
const TCP_INFO_SIZE: usize = 256;

#[cfg(test)]
mod tests {
    use tokio::{
        io::AsyncWriteExt,
        net::{TcpListener, TcpSocket},
    };

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(
            TcpStream::connect(listener.local_addr().unwrap()),
            listener.accept()
        );
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn acknowledged_bytes_grow_with_what_the_peer_has() {
        let (mut near, mut far) = pair().await;
        let before = tcp_progress(&near).unwrap().acked;

        near.write_all(&[7; 4096]).await.unwrap();
        far.read_exact(&mut [0; 4096]).await.unwrap();
        far.write_all(b"x").await.unwrap();
        near.read_exact(&mut [0; 1]).await.unwrap();

        let after = tcp_progress(&near).unwrap();
        assert_eq!((after.acked - before, after.outstanding), (4096, false));
    }

    #[tokio::test]
    async fn the_kernel_knows_when_something_last_arrived() {
        let (mut near, mut far) = pair().await;
        far.write_all(b"x").await.unwrap();
        near.read_exact(&mut [0; 1]).await.unwrap();
        assert!(tcp_progress(&near).unwrap().unheard < Duration::from_secs(1));

        tokio::time::sleep(Duration::from_millis(1_200)).await;

        let unheard = tcp_progress(&near).unwrap().unheard;
        assert!(unheard >= Duration::from_secs(1), "{unheard:?}");
    }

    #[tokio::test]
    async fn what_a_stopped_peer_has_no_room_for_is_outstanding() {
        let (near, _far) = pair().await;
        while near.try_write(&[7; 65536]).is_ok() {}
        assert!(tcp_progress(&near).unwrap().outstanding);
    }

    #[tokio::test]
    async fn a_listener_is_shared_with_whoever_receives_its_descriptor() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (giver, taker) = UnixStream::pair().unwrap();

        let descriptors = [listener.as_fd(), giver.as_fd()];
        send_descriptors(&giver, b"here", &descriptors)
            .await
            .unwrap();
        drop(listener);
        let mut bytes = [0; 16];
        let (len, mut received) = receive_descriptors(&taker, &mut bytes, 4).await.unwrap();

        assert_eq!((&bytes[..len], received.len()), (&b"here"[..], 2));
        let shared = std::net::TcpListener::from(received.remove(0));
        let shared = TcpListener::from_std(shared).unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(at), shared.accept());
        client.unwrap();
        accepted.unwrap();

        send_descriptors(&giver, b"alone", &[]).await.unwrap();
        let (len, received) = receive_descriptors(&taker, &mut bytes, 4).await.unwrap();
        assert_eq!((&bytes[..len], received.len()), (&b"alone"[..], 0));
        drop((giver, received));
    }

    #[tokio::test]
    async fn a_reset_is_seen_without_reading_and_a_half_close_is_none() {
        let (near, mut far) = pair().await;
        assert_eq!(hang_up(&near), HangUp::No);
        far.shutdown().await.unwrap();
        assert_eq!(hang_up(&near), HangUp::No);

        reset_on_close(&far).unwrap();
        drop(far);

        // Loopback delivers in the sender's context.
        assert_eq!(hang_up(&near), HangUp::Failed);
    }

    #[tokio::test]
    async fn a_socket_that_lingers_costs_its_peer_nothing() {
        let (mut near, mut far) = pair().await;
        let session = SessionSocket::new(&near).unwrap();
        near.write_all(b"the reason").await.unwrap();
        near.shutdown().await.unwrap();
        drop(near);

        let told = async {
            // More than the kernel keeps for a socket that nobody reads.
            far.write_all(&vec![7; 16 << 20]).await?;
            let mut reason = String::new();
            far.read_to_string(&mut reason).await?;
            drop(far);
            io::Result::Ok(reason)
        };
        let ((), told) = tokio::join!(session.linger(), told);

        assert_eq!(told.unwrap(), "the reason");
    }

    #[tokio::test]
    async fn a_bound_set_before_connecting_holds_in_both_directions() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        limit_segments(&socket, 1220).unwrap();

        let near = socket.connect(listener.local_addr().unwrap()).await;
        let near = tcp_segments(&near.unwrap()).unwrap();
        let far = tcp_segments(&listener.accept().await.unwrap().0).unwrap();

        // The difference are TCP's timestamps.
        for largest in [near.largest_sent, near.largest_taken, far.largest_sent] {
            assert!((1200..=1220).contains(&largest), "{near:?} {far:?}");
        }
        assert_eq!((near.timeouts, near.received), (0, 0));
    }

    #[tokio::test]
    async fn a_bound_set_later_changes_nothing() {
        let (near, _far) = pair().await;
        let before = tcp_segments(&near).unwrap();
        limit_segments(&near, 1220).unwrap();
        assert_eq!(tcp_segments(&near).unwrap(), before);
    }

    #[tokio::test]
    async fn options_are_accepted_by_the_kernel() {
        let (near, _far) = pair().await;
        prepare_session(&near).unwrap();
        prepare_relayed(&near).unwrap();
        assert!(SockRef::from(&near).tcp_nodelay().unwrap());
    }
}
