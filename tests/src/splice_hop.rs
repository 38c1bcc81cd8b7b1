//! A bare splice hop: takes connections, dials one address for each, and moves bytes by `splice(2)`.
//!
//! It is the floor that the bench holds the fast paths against, and nothing that anybody could use:
//! no protocol, no choice of a target, no limits, no log, no runtime; two threads for each
//! connection, each of which waits in the kernel.
//! What it has in common with the daemons are the sockets' buffers, so that both move as much at a
//! time, and pipes of the largest size that they use. Read [`Hop`].

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    sync::Arc,
    thread,
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::pipe2,
};
use proxymux_transport::{
    config_file::values::FlowBuffer,
    socket::{FlowBuffers, FlowBuffersGuard, prepare_flow},
};

/// Where a hop listens, and where it leads.
#[derive(Clone, Debug)]
pub struct Hop {
    /// Where connections come in.
    pub from: From,
    /// What is dialled for each.
    pub to: SocketAddr,
}

/// A socket that connections come to.
#[derive(Clone, Debug)]
pub enum From {
    /// A Unix socket, which must not exist.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
}

impl Hop {
    /// Listens, calls `listening`, and serves until the process ends.
    ///
    /// # Errors
    ///
    /// It cannot listen, or a connection could not be accepted.
    pub fn run(&self, listening: impl FnOnce()) -> Result<()> {
        match &self.from {
            From::Unix(path) => {
                let context = || format!("cannot listen at {}", path.display());
                let listener = UnixListener::bind(path).with_context(context)?;
                listening();
                loop {
                    let (client, _) = listener.accept().context("cannot accept")?;
                    self.serve(client);
                }
            }
            From::Tcp(address) => {
                let context = || format!("cannot listen at {address}");
                let listener = TcpListener::bind(address).with_context(context)?;
                listening();
                loop {
                    let (client, _) = listener.accept().context("cannot accept")?;
                    self.serve(client);
                }
            }
        }
    }

    /// Whoever loses a connection here notices it at its end: there is nobody to tell.
    fn serve<C: Side>(&self, client: C) {
        let to = self.to;
        thread::spawn(move || {
            let _ = relay(client, to);
        });
    }
}

/// One end of a relay.
trait Side: AsFd + Send + Sync + 'static {
    /// Sets its buffers as the daemons do.
    fn prepare(&self) -> io::Result<Option<FlowBuffersGuard>>;
    fn shut_down(&self, how: Shutdown) -> io::Result<()>;
}

impl Side for TcpStream {
    fn prepare(&self) -> io::Result<Option<FlowBuffersGuard>> {
        let buffers = FlowBuffers::new(FlowBuffer::default());
        prepare_flow(self, &buffers).map(Some)
    }

    fn shut_down(&self, how: Shutdown) -> io::Result<()> {
        self.shutdown(how)
    }
}

impl Side for UnixStream {
    fn prepare(&self) -> io::Result<Option<FlowBuffersGuard>> {
        Ok(None)
    }

    fn shut_down(&self, how: Shutdown) -> io::Result<()> {
        self.shutdown(how)
    }
}

fn relay<C: Side>(client: C, to: SocketAddr) -> io::Result<()> {
    let target = TcpStream::connect(to)?;
    let _guards = (client.prepare()?, target.prepare()?);
    let (client, target) = (Arc::new(client), Arc::new(target));
    let back = {
        let (client, target) = (Arc::clone(&client), Arc::clone(&target));
        thread::spawn(move || one_way(&*target, &*client))
    };
    let there = one_way(&*client, &*target);
    let back = back.join().map_err(|_| io::ErrorKind::Other)?;
    there.and(back)
}

/// Moves everything; then the sink is told that it has ended. A failure ends both, both ways.
fn one_way(source: &impl Side, sink: &impl Side) -> io::Result<()> {
    let moved = move_all(source.as_fd(), sink.as_fd());
    let end = match moved {
        Ok(()) => sink.shut_down(Shutdown::Write),
        Err(_) => source
            .shut_down(Shutdown::Both)
            .and(sink.shut_down(Shutdown::Both)),
    };
    moved.map_err(io::Error::from).and(end)
}

fn move_all(source: BorrowedFd<'_>, sink: BorrowedFd<'_>) -> nix::Result<()> {
    let (out, into) = pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&into, FcntlArg::F_SETPIPE_SZ(PIPE))?;
    let most = usize::try_from(PIPE).unwrap_or_default();
    loop {
        let filled = waiting(source, PollFlags::POLLIN, || {
            splice(source, None, &into, None, most, FLAGS)
        })?;
        if filled == 0 {
            return Ok(());
        }
        let mut left = filled;
        while left > 0 {
            left -= waiting(sink, PollFlags::POLLOUT, || {
                splice(&out, None, sink, None, left, FLAGS)
            })?;
        }
    }
}

/// The socket blocks and the pipe does not, by the flag; where that goes for both (Unix sockets),
/// the socket is waited for.
fn waiting(
    socket: BorrowedFd<'_>,
    events: PollFlags,
    mut call: impl FnMut() -> nix::Result<usize>,
) -> nix::Result<usize> {
    loop {
        match call() {
            Err(Errno::EAGAIN) => {
                poll(&mut [PollFd::new(socket, events)], PollTimeout::NONE)?;
            }
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// What the daemons' pipes grow to.
const PIPE: i32 = 1 << 20;

const FLAGS: SpliceFFlags = SpliceFFlags::SPLICE_F_MOVE.union(SpliceFFlags::SPLICE_F_NONBLOCK);

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::Ipv4Addr,
        sync::mpsc,
    };

    use super::*;

    #[test]
    fn bytes_pass_both_ways_and_so_does_the_end() {
        let far = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("hop");
        let hop = Hop {
            from: From::Unix(path.clone()),
            to: far.local_addr().unwrap(),
        };
        let (up, is_up) = mpsc::sync_channel(1);
        thread::spawn(move || hop.run(move || up.send(()).unwrap()));
        is_up.recv().unwrap();
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let expected = sent.clone();

        let mut client = UnixStream::connect(&path).unwrap();
        let (mut server, _) = far.accept().unwrap();
        let mut writer = client.try_clone().unwrap();
        let writing = thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        server.read_to_end(&mut received).unwrap();
        server.write_all(b"all of it").unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();

        writing.join().unwrap();
        assert!(received == expected);
        assert_eq!(answer, "all of it");
    }
}
