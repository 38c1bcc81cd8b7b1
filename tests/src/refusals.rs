//! Requests that are expected to be refused, and what the user reads then.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use proxymux_testkit::apiserver::{ApiServer, ConnectError};
use tokio::time::timeout;

/// An answer other than 200.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refused {
    /// The status code.
    pub code: u16,
    /// The reason phrase.
    pub reason: String,
}

/// Asks for a target that must not be reached, and returns the answer.
///
/// # Errors
///
/// It was reached, there was no answer within `limit`, or none that can be read.
pub async fn refused(api: &ApiServer, target: &str, limit: Duration) -> Result<Refused> {
    let asked = timeout(limit, api.connect(target)).await;
    match asked.with_context(|| format!("no answer for {target} after {limit:?}"))? {
        Ok(_) => bail!("{target} was reached, expected a refusal"),
        Err(ConnectError::Refused { code, status, .. }) => {
            let reason = status.split_once(' ').map_or("", |(_, reason)| reason);
            let reason = reason.to_owned();
            Ok(Refused { code, reason })
        }
        Err(error) => Err(error).with_context(|| format!("ask for {target}")),
    }
}
