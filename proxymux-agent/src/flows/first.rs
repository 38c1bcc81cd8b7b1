//! The first bytes of an opened flow, which have to be those of TLS.
//!
//! Owns waiting for them, however long the client takes, and noticing meanwhile that the kubelet
//! or the time is gone. Leaves passing them on to the relay. They are read and not peeked at: a
//! socket with one byte in it stays readable, and waiting for the second would be waiting in
//! circles.

use std::{io, os::fd::AsRawFd, time::Duration};

use bytes::{Bytes, BytesMut};
use nix::sys::socket::{MsgFlags, recv};
use proxymux_proto::AbortCode;
use proxymux_transport::{
    beginning::Beginning,
    relay::{Outcome, RelayOptions},
};
use tokio::{
    io::{AsyncReadExt, Interest},
    net::TcpStream,
};

/// Why there is nothing to be relayed.
#[derive(Debug, thiserror::Error)]
pub(super) enum FirstFault {
    #[error("flow ended before it carried anything")]
    ClientGone(#[source] io::Error),
    #[error("kubelet ended its connection before it was asked anything")]
    KubeletGone(#[source] Option<io::Error>),
    #[error("flow begins with {0}, not with TLS")]
    NotTls(&'static str),
    #[error("nothing came within {} s", .0.as_secs())]
    Idle(Duration),
    #[error("cut off before anything came")]
    Cut,
}

impl FirstFault {
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::ClientGone(_) => Outcome::PeerAborted(AbortCode::Reset),
            Self::KubeletGone(_) => Outcome::LocalReset,
            Self::NotTls(_) => Outcome::NotTls,
            Self::Idle(_) => Outcome::Idle,
            Self::Cut => Outcome::Drained,
        }
    }
}

/// Reads until it is sure that the client speaks TLS; what was read is to be passed on. It is
/// empty if the client has ended without a word, which is an end like any other.
pub(super) async fn first_bytes(
    client: &mut TcpStream,
    kubelet: &TcpStream,
    options: &RelayOptions,
) -> Result<Bytes, FirstFault> {
    let idle = async {
        match options.idle_timeout {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
        options.idle_timeout.unwrap_or_default()
    };
    tokio::select! {
        biased; // What the client has sent counts before how the others end.
        read = read_tls(client) => read,
        fault = kubelet_ends(kubelet) => Err(FirstFault::KubeletGone(fault)),
        () = options.cancel.cancelled() => Err(FirstFault::Cut),
        limit = idle => Err(FirstFault::Idle(limit)),
    }
}

async fn read_tls(client: &mut TcpStream) -> Result<Bytes, FirstFault> {
    // Whoever waits holds no buffer.
    client.readable().await.map_err(FirstFault::ClientGone)?;
    let mut early = BytesMut::with_capacity(FIRST_READ);
    loop {
        match client.read_buf(&mut early).await {
            Ok(0) if early.is_empty() => return Ok(Bytes::new()),
            Ok(0) => return Err(FirstFault::NotTls(Beginning::Unclear.what())),
            Ok(_) => {}
            Err(error) => return Err(FirstFault::ClientGone(error)),
        }
        match Beginning::of(&early) {
            Beginning::Unclear => {}
            Beginning::Tls => return Ok(early.freeze()),
            other => return Err(FirstFault::NotTls(other.what())),
        }
    }
}

/// Becomes ready when the kubelet has ended its connection, with the error if it was one. Once it
/// has said something it is for the relay to find its end.
async fn kubelet_ends(kubelet: &TcpStream) -> Option<io::Error> {
    loop {
        if let Err(error) = kubelet.readable().await {
            return Some(error);
        }
        let peeked = kubelet.try_io(Interest::READABLE, || {
            let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
            Ok(recv(kubelet.as_raw_fd(), &mut [0], flags)?)
        });
        match peeked {
            Ok(0) => return None,
            Ok(_) => std::future::pending().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Some(error),
        }
    }
}

/// Room for a ClientHello, most of which fit into one segment.
const FIRST_READ: usize = 2048;
