//! The invalidator: what a peer's change does here. Runs on the receive path, before and independent of any
//! subscriber.

use std::sync::Arc;

use tidings_proto::event::{EventKind, Operation};
use tidings_proto::id::{LaneId, Lanes, Origin, Sequence, SlotSet};
use tidings_proto::record::{Keys, Record, Target};

use crate::clears::Due;
use crate::core::{Core, ShardGuard};
use crate::event::RawTarget;
use crate::key::{Key, KeyRef};
use crate::named::By;
use crate::recent::Named;
use crate::topic::{Told, Woken};

/// A peer's change of one of this node's caches.
#[derive(Clone, Copy, Debug)]
pub struct RemoteChange<'a> {
    /// Who made it.
    pub origin: &'a Arc<Origin>,
    /// In which of its lanes.
    pub lane: LaneId,
    /// Where there.
    pub sequence: Sequence,
    /// How many lanes the origin has.
    pub lanes: Lanes,
    /// The change.
    pub record: &'a Record<'a>,
}

impl RemoteChange<'_> {
    pub(crate) fn told(&self, kind: EventKind) -> Told {
        let metadata: Vec<_> =
            self.record.metadata.iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect();
        Told {
            kind,
            operation: self.record.operation,
            origin: self.origin.clone(),
            position: Some((self.lane, self.sequence)),
            local: false,
            stamp: self.record.stamp,
            metadata: metadata.into(),
            writer: None,
            fenced: None,
        }
    }
}

/// What a change without keys names.
pub(crate) fn whole_target(target: &Target<'_>) -> RawTarget {
    match *target {
        Target::Tag(tag) => RawTarget::Tag(tag.into()),
        Target::Prefix(prefix) => RawTarget::Prefix(prefix.into()),
        _ => RawTarget::All,
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    pub(crate) fn apply_remote(&self, change: &RemoteChange<'_>) {
        let evicts =
            self.travels() && self.settings.invalidator.acts_on_remote() && change.record.kind.is_mutation();
        if change.record.is_counted(change.lane) {
            match change.record.target {
                _ if !evicts => self.stats.only_told.count(),
                // What comes of it counts it.
                Target::Key(_) => {}
                Target::Keys(_) | Target::MoreKeys(_) => self.stats.many_applied.count(),
                Target::Tag(_) => self.stats.tag_applied.count(),
                Target::Prefix(_) => self.stats.prefix_applied.count(),
                Target::All => self.stats.all_fenced.count(),
            }
        }
        match change.record.target {
            _ if evicts && self.replicates() => self.merge_change(change),
            Target::Key(key) => self.apply_key(change, KeyRef::of(self.id, key), evicts),
            Target::Keys(keys) | Target::MoreKeys(keys) => self.apply_keys(change, keys, evicts),
            Target::Tag(_) | Target::Prefix(_) | Target::All => self.apply_whole(change, evicts),
        }
    }

    fn apply_key(&self, change: &RemoteChange<'_>, key: KeyRef<'_>, evicts: bool) {
        let partition = if self.topic.is_active() { self.partition(key, None) } else { None };
        let version = if evicts { self.version_of(change.record) } else { None };
        let Some(partition) = partition else {
            if evicts {
                self.invalidate_at(&mut self.shard(key), key, (version, change.record.uncertain));
            }
            return;
        };
        let mut woken = Woken::default();
        let mut shard = self.shard(key);
        let evicted = evicts && self.invalidate_at(&mut shard, key, (version, change.record.uncertain));
        self.tell_applied(&mut woken, (partition, key), change, evicted);
        drop(shard);
        woken.wake();
    }

    /// Tells subscribers of a peer's change of one key, first that it evicted a copy here, if it did. Under the shard lock.
    #[inline]
    pub(crate) fn tell_applied(
        &self,
        woken: &mut Woken,
        (partition, key): (usize, KeyRef<'_>),
        change: &RemoteChange<'_>,
        evicted: bool,
    ) {
        self.tell_evicted(woken, (partition, key), change, evicted);
        woken.add(self.topic.tell_key(partition, key, change.told(change.record.kind)));
        self.stats.delivered.count();
    }

    /// Tells subscribers that a peer's change of one key evicted a copy here, if it did. Under the shard lock.
    #[inline]
    pub(crate) fn tell_evicted(
        &self,
        woken: &mut Woken,
        (partition, key): (usize, KeyRef<'_>),
        change: &RemoteChange<'_>,
        evicted: bool,
    ) {
        if evicted {
            let told = Told { operation: Operation::Invalidate, ..change.told(EventKind::Invalidated) };
            woken.add(self.topic.tell_key(partition, key, told));
            self.stats.delivered.count();
        }
    }

    /// The version that a change can be compared by: one of another schema may mean something else.
    fn version_of(&self, record: &Record<'_>) -> Option<u64> {
        let same = record.schema == self.settings.schema;
        if record.version.is_some() && !same {
            self.stats.other_schema.count();
        }
        record.version.filter(|_| same)
    }

    /// Ends a key's flights and removes its copy, unless that has seen this version. Counts what came of it. Returns
    /// whether there was a readable one that is gone.
    fn invalidate_at(
        &self,
        shard: &mut ShardGuard<'_, V>,
        key: KeyRef<'_>,
        (version, uncertain): (Option<u64>, bool),
    ) -> bool {
        if !uncertain && shard.has_seen(key, version) {
            shard.end_flights(key);
            self.stats.key_kept.count();
            return false;
        }
        shard.end(key);
        if uncertain {
            self.open_window(shard, key);
        }
        let evicted = self.evict(key);
        let counter = if evicted { &self.stats.key_evicted } else { &self.stats.key_absent };
        counter.count();
        evicted
    }

    /// Ends a key's flights and removes its copy. Returns whether there was a readable one.
    fn invalidate(&self, key: KeyRef<'_>, uncertain: bool) -> bool {
        let mut shard = self.shard(key);
        shard.end(key);
        if uncertain {
            self.open_window(&mut shard, key);
        }
        self.evict(key)
    }

    fn apply_keys(&self, change: &RemoteChange<'_>, keys: Keys<'_>, evicts: bool) {
        if !self.topic.is_active() {
            if evicts {
                let uncertain = change.record.uncertain;
                let evicts = |key: &&[u8]| self.invalidate(KeyRef::of(self.id, key), uncertain);
                let evicted = keys.iter().filter(evicts).count();
                self.stats.keys_evicted.add(evicted as u64);
                self.stats.keys_absent.add((keys.len() - evicted) as u64);
            }
            return;
        }
        let keys = keys.iter().map(|key| KeyRef::of(self.id, key));
        let keys: Vec<_> = keys.map(|key| (key, self.partition(key, None))).collect();
        let mut told = Vec::with_capacity(keys.len());
        let mut invalidated = Vec::new();
        // What is told of a key is in the order of what happened to it: no shard is unlocked before both are done.
        let mut shards = self.shards_of(keys.iter().map(|(key, _)| *key));
        for (key, partition) in keys {
            if evicts {
                if let Some(shard) = &mut shards[key.shard()] {
                    shard.end(key);
                    if change.record.uncertain {
                        self.open_window(shard, key);
                    }
                }
                if !self.evict(key) {
                    self.stats.keys_absent.count();
                } else {
                    self.stats.keys_evicted.count();
                    invalidated.extend(partition.map(|partition| (partition, key.to_bytes())));
                }
            }
            told.extend(partition.map(|partition| (partition, key.to_bytes())));
        }
        let removal = Told { operation: Operation::Invalidate, ..change.told(EventKind::Invalidated) };
        let invalidated = self.topic.tell_keys(&invalidated, &removal);
        self.stats.delivered.add(told.len() as u64);
        let told = self.topic.tell_keys(&told, &change.told(change.record.kind));
        drop(shards);
        invalidated.wake();
        told.wake();
    }

    fn apply_whole(&self, change: &RemoteChange<'_>, evicts: bool) {
        let slots = change.lanes.slots_of(change.lane);
        let named = match change.record.target {
            _ if !evicts => None,
            Target::Tag(tag) => self.named_tag(tag, slots),
            Target::Prefix(prefix) => Some(Named::Prefix(prefix.into())),
            _ => None,
        };
        if evicts && change.record.uncertain {
            self.open_slot_windows(slots);
        }
        // As with a change of this node's own, nothing may come between it and its event.
        let mut shards = if self.topic.is_active() { self.all_shards() } else { Vec::new() };
        match named {
            Some(named) => self.exclude(named, slots, &mut shards, By::Peer),
            None if evicts => self.raise_epochs(slots),
            None => {}
        }
        let woken = self.tell_whole(change);
        drop(shards);
        woken.into_iter().for_each(Woken::wake);
    }

    /// Tells of a peer's change without keys, once its copies in all lanes have come.
    pub(crate) fn tell_whole(&self, change: &RemoteChange<'_>) -> Vec<Woken> {
        let due = || (whole_target(&change.record.target), change.told(change.record.kind));
        let due = self.clears.arrive(change, due, self.domain.clock().coarse());
        self.tell_due(due)
    }

    /// Tells what other nodes changed without naming keys, as far as no copy of it is waited for any more.
    pub(crate) fn tell_overdue(&self) {
        let due = self.clears.overdue(self.domain.clock().coarse());
        self.tell_due(due).into_iter().for_each(Woken::wake);
    }

    pub(crate) fn tell_due(&self, due: Vec<Due>) -> Vec<Woken> {
        if !self.topic.is_active() {
            return Vec::new();
        }
        let tell = |(target, told)| {
            self.stats.delivered.count();
            self.topic.tell_all(target, told)
        };
        due.into_iter().map(tell).collect()
    }

    /// Makes slots unreadable of which changes may have been missed, and tells subscribers so.
    pub(crate) fn fence_and_tell(&self, slots: SlotSet) {
        if !self.topic.is_active() {
            self.fence_slots(slots);
            return;
        }
        let shards = self.all_shards();
        self.fence_slots(slots);
        let told = Told::here(
            EventKind::Invalidated,
            Operation::Invalidate,
            self.domain.origin(),
            self.domain.clock().wall_ms(),
        );
        let woken = self.topic.tell_fenced(slots, told);
        drop(shards);
        woken.wake();
    }
}
