//! Who comes to the master's port for agents and is none: scanners, health checks, browsers,
//! other programs' agents.
//!
//! All of them are on the machine of a node that has no agent; the master's log must say of each
//! what it is, in words, and the other node's user must not notice.

use std::sync::Arc;

use anyhow::{Context, Result};
use proxymux_proto::{ControlMessage, EndCode, SessionEnd};
use proxymux_testkit::pki::{Leaf, Usage};
use proxymux_tests::{
    limits::{SOON, within},
    rogue::{RogueSession, messages},
};
use rustls::{ClientConfig, SignatureScheme, client::ResolvesClientCert, sign::CertifiedKey};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::stage::Stage;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_tls_is_refused_and_named() -> Result<()> {
    let mut stage = Stage::new().await?;
    let cases: [&[u8]; 5] = [
        b"GET /healthz HTTP/1.1\r\nHost: master\r\n\r\n",
        b"SSH-2.0-OpenSSH_8.0\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.10 56324 12250\r\n",
        b"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
        &[0xff; 4096],
    ];
    for bytes in cases {
        let mut stranger = stage.connect().await?;
        stranger.write_all(bytes).await?;

        assert_closed(stranger).await?;
        assert_eq!(
            stage.refusal()?,
            "TLS handshake with the agent failed: it does not speak TLS, but plain HTTP or \
             another protocol",
            "{}",
            bytes.escape_ascii()
        );
    }
    stage.nobody_noticed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_or_stops_in_the_middle_is_refused_in_time() -> Result<()> {
    let mut stage = Stage::new().await?;
    let hello = client_hello(&[TLS_1_3]);
    let silent = stage.connect().await?;
    let mut halting = stage.connect().await?;
    halting.write_all(&hello[..hello.len() / 2]).await?;

    assert_eq!(stage.refusal()?, "sent nothing within 2 s");
    assert_closed(silent).await?;
    assert_eq!(
        stage.refusal()?,
        "TLS handshake with the agent failed: the handshake was not over after 5s"
    );
    assert_closed(halting).await?;
    stage.nobody_noticed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_away_is_worth_a_word_only_after_it_has_said_something() -> Result<()> {
    let mut stage = Stage::new().await?;
    let hello = client_hello(&[TLS_1_3]);

    drop(stage.connect().await?);
    let gone = stage.event(|event| event.message == "no session")?;
    assert_eq!(
        gone.level, "DEBUG",
        "health checks do this all day: {gone:?}"
    );
    assert_eq!(gone.text("error"), Some("went away without a word"));

    let mut leaving = stage.connect().await?;
    leaving.write_all(&hello[..hello.len() / 2]).await?;
    drop(leaving);
    assert_eq!(
        stage.refusal()?,
        "TLS handshake with the agent failed: it closed the connection during the handshake"
    );

    let mut resetting = stage.connect().await?;
    resetting.write_all(&hello[..hello.len() / 2]).await?;
    reset(resetting)?;
    assert_eq!(
        stage.refusal()?,
        "TLS handshake with the agent failed: the connection was reset during the handshake: \
         Connection reset by peer (os error 104)"
    );
    stage.nobody_noticed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_without_proxymux_is_refused_and_said_to_be_that() -> Result<()> {
    let mut stage = Stage::new().await?;
    let files = stage.cluster.pki().node_client("stranger")?;
    let proper = stage.host.agent_config(&files)?;
    let cases: [(&[&[u8]], &str); 3] = [
        (&[], "no application protocol was agreed on"),
        (
            &[b"h2", b"http/1.1"],
            "it offers other application protocols",
        ),
        (&[b"proxymux/2"], "it offers other application protocols"),
    ];
    for (protocols, how) in cases {
        let mut config = ClientConfig::clone(&proper);
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();

        let shaken = stage.host.secure_with(stage.master, Arc::new(config)).await;

        assert_eq!(
            stage.refusal()?,
            format!(
                "TLS handshake with the agent failed: it does not speak proxymux/1 ({how}); \
                 Oracle's own control plane and agent do not"
            )
        );
        // A client that offers none learns of it only afterwards.
        if let Ok(mut stream) = shaken {
            let read = within(SOON, "the end", stream.read_to_end(&mut Vec::new())).await;
            assert!(read.is_ok_and(|read| read == 0), "closed with a notice");
        }
    }
    stage.nobody_noticed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_without_a_certificate_is_told_so() -> Result<()> {
    let mut stage = Stage::new().await?;
    let files = stage.cluster.pki().node_client("stranger")?;
    let mut config = ClientConfig::clone(&*stage.host.agent_config(&files)?);
    config.client_auth_cert_resolver = Arc::new(NoCertificate);

    let mut stream = stage
        .host
        .secure_with(stage.master, Arc::new(config))
        .await?;

    let told = within(SOON, "an alert", stream.read_u8())
        .await
        .unwrap_err();
    let told = format!("{told:#}");
    assert!(told.contains("CertificateRequired"), "{told}");
    drop(stream);
    assert_eq!(
        stage.refusal()?,
        "TLS handshake with the agent failed: it showed no certificate"
    );
    stage.nobody_noticed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_is_no_nodes_is_refused_and_said_to_be_that() -> Result<()> {
    let mut stage = Stage::new().await?;
    let client = Leaf::new("somebody").usages([Usage::Client]);
    let cases = [
        (
            client.clone(),
            "certificate `CN=somebody` has the common name `somebody`, expected \
             `system:node:<node-name>`",
        ),
        (
            client.clone().common_name("system:node:stranger"),
            "certificate `CN=system:node:stranger` has no organization, expected organization \
             `system:nodes`",
        ),
        (
            client
                .common_name("system:node:stranger")
                .organisations(["system:masters"]),
            "certificate `O=system:masters, CN=system:node:stranger` has organization \
             `system:masters`, expected organization `system:nodes`",
        ),
    ];
    for (leaf, reason) in cases {
        let files = stage.cluster.pki().pair("strangers/client", &leaf)?;

        let stream = stage.host.secure(stage.master, &files).await?;
        let mut session = RogueSession::as_agent(stream).await?;
        session.send(&messages::register("stranger")?).await?;

        assert_eq!(
            stage.refusal()?,
            format!("certificate is not one of a node: {reason}")
        );
        let end = SessionEnd::new(EndCode::Identity, reason);
        assert_eq!(session.next().await?, ControlMessage::End(end));
    }
    stage.nobody_noticed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_1_2_is_refused_and_said_to_be_that() -> Result<()> {
    let mut stage = Stage::new().await?;
    let expected = "TLS handshake with the agent failed: it does not speak TLS 1.3, and we speak \
                    nothing older";

    // With the extension that names versions, and, as old programs have it, without.
    for versions in [&[TLS_1_2][..], &[]] {
        let mut stranger = stage.connect().await?;
        stranger.write_all(&client_hello(versions)).await?;

        let mut answer = Vec::new();
        within(SOON, "an answer", stranger.read_to_end(&mut answer)).await?;
        drop(stranger);
        assert_eq!(answer, PROTOCOL_VERSION_ALERT);
        assert_eq!(stage.refusal()?, expected);
    }
    match openssl(&stage)? {
        Some(output) => {
            assert_eq!(stage.refusal()?, expected);
            assert!(output.contains("protocol version"), "{output}");
        }
        None => eprintln!("openssl is not installed, only handmade hellos were tried"),
    }
    stage.nobody_noticed().await
}

async fn assert_closed(mut stranger: TcpStream) -> Result<()> {
    // Whatever it was told before: a reset is as good an end.
    let mut rest = Vec::new();
    let read = tokio::time::timeout(SOON, stranger.read_to_end(&mut rest)).await;
    drop(read.context("the master keeps the connection")?);
    Ok(())
}

/// A client that has no certificate to show.
#[derive(Debug)]
struct NoCertificate;

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// Ends a connection with a reset in place of an end.
fn reset(stream: TcpStream) -> Result<()> {
    stream.set_zero_linger()?;
    drop(stream);
    Ok(())
}

/// What a TLS client says first, with these versions on offer beside the one in the header.
fn client_hello(versions: &[u16]) -> Vec<u8> {
    let mut extensions = Vec::new();
    if !versions.is_empty() {
        let list: Vec<u8> = versions
            .iter()
            .flat_map(|version| version.to_be_bytes())
            .collect();
        extensions.extend(extension(SUPPORTED_VERSIONS, &counted_u8(&list)));
    }
    extensions.extend(extension(SUPPORTED_GROUPS, &counted_u16(&[0, 29, 0, 23])));
    extensions.extend(extension(
        SIGNATURE_ALGORITHMS,
        &counted_u16(&[4, 3, 8, 4, 4, 1]),
    ));
    let mut body = TLS_1_2.to_be_bytes().to_vec();
    body.extend([7; 32]);
    body.extend(counted_u8(&[]));
    body.extend(counted_u16(&[0x13, 0x01, 0xc0, 0x2b, 0xc0, 0x2f]));
    body.extend(counted_u8(&[0]));
    body.extend(counted_u16(&extensions));
    let mut handshake = vec![CLIENT_HELLO, 0];
    handshake.extend(counted_u16(&body));
    let mut record = vec![HANDSHAKE, 3, 1];
    record.extend(counted_u16(&handshake));
    record
}

fn extension(kind: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, kind];
    bytes.extend(counted_u16(content));
    bytes
}

fn counted_u8(content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(content.len()).expect("a test's hello is short")];
    bytes.extend_from_slice(content);
    bytes
}

fn counted_u16(content: &[u8]) -> Vec<u8> {
    let len = u16::try_from(content.len()).expect("a test's hello is short");
    let mut bytes = len.to_be_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes
}

/// What `openssl s_client` has to say about the master; `None` where it is not installed.
fn openssl(stage: &Stage) -> Result<Option<String>> {
    if std::process::Command::new("openssl")
        .arg("version")
        .output()
        .is_err()
    {
        return Ok(None);
    }
    let mut command = stage.cluster.node(1).command("openssl");
    command.args(["s_client", "-tls1_2", "-connect", &stage.master.to_string()]);
    command.stdin(std::process::Stdio::null());
    let output = command.output().context("openssl")?;
    assert!(!output.status.success(), "{output:?}");
    Ok(Some(String::from_utf8_lossy(&output.stderr).into_owned()))
}

const TLS_1_2: u16 = 0x0303;
const TLS_1_3: u16 = 0x0304;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SUPPORTED_GROUPS: u8 = 10;
const SIGNATURE_ALGORITHMS: u8 = 13;
const SUPPORTED_VERSIONS: u8 = 43;

/// A record of type alert: fatal, protocol_version.
const PROTOCOL_VERSION_ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 70];
