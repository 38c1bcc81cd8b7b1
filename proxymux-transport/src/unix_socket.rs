//! Listening Unix sockets: the front door's, and that for administration.
//!
//! Owns a socket's file: who may put one there, with which permissions, and when it goes.
//! Leaves accepting to callers. Read [`UnixSocket::bind`] first.
//!
//! The file is never open to more users than configured, not even while it is made, and one that
//! belongs to a living process, or is no socket, is never touched. Two daemons that start at the
//! same moment are told apart by a lock on the directory; the lock leaves nothing behind.

use std::{
    fs::{self, DirBuilder, File, Permissions, TryLockError},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::{
    sys::{
        socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket},
        stat::{Mode, fchmod},
    },
    unistd::geteuid,
};
use tokio::{
    net::{UnixListener, UnixStream},
    time::{Instant, sleep, timeout},
};
use tracing::warn;

/// A listening Unix socket. Dropping it removes the socket's file.
#[derive(Debug)]
pub struct UnixSocket {
    /// Dropped before the listener: as long as that lives, the file's inode number cannot have
    /// gone to another file, and no other daemon takes the socket for a dead one.
    file: SocketFile,
    listener: UnixListener,
}

/// Why nobody can listen at that path.
#[derive(Debug, thiserror::Error)]
pub enum UnixBindError {
    /// Another process listens there.
    #[error("socket {} is in use by another process", .path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{} is no socket, expected a socket or nothing; it was left alone", .path.display())]
    NotASocket {
        /// Where.
        path: PathBuf,
    },
    /// There is nothing to put the socket into.
    #[error(
        "directory {} for the socket of {purpose} does not exist; create it: mkdir -p {}",
        .directory.display(), .directory.display()
    )]
    NoDirectory {
        /// What the socket is for.
        purpose: &'static str,
        /// What is missing.
        directory: PathBuf,
    },
    /// Another daemon has been starting for long.
    #[error("directory {} is locked by another process, tried for {tried:?}", .directory.display())]
    Locked {
        /// The socket's directory.
        directory: PathBuf,
        /// For how long it was waited.
        tried: Duration,
    },
    /// The kernel has no room for such a path.
    #[error("socket path {} has {len} bytes, expected at most {MAX_PATH_LEN}", .path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        len: usize,
    },
    /// The kernel refused a step.
    #[error("cannot {action} {}", .path.display())]
    Failed {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl UnixSocket {
    /// Listens at `path`, with these permission bits on the socket's file. `purpose` is for
    /// errors, such as `a front door`.
    ///
    /// The last component of the directory is created if it is missing (`/run` is empty after a
    /// reboot), for this user and its group. A socket that a dead process has left is replaced.
    ///
    /// # Errors
    ///
    /// Says what is in the way, and leaves it there.
    pub async fn bind(
        path: &Path,
        mode: u32,
        purpose: &'static str,
    ) -> Result<Self, UnixBindError> {
        check_length(path)?;
        let directory = directory_of(path);
        make_directory(directory, purpose)?;
        let _lock = lock(directory).await?;
        clear_the_way(path).await?;
        let (file, socket) = make_socket(path, mode)?;
        let listener = UnixListener::from_std(socket.into()).map_err(failed("listen at", path))?;
        Ok(Self { file, listener })
    }

    /// Listens at `path` in the place of whoever does so now, without a moment in which nobody
    /// does: the new socket is made beside the old one and moved over it.
    ///
    /// # Errors
    ///
    /// As [`UnixSocket::bind`], but a socket that is in use is no obstacle.
    pub async fn bind_over(
        path: &Path,
        mode: u32,
        purpose: &'static str,
    ) -> Result<Self, UnixBindError> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(BESIDE);
        let beside = PathBuf::from(beside);
        check_length(&beside)?;
        let directory = directory_of(path);
        make_directory(directory, purpose)?;
        let _lock = lock(directory).await?;
        if fs::symlink_metadata(path).is_ok_and(|found| !found.file_type().is_socket()) {
            let path = path.to_owned();
            return Err(UnixBindError::NotASocket { path });
        }
        // One that is there was left by a process that died in the middle of this.
        clear_the_way(&beside).await?;
        let (mut file, socket) = make_socket(&beside, mode)?;
        fs::rename(&beside, path).map_err(failed("replace the socket", path))?;
        path.clone_into(&mut file.path);
        let listener = UnixListener::from_std(socket.into()).map_err(failed("listen at", path))?;
        Ok(Self { file, listener })
    }

    /// Says that somebody else's socket in this one's place is in order once `replaced` is set.
    pub fn may_be_replaced(&mut self, replaced: Arc<AtomicBool>) {
        self.file.replaced = Some(replaced);
    }

    /// Whether the file is still this socket's.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        self.file.is_still_ours()
    }

    /// The listener.
    #[must_use]
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file.path
    }
}

/// Whether the process at the other end is of our own user, or root.
///
/// A socket's permissions say so too, but not what an administrator has made of them.
#[must_use]
pub fn is_of_our_user(stream: &UnixStream) -> bool {
    let ours = geteuid().as_raw();
    let peer = stream.peer_cred();
    peer.is_ok_and(|peer| peer.uid() == ours || peer.uid() == 0)
}

fn check_length(path: &Path) -> Result<(), UnixBindError> {
    let len = path.as_os_str().len();
    if len > MAX_PATH_LEN {
        return Err(UnixBindError::PathTooLong {
            path: path.to_owned(),
            len,
        });
    }
    Ok(())
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn make_directory(directory: &Path, purpose: &'static str) -> Result<(), UnixBindError> {
    match DirBuilder::new().mode(DIRECTORY_MODE).create(directory) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(UnixBindError::NoDirectory {
            purpose,
            directory: directory.to_owned(),
        }),
        // It may exist all the same, where we may not create anything beside it.
        Err(_) if directory.is_dir() => Ok(()),
        Err(error) => Err(failed("create directory", directory)(error)),
    }
}

/// Keeps other daemons from looking at, removing or making sockets in the directory.
async fn lock(directory: &Path) -> Result<File, UnixBindError> {
    let file = File::open(directory).map_err(failed("open directory", directory))?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(failed("lock", directory)(error)),
            Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_LIMIT => {
                sleep(LOCK_PAUSE).await;
            }
            Err(TryLockError::WouldBlock) => {
                let directory = directory.to_owned();
                return Err(UnixBindError::Locked {
                    directory,
                    tried: LOCK_LIMIT,
                });
            }
        }
    }
}

/// Removes the socket of a dead process, and nothing else.
async fn clear_the_way(path: &Path) -> Result<(), UnixBindError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", path)(error)),
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => {
            return Err(UnixBindError::NotASocket {
                path: path.to_owned(),
            });
        }
    }
    // Only a refusal proves that nobody listens. A full queue, or no answer, is a living process.
    match timeout(PROBE_LIMIT, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("remove the dead socket", path))
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(failed("find out whether anybody listens at", path)(error))
        }
        Ok(Ok(_) | Err(_)) | Err(_) => Err(UnixBindError::InUse {
            path: path.to_owned(),
        }),
    }
}

fn make_socket(path: &Path, mode: u32) -> Result<(SocketFile, OwnedFd), UnixBindError> {
    let socket = bind_for_us_alone(path)?;
    // From here on the file is ours, and goes if anything fails.
    let file = SocketFile::new(path).map_err(failed("look at", path))?;
    listen(&socket, Backlog::MAXCONN).map_err(|errno| failed("listen at", path)(errno.into()))?;
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(failed("set the permissions of", path))?;
    Ok((file, socket))
}

/// A bound socket whose file nobody but this user can connect to.
///
/// The file gets the permissions that the socket has when it is bound (`unix_bind` in the kernel's
/// net/unix/af_unix.c), so it is closed to others from its first moment on. The umask could do the
/// same, but it belongs to the whole process.
fn bind_for_us_alone(path: &Path) -> Result<OwnedFd, UnixBindError> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(|errno| failed("make a socket for", path)(errno.into()))?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)
        .map_err(|errno| failed("restrict the socket for", path)(errno.into()))?;
    let address = UnixAddr::new(path).map_err(|errno| failed("name", path)(errno.into()))?;
    bind(socket.as_raw_fd(), &address).map_err(|errno| match errno {
        nix::Error::EADDRINUSE => UnixBindError::InUse {
            path: path.to_owned(),
        },
        errno => failed("bind", path)(errno.into()),
    })?;
    Ok(socket)
}

/// The file of a listening socket, removed on drop unless another file has taken its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// Set when another daemon has put its socket here with our consent.
    replaced: Option<Arc<AtomicBool>>,
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
            replaced: None,
        })
    }

    fn is_still_ours(&self) -> bool {
        fs::symlink_metadata(&self.path)
            .is_ok_and(|found| found.dev() == self.device && found.ino() == self.inode)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let replaced = self.replaced.as_ref();
        if !self.is_still_ours() {
            if replaced.is_some_and(|replaced| replaced.load(Ordering::Acquire)) {
                return;
            }
            warn!(path = %self.path.display(), "socket was replaced or removed by somebody else");
        } else if let Err(error) = fs::remove_file(&self.path) {
            warn!(path = %self.path.display(), %error, "socket could not be removed");
        }
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> UnixBindError {
    let path = path.to_owned();
    move |source| UnixBindError::Failed {
        action,
        path,
        source,
    }
}

/// `sun_path` has 108 bytes, one of which ends it (unix(7)).
const MAX_PATH_LEN: usize = 107;

/// What the name of a socket ends in until it is moved to its place.
const BESIDE: &str = ".new";

/// Whoever may connect must be able to enter the directory: its owner and group.
const DIRECTORY_MODE: u32 = 0o750;

/// A starting daemon holds the lock no longer than it takes to look at one socket.
const LOCK_LIMIT: Duration = Duration::from_secs(3);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The kernel answers a connect to a Unix socket at once; this only bounds a surprise.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
