//! `proxymux-agent check`: what stands in the way of this node's agent, and what to do about it.
//!
//! Owns the order of what is looked at, and the limit of the whole; each part is a module below.
//! It never registers with a master, attaches nothing to the node's devices and sets nothing, so
//! that it can run beside a running agent. What only that one knows is asked at its admin address.
//! Read [`run`].

#[cfg(feature = "ebpf")]
mod firewall;
#[cfg(feature = "ebpf")]
mod kernel;
mod kubelet;
mod master;
#[cfg(feature = "ebpf")]
mod nic;
#[cfg(feature = "ebpf")]
mod reverse_path;
mod route;
#[cfg(feature = "ebpf")]
mod rules;
mod running;
mod security;
mod settings;
mod steering;

use std::{collections::BTreeSet, io, path::Path, sync::Arc, time::Duration};

use proxymux_transport::{
    certificate::CertificateInfo, clock::WallClock, command::Report, credentials::check,
};
use tokio::time::timeout;

use self::settings::{Settings, Shown};

/// Looks at everything, with the configuration in this file.
///
/// # Errors
///
/// When there is no runtime to look with.
pub fn run(config_file: &Path) -> io::Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(look(config_file));
    // Looking up a name blocks a thread, for as long as a name server is silent.
    runtime.shutdown_background();
    Ok(report)
}

async fn look(config_file: &Path) -> Report {
    let (mut report, settings) = settings::read(config_file);
    let settings = Arc::new(settings);
    let (mut peers, mut parts, mut status) = (Vec::new(), Vec::new(), None);
    let mut masters_at = BTreeSet::new();
    if settings.config.is_some() {
        let seen = tokio::join!(
            within(running::look(&settings)),
            within(master::look(&settings)),
            within(kubelet::look(&settings)),
        );
        let (agent, of_agent) = seen.0.unwrap_or_else(|| overdue(running::AGENT, LIMIT));
        let (masters, of_masters) = seen.1.unwrap_or_else(|| overdue(master::TCP, LIMIT));
        let (kubelet, of_kubelet) = seen.2.unwrap_or_else(|| overdue(kubelet::KUBELET, LIMIT));
        status = of_agent;
        masters_at = of_masters.addresses;
        peers.extend(of_masters.shown);
        peers.extend(of_kubelet);
        parts = vec![agent, masters, kubelet];
    }
    clock(&mut report, &settings, &peers);
    for part in parts {
        report.extend(part);
    }
    report.extend(on_a_thread(move || steering::look(&settings, &masters_at, &status)).await);
    report
}

/// The wall clock, judged by every certificate that was seen.
fn clock(report: &mut Report, settings: &Settings, peers: &[Shown]) {
    let own = settings
        .certificates
        .iter()
        .map(|(whose, info)| (*whose, info));
    let peers = peers.iter().map(|(whose, info)| (*whose, info));
    let seen: Vec<(&str, &CertificateInfo)> = own.chain(peers).collect();
    check::clock(report, "clock", seen, WallClock::system().now());
}

/// Work that blocks, such as on the file system or on other programs.
async fn on_a_thread(work: impl FnOnce() -> Report + Send + 'static) -> Report {
    let done = timeout(HOST_LIMIT, tokio::task::spawn_blocking(work)).await;
    match done {
        Ok(Ok(report)) => report,
        Ok(Err(_)) | Err(_) => overdue::<()>("host", HOST_LIMIT).0,
    }
}

async fn within<T>(looking: impl Future<Output = T>) -> Option<T> {
    timeout(LIMIT, looking).await.ok()
}

/// A part that did not come to an end.
fn overdue<T: Default>(topic: &'static str, limit: Duration) -> (Report, T) {
    let mut report = Report::default();
    report.error(
        topic,
        format!("looking at it was not over within {} s", limit.as_secs()),
        "see whether this machine is overloaded, or its name servers are silent; try again",
    );
    (report, T::default())
}

/// A master that lets a handshake wait for its turn answers within 17 s; the rest is for a name
/// server.
const LIMIT: Duration = Duration::from_secs(18);

/// Two programs that hang, and the kernel's verifier on a busy machine. With [`LIMIT`] this makes
/// half a minute for the whole.
const HOST_LIMIT: Duration = Duration::from_secs(12);
