//! Flows of the direct path: those that a master has dialled, and that were steered here.
//!
//! Owns believing the hello, the answer to a probe, and handing an opened flow over to where all
//! flows are served. Leaves finding out that a connection begins as a flow does to `steering`.
//! Whoever has not proven to be a master gets no answer at all.

use std::{sync::Arc, time::Duration};

use proxymux_proto::{FlowDirection, FlowMessage, FlowOpen, OpenRequest};
use proxymux_transport::flow::{FlowConnection, FlowFault};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};

use super::{Owner, log_broken, serve};
use crate::agent::Agent;

/// Why a connection that begins as a flow does is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DirectFault {
    #[error("hello was not complete within {} s", .0.as_secs())]
    Slow(Duration),
    #[error("hello was not believed")]
    Hello(#[source] FlowFault),
}

/// Serves a connection that begins as a flow does. `early` is what was read of it, at most a hello,
/// and `since` when it came.
///
/// It returns as soon as the flow has proven itself: what follows runs in a task of its own, and
/// takes no place from connections that have proven nothing.
pub(crate) async fn accept(
    connection: TcpStream,
    early: &[u8],
    since: Instant,
    agent: &Arc<Agent>,
) -> Result<(), DirectFault> {
    let direction = FlowDirection::Direct;
    let accepting = FlowConnection::accept(connection, early, &agent.flows.table, direction);
    let accepted = timeout_at(since + HELLO_LIMIT, accepting).await;
    let accepted = accepted.map_err(|_| DirectFault::Slow(HELLO_LIMIT))?;
    let (flow, owner) = accepted.map_err(|fault| {
        agent.metrics.flows.broken(direction, &fault);
        DirectFault::Hello(fault)
    })?;
    let master = Arc::clone(owner.master());
    let served = serve_proven(flow, owner, Arc::clone(agent));
    agent.flows.tasks.spawn(master.run(served));
    Ok(())
}

async fn serve_proven(mut flow: FlowConnection, owner: Arc<Owner>, agent: Arc<Agent>) {
    match timeout(REQUEST_LIMIT, converse(&mut flow)).await {
        Ok(Ok(Some(request))) => serve::serve(flow, request, owner, agent).await,
        Ok(Ok(None)) => {
            agent.metrics.flows.probes.inc();
            tracing::debug!(master = %owner.at, flow = flow.counter(), "flow was a probe");
            serve::end(flow).await;
        }
        Ok(Err(fault)) => log_broken(&flow, &owner, &fault, &agent),
        Err(_) => {
            let fault = FlowFault::Io(std::io::ErrorKind::TimedOut.into());
            log_broken(&flow, &owner, &fault, &agent);
        }
    }
}

/// What the master wants, once it has been told that its hello is believed; nothing of a probe.
async fn converse(flow: &mut FlowConnection) -> Result<Option<OpenRequest>, FlowFault> {
    let opened = flow.hear().await?;
    flow.say(&FlowMessage::Accepted).await?;
    match opened {
        FlowMessage::Open(FlowOpen::Target(request)) => Ok(Some(request)),
        // No other message passes for an open one.
        _ => Ok(None),
    }
}

/// The same as on the port of sessions.
const HELLO_LIMIT: Duration = Duration::from_secs(5);

/// The request comes together with the hello.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
