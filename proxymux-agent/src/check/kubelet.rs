//! Whether the kubelet can be reached, and what its certificate is worth to kube-apiserver.
//!
//! Owns the judgement; the handshake that believes anything is `tls::look`. The agent itself never
//! looks at this certificate: API server and kubelet speak TLS with each other, through it.

use std::{io, net::SocketAddr, time::Duration};

use proxymux_transport::{
    certificate::{Validity, utc},
    clock::WallClock,
    command::Report,
    reload::InForce,
    telemetry::chain,
    tls::{self, Peer, TlsFault, verify_master_chain},
};
use rustls::pki_types::ServerName;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

use super::settings::{Settings, Shown};
use crate::config::Config;

/// Connects, looks at the certificate, and goes.
pub(super) async fn look(settings: &Settings) -> (Report, Vec<Shown>) {
    let mut report = Report::default();
    let Some(config) = &settings.config else {
        return (report, Vec::new());
    };
    let at = config.kubelet_addr;
    let connection = match timeout(CONNECT_LIMIT, TcpStream::connect(at)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            let fix = refused_fix(at, &error);
            report.error(KUBELET, format!("{at}: cannot connect: {error}"), fix);
            return (report, Vec::new());
        }
        Err(_) => {
            report.error(
                KUBELET,
                format!("{at}: no answer within {} s", CONNECT_LIMIT.as_secs()),
                "correct kubelet-addr, or see what drops packets to it on this node (`nft list \
                 ruleset`)",
            );
            return (report, Vec::new());
        }
    };
    report.ok(KUBELET, format!("{at} accepts connections"));
    let deadline = Instant::now() + HANDSHAKE_LIMIT;
    match tls::look(connection, ServerName::IpAddress(at.ip().into()), deadline).await {
        Ok(peer) => {
            certificate(&mut report, config, settings.in_force.as_ref(), &peer);
            (report, vec![("the kubelet's", peer.certificate)])
        }
        Err(error) => {
            report.error(
                CERTIFICATE,
                format!("{at}: {}", chain(&error)),
                "see whether kubelet-addr is the kubelet's serving port (10250), and whether the \
                 kubelet has a serving certificate; its log says why not",
            );
            (report, Vec::new())
        }
    }
}

fn refused_fix(at: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => format!(
            "start the kubelet (`systemctl status kubelet`), or correct kubelet-addr: nobody \
             listens at {at}"
        ),
        _ => format!(
            "correct kubelet-addr: `ip route get {}` says how it is reached",
            at.ip()
        ),
    }
}

/// A warning at most: an API server without `--kubelet-certificate-authority` accepts any.
fn certificate(report: &mut Report, config: &Config, in_force: Option<&InForce>, peer: &Peer) {
    let info = &peer.certificate;
    let now = WallClock::system().now();
    let validity = info.validity_at(now);
    let found = format!(
        "`{}`, issued by `{}`, for {}, until {}: {validity}",
        info.subject,
        info.issuer,
        info.server_names().join(", "),
        utc(info.not_after)
    );
    if !matches!(validity, Validity::Current { .. }) {
        return report.warning(
            CERTIFICATE,
            found,
            "renew it (`serverTLSBootstrap` and `kubectl get csr`, or restart a kubelet that signs \
             its own); kube-apiserver with --kubelet-certificate-authority refuses it",
        );
    }
    let Some(in_force) = in_force else {
        return report.ok(CERTIFICATE, found);
    };
    let name = config
        .registered_kubelet()
        .unwrap_or(config.kubelet_addr.ip());
    let verified = verify_master_chain(
        &peer.chain,
        &ServerName::IpAddress(name.into()),
        &in_force.roots,
        now,
    );
    match verified {
        // That it is a node's is as it should be.
        Ok(()) | Err(TlsFault::PeerIsNode { .. }) => report.ok(CERTIFICATE, found),
        Err(TlsFault::PeerWrongName { .. }) => report.warning(
            CERTIFICATE,
            format!("{found}; not valid for {name}"),
            "have it issued for the address that kube-apiserver dials; else say nothing of \
             `kubelet-certificates: verified` on masters",
        ),
        Err(fault) => report.warning(
            CERTIFICATE,
            format!(
                "{found}; no CA in ca-file vouches for it: {}",
                chain(&fault)
            ),
            "this works as long as kube-apiserver has no --kubelet-certificate-authority; before \
             masters say `kubelet-certificates: verified`, have kubelets' certificates issued by a \
             CA (`serverTLSBootstrap: true`, `kubectl certificate approve`)",
        ),
    }
}

pub(super) const KUBELET: &str = "kubelet";
const CERTIFICATE: &str = "kubelet certificate";

/// It is on the same host.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// A kubelet under load signs slowly.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(8);
