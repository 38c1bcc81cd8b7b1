//! The control stream of a session.
//!
//! Owns reading and writing [`ControlMessage`]s on a stream, both from one task, and the limit of
//! what may wait to be sent. What the messages mean is `session.rs` and the two daemons.

use std::task::Poll;

use proxymux_proto::{ControlMessage, DecodeError, FrameError};

use crate::stream::{MessageStream, StreamError};

/// One end of a control stream.
#[derive(Debug)]
pub struct ControlStream {
    messages: MessageStream,
}

/// The control stream, and with it the session, is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The peer ended the stream.
    #[error("peer closed the control stream")]
    Closed,
    /// The stream failed.
    #[error("control stream failed")]
    Stream(#[from] StreamError),
    /// The peer sent something that is no message, or too long.
    #[error("peer sent a bad control message")]
    Decode(#[from] DecodeError),
    /// A message of ours is too long for the wire.
    #[error("control message is too long to be sent")]
    Encode(#[from] FrameError),
    /// The peer does not take what we send.
    #[error("{waiting} bytes of control messages wait for the peer, at most {MAX_QUEUED} may")]
    Stuck {
        /// Bytes that wait.
        waiting: usize,
    },
}

impl ControlStream {
    /// Puts control messages on a stream.
    #[must_use]
    pub fn new(messages: MessageStream) -> Self {
        Self { messages }
    }

    /// Queues a message; it goes out while [`ControlStream::next`] is awaited.
    ///
    /// # Errors
    ///
    /// When the message is too long, or the peer has not taken the last ones.
    pub fn queue(&mut self, message: &ControlMessage) -> Result<(), ControlError> {
        let waiting = self.messages.queued();
        if waiting > MAX_QUEUED {
            return Err(ControlError::Stuck { waiting });
        }
        self.messages.queue(&message.encode()?);
        Ok(())
    }

    /// Sends what is queued and waits for the peer's next message.
    ///
    /// What has arrived comes before a failure to send: a peer may say why it goes, and go.
    ///
    /// Cancel-safe: what has arrived, and what was not sent, is kept.
    ///
    /// # Errors
    ///
    /// When the session is of no more use.
    pub async fn next(&mut self) -> Result<ControlMessage, ControlError> {
        let content = std::future::poll_fn(|cx| {
            let sent = self.messages.poll_send(cx);
            match (self.messages.poll_receive(cx), sent) {
                (Poll::Pending, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
                (received, _) => received,
            }
        });
        let content = content.await?.ok_or(ControlError::Closed)?;
        Ok(ControlMessage::decode(&content)?)
    }

    /// Sends what is queued, reading nothing.
    ///
    /// # Errors
    ///
    /// When the session is of no more use.
    pub async fn flush(&mut self) -> Result<(), ControlError> {
        Ok(std::future::poll_fn(|cx| self.messages.poll_send(cx)).await?)
    }
}

/// Far above what an honest session has under way: pings, and an abort for every stream.
const MAX_QUEUED: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use proxymux_proto::{EndCode, SessionEnd};

    use super::*;
    use crate::mux::testing::{LIMITS, Session};

    #[tokio::test]
    async fn what_a_peer_said_before_it_went_is_heard_though_nothing_can_be_sent_any_more() {
        let mut session = Session::in_memory(LIMITS);
        let mut agent = ControlStream::new(session.agent.mux.open().await.unwrap());
        agent.queue(&ControlMessage::Ping(1)).unwrap();
        agent.flush().await.unwrap();
        let mut master = ControlStream::new(session.master.incoming.next().await.unwrap());
        assert_eq!(master.next().await.unwrap(), ControlMessage::Ping(1));

        let end = ControlMessage::End(SessionEnd::new(EndCode::Busy, "no room"));
        master.queue(&end).unwrap();
        master.flush().await.unwrap();
        session.master.mux.close();
        session.agent.driver.await.unwrap();
        agent.queue(&ControlMessage::Ping(2)).unwrap();

        assert_eq!(agent.next().await.unwrap(), end);
        assert!(agent.next().await.is_err());
    }
}
