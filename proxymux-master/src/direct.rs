//! Connections that the master dials itself, for routes that say `direct`.
//!
//! Owns dialling; the relay between two connections is `proxymux_transport::pair`. Webhooks,
//! aggregated APIs and services take this way when the API server sends everything for the cluster
//! through its egress.

use std::net::SocketAddr;

use proxymux_transport::socket;
use tokio::{net::TcpStream, time::Instant};

use crate::front_door::{Refusal, Status};

/// Dials a target by `deadline`.
///
/// # Errors
///
/// With the answer for the user.
pub(crate) async fn dial(at: SocketAddr, deadline: Instant) -> Result<TcpStream, Refusal> {
    let dialled = tokio::time::timeout_at(deadline, TcpStream::connect(at)).await;
    let connection = dialled.map_err(|_| {
        let reason = format!("target {at} did not answer within the budget");
        Refusal::new(Status::GatewayTimeout, reason)
    })?;
    connection
        .and_then(|connection| socket::prepare_relayed(&connection).map(|()| connection))
        .map_err(|error| {
            let reason = format!("master cannot connect to target {at}: {}", error.kind());
            Refusal::new(Status::BadGateway, reason)
        })
}
