//! The wall clock, for the few questions that only it can answer.
//!
//! Owns the one place at which the daemons read it: certificates carry dates, and nothing else
//! here is measured in them. It jumps, so what is to last for a while is counted with
//! `tokio::time::Instant` instead. Tests bring their own: [`WallClock::from_fn`].

use std::{fmt, sync::Arc, time::SystemTime};

/// What the time of day is read from. Cheap to clone.
#[derive(Clone)]
pub struct WallClock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl WallClock {
    /// The machine's clock.
    #[must_use]
    pub fn system() -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "the dates in certificates are of the wall clock"
        )]
        Self::from_fn(SystemTime::now)
    }

    /// Another clock.
    pub fn from_fn(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// What the clock says.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        (self.0)()
    }
}

impl Default for WallClock {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WallClock").field(&self.now()).finish()
    }
}
