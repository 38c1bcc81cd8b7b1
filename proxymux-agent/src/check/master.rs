//! The way to each master: name, route, TCP, TLS, protocol, whether it takes the certificate, and
//! whether the path carries large segments.
//!
//! Owns what each failure means and what to do about it. Leaves the route to `route.rs`; how far
//! one gets without registering is `session/probe.rs`. What only a registration shows is asked of
//! the running agent.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
};

use proxymux_transport::{
    certificate::{CertificateInfo, utc},
    clock::WallClock,
    command::{Report, rtt},
    credentials::check,
    reload::InForce,
    telemetry::{chain, micros},
    tls::{Refusal, TlsFault},
};
use tokio::task::JoinSet;

use super::{
    on_a_thread, route,
    settings::{Settings, Shown},
};
use crate::{
    config::{Config, ServerAddr},
    link::resolve,
    outbound::ConnectError,
    session::{
        EstablishError, LARGE_LOST_FIX,
        probe::{Reached, probe},
    },
};

/// What was found at one entry of `server-addr`, or at one of its addresses.
type Seen = (Report, Masters);

/// What other topics need of the masters.
#[derive(Debug, Default)]
pub(super) struct Masters {
    /// Their certificates.
    pub(super) shown: Vec<Shown>,
    pub(super) addresses: BTreeSet<IpAddr>,
}

/// Goes to every address of every master, all at once.
pub(super) async fn look(settings: &Settings) -> Seen {
    let Some(config) = &settings.config else {
        return Seen::default();
    };
    let mut all = JoinSet::new();
    for (number, server) in config.server_addrs.iter().enumerate() {
        let (config, server) = (config.clone(), server.clone());
        let in_force = settings.in_force.clone();
        all.spawn(async move {
            let seen = entry(&config, in_force.as_ref(), &server).await;
            (number, seen)
        });
    }
    let mut found: Vec<_> = all.join_all().await;
    found.sort_by_key(|(number, _)| *number);
    let mut seen = gather(found.into_iter().map(|(_, seen)| seen));
    if settings.in_force.is_none() {
        seen.0.warning(
            TCP,
            "not tried: there is no certificate, or no CA, to go there with",
            "mend what is said about certificates above, and check again",
        );
    }
    seen
}

async fn entry(config: &Config, in_force: Option<&InForce>, server: &ServerAddr) -> Seen {
    let addresses = match resolve(server).await {
        Ok(addresses) => addresses,
        Err(error) => {
            let mut report = Report::default();
            report.error(
                NAME,
                format!("{server}: cannot resolve: {error}"),
                "correct the host in server-addr, or see that this node's name servers know it \
                 (`getent hosts NAME`)",
            );
            return (report, Masters::default());
        }
    };
    let asked = (config.clone(), addresses.clone());
    let routes = on_a_thread(move || route::look(&asked.0, &asked.1)).await;
    let masters = Masters {
        shown: Vec::new(),
        addresses: addresses.iter().map(SocketAddr::ip).collect(),
    };
    let mut seen: Seen = (routes, masters);
    let Some(in_force) = in_force else {
        return seen;
    };
    let mut all = JoinSet::new();
    for at in addresses {
        let (config, in_force, server) = (config.clone(), in_force.clone(), server.clone());
        all.spawn(async move {
            let (reached, result) = probe(&config, &in_force, &server, at).await;
            let mut report = Report::default();
            tell(&mut report, (&server, at), &reached, result);
            let shown = reached.master.map(|info| ("the master's", info));
            let masters = Masters {
                shown: shown.into_iter().collect(),
                addresses: BTreeSet::new(),
            };
            (at, (report, masters))
        });
    }
    let mut found: Vec<_> = all.join_all().await;
    found.sort_by_key(|(at, _)| *at);
    add(&mut seen, gather(found.into_iter().map(|(_, seen)| seen)));
    seen
}

fn gather(all: impl Iterator<Item = Seen>) -> Seen {
    let mut gathered = Seen::default();
    for seen in all {
        add(&mut gathered, seen);
    }
    gathered
}

fn add(gathered: &mut Seen, (report, masters): Seen) {
    gathered.0.extend(report);
    gathered.1.shown.extend(masters.shown);
    gathered.1.addresses.extend(masters.addresses);
}

fn tell(
    report: &mut Report,
    (server, at): (&ServerAddr, SocketAddr),
    reached: &Reached,
    result: Result<(), EstablishError>,
) {
    if reached.connected {
        report.ok(TCP, format!("{at} ({server}) accepts connections"));
    }
    if let Some(master) = &reached.master {
        tls_stands(report, at, master);
    }
    if let Some((round_trip, largest)) = reached.proven {
        let time = round_trip.map(|time| rtt(micros(time))).unwrap_or_default();
        report.ok(
            ACCEPTS,
            format!("{at} takes this node's certificate; round trip {time}"),
        );
        report.ok(
            PATH,
            format!("{at}: segments of {largest} bytes pass, both ways"),
        );
    }
    if let Err(error) = result {
        failed(report, at, &error);
    }
}

fn tls_stands(report: &mut Report, at: SocketAddr, master: &CertificateInfo) {
    let what = format!("shown by {at}");
    check::dates(report, TLS, &what, master, WallClock::system().now());
    report.ok(ALPN, format!("{at} speaks proxymux/1"));
}

fn failed(report: &mut Report, at: SocketAddr, error: &EstablishError) {
    let found = format!("{at}: {}", chain(error));
    match error {
        EstablishError::Connect(error) => report.error(TCP, found, connect_fix(at, error)),
        EstablishError::Tls(error) => tls_failed(report, found, &error.fault),
        EstablishError::TlsAfterwards(fault) => tls_failed(report, found, fault),
        EstablishError::LargeLost { .. } => report.warning(
            PATH,
            found,
            format!("the agent goes on with small segments by itself; to have large ones: {LARGE_LOST_FIX}"),
        ),
        _ => report.error(
            ACCEPTS,
            found,
            "see why in the master's log, and whether it is draining or out of memory",
        ),
    }
}

fn connect_fix(at: SocketAddr, error: &ConnectError) -> String {
    match error {
        ConnectError::Bind { from, .. } => format!(
            "set bind-addr to an address of this node, or take it out: {from} is none (`ip addr`)"
        ),
        ConnectError::TimedOut(_) => format!(
            "let TCP from this node to {at} pass in every firewall and security list on the way, \
             and see that the master's host is up"
        ),
        ConnectError::Connect(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => format!(
                "start the master there (`ss -ltn 'sport = {}'` on its host), or correct \
                 server-addr",
                at.port()
            ),
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
                format!("see how this node gets there: `ip route get {}`", at.ip())
            }
            _ => format!("see what refuses connections from this node to {at}"),
        },
        ConnectError::Socket(_) => "see the limits of this process and the kernel's log".to_owned(),
    }
}

fn tls_failed(report: &mut Report, found: String, fault: &TlsFault) {
    let (topic, fix) = tls_fix(fault);
    report.error(topic, found, fix);
}

fn tls_fix(fault: &TlsFault) -> (&'static str, String) {
    let (topic, fix) = match fault {
        TlsFault::NotProxymux { .. } | TlsFault::NotHttp1 => (ALPN, OTHER_PROGRAM),
        TlsFault::NotTls
        | TlsFault::TlsVersion
        | TlsFault::NothingInCommon { .. }
        | TlsFault::Protocol { .. } => (TLS, OTHER_PROGRAM),
        TlsFault::PeerUnknownCa { issuer, .. } => {
            return (
                TLS,
                format!("add the certificate of `{issuer}` to this node's ca-file"),
            );
        }
        TlsFault::PeerOtherCaKey { issuer, .. } => {
            return (
                TLS,
                format!(
                    "put the newer CA certificate of `{issuer}` into this node's ca-file, beside \
                     the older"
                ),
            );
        }
        TlsFault::PeerWrongName { presented, .. } => {
            let names = if presented.is_empty() {
                "a name".to_owned()
            } else {
                presented.join(" or ")
            };
            return (
                TLS,
                format!(
                    "set `server-name:` to a name that it has ({names}), or have the master's \
                     certificate issued for the host of server-addr too"
                ),
            );
        }
        TlsFault::PeerCertificateExpired { not_after, .. } => {
            return (
                TLS,
                format!(
                    "renew the master's certificate, which ended at {}; if that is still to come, \
                     set this host's clock",
                    utc(*not_after)
                ),
            );
        }
        TlsFault::PeerCertificateNotYetValid { .. } => (
            TLS,
            "set this host's clock, which is behind; else the master's certificate was issued by \
             a host whose clock is ahead",
        ),
        TlsFault::PeerWrongPurpose { .. } | TlsFault::PeerIsNode { .. } => (
            TLS,
            "give the master a server certificate of its own (extended key usage serverAuth)",
        ),
        TlsFault::PeerCertificateRevoked { .. }
        | TlsFault::PeerCertificateInvalid { .. }
        | TlsFault::PeerCertificateUnreadable { .. }
        | TlsFault::PeerNoCertificate
        | TlsFault::PeerWithoutKey => (TLS, "have the master's certificate issued anew"),
        TlsFault::OurCertificateRefused { refusal } => (ACCEPTS, refusal_fix(*refusal)),
        TlsFault::TimedOut { .. } => (
            TLS,
            "see whether the master hangs or has too many handshakes (`proxymux-master nodes` on \
             its host), and whether large packets are lost on the way",
        ),
        TlsFault::BrokeOff { .. }
        | TlsFault::Closed
        | TlsFault::Reset { .. }
        | TlsFault::Io { .. } => (
            TLS,
            "see why in the master's log; where it has no line about this node, what is there is \
             no proxymux-master, or something on the way ends connections",
        ),
        TlsFault::Internal { .. } => (
            TLS,
            "report it with this line: it is a fault of this program",
        ),
    };
    (topic, fix.to_owned())
}

fn refusal_fix(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Expired => "renew this node's certificate; if it is valid, set the master's clock",
        Refusal::UnknownCa | Refusal::BadSignature => {
            "add the CA of this node's certificate to the client-ca of the master, or use a \
             certificate of a CA that is in it"
        }
        Refusal::WrongPurpose => {
            "use a certificate whose extended key usage holds clientAuth, such as the kubelet's \
             kubelet-client-current.pem"
        }
        Refusal::Revoked | Refusal::Bad => "have this node's certificate issued anew",
        Refusal::Missing | Refusal::Denied | Refusal::Unsaid => {
            "see why in the master's log: it has a line about this node's certificate"
        }
    }
}

pub(super) const TCP: &str = "master tcp";
pub(super) const ACCEPTS: &str = "master accepts";
const NAME: &str = "master name";
const TLS: &str = "master tls";
const ALPN: &str = "master alpn";
const PATH: &str = "path mtu";

const OTHER_PROGRAM: &str = "correct host and port of server-addr: what is there is no \
     proxymux-master of this version";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proxymux_transport::command::Level;

    use super::*;
    use crate::session::Loss;

    fn told(error: EstablishError) -> (&'static str, Level, String, String) {
        let mut report = Report::default();
        failed(&mut report, "192.0.2.10:12250".parse().unwrap(), &error);
        let [finding] = report.findings() else {
            panic!("{report:?}");
        };
        let fix = finding.fix.clone().unwrap_or_default();
        (finding.topic, finding.level, finding.found.clone(), fix)
    }

    #[test]
    fn a_refused_connection_and_one_without_an_answer_have_other_fixes() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let (topic, level, found, fix) =
            told(EstablishError::Connect(ConnectError::Connect(refused)));
        assert_eq!((topic, level), (TCP, Level::Error));
        assert!(found.starts_with("192.0.2.10:12250: "), "{found}");
        assert!(fix.contains("sport = 12250"), "{fix}");

        let silent = ConnectError::TimedOut(Duration::from_secs(3));
        let (_, _, _, fix) = told(EstablishError::Connect(silent));
        assert!(fix.contains("firewall"), "{fix}");
    }

    #[test]
    fn what_the_master_says_of_our_certificate_is_about_being_accepted() {
        let fault = TlsFault::OurCertificateRefused {
            refusal: Refusal::UnknownCa,
        };
        let (topic, level, _, fix) = told(EstablishError::TlsAfterwards(fault));
        assert_eq!((topic, level), (ACCEPTS, Level::Error));
        assert!(fix.contains("client-ca"), "{fix}");
    }

    #[test]
    fn a_wrong_name_tells_which_names_there_are() {
        let (topic, fix) = tls_fix(&TlsFault::PeerWrongName {
            subject: "CN=m".to_owned(),
            expected: "a".to_owned(),
            presented: vec!["b".to_owned(), "c".to_owned()],
        });
        assert_eq!(topic, TLS);
        assert!(fix.contains("(b or c)"), "{fix}");
    }

    #[test]
    fn a_path_that_loses_large_segments_is_a_warning() {
        let lost = EstablishError::LargeLost {
            sent: 8948,
            asked: 8948,
            direction: Loss::ToMaster,
            after: Duration::from_secs(4),
        };
        let (topic, level, found, fix) = told(lost);
        assert_eq!((topic, level), (PATH, Level::Warning));
        assert!(found.contains("8948"), "{found}");
        assert!(fix.contains("MTU"), "{fix}");
    }
}
