//! The journal: every change of groups, trims and removals, in the order in which they were made.
//!
//! A journal begins with a snapshot of the state, in many frames. The one before it is kept: its end is the same
//! state, so one damaged byte in a snapshot loses nothing. What is damaged elsewhere is a change that is not known any
//! more, and leaves events open that were settled: those are delivered again.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidings_proto::codec;

use super::frame::{self, Found, Walker};
use super::log::sync_directory;
use crate::ledger::{Open, Step};
use crate::name::Name;

/// A new journal is begun when this one has grown by so many bytes since its snapshot, and by four times the
/// snapshot: writing snapshots stays a fifth of what is written at most.
const GROWTH_BYTES_MIN: u64 = 4 << 20;
const GROWTH_PER_SNAPSHOT: u64 = 4;

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
    directory: PathBuf,
    generation: u64,
    file: File,
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

impl Journal {
    /// Opens the journal, or begins one, and shows all changes that make up the state, in their order.
    pub(super) fn open(directory: &Path, mut show: impl FnMut(Change)) -> io::Result<(Self, Opened)> {
        if !directory.exists() {
            std::fs::create_dir(directory)?;
        }
        directory.parent().map_or(Ok(()), sync_directory)?;
        let generations = generations(directory)?;
        let Some(&newest) = generations.last() else {
            let mut journal = Self {
                directory: directory.to_owned(),
                generation: 0,
                file: File::open(directory)?,
                written: 0,
                snapshot: 0,
                buffer: Vec::new(),
            };
            journal.renew(std::iter::empty())?;
            return Ok((journal, Opened { damaged: 0, is_new: true, is_cut: false }));
        };
        // What is found here is built upon. A process that was killed need not have had the disk keep it.
        for generation in &generations {
            File::open(file_of(directory, *generation))?.sync_data()?;
        }
        sync_directory(directory)?;
        let whole = read(directory, newest, |_| ())?;
        let before = generations.iter().rev().nth(1);
        let mut damaged = whole.damaged;
        if let Some(&before) = before.filter(|_| !whole.snapshot_is_sound) {
            damaged += read(directory, before, &mut show)?.damaged;
            read(directory, newest, |change| {
                if !change.is_of_snapshot() {
                    show(change);
                }
            })?;
        } else {
            read(directory, newest, &mut show)?;
        }
        let file = OpenOptions::new().append(true).open(file_of(directory, newest))?;
        let journal = Self {
            directory: directory.to_owned(),
            generation: newest,
            file,
            written: whole.bytes,
            snapshot: whole.snapshot,
            buffer: Vec::new(),
        };
        Ok((journal, Opened { damaged, is_new: false, is_cut: !whole.snapshot_is_sound }))
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.buffer.is_empty()
    }

    pub(super) fn append(&mut self, change: &Change) {
        let offset = self.written + self.buffer.len() as u64;
        append(&mut self.buffer, self.generation, offset, change);
    }

    pub(super) fn flush(&mut self, sync: bool) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.file.write_all(&self.buffer)?;
        if sync {
            self.file.sync_data()?;
        }
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
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
        let generation = self.generation + 1;
        let unfinished = self.directory.join("unfinished");
        let mut file = File::create(&unfinished)?;
        let (mut buffer, mut written) = (Vec::new(), 0);
        for change in std::iter::once(Change::Begin).chain(state).chain(std::iter::once(Change::End)) {
            let offset = written + buffer.len() as u64;
            append(&mut buffer, generation, offset, &change);
            if buffer.len() >= 1 << 20 {
                file.write_all(&buffer)?;
                written += buffer.len() as u64;
                buffer.clear();
            }
        }
        file.write_all(&buffer)?;
        written += buffer.len() as u64;
        file.sync_all()?;
        let path = file_of(&self.directory, generation);
        std::fs::rename(&unfinished, &path)?;
        sync_directory(&self.directory)?;
        for old in generations(&self.directory)?.into_iter().filter(|old| old + 1 < generation) {
            std::fs::remove_file(file_of(&self.directory, old))?;
        }
        self.file = OpenOptions::new().append(true).open(path)?;
        (self.generation, self.written, self.snapshot) = (generation, written, written);
        Ok(())
    }

    /// Bytes of both journals that cannot be read.
    pub(super) fn verify(&self) -> io::Result<u64> {
        let mut damaged = 0;
        for generation in generations(&self.directory)? {
            damaged += read(&self.directory, generation, |_| ())?.damaged;
        }
        Ok(damaged)
    }
}

struct Read {
    bytes: u64,
    damaged: u64,
    snapshot: u64,
    snapshot_is_sound: bool,
}

fn read(directory: &Path, generation: u64, mut show: impl FnMut(Change)) -> io::Result<Read> {
    let file = File::open(file_of(directory, generation))?;
    let bytes = file.metadata()?.len();
    let mut walker = Walker::new(file, salt(generation), 0, bytes);
    let mut read = Read { bytes, damaged: 0, snapshot: 0, snapshot_is_sound: false };
    while let Some(found) = walker.next()? {
        match found {
            Found::Damage { bytes, .. } => read.damaged += bytes,
            // What a later release wrote is as good as damaged: it is not known what it was.
            Found::Frame { body, .. } => match codec::decode(body) {
                Ok(change) => {
                    if matches!(change, Change::End) && read.damaged == 0 {
                        read.snapshot_is_sound = true;
                    }
                    show(change);
                }
                Err(_) => read.damaged += body.len() as u64,
            },
        }
        if !read.snapshot_is_sound {
            read.snapshot = walker.offset();
        }
    }
    Ok(read)
}

fn append(out: &mut Vec<u8>, generation: u64, offset: u64, change: &Change) {
    frame::append(out, salt(generation), offset, |out| {
        codec::encode_into(change, out).expect("changes hold nothing that cannot be encoded");
    });
}

fn salt(generation: u64) -> u64 {
    frame::salt("journal", generation)
}

fn generations(directory: &Path) -> io::Result<Vec<u64>> {
    let mut generations = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".journal"));
        generations.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    generations.sort_unstable();
    Ok(generations)
}

fn file_of(directory: &Path, generation: u64) -> PathBuf {
    directory.join(format!("{generation:020}.journal"))
}
