//! The life of one connection at a front door, from its first byte to the relay.
//!
//! Owns the order of things: header, opening while the client is watched, answer, first bytes.
//! Leaves the listeners to `unix` and `tcp`, and the relay to the gateway.
//! Read [`serve`] first.
//!
//! Every request is answered within the budget, because kube-apiserver waits without a limit.
//! A client that leaves before its answer cancels the opening. One that has sent 16 KiB behind its
//! header is not read from any more, so its leaving is not noticed before the budget has run out.

use std::{io, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use proxymux_proto::TargetAddr;
use proxymux_transport::memory::HeldBytes;
use proxymux_transport::telemetry::{ACCESS, Path, millis};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout, timeout_at},
};
use tracing::{debug, info};

use super::{
    Arrival, Client, Gateway, Refusal, RequestInfo, RequestLimits, Status,
    connect::{ESTABLISHED, Parsed, parse},
};

/// Serves one client until its connection has ended.
pub(super) async fn serve<G: Gateway>(
    mut client: Client,
    arrival: Arrival,
    limits: RequestLimits,
    gateway: G,
) {
    match establish(&mut client, &arrival, limits, &gateway).await {
        Ok(Established {
            target,
            early,
            tunnel,
        }) => {
            let after = arrival.accepted_at.elapsed();
            gateway.metrics().opened_after.observe(after.as_secs_f64());
            let request = RequestInfo { target, arrival };
            gateway.relay(client, early, tunnel, request).await;
        }
        Err(NotEstablished::Refused { target, refusal }) => {
            let refused = gateway.metrics().refused.get(refusal.status.word());
            refused.inc();
            log_refusal(&arrival, target.as_ref(), &refusal);
            answer_refusal(client, &refusal).await;
        }
        Err(NotEstablished::ClientLeft { target, cause }) => {
            if target.is_some() {
                gateway.metrics().cancelled.inc();
            }
            log_departure(&arrival, target.as_ref(), cause.as_ref());
        }
    }
}

/// Answers with the refusal and closes the connection so that the answer arrives.
///
/// A socket that is closed while bytes of its peer are unread is reset, which can overtake what
/// was written: so the peer's bytes are read for a moment before the connection is closed.
pub(super) async fn answer_refusal(mut client: Client, refusal: &Refusal) {
    let answer = refusal.answer();
    let written = async {
        client.write_all(answer.as_bytes()).await?;
        client.shutdown().await
    };
    match timeout(ANSWER_LIMIT, written).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return debug!(%error, "client left before its answer"),
        Err(_elapsed) => return debug!("client does not take its answer"),
    }
    let mut scrap = BytesMut::with_capacity(SCRAP_LEN);
    let at_end = async {
        while client.read_buf(&mut scrap).await.is_ok_and(|n| n > 0) {
            scrap.clear();
        }
    };
    // A client that stays is closed on all the same.
    let _ = timeout(LINGER_LIMIT, at_end).await;
}

/// Payload that came before the tunnel stood, counted until it has been relayed.
struct Early {
    received: BytesMut,
    #[expect(dead_code, reason = "held for as long as the bytes are")]
    held: HeldBytes,
}

/// Payload that came before its relay, counted in this account for as long as it is held.
pub(crate) fn early_bytes(received: BytesMut, mut held: HeldBytes) -> Bytes {
    held.set(received.capacity());
    Bytes::from_owner(Early { received, held })
}

impl AsRef<[u8]> for Early {
    fn as_ref(&self) -> &[u8] {
        &self.received
    }
}

struct Established<T> {
    target: TargetAddr,
    early: Bytes,
    tunnel: T,
}

enum NotEstablished {
    Refused {
        target: Option<TargetAddr>,
        refusal: Refusal,
    },
    ClientLeft {
        target: Option<TargetAddr>,
        /// `None` when it closed its connection in order.
        cause: Option<io::Error>,
    },
}

async fn establish<G: Gateway>(
    client: &mut Client,
    arrival: &Arrival,
    limits: RequestLimits,
    gateway: &G,
) -> Result<Established<G::Tunnel>, NotEstablished> {
    let budget = limits.budget;
    let mut received = BytesMut::with_capacity(USUAL_HEADER_LEN);
    let limit = budget.min(limits.header_time);
    let reading = read_request(client, &mut received, limits.header_len);
    let target = match timeout_at(arrival.accepted_at + limit, reading).await {
        Ok(outcome) => outcome?,
        Err(_elapsed) => {
            let reason = format!("request header not complete after {limit:?}");
            let refusal = Refusal::new(Status::RequestTimeout, reason);
            return Err(NotEstablished::Refused {
                target: None,
                refusal,
            });
        }
    };

    let deadline = arrival.accepted_at + budget;
    let mut held = gateway.account();
    let opening = open(gateway, &target, deadline, budget);
    let opened = tokio::select! {
        opened = opening => opened,
        cause = client_leaves(client, &mut received, &mut held) => {
            return Err(NotEstablished::ClientLeft { target: Some(target), cause });
        }
    };
    let tunnel = match opened {
        Ok(tunnel) => tunnel,
        Err(refusal) => {
            return Err(NotEstablished::Refused {
                target: Some(target),
                refusal,
            });
        }
    };

    if let Err(error) = write_established(client).await {
        return Err(NotEstablished::ClientLeft {
            target: Some(target),
            cause: Some(error),
        });
    }
    wait_for_first_byte(client, &mut received).await;
    Ok(Established {
        target,
        early: early_bytes(received, held),
        tunnel,
    })
}

/// Reads until there is a request, and leaves what came behind it in `received`.
async fn read_request(
    client: &mut Client,
    received: &mut BytesMut,
    max_len: usize,
) -> Result<TargetAddr, NotEstablished> {
    loop {
        let room = max_len.saturating_sub(received.len());
        let cause = match client.read_buf(&mut received.limit(room)).await {
            Ok(0) if received.is_empty() => None,
            Ok(0) => {
                let refusal = Refusal::new(Status::BadRequest, "request header ended early");
                return Err(NotEstablished::Refused {
                    target: None,
                    refusal,
                });
            }
            Ok(_) => match parse(received, max_len) {
                Parsed::NeedMore => continue,
                Parsed::Request { target, header_len } => {
                    let _header = received.split_to(header_len);
                    return Ok(target);
                }
                Parsed::Refused(refusal) => {
                    return Err(NotEstablished::Refused {
                        target: None,
                        refusal,
                    });
                }
            },
            Err(error) => Some(error),
        };
        return Err(NotEstablished::ClientLeft {
            target: None,
            cause,
        });
    }
}

async fn open<G: Gateway>(
    gateway: &G,
    target: &TargetAddr,
    deadline: Instant,
    budget: Duration,
) -> Result<G::Tunnel, Refusal> {
    let remaining = deadline.saturating_duration_since(Instant::now());
    // The gateway knows more about the cause than we do, so it gets to speak first.
    let lent = remaining.saturating_sub(ANSWER_MARGIN.min(remaining / 10));
    match timeout_at(deadline, gateway.open(target, lent)).await {
        Ok(opened) => opened,
        Err(_elapsed) => {
            let reason = format!("no answer from {target} within {budget:?}");
            Err(Refusal::new(Status::GatewayTimeout, reason))
        }
    }
}

/// Takes in payload until the client leaves: `None` for an end, else the error.
///
/// Cancel-safe: what was read is in `early`.
async fn client_leaves(
    client: &mut Client,
    early: &mut BytesMut,
    held: &mut HeldBytes,
) -> Option<io::Error> {
    loop {
        held.set(early.capacity());
        let room = MAX_EARLY_LEN.saturating_sub(early.len());
        if room == 0 || held.is_full() {
            return std::future::pending().await;
        }
        match client.read_buf(&mut early.limit(room)).await {
            Ok(0) => return None,
            Ok(_) => {}
            Err(error) => return Some(error),
        }
    }
}

async fn write_established(client: &mut Client) -> io::Result<()> {
    let written = async {
        client.write_all(ESTABLISHED).await?;
        client.flush().await
    };
    timeout(ANSWER_LIMIT, written).await?
}

/// Waits until the target's bytes may follow the 200.
///
/// kube-apiserver gives up a connection if it reads a single byte together with the header block.
/// Its own first byte proves that it has read the 200, and so does its end. In TLS and in HTTP the
/// client speaks first, so nearly always this takes no longer than the client.
///
/// Where the target speaks first there is nothing to wait for, so after [`HOLD_LIMIT`] its bytes
/// may pass: such a protocol loses a second, once. A client that has not read the 200 after that
/// second would be at risk; it is long enough for the 200 to be lost twice on the way (TCP sends
/// again after 0.2 and 0.6 s) and for a process that has used up its share of the processor.
async fn wait_for_first_byte(client: &mut Client, early: &mut BytesMut) {
    if !early.is_empty() {
        return;
    }
    early.reserve(USUAL_FIRST_LEN);
    match timeout(
        HOLD_LIMIT,
        client.read_buf(&mut early.limit(USUAL_FIRST_LEN)),
    )
    .await
    {
        // Bytes, the end (which the relay will meet again), or a client that waits for the target.
        Ok(Ok(_)) | Err(_) => {}
        Ok(Err(error)) => client.fail_next_read(error),
    }
}

/// The access log's line for a request that was not granted.
fn log_refusal(arrival: &Arrival, target: Option<&TargetAddr>, refusal: &Refusal) {
    info!(
        target: ACCESS,
        path = Path::None.as_str(),
        target = target.map(tracing::field::display),
        peer.addr = arrival.peer,
        peer.name = arrival.client_name,
        door = arrival.door,
        status = refusal.status.code(),
        reason = refusal.phrase(),
        duration_ms = millis(arrival.accepted_at.elapsed()),
        "connection refused"
    );
}

/// The access log's line for a client that did not wait for its answer. One that never said what
/// it wanted was a probe, and no request.
fn log_departure(arrival: &Arrival, target: Option<&TargetAddr>, cause: Option<&io::Error>) {
    let Some(target) = target else {
        return debug!(
            peer.addr = arrival.peer,
            door = arrival.door,
            error = cause.map(tracing::field::display),
            "client left without a request"
        );
    };
    info!(
        target: ACCESS,
        path = Path::None.as_str(),
        %target,
        peer.addr = arrival.peer,
        peer.name = arrival.client_name,
        door = arrival.door,
        reason = "client left before the answer",
        error = cause.map(tracing::field::display),
        duration_ms = millis(arrival.accepted_at.elapsed()),
        "connection cancelled"
    );
}

/// How much earlier than the client's deadline the gateway's is.
const ANSWER_MARGIN: Duration = Duration::from_millis(100);

/// How long a client may take to accept an answer of at most 300 bytes.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// How long a client that was refused may take to close its side.
const LINGER_LIMIT: Duration = Duration::from_millis(500);

/// How long the target's bytes are held back from a client that has not sent any.
pub(super) const HOLD_LIMIT: Duration = Duration::from_secs(1);

/// The most payload that is kept for a client whose target is not there yet.
pub(super) const MAX_EARLY_LEN: usize = 16 * 1024;

/// kube-apiserver's whole request has under 100 bytes.
const USUAL_HEADER_LEN: usize = 512;

/// Room for the first message of a TLS handshake.
const USUAL_FIRST_LEN: usize = 4 * 1024;

const SCRAP_LEN: usize = 4 * 1024;
