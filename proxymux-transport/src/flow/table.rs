//! The sessions that flows can belong to, and the hellos that each has had.
//!
//! Owns finding a session by the id in a hello, the proof, and the replay windows; and the counters
//! of the hellos that this end sends. A session is in the table for as long as its [`FlowSession`]
//! lives. `T` is what the daemon wants to have back with a flow: cheap to clone.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use proxymux_proto::{
    FLOW_HELLO_LEN, FlowConversation, FlowDirection, FlowError, FlowHello, FlowKeys, FlowSessionId,
    ReplayWindow,
};

/// The sessions of this process that flows can belong to. Cheap to clone.
pub struct FlowTable<T> {
    entries: Arc<Mutex<HashMap<FlowSessionId, Entry<T>>>>,
}

struct Entry<T> {
    keys: Arc<FlowKeys>,
    reverse: ReplayWindow,
    direct: ReplayWindow,
    of: T,
}

/// A session in the table, until it is dropped.
pub struct FlowSession<T> {
    table: FlowTable<T>,
    keys: Arc<FlowKeys>,
    /// Hellos sent, in whichever direction this end dials.
    sent: AtomicU64,
}

impl<T> FlowTable<T> {
    /// A table without sessions.
    #[must_use]
    pub fn new() -> Self {
        Self {
            entries: Arc::default(),
        }
    }

    /// Enters a session.
    #[must_use]
    pub fn enter(&self, keys: Arc<FlowKeys>, of: T) -> FlowSession<T> {
        let entry = Entry {
            keys: Arc::clone(&keys),
            reverse: ReplayWindow::default(),
            direct: ReplayWindow::default(),
            of,
        };
        self.lock().insert(keys.session(), entry);
        FlowSession {
            table: self.clone(),
            keys,
            sent: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FlowSessionId, Entry<T>>> {
        // Nothing here panics half-way through a change.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone> FlowTable<T> {
    /// Believes a hello, or not. What is believed here once is a replay from then on.
    ///
    /// # Errors
    ///
    /// When it is no hello of a session in the table in this direction, or was received before.
    pub fn accept(
        &self,
        hello: &[u8; FLOW_HELLO_LEN],
        direction: FlowDirection,
    ) -> Result<(FlowConversation, T), FlowError> {
        let said = FlowHello::read_unproven(hello)?;
        if said.direction != direction {
            return Err(FlowError::WrongDirection {
                seen: said.direction.as_str(),
                expected: direction.as_str(),
            });
        }
        let mut entries = self.lock();
        let entry = entries
            .get_mut(&said.session)
            .ok_or(FlowError::UnknownSession(said.session))?;
        let conversation = FlowConversation::accept(hello, Arc::clone(&entry.keys))?;
        let window = match direction {
            FlowDirection::Reverse => &mut entry.reverse,
            FlowDirection::Direct => &mut entry.direct,
        };
        // Only now: a stranger must not move the window.
        window.enter(said.counter)?;
        Ok((conversation, entry.of.clone()))
    }
}

impl<T> FlowSession<T> {
    /// The next hello of this session, which no other flow has.
    #[must_use]
    pub fn hello(&self, direction: FlowDirection) -> (FlowConversation, Bytes) {
        let counter = self.sent.fetch_add(1, Ordering::Relaxed) + 1;
        FlowConversation::dial(Arc::clone(&self.keys), direction, counter)
    }

    /// The id by which hellos name the session.
    #[must_use]
    pub fn id(&self) -> FlowSessionId {
        self.keys.session()
    }
}

impl<T> Drop for FlowSession<T> {
    fn drop(&mut self) {
        self.table.lock().remove(&self.keys.session());
    }
}

impl<T> Clone for FlowTable<T> {
    fn clone(&self) -> Self {
        Self {
            entries: Arc::clone(&self.entries),
        }
    }
}

impl<T> Default for FlowTable<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for FlowTable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowTable")
            .field("sessions", &self.lock().len())
            .finish()
    }
}

impl<T> fmt::Debug for FlowSession<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowSession")
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}
