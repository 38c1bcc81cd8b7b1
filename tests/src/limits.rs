//! Time limits of tests.
//!
//! The stand-ins wait for ever, as what they stand for does; a test says how long is too long.
//! Limits are for what must happen at all, and so generous that a busy machine does not reach
//! them.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::timeout;

/// For anything that takes milliseconds when the machine is idle.
pub const SOON: Duration = Duration::from_secs(20);

/// Waits for `future`, which must end within `limit`; `what` is for the message.
///
/// # Errors
///
/// It has not ended, or it ended with an error.
pub async fn within<T, E>(
    limit: Duration,
    what: &str,
    future: impl Future<Output = Result<T, E>>,
) -> Result<T>
where
    Result<T, E>: Context<T, E>,
{
    let ended = timeout(limit, future).await;
    ended
        .with_context(|| format!("{what}: not done after {limit:?}"))?
        .with_context(|| what.to_owned())
}
