//! Asking a front door for what no node is, to see who answers.
//!
//! Owns one CONNECT to a name that cannot be a node's, and the reading of its answer: only a
//! proxymux master refuses it in these words. Nothing is dialled for it.
//! Leaves to `doors` what the answer means.

use std::{fmt, time::Duration};

use proxymux_proto::printable;
use proxymux_transport::telemetry::chain;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

/// What came of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    /// A master, which can say no.
    Master,
    /// A line that no master gives to this question in a good hour.
    Other(String),
    /// None: why.
    Nothing(String),
}

/// Asks, and waits a little longer than the master itself would.
pub(super) async fn ask<S>(stream: S, budget: Duration) -> Answer
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match timeout(budget + GRACE, exchange(stream)).await {
        Ok(Ok(line)) if line.starts_with(EXPECTED) => Answer::Master,
        Ok(Ok(line)) if line.is_empty() => Answer::Nothing("closed without an answer".to_owned()),
        Ok(Ok(line)) => Answer::Other(line),
        Ok(Err(error)) => Answer::Nothing(chain(&error)),
        Err(_) => Answer::Nothing(format!("no answer within {:?}", budget + GRACE)),
    }
}

async fn exchange<S>(mut stream: S) -> std::io::Result<String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(REQUEST.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    // To the end of the first line, or of what a line can be.
    while answer.len() < MAX_LINE_LEN && !answer.contains(&b'\n') {
        let mut some = [0; 256];
        let len = match stream.read(&mut some).await {
            Ok(0) => break,
            Ok(len) => len,
            // TLS calls an end without notice an error; what came before is an answer.
            Err(_) if !answer.is_empty() => break,
            Err(error) => return Err(error),
        };
        answer.extend(some.iter().take(len));
    }
    let line = answer.split(|&byte| byte == b'\n').next();
    let line = String::from_utf8_lossy(line.unwrap_or_default());
    Ok(printable(line.trim_end(), MAX_LINE_LEN))
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Master => f.write_str("a master answers"),
            Self::Other(line) => write!(f, "the answer is `{line}`"),
            Self::Nothing(why) => f.write_str(why),
        }
    }
}

/// In the form in which kube-apiserver asks. The domain is reserved for names that do not exist.
const REQUEST: &str = "CONNECT proxymux-check.invalid:10250 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
const EXPECTED: &str = "HTTP/1.1 503 no route to proxymux-check.invalid:10250:";

/// For a busy machine, beyond the master's own budget.
const GRACE: Duration = Duration::from_secs(2);

/// A status line has at most 215 bytes.
const MAX_LINE_LEN: usize = 1024;

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    async fn answered(answer: &str) -> Answer {
        let (ours, mut theirs) = duplex(4096);
        let asked = tokio::spawn(ask(ours, Duration::from_secs(1)));
        let mut request = vec![0; REQUEST.len()];
        theirs.read_exact(&mut request).await.unwrap();
        assert_eq!(request, REQUEST.as_bytes());
        theirs.write_all(answer.as_bytes()).await.unwrap();
        drop(theirs);
        asked.await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_masters_words_are_a_master() {
        let other = |line: &str| Answer::Other(line.to_owned());
        for (answer, expected) in [
            (
                "HTTP/1.1 503 no route to proxymux-check.invalid:10250: no node has this name\r\n\
                 Content-Length: 0\r\n\r\n",
                Answer::Master,
            ),
            ("HTTP/1.1 200 OK\r\n\r\n", other("HTTP/1.1 200 OK")),
            (
                "HTTP/1.1 503 Service Unavailable\r\n\r\n",
                other("HTTP/1.1 503 Service Unavailable"),
            ),
            ("\u{7f}ELF\r\n", other("?ELF")),
            ("", Answer::Nothing("closed without an answer".to_owned())),
        ] {
            assert_eq!(answered(answer).await, expected, "{answer:?}");
        }
        let endless = "x".repeat(3000);
        assert_eq!(answered(&endless).await, other(&"x".repeat(MAX_LINE_LEN)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_answers_is_not_waited_for() {
        let (ours, _theirs) = duplex(4096);

        let answer = ask(ours, Duration::from_secs(8)).await;

        assert_eq!(answer, Answer::Nothing("no answer within 10s".to_owned()));
    }
}
