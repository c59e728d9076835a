//! The store as its thread has it: all state, all files, one change after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::dirname;
use super::disk::{Disk, Lock, System};
use super::journal::{Change, Journal, OPEN_PER_FRAME};
use super::log::{Known, Log};
use super::moment::Moment;
use super::publish::KnownKeys;
use super::ranges::Ranges;
use super::record::{self, DeadHeader};
use super::replay::{self, Replayed};
use super::{Config, OpenError};
use crate::call::{Damage, Durability, Place};
use crate::error::StoreError;
use crate::id::Timestamp;
use crate::ledger::{Ledger, Step};
use crate::name::Name;

/// A store that does not sync what it acknowledges syncs so often.
const RELAXED_SYNC_EVERY: Duration = Duration::from_secs(1);

/// The directory that a store is in, within the one that is opened: its layout. Another one would lie beside it.
pub const LAYOUT: &str = "v1";

#[derive(Debug)]
pub(super) struct Stored {
    pub(super) log: Log,
    /// Nothing below it is left.
    pub(super) floor: u64,
    /// The floor that the journal knows: files below it can be freed.
    pub(super) noted: u64,
    /// The moment of the event at the floor, if it was read already: the floor, and the moment.
    pub(super) oldest: Option<(u64, Timestamp)>,
    /// Of what is left.
    pub(super) bytes: u64,
    pub(super) last_time: Timestamp,
    pub(super) groups: BTreeMap<Name, Group>,
    /// Read from the log when the first key is asked about: only then the window is known.
    pub(super) keys: KnownKeys,
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) ledger: Ledger,
    pub(super) redeliveries: u64,
}

impl Group {
    pub(super) fn new(ledger: Ledger) -> Self {
        Self { ledger, redeliveries: 0 }
    }
}

impl Stored {
    /// The lowest number that a group needs; beyond everything without groups.
    pub(super) fn lowest(&self) -> u64 {
        self.groups.values().map(|group| group.ledger.lowest()).min().unwrap_or(u64::MAX)
    }

    /// How many events are left, those that cannot be read included.
    pub(super) fn events(&self) -> u64 {
        (self.log.last() + 1).saturating_sub(self.floor)
    }
}

/// A topic, a group of it, and how many of its events became dead letters.
pub(super) type GivenUp = (Name, Name, u64);

pub(super) struct Store {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    /// Held as long as the store is open.
    lock: Lock,
    config: Config,
    moment: Moment,
    pub(super) topics: BTreeMap<Name, Stored>,
    pub(super) dead: Log,
    pub(super) removed: Ranges,
    pub(super) journal: Journal,
    epoch: u64,
    failed: Option<StoreError>,
    /// Topics where something may have become available.
    woken: BTreeSet<Name>,
    /// Topics with something to write or to free.
    touched: BTreeSet<Name>,
    /// What could not be read when the store was opened.
    pub(super) found: Vec<Damage>,
    synced: Timestamp,
    unsynced: bool,
    /// Bytes that were taken in or are to be handed out, and wait for the next flush.
    pub(super) waiting: usize,
    /// What nobody had settled in time and somebody who took events made dead letters of: of each topic and group how
    /// many that are not written yet, and that are written and nobody was told of.
    given_up: Vec<GivenUp>,
    buried: Vec<GivenUp>,
    /// Whether it was said that files cannot be freed.
    complained: bool,
}

impl Store {
    pub(super) fn open(path: &Path, config: &Config) -> Result<Self, OpenError> {
        Self::open_on(Arc::new(System::default()), path, config)
    }

    pub(super) fn open_on(disk: Arc<dyn Disk>, path: &Path, config: &Config) -> Result<Self, OpenError> {
        let root = path.join(LAYOUT);
        disk.make_directory(&root.join("topics"))?;
        // Also what a process before this one made and was killed before it could say so to the disk.
        for directory in [root.as_path(), path, path.parent().unwrap_or(path)] {
            if !directory.as_os_str().is_empty() {
                disk.sync_directory(directory)?;
            }
        }
        let lock = disk.lock(&root.join("lock"))?.ok_or_else(|| OpenError::InUse(root.clone()))?;
        Self::open_locked(disk, root, lock, config.clone())
    }

    fn open_locked(
        disk: Arc<dyn Disk>,
        root: PathBuf,
        lock: Lock,
        config: Config,
    ) -> Result<Self, OpenError> {
        let mut replayed = Replayed::default();
        let (journal, opened) = Journal::open(&disk, &root.join("journal"), |change| replayed.apply(change))?;
        for name in dirname::listed(&disk.list(&root.join("topics"))?) {
            replayed.topics.entry(name).or_default();
        }
        let mut found = Vec::new();
        let is_missing = opened.is_new && !replayed.topics.is_empty();
        if opened.damaged > 0 || opened.is_cut || is_missing {
            found.push(Damage { place: Place::Groups, ids: None, bytes: opened.damaged });
        }
        let mut topics = BTreeMap::new();
        let mut retried = Vec::new();
        for (name, topic) in replayed.topics {
            let directory = root.join("topics").join(dirname::encode(&name));
            let stored = replay::open_topic(&disk, &directory, topic, |dead| retried.push(dead))?;
            topics.insert(name, stored);
        }
        // What is known to have been retried was a dead letter, also where its log has lost it since.
        let known = retried.iter().copied().max().unwrap_or(0).max(replayed.dead);
        let (dead, buried) = open_dead(&disk, &root.join("dead"), Known { least: known + 1, kept: known })?;
        let topics_to_free = topics.keys().cloned().collect();
        let seen = topics.values().map(|topic| topic.last_time).max().unwrap_or_default();
        let mut store = Self {
            disk,
            root,
            lock,
            moment: Moment::new(seen, (config.clock)()),
            topics,
            dead,
            removed: replayed.removed,
            journal,
            epoch: replayed.epoch,
            failed: None,
            woken: BTreeSet::new(),
            touched: topics_to_free,
            found,
            synced: Timestamp::default(),
            unsynced: false,
            waiting: 0,
            given_up: Vec::new(),
            buried: Vec::new(),
            complained: false,
            config,
        };
        store.put_right(buried, retried)?;
        Ok(store)
    }

    /// A store that failed takes up again what its files hold: what was answered, and of what was not some more.
    pub(super) fn recover(&mut self) -> Result<(), OpenError> {
        let (disk, root) = (Arc::clone(&self.disk), self.root.clone());
        let mut store = Self::open_locked(disk, root, Arc::clone(&self.lock), self.config.clone())?;
        // It never goes back, whatever became of what was done last.
        store.moment = self.moment;
        // What could not be read then was left out when the journal was written anew, and is there no more to be found.
        let mut found = std::mem::take(&mut self.found);
        for damage in std::mem::take(&mut store.found) {
            if !found.contains(&damage) {
                found.push(damage);
            }
        }
        store.found = found;
        store.buried = std::mem::take(&mut self.buried);
        store.woken = self.topics.keys().cloned().collect();
        *self = store;
        Ok(())
    }

    /// Has the state know what one file says that another had no time to, and the disk keep what the state is.
    fn put_right(&mut self, buried: Vec<DeadHeader>, retried: Vec<u64>) -> Result<(), StoreError> {
        for header in buried {
            let group = self.topics.get(&header.topic).and_then(|topic| topic.groups.get(&header.group));
            let is_its = |group: &&Group| group.ledger.epoch() == header.epoch;
            if group.filter(is_its).is_some_and(|group| group.ledger.open().contains_key(&header.event)) {
                self.step(&header.topic, &header.group, Step::Settled { id: header.event });
            }
        }
        for dead in retried {
            self.remove_dead(dead);
        }
        for damage in &self.found {
            tracing::warn!(
                ?damage,
                "a part of the store of streams cannot be read: what groups settled is delivered again"
            );
        }
        // Nothing is written behind what cannot be read, nor behind what the disk need not keep.
        if !self.found.is_empty() || !self.journal.is_fresh() {
            self.renew_journal()?;
        }
        self.flush()
    }

    /// The moment: never earlier than the last one, whatever the clock says.
    pub(super) fn now(&mut self) -> Timestamp {
        self.moment.pass((self.config.clock)())
    }

    pub(super) fn next_epoch(&mut self) -> u64 {
        self.epoch += 1;
        self.epoch
    }

    pub(super) fn failed(&self) -> Option<&StoreError> {
        self.failed.as_ref()
    }

    /// Bytes that are held until the next flush. None once one has failed: nothing is written any more, and whoever
    /// asks has to be told so.
    pub(super) fn held(&self) -> usize {
        if self.failed.is_some() { 0 } else { self.waiting + self.journal.waiting() }
    }

    pub(super) fn wake(&mut self, topic: &Name) {
        if !self.woken.contains(topic) {
            self.woken.insert(topic.clone());
        }
    }

    /// Has a topic looked at when the next flush writes and frees.
    pub(super) fn touch(&mut self, topic: &Name) {
        if !self.touched.contains(topic) {
            self.touched.insert(topic.clone());
        }
    }

    pub(super) fn take_woken(&mut self) -> BTreeSet<Name> {
        std::mem::take(&mut self.woken)
    }

    /// A topic, made if there is none.
    pub(super) fn topic_or_new(&mut self, name: &Name) -> Result<&mut Stored, StoreError> {
        if !self.topics.contains_key(name) {
            let directory = self.root.join("topics").join(dirname::encode(name));
            let stored = replay::open_topic(&self.disk, &directory, replay::Topic::default(), |_| ())?;
            self.topics.insert(name.clone(), stored);
            // So that events of the beginning are missed if they are lost.
            self.journal.append(&Change::Trimmed { topic: name.clone(), floor: 1 });
            self.touch(name);
        }
        Ok(self.topics.get_mut(name).expect("it was put there"))
    }

    /// Changes a group, and notes that it did.
    pub(super) fn step(&mut self, topic: &Name, group: &Name, step: Step) {
        let found = self.topics.get_mut(topic).and_then(|stored| stored.groups.get_mut(group));
        let Some(found) = found else { return };
        found.ledger.apply(&step);
        self.journal.append(&Change::Step { topic: topic.clone(), group: group.clone(), step });
    }

    /// Notes that a dead letter is no more. Whether there was one.
    pub(super) fn remove_dead(&mut self, id: u64) -> bool {
        let is_new = id <= self.dead.last() && self.removed.insert(id);
        if is_new {
            self.journal.append(&Change::Purged { first: id, last: id });
        }
        is_new
    }

    /// Notes dead letters of which those who watch burials are to be told once they are written.
    pub(super) fn note_given_up(&mut self, topic: &Name, group: &Name, events: u64) {
        match self.given_up.last_mut().filter(|last| (&last.0, &last.1) == (topic, group)) {
            Some(last) => last.2 += events,
            None if events > 0 => self.given_up.push((topic.clone(), group.clone(), events)),
            None => {}
        }
    }

    /// What was written of it.
    pub(super) fn take_buried(&mut self) -> Vec<GivenUp> {
        std::mem::take(&mut self.buried)
    }

    /// Whether there is anything to write.
    pub(super) fn is_dirty(&self) -> bool {
        self.journal.is_dirty() || self.dead.is_dirty() || !self.touched.is_empty()
    }

    /// Writes what was done since the last time. Until it is written nobody is told.
    ///
    /// Events and dead letters come first: what the journal says about them has to be there.
    pub(super) fn flush(&mut self) -> Result<(), StoreError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.waiting = 0;
        let flushed = self.flush_files();
        if let Err(error) = &flushed {
            tracing::error!(error = error as &dyn std::error::Error, "the store of streams failed");
            self.failed = Some(error.clone());
            // What of it is there is known when it is taken up again, and need not be all.
            self.given_up.clear();
        }
        self.buried.append(&mut self.given_up);
        flushed
    }

    fn flush_files(&mut self) -> Result<(), StoreError> {
        let sync = self.config.durability != Durability::Relaxed;
        self.unsynced |= self.is_dirty();
        for name in &self.touched {
            if let Some(topic) = self.topics.get_mut(name) {
                topic.log.flush(sync)?;
            }
        }
        // Of two files either may reach the disk first: what the journal says was given up has to be there.
        self.dead.flush(true)?;
        self.journal.flush(sync)?;
        if !sync && self.unsynced && self.moment.last().since(self.synced) >= RELAXED_SYNC_EVERY {
            self.sync()?;
        }
        if self.journal.is_long() {
            self.renew_journal()?;
        }
        self.free()
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        for topic in self.topics.values_mut() {
            topic.log.sync()?;
        }
        self.dead.sync()?;
        self.journal.sync()?;
        (self.synced, self.unsynced) = (self.moment.last(), false);
        Ok(())
    }

    /// Frees files of what was trimmed and removed: only once that is written, and kept by the disk also where other
    /// changes are not yet. What was freed and not known to be would look like damage.
    fn free(&mut self) -> Result<(), StoreError> {
        let dead = self.removed.first_missing(self.dead.first().max(1));
        let noted = self.touched.iter().filter_map(|name| self.topics.get(name));
        let frees =
            self.dead.would_free(dead) || noted.into_iter().any(|topic| topic.log.would_free(topic.noted));
        if frees && self.unsynced {
            self.sync()?;
        }
        let mut freed = Ok(());
        for name in std::mem::take(&mut self.touched) {
            if let Some(topic) = self.topics.get_mut(&name) {
                let dropped = topic.log.drop_below(topic.noted);
                freed = freed.and(dropped);
            }
        }
        let dropped = self.dead.drop_below(dead);
        freed = freed.and(dropped);
        // Nothing that is stored depends on it: it is tried again.
        if let (Err(error), false) = (&freed, self.complained) {
            tracing::warn!(error = error as &dyn std::error::Error, "files of streams cannot be freed");
        }
        self.complained = freed.is_err();
        Ok(())
    }

    /// Has the journal know where a topic begins.
    pub(super) fn note_floor(&mut self, name: &Name) {
        let Some(stored) = self.topics.get_mut(name) else { return };
        if stored.noted < stored.floor {
            stored.noted = stored.floor;
            self.journal.append(&Change::Trimmed { topic: name.clone(), floor: stored.floor });
            self.touch(name);
        }
    }

    fn renew_journal(&mut self) -> Result<(), StoreError> {
        // What was changed meanwhile is in the snapshot. Its events have to be on disk before it.
        self.flush_logs_synced()?;
        self.journal.flush(true)?;
        let counters = Change::Counters { epoch: self.epoch, dead: self.dead.last() };
        self.journal.renew(std::iter::once(counters).chain(snapshot(&self.topics, &self.removed)))?;
        Ok(())
    }

    fn flush_logs_synced(&mut self) -> Result<(), StoreError> {
        for topic in self.topics.values_mut() {
            topic.log.flush(true)?;
            topic.log.sync()?;
        }
        self.dead.flush(true)?;
        self.dead.sync()?;
        Ok(())
    }

    /// Writes what is left, and how far everything had come: what is missing when it is opened again is damage.
    pub(super) fn close(&mut self) -> Result<(), StoreError> {
        let names: Vec<Name> = self.topics.keys().cloned().collect();
        names.iter().for_each(|name| self.note_floor(name));
        let lasts: Vec<Change> = self
            .topics
            .iter()
            .map(|(name, topic)| Change::Closed { topic: Some(name.clone()), last: topic.log.last() })
            .chain(std::iter::once(Change::Closed { topic: None, last: self.dead.last() }))
            .collect();
        self.flush()?;
        // What is said to be there is not looked at again: the disk has to keep it before.
        self.sync()?;
        lasts.iter().for_each(|last| self.journal.append(last));
        self.flush()?;
        self.sync()
    }
}

/// Made as it is written: of what many groups have open there should not be a copy.
fn snapshot(topics: &BTreeMap<Name, Stored>, removed: &Ranges) -> impl Iterator<Item = Change> {
    let removed = removed.iter().map(|(first, last)| Change::Removed { first, last });
    let topics = topics.iter().flat_map(|(name, stored)| {
        let topic = Change::Topic { topic: name.clone(), floor: stored.floor, last: stored.log.last() };
        let groups =
            stored.groups.iter().flat_map(|(group, held)| snapshot_of_group(name, group, &held.ledger));
        std::iter::once(topic).chain(groups)
    });
    removed.chain(topics)
}

fn snapshot_of_group(topic: &Name, group: &Name, ledger: &Ledger) -> impl Iterator<Item = Change> {
    let begin = Change::Group {
        topic: topic.clone(),
        group: group.clone(),
        next: ledger.next(),
        epoch: ledger.epoch(),
        paused: ledger.paused(),
    };
    let mut left = ledger.open().iter();
    let open = std::iter::from_fn(move || {
        let open: Vec<_> = left.by_ref().take(OPEN_PER_FRAME).map(|(id, open)| (*id, open.clone())).collect();
        let (topic, group) = (topic.clone(), group.clone());
        (!open.is_empty()).then_some(Change::Open { topic, group, open })
    });
    std::iter::once(begin).chain(open)
}

/// Opens the log of dead letters, and those that were written last.
fn open_dead(
    disk: &Arc<dyn Disk>,
    directory: &Path,
    known: Known,
) -> Result<(Log, Vec<DeadHeader>), OpenError> {
    let mut buried = Vec::new();
    let dead = Log::open(disk, directory, known, |found| buried.push(record::dead_header(found)))?;
    let buried = buried.into_iter().collect::<Result<_, _>>().map_err(StoreError::from)?;
    Ok((dead, buried))
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
