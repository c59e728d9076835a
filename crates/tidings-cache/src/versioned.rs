//! Values with versions: an entry is kept when a peer tells of a change that it has seen already.
//!
//! A version only ever keeps what a change of its key names. Flights end whatever version the change has, and fences,
//! floors, clears, tags, prefixes, doubt and time end entries as ever: they look at no version.

use std::future::Future;
use std::time::Duration;

use tidings_proto::event::Operation;

use crate::cache::{Cache, Write};
use crate::core::{Core, Lookup, ShardGuard};
use crate::fetch::Fetched;
use crate::key::{Encoded, Key, KeyError, KeyRef, SHARDS};
use crate::load::LoadError;
use crate::receipt::Written;
use crate::stats::Outcome;
use crate::tags::Loaded;
use crate::write::{Change, Options, When, WriteError};
use crate::write_through::WriteThroughError;

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    /// Notes the version of an entry that was stored, if it has one. Call under its shard lock.
    #[inline]
    pub(crate) fn set_version(&self, shard: &mut ShardGuard<'_, V>, key: KeyRef<'_>, version: Option<u64>) {
        let Some(version) = version else { return shard.unversion(key) };
        let index = shard.versions.get_or_insert_default();
        index.set(key, version);
        index.probe(|key| self.entries.contains_key(&key));
    }

    /// Whether a readable entry is newer than what is to be stored. Call under the key's shard lock.
    #[inline]
    pub(crate) fn goes_down(&self, shard: &ShardGuard<'_, V>, key: KeyRef<'_>, version: Option<u64>) -> bool {
        version.is_some_and(|version| shard.version(key) > Some(version))
            && !matches!(self.verdict(key), crate::core::Verdict::Miss)
    }

    /// Whether a change leaves the entry that there is, which is newer than what is to be stored, or has seen what is to
    /// remove it. Call under the key's shard lock.
    #[inline]
    pub(crate) fn is_left(
        &self,
        shard: &ShardGuard<'_, V>,
        key: KeyRef<'_>,
        change: &Change<V>,
        version: Option<u64>,
    ) -> bool {
        version.is_some()
            && match change {
                Change::Put(_) if self.settings.invalidator.acts_on_local() => false,
                Change::Put(_) => self.goes_down(shard, key, version),
                Change::Remove => shard.has_seen(key, version),
            }
    }

    /// How many entries are known to have versions.
    pub(crate) fn versioned(&self) -> usize {
        (0..SHARDS).map(|index| self.shard_at(index).versions.as_ref().map_or(0, |index| index.len())).sum()
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Cache<K, V> {
    /// As [`Cache::get_or_load`], with a loader that brings the version of the value, which it must have read together
    /// with it: such as a row and its version column in one query.
    ///
    /// A peer's change of the key that has a version evicts the entry only if its own is lower; a change without one
    /// always does. An entry is not replaced by one with a lower version, which is returned and not stored.
    ///
    /// Versions of a key must never go down, also when what they are versions of is deleted and made anew.
    ///
    /// # Errors
    /// [`LoadError`]. Failures are not cached.
    ///
    /// # Cancel safety
    /// As [`Cache::get_or_load`].
    ///
    /// # Panics
    /// Only if `load` does.
    pub async fn get_or_load_versioned<E, F>(
        &self,
        key: &K,
        load: impl FnOnce() -> F,
    ) -> Result<V, LoadError<E>>
    where
        E: Send + Sync + 'static,
        F: Future<Output = Result<(V, u64), E>>,
    {
        let load = || async { load().await.map(|(value, version)| Loaded::new(value).version(version)) };
        self.get_or_load_tagged(key, load).await
    }

    /// The cached value of a key with its version, if it has one. Takes the key's shard lock, which [`Cache::get`] does
    /// not.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn get_versioned(&self, key: &K) -> Result<Option<(V, Option<u64>)>, KeyError> {
        let encoded = Encoded::new(self.core.id, key)?;
        let key = encoded.borrowed();
        let shard = self.core.shard(key);
        let (found, outcome) = match self.core.lookup(key) {
            Lookup::Hit(entry) => match entry.into_value() {
                Some(value) => (Some((value, shard.version(key))), Outcome::Hit),
                None => (None, Outcome::Miss),
            },
            Lookup::Limited(_) => (None, Outcome::Limited),
            Lookup::Miss => (None, Outcome::Miss),
        };
        drop(shard);
        self.core.stats.count_read(outcome);
        Ok(found)
    }

    /// As [`Cache::peek`], with the version of the entry, if it has one. Takes the key's shard lock.
    #[must_use]
    pub fn peek_versioned(&self, key: &K) -> Option<(V, Duration, Option<u64>)> {
        let encoded = Encoded::new(self.core.id, key).ok()?;
        let shard = self.core.shard(encoded.borrowed());
        let (value, age) = self.peek(key)?;
        Some((value, age, shard.version(encoded.borrowed())))
    }

    /// As [`Cache::peek_marked`], with the version of the entry, if it has one. Takes the key's shard lock.
    #[must_use]
    pub fn peek_marked_versioned(&self, key: &K) -> Option<(Fetched<V>, Duration, Option<u64>)> {
        let encoded = Encoded::new(self.core.id, key).ok()?;
        let shard = self.core.shard(encoded.borrowed());
        let (value, age) = self.peek_marked(key)?;
        Some((value, age, shard.version(encoded.borrowed())))
    }

    /// As [`Cache::write_through`], with a write that brings the version that its change has made, such as `UPDATE …
    /// RETURNING version`. Peers keep what is as new or newer; so does this node.
    ///
    /// # Errors
    /// As [`Cache::write_through`].
    ///
    /// # Cancel safety
    /// As [`Cache::write_through`].
    ///
    /// # Panics
    /// Only if `write` does.
    pub async fn write_through_versioned<E, F>(
        &self,
        key: &K,
        write: impl FnOnce() -> F,
    ) -> Result<(V, Written<'_>), WriteThroughError<E>>
    where
        F: Future<Output = Result<(V, u64), E>>,
    {
        let write = || async { write().await.map(|(value, version)| Loaded::new(value).version(version)) };
        self.write_through_tagged(key, write).await
    }

    /// Removes a key here and at every peer where its version is lower than this one, or where it has none.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn remove_versioned(&self, key: &K, version: u64) -> Result<Written<'_>, WriteError> {
        self.write().remove_versioned(key, version)
    }
}

impl<'a, K: Key, V: Clone + Send + Sync + 'static> Write<'a, K, V> {
    /// As [`Cache::remove_versioned`].
    ///
    /// # Errors
    /// [`WriteError`].
    ///
    /// # Panics
    /// Never.
    pub fn remove_versioned(&self, key: &K, version: u64) -> Result<Written<'a>, WriteError> {
        let options = Options { version: Some(version), ..self.options.clone() };
        let removal = Write::of(self.cache, options);
        let outcome = removal.run(key, Operation::Remove, When::Always, Change::Remove)?;
        Ok(outcome.written.expect("a removal has no condition"))
    }
}
