//! Frames of the multiplexer, written and read by hand.
//!
//! [`RawSession`] is an authenticated peer that does with the multiplexer's protocol as it
//! pleases: yamux (its specification, "Framing") with 12 bytes of header per frame.

use anyhow::{Context, Result, bail, ensure};
use proxymux_proto::{ControlMessage, FrameDecoder};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::messages;
use crate::limits::SOON;

/// One frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    /// [`DATA`], [`WINDOW_UPDATE`], [`PING`] or [`GO_AWAY`], or a kind that does not exist.
    pub kind: u8,
    /// Of [`SYN`], [`ACK`], [`FIN`] and [`RST`].
    pub flags: u16,
    /// The stream, 0 for the session.
    pub stream: u32,
    /// The length of the body, or the value of a frame that has none.
    pub value: u32,
    /// What [`DATA`] carries.
    pub body: Vec<u8>,
}

impl Frame {
    /// A frame that carries `body`.
    ///
    /// # Panics
    ///
    /// When the body is longer than a frame can say.
    pub fn data(flags: u16, stream: u32, body: &[u8]) -> Self {
        Self {
            kind: DATA,
            flags,
            stream,
            value: u32::try_from(body.len()).expect("a test's body is short"),
            body: body.to_vec(),
        }
    }

    /// A frame without a body.
    pub fn bare(kind: u8, flags: u16, stream: u32, value: u32) -> Self {
        Self {
            kind,
            flags,
            stream,
            value,
            body: Vec::new(),
        }
    }

    /// Whether it has this flag.
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// The frame as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION, self.kind];
        bytes.extend_from_slice(&self.flags.to_be_bytes());
        bytes.extend_from_slice(&self.stream.to_be_bytes());
        bytes.extend_from_slice(&self.value.to_be_bytes());
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// An agent's end of a session without a multiplexer.
#[derive(Debug)]
pub struct RawSession<T> {
    io: T,
    control: FrameDecoder,
}

impl<T: AsyncRead + AsyncWrite + Unpin> RawSession<T> {
    /// Opens the control stream by hand and registers as `node`, which the master must accept.
    ///
    /// # Errors
    ///
    /// It does not.
    pub async fn registered(io: T, node: &str) -> Result<Self> {
        let mut session = Self {
            io,
            control: FrameDecoder::default(),
        };
        let registration = messages::register(node)?.encode()?;
        session
            .send(&[Frame::data(SYN, CONTROL_STREAM, &registration)])
            .await?;
        loop {
            let frame = session.next().await?;
            match session.control_message(&frame)? {
                Some(ControlMessage::Registered(_)) => return Ok(session),
                Some(ControlMessage::Ping(_)) | None => {}
                Some(other) => bail!("the master answers {other:?}"),
            }
        }
    }

    /// Sends frames.
    ///
    /// # Errors
    ///
    /// The session is over.
    pub async fn send(&mut self, frames: &[Frame]) -> Result<()> {
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        self.send_bytes(&bytes).await
    }

    /// Sends anything.
    ///
    /// # Errors
    ///
    /// The session is over.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let sent = async {
            self.io.write_all(bytes).await?;
            self.io.flush().await
        };
        Ok(timeout(SOON, sent)
            .await
            .context("the master reads nothing")??)
    }

    /// The next frame.
    ///
    /// # Errors
    ///
    /// None comes, or the session is over.
    pub async fn next(&mut self) -> Result<Frame> {
        let read = timeout(SOON, read_frame(&mut self.io)).await;
        read.context("no frame comes")?
    }

    /// The next frame for which `wanted` is true, leaving out those before it.
    ///
    /// # Errors
    ///
    /// None comes, or the session is over.
    pub async fn next_matching(&mut self, wanted: impl Fn(&Frame) -> bool) -> Result<Frame> {
        let waited = async {
            loop {
                let frame = self.next().await?;
                if wanted(&frame) {
                    return Ok(frame);
                }
            }
        };
        timeout(SOON, waited).await.context("no such frame")?
    }

    /// The next control message for which `wanted` is true, leaving out those before it.
    ///
    /// # Errors
    ///
    /// None comes, or the session is over.
    pub async fn next_control(
        &mut self,
        wanted: impl Fn(&ControlMessage) -> bool,
    ) -> Result<ControlMessage> {
        let waited = async {
            loop {
                let frame = self.next().await?;
                if let Some(message) = self.control_message(&frame)?
                    && wanted(&message)
                {
                    return Ok(message);
                }
            }
        };
        timeout(SOON, waited)
            .await
            .context("no such control message")?
    }

    /// The control message that `frame` completes, if it does.
    ///
    /// # Errors
    ///
    /// What is on the control stream is no message.
    pub fn control_message(&mut self, frame: &Frame) -> Result<Option<ControlMessage>> {
        if frame.kind != DATA || frame.stream != CONTROL_STREAM {
            return Ok(None);
        }
        self.control.push(&frame.body);
        let content = self.control.next()?;
        Ok(content
            .map(|content| ControlMessage::decode(&content))
            .transpose()?)
    }

    /// Waits until the master has ended the connection; returns the frames that came before.
    ///
    /// # Errors
    ///
    /// It does not.
    pub async fn ends(mut self) -> Result<Vec<Frame>> {
        let mut frames = Vec::new();
        let read = async {
            while let Ok(frame) = read_frame(&mut self.io).await {
                frames.push(frame);
            }
        };
        timeout(SOON, read)
            .await
            .context("the master keeps the connection")?;
        Ok(frames)
    }
}

async fn read_frame(io: &mut (impl AsyncRead + Unpin)) -> Result<Frame> {
    let mut header = [0; 12];
    io.read_exact(&mut header)
        .await
        .context("the connection has ended")?;
    let [version, kind, f0, f1, s0, s1, s2, s3, v0, v1, v2, v3] = header;
    ensure!(version == VERSION, "frame of version {version}");
    let value = u32::from_be_bytes([v0, v1, v2, v3]);
    let mut body = Vec::new();
    if kind == DATA {
        body.resize(usize::try_from(value)?, 0);
        io.read_exact(&mut body)
            .await
            .context("the connection has ended")?;
    }
    Ok(Frame {
        kind,
        flags: u16::from_be_bytes([f0, f1]),
        stream: u32::from_be_bytes([s0, s1, s2, s3]),
        value,
        body,
    })
}

const VERSION: u8 = 0;

/// Carries bytes of a stream.
pub const DATA: u8 = 0;
/// Gives credit for a stream.
pub const WINDOW_UPDATE: u8 = 1;
/// Asks for a sign of life, or is one.
pub const PING: u8 = 2;
/// Ends the session.
pub const GO_AWAY: u8 = 3;

/// Opens a stream.
pub const SYN: u16 = 1;
/// Acknowledges that a stream was opened.
pub const ACK: u16 = 2;
/// Ends one direction of a stream.
pub const FIN: u16 = 4;
/// Ends a stream at once.
pub const RST: u16 = 8;

/// The first stream of the side that is the multiplexer's client.
pub const CONTROL_STREAM: u32 = 1;
