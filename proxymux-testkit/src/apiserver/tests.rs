//! The client against a front door that says what each test wants it to say.

use std::{net::Ipv4Addr, path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, UnixListener},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::{
    far_end::{Closer, FarEnd, Script, drive},
    kubelet::{Kubelet, KubeletConfig},
    pki::Pki,
};

const LIMIT: Duration = Duration::from_secs(10);
const TARGET: &str = "10.0.10.10:10250";
const REQUEST: &[u8] = b"CONNECT 10.0.10.10:10250 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";

/// A Unix socket that takes one connection, reads as much as a request has, answers and closes.
fn door_that_says(
    dir: &Path,
    answer: &'static [u8],
) -> (ApiServer, tokio::task::JoinHandle<Vec<u8>>) {
    let path = dir.join("egress.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; REQUEST.len()];
        stream.read_exact(&mut request).await.unwrap();
        stream.write_all(answer).await.unwrap();
        stream.shutdown().await.unwrap();
        // Whatever more the client says belongs to the request too.
        stream.read_to_end(&mut request).await.unwrap();
        request
    });
    (ApiServer::new(FrontDoor::Unix(path)).unwrap(), task)
}

async fn refusal(answer: &'static [u8]) -> (ConnectError, String) {
    let dir = tempfile::tempdir().unwrap();
    let (apiserver, door) = door_that_says(dir.path(), answer);
    let error = apiserver.connect(TARGET).await.unwrap_err();
    assert_eq!(door.await.unwrap(), REQUEST);
    (error, dir.path().join("egress.sock").display().to_string())
}

/// A proxy that works: it dials whatever it is asked for, over TLS if it is given a certificate.
async fn working_door(tls: Option<TlsAcceptor>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            match tls.clone() {
                Some(tls) => {
                    tokio::spawn(async move {
                        if let Ok(stream) = tls.accept(stream).await {
                            proxy(stream).await;
                        }
                    });
                }
                None => drop(tokio::spawn(proxy(stream))),
            }
        }
    });
    address
}

async fn proxy(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => request.push(byte),
            Err(_) => return,
        }
    }
    let request = String::from_utf8(request).unwrap();
    let target = request.split(' ').nth(1).unwrap();
    let mut target = TcpStream::connect(target).await.unwrap();
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    let _ = copy_bidirectional(&mut stream, &mut target).await;
}

/// A working door over TCP with mTLS, and the API server that is let in.
async fn mtls_door(pki: &Pki) -> FrontDoor {
    let master = pki.master(&["127.0.0.1"]).unwrap();
    let config = tls::server_config(&master, &pki.ca_file()).unwrap();
    FrontDoor::Tcp {
        address: working_door(Some(TlsAcceptor::from(Arc::new(config)))).await,
        server_name: "127.0.0.1".to_owned(),
        ca: pki.ca_file(),
        client: Some(pki.apiserver_egress_client().unwrap()),
    }
}

#[tokio::test]
async fn the_request_is_exactly_that_of_kube_apiserver() {
    let dir = tempfile::tempdir().unwrap();
    let (apiserver, door) = door_that_says(dir.path(), b"HTTP/1.1 200 OK\r\n\r\n");
    let tunnel = apiserver.connect(TARGET).await.unwrap();
    drop(tunnel);
    assert_eq!(door.await.unwrap(), REQUEST);
}

#[tokio::test]
async fn a_refusal_reads_as_in_kubectl_and_the_body_is_dropped() {
    let (error, proxy) = refusal(
        b"HTTP/1.1 503 node 10.0.10.10 has no session; last seen 42s ago\r\n\
          Content-Length: 7\r\nConnection: close\r\n\r\nunread!",
    )
    .await;
    assert_eq!(error.code(), Some(503));
    assert_eq!(
        error.to_string(),
        format!(
            "proxy error from {proxy} while dialing 10.0.10.10:10250, code 503: \
             503 node 10.0.10.10 has no session; last seen 42s ago"
        )
    );
}

#[tokio::test]
async fn only_200_is_success() {
    let (error, _) = refusal(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(error.code(), Some(204));
}

#[tokio::test]
async fn a_byte_behind_the_200_is_an_error() {
    let (error, proxy) = refusal(b"HTTP/1.1 200 OK\r\n\r\n\x16").await;
    assert!(
        matches!(error, ConnectError::Buffered { count: 1, .. }),
        "{error}"
    );
    let text = format!("unexpected 1 bytes of buffered data from CONNECT proxy {proxy:?}");
    assert_eq!(error.to_string(), text);
}

#[tokio::test]
async fn no_answer_at_all_is_an_error_with_its_cause() {
    let (error, proxy) = refusal(b"").await;
    let text = format!("reading HTTP response from CONNECT to {TARGET} via proxy {proxy} failed");
    assert_eq!(error.to_string(), text);
    let cause = std::error::Error::source(&error).unwrap();
    assert_eq!(cause.to_string(), "unexpected EOF");
}

#[tokio::test]
async fn a_door_that_is_not_there_is_an_error_that_names_it() {
    let apiserver = ApiServer::new(FrontDoor::Unix("/nowhere/egress.sock".into())).unwrap();
    let error = apiserver.connect(TARGET).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "dialing proxy \"/nowhere/egress.sock\" failed"
    );
}

#[tokio::test]
async fn it_waits_for_ever_like_the_real_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("egress.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let apiserver = ApiServer::new(FrontDoor::Unix(path)).unwrap();
    let connect = timeout(Duration::from_millis(200), apiserver.connect(TARGET)).await;
    assert!(connect.is_err(), "{connect:?}");
}

#[tokio::test]
async fn a_kubelet_is_reached_through_mtls_and_the_tunnel() {
    let pki = Pki::temporary().unwrap();
    let serving = pki
        .kubelet_serving("n", &[Ipv4Addr::LOCALHOST.into()])
        .unwrap();
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let config = KubeletConfig::new(listen, serving, pki.ca_file());
    let kubelet = Kubelet::start(config).await.unwrap();
    let client = pki.apiserver_kubelet_client().unwrap();
    let apiserver = ApiServer::new(mtls_door(&pki).await).unwrap();
    let apiserver = apiserver
        .with_kubelet_client(pki.ca_file(), &client)
        .unwrap();
    let target = kubelet.local_addr().to_string();
    let reply = apiserver.get(&target, "/healthz").await.unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (200, "ok"));
    let mut exec = apiserver.exec(&target, "/exec/ns/pod/main").await.unwrap();
    exec.write_all(b"through two TLS sessions").await.unwrap();
    exec.shutdown().await.unwrap();
    let mut echoed = String::new();
    timeout(LIMIT, exec.read_to_string(&mut echoed))
        .await
        .expect("ends")
        .unwrap();
    assert!(
        echoed.starts_with("through two TLS sessionsexec ended received=24"),
        "{echoed}"
    );
}

#[tokio::test]
async fn bytes_and_half_closes_pass_the_tunnel_bare() {
    let pki = Pki::temporary().unwrap();
    let apiserver = ApiServer::new(mtls_door(&pki).await).unwrap();
    let far_end = FarEnd::scripted("127.0.0.1:0").await.unwrap();
    let target = far_end.local_addr().to_string();
    for script in [
        Script::duplex(3_000_000, 1),
        Script::duplex(3_000_000, 2).closed_first_by(Closer::FarEnd),
        Script::source(1000, 3).closed_first_by(Closer::Client),
        Script::sink(1000, 4),
    ] {
        let tunnel = apiserver.connect(&target).await.unwrap();
        timeout(LIMIT, drive(tunnel, &script))
            .await
            .expect("ends")
            .unwrap();
    }
    assert!(
        far_end
            .outcomes()
            .iter()
            .all(crate::far_end::Outcome::is_clean)
    );
}

#[tokio::test]
async fn a_door_does_not_let_in_who_shows_no_certificate() {
    let pki = Pki::temporary().unwrap();
    let mut door = mtls_door(&pki).await;
    if let FrontDoor::Tcp { client, .. } = &mut door {
        *client = None;
    }
    let error = ApiServer::new(door)
        .unwrap()
        .connect(TARGET)
        .await
        .unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("CertificateRequired"), "{error}: {cause}");
}

#[tokio::test]
async fn an_aborted_tunnel_resets_tcp() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let apiserver = ApiServer::new(FrontDoor::Transparent).unwrap();
    let tunnel = apiserver.connect(&target).await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    tunnel.abort().unwrap();
    let error = timeout(LIMIT, stream.read_u8())
        .await
        .expect("ends")
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_raw_client_says_anything_and_takes_the_answer_apart() {
    let dir = tempfile::tempdir().unwrap();
    let answer = b"HTTP/1.1 405 only CONNECT\r\nContent-Length: 0\r\nConnection: close\r\n\r\nrest";
    let (apiserver, door) = door_that_says(dir.path(), answer);
    let mut raw = apiserver.raw().await.unwrap();
    assert!(raw.is_silent_for(Duration::from_millis(50)).await.unwrap());
    let (wrong, padding) = (b"GET / HTTP/1.1\r\n\r\n", vec![b'x'; REQUEST.len()]);
    raw.send(wrong).await.unwrap();
    raw.send(&padding).await.unwrap();
    raw.half_close().await.unwrap();
    let answer = raw.read_to_end().await.unwrap();
    assert_eq!(answer.status_line(), "HTTP/1.1 405 only CONNECT");
    assert_eq!(
        (answer.code(), answer.header("connection")),
        (Some(405), Some("close"))
    );
    assert_eq!(answer.rest, b"rest");
    assert_eq!(door.await.unwrap(), [&wrong[..], &padding].concat());
}

#[tokio::test]
async fn a_target_needs_a_host_and_a_port() {
    let pki = Pki::temporary().unwrap();
    let client = pki.apiserver_kubelet_client().unwrap();
    let apiserver = ApiServer::new(FrontDoor::Transparent).unwrap();
    let error = apiserver.get("10.0.10.10:1", "/").await.unwrap_err();
    assert!(matches!(error, RequestError::NoClient), "{error}");
    let apiserver = apiserver
        .with_kubelet_client(pki.ca_file(), &client)
        .unwrap();
    let error = apiserver.get("no-port", "/").await.unwrap_err();
    assert_eq!(error.to_string(), "target \"no-port\" is no HOST:PORT");
}
