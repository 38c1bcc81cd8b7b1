//! The far end: a plain TCP source and sink in the kubelet's place on the node.
//!
//! It is to cost as little as possible, the same in every case: no TLS, large buffers, nothing is
//! checked but lengths. The client's first [`COMMAND_LEN`] bytes say what it is to be ([`Command`]),
//! in the form of a TLS handshake record, because nothing else is let onto the fast paths.
//! It remembers who has connected, which tells whether an agent dialled or the client itself.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;

/// What a client wants of the far end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Command {
    /// Send so many bytes, then end.
    Source(u64),
    /// Take so many bytes, then answer with their number and end.
    Sink(u64),
    /// Answer each message of [`MESSAGE_LEN`] bytes with one of the same size.
    Echo,
    /// Answer with one byte, then wait for the end.
    Byte,
}

/// A listener and its connections; they end with it.
#[derive(Debug)]
pub(super) struct FarEnd {
    peers: Arc<Peers>,
    _serving: AbortOnDropHandle<()>,
}

/// How many connections came from where.
#[derive(Debug, Default)]
struct Peers(Mutex<BTreeMap<IpAddr, u64>>);

impl FarEnd {
    /// Listens at `port` of every address.
    pub(super) async fn start(port: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
            .await
            .with_context(|| format!("far end cannot listen at port {port}"))?;
        let peers = Arc::new(Peers::default());
        let serving = tokio::spawn(serve(listener, Arc::clone(&peers)));
        Ok(Self {
            peers,
            _serving: AbortOnDropHandle::new(serving),
        })
    }

    /// How many connections have come from where since the last call.
    pub(super) fn take_peers(&self) -> BTreeMap<IpAddr, u64> {
        std::mem::take(&mut *self.peers.lock())
    }
}

impl Peers {
    fn count(&self, peer: IpAddr) {
        *self.lock().entry(peer).or_default() += 1;
    }

    /// Every change leaves the map whole, even if a thread panicked.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<IpAddr, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Command {
    pub(super) fn encode(self) -> [u8; COMMAND_LEN] {
        let (kind, length) = match self {
            Self::Source(length) => (b's', length),
            Self::Sink(length) => (b'k', length),
            Self::Echo => (b'e', 0),
            Self::Byte => (b'b', 0),
        };
        let mut bytes = [kind; COMMAND_LEN];
        let (head, rest) = bytes.split_at_mut(TLS_HEAD.len());
        head.copy_from_slice(&TLS_HEAD);
        let (_, number) = rest.split_at_mut(1);
        number.copy_from_slice(&length.to_be_bytes());
        bytes
    }

    fn decode(bytes: [u8; COMMAND_LEN]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk()?;
        if *head != TLS_HEAD {
            return None;
        }
        let (kind, number) = rest.split_first()?;
        let length = u64::from_be_bytes(number.try_into().ok()?);
        match *kind {
            b's' => Some(Self::Source(length)),
            b'k' => Some(Self::Sink(length)),
            b'e' => Some(Self::Echo),
            b'b' => Some(Self::Byte),
            _ => None,
        }
    }
}

async fn serve(listener: TcpListener, peers: Arc<Peers>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((connection, peer)) = accepted else {
                    // Whoever dialled notices, and says so.
                    continue;
                };
                peers.count(peer.ip().to_canonical());
                // A client that goes away in the middle is what the stalled ones do.
                connections.spawn(async move { drop(play(connection).await) });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn play(mut connection: TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut command = [0; COMMAND_LEN];
    connection.read_exact(&mut command).await?;
    match Command::decode(command) {
        Some(Command::Source(length)) => source(&mut connection, length).await?,
        Some(Command::Sink(length)) => sink(&mut connection, length).await?,
        Some(Command::Echo) => echo(&mut connection).await?,
        Some(Command::Byte) => connection.write_all(b"b").await?,
        None => return Err(io::ErrorKind::InvalidData.into()),
    }
    connection.shutdown().await?;
    // So that what was sent last is not lost to a reset.
    while connection.read(&mut command).await? > 0 {}
    Ok(())
}

async fn source(connection: &mut TcpStream, length: u64) -> io::Result<()> {
    let piece = vec![0x5a; BUFFER_LEN];
    let mut left = length;
    while left > 0 {
        let piece = cut(&piece, left);
        connection.write_all(piece).await?;
        left -= piece.len() as u64;
    }
    Ok(())
}

async fn sink(connection: &mut TcpStream, length: u64) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_LEN];
    let mut taken = 0;
    while taken < length {
        let n = connection.read(&mut buffer).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        taken += n as u64;
    }
    connection.write_all(&taken.to_be_bytes()).await
}

async fn echo(connection: &mut TcpStream) -> io::Result<()> {
    let mut message = [0; MESSAGE_LEN];
    loop {
        match connection.read_exact(&mut message).await {
            Ok(_) => connection.write_all(&message).await?,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// The beginning of `piece`, at most `left` bytes.
pub(super) fn cut(piece: &[u8], left: u64) -> &[u8] {
    let length = usize::try_from(left).unwrap_or(usize::MAX);
    piece.get(..length).unwrap_or(piece)
}

/// The head of a TLS handshake record that holds the rest of the command (RFC 8446, section 5.1).
const TLS_HEAD: [u8; 5] = [0x16, 0x03, 0x01, 0, 9];

/// The head of a record, a kind and a length.
pub(super) const COMMAND_LEN: usize = 14;

/// What is called a request in the results.
pub(super) const MESSAGE_LEN: usize = 512;

/// Of one read or write. Larger ones cost no less per byte here, and leave the processor's cache.
pub(super) const BUFFER_LEN: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use proxymux_transport::beginning::Beginning;

    use super::*;

    #[test]
    fn commands_survive_the_wire() {
        for command in [
            Command::Source(2 << 30),
            Command::Sink(u64::MAX),
            Command::Echo,
            Command::Byte,
        ] {
            assert_eq!(Command::decode(command.encode()), Some(command));
        }
        assert_eq!(Command::decode([b'?'; COMMAND_LEN]), None);
        let mut strange = Command::Echo.encode();
        strange[TLS_HEAD.len()] = b'?';
        assert_eq!(Command::decode(strange), None);
    }

    #[test]
    fn a_command_begins_as_tls_does_and_is_as_long_as_its_head_says() {
        let bytes = Command::Byte.encode();
        assert_eq!(Beginning::of(&bytes), Beginning::Tls);
        let length = usize::from(u16::from_be_bytes([bytes[3], bytes[4]]));
        assert_eq!(TLS_HEAD.len() + length, COMMAND_LEN);
    }

    #[test]
    fn the_last_piece_is_as_long_as_what_is_left() {
        assert_eq!(cut(&[1, 2, 3], 2), [1, 2]);
        assert_eq!(cut(&[1, 2, 3], 1 << 40), [1, 2, 3]);
    }
}
