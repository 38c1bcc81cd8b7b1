//! Opening a stream to a target through a node's session.
//!
//! Owns the exchange of request and answers, its limit, and the words for the user when it
//! fails. Which session to ask, and whether to ask another, is `gateway.rs`.

use std::sync::Arc;

use proxymux_proto::{AbortCode, Measure, OpenAnswer, OpenRequest, RefuseCode, TargetAddr};
use proxymux_transport::{
    mux::OpenError,
    stream::{MessageStream, RelayStream, StreamError},
};
use tokio::time::Instant;

use crate::{
    front_door::{Refusal, Status},
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
) -> Result<RelayStream, OpenFailure> {
    // A session ends soon if its agent does not take as much as its registration.
    session.registered.cancelled().await;
    let stream = session
        .mux
        .open()
        .await
        .map_err(|error| failed_to_open(session, error))?;
    let mut opening = Opening {
        stream: Some(stream),
        dialing: false,
    };
    let request = OpenRequest {
        target: target.clone(),
        budget: deadline.saturating_duration_since(Instant::now()),
        measure,
    };
    let answered = opening.ask(&request);
    match tokio::time::timeout_at(deadline, answered).await {
        Err(_) => Err(out_of_time(session, target, opening.dialing)),
        Ok(Ok(Answer::Opened)) => Ok(opening.into_relay()),
        Ok(Ok(Answer::Refused { code, message })) => {
            opening.finish();
            Err(refusal(code, message))
        }
        Ok(Err(StreamError::SessionGone)) => Err(OpenFailure::SessionGone),
        Ok(Err(error @ StreamError::NoMemory)) => Err(refused(
            Status::Unavailable,
            format!("node {}: {error}", session.node),
        )),
        Ok(Err(error)) => Err(refused(
            Status::BadGateway,
            format!(
                "node {} ended the request for {target}: {error}",
                session.node
            ),
        )),
    }
}

/// A stream that is being opened. Dropping it tells the agent to stop.
struct Opening {
    /// There until the outcome is known.
    stream: Option<MessageStream>,
    /// The agent has said that it dials.
    dialing: bool,
}

enum Answer {
    Opened,
    Refused { code: RefuseCode, message: String },
}

impl Opening {
    async fn ask(&mut self, request: &OpenRequest) -> Result<Answer, StreamError> {
        let Some(stream) = &mut self.stream else {
            return Err(StreamError::CutOff);
        };
        stream.send(&request.encode()?).await?;
        loop {
            let content = stream.receive().await?.ok_or(StreamError::CutOff)?;
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

    fn into_relay(mut self) -> RelayStream {
        self.stream
            .take()
            .expect("it is only taken here, in `finish` and on drop")
            .into_relay()
    }

    fn finish(mut self) {
        if let Some(stream) = self.stream.take() {
            stream.finish();
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.abort(AbortCode::Cancelled);
        }
    }
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
