//! An API server that says nothing any more is given up in time, and asked again from where it was.
//!
//! The stand-in is a service in the place of the connection, so that time is paused: nothing here
//! is on a wire. What a dead wire does is tested end to end.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future,
    pin::Pin,
    sync::Mutex,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::{Request, Response, body::Frame};
use kube_client::{Client, client::Body};
use proxymux_transport::metrics;
use serde_json::{Value, json};
use tower_service::Service;

use super::*;
use crate::{
    claims::{NodeObjects, Policy},
    testing::log::Log,
};

/// What the stand-in answers to one request.
enum Answer {
    /// All nodes, and the version of the list.
    List(&'static [&'static str], u64),
    /// Nodes that are new, each with its version; then the watch ends.
    Ending(&'static [(&'static str, u64)]),
    /// The same, and then nothing, not even an end.
    FallingSilent(&'static [(&'static str, u64)]),
    /// The version is too old.
    Gone,
    /// Nothing at all.
    Never,
}

/// Answers in turn, and what was asked.
#[derive(Clone, Default)]
struct Api(Arc<Mutex<(VecDeque<Answer>, Vec<String>)>>);

impl Api {
    fn new(answers: impl IntoIterator<Item = Answer>) -> Self {
        let answers = answers.into_iter().collect();
        Self(Arc::new(Mutex::new((answers, Vec::new()))))
    }

    /// As `access` makes one in each round.
    fn open(&self) -> Result<Access, AccessError> {
        Ok(Access {
            client: Client::new(self.clone(), "default"),
            server: "https://fake/".to_owned(),
        })
    }

    fn asked(&self) -> Vec<String> {
        self.0.lock().unwrap().1.clone()
    }
}

impl Service<Request<Body>> for Api {
    type Response = Response<Stream>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut state = self.0.lock().unwrap();
        let query = request.uri().query().unwrap_or_default();
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let version = pairs.find(|(key, _)| *key == "resourceVersion");
        let watch = version.filter(|_| query.contains("watch="));
        state.1.push(match watch {
            Some((_, version)) => format!("watch from {version}"),
            None => "list".to_owned(),
        });
        let answer = state.0.pop_front().expect("the test has an answer left");
        let (status, lines, is_ending) = match answer {
            Answer::Never => return Box::pin(future::pending()),
            Answer::Gone => (
                410,
                vec![json!({ "message": "too old", "code": 410 })],
                true,
            ),
            Answer::List(names, version) => {
                let items: Vec<_> = names.iter().map(|name| node(name, version)).collect();
                let metadata = json!({ "resourceVersion": version.to_string() });
                let list = json!({ "metadata": metadata, "items": items });
                (200, vec![list], true)
            }
            Answer::Ending(events) => (200, added(events), true),
            Answer::FallingSilent(events) => (200, added(events), false),
        };
        let body = Stream {
            lines: lines.into(),
            is_ending,
        };
        let response = Response::builder().status(status).body(body);
        Box::pin(future::ready(Ok(response.unwrap())))
    }
}

fn node(name: &str, version: u64) -> Value {
    json!({ "metadata": { "name": name, "resourceVersion": version.to_string() } })
}

fn added(events: &[(&str, u64)]) -> Vec<Value> {
    let event =
        |(name, version): &(&str, u64)| json!({ "type": "ADDED", "object": node(name, *version) });
    events.iter().map(event).collect()
}

/// A body of lines that ends, or does not.
struct Stream {
    lines: VecDeque<Value>,
    is_ending: bool,
}

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.lines.pop_front() {
            Some(line) => Poll::Ready(Some(Ok(Frame::data(format!("{line}\n").into())))),
            None if self.is_ending => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

fn follower() -> Follower {
    let mut metrics = metrics::registry("test", "0");
    let health = Health::new(ObjectMetrics::register(&mut metrics));
    let registry = Registry::new(Policy::Objects(NodeObjects::default()));
    Follower::new(registry, health)
}

/// One round, and how long it took.
async fn round(follower: &mut Follower, api: &Api) -> Duration {
    let began = Instant::now();
    follower.round(api.open()).await;
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_falls_silent_is_given_up_and_goes_on_from_where_it_was() {
    let (log, _guard) = Log::capture();
    let api = Api::new([
        Answer::List(&["a"], 5),
        Answer::FallingSilent(&[("b", 6)]),
        Answer::Ending(&[("c", 7)]),
    ]);
    let mut follower = follower();

    let took = round(&mut follower, &api).await;

    // What docs/configuration.md says.
    let (least, most) = (Duration::from_secs(180 + 30), Duration::from_secs(300 + 30));
    assert!(took >= least && took <= most, "{took:?}");
    let error = format!("the API server: no answer within {} s", took.as_secs());
    let warning = format!(
        "WARN proxymux_master::kubernetes::health: the node objects read last stay in force \
         server=\"https://fake/\" error=\"{error}\""
    );
    assert_eq!(
        log.lines().get(1..),
        Some(&[warning][..]),
        "{:?}",
        log.lines()
    );
    let shown = follower.health.show(follower.registry.objects());
    assert_eq!(shown["error"], error, "{shown}");
    assert_eq!(
        (&shown["watching"], &shown["objects"]),
        (&json!(false), &json!(2))
    );
    assert_eq!(shown["heard_s"], took.as_secs());

    round(&mut follower, &api).await;

    assert_eq!(api.asked(), ["list", "watch from 5", "watch from 6"]);
    assert_eq!(follower.registry.objects(), 3);
    let lines = log.lines();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(
        lines[2].contains("node objects are watched again"),
        "{lines:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_missed_in_silence_for_too_long_is_read_anew() {
    let api = Api::new([
        Answer::List(&["a"], 5),
        Answer::FallingSilent(&[]),
        Answer::Gone,
        Answer::List(&["b", "c"], 90),
        Answer::Ending(&[]),
    ]);
    let mut follower = follower();
    for _ in 0..3 {
        round(&mut follower, &api).await;
    }
    let asked = [
        "list",
        "watch from 5",
        "watch from 5",
        "list",
        "watch from 90",
    ];
    assert_eq!(api.asked(), asked);
    assert_eq!(follower.registry.objects(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_request_without_an_answer_is_given_up_after_half_a_minute_and_told_once() {
    let (log, _guard) = Log::capture();
    let api = Api::new([
        Answer::Never,
        Answer::Never,
        Answer::List(&["a"], 5),
        Answer::Never,
        Answer::Ending(&[]),
    ]);
    let mut follower = follower();

    for _ in 0..3 {
        assert_eq!(round(&mut follower, &api).await, Duration::from_secs(30));
    }
    round(&mut follower, &api).await;

    // Of the second, a list, no more is known than of the first; the third is a watch.
    assert_eq!(
        api.asked(),
        ["list", "list", "list", "watch from 5", "watch from 5"]
    );
    let said: Vec<_> = log
        .lines()
        .iter()
        .filter_map(|line| line.split_once(": ").map(|(_, said)| said.to_owned()))
        .collect();
    let silent = "server=\"https://fake/\" error=\"the API server: no answer within 30 s\"";
    assert_eq!(
        said,
        [
            format!("node objects are not known yet {silent}"),
            "node objects are read objects=1".to_owned(),
            "node objects are watched again server=\"https://fake/\"".to_owned(),
        ]
    );
}

#[test]
fn pauses_grow_to_a_bound_and_are_never_nothing() {
    for failures in 0..40 {
        for _ in 0..50 {
            let pause = pause(failures);
            assert!(pause >= SHORTEST_PAUSE, "{pause:?}");
            assert!(pause <= LONGEST_PAUSE + SHORTEST_PAUSE, "{pause:?}");
        }
    }
    let longest = |failures| (0..200).map(|_| pause(failures)).max();
    assert!(longest(0) < longest(10));
}
