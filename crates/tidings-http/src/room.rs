//! Room for what waits: so many at once, and how many were turned away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::{
    CONNECTIONS_MAX, LOOKS_MAX, RECEIVES_MAX, STREAM_READS_MAX, SUBSCRIPTIONS_MAX, VERIFIES_MAX,
    WAITING_READS_MAX,
};
use crate::problem::Problem;

/// Places for one kind of work.
#[derive(Debug)]
pub(crate) struct Places {
    free: Arc<Semaphore>,
    refused: AtomicU64,
}

impl Places {
    fn new(most: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(most)), refused: AtomicU64::new(0) }
    }

    /// A place, which is free again once this is dropped.
    pub(crate) fn try_take(&self) -> Option<OwnedSemaphorePermit> {
        self.free.clone().try_acquire_owned().ok()
    }

    /// How many places are free.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.free.available_permits()
    }

    /// Counts one that is turned away.
    pub(crate) fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// A place, or the answer to a request for which there is none.
    pub(crate) fn take(&self, detail: &str) -> Result<OwnedSemaphorePermit, Problem> {
        self.try_take().ok_or_else(|| {
            self.refuse();
            Problem::overloaded(detail)
        })
    }
}

/// The places of one server.
#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) connections: Places,
    pub(crate) subscriptions: Places,
    pub(crate) waiting_reads: Places,
    pub(crate) looks: Places,
    pub(crate) receives: Places,
    pub(crate) stream_reads: Places,
    pub(crate) verifies: Places,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            connections: Places::new(CONNECTIONS_MAX),
            subscriptions: Places::new(SUBSCRIPTIONS_MAX),
            waiting_reads: Places::new(WAITING_READS_MAX),
            looks: Places::new(LOOKS_MAX),
            receives: Places::new(RECEIVES_MAX),
            stream_reads: Places::new(STREAM_READS_MAX),
            verifies: Places::new(VERIFIES_MAX),
        }
    }
}

impl Room {
    /// How many were turned away, by what for.
    pub(crate) fn refused(&self) -> [(&'static str, u64); 7] {
        let refused = |places: &Places| places.refused.load(Ordering::Relaxed);
        [
            ("connections", refused(&self.connections)),
            ("subscriptions", refused(&self.subscriptions)),
            ("waiting_reads", refused(&self.waiting_reads)),
            ("looks", refused(&self.looks)),
            ("receives", refused(&self.receives)),
            ("stream_reads", refused(&self.stream_reads)),
            ("verifies", refused(&self.verifies)),
        ]
    }
}
