//! HTTP bodies of the stand-ins: made while they are sent, so that size costs no memory.

use std::{
    convert::Infallible,
    fmt::Write as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Interval;

use crate::pattern::Pattern;

/// A body of one of these kinds.
#[derive(Debug)]
pub(crate) enum StandInBody {
    /// All there already; `None` once it was sent.
    Whole(Option<Bytes>),
    /// A piece of a patterned stream.
    Pattern(PatternBody),
    /// Lines of a container's log.
    Log(LogBody),
}

impl StandInBody {
    pub(crate) fn whole(content: impl Into<Bytes>) -> Self {
        Self::Whole(Some(content.into()).filter(|content| !content.is_empty()))
    }

    pub(crate) fn empty() -> Self {
        Self::Whole(None)
    }

    /// `sized` says whether the length is told beforehand; if not, HTTP/1.1 sends chunks.
    pub(crate) fn pattern(bytes: u64, seed: u64, sized: bool) -> Self {
        Self::Pattern(PatternBody {
            pattern: Pattern::new(seed),
            offset: 0,
            bytes,
            sized,
        })
    }
}

#[derive(Debug)]
pub(crate) struct PatternBody {
    pattern: Pattern,
    offset: u64,
    bytes: u64,
    sized: bool,
}

impl PatternBody {
    fn next(&mut self) -> Option<Bytes> {
        let left = self.left();
        if left == 0 {
            return None;
        }
        let piece = self
            .pattern
            .at(self.offset, usize::try_from(left).unwrap_or(usize::MAX));
        self.offset += piece.len() as u64;
        Some(Bytes::copy_from_slice(piece))
    }

    fn left(&self) -> u64 {
        self.bytes - self.offset
    }
}

/// Lines `next` to `written`, and if it follows one more at each tick, for ever. Without an
/// interval there is always one more.
#[derive(Debug)]
pub(crate) struct LogBody {
    pub(crate) container: String,
    pub(crate) line_length: usize,
    pub(crate) next: u64,
    pub(crate) written: u64,
    pub(crate) follow: bool,
    pub(crate) interval: Option<Interval>,
    /// Lives as long as the body does: how it is noticed that the client has gone.
    pub(crate) _guard: Option<Arc<()>>,
}

impl LogBody {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.next > self.written {
            if !self.follow {
                return Poll::Ready(None);
            }
            match &mut self.interval {
                Some(interval) => {
                    ready!(interval.poll_tick(context));
                    self.written = self.next;
                }
                None => self.written = self.next + LINES_PER_FRAME,
            }
        }
        let mut text = String::new();
        let last = self.written.min(self.next + LINES_PER_FRAME);
        for number in self.next..=last {
            push_log_line(&mut text, &self.container, number, self.line_length);
        }
        self.next = last + 1;
        Poll::Ready(Some(text.into()))
    }
}

/// One line of a log: sequence number, container, filled up to the length (without the newline).
pub(crate) fn push_log_line(text: &mut String, container: &str, number: u64, length: usize) {
    let start = text.len();
    // Writing to a string cannot fail.
    let _ = write!(text, "seq={number:010} container={container}");
    while text.len() - start < length {
        text.push('.');
    }
    text.push('\n');
}

impl Body for StandInBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = match self.get_mut() {
            Self::Whole(content) => content.take(),
            Self::Pattern(pattern) => pattern.next(),
            Self::Log(log) => ready!(log.poll_next(context)),
        };
        Poll::Ready(data.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(content) => content.is_none(),
            Self::Pattern(pattern) => pattern.left() == 0,
            Self::Log(log) => !log.follow && log.next > log.written,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(content) => {
                SizeHint::with_exact(content.as_ref().map_or(0, |content| content.len() as u64))
            }
            Self::Pattern(pattern) if pattern.sized => SizeHint::with_exact(pattern.left()),
            Self::Pattern(_) | Self::Log(_) => SizeHint::default(),
        }
    }
}

const LINES_PER_FRAME: u64 = 100;
