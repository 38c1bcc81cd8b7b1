//! Keeping the programs where they should be, until the agent drains.
//!
//! Owns the tasks of steering itself: looking when the kernel tells of a change of links, addresses,
//! qdiscs or filters, and every few seconds, as nobody tells of a TCX link that is detached; and
//! the log of the programs. At the start of a drain it takes them off.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Engine, Steering, SteeringMetrics, rtnetlink::Changes};

/// Watches until `drain` is cancelled, then takes the programs off.
pub(super) async fn run(
    steering: &Steering,
    engine: &Engine,
    drain: &CancellationToken,
    metrics: &SteeringMetrics,
) {
    let tasks = TaskTracker::new();
    if let Some(log) = engine.take_log() {
        let drain = drain.clone();
        tasks.spawn(async move { drain.run_until_cancelled(log.follow()).await });
    }
    tasks.close();
    look_until(steering, engine, drain, metrics).await;
    engine.places().close();
    tasks.wait().await;
}

async fn look_until(
    steering: &Steering,
    engine: &Engine,
    drain: &CancellationToken,
    metrics: &SteeringMetrics,
) {
    let mut changes = listen();
    loop {
        let due = Instant::now() + INTERVAL;
        tokio::select! {
            () = drain.cancelled() => return,
            () = sleep_until(due) => {}
            heard = changed(changes.as_ref()) => {
                if let Err(error) = heard {
                    tracing::warn!(reason = %error, "{ONLY_LOOKED_FOR}");
                    changes = None;
                }
                // Changes come in groups; one look is enough for all of them.
                if timeout(TOGETHER, drain.cancelled()).await.is_ok() {
                    return;
                }
            }
        }
        let looked = engine.places().look();
        metrics.lost.inc_by(looked.lost);
        metrics.failed.inc_by(looked.failed);
        metrics.show(steering);
        steering.changes.announce();
    }
}

fn listen() -> Option<Changes> {
    match Changes::listen() {
        Ok(changes) => Some(changes),
        Err(error) => {
            tracing::warn!(reason = %error, "{ONLY_LOOKED_FOR}");
            None
        }
    }
}

/// Never ends where nothing can be heard.
async fn changed(changes: Option<&Changes>) -> std::io::Result<()> {
    match changes {
        Some(changes) => changes.next().await,
        None => std::future::pending().await,
    }
}

/// How often to look without being told.
const INTERVAL: Duration = Duration::from_secs(5);

/// How long to wait for more after a change.
const TOGETHER: Duration = Duration::from_millis(100);

const ONLY_LOOKED_FOR: &str =
    "changes of interfaces cannot be heard of, they are looked for every 5 s";
