//! A far end for clients that give up: it does not mind, and it keeps nothing.
//!
//! The first bytes of a connection say what it does, see [`Wish`]; they begin as TLS does, so that
//! fast paths take them. How many connections it has is the far side's own account of what the
//! tunnel has left open.

use std::{io, sync::Arc};

use anyhow::Result;
use proxymux_testkit::{cluster::Cluster, netns::Running};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// A listening far end. Dropping it ends its accept loop.
#[derive(Debug)]
pub struct Dispenser {
    open: Arc<()>,
    accepting: JoinHandle<()>,
}

/// What a client can ask for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wish {
    /// Bytes without end.
    Source,
    /// Its own bytes, until its end.
    Echo,
    /// A reset after a few bytes.
    Reset,
}

impl Dispenser {
    /// How many connections are open.
    pub fn open(&self) -> usize {
        Arc::strong_count(&self.open) - 2
    }
}

impl Drop for Dispenser {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Wish {
    /// What a client says for it.
    pub(super) fn bytes(self) -> [u8; 3] {
        [0x16, 0x03, self.byte()]
    }

    fn byte(self) -> u8 {
        match self {
            Self::Source => b's',
            Self::Echo => b'e',
            Self::Reset => b'r',
        }
    }
}

/// Starts one on a node, where [`crate::far_target::far_target`] leads.
///
/// # Errors
///
/// It could not listen.
pub fn dispenser(cluster: &Cluster, node: usize) -> Result<Running<Dispenser>> {
    cluster.node(node).run(|| async {
        let listener = TcpListener::bind(("::", crate::far_target::PORT)).await?;
        let open = Arc::new(());
        let accepting = tokio::spawn(accept(listener, Arc::clone(&open)));
        Ok(Dispenser { open, accepting })
    })
}

async fn accept(listener: TcpListener, open: Arc<()>) {
    loop {
        match listener.accept().await {
            Ok((connection, _)) => {
                let open = Arc::clone(&open);
                tokio::spawn(async move {
                    // Clients that give up are what it is for.
                    let _ = serve(connection).await;
                    drop(open);
                });
            }
            Err(error) => {
                eprintln!("far end: cannot accept: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(mut connection: TcpStream) -> io::Result<()> {
    let mut said = [0; 3];
    connection.read_exact(&mut said).await?;
    let [.., wish] = said;
    if wish == Wish::Source.byte() {
        loop {
            connection.write_all(&[7; 16 * 1024]).await?;
        }
    }
    if wish == Wish::Echo.byte() {
        let (mut read, mut write) = connection.split();
        tokio::io::copy(&mut read, &mut write).await?;
        return write.shutdown().await;
    }
    let _ = connection.read(&mut [0; 64]).await?;
    connection.set_zero_linger()
}
