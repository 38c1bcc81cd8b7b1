//! A stream whose reads and writes come in pieces of random size.
//!
//! Buffers, frames and windows have edges; a sender or reader with a size of its own meets few of
//! them. Sizes are spread evenly over the orders of magnitude, so that single bytes occur as well
//! as pieces larger than any buffer on the way. The same seed gives the same sizes.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use fastrand::Rng;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Reads and writes `inner` in pieces of 1 byte to 256 KiB.
#[derive(Debug)]
pub struct RandomChunks<T> {
    inner: T,
    reads: Rng,
    writes: Rng,
}

impl<T> RandomChunks<T> {
    /// `seed` decides about the sizes.
    pub fn new(inner: T, seed: u64) -> Self {
        Self {
            inner,
            reads: Rng::with_seed(seed),
            writes: Rng::with_seed(seed.wrapping_add(1)),
        }
    }
}

/// A size, each order of magnitude as likely as the others.
pub fn random_size(random: &mut Rng) -> usize {
    let magnitude = random.u32(0..=MAX_MAGNITUDE);
    random.usize(1..=1 << magnitude)
}

impl<T: AsyncRead + Unpin> AsyncRead for RandomChunks<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let size = random_size(&mut this.reads).min(buffer.remaining());
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(size));
        ready!(Pin::new(&mut this.inner).poll_read(context, &mut part))?;
        let length = part.filled().len();
        buffer.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for RandomChunks<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let size = random_size(&mut this.writes).min(data.len());
        let part = data.get(..size).unwrap_or(data);
        Pin::new(&mut this.inner).poll_write(context, part)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

/// 256 KiB, a stream's window.
const MAX_MAGNITUDE: u32 = 18;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[test]
    fn sizes_reach_from_one_byte_to_a_window() {
        let mut random = Rng::with_seed(1);
        let sizes: BTreeSet<_> = (0..10_000).map(|_| random_size(&mut random)).collect();
        assert_eq!(sizes.first(), Some(&1));
        assert!(sizes.last().is_some_and(|largest| *largest > 200_000));
        assert!(sizes.range(100..1000).count() > 100);
    }

    #[tokio::test]
    async fn bytes_pass_unchanged_in_many_pieces() {
        let (near, far) = duplex(1 << 20);
        let (mut near, mut far) = (RandomChunks::new(near, 1), RandomChunks::new(far, 2));
        let sent: Vec<u8> = (0..=255).cycle().take(300_000).collect();

        near.write_all(&sent).await.expect("a pipe takes it");
        near.shutdown().await.expect("a pipe can be closed");
        let mut received = Vec::new();
        far.read_to_end(&mut received)
            .await
            .expect("a pipe gives it");

        assert!(received == sent);
    }
}
