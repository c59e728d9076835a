//! The public handle of a cache.

use std::sync::Arc;
use std::time::Duration;

use tidings_proto::event::Operation;

use crate::core::{Core, Lookup};
use crate::erased::AnyCache;
use crate::event::WriterId;
use crate::flight::{Purpose, Start};
use crate::key::{Encoded, Key, KeyError};
use crate::receipt::Written;
use crate::stats::CacheCounts;
use crate::subscribe::Subscribe;
use crate::write::{Change, Leave, Options, Outcome, PLAIN, Subject, When, WriteError};

/// A cache of values `V` under keys `K`. Clones are handles of the same cache.
///
/// No call blocks on a peer or does I/O. Reads take no lock of this crate; mutations take one lock of one of 64
/// shards for about a microsecond. `V`'s `Clone` runs at every hit, and its `Drop` anywhere: neither may call the
/// cache.
pub struct Cache<K, V> {
    pub(crate) core: Arc<Core<K, V>>,
}

impl<K, V> Clone for Cache<K, V> {
    fn clone(&self) -> Self {
        Self { core: self.core.clone() }
    }
}

impl<K, V> std::fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.core.fmt(f)
    }
}

/// A number that can be incremented in a cache.
pub trait Number: Clone + Send + Sync + 'static {
    /// The number plus `by`, or `None` beyond its range.
    fn plus(&self, by: i64) -> Option<Self>;
    /// What a missing number counts as.
    fn zero() -> Self;
}

macro_rules! numbers {
    ($($number:ty),+) => {$(
        impl Number for $number {
            fn plus(&self, by: i64) -> Option<Self> {
                Self::try_from(i128::from(*self).checked_add(i128::from(by))?).ok()
            }

            fn zero() -> Self {
                0
            }
        }
    )+};
}

numbers!(i16, i32, i64, u16, u32, u64);

/// What a [`Cache::compute`] decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Computed<V> {
    /// Store this value.
    Put(V),
    /// Remove the entry.
    Remove,
    /// Leave it as it is.
    Keep,
}

impl<K: Key, V: Clone + Send + Sync + 'static> Cache<K, V> {
    pub(crate) fn of(core: Arc<Core<K, V>>) -> Self {
        Self { core }
    }

    pub(crate) fn from_erased(cache: Arc<dyn AnyCache>) -> Option<Self> {
        Some(Self { core: cache.as_any().downcast().ok()? })
    }

    /// The open cache of this name on a node, if its keys and values are of these types.
    #[must_use]
    pub fn lookup(domain: &crate::Domain, name: &str) -> Option<Self> {
        Self::from_erased(domain.cache(name)?)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.core.name
    }

    /// The cached value of a key. Never older than the stated bound; a key that cannot be encoded is a miss.
    #[must_use]
    #[inline]
    pub fn get(&self, key: &K) -> Option<V> {
        let mut encoded = Encoded::empty();
        encoded.set(self.core.id, key).ok()?;
        self.core.hit(encoded.borrowed())
    }

    /// The cached value of a key, with the error of one that cannot be used.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn try_get(&self, key: &K) -> Result<Option<V>, KeyError> {
        let mut encoded = Encoded::empty();
        encoded.set(self.core.id, key)?;
        Ok(self.core.hit(encoded.borrowed()))
    }

    /// The value and its age (time since its load began, and the replica lag), without counting a request. No access as far as the time to idle
    /// is concerned.
    #[must_use]
    pub fn peek(&self, key: &K) -> Option<(V, Duration)> {
        let encoded = Encoded::new(self.core.id, key).ok()?;
        match self.core.peek(encoded.borrowed()) {
            Lookup::Hit(entry) => {
                let age = self.core.domain.clock().coarse().since(entry.began);
                Some((entry.into_value()?, age))
            }
            _ => None,
        }
    }

    /// Whether a read of the key would hit, without counting a request or an access.
    #[must_use]
    pub fn contains(&self, key: &K) -> bool {
        Encoded::new(self.core.id, key).is_ok_and(|encoded| self.core.is_hit(encoded.borrowed()))
    }

    /// The values of several keys, in their order.
    #[must_use]
    pub fn get_many<'a>(&self, keys: impl IntoIterator<Item = &'a K>) -> Vec<Option<V>> {
        keys.into_iter().map(|key| self.get(key)).collect()
    }

    /// A mutation with a time to live, metadata, or left out of the writer's own subscription.
    pub fn write(&self) -> Write<'_, K, V> {
        Write::of(self, Options::default())
    }

    /// Stores a value whose truth is here, and evicts it at every peer. After writing to another system of record use
    /// [`Cache::write_through`] or [`Cache::remove`].
    ///
    /// While the key's truth is uncertain (for the write horizon after a write of it failed, or changes of its lane were
    /// missed) nothing is stored, unless values travel; peers are told all the same.
    ///
    /// # Errors
    /// [`WriteError`].
    #[inline]
    pub fn insert(&self, key: K, value: V) -> Result<Written<'_>, WriteError> {
        self.insert_with(key, value, &PLAIN)
    }

    #[inline]
    fn insert_with(&self, key: K, value: V, options: &Options) -> Result<Written<'_>, WriteError> {
        let outcome = self.change(&key, Operation::Insert, options, When::Always, Change::Put(value))?;
        Ok(outcome.written.expect("an insert has no condition"))
    }

    #[inline]
    fn change(
        &self,
        key: &K,
        operation: Operation,
        options: &Options,
        when: When,
        change: Change<V>,
    ) -> Result<Outcome<'_, V>, WriteError> {
        let mut encoded = Encoded::empty();
        encoded.set(self.core.id, key)?;
        let subject = Subject { key: encoded.borrowed(), typed: Some(key) };
        self.core.change(subject, operation, options, when, change)
    }

    /// Stores a value if the key has none. Returns whether it did: not while the key's truth is uncertain, as of
    /// [`Cache::insert`].
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn insert_if_absent(&self, key: K, value: V) -> Result<bool, WriteError> {
        self.write().insert_if_absent(key, value)
    }

    /// Replaces a value if the key has one. Returns whether it did: not while the key's truth is uncertain, as of
    /// [`Cache::insert`]; it is evicted then.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn replace(&self, key: K, value: V) -> Result<bool, WriteError> {
        self.write().replace(key, value)
    }

    /// Removes a key here and at every peer, which are told also if it is absent here.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn remove(&self, key: &K) -> Result<Written<'_>, WriteError> {
        self.write().remove(key)
    }

    /// Removes a key here and at every peer, and returns what was cached here. Without an entry nothing happens: no
    /// peer is told.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn take(&self, key: &K) -> Result<Option<V>, WriteError> {
        let outcome = self.write().run(key, Operation::Take, When::Present, Change::Remove)?;
        Ok(outcome.taken)
    }

    /// Decides on a new value from the old one. The closure runs outside every lock and may run again if something
    /// else touched the key meanwhile; the decision is atomic. Returns what is stored afterwards: nothing while the key's
    /// truth is uncertain, as of [`Cache::insert`].
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn compute(
        &self,
        key: &K,
        decide: impl FnMut(Option<&V>) -> Computed<V>,
    ) -> Result<Option<V>, WriteError> {
        self.compute_as(key, Operation::Compute, decide)
    }

    fn compute_as(
        &self,
        key: &K,
        operation: Operation,
        mut decide: impl FnMut(Option<&V>) -> Computed<V>,
    ) -> Result<Option<V>, WriteError> {
        let encoded = Encoded::new(self.core.id, key)?;
        let mut write = self.write();
        loop {
            let decision = Decision::open(&self.core, &encoded);
            let current = self.peek(key).map(|(value, _)| value);
            let (change, stored) = match decide(current.as_ref()) {
                Computed::Keep => return Ok(current),
                Computed::Put(value) => (Change::Put(value.clone()), Some(value)),
                Computed::Remove => (Change::Remove, None),
            };
            write.options.unstored = decision.unstored;
            let outcome = write.run(key, operation, When::Unended(decision.start), change)?;
            if outcome.written.is_some() {
                return Ok(if outcome.withheld { None } else { stored });
            }
        }
    }

    /// Removes everything here and at every peer, loads under way included.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn clear(&self) -> Result<Written<'_>, WriteError> {
        self.core.clear_all(Leave::Refuses)
    }

    /// All readable entries, in no order; to see them is no access. Entries that come or go meanwhile may be seen or not.
    pub fn iter(&self) -> impl Iterator<Item = (K, V)> + '_ {
        self.core.entries.iter().filter_map(|(stored, _)| {
            let key = stored.key();
            match self.core.peek(key) {
                Lookup::Hit(entry) => {
                    Some((tidings_proto::codec::decode(key.bytes).ok()?, entry.into_value()?))
                }
                _ => None,
            }
        })
    }

    /// Starts a subscription to the cache's events.
    pub fn subscribe(&self) -> Subscribe<K> {
        Subscribe::new(crate::subscribe::RawSubscribe::new(self.core.clone()))
    }

    /// Its counters.
    #[must_use]
    pub fn counts(&self) -> CacheCounts {
        AnyCache::counts(&*self.core)
    }

    /// The cache without its types.
    #[must_use]
    pub fn erased(&self) -> Arc<dyn AnyCache> {
        self.core.clone()
    }

    /// Closes the cache on this node: subscriptions end, later mutations fail, its name is free again.
    pub fn close(&self) {
        AnyCache::close(&*self.core);
    }

    /// Runs moka's housekeeping now: what is over capacity or expired goes, and is told. For tests and for exact
    /// figures; it happens by itself otherwise.
    pub fn settle(&self) {
        AnyCache::housekeep(&*self.core);
    }
}

impl<K: Key, V: Number> Cache<K, V> {
    /// Adds to a number; a missing one counts as zero. Returns the sum, which is not kept while the key's truth is
    /// uncertain, as of [`Cache::insert`].
    ///
    /// # Errors
    /// [`WriteError::Overflow`] and others; nothing has changed.
    pub fn increment(&self, key: &K, by: i64) -> Result<V, WriteError> {
        let mut sum = None;
        self.compute_as(key, Operation::Increment, |current| {
            sum = current.cloned().unwrap_or_else(V::zero).plus(by);
            sum.clone().map_or(Computed::Keep, Computed::Put)
        })?;
        sum.ok_or(WriteError::Overflow)
    }
}

/// A guard that is closed however the decision ends, also when it panics.
struct Decision<'a, K: Key, V: Clone + Send + Sync + 'static> {
    core: &'a Core<K, V>,
    encoded: &'a Encoded,
    start: Start,
    unstored: bool,
}

impl<'a, K: Key, V: Clone + Send + Sync + 'static> Decision<'a, K, V> {
    fn open(core: &'a Core<K, V>, encoded: &'a Encoded) -> Self {
        let (start, unstored) = core.guard(encoded, Purpose::Decision);
        Self { core, encoded, start, unstored }
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Drop for Decision<'_, K, V> {
    fn drop(&mut self) {
        self.core.close_guard(self.encoded, self.start);
    }
}

/// A mutation with options.
#[must_use = "options do nothing until a mutation is made with them"]
pub struct Write<'a, K, V> {
    pub(crate) cache: &'a Cache<K, V>,
    pub(crate) options: Options,
}

impl<K, V> std::fmt::Debug for Write<'_, K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Write").field("options", &self.options).finish()
    }
}

impl<'a, K: Key, V: Clone + Send + Sync + 'static> Write<'a, K, V> {
    pub(crate) fn of(cache: &'a Cache<K, V>, options: Options) -> Self {
        Self { cache, options }
    }

    /// How long the entry lives; the cache's own time to live still bounds it.
    pub fn ttl(mut self, time: Duration) -> Self {
        self.options.ttl = Some(time);
        self
    }

    /// Tells subscribers more, on every node.
    pub fn metadata(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.options.metadata.push((name.into(), text.into()));
        self
    }

    /// Gives what is stored a tag, besides those that [`crate::CacheBuilder::tags`] computes.
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.options.tags.push(tag.into());
        self
    }

    /// Gives what is stored several tags.
    pub fn tags(mut self, tags: impl IntoIterator<Item: Into<String>>) -> Self {
        self.options.tags.extend(tags.into_iter().map(Into::into));
        self
    }

    /// Leaves the change out of the writer's own subscription.
    pub fn without(mut self, writer: WriterId) -> Self {
        self.options.writer = Some(writer);
        self
    }

    pub(crate) fn run(
        &self,
        key: &K,
        operation: Operation,
        when: When,
        change: Change<V>,
    ) -> Result<Outcome<'a, V>, WriteError> {
        self.cache.change(key, operation, &self.options, when, change)
    }

    /// As [`Cache::insert`].
    ///
    /// # Errors
    /// [`WriteError`].
    ///
    /// # Panics
    /// Never.
    pub fn insert(&self, key: K, value: V) -> Result<Written<'a>, WriteError> {
        self.cache.insert_with(key, value, &self.options)
    }

    /// As [`Cache::insert_if_absent`].
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn insert_if_absent(&self, key: K, value: V) -> Result<bool, WriteError> {
        let outcome = self.run(&key, Operation::InsertIfAbsent, When::Absent, Change::Put(value))?;
        Ok(outcome.written.is_some() && !outcome.withheld)
    }

    /// As [`Cache::replace`].
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn replace(&self, key: K, value: V) -> Result<bool, WriteError> {
        let outcome = self.run(&key, Operation::Replace, When::Present, Change::Put(value))?;
        Ok(outcome.written.is_some() && !outcome.withheld)
    }

    /// As [`Cache::remove`].
    ///
    /// # Errors
    /// [`WriteError`].
    ///
    /// # Panics
    /// Never.
    pub fn remove(&self, key: &K) -> Result<Written<'a>, WriteError> {
        let outcome = self.run(key, Operation::Remove, When::Always, Change::Remove)?;
        Ok(outcome.written.expect("a removal has no condition"))
    }

    /// Stores several values; each peer gets one event per lane and kind.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn insert_many(&self, entries: impl IntoIterator<Item = (K, V)>) -> Result<Written<'a>, WriteError> {
        let changes = entries.into_iter().map(|(key, value)| (key, Change::Put(value)));
        self.cache.core.change_many(changes, Operation::Insert, &self.options)
    }

    /// Tells every peer that a key changed, and forgets it here. As [`Write::remove`], under the name of what it is
    /// for: a change that another system made.
    ///
    /// # Errors
    /// [`WriteError`].
    ///
    /// # Panics
    /// Never.
    pub fn invalidate(&self, key: &K) -> Result<Written<'a>, WriteError> {
        let outcome = self.run(key, Operation::Invalidate, When::Always, Change::Remove)?;
        Ok(outcome.written.expect("an invalidation has no condition"))
    }

    /// Removes several keys; each peer gets one event per lane.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn remove_many(&self, keys: impl IntoIterator<Item = K>) -> Result<Written<'a>, WriteError> {
        let changes = keys.into_iter().map(|key| (key, Change::Remove));
        self.cache.core.change_many(changes, Operation::Remove, &self.options)
    }
}
