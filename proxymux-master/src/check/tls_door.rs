//! An egress selector that leads to a front door on TCP, and the certificates on both sides.
//!
//! Owns the findings on the URL and the files of `tlsConfig`: whether the URL is one of this
//! master's doors, whether each side's certificate would be accepted by the other, and, if a
//! master runs, the trial with kube-apiserver's own certificate. Read [`look`].

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::SystemTime,
};

use proxymux_proto::{Host, TargetAddr};
use proxymux_transport::{
    certificate::CertificateInfo,
    command::Report,
    credentials::{
        Credentials, Roots,
        check::{self, Holder},
        load_roots,
    },
    telemetry::chain,
    tls::{
        FrontDoorPolicy, FrontDoorRefusal, front_door_client_config, verify_agent_chain,
        verify_master_chain,
    },
};
use rustls::pki_types::ServerName;

use super::{
    apiserver,
    asking::Answer,
    certificates::Pair,
    doors,
    egress::{Master, TOPIC},
    pod::Pod,
    selector::{Tcp, TlsFiles},
};

/// A front door on TCP.
#[derive(Debug)]
pub(super) struct TcpDoor {
    /// The setting in which it stands: `front-doors[0]`.
    pub(super) key: String,
    pub(super) listen: SocketAddr,
    pub(super) client_names: Vec<String>,
    pub(super) pair: Pair,
}

/// What kube-apiserver proves itself with, and whom it believes.
#[derive(Debug)]
struct Client {
    credentials: Credentials,
    roots: Roots,
    /// What it wants to find in the door's certificate.
    server_name: ServerName<'static>,
}

/// `cluster` by TCP.
pub(super) async fn look(report: &mut Report, tcp: &Tcp, pod: Option<&Pod>, master: &Master<'_>) {
    let Some(at) = target(report, tcp, master) else {
        return;
    };
    let door = door(report, &at, tcp, pod, master);
    let Some(tls) = &tcp.tls else {
        return report.error(
            TOPIC,
            "`cluster` has an https URL and no `tlsConfig`, with which kube-apiserver does not \
             start",
            "set caBundle, clientCert and clientKey in `tlsConfig`",
        );
    };
    let Some(client) = client(report, tls, &at, pod, master.now) else {
        return;
    };
    let Some(door) = door else {
        return;
    };
    // As kube-apiserver and the master would find out, each of the other.
    let accepted = accepts_door(report, &client, door) & admits_client(report, &client, door);
    if accepted && master.running.status().is_some() {
        ask(report, client, door, master).await;
    }
}

/// The place that the URL names.
fn target(report: &mut Report, tcp: &Tcp, master: &Master<'_>) -> Option<TargetAddr> {
    let url = tcp.url.as_str();
    let port = master
        .tcp
        .first()
        .map_or(DEFAULT_PORT, |door| door.listen.port());
    let fix = format!("set `url: https://HOST:{port}`");
    let Some(rest) = url.strip_prefix("https://") else {
        let found = if url.starts_with("http://") {
            format!("`url: {url}` is without TLS, and the doors on TCP ask for a certificate")
        } else {
            format!("`url: {url}` is no https URL")
        };
        report.error(TOPIC, found, format!("{fix}, with `tlsConfig`"));
        return None;
    };
    let authority = rest.split('/').next().unwrap_or_default();
    match authority.parse() {
        Ok(at) => Some(at),
        Err(error) => {
            report.error(TOPIC, format!("`url: {url}`: {}", chain(&error)), fix);
            None
        }
    }
}

/// The door that the URL leads to, as far as that can be told from here.
fn door<'a>(
    report: &mut Report,
    at: &TargetAddr,
    tcp: &Tcp,
    pod: Option<&Pod>,
    master: &'a Master<'_>,
) -> Option<&'a TcpDoor> {
    let Some(first) = master.tcp.first() else {
        report.error(
            TOPIC,
            format!(
                "`cluster` leads to {}, and this master has no front door on TCP",
                tcp.url
            ),
            "add one to `front-doors`, with listen, cert, key, client-ca and client-names",
        );
        return None;
    };
    if is_loopback(at) && pod.is_some_and(|pod| !pod.host_network) {
        report.error(
            TOPIC,
            format!(
                "{} is in kube-apiserver's own pod, which is not on the host's network",
                tcp.url
            ),
            "set `hostNetwork: true` in its pod, or a URL with this host's address",
        );
        return None;
    }
    if let Some(door) = master.tcp.iter().find(|door| leads_to(at, door.listen)) {
        report.ok(
            TOPIC,
            format!(
                "`cluster` leads to {}, as the front door {}",
                tcp.url, door.listen
            ),
        );
        return Some(door);
    }
    let all: Vec<String> = master
        .tcp
        .iter()
        .map(|door| door.listen.to_string())
        .collect();
    report.warning(
        TOPIC,
        format!(
            "`cluster` leads to {}, and this master's doors on TCP are at {}",
            tcp.url,
            all.join(", ")
        ),
        format!(
            "set the URL to https://{}, unless a Service or load balancer leads from there to here",
            first.listen
        ),
    );
    None
}

fn is_loopback(at: &TargetAddr) -> bool {
    match &at.host {
        Host::Ip(ip) => ip.is_loopback(),
        Host::Name(name) => name.as_str() == "localhost",
    }
}

/// A name is what the cluster's DNS makes of it, so that the port alone counts.
fn leads_to(at: &TargetAddr, listen: SocketAddr) -> bool {
    let same_host = match &at.host {
        Host::Ip(ip) => listen.ip().is_unspecified() || listen.ip() == *ip,
        Host::Name(_) => true,
    };
    same_host && at.port() == listen.port()
}

/// Reads the files of `tlsConfig` on the host.
fn client(
    report: &mut Report,
    tls: &TlsFiles,
    at: &TargetAddr,
    pod: Option<&Pod>,
    now: SystemTime,
) -> Option<Client> {
    let ca = on_host(report, "caBundle", &tls.ca_bundle, pod);
    let cert = on_host(report, "clientCert", &tls.client_cert, pod);
    let key = on_host(report, "clientKey", &tls.client_key, pod);
    let (ca, cert, key) = (ca?, cert?, key?);
    let roots = load_roots(&ca).map_err(|error| check::unusable(report, CLIENT, &error));
    let credentials = Credentials::load(&cert, Some(&key))
        .map_err(|error| check::unusable(report, CLIENT, &error));
    let (Ok(roots), Ok(credentials)) = (roots, credentials) else {
        return None;
    };
    // It comes as a client, as agents do.
    check::pair(report, CLIENT, Holder::Agent, &credentials, now);
    let name = match &at.host {
        _ if !tls.server_name.is_empty() => tls.server_name.clone(),
        Host::Ip(ip) => ip.to_string(),
        Host::Name(name) => name.to_string(),
    };
    let Ok(server_name) = ServerName::try_from(name.clone()) else {
        report.error(
            TOPIC,
            format!("`{name}` is no name that a certificate can have"),
            "set `tlsServerName` to one of the names in the front door's certificate",
        );
        return None;
    };
    Some(Client {
        credentials,
        roots,
        server_name,
    })
}

fn on_host(report: &mut Report, key: &str, path: &str, pod: Option<&Pod>) -> Option<PathBuf> {
    if path.is_empty() {
        report.error(
            TOPIC,
            format!("`tlsConfig` has no `{key}`, without which kube-apiserver cannot connect"),
            format!("set `{key}: PATH` there; deploy/pki/README.md tells how to make the files"),
        );
        return None;
    }
    let path = Path::new("/").join(path);
    match pod {
        Some(pod) => apiserver::on_host(report, TOPIC, pod, &path),
        None => Some(path),
    }
}

/// Whether kube-apiserver accepts the door's certificate. Dates are told of already.
fn accepts_door(report: &mut Report, client: &Client, door: &TcpDoor) -> bool {
    let Some(credentials) = &door.pair.credentials else {
        return false;
    };
    let info = credentials.info();
    let moment = info.not_before;
    let verified = verify_master_chain(
        credentials.chain(),
        &client.server_name,
        &client.roots,
        moment,
    );
    let Err(fault) = verified else {
        report.ok(
            TOPIC,
            format!(
                "kube-apiserver accepts the certificate of {} as that of {}",
                door.listen,
                client.server_name.to_str()
            ),
        );
        return true;
    };
    report.error(
        TOPIC,
        format!(
            "kube-apiserver refuses the certificate of {}: {}",
            door.listen,
            chain(&fault)
        ),
        format!(
            "set `caBundle` to a file with the CA `{}`, and the URL's host, or `tlsServerName`, to \
             a name in the certificate: {}",
            info.issuer,
            info.server_names().join(", ")
        ),
    );
    false
}

/// Whether the door lets kube-apiserver in.
fn admits_client(report: &mut Report, client: &Client, door: &TcpDoor) -> bool {
    let Some(roots) = &door.pair.roots else {
        return false;
    };
    let info = client.credentials.info();
    let moment = info.not_before;
    if let Err(fault) = verify_agent_chain(client.credentials.chain(), roots, moment) {
        report.error(
            CLIENT,
            format!(
                "the front door {} refuses it: {}",
                door.listen,
                chain(&fault)
            ),
            format!(
                "set `client-ca` of {} to a file with the CA `{}`, or have the certificate issued \
                 by a CA in {}",
                door.key,
                info.issuer,
                roots.file().display()
            ),
        );
        return false;
    }
    let Ok(policy) = FrontDoorPolicy::new(door.client_names.iter().cloned()) else {
        // The configuration refuses a list without names.
        return false;
    };
    match policy.admits(info) {
        Ok(name) => {
            report.ok(
                CLIENT,
                format!("the front door {} lets `{name}` in", door.listen),
            );
            true
        }
        Err(refusal) => {
            refused(report, &refusal, info, door);
            false
        }
    }
}

fn refused(
    report: &mut Report,
    refusal: &FrontDoorRefusal,
    info: &CertificateInfo,
    door: &TcpDoor,
) {
    let names = door.client_names.join(" or ");
    let fix = match (refusal, info.common_name()) {
        (FrontDoorRefusal::NotListed { .. }, Some(name)) => format!(
            "add `{name}` to `client-names` of {}, or have the certificate issued for {names}",
            door.key
        ),
        _ => format!("have a certificate issued for kube-apiserver, with the one name {names}"),
    };
    report.error(CLIENT, chain(refusal), fix);
}

/// Comes in as kube-apiserver does.
async fn ask(report: &mut Report, client: Client, door: &TcpDoor, master: &Master<'_>) {
    let tls = front_door_client_config(&client.credentials, &client.roots);
    let answer = doors::ask_over_tls(door.listen, tls, client.server_name, master.config).await;
    match answer {
        Answer::Master => report.ok(
            TOPIC,
            format!(
                "a master answers at {}, asked with kube-apiserver's certificate",
                door.listen
            ),
        ),
        answer => report.error(
            TOPIC,
            format!(
                "asked at {} with kube-apiserver's certificate, no master answers: {answer}",
                door.listen
            ),
            "see the master's log, which names a client that it turns away; restart it if its \
             configuration has changed",
        ),
    }
}

const CLIENT: &str = "kube-apiserver's certificate";

/// In the samples.
const DEFAULT_PORT: u16 = 8131;
