//! An append-only log of numbered records, in segments.
//!
//! A segment is a file named by its first number; its length is all that is known of it without reading it, and
//! memory holds nothing else. A record is found by bisecting the file: any frame found on the way says its number.
//! After a tail that cannot be read a log goes on in a new segment: damage is never written over.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::frame::{self, Found, Walker};

/// After so many bytes a log goes on in another file. What is trimmed is freed by files.
const SEGMENT_BYTES: u64 = 8 << 20;

/// Bisecting a segment ends with so many bytes, which are read through.
const BISECTED_BYTES: u64 = 64 << 10;

/// Places that are remembered: about one for each reader that goes through a log in its order.
const HINTS_MAX: usize = 64;

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

#[derive(Clone, Copy, Debug)]
struct Hint {
    id: u64,
    segment: u64,
    offset: u64,
}

#[derive(Debug)]
pub(super) struct Log {
    directory: PathBuf,
    name: String,
    /// First number of each segment, and its length on disk.
    segments: BTreeMap<u64, u64>,
    active: File,
    /// What is not written yet, and its last number.
    buffer: Vec<u8>,
    last: u64,
    written: u64,
    hints: VecDeque<Hint>,
    /// Something was written that the disk need not have.
    unsynced: bool,
    /// The next flush syncs whatever it is asked to.
    urgent: bool,
}

impl Log {
    /// Opens a log, or makes one. The next number is `least` or more. What was written last is shown: a segment.
    pub(super) fn open(directory: &Path, least: u64, mut show: impl FnMut(&Record<'_>)) -> io::Result<Self> {
        if !directory.exists() {
            std::fs::create_dir(directory)?;
        }
        let mut segments = BTreeMap::new();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(first) = name.to_str().and_then(|name| name.strip_suffix(".log")) else { continue };
            if let Ok(first) = first.parse() {
                segments.insert(first, entry.metadata()?.len());
            }
        }
        let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if segments.is_empty() {
            create(directory, least.max(1))?;
            segments.insert(least.max(1), 0);
        }
        let (&newest, _) = segments.last_key_value().expect("there is one");
        let active = OpenOptions::new().append(true).read(true).open(file_of(directory, newest))?;
        // The newest may have been begun by the very last write.
        let shown = segments.iter().rev().find(|(_, length)| **length > 0).unwrap_or((&newest, &0));
        let (&first, &length) = shown;
        let file = File::open(file_of(directory, first))?;
        // What is found here is built upon. A process that was killed need not have had the disk keep it.
        file.sync_data()?;
        active.sync_data()?;
        sync_directory(directory)?;
        directory.parent().map_or(Ok(()), sync_directory)?;
        let mut walker = Walker::new(file, frame::salt(&name, first), 0, length);
        let (mut last, mut missing) = (first - 1, 0);
        while let Some(found) = walker.next()? {
            match found {
                Found::Frame { body, .. } => {
                    let Some(record) = record(body) else { continue };
                    show(&record);
                    (last, missing) = (record.id, 0);
                }
                Found::Damage { marks, .. } => missing += marks,
            }
        }
        if first != newest {
            (last, missing) = (newest - 1, 0);
        }
        let mut log = Self {
            directory: directory.to_owned(),
            name,
            segments,
            active,
            buffer: Vec::new(),
            last,
            written: last,
            hints: VecDeque::new(),
            unsynced: false,
            urgent: false,
        };
        let next = (last + 1 + missing).max(least);
        if missing > 0 || next > last + 1 {
            log.last = next - 1;
            log.written = log.last;
            log.roll()?;
        }
        Ok(log)
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
        self.segments.values().sum::<u64>() + self.buffer.len() as u64
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Adds a record to what is written next: its number, and its size.
    pub(super) fn append(&mut self, time: u64, write: impl FnOnce(&mut Vec<u8>)) -> (u64, u64) {
        let id = self.last + 1;
        let (&first, &length) = self.segments.last_key_value().expect("there is one");
        let offset = length + self.buffer.len() as u64;
        let size = frame::append(&mut self.buffer, frame::salt(&self.name, first), offset, |out| {
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
        self.active.write_all(&self.buffer)?;
        if sync || self.urgent {
            self.sync()?;
        }
        let mut segment = self.segments.last_entry().expect("there is one");
        *segment.get_mut() += self.buffer.len() as u64;
        let full = *segment.get() >= SEGMENT_BYTES;
        self.buffer.clear();
        // One large batch should not be held for ever.
        self.buffer.shrink_to(1 << 20);
        self.written = self.last;
        if full {
            // Where a flush does not sync, nothing that comes later will sync this file again.
            self.sync()?;
            self.roll()?;
        }
        Ok(())
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
        if self.unsynced {
            self.active.sync_data()?;
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
        let holds = self.segments.last_key_value().is_some_and(|(_, bytes)| *bytes > 0);
        floor > self.last && holds && self.buffer.is_empty()
    }

    /// Frees the files of what is below a number.
    pub(super) fn drop_below(&mut self, floor: u64) -> io::Result<()> {
        if self.is_all_gone(floor) {
            self.roll()?;
        }
        loop {
            let mut firsts = self.segments.keys().copied();
            match (firsts.next(), firsts.next()) {
                (Some(first), Some(second)) if second <= floor => {
                    match std::fs::remove_file(file_of(&self.directory, first)) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                        _ => {}
                    }
                    self.segments.remove(&first);
                    self.hints.retain(|hint| hint.segment != first);
                }
                _ => return Ok(()),
            }
        }
    }

    fn roll(&mut self) -> io::Result<()> {
        let first = self.last + 1;
        self.active = create(&self.directory, first)?;
        self.segments.insert(first, 0);
        Ok(())
    }

    /// Goes through what can be read from a number on.
    pub(super) fn walk(&mut self, from: u64) -> io::Result<Walk<'_>> {
        let (segment, offset) = self.place(from)?;
        let walker = self.walker(segment, offset)?;
        Ok(Walk { log: self, segment, walker, expected: from, gap_bytes: 0, held: None })
    }

    /// The first number whose moment is the given one or later; the next number if there is none.
    pub(super) fn first_at(&mut self, time: u64, floor: u64) -> io::Result<u64> {
        let firsts: Vec<u64> = self.segments.keys().copied().collect();
        // Of the segments that begin earlier the last one may hold it.
        let (mut low, mut high) = (0, firsts.len());
        while low + 1 < high {
            let middle = usize::midpoint(low, high);
            let mut walker = self.walker(firsts[middle], 0)?;
            match next_record(&mut walker)? {
                Some((_, at)) if at < time => low = middle,
                _ => high = middle,
            }
        }
        let from = firsts.get(low).copied().unwrap_or(floor);
        let offset = self.bisect(from, |_, at| at < time)?;
        let mut walker = self.walker(from, offset)?;
        while let Some((id, at)) = next_record(&mut walker)? {
            if at >= time {
                return Ok(id.max(floor));
            }
        }
        Ok(firsts.get(low + 1).copied().unwrap_or(self.last + 1).max(floor))
    }

    /// Where to begin to read so as not to miss a number.
    fn place(&mut self, id: u64) -> io::Result<(u64, u64)> {
        let known = self.hints.iter().find(|hint| hint.id == id);
        if let Some(hint) = known {
            return Ok((hint.segment, hint.offset));
        }
        let segment =
            self.segments.range(..=id).next_back().map_or_else(|| self.first(), |(first, _)| *first);
        let offset = self.bisect(segment, |found, _| found <= id)?;
        Ok((segment, offset))
    }

    /// The offset of a frame that is not beyond a place: `before` says of a record that it is not.
    fn bisect(&self, segment: u64, before: impl Fn(u64, u64) -> bool) -> io::Result<u64> {
        let mut high = self.segments.get(&segment).copied().unwrap_or(0);
        let mut low = 0;
        if high <= BISECTED_BYTES {
            return Ok(low);
        }
        let mut walker = self.walker(segment, 0)?;
        while high - low > BISECTED_BYTES {
            let middle = u64::midpoint(low, high);
            walker.jump(middle);
            match next_frame(&mut walker)? {
                Some((offset, id, time)) if offset < high && before(id, time) => low = offset.max(low + 1),
                _ => high = middle,
            }
        }
        Ok(low)
    }

    fn walker(&self, segment: u64, offset: u64) -> io::Result<Walker> {
        let file = File::open(file_of(&self.directory, segment))?;
        let end = self.segments.get(&segment).copied().unwrap_or(0);
        Ok(Walker::new(file, frame::salt(&self.name, segment), offset, end))
    }

    fn remember(&mut self, hint: Hint) {
        if self.hints.iter().any(|known| known.id == hint.id) {
            return;
        }
        if self.hints.len() >= HINTS_MAX {
            self.hints.pop_front();
        }
        self.hints.push_back(hint);
    }

    /// Numbers of segments whose files are there: for whoever counts files.
    #[cfg(test)]
    pub(super) fn segments(&self) -> Vec<u64> {
        self.segments.keys().copied().collect()
    }
}

/// A way through a log.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    log: &'a mut Log,
    segment: u64,
    walker: Walker,
    expected: u64,
    gap_bytes: u64,
    /// A record that was met behind a gap: its offset.
    held: Option<u64>,
}

impl Walk<'_> {
    /// The number that would come next.
    pub(super) fn expected(&self) -> u64 {
        self.expected
    }

    /// Remembers where this way ended, for whoever goes on from there.
    pub(super) fn pause(self) {
        let hint = Hint { id: self.expected, segment: self.segment, offset: self.walker.offset() };
        if self.held.is_none() && self.gap_bytes == 0 {
            self.log.remember(hint);
        }
    }

    pub(super) fn next(&mut self) -> io::Result<Option<Item<'_>>> {
        if let Some(offset) = self.held.take() {
            self.walker.jump(offset);
        }
        loop {
            let expected = self.expected;
            // What was found is read again below, for a record cannot be lent from within a loop.
            let (offset, id) = match self.walker.next()? {
                Some(Found::Damage { bytes, .. }) => {
                    self.gap_bytes += bytes;
                    continue;
                }
                Some(Found::Frame { offset, body }) => match record(body) {
                    Some(record) if record.id >= expected => (offset, record.id),
                    // Before what was asked for: damage there is nobody's here.
                    _ => {
                        self.gap_bytes = 0;
                        continue;
                    }
                },
                None => match self.log.segments.range(self.segment + 1..).next().map(|(first, _)| *first) {
                    Some(next) => {
                        self.segment = next;
                        self.walker = self.log.walker(next, 0)?;
                        if next > expected {
                            return Ok(Some(self.gap(next - 1)));
                        }
                        continue;
                    }
                    // What was written and cannot be read any more: nothing behind it says so.
                    None if expected <= self.log.written => return Ok(Some(self.gap(self.log.written))),
                    None => return Ok(None),
                },
            };
            if id > expected {
                self.held = Some(offset);
                return Ok(Some(self.gap(id - 1)));
            }
            self.gap_bytes = 0;
            self.walker.jump(offset);
            self.expected = id + 1;
            let Some(Found::Frame { body, .. }) = self.walker.next()? else {
                return Err(io::Error::other("a frame that was read changed under the store"));
            };
            return Ok(record(body).map(Item::Record));
        }
    }

    fn gap(&mut self, last: u64) -> Item<'static> {
        let first = std::mem::replace(&mut self.expected, last + 1);
        Item::Gap { first, last, bytes: std::mem::take(&mut self.gap_bytes) }
    }
}

fn record(body: &[u8]) -> Option<Record<'_>> {
    let (prefix, rest) = body.split_at_checked(PREFIX_BYTES)?;
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    let size = (frame::HEADER_BYTES + body.len()) as u64;
    Some(Record { id: number(&prefix[..8]), time: number(&prefix[8..]), size, rest })
}

fn next_frame(walker: &mut Walker) -> io::Result<Option<(u64, u64, u64)>> {
    while let Some(found) = walker.next()? {
        if let Found::Frame { offset, body } = found
            && let Some(record) = record(body)
        {
            return Ok(Some((offset, record.id, record.time)));
        }
    }
    Ok(None)
}

fn next_record(walker: &mut Walker) -> io::Result<Option<(u64, u64)>> {
    Ok(next_frame(walker)?.map(|(_, id, time)| (id, time)))
}

fn file_of(directory: &Path, first: u64) -> PathBuf {
    directory.join(format!("{first:020}.log"))
}

fn create(directory: &Path, first: u64) -> io::Result<File> {
    let path = file_of(directory, first);
    let file = OpenOptions::new().append(true).read(true).create(true).open(path)?;
    sync_directory(directory)?;
    Ok(file)
}

/// Has the disk keep which files there are.
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
