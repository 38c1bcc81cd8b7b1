//! When an agent that was told to end takes nothing new any more.
//!
//! Its successor may not start before it has ended (a DaemonSet has it so), and it does not end
//! before its last connection has, or its drain is out of time. Taking nothing new all that while
//! would turn requests away, which wait for a successor for a few seconds only. So it goes on
//! serving, and closes when nothing is left that it would stay for, or shortly before the end.
//! Owns that moment ([`Closing`]) and what is waited for; what closing means is each part's own.

use std::{sync::OnceLock, time::Duration};

use tokio::time::Instant;
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

use crate::agent::Agent;

/// The end of the agent, as far as new work is concerned.
#[derive(Debug, Default)]
pub(crate) struct Closing {
    /// Connections that are being opened or relayed, by whichever path.
    work: TaskTracker,
    /// Since the agent was told to end: when it ends at the latest.
    end: OnceLock<Instant>,
    closed: CancellationToken,
}

impl Closing {
    /// Notes a connection until the token is dropped: the agent stays for it.
    pub(crate) fn work(&self) -> TaskTrackerToken {
        self.work.token()
    }

    /// Whether nothing new is taken.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Becomes ready when nothing new is taken. Cancel-safe.
    pub(crate) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Takes nothing new from now on.
    #[cfg(test)]
    pub(crate) fn close(&self) {
        self.closed.cancel();
    }

    /// How long what is open may still go on: `whole` before the agent is told to end.
    pub(crate) fn left_of(&self, whole: Duration) -> Duration {
        let end = self.end.get();
        end.map_or(whole, |end| end.saturating_duration_since(Instant::now()))
    }
}

/// Waits until the agent is told to end, and then closes it in time.
pub(crate) async fn run(agent: &Agent) {
    let (closing, shutdown) = (&agent.closing, &agent.shutdown);
    shutdown.drain.cancelled().await;
    let whole = agent.config.drain_deadline;
    let end = *closing.end.get_or_init(|| Instant::now() + whole);
    closing.work.close();
    tokio::select! {
        // One moment without any connection is enough.
        () = closing.work.wait() => {}
        () = tokio::time::sleep_until(end - LAST_PART.min(whole / 4)) => {}
        () = shutdown.force.cancelled() => {}
    }
    let open = closing.work.len();
    tracing::info!(open, "nothing new is taken");
    closing.closed.cancel();
}

/// What short requests that have just begun are given to end. With it a request that comes right
/// afterwards still has 6 s of a master's usual budget of 8 s until the successor must be there.
const LAST_PART: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proxymux_transport::shutdown::Shutdown;

    use super::*;
    use crate::{config::Config, steering::Steering};

    /// An agent whose drain may take 20 s, and since when it has been told to end.
    fn told_to_end() -> (Arc<Agent>, Instant) {
        let file = "node-name: worker-1\nserver-addr: https://192.0.2.10\n\
                    private-ip-address: 10.0.10.10\ndrain-deadline: 20s\n";
        let (config, _) = Config::parse(file, "test.yaml").unwrap();
        let shutdown = Shutdown::default();
        let agent = Agent::new(config, Steering::userspace("a test"), shutdown.clone());
        assert_eq!(
            agent.closing.left_of(Duration::from_secs(7)),
            Duration::from_secs(7)
        );
        shutdown.drain.cancel();
        (agent, Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_without_connections_closes_at_once() {
        let (agent, told) = told_to_end();

        run(&agent).await;

        assert!(agent.closing.is_closed());
        assert_eq!(told.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn it_stays_open_for_as_long_as_it_has_connections() {
        let (agent, told) = told_to_end();
        let (first, second) = (agent.closing.work(), agent.closing.work());
        let closing = tokio::spawn({
            let agent = Arc::clone(&agent);
            async move { run(&agent).await }
        });
        tokio::time::sleep(Duration::from_secs(5)).await;
        drop(first);
        let third = agent.closing.work();
        drop(second);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!agent.closing.is_closed());

        drop(third);
        closing.await.unwrap();

        assert!(told.elapsed() < Duration::from_secs(11));
    }

    #[tokio::test(start_paused = true)]
    async fn it_closes_shortly_before_its_time_is_up() {
        let (agent, told) = told_to_end();
        let _work = agent.closing.work();

        run(&agent).await;

        assert_eq!(told.elapsed(), Duration::from_secs(18));
        let whole = agent.config.drain_deadline;
        assert_eq!(agent.closing.left_of(whole), Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_closes_it_at_once() {
        let (agent, told) = told_to_end();
        let _work = agent.closing.work();
        agent.shutdown.force.cancel();

        run(&agent).await;

        assert_eq!(told.elapsed(), Duration::ZERO);
    }
}
