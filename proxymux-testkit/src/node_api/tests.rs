//! The stand-in does what kube-apiserver does, as far as a watch on nodes can tell.

use http_body_util::BodyExt;
use hyper::{
    Request, StatusCode,
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
};
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio_rustls::TlsConnector;

use super::*;
use crate::pki::{Leaf, Pki, Usage};

struct Stage {
    pki: Pki,
    store: NodeStore,
    api: NodeApi,
}

async fn stage() -> Stage {
    let pki = Pki::temporary().unwrap();
    let serving = Leaf::new("kube-apiserver")
        .names(["127.0.0.1"])
        .usages([Usage::Server]);
    let store = NodeStore::default();
    let config = NodeApiConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        serving: pki.pair("apiserver", &serving).unwrap(),
        client_ca: pki.ca_file(),
        user: "reader".to_owned(),
        token: Some("secret".to_owned()),
        page: 2,
    };
    let api = NodeApi::start(config, store.clone()).await.unwrap();
    Stage { pki, store, api }
}

impl Stage {
    async fn connect(&self, user: Option<&str>) -> SendRequest<String> {
        let files = user.map(|user| {
            let leaf = Leaf::new(user).usages([Usage::Client]);
            self.pki.pair(user, &leaf).unwrap()
        });
        let tls = tls::client_config(&self.pki.ca_file(), files.as_ref()).unwrap();
        let tcp = TcpStream::connect(self.api.local_addr()).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let tls = TlsConnector::from(Arc::new(tls));
        let stream = tls.connect(name, tcp).await.unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    async fn get(&self, user: Option<&str>, token: &str, path: &str) -> (StatusCode, Incoming) {
        let mut sender = self.connect(user).await;
        let request = Request::get(path)
            .header("Host", "127.0.0.1")
            .header("Authorization", token)
            .body(String::new())
            .unwrap();
        let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
        (parts.status, body)
    }
}

async fn whole(body: Incoming) -> Value {
    let bytes = body.collect().await.unwrap().to_bytes();
    serde_json::from_slice(&bytes).unwrap()
}

/// The next line of a watch. One event is in several frames, and no frame in two events.
async fn event(body: &mut Incoming) -> Value {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let frame = body.frame().await.unwrap().unwrap();
        line.extend_from_slice(&frame.into_data().unwrap());
    }
    serde_json::from_slice(&line).unwrap()
}

fn fields(address: &str) -> NodeFields {
    NodeFields::with_addresses([("InternalIP", address)])
}

#[tokio::test]
async fn a_list_comes_in_pages_with_the_version_to_watch_from() {
    let stage = stage().await;
    for name in ["a", "b", "c"] {
        stage.store.set(name, &fields("10.0.0.1"));
    }
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap();
        let names = items.iter().map(|item| item["metadata"]["name"].as_str());
        names.map(|name| name.unwrap().to_owned()).collect()
    };
    let (_, body) = stage
        .get(Some("reader"), "", "/api/v1/nodes?limit=500")
        .await;
    let first = whole(body).await;
    assert_eq!(names(&first), ["a", "b"]);
    let next = first["metadata"]["continue"].as_str().unwrap();
    let path = format!("/api/v1/nodes?limit=500&continue={next}");
    let (_, body) = stage.get(Some("reader"), "", &path).await;
    let second = whole(body).await;
    assert_eq!(names(&second), ["c"]);
    assert_eq!(second["metadata"]["continue"], "");
    assert_eq!(second["metadata"]["resourceVersion"], "1003");
    let stats = stage.api.stats();
    assert_eq!((stats.lists, stats.pages), (1, 1));
}

#[tokio::test]
async fn only_who_may_is_answered() {
    let stage = stage().await;
    for (user, token, status) in [
        (Some("reader"), "", StatusCode::OK),
        (None, "Bearer secret", StatusCode::OK),
        (None, "Bearer wrong", StatusCode::UNAUTHORIZED),
        (None, "", StatusCode::UNAUTHORIZED),
        (Some("stranger"), "", StatusCode::FORBIDDEN),
    ] {
        let (said, _) = stage.get(user, token, "/api/v1/nodes").await;
        assert_eq!(said, status, "{user:?} {token}");
    }
    stage.store.forbid(true);
    let (said, _) = stage.get(Some("reader"), "", "/api/v1/nodes").await;
    assert_eq!(said, StatusCode::FORBIDDEN);
    assert_eq!(stage.api.stats().refused, 4);

    stage.store.forbid(false);
    stage.api.set_token("next");
    for (token, status) in [
        ("Bearer secret", StatusCode::UNAUTHORIZED),
        ("Bearer next", StatusCode::OK),
    ] {
        let (said, _) = stage.get(None, token, "/api/v1/nodes").await;
        assert_eq!(said, status, "{token}");
    }
}

#[tokio::test]
async fn a_watch_goes_on_from_a_version_until_that_is_too_old() {
    let stage = stage().await;
    stage.store.set("a", &fields("10.0.0.1"));
    let path = "/api/v1/nodes?watch=true&allowWatchBookmarks=true&resourceVersion=1000";
    let (status, mut body) = stage.get(Some("reader"), "", path).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(event(&mut body).await["type"], "ADDED");
    stage.store.set("a", &fields("10.0.0.2"));
    assert_eq!(event(&mut body).await["type"], "MODIFIED");
    stage.store.bookmark();
    let bookmark = event(&mut body).await;
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["resourceVersion"], "1012");
    stage.store.delete("a");
    assert_eq!(event(&mut body).await["type"], "DELETED");

    let version = "/api/v1/nodes?watch=true&resourceVersion=1013";
    let (_, mut other) = stage.get(Some("reader"), "", version).await;
    stage.store.end_watches();
    assert!(other.frame().await.is_none());
    assert!(body.frame().await.is_none());

    let (_, mut body) = stage.get(Some("reader"), "", version).await;
    stage.store.expire_watches();
    let error = event(&mut body).await;
    assert_eq!(error["type"], "ERROR");
    assert_eq!(error["object"]["code"], 410);
    assert!(body.frame().await.is_none());

    stage.store.forget();
    let (status, _) = stage.get(Some("reader"), "", path).await;
    assert_eq!(status, StatusCode::GONE);
}
