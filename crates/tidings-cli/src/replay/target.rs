//! What load is run against: several nodes that cache one system of record.

use std::future::Future;

use bytes::Bytes;
use serde::Serialize;
use tokio::time::Instant;

use crate::exit::Failure;

/// Nodes, by number from 0.
#[allow(clippy::ptr_arg, reason = "the caches' keys are strings, and looking one up must not copy it")]
pub(crate) trait Target: Send + Sync + 'static {
    /// Names of the nodes.
    fn names(&self) -> &[String];

    /// Whether [`Target::write_through`] can be used.
    fn can_write_through(&self) -> bool;

    /// Reads through a node's cache; a miss calls the loader.
    fn read<L>(
        &self,
        node: usize,
        key: &String,
        load: L,
    ) -> impl Future<Output = Result<Answer, Failure>> + Send
    where
        L: FnOnce() -> Bytes + Send;

    /// Tells a node that a key has changed in the record.
    fn remove(&self, node: usize, key: &String) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Writes to the record through a node's cache.
    fn write_through<W>(
        &self,
        node: usize,
        key: &String,
        write: W,
    ) -> impl Future<Output = Result<(), Failure>> + Send
    where
        W: FnOnce() -> Bytes + Send;

    /// What a hit on a node would give, if there is one.
    fn peek(&self, node: usize, key: &String) -> impl Future<Output = Result<Option<Bytes>, Failure>> + Send;

    /// Whether everything done before a moment is applied on every node that lives.
    fn has_applied(&self, before: Instant) -> impl Future<Output = Result<bool, Failure>> + Send;

    /// What the nodes have counted since the target was made.
    fn counters(&self) -> impl Future<Output = Result<Counters, Failure>> + Send;

    /// How long it takes from a write's return to the eviction at a peer, as far as that was measured.
    fn invalidation_latency(&self) -> Latency;

    /// Of all writes, the share that every live node had applied within each time; nothing if nobody has measured it.
    fn coherent(&self) -> Vec<Coherence> {
        Vec::new()
    }
}

/// What came of a read.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The value.
    pub(crate) value: Bytes,
    /// Where it came from.
    pub(crate) source: Source,
}

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The cache.
    Hit,
    /// The cache, which said that it may be older than promised.
    MarkedHit,
    /// A load of its own.
    Loaded,
}

/// What nodes have counted, together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Changes made.
    pub(crate) published: u64,
    /// Changes applied, once per follower.
    pub(crate) applied: u64,
    /// Gaps noticed and repaired.
    pub(crate) gaps: u64,
    /// Positions that a log no longer held.
    pub(crate) resets: u64,
    /// Reads that waited for another caller's load, as far as the nodes tell.
    pub(crate) coalesced: u64,
}

impl Counters {
    /// Both together.
    pub(crate) fn plus(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    /// What was counted since an earlier moment; a count that has fallen began anew.
    pub(crate) fn since(self, earlier: Self) -> Self {
        self.zip(earlier, |now, before| now.checked_sub(before).unwrap_or(now))
    }

    fn zip(self, other: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            published: with(self.published, other.published),
            applied: with(self.applied, other.applied),
            gaps: with(self.gaps, other.gaps),
            resets: with(self.resets, other.resets),
            coalesced: with(self.coalesced, other.coalesced),
        }
    }
}

/// A distribution of durations, in microseconds; all 0 if nothing was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "each is the quantile of its name")]
pub(crate) struct Latency {
    pub(crate) p50: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
    pub(crate) max: u64,
}

/// How many writes every live node had applied within a time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Coherence {
    /// The time, in milliseconds.
    pub(crate) within_ms: u64,
    /// The share of the writes.
    pub(crate) share: f64,
}
