//! Nodes whose every target is an endless download, played by the test itself.
//!
//! They need no kubelet and no connections besides their sessions, so that the memory of a machine
//! which has many of them is the master's. Read [`EndlessNode`], which keeps to the protocol, and
//! [`flood`], which is meant to hurt.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail};
use proxymux_proto::{ChunkHeader, ControlMessage, MAX_CHUNK_LEN, MAX_STREAMS, OpenAnswer};
use proxymux_testkit::pki::CertFiles;
use proxymux_transport::{
    control::ControlStream,
    mux::{self, Incoming, MuxLimits, Role},
    session::{Event, SessionCore, drive},
    socket::SessionSocket,
    stream::{MessageStream, StreamError},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    limits::within,
    rogue::{
        RogueHost,
        frames::{ACK, CONTROL_STREAM, DATA, Frame, RawSession},
        messages,
    },
};

/// A node that has a session for as long as this lives.
#[derive(Debug)]
pub struct EndlessNode {
    serving: AbortOnDropHandle<Result<()>>,
}

impl EndlessNode {
    /// Registers as `node`.
    ///
    /// # Errors
    ///
    /// The master does not accept it.
    pub async fn join(
        host: &RogueHost,
        master: SocketAddr,
        identity: &CertFiles,
        node: &str,
    ) -> Result<Self> {
        let stream = host.secure(master, identity).await?;
        let socket = SessionSocket::new(stream.get_ref().0)?;
        let (mux, incoming, driver) = mux::start(stream, Role::Agent, LIMITS);
        let driver = drive(driver);
        let control = ControlStream::new(mux.open().await?);
        let mut core = SessionCore::new(mux, control, socket, driver);
        core.send(&messages::register(node)?)?;
        within(REGISTERED, "register", registered(&mut core)).await?;
        let serving = tokio::spawn(serve_all(core, incoming));
        Ok(Self {
            serving: AbortOnDropHandle::new(serving),
        })
    }

    /// Whether the session is over.
    pub fn is_over(&self) -> bool {
        self.serving.is_finished()
    }
}

async fn registered(core: &mut SessionCore) -> Result<()> {
    loop {
        match core.next().await {
            Event::Message(ControlMessage::Registered(_)) => return Ok(()),
            Event::Message(other) => bail!("the master answers {other:?}"),
            Event::Over(over) => bail!("the session is over: {over}"),
            Event::Pong(_) | Event::Segments(_) | Event::WornOut => {}
        }
    }
}

async fn serve_all(mut core: SessionCore, mut incoming: Incoming) -> Result<()> {
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            event = core.next() => if let Event::Over(over) = event {
                bail!("the session is over: {over}");
            },
            Some(stream) = incoming.next() => {
                streams.spawn(async move {
                    // A stream ends when the master wants it to.
                    drop(serve(stream).await);
                });
            }
            Some(_) = streams.join_next() => {}
        }
    }
}

async fn serve(mut stream: MessageStream) -> Result<()> {
    stream.receive().await?.context("a request")?;
    stream.send(&OpenAnswer::Dialing.encode()?).await?;
    stream.send(&OpenAnswer::Opened.encode()?).await?;
    send_chunks(stream).await
}

async fn send_chunks(stream: MessageStream) -> Result<()> {
    let mut stream = stream.into_relay();
    let mut frame = vec![b'.'; ChunkHeader::LEN + MAX_CHUNK_LEN];
    let error: StreamError = std::future::poll_fn(|cx| {
        loop {
            if let std::task::Poll::Ready(error) = stream.poll_given_up(cx) {
                return std::task::Poll::Ready(error);
            }
            match std::task::ready!(stream.poll_ready(cx)) {
                Ok(()) => {}
                Err(error) => return std::task::Poll::Ready(error),
            }
            if let Err(error) = stream.send_chunk(cx, &mut frame) {
                return std::task::Poll::Ready(error);
            }
        }
    })
    .await;
    stream.finish();
    Err(error.into())
}

/// Answers `streams` requests for `node`, then sends so many frames of one byte on each of them,
/// which cost a receiver a hundred times as much, and stays until the session is over.
///
/// # Errors
///
/// The session is over.
pub async fn flood<T>(io: T, node: &str, streams: usize, frames: usize) -> Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut session = RawSession::registered(io, node).await?;
    let mut open = Vec::new();
    while open.len() < streams {
        let frame = next(&mut session).await?;
        let asks = frame.kind == DATA && frame.stream.is_multiple_of(2) && !frame.body.is_empty();
        if asks && !open.contains(&frame.stream) {
            open.push(frame.stream);
            let header = ChunkHeader::data(MAX_CHUNK_LEN).context("a whole chunk is one")?;
            let answer = [&OpenAnswer::Opened.encode()?[..], header.as_bytes()].concat();
            session
                .send(&[Frame::data(ACK, frame.stream, &answer)])
                .await?;
        }
    }
    for _ in 0..frames / BATCH {
        for stream in &open {
            let batch = Frame::data(0, *stream, b".").encode().repeat(BATCH);
            session.send_bytes(&batch).await?;
        }
    }
    loop {
        next(&mut session).await?;
    }
}

/// The next frame; pings are answered, so that the session lives.
async fn next<T>(session: &mut RawSession<T>) -> Result<Frame>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let frame = session.next().await?;
    if let Some(ControlMessage::Ping(number)) = session.control_message(&frame)? {
        let pong = ControlMessage::Pong(number).encode()?;
        session
            .send(&[Frame::data(0, CONTROL_STREAM, &pong)])
            .await?;
    }
    Ok(frame)
}

/// Frames sent at a time on one stream.
const BATCH: usize = 500;

const LIMITS: MuxLimits = MuxLimits {
    max_streams: MAX_STREAMS as usize,
    max_pending: 255,
    worn_out_at: u32::MAX,
};

const REGISTERED: Duration = Duration::from_secs(20);
