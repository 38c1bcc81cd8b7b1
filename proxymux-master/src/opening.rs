//! Opening a stream to a target through a node's session.
//!
//! Owns the wait for a turn where many open at once, the exchange of request and answers, its
//! limit, and the words for the user when it fails. Which session to ask, and whether to ask
//! another, is `gateway.rs`.

use std::{sync::Arc, time::Duration};

use proxymux_proto::{Measure, OpenAnswer, OpenRequest, RefuseCode, TargetAddr};
use proxymux_transport::{
    metrics::GaugeGuard,
    mux::OpenError,
    stream::{MessageStream, RelayStream, StreamError},
};
use tokio::time::Instant;

use crate::{
    front_door::{Refusal, Status},
    metrics::TurnMetrics,
    registry::SessionHandle,
};

/// Why a session gave no stream.
#[derive(Debug)]
pub(crate) enum OpenFailure {
    /// This is the answer.
    Refused(Refusal),
    /// The session is not there any more, or takes no new streams: another may.
    SessionGone,
}

/// Opens a stream to `target`, or to an end for measuring in its place, by `deadline`.
///
/// Cancel-safe: the agent stops dialling when this is dropped.
///
/// # Errors
///
/// With the answer for the user, or the advice to look for another session.
pub(crate) async fn open(
    session: &Arc<SessionHandle>,
    target: &TargetAddr,
    measure: Option<Measure>,
    deadline: Instant,
    turns: &TurnMetrics,
) -> Result<RelayStream, OpenFailure> {
    // A session ends soon if its agent does not take as much as its registration.
    session.registered.cancelled().await;
    let request = || {
        let request = OpenRequest {
            target: target.clone(),
            budget: deadline.saturating_duration_since(Instant::now()),
            measure,
        };
        let encoded = request.encode().map_err(StreamError::from);
        encoded.map_err(|error| ended(session, target, &error))
    };
    let (opened, waited) = match session.mux.open_with(&request()?).await {
        Err(OpenError::TooManyPending(_)) => {
            let began = Instant::now();
            // Boxed, so that the many who need not wait have no room for it.
            let mut opened = Box::pin(wait_for_turn(session, deadline, turns)).await;
            if let Ok(stream) = &mut opened {
                // The wait has left less of the budget.
                stream.queue(&request()?);
            }
            (opened, Some(began.elapsed()))
        }
        opened => (opened, None),
    };
    let answer = hear(session, opened, target, deadline).await;
    match waited {
        Some(waited) => answer.map_err(|failure| after_waiting(failure, waited)),
        None => answer,
    }
}

/// Waits for the agent's answer, if there is a stream for it, on which the request is under way.
async fn hear(
    session: &Arc<SessionHandle>,
    opened: Result<MessageStream, OpenError>,
    target: &TargetAddr,
    deadline: Instant,
) -> Result<RelayStream, OpenFailure> {
    let stream = opened.map_err(|error| failed_to_open(session, error))?;
    let mut opening = Opening {
        stream,
        dialing: false,
    };
    let answered = opening.answer();
    match tokio::time::timeout_at(deadline, answered).await {
        Err(_) => Err(out_of_time(session, target, opening.dialing)),
        Ok(Ok(Answer::Opened)) => Ok(opening.stream.into_relay()),
        Ok(Ok(Answer::Refused { code, message })) => {
            opening.stream.finish();
            Err(refusal(code, message))
        }
        Ok(Err(StreamError::SessionGone)) => Err(OpenFailure::SessionGone),
        Ok(Err(error @ StreamError::NoMemory)) => Err(refused(
            Status::Unavailable,
            format!("node {}: {error}", session.node),
        )),
        Ok(Err(error)) => Err(ended(session, target, &error)),
    }
}

async fn wait_for_turn(
    session: &SessionHandle,
    deadline: Instant,
    turns: &TurnMetrics,
) -> Result<MessageStream, OpenError> {
    let mut waiting = Waiting {
        turns,
        _now: GaugeGuard::new(&turns.waiting),
        ended: Waited::Left,
    };
    let opened = session.mux.open_in_turn(deadline).await;
    waiting.ended = match &opened {
        Ok(_) => Waited::Opened,
        Err(OpenError::TooManyPending(_)) => Waited::Late,
        Err(OpenError::SessionGone) => Waited::SessionGone,
        Err(OpenError::TooManyStreams(_) | OpenError::NoMemory(_)) => Waited::Refused,
    };
    opened
}

/// Somebody who waits for a turn; counted when that is over, in whichever way.
struct Waiting<'a> {
    turns: &'a TurnMetrics,
    _now: GaugeGuard,
    ended: Waited,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.turns.waited.get(self.ended.as_str()).inc();
    }
}

/// What came of waiting for a turn.
#[derive(Clone, Copy, Debug)]
enum Waited {
    /// A stream.
    Opened,
    /// The turn did not come in time.
    Late,
    /// The session ended, or took nothing new any more.
    SessionGone,
    /// Another limit was in the way.
    Refused,
    /// The client went away, or another path was faster.
    Left,
}

impl Waited {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Late => "late",
            Self::SessionGone => "session-gone",
            Self::Refused => "refused",
            Self::Left => "left",
        }
    }
}

/// What can come of waiting for a turn, for the metric's label.
pub(crate) const WAITED: &[&str] = &[
    Waited::Opened.as_str(),
    Waited::Late.as_str(),
    Waited::SessionGone.as_str(),
    Waited::Refused.as_str(),
    Waited::Left.as_str(),
];

/// A stream that is being opened. Dropping it tells the agent to stop.
struct Opening {
    stream: MessageStream,
    /// The agent has said that it dials.
    dialing: bool,
}

enum Answer {
    Opened,
    Refused { code: RefuseCode, message: String },
}

impl Opening {
    async fn answer(&mut self) -> Result<Answer, StreamError> {
        // What is left of the request.
        self.stream.send(&[]).await?;
        loop {
            let content = self.stream.receive().await?.ok_or(StreamError::CutOff)?;
            // An answer that cannot be read ends the exchange like one that never came.
            match OpenAnswer::decode(&content).map_err(|_| StreamError::CutOff)? {
                OpenAnswer::Opened => return Ok(Answer::Opened),
                OpenAnswer::Refused { code, message } => {
                    return Ok(Answer::Refused { code, message });
                }
                OpenAnswer::Dialing => self.dialing = true,
                OpenAnswer::Unknown => {}
            }
        }
    }
}

fn ended(session: &SessionHandle, target: &TargetAddr, error: &StreamError) -> OpenFailure {
    let node = &session.node;
    refused(
        Status::BadGateway,
        format!("node {node} ended the request for {target}: {error}"),
    )
}

/// Tells a node that does not respond from one whose target does not.
fn out_of_time(session: &SessionHandle, target: &TargetAddr, dialing: bool) -> OpenFailure {
    let node = &session.node;
    let reason = if dialing {
        format!("node {node} got no answer from {target} within the budget")
    } else {
        format!("node {node} did not answer within the budget for {target}")
    };
    refused(Status::GatewayTimeout, reason)
}

fn failed_to_open(session: &SessionHandle, error: OpenError) -> OpenFailure {
    match error {
        OpenError::SessionGone => OpenFailure::SessionGone,
        OpenError::TooManyStreams(_) | OpenError::TooManyPending(_) | OpenError::NoMemory(_) => {
            refused(
                Status::Unavailable,
                format!("node {}: {error}", session.node),
            )
        }
    }
}

/// What the budget was used up for is part of the cause.
fn after_waiting(failure: OpenFailure, waited: Duration) -> OpenFailure {
    match failure {
        OpenFailure::Refused(Refusal {
            status: status @ (Status::Unavailable | Status::GatewayTimeout),
            reason,
        }) => refused(status, format!("{reason}; waited {waited:.1?} for a turn")),
        other => other,
    }
}

fn refusal(code: RefuseCode, message: String) -> OpenFailure {
    let status = match code {
        RefuseCode::NotAllowed => Status::Forbidden,
        RefuseCode::Unreachable | RefuseCode::BadRequest | RefuseCode::Other(_) => {
            Status::BadGateway
        }
        RefuseCode::TimedOut => Status::GatewayTimeout,
        RefuseCode::Busy => Status::Unavailable,
        // It also says so on the control stream, but this may be the first to arrive.
        RefuseCode::Draining => return OpenFailure::SessionGone,
    };
    refused(status, message)
}

fn refused(status: Status, reason: String) -> OpenFailure {
    OpenFailure::Refused(Refusal::new(status, reason))
}
