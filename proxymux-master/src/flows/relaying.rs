//! Relaying a client over a flow.
//!
//! Owns how the two are joined: through pipes where the client is a plain socket, else by copying;
//! the end of a flow whose agent is gone; and the agent's own words for why it gave a flow up.
//! Leaves the relays to `proxymux_transport`, and the decision to use the flow to `commit`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use proxymux_proto::AbortCode;
use proxymux_transport::{
    pair::relay_pair,
    relay::{Outcome, RelayBytes, RelayOptions},
    splice::relay_spliced,
};

use super::{FlowGuard, OpenFlow};
use crate::{
    front_door::{Client, Plain},
    master::Master,
};

/// Relays until both directions have ended, one side failed, or the flow's agent has had no
/// session for too long.
pub(crate) async fn relay_flow(
    master: &Master,
    client: Client,
    early: Bytes,
    open: OpenFlow,
    bytes: Arc<RelayBytes>,
) -> Outcome {
    let OpenFlow {
        flow,
        buffers: _buffers,
        guard,
        mut abort,
    } = open;
    let flow = flow.into_connection();
    let options = RelayOptions {
        idle_timeout: master.config.idle_timeout,
        cancel: master.cut.clone(),
    };
    let pipes = &master.flows.pipes;
    let outcome = match client.into_plain() {
        Ok(Plain::Unix(client)) => {
            let relay = relay_spliced(client, flow, early, &options, bytes, pipes);
            until_over(relay, &guard).await
        }
        Ok(Plain::Tcp(client)) => {
            let relay = relay_spliced(client, flow, early, &options, bytes, pipes);
            until_over(relay, &guard).await
        }
        Err(client) => until_over(relay_pair(client, flow, early, &options, bytes), &guard).await,
    };
    if outcome != Outcome::PeerAborted(AbortCode::Reset) {
        return outcome;
    }
    // A reset has no reason; if the agent has one, it says so by the session.
    match abort.heard(REASON_LIMIT).await {
        Some(code) => Outcome::PeerAborted(code),
        None => outcome,
    }
}

/// A relay that is dropped resets both ends.
async fn until_over(relay: impl Future<Output = Outcome>, guard: &FlowGuard) -> Outcome {
    tokio::select! {
        outcome = relay => outcome,
        () = guard.over() => Outcome::SessionLost,
    }
}

/// Both travel the same way; the reset needs no turn of a task.
const REASON_LIMIT: Duration = Duration::from_millis(500);
