//! What both ends of a session do alike, once TLS and the multiplexer stand.
//!
//! Owns the control stream's upkeep: pings and their answers, aborts both ways, the verdict that
//! a peer is dead. [`SessionCore::next`] is the loop's one wait; everything that only one end
//! understands (registration, drain, addresses) it hands to the daemon.

use std::time::Duration;

use proxymux_proto::{ControlMessage, Drain, EndCode, MAX_PADDING, PaddedPing, SessionEnd};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use crate::{
    control::{ControlError, ControlStream},
    liveness::{Liveness, Verdict},
    mux::{Driver, Mux, SessionFault},
    segments::{Look, SegmentWatch, Sign},
    socket::{SessionSocket, TcpSegments},
    stream::StreamError,
    telemetry::chain,
};

/// One end of an established session.
///
/// Dropping it ends the session at once: its connection is shut down and its streams are reset.
#[derive(Debug)]
pub struct SessionCore {
    mux: Mux,
    control: ControlStream,
    liveness: Liveness,
    socket: SessionSocket,
    watch: Option<SegmentWatch>,
    driver: JoinHandle<SessionFault>,
    /// Why it is over, until that has been told.
    failure: Option<ControlError>,
    /// By when the peer, which is told why this end ends it, has to have heard of it.
    goodbye_by: Option<Instant>,
}

/// Something that the daemon has to act on.
#[derive(Debug)]
pub enum Event {
    /// A message that only one end understands.
    Message(ControlMessage),
    /// The answer to the last ping, with the round trip.
    Pong(Duration),
    /// The session has used up most of its stream ids.
    WornOut,
    /// Whether large segments pass has changed, as far as can be seen; only after
    /// [`SessionCore::watch_segments`].
    Segments(Sign),
    /// The session is over.
    Over(SessionOver),
}

/// Why a session is over.
#[derive(Debug, thiserror::Error)]
pub enum SessionOver {
    /// Nothing was heard of the peer.
    #[error("peer is silent for {} s", .0.as_secs())]
    Silent(Duration),
    /// The connection or the multiplexer ended.
    #[error("session ended")]
    Fault(#[source] SessionFault),
    /// The control stream failed while the multiplexer still stood.
    #[error("session failed")]
    Control(#[source] ControlError),
}

/// Runs a session's driver in a task of its own.
pub fn drive<T>(driver: Driver<T>) -> JoinHandle<SessionFault>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    tokio::spawn(driver)
}

impl SessionCore {
    /// Takes over a session whose control stream stands.
    #[must_use]
    pub fn new(
        mux: Mux,
        control: ControlStream,
        socket: SessionSocket,
        driver: JoinHandle<SessionFault>,
    ) -> Self {
        Self {
            mux,
            control,
            liveness: Liveness::new(Instant::now()),
            socket,
            watch: None,
            driver,
            failure: None,
            goodbye_by: None,
        }
    }

    /// The handle that opens streams.
    #[must_use]
    pub fn mux(&self) -> &Mux {
        &self.mux
    }

    /// The last round trip measured.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.liveness.rtt()
    }

    /// Queues a message for the peer; it goes out while [`SessionCore::next`] is awaited.
    ///
    /// # Errors
    ///
    /// When the peer has not taken the last ones.
    pub fn send(&mut self, message: &ControlMessage) -> Result<(), ControlError> {
        self.control.queue(message)
    }

    /// Sends what is queued, reading nothing meanwhile.
    ///
    /// # Errors
    ///
    /// When the session is of no more use.
    pub async fn flush(&mut self) -> Result<(), ControlError> {
        self.control.flush().await
    }

    /// Queues a ping out of turn; its answer is an [`Event::Pong`].
    ///
    /// # Errors
    ///
    /// As [`SessionCore::send`].
    pub fn ping(&mut self) -> Result<(), ControlError> {
        let number = self.liveness.ping(Instant::now());
        self.send(&ControlMessage::Ping(number))
    }

    /// Queues a ping that fills the largest segment that our kernel sends, and asks for an answer
    /// that fills the largest one it takes; the answer is an [`Event::Pong`].
    ///
    /// # Errors
    ///
    /// As [`SessionCore::send`].
    pub fn padded_ping(&mut self, segments: TcpSegments) -> Result<(), ControlError> {
        let padding = |len: u32| {
            u16::try_from(len)
                .unwrap_or(MAX_PADDING)
                .clamp(1, MAX_PADDING)
        };
        let ping = PaddedPing {
            number: self.liveness.ping(Instant::now()),
            padding: padding(segments.largest_sent),
            answer: padding(segments.largest_taken),
        };
        self.send(&ControlMessage::PaddedPing(ping))
    }

    /// What the kernel says of the connection's segments; `None` where it does not.
    #[must_use]
    pub fn segments(&self) -> Option<TcpSegments> {
        self.socket.segments()
    }

    /// Begins to look for the signs of a path that loses large segments.
    ///
    /// Nothing is seen where the kernel does not say enough.
    pub fn watch_segments(&mut self) {
        self.watch = self
            .look()
            .map(|look| SegmentWatch::new(Instant::now(), look));
    }

    /// Queues the wish that nothing new be opened.
    ///
    /// # Errors
    ///
    /// As [`SessionCore::send`].
    pub fn drain(&mut self, deadline: Duration, reason: &str) -> Result<(), ControlError> {
        self.send(&ControlMessage::Drain(Drain {
            deadline,
            reason: reason.to_owned(),
            takes_new: false,
        }))
    }

    /// Queues the word that this agent ends within `deadline`, and takes new streams only until a
    /// successor does, or [`SessionCore::drain`] says that it takes none.
    ///
    /// # Errors
    ///
    /// As [`SessionCore::send`].
    pub fn make_room(&mut self, deadline: Duration, reason: &str) -> Result<(), ControlError> {
        self.send(&ControlMessage::Drain(Drain {
            deadline,
            reason: reason.to_owned(),
            takes_new: true,
        }))
    }

    /// Does the session's upkeep until something happens that the daemon has to act on.
    ///
    /// Cancel-safe. Not to be called again after [`Event::Over`].
    pub async fn next(&mut self) -> Event {
        loop {
            // Kept, as a caller that waits for other things too may drop this while it explains.
            if self.failure.is_some() {
                return Event::Over(self.explain().await);
            }
            let done = tokio::select! {
                message = self.control.next() => match message {
                    Ok(message) => self.take_in(message),
                    Err(error) => Err(error),
                },
                (stream, code) = self.mux.next_abort() => {
                    self.control.queue(&ControlMessage::Abort { stream, code }).map(|()| None)
                }
                () = self.mux.worn_out() => Ok(Some(Event::WornOut)),
                () = sleep_until(self.liveness.next_tick(Instant::now())) => self.tick(),
            };
            match done {
                Ok(None) => {}
                Ok(Some(event)) => return event,
                Err(error) => self.failure = Some(error),
            }
        }
    }

    /// Tells the peer that the session ends and why, and ends it, within `limit`.
    pub async fn end(mut self, end: SessionEnd, limit: Duration) {
        self.say_end(end, limit).await;
    }

    /// Sends what is queued and ends the session in an orderly way, within `limit`.
    pub async fn close(mut self, limit: Duration) {
        self.say_goodbye(limit).await;
    }

    async fn say_end(&mut self, end: SessionEnd, limit: Duration) {
        if let Err(error) = self.control.queue(&ControlMessage::End(end)) {
            // The end of the connection has to do.
            tracing::debug!(
                error = chain(&error),
                "the reason for the end cannot be sent"
            );
        }
        self.say_goodbye(limit).await;
    }

    /// A peer that takes nothing is left without.
    async fn say_goodbye(&mut self, limit: Duration) {
        let goodbye = async {
            // What cannot be sent is no reason not to close.
            let _ = self.control.flush().await;
            // A handle that has given its result must not be polled again.
            if !self.driver.is_finished() {
                self.mux.close();
                let _ = (&mut self.driver).await;
            }
            self.socket.linger().await;
        };
        let _ = tokio::time::timeout(limit, goodbye).await;
    }

    fn take_in(&mut self, message: ControlMessage) -> Result<Option<Event>, ControlError> {
        match message {
            ControlMessage::Ping(number) => self.send(&ControlMessage::Pong(number))?,
            ControlMessage::PaddedPing(ping) => self.send(&answer_to(ping))?,
            ControlMessage::Pong(number) | ControlMessage::PaddedPong { number, .. } => {
                return Ok(self.liveness.pong(number, Instant::now()).map(Event::Pong));
            }
            ControlMessage::Abort { stream, code } => self.mux.abort_received(stream, code),
            ControlMessage::Unknown => tracing::debug!("unknown control message ignored"),
            other => return Ok(Some(Event::Message(other))),
        }
        Ok(None)
    }

    fn tick(&mut self) -> Result<Option<Event>, ControlError> {
        let progress = self.socket.progress();
        match self
            .liveness
            .tick(Instant::now(), self.mux.bytes_received(), progress)
        {
            Verdict::Alive => {}
            Verdict::Ping(number) => self.send(&ControlMessage::Ping(number))?,
            Verdict::Dead(silent) => return Ok(Some(Event::Over(SessionOver::Silent(silent)))),
        }
        let look = self.look();
        let sign = self.watch.as_mut().zip(look);
        let sign = sign.and_then(|(watch, look)| watch.tick(Instant::now(), look));
        Ok(sign.map(Event::Segments))
    }

    fn look(&self) -> Option<Look> {
        Some(Look {
            received: self.mux.bytes_received(),
            progress: self.socket.progress()?,
            segments: self.socket.segments()?,
        })
    }

    /// Cancel-safe: what was begun is gone on with by the next call.
    async fn explain(&mut self) -> SessionOver {
        match &self.failure {
            Some(
                error @ (ControlError::Decode(_) | ControlError::Stream(StreamError::Frame(_))),
            ) => {
                // Its log is to have the reason as well.
                let end = SessionEnd::new(EndCode::Protocol, &chain(error));
                match self.goodbye_by {
                    Some(by) => {
                        let left = by.saturating_duration_since(Instant::now());
                        self.say_goodbye(left).await;
                    }
                    None => {
                        self.goodbye_by = Some(Instant::now() + GOODBYE_LIMIT);
                        self.say_end(end, GOODBYE_LIMIT).await;
                    }
                }
            }
            // A control stream mostly fails because the session under it did, which says more.
            Some(ControlError::Closed | ControlError::Stream(_)) => {
                let ended = tokio::time::timeout(DRIVER_ENDS_WITHIN, &mut self.driver).await;
                if let Ok(Ok(fault)) = ended {
                    return SessionOver::Fault(fault);
                }
            }
            _ => {}
        }
        SessionOver::Control(self.failure.take().unwrap_or(ControlError::Closed))
    }
}

impl Drop for SessionCore {
    fn drop(&mut self) {
        self.socket.shut_down();
        self.driver.abort();
    }
}

/// As much padding as was asked for; the decoder has seen to it that it is within the limit.
fn answer_to(ping: PaddedPing) -> ControlMessage {
    match ping {
        PaddedPing {
            number, answer: 0, ..
        } => ControlMessage::Pong(number),
        PaddedPing {
            number,
            answer: padding,
            ..
        } => ControlMessage::PaddedPong { number, padding },
    }
}

/// How long a peer that broke the protocol is given to hear of it.
const GOODBYE_LIMIT: Duration = Duration::from_secs(1);

/// The driver ends in the same turn as its streams do.
const DRIVER_ENDS_WITHIN: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use proxymux_proto::encode_frame;

    use super::*;
    use crate::mux::testing::{LIMITS, Session, tcp_pair};

    #[tokio::test]
    async fn why_a_session_is_over_is_told_however_often_the_wait_for_it_is_broken_off() {
        let mut session = Session::in_memory(LIMITS);
        let mut agent = session.agent.mux.open().await.unwrap();
        let garbage = encode_frame(b"\xff\xff\xff\xff").unwrap();
        agent.send(&garbage).await.unwrap();
        let control = session.master.incoming.next().await.unwrap();
        let (socket, _far) = tcp_pair(None).await;
        let mut core = SessionCore::new(
            session.master.mux,
            ControlStream::new(control),
            SessionSocket::new(&socket).unwrap(),
            session.master.driver,
        );

        let over = async {
            loop {
                tokio::select! {
                    biased;
                    event = core.next() => return event,
                    () = tokio::task::yield_now() => {}
                }
            }
        };
        let over = tokio::time::timeout(Duration::from_secs(10), over).await;

        let over = over.expect("it is told");
        assert!(
            matches!(
                over,
                Event::Over(SessionOver::Control(ControlError::Decode(_)))
            ),
            "{over:?}"
        );
    }
}
