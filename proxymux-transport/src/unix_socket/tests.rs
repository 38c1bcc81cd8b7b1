//! The socket's file: its mode, what may be in its place, and two daemons at once.
//!
//! Every test has a directory of its own.

use std::os::unix::{fs::symlink, net::UnixListener as StdListener};

use tempfile::TempDir;

use super::*;

fn mode_of(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A directory, and a socket's path in it.
fn place() -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("egress.sock");
    (directory, path)
}

async fn bind_at(path: &Path, mode: u32) -> Result<UnixSocket, UnixBindError> {
    UnixSocket::bind(path, mode, "a test").await
}

async fn bind_error(path: &Path) -> String {
    bind_at(path, 0o660).await.unwrap_err().to_string()
}

#[tokio::test]
async fn the_file_has_the_mode_asked_for_and_goes_with_the_door() {
    for mode in [0o600, 0o660, 0o777] {
        let (_directory, path) = place();
        let door = bind_at(&path, mode).await.unwrap();
        assert_eq!(mode_of(&path), mode);
        drop(door);
        assert!(!path.exists());
    }
}

#[tokio::test]
async fn the_file_is_closed_to_others_from_the_moment_it_exists() {
    let (_directory, path) = place();
    let _socket = bind_for_us_alone(&path).unwrap();
    assert_eq!(mode_of(&path) & 0o077, 0, "mode {:o}", mode_of(&path));
}

#[tokio::test]
async fn the_socket_of_a_dead_process_is_replaced() {
    let (_directory, path) = place();
    drop(StdListener::bind(&path).unwrap());
    assert!(path.exists(), "the standard library leaves the file");

    let door = bind_at(&path, 0o660).await.unwrap();

    UnixStream::connect(&path).await.unwrap();
    door.listener.accept().await.unwrap();
}

#[tokio::test]
async fn the_socket_of_a_living_process_is_left_alone() {
    let (_directory, path) = place();
    let living = StdListener::bind(&path).unwrap();
    let expected = format!("socket {} is in use by another process", path.display());

    assert_eq!(bind_error(&path).await, expected);

    living.set_nonblocking(true).unwrap();
    living.accept().expect("the probe arrived here");
    UnixStream::connect(&path).await.unwrap();
}

#[tokio::test]
async fn a_living_process_that_does_not_accept_is_not_taken_for_a_dead_one() {
    let (_directory, path) = place();
    let flags = SockFlag::SOCK_CLOEXEC;
    let full = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
    bind(full.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    listen(&full, Backlog::new(0).unwrap()).unwrap();
    let _waiting = UnixStream::connect(&path).await.unwrap();

    assert!(
        bind_error(&path)
            .await
            .ends_with("is in use by another process")
    );
    assert!(path.exists());
}

#[tokio::test]
async fn what_is_no_socket_is_never_touched() {
    let (directory, path) = place();
    fs::write(&path, "precious").unwrap();
    let expected = format!(
        "{} is no socket, expected a socket or nothing; it was left alone",
        path.display()
    );
    assert_eq!(bind_error(&path).await, expected);
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");

    // Not even if it leads to a dead socket.
    let (dead, link) = (directory.path().join("dead"), directory.path().join("link"));
    drop(StdListener::bind(&dead).unwrap());
    symlink(&dead, &link).unwrap();
    assert!(bind_error(&link).await.contains("is no socket"));
    assert!(dead.exists());
}

#[tokio::test]
async fn the_last_directory_is_made_and_no_others() {
    let (directory, _) = place();
    let path = directory.path().join("run").join("egress.sock");
    let _door = bind_at(&path, 0o660).await.unwrap();
    assert_eq!(mode_of(path.parent().unwrap()) & !0o750, 0);
    assert!(path.exists());

    let deep = directory.path().join("a").join("b").join("egress.sock");
    let parent = deep.parent().unwrap().display();
    assert_eq!(
        bind_error(&deep).await,
        format!(
            "directory {parent} for the socket of a test does not exist; create it: \
             mkdir -p {parent}"
        )
    );
}

#[tokio::test]
async fn a_path_that_no_socket_can_have_is_refused_with_its_length() {
    let path = Path::new("/run").join("x".repeat(110));
    assert!(
        bind_error(&path)
            .await
            .ends_with("has 115 bytes, expected at most 107")
    );
}

#[tokio::test]
async fn a_file_that_took_the_sockets_place_is_not_removed() {
    let (_directory, path) = place();
    let door = bind_at(&path, 0o660).await.unwrap();
    fs::remove_file(&path).unwrap();
    let _other = StdListener::bind(&path).unwrap();
    drop(door);
    assert!(path.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_daemons_that_start_together_one_has_the_socket() {
    for _ in 0..20 {
        let (_directory, path) = place();
        drop(StdListener::bind(&path).unwrap());
        let starts: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                tokio::spawn(async move { bind_at(&path, 0o660).await })
            })
            .collect();
        let mut doors = Vec::new();
        for start in starts {
            match start.await.unwrap() {
                Ok(door) => doors.push(door),
                Err(error) => assert!(matches!(error, UnixBindError::InUse { .. }), "{error}"),
            }
        }
        assert_eq!(doors.len(), 1);
        assert!(doors.iter().all(|door| door.file.is_still_ours()));
    }
}

#[tokio::test]
async fn a_directory_that_stays_locked_is_an_error_that_names_it() {
    let (directory, path) = place();
    let held = File::open(directory.path()).unwrap();
    held.lock().unwrap();
    tokio::time::pause();
    let expected = format!(
        "directory {} is locked by another process, tried for 3s",
        directory.path().display()
    );
    assert_eq!(bind_error(&path).await, expected);
}

#[tokio::test]
async fn a_socket_takes_the_place_of_one_in_use_and_there_is_always_one() {
    let (directory, path) = place();
    let mut old = UnixSocket::bind(&path, 0o660, "a test").await.unwrap();
    let replaced = Arc::new(AtomicBool::new(false));
    old.may_be_replaced(Arc::clone(&replaced));
    let before = UnixStream::connect(&path).await.unwrap();

    let new = UnixSocket::bind_over(&path, 0o600, "a test").await.unwrap();
    replaced.store(true, Ordering::Release);
    assert!(new.is_in_place() && !old.is_in_place());

    let _after = UnixStream::connect(&path).await.unwrap();
    new.listener().accept().await.unwrap();
    old.listener()
        .accept()
        .await
        .expect("who came before is served by the old one");
    assert_eq!((new.path(), mode_of(&path)), (path.as_path(), 0o600));
    let names: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(names.len(), 1, "nothing is left behind: {names:?}");
    drop((old, before));
    assert!(path.exists(), "the old one removes only its own file");
    drop(new);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_socket_is_put_where_none_is_and_over_what_a_dead_one_left() {
    let (_directory, path) = place();
    let beside = path.with_extension("sock.new");
    drop(StdListener::bind(&beside).unwrap());
    assert!(beside.exists());

    let _socket = UnixSocket::bind_over(&path, 0o660, "a test").await.unwrap();

    UnixStream::connect(&path).await.unwrap();
    assert!(!beside.exists());
}

#[tokio::test]
async fn what_is_no_socket_is_not_replaced() {
    let (_directory, path) = place();
    fs::write(&path, "precious").unwrap();

    let error = UnixSocket::bind_over(&path, 0o660, "a test")
        .await
        .unwrap_err();

    assert!(matches!(error, UnixBindError::NotASocket { .. }), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}
