//! Changes that name no keys: of everything, of a tag, of a prefix.
//!
//! A clear raises the epochs. The entries of a tag are removed at once, by the index of tags. Those of a prefix are
//! many to look through: hits are compared with it until the reclaimer has removed them. Of either, loads that began
//! before are not stored: see [`crate::recent`].

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tidings_proto::event::{EventKind, Operation};
use tidings_proto::id::{Slot, SlotSet};
use tidings_proto::log::Appended;
use tidings_proto::receipt::Positions;
use tidings_proto::record::{Draft, DraftTarget, Parts};
use tidings_proto::replicate::WriteStamp;
use tidings_proto::time::Tick;
use tidings_proto::wake::Waiters;

use crate::cache::Cache;
use crate::core::{Core, ShardGuard};
use crate::derive::Changed;
use crate::event::RawTarget;
use crate::key::{Key, SHARDS};
use crate::receipt::Written;
use crate::recent::Named;
use crate::replicated::NamedKeys;
use crate::tags::{TagHash, TagPlace};
use crate::topic::{Told, Woken};
use crate::write::{Leave, WriteError};

/// Most entries of a tag that are removed under one hold of a shard's lock: about 100 us.
const TAGGED_PER_HOLD_MAX: usize = 128;

/// Most entries that one lane's copy of a peer's invalidation of a tag removes one by one: about 50 ms of the bus's
/// time. Of more, that lane's slots are fenced instead, at no price but theirs.
const TAGGED_PER_COPY_MAX: usize = 1 << 16;

/// Who makes a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Here,
    /// Counted as what came of it here.
    Peer,
}

/// A change of this node that names no keys.
struct Whole<'a> {
    kind: EventKind,
    operation: Operation,
    target: DraftTarget<'a>,
    leave: Leave,
    uncertain: bool,
}

impl<'a> Whole<'a> {
    fn clear(leave: Leave) -> Self {
        let (kind, operation) = (EventKind::Cleared, Operation::Clear);
        Self { kind, operation, target: DraftTarget::All, leave, uncertain: false }
    }

    fn invalidation(target: DraftTarget<'a>) -> Self {
        let (kind, operation) = (EventKind::Deleted, Operation::Invalidate);
        Self { kind, operation, target, leave: Leave::Refuses, uncertain: false }
    }

    fn told(&self) -> RawTarget {
        match self.target {
            DraftTarget::Tag(tag) => RawTarget::Tag(tag.into()),
            DraftTarget::Prefix(prefix) => RawTarget::Prefix(prefix.into()),
            _ => RawTarget::All,
        }
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    /// Removes everything: epochs last.
    pub(crate) fn clear_all(&self, leave: Leave) -> Result<Written<'_>, WriteError> {
        self.change_whole(&Whole::clear(leave), |_| self.raise_epochs(SlotSet::ALL))
    }

    /// Removes everything that follows from a change; `uncertain` says that this one may still land.
    pub(crate) fn clear_derived(&self, uncertain: bool) -> Result<Written<'_>, WriteError> {
        let whole = Whole { uncertain, ..Whole::clear(Leave::Waits) };
        self.change_whole(&whole, |shards| {
            if uncertain {
                shards.iter_mut().for_each(|shard| self.open_slot_windows_in(shard, SlotSet::ALL));
            }
            self.raise_epochs(SlotSet::ALL);
        })
    }

    /// Removes the entries with any of these tags. Every tag is judged before any is invalidated.
    pub(crate) fn invalidate_all_of(&self, tags: &[&str]) -> Result<Written<'_>, WriteError> {
        self.may_change(Leave::Refuses)?;
        for tag in tags {
            TagHash::judged(self.id, tag)?;
        }
        let mut positions = Positions::default();
        for tag in tags {
            let hash = TagHash::of(self.id, tag);
            if !self.replicates() {
                // Most of them before every shard is held.
                self.remove_tagged((hash, SlotSet::ALL), usize::MAX, By::Here);
            }
            let named = if self.keeps_tags() { Some(Named::Tag(hash)) } else { None };
            let whole = Whole::invalidation(DraftTarget::Tag(tag));
            let written = self.change_whole(&whole, |shards| match named {
                Some(named) => self.exclude(named, SlotSet::ALL, shards, By::Here),
                None => self.raise_epochs(SlotSet::ALL),
            })?;
            positions.merge(&written.positions);
        }
        Ok(self.written(EventKind::Deleted, positions))
    }

    /// Removes the entries whose keys start so.
    pub(crate) fn invalidate_under(&self, prefix: &str) -> Result<Written<'_>, WriteError> {
        if prefix.is_empty() {
            return Err(WriteError::EmptyPrefix);
        }
        if !self.has_text() {
            return Err(WriteError::NoText);
        }
        let named = Named::Prefix(prefix.into());
        let whole = Whole::invalidation(DraftTarget::Prefix(prefix));
        let written =
            self.change_whole(&whole, |shards| self.exclude(named, SlotSet::ALL, shards, By::Here))?;
        if !self.travels() || self.domain.gate().fresh_until() == Tick::FOREVER {
            // There may be nobody who keeps house, and hits do not look at the clock here.
            self.reclaim();
            self.retire_sweeps();
        }
        Ok(written)
    }

    /// Makes a change: sequenced on every lane under one stamp, and told; `act` makes it here.
    fn change_whole(
        &self,
        whole: &Whole<'_>,
        act: impl FnOnce(&mut [ShardGuard<'_, V>]),
    ) -> Result<Written<'_>, WriteError> {
        let _deriving = self.deriving();
        self.may_change(whole.leave)?;
        let draft = Draft::new(Parts {
            kind: whole.kind,
            operation: whole.operation,
            ignorable: false,
            cache: self.id,
            slot: Slot::of_hash(0),
            version: None,
            metadata: &[],
            value: None,
            target: whole.target,
        })?;
        let draft = if whole.uncertain { draft.uncertain() } else { draft };
        // The order of the change among all others is the same in the table, in the log and for subscribers.
        let mut shards = self.all_shards();
        // Once more, for a close that came between: it waits for these locks.
        if self.is_closed() {
            return Err(WriteError::Closed);
        }
        let named = if self.replicates() {
            self.named_by(&whole.told(), SlotSet::ALL, &shards)
        } else {
            NamedKeys::NotNoted
        };
        let wall_ms = self.domain.clock().wall_ms();
        let mut told = Told::here(whole.kind, whole.operation, self.domain.origin(), wall_ms);
        let mut log_waiters = Vec::new();
        let mut positions = Positions::default();
        let act = || act(&mut shards);
        if self.travels() {
            for appended in self.domain.log().append_to_all(wall_ms, &draft, act)? {
                let Appended { lane, sequence, stamp, waiters } = appended;
                told.stamp = stamp;
                told.position.get_or_insert((lane, sequence));
                positions.add(lane, sequence);
                log_waiters.push(waiters);
            }
            let stamp = WriteStamp { at: told.stamp, author: self.domain.author() };
            self.note_whole((&named, &whole.told()), SlotSet::ALL, stamp, &mut shards);
        } else {
            act();
        }
        let rings = if self.topic.is_active() {
            self.stats.delivered.count();
            self.topic.tell_all(whole.told(), told)
        } else {
            Woken::default()
        };
        self.stats.mutations.count();
        drop(shards);
        log_waiters.into_iter().for_each(Waiters::wake);
        rings.wake();
        self.derive(Changed::Everything { uncertain: whole.uncertain });
        Ok(self.written(whole.kind, positions))
    }

    /// What a peer's invalidation of a tag names here, most of which is removed by then. `None`: nobody knows, or it is
    /// too much to be looked through.
    pub(crate) fn named_tag(&self, tag: &str, slots: SlotSet) -> Option<Named> {
        let hash = TagHash::of(self.id, tag);
        let removed = self.remove_tagged((hash, slots), TAGGED_PER_COPY_MAX, By::Peer);
        (self.keeps_tags() && removed < TAGGED_PER_COPY_MAX).then_some(Named::Tag(hash))
    }

    /// Makes what was stored before unreadable, and what began before never stored, in these slots. `shards` are all of
    /// them, or none: then they are locked in turn.
    pub(crate) fn exclude(&self, named: Named, slots: SlotSet, shards: &mut [ShardGuard<'_, V>], by: By) {
        let prefix = match &named {
            Named::Prefix(_) if !self.has_text() => return self.raise_epochs(slots),
            Named::Prefix(prefix) => Some(prefix.clone()),
            Named::Tag(_) => None,
        };
        let at = self.recents.note(named.clone(), slots, self.domain.clock().coarse());
        if let Named::Tag(_) = named {
            self.end_absences(at);
        }
        let act = |shard: &mut ShardGuard<'_, V>| {
            // First: what lands from now on in this shard is compared with it.
            shard.note_mark(at);
            if let Named::Tag(tag) = named {
                let mut from = Some(TagPlace::first());
                while from.is_some() {
                    self.remove_some_tagged(shard, (tag, slots), &mut from, by);
                }
            }
        };
        if shards.is_empty() {
            (0..SHARDS).for_each(|index| act(&mut self.shard_at(index)));
        } else {
            shards.iter_mut().for_each(act);
        }
        if let Some(prefix) = prefix {
            self.sweep(prefix, slots, at);
        }
    }

    /// Has the entries of a prefix looked for, and hits compared with it until they are gone.
    fn sweep(&self, prefix: Arc<str>, slots: SlotSet, at: Tick) {
        if self.sweeps.begin(prefix, slots, at, || self.mark_sweeping(slots)) {
            self.fences.fetch_add(1, Ordering::AcqRel);
        } else {
            self.fence_slots(slots);
        }
    }

    /// Removes what has a tag, some entries at a time. Returns how many, at most about `limit`.
    fn remove_tagged(&self, tagged: (TagHash, SlotSet), limit: usize, by: By) -> usize {
        let mut removed = 0;
        for index in 0..SHARDS {
            let mut from = Some(TagPlace::first());
            while from.is_some() && removed < limit {
                removed += self.remove_some_tagged(&mut self.shard_at(index), tagged, &mut from, by);
            }
        }
        removed
    }

    /// Removes some of what has a tag in one shard, from a place of its index on. Returns how many.
    fn remove_some_tagged(
        &self,
        shard: &mut ShardGuard<'_, V>,
        (tag, slots): (TagHash, SlotSet),
        from: &mut Option<TagPlace>,
        by: By,
    ) -> usize {
        let (Some(tags), Some(at)) = (&shard.tags, from.take()) else { return 0 };
        let (keys, next) = tags.keys_of(tag, at, slots, TAGGED_PER_HOLD_MAX);
        *from = next;
        for key in &keys {
            let key = key.borrowed();
            shard.end(key);
            if self.evict(key) && by == By::Peer {
                self.stats.tag_evicted.count();
            }
        }
        keys.len()
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Cache<K, V> {
    /// Removes every entry with this tag here and at every peer. Entries have the tags that
    /// [`crate::CacheBuilder::tags`] computes, and those that they were loaded or stored with. A load that began before is
    /// not stored if its value has the tag, and no later caller joins it, whatever its tags.
    ///
    /// A cache that knows of no tags, neither computed nor given ([`crate::CacheBuilder::explicit_tags`]), drops
    /// everything, unless its values travel: then their tags do. A peer drops everything of a lane, too, if it holds
    /// more than 65,536 such entries of it, and its values do not travel.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn invalidate_tag(&self, tag: &str) -> Result<Written<'_>, WriteError> {
        self.core.invalidate_all_of(&[tag])
    }

    /// As [`Cache::invalidate_tag`] for each of several tags, every one of which is judged before any is invalidated.
    /// Each is a change of its own.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn invalidate_tags<T: AsRef<str>>(
        &self,
        tags: impl IntoIterator<Item = T>,
    ) -> Result<Written<'_>, WriteError> {
        let tags: Vec<T> = tags.into_iter().collect();
        let tags: Vec<&str> = tags.iter().map(AsRef::as_ref).collect();
        self.core.invalidate_all_of(&tags)
    }

    /// Removes every entry here and at every peer whose key, a `String`, starts so. A load of such a key that began before
    /// is not stored, and no later caller joins a load that began before, whatever its key.
    ///
    /// It takes microseconds however many entries there are: what it names is unreadable at once, and reclaimed later.
    /// Only where there are no peers the entries are looked through, about 0.1 us each.
    ///
    /// # Errors
    /// [`WriteError::EmptyPrefix`], [`WriteError::NoText`] and others; nothing has changed.
    pub fn invalidate_prefix(&self, prefix: &str) -> Result<Written<'_>, WriteError> {
        self.core.invalidate_under(prefix)
    }
}
