//! Writes of the system of record whose result is cached: safe against whatever else touches the key meanwhile.

use std::future::Future;

use tidings_proto::event::Operation;

use crate::cache::Cache;
use crate::flight::{Purpose, Start};
use crate::key::{Encoded, Key};
use crate::open_writes::OpenWrite;
use crate::receipt::Written;
use crate::tags::Loaded;
use crate::write::{Change, Leave, Options, Subject, When, WriteError};

/// A write-through failed.
#[derive(Debug, thiserror::Error)]
pub enum WriteThroughError<E> {
    /// The user's write failed, and may have happened all the same, or may happen yet: the key was removed here and at
    /// every peer, and is not cached anywhere for the write horizon.
    #[error("the write failed: {0}")]
    Write(E),
    /// The cache could not be told. If the key cannot be used, the cache was closed before or the node refuses changes,
    /// the user's write did not run; otherwise it was made, and the local entry was removed.
    #[error("the change could not be broadcast")]
    Cache(#[source] WriteError),
}

impl<K: Key, V: Clone + Send + Sync + 'static> Cache<K, V> {
    /// Runs the user's write of a key's truth, then stores its value here and evicts the key at every peer. Safe
    /// against concurrent writers, loads, failure and cancellation: if anything else touched the key meanwhile, the
    /// value is not stored, and the key is evicted everywhere.
    ///
    /// Of a write that fails, panics or is cancelled nobody knows whether it has happened, or will: it opens a window. For
    /// the write horizon (default 5 s), counted on each node from when it is told, nothing is stored under the key that
    /// begins within the window: no load, write-through, token or insert.
    ///
    /// # Errors
    /// [`WriteThroughError::Write`]: the write failed; since it may have happened all the same, the key is evicted
    /// everywhere. [`WriteThroughError::Cache`]: it was made, and could not be broadcast.
    ///
    /// # Cancel safety
    /// Cancelled, or panicking, it evicts the key everywhere, and opens a window.
    ///
    /// # Panics
    /// Only if `write` does.
    pub async fn write_through<E, F>(
        &self,
        key: &K,
        write: impl FnOnce() -> F,
    ) -> Result<(V, Written<'_>), WriteThroughError<E>>
    where
        F: Future<Output = Result<V, E>>,
    {
        self.write_through_tagged(key, || async { write().await.map(Loaded::new) }).await
    }

    /// As [`Cache::write_through`], with a write that says which tags its value has, besides those that
    /// [`crate::CacheBuilder::tags`] computes, and which version.
    ///
    /// # Errors
    /// As [`Cache::write_through`]. A value whose tags are too many or too long counts as one that was not stored: the
    /// key is evicted everywhere.
    ///
    /// # Cancel safety
    /// As [`Cache::write_through`].
    ///
    /// # Panics
    /// Only if `write` does.
    pub async fn write_through_tagged<E, F>(
        &self,
        key: &K,
        write: impl FnOnce() -> F,
    ) -> Result<(V, Written<'_>), WriteThroughError<E>>
    where
        F: Future<Output = Result<Loaded<V>, E>>,
    {
        let core = &*self.core;
        let encoded = Encoded::new(core.id, key).map_err(|error| WriteThroughError::Cache(error.into()))?;
        // Announced before the check, so that a node that leaves either waits for this write or refuses it.
        let _announced = OpenWrite::of(&core.domain);
        core.may_change(Leave::Refuses).map_err(WriteThroughError::Cache)?;
        let (start, unstored) = core.guard(&encoded, Purpose::Write);
        let mut guard = Uncertain { cache: self, key, encoded: &encoded, start, open: true };
        let Loaded { value, tags, version } = match write().await {
            Ok(loaded) => loaded,
            Err(error) => {
                drop(guard);
                return Err(WriteThroughError::Write(error));
            }
        };
        let subject = Subject { key: encoded.borrowed(), typed: Some(key) };
        let options = Options { ends_write: true, tags, version, unstored, ..Options::default() };
        // The guard stays open until the change was made or refused: a panic of the value's `clone` is one of the
        // write's.
        let change = Change::Put(value.clone());
        let outcome =
            core.change(subject, Operation::WriteThrough, &options, When::StoreUnended(start), change);
        // A value that cannot have its tags was judged before anything was changed: the guard ends as of a failed write.
        guard.open = matches!(outcome, Err(WriteError::Tags(_)));
        let outcome = outcome.map_err(WriteThroughError::Cache)?;
        let written = outcome.written.expect("a write-through is made whatever ended its guard");
        Ok((value, written))
    }
}

/// A write-through that is under way: unless it is closed, what it wrote is unknown.
struct Uncertain<'a, K: Key, V: Clone + Send + Sync + 'static> {
    cache: &'a Cache<K, V>,
    key: &'a K,
    encoded: &'a Encoded,
    start: Start,
    open: bool,
}

impl<K: Key, V: Clone + Send + Sync + 'static> Drop for Uncertain<'_, K, V> {
    fn drop(&mut self) {
        let core = &*self.cache.core;
        if self.open {
            core.close_guard(self.encoded, self.start);
            let subject = Subject { key: self.encoded.borrowed(), typed: Some(self.key) };
            let options = Options { ends_write: true, uncertain: true, ..Options::default() };
            if core.travels() {
                core.domain.window_opens();
            }
            let removed =
                core.change(subject, Operation::WriteThrough, &options, When::Always, Change::Remove);
            if let Err(error) = removed {
                tracing::warn!(cache = %core.name, %error, "a failed write could not be broadcast");
            }
        }
    }
}
