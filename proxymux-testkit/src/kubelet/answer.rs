//! Requests and their answers.

use std::{
    convert::Infallible,
    fmt::Write as _,
    sync::{Arc, atomic::Ordering},
};

use http_body_util::BodyExt;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
};
use tokio::time::{Instant, interval_at};

use super::{Client, Shared, exec};
use crate::{
    acceptor::Tasks,
    body::{LogBody, StandInBody},
    pattern::Digest,
};

pub(super) async fn answer(
    request: Request<Incoming>,
    client: Arc<Client>,
    shared: Arc<Shared>,
    tasks: Tasks,
) -> Result<Response<StandInBody>, Infallible> {
    shared.counters.requests.fetch_add(1, Ordering::Relaxed);
    if !client.may_do_everything() {
        shared
            .counters
            .requests_forbidden
            .fetch_add(1, Ordering::Relaxed);
        let Client { user, .. } = &*client;
        let verb = request.method().as_str().to_lowercase();
        let reason = format!("Forbidden (user={user}, verb={verb}, resource=nodes)");
        return Ok(text(StatusCode::FORBIDDEN, reason));
    }
    let path = request.uri().path().to_owned();
    let words: Vec<&str> = path.split('/').skip(1).collect();
    Ok(match (request.method(), words.as_slice()) {
        (&Method::GET, ["healthz"]) => text(StatusCode::OK, "ok"),
        (&Method::GET, ["metrics"]) => metrics(&shared),
        (&Method::GET, ["containerLogs", namespace, pod, container]) => {
            logs(&request, format!("{namespace}/{pod}/{container}"), &shared)
        }
        (&Method::GET | &Method::POST, ["exec", _, _, _]) => exec::start(request, &shared, &tasks),
        (&Method::GET, ["bytes"]) => bytes(&request),
        (&Method::POST, ["sink"]) => sink(request).await,
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    })
}

pub(super) fn text(status: StatusCode, text: impl Into<String>) -> Response<StandInBody> {
    let mut response = Response::new(StandInBody::whole(text.into()));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

fn metrics(shared: &Shared) -> Response<StandInBody> {
    let mut response = Response::new(StandInBody::whole(shared.metrics.clone()));
    let version = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, version);
    response
}

fn logs(request: &Request<Incoming>, container: String, shared: &Shared) -> Response<StandInBody> {
    let written = shared.config.log_history;
    let tail = match parameter(request, "tailLines").map(str::parse::<u64>) {
        None => written,
        Some(Ok(lines)) => lines.min(written),
        Some(Err(_)) => return text(StatusCode::BAD_REQUEST, "tailLines is no number\n"),
    };
    let follow = matches!(parameter(request, "follow"), Some("true" | "1"));
    let period = shared.config.log_interval;
    let interval = (!period.is_zero()).then(|| interval_at(Instant::now() + period, period));
    let mut response = Response::new(StandInBody::Log(LogBody {
        container,
        line_length: shared.config.log_line_length,
        next: written - tail + 1,
        written,
        follow,
        interval,
        _guard: follow.then(|| Arc::clone(&shared.counters.followed)),
    }));
    let plain = HeaderValue::from_static("text/plain");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

fn bytes(request: &Request<Incoming>) -> Response<StandInBody> {
    let number = |name| parameter(request, name).and_then(|value| value.parse::<u64>().ok());
    let Some(length) = number("n") else {
        return text(StatusCode::BAD_REQUEST, "n is no number\n");
    };
    let seed = number("seed").unwrap_or(0);
    let chunked = parameter(request, "chunked") == Some("true");
    Response::new(StandInBody::pattern(length, seed, !chunked))
}

async fn sink(request: Request<Incoming>) -> Response<StandInBody> {
    let mut digest = Digest::default();
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => {
                if let Some(data) = frame.data_ref() {
                    digest.update(data);
                }
            }
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("body: {error}\n")),
        }
    }
    let (length, hash) = (digest.length(), digest.finish());
    text(
        StatusCode::OK,
        format!("received={length} digest={hash:016x}\n"),
    )
}

/// A query parameter as it stands; none of ours needs unescaping.
fn parameter<'a>(request: &'a Request<Incoming>, name: &str) -> Option<&'a str> {
    let query = request.uri().query()?;
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// Metrics of at least this size, with the shape of a kubelet's: few names, many labels.
pub(super) fn metrics_text(bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 1024);
    let mut series = 0_u64;
    while text.len() < bytes {
        let name = format!("standin_family_{:03}_total", series / SERIES_PER_FAMILY);
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "# HELP {name} Deterministic filler.\n# TYPE {name} counter"
        );
        for _ in 0..SERIES_PER_FAMILY {
            let value = series.wrapping_mul(2_654_435_761) % 1_000_000;
            let pod = format!("workload-{:05}", series % 997);
            let _ = writeln!(
                text,
                "{name}{{container=\"main\",namespace=\"default\",pod=\"{pod}\",id=\"{series}\"}} \
                 {value}"
            );
            series += 1;
        }
    }
    text
}

const SERIES_PER_FAMILY: u64 = 500;
