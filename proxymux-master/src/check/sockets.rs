//! The place of a Unix socket: its directory, and what is at its path now.
//!
//! Owns the findings on both, for front doors, the admin address and the socket of take-overs.
//! Looks and connects, and never removes or makes anything. Leaves to `doors` whether who listens
//! there is a master. Read [`place`] first.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use proxymux_transport::{command::Report, telemetry::chain};
use tokio::{net::UnixStream, time::timeout};

use super::{
    ports,
    running::pid_of,
    users::{ENTER, Permissions, STICKY, User, WRITE},
};

/// What is at a socket's path.
#[derive(Debug)]
pub(super) enum Occupant {
    /// Nothing.
    Nobody,
    /// A socket at which nobody listens any more.
    Dead,
    /// Somebody listens.
    Living(UnixStream),
    /// No socket.
    NotASocket,
    /// It cannot be told.
    Hidden(io::Error),
}

/// Looks at what is there, as a master does before it takes the place.
pub(super) async fn occupant(path: &Path) -> Occupant {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Occupant::Nobody,
        Err(error) => return Occupant::Hidden(error),
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return Occupant::NotASocket,
    }
    match timeout(CONNECT_LIMIT, UnixStream::connect(path)).await {
        Ok(Ok(stream)) => Occupant::Living(stream),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Occupant::Dead,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Occupant::Nobody,
        Ok(Err(error)) => Occupant::Hidden(error),
        Err(_) => Occupant::Hidden(io::Error::new(
            io::ErrorKind::TimedOut,
            "its queue of connections is full",
        )),
    }
}

/// Whether a master that starts could have its socket at `path`, which `key` sets. `what` the
/// socket is goes in front of what was found.
pub(super) async fn place(
    report: &mut Report,
    topic: &'static str,
    (what, key): (&str, &str),
    path: &Path,
) {
    let shown = path.display();
    let user = User::ours();
    if !directory(report, topic, path, &user) {
        return;
    }
    match occupant(path).await {
        Occupant::Nobody => report.ok(topic, format!("{what}: {shown} can be made")),
        Occupant::Dead if may_remove(path, &user) => report.warning(
            topic,
            format!("{what}: {shown} was left by a master that died, and refuses everybody"),
            format!("start a master, which replaces it, or `rm {shown}`"),
        ),
        Occupant::Dead => report.error(
            topic,
            format!(
                "{what}: {shown} was left by a master of another user, and user {} may not remove \
                 it",
                user.uid()
            ),
            format!("`rm {shown}` as root"),
        ),
        Occupant::Living(stream) => report.error(
            topic,
            format!("{what}: {} listens at {shown}", listener(&stream)),
            format!(
                "end it, or set another path in `{key}`; if it is a master, give its file with \
                 --config"
            ),
        ),
        Occupant::NotASocket => not_a_socket(report, topic, what, path),
        Occupant::Hidden(error) => hidden(report, topic, what, path, &error),
    }
}

/// The directory of a socket, and what may be wrong with it; false if no socket can be made there.
pub(super) fn directory(
    report: &mut Report,
    topic: &'static str,
    socket: &Path,
    user: &User,
) -> bool {
    let directory = parent(socket);
    let shown = directory.display();
    let metadata = match fs::metadata(&directory) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return missing_directory(report, topic, &directory, user);
        }
        Err(error) => {
            let found = format!("directory {shown} cannot be looked at: {}", chain(&error));
            report.error(topic, found, "run this check as root");
            return false;
        }
    };
    if !metadata.is_dir() {
        report.error(
            topic,
            format!("{shown} is no directory"),
            format!("`mv {shown} {shown}.old && mkdir {shown}`"),
        );
        return false;
    }
    let permissions = Permissions::from(&metadata);
    if permissions.mode & 0o002 != 0 && permissions.mode & STICKY == 0 {
        report.warning(
            topic,
            format!(
                "directory {shown} has mode {:04o}: every user of this host can put a socket of \
                 his own in the place of the master's",
                permissions.mode
            ),
            format!("`chmod o-w {shown}`"),
        );
    }
    if !user.may(WRITE | ENTER, permissions) {
        report.error(
            topic,
            format!(
                "user {} may make no socket in {shown}, which has mode {:04o}, owner {} and group \
                 {}",
                user.uid(),
                permissions.mode,
                permissions.uid,
                permissions.gid
            ),
            format!(
                "`chown {} {shown}`, or run the master as user {}",
                user.uid(),
                permissions.uid
            ),
        );
        return false;
    }
    true
}

/// A master makes the last part of the path, and no more.
fn missing_directory(
    report: &mut Report,
    topic: &'static str,
    directory: &Path,
    user: &User,
) -> bool {
    let shown = directory.display();
    let above = parent(directory);
    let made = fs::metadata(&above).is_ok_and(|metadata| {
        metadata.is_dir() && user.may(WRITE | ENTER, Permissions::from(&metadata))
    });
    if made {
        report.ok(
            topic,
            format!("directory {shown} does not exist, and is made at the start"),
        );
    } else {
        report.error(
            topic,
            format!(
                "directory {shown} does not exist, and user {} cannot make it",
                user.uid()
            ),
            format!("`install -d -m 0750 -o {} {shown}`", user.uid()),
        );
    }
    made
}

pub(super) fn not_a_socket(report: &mut Report, topic: &'static str, what: &str, path: &Path) {
    let shown = path.display();
    report.error(
        topic,
        format!("{what}: {shown} is no socket, and a master leaves alone what it has not made"),
        format!("`mv {shown} {shown}.old`"),
    );
}

pub(super) fn hidden(
    report: &mut Report,
    topic: &'static str,
    what: &str,
    path: &Path,
    error: &io::Error,
) {
    report.error(
        topic,
        format!(
            "{what}: {} cannot be connected to: {}",
            path.display(),
            chain(error)
        ),
        "run this check as root; if that does not help, see what is there",
    );
}

/// Who listens at the other end, in words.
pub(super) fn listener(stream: &UnixStream) -> String {
    let Some(pid) = pid_of(stream) else {
        return "a process that is not seen from here".to_owned();
    };
    match ports::name_of(pid) {
        Some(name) => format!("`{name}`, process {pid},"),
        None => format!("process {pid}"),
    }
}

fn may_remove(path: &Path, user: &User) -> bool {
    let file = fs::symlink_metadata(path);
    let directory = fs::metadata(parent(path));
    match (file, directory) {
        (Ok(file), Ok(directory)) => user.may_remove((&file).into(), (&directory).into()),
        _ => false,
    }
}

/// The directory that a path is in.
pub(super) fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// The kernel answers at once, unless the queue is full.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
