//! Peers that do not speak TLS 1.3, break off, or say nothing.
//!
//! Their bytes are written by hand. Time is paused except where a kernel's socket is needed for
//! what it does on close.

use std::net::Ipv4Addr;

use tokio::net::{TcpListener, TcpStream};

use super::*;

/// What a master says to a peer that sends `bytes` and then waits.
async fn master_hears(bytes: &[u8]) -> TlsError {
    let (mut near, far) = duplex(16 * 1024);
    near.write_all(bytes).await.unwrap();
    let ca = Ca::new("kubernetes");
    accept(far, good_master(&ca), in_five_seconds())
        .await
        .unwrap_err()
}

/// What an agent says to a peer that reads the first flight and answers `bytes`.
async fn agent_hears(bytes: &[u8]) -> TlsError {
    let (near, mut far) = duplex(16 * 1024);
    let ca = Ca::new("kubernetes");
    let peer = async {
        assert!(far.read(&mut [0; 4096]).await.unwrap() > 0);
        far.write_all(bytes).await.unwrap();
        // Stays open until the agent has made up its mind.
        let _ = far.read(&mut [0; 4096]).await;
    };
    let agent = connect(near, good_agent(&ca), master_name(), in_five_seconds());
    tokio::join!(peer, agent).1.unwrap_err()
}

#[tokio::test(start_paused = true)]
async fn plain_http_at_the_masters_port_is_recognised() {
    let error = master_hears(b"GET / HTTP/1.1\r\nHost: master.example\r\n\r\n").await;

    assert_eq!(
        error.to_string(),
        "TLS handshake with the agent failed: it does not speak TLS, but plain HTTP or another \
         protocol"
    );
    assert_eq!(error.kind(), TlsFaultKind::NotTls);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_answers_something_else_than_tls_is_recognised() {
    let http = agent_hears(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let ssh = agent_hears(b"SSH-2.0-OpenSSH_9.6\r\n").await;

    assert_eq!(
        http.to_string(),
        "TLS handshake with the master failed: it does not speak TLS, but plain HTTP or another \
         protocol"
    );
    assert_eq!(ssh.kind(), TlsFaultKind::NotTls);
}

#[tokio::test(start_paused = true)]
async fn a_client_of_tls_1_2_is_refused_and_told_so() {
    let (mut near, far) = duplex(16 * 1024);
    near.write_all(&tls_1_2_client_hello()).await.unwrap();
    let ca = Ca::new("kubernetes");

    let accepted = accept(far, good_master(&ca), in_five_seconds());
    let mut answer = Vec::new();
    let client = near.read_to_end(&mut answer);
    let (error, read) = tokio::join!(async { accepted.await.unwrap_err() }, async {
        timeout(Duration::from_secs(3), client).await.unwrap()
    });

    assert_eq!(
        error.to_string(),
        "TLS handshake with the agent failed: it does not speak TLS 1.3, and we speak nothing \
         older"
    );
    assert_eq!(error.kind(), TlsFaultKind::TlsVersion);
    read.unwrap();
    // A record of type alert: fatal, protocol_version.
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 70]);
}

#[tokio::test(start_paused = true)]
async fn a_server_of_tls_1_2_is_refused() {
    let by_alert = agent_hears(&[21, 3, 3, 0, 2, 2, 70]).await;
    let by_hello = agent_hears(&tls_1_2_server_hello()).await;

    let expected = "TLS handshake with the master failed: it does not speak TLS 1.3, and we \
         speak nothing older";
    assert_eq!(by_alert.to_string(), expected);
    assert_eq!(by_hello.to_string(), expected);
}

#[tokio::test(start_paused = true)]
async fn other_alerts_are_named() {
    let internal = agent_hears(&[21, 3, 3, 0, 2, 2, 80]).await;
    let nothing_in_common = agent_hears(&[21, 3, 3, 0, 2, 2, 40]).await;

    assert_eq!(
        internal.to_string(),
        "TLS handshake with the master failed: it broke off with alert InternalError"
    );
    assert_eq!(nothing_in_common.kind(), TlsFaultKind::NothingInCommon);
}

#[tokio::test(start_paused = true)]
async fn silent_peers_are_given_up_at_the_deadline() {
    let ca = Ca::new("kubernetes");
    let (agents_end, _open) = duplex(16 * 1024);
    let (masters_end, _open_too) = duplex(16 * 1024);
    let started = Instant::now();

    let agent = connect(
        agents_end,
        good_agent(&ca),
        master_name(),
        in_five_seconds(),
    )
    .await;
    let agent_took = started.elapsed();
    let master = accept(masters_end, good_master(&ca), in_five_seconds()).await;

    assert_eq!(agent_took, Duration::from_secs(5));
    let (agent, master) = (agent.unwrap_err(), master.unwrap_err());
    assert_eq!(
        agent.to_string(),
        "TLS handshake with the master failed: the handshake was not over after 5s"
    );
    assert_eq!(
        master.to_string(),
        "TLS handshake with the agent failed: the handshake was not over after 5s"
    );
    assert_eq!(master.kind(), TlsFaultKind::TimedOut);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_stops_half_way_is_given_up_at_the_deadline() {
    let started = Instant::now();

    let error = master_hears(&tls_1_2_client_hello()[..20]).await;

    assert_eq!(error.kind(), TlsFaultKind::TimedOut);
    assert_eq!(started.elapsed(), Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_refused_peer_that_stays_does_not_hold_the_master_for_long() {
    let started = Instant::now();

    let error = master_hears(b"GET / HTTP/1.1\r\n\r\n").await;

    // `master_hears` keeps its end open.
    assert_eq!(error.kind(), TlsFaultKind::NotTls);
    assert!(started.elapsed() <= MAX_LINGER);
}

#[tokio::test(start_paused = true)]
async fn a_refused_peer_that_goes_on_sending_is_read_only_to_a_bound() {
    let ca = Ca::new("kubernetes");
    let (mut near, far) = duplex(4096);
    let started = Instant::now();

    let flood = async {
        let mut sent = 0;
        while near.write_all(&[b'x'; 1024]).await.is_ok() {
            sent += 1024;
        }
        sent
    };
    let master = accept(far, good_master(&ca), in_five_seconds());
    let (sent, error) = tokio::join!(flood, master);

    assert_eq!(error.unwrap_err().kind(), TlsFaultKind::NotTls);
    assert!(sent < 100 * 1024, "{sent}");
    assert!(started.elapsed() <= MAX_LINGER);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_hangs_up_is_told_from_one_that_is_silent() {
    let ca = Ca::new("kubernetes");
    let (near, far) = duplex(16 * 1024);
    drop(near);

    let error = accept(far, good_master(&ca), in_five_seconds())
        .await
        .unwrap_err();

    assert_eq!(
        error.to_string(),
        "TLS handshake with the agent failed: it closed the connection during the handshake"
    );
    assert_eq!(error.kind(), TlsFaultKind::Closed);
}

/// Two connected sockets on loopback.
async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), accepted.unwrap().0)
}

#[tokio::test]
async fn a_reset_is_named_with_what_the_system_says() {
    let ca = Ca::new("kubernetes");
    let (near, far) = sockets().await;
    let near = socket2::SockRef::from(&near)
        .set_linger(Some(Duration::ZERO))
        .map(|()| near)
        .unwrap();
    drop(near);

    let error = accept(far, good_master(&ca), in_five_seconds())
        .await
        .unwrap_err();

    assert_eq!(
        whole_text(&error),
        "TLS handshake with the agent failed: the connection was reset during the handshake: \
         Connection reset by peer (os error 104)"
    );
    assert_eq!(error.kind(), TlsFaultKind::Reset);
}

#[tokio::test]
async fn over_tcp_a_refused_agent_learns_why_although_it_goes_on_writing() {
    let ca = Ca::new("kubernetes");
    let expired = ca.issue(&Request::node("10.0.10.3").years(2020, 2021));
    let agent_config = agent_config(&expired.credentials(), &ca.roots());
    let (near, far) = sockets().await;

    let agent = async {
        let mut agent = connect(near, agent_config, master_name(), in_five_seconds())
            .await
            .unwrap();
        // The alert is there, but the session's code has frames to write first. Were the master's
        // socket closed already, these writes would fail and nobody would look for the alert.
        agent.stream.get_ref().0.readable().await.unwrap();
        for _ in 0..3 {
            agent.stream.write_all(&[7; 1000]).await.unwrap();
            agent.stream.flush().await.unwrap();
        }
        let error = agent.stream.read(&mut [0; 64]).await.unwrap_err();
        describe_io_error(&error).unwrap()
    };
    let master = accept(far, good_master(&ca), in_five_seconds());
    let (agent, master) = tokio::join!(agent, master);

    assert_eq!(agent.kind(), TlsFaultKind::OurCertificateExpired);
    assert_eq!(
        master.unwrap_err().kind(),
        TlsFaultKind::PeerCertificateExpired
    );
}

/// A ClientHello as OpenSSL's for TLS 1.2: one suite, groups, formats, signatures; no
/// `supported_versions`.
fn tls_1_2_client_hello() -> Vec<u8> {
    let extensions: &[u8] = &[
        0, 10, 0, 4, 0, 2, 0, 23, // supported_groups: secp256r1
        0, 11, 0, 2, 1, 0, // ec_point_formats: uncompressed
        0, 13, 0, 4, 0, 2, 4, 3, // signature_algorithms: ecdsa_secp256r1_sha256
    ];
    let mut body = vec![3, 3];
    body.extend([0x5a; 32]); // random
    body.push(0); // session id
    body.extend([0, 2, 0xc0, 0x2b]); // TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
    body.extend([1, 0]); // compression: null
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    record(1, &body)
}

/// A ServerHello that selects TLS 1.2.
fn tls_1_2_server_hello() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([0x5a; 32]); // random
    body.push(0); // session id
    body.extend([0xc0, 0x2b, 0]); // the suite, no compression
    body.extend([0, 0]); // extensions
    record(2, &body)
}

/// A record with one handshake message.
fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(body.len()).unwrap();
    let mut bytes = vec![22, 3, 1];
    bytes.extend((len + 4).to_be_bytes());
    bytes.extend([kind, 0]);
    bytes.extend(len.to_be_bytes());
    bytes.extend(body);
    bytes
}
