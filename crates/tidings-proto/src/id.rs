//! Who made a change, where in its log it stands, and which class of keys it belongs to.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest node id or cluster name, in bytes. Both are parts of a certificate's URI and of log lines.
pub const NAME_BYTES_MAX: usize = 128;

/// Classes of keys that a fence can tell apart, per cache. Fixed by the wire protocol.
pub const SLOTS: usize = 64;

/// Default number of independent logs of an origin.
pub const LANES_DEFAULT: u8 = 4;

/// A name was empty, too long, or had a character outside `A-Z a-z 0-9 . _ -`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a valid name: use 1 to {NAME_BYTES_MAX} of A-Z a-z 0-9 . _ -")]
pub struct InvalidName {
    /// What was given, cut to a printable length.
    pub name: String,
}

/// Checks a node id or a cluster name.
///
/// # Errors
/// [`InvalidName`] if it is empty, longer than [`NAME_BYTES_MAX`], or holds any other character than
/// `A-Z a-z 0-9 . _ -`.
pub fn check_name(name: &str) -> Result<(), InvalidName> {
    let sound = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if sound { Ok(()) } else { Err(InvalidName { name: name.chars().take(NAME_BYTES_MAX).collect() }) }
}

/// Name of a node, unique within its cluster and equal to the one in its certificate.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// Parses a node id.
    ///
    /// # Errors
    /// [`InvalidName`], as [`check_name`] says.
    pub fn new(name: &str) -> Result<Self, InvalidName> {
        check_name(name)?;
        Ok(Self(name.into()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeId {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, InvalidName> {
        Self::new(name)
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::new(&name).map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Start of a node's life; strictly increasing per node id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// The next life of the same node.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Random name of one log: tells two processes apart that claim the same node id and incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogId(pub u64);

/// One life of one node: the author of changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// Which node.
    pub node: NodeId,
    /// Which of its lives.
    pub incarnation: Incarnation,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.node, self.incarnation)
    }
}

/// Class of keys, `0..SLOTS`: fences are kept per slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u8);

impl Slot {
    /// The slot of a key hash: its six highest bits, so that the low ones stay free for sharding.
    #[must_use]
    pub fn of_hash(hash: u64) -> Self {
        Self((hash >> 58) as u8)
    }

    /// The slot with this number, if there is one.
    #[must_use]
    pub fn new(index: u8) -> Option<Self> {
        (usize::from(index) < SLOTS).then_some(Self(index))
    }

    /// Its number, `0..SLOTS`.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// All slots.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..SLOTS as u8).map(Self)
    }
}

/// How many lanes an origin has: a power of two, `1..=SLOTS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Lanes(u8);

impl Lanes {
    /// `count` lanes, if that is a power of two within `1..=SLOTS`.
    #[must_use]
    pub fn new(count: u8) -> Option<Self> {
        (count.is_power_of_two() && usize::from(count) <= SLOTS).then_some(Self(count))
    }

    /// The number of lanes.
    #[must_use]
    pub fn count(self) -> u8 {
        self.0
    }

    /// The lane that carries a slot.
    #[must_use]
    pub fn lane_of(self, slot: Slot) -> LaneId {
        LaneId(slot.0 & (self.0 - 1))
    }

    /// All lanes, in order.
    pub fn ids(self) -> impl Iterator<Item = LaneId> {
        (0..self.0).map(LaneId)
    }

    /// The lane with this number, if there is one.
    #[must_use]
    pub fn lane(self, index: u8) -> Option<LaneId> {
        (index < self.0).then_some(LaneId(index))
    }

    /// The slots that a lane carries, one bit each.
    #[must_use]
    pub fn slots_of(self, lane: LaneId) -> SlotSet {
        Slot::all().filter(|slot| self.lane_of(*slot) == lane).collect()
    }
}

impl Default for Lanes {
    fn default() -> Self {
        Self(LANES_DEFAULT)
    }
}

impl<'de> Deserialize<'de> for Lanes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let count = u8::deserialize(deserializer)?;
        Self::new(count).ok_or_else(|| serde::de::Error::custom("lanes must be a power of two from 1 to 64"))
    }
}

/// One of an origin's logs. Lane `l` of `L` carries the slots that are `l` modulo `L`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LaneId(u8);

impl LaneId {
    /// Its number.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Its number as it is written on the wire.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }
}

/// A set of slots, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotSet(u64);

impl SlotSet {
    /// Every slot.
    pub const ALL: Self = Self(u64::MAX);

    /// Whether a slot is in the set.
    #[must_use]
    pub fn contains(self, slot: Slot) -> bool {
        self.0 & (1 << slot.index()) != 0
    }

    /// The set with these bits: the lowest is the first slot's.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// A bit for each slot, the lowest for the first.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The slots that are in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The slots that are in one of both.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The slots that are not in the other one.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The slots in the set.
    pub fn iter(self) -> impl Iterator<Item = Slot> {
        Slot::all().filter(move |slot| self.contains(*slot))
    }
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        Self(slots.into_iter().fold(0, |bits, slot| bits | 1 << slot.index()))
    }
}

/// Position in a lane, from 1, without holes.
pub type Sequence = u64;

/// The first position of every lane.
pub const FIRST: Sequence = 1;
