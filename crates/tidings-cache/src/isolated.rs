//! What a cache does while its node is in doubt: while it cannot know that it has seen every member's changes.
//!
//! Doubt is time: it begins when `fresh_until` has passed, without anything having run. Whatever a cache does then, what
//! was fenced, changed, removed or expired is never served by it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidings_proto::id::SlotSet;
use tidings_proto::time::Tick;

use crate::cache::Cache;
use crate::core::{Core, Lookup};
use crate::entry::Entry;
use crate::fetch::Fetched;
use crate::key::{Encoded, Key, KeyError, KeyRef};
use crate::stats::Outcome;

/// What a cache does with entries whose load began longer than the staleness bound ago, while its node is in doubt.
/// Every choice but [`WhenIsolated::Bypass`] serves younger ones as ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenIsolated {
    /// They are misses, and are hits again once the doubt is over.
    #[default]
    Limit,
    /// Nothing is a hit, however young, and nothing that is loaded or filled is stored. Callers of one key still share
    /// a load that is under way. What this node itself changes is stored, for when the doubt is over.
    Bypass,
    /// They are served by whatever can say so, marked as stale: [`Cache::get_marked`], [`Cache::fetch`] and
    /// [`Cache::get_marked_or_token`]. For every other operation they are absent, as with [`WhenIsolated::Limit`].
    Serve,
    /// The cache is emptied when the doubt begins, or when its end is noticed if that comes first. What is loaded
    /// meanwhile is limited.
    Flush,
}

impl WhenIsolated {
    /// Every choice.
    pub const ALL: [Self; 4] = [Self::Limit, Self::Bypass, Self::Serve, Self::Flush];

    /// Its name in configurations.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Bypass => "bypass",
            Self::Serve => "serve",
            Self::Flush => "flush",
        }
    }

    /// For how long after its load began an entry counts in doubt, where the bound is `max_staleness`.
    pub(crate) fn life(self, max_staleness: Duration) -> Duration {
        if self == Self::Bypass { Duration::ZERO } else { max_staleness }
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    /// Whether what was loaded is not to be stored now.
    pub(crate) fn bypasses(&self) -> bool {
        let gate = self.domain.gate();
        self.settings.when_isolated == WhenIsolated::Bypass
            && self.travels()
            && !gate.is_fresh(gate.fresh_until(), self.domain.clock().coarse())
    }

    /// Whether what doubt has made too old is served, marked.
    pub(crate) fn serves_doubted(&self) -> bool {
        self.settings.when_isolated == WhenIsolated::Serve
    }

    /// What is served of an entry that doubt has made too old.
    pub(crate) fn doubted(&self, entry: Entry<V>) -> Option<Fetched<V>> {
        let value = if self.serves_doubted() { entry.into_value() } else { None };
        value.map(|value| Fetched { value, stale: true })
    }

    /// As [`Core::hit`], with what is marked.
    fn hit_marked(&self, key: KeyRef<'_>) -> Option<Fetched<V>> {
        let (found, outcome) = match self.lookup(key) {
            Lookup::Hit(entry) => (entry.into_value().map(Fetched::fresh), Outcome::Hit),
            Lookup::Limited(entry) => match self.doubted(entry) {
                None => (None, Outcome::Limited),
                stale => (stale, Outcome::Stale),
            },
            Lookup::Miss => (None, Outcome::Miss),
        };
        self.stats.count_read(outcome);
        found
    }

    /// Doubt has begun, for all that is known.
    pub(crate) fn doubt_begins(&self) {
        if self.settings.when_isolated == WhenIsolated::Flush && self.travels() {
            self.fence_and_tell(SlotSet::ALL);
            self.stats.flushed.count();
        }
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Cache<K, V> {
    /// As [`Cache::get`], and in a cache that serves what it doubts ([`WhenIsolated::Serve`]) also what is older than
    /// the stated bound allows, marked as stale. What was changed, removed, fenced or has expired is never returned.
    #[must_use]
    pub fn get_marked(&self, key: &K) -> Option<Fetched<V>> {
        self.try_get_marked(key).ok()?
    }

    /// As [`Cache::get_marked`], with the error of a key that cannot be used.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn try_get_marked(&self, key: &K) -> Result<Option<Fetched<V>>, KeyError> {
        let mut encoded = Encoded::empty();
        encoded.set(self.core.id, key)?;
        Ok(self.core.hit_marked(encoded.borrowed()))
    }

    /// As [`Cache::peek`], with what [`Cache::get_marked`] returns.
    #[must_use]
    pub fn peek_marked(&self, key: &K) -> Option<(Fetched<V>, Duration)> {
        let core = &*self.core;
        let encoded = Encoded::new(core.id, key).ok()?;
        let age = |began: Tick| core.domain.clock().coarse().since(began);
        match core.glance(encoded.borrowed()) {
            Lookup::Hit(entry) => {
                let age = age(entry.began);
                Some((Fetched::fresh(entry.into_value()?), age))
            }
            Lookup::Limited(entry) => {
                let age = age(entry.began);
                Some((core.doubted(entry)?, age))
            }
            Lookup::Miss => None,
        }
    }
}
