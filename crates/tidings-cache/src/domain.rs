//! What all caches of a node share: its clock, its log, the published freshness, and the table of open caches.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard, RwLock};
use tidings_proto::event::{EventKind, Operation};
use tidings_proto::follower::Applied;
use tidings_proto::freshness::{Bounds, Published};
use tidings_proto::hash::CacheId;
use tidings_proto::id::{Origin, SLOTS, Sequence, Slot, SlotSet};
use tidings_proto::log::ChangeLog;
use tidings_proto::record::{BatchRef, Draft, DraftTarget, Parts, Unsound};
use tidings_proto::replicate::author;
use tidings_proto::time::Tick;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use crate::builder::Mode;
use crate::clock::Clock;
use crate::erased::AnyCache;
use crate::gate::Gate;
use crate::key::Encoded;
use crate::receipt::ReceiptSource;
use crate::refusals::Refusals;
use crate::remote::RemoteChange;
use crate::shared::LeaseSource;
use crate::stats::Striped;
use crate::write::WriteError;

/// Shared by all caches of one node. Clones share it.
#[derive(Clone)]
pub struct Domain(Arc<Inner>);

type Caches = BTreeMap<CacheId, Arc<dyn AnyCache>>;

pub(crate) struct Inner {
    clock: Clock,
    gate: Gate,
    log: Arc<ChangeLog>,
    tasks: TaskTracker,
    subscriptions: AtomicU64,
    origin: RwLock<Arc<Origin>>,
    /// Replaced as a whole, so that no lock is held while a cache works.
    caches: RwLock<Arc<Caches>>,
    /// Changes of caches that are closed.
    published_before: AtomicU64,
    counts: RemoteStats,
    /// Why changes are refused, if they are: one byte, for it is read with every change.
    pub(crate) stance: AtomicU8,
    /// Write-throughs whose user code is under way, and changes from which others follow.
    pub(crate) open_writes: AtomicUsize,
    pub(crate) writes_changed: Notify,
    write_horizon: Duration,
    /// When the last window is over that a write-through of this node's has opened.
    pub(crate) windows_end: AtomicU64,
    receipts: OnceLock<ReceiptSource>,
    leases: OnceLock<LeaseSource>,
    /// Held while a derived rule is made.
    rules: Mutex<()>,
    /// Who the origin is in the stamps of writes.
    author: AtomicU64,
    pub(crate) refusals: Refusals,
}

/// What came of other nodes' records on this node.
#[derive(Debug, Default)]
pub struct RemoteStats {
    /// Records of a kind that this release does not know and may ignore.
    pub ignored: Striped,
    /// Records by which nodes that start learn that theirs are applied; they change nothing.
    pub canaries: Striped,
    /// Records that could not be understood, whose slots were fenced.
    pub opaque: Striped,
    /// Records of caches that are not open here.
    pub unknown_cache: Striped,
    /// Slots fenced, counted per cache.
    pub fenced_slots: Striped,
    /// About how many entries these held.
    pub fenced_entries: Striped,
    /// Entries whose memory was reclaimed for they were loaded at or before a floor, as the unclean end of a member
    /// leaves one. What was evicted, changed or loaded again before that is not in it.
    pub floored_entries: Striped,
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domain").field("origin", &self.origin()).finish_non_exhaustive()
    }
}

/// Changes of a cache that peers are told of.
fn published(cache: &dyn AnyCache) -> u64 {
    if cache.settings().mode == Mode::Local { 0 } else { cache.counts().mutations }
}

impl Domain {
    /// The shared part of a node whose changes go to `log`, with the default bounds but for this one.
    #[must_use]
    pub fn new(clock: Clock, log: Arc<ChangeLog>, origin: Origin, max_staleness: Duration) -> Self {
        Self::bounded(clock, log, origin, Bounds { max_staleness, ..Bounds::default() })
    }

    /// The shared part of a node whose changes go to `log`.
    #[must_use]
    pub fn bounded(clock: Clock, log: Arc<ChangeLog>, origin: Origin, bounds: Bounds) -> Self {
        let max_staleness = bounds.max_staleness;
        let gate = Gate {
            fresh_until: AtomicU64::new(0),
            floor: AtomicU64::new(0),
            max_staleness,
            // A node starts in doubt, with empty caches.
            doubted: AtomicBool::new(true),
        };
        let author = AtomicU64::new(author(&origin));
        Self(Arc::new(Inner {
            clock,
            gate,
            log,
            tasks: TaskTracker::new(),
            subscriptions: AtomicU64::new(1),
            origin: RwLock::new(Arc::new(origin)),
            caches: RwLock::default(),
            published_before: AtomicU64::new(0),
            counts: RemoteStats::default(),
            stance: AtomicU8::new(0),
            open_writes: AtomicUsize::new(0),
            writes_changed: Notify::new(),
            write_horizon: bounds.write_horizon,
            windows_end: AtomicU64::new(0),
            receipts: OnceLock::new(),
            leases: OnceLock::new(),
            rules: Mutex::default(),
            author,
            refusals: Refusals::default(),
        }))
    }

    /// A shared part for caches of a process that has no peers: always fresh.
    ///
    /// # Panics
    /// Never: the node id is valid.
    #[must_use]
    pub fn standalone() -> Self {
        let node = "standalone".parse().expect("a valid node id");
        let origin = Origin { node, incarnation: tidings_proto::id::Incarnation(1) };
        let log = Arc::new(ChangeLog::new(Default::default(), Default::default()));
        let domain = Self::new(Clock::system(), log, origin, Duration::from_secs(3));
        domain.publish(Published { fresh_until: Tick::FOREVER, floor: Tick::NEVER });
        domain
    }

    /// The node's clock.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.0
    }

    pub(crate) fn write_horizon(&self) -> Duration {
        self.0.write_horizon
    }

    pub(crate) fn gate(&self) -> &Gate {
        &self.0.gate
    }

    /// Where changes made here are logged.
    #[must_use]
    pub fn log(&self) -> &Arc<ChangeLog> {
        &self.0.log
    }

    pub(crate) fn receipts(&self) -> &OnceLock<ReceiptSource> {
        &self.0.receipts
    }

    pub(crate) fn leases(&self) -> &OnceLock<LeaseSource> {
        &self.0.leases
    }

    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.0.tasks
    }

    pub(crate) fn next_subscription(&self) -> u64 {
        self.0.subscriptions.fetch_add(1, Ordering::Relaxed)
    }

    /// Who this node is in events.
    #[must_use]
    pub fn origin(&self) -> Arc<Origin> {
        self.0.origin.read().clone()
    }

    pub(crate) fn author(&self) -> u64 {
        self.0.author.load(Ordering::Acquire)
    }

    /// Changes who this node is, before its first mutation.
    pub fn set_origin(&self, origin: Origin) {
        self.0.author.store(author(&origin), Ordering::Release);
        *self.0.origin.write() = Arc::new(origin);
    }

    /// Publishes freshness. Call after the evictions that it stands for, from one place; and a few times a second, so
    /// that caches are told when what was published has run out.
    pub fn publish(&self, published: Published) {
        let gate = &self.0.gate;
        let now = self.0.clock.coarse();
        // Before what ends the doubt again: what a cache is emptied of for it was not readable during it.
        if !gate.is_fresh(gate.fresh_until(), now) && !gate.doubted.swap(true, Ordering::AcqRel) {
            self.open_caches().values().for_each(|cache| cache.doubt_begins());
        }
        if gate.is_fresh(published.fresh_until, now) {
            gate.doubted.store(false, Ordering::Release);
        }
        self.0.gate.floor.store(published.floor.0, Ordering::Release);
        self.0.gate.fresh_until.store(published.fresh_until.0, Ordering::Release);
    }

    /// Changes made on this node that peers are told of, one per call whatever the number of lanes or peers.
    #[must_use]
    pub fn events_published(&self) -> u64 {
        let caches = self.0.caches.read();
        let of_open: u64 = caches.values().map(|cache| published(&**cache)).sum();
        of_open + self.0.published_before.load(Ordering::Relaxed)
    }

    /// What came of other nodes' records.
    #[must_use]
    pub fn remote_stats(&self) -> &RemoteStats {
        &self.0.counts
    }

    fn open_caches(&self) -> Arc<Caches> {
        self.0.caches.read().clone()
    }

    /// The open caches, by name.
    #[must_use]
    pub fn caches(&self) -> Vec<Arc<dyn AnyCache>> {
        let mut caches: Vec<_> = self.open_caches().values().cloned().collect();
        caches.sort_by(|a, b| a.name().cmp(b.name()));
        caches
    }

    /// The open cache of this name.
    #[must_use]
    pub fn cache(&self, name: &str) -> Option<Arc<dyn AnyCache>> {
        let cache = self.open_caches().get(&CacheId::of_name(name))?.clone();
        (&**cache.name() == name).then_some(cache)
    }

    /// The open cache of this id.
    #[must_use]
    pub fn cache_of(&self, id: CacheId) -> Option<Arc<dyn AnyCache>> {
        self.open_caches().get(&id).cloned()
    }

    /// Enters a cache, or says which one holds its id.
    pub(crate) fn register(&self, cache: Arc<dyn AnyCache>) -> Result<(), Arc<str>> {
        let mut caches = self.0.caches.write();
        if let Some(holder) = caches.get(&cache.id()) {
            return Err(holder.name().clone());
        }
        Arc::make_mut(&mut caches).insert(cache.id(), cache);
        Ok(())
    }

    pub(crate) fn unregister(&self, id: CacheId) {
        let mut caches = self.0.caches.write();
        if let Some(cache) = Arc::make_mut(&mut caches).remove(&id) {
            self.0.published_before.fetch_add(published(&*cache), Ordering::Relaxed);
        }
    }

    /// Applies records of a peer in order, from the sequence `from` on: evicts, then tells subscribers. Returns the
    /// sequence after the last one applied, and how many changes of users that were, in whatever cache.
    ///
    /// # Errors
    /// [`Unsound`] if a record's framing is broken. What was before it is applied; what is returned is lost with
    /// the error, so that the caller asks again from where it last reported.
    pub fn apply(
        &self,
        origin: &Arc<Origin>,
        batch: &BatchRef<'_>,
        from: Sequence,
    ) -> Result<Applied, Unsound> {
        let caches = self.open_caches();
        let lanes = batch.lanes;
        let mut changes = 0;
        let mut last: Option<(CacheId, &Arc<dyn AnyCache>)> = None;
        for (sequence, record) in batch.records(from) {
            let record = match record? {
                Ok(record) => record,
                Err(opaque) if opaque.is_canary() => {
                    self.0.counts.canaries.count();
                    continue;
                }
                Err(opaque) if opaque.unknown_kind.is_some() && opaque.ignorable => {
                    self.0.counts.ignored.count();
                    continue;
                }
                Err(opaque) => {
                    // What it named is unknown, but it can only have been of this lane.
                    self.0.counts.opaque.count();
                    let slots = lanes.slots_of(batch.lane);
                    self.fence_missed(&caches, slots, opaque.unknown_kind.map(|_| opaque.cache));
                    continue;
                }
            };
            changes += u64::from(record.is_counted(batch.lane));
            let cache = match last {
                Some((id, cache)) if id == record.cache => cache,
                _ => match caches.get(&record.cache) {
                    Some(cache) => {
                        last = Some((record.cache, cache));
                        cache
                    }
                    None => {
                        self.0.counts.unknown_cache.count();
                        continue;
                    }
                },
            };
            cache.apply(&RemoteChange { origin, lane: batch.lane, sequence, lanes, record: &record });
        }
        Ok(Applied { next: batch.next(), changes })
    }

    /// What was missed may have been the removal of a key whose truth is uncertain.
    fn fence_missed(&self, caches: &Caches, slots: SlotSet, only: Option<CacheId>) {
        for cache in caches.values().filter(|cache| only.is_none_or(|only| only == cache.id())) {
            let fenced = slots.iter().count() as u64;
            // Keys are spread evenly over slots.
            self.0.counts.fenced_entries.add(cache.entries() * fenced / SLOTS as u64);
            cache.fence_uncertain(slots);
            self.0.counts.fenced_slots.add(fenced);
        }
    }

    /// Makes everything in these slots, of every cache, unreadable unless its load begins from now on.
    pub fn fence(&self, slots: SlotSet) {
        let caches = self.open_caches();
        caches.values().for_each(|cache| cache.fence(slots));
        self.0.counts.fenced_slots.add((slots.iter().count() * caches.len()) as u64);
    }

    /// As [`Domain::fence`], of slots of which a peer's records were missed: what those were of may still land, so that
    /// nothing is stored there whose load begins within the write horizon from now.
    pub fn fence_uncertain(&self, slots: SlotSet) {
        self.fence_missed(&self.open_caches(), slots, None);
    }

    /// Makes everything unreadable whose load did not begin from now on: what a node does that cannot know what it
    /// missed.
    pub fn fence_all(&self) {
        self.fence(SlotSet::ALL);
    }

    /// Housekeeping of every cache: noticed expiry, delivery of local events, memory of fenced entries. May take
    /// milliseconds: call it about once a second, where blocking is allowed.
    pub fn housekeep(&self) {
        for cache in self.caches() {
            cache.housekeep();
        }
    }

    /// Closes every cache and waits for the tasks of their listeners.
    pub async fn close(&self) {
        for cache in self.caches() {
            cache.close();
        }
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

/// What derived rules need.
impl Domain {
    /// Whether it is the same one.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Nobody else makes a rule meanwhile.
    pub(crate) fn making_rules(&self) -> MutexGuard<'_, ()> {
        self.0.rules.lock()
    }

    /// Whether changes of any of these caches derive, at last, changes of this one.
    pub(crate) fn reaches(&self, mut from: Vec<CacheId>, to: CacheId) -> bool {
        let caches = self.open_caches();
        let mut seen = BTreeSet::new();
        while let Some(id) = from.pop() {
            if id == to {
                return true;
            }
            if seen.insert(id) {
                from.extend(caches.get(&id).map(|cache| cache.derives()).unwrap_or_default());
            }
        }
        false
    }

    /// Tells peers of changed keys of a cache that is not open here.
    pub(crate) fn tell_keys_of_closed(
        &self,
        cache: CacheId,
        keys: &[Encoded],
        uncertain: bool,
    ) -> Result<(), WriteError> {
        for key in keys {
            let key = key.borrowed();
            let draft = Draft::new(Parts {
                kind: EventKind::Deleted,
                operation: Operation::Invalidate,
                ignorable: false,
                cache,
                slot: key.slot(),
                version: None,
                metadata: &[],
                value: None,
                target: DraftTarget::Key(key.bytes),
            })?;
            let draft = if uncertain { draft.uncertain() } else { draft };
            self.0.log.append(key.slot(), self.0.clock.wall_ms(), &draft)?.waiters.wake();
            self.0.published_before.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Tells peers that everything changed in a cache that is not open here.
    pub(crate) fn tell_clear_of_closed(&self, cache: CacheId, uncertain: bool) -> Result<(), WriteError> {
        let draft = Draft::new(Parts {
            kind: EventKind::Cleared,
            operation: Operation::Clear,
            ignorable: false,
            cache,
            slot: Slot::of_hash(0),
            version: None,
            metadata: &[],
            value: None,
            target: DraftTarget::All,
        })?;
        let draft = if uncertain { draft.uncertain() } else { draft };
        let appended = self.0.log.append_to_all(self.0.clock.wall_ms(), &draft, || {})?;
        appended.into_iter().for_each(|appended| appended.waiters.wake());
        self.0.published_before.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
