//! The answer to a CONNECT, read as Go's `http.ReadResponse` over a `bufio.Reader` does.
//!
//! What is strict and what is lenient there is strict and lenient here, so that a front door that
//! passes these tests passes with kube-apiserver. Bodies are never read: kube-apiserver only
//! looks at the status, and at how much came in behind the header.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// What is wrong with an answer.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The connection ended in the middle of the header, or before it.
    #[error("unexpected EOF")]
    UnexpectedEof,
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The first line is no status line.
    #[error("malformed HTTP response {0:?}")]
    Response(String),
    /// The code has not three digits.
    #[error("malformed HTTP status code {0:?}")]
    Code(String),
    /// The protocol is not HTTP/x.y.
    #[error("malformed HTTP version {0:?}")]
    Version(String),
    /// A header line without a name and a colon.
    #[error("malformed MIME header line: {0}")]
    Header(String),
    /// `Content-Length` is no number, or there are two different ones.
    #[error("bad Content-Length {0:?}")]
    ContentLength(String),
    /// A `Transfer-Encoding` other than `chunked`.
    #[error("unsupported transfer encoding: {0:?}")]
    TransferEncoding(String),
    /// More header than any answer of a front door needs. The real one would read on.
    #[error("header of more than {MAX_HEADER} bytes")]
    TooLong,
}

/// An answer that could be read.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Answer {
    pub(super) code: u16,
    /// Code and reason phrase.
    pub(super) status: String,
    /// How many bytes were read together with the header and do not belong to it.
    pub(super) buffered: usize,
}

pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Answer, AnswerError> {
    let mut reader = Reader::new(stream);
    let (code, status) = status_line(&reader.line().await?)?;
    let mut headers = Headers::default();
    loop {
        let line = reader.line().await?;
        if line.is_empty() {
            break;
        }
        headers.add(&line)?;
    }
    Ok(Answer {
        code,
        status,
        buffered: reader.buffered(),
    })
}

fn status_line(line: &str) -> Result<(u16, String), AnswerError> {
    let malformed = || AnswerError::Response(line.to_owned());
    let (protocol, rest) = line.split_once(' ').ok_or_else(malformed)?;
    let status = rest.trim_start_matches(' ');
    let code = status.split(' ').next().unwrap_or_default();
    let number = (code.len() == 3)
        .then(|| code.parse::<u16>().ok())
        .flatten();
    let number = number.ok_or_else(|| AnswerError::Code(code.to_owned()))?;
    if !is_version(protocol) {
        return Err(AnswerError::Version(protocol.to_owned()));
    }
    Ok((number, status.to_owned()))
}

fn is_version(protocol: &str) -> bool {
    let digits = protocol.strip_prefix("HTTP/").map(str::as_bytes);
    matches!(digits, Some([major, b'.', minor])
        if major.is_ascii_digit() && minor.is_ascii_digit())
}

/// The header lines so far: each is checked when it is added.
#[derive(Debug, Default)]
struct Headers {
    any: bool,
    content_length: Option<String>,
}

impl Headers {
    fn add(&mut self, line: &str) -> Result<(), AnswerError> {
        let continues = line.starts_with([' ', '\t']);
        if continues && self.any {
            return Ok(());
        }
        let malformed = || AnswerError::Header(line.to_owned());
        let (name, value) = line.split_once(':').ok_or_else(malformed)?;
        if continues || name.is_empty() || !name.bytes().all(is_token) {
            return Err(malformed());
        }
        self.any = true;
        self.check(&name.to_ascii_lowercase(), value.trim())
    }

    fn check(&mut self, name: &str, value: &str) -> Result<(), AnswerError> {
        match name {
            "content-length" => {
                let first = self.content_length.get_or_insert_with(|| value.to_owned());
                let number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
                if !number || first != value {
                    return Err(AnswerError::ContentLength(value.to_owned()));
                }
            }
            "transfer-encoding" if !value.eq_ignore_ascii_case("chunked") => {
                return Err(AnswerError::TransferEncoding(value.to_owned()));
            }
            _ => {}
        }
        Ok(())
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A buffer of the same size and the same habits: one read when it is empty, never one more than
/// a line needs. So what counts as buffered is what counts there.
struct Reader<'a, R> {
    stream: &'a mut R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    total: usize,
}

impl<'a, R: AsyncRead + Unpin> Reader<'a, R> {
    fn new(stream: &'a mut R) -> Self {
        Self {
            stream,
            buffer: vec![0; BUFFER_SIZE],
            start: 0,
            end: 0,
            total: 0,
        }
    }

    /// One line without its end, which is `\n` or `\r\n`.
    async fn line(&mut self) -> Result<String, AnswerError> {
        let mut line = Vec::new();
        loop {
            if self.start == self.end {
                self.fill().await?;
            }
            let fresh = self.buffer.get(self.start..self.end).unwrap_or_default();
            if let Some(length) = fresh.iter().position(|byte| *byte == b'\n') {
                line.extend_from_slice(fresh.get(..length).unwrap_or_default());
                self.start += length + 1;
                break;
            }
            line.extend_from_slice(fresh);
            self.start = self.end;
        }
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        Ok(String::from_utf8_lossy(line).into_owned())
    }

    async fn fill(&mut self) -> Result<(), AnswerError> {
        if self.total > MAX_HEADER {
            return Err(AnswerError::TooLong);
        }
        let length = self.stream.read(&mut self.buffer).await?;
        if length == 0 {
            return Err(AnswerError::UnexpectedEof);
        }
        (self.start, self.end) = (0, length);
        self.total += length;
        Ok(())
    }

    fn buffered(&self) -> usize {
        self.end - self.start
    }
}

/// The size of a `bufio.Reader` that nobody has asked for another.
const BUFFER_SIZE: usize = 4096;
const MAX_HEADER: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer(bytes: &[u8]) -> Result<Answer, AnswerError> {
        let mut stream = bytes;
        read(&mut stream).await
    }

    async fn problem(bytes: &[u8]) -> String {
        answer(bytes).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn plain_answers_are_read_with_code_and_status() {
        let cases: [(&[u8], u16, &str); 5] = [
            (b"HTTP/1.1 200 OK\r\n\r\n", 200, "200 OK"),
            (b"HTTP/1.0 200\r\n\r\n", 200, "200"),
            (b"HTTP/1.1 200 \n\n", 200, "200 "),
            (
                b"HTTP/1.1 503 node 10.0.10.10 has no session; last seen 42s ago\r\n\
                  Content-Length: 0\r\nConnection: close\r\n\r\n",
                503,
                "503 node 10.0.10.10 has no session; last seen 42s ago",
            ),
            (b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", 200, "200 OK"),
        ];
        for (bytes, code, status) in cases {
            let answer = answer(bytes).await.unwrap();
            assert_eq!((answer.code, answer.status.as_str()), (code, status));
            assert_eq!(answer.buffered, 0);
        }
    }

    #[tokio::test]
    async fn bytes_behind_the_header_are_counted_if_they_came_with_it() {
        let together = answer(b"HTTP/1.1 200 OK\r\n\r\n\x16\x03").await.unwrap();
        assert_eq!(together.buffered, 2);
        let mut apart = in_pieces(&[b"HTTP/1.1 200 OK\r\n\r\n", b"later"]);
        assert_eq!(read(&mut apart).await.unwrap().buffered, 0);
    }

    #[tokio::test]
    async fn a_header_may_come_in_pieces_and_exceed_the_buffer() {
        let long = format!("X-Long: {}\r\n", "y".repeat(10_000));
        let mut pieces = in_pieces(&[
            b"HTTP/1.",
            b"1 200 O",
            b"K\r",
            b"\n",
            long.as_bytes(),
            b"\r\n",
        ]);
        assert_eq!(read(&mut pieces).await.unwrap().status, "200 OK");
    }

    #[tokio::test]
    async fn each_malformed_answer_has_its_text() {
        let cases: [(&[u8], &str); 12] = [
            (b"", "unexpected EOF"),
            (b"HTTP/1.1 200 OK\r\n", "unexpected EOF"),
            (b"HTTP/1.1 200 OK", "unexpected EOF"),
            (b"nonsense\r\n\r\n", "malformed HTTP response \"nonsense\""),
            (
                b"HTTP/1.1 20 OK\r\n\r\n",
                "malformed HTTP status code \"20\"",
            ),
            (
                b"HTTP/1.1 2x0 OK\r\n\r\n",
                "malformed HTTP status code \"2x0\"",
            ),
            (
                b"SSH-2.0 200 OK\r\n\r\n",
                "malformed HTTP version \"SSH-2.0\"",
            ),
            (
                b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
                "malformed MIME header line: no colon",
            ),
            (
                b"HTTP/1.1 200 OK\r\n : x\r\n\r\n",
                "malformed MIME header line:  : x",
            ),
            (
                b"HTTP/1.1 200 OK\r\na b: x\r\n\r\n",
                "malformed MIME header line: a b: x",
            ),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
                "bad Content-Length \"2\"",
            ),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
                "unsupported transfer encoding: \"gzip\"",
            ),
        ];
        for (bytes, text) in cases {
            assert_eq!(problem(bytes).await, text);
        }
    }

    /// A stream that gives one piece per read.
    fn in_pieces(pieces: &[&[u8]]) -> impl AsyncRead + Unpin + use<> {
        struct Pieces(std::collections::VecDeque<Vec<u8>>);
        impl AsyncRead for Pieces {
            fn poll_read(
                mut self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
                buffer: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<io::Result<()>> {
                if let Some(mut piece) = self.0.pop_front() {
                    let rest = piece.split_off(piece.len().min(buffer.remaining()));
                    buffer.put_slice(&piece);
                    if !rest.is_empty() {
                        self.0.push_front(rest);
                    }
                }
                std::task::Poll::Ready(Ok(()))
            }
        }
        Pieces(pieces.iter().map(|piece| piece.to_vec()).collect())
    }
}
