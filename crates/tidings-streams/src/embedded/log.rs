//! An append-only log of numbered records, in segments.
//!
//! A segment is a file named by its first number and its salt; its length is all that is known of it without reading
//! it, and memory holds nothing else. After a tail that cannot be read a log goes on in a new segment: damage is never
//! written over.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Data, Disk};
use super::frame::{self, Found, Walker};
use super::walk::Hints;

/// After so many bytes a log goes on in another file. What is trimmed is freed by files.
const SEGMENT_BYTES: u64 = 8 << 20;

/// What is read and written again at a time.
const REWRITTEN_BYTES: usize = 1 << 20;

/// What every record begins with: its number and its moment.
pub(super) const PREFIX_BYTES: usize = 16;

/// A record of a log.
#[derive(Debug)]
pub(super) struct Record<'a> {
    pub(super) id: u64,
    pub(super) time: u64,
    /// Of the whole frame.
    pub(super) size: u64,
    /// What follows number and moment.
    pub(super) rest: &'a [u8],
}

/// What a walk through a log meets.
#[derive(Debug)]
pub(super) enum Item<'a> {
    Record(Record<'a>),
    /// Numbers that are missing, and the bytes that cannot be read in their place.
    Gap {
        first: u64,
        last: u64,
        bytes: u64,
    },
}

#[derive(Debug)]
pub(super) struct Segment {
    path: PathBuf,
    pub(super) file: Arc<dyn Data>,
    pub(super) salt: u64,
    /// On disk.
    pub(super) length: u64,
}

/// What is known of a log before it is opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// The next number is this one or more.
    pub(super) least: u64,
    /// Up to this number the disk was made to keep all, for certain.
    pub(super) kept: u64,
}

#[derive(Debug)]
pub(super) struct Log {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    name: String,
    /// By their first numbers.
    pub(super) segments: BTreeMap<u64, Segment>,
    /// What is not written yet, and its last number.
    buffer: Vec<u8>,
    last: u64,
    written: u64,
    pub(super) hints: Hints,
    /// Something was written that the disk need not have.
    unsynced: bool,
    /// The next flush syncs whatever it is asked to.
    urgent: bool,
}

impl Log {
    /// Opens a log, or makes one. What was written last is shown: a segment.
    pub(super) fn open(
        disk: &Arc<dyn Disk>,
        directory: &Path,
        known: Known,
        show: impl FnMut(&Record<'_>),
    ) -> io::Result<Self> {
        disk.make_directory(directory)?;
        let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut log = Self {
            disk: Arc::clone(disk),
            directory: directory.to_owned(),
            segments: BTreeMap::new(),
            buffer: Vec::new(),
            last: 0,
            written: 0,
            hints: Hints::default(),
            unsynced: false,
            urgent: false,
            name,
        };
        for (name, length) in disk.list(directory)? {
            if let Some((first, chance)) = parse(&name) {
                log.add(first, chance, name, length);
            }
        }
        // What a process before this one made and was killed before it could say so to the disk.
        disk.sync_directory(directory)?;
        directory.parent().map_or(Ok(()), |parent| disk.sync_directory(parent))?;
        if log.segments.is_empty() {
            log.last = known.least.max(1) - 1;
            log.roll()?;
        }
        let missing = log.find_end(known.kept, show)?;
        let next = (log.last + 1 + missing).max(known.least);
        if missing > 0 || next > log.last + 1 {
            log.last = next - 1;
            log.roll()?;
        }
        log.written = log.last;
        Ok(log)
    }

    /// Finds the last number, and about how many behind it cannot be read.
    fn find_end(&mut self, kept: u64, mut show: impl FnMut(&Record<'_>)) -> io::Result<u64> {
        let (&newest, active) = self.segments.last_key_value().expect("there is one");
        // The newest may have been begun by the very last write.
        let holds = self.segments.iter().rev().find(|(_, segment)| segment.length > 0);
        let (&first, shown) = holds.unwrap_or((&newest, active));
        let mut walker = Walker::new(Arc::clone(&shown.file), shown.salt, 0, shown.length);
        let (mut last, mut missing, mut doubtful) = (first - 1, 0, None);
        while let Some(found) = walker.next()? {
            match found {
                Found::Frame { offset, length } => {
                    let Some(record) = record(walker.body(offset, length)) else { continue };
                    if record.id > kept {
                        doubtful.get_or_insert(offset);
                    }
                    show(&record);
                    (last, missing) = (record.id, 0);
                }
                Found::Damage { offset, marks, .. } => {
                    doubtful.get_or_insert(offset);
                    missing += marks;
                }
            }
        }
        rewrite(shown, doubtful.unwrap_or(shown.length))?;
        active.file.sync()?;
        if first != newest {
            (last, missing) = (newest - 1, 0);
        }
        self.last = last;
        Ok(missing)
    }

    fn add(&mut self, first: u64, chance: u64, name: String, length: u64) {
        // There is no second one but by somebody else's hand.
        if self.segments.get(&first).is_some_and(|other| other.length >= length) {
            return;
        }
        let path = self.directory.join(name);
        let file = self.disk.file(&path);
        let salt = frame::salt(&self.name, first, chance);
        self.segments.insert(first, Segment { path, file, salt, length });
    }

    /// The last number that was given, written or not.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// The last number that can be read.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// The first number that may be on disk.
    pub(super) fn first(&self) -> u64 {
        self.segments.first_key_value().map_or(self.last + 1, |(first, _)| *first)
    }

    /// All bytes, what waits to be written included.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.length).sum::<u64>() + self.buffer.len() as u64
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Adds a record to what is written next: its number, and its size.
    pub(super) fn append(&mut self, time: u64, write: impl FnOnce(&mut Vec<u8>)) -> (u64, u64) {
        let id = self.last + 1;
        let (_, segment) = self.segments.last_key_value().expect("there is one");
        let offset = segment.length + self.buffer.len() as u64;
        let size = frame::append(&mut self.buffer, segment.salt, offset, |out| {
            out.extend_from_slice(&id.to_le_bytes());
            out.extend_from_slice(&time.to_le_bytes());
            write(out);
        });
        self.last = id;
        (id, size)
    }

    /// Writes what waits, and has the disk keep it if asked to.
    pub(super) fn flush(&mut self, sync: bool) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.unsynced = true;
        let mut segment = self.segments.last_entry().expect("there is one");
        segment.get().file.write_all_at(&self.buffer, segment.get().length)?;
        segment.get_mut().length += self.buffer.len() as u64;
        let full = segment.get().length >= SEGMENT_BYTES;
        // Where a flush does not sync, nothing that comes later will sync a full file again.
        if sync || self.urgent || full {
            self.sync()?;
        }
        self.buffer.clear();
        // One large batch should not be held for ever.
        self.buffer.shrink_to(1 << 20);
        self.written = self.last;
        if full { self.roll() } else { Ok(()) }
    }

    /// Has the disk keep what waits to be written as soon as it is, for something that is built upon it.
    pub(super) fn sync_with_next_flush(&mut self) {
        self.urgent = true;
    }

    /// Whether a file would be freed by a floor.
    pub(super) fn frees(&self, floor: u64) -> bool {
        self.segments.keys().nth(1).is_some_and(|second| *second <= floor)
    }

    /// Has the disk keep what was written.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if let (true, Some((_, active))) = (self.unsynced, self.segments.last_key_value()) {
            active.file.sync()?;
        }
        (self.unsynced, self.urgent) = (false, false);
        Ok(())
    }

    /// Whether [`Log::drop_below`] would free a file.
    pub(super) fn would_free(&self, floor: u64) -> bool {
        self.frees(floor) || self.is_all_gone(floor)
    }

    /// Whether the file that is written to holds nothing but what is below a number.
    fn is_all_gone(&self, floor: u64) -> bool {
        let holds = self.segments.last_key_value().is_some_and(|(_, segment)| segment.length > 0);
        floor > self.last && holds && self.buffer.is_empty()
    }

    /// Frees the files of what is below a number.
    pub(super) fn drop_below(&mut self, floor: u64) -> io::Result<()> {
        if self.is_all_gone(floor) {
            self.roll()?;
        }
        loop {
            let mut segments = self.segments.iter();
            match (segments.next(), segments.next()) {
                (Some((&first, segment)), Some((second, _))) if *second <= floor => {
                    match self.disk.remove(&segment.path) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                        _ => {}
                    }
                    self.segments.remove(&first);
                    self.hints.forget(first);
                }
                _ => return Ok(()),
            }
        }
    }

    fn roll(&mut self) -> io::Result<()> {
        let (first, chance) = (self.last + 1, rand::random());
        let path = self.directory.join(file_name(first, chance));
        let file = self.disk.create(&path)?;
        self.disk.sync_directory(&self.directory)?;
        let salt = frame::salt(&self.name, first, chance);
        self.segments.insert(first, Segment { path, file, salt, length: 0 });
        Ok(())
    }

    /// Numbers of segments whose files are there: for whoever counts files.
    #[cfg(test)]
    pub(super) fn segments(&self) -> Vec<u64> {
        self.segments.keys().copied().collect()
    }
}

/// Has the disk keep what is built upon from here on. A sync that failed may have left bytes that are read back and were
/// never kept, and that the system takes for clean: another sync passes over them, unless they are written once more.
fn rewrite(segment: &Segment, from: u64) -> io::Result<()> {
    let mut buffer = Vec::new();
    let mut at = from;
    while at < segment.length {
        let left = usize::try_from(segment.length - at).unwrap_or(usize::MAX);
        buffer.resize(left.min(REWRITTEN_BYTES), 0);
        segment.file.read_exact_at(&mut buffer, at)?;
        segment.file.write_all_at(&buffer, at)?;
        at += buffer.len() as u64;
    }
    segment.file.sync()
}

pub(super) fn record(body: &[u8]) -> Option<Record<'_>> {
    let (prefix, rest) = body.split_at_checked(PREFIX_BYTES)?;
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    let size = (frame::HEADER_BYTES + body.len()) as u64;
    Some(Record { id: number(&prefix[..8]), time: number(&prefix[8..]), size, rest })
}

fn file_name(first: u64, chance: u64) -> String {
    format!("{first:020}-{chance:016x}.log")
}

fn parse(name: &str) -> Option<(u64, u64)> {
    let (first, chance) = name.strip_suffix(".log")?.split_once('-')?;
    Some((first.parse().ok()?, u64::from_str_radix(chance, 16).ok()?))
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
