//! Users who ask a node's kubelet for something again and again while a test does something else.
//!
//! Every answer counts, so that a test can say that nobody was turned away, and how long the one
//! who waited longest has waited.

use std::time::Duration;

use anyhow::{Context, Result};
use proxymux_testkit::apiserver::ApiServer;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

/// Some users, each with one request at a time.
#[derive(Debug)]
pub struct Asking {
    users: JoinSet<Answers>,
    enough: CancellationToken,
}

/// What the users got.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// How many answers were good.
    pub good: usize,
    /// What else they were told.
    pub failures: Vec<String>,
    /// The longest time that an answer took.
    pub slowest: Duration,
}

impl Asking {
    /// Begins to ask for the health of a kubelet.
    pub fn start(api: &ApiServer, target: &str) -> Self {
        let enough = CancellationToken::new();
        let mut users = JoinSet::new();
        for _ in 0..USERS {
            users.spawn(ask_on(api.clone(), target.to_owned(), enough.clone()));
        }
        Self { users, enough }
    }

    /// Waits for the answers that are outstanding, and stops.
    ///
    /// # Errors
    ///
    /// A user's task panicked.
    pub async fn stop(mut self) -> Result<Answers> {
        self.enough.cancel();
        let mut all = Answers::default();
        while let Some(user) = self.users.join_next().await {
            let answers = user.context("a user's task")?;
            all.good += answers.good;
            all.failures.extend(answers.failures);
            all.slowest = all.slowest.max(answers.slowest);
        }
        Ok(all)
    }
}

async fn ask_on(api: ApiServer, target: String, enough: CancellationToken) -> Answers {
    let mut answers = Answers::default();
    while !enough.is_cancelled() {
        let asked = Instant::now();
        match api.get(&target, "/healthz").await {
            Ok(reply) if reply.status == 200 => answers.good += 1,
            Ok(reply) => answers
                .failures
                .push(format!("{} {}", reply.status, reply.text())),
            Err(error) => {
                let after = asked.elapsed();
                let error = format!("{:#}", anyhow::Error::new(error));
                answers.failures.push(format!("after {after:?}: {error}"));
            }
        }
        answers.slowest = answers.slowest.max(asked.elapsed());
        sleep(BREATH).await;
    }
    answers
}

const USERS: usize = 4;
/// Often enough that somebody always asks at the wrong moment.
const BREATH: Duration = Duration::from_millis(20);
