//! An exec: after the upgrade an echo until the client's end, then a line and our end.

use std::{io, sync::Arc};

use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{CONNECTION, HeaderValue, UPGRADE},
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Shared, exec_trailer};
use crate::{acceptor::Tasks, body::StandInBody, pattern::Digest};

pub(super) fn start(
    mut request: Request<Incoming>,
    shared: &Shared,
    tasks: &Tasks,
) -> Response<StandInBody> {
    let Some(protocol) = requested_protocol(&request) else {
        let text = "unable to upgrade: missing upgrade headers in request\n";
        return super::answer::text(StatusCode::BAD_REQUEST, text);
    };
    let open = Arc::clone(&shared.counters.execs);
    let upgrade = hyper::upgrade::on(&mut request);
    tasks.spawn(async move {
        let _open = open;
        // A client that went away before or during the echo has seen what it wanted.
        if let Ok(upgraded) = upgrade.await {
            let _ = echo(upgraded).await;
        }
    });
    let mut response = Response::new(StandInBody::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, protocol);
    response
}

/// The protocol asked for, if both headers of an upgrade are there.
fn requested_protocol(request: &Request<Incoming>) -> Option<HeaderValue> {
    let connection = request.headers().get(CONNECTION)?.to_str().ok()?;
    let asks = connection
        .split(',')
        .any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    request.headers().get(UPGRADE).filter(|_| asks).cloned()
}

async fn echo(upgraded: Upgraded) -> io::Result<()> {
    let mut stream = TokioIo::new(upgraded);
    let mut digest = Digest::default();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = stream.read(&mut buffer).await?;
        let data = buffer.get(..length).unwrap_or_default();
        if data.is_empty() {
            break;
        }
        digest.update(data);
        stream.write_all(data).await?;
        stream.flush().await?;
    }
    stream.write_all(exec_trailer(&digest).as_bytes()).await?;
    stream.shutdown().await
}
