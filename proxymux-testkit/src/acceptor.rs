//! The accept loop of the stand-ins: one task per connection, all gone when the owner is.

use std::{net::SocketAddr, time::Duration};

use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Accepts in the background until dropped, which also ends the connections.
#[derive(Debug)]
pub(crate) struct Acceptor {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Acceptor {
    /// `name` is for messages; `serve` makes the future that is a connection's life.
    pub(crate) fn spawn<S, F>(name: &'static str, listener: TcpListener, serve: S) -> Self
    where
        S: Fn(TcpStream, SocketAddr, &Tasks) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let acceptor = Self {
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let tasks = Tasks {
            stop: acceptor.stop.clone(),
            tasks: acceptor.tasks.clone(),
        };
        acceptor.tasks.spawn(async move {
            let accepting = accept(name, listener, serve, &tasks);
            tasks.stop.run_until_cancelled(accepting).await;
        });
        acceptor
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.stop.cancel();
        self.tasks.close();
    }
}

/// Where a connection spawns what must not outlive the acceptor.
#[derive(Clone, Debug)]
pub(crate) struct Tasks {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Tasks {
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }
}

async fn accept<S, F>(name: &str, listener: TcpListener, serve: S, tasks: &Tasks)
where
    S: Fn(TcpStream, SocketAddr, &Tasks) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => tasks.spawn(serve(stream, peer, tasks)),
            Err(error) => {
                // Out of descriptors, most likely; some come free when connections end.
                eprintln!("{name}: cannot accept: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
