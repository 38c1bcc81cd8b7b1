//! What is asked of the API server: all Node objects, page by page, and what changes afterwards.
//!
//! Owns the two requests, their limits and what goes wrong with them. Leaves when to ask to
//! `kubernetes`. Read [`list`] and [`Watch`].
//! Texts of the API server are cut and filtered before they get anywhere.

use std::{pin::pin, time::Duration};

use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::{Request, Response, StatusCode};
use kube_client::{
    Client,
    client::Body,
    core::{
        Status, WatchEvent,
        params::{ListParams, WatchParams},
        request,
    },
};
use proxymux_proto::printable;
use proxymux_transport::telemetry::chain;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::object::{RawList, RawNode};

/// Why there is no answer, or not the one that was wanted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("{0}")]
    Unreachable(String),
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    #[error(
        "it does not know who we are ({0}): is the token or the client certificate one of this \
         cluster, and not expired?"
    )]
    Unauthorized(String),
    #[error(
        "it does not let us read nodes ({0}): the account needs get, list and watch on nodes, as \
         deploy/kubernetes/master/rbac allows"
    )]
    Forbidden(String),
    /// What was read last is too old to go on from.
    #[error("the last state is too old to go on from: {0}")]
    Gone(String),
    #[error("it answered with {code}: {message}")]
    Status { code: u16, message: String },
    #[error("an answer was cut off: {0}")]
    CutOff(String),
    #[error("an answer has over {0} MiB")]
    TooLong(usize),
    #[error("an answer cannot be understood: {0}")]
    Malformed(String),
    #[error("cannot make the request: {0}")]
    Request(#[source] request::Error),
}

/// Something that has happened to a Node object, or nothing but time that went by.
#[derive(Debug)]
pub(super) enum Event {
    Is(RawNode),
    Gone(RawNode),
    /// The state up to here has been seen.
    Version(String),
}

impl ApiError {
    /// The words of [`ApiError::word`].
    pub(super) const WORDS: &'static [&'static str] = &[
        "unreachable",
        "silent",
        "unauthorized",
        "forbidden",
        "gone",
        "status",
        "malformed",
    ];

    /// For the metric.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Unreachable(_) | Self::CutOff(_) => "unreachable",
            Self::Silent(_) => "silent",
            Self::Unauthorized(_) => "unauthorized",
            Self::Forbidden(_) => "forbidden",
            Self::Gone(_) => "gone",
            Self::Status { .. } => "status",
            Self::TooLong(_) | Self::Malformed(_) | Self::Request(_) => "malformed",
        }
    }

    fn of_status(code: u16, text: &str) -> Self {
        let message = printable(text.trim(), MAX_MESSAGE);
        match code {
            401 => Self::Unauthorized(message),
            403 => Self::Forbidden(message),
            410 => Self::Gone(message),
            _ => Self::Status { code, message },
        }
    }
}

/// One page of all Node objects, from where the one before has ended.
///
/// # Errors
///
/// When it is not there in time, or is not one.
pub(super) async fn list(client: &Client, next: Option<&str>) -> Result<RawList, ApiError> {
    let mut params = ListParams::default().limit(PAGE);
    if let Some(next) = next {
        params = params.continue_token(next);
    }
    let request = request::Request::new(NODES).list(&params);
    let listing = async {
        let response = send(client, request.map_err(ApiError::Request)?).await?;
        let body = collect(response.into_body(), MAX_PAGE).await?;
        parse(&body)
    };
    tokio::time::timeout(ANSWER_LIMIT, listing)
        .await
        .unwrap_or(Err(ApiError::Silent(ANSWER_LIMIT)))
}

/// Node objects as they change.
#[derive(Debug)]
pub(super) struct Watch {
    body: Body,
    /// What has come of lines that are not whole yet.
    partial: BytesMut,
    /// Beyond its end, which the server sets: when it is given up, and how long after its beginning.
    until: Instant,
    limit: Duration,
}

impl Watch {
    /// Begins where a list, or another watch, has ended. The API server ends it after `lasts`.
    ///
    /// # Errors
    ///
    /// When it does not begin, with [`ApiError::Gone`] if there has to be a new list.
    pub(super) async fn open(
        client: &Client,
        version: &str,
        lasts: Duration,
    ) -> Result<Self, ApiError> {
        let seconds = u32::try_from(lasts.as_secs()).unwrap_or(u32::MAX);
        let params = WatchParams::default().timeout(seconds);
        let request = request::Request::new(NODES).watch(&params, version);
        let opening = send(client, request.map_err(ApiError::Request)?);
        let response = tokio::time::timeout(ANSWER_LIMIT, opening)
            .await
            .unwrap_or(Err(ApiError::Silent(ANSWER_LIMIT)))?;
        Ok(Self {
            body: response.into_body(),
            partial: BytesMut::new(),
            until: Instant::now() + lasts + ANSWER_LIMIT,
            limit: lasts + ANSWER_LIMIT,
        })
    }

    /// What has happened, at least one thing; `None` when the API server has ended the watch.
    ///
    /// # Errors
    ///
    /// When nothing ends it in time, or what comes is no event.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Event>>, ApiError> {
        loop {
            let waiting = tokio::time::timeout_at(self.until, self.body.frame());
            let frame = waiting.await.map_err(|_| ApiError::Silent(self.limit))?;
            let Some(frame) = frame else {
                return Ok(None);
            };
            let frame = frame.map_err(|error| ApiError::CutOff(filtered(&error)))?;
            if let Ok(data) = frame.into_data() {
                let events = self.take(&data)?;
                if !events.is_empty() {
                    return Ok(Some(events));
                }
            }
        }
    }

    /// The events whose last byte is among these.
    fn take(&mut self, data: &Bytes) -> Result<Vec<Event>, ApiError> {
        self.partial.extend_from_slice(data);
        let mut events = Vec::new();
        while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
            let line = self.partial.split_to(end);
            self.partial.advance(1);
            if !line.trim_ascii().is_empty() {
                events.push(event(&line)?);
            }
        }
        if self.partial.len() > MAX_OBJECT {
            return Err(ApiError::TooLong(MAX_OBJECT >> 20));
        }
        Ok(events)
    }
}

fn event(line: &[u8]) -> Result<Event, ApiError> {
    Ok(match parse::<WatchEvent<RawNode>>(line)? {
        WatchEvent::Added(node) | WatchEvent::Modified(node) => Event::Is(node),
        WatchEvent::Deleted(node) => Event::Gone(node),
        WatchEvent::Bookmark(bookmark) => Event::Version(bookmark.metadata.resource_version),
        WatchEvent::Error(status) => {
            return Err(ApiError::of_status(status.code, &status.message));
        }
    })
}

/// Sends a request, and makes errors of answers that are none.
async fn send(client: &Client, request: Request<Vec<u8>>) -> Result<Response<Body>, ApiError> {
    let sent = client.send(request.map(Body::from)).await;
    let response = sent.map_err(|error| match error {
        // What the connection says; kube's own words are about its layers.
        kube_client::Error::Service(source) => ApiError::Unreachable(filtered(&*source)),
        error => ApiError::Unreachable(filtered(&error)),
    })?;
    let status = response.status();
    if status == StatusCode::OK {
        return Ok(response);
    }
    let said = collect(response.into_body(), MAX_STATUS).await;
    let said = said.unwrap_or_default();
    let message = match serde_json::from_slice::<Status>(&said) {
        Ok(status) if !status.message.is_empty() => status.message,
        _ => String::from_utf8_lossy(&said).into_owned(),
    };
    Err(ApiError::of_status(status.as_u16(), &message))
}

async fn collect(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let body = pin!(Limited::new(body, limit));
    match body.collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::TooLong(limit >> 20)),
        Err(error) => Err(ApiError::CutOff(filtered(&*error))),
    }
}

fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(text).map_err(|error| ApiError::Malformed(filtered(&error)))
}

fn filtered(error: &dyn std::error::Error) -> String {
    printable(&chain(error), MAX_MESSAGE)
}

const NODES: &str = "/api/v1/nodes";

/// Objects on one page. Each has some 10 to 50 KiB, most of it the names of images.
const PAGE: u32 = 100;

/// Beyond what etcd takes for one object (1.5 MiB), written as JSON.
const MAX_OBJECT: usize = 8 << 20;

/// A hundred objects that are ten times as large as they usually are.
const MAX_PAGE: usize = 64 << 20;

const MAX_STATUS: usize = 64 << 10;

/// Of a message of the API server, or about it.
const MAX_MESSAGE: usize = 300;

/// kube-apiserver gives an ordinary request up after a minute; lists of nodes take a second.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> Watch {
        Watch {
            body: Body::empty(),
            partial: BytesMut::new(),
            until: Instant::now(),
            limit: Duration::from_secs(7),
        }
    }

    fn show(events: &[Event]) -> Vec<String> {
        let shown = events.iter().map(|event| match event {
            Event::Is(node) => format!("is {}", node.metadata.name),
            Event::Gone(node) => format!("gone {}", node.metadata.name),
            Event::Version(version) => format!("version {version}"),
        });
        shown.collect()
    }

    const ADDED: &str = r#"{"type":"ADDED","object":{"metadata":{"name":"a"}}}"#;
    const DELETED: &str = r#"{"type":"DELETED","object":{"metadata":{"name":"a"}}}"#;
    const BOOKMARK: &str = r#"{"type":"BOOKMARK","object":{"kind":"Node","apiVersion":"v1","metadata":{"resourceVersion":"7","creationTimestamp":null},"spec":{},"status":{}}}"#;

    #[tokio::test(start_paused = true)]
    async fn events_are_found_wherever_the_stream_is_cut() {
        let text = format!("{ADDED}\n{BOOKMARK}\r\n\n{DELETED}\n");
        for size in [1, 7, 64, text.len()] {
            let mut watch = watch();
            let mut events = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                events.append(&mut watch.take(&Bytes::copy_from_slice(piece)).unwrap());
            }
            assert_eq!(show(&events), ["is a", "version 7", "gone a"], "{size}");
            assert!(watch.partial.is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_in_the_stream_is_one_and_410_is_known() {
        let line = r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version: 1 (9)","reason":"Expired","code":410}}"#;
        let mut watch = watch();
        let error = watch.take(&Bytes::from(format!("{line}\n"))).unwrap_err();
        assert!(matches!(error, ApiError::Gone(_)), "{error}");

        let error = watch.take(&Bytes::from("<html>\n")).unwrap_err();
        assert!(matches!(error, ApiError::Malformed(_)), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_without_an_end_is_given_up() {
        let mut watch = watch();
        let piece = Bytes::from(vec![b'x'; 1 << 20]);
        let error = (0..20).find_map(|_| watch.take(&piece).err());
        assert!(matches!(error, Some(ApiError::TooLong(8))), "{error:?}");
    }

    #[test]
    fn what_the_api_server_says_is_filtered_and_the_fix_is_named() {
        let error = ApiError::of_status(403, "nodes is \u{1b}[31mforbidden\n");
        assert_eq!(
            error.to_string(),
            "it does not let us read nodes (nodes is ?[31mforbidden): the account needs get, list \
             and watch on nodes, as deploy/kubernetes/master/rbac allows"
        );
        for (code, word) in [(401, "unauthorized"), (410, "gone"), (500, "status")] {
            let error = ApiError::of_status(code, &"x".repeat(9999));
            assert_eq!(error.word(), word);
            assert!(error.to_string().len() < 500, "{error}");
        }
    }
}
