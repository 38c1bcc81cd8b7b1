//! A client that says to the front door whatever a test wants it to say.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::Tunnel;

/// A connection to the front door without manners.
#[derive(Debug)]
pub struct RawClient {
    tunnel: Tunnel,
}

/// What came back, uninterpreted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RawAnswer {
    /// All up to and with the empty line; everything, if there is none.
    pub head: String,
    /// What had come in behind it.
    pub rest: Vec<u8>,
}

impl RawAnswer {
    /// The first line.
    pub fn status_line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    /// The status code, if the first line has one.
    pub fn code(&self) -> Option<u16> {
        self.status_line().split(' ').nth(1)?.parse().ok()
    }

    /// A header's value, by its name in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self
            .head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'));
        let (_, value) = headers.find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        Some(value.trim())
    }

    fn new(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let (head, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 4));
        Self {
            head: String::from_utf8_lossy(head).into_owned(),
            rest: rest.to_vec(),
        }
    }
}

impl RawClient {
    pub(super) fn new(tunnel: Tunnel) -> Self {
        Self { tunnel }
    }

    /// Sends these bytes.
    ///
    /// # Errors
    ///
    /// The connection is gone.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.tunnel.write_all(bytes).await?;
        self.tunnel.flush().await
    }

    /// Ends its own direction.
    ///
    /// # Errors
    ///
    /// The connection is gone.
    pub async fn half_close(&mut self) -> io::Result<()> {
        self.tunnel.shutdown().await
    }

    /// Reads up to the end of the header, or to the end of the connection.
    ///
    /// # Errors
    ///
    /// The connection failed.
    pub async fn read_answer(&mut self) -> io::Result<RawAnswer> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        while !bytes.windows(4).any(|window| window == b"\r\n\r\n") {
            let length = self.tunnel.read(&mut buffer).await?;
            if length == 0 {
                break;
            }
            bytes.extend_from_slice(buffer.get(..length).unwrap_or_default());
        }
        Ok(RawAnswer::new(&bytes))
    }

    /// Reads to the end of the connection: an answer that announces a close must keep to it.
    ///
    /// # Errors
    ///
    /// The connection failed.
    pub async fn read_to_end(&mut self) -> io::Result<RawAnswer> {
        let mut bytes = Vec::new();
        self.tunnel.read_to_end(&mut bytes).await?;
        Ok(RawAnswer::new(&bytes))
    }

    /// Whether the front door says nothing and does not close for this long.
    ///
    /// # Errors
    ///
    /// The connection failed.
    pub async fn is_silent_for(&mut self, time: Duration) -> io::Result<bool> {
        let mut byte = [0];
        match timeout(time, self.tunnel.read(&mut byte)).await {
            Ok(read) => read.map(|_| false),
            Err(_) => Ok(true),
        }
    }

    /// The connection itself, to go on with as a tunnel.
    pub fn into_tunnel(self) -> Tunnel {
        self.tunnel
    }
}
