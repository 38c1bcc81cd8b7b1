//! Waiting for something outside: a condition that must come true before a limit.
//!
//! Nothing here is for time itself; a test of timers pauses tokio's clock instead. The limits are
//! measured in real time, so [`eventually_async`] belongs in a runtime whose clock runs.
//! A limit that passes is a panic at the caller's line, because that is how a test fails.

use std::{thread, time::Duration};

/// Waits until `condition` is true.
///
/// # Panics
///
/// When `limit` has passed and the condition is still false.
///
/// ```
/// use std::{sync::atomic::{AtomicBool, Ordering}, thread, time::Duration};
/// use proxymux_testkit::wait::eventually;
///
/// let done = AtomicBool::new(false);
/// thread::scope(|scope| {
///     scope.spawn(|| done.store(true, Ordering::Release));
///     eventually(Duration::from_secs(5), || done.load(Ordering::Acquire));
/// });
/// ```
#[track_caller]
pub fn eventually(limit: Duration, mut condition: impl FnMut() -> bool) {
    eventually_some(limit, || condition().then_some(()));
}

/// Waits until `attempt` gives a value, and returns it.
///
/// # Panics
///
/// When `limit` has passed without one.
#[track_caller]
#[expect(clippy::panic, reason = "a panic is how a test fails")]
pub fn eventually_some<T>(limit: Duration, attempt: impl FnMut() -> Option<T>) -> T {
    match poll_until(limit, attempt) {
        Some(value) => value,
        None => panic!("condition not met within {limit:?}"),
    }
}

/// Waits in a task until `condition` is true; other tasks of the runtime go on meanwhile.
///
/// # Panics
///
/// When `limit` has passed and the condition is still false. The panic names a line here, since
/// an async function does not know its caller; the backtrace does.
#[expect(clippy::panic, reason = "a panic is how a test fails")]
pub async fn eventually_async(limit: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let poll = async {
        while !condition().await {
            tokio::time::sleep(INTERVAL).await;
        }
    };
    if tokio::time::timeout(limit, poll).await.is_err() {
        panic!("condition not met within {limit:?}");
    }
}

/// Polls until `attempt` gives a value or `limit` has passed; always tries once more at the end.
#[expect(
    clippy::disallowed_methods,
    reason = "real time and a blocked thread are the point here: nothing of tokio need be running"
)]
pub(crate) fn poll_until<T>(limit: Duration, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let start = std::time::Instant::now();
    loop {
        if let Some(value) = attempt() {
            return Some(value);
        }
        if start.elapsed() >= limit {
            return attempt();
        }
        thread::sleep(INTERVAL);
    }
}

/// Short enough that nobody notices, long enough that two cores are not kept busy by waiting.
const INTERVAL: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_comes_true_later_is_waited_for() {
        let mut polls = 0;
        eventually(Duration::from_secs(5), || {
            polls += 1;
            polls == 3
        });
        assert_eq!(polls, 3);
    }

    #[test]
    #[should_panic(expected = "condition not met within 30ms")]
    fn a_condition_that_stays_false_panics_after_the_limit() {
        eventually(Duration::from_millis(30), || false);
    }

    #[tokio::test]
    async fn an_async_condition_sees_other_tasks_progress() {
        let task = tokio::spawn(async { tokio::task::yield_now().await });
        eventually_async(Duration::from_secs(5), async || task.is_finished()).await;
    }

    #[tokio::test]
    #[should_panic(expected = "condition not met within 30ms")]
    async fn an_async_condition_that_stays_false_panics_after_the_limit() {
        eventually_async(Duration::from_millis(30), async || false).await;
    }
}
