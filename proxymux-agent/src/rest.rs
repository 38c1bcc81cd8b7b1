//! The agent at rest: how it notices that nothing is going on, and what it then lets go of.
//!
//! Owns the count of what disturbs it ([`Rest`]) and the wait until nothing has for a while. What
//! is let go of are the pages of its program that starting, a handshake or a request has mapped;
//! `proxymux_transport::program_pages` says what that means.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use proxymux_transport::program_pages::ProgramPages;
use tokio_util::sync::CancellationToken;

/// Counts what the agent does that it does not do all the time.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    disturbances: AtomicU64,
}

impl Rest {
    /// Notes that something begins: an attempt to reach a master, or a connection.
    pub(crate) fn disturb(&self) {
        self.disturbances.fetch_add(1, Relaxed);
    }

    /// Lets go whenever nothing has begun for a while since the start or the last disturbance,
    /// once each; until `stop`, or until letting go fails, which is then told.
    async fn keep(
        &self,
        mut let_go: impl FnMut() -> io::Result<()>,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let (mut last, mut let_go_at) = (None, None);
        while stop
            .run_until_cancelled(tokio::time::sleep(QUIET))
            .await
            .is_some()
        {
            let now = Some(self.disturbances.load(Relaxed));
            if now == last && now != let_go_at {
                let_go()?;
                let_go_at = now;
            }
            last = now;
        }
        Ok(())
    }
}

/// Lets go of the program's pages whenever the agent has come to rest, until `stop`.
pub(crate) async fn run(rest: &Rest, pages: io::Result<ProgramPages>, stop: CancellationToken) {
    let kept = async {
        let pages = pages?;
        let let_go = || {
            let bytes = pages.let_go()?;
            tracing::debug!(bytes, "at rest, unmapped what of the program is not in use");
            Ok(())
        };
        rest.keep(let_go, stop).await
    };
    if let Err(error) = kept.await {
        // Nothing depends on it, and no operator can do anything about it.
        tracing::debug!(%error, "the program's pages stay mapped");
    }
}

/// Longer than the pause between two requests of somebody who looks at a node, and than most
/// waits for the next attempt to reach a master. A rest is noticed within twice that.
const QUIET: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::Future, rc::Rc};

    use tokio::time::{Instant, sleep_until, timeout_at};

    use super::*;

    /// An agent that counts how often it let go, and the beginning of its time.
    struct Agent {
        rest: Rest,
        went: Rc<Cell<u32>>,
        began: Instant,
    }

    impl Agent {
        fn new() -> Self {
            Self {
                rest: Rest::default(),
                went: Rc::default(),
                began: Instant::now(),
            }
        }

        fn kept(&self) -> impl Future<Output = io::Result<()>> {
            let went = Rc::clone(&self.went);
            let let_go = move || {
                went.set(went.get() + 1);
                Ok(())
            };
            self.rest.keep(let_go, CancellationToken::new())
        }

        fn at(&self, second: u64) -> Instant {
            self.began + Duration::from_secs(second)
        }

        /// How often it has let go by then.
        async fn by(
            &self,
            second: u64,
            kept: &mut (impl Future<Output = io::Result<()>> + Unpin),
        ) -> u32 {
            assert!(timeout_at(self.at(second), kept).await.is_err());
            self.went.get()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_lets_go_once_after_the_start_and_once_after_each_disturbance() {
        let agent = Agent::new();
        let mut kept = Box::pin(agent.kept());
        assert_eq!(agent.by(15, &mut kept).await, 0);
        assert_eq!(agent.by(25, &mut kept).await, 1);
        assert_eq!(agent.by(3_600, &mut kept).await, 1);

        agent.rest.disturb();

        assert_eq!(agent.by(3_605, &mut kept).await, 1);
        assert_eq!(agent.by(3_625, &mut kept).await, 2);
        assert_eq!(agent.by(7_200, &mut kept).await, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn while_things_keep_happening_it_lets_nothing_go() {
        let agent = Agent::new();
        let mut kept = Box::pin(agent.kept());
        let busy = async {
            for second in (3..300).step_by(7) {
                sleep_until(agent.at(second)).await;
                agent.rest.disturb();
            }
        };
        tokio::select! {
            kept = &mut kept => panic!("it ended: {kept:?}"),
            () = busy => {}
        }
        assert_eq!(agent.went.get(), 0);
        assert_eq!(agent.by(330, &mut kept).await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_when_told_to_and_when_letting_go_fails() {
        let rest = Rest::default();
        let stop = CancellationToken::new();
        stop.cancel();
        rest.keep(|| unreachable!("it was told to stop"), stop)
            .await
            .unwrap();

        let fails = || Err(io::ErrorKind::PermissionDenied.into());
        let error = rest
            .keep(fails, CancellationToken::new())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }
}
