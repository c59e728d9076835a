//! Event records: the compact layout inside an `Events` frame.
//!
//! ```text
//! batch  := lane: u8 | first: varint | count: varint | base stamp: u64 le | record*
//! record := length of the rest: varint
//!         | kind and target: u8      bits 0-3 kind, bit 4 ignorable, bits 5-7 target
//!         | cache: u32 le
//!         | slot: u8
//!         | operation and flags: u8  bits 0-3 operation, bit 4 metadata, 5 value, 6 version, 7 more flags
//!         | stamp minus base: varint
//!         | [more flags: u8          bit 0 uncertain, 1 schema, 2 former, 3-7 reserved (0); schema: varint;
//!            former stamp: u64 le]
//!         | [version: varint] [metadata] [length of the value: varint, value] | target
//! metadata := length of the pairs: varint, then per pair: length, name, length, text
//! target  := 0 key: the remaining bytes · 1 keys: count, then per key length and bytes
//!          · 2 tag: the remaining bytes · 3 prefix: the remaining bytes · 4 everything: no bytes
//!          · 5 more keys of the change that an earlier record began: as 1
//! ```
//!
//! More flags stand there only if one of them is set. A record that is uncertain is of a write of which nobody knows
//! how it ended: it may still land for a while, and what begins before that is over may lack it. Releases that know of
//! no more flags fence such a record's lane, as they do with whatever they cannot read: more than a removal, and all of
//! it but that while.
//!
//! Varints are LEB128, at most ten bytes. Every release can read length, kind, ignorable bit, cache and slot: a
//! record that it does not understand is fenced (or, if ignorable, counted) and passed over, never guessed at.

mod canary;
mod more;
mod parse;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::event::{EventKind, Operation};
use crate::hash::CacheId;
use crate::hlc::Stamp;
use crate::id::{LaneId, Lanes, Sequence, Slot};
use crate::varint::{Reader, VARINT_BYTES_MAX, put_block, put_varint, varint_bytes, varint_word};

pub use crate::batch::Batch;
pub use crate::varint::{Extend8, Unsound};

/// Longest encoded key, tag or prefix, in bytes: a text of 4 KiB, and its length in the encoding of keys.
pub const KEY_BYTES_MAX: usize = (4 << 10) + 3;

/// Most bytes of names and texts in one event's metadata.
pub const METADATA_BYTES_MAX: usize = 4 << 10;

/// Longest record, in bytes, so that a batch of one always fits a frame.
pub const RECORD_BYTES_MAX: usize = 1 << 20;

const HEAD_BYTES: usize = 7;
/// Stamps closer than this to the base fit, as a varint of six bytes, a register with a record's length and head.
const DELTA_SHORT: u64 = 1 << 42;
/// Least bytes of a record of any release: length, kind, cache and slot.
const COMMON_BYTES: usize = 7;
const IGNORABLE: u8 = 0x10;
const HAS_METADATA: u8 = 0x10;
const HAS_VALUE: u8 = 0x20;
const HAS_VERSION: u8 = 0x40;
const HAS_MORE: u8 = 0x80;

/// What a change names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// One encoded key.
    Key(&'a [u8]),
    /// Several encoded keys of one lane.
    Keys(Keys<'a>),
    /// Further keys of a change that did not fit the record by which it is counted.
    MoreKeys(Keys<'a>),
    /// All entries with a tag.
    Tag(&'a str),
    /// All entries whose text key starts so.
    Prefix(&'a str),
    /// Everything in the cache.
    All,
}

/// Encoded keys, borrowed from a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys<'a> {
    count: usize,
    bytes: &'a [u8],
}

impl<'a> Keys<'a> {
    /// How many keys there are.
    #[must_use]
    pub fn len(self) -> usize {
        self.count
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.count == 0
    }

    /// The keys in order.
    pub fn iter(self) -> impl Iterator<Item = &'a [u8]> {
        let mut reader = Reader(self.bytes);
        std::iter::from_fn(move || if reader.0.is_empty() { None } else { reader.block().ok() })
    }
}

/// Metadata pairs, borrowed from a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metadata<'a>(&'a [u8]);

impl<'a> Metadata<'a> {
    /// The pairs in the order in which they were given.
    pub fn iter(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let mut reader = Reader(self.0);
        std::iter::from_fn(move || {
            if reader.0.is_empty() { None } else { Some((reader.text().ok()?, reader.text().ok()?)) }
        })
    }
}

/// One event, borrowed from the batch that carried it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// What happened.
    pub kind: EventKind,
    /// By which call.
    pub operation: Operation,
    /// In which cache.
    pub cache: CacheId,
    /// In which class of keys; for several keys, that of the first.
    pub slot: Slot,
    /// When, by the origin's hybrid clock.
    pub stamp: Stamp,
    /// The schema of what its writer caches there; 0 where it states none.
    pub schema: u32,
    /// The application's version of the value, where it gave one.
    pub version: Option<u64>,
    /// What the writer wanted subscribers to know.
    pub metadata: Metadata<'a>,
    /// The encoded value, where it travels.
    pub value: Option<&'a [u8]>,
    /// What changed.
    pub target: Target<'a>,
    /// Whether it is of a write that may still land.
    pub uncertain: bool,
}

impl Record<'_> {
    /// Whether a change made by a user is counted by this record of its lane: of all records of one change, one is.
    /// Informational events are none.
    #[inline]
    #[must_use]
    pub fn is_counted(&self, lane: LaneId) -> bool {
        self.kind.is_mutation()
            && match self.target {
                Target::Key(_) | Target::Keys(_) => true,
                Target::MoreKeys(_) => false,
                // On every lane there is a copy of it.
                Target::Tag(_) | Target::Prefix(_) | Target::All => lane.index() == 0,
            }
    }
}

/// A record ready to be appended: all but its stamp, which is given under the log's lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft<'a> {
    /// Its first bytes, little-endian.
    head: u64,
    /// What comes between the stamp and the target; mostly nothing.
    middle: SmallVec<[u8; 16]>,
    target: &'a [u8],
}

/// What a [`Draft`] is made of.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// What happened.
    pub kind: EventKind,
    /// By which call.
    pub operation: Operation,
    /// Whether a receiver that does not know the kind may pass over it.
    pub ignorable: bool,
    /// In which cache.
    pub cache: CacheId,
    /// In which class of keys.
    pub slot: Slot,
    /// The application's version of the value.
    pub version: Option<u64>,
    /// Name and text pairs for subscribers.
    pub metadata: &'a [(String, String)],
    /// The encoded value, to make it travel.
    pub value: Option<&'a [u8]>,
    /// What changed.
    pub target: DraftTarget<'a>,
}

/// What a draft's change names.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "each is the `Target` of its name")]
pub enum DraftTarget<'a> {
    Key(&'a [u8]),
    Keys(&'a [Bytes]),
    MoreKeys(&'a [Bytes]),
    Tag(&'a str),
    Prefix(&'a str),
    All,
}

/// A record would exceed a limit of the wire format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} of {bytes} bytes exceeds {limit}")]
pub struct TooLarge {
    /// What exceeds.
    pub what: &'static str,
    /// How large it is, in bytes.
    pub bytes: usize,
    /// How large it may be, in bytes.
    pub limit: usize,
}

fn within(what: &'static str, bytes: usize, limit: usize) -> Result<(), TooLarge> {
    if bytes > limit { Err(TooLarge { what, bytes, limit }) } else { Ok(()) }
}

impl<'a> Draft<'a> {
    /// Encodes a record, but for its stamp.
    ///
    /// # Errors
    /// [`TooLarge`] if a key, the metadata or the whole exceeds its limit.
    #[inline(always)]
    pub fn new(parts: Parts<'a>) -> Result<Self, TooLarge> {
        let mut flags = 0;
        let mut middle = SmallVec::new();
        let mut rest: &[u8] = &[];
        if let Some(version) = parts.version {
            flags |= HAS_VERSION;
            put_varint(&mut middle, version);
        }
        if !parts.metadata.is_empty() {
            flags |= HAS_METADATA;
            let mut pairs = SmallVec::<[u8; 64]>::new();
            for (name, text) in parts.metadata {
                put_block(&mut pairs, name.as_bytes());
                put_block(&mut pairs, text.as_bytes());
            }
            within("metadata", pairs.len(), METADATA_BYTES_MAX)?;
            put_block(&mut middle, &pairs);
        }
        if let Some(value) = parts.value {
            flags |= HAS_VALUE;
            put_block(&mut middle, value);
        }
        let target = match parts.target {
            DraftTarget::Key(key) => {
                within("key", key.len(), KEY_BYTES_MAX)?;
                rest = key;
                0
            }
            DraftTarget::Keys(keys) | DraftTarget::MoreKeys(keys) => {
                put_varint(&mut middle, keys.len() as u64);
                for key in keys {
                    within("key", key.len(), KEY_BYTES_MAX)?;
                    put_block(&mut middle, key);
                }
                if matches!(parts.target, DraftTarget::Keys(_)) { 1 } else { 5 }
            }
            DraftTarget::Tag(tag) => {
                within("tag", tag.len(), KEY_BYTES_MAX)?;
                rest = tag.as_bytes();
                2
            }
            DraftTarget::Prefix(prefix) => {
                within("prefix", prefix.len(), KEY_BYTES_MAX)?;
                rest = prefix.as_bytes();
                3
            }
            DraftTarget::All => 4,
        };
        within("record", HEAD_BYTES + middle.len() + rest.len(), RECORD_BYTES_MAX - VARINT_BYTES_MAX - 1)?;
        let kind = parts.kind as u8 | if parts.ignorable { IGNORABLE } else { 0 } | target << 5;
        let [a, b, c, d] = parts.cache.0.to_le_bytes();
        let head = [kind, a, b, c, d, parts.slot.index() as u8, parts.operation as u8 | flags, 0];
        let head = u64::from_le_bytes(head);
        Ok(Self { head, middle, target: rest })
    }

    /// Says what happened, where that is known only after the draft was made.
    pub fn set_kind(&mut self, kind: EventKind) {
        self.head = self.head & !0x0f | kind as u64;
    }

    /// Upper bound of the bytes that [`Draft::write`] appends.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        HEAD_BYTES + self.middle.len() + self.target.len() + 2 * VARINT_BYTES_MAX
    }

    /// Appends the record with its stamp, `delta` after the batch's base.
    #[inline]
    pub fn write(&self, delta: u64, out: &mut impl Extend8) {
        let length = HEAD_BYTES + varint_bytes(delta) + self.middle.len() + self.target.len();
        // Put together in a register first: bytes read again right after they were written one by one would stall.
        let (word, mut bytes) = varint_word(length as u64);
        let mut front = u128::from(word) | u128::from(self.head) << (8 * bytes);
        bytes += HEAD_BYTES;
        if delta < DELTA_SHORT {
            let (word, more) = varint_word(delta);
            front |= u128::from(word) << (8 * bytes);
            out.put_some(front.to_le_bytes(), bytes + more);
        } else {
            out.put_some(front.to_le_bytes(), bytes);
            put_varint(out, delta);
        }
        if !self.middle.is_empty() {
            out.put(&self.middle);
        }
        out.put(self.target);
    }
}

/// A batch, borrowed from a frame's body.
#[derive(Clone, Copy, Debug)]
pub struct BatchRef<'a> {
    /// Which lane.
    pub lane: LaneId,
    /// Sequence of the first record.
    pub first: Sequence,
    /// How many records there are.
    pub count: u32,
    /// How many lanes the origin has.
    pub lanes: Lanes,
    base: Stamp,
    records: &'a [u8],
}

/// A record that cannot be acted on, but can be passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opaque {
    /// Whether its writer said that it may be ignored.
    pub ignorable: bool,
    /// In which cache.
    pub cache: CacheId,
    /// Its kind, if that is unknown here; otherwise its body is broken.
    pub unknown_kind: Option<u8>,
}

impl<'a> BatchRef<'a> {
    /// The batch with bytes of its own, to be handed on.
    #[must_use]
    pub fn to_batch(&self) -> Batch {
        let Self { lane, first, count, base, .. } = *self;
        Batch { lane, first, count, base, records: Bytes::copy_from_slice(self.records) }
    }

    /// Reads the head of an `Events` frame's body.
    ///
    /// # Errors
    /// [`Unsound`] if it is cut short, names a lane that the origin does not have, or counts more records than its
    /// bytes can hold.
    pub fn parse(body: &'a [u8], lanes: Lanes) -> Result<Self, Unsound> {
        let mut reader = Reader(body);
        let lane = reader.byte()?;
        let lane = lanes.lane(lane).ok_or(Unsound("no such lane"))?;
        let first = reader.varint()?;
        let count = u32::try_from(reader.varint()?).map_err(|_| Unsound("count"))?;
        let base = Stamp(u64::from_le_bytes(reader.array()?));
        // Judged by what every release writes: a kind that is unknown here may have no operation and no stamp.
        let room = reader.0.len() / COMMON_BYTES;
        if first == 0 || count == 0 || count as usize > room || first.checked_add(u64::from(count)).is_none()
        {
            return Err(Unsound("count"));
        }
        Ok(Self { lane, first, count, lanes, base, records: reader.0 })
    }

    /// The sequence after the last record.
    #[must_use]
    pub fn next(&self) -> Sequence {
        self.first + Sequence::from(self.count)
    }

    /// The records with their sequences, from `from` on. An [`Unsound`] item is the last one; bytes left over
    /// after the last record are one, too.
    pub fn records(
        &self,
        from: Sequence,
    ) -> impl Iterator<Item = (Sequence, Result<Result<Record<'a>, Opaque>, Unsound>)> + use<'a> {
        let Self { first, count, base, records, .. } = *self;
        let (mut reader, mut sequence) = (Reader(records), first);
        let end = first + Sequence::from(count);
        std::iter::from_fn(move || {
            while sequence < end {
                let at = sequence;
                sequence += 1;
                match reader.block() {
                    Ok(_) if at < from => {}
                    Ok(body) => {
                        let parsed = parse::parse(body, base);
                        if parsed.is_err() {
                            reader = Reader(&[]);
                            sequence = end;
                        }
                        return Some((at, parsed));
                    }
                    Err(unsound) => {
                        reader = Reader(&[]);
                        sequence = end;
                        return Some((at, Err(unsound)));
                    }
                }
            }
            if reader.0.is_empty() {
                return None;
            }
            reader = Reader(&[]);
            Some((end, Err(Unsound("bytes left over"))))
        })
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
