//! The journal: every change of groups, trims and removals, in the order in which they were made.
//!
//! A journal begins with a snapshot of the state, in many frames. The one before it is kept: its end is the same
//! state, so one damaged byte in a snapshot loses nothing. What is damaged elsewhere is a change that is not known any
//! more, and leaves events open that were settled: those are delivered again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::OpenError;
use super::disk::{Data, Disk};
use super::frame::{self, Found, Walker};
use super::record::{self, Unknown};
use crate::error::StoreError;
use crate::ledger::{Open, Step};
use crate::name::Name;

/// A new journal is begun when this one has grown by so many bytes since its snapshot, and by four times the
/// snapshot: writing snapshots stays a fifth of what is written at most.
const GROWTH_BYTES_MIN: u64 = 4 << 20;
const GROWTH_PER_SNAPSHOT: u64 = 4;

/// What a journal is called until it holds all of its snapshot.
const UNFINISHED: &str = "unfinished";

/// Open events in one frame of a snapshot: a damaged one should lose few.
pub(super) const OPEN_PER_FRAME: usize = 64;

/// Something that was done. Variants are only added at the end: their numbers are on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Change {
    /// A snapshot begins.
    Begin,
    /// Of a snapshot: below the number nothing of the topic is left, and up to the other all was written.
    Topic { topic: Name, floor: u64, last: u64 },
    /// Of a snapshot: a group, without what is open.
    Group { topic: Name, group: Name, next: u64, epoch: u64, paused: bool },
    /// Of a snapshot: some of what is open.
    Open { topic: Name, group: Name, open: Vec<(u64, Open)> },
    /// Of a snapshot: dead letters that are no more.
    Removed { first: u64, last: u64 },
    /// Of a snapshot: the last epoch that was given, the last dead letter.
    Counters { epoch: u64, dead: u64 },
    /// A snapshot ends.
    End,
    /// A group was made.
    Created { topic: Name, group: Name, next: u64, epoch: u64 },
    /// A group was removed.
    Dropped { topic: Name, group: Name },
    /// A group changed.
    Step { topic: Name, group: Name, step: Step },
    /// A topic was trimmed: nothing below the number is left.
    Trimmed { topic: Name, floor: u64 },
    /// Dead letters were removed.
    Purged { first: u64, last: u64 },
    /// The store was closed with so much in a log; `None`: the dead letters'.
    Closed { topic: Option<Name>, last: u64 },
}

impl Change {
    fn is_of_snapshot(&self) -> bool {
        use Change::{Begin, Counters, End, Group, Open, Removed, Topic};
        matches!(
            self,
            Begin | Topic { .. } | Group { .. } | Open { .. } | Removed { .. } | Counters { .. } | End
        )
    }
}

#[derive(Debug)]
pub(super) struct Journal {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    generation: Generation,
    file: Arc<dyn Data>,
    written: u64,
    snapshot: u64,
    buffer: Vec<u8>,
}

/// What was found where the journal should be.
#[derive(Debug, Default)]
pub(super) struct Opened {
    /// Bytes of the newest journal, and of the one before if that was needed, that cannot be read.
    pub(super) damaged: u64,
    /// There was none.
    pub(super) is_new: bool,
    /// The newest does not begin with a whole snapshot, as every journal did when it was put in its place.
    pub(super) is_cut: bool,
}

/// A journal's number, and chance: the name of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Generation {
    number: u64,
    chance: u64,
}

impl Generation {
    fn salt(self) -> u64 {
        frame::salt("journal", self.number, self.chance)
    }

    fn path(self, directory: &Path) -> PathBuf {
        directory.join(format!("{:020}-{:016x}.journal", self.number, self.chance))
    }

    fn parse(name: &str) -> Option<Self> {
        let (number, chance) = name.strip_suffix(".journal")?.split_once('-')?;
        Some(Self { number: number.parse().ok()?, chance: u64::from_str_radix(chance, 16).ok()? })
    }
}

impl Journal {
    /// Opens the journal, or begins one, and shows all changes that make up the state, in their order.
    ///
    /// What a process before this one wrote need not be what the disk keeps: nothing may be built on it before
    /// [`Journal::renew`], unless [`Journal::is_fresh`].
    pub(super) fn open(
        disk: &Arc<dyn Disk>,
        directory: &Path,
        mut show: impl FnMut(Change),
    ) -> Result<(Self, Opened), OpenError> {
        disk.make_directory(directory)?;
        directory.parent().map_or(Ok(()), |parent| disk.sync_directory(parent))?;
        disk.sync_directory(directory)?;
        let generations = generations(&**disk, directory)?;
        let mut journal = Self {
            disk: Arc::clone(disk),
            directory: directory.to_owned(),
            generation: generations.last().copied().unwrap_or(Generation { number: 0, chance: 0 }),
            file: disk.file(&directory.join(UNFINISHED)),
            written: 0,
            snapshot: 0,
            buffer: Vec::new(),
        };
        let Some(&newest) = generations.last() else {
            journal.renew(std::iter::empty())?;
            return Ok((journal, Opened { damaged: 0, is_new: true, is_cut: false }));
        };
        journal.file = disk.file(&newest.path(directory));
        let whole = read(&journal.file, newest, |_| ())?;
        if whole.is_unknown {
            return Err(StoreError::from(Unknown).into());
        }
        let before = generations.iter().rev().nth(1);
        let mut damaged = whole.damaged;
        if let Some(&before) = before.filter(|_| !whole.snapshot_is_sound) {
            let earlier = read(&disk.file(&before.path(directory)), before, &mut show)?;
            if earlier.is_unknown {
                return Err(StoreError::from(Unknown).into());
            }
            damaged += earlier.damaged;
            read(&journal.file, newest, |change| {
                if !change.is_of_snapshot() {
                    show(change);
                }
            })?;
        } else {
            read(&journal.file, newest, &mut show)?;
        }
        (journal.written, journal.snapshot) = (whole.bytes, whole.snapshot);
        Ok((journal, Opened { damaged, is_new: false, is_cut: !whole.snapshot_is_sound }))
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Whether it holds nothing but a snapshot, which the disk was made to keep before it was put in its place.
    pub(super) fn is_fresh(&self) -> bool {
        self.written == self.snapshot && self.buffer.is_empty()
    }

    /// Bytes that wait to be written.
    pub(super) fn waiting(&self) -> usize {
        self.buffer.len()
    }

    pub(super) fn append(&mut self, change: &Change) {
        let offset = self.written + self.buffer.len() as u64;
        append(&mut self.buffer, self.generation, offset, change);
    }

    /// Adds what is no change that is known.
    #[cfg(test)]
    pub(super) fn append_raw(&mut self, body: &[u8]) {
        let offset = self.written + self.buffer.len() as u64;
        frame::append(&mut self.buffer, self.generation.salt(), offset, |out| out.extend_from_slice(body));
    }

    pub(super) fn flush(&mut self, sync: bool) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.file.write_all_at(&self.buffer, self.written)?;
        if sync {
            self.file.sync()?;
        }
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        // One large step should not be held for ever.
        self.buffer.shrink_to(1 << 20);
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    /// Whether it has grown enough to begin another one.
    pub(super) fn is_long(&self) -> bool {
        let growth = self.written.saturating_sub(self.snapshot);
        growth > GROWTH_BYTES_MIN.max(self.snapshot * GROWTH_PER_SNAPSHOT)
    }

    /// Begins another journal with a snapshot, and forgets the one before the last. Everything that the snapshot
    /// stands for has to be on disk.
    pub(super) fn renew(&mut self, state: impl Iterator<Item = Change>) -> io::Result<()> {
        assert!(self.buffer.is_empty(), "a snapshot stands for what was written");
        let generation = Generation { number: self.generation.number + 1, chance: rand::random() };
        let unfinished = self.directory.join(UNFINISHED);
        let file = self.disk.create(&unfinished)?;
        let (mut buffer, mut written) = (Vec::new(), 0);
        for change in std::iter::once(Change::Begin).chain(state).chain(std::iter::once(Change::End)) {
            let offset = written + buffer.len() as u64;
            append(&mut buffer, generation, offset, &change);
            if buffer.len() >= 1 << 20 {
                file.write_all_at(&buffer, written)?;
                written += buffer.len() as u64;
                buffer.clear();
            }
        }
        file.write_all_at(&buffer, written)?;
        written += buffer.len() as u64;
        file.sync()?;
        let path = generation.path(&self.directory);
        self.disk.rename(&unfinished, &path)?;
        self.disk.sync_directory(&self.directory)?;
        self.file = self.disk.file(&path);
        (self.generation, self.written, self.snapshot) = (generation, written, written);
        for old in generations(&*self.disk, &self.directory)? {
            if old.number + 1 < generation.number {
                self.disk.remove(&old.path(&self.directory))?;
            }
        }
        Ok(())
    }

    /// Bytes of both journals that cannot be read.
    pub(super) fn verify(&self) -> io::Result<u64> {
        let mut damaged = 0;
        for generation in generations(&*self.disk, &self.directory)? {
            let file = self.disk.file(&generation.path(&self.directory));
            damaged += read(&file, generation, |_| ())?.damaged;
        }
        Ok(damaged)
    }
}

struct Read {
    bytes: u64,
    damaged: u64,
    snapshot: u64,
    snapshot_is_sound: bool,
    /// A later release wrote something of it.
    is_unknown: bool,
}

fn read(file: &Arc<dyn Data>, generation: Generation, mut show: impl FnMut(Change)) -> io::Result<Read> {
    let bytes = file.length()?;
    let mut walker = Walker::new(Arc::clone(file), generation.salt(), 0, bytes);
    let mut read = Read { bytes, damaged: 0, snapshot: 0, snapshot_is_sound: false, is_unknown: false };
    while let Some(found) = walker.next()? {
        match found {
            Found::Damage { bytes, .. } => read.damaged += bytes,
            Found::Frame { offset, length } => match record::decode(walker.body(offset, length)) {
                Ok(change) => {
                    if matches!(change, Change::End) && read.damaged == 0 {
                        read.snapshot_is_sound = true;
                    }
                    show(change);
                }
                Err(Unknown) => {
                    read.is_unknown = true;
                    read.damaged += length as u64;
                }
            },
        }
        if !read.snapshot_is_sound {
            read.snapshot = walker.offset();
        }
    }
    Ok(read)
}

fn append(out: &mut Vec<u8>, generation: Generation, offset: u64, change: &Change) {
    frame::append(out, generation.salt(), offset, |out| record::encode(change, out));
}

fn generations(disk: &dyn Disk, directory: &Path) -> io::Result<Vec<Generation>> {
    let names = disk.list(directory)?;
    let mut generations: Vec<_> = names.iter().filter_map(|(name, _)| Generation::parse(name)).collect();
    generations.sort_unstable();
    Ok(generations)
}
