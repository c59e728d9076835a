//! How nodes compare and copy what they hold of a cache whose values travel: questions of one member to another.
//!
//! ```text
//! question := kind: u8 | cache: u32 le | rest
//!   1 digests: no more bytes
//!   2 list:    slots: u64 le | part: u8 | whether it continues: u8 | after: u64 le
//!   3 fetch:   count: varint, per key: length, bytes
//!   4 refused: stamp | instead: u64 le | what: u8 | the remaining bytes: 0 a key, 1 a tag, 2 a prefix, 3 none
//! answer := kind: u8 | rest
//!   1 digests: per slot: digest: u64 le, floor: stamp
//!   2 list:    whether more follows: u8 | count: varint, per key: stamp, removed: u8, length, key
//!   3 fetch:   schema: varint | count: varint, per value: stamp, length, key, length, value
//!   4 noted: no more bytes
//!   5 absent: no more bytes
//! stamp := time: u64 le | author: u64 le
//! ```
//!
//! A list is of one of a cache's parts, in the order of hashes and then of keys. It continues behind the hash of the
//! last key of the list before, so keys of one hash stand in one list. A fetch answers for as many of its keys as
//! there is room for, in their order, and leaves out those that are not held any more. Whoever knows no such kind
//! refuses the question.

use bytes::{Bytes, BytesMut};

use super::{Sought, WriteStamp};
use crate::ask::QUESTION_BYTES_MAX;
use crate::hash::{CacheId, key_hash};
use crate::hlc::Stamp;
use crate::id::{SLOTS, Slot, SlotSet};
use crate::record::KEY_BYTES_MAX;
use crate::varint::{Extend8, Reader, Unsound, put_block, put_varint, text};

pub use crate::ask::ANSWER_BYTES_MAX;

/// Into how many parts a cache's keys are divided for lists, by the lowest bits of their hashes.
pub const PARTS: usize = 64;

/// Most keys in a list: with stamps and keys of usual length an answer of 64 KiB.
pub const LISTED_MAX: usize = 1_024;

/// Most keys that are fetched with one question.
pub const FETCHED_MAX: usize = 1_024;

/// Most bytes of keys in a list, with their lengths: few answers are longer than those that carry values.
const LISTED_BYTES_MAX: usize = 64 << 10;

/// Most bytes of keys in a question, with their lengths.
const FETCHED_BYTES_MAX: usize = QUESTION_BYTES_MAX - 16;

/// What a member is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question<'a> {
    /// What do your slots add up to?
    Digests,
    /// Which writes do you know of in these slots, in one part of the cache, beyond this hash?
    List {
        /// In which slots.
        slots: SlotSet,
        /// In which of a cache's parts.
        part: u8,
        /// Where the list before has ended.
        after: Option<u64>,
    },
    /// What are the values of these keys?
    Fetch(Vec<&'a [u8]>),
    /// A write of yours was refused, for it is of the future.
    Refused {
        /// The write.
        stamp: WriteStamp,
        /// What it has changed.
        of: Changed<'a>,
    },
}

/// What a write that was refused has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed<'a> {
    /// A key.
    Key(&'a [u8]),
    /// Everything with a tag.
    Tag(&'a str),
    /// Everything whose key starts so.
    Prefix(&'a str),
    /// Everything.
    All,
}

impl<'a> Changed<'a> {
    fn write(self, out: &mut BytesMut) {
        let (what, rest) = match self {
            Self::Key(key) => (0, key),
            Self::Tag(tag) => (1, tag.as_bytes()),
            Self::Prefix(prefix) => (2, prefix.as_bytes()),
            Self::All => (3, &[][..]),
        };
        out.put(&[what]);
        out.put(rest);
    }

    fn read(reader: &mut Reader<'a>) -> Result<Self, Unsound> {
        let what = reader.byte()?;
        let rest = std::mem::take(&mut reader.0);
        if rest.len() > KEY_BYTES_MAX {
            return Err(Unsound("key length"));
        }
        match what {
            0 => Ok(Self::Key(rest)),
            1 => Ok(Self::Tag(text(rest)?)),
            2 => Ok(Self::Prefix(text(rest)?)),
            3 if rest.is_empty() => Ok(Self::All),
            _ => Err(Unsound("what was changed")),
        }
    }
}

/// What a member answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The digests of its slots.
    Digests(Box<Digests>),
    /// Writes that it knows of.
    List(Listed<'a>),
    /// Values.
    Fetch {
        /// The schema of its values.
        schema: u32,
        /// Each as [`super::Travelling`].
        values: Vec<Fetched<'a>>,
    },
    /// It has taken note.
    Noted,
    /// It has no such cache whose values travel.
    Absent,
}

/// What all slots of a cache add up to on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digests {
    /// By slot, as [`super::Replica::digest`].
    pub sums: [u64; SLOTS],
    /// By slot, as [`super::Replica::floor`].
    pub floors: [WriteStamp; SLOTS],
}

/// A part of what a node knows of, in the order of hashes and then of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed<'a> {
    /// Whether there is more behind the hash of the last one.
    pub more: bool,
    /// The writes.
    pub writes: Vec<Listing<'a>>,
}

/// The last write of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listing<'a> {
    /// Where it stands.
    pub stamp: WriteStamp,
    /// Whether it removed the key.
    pub removed: bool,
    /// The key.
    pub key: &'a [u8],
}

/// A value with its write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched<'a> {
    /// Where it stands.
    pub stamp: WriteStamp,
    /// The key.
    pub key: &'a [u8],
    /// As [`super::Travelling`].
    pub value: &'a [u8],
}

impl<'a> Listed<'a> {
    /// Whether it is in order and behind `after`, and leads on if there is more: if not, it is no list.
    #[must_use]
    pub fn is_sound(&self, cache: CacheId, after: Option<u64>) -> bool {
        let places = self.writes.iter().map(|listing| place(cache, listing.key));
        let behind = places.clone().next().is_none_or(|(first, _)| after.is_none_or(|after| after < first));
        behind && places.is_sorted_by(|a, b| a < b) && !(self.more && self.writes.is_empty())
    }

    /// Behind which hash there is more, if there is.
    #[must_use]
    pub fn end(&self, cache: CacheId) -> Option<u64> {
        self.writes.last().filter(|_| self.more).map(|listing| key_hash(cache, listing.key))
    }

    /// The write of a key, if it is in this list, which has to be sound.
    #[must_use]
    pub fn get(&self, cache: CacheId, key: Sought<'_>) -> Option<&Listing<'a>> {
        let order = |listing: &Listing<'_>| place(cache, listing.key).cmp(&(key.hash, key.bytes));
        self.writes.binary_search_by(order).ok().map(|at| &self.writes[at])
    }
}

/// By what lists are ordered.
fn place(cache: CacheId, key: &[u8]) -> (u64, &[u8]) {
    (key_hash(cache, key), key)
}

fn put_stamp(out: &mut BytesMut, stamp: WriteStamp) {
    out.put(&stamp.at.0.to_le_bytes());
    out.put(&stamp.author.to_le_bytes());
}

fn stamp(reader: &mut Reader<'_>) -> Result<WriteStamp, Unsound> {
    Ok(WriteStamp { at: Stamp(word(reader)?), author: word(reader)? })
}

fn word(reader: &mut Reader<'_>) -> Result<u64, Unsound> {
    Ok(u64::from_le_bytes(reader.array()?))
}

fn key<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], Unsound> {
    let key = reader.block()?;
    if key.len() > KEY_BYTES_MAX { Err(Unsound("key length")) } else { Ok(key) }
}

/// A count of things of which each takes so many bytes at least.
fn count(reader: &mut Reader<'_>, least: usize, most: usize) -> Result<usize, Unsound> {
    let count = usize::try_from(reader.varint()?).map_err(|_| Unsound("count"))?;
    if count > most || count > reader.0.len() / least { Err(Unsound("count")) } else { Ok(count) }
}

fn all_of<T>(reader: &Reader<'_>, read: T) -> Result<T, Unsound> {
    if reader.0.is_empty() { Ok(read) } else { Err(Unsound("bytes left over")) }
}

fn flag(reader: &mut Reader<'_>) -> Result<bool, Unsound> {
    match reader.byte()? {
        byte @ 0..=1 => Ok(byte == 1),
        _ => Err(Unsound("flag")),
    }
}

impl<'a> Question<'a> {
    /// A question for some of these keys, as many as fit; and how many those are.
    #[must_use]
    pub fn fetch(keys: &[&'a [u8]]) -> (Self, usize) {
        let mut bytes = 0;
        let fits = |key: &&&[u8]| {
            bytes += key.len() + 3;
            bytes <= FETCHED_BYTES_MAX
        };
        let some: Vec<_> = keys.iter().take(FETCHED_MAX).take_while(fits).copied().collect();
        let count = some.len();
        (Self::Fetch(some), count)
    }

    /// Its bytes, about a cache.
    #[must_use]
    pub fn encode(&self, cache: CacheId) -> Bytes {
        let mut out = BytesMut::new();
        let kind = match self {
            Self::Digests => 1,
            Self::List { .. } => 2,
            Self::Fetch(_) => 3,
            Self::Refused { .. } => 4,
        };
        out.put(&[kind]);
        out.put(&cache.0.to_le_bytes());
        match self {
            Self::Digests => {}
            Self::List { slots, part, after } => {
                out.put(&slots.bits().to_le_bytes());
                out.put(&[*part, u8::from(after.is_some())]);
                out.put(&after.unwrap_or_default().to_le_bytes());
            }
            Self::Fetch(keys) => {
                put_varint(&mut out, keys.len() as u64);
                keys.iter().for_each(|key| put_block(&mut out, key));
            }
            Self::Refused { stamp, of } => {
                put_stamp(&mut out, *stamp);
                of.write(&mut out);
            }
        }
        out.freeze()
    }

    /// Reads a question, and about which cache it is.
    ///
    /// # Errors
    /// [`Unsound`] if it is broken, or of a kind that this release does not know.
    pub fn decode(body: &'a [u8]) -> Result<(CacheId, Self), Unsound> {
        let mut reader = Reader(body);
        let kind = reader.byte()?;
        let cache = CacheId(u32::from_le_bytes(reader.array()?));
        let question = match kind {
            1 => Self::Digests,
            2 => {
                let slots = SlotSet::from_bits(word(&mut reader)?);
                let part = reader.byte()?;
                let (continues, after) = (flag(&mut reader)?, word(&mut reader)?);
                Self::List { slots, part, after: continues.then_some(after) }
            }
            3 => {
                let count = count(&mut reader, 1, FETCHED_MAX)?;
                Self::Fetch((0..count).map(|_| key(&mut reader)).collect::<Result<_, _>>()?)
            }
            4 => Self::Refused { stamp: stamp(&mut reader)?, of: Changed::read(&mut reader)? },
            _ => return Err(Unsound("kind of question")),
        };
        all_of(&reader, (cache, question))
    }
}

impl<'a> Answer<'a> {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Digests(digests) => {
                out.put(&[1]);
                for (sum, floor) in digests.sums.iter().zip(&digests.floors) {
                    out.put(&sum.to_le_bytes());
                    put_stamp(&mut out, *floor);
                }
            }
            Self::List(Listed { more, writes }) => {
                out.put(&[2, u8::from(*more)]);
                put_varint(&mut out, writes.len() as u64);
                for Listing { stamp, removed, key } in writes {
                    put_stamp(&mut out, *stamp);
                    out.put(&[u8::from(*removed)]);
                    put_block(&mut out, key);
                }
            }
            Self::Fetch { schema, values } => {
                out.put(&[3]);
                put_varint(&mut out, u64::from(*schema));
                put_varint(&mut out, values.len() as u64);
                for Fetched { stamp, key, value } in values {
                    put_stamp(&mut out, *stamp);
                    put_block(&mut out, key);
                    put_block(&mut out, value);
                }
            }
            Self::Noted => out.put(&[4]),
            Self::Absent => out.put(&[5]),
        }
        out.freeze()
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// [`Unsound`] if it is broken.
    pub fn decode(body: &'a [u8]) -> Result<Self, Unsound> {
        let mut reader = Reader(body);
        let answer = match reader.byte()? {
            1 => {
                let mut digests = Digests { sums: [0; SLOTS], floors: [WriteStamp::NEVER; SLOTS] };
                for slot in Slot::all() {
                    digests.sums[slot.index()] = word(&mut reader)?;
                    digests.floors[slot.index()] = stamp(&mut reader)?;
                }
                Self::Digests(Box::new(digests))
            }
            2 => {
                let more = flag(&mut reader)?;
                let count = count(&mut reader, 18, LISTED_MAX)?;
                let listing = |_| {
                    let (stamp, removed) = (stamp(&mut reader)?, flag(&mut reader)?);
                    Ok(Listing { stamp, removed, key: key(&mut reader)? })
                };
                let writes = (0..count).map(listing).collect::<Result<_, Unsound>>()?;
                Self::List(Listed { more, writes })
            }
            3 => {
                let schema = u32::try_from(reader.varint()?).map_err(|_| Unsound("schema"))?;
                let count = count(&mut reader, 18, FETCHED_MAX)?;
                let fetched = |_| {
                    let (stamp, key) = (stamp(&mut reader)?, key(&mut reader)?);
                    Ok(Fetched { stamp, key, value: reader.block()? })
                };
                Self::Fetch { schema, values: (0..count).map(fetched).collect::<Result<_, Unsound>>()? }
            }
            4 => Self::Noted,
            5 => Self::Absent,
            _ => return Err(Unsound("kind of answer")),
        };
        all_of(&reader, answer)
    }
}

/// Gathers a list: the first writes by hash and key, as many as fit, and of each hash all or none.
///
/// Keys of one hash that do not fit a list, sixteen of the longest or more than [`LISTED_MAX`] of the others, leave
/// it empty though there is more. To have so many they must have been made for that: nobody goes on from there, and
/// who compares stays in doubt.
#[derive(Debug, Default)]
pub struct ListOf<'a> {
    writes: Vec<(u64, Listing<'a>)>,
}

impl<'a> ListOf<'a> {
    /// Adds a write.
    pub fn add(&mut self, hash: u64, listing: Listing<'a>) {
        self.writes.push((hash, listing));
    }

    /// The list.
    #[must_use]
    pub fn finish(mut self) -> Answer<'a> {
        let order = |a: &(u64, Listing<'_>), b: &(u64, Listing<'_>)| (a.0, a.1.key).cmp(&(b.0, b.1.key));
        if self.writes.len() > LISTED_MAX {
            // Not all of them are put in order: the first, and the next one, by whose hash it is told where to end.
            self.writes.select_nth_unstable_by(LISTED_MAX, order);
            self.writes.truncate(LISTED_MAX + 1);
        }
        self.writes.sort_unstable_by(order);
        let mut bytes = 0;
        let fits = |(_, listing): &&(u64, Listing<'_>)| {
            bytes += listing.key.len() + 3;
            bytes <= LISTED_BYTES_MAX
        };
        let count = self.writes.iter().take(LISTED_MAX).take_while(fits).count();
        let next = self.writes.get(count).map(|(hash, _)| *hash);
        let whole = self.writes.iter().take_while(|(hash, _)| next.is_none_or(|next| *hash < next));
        Answer::List(Listed { more: next.is_some(), writes: whole.map(|(_, write)| *write).collect() })
    }
}

const _: () = assert!(
    LISTED_MAX * 17 + LISTED_BYTES_MAX + 16 <= ANSWER_BYTES_MAX
        && KEY_BYTES_MAX + 3 <= FETCHED_BYTES_MAX
        && super::VALUE_BYTES_MAX + KEY_BYTES_MAX + 64 <= ANSWER_BYTES_MAX,
    "every list fits an answer, and so does every value with its key"
);

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
