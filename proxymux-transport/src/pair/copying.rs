//! Moving bytes through user memory.
//!
//! Owns [`Copying`], which works for every connection, encrypted ones among them. Payload is read
//! into a buffer of the thread; a direction keeps of it only what its slow side has not taken
//! (16 KiB at most), so that a relay at rest holds no buffer.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::io::ReadBuf;

use super::{Fault, Fetched, Mover};
use crate::relay::Endpoint;

/// Moves bytes by reading and writing them.
#[derive(Debug)]
pub(crate) struct Copying {
    /// What was read and is not written.
    kept: Bytes,
}

impl Copying {
    /// Begins with what was read before.
    pub(crate) fn new(early: Bytes) -> Self {
        Self { kept: early }
    }
}

impl<S: Endpoint, K: Endpoint> Mover<S, K> for Copying {
    fn holds(&self) -> bool {
        !self.kept.is_empty()
    }

    fn discard(&mut self) {
        self.kept = Bytes::new();
    }

    fn poll_write_out(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut K,
        moved: &mut usize,
    ) -> Poll<Result<(), Fault>> {
        while self.kept.has_remaining() {
            let n = ready!(poll_write(cx, sink, &self.kept))?;
            self.kept.advance(n);
            *moved += n;
        }
        // Even empty it would keep what it is a part of.
        self.kept = Bytes::new();
        Poll::Ready(Ok(()))
    }

    fn poll_fetch(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        sink: &mut K,
        moved: &mut usize,
    ) -> Poll<Result<Fetched, Fault>> {
        BUFFER.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(buffer);
            let Poll::Ready(result) = Pin::new(&mut *source).poll_read(cx, &mut read) else {
                // TLS may hold back a part of what it took.
                ready!(Pin::new(&mut *sink).poll_flush(cx)).map_err(Fault::Sink)?;
                return Poll::Pending;
            };
            result.map_err(Fault::Source)?;
            let read = read.filled();
            if read.is_empty() {
                return Poll::Ready(Ok(Fetched::End));
            }
            let n = match poll_write(cx, sink, read) {
                Poll::Ready(written) => written?,
                Poll::Pending => 0,
            };
            *moved += n;
            self.kept = Bytes::copy_from_slice(read.get(n..).unwrap_or_default());
            Poll::Ready(Ok(Fetched::Bytes))
        })
    }
}

/// Reads once, for a sink that has left.
pub(super) fn poll_throw_away(
    cx: &mut Context<'_>,
    source: &mut impl Endpoint,
) -> Poll<Result<Fetched, Fault>> {
    BUFFER.with_borrow_mut(|buffer| {
        let mut read = ReadBuf::new(buffer);
        ready!(Pin::new(source).poll_read(cx, &mut read)).map_err(Fault::Source)?;
        Poll::Ready(Ok(if read.filled().is_empty() {
            Fetched::End
        } else {
            Fetched::Bytes
        }))
    })
}

fn poll_write(
    cx: &mut Context<'_>,
    sink: &mut impl Endpoint,
    bytes: &[u8],
) -> Poll<Result<usize, Fault>> {
    match ready!(Pin::new(sink).poll_write(cx, bytes)) {
        Ok(0) => Poll::Ready(Err(Fault::Sink(io::ErrorKind::WriteZero.into()))),
        written => Poll::Ready(written.map_err(Fault::Sink)),
    }
}

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_LEN].into_boxed_slice());
}

/// As much as a record of TLS has, and all that a direction keeps for a slow side.
pub(crate) const READ_LEN: usize = 16 * 1024;
