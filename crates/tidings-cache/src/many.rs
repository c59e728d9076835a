//! Changes of many keys at once.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use bytes::Bytes;
use tidings_proto::event::{EventKind, Operation};
use tidings_proto::id::Slot;
use tidings_proto::receipt::Positions;
use tidings_proto::record::{Draft, DraftTarget, KEY_BYTES_MAX, METADATA_BYTES_MAX, Parts, RECORD_BYTES_MAX};
use tidings_proto::time::Tick;
use tidings_proto::wake::Waiters;

use crate::core::{Birth, Core, Displaced, ShardGuard};
use crate::derive::Changed;
use crate::entry::Entry;
use crate::key::{Encoded, Key, KeyRef};
use crate::receipt::Written;
use crate::tags::Tags;
use crate::topic::{Told, Woken};
use crate::write::{Change, Options, Subject, WriteError};

/// Most keys in one record; a larger change becomes several.
const KEYS_PER_RECORD_MAX: usize = 256;

/// Most bytes of keys in one record: what is left beside metadata, lengths and the rest of it is ample.
const KEY_BYTES_PER_RECORD_MAX: usize = RECORD_BYTES_MAX / 2;

/// Most keys changed under one hold of the shard locks, so that no reader of a miss waits for long.
const KEYS_PER_HOLD_MAX: usize = 1_024;

struct One<V> {
    encoded: Encoded,
    partition: Option<usize>,
    tags: Tags,
    change: Option<Change<V>>,
    /// What its value was stored in place of, to be dropped without any lock.
    displaced: Option<Entry<V>>,
}

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    /// Makes several changes. Every key is judged before any is changed.
    pub(crate) fn change_many(
        &self,
        changes: impl IntoIterator<Item = (K, Change<V>)>,
        operation: Operation,
        options: &Options,
    ) -> Result<Written<'_>, WriteError> {
        if self.replicates() {
            return self.change_each(changes, operation, options);
        }
        let deriving = self.deriving();
        self.may_change(options.leave())?;
        self.draft_many(operation, options, Slot::of_hash(0), DraftTarget::Keys(&[]))?;
        let active = self.topic.is_active();
        let (mut all, mut keys) = (Vec::new(), Vec::new());
        for (key, change) in changes {
            let encoded = Encoded::new(self.id, &key)?;
            let partition = if active { self.partition(encoded.borrowed(), Some(&key)) } else { None };
            let subject = Subject { key: encoded.borrowed(), typed: Some(&key) };
            let tags = self.tags_after(&subject, options, &change)?;
            all.push(One { encoded, partition, tags, change: Some(change), displaced: None });
            if deriving.is_some() {
                keys.push(key);
            }
        }
        let mut telling = Telling::default();
        let mut chunks = all.chunks_mut(KEYS_PER_HOLD_MAX);
        let changed = chunks.try_for_each(|some| self.change_some(some, operation, options, &mut telling));
        self.tell_local_events();
        if telling.counted || changed.is_ok() {
            // Also if it failed half way.
            self.derive(Changed::keys(&keys, options.uncertain));
        }
        changed.map_err(Unmade::into_error)?;
        let kind = match operation {
            Operation::Insert if telling.any_new => EventKind::Inserted,
            Operation::Insert => EventKind::Updated,
            _ => EventKind::Deleted,
        };
        Ok(self.written(kind, telling.positions))
    }

    fn change_some(
        &self,
        some: &mut [One<V>],
        operation: Operation,
        options: &Options,
        telling: &mut Telling,
    ) -> Result<(), Unmade> {
        let mut shards = self.shards_of(some.iter().map(|one| one.encoded.borrowed()));
        if self.is_closed() {
            return Err(Unmade::Failed(WriteError::Closed));
        }
        let now = self.domain.clock().coarse();
        let mut by_kind: [Vec<usize>; 3] = Default::default();
        // A value's `clone` or the weigher may panic: of what was changed by then others are told all the same.
        let changing = catch_unwind(AssertUnwindSafe(|| {
            for (index, one) in some.iter_mut().enumerate() {
                let key = one.encoded.borrowed();
                let shard = shards[key.shard()].as_mut().expect("the shards of all keys are locked");
                let done = self.change_one(shard, one, (options, now));
                by_kind[done as usize].push(index);
            }
        }));
        telling.any_new |= !by_kind[Done::Inserted as usize].is_empty();
        let mut result = Ok(());
        for (kind, indices) in
            [EventKind::Inserted, EventKind::Updated, EventKind::Deleted].iter().zip(&by_kind)
        {
            if result.is_ok() {
                result = self.log_and_tell(some, *kind, indices, operation, options, telling);
            }
        }
        if result.is_err() {
            for one in &*some {
                let key = one.encoded.borrowed();
                self.entries.invalidate(&key);
                if let Some(shard) = &mut shards[key.shard()] {
                    shard.end(key);
                }
            }
        }
        // Under the locks, so that a close sees it; and also if it failed half way, as others count it.
        let any = by_kind.iter().any(|indices| !indices.is_empty());
        if (result.is_ok() && any || telling.begun) && !std::mem::replace(&mut telling.counted, true) {
            self.stats.mutations.count();
        }
        drop(shards);
        telling.wake();
        changing.map_err(Unmade::Panicked)?;
        result.map_err(Unmade::Failed)
    }

    /// Changes the table, tags and versions of one key, under its shard's lock.
    fn change_one(
        &self,
        shard: &mut ShardGuard<'_, V>,
        one: &mut One<V>,
        (options, now): (&Options, Tick),
    ) -> Done {
        let key = one.encoded.borrowed();
        let change = one.change.take().expect("each change is made once");
        let stores = self.stores(shard, key, options, now);
        if !stores {
            self.withholds(&change);
        }
        let (done, displaced) = self.change_table(shard, key, change, (options, stores, now));
        one.displaced = displaced;
        self.set_tags(shard, key, if stores { std::mem::take(&mut one.tags) } else { Tags::default() });
        self.set_version(shard, key, None);
        if options.uncertain {
            self.open_window(shard, key);
        }
        done
    }

    fn change_table(
        &self,
        shard: &mut ShardGuard<'_, V>,
        key: KeyRef<'_>,
        change: Change<V>,
        (options, stores, now): (&Options, bool, Tick),
    ) -> (Done, Option<Entry<V>>) {
        let put = |displaced| if displaced { Done::Updated } else { Done::Inserted };
        match change {
            Change::Remove => {
                shard.end(key);
                self.entries.invalidate(&key);
                (Done::Deleted, None)
            }
            Change::Put(_) if !stores => {
                shard.end(key);
                (put(self.evict(key)), None)
            }
            Change::Put(value) => {
                let epoch = self.epoch(key.slot());
                let birth = Birth { began: shard.after_mark(now), epoch, ttl: options.ttl };
                let Displaced { was_hit, entry } = self.put(shard, key, value, birth);
                (put(was_hit), entry)
            }
        }
    }

    fn log_and_tell(
        &self,
        some: &[One<V>],
        kind: EventKind,
        indices: &[usize],
        operation: Operation,
        options: &Options,
        telling: &mut Telling,
    ) -> Result<(), WriteError> {
        let wall_ms = self.domain.clock().wall_ms();
        let mut told = Told::here(kind, operation, self.domain.origin(), wall_ms);
        told.metadata = options.told_metadata();
        told.writer = options.writer;
        let lanes = self.domain.log().lanes();
        for lane in lanes.ids() {
            let of_lane = |index: &&usize| lanes.lane_of(some[**index].encoded.borrowed().slot()) == lane;
            let of_lane: Vec<usize> = indices.iter().filter(of_lane).copied().collect();
            for chunk in records(&of_lane, |index| some[index].encoded.borrowed().bytes.len()) {
                if self.travels() {
                    let keys: Vec<Bytes> =
                        chunk.iter().map(|index| some[*index].encoded.borrowed().to_bytes()).collect();
                    let slot = some[chunk[0]].encoded.borrowed().slot();
                    // Others count a change by its first record.
                    let target =
                        if telling.begun { DraftTarget::MoreKeys(&keys) } else { DraftTarget::Keys(&keys) };
                    let mut draft = self.draft_many(operation, options, slot, target)?;
                    draft.set_kind(kind);
                    let draft = if options.uncertain { draft.uncertain() } else { draft };
                    let appended = self.domain.log().append(slot, wall_ms, &draft)?;
                    told.position = Some((appended.lane, appended.sequence));
                    told.stamp = appended.stamp;
                    telling.begun = true;
                    telling.positions.add(appended.lane, appended.sequence);
                    telling.log.push(appended.waiters);
                }
                let partitioned = chunk.iter().filter_map(|index| {
                    let one = &some[*index];
                    Some((one.partition?, one.encoded.borrowed().to_bytes()))
                });
                let partitioned: Vec<_> = partitioned.collect();
                if !partitioned.is_empty() {
                    self.stats.delivered.count();
                    telling.rings.push(self.topic.tell_keys(&partitioned, &told));
                }
            }
        }
        Ok(())
    }

    fn draft_many<'a>(
        &self,
        operation: Operation,
        options: &'a Options,
        slot: Slot,
        target: DraftTarget<'a>,
    ) -> Result<Draft<'a>, WriteError> {
        Ok(Draft::new(Parts {
            kind: EventKind::Deleted,
            operation,
            ignorable: false,
            cache: self.id,
            slot,
            version: None,
            metadata: &options.metadata,
            value: None,
            target,
        })?)
    }
}

/// Cuts keys into runs that each fit one record.
fn records(mut keys: &[usize], bytes_of: impl Fn(usize) -> usize) -> impl Iterator<Item = &[usize]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |index: &&usize| {
            bytes += bytes_of(**index);
            bytes <= KEY_BYTES_PER_RECORD_MAX
        };
        let count = keys.iter().take(KEYS_PER_RECORD_MAX).take_while(fits).count();
        let (run, rest) = keys.split_at(count);
        keys = rest;
        (!run.is_empty()).then_some(run)
    })
}

const _: () = assert!(
    KEY_BYTES_MAX <= KEY_BYTES_PER_RECORD_MAX
        && KEY_BYTES_PER_RECORD_MAX + 16 * KEYS_PER_RECORD_MAX + 2 * METADATA_BYTES_MAX <= RECORD_BYTES_MAX,
    "every key fits a record, and every run of keys does"
);

/// Why a change of many keys ended half way.
enum Unmade {
    Failed(WriteError),
    /// User code did, with this.
    Panicked(Box<dyn Any + Send>),
}

impl Unmade {
    /// # Panics
    /// With the user's panic.
    fn into_error(self) -> WriteError {
        match self {
            Self::Failed(error) => error,
            Self::Panicked(panic) => resume_unwind(panic),
        }
    }
}

/// What became of one key; the index of its kind.
#[derive(Clone, Copy)]
enum Done {
    Inserted = 0,
    Updated = 1,
    Deleted = 2,
}

/// How far others have been told of one change.
#[derive(Default)]
struct Telling {
    /// The log has a record of it.
    begun: bool,
    /// It was counted.
    counted: bool,
    /// A value was stored under a key that had none.
    any_new: bool,
    /// Where the log has it.
    positions: Positions,
    /// Readers to wake after the shards are unlocked.
    log: Vec<Waiters>,
    /// As `log`.
    rings: Vec<Woken>,
}

impl Telling {
    fn wake(&mut self) {
        self.log.drain(..).for_each(Waiters::wake);
        self.rings.drain(..).for_each(Woken::wake);
    }
}
