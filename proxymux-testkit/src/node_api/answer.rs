//! What each request is answered, and the body of a watch.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Frame, Incoming},
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    Shared,
    store::{NodeStore, Since},
};
use crate::acceptor::Tasks;

/// A body that is there already, or one that grows.
#[derive(Debug)]
pub(super) enum AnswerBody {
    Whole(Option<Bytes>),
    Events(mpsc::Receiver<Bytes>),
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(whole) => Poll::Ready(whole.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Events(events) => events
                .poll_recv(cx)
                .map(|event| event.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }
}

type Answer = Result<Response<AnswerBody>, hyper::http::Error>;

pub(super) fn answer(
    request: &Request<Incoming>,
    user: Option<&str>,
    shared: &Arc<Shared>,
    tasks: &Tasks,
) -> Answer {
    let config = &shared.config;
    let bearer = shared.token().map(|token| format!("Bearer {token}"));
    let shown = request.headers().get(AUTHORIZATION);
    let has_token = bearer.is_some_and(|bearer| shown.is_some_and(|shown| *shown == *bearer));
    let user = if has_token { Some(&*config.user) } else { user };
    let Some(user) = user else {
        shared.counters.refused.fetch_add(1, Ordering::Relaxed);
        return status(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized");
    };
    if user != config.user || shared.store.is_forbidden() {
        shared.counters.refused.fetch_add(1, Ordering::Relaxed);
        let message = format!(
            "nodes is forbidden: User \"{user}\" cannot list resource \"nodes\" in API group \"\" \
             at the cluster scope"
        );
        return status(StatusCode::FORBIDDEN, &message, "Forbidden");
    }
    if request.uri().path() != "/api/v1/nodes" {
        return status(StatusCode::NOT_FOUND, "not found", "NotFound");
    }
    let query = Query::parse(request.uri().query().unwrap_or_default());
    if matches!(query.get("watch"), Some("true" | "1")) {
        watch(&query, shared, tasks)
    } else {
        list(&query, shared)
    }
}

fn list(query: &Query<'_>, shared: &Shared) -> Answer {
    let after = query.get("continue");
    let counter = match after {
        Some(_) => &shared.counters.pages,
        None => &shared.counters.lists,
    };
    counter.fetch_add(1, Ordering::Relaxed);
    let asked = query.get("limit").and_then(|limit| limit.parse().ok());
    let size = shared.config.page.min(asked.unwrap_or(usize::MAX));
    let (version, items, next) = shared.store.page(after, size);
    let metadata = json!({
        "resourceVersion": version.to_string(), "continue": next.unwrap_or_default(),
    });
    let list = format!(
        "{{\"kind\":\"NodeList\",\"apiVersion\":\"v1\",\"metadata\":{metadata},\"items\":[{}]}}",
        items.join(",")
    );
    whole(StatusCode::OK, list)
}

fn watch(query: &Query<'_>, shared: &Arc<Shared>, tasks: &Tasks) -> Answer {
    let store = shared.store.clone();
    let version = query.get("resourceVersion").and_then(|v| v.parse().ok());
    let version: u64 = version.unwrap_or_default();
    if matches!(store.since(version), Since::Gone) {
        shared.counters.gone.fetch_add(1, Ordering::Relaxed);
        let message = format!("too old resource version: {version}");
        return status(StatusCode::GONE, &message, "Expired");
    }
    shared.counters.watches.fetch_add(1, Ordering::Relaxed);
    let wants_bookmarks = query.get("allowWatchBookmarks") == Some("true");
    let (events, receiver) = mpsc::channel(EVENTS);
    let ends = (store.expired(), store.ended());
    tasks.spawn(send_events(store, version, ends, wants_bookmarks, events));
    Response::builder()
        .header(CONTENT_TYPE, "application/json")
        .body(AnswerBody::Events(receiver))
}

async fn send_events(
    store: NodeStore,
    mut version: u64,
    (expired, ended): (u64, u64),
    wants_bookmarks: bool,
    events: mpsc::Sender<Bytes>,
) {
    let mut changes = store.changes();
    loop {
        changes.mark_unchanged();
        if store.ended() != ended {
            return;
        }
        let news = match store.since(version) {
            Since::Events(news) if store.expired() == expired => news,
            Since::Events(_) | Since::Gone => {
                let object = status_object(StatusCode::GONE, "too old resource version", "Expired");
                let event = json!({ "type": "ERROR", "object": object });
                let _ = events.send(line(&event.to_string())).await;
                return;
            }
        };
        for event in news {
            version = event.version;
            let is_wanted = wants_bookmarks || !event.is_bookmark;
            if is_wanted && events.send(line(&event.text)).await.is_err() {
                return;
            }
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = events.closed() => return,
        }
    }
}

fn line(event: &str) -> Bytes {
    format!("{event}\n").into()
}

fn status(code: StatusCode, message: &str, reason: &str) -> Answer {
    whole(code, status_object(code, message, reason).to_string())
}

fn status_object(code: StatusCode, message: &str, reason: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    })
}

fn whole(code: StatusCode, content: String) -> Answer {
    Response::builder()
        .status(code)
        .header(CONTENT_TYPE, "application/json")
        .body(AnswerBody::Whole(Some(content.into())))
}

/// The parameters of a request; what stands in them here needs no escapes.
struct Query<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Query<'a> {
    fn parse(text: &'a str) -> Self {
        let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
        Self(pairs.collect())
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        let found = self.0.iter().find(|(name, _)| *name == key);
        found.map(|(_, value)| *value)
    }
}

/// Events that wait for a slow client.
const EVENTS: usize = 64;
