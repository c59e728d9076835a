//! The log in files: what a process that is killed leaves behind, for its next life to serve.
//!
//! A lane has two files and fills them in turn, each with as much as the lane remembers. What is in them when an append
//! returns is there however the process ends; a machine that goes down may take it along.
//!
//! ```text
//! file  := entry*
//! entry := length of the body: u32 le | its complement: u32 le | body | checksum of the body: u64 le
//! body  := 0 page         number: u64 le | lane: u8 | next sequence: u64 le      the first of each file, and only there
//!        | 1 record       sequence: u64 le | base stamp: u64 le | stamp: u64 le | the record, as in a batch of that base
//!        | 2 write begins number: u64 le | stamp: u64 le | cache: u32 le | slot: u8 | key
//!        | 3 write begins number: u64 le                                         of keys that nobody can name
//!        | 4 write ends   number: u64 le
//! ```
//!
//! Checksums are XXH3 with the log's id for a seed, so that what another log has left in a file is no part of this one.
//! The length stands there twice, so that an entry that was cut short is told from one that was changed: who is killed
//! while it writes leaves the beginning of what nobody has seen yet.

use std::collections::BTreeMap;
use std::fmt;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{ChangeLog, LaneLog, Retention, Stuck};
use crate::hash::CacheId;
use crate::hlc::Stamp;
use crate::id::{LaneId, Lanes, LogId, Sequence, Slot};

/// Bytes of an entry before its body.
pub(super) const HEAD_BYTES: usize = 8;

/// Bytes of an entry after its body.
pub(super) const CHECKSUM_BYTES: usize = 8;

pub(super) const PAGE: u8 = 0;
pub(super) const RECORD: u8 = 1;
pub(super) const BEGINS: u8 = 2;
pub(super) const BEGINS_UNNAMED: u8 = 3;
pub(super) const ENDS: u8 = 4;

/// Which part of a file writes that are under way may take when it is begun: they are carried over from the one before.
/// Of more, 10,000 of 100 bytes a lane by default, nothing is written down any more.
const OPEN_WRITES_SHARE: usize = 4;

/// What is to be done with a lane's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put<'a> {
    /// Append these bytes to the present file, in one piece.
    Append(&'a [u8]),
    /// Empty the other file, which is the present one from now on, and write these bytes.
    Turn(&'a [u8]),
    /// What comes cannot be written down: nothing that the files hold is to be trusted.
    GiveUp(&'static str),
}

/// Entries are not in a lane's files, and none will be any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwritten {
    /// Nobody trusts any file of the log: what they lack may be appended. The sink is not called again for that lane.
    GivenUp,
    /// They may be trusted still, as if the entries were none: nothing may be appended. The sink is called again with
    /// whatever comes, until they are given up.
    Stuck,
}

/// Puts a lane's entries into its files, before it returns. If it cannot, it sees to it that nobody trusts any file of the
/// log, and says whether it could. Called under the lane's lock.
pub type Sink = Box<dyn FnMut(Put<'_>) -> Result<(), Unwritten> + Send>;

/// A write of the system of record that is under way, and written down as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "it counts as under way until it is said to have ended"]
pub struct OpenWrite {
    lane: LaneId,
    number: u64,
}

/// What writes a lane down.
pub(super) struct Journal {
    log: LogId,
    lane: LaneId,
    /// Of one file.
    most: Retention,
    sink: Sink,
    buffer: Vec<u8>,
    page: u64,
    bytes: usize,
    events: u64,
    /// The entries of writes that are under way.
    open: BTreeMap<u64, Box<[u8]>>,
    open_bytes: usize,
    next_write: u64,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("lane", &self.lane).field("page", &self.page).finish_non_exhaustive()
    }
}

/// Appends an entry whose body these parts are.
pub(super) fn put_entry(log: LogId, parts: &[&[u8]], out: &mut Vec<u8>) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let length = u32::try_from(length).expect("a record has a mebibyte at most");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&(!length).to_le_bytes());
    let body = out.len();
    parts.iter().for_each(|part| out.extend_from_slice(part));
    let checksum = xxh3_64_with_seed(&out[body..], log.0);
    out.extend_from_slice(&checksum.to_le_bytes());
}

impl Journal {
    /// Begins the first file of an empty lane; `None` if it is given up.
    fn begin(log: LogId, lane: LaneId, most: Retention, sink: Sink) -> Option<Self> {
        let mut journal = Self {
            log,
            lane,
            most,
            sink,
            buffer: Vec::new(),
            page: 0,
            bytes: 0,
            events: 0,
            open: BTreeMap::new(),
            open_bytes: 0,
            next_write: 0,
        };
        let begun = journal.turn(super::FIRST);
        (begun != Err(Unwritten::GivenUp)).then_some(journal)
    }

    /// Begins a file: with what is under way, for the one that says so will be emptied.
    fn turn(&mut self, next: Sequence) -> Result<(), Unwritten> {
        self.buffer.clear();
        let (page, next) = (self.page.to_le_bytes(), next.to_le_bytes());
        put_entry(self.log, &[&[PAGE], &page, &[self.lane.number()], &next], &mut self.buffer);
        self.open.values().for_each(|entry| self.buffer.extend_from_slice(entry));
        self.page += 1;
        (self.bytes, self.events) = (self.buffer.len(), 0);
        (self.sink)(Put::Turn(&self.buffer))
    }

    /// Writes down what is in the buffer, in a file that has room for it. `next`: the first sequence that it may hold.
    fn put(&mut self, next: Sequence) -> Result<(), Unwritten> {
        if self.bytes + self.buffer.len() > self.most.bytes || self.events >= self.most.events {
            let entry = std::mem::take(&mut self.buffer);
            self.turn(next)?;
            self.buffer = entry;
        }
        self.bytes += self.buffer.len();
        (self.sink)(Put::Append(&self.buffer))
    }

    fn record(
        &mut self,
        sequence: Sequence,
        (base, stamp): (Stamp, Stamp),
        record: &[u8],
    ) -> Result<(), Unwritten> {
        self.buffer.clear();
        let (at, base, stamp) = (sequence.to_le_bytes(), base.0.to_le_bytes(), stamp.0.to_le_bytes());
        put_entry(self.log, &[&[RECORD], &at, &base, &stamp, record], &mut self.buffer);
        self.put(sequence)?;
        self.events += 1;
        Ok(())
    }

    fn begins(
        &mut self,
        next: Sequence,
        stamp: Stamp,
        of: Option<(CacheId, Slot, &[u8])>,
    ) -> Result<OpenWrite, Unwritten> {
        let number = self.next_write;
        self.next_write += 1;
        self.buffer.clear();
        let bytes = number.to_le_bytes();
        match of {
            Some((cache, slot, key)) => {
                let (stamp, cache, slot) =
                    (stamp.0.to_le_bytes(), cache.0.to_le_bytes(), [slot.index() as u8]);
                put_entry(self.log, &[&[BEGINS], &bytes, &stamp, &cache, &slot, key], &mut self.buffer);
            }
            None => put_entry(self.log, &[&[BEGINS_UNNAMED], &bytes], &mut self.buffer),
        }
        let entry: Box<[u8]> = self.buffer.as_slice().into();
        if self.open_bytes + entry.len() > self.most.bytes / OPEN_WRITES_SHARE {
            let given_up = (self.sink)(Put::GiveUp("more writes are under way than it holds"));
            return Err(given_up.err().unwrap_or(Unwritten::GivenUp));
        }
        self.put(next)?;
        self.open_bytes += entry.len();
        self.open.insert(number, entry);
        Ok(OpenWrite { lane: self.lane, number })
    }

    fn ends(&mut self, next: Sequence, number: u64) -> Result<(), Unwritten> {
        // Before a file may be begun: it says so no more.
        let Some(entry) = self.open.remove(&number) else { return Ok(()) };
        self.open_bytes -= entry.len();
        self.buffer.clear();
        put_entry(self.log, &[&[ENDS], &number.to_le_bytes()], &mut self.buffer);
        self.put(next)
    }
}

/// Has a lane's journal write something down, if it has one; one that is given up is none any more.
fn note<T>(
    journal: &mut Option<Box<Journal>>,
    write: impl FnOnce(&mut Journal) -> Result<T, Unwritten>,
) -> Result<Option<T>, Stuck> {
    let Some(present) = journal else { return Ok(None) };
    match write(present) {
        Ok(written) => Ok(Some(written)),
        Err(Unwritten::Stuck) => Err(Stuck),
        Err(Unwritten::GivenUp) => {
            *journal = None;
            Ok(None)
        }
    }
}

impl LaneLog {
    /// Writes down the record that was put last, at `from` in the open segment, before its append counts. If it must not,
    /// the record is there no more.
    #[cold]
    #[inline(never)]
    pub(super) fn write_down(
        &mut self,
        (sequence, stamp): (Sequence, Stamp),
        from: usize,
    ) -> Result<(), Stuck> {
        let (record, base) = (&self.open[from..], self.open_base);
        let noted = note(&mut self.journal, |journal| journal.record(sequence, (base, stamp), record));
        if noted.is_err() {
            self.open.truncate(from);
        }
        noted.map(drop)
    }
}

impl ChangeLog {
    /// An empty log that is written down: a sink for each lane.
    #[must_use]
    pub fn written_down(lanes: Lanes, retention: Retention, id: LogId, sinks: Vec<Sink>) -> Self {
        let mut log = Self::new(lanes, retention);
        log.is_written_down = true;
        for (lane, sink) in lanes.ids().zip(sinks) {
            let lane_log = log.logs[lane.index()].0.get_mut();
            lane_log.journal = Journal::begin(id, lane, lane_log.retention, sink).map(Box::new);
        }
        log
    }

    /// Notes that a write of a key's truth is about to begin, before it does: if this process ends before it says that it
    /// has ended, the write may have happened, or may happen yet. Without a key it is of such as nobody can name.
    ///
    /// Returns nothing, and costs nothing, if the log is not written down.
    ///
    /// # Errors
    /// [`Stuck`]: the write must not begin, for the next life would know nothing of it.
    #[inline]
    pub fn write_begins(
        &self,
        slot: Slot,
        wall_ms: impl FnOnce() -> u64,
        of: Option<(CacheId, &[u8])>,
    ) -> Result<Option<OpenWrite>, Stuck> {
        if self.is_written_down { self.note_begin(slot, wall_ms(), of) } else { Ok(None) }
    }

    #[cold]
    fn note_begin(
        &self,
        slot: Slot,
        wall_ms: u64,
        of: Option<(CacheId, &[u8])>,
    ) -> Result<Option<OpenWrite>, Stuck> {
        let mut log = self.lock(self.lanes.lane_of(slot));
        let (next, of) = (log.next, of.map(|(cache, key)| (cache, slot, key)));
        // Later than all that is known of the key, and earlier than whatever comes after its write.
        let stamp = log.clock.tick(wall_ms);
        note(&mut log.journal, |journal| journal.begins(next, stamp, of))
    }

    /// Notes that a write has ended, after what it has changed was appended, or that it never happens.
    pub fn write_ended(&self, write: OpenWrite) {
        let mut log = self.lock(write.lane);
        let next = log.next;
        // Else it is taken for open, which only costs its key.
        let _ = note(&mut log.journal, |journal| journal.ends(next, write.number));
    }
}
