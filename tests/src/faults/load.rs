//! Users of every kind who ask without pause, and what each request came to.
//!
//! Short requests, downloads and uploads whose every byte is checked, logs that are followed and
//! left. A request that takes longer than [`HANG`] hangs, which is never excused; a failure is,
//! inside a [`Window`]. A log that ends as if its container had ended was cut off without an
//! error, and is the worst of all.

use std::{
    error::Error,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use proxymux_testkit::{
    apiserver::{ApiServer, RequestError},
    kubelet::log_line_number,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::Window;

/// Some users.
#[derive(Debug)]
pub struct Load {
    users: JoinSet<()>,
    enough: CancellationToken,
    record: Arc<Mutex<Report>>,
}

/// What the users got.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How many requests were served.
    pub good: usize,
    /// Those that were not.
    pub failed: Vec<Request>,
    /// How long the slowest request took that failed.
    pub slowest_failure: Duration,
}

/// A request that failed.
#[derive(Clone, Debug)]
pub struct Request {
    /// Whose.
    pub node: usize,
    /// What it was.
    pub kind: Kind,
    /// When it was made.
    pub began: Instant,
    /// When it failed.
    pub ended: Instant,
    /// With which error.
    pub error: String,
    /// In a way that nothing excuses.
    pub wrong: bool,
}

/// Kinds of requests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A few bytes.
    Health,
    /// A body from the kubelet.
    Download,
    /// A body to the kubelet.
    Upload,
    /// A log without an end.
    Follow,
}

impl Load {
    /// Begins to ask at all nodes, so many users at each.
    pub fn start(api: &ApiServer, targets: &[String], users: usize, seed: u64) -> Self {
        let (enough, record) = (CancellationToken::new(), Arc::default());
        let mut all = JoinSet::new();
        let mut random = Rng::with_seed(seed);
        for (node, target) in targets.iter().enumerate() {
            for _ in 0..users {
                let user = User {
                    api: api.clone(),
                    node,
                    target: target.clone(),
                    random: Rng::with_seed(random.u64(..)),
                };
                all.spawn(user.ask_on(enough.clone(), Arc::clone(&record)));
            }
        }
        Self {
            users: all,
            enough,
            record,
        }
    }

    /// What there is to report so far.
    pub fn report(&self) -> Report {
        lock(&self.record).clone()
    }

    /// Lets the users finish what they have begun.
    ///
    /// # Errors
    ///
    /// A user's task panicked.
    pub async fn stop(mut self) -> Result<Report> {
        self.enough.cancel();
        while let Some(user) = self.users.join_next().await {
            user.context("a user's task")?;
        }
        Ok(self.report())
    }
}

impl Report {
    /// Fails if a request hung, ended in a wrong way, or failed without an excuse.
    ///
    /// # Errors
    ///
    /// Names the first of them.
    pub fn check(&self, windows: &[Window]) -> Result<()> {
        for request in &self.failed {
            ensure!(!request.wrong, "{request}");
            let excused = windows
                .iter()
                .any(|window| window.excuses(request.node, request.began, request.ended));
            ensure!(excused, "failed while nothing was wrong: {request}");
        }
        Ok(())
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            node, kind, error, ..
        } = self;
        let took = self.ended - self.began;
        write!(f, "{kind:?} of node {node} after {took:?}: {error}")
    }
}

#[derive(Debug)]
struct User {
    api: ApiServer,
    node: usize,
    target: String,
    random: Rng,
}

impl User {
    async fn ask_on(mut self, enough: CancellationToken, record: Arc<Mutex<Report>>) {
        while !enough.is_cancelled() {
            let kind = self.choose();
            let began = Instant::now();
            let asked = timeout(HANG, self.ask(kind)).await;
            let failure = match asked {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some((format!("{error:#}"), is_wrong(&error))),
                Err(_) => Some((format!("no end within {HANG:?}"), true)),
            };
            let pause = if failure.is_some() {
                BREATH
            } else {
                Duration::ZERO
            };
            let (node, ended) = (self.node, Instant::now());
            note(
                &record,
                failure.map(|(error, wrong)| Request {
                    node,
                    kind,
                    began,
                    ended,
                    error,
                    wrong,
                }),
            );
            sleep(pause).await;
        }
    }

    fn choose(&mut self) -> Kind {
        match self.random.u8(..10) {
            0..4 => Kind::Health,
            4..6 => Kind::Download,
            6..8 => Kind::Upload,
            _ => Kind::Follow,
        }
    }

    async fn ask(&mut self, kind: Kind) -> Result<()> {
        let (bytes, seed) = (self.random.u64(1..MAX_BODY), self.random.u64(..));
        match kind {
            Kind::Health => {
                let reply = self.api.get(&self.target, "/healthz").await?;
                expect_ok(reply.status)
            }
            Kind::Download => {
                let path = format!("/bytes?n={bytes}&seed={seed}");
                let received = self.api.get_pattern(&self.target, &path, seed).await?;
                expect(received == bytes, || {
                    format!("{received} bytes instead of {bytes}")
                })
            }
            Kind::Upload => {
                let posted = self.api.post_pattern(&self.target, "/sink", bytes, seed);
                let reply = posted.await?;
                expect_ok(reply.status)?;
                let (text, whole) = (reply.text(), format!("received={bytes} "));
                expect(text.starts_with(&whole), || {
                    format!("{text} instead of {whole}")
                })
            }
            Kind::Follow => self.follow().await,
        }
    }

    /// Reads a log for a while, and leaves in the middle of it, as people do.
    async fn follow(&mut self) -> Result<()> {
        let until = Instant::now() + FOLLOW.mul_f64(self.random.f64());
        let mut log = self.api.get_stream(&self.target, LOG).await?;
        let mut last = None;
        while Instant::now() < until {
            let Some(line) = log.next_line().await? else {
                bail!(Wrong("a log without end has ended in order".to_owned()));
            };
            let number = log_line_number(&line);
            let follows = last.is_none_or(|last| number == Some(last + 1));
            expect(number.is_some() && follows, || {
                format!("line {line:?} after {last:?}")
            })?;
            last = number;
        }
        Ok(())
    }
}

/// Something that no fault excuses.
#[derive(Debug)]
struct Wrong(String);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Wrong {}

fn is_wrong(error: &anyhow::Error) -> bool {
    let body = matches!(
        error.downcast_ref(),
        Some(RequestError::Body { .. } | RequestError::Status { .. })
    );
    body || error.is::<Wrong>()
}

fn expect(condition: bool, problem: impl FnOnce() -> String) -> Result<()> {
    if condition {
        Ok(())
    } else {
        bail!(Wrong(problem()))
    }
}

fn expect_ok(status: u16) -> Result<()> {
    ensure!(status == 200, "status {status}");
    Ok(())
}

fn note(record: &Mutex<Report>, failure: Option<Request>) {
    let mut record = lock(record);
    match failure {
        None => record.good += 1,
        Some(request) => {
            let took = request.ended - request.began;
            record.slowest_failure = record.slowest_failure.max(took);
            record.failed.push(request);
        }
    }
}

/// Every change is one step, so that the report is whole even if a task panicked.
fn lock(record: &Mutex<Report>) -> MutexGuard<'_, Report> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The longest gap of 18 s, the time until a flow moves again after it, and a machine under load.
pub const HANG: Duration = Duration::from_secs(30);

/// Some are over at once, some take seconds on a busy machine.
const MAX_BODY: u64 = 8 << 20;

/// The longest time that a log is followed.
const FOLLOW: Duration = Duration::from_secs(3);

const LOG: &str = "/containerLogs/default/pod/main?follow=true&tailLines=1";

/// A user who was turned away does not ask again in the same instant.
const BREATH: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_fault_at_the_same_node_and_time_excuses_a_failure() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let windows = [Window {
            node: Some(0),
            began: at(10),
            ended: at(20),
        }];
        let excused = |node, began, ended, wrong| {
            let request = Request {
                node,
                kind: Kind::Health,
                began: at(began),
                ended: at(ended),
                error: "connection reset".to_owned(),
                wrong,
            };
            let report = Report {
                failed: vec![request],
                ..Report::default()
            };
            report.check(&windows).is_ok()
        };

        assert!(excused(0, 5, 11, false));
        assert!(excused(0, 19, 25, false));
        assert!(!excused(0, 1, 9, false), "before");
        assert!(!excused(0, 21, 22, false), "after");
        assert!(!excused(1, 12, 13, false), "at another node");
        assert!(!excused(0, 12, 13, true), "wrong in itself");
    }
}
