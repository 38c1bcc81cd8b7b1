//! Whether a TCP address could be listened at, and who has it if not.
//!
//! Owns the trial, which never listens and so never takes a connection from anybody, and reading
//! in `/proc` which process a listener belongs to. What is in `/proc` may be hidden from this user
//! or be of another namespace; then there is just no name. Read [`try_address`].

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use proxymux_proto::printable;
use proxymux_transport::{command::Report, telemetry::chain};
use tokio::net::TcpSocket;

use super::PROGRAM;

/// A process by what `/proc` says of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) name: String,
}

/// What stands in the way of a listener, if anything; `key` is the setting with its address.
pub(super) fn try_address(report: &mut Report, topic: &'static str, key: &str, at: SocketAddr) {
    let Err(error) = bind(at) else {
        let found = match at.port() {
            0 => format!("the kernel chooses a port at {}", at.ip()),
            _ => format!("{at} is free"),
        };
        return report.ok(topic, found);
    };
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            let process = listener_at(at);
            let by = match &process {
                Some(Process { pid, name }) => format!("by `{name}`, process {pid}"),
                None => "by a process that is not seen from here".to_owned(),
            };
            let fix = if process.is_some_and(|process| process.name == PROGRAM) {
                format!("give that master's file with --config, or end it, or set another `{key}`")
            } else {
                format!("end that process, or set another `{key}`")
            };
            report.error(topic, format!("{at} is in use, {by}"), fix);
        }
        io::ErrorKind::AddrNotAvailable => report.error(
            topic,
            format!("{} is no address of this host", at.ip()),
            format!(
                "set `{key}` to an address of this host, or to 0.0.0.0:{} for all of them",
                at.port()
            ),
        ),
        io::ErrorKind::PermissionDenied => report.error(
            topic,
            format!("{at} is not allowed for this user: ports below 1024 are root's"),
            format!("set a port from 1024 on in `{key}`, or run the master as root"),
        ),
        _ => report.error(
            topic,
            format!("{at} cannot be listened at: {}", chain(&error)),
            format!("set another `{key}`"),
        ),
    }
}

/// As the master does, but without listening: what is merely bound accepts nothing, and with
/// `SO_REUSEADDR` on both sides is in nobody's way.
fn bind(at: SocketAddr) -> io::Result<()> {
    let socket = match at {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(at)
}

fn listener_at(at: SocketAddr) -> Option<Process> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let mut lines = tables
        .into_iter()
        .filter_map(|table| File::open(table).ok())
        .flat_map(|file| BufReader::new(file).lines().map_while(Result::ok));
    let inode = lines.find_map(|line| match listener(&line)? {
        (listens, inode) if overlap(listens, at) => Some(inode),
        _ => None,
    })?;
    owner(&format!("socket:[{inode}]"))
}

/// The address and inode of a line of `/proc/net/tcp` or `tcp6`, if it is about a listener.
fn listener(line: &str) -> Option<(SocketAddr, u64)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = fields.next()?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?;
    if state != LISTEN {
        return None;
    }
    let (ip, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    Some((SocketAddr::new(address(ip)?, port), inode.parse().ok()?))
}

/// Words of four bytes in network order, printed as numbers of this machine.
fn address(hex: &str) -> Option<IpAddr> {
    let mut bytes = Vec::with_capacity(16);
    for start in (0..hex.len()).step_by(8) {
        let word = u32::from_str_radix(hex.get(start..start + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let four = <[u8; 4]>::try_from(bytes.as_slice());
    let sixteen = <[u8; 16]>::try_from(bytes.as_slice());
    let four = four.map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes)));
    four.or_else(|_| sixteen.map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes))))
        .ok()
}

fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let same = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && same
}

/// The process that has this open, as far as it can be seen.
fn owner(open: &str) -> Option<Process> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let pid: u32 = pids.find(|pid: &u32| {
        let open_files = fs::read_dir(format!("/proc/{pid}/fd"));
        open_files.is_ok_and(|files| {
            let mut links = files
                .flatten()
                .filter_map(|file| fs::read_link(file.path()).ok());
            links.any(|link| link.as_os_str() == open)
        })
    })?;
    let name = name_of(pid)?;
    Some(Process { pid, name })
}

/// What a process calls itself.
pub(super) fn name_of(pid: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(printable(name.trim_end(), MAX_NAME_LEN))
}

/// `TCP_LISTEN` in the kernel's own numbers.
const LISTEN: &str = "0A";

/// The kernel's names of processes are shorter.
const MAX_NAME_LEN: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(at: SocketAddr) -> Report {
        let mut report = Report::default();
        try_address(&mut report, "agents' port", "listen", at);
        report
    }

    #[test]
    fn a_line_of_the_kernels_table_is_read() {
        let listening = "   0: 0100007F:2FDA 00000000:0000 0A 00000000:00000000 00:00000000 \
                         00000000     0        0 27031 1 0000000000000000 100 0 0 10 0";
        let connected = listening.replace(" 0A ", " 01 ");
        let six = listening.replace("0100007F", "00000000000000000000000001000000");
        if cfg!(target_endian = "little") {
            let at = "127.0.0.1:12250".parse().unwrap();
            assert_eq!(listener(listening), Some((at, 27031)));
            let at = "[::1]:12250".parse().unwrap();
            assert_eq!(listener(&six), Some((at, 27031)));
        }
        assert_eq!(listener(&connected), None);
        for broken in [
            "",
            "sl local_address rem_address st",
            "0: 0100007F:2FDA",
            "0: 0100:2FDA 0:0 0A 0 0 0 0 0 1",
            "0: \u{e4}\u{e4}\u{e4}\u{e4}:2FDA 0:0 0A 0 0 0 0 0 1",
            "0: 0100007F:FFFFF 0:0 0A 0 0 0 0 0 1",
        ] {
            assert_eq!(listener(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn a_port_in_use_is_told_with_the_process_that_has_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();

        let report = tried(at);

        let pid = std::process::id();
        let [finding] = report.findings() else {
            panic!("{report:?}");
        };
        assert!(
            finding.found.starts_with(&format!("{at} is in use, by `")),
            "{finding:?}"
        );
        assert!(
            finding.found.ends_with(&format!("process {pid}")),
            "{finding:?}"
        );
        drop(listener);
        assert_eq!(tried(at).worst(), proxymux_transport::command::Level::Ok);
    }

    #[test]
    fn an_address_of_another_host_is_told() {
        let report = tried("192.0.2.77:12250".parse().unwrap());

        let [finding] = report.findings() else {
            panic!("{report:?}");
        };
        assert_eq!(finding.found, "192.0.2.77 is no address of this host");
        assert!(finding.fix.as_ref().unwrap().contains("0.0.0.0:12250"));
    }
}
