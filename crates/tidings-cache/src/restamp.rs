//! A write of this node's that peers refuse, for its time is of the future: it is written anew under a stamp that they
//! accept. The record says in whose place it is, so that whoever has accepted the former stamp takes over the new one,
//! and all copies are of one write.

use tidings_proto::event::{EventKind, Operation};
use tidings_proto::hlc::Stamp;
use tidings_proto::id::{Slot, SlotSet};
use tidings_proto::record::{Draft, DraftTarget, Parts};
use tidings_proto::replicate::copy::Changed;
use tidings_proto::replicate::{Held, WriteStamp};

use crate::core::{Core, ShardGuard};
use crate::crossed::Arrived;
use crate::key::{Key, KeyRef};
use crate::topic::Told;
use crate::write::WriteError;

/// The stamps of one write: that which was refused, and the one in its place.
#[derive(Clone, Copy, Debug)]
struct Anew {
    from: WriteStamp,
    to: WriteStamp,
}

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    /// Writes a change of this node's anew that was refused. One that is not this node's, that has been replaced since, or
    /// that was written anew already is left. Runs user code: call without any lock.
    pub(crate) fn write_anew(
        &self,
        of: Changed<'_>,
        refused: WriteStamp,
        at: Stamp,
    ) -> Result<(), WriteError> {
        let own = refused.author == self.domain.author();
        if !own || at >= refused.at || self.is_closed() {
            return Ok(());
        }
        let anew = Anew { from: refused, to: WriteStamp { at, ..refused } };
        match of {
            Changed::Key(key) => self.key_anew(KeyRef::of(self.id, key), anew),
            Changed::Tag(tag) => self.whole_anew(DraftTarget::Tag(tag), anew),
            Changed::Prefix(prefix) => self.whole_anew(DraftTarget::Prefix(prefix), anew),
            Changed::All => self.whole_anew(DraftTarget::All, anew),
        }
    }

    fn key_anew(&self, key: KeyRef<'_>, Anew { from, to }: Anew) -> Result<(), WriteError> {
        let value = self.travelling_of(key).filter(|(stamp, _)| *stamp == from);
        let mut shard = self.shard(key);
        let Some(replica) = &shard.replica else { return Ok(()) };
        let value = match (replica.held(key.sought()).filter(|held| held.stamp() == from), value) {
            (Some(Held::Entry { .. }), Some((_, value))) => Some(value),
            (Some(Held::Tombstone { .. }), _) => None,
            // It is over, or cannot be encoded.
            (Some(Held::Entry { .. }), None) => {
                self.disown(shard, key);
                return Ok(());
            }
            (None, _) => {
                self.restamp_key(&mut shard, key, (from, to));
                return Ok(());
            }
        };
        let (kind, operation) = match value {
            Some(_) => (EventKind::Updated, Operation::Insert),
            None => (EventKind::Deleted, Operation::Remove),
        };
        let draft = Draft::new(Parts {
            kind,
            operation,
            ignorable: false,
            cache: self.id,
            slot: key.slot(),
            version: None,
            metadata: &[],
            value: value.as_deref(),
            target: DraftTarget::Key(key.bytes),
        })?;
        let draft = draft.in_place_of(from.at);
        let draft = if value.is_some() { draft.with_schema(self.settings.schema)? } else { draft };
        let appended = self.domain.log().append_as(key.slot(), to.at, &draft)?;
        self.restamp_key(&mut shard, key, (from, to));
        self.stats.restamped.count();
        drop(shard);
        appended.waiters.wake();
        Ok(())
    }

    fn whole_anew(&self, target: DraftTarget<'_>, Anew { from, to }: Anew) -> Result<(), WriteError> {
        let (kind, operation) = match target {
            DraftTarget::All => (EventKind::Cleared, Operation::Clear),
            _ => (EventKind::Deleted, Operation::Invalidate),
        };
        let draft = Draft::new(Parts {
            kind,
            operation,
            ignorable: false,
            cache: self.id,
            slot: Slot::of_hash(0),
            version: None,
            metadata: &[],
            value: None,
            target,
        })?;
        let mut shards = self.all_shards();
        if !self.restamp_whole(&mut shards, SlotSet::ALL, (from, to)) {
            return Ok(());
        }
        let appended = self.domain.log().append_to_all_as(to.at, &draft.in_place_of(from.at), || {});
        if appended.is_err() {
            // It is what it was.
            self.restamp_whole(&mut shards, SlotSet::ALL, (to, from));
        }
        let appended = appended?;
        self.stats.restamped.count();
        drop(shards);
        appended.into_iter().for_each(|one| one.waiters.wake());
        Ok(())
    }

    /// Knows a change without keys by another stamp. `shards` are all of them. Returns whether it was known.
    pub(crate) fn restamp_whole(
        &self,
        shards: &mut [ShardGuard<'_, V>],
        slots: SlotSet,
        (from, to): (WriteStamp, WriteStamp),
    ) -> bool {
        let wall = Stamp::from_wall_ms(self.domain.clock().wall_ms());
        let crossed = self.crossed.restamp(slots, (from, to), wall);
        let mut any = crossed;
        for replica in shards.iter_mut().filter_map(|shard| shard.replica.as_mut()) {
            any |= replica.restamp_all(slots, from, to);
        }
        if any {
            self.doubts.renamed.note(slots, crossed, self.domain.clock().coarse());
        }
        any
    }

    /// Knows a write of a key by another stamp, if it was known. What a tag or prefix names now goes, but for those of its own
    /// author that it came after: they are written anew in the same order. Call under its shard lock.
    pub(crate) fn restamp_key(
        &self,
        shard: &mut ShardGuard<'_, V>,
        key: KeyRef<'_>,
        (from, to): (WriteStamp, WriteStamp),
    ) {
        let Some(replica) = &mut shard.replica else { return };
        if !replica.restamp(key.sought(), from, to) {
            return;
        }
        let now = self.domain.clock().coarse();
        self.doubts.renamed.note(SlotSet::from_iter([key.slot()]), false, now);
        if !matches!(replica.held(key.sought()), Some(Held::Entry { stamp, .. }) if stamp == to) {
            return;
        }
        let tags = shard.tags.as_ref().and_then(|tags| tags.get(key)).cloned().unwrap_or_default();
        let (slot, text) = (key.slot(), self.text(key));
        let arrived = Arrived { slot, text, tags: &tags, write: to, former: from };
        if let Some(removed) = self.crossed.after(arrived) {
            shard.end(key);
            self.evict(key);
            self.note_write(shard, key, removed, None, now);
        } else if self.crossed.may_have_named(to) {
            // Members that have not forgotten it say.
            shard.end(key);
            self.evict(key);
            if let Some(replica) = &mut shard.replica {
                replica.disown(key.sought());
            }
        }
    }

    /// Drops a value of this node's that is nobody's.
    fn disown(&self, mut shard: ShardGuard<'_, V>, key: KeyRef<'_>) {
        if let Some(replica) = &mut shard.replica {
            replica.disown(key.sought());
        }
        shard.end(key);
        let evicted = self.evict(key);
        self.stats.disowned.count();
        let partition = if evicted && self.topic.is_active() { self.partition(key, None) } else { None };
        let told = partition.map(|partition| {
            let wall_ms = self.domain.clock().wall_ms();
            let kind = EventKind::Invalidated;
            let told = Told::here(kind, Operation::Invalidate, self.domain.origin(), wall_ms);
            self.stats.delivered.count();
            self.topic.tell_key(partition, key, told)
        });
        drop(shard);
        if let Some(told) = told {
            told.wake();
        }
    }
}
