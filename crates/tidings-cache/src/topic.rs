//! A cache's events for this node's subscribers: one ring per partition.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tidings_proto::event::{EventKind, Operation};
use tidings_proto::hlc::Stamp;
use tidings_proto::id::{LaneId, Origin, Sequence};
use tidings_proto::wake::Waiters;

use crate::event::{Metadata, RawEvent, RawTarget, WriterId};
use crate::key::KeyRef;
use crate::ring::{Ring, RingBounds};

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
}

impl Told {
    /// A fact of this node that is not logged.
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
        }
    }
}

/// Readers to wake after the locks are released; several where one change was told to several partitions.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Woken(SmallVec<[Waiters; 2]>);

impl Woken {
    pub(crate) fn add(&mut self, waiters: Waiters) {
        self.0.push(waiters);
    }

    pub(crate) fn wake(self) {
        self.0.into_iter().for_each(Waiters::wake);
    }
}

#[derive(Debug)]
pub(crate) struct Topic {
    cache: Arc<str>,
    rings: Box<[Ring]>,
    subscribers: AtomicUsize,
    closed: Mutex<bool>,
}

impl Topic {
    pub(crate) fn new(cache: Arc<str>, partitions: usize, bounds: RingBounds) -> Self {
        let rings = (0..partitions).map(|_| Ring::new(bounds)).collect();
        Self { cache, rings, subscribers: AtomicUsize::new(0), closed: Mutex::new(false) }
    }

    /// Whether anybody listens: if not, events are not even made.
    #[inline]
    pub(crate) fn is_active(&self) -> bool {
        self.subscribers.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn subscribers(&self) -> usize {
        self.subscribers.load(Ordering::Relaxed)
    }

    pub(crate) fn ring(&self, partition: usize) -> &Ring {
        &self.rings[partition]
    }

    pub(crate) fn partitions(&self) -> usize {
        self.rings.len()
    }

    pub(crate) fn join(&self) {
        self.subscribers.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn leave(&self) {
        if self.subscribers.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.rings.iter().for_each(Ring::clear);
        }
    }

    pub(crate) fn close(&self) {
        *self.closed.lock() = true;
        self.rings.iter().for_each(Ring::wake_all);
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.closed.lock()
    }

    fn event(&self, target: RawTarget, partition: Option<usize>, told: Told) -> Arc<RawEvent> {
        Arc::new(RawEvent {
            kind: told.kind,
            operation: told.operation,
            cache: self.cache.clone(),
            target,
            origin: told.origin,
            position: told.position,
            partition,
            local: told.local,
            stamp: told.stamp,
            metadata: told.metadata,
            writer: told.writer,
        })
    }

    /// Tells of one key.
    pub(crate) fn tell_key(&self, partition: usize, key: KeyRef<'_>, told: Told) -> Waiters {
        let event = self.event(RawTarget::Key(key.to_bytes()), Some(partition), told);
        self.rings[partition].push(event)
    }

    /// Tells of several keys, one event per partition that has some.
    pub(crate) fn tell_keys(&self, keys: &[(usize, Bytes)], told: &Told) -> Woken {
        let mut woken = Woken::default();
        let partitions: HashSet<usize> = keys.iter().map(|(partition, _)| *partition).collect();
        for partition in partitions {
            let of_it = keys.iter().filter(|(of, _)| *of == partition).map(|(_, key)| key.clone());
            let event = self.event(RawTarget::Keys(of_it.collect()), Some(partition), told.clone());
            woken.add(self.rings[partition].push(event));
        }
        woken
    }

    /// Tells of the whole cache: the same event to every partition, so that who reads several can tell.
    pub(crate) fn tell_all(&self, target: RawTarget, told: Told) -> Woken {
        let event = self.event(target, None, told);
        let mut woken = Woken::default();
        for ring in &self.rings {
            woken.add(ring.push(event.clone()));
        }
        woken
    }
}
