//! What a peer's change does where values travel.

use std::time::Duration;

use tidings_proto::id::SlotSet;
use tidings_proto::record::{Keys, Target};
use tidings_proto::replicate::{EntryBirth, Held, WriteStamp};
use tidings_proto::time::Tick;

use crate::core::{Birth, Core, ShardGuard};
use crate::entry::Entry;
use crate::event::RawTarget;
use crate::key::{Key, KeyRef, StoredKey};
use crate::named::By;
use crate::recent::Named;
use crate::refusals::{Refusal, Refused};
use crate::remote::{RemoteChange, whole_target};
use crate::replicate::{Merged, Rescued};
use crate::tags::{TagHash, TagPlace};
use crate::topic::Woken;
use crate::travel::Arrival;

/// What a change without keys names of a cache whose values travel.
pub(crate) enum NamedKeys {
    /// Nothing is to be noted, for values do not travel.
    NotNoted,
    /// Everything, or nobody knows what.
    All,
    /// These keys, and what has no stamp.
    Keys(Vec<StoredKey>),
}

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    /// Merges a peer's change, and tells of it.
    pub(crate) fn merge_change(&self, change: &RemoteChange<'_>) {
        match change.record.target {
            Target::Key(key) => self.merge_key(change, KeyRef::of(self.id, key)),
            Target::Keys(keys) | Target::MoreKeys(keys) => self.merge_keys(change, keys),
            Target::Tag(_) | Target::Prefix(_) | Target::All => self.merge_whole(change),
        }
    }

    fn merge_key(&self, change: &RemoteChange<'_>, key: KeyRef<'_>) {
        let partition = if self.topic.is_active() { self.partition(key, None) } else { None };
        let arrival = self.arrival(change.record);
        let mut woken = Woken::default();
        let mut shard = self.shard(key);
        let (merged, displaced) = self.merge_from(&mut shard, key, change, arrival);
        let counter = match merged {
            Merged::Stored => &self.stats.merged,
            Merged::Removed { evicted: true } => &self.stats.key_evicted,
            Merged::Removed { evicted: false } => &self.stats.key_absent,
            Merged::Outdated | Merged::Crossed { .. } => &self.stats.outdated,
            Merged::Future { .. } => &self.stats.future,
        };
        counter.count();
        if let Some(partition) = partition {
            self.tell_merged(&mut woken, (partition, key), change, merged);
        }
        drop(shard);
        drop(displaced);
        woken.wake();
    }

    /// Tells subscribers what became of a peer's change of one key. Under the shard lock.
    fn tell_merged(
        &self,
        woken: &mut Woken,
        at: (usize, KeyRef<'_>),
        change: &RemoteChange<'_>,
        merged: Merged,
    ) {
        match merged {
            // What came after a later one changes nothing for anybody.
            Merged::Outdated => {}
            // Nor does what is refused, but for the copy that went with it.
            Merged::Future { evicted } | Merged::Crossed { evicted } => {
                self.tell_evicted(woken, at, change, evicted);
            }
            Merged::Stored => self.tell_applied(woken, at, change, false),
            Merged::Removed { evicted } => self.tell_applied(woken, at, change, evicted),
        }
    }

    /// Merges a change of one key, under its shard lock. Of one of the future its author is to be told.
    fn merge_from(
        &self,
        shard: &mut ShardGuard<'_, V>,
        key: KeyRef<'_>,
        change: &RemoteChange<'_>,
        arrival: Arrival<V>,
    ) -> (Merged, Option<Entry<V>>) {
        let stamp = WriteStamp::of(change.record.stamp, change.origin);
        if change.record.uncertain {
            self.open_window(shard, key);
        }
        if matches!(arrival, Arrival::Value { .. }) && self.crossed.may_have_named(stamp) {
            self.doubt(SlotSet::from_iter([key.slot()]));
        }
        let (merged, displaced) = self.merge(shard, key, stamp, arrival);
        if matches!(merged, Merged::Future { .. }) {
            self.refuse(change, Refused::Key(key.to_bytes()));
        }
        (merged, displaced)
    }

    /// Has the author of a change told that it was refused.
    fn refuse(&self, change: &RemoteChange<'_>, of: Refused) {
        self.domain.inner().refusals.add(Refusal {
            origin: change.origin.clone(),
            cache: self.id,
            of,
            stamp: WriteStamp::of(change.record.stamp, change.origin),
        });
    }

    fn merge_keys(&self, change: &RemoteChange<'_>, keys: Keys<'_>) {
        for key in keys.iter().map(|key| KeyRef::of(self.id, key)) {
            let partition = if self.topic.is_active() { self.partition(key, None) } else { None };
            let mut woken = Woken::default();
            let mut shard = self.shard(key);
            // A removal stores nothing.
            let (merged, _) = self.merge_from(&mut shard, key, change, Arrival::Nothing);
            let evicted =
                matches!(merged, Merged::Removed { evicted: true } | Merged::Future { evicted: true });
            let counter = if evicted { &self.stats.keys_evicted } else { &self.stats.keys_absent };
            counter.count();
            if let Some(partition) = partition {
                self.tell_merged(&mut woken, (partition, key), change, merged);
            }
            drop(shard);
            woken.wake();
        }
    }

    /// What came before a change of everything, a tag or a prefix goes; entries that were written later stay.
    fn merge_whole(&self, change: &RemoteChange<'_>) {
        let slots = change.lanes.slots_of(change.lane);
        let stamp = WriteStamp::of(change.record.stamp, change.origin);
        let wall_ms = self.domain.clock().wall_ms();
        let target = whole_target(&change.record.target);
        if change.record.uncertain {
            self.open_slot_windows(slots);
        }
        if self.domain.log().observe(slots, stamp.at, wall_ms).is_err() {
            // Whether it counts is decided by comparing with the members, once its author has undone it, or its time
            // has come.
            self.stats.future.count();
            self.refuse(change, Refused::of_whole(&target));
            let ahead = Duration::from_millis(stamp.at.wall_ms().saturating_sub(wall_ms));
            let now = self.domain.clock().coarse();
            self.doubts.undone.note_refused_whole(slots, stamp, (now, ahead));
            self.fence_and_tell(slots);
            return;
        }
        let mut shards = self.all_shards();
        let named = self.named_by(&target, slots, &shards);
        let rescued = self.rescued(&named, slots, stamp, &shards);
        match (&named, &target) {
            (NamedKeys::Keys(_), RawTarget::Tag(tag)) => {
                self.exclude(Named::Tag(TagHash::of(self.id, tag)), slots, &mut shards, By::Peer);
            }
            (NamedKeys::Keys(_), RawTarget::Prefix(prefix)) => {
                self.exclude(Named::Prefix(prefix.clone()), slots, &mut shards, By::Peer);
            }
            _ => self.raise_epochs(slots),
        }
        self.note_whole((&named, &target), slots, stamp, &mut shards);
        let mut displaced = Vec::new();
        if matches!((&named, &target), (NamedKeys::Keys(_), RawTarget::Prefix(_))) {
            // What is later is kept where it is, and looks as if it had been named.
            self.doubt(rescued.iter().map(|one| one.key.borrowed().slot()).collect());
        } else {
            displaced = rescued.into_iter().map(|one| self.restore(&mut shards, one)).collect();
        }
        let woken = self.tell_whole(change);
        drop(shards);
        drop(displaced);
        woken.into_iter().for_each(Woken::wake);
    }

    /// What a change without keys names in these slots, where values travel. `shards` are all of them.
    pub(crate) fn named_by(
        &self,
        target: &RawTarget,
        slots: SlotSet,
        shards: &[ShardGuard<'_, V>],
    ) -> NamedKeys {
        let replicas = shards.iter().filter_map(|shard| shard.replica.as_ref());
        let keys = match target {
            RawTarget::Prefix(prefix) if self.has_text() => {
                let starts = |key: KeyRef<'_>| {
                    slots.contains(key.slot())
                        && self.text(key).is_some_and(|text| text.starts_with(prefix.as_bytes()))
                };
                let keys = replicas.flat_map(|replica| replica.iter().map(|(key, _)| KeyRef::from(key)));
                keys.filter(|key| starts(*key)).map(KeyRef::stored).collect()
            }
            RawTarget::Tag(tag) if self.keeps_tags() => {
                let tag = TagHash::of(self.id, tag);
                let tags = shards.iter().filter_map(|shard| shard.tags.as_ref());
                tags.flat_map(|tags| tags.keys_of(tag, TagPlace::first(), slots, usize::MAX).0).collect()
            }
            _ => return NamedKeys::All,
        };
        NamedKeys::Keys(keys)
    }

    /// Notes the removal of what a change has named. `shards` are all of them.
    pub(crate) fn note_whole(
        &self,
        (named, target): (&NamedKeys, &RawTarget),
        slots: SlotSet,
        stamp: WriteStamp,
        shards: &mut [ShardGuard<'_, V>],
    ) {
        let now = self.domain.clock().coarse();
        match named {
            NamedKeys::NotNoted => {}
            NamedKeys::All => {
                let replicas = shards.iter_mut().filter_map(|shard| shard.replica.as_mut());
                replicas.for_each(|replica| replica.clear(slots, stamp));
            }
            NamedKeys::Keys(keys) => {
                let named = match target {
                    RawTarget::Tag(tag) => Some(Named::Tag(TagHash::of(self.id, tag))),
                    RawTarget::Prefix(prefix) => Some(Named::Prefix(prefix.clone())),
                    _ => None,
                };
                // For what was written before and comes after.
                named.into_iter().for_each(|named| self.crossed.note(named, slots, stamp));
                for key in keys.iter().map(StoredKey::borrowed) {
                    let Some(replica) = &mut shards[key.shard()].replica else { continue };
                    if replica.held(key.sought()).is_some_and(|held| held.stamp() < stamp) {
                        replica.remove(key.sought(), stamp, now);
                    }
                }
            }
        }
    }

    /// The entries that a change names, and that were written later: all that it would remove or make unreadable.
    fn rescued(
        &self,
        named: &NamedKeys,
        slots: SlotSet,
        stamp: WriteStamp,
        shards: &[ShardGuard<'_, V>],
    ) -> Vec<Rescued<V>> {
        let later = |key: KeyRef<'_>, held: Held| match held {
            Held::Entry { stamp: written, birth } if written > stamp => {
                let readable = self.is_coherent(key, birth.began, birth.epoch);
                if !readable && matches!(named, NamedKeys::All) {
                    // It stays where it is, as unreadable as before.
                    return None;
                }
                let entry = self.own_entry(key, birth)?;
                let tags = shards[key.shard()].tags.as_ref().and_then(|tags| tags.get(key)).cloned();
                let (key, tags) = (key.stored(), tags.unwrap_or_default());
                Some(Rescued { key, stamp: written, entry, tags, readable })
            }
            _ => None,
        };
        match named {
            NamedKeys::NotNoted => Vec::new(),
            NamedKeys::All => {
                let replicas = shards.iter().filter_map(|shard| shard.replica.as_ref());
                let all = replicas.flat_map(|replica| replica.iter());
                let all = all.filter(|(key, _)| slots.contains(key.slot()));
                all.filter_map(|(key, held)| later(key.into(), held)).collect()
            }
            NamedKeys::Keys(keys) => {
                let held = |key: KeyRef<'_>| shards[key.shard()].replica.as_ref()?.held(key.sought());
                let keys = keys.iter().map(StoredKey::borrowed);
                keys.filter_map(|key| later(key, held(key)?)).collect()
            }
        }
    }

    /// The table's entry of a key, if it is this one. Call under its shard lock.
    pub(crate) fn own_entry(&self, key: KeyRef<'_>, birth: EntryBirth) -> Option<Entry<V>> {
        let own = |entry: &Entry<V>| entry.birth() == birth;
        self.entries.look(&key, |entry| own(entry).then(|| entry.clone()))?
    }

    fn restore(&self, shards: &mut [ShardGuard<'_, V>], rescued: Rescued<V>) -> Option<Entry<V>> {
        let Rescued { key, stamp, entry, tags, readable } = rescued;
        let key = key.borrowed();
        let shard = &mut shards[key.shard()];
        let counts = (entry.began, if readable { self.epoch(key.slot()) } else { entry.epoch });
        let displaced = self.store_again(shard, key, stamp, entry, counts);
        // Afterwards: tags of what the table does not have are forgotten.
        self.set_tags(shard, key, tags);
        displaced
    }

    /// Stores an entry that was there before, as one that counts from another moment on. Call under its key's shard lock.
    /// What it was stored in place of is to be dropped without that lock.
    #[must_use]
    pub(crate) fn store_again(
        &self,
        shard: &mut ShardGuard<'_, V>,
        key: KeyRef<'_>,
        stamp: WriteStamp,
        entry: Entry<V>,
        (began, epoch): (Tick, u32),
    ) -> Option<Entry<V>> {
        let expires = entry.expires;
        let again = Entry::new(entry.into_value(), began, expires, epoch);
        let (_, displaced) = self.entries.put(key, again, |_| ());
        let birth = Birth { began, epoch, ttl: None };
        if let Some(replica) = &mut shard.replica {
            replica.put(key.sought(), stamp, birth.of_entry());
        }
        displaced
    }
}
