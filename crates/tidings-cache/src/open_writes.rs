//! What a node that leaves waits for: writes whose end is not told yet, and windows that its own writes have opened.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tidings_proto::hash::CacheId;
use tidings_proto::id::Slot;
use tidings_proto::log::{OpenWrite as NotedWrite, Stuck};
use tidings_proto::time::Tick;

use crate::domain::Domain;
use crate::key::KeyRef;
use crate::replica::no_earlier;

/// How often it is looked whether the windows are over: clocks may go on while timers stand still.
const WINDOWS_INTERVAL: Duration = Duration::from_millis(100);

impl Domain {
    /// Waits until no write-through is under way, nor any change from which others follow, and until what failed ones
    /// may still have under way has landed: a write horizon after the last failure.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    ///
    /// # Panics
    /// Outside a tokio runtime with its timer, if a write-through has failed lately.
    pub async fn writes_settled(&self) {
        loop {
            let changed = self.inner().writes_changed.notified();
            if self.inner().open_writes.load(Ordering::SeqCst) > 0 {
                changed.await;
                continue;
            }
            let left = self.windows_end().since(self.clock().now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(WINDOWS_INTERVAL)).await;
        }
    }

    /// A write-through of this node's has opened a window, which peers were told of.
    pub(crate) fn window_opens(&self) {
        if self.write_horizon().is_zero() {
            return;
        }
        let end = no_earlier(self.clock()).after(self.write_horizon());
        self.inner().windows_end.fetch_max(end.0, Ordering::SeqCst);
    }

    fn windows_end(&self) -> Tick {
        Tick(self.inner().windows_end.load(Ordering::SeqCst))
    }
}

/// Counts a write-through, or a change from which others follow, as under way. Where the log is written down, that is too.
pub(crate) struct OpenWrite<'a> {
    domain: &'a Domain,
    noted: Option<NotedWrite>,
}

impl<'a> OpenWrite<'a> {
    /// Of a key of a cache; or of one without peers, from which nothing follows.
    pub(crate) fn of_key(domain: &'a Domain, cache: CacheId, key: Option<KeyRef<'_>>) -> Result<Self, Stuck> {
        let Some(key) = key else { return Ok(Self::counted(domain, None)) };
        Self::noted(domain, key.slot(), Some((cache, key.bytes)))
    }

    /// Of keys of which only what is appended has happened: what this process does not come to is not missed.
    pub(crate) fn of_changes(domain: &'a Domain) -> Self {
        Self::counted(domain, None)
    }

    /// Of keys that nobody can name before they were changed.
    pub(crate) fn of_unnamed(domain: &'a Domain) -> Result<Self, Stuck> {
        Self::noted(domain, Slot::of_hash(0), None)
    }

    fn noted(domain: &'a Domain, slot: Slot, of: Option<(CacheId, &[u8])>) -> Result<Self, Stuck> {
        let wall_ms = || domain.clock().wall_ms();
        // Counted first, so that a node that leaves does not seal its log in between.
        let mut open = Self::counted(domain, None);
        open.noted = domain.log().write_begins(slot, wall_ms, of)?;
        Ok(open)
    }

    fn counted(domain: &'a Domain, noted: Option<NotedWrite>) -> Self {
        domain.inner().open_writes.fetch_add(1, Ordering::SeqCst);
        Self { domain, noted }
    }
}

impl Drop for OpenWrite<'_> {
    fn drop(&mut self) {
        if let Some(noted) = self.noted.take() {
            self.domain.log().write_ended(noted);
        }
        self.domain.inner().open_writes.fetch_sub(1, Ordering::SeqCst);
        self.domain.inner().writes_changed.notify_waiters();
    }
}
