//! Writes of the system of record whose result is cached: safe against whatever else touches the key meanwhile.

use std::future::Future;

use tidings_proto::event::Operation;
use tidings_proto::hlc::Stamp;

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
    /// The user's write failed, and may have happened all the same, or may happen yet: the key was removed here and
    /// at every peer, and what is loaded is not cached anywhere for the write horizon, nor what is written, unless
    /// values travel.
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
    /// Where values travel, that is a removal as of when the write began: a value that was written later stays, also
    /// that of a concurrent writer who has committed earlier than this one. There the cache is the truth, and not a
    /// database: for copies of a database's rows that several processes write, open the cache without
    /// [`crate::CacheBuilder::replicate`].
    ///
    /// Of a write that fails, panics or is cancelled nobody knows whether it has happened, or will: it opens a
    /// window. For the write horizon (default 5 s), counted on each node from when it is told, nothing is stored
    /// under the key that begins within the window: no load, write-through, token or insert. Where values travel,
    /// loads and tokens store nothing then; what is written is stored and travels, for it is the truth.
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
        let flight = self.begin_write(key).map_err(WriteThroughError::Cache)?;
        let loaded = match write().await {
            Ok(loaded) => loaded,
            Err(error) => {
                drop(flight);
                return Err(WriteThroughError::Write(error));
            }
        };
        // While the flight is open: a panic of the value's `clone` is one of the write's.
        let value = loaded.value.clone();
        let written = flight.store(Operation::WriteThrough, loaded).map_err(WriteThroughError::Cache)?;
        Ok((value, written))
    }

    /// Begins a write that is no future: before the write runs, and to be ended once it has. [`Cache::write_through`] does
    /// both.
    ///
    /// # Errors
    /// [`WriteError`]: the write must not run.
    pub fn begin_write<'a, 'k>(&'a self, key: &'k K) -> Result<WriteFlight<'a, 'k, K, V>, WriteError> {
        let core = &*self.core;
        let encoded = Encoded::new(core.id, key)?;
        // Announced before the check, so that a node that leaves either waits for this write or refuses it.
        let announced = match core.has_rules() {
            // What follows from it is not told either, should this process end.
            true => OpenWrite::of_unnamed(&core.domain),
            false => OpenWrite::of_key(&core.domain, core.id, core.travels().then(|| encoded.borrowed())),
        }?;
        core.may_change(Leave::Refuses)?;
        // Before it can lose its flight: what ends that is later, but for what comes from peers.
        let began = core.replicates().then(|| {
            let slot = encoded.borrowed().slot();
            core.domain.log().stamp_in(slot, core.domain.clock().wall_ms())
        });
        let (start, unstored) = core.guard(&encoded, Purpose::Write);
        Ok(WriteFlight {
            cache: self,
            key,
            encoded,
            start,
            began,
            unstored,
            open: true,
            _announced: announced,
        })
    }
}

/// A write that was begun, and has not ended. A node that leaves waits for it.
///
/// Dropped, it counts as one that failed: whether it has happened, or will, is not known, so the key is evicted
/// everywhere, and a window is opened, as [`Cache::write_through`] says.
#[must_use = "dropped at once, it evicts the key everywhere"]
pub struct WriteFlight<'a, 'k, K: Key, V: Clone + Send + Sync + 'static> {
    cache: &'a Cache<K, V>,
    key: &'k K,
    encoded: Encoded,
    start: Start,
    /// Its stamp, where values travel.
    began: Option<Stamp>,
    /// It began while the key's truth was uncertain.
    unstored: bool,
    open: bool,
    // The last to go.
    _announced: OpenWrite<'a>,
}

impl<K: Key, V: Clone + Send + Sync + 'static> std::fmt::Debug for WriteFlight<'_, '_, K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteFlight").field("start", &self.start).finish_non_exhaustive()
    }
}

impl<'a, K: Key, V: Clone + Send + Sync + 'static> WriteFlight<'a, '_, K, V> {
    /// Stores what the write has made, with its version, and tells every peer. It is stored only if nothing ended the
    /// flight: else the key is removed here. Peers keep what is as new or newer, and so does this node.
    ///
    /// # Errors
    /// [`WriteError`]: peers could not be told, and the local entry was removed; or the tags that are computed cannot be
    /// used, and the write ends as one that failed.
    pub fn insert_versioned(self, value: V, version: u64) -> Result<Written<'a>, WriteError> {
        self.store(Operation::Insert, Loaded::new(value).version(version))
    }

    /// As [`WriteFlight::insert_versioned`], with tags or without a version.
    ///
    /// # Errors
    /// As [`WriteFlight::insert_versioned`].
    pub fn insert(self, loaded: Loaded<V>) -> Result<Written<'a>, WriteError> {
        self.store(Operation::Insert, loaded)
    }

    /// Ends a write that is known not to have happened, and never to happen: nothing is evicted, nobody is told.
    pub fn abandon(mut self) {
        self.open = false;
        self.cache.core.close_guard(&self.encoded, self.start);
    }

    fn store(mut self, operation: Operation, loaded: Loaded<V>) -> Result<Written<'a>, WriteError> {
        let cache = self.cache;
        let Loaded { value, tags, version } = loaded;
        let options = Options {
            ends_write: true,
            tags,
            version,
            unstored: self.unstored,
            began: self.began,
            ..Options::default()
        };
        let subject = Subject { key: self.encoded.borrowed(), typed: Some(self.key) };
        let when = When::StoreUnended(self.start);
        let outcome = cache.core.change(subject, operation, &options, when, Change::Put(value));
        // A value that cannot have its tags was judged before anything was changed: it ends as a failed write.
        self.open = matches!(outcome, Err(WriteError::Tags(_)));
        if matches!(outcome, Err(WriteError::Closed)) {
            self.tell_closed(false);
        }
        let written = outcome?.written;
        Ok(written.expect("a write-through is made whatever ended its guard"))
    }

    /// Its cache was closed meanwhile: peers have copies all the same.
    fn tell_closed(&self, uncertain: bool) {
        let core = &*self.cache.core;
        if !core.travels() {
            return;
        }
        let keys = std::slice::from_ref(&self.encoded);
        if let Err(error) = core.domain.tell_keys_of_closed(core.id, keys, uncertain) {
            tracing::warn!(cache = %core.name, %error, "a write could not be broadcast");
        }
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Drop for WriteFlight<'_, '_, K, V> {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        let core = &*self.cache.core;
        core.close_guard(&self.encoded, self.start);
        let subject = Subject { key: self.encoded.borrowed(), typed: Some(self.key) };
        let options = Options { ends_write: true, uncertain: true, ..Options::default() };
        // Also of a cache that tells nobody: what is derived from it may be told.
        core.domain.window_opens();
        match core.change(subject, Operation::WriteThrough, &options, When::Always, Change::Remove) {
            Ok(_) => {}
            Err(WriteError::Closed) => self.tell_closed(true),
            Err(error) => tracing::warn!(cache = %core.name, %error, "a failed write could not be broadcast"),
        }
    }
}
