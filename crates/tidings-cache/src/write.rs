//! Mutations: what ends a key's flights, changes the table, goes to the log and is told, in one critical section.

use std::time::Duration;

use tidings_proto::codec::CodecError;
use tidings_proto::event::{EventKind, Operation};
use tidings_proto::hlc::Stamp;
use tidings_proto::log::{AppendError, Appended, Sealed, Stuck};
use tidings_proto::receipt::Positions;
use tidings_proto::record::{Draft, DraftTarget, Parts, TooLarge};
use tidings_proto::time::Tick;

use crate::core::{Birth, Core, Displaced, ShardGuard};
use crate::derive::Changed;
use crate::entry::Entry;
use crate::event::{Metadata, WriterId};
use crate::flight::Start;
use crate::key::{Key, KeyError, KeyRef};
use crate::receipt::Written;
use crate::tags::{TagError, Tags};
use crate::topic::Told;

/// A mutation was not made. Nothing has changed, and no peer was told, unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The value cannot be encoded, and so not travel.
    #[error("value cannot be encoded")]
    Value(#[source] CodecError),
    /// The event, or a value that travels, would exceed a limit of the wire format.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// The node is shutting down: peers could not be told. The local entry was removed.
    #[error(transparent)]
    Sealed(#[from] Sealed),
    /// The node's log files can be neither written nor removed, and would be taken for everything that it did: peers could
    /// not be told. The local entry may have been removed. It is tried again all the time: try later, and see to the
    /// directory.
    #[error(transparent)]
    Stuck(#[from] Stuck),
    /// The node has begun to shut down.
    #[error("this node is leaving: it makes no changes any more")]
    Leaving,
    /// Some member may not know of this node yet, so that the change would not count for its bound, and the node is
    /// set to refuse such changes. Try again soon.
    #[error("not every member knows of this node yet")]
    NotKnown,
    /// Another process has this node's id, and keeps it: nobody would be told. Start this one under another id.
    #[error("another process has this node's id")]
    Superseded,
    /// The cache was closed.
    #[error("the cache is closed")]
    Closed,
    /// Tags cannot be used.
    #[error(transparent)]
    Tags(#[from] TagError),
    /// An empty prefix names everything: clear the cache if that is meant.
    #[error("an empty prefix")]
    EmptyPrefix,
    /// Only keys that are strings have prefixes.
    #[error("the keys of this cache are no strings: they have no prefixes")]
    NoText,
    /// A number would leave its type's range.
    #[error("the number would overflow")]
    Overflow,
}

impl From<AppendError> for WriteError {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Sealed(sealed) => Self::Sealed(sealed),
            AppendError::Stuck(stuck) => Self::Stuck(stuck),
        }
    }
}

/// How a mutation is made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) ttl: Option<Duration>,
    pub(crate) metadata: Vec<(String, String)>,
    pub(crate) writer: Option<WriterId>,
    /// Besides those that are computed.
    pub(crate) tags: Vec<String>,
    /// Which version the change has made: what is stored has it, and entries that have seen it are left.
    pub(crate) version: Option<u64>,
    /// It ends a write-through or follows from a change, which a leaving node still waits for.
    pub(crate) ends_write: bool,
    /// What it stands for may still land.
    pub(crate) uncertain: bool,
    /// It began while its key's truth was uncertain: its value is not stored.
    pub(crate) unstored: bool,
    /// When a write-through began, where values travel: of one that lost its flight, a removal of what was before remains.
    pub(crate) began: Option<Stamp>,
}

/// How most mutations are made.
pub(crate) static PLAIN: Options = Options {
    ttl: None,
    metadata: Vec::new(),
    writer: None,
    tags: Vec::new(),
    version: None,
    ends_write: false,
    uncertain: false,
    unstored: false,
    began: None,
};

/// What a node that is leaving does about a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    Refuses,
    Waits,
}

impl Options {
    pub(crate) fn leave(&self) -> Leave {
        if self.ends_write { Leave::Waits } else { Leave::Refuses }
    }

    pub(crate) fn told_metadata(&self) -> Metadata {
        if self.metadata.is_empty() { Metadata::default() } else { self.metadata.clone().into() }
    }
}

/// What becomes of the entry.
pub(crate) enum Change<V> {
    Put(V),
    Remove,
}

/// Under which condition.
#[derive(Clone, Copy, Debug)]
pub(crate) enum When {
    Always,
    /// Only if the key has no readable entry.
    Absent,
    /// Only if it has one.
    Present,
    /// Only if nothing ended this guard.
    Unended(Start),
    /// In any case, but store only if nothing ended this guard; otherwise remove.
    StoreUnended(Start),
}

impl When {
    /// What a change is called that left the entry there is.
    fn kind_of_left<V>(self, change: &Change<V>) -> EventKind {
        match (self, change) {
            (Self::StoreUnended(_), _) | (_, Change::Put(_)) => EventKind::Updated,
            _ => EventKind::Deleted,
        }
    }
}

/// What came of a mutation.
pub(crate) struct Outcome<'a, V> {
    /// `None` if its condition did not hold.
    pub(crate) written: Option<Written<'a>>,
    /// The readable value that a removal took.
    pub(crate) taken: Option<V>,
    /// A value was not stored, for the key's truth was uncertain when the change began.
    pub(crate) withheld: bool,
}

/// What a change made of an entry.
struct Done<V> {
    kind: EventKind,
    /// The readable value that a removal took.
    taken: Option<V>,
    /// What a value was stored in place of, to be dropped without any lock.
    displaced: Option<Entry<V>>,
}

impl<V> Done<V> {
    fn of(kind: EventKind) -> Self {
        Self { kind, taken: None, displaced: None }
    }
}

/// A key with what is needed of it outside the lock.
pub(crate) struct Subject<'a, K> {
    pub(crate) key: KeyRef<'a>,
    pub(crate) typed: Option<&'a K>,
}

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    /// Whether changes can be made.
    pub(crate) fn may_change(&self, leave: Leave) -> Result<(), WriteError> {
        if self.is_closed() {
            Err(WriteError::Closed)
        } else if leave == Leave::Refuses {
            self.domain.may_begin()
        } else {
            Ok(())
        }
    }

    /// Makes one change of one key.
    pub(crate) fn change(
        &self,
        subject: Subject<'_, K>,
        operation: Operation,
        options: &Options,
        when: When,
        change: Change<V>,
    ) -> Result<Outcome<'_, V>, WriteError> {
        let _deriving = self.deriving();
        self.may_change(options.leave())?;
        let (key, options) = (subject.key, &*self.options_for(options));
        if !options.metadata.is_empty() {
            // Before anything is changed, the limit that may be exceeded; that of the key was checked.
            self.draft_with_more(key, EventKind::Deleted, operation, (options, None))?;
        }
        let tags = self.tags_after(&subject, options, &change)?;
        let value = self.travelling(&change, options, &tags)?;
        let partition = if self.topic.is_active() { self.partition(key, subject.typed) } else { None };

        let mut shard = self.shard(key);
        // Once more, for a close that came between: it waits for this lock.
        if self.is_closed() {
            return Err(WriteError::Closed);
        }
        let (now, wall_ms) = self.domain.clock().at_change();
        if let When::Unended(start) | When::StoreUnended(start) = when
            && self.was_named(&shard, key, &tags, start.began)
        {
            shard.flights.end(key);
        }
        let Some(change) = self.condition(&mut shard, key, when, change, now) else {
            return Ok(Outcome { written: None, taken: None, withheld: false });
        };
        let stores = self.stores(&shard, key, options, now);
        let withheld = !stores && self.withholds(&change);
        let value = value.filter(|_| matches!(change, Change::Put(_)));
        let birth = self.birth(&shard, key, when, options, now);
        let Done { kind, taken, displaced } =
            self.change_entry(&mut shard, key, (when, change), (options, stores, tags, birth));
        if options.uncertain {
            self.open_window(&mut shard, key);
        }
        let changed = subject.typed.map(std::slice::from_ref);
        let uncertain = options.uncertain;
        let changed =
            changed.map_or(Changed::Everything { uncertain }, |keys| Changed::keys(keys, uncertain));
        let made = (kind, operation, options, value.as_deref());
        let logged = match self.log_change(&mut shard, key, made, birth, (now, wall_ms)) {
            Ok(logged) => logged,
            Err(error) => {
                drop(shard);
                // Its entry is gone all the same.
                self.derive(changed);
                return Err(error);
            }
        };
        let waiting = partition.map(|partition| {
            let mut told = Told::here(kind, operation, self.domain.origin(), wall_ms);
            if let Some(appended) = &logged {
                told.stamp = appended.stamp;
                told.position = Some((appended.lane, appended.sequence));
            }
            told.metadata = options.told_metadata();
            told.writer = options.writer;
            self.stats.delivered.count();
            self.topic.tell_key(partition, key, told)
        });
        self.stats.mutations.count();
        drop(shard);
        drop(displaced);

        let positions =
            logged.map_or_else(Positions::default, |Appended { lane, sequence, waiters, .. }| {
                waiters.wake();
                Positions::one(lane, sequence)
            });
        if let Some(waiting) = waiting {
            waiting.wake();
        }
        self.tell_local_events();
        self.derive(changed);
        Ok(Outcome { written: Some(self.written(kind, positions)), taken, withheld })
    }

    /// Logs a change that was made, under its key's shard lock, and notes its stamp where values travel.
    #[inline(always)]
    fn log_change(
        &self,
        shard: &mut ShardGuard<'_, V>,
        key: KeyRef<'_>,
        (kind, operation, options, value): (EventKind, Operation, &Options, Option<&[u8]>),
        birth: Birth,
        (now, wall_ms): (Tick, u64),
    ) -> Result<Option<Appended>, WriteError> {
        if !self.travels() {
            return Ok(None);
        }
        let logged = self.log_one(key, kind, operation, (options, value), wall_ms);
        let appended = logged.inspect_err(|_| shard.end(key))?;
        self.wrote(shard, key, appended.stamp, value.is_some().then_some(birth), now);
        Ok(Some(appended))
    }

    #[inline]
    pub(crate) fn written(&self, kind: EventKind, positions: Positions) -> Written<'_> {
        Written { kind, positions, domain: self.travels().then_some(&self.domain) }
    }

    /// The tags of the entry that there will be.
    #[inline]
    pub(crate) fn tags_after(
        &self,
        subject: &Subject<'_, K>,
        options: &Options,
        change: &Change<V>,
    ) -> Result<Tags, TagError> {
        match change {
            Change::Put(value) if !self.settings.invalidator.acts_on_local() => {
                self.tags_of((subject.key, subject.typed), value, &options.tags)
            }
            _ => Ok(Tags::default()),
        }
    }

    #[inline(always)]
    fn draft_one<'a>(
        &self,
        key: KeyRef<'a>,
        kind: EventKind,
        operation: Operation,
        (options, value): (&'a Options, Option<&'a [u8]>),
    ) -> Result<Draft<'a>, TooLarge> {
        Draft::new(Parts {
            kind,
            operation,
            ignorable: false,
            cache: self.id,
            slot: key.slot(),
            version: options.version,
            metadata: &options.metadata,
            value,
            target: DraftTarget::Key(key.bytes),
        })
    }

    /// As [`Core::draft_one`], with what few records say.
    #[inline(never)]
    fn draft_with_more<'a>(
        &self,
        key: KeyRef<'a>,
        kind: EventKind,
        operation: Operation,
        (options, value): (&'a Options, Option<&'a [u8]>),
    ) -> Result<Draft<'a>, TooLarge> {
        let draft = self.draft_one(key, kind, operation, (options, value))?;
        let draft = if options.uncertain { draft.uncertain() } else { draft };
        let depends = options.version.is_some() || value.is_some();
        if depends { draft.with_schema(self.settings.schema) } else { Ok(draft) }
    }

    /// The change to make, or `None` if its condition does not hold. Under the shard lock.
    fn condition(
        &self,
        shard: &mut ShardGuard<'_, V>,
        key: KeyRef<'_>,
        when: When,
        change: Change<V>,
        now: Tick,
    ) -> Option<Change<V>> {
        match when {
            When::Always => Some(change),
            When::Absent | When::Present => {
                let present = self.is_hit(key);
                (present == matches!(when, When::Present)).then_some(change)
            }
            When::Unended(start) | When::StoreUnended(start) => {
                if shard.flights.finish(key, start, self.epoch(key.slot()), now) {
                    return Some(change);
                }
                self.stats.fence_rejects.count();
                matches!(when, When::StoreUnended(_)).then_some(Change::Remove)
            }
        }
    }

    /// Whether a value that is put is stored. Under the shard lock.
    #[inline(always)]
    pub(crate) fn stores(
        &self,
        shard: &ShardGuard<'_, V>,
        key: KeyRef<'_>,
        options: &Options,
        now: Tick,
    ) -> bool {
        // Where values travel, what this node writes is the truth, and every member has to come to the same.
        !self.settings.invalidator.acts_on_local()
            && (!options.unstored && !self.is_uncertain(shard, key, now) || self.replicates())
    }

    /// Whether a value that is not stored would have been, were its key's truth certain. Counts it.
    pub(crate) fn withholds(&self, change: &Change<V>) -> bool {
        let withheld = matches!(change, Change::Put(_)) && !self.settings.invalidator.acts_on_local();
        if withheld {
            self.stats.fence_rejects.count();
        }
        withheld
    }

    /// When and how what a change stores comes to be. Under the shard lock.
    #[inline(always)]
    fn birth(
        &self,
        shard: &ShardGuard<'_, V>,
        key: KeyRef<'_>,
        when: When,
        options: &Options,
        now: Tick,
    ) -> Birth {
        let (began, epoch) = match when {
            // Not the epoch of now: a fence that comes at this moment excludes what began before it.
            When::Unended(start) | When::StoreUnended(start) if !self.replicates() => {
                (start.began, start.epoch)
            }
            _ => (shard.after_mark(now), self.epoch(key.slot())),
        };
        Birth { began, epoch, ttl: options.ttl }
    }

    /// Ends a key's flights and changes the table, tags and versions, under the shard lock.
    #[inline(always)]
    fn change_entry(
        &self,
        shard: &mut ShardGuard<'_, V>,
        key: KeyRef<'_>,
        (when, change): (When, Change<V>),
        (options, stores, tags, birth): (&Options, bool, Tags, Birth),
    ) -> Done<V> {
        if self.is_left(shard, key, &change, options.version) {
            shard.end_flights(key);
            return Done::of(when.kind_of_left(&change));
        }
        let stores = stores && matches!(change, Change::Put(_));
        let (tags, version) = if stores { (tags, options.version) } else { (Tags::default(), None) };
        let kind_of = |displaced| if displaced { EventKind::Updated } else { EventKind::Inserted };
        let done = match change {
            Change::Put(value) if stores => {
                let Displaced { was_hit, entry } = self.put(shard, key, value, birth);
                Done { displaced: entry, ..Done::of(kind_of(was_hit)) }
            }
            Change::Put(_) => {
                shard.end(key);
                Done::of(kind_of(self.evict(key)))
            }
            Change::Remove if matches!(when, When::StoreUnended(_)) => {
                // The value was changed, but what it is now is known to nobody here.
                self.remove_lost(shard, key, options.began);
                return Done::of(EventKind::Updated);
            }
            Change::Remove => {
                shard.end(key);
                Done { taken: self.take(key), ..Done::of(EventKind::Deleted) }
            }
        };
        self.set_tags(shard, key, tags);
        self.set_version(shard, key, version);
        done
    }

    /// Appends to the log, under the shard lock, so that a key's events are in the order of its changes.
    #[inline(always)]
    fn log_one(
        &self,
        key: KeyRef<'_>,
        kind: EventKind,
        operation: Operation,
        (options, value): (&Options, Option<&[u8]>),
        wall_ms: u64,
    ) -> Result<Appended, WriteError> {
        let (log, slot) = (self.domain.log(), key.slot());
        // Twice, so that the draft of most changes is where it was made: to move it would wait for its pieces.
        let appended = if let (Some(began), None) = (options.began, value) {
            log.append_as(slot, began, &self.draft_one(key, kind, operation, (options, None))?)
        } else if options.uncertain || options.version.is_some() || value.is_some() {
            log.append(slot, wall_ms, &self.draft_with_more(key, kind, operation, (options, value))?)
        } else {
            log.append(slot, wall_ms, &self.draft_one(key, kind, operation, (options, None))?)
        };
        if appended.is_err() {
            self.entries.invalidate(&key);
        }
        Ok(appended?)
    }
}
