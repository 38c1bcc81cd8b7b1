//! Measuring the paths to a node, in the field: `proxymux-master perf`.
//!
//! Owns the one measurement that may run at a time ([`Perf`]), its order from the admin address,
//! and its state as JSON. What is measured on a path is `perf/measure.rs`, the table is
//! `perf/table.rs`, and the far end is the agent's (`proxymux_transport::measure`).
//! A measurement goes through the relays that requests go through, by the path that it names and no
//! other, and loads node and master as much as a download does: that is what it is for.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use proxymux_proto::NodeName;
use proxymux_transport::telemetry::Path;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use crate::{gateway::Gateway, master::Master, registry::SessionHandle};

mod measure;
mod table;

pub use self::table::{is_over, progress, show};

/// The measurement that runs or ran last.
#[derive(Debug, Default)]
pub(crate) struct Perf {
    job: Mutex<Option<Job>>,
}

#[derive(Debug)]
struct Job {
    state: Arc<Mutex<State>>,
    task: AbortOnDropHandle<()>,
}

/// What is known so far.
#[derive(Debug)]
struct State {
    node: String,
    seconds: u64,
    /// What is being done, in words.
    doing: String,
    paths: Vec<Value>,
    done: bool,
    problem: Option<String>,
}

/// What is to be measured.
#[derive(Debug)]
struct Order {
    session: Arc<SessionHandle>,
    paths: Vec<Path>,
    time: Duration,
}

/// Why an order is not followed. Its text is for the one who gave it.
#[derive(Debug, thiserror::Error)]
enum OrderError {
    #[error("a measurement of node {0} is running; wait until it is over")]
    Busy(String),
    #[error("the order has no `{0}`")]
    Missing(&'static str),
    #[error("unknown path `{0}`, expected all, session, reverse or direct")]
    Path(String),
    #[error("bad number of seconds `{0}`, expected 1 to {MAX_SECONDS}")]
    Seconds(String),
    #[error("node name: {0}")]
    Node(#[from] proxymux_proto::NodeNameError),
    #[error("node {0} has no session; `proxymux-master nodes` lists those that have")]
    Away(NodeName),
}

impl Perf {
    /// Begins to measure, if nothing is being measured.
    pub(crate) fn start(
        &self,
        master: &Arc<Master>,
        runtime: &Handle,
        query: &str,
    ) -> Result<Value, String> {
        let order = self
            .order(master, query)
            .map_err(|error| error.to_string())?;
        let state = Arc::new(Mutex::new(State {
            node: order.session.node.to_string(),
            seconds: order.time.as_secs(),
            doing: "starting".to_owned(),
            paths: Vec::new(),
            done: false,
            problem: None,
        }));
        let shown = lock(&state).show();
        let gateway = Gateway::new(Arc::clone(master));
        let shutdown = master.shutdown.clone();
        let of_task = Arc::clone(&state);
        let task = runtime.spawn(async move {
            let measured = measure::run(&gateway, &order, &of_task);
            let problem = tokio::select! {
                () = measured => None,
                () = shutdown.drain.cancelled() => Some("the master is ending".to_owned()),
            };
            let mut state = lock(&of_task);
            state.problem = problem;
            state.done = true;
        });
        *self.lock() = Some(Job {
            state,
            task: AbortOnDropHandle::new(task),
        });
        Ok(shown)
    }

    /// The state of the measurement that runs or ran last.
    pub(crate) fn state(&self) -> Result<Value, String> {
        match &*self.lock() {
            // A task that panicked says nothing more.
            Some(job) if job.task.is_finished() && !lock(&job.state).done => {
                Err("the measurement failed; the log says how".to_owned())
            }
            Some(job) => Ok(lock(&job.state).show()),
            None => Err("nothing has been measured".to_owned()),
        }
    }

    fn order(&self, master: &Master, query: &str) -> Result<Order, OrderError> {
        if let Some(job) = &*self.lock()
            && !job.task.is_finished()
        {
            return Err(OrderError::Busy(lock(&job.state).node.clone()));
        }
        let field = |name: &'static str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        let node = NodeName::parse(field("node").ok_or(OrderError::Missing("node"))?)?;
        let paths = match field("path").unwrap_or("all") {
            "all" => PATHS.to_vec(),
            word => match PATHS.iter().find(|path| path.as_str() == word) {
                Some(path) => vec![*path],
                None => return Err(OrderError::Path(word.to_owned())),
            },
        };
        let seconds = field("seconds").unwrap_or(DEFAULT_SECONDS);
        let time = match seconds.parse() {
            Ok(number @ 1..=MAX_SECONDS) => Duration::from_secs(number),
            _ => return Err(OrderError::Seconds(seconds.to_owned())),
        };
        let session = master.registry.session(&node);
        Ok(Order {
            session: session.ok_or(OrderError::Away(node))?,
            paths,
            time,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Job>> {
        self.job.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn show(&self) -> Value {
        json!({
            "node": self.node,
            "seconds": self.seconds,
            "doing": self.doing,
            "done": self.done,
            "problem": self.problem,
            "paths": self.paths,
        })
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // It is only shown.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// In the order in which they are measured.
const PATHS: [Path; 3] = [Path::Session, Path::Reverse, Path::Direct];

/// Long enough for TCP to find its speed.
const DEFAULT_SECONDS: &str = "5";

/// A node has better things to do for longer than this.
const MAX_SECONDS: u64 = 60;

#[cfg(test)]
mod tests;
