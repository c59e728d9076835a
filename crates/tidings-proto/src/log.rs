//! The change log: what this node did, in order, for as long as it is remembered.
//!
//! One log per lane. An event is encoded once, into the open segment; a reader seals it and shares the bytes. The
//! log is the send buffer of every peer and the replay path at once: a peer's queue is only a [`Cursor`]. Retention
//! is bounded in events and bytes; who falls out of it is told [`Read::Overrun`], never silently skipped.
//!
//! It may be written down as well: see [`Sink`], and [`Recovered`] for what a next life makes of that.

mod given;
mod journal;
mod recovered;

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::task::Waker;

use bytes::{Bytes, BytesMut};
use parking_lot::{Mutex, MutexGuard};

use crate::hlc::{HybridClock, Stamp, TooFarAhead};
use crate::id::{FIRST, LaneId, Lanes, Sequence, Slot, SlotSet};
use crate::record::{Batch, Draft, RECORD_BYTES_MAX};
use crate::wake::Waiters;

use self::journal::Journal;

pub use self::journal::{OpenWrite, Put, Sink, Unwritten};
pub use self::recovered::{Distrust, Life, Recovered};

/// A segment is sealed when it reaches this many bytes, read or not.
pub const SEGMENT_BYTES: usize = 64 << 10;

/// A segment is sealed when it holds this part of the events that a lane remembers: as whole segments are
/// forgotten, no less than 15/16 of the allowed events are held.
const SEGMENT_SHARE: u64 = 16;

/// What a sealed segment costs beside its records, in bytes: its entry, in a queue that grows by doubling.
const SEGMENT_OVERHEAD_BYTES: usize = 2 * size_of::<Segment>();

/// How much a lane remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Most events. Default 65,536: two seconds of 30,000 events per second and lane.
    pub events: u64,
    /// Most bytes, segment overhead included. Default 4 MiB; at least [`Retention::BYTES_MIN`]. Two buffers of
    /// [`SEGMENT_BYTES`] may be allocated beside: the unwritten part of the newest, the forgotten one of the oldest.
    pub bytes: usize,
}

impl Default for Retention {
    fn default() -> Self {
        Self { events: 65_536, bytes: 4 << 20 }
    }
}

impl Retention {
    /// Least bytes that hold an open segment, a sealed one, and a record of the largest size.
    pub const BYTES_MIN: usize = 2 * SEGMENT_BYTES + RECORD_BYTES_MAX;
}

/// The log is sealed: no mutation is accepted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the change log is sealed: this node is shutting down")]
pub struct Sealed;

/// What is to be appended cannot be written down, nor can what is there be taken away: the next life would take it for
/// everything. So nothing is appended, until that is there no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the log files can be neither written nor removed: this node makes no changes until they can")]
pub struct Stuck;

/// An append was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// For good.
    #[error(transparent)]
    Sealed(#[from] Sealed),
    /// For now.
    #[error(transparent)]
    Stuck(#[from] Stuck),
}

/// Where an event went, and who has to be told.
#[derive(Debug)]
#[must_use = "waiting readers have to be woken after the caller's locks are released"]
pub struct Appended {
    /// The lane.
    pub lane: LaneId,
    /// Its position there.
    pub sequence: Sequence,
    /// Its stamp.
    pub stamp: Stamp,
    /// Who listens to the lane.
    pub waiters: Waiters,
}

/// A reader's position: the next sequence that it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// Next sequence to read.
    pub next: Sequence,
}

/// What a reader got.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// Batches were handed out and the cursor has moved.
    Some,
    /// Nothing is there yet.
    Empty,
    /// The log was sealed and everything has been read.
    End,
    /// The position has been forgotten. The cursor now stands at the head, which is also the answer.
    Overrun(Sequence),
}

/// Answer to a follow request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The position is held.
    Resume(Cursor),
    /// It is not: continue from the head, behind a fence.
    Reset(Cursor),
}

#[derive(Debug)]
struct Segment {
    first: Sequence,
    count: u32,
    base: Stamp,
    records: Bytes,
}

impl Segment {
    fn next(&self) -> Sequence {
        self.first + Sequence::from(self.count)
    }

    fn cost(&self) -> usize {
        self.records.len() + SEGMENT_OVERHEAD_BYTES
    }
}

/// Memory that is fetched at a time before it is written: what was last used megabytes ago comes much faster at once than
/// line by line, each of which the next unlock would wait for.
const FETCH_BYTES: usize = 4 << 10;

/// Fetches the first of these bytes into the processor's cache. Returns how many.
fn fetch(spare: &mut [MaybeUninit<u8>]) -> usize {
    let bytes = spare.len().min(FETCH_BYTES);
    spare[..bytes].fill(MaybeUninit::new(0));
    bytes
}

/// One lane of a node's log.
#[derive(Debug)]
pub struct LaneLog {
    lane: LaneId,
    retention: Retention,
    segments: VecDeque<Segment>,
    sealed_bytes: usize,
    open: BytesMut,
    /// Bytes behind the last event that are in the processor's cache.
    fetched: usize,
    open_first: Sequence,
    open_base: Stamp,
    next: Sequence,
    clock: HybridClock,
    sealed: bool,
    waiters: Waiters,
    /// Where it is written down, if it is.
    journal: Option<Box<Journal>>,
}

impl LaneLog {
    /// An empty log.
    #[must_use]
    pub fn new(lane: LaneId, retention: Retention) -> Self {
        let bytes = retention.bytes.max(Retention::BYTES_MIN);
        Self {
            lane,
            retention: Retention { events: retention.events.max(1), bytes },
            segments: VecDeque::new(),
            sealed_bytes: 0,
            open: BytesMut::new(),
            fetched: 0,
            open_first: FIRST,
            open_base: Stamp::default(),
            next: FIRST,
            clock: HybridClock::default(),
            sealed: false,
            waiters: Waiters::default(),
            journal: None,
        }
    }

    /// Last sequence appended; 0 for none.
    #[must_use]
    pub fn head(&self) -> Sequence {
        self.next - 1
    }

    /// The oldest sequence that is still held, or the next one if none is.
    #[must_use]
    pub fn oldest(&self) -> Sequence {
        self.segments.front().map_or(self.open_first, |segment| segment.first)
    }

    /// Bytes held, overhead included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let open = if self.open.is_empty() { 0 } else { self.open.len() + SEGMENT_OVERHEAD_BYTES };
        self.sealed_bytes + open
    }

    #[inline(always)]
    fn append(&mut self, draft: &Draft<'_>, stamp: Stamp) -> Result<Appended, Stuck> {
        if self.open.is_empty() {
            self.open_first = self.next;
            self.open_base = stamp;
        }
        if self.open.capacity() - self.open.len() < draft.bytes_max() {
            self.seal_segment();
            self.open = BytesMut::with_capacity(SEGMENT_BYTES.max(draft.bytes_max()));
            self.fetched = 0;
            self.open_first = self.next;
            self.open_base = stamp;
        }
        if self.fetched < draft.bytes_max() {
            self.fetched = fetch(self.open.spare_capacity_mut());
        }
        let before = self.open.len();
        draft.write(stamp.0 - self.open_base.0, &mut self.open);
        self.fetched = self.fetched.saturating_sub(self.open.len() - before);
        let sequence = self.next;
        if self.journal.is_some() {
            self.write_down((sequence, stamp), before)?;
        }
        self.next += 1;
        let open_events = self.next - self.open_first;
        if self.open.len() >= SEGMENT_BYTES || open_events * SEGMENT_SHARE >= self.retention.events {
            self.seal_segment();
        }
        self.forget();
        Ok(Appended { lane: self.lane, sequence, stamp, waiters: self.waiters.take() })
    }

    fn seal_segment(&mut self) {
        let count =
            u32::try_from(self.next - self.open_first).expect("a segment holds at most 64 KiB of records");
        if count == 0 || self.open.is_empty() {
            return;
        }
        let records = self.open.split().freeze();
        let segment = Segment { first: self.open_first, count, base: self.open_base, records };
        self.sealed_bytes += segment.cost();
        self.segments.push_back(segment);
        self.open_first = self.next;
    }

    fn forget(&mut self) {
        // Whole segments go, so that up to a segment fewer events than allowed may be held, never more.
        while let Some(oldest) = self.segments.front() {
            let events = self.next - oldest.first;
            if events <= self.retention.events && self.bytes() <= self.retention.bytes {
                break;
            }
            self.sealed_bytes -= oldest.cost();
            self.segments.pop_front();
        }
    }

    /// Judges a follower's position.
    #[must_use]
    pub fn resume(&self, from: Sequence) -> Answer {
        if (self.oldest()..=self.next).contains(&from) {
            Answer::Resume(Cursor { next: from })
        } else {
            Answer::Reset(Cursor { next: self.next })
        }
    }

    /// Hands out what follows the cursor, at most about `bytes_max` bytes in whole segments (at least one).
    pub fn read(&mut self, cursor: &mut Cursor, bytes_max: usize, out: &mut Vec<Batch>) -> Read {
        if cursor.next == self.next {
            return if self.sealed { Read::End } else { Read::Empty };
        }
        if !(self.oldest()..self.next).contains(&cursor.next) {
            cursor.next = self.next;
            return Read::Overrun(self.next);
        }
        self.seal_segment();
        // Mostly it is the last one, and the others are many, each where no cache holds it.
        let start = match self.segments.back() {
            Some(last) if last.first <= cursor.next => self.segments.len() - 1,
            _ => self.segments.partition_point(|segment| segment.next() <= cursor.next),
        };
        let mut bytes = 0;
        for segment in self.segments.range(start..) {
            if bytes > 0 && bytes + segment.records.len() > bytes_max {
                break;
            }
            let batch = self.batch(segment, cursor.next);
            bytes += batch.records.len();
            cursor.next = batch.next();
            out.push(batch);
        }
        Read::Some
    }

    fn batch(&self, segment: &Segment, from: Sequence) -> Batch {
        let Segment { first, count, base, ref records } = *segment;
        Batch { lane: self.lane, first, count, base, records: records.clone() }.starting_at(from)
    }
}

/// All lanes of a node's log, for concurrent writers and readers.
#[derive(Debug)]
pub struct ChangeLog {
    lanes: Lanes,
    logs: Box<[Padded]>,
    is_written_down: bool,
}

/// Keeps neighbouring lanes' locks out of each other's cache line (64 bytes on x86-64; 128 covers prefetch pairs).
#[derive(Debug)]
#[repr(align(128))]
struct Padded(Mutex<LaneLog>);

impl ChangeLog {
    /// An empty log.
    #[must_use]
    pub fn new(lanes: Lanes, retention: Retention) -> Self {
        let logs = lanes.ids().map(|lane| Padded(Mutex::new(LaneLog::new(lane, retention)))).collect();
        Self { lanes, logs, is_written_down: false }
    }

    /// How many lanes it has.
    #[must_use]
    pub fn lanes(&self) -> Lanes {
        self.lanes
    }

    fn lock(&self, lane: LaneId) -> MutexGuard<'_, LaneLog> {
        self.logs[lane.index()].0.lock()
    }

    /// Appends an event to the lane of its slot. The sequence is taken inside the same critical section.
    ///
    /// # Errors
    /// [`Sealed`] after [`ChangeLog::seal`], [`Stuck`]; nothing was appended.
    pub fn append(&self, slot: Slot, wall_ms: u64, draft: &Draft<'_>) -> Result<Appended, AppendError> {
        let mut log = self.lock(self.lanes.lane_of(slot));
        if log.sealed {
            return Err(Sealed.into());
        }
        let stamp = log.clock.tick(wall_ms);
        Ok(log.append(draft, stamp)?)
    }

    /// Appends one event to every lane under one stamp, all lanes locked in order; `before_unlock` runs while they
    /// are, after the appends.
    ///
    /// # Errors
    /// [`Sealed`] after [`ChangeLog::seal`]; nothing was appended. [`Stuck`]; some lanes may have it, so that what it names
    /// there may be gone at peers. `before_unlock` did not run.
    pub fn append_to_all(
        &self,
        wall_ms: u64,
        draft: &Draft<'_>,
        before_unlock: impl FnOnce(),
    ) -> Result<Vec<Appended>, AppendError> {
        let mut logs: Vec<_> = self.lanes.ids().map(|lane| self.lock(lane)).collect();
        if logs.iter().any(|log| log.sealed) {
            return Err(Sealed.into());
        }
        let stamp = logs.iter_mut().map(|log| log.clock.tick(wall_ms)).max().unwrap_or_default();
        let mut appended: Vec<Appended> = Vec::with_capacity(logs.len());
        let all: Result<(), Stuck> = logs.iter_mut().try_for_each(|log| {
            log.admit(stamp);
            appended.push(log.append(draft, stamp)?);
            Ok(())
        });
        if let Err(stuck) = all {
            drop(logs);
            // The caller has nothing to wake them with.
            appended.into_iter().for_each(|one| one.waiters.wake());
            return Err(stuck.into());
        }
        before_unlock();
        Ok(appended)
    }

    /// Takes note of a peer's stamp in the lanes of these slots, so that what is stamped there from now on is later.
    ///
    /// # Errors
    /// [`TooFarAhead`]; nothing has changed.
    pub fn observe(&self, slots: SlotSet, stamp: Stamp, wall_ms: u64) -> Result<(), TooFarAhead> {
        let mut lanes = self.lanes.ids().filter(|lane| !self.lanes.slots_of(*lane).and(slots).is_empty());
        lanes.try_for_each(|lane| self.lock(lane).clock.observe(stamp, wall_ms))
    }

    /// As [`ChangeLog::observe`], in the lane of one slot.
    ///
    /// # Errors
    /// [`TooFarAhead`]; nothing has changed.
    pub fn observe_in(&self, slot: Slot, stamp: Stamp, wall_ms: u64) -> Result<(), TooFarAhead> {
        self.lock(self.lanes.lane_of(slot)).clock.observe(stamp, wall_ms)
    }

    /// Last sequence of a lane.
    #[must_use]
    pub fn head(&self, lane: LaneId) -> Sequence {
        self.lock(lane).head()
    }

    /// Last sequence of each lane.
    #[must_use]
    pub fn heads(&self) -> Vec<Sequence> {
        self.lanes.ids().map(|lane| self.lock(lane).head()).collect()
    }

    /// Bytes held by all lanes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.lanes.ids().map(|lane| self.lock(lane).bytes()).sum()
    }

    /// Judges a follower's position in a lane.
    #[must_use]
    pub fn resume(&self, lane: LaneId, from: Sequence) -> Answer {
        self.lock(lane).resume(from)
    }

    /// Reads a lane, as [`LaneLog::read`].
    pub fn read(&self, lane: LaneId, cursor: &mut Cursor, bytes_max: usize, out: &mut Vec<Batch>) -> Read {
        let read = self.lock(lane).read(cursor, bytes_max, out);
        #[cfg(feature = "dialects")]
        out.iter_mut().for_each(crate::dialect::say_records);
        read
    }

    /// Has a waker woken by the next append to a lane, or by its sealing; once. A reader that listens first and reads
    /// then misses nothing.
    pub fn listen(&self, lane: LaneId, waker: &Waker) {
        self.lock(lane).waiters.register(waker);
    }

    /// Refuses all further appends and wakes readers, who will see [`Read::End`]. Returns the final heads.
    pub fn seal(&self) -> Vec<Sequence> {
        let mut heads = Vec::with_capacity(self.logs.len());
        let mut waiters = Vec::with_capacity(self.logs.len());
        for lane in self.lanes.ids() {
            let mut log = self.lock(lane);
            log.sealed = true;
            // What has not ended by now is taken for open.
            log.journal = None;
            heads.push(log.head());
            waiters.push(log.waiters.take());
        }
        waiters.into_iter().for_each(Waiters::wake);
        heads
    }
}

const _: () =
    assert!(RECORD_BYTES_MAX <= crate::frame::FRAME_BYTES_MAX - 64, "a batch of one must fit a frame");

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
