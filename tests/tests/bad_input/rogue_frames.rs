//! An agent with a good certificate that does not keep to the multiplexer's protocol, or keeps to
//! it in a way that is meant to hurt.
//!
//! It may lose its session, or a stream; no other node's user may notice, and everybody who asks
//! for the rogue's own node is answered in time.

use std::time::Duration;

use anyhow::{Context, Result};
use proxymux_proto::{
    AbortCode, ChunkHeader, ControlMessage, OpenAnswer, OpenRequest, RefuseCode, encode_frame,
};
use proxymux_testkit::{
    apiserver::{ApiServer, ConnectError, Tunnel},
    cluster::Cluster,
};
use proxymux_tests::{
    access::access_line_with,
    events::with_message,
    limits::{SOON, within},
    rogue::{
        RogueSession,
        frames::{ACK, DATA, FIN, Frame, GO_AWAY, PING, RST, RawSession, SYN, WINDOW_UPDATE},
    },
};
use proxymux_transport::stream::MessageStream;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_rustls::client::TlsStream;

use crate::stage::Stage;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_after_the_handshake_is_refused_and_named() -> Result<()> {
    let mut stage = Stage::new().await?;
    let cases: [(&[u8], &str); 3] = [
        (
            b"GET / HTTP/1.1\r\nHost: master\r\n\r\n",
            "unknown version: 71",
        ),
        (&[0; 5], "connection was closed without a goodbye"),
        (&[0xff; 4096], "unknown version: 255"),
    ];
    for (bytes, problem) in cases {
        let mut stream = stage.host.secure(stage.master, &stage.identity()).await?;

        stream.write_all(bytes).await?;
        if bytes.len() < FRAME_HEADER {
            // Cut off in the middle of a frame.
            drop(stream);
        } else {
            expect_end(&mut stream).await?;
        }

        let refused = stage.refusal()?;
        assert!(
            refused.starts_with("session ended before the agent had registered: ")
                && refused.ends_with(problem),
            "{refused}"
        );
    }
    stage.nobody_noticed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_no_multiplexer_sends_end_that_session_only() -> Result<()> {
    let mut stage = Stage::new().await?;
    let huge = Frame {
        value: u32::MAX,
        ..Frame::data(0, 1, b"")
    };
    let flood = vec![0; WINDOW + 1];
    let broken = "session ended: peer broke the multiplexer's protocol: ";
    let over = "session ended with go-away code 1";
    let ended = "session failed: peer closed the control stream";
    let cases = [
        (
            "version",
            b"XXXXXXXXXXXX".to_vec(),
            (broken, "unknown version: 88"),
        ),
        (
            "kind",
            Frame::bare(9, 0, 1, 0).encode(),
            (broken, "unknown frame type: 9"),
        ),
        (
            "4 GiB",
            huge.encode(),
            (broken, "frame body is too large (4294967295)"),
        ),
        (
            "no credit",
            Frame::data(0, 1, &flood).encode(),
            (broken, over),
        ),
        (
            "control stream again",
            Frame::data(SYN, 1, b"x").encode(),
            (broken, over),
        ),
        (
            "a master's number",
            Frame::data(SYN, 2, b"x").encode(),
            (broken, over),
        ),
        (
            "no stream's number",
            Frame::data(SYN, 0, b"x").encode(),
            (broken, over),
        ),
        (
            "go away",
            Frame::bare(GO_AWAY, 0, 0, 0).encode(),
            ("closed by the agent", ""),
        ),
        (
            "go away for a fault",
            Frame::bare(GO_AWAY, 0, 0, 1).encode(),
            ("closed by the agent", ""),
        ),
        (
            "reset",
            Frame::bare(WINDOW_UPDATE, RST, 1, 0).encode(),
            (ended, ""),
        ),
        (
            "end",
            Frame::bare(WINDOW_UPDATE, FIN, 1, 0).encode(),
            (ended, ""),
        ),
    ];
    for (what, bytes, (begins, ends)) in cases {
        let mut session = stage.raw_session().await?;

        session.send_bytes(&bytes).await?;

        let lost = stage.trouble("session lost").context(what)?;
        assert_eq!(lost.text("node"), Some(&*stage.rogue()), "{what}");
        let reason = lost.text("reason").context("a reason")?;
        assert!(
            reason.starts_with(begins) && reason.ends_with(ends),
            "{what}: {reason}"
        );
        session.ends().await.context(what)?;
    }
    stage.nobody_noticed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_of_streams_that_are_not_there_are_passed_over() -> Result<()> {
    let stage = Stage::new().await?;
    let mut session = stage.raw_session().await?;

    for number in [4, 6, 0x7fff_fffe, u32::MAX] {
        session
            .send(&[
                Frame::data(0, number, b"to nobody"),
                Frame::data(ACK, number, b""),
                Frame::bare(WINDOW_UPDATE, 0, number, u32::MAX),
                Frame::bare(WINDOW_UPDATE, FIN, number, 0),
                Frame::bare(WINDOW_UPDATE, RST, number, 0),
                Frame::bare(PING, SYN, number, number),
            ])
            .await?;
    }

    stage.answers_ping(&mut session).await?;
    stage.nobody_noticed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_streams_from_an_agent_ends_that_session_only() -> Result<()> {
    let mut stage = Stage::new().await?;
    let mut session = stage.raw_session().await?;

    let flood: Vec<_> = (1..4000)
        .map(|n| Frame::data(SYN, 2 * n + 1, b"x"))
        .collect();
    // It may be over before all of it is sent.
    drop(session.send(&flood).await);

    let over =
        stage.event(|event| matches!(event.message.as_str(), "session ended" | "session lost"))?;
    assert_eq!(over.text("node"), Some(&*stage.rogue()));
    assert_eq!(
        over.text("reason"),
        Some("agent opened a stream, expected the control stream only")
    );
    drop(session);
    stage.nobody_noticed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_tiny_frames_costs_its_stream_only() -> Result<()> {
    let mut stage = Stage::new().await?;
    let mut session = stage.raw_session().await?;
    let (mut tunnel, stream) = stage.open_through(&mut session).await?;

    // As much as the window allows, to a client that does not read.
    let header = ChunkHeader::data(CHUNK).context("a chunk")?;
    let payload: Vec<u8> = std::iter::repeat_n(header.as_bytes(), WINDOW / (CHUNK + 4))
        .flat_map(|header| {
            header
                .iter()
                .copied()
                .chain(std::iter::repeat_n(b'x', CHUNK))
        })
        .collect();
    for part in payload.chunks(1024) {
        let frames: Vec<_> = part
            .chunks(1)
            .map(|byte| Frame::data(0, stream, byte))
            .collect();
        session.send(&frames).await?;
    }

    // The stream is given up, and both sides of it learn that.
    let told = session.next_control(|message| matches!(message, ControlMessage::Abort { .. }));
    let code = AbortCode::Overflow;
    assert_eq!(told.await?, ControlMessage::Abort { stream, code });
    let mut rest = Vec::new();
    let read = timeout(SOON, tunnel.read_to_end(&mut rest))
        .await
        .context("the tunnel stays")?;
    assert!(rest.len() < payload.len(), "all of it has come: {read:?}");
    let node = stage.rogue();
    let line = access_line_with(stage.cluster.master(0), |line| {
        line.text("node") == Some(&*node)
    });
    assert_eq!(line.await?.text("outcome"), Some("overflow"));
    // The session is as good as before.
    stage.answers_ping(&mut session).await?;
    let (mut tunnel, stream) = stage.open_through(&mut session).await?;
    session.send(&[chunk(stream, b"hello")?]).await?;
    let mut hello = [0; 5];
    tunnel.write_all(b"first").await?;
    within(SOON, "a greeting", tunnel.read_exact(&mut hello)).await?;
    assert_eq!(&hello, b"hello");
    stage.nobody_noticed().await
}

/// The multiplexer counts a stream as pending until the agent acknowledges it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opens_that_are_never_acknowledged_are_all_answered_in_time() -> Result<()> {
    let lines = format!("connect-budget: {}s", BUDGET.as_secs());
    let mut stage = Stage::with(Cluster::builder().nodes(2).master_lines(lines)).await?;
    let session = stage.raw_session().await?;
    let (api, target) = (stage.cluster.api()?, stage.cluster.target(1));

    let codes = ask_all_at_once(&api, &target, DIALS).await?;
    let waited = codes.iter().filter(|code| **code == 504).count();
    let turned_away = codes.iter().filter(|code| **code == 503).count();
    assert_eq!(
        (waited, turned_away),
        (MAX_PENDING, DIALS - MAX_PENDING),
        "{codes:?}"
    );
    stage.bystander.is_served().await?;

    // Nothing was acknowledged since: the next one waits in vain too, and no longer than they did.
    let refused = timeout(BUDGET + MARGIN, api.connect(&target))
        .await?
        .expect_err("nobody opens anything");
    let status = "503 node 10.0.10.11: session has 128 dials pending, its limit; waited ";
    assert!(refused.to_string().contains(status), "{refused}");
    stage.bystander.is_served().await?;

    let lost = with_message(stage.cluster.master(0), "session lost");
    assert_eq!(lost, [], "the rogue still has its session");
    drop(session);
    let lost = stage.trouble("session lost")?;
    assert_eq!(lost.text("node"), Some(&*stage.rogue()));
    stage.nobody_noticed().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_answers_to_a_request_are_told_to_its_user_only() -> Result<()> {
    let lines = format!("connect-budget: {}s", BUDGET.as_secs());
    let stage = Stage::with(Cluster::builder().nodes(2).master_lines(lines)).await?;
    let mut session = stage.session().await?;
    session.register(&stage.rogue()).await?;
    let (node, target) = (stage.rogue(), stage.cluster.target(1));
    let hostile = OpenAnswer::Refused {
        code: RefuseCode::Other(7),
        message: "no\r\nX-Injected: yes\x1b[2J".to_owned(),
    };
    let cases = [
        (
            "garbage",
            vec![encode_frame(b"\xff\xff\xff")?.to_vec()],
            format!("502 node {node} ended the request for {target}: "),
        ),
        (
            "too long",
            vec![u32::MAX.to_be_bytes().to_vec()],
            format!(
                "502 node {node} ended the request for {target}: peer broke the stream's framing"
            ),
        ),
        (
            "line ends",
            vec![hostile.encode()?.to_vec()],
            "502 no??X-Injected: yes?[2J".to_owned(),
        ),
        (
            "no more than an acknowledgement",
            vec![OpenAnswer::Dialing.encode()?.to_vec()],
            format!("504 node {node} "),
        ),
    ];
    for (what, answers, status) in cases {
        let (api, asked) = (stage.cluster.api()?, target.clone());
        let asking = tokio::spawn(async move { api.connect(&asked).await.map(drop) });
        let mut stream = requested(&mut session, &target).await?;

        for answer in answers {
            within(SOON, what, stream.send(&answer)).await?;
        }

        let refused = timeout(SOON, asking).await??.expect_err(what);
        let ConnectError::Refused { status: seen, .. } = &refused else {
            panic!("{what}: expected a status, not {refused:?}");
        };
        assert!(seen.starts_with(&status), "{what}: {seen}");
        drop(stream);
    }

    // An end in the middle, and an answer of the future.
    let (api, asked) = (stage.cluster.api()?, target.clone());
    let asking = tokio::spawn(async move { api.connect(&asked).await.map(drop) });
    let mut stream = requested(&mut session, &target).await?;
    within(SOON, "send", stream.send(&encode_frame(b"")?)).await?;
    stream.finish();
    let refused = timeout(SOON, asking).await??.expect_err("an end");
    assert_eq!(refused.code(), Some(502), "{refused}");
    assert!(!session.is_over());
    stage.nobody_noticed().await
}

impl Stage {
    async fn raw_session(&self) -> Result<RawSession<TlsStream<TcpStream>>> {
        let stream = self.host.secure(self.master, &self.identity()).await?;
        RawSession::registered(stream, &self.rogue()).await
    }

    /// The master reads what the rogue sends, and answers.
    async fn answers_ping<T>(&self, session: &mut RawSession<T>) -> Result<()>
    where
        T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        session
            .send(&[Frame::data(0, 1, &ControlMessage::Ping(77).encode()?)])
            .await?;
        session
            .next_control(|message| *message == ControlMessage::Pong(77))
            .await?;
        Ok(())
    }

    /// A tunnel to the rogue's node, and the number of its stream; the rogue has answered well.
    async fn open_through<T>(&self, session: &mut RawSession<T>) -> Result<(Tunnel, u32)>
    where
        T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let (api, target) = (self.cluster.api()?, self.cluster.target(1));
        let opening = tokio::spawn(async move { api.connect(&target).await });
        let opened = session
            .next_matching(|frame| frame.kind == DATA && frame.has(SYN) && !frame.body.is_empty())
            .await?;
        let stream = opened.stream;
        let mut answers = OpenAnswer::Dialing.encode()?.to_vec();
        answers.extend_from_slice(&OpenAnswer::Opened.encode()?);
        session.send(&[Frame::data(ACK, stream, &answers)]).await?;
        let tunnel = timeout(SOON, opening).await.context("no tunnel")???;
        Ok((tunnel, stream))
    }
}

/// The next request of the master, which must be for `target`.
async fn requested(session: &mut RogueSession, target: &str) -> Result<MessageStream> {
    let mut stream = timeout(SOON, session.incoming.next())
        .await?
        .context("no stream")?;
    let content = within(SOON, "a request", stream.receive())
        .await?
        .context("no request")?;
    assert_eq!(OpenRequest::decode(&content)?.target.to_string(), target);
    Ok(stream)
}

/// Asks for `target` so many times at once; the codes of the answers, none of which may be late.
async fn ask_all_at_once(api: &ApiServer, target: &str, times: usize) -> Result<Vec<u16>> {
    let began = Instant::now();
    let mut asking = JoinSet::new();
    for _ in 0..times {
        let (api, target) = (api.clone(), target.to_owned());
        asking.spawn(async move { api.connect(&target).await.map(drop) });
    }
    let mut codes = Vec::new();
    while let Some(answered) = timeout(SOON, asking.join_next())
        .await
        .context("no answer")?
    {
        let refused = answered?.expect_err("nobody opens anything");
        codes.push(refused.code().with_context(|| refused.to_string())?);
    }
    let took = began.elapsed();
    assert!(
        took < BUDGET + MARGIN,
        "the last answer came after {took:?}"
    );
    Ok(codes)
}

async fn expect_end(stream: &mut TlsStream<TcpStream>) -> Result<()> {
    let mut rest = Vec::new();
    let read = timeout(SOON, stream.read_to_end(&mut rest)).await;
    // A reset is as good an end as any.
    drop(read.context("the master keeps the connection")?);
    Ok(())
}

fn chunk(stream: u32, payload: &[u8]) -> Result<Frame> {
    let header = ChunkHeader::data(payload.len()).context("a chunk")?;
    let body = [header.as_bytes(), payload].concat();
    Ok(Frame::data(0, stream, &body))
}

const FRAME_HEADER: usize = 12;

/// What may be under way on a stream.
const WINDOW: usize = 256 * 1024;
const CHUNK: usize = 1020;

/// More than the multiplexer itself would stand, which is 256.
const DIALS: usize = 400;
/// `max-pending-dials-per-node`, if nothing is configured.
const MAX_PENDING: usize = 128;
const BUDGET: Duration = Duration::from_secs(3);

/// For a machine that does something else at the same time.
const MARGIN: Duration = Duration::from_secs(10);
