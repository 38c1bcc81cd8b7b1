//! A connection on the port for agents that begins as a flow does.
//!
//! Owns what becomes of it until it waits in a pool: its hello, room for it, the answer. Leaves the
//! first byte and the number of half-open connections to `agents.rs`, and believing hellos to
//! `proxymux_transport::flow`. A refused hello costs its sender a connection and nobody else
//! anything.

use std::{io, net::SocketAddr};

use proxymux_proto::{FlowDirection, FlowMessage, RefuseCode};
use proxymux_transport::{
    flow::{FlowConnection, FlowFault},
    socket,
    telemetry::chain,
};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::Instant};

use super::pool::{NoPlace, Place};
use crate::master::Master;

/// Why a connection became no flow.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HelloError {
    #[error("hello was not complete in time")]
    Slow,
    #[error(transparent)]
    Fault(#[from] FlowFault),
    #[error("flow is not wanted")]
    NoPlace(#[from] NoPlace),
    #[error("connection failed")]
    Socket(#[source] io::Error),
    #[error("too many half-open connections")]
    Evicted,
}

impl HelloError {
    /// The words of [`HelloError::word`] besides those of [`FlowFault::WORDS`].
    pub(crate) const OWN_WORDS: &[&str] = &["slow", "pool-full", "draining", "evicted"];

    /// The word for the metric's label.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::Fault(fault) => fault.as_str(),
            Self::NoPlace(NoPlace::Full) => "pool-full",
            Self::NoPlace(NoPlace::Closed) => "draining",
            Self::Socket(_) => "connection",
            Self::Evicted => "evicted",
        }
    }
}

/// Takes in a flow, whose hello is to be complete and answered by `deadline`.
pub(crate) async fn receive(
    connection: TcpStream,
    master: &Master,
    deadline: Instant,
) -> Result<(), HelloError> {
    tokio::time::timeout_at(deadline, accept(connection, master))
        .await
        .map_err(|_| HelloError::Slow)?
}

/// Logs why there is no flow, sparingly: an agent dials again and again.
pub(crate) fn log_refusal(peer: SocketAddr, error: &HelloError, master: &Master) {
    let (reason, text) = (error.word(), chain(error));
    // The text may name session and counter, which are others each time.
    match master.refused.news(&peer.ip().to_string(), reason) {
        Some(others) if !matches!(error, HelloError::Evicted) => {
            // Those that were not told since the last time.
            let others = (others > 0).then_some(others);
            tracing::warn!(%peer, reason, error = text, others, "flow refused");
        }
        _ => tracing::debug!(%peer, reason, error = text, "flow refused"),
    }
}

async fn accept(connection: TcpStream, master: &Master) -> Result<(), HelloError> {
    let buffers =
        socket::prepare_flow(&connection, &master.flows.buffers).map_err(HelloError::Socket)?;
    let table = master.flows.table();
    let (flow, pool) =
        FlowConnection::accept(connection, &[], table, FlowDirection::Reverse).await?;
    match pool.admit() {
        Ok(place) => {
            let flow = welcome(flow).await?;
            Place::fill(place, flow, buffers);
            Ok(())
        }
        Err(why) => {
            turn_away(flow, why).await?;
            Err(why.into())
        }
    }
}

async fn welcome(mut flow: FlowConnection) -> Result<FlowConnection, FlowFault> {
    flow.say(&FlowMessage::Accepted).await?;
    Ok(flow)
}

/// Says why, and ends in order, so that the words arrive.
async fn turn_away(mut flow: FlowConnection, why: NoPlace) -> Result<(), HelloError> {
    let code = match why {
        NoPlace::Full => RefuseCode::Busy,
        NoPlace::Closed => RefuseCode::Draining,
    };
    let message = why.to_string();
    flow.say(&FlowMessage::Refused { code, message }).await?;
    let mut connection = flow.into_connection();
    connection.shutdown().await.map_err(HelloError::Socket)
}
