//! A cache's events for this node's subscribers: one ring per partition.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tidings_proto::event::{EventKind, Operation};
use tidings_proto::hlc::Stamp;
use tidings_proto::id::{LaneId, Origin, Sequence, SlotSet};

use crate::builder::Settings;
use crate::event::{self, Make, Metadata, Place, RawEvent, RawTarget, WriterId};
use crate::key::{Key, KeyRef};
use crate::ring::{Position, Ring, Sleepers};

/// Everything of an event but its target and partition.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) kind: EventKind,
    pub(crate) operation: Operation,
    pub(crate) origin: Arc<Origin>,
    pub(crate) position: Option<(LaneId, Sequence)>,
    pub(crate) local: bool,
    pub(crate) stamp: Stamp,
    pub(crate) metadata: Metadata,
    pub(crate) writer: Option<WriterId>,
    pub(crate) fenced: Option<SlotSet>,
}

impl Told {
    /// A fact of this node that is not logged.
    #[inline]
    pub(crate) fn here(kind: EventKind, operation: Operation, origin: Arc<Origin>, wall_ms: u64) -> Self {
        Self {
            kind,
            operation,
            origin,
            position: None,
            local: true,
            stamp: Stamp::from_wall_ms(wall_ms),
            metadata: Metadata::default(),
            writer: None,
            fenced: None,
        }
    }
}

/// Readers to wake after the locks are released; several where one change was told to several partitions.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Woken(SmallVec<[Sleepers; 2]>);

impl Woken {
    pub(crate) fn add(&mut self, sleepers: Sleepers) {
        self.0.push(sleepers);
    }

    pub(crate) fn wake(self) {
        self.0.into_iter().for_each(Sleepers::wake);
    }
}

/// How many subscriptions a cache has. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Audience(Arc<AtomicUsize>);

impl Audience {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn len(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
pub(crate) struct Topic {
    cache: Arc<str>,
    make: Make,
    rings: Box<[Ring]>,
    audience: Audience,
    closed: AtomicBool,
    /// Number of the newest event of the whole cache. Held while one goes to every ring, so that all rings hold these
    /// in one order.
    whole: Mutex<u64>,
}

impl Topic {
    /// For the keys of a cache with this name.
    pub(crate) fn of<K: Key>(cache: &Arc<str>, settings: &Settings, audience: Audience) -> Self {
        let rings = (0..settings.partitions).map(|_| Ring::new(settings.ring)).collect();
        let (cache, closed, whole) = (cache.clone(), AtomicBool::new(false), Mutex::default());
        Self { cache, make: event::make::<K>, rings, audience, closed, whole }
    }

    /// Whether anybody listens: if not, events are not even made.
    #[inline]
    pub(crate) fn is_active(&self) -> bool {
        !self.audience.is_empty()
    }

    pub(crate) fn subscribers(&self) -> usize {
        self.audience.len()
    }

    pub(crate) fn ring(&self, partition: usize) -> &Ring {
        &self.rings[partition]
    }

    pub(crate) fn partitions(&self) -> usize {
        self.rings.len()
    }

    /// Enters a subscriber of these partitions. Returns where it starts in each, and the number of the newest event
    /// of the whole cache; nothing if the cache is closed.
    pub(crate) fn join(&self, partitions: &[usize]) -> Option<(Vec<Position>, u64)> {
        let whole = self.whole.lock();
        if self.is_closed() {
            return None;
        }
        self.audience.0.fetch_add(1, Ordering::SeqCst);
        let positions = partitions.iter().map(|partition| self.rings[*partition].join(*whole)).collect();
        Some((positions, *whole))
    }

    /// Takes a subscriber out that stands here in these partitions.
    pub(crate) fn leave(&self, id: WriterId, partitions: impl Iterator<Item = (usize, Position)>) {
        self.audience.0.fetch_sub(1, Ordering::SeqCst);
        // Where one without partitions waits for the end.
        self.rings[0].forget(id);
        partitions.for_each(|(partition, position)| self.rings[partition].leave(id, position));
    }

    pub(crate) fn close(&self) {
        // Nobody joins afterwards; whoever fell asleep before is woken.
        let whole = self.whole.lock();
        self.closed.store(true, Ordering::Release);
        drop(whole);
        self.rings.iter().for_each(Ring::wake_all);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    #[inline]
    fn event(&self, target: RawTarget, partition: Option<usize>, whole: u64, told: Told) -> Arc<RawEvent> {
        (self.make)(Place { cache: self.cache.clone(), target, partition, whole }, told)
    }

    /// Tells of one key.
    #[inline]
    pub(crate) fn tell_key(&self, partition: usize, key: KeyRef<'_>, told: Told) -> Sleepers {
        let event = self.event(RawTarget::Key(key.to_bytes()), Some(partition), 0, told);
        self.rings[partition].push(event)
    }

    /// Tells of several keys, one event per partition that has some.
    pub(crate) fn tell_keys(&self, keys: &[(usize, Bytes)], told: &Told) -> Woken {
        let mut woken = Woken::default();
        let partitions: HashSet<usize> = keys.iter().map(|(partition, _)| *partition).collect();
        for partition in partitions {
            let of_it = keys.iter().filter(|(of, _)| *of == partition).map(|(_, key)| key.clone());
            let event = self.event(RawTarget::Keys(of_it.collect()), Some(partition), 0, told.clone());
            woken.add(self.rings[partition].push(event));
        }
        woken
    }

    /// Tells of the whole cache: the same event to every partition, under one number.
    pub(crate) fn tell_all(&self, target: RawTarget, told: Told) -> Woken {
        let mut woken = Woken::default();
        let mut whole = self.whole.lock();
        *whole += 1;
        let event = self.event(target, None, *whole, told);
        for ring in &self.rings {
            woken.add(ring.push(event.clone()));
        }
        woken
    }

    /// Tells that slots were fenced.
    pub(crate) fn tell_fenced(&self, slots: SlotSet, told: Told) -> Woken {
        self.tell_all(RawTarget::All, Told { fenced: Some(slots), ..told })
    }
}
