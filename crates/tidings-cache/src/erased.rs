//! A cache whose key and value types are not known: what the receive path and operators work with.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use tidings_proto::audit::Held;
use tidings_proto::hash::CacheId;
use tidings_proto::histogram::Snapshot;
use tidings_proto::id::SlotSet;

use crate::audit::Slice;
use crate::builder::Settings;
use crate::flight::Start;
use crate::remote::RemoteChange;
use crate::repair::Replicating;
use crate::stats::CacheCounts;
use crate::subscribe::RawSubscribe;

/// A cache of any types.
pub trait AnyCache: fmt::Debug + Send + Sync {
    /// Its name.
    fn name(&self) -> &Arc<str>;
    /// Its id on the wire.
    fn id(&self) -> CacheId;
    /// How it was opened.
    fn settings(&self) -> &Settings;
    /// Its counters.
    fn counts(&self) -> CacheCounts;
    /// How long its loaders took, from call to end, whether they loaded, failed or were cancelled.
    fn load_times(&self) -> Snapshot;
    /// About how many entries it holds, unreadable ones included until they are reclaimed.
    fn entries(&self) -> u64;
    /// About how much they weigh.
    fn weight(&self) -> u64;
    /// Open loads, tokens, write-throughs, and leases that were given, by keys.
    fn flights(&self) -> usize;
    /// Entries that are known by their tags, and about as many that were until lately.
    fn tagged(&self) -> usize;
    /// Entries that are known to have versions, and some that were until lately.
    fn versioned(&self) -> usize;
    /// Removed keys that are remembered, where values travel.
    fn tombstones(&self) -> usize;
    /// Slots that have to be compared with the members, where values travel.
    fn doubted(&self) -> SlotSet;
    /// What compares it with other members, where values travel.
    fn replicating(self: Arc<Self>) -> Option<Arc<dyn Replicating>>;
    /// Subscriptions that are open.
    fn subscribers(&self) -> usize;
    /// An encoded key as text: a string as it is, anything else as JSON-like debug text; hexadecimal if it does not
    /// decode.
    fn key_text(&self, key: &[u8]) -> String;
    /// Starts a subscription that does not know the key's type.
    fn subscribe_raw(self: Arc<Self>) -> RawSubscribe;
    /// Applies a peer's change.
    fn apply(&self, change: &RemoteChange<'_>);
    /// Makes slots unreadable.
    fn fence(&self, slots: SlotSet);
    /// As [`AnyCache::fence`], and what begins there within the write horizon is not stored.
    fn fence_uncertain(&self, slots: SlotSet);
    /// Begins to watch a key, of which this node gives a lease.
    fn lease_begins(&self, key: &[u8]) -> Start;
    /// Whether a load of the key that began since would still be stored here.
    fn lease_stands(&self, key: &[u8], start: Start) -> bool;
    /// Watches a key no more.
    fn lease_ends(&self, key: &[u8], start: Start);
    /// The node's doubt has begun: what the cache does then that reads do not do by themselves.
    fn doubt_begins(&self);
    /// Notices expiry, delivers local events, reclaims fenced entries.
    fn housekeep(&self);
    /// Whether its entries should be what other nodes hold, and can be compared with those.
    fn is_audited(&self) -> bool;
    /// Its keys whose hashes are `from` and higher, as many as a slice holds. Walks through the whole table, about
    /// 0.1 us an entry: call it where blocking is allowed.
    fn slice(&self, from: u64) -> Slice;
    /// What a read of an encoded key would be answered with, without counting one; nothing of a cache that is not
    /// audited. Takes as long as encoding the value.
    fn held(&self, key: &[u8]) -> Option<Held>;
    /// As [`AnyCache::held`], of the key with this hash; of two such keys either.
    fn held_by_hash(&self, hash: u64) -> Option<Held>;
    /// Removes everything here and at every peer.
    ///
    /// # Errors
    /// As [`crate::Cache::clear`].
    fn clear(&self) -> Result<crate::Written<'_>, crate::WriteError>;
    /// Removes the entries with any of these tags here and at every peer.
    ///
    /// # Errors
    /// As [`crate::Cache::invalidate_tags`].
    fn invalidate_tags(&self, tags: &[&str]) -> Result<crate::Written<'_>, crate::WriteError>;
    /// Removes the entries whose keys start so here and at every peer.
    ///
    /// # Errors
    /// As [`crate::Cache::invalidate_prefix`].
    fn invalidate_prefix(&self, prefix: &str) -> Result<crate::Written<'_>, crate::WriteError>;
    /// As [`AnyCache::clear`], following from a change that was made: also while the node is leaving.
    ///
    /// # Errors
    /// As [`AnyCache::clear`].
    fn clear_derived(&self, uncertain: bool) -> Result<crate::Written<'_>, crate::WriteError>;
    /// The caches whose changes follow from its own.
    fn derives(&self) -> Vec<CacheId>;
    /// Closes it: subscriptions end, later mutations fail, its memory is freed with the last handle.
    fn close(&self);
    /// For `lookup` by type.
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}
