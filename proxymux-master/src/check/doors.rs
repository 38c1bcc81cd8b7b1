//! The front doors: whether they can be opened, or who answers at them.
//!
//! Owns the findings on each door, and the question that proves that it is a master who answers.
//! Leaves certificates to `certificates`, the socket's place to `sockets`, and whether
//! kube-apiserver's own file leads here to `egress`. Read [`unix`].

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use proxymux_transport::{command::Report, telemetry::chain};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{
    asking::{Answer, ask},
    ports,
    running::Running,
    sockets::{self, Occupant},
    users::{ENTER, Permissions, User, WRITE},
};
use crate::config::Config;

/// A door on a Unix socket, to which `client`, kube-apiserver's user, must be able to connect.
pub(super) async fn unix(
    report: &mut Report,
    (path, mode): (&Path, u32),
    running: &Running,
    client: &User,
    budget: Duration,
) {
    if running.is_none() {
        sockets::place(report, TOPIC, ("Unix socket", "front-doors"), path).await;
        return;
    }
    let shown = path.display();
    match sockets::occupant(path).await {
        Occupant::Living(stream) => {
            let who = sockets::listener(&stream);
            if answers(report, &shown.to_string(), &who, stream, budget).await {
                admits(report, path, mode, client);
            }
        }
        // A master that could not be asked may be about to start.
        _ if running.status().is_none() => {
            sockets::place(report, TOPIC, ("Unix socket", "front-doors"), path).await;
        }
        Occupant::Nobody | Occupant::Dead => report.error(
            TOPIC,
            format!("nobody listens at {shown}, although a master runs"),
            format!(
                "restart the master, which makes the socket anew, and keep others from cleaning up \
                 in {}",
                sockets::parent(path).display()
            ),
        ),
        Occupant::NotASocket => sockets::not_a_socket(report, TOPIC, "Unix socket", path),
        Occupant::Hidden(error) => sockets::hidden(report, TOPIC, "Unix socket", path, &error),
    }
}

/// A door on TCP. A running master is asked there by `egress`, with kube-apiserver's certificate.
pub(super) fn tcp(report: &mut Report, listen: SocketAddr, running: &Running) {
    match running {
        Running::No => ports::try_address(report, TOPIC, "front-doors", listen),
        Running::Yes { .. } => report.ok(TOPIC, format!("{listen} is held by the master")),
        Running::Unknown => {}
    }
}

async fn answers(
    report: &mut Report,
    at: &str,
    who: &str,
    stream: UnixStream,
    budget: Duration,
) -> bool {
    let answer = ask(stream, budget).await;
    if answer == Answer::Master {
        return true;
    }
    report.error(
        TOPIC,
        format!("{who} listens at {at}, and does not answer as a master does: {answer}"),
        format!(
            "if that is another program, end it, then restart the master; if it is the master, its \
             log tells why it does not answer at {at}"
        ),
    );
    false
}

/// Whether kube-apiserver's user may connect to the socket that is there.
fn admits(report: &mut Report, path: &Path, mode: u32, client: &User) {
    let shown = path.display();
    let directory = sockets::parent(path);
    let (Ok(socket), Ok(above)) = (fs::symlink_metadata(path), fs::metadata(&directory)) else {
        report.error(
            TOPIC,
            format!("{shown} has just gone"),
            "check again; if it is gone for good, restart the master",
        );
        return;
    };
    let (socket, above) = (Permissions::from(&socket), Permissions::from(&above));
    if socket.mode & 0o777 != mode {
        report.warning(
            TOPIC,
            format!(
                "{shown} has mode {:04o}, and `front-doors` says {mode:04o}: somebody has changed \
                 it",
                socket.mode & 0o777
            ),
            format!("`chmod {mode:04o} {shown}`, or set that mode in `front-doors`"),
        );
    }
    judge_client(report, &shown.to_string(), (socket, above), client);
}

fn judge_client(
    report: &mut Report,
    at: &str,
    (socket, directory): (Permissions, Permissions),
    client: &User,
) {
    let uid = client.uid();
    if client.may(WRITE, socket) && client.may(ENTER, directory) {
        return report.ok(
            TOPIC,
            format!("a master answers at {at}, and user {uid}, as kube-apiserver's, may connect"),
        );
    }
    // Its owner alone may be what the operator wants, so that the group is proposed only where
    // the bits let it in.
    let opens = socket.mode & 0o020 != 0 && directory.mode & 0o010 != 0;
    let fix = if opens && socket.gid == directory.gid {
        format!(
            "put `supplementalGroups: [{}]` into the `securityContext` of kube-apiserver's pod",
            socket.gid
        )
    } else {
        format!(
            "set `mode: \"0660\"` for this door, make the directory `chgrp {0}` and mode 0750, and \
             put `supplementalGroups: [{0}]` into the `securityContext` of kube-apiserver's pod",
            socket.gid
        )
    };
    report.error(
        TOPIC,
        format!(
            "kube-apiserver's user {uid} may not connect to {at}, which has mode {:04o}, owner {} \
             and group {}, in a directory with mode {:04o}, owner {} and group {}",
            socket.mode & 0o777,
            socket.uid,
            socket.gid,
            directory.mode,
            directory.uid,
            directory.gid
        ),
        fix,
    );
}

/// Asks at a door on TCP, as a client with this certificate.
pub(super) async fn ask_over_tls(
    listen: SocketAddr,
    tls: Arc<ClientConfig>,
    name: ServerName<'static>,
    config: &Config,
) -> Answer {
    let connected = async {
        let stream = TcpStream::connect(dialled(listen)).await?;
        TlsConnector::from(tls).connect(name, stream).await
    };
    match timeout(HANDSHAKE_LIMIT, connected).await {
        Ok(Ok(stream)) => ask(stream, config.connect_budget).await,
        Ok(Err(error)) => Answer::Nothing(chain(&error)),
        Err(_) => Answer::Nothing(format!("no handshake within {HANDSHAKE_LIMIT:?}")),
    }
}

/// Where a listener is reached from its own host.
fn dialled(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

const TOPIC: &str = "front door";

/// On one host it takes milliseconds.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use proxymux_transport::command::Level;

    use super::*;
    use crate::check::pod::RunAs;

    fn judged(socket: (u32, u32, u32), directory: (u32, u32, u32), run_as: &RunAs) -> Report {
        let permissions = |(uid, gid, mode)| Permissions { uid, gid, mode };
        let mut report = Report::default();
        let both = (permissions(socket), permissions(directory));
        judge_client(&mut report, "/s", both, &User::of_pod(run_as));
        report
    }

    fn run_as(user: u64, more_groups: &[u64]) -> RunAs {
        RunAs {
            user: Some(user),
            group: None,
            more_groups: more_groups.to_vec(),
        }
    }

    #[test]
    fn kube_apiserver_that_is_not_root_needs_the_group() {
        let (socket, directory) = ((5, 7, 0o660), (5, 7, 0o750));

        let report = judged(socket, directory, &run_as(9, &[]));

        let finding = report.findings().first().unwrap();
        assert_eq!(finding.level, Level::Error);
        let fix = finding.fix.as_ref().unwrap();
        assert!(fix.starts_with("put `supplementalGroups: [7]`"), "{fix}");
        for (what, run_as) in [
            ("as advised", run_as(9, &[7])),
            ("as root", RunAs::default()),
            ("as the socket's owner", run_as(5, &[])),
        ] {
            let report = judged(socket, directory, &run_as);
            assert_eq!(report.worst(), Level::Ok, "{what}: {report:?}");
        }
    }

    #[test]
    fn bits_that_let_no_group_in_are_told() {
        for (socket, directory) in [
            ((5, 7, 0o600), (5, 7, 0o750)),
            ((5, 7, 0o660), (5, 7, 0o700)),
            ((5, 7, 0o660), (0, 8, 0o750)),
        ] {
            let report = judged(socket, directory, &run_as(9, &[7]));
            let fix = report.findings().first().unwrap().fix.clone().unwrap();
            assert!(fix.contains("chgrp 7"), "{socket:?} {directory:?}: {fix}");
            let advised = judged((5, 7, 0o660), (directory.0, 7, 0o750), &run_as(9, &[7]));
            assert_eq!(advised.worst(), Level::Ok);
        }
    }

    #[test]
    fn a_listener_at_every_address_is_dialled_on_loopback() {
        for (listen, expected) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("192.0.2.1:1", "192.0.2.1:1"),
        ] {
            assert_eq!(dialled(listen.parse().unwrap()), expected.parse().unwrap());
        }
    }
}
