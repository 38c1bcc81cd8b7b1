//! Connections that have not proven yet whose they are, on the agents' port and at front doors.
//!
//! Owns what is logged when there are too many. Which one has to go then is
//! `proxymux_transport::half_open`'s.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

pub(crate) use proxymux_transport::half_open::HalfOpenGuard;
use proxymux_transport::half_open::{self, Evicted};

use crate::trouble::Trouble;

/// The connections that are half-open now.
#[derive(Debug)]
pub(crate) struct HalfOpen {
    all: Arc<half_open::HalfOpen>,
    crowd: Mutex<Trouble>,
}

impl HalfOpen {
    /// Room for so many connections.
    pub(crate) fn with_room_for(room: usize) -> Arc<Self> {
        Arc::new(Self {
            all: half_open::HalfOpen::with_room_for(room),
            crowd: Mutex::default(),
        })
    }

    /// Takes in a connection; another may have to go for it.
    pub(crate) fn enter(&self, source: IpAddr) -> HalfOpenGuard {
        let (guard, evicted) = self.all.enter(source);
        let mut crowd = self.crowd.lock().unwrap_or_else(PoisonError::into_inner);
        match evicted {
            Some(Evicted { source, had }) => {
                if crowd.begins() {
                    tracing::warn!(%source, half_open = had, "too many half-open connections, some closed");
                }
            }
            None => {
                if let Some(closed) = crowd.is_over() {
                    tracing::warn!(closed, "half-open connections have room again");
                }
            }
        }
        guard
    }
}
