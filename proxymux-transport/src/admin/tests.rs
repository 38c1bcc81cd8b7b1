//! The admin address as its clients see it, good ones and bad ones.
//!
//! Every test has an address of its own: a socket in a directory, or a port of the kernel's.

use std::{
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::{Instant, sleep, timeout},
};

use super::*;

#[derive(Debug, Default)]
struct Fake {
    reasons: Mutex<Vec<String>>,
    huge: AtomicBool,
}

impl Answers for Fake {
    fn unready(&self) -> Vec<String> {
        self.reasons.lock().unwrap().clone()
    }

    fn metrics(&self) -> String {
        let lines = if self.huge.load(Ordering::Relaxed) {
            1_000_000
        } else {
            1
        };
        "x_total 1\n".repeat(lines)
    }

    fn status(&self) -> serde_json::Value {
        json!({ "node": "n" })
    }

    fn other(&self, path: &str, query: &str) -> Option<Result<serde_json::Value, String>> {
        match (path, query) {
            ("/own", "nonsense") => Some(Err("that makes no sense".to_owned())),
            ("/own", query) => Some(Ok(json!({ "asked": query }))),
            _ => None,
        }
    }
}

struct Running {
    at: AdminAddr,
    fake: Arc<Fake>,
    _admin: Admin,
    _dir: TempDir,
}

fn socket(dir: &TempDir) -> PathBuf {
    dir.path().join("admin.sock")
}

async fn start_unix() -> Running {
    let dir = TempDir::new().unwrap();
    let at = AdminAddr::Unix(socket(&dir));
    start(at, dir).await
}

async fn start_tcp() -> Running {
    // Another process may take the port in between, which the answers would show.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = AdminAddr::Tcp(free.local_addr().unwrap());
    drop(free);
    start(at, TempDir::new().unwrap()).await
}

async fn start(at: AdminAddr, dir: TempDir) -> Running {
    let fake = Arc::<Fake>::default();
    let admin = Admin::start(at.clone(), Arc::clone(&fake) as Arc<dyn Answers>).unwrap();
    let running = Running {
        at,
        fake,
        _admin: admin,
        _dir: dir,
    };
    running.until_answered().await;
    running
}

impl Running {
    async fn until_answered(&self) {
        let began = Instant::now();
        while fetch(&self.at, "x", "/healthz").await.is_err() {
            assert!(began.elapsed() < SOON, "no admin address at {}", self.at);
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn get(&self, path: &'static str) -> (u16, String) {
        let reply = fetch(&self.at, "x", path).await.unwrap();
        (reply.status, reply.body)
    }

    /// Sends bytes and reads to the end.
    async fn raw(&self, request: &[u8]) -> String {
        let mut answer = Vec::new();
        let exchange = async {
            match &self.at {
                AdminAddr::Unix(path) => {
                    let mut client = UnixStream::connect(path).await.unwrap();
                    client.write_all(request).await?;
                    client.read_to_end(&mut answer).await
                }
                AdminAddr::Tcp(at) => {
                    let mut client = TcpStream::connect(at).await.unwrap();
                    client.write_all(request).await?;
                    client.read_to_end(&mut answer).await
                }
            }
        };
        // A connection that is closed with bytes unread may end in a reset.
        let _ = timeout(SOON, exchange).await.expect("it is closed");
        String::from_utf8_lossy(&answer).into_owned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_path_answers_at_a_socket_and_at_a_port() {
    for running in [start_unix().await, start_tcp().await] {
        assert_eq!(running.get("/healthz").await, (200, "alive\n".to_owned()));
        assert_eq!(running.get("/readyz").await, (200, "ready\n".to_owned()));
        assert_eq!(
            running.get("/metrics").await,
            (200, "x_total 1\n".to_owned())
        );
        let status = (200, "{\"node\":\"n\"}\n".to_owned());
        assert_eq!(running.get("/status").await, status);
        let (code, text) = running.get("/").await;
        assert_eq!(code, 404);
        assert!(text.contains("/metrics"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_daemon_answers_at_paths_of_its_own_and_refuses_what_makes_no_sense() {
    let running = start_unix().await;
    let asked = (200, "{\"asked\":\"src=::1\"}\n".to_owned());
    assert_eq!(running.get("/own?src=::1").await, asked);
    let refused = (400, "that makes no sense\n".to_owned());
    assert_eq!(running.get("/own?nonsense").await, refused);
    assert_eq!(running.get("/owner").await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn reasons_for_not_being_ready_are_lines() {
    let running = start_unix().await;
    *running.fake.reasons.lock().unwrap() = vec!["no session".to_owned(), "draining".to_owned()];
    let expected = (503, "no session\ndraining\n".to_owned());
    assert_eq!(running.get("/readyz").await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn metrics_carry_the_content_type_of_prometheus() {
    let running = start_unix().await;
    let answer = running
        .raw(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        .await;
    let expected = "content-type: text/plain; version=0.0.4; charset=utf-8\r\n";
    assert!(answer.contains(expected), "{answer}");
    let head = running
        .raw(b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        .await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(!head.contains("x_total"), "{head}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nothing_but_reading_is_allowed() {
    for running in [start_unix().await, start_tcp().await] {
        for method in ["POST", "PUT", "DELETE", "CONNECT"] {
            let request = format!("{method} /status HTTP/1.1\r\nHost: localhost\r\n\r\n");
            let answer = running.raw(request.as_bytes()).await;
            // Only at the socket are there orders at all, and this is none.
            let code = match (&running.at, method) {
                (AdminAddr::Unix(_), "POST") => "404",
                (_, "CONNECT") => "40",
                _ => "405",
            };
            let refused = answer.starts_with(&format!("HTTP/1.1 {code}"));
            assert!(refused, "{method}: {answer}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_page_from_elsewhere_whose_name_leads_here_gets_nothing() {
    let running = start_tcp().await;
    let with_host = |host: &str| format!("GET /status HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let answer = running
        .raw(with_host("evil.example:12252").as_bytes())
        .await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    for host in [
        "localhost",
        "LOCALHOST:1",
        "127.0.0.1",
        "127.0.0.1:12252",
        "[::1]",
        "[::1]:9",
    ] {
        let answer = running.raw(with_host(host).as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{host}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn garbage_is_answered_or_closed_and_the_next_client_is_served() {
    let running = start_unix().await;
    let long = [b"GET /".as_slice(), &[b'x'; 100_000], b" HTTP/1.1\r\n\r\n"].concat();
    for garbage in [
        b"\0\x16\x03\x01\x02\0\r\n\r\n".as_slice(),
        b"GET / HTTP/9.9\r\n\r\n",
        b"CONNECT 10.0.10.10:10250 HTTP/1.1\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
        &long,
    ] {
        let answer = running.raw(garbage).await;
        assert!(!answer.contains(" 200 "), "{answer}");
        assert_eq!(running.get("/readyz").await.0, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn clients_that_dawdle_lose_their_places_to_others() {
    let running = start_unix().await;
    let AdminAddr::Unix(path) = &running.at else {
        unreachable!("it is a socket");
    };
    running.fake.huge.store(true, Ordering::Relaxed);
    let mut dawdling = Vec::new();
    for number in 0..24 {
        let mut client = UnixStream::connect(path).await.unwrap();
        let request: &[u8] = match number % 2 {
            // Never complete.
            0 => b"GET /met",
            // Complete, and the answer is not read.
            _ => b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
        };
        client.write_all(request).await.unwrap();
        dawdling.push(client);
    }

    let reply = timeout(Duration::from_secs(60), async {
        loop {
            match fetch(&running.at, "x", "/readyz").await {
                Ok(reply) => return reply,
                Err(FetchError::TimedOut { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    assert_eq!(reply.await.expect("their places come back").status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_socket_is_for_its_owner_alone_and_goes_with_the_daemon() {
    use std::os::unix::fs::PermissionsExt;
    let Running {
        at, _admin, _dir, ..
    } = start_unix().await;
    let path = socket(&_dir);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);

    drop(_admin);

    assert!(!path.exists());
    let error = fetch(&at, "proxymux-x", "/status").await.unwrap_err();
    let expected = format!(
        "nobody answers at unix:{}; is proxymux-x running, and is this its `admin` address?",
        path.display()
    );
    assert_eq!(error.to_string(), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_address_that_is_taken_is_had_as_soon_as_it_is_free() {
    let first = start_unix().await;
    let fake = Arc::<Fake>::default();
    *fake.reasons.lock().unwrap() = vec!["second".to_owned()];
    let _second = Admin::start(first.at.clone(), fake).unwrap();
    assert_eq!(first.get("/readyz").await.0, 200);
    let Running {
        at, _admin, _dir, ..
    } = first;

    drop(_admin);

    let began = Instant::now();
    loop {
        if let Ok(reply) = fetch(&at, "x", "/readyz").await {
            assert_eq!(reply.body, "second\n");
            return;
        }
        assert!(began.elapsed() < SOON, "the second never got it");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_runtime_that_runs_nothing_is_not_alive() {
    // Nothing is run but this test, which holds its only thread.
    let running = {
        let dir = TempDir::new().unwrap();
        let at = AdminAddr::Unix(socket(&dir));
        let admin = Admin::start(at.clone(), Arc::<Fake>::default()).unwrap();
        (at, admin, dir)
    };
    let asked = thread::spawn({
        let at = running.0.clone();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                loop {
                    match fetch(&at, "x", "/healthz").await {
                        Ok(reply) => return reply,
                        Err(_) => sleep(Duration::from_millis(10)).await,
                    }
                }
            })
        }
    });
    let reply = asked.join().unwrap();
    assert_eq!(reply.status, 503);
    assert_eq!(reply.body, "no task was run within 2 s\n");
}

const SOON: Duration = Duration::from_secs(20);
