//! A thread inside a host with a single-threaded runtime.
//!
//! A namespace belongs to a thread, hence one thread per simulated host; a runtime that moved
//! tasks between threads would move them between hosts. The thread is joined on drop.

use std::{
    fmt,
    ops::Deref,
    panic,
    sync::mpsc::{SyncSender, sync_channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use tokio::{runtime::Handle, sync::oneshot};

use super::Host;

/// A thread inside a host; tasks spawned here run there. Dropping it ends them.
///
/// ```no_run
/// use proxymux_testkit::netns::Topology;
///
/// # fn main() -> anyhow::Result<()> {
/// let topology = Topology::new()?;
/// let master = topology.master().runtime()?;
/// let listener = master.block_on(tokio::net::TcpListener::bind("192.0.2.10:0"))?;
/// let accepting = master.spawn(async move { listener.accept().await });
/// # drop(accepting);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct HostRuntime {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl HostRuntime {
    /// Spawns a task on the host.
    pub fn spawn<F>(&self, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.handle.spawn(future)
    }

    /// Runs a future on the host and blocks the calling thread until it has ended.
    ///
    /// # Panics
    ///
    /// When the future panics.
    pub fn block_on<F>(&self, future: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let task = self.handle.spawn(future);
        let (sender, receiver) = sync_channel(1);
        self.handle.spawn(async move {
            // The receiver waits below for as long as this task exists.
            drop(sender.send(task.await));
        });
        match receiver.recv() {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => panic::resume_unwind(error.into_panic()),
            Err(_) => unreachable!("the runtime ends tasks only when self is dropped"),
        }
    }
}

impl Drop for HostRuntime {
    #[expect(clippy::panic, reason = "a panic is how a test fails")]
    fn drop(&mut self) {
        drop(self.stop.take());
        let Some(thread) = self.thread.take() else {
            return;
        };
        if thread.join().is_err() && !thread::panicking() {
            // The panic itself has been printed where it happened.
            panic!("the thread of a simulated host panicked");
        }
    }
}

/// Something that runs inside a host, with the thread it runs on.
///
/// Dereferences to what the start function returned; dropping it drops that first, then ends
/// the thread.
pub struct Running<T> {
    value: T,
    runtime: HostRuntime,
}

impl<T> Running<T> {
    /// Where further tasks can be spawned on the same host.
    pub fn runtime(&self) -> &HostRuntime {
        &self.runtime
    }

    pub(super) fn into_runtime(self) -> HostRuntime {
        self.runtime
    }
}

impl<T> Deref for Running<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: fmt::Debug> fmt::Debug for Running<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running")
            .field("value", &self.value)
            .finish_non_exhaustive()
    }
}

pub(super) fn start<T, F, S>(host: &Host, start: S) -> Result<Running<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<T>>,
    S: FnOnce() -> F + Send + 'static,
{
    let (stop, stopped) = oneshot::channel();
    let (ready, started) = sync_channel(1);
    let name = host.name().to_owned();
    let on_thread = {
        let host = host.clone();
        move || live(&host, start, &ready, stopped)
    };
    let thread = thread::Builder::new()
        .name(name.clone())
        .spawn(on_thread)
        .context("cannot start a thread")?;
    let Ok(outcome) = started.recv() else {
        let panic = thread.join().err();
        return Err(panic.map_or_else(
            || anyhow!("the thread of host {name} ended before it was ready"),
            |panic| anyhow!("host {name}: {}", panic_text(&*panic)),
        ));
    };
    let (handle, value) = outcome.with_context(|| format!("cannot start on host {name}"))?;
    let runtime = HostRuntime {
        handle,
        stop: Some(stop),
        thread: Some(thread),
    };
    Ok(Running { value, runtime })
}

/// The life of the thread: enter, start, say so, serve until told to stop.
fn live<T, F, S>(
    host: &Host,
    start: S,
    ready: &SyncSender<Result<(Handle, T)>>,
    stopped: oneshot::Receiver<()>,
) where
    F: Future<Output = Result<T>>,
    S: FnOnce() -> F,
{
    // Whoever waits for the handshake holds the receiver until it has come.
    let say = |outcome| drop(ready.send(outcome));
    let runtime = match host.enter_with_runtime() {
        Ok(runtime) => runtime,
        Err(error) => return say(Err(error)),
    };
    match runtime.block_on(async { start().await }) {
        Ok(value) => say(Ok((runtime.handle().clone(), value))),
        Err(error) => return say(Err(error)),
    }
    // An error means that the sender was dropped, which is how it is told to stop.
    drop(runtime.block_on(stopped));
    runtime.shutdown_timeout(SHUTDOWN_LIMIT);
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panicked")
}

/// Only blocking tasks (file access, name look-ups) can make use of it; the others end at once.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);
