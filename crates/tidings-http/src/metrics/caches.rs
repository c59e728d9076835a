//! What happened to each cache, and what it holds.

use std::fmt;
use std::sync::Arc;

use tidings::{AnyCache, CacheCounts, Node};

use super::{Labels, Output};

type Count = fn(&CacheCounts) -> u64;
type Gauge = fn(&dyn AnyCache) -> f64;

/// Counters without labels of their own.
const COUNTERS: [(&str, &str, Count); 16] = [
    ("tidings_cache_mutations", "Changes made on this node.", |counts| counts.mutations),
    (
        "tidings_cache_fence_rejects",
        "Loads and fills that were not stored: their key changed meanwhile or within the replica lag before, it is uncertain, or a newer version is cached.",
        |counts| counts.fence_rejects,
    ),
    (
        "tidings_cache_uncertain",
        "Times that a write of a key failed, here or at a peer, and may still land: nothing is stored for a while.",
        |counts| counts.uncertain,
    ),
    (
        "tidings_cache_bypassed",
        "Loads and fills that were not stored because the cache bypasses in doubt.",
        |counts| counts.bypassed,
    ),
    (
        "tidings_cache_flushed",
        "Times that the cache was emptied because the node came into doubt.",
        |counts| counts.flushed,
    ),
    (
        "tidings_cache_untagged",
        "Loads and fills that were not stored because their tags are too many or too long.",
        |counts| counts.untagged,
    ),
    (
        "tidings_cache_other_schema",
        "Other nodes' changes whose version is of another schema of the cache, and which evicted whatever it is.",
        |counts| counts.other_schema,
    ),
    (
        "tidings_cache_copied",
        "Values copied from other nodes with which this one has compared what it holds.",
        |counts| counts.copied,
    ),
    (
        "tidings_cache_let_go",
        "Entries removed when comparing, for another node may know of their removal.",
        |counts| counts.let_go,
    ),
    (
        "tidings_cache_slots_repaired",
        "Slots that were found to differ from another node's, and were compared by keys.",
        |counts| counts.slots_repaired,
    ),
    (
        "tidings_cache_undone",
        "Writes of this node that others refused as too far ahead of their clocks, and that were undone here.",
        |counts| counts.undone,
    ),
    ("tidings_cache_unreadable", "Values of other nodes that could not be read, and evicted.", |counts| {
        counts.unreadable
    }),
    ("tidings_subscriber_delivered", "Events told.", |counts| counts.delivered),
    ("tidings_subscriber_lagged", "Events that subscribers missed.", |counts| counts.lagged),
    ("tidings_subscriber_panics", "Panics of partitioners, listeners, rules and encodings.", |counts| {
        counts.panics
    }),
    (
        "tidings_subscriber_unpartitioned",
        "Events that no subscriber was told because they had no partition.",
        |counts| counts.unpartitioned,
    ),
];

const REQUESTS: [(&str, Count); 5] = [
    ("hit", |counts| counts.hits),
    ("miss", |counts| counts.misses),
    ("coalesced", |counts| counts.coalesced),
    ("stale", |counts| counts.stale),
    ("limited", |counts| counts.limited),
];

const LOADS: [(&str, Count); 2] =
    [("loaded", |counts| counts.loaded), ("failed", |counts| counts.load_failures)];

const SHARED_LOADS: [(&str, Count); 2] =
    [("taken", |counts| counts.shared), ("refused", |counts| counts.shared_refused)];

const INVALIDATIONS: [(&str, &str, Count); 12] = [
    ("key", "evicted", |counts| counts.key_evicted),
    ("key", "absent", |counts| counts.key_absent),
    ("key", "kept", |counts| counts.key_kept),
    ("key", "stored", |counts| counts.merged),
    ("key", "outdated", |counts| counts.outdated),
    ("key", "refused", |counts| counts.future),
    ("keys", "evicted", |counts| counts.keys_evicted),
    ("keys", "absent", |counts| counts.keys_absent),
    ("tag", "applied", |counts| counts.tag_applied),
    ("tag", "evicted", |counts| counts.tag_evicted),
    ("prefix", "applied", |counts| counts.prefix_applied),
    ("all", "fenced", |counts| counts.all_fenced),
];

const EVICTIONS: [(&str, Count); 2] =
    [("size", |counts| counts.evicted), ("expired", |counts| counts.expired)];

const GAUGES: [(&str, &str, Gauge); 8] = [
    ("tidings_cache_entries", "About how many entries the cache holds.", |cache| cache.entries() as f64),
    ("tidings_cache_weight", "About how much its entries weigh.", |cache| cache.weight() as f64),
    ("tidings_cache_flights", "Keys that are being loaded.", |cache| cache.flights() as f64),
    ("tidings_cache_tagged", "Entries that are known by their tags.", |cache| cache.tagged() as f64),
    ("tidings_cache_versioned", "Entries that are known to have versions.", |cache| cache.versioned() as f64),
    ("tidings_cache_tombstones", "Removed keys that are remembered, where values travel.", |cache| {
        cache.tombstones() as f64
    }),
    (
        "tidings_cache_doubted_slots",
        "Slots that have to be compared with other nodes, where values travel: what they held is a miss until then.",
        |cache| cache.doubted().iter().count() as f64,
    ),
    ("tidings_subscribers", "Open subscriptions.", |cache| cache.subscribers() as f64),
];

/// Writes the families of all open caches.
pub(super) fn encode(node: &Node, out: &mut Output<'_>) -> fmt::Result {
    let caches: Vec<One> =
        node.caches().into_iter().map(|cache| One { counts: cache.counts(), cache }).collect();
    let split = |label: &'static str, counters: &[(&'static str, Count)], kept: fn(&One) -> bool| -> Vec<_> {
        let of = |one: &One| {
            counters.iter().map(|(text, count)| one.count(&[(label, text)], *count)).collect::<Vec<_>>()
        };
        caches.iter().filter(|one| kept(one)).flat_map(of).collect()
    };
    let all = |_: &One| true;
    // A 0 of a cache that does not count them would be a lie.
    let counts_evictions = |one: &One| one.cache.settings().eviction_events;
    out.counter(
        "tidings_cache_requests",
        "Reads, by what became of them.",
        split("outcome", &REQUESTS, all),
    )?;
    out.counter(
        "tidings_cache_loads",
        "Loaders that ran, by how they ended.",
        split("outcome", &LOADS, all),
    )?;
    out.counter(
        "tidings_cache_shared_loads",
        "Results of other nodes' loads that came where one load serves the cluster, by what became of them here.",
        split("outcome", &SHARED_LOADS, all),
    )?;
    out.counter(
        "tidings_cache_evictions",
        "Entries that went by themselves.",
        split("cause", &EVICTIONS, counts_evictions),
    )?;
    out.histogram(
        "tidings_cache_load_duration",
        "How long loaders took, whether they loaded, failed or were cancelled.",
        caches.iter().map(|one| (one.labels(&[]), one.cache.load_times())),
    )?;
    let invalidations = caches.iter().flat_map(|one| {
        INVALIDATIONS
            .map(|(target, outcome, count)| one.count(&[("target", target), ("outcome", outcome)], count))
    });
    out.counter(
        "tidings_invalidations",
        "What came of other nodes' changes here: keys of which a copy was held or was not, tags and the copies that had them, prefixes, changes of everything.",
        invalidations,
    )?;
    for (name, help, count) in COUNTERS {
        out.counter(name, help, caches.iter().map(|one| one.count(&[], count)))?;
    }
    for (name, help, gauge) in GAUGES {
        out.gauge(name, None, help, caches.iter().map(|one| (one.labels(&[]), gauge(&*one.cache))))?;
    }
    Ok(())
}

/// A cache with its counts of one moment.
struct One {
    cache: Arc<dyn AnyCache>,
    counts: CacheCounts,
}

impl One {
    fn labels(&self, more: &[(&'static str, &str)]) -> Labels {
        let more = more.iter().map(|(name, text)| (*name, (*text).to_owned()));
        [("cache", self.cache.name().to_string())].into_iter().chain(more).collect()
    }

    fn count(&self, more: &[(&'static str, &str)], count: Count) -> (Labels, u64) {
        (self.labels(more), count(&self.counts))
    }
}
