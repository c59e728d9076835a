//! Keys that have no value: that is remembered too, for a time of its own.

use std::future::Future;

use crate::cache::Cache;
use crate::core::Lookup;
use crate::key::{Encoded, Key};
use crate::load::LoadError;
use crate::stats::Outcome;
use crate::tags::Loaded;

impl<K: Key, V: Clone + Send + Sync + 'static> Cache<K, V> {
    /// As [`Cache::get_or_load`], of a key that may have no value. That it has none is remembered for the cache's
    /// [`crate::CacheBuilder::negative_ttl`], under the same rules as a value: whatever changes, removes or fences the
    /// key ends it, here and from any node. Without that option only values are.
    ///
    /// Every other operation takes a key without a value for one that is not cached.
    ///
    /// # Errors
    /// As [`Cache::get_or_load`].
    ///
    /// # Cancel safety
    /// As [`Cache::get_or_load`].
    pub async fn get_or_load_optional<E, F>(
        &self,
        key: &K,
        load: impl FnOnce() -> F,
    ) -> Result<Option<V>, LoadError<E>>
    where
        E: Send + Sync + 'static,
        F: Future<Output = Result<Option<V>, E>>,
    {
        self.load_one(key, true, || async { load().await.map(|value| value.map(Loaded::new)) }).await
    }

    /// What is cached of a key: its value, `Some(None)` if it is known to have none, `None` if nothing is known.
    /// [`Cache::get`] does not tell these two apart.
    #[must_use]
    pub fn get_optional(&self, key: &K) -> Option<Option<V>> {
        let core = &*self.core;
        let encoded = Encoded::new(core.id, key).ok()?;
        let (found, outcome) = match core.lookup(encoded.borrowed()) {
            Lookup::Hit(entry) => (Some(entry.into_value()), Outcome::Hit),
            Lookup::Limited(_) => (None, Outcome::Limited),
            Lookup::Miss => (None, Outcome::Miss),
        };
        core.stats.count_read(outcome);
        found
    }
}
