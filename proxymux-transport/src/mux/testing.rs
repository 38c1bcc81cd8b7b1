//! What the tests of the multiplexer, its streams and the relay share.
//!
//! Owns sessions of two ends in one process, a play of the control stream, raw peers that write
//! frames by hand, and layers that block when they are told to.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use proxymux_proto::{ChunkHeader, MAX_CHUNK_LEN, encode_frame};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, DuplexStream, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
    time::Instant,
};

use super::{Incoming, Mux, MuxLimits, Role, SessionFault, start_within};
use crate::memory::SessionMemory;
use crate::stream::{Filled, MessageStream, RelayStream, StreamError};

/// Limits that are out of the way.
pub(crate) const LIMITS: MuxLimits = MuxLimits {
    max_streams: 1024,
    max_pending: 128,
    worn_out_at: 1 << 31,
};

/// One end of a session whose driver runs in a task.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) mux: Mux,
    pub(crate) incoming: Incoming,
    pub(crate) driver: JoinHandle<SessionFault>,
    /// How often the driver was polled.
    pub(crate) turns: Arc<AtomicUsize>,
}

impl End {
    pub(crate) fn start<T>(io: T, role: Role, limits: MuxLimits) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        Self::start_within(io, role, limits, SessionMemory::unlimited())
    }

    pub(crate) fn start_within<T>(
        io: T,
        role: Role,
        limits: MuxLimits,
        memory: Arc<SessionMemory>,
    ) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (mux, incoming, mut driver) = start_within(io, role, limits, memory);
        let turns = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&turns);
        let driver = std::future::poll_fn(move |cx| {
            counted.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut driver).poll(cx)
        });
        Self {
            mux,
            incoming,
            driver: tokio::spawn(driver),
            turns,
        }
    }

    /// Waits until no stream is left, in any count and table.
    pub(crate) async fn is_empty(&self) {
        let mux = &self.mux;
        eventually(Duration::from_secs(10), || {
            (mux.streams(), mux.streams_known()) == (0, 0)
        })
        .await;
    }
}

/// Both ends of a session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) agent: End,
    pub(crate) master: End,
}

impl Session {
    pub(crate) fn in_memory(limits: MuxLimits) -> Self {
        let (agent, master) = tokio::io::duplex(64 * 1024);
        Self::over(agent, master, limits)
    }

    pub(crate) fn over<A, M>(agent: A, master: M, limits: MuxLimits) -> Self
    where
        A: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        M: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        Self {
            agent: End::start(agent, Role::Agent, limits),
            master: End::start(master, Role::Master, limits),
        }
    }

    /// Hands on aborts, as the control stream does.
    pub(crate) fn play_control(&self) {
        play_control(&self.agent.mux, &self.master.mux);
        play_control(&self.master.mux, &self.agent.mux);
    }

    /// Opens a stream; the agent's end comes first.
    pub(crate) async fn open(&mut self) -> (MessageStream, MessageStream) {
        let mut master = self.master.mux.open().await.unwrap();
        master.send(&message(b"open")).await.unwrap();
        let mut agent = self.agent.incoming.next().await.unwrap();
        assert_eq!(agent.receive().await.unwrap().unwrap(), &b"open"[..]);
        (agent, master)
    }

    /// Opens a stream up to the point where chunks go; the agent's end comes first.
    pub(crate) async fn open_relay(&mut self) -> (RelayStream, RelayStream) {
        let (mut agent, mut master) = self.open().await;
        agent.send(&message(b"opened")).await.unwrap();
        assert_eq!(master.receive().await.unwrap().unwrap(), &b"opened"[..]);
        (agent.into_relay(), master.into_relay())
    }

    /// Has the agent answer every stream with an echo from now on.
    pub(crate) fn echo(&mut self) -> JoinHandle<()> {
        let (_, streams) = tokio::sync::mpsc::channel(1);
        let incoming = std::mem::replace(&mut self.agent.incoming, Incoming { streams });
        tokio::spawn(echo_streams(incoming))
    }

    pub(crate) async fn is_empty(&self) {
        self.agent.is_empty().await;
        self.master.is_empty().await;
    }

    pub(crate) fn assert_alive(&self) {
        assert!(!self.agent.driver.is_finished());
        assert!(!self.master.driver.is_finished());
    }
}

fn play_control(from: &Mux, to: &Mux) {
    let (from, to) = (from.clone(), to.clone());
    tokio::spawn(async move {
        loop {
            let (stream, code) = from.next_abort().await;
            to.abort_received(stream, code);
        }
    });
}

pub(crate) fn message(content: &[u8]) -> Bytes {
    encode_frame(content).unwrap()
}

/// Waits for something outside of the test's own doing.
pub(crate) async fn eventually(limit: Duration, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < until, "condition not met within {limit:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Sends payload in chunks, waiting for credit.
pub(crate) async fn send(stream: &mut RelayStream, payload: &[u8]) -> Result<(), StreamError> {
    for part in payload.chunks(MAX_CHUNK_LEN) {
        let mut frame = vec![0; ChunkHeader::LEN];
        frame.extend_from_slice(part);
        std::future::poll_fn(|cx| match stream.poll_ready(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(stream.send_chunk(cx, &mut frame)),
            other => other,
        })
        .await?;
    }
    std::future::poll_fn(|cx| stream.poll_ready(cx)).await
}

pub(crate) async fn end(stream: &mut RelayStream) -> Result<(), StreamError> {
    std::future::poll_fn(|cx| stream.poll_end(cx)).await
}

/// The next payload there is; `None` at the end.
pub(crate) async fn receive(stream: &mut RelayStream) -> Result<Option<Vec<u8>>, StreamError> {
    match std::future::poll_fn(|cx| stream.poll_fill(cx)).await? {
        Filled::End => Ok(None),
        Filled::Data => {
            let data = stream.data().to_vec();
            stream.consume(data.len());
            Ok(Some(data))
        }
    }
}

/// Everything up to the end.
pub(crate) async fn receive_all(stream: &mut RelayStream) -> Result<Vec<u8>, StreamError> {
    let mut all = Vec::new();
    while let Some(data) = receive(stream).await? {
        all.extend_from_slice(&data);
    }
    Ok(all)
}

/// Answers every stream of an agent with an echo, until the session ends.
async fn echo_streams(mut incoming: Incoming) {
    while let Some(stream) = incoming.next().await {
        tokio::spawn(async move {
            // A stream that is given up while it is served is the other side's affair.
            let _ = echo_stream(stream).await;
        });
    }
}

async fn echo_stream(mut stream: MessageStream) -> Result<(), StreamError> {
    stream.receive().await?.ok_or(StreamError::CutOff)?;
    echo_opened(stream).await
}

/// Answers a stream whose request has been read.
pub(crate) async fn echo_opened(mut stream: MessageStream) -> Result<(), StreamError> {
    stream.send(&message(b"dialing")).await?;
    stream.send(&message(b"opened")).await?;
    let mut stream = stream.into_relay();
    while let Some(data) = receive(&mut stream).await? {
        send(&mut stream, &data).await?;
    }
    end(&mut stream).await?;
    stream.finish();
    Ok(())
}

/// Opens a stream to an agent of [`echo_streams`], has something echoed, and closes it.
pub(crate) async fn open_and_echo(mux: &Mux) {
    let mut stream = mux.open().await.unwrap();
    stream.send(&message(b"open")).await.unwrap();
    assert_eq!(stream.receive().await.unwrap().unwrap(), &b"dialing"[..]);
    assert_eq!(stream.receive().await.unwrap().unwrap(), &b"opened"[..]);
    let mut stream = stream.into_relay();
    send(&mut stream, b"hello").await.unwrap();
    assert_eq!(receive(&mut stream).await.unwrap().unwrap(), b"hello");
    end(&mut stream).await.unwrap();
    assert_eq!(receive(&mut stream).await.unwrap(), None);
    stream.finish();
}

/// A TCP connection over loopback, with the kernel's buffers as small as `buffer` makes them.
pub(crate) async fn tcp_pair(buffer: Option<u32>) -> (TcpStream, TcpStream) {
    let (near, listening) = (TcpSocket::new_v4().unwrap(), TcpSocket::new_v4().unwrap());
    for socket in [&near, &listening] {
        if let Some(size) = buffer {
            socket.set_send_buffer_size(size).unwrap();
            socket.set_recv_buffer_size(size).unwrap();
        }
    }
    listening.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener: TcpListener = listening.listen(1).unwrap();
    let (near, far) = tokio::join!(
        near.connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    let (near, far) = (near.unwrap(), far.unwrap().0);
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (near, far)
}

/// A layer whose writes, and its end, can be held up.
#[derive(Debug)]
pub(crate) struct Gated<T> {
    pub(crate) io: T,
    gate: Arc<Gate>,
}

#[derive(Debug, Default)]
pub(crate) struct Gate {
    closed: AtomicBool,
    waiting: Mutex<Option<Waker>>,
}

impl Gate {
    pub(crate) fn around<T>(io: T) -> (Gated<T>, Arc<Self>) {
        let gate = Arc::new(Self::default());
        let gated = Gated {
            io,
            gate: Arc::clone(&gate),
        };
        (gated, gate)
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(crate) fn open(&self) {
        self.closed.store(false, Ordering::Release);
        if let Some(waker) = self.waiting.lock().unwrap().take() {
            waker.wake();
        }
    }

    fn poll_open(&self, cx: &mut Context<'_>) -> Poll<()> {
        *self.waiting.lock().unwrap() = Some(cx.waker().clone());
        if self.closed.load(Ordering::Acquire) {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gated<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gated<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.gate.poll_open(cx));
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.gate.poll_open(cx));
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A frame made by hand.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u16,
    pub(crate) stream: u32,
    /// The length of the body, or the value of a frame that has none.
    pub(crate) value: u32,
    pub(crate) body: Vec<u8>,
}

pub(crate) const DATA: u8 = 0;
pub(crate) const WINDOW_UPDATE: u8 = 1;
pub(crate) const PING: u8 = 2;
pub(crate) const GO_AWAY: u8 = 3;
pub(crate) const SYN: u16 = 1;
pub(crate) const ACK: u16 = 2;
pub(crate) const FIN: u16 = 4;
pub(crate) const RST: u16 = 8;

impl Frame {
    pub(crate) fn data(flags: u16, stream: u32, body: &[u8]) -> Self {
        Self {
            kind: DATA,
            flags,
            stream,
            value: u32::try_from(body.len()).unwrap(),
            body: body.to_vec(),
        }
    }

    pub(crate) fn plain(kind: u8, flags: u16, stream: u32, value: u32) -> Self {
        Self {
            kind,
            flags,
            stream,
            value,
            body: Vec::new(),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0, self.kind];
        bytes.extend_from_slice(&self.flags.to_be_bytes());
        bytes.extend_from_slice(&self.stream.to_be_bytes());
        bytes.extend_from_slice(&self.value.to_be_bytes());
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// Takes a frame from the front of `bytes`; `None` when it is not complete.
    pub(crate) fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let header = bytes.first_chunk::<12>()?;
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        let value = word(8);
        let len = if header[1] == DATA { value as usize } else { 0 };
        let body = bytes.get(12..12 + len)?.to_vec();
        let frame = Self {
            kind: header[1],
            flags: u16::from_be_bytes([header[2], header[3]]),
            stream: word(4),
            value,
            body,
        };
        *bytes = &bytes[12 + len..];
        Some(frame)
    }

    pub(crate) async fn read(io: &mut DuplexStream) -> io::Result<Self> {
        let mut bytes = vec![0; 12];
        io.read_exact(&mut bytes).await?;
        if bytes[1] == DATA {
            let len = u32::from_be_bytes(bytes[8..12].try_into().unwrap());
            bytes.resize(12 + len as usize, 0);
            io.read_exact(&mut bytes[12..]).await?;
        }
        Ok(Self::decode(&mut &bytes[..]).unwrap())
    }
}
