//! Events as subscribers see them.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tidings_proto::codec;
use tidings_proto::event::{EventKind, Operation};
use tidings_proto::hlc::Stamp;
use tidings_proto::id::{LaneId, Origin, Sequence, SlotSet};

use crate::key::Key;
use crate::topic::Told;

/// Names and texts that a writer hands to subscribers.
pub type Metadata = Arc<[(String, String)]>;

/// What an event names, keys still encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RawTarget {
    /// One key.
    Key(Bytes),
    /// Several keys of one partition.
    Keys(Arc<[Bytes]>),
    /// All entries with a tag.
    Tag(Arc<str>),
    /// All entries whose text key starts so.
    Prefix(Arc<str>),
    /// Everything.
    All,
}

/// An event whose key's type is not known. Behind it are its keys as the cache's users know them: decoded once, by the
/// first subscriber that wants them, in the one allocation that an event takes.
pub struct RawEvent<D: ?Sized = dyn Any + Send + Sync> {
    /// What happened.
    pub kind: EventKind,
    /// By which call.
    pub operation: Operation,
    /// In which cache.
    pub cache: Arc<str>,
    /// What changed.
    pub target: RawTarget,
    /// Who made the change.
    pub origin: Arc<Origin>,
    /// Position in the origin's log, where the event was logged.
    pub position: Option<(LaneId, Sequence)>,
    /// The partition on this node; `None` for an event that belongs to all of them.
    pub partition: Option<usize>,
    /// Whether this node made the change.
    pub local: bool,
    /// When, by the origin's hybrid clock.
    pub stamp: Stamp,
    /// What the writer wanted subscribers to know.
    pub metadata: Metadata,
    pub(crate) writer: Option<WriterId>,
    /// The number of an event that belongs to all partitions, from 1; 0 for one of a single partition.
    pub(crate) whole: u64,
    /// No event, but that slots were fenced.
    pub(crate) fenced: Option<SlotSet>,
    decoded: D,
}

impl<D: ?Sized> fmt::Debug for RawEvent<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawEvent")
            .field("kind", &self.kind)
            .field("operation", &self.operation)
            .field("cache", &self.cache)
            .field("target", &self.target)
            .field("origin", &self.origin)
            .field("position", &self.position)
            .field("partition", &self.partition)
            .field("stamp", &self.stamp)
            .field("metadata", &self.metadata)
            .finish_non_exhaustive()
    }
}

/// What an event names with its keys decoded, once somebody wanted that; nothing if they do not decode.
type Decoded<K> = OnceLock<Option<Target<K>>>;

/// Where an event is told.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) cache: Arc<str>,
    pub(crate) target: RawTarget,
    pub(crate) partition: Option<usize>,
    pub(crate) whole: u64,
}

/// Makes the events of a cache.
pub(crate) type Make = fn(Place, Told) -> Arc<RawEvent>;

/// The [`Make`] of a cache with keys of type `K`.
pub(crate) fn make<K: Key>(place: Place, told: Told) -> Arc<RawEvent> {
    let Place { cache, target, partition, whole } = place;
    let Told { kind, operation, origin, position, local, stamp, metadata, writer, fenced } = told;
    Arc::new(RawEvent {
        kind,
        operation,
        cache,
        target,
        origin,
        position,
        partition,
        local,
        stamp,
        metadata,
        writer,
        whole,
        fenced,
        decoded: Decoded::<K>::new(),
    })
}

/// Identifies a subscription, so that its owner's writes can be left out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WriterId(pub(crate) u64);

impl RawEvent {
    /// Bytes that the event holds, for bounds; what it names counts twice, for subscribers may have it decoded.
    pub(crate) fn bytes(&self) -> usize {
        let target = match &self.target {
            RawTarget::Key(key) => key.len(),
            RawTarget::Keys(keys) => keys.iter().map(Bytes::len).sum(),
            RawTarget::Tag(text) | RawTarget::Prefix(text) => text.len(),
            RawTarget::All => 0,
        };
        let metadata: usize = self.metadata.iter().map(|(name, text)| name.len() + text.len()).sum();
        size_of_val(self) + 2 * target + metadata
    }

    /// The encoded keys that it names.
    pub fn keys(&self) -> &[Bytes] {
        match &self.target {
            RawTarget::Key(key) => std::slice::from_ref(key),
            RawTarget::Keys(keys) => keys,
            _ => &[],
        }
    }
}

/// What an event names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target<K> {
    /// One key.
    Key(K),
    /// Several keys of one partition.
    Keys(Vec<K>),
    /// All entries with a tag.
    Tag(Arc<str>),
    /// All entries whose text key starts so.
    Prefix(Arc<str>),
    /// Everything.
    All,
}

/// An event of a cache with keys of type `K`. Clones, and the copies that other subscribers have, share it.
pub struct Event<K> {
    raw: Arc<RawEvent>,
    key: PhantomData<fn() -> K>,
}

impl<K> Clone for Event<K> {
    fn clone(&self) -> Self {
        Self { raw: self.raw.clone(), key: PhantomData }
    }
}

impl<K> fmt::Debug for Event<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Event").field(&self.raw).finish()
    }
}

impl<K> std::ops::Deref for Event<K> {
    type Target = RawEvent;

    fn deref(&self) -> &RawEvent {
        &self.raw
    }
}

impl<K: Key> Event<K> {
    /// `None` if a key does not decode: another node wrote keys of another type under this cache's name.
    #[inline]
    pub(crate) fn decode(raw: Arc<RawEvent>) -> Option<Self> {
        let decoded: &Decoded<K> = raw.decoded.downcast_ref()?;
        decoded.get_or_init(|| decoded_target(&raw.target)).as_ref()?;
        Some(Self { raw, key: PhantomData })
    }

    /// What changed.
    ///
    /// # Panics
    /// Never: an event's keys are decoded before it is handed out.
    #[must_use]
    pub fn target(&self) -> &Target<K> {
        let decoded = self.raw.decoded.downcast_ref::<Decoded<K>>().and_then(OnceLock::get);
        decoded.and_then(Option::as_ref).expect("the keys of a cache are of one type")
    }

    /// The key, if the event names exactly one.
    #[must_use]
    pub fn key(&self) -> Option<&K> {
        match self.target() {
            Target::Key(key) => Some(key),
            _ => None,
        }
    }
}

fn decoded_target<K: Key>(raw: &RawTarget) -> Option<Target<K>> {
    let key = |bytes: &Bytes| codec::decode::<K>(bytes).ok();
    Some(match raw {
        RawTarget::Key(bytes) => Target::Key(key(bytes)?),
        RawTarget::Keys(keys) => Target::Keys(keys.iter().map(key).collect::<Option<_>>()?),
        RawTarget::Tag(tag) => Target::Tag(tag.clone()),
        RawTarget::Prefix(prefix) => Target::Prefix(prefix.clone()),
        RawTarget::All => Target::All,
    })
}
