//! What a life that was killed has left in its files, and whether that is all that there is to know of it.
//!
//! It is trusted as a whole or not at all. Who does not trust it does as if there were none: peers judge the end of that
//! life as they judge any that came without a goodbye.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::journal::{BEGINS, BEGINS_UNNAMED, CHECKSUM_BYTES, ENDS, HEAD_BYTES, PAGE, RECORD, put_entry};
use super::{ChangeLog, LaneLog, Padded, Retention, Segment};
use crate::codec;
use crate::event::{EventKind, Operation};
use crate::hash::{CacheId, HASH_VERSION};
use crate::hlc::{HybridClock, Stamp};
use crate::id::{LaneId, Lanes, LogId, NodeId, Origin, Sequence, Slot};
use crate::record::{Draft, DraftTarget, KEY_BYTES_MAX, Parts};
use crate::varint::{Reader, Unsound};

/// First bytes of the file that names a life, with the version of all of them.
const MAGIC: &[u8] = b"tidings log 1\n";

/// Seeds the checksum of that file, which says itself whose log it is.
const LIFE: LogId = LogId(0);

/// Least bytes of a record, as in [`crate::record::BatchRef::parse`]: length, kind, cache and slot.
const RECORD_BYTES_MIN: usize = 7;

/// No number gets so far by counting, and no stamp by the year 6000: what does was not written by a log, and could not be
/// counted on.
const COUNTED_MAX: u64 = u64::MAX / 2;

/// Why files are not trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// There is none, or the one before it was left could not be written.
    #[error("there is none")]
    Missing,
    /// The file that says whose they are is damaged, or of another release.
    #[error("what says whose it is cannot be read")]
    Unreadable,
    /// They are of another cluster.
    #[error("it is of cluster {0:?}")]
    Cluster(String),
    /// They are another node's.
    #[error("it is of node {0}")]
    Node(NodeId),
    /// Their release puts keys into other slots.
    #[error("it is of a release that hashes keys otherwise")]
    Hash,
    /// The machine went down since, and may have taken along what was written last; or it is another one.
    #[error("the machine has been started since, or is another one: what was written last may be missing")]
    Machine,
    /// A file is not as it was written.
    #[error("lane {} is damaged: {why}", lane.number())]
    Damaged {
        /// Of which lane.
        lane: LaneId,
        /// What was found.
        why: &'static str,
    },
    /// The life ended while it made a change from which others follow: nobody can tell which.
    #[error("it ended in the middle of a change from which others follow")]
    Unnamed,
}

/// Whose log files are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// Of which cluster.
    pub cluster: String,
    /// Who, in the newest life that peers may know.
    pub origin: Origin,
    /// Which log.
    pub log: LogId,
    /// How many lanes it has.
    pub lanes: Lanes,
    /// How its keys are hashed.
    pub hash_version: u8,
    /// On which machine, since which start of it. Empty if that is not known: then nobody trusts it.
    pub machine: String,
}

impl Life {
    /// The content of the file that says so.
    ///
    /// # Panics
    /// Never: a life can be encoded.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let body = codec::encode(self).expect("a life is texts and numbers");
        let mut out = MAGIC.to_vec();
        put_entry(LIFE, &[&body], &mut out);
        out
    }

    /// Reads that file.
    ///
    /// # Errors
    /// [`Distrust::Unreadable`].
    pub fn decode(file: &[u8]) -> Result<Self, Distrust> {
        let entries = file.strip_prefix(MAGIC).ok_or(Distrust::Unreadable)?;
        match next_entry(LIFE, entries) {
            Ok(Some((body, []))) => codec::decode(body).map_err(|_| Distrust::Unreadable),
            _ => Err(Distrust::Unreadable),
        }
    }

    /// Judges whether it is this node's, and everything that was written is there.
    ///
    /// # Errors
    /// [`Distrust`].
    pub fn judge(&self, cluster: &str, node: &NodeId, machine: &str) -> Result<(), Distrust> {
        if self.cluster != cluster {
            return Err(Distrust::Cluster(self.cluster.clone()));
        }
        if self.origin.node != *node {
            return Err(Distrust::Node(self.origin.node.clone()));
        }
        if self.hash_version != HASH_VERSION {
            return Err(Distrust::Hash);
        }
        if machine.is_empty() || self.machine != machine {
            return Err(Distrust::Machine);
        }
        Ok(())
    }
}

/// A life that was killed, as its files have it.
#[derive(Debug)]
pub struct Recovered {
    /// Whose life.
    pub life: Life,
    lanes: Vec<Tail>,
    /// Keys whose truth was being written.
    open: Vec<OpenKey>,
}

/// What is left of one lane.
#[derive(Debug)]
struct Tail {
    lane: LaneId,
    segments: Vec<Segment>,
    next: Sequence,
    stamp: Stamp,
}

impl Recovered {
    /// Reads what a life has left: the two files of every lane, which are made before anything says whose they are.
    ///
    /// # Errors
    /// [`Distrust`]: something is missing, and nobody can tell what.
    pub fn read(life: Life, files: &[[Vec<u8>; 2]]) -> Result<Self, Distrust> {
        let (mut lanes, mut open) = (Vec::new(), Vec::new());
        for lane in life.lanes.ids() {
            let damaged = |why| Distrust::Damaged { lane, why };
            let files = files.get(lane.index()).ok_or_else(|| damaged("its files are missing"))?;
            let (tail, writes) = read_lane(life.log, lane, files).map_err(damaged)?;
            for write in writes.into_values() {
                open.push(write.ok_or(Distrust::Unnamed)?);
            }
            lanes.push(tail);
        }
        Ok(Self { life, lanes, open })
    }

    /// How many writes were under way.
    #[must_use]
    pub fn open_writes(&self) -> usize {
        self.open.len()
    }

    /// The log of that life, sealed: what it had appended, and after it the keys whose truth was being written, uncertain
    /// from when that is applied. Where values travel they are removed as of when that began: what anybody has written
    /// since is later, and stays. Returns its heads, too.
    ///
    /// # Panics
    /// Never: what it appends is small, and the log is open.
    #[must_use]
    pub fn into_log(mut self) -> (ChangeLog, Vec<Sequence>) {
        let logs = self.lanes.into_iter().map(|tail| Padded(tail.into_log().into())).collect();
        let log = ChangeLog { lanes: self.life.lanes, logs, is_written_down: false };
        // A segment begins with its earliest.
        self.open.sort_by_key(|open| open.began);
        for OpenKey { began, cache, slot, key } in &self.open {
            let draft = Draft::new(Parts {
                kind: EventKind::Deleted,
                operation: Operation::WriteThrough,
                ignorable: false,
                cache: *cache,
                slot: *slot,
                version: None,
                metadata: &[],
                value: None,
                target: DraftTarget::Key(key),
            });
            let draft = draft.expect("longer keys are not read").uncertain();
            let mut lane = log.lock(log.lanes.lane_of(*slot));
            let appended = lane.append(&draft, *began);
            let _ = appended.expect("it is not written down");
        }
        let heads = log.seal();
        (log, heads)
    }
}

impl Tail {
    fn into_log(self) -> LaneLog {
        // Nothing is forgotten any more: it is as much as two files hold.
        let mut log = LaneLog::new(self.lane, Retention { events: u64::MAX, bytes: usize::MAX });
        log.sealed_bytes = self.segments.iter().map(Segment::cost).sum();
        log.segments = self.segments.into();
        (log.next, log.open_first) = (self.next, self.next);
        log.clock = HybridClock::at(self.stamp);
        log
    }
}

/// The body of an entry, and what follows it.
type Entry<'a> = (&'a [u8], &'a [u8]);

/// The first entry. `None` if there is none, or only the beginning of one.
fn next_entry(log: LogId, bytes: &[u8]) -> Result<Option<Entry<'_>>, &'static str> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() else { return Ok(None) };
    let head = u64::from_le_bytes(*head);
    let (length, complement) = (head as u32, (head >> 32) as u32);
    if length != !complement {
        return Err("no length");
    }
    let Some((body, rest)) = rest.split_at_checked(length as usize) else { return Ok(None) };
    let Some((checksum, rest)) = rest.split_first_chunk::<CHECKSUM_BYTES>() else { return Ok(None) };
    if xxh3_64_with_seed(body, log.0) != u64::from_le_bytes(*checksum) {
        return Err("a checksum is wrong");
    }
    Ok(Some((body, rest)))
}

/// A key whose truth was being written, and since when.
#[derive(Debug)]
struct OpenKey {
    began: Stamp,
    cache: CacheId,
    slot: Slot,
    key: Bytes,
}

/// Writes that are under way, by number; those without a key are of such as nobody can name.
type OpenWrites = BTreeMap<u64, Option<OpenKey>>;

/// What one file holds.
#[derive(Debug, Default)]
struct Page {
    number: u64,
    first: Sequence,
    next: Sequence,
    segments: Vec<Growing>,
    stamp: Stamp,
    begun: OpenWrites,
    ended: Vec<u64>,
}

/// Records that stand in one segment, as they did before.
#[derive(Debug)]
struct Growing {
    first: Sequence,
    count: u32,
    base: Stamp,
    records: BytesMut,
}

impl Growing {
    fn grown(self) -> Segment {
        let Self { first, count, base, records } = self;
        Segment { first, count, base, records: records.freeze() }
    }
}

fn read_lane(log: LogId, lane: LaneId, files: &[Vec<u8>; 2]) -> Result<(Tail, OpenWrites), &'static str> {
    let [one, other] = files;
    let (one, other) = (read_page(log, lane, one)?, read_page(log, lane, other)?);
    let (older, newer) = match (one, other) {
        (Some(one), Some(other)) if one.number > other.number => (Some(other), one),
        (Some(one), Some(other)) => (Some(one), other),
        (Some(only), None) | (None, Some(only)) => (None, only),
        (None, None) => return Err("both files are missing"),
    };
    let follows = |older: &Page| (older.number + 1, older.next) == (newer.number, newer.first);
    if !older.as_ref().is_none_or(follows) {
        return Err("one file does not follow the other");
    }
    // Then its next one was about to replace it, and nothing had been written there yet.
    let older = older.unwrap_or_default();
    let mut begun = older.begun;
    begun.extend(newer.begun);
    older.ended.iter().chain(&newer.ended).for_each(|number| drop(begun.remove(number)));
    let segments = older.segments.into_iter().chain(newer.segments).map(Growing::grown).collect();
    let stamp = older.stamp.max(newer.stamp);
    Ok((Tail { lane, segments, next: newer.next, stamp }, begun))
}

/// Reads one file; `None` if not even its first entry was finished: then it was about to replace an older one, and nothing
/// was written after it.
fn read_page(log: LogId, lane: LaneId, file: &[u8]) -> Result<Option<Page>, &'static str> {
    let Some((body, mut rest)) = next_entry(log, file)? else { return Ok(None) };
    let mut page = first_entry(lane, body).map_err(|_| "it does not begin as it should")?;
    while let Some((body, more)) = next_entry(log, rest)? {
        page.read(body).map_err(|Unsound(why)| why)?;
        rest = more;
    }
    Ok(Some(page))
}

fn first_entry(lane: LaneId, body: &[u8]) -> Result<Page, Unsound> {
    let mut reader = Reader(body);
    let (kind, number) = (reader.byte()?, u64::from_le_bytes(reader.array()?));
    let (of, first) = (reader.byte()?, u64::from_le_bytes(reader.array()?));
    let counted = (1..COUNTED_MAX).contains(&first) && number < COUNTED_MAX;
    if kind != PAGE || of != lane.number() || !reader.0.is_empty() || !counted {
        return Err(Unsound("another file's"));
    }
    Ok(Page { number, first, next: first, ..Page::default() })
}

impl Page {
    fn read(&mut self, body: &[u8]) -> Result<(), Unsound> {
        let mut reader = Reader(body);
        let (kind, number) = (reader.byte()?, u64::from_le_bytes(reader.array()?));
        match kind {
            RECORD => {
                let base = Stamp(u64::from_le_bytes(reader.array()?));
                let stamp = Stamp(u64::from_le_bytes(reader.array()?));
                self.record(number, (base, stamp), reader.0)?;
            }
            BEGINS => {
                let began = Stamp(u64::from_le_bytes(reader.array()?));
                let cache = CacheId(u32::from_le_bytes(reader.array()?));
                let slot = Slot::new(reader.byte()?).ok_or(Unsound("no such slot"))?;
                if reader.0.len() > KEY_BYTES_MAX || began.0 >= COUNTED_MAX {
                    return Err(Unsound("no write of a log's"));
                }
                let key = Bytes::copy_from_slice(reader.0);
                self.begun.insert(number, Some(OpenKey { began, cache, slot, key }));
            }
            BEGINS_UNNAMED => drop(self.begun.insert(number, None)),
            ENDS => self.ended.push(number),
            _ => return Err(Unsound("an entry of no kind")),
        }
        Ok(())
    }

    fn record(
        &mut self,
        sequence: Sequence,
        (base, stamp): (Stamp, Stamp),
        record: &[u8],
    ) -> Result<(), Unsound> {
        if sequence != self.next {
            return Err(Unsound("a sequence is missing"));
        }
        let mut reader = Reader(record);
        reader.block()?;
        // Not later than all before it: one may be logged under an earlier stamp.
        let is_stamp = stamp >= base && stamp.0 < COUNTED_MAX;
        if record.len() < RECORD_BYTES_MIN || !reader.0.is_empty() || !is_stamp {
            return Err(Unsound("a record is not one"));
        }
        (self.next, self.stamp) = (sequence + 1, self.stamp.max(stamp));
        match self.segments.last_mut() {
            Some(last) if last.base == base && last.count < u32::MAX => {
                last.count += 1;
                last.records.extend_from_slice(record);
            }
            _ => self.segments.push(Growing { first: sequence, count: 1, base, records: record.into() }),
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "recovered_tests.rs"]
mod tests;
