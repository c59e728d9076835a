//! One partition's recent events: a bounded ring that every subscriber reads with a cursor of its own.
//!
//! A push costs one short lock and no allocation once the ring is warm, however many subscribers there are. An event
//! goes when all of them have read it. When the ring is full the oldest goes; a subscriber that had not read it is
//! told exactly how many it missed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use parking_lot::Mutex;

use crate::event::{RawEvent, WriterId};

/// Bounds of one ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingBounds {
    /// Most events. Default 8,192.
    pub events: usize,
    /// Most bytes of keys and metadata. Default 4 MiB.
    pub bytes: usize,
}

impl Default for RingBounds {
    fn default() -> Self {
        Self { events: 8_192, bytes: 4 << 20 }
    }
}

/// Most events that one read hands out, so that the ring's lock is taken once for all of them.
const READ_EVENTS: usize = 64;

/// A read stops at so many bytes: what readers have taken out is beyond the ring's own bound.
const READ_BYTES: usize = 64 << 10;

/// Who reads, and how it is woken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller<'a> {
    pub(crate) id: WriterId,
    pub(crate) waker: &'a Waker,
}

/// Where a reader of one ring stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    /// Position of the next event.
    pub(crate) at: u64,
    /// Number of the newest event of the whole cache before that.
    pub(crate) whole: u64,
    /// The round in which its waker was left, having read everything.
    asleep: u64,
}

impl Position {
    /// Makes its next read leave another waker.
    pub(crate) fn forget_waker(&mut self) {
        self.asleep = ANOTHER;
    }
}

/// No round: no waker was left.
const AWAKE: u64 = 0;
/// No round: one that was left may still be there, and is another one now.
const ANOTHER: u64 = u64::MAX;

/// Readers to wake after the locks are released.
#[derive(Debug, Default)]
#[must_use = "readers stay asleep unless they are woken"]
pub(crate) struct Sleepers(Vec<(WriterId, Waker)>);

impl Sleepers {
    pub(crate) fn wake(self) {
        self.0.into_iter().for_each(|(_, waker)| waker.wake());
    }

    fn add(&mut self, Caller { id, waker }: Caller<'_>) {
        match self.0.iter_mut().find(|(known, _)| *known == id) {
            Some((_, known)) => known.clone_from(waker),
            None => self.0.push((id, waker.clone())),
        }
    }
}

#[derive(Debug)]
struct Held {
    event: Arc<RawEvent>,
    bytes: usize,
    /// How many have still to read it.
    unread: usize,
}

#[derive(Debug, Default)]
struct Inner {
    events: VecDeque<Held>,
    /// Position of the oldest event held.
    first: u64,
    /// Number of the newest event of the whole cache that is not held any more.
    whole_gone: u64,
    bytes: usize,
    readers: usize,
    sleepers: Sleepers,
}

impl Inner {
    fn end(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    fn forget_oldest(&mut self) {
        let Some(oldest) = self.events.pop_front() else { return };
        self.bytes -= oldest.bytes;
        self.first += 1;
        self.whole_gone = self.whole_gone.max(oldest.event.whole);
    }

    fn forget_read(&mut self) {
        while self.events.front().is_some_and(|oldest| oldest.unread == 0) {
            self.forget_oldest();
        }
    }
}

#[derive(Debug)]
pub(crate) struct Ring {
    bounds: RingBounds,
    /// Counts how often the sleepers were woken. A reader that left its waker in this round is still to be woken, so
    /// there is nothing for it to read.
    round: AtomicU64,
    inner: Mutex<Inner>,
}

impl Ring {
    pub(crate) fn new(bounds: RingBounds) -> Self {
        Self { bounds, round: AtomicU64::new(AWAKE + 1), inner: Mutex::default() }
    }

    /// Appends an event; wake the returned readers after releasing every other lock.
    pub(crate) fn push(&self, event: Arc<RawEvent>) -> Sleepers {
        let bytes = event.bytes();
        let mut inner = self.inner.lock();
        inner.bytes += bytes;
        let unread = inner.readers;
        inner.events.push_back(Held { event, bytes, unread });
        while inner.events.len() > self.bounds.events
            || inner.bytes > self.bounds.bytes && inner.events.len() > 1
        {
            inner.forget_oldest();
        }
        inner.forget_read();
        self.rouse(&mut inner)
    }

    /// Takes the sleepers. Costs nothing when there is none.
    fn rouse(&self, inner: &mut Inner) -> Sleepers {
        if inner.sleepers.0.is_empty() {
            return Sleepers::default();
        }
        self.round.fetch_add(1, Ordering::Release);
        let room = Sleepers(Vec::with_capacity(inner.sleepers.0.len()));
        std::mem::replace(&mut inner.sleepers, room)
    }

    /// Enters a reader, which starts after the newest event. `whole` is the number of the newest event of the whole
    /// cache, all of which this ring has got.
    pub(crate) fn join(&self, whole: u64) -> Position {
        let mut inner = self.inner.lock();
        inner.readers += 1;
        Position { at: inner.end(), whole, asleep: AWAKE }
    }

    /// Takes a reader out that stands here, with its waker.
    pub(crate) fn leave(&self, id: WriterId, position: Position) {
        let mut inner = self.inner.lock();
        inner.readers -= 1;
        let from = position.at.saturating_sub(inner.first) as usize;
        inner.events.range_mut(from..).for_each(|held| held.unread -= 1);
        inner.forget_read();
        if inner.readers == 0 {
            inner.events = VecDeque::new();
        }
        inner.sleepers.0.retain(|(known, _)| *known != id);
    }

    /// Whether certainly nothing has come since the reader left its waker here.
    pub(crate) fn is_quiet(&self, position: Position) -> bool {
        position.asleep == self.round.load(Ordering::Acquire)
    }

    /// Hands out some events, and none after one of the whole cache, so that the reader can put that in order with
    /// other partitions. Returns how many events of this partition alone are lost before them. Leaves the waker when
    /// nothing more is there.
    pub(crate) fn read(
        &self,
        position: &mut Position,
        out: &mut VecDeque<Arc<RawEvent>>,
        caller: Caller<'_>,
    ) -> u64 {
        let mut inner = self.inner.lock();
        let gone = inner.first.saturating_sub(position.at);
        let whole_gone = inner.whole_gone.saturating_sub(position.whole);
        position.at += gone;
        position.whole += whole_gone;
        let from = (position.at - inner.first) as usize;
        let mut bytes = 0;
        for held in inner.events.range_mut(from..).take(READ_EVENTS) {
            held.unread -= 1;
            bytes += held.bytes;
            position.at += 1;
            out.push_back(held.event.clone());
            if held.event.whole > 0 {
                position.whole = held.event.whole;
                break;
            }
            if bytes >= READ_BYTES {
                break;
            }
        }
        inner.forget_read();
        if position.at == inner.end() && !self.is_quiet(*position) {
            match position.asleep {
                ANOTHER => inner.sleepers.add(caller),
                // What was left in an earlier round was taken when that ended.
                _ => inner.sleepers.0.push((caller.id, caller.waker.clone())),
            }
            position.asleep = self.round.load(Ordering::Relaxed);
        }
        gone - whole_gone
    }

    /// Remembers a reader that reads no partition, to be woken when the cache is closed.
    pub(crate) fn wait(&self, caller: Caller<'_>) {
        self.inner.lock().sleepers.add(caller);
    }

    /// Forgets the waker of a reader that reads no partition.
    pub(crate) fn forget(&self, id: WriterId) {
        self.inner.lock().sleepers.0.retain(|(known, _)| *known != id);
    }

    /// Events that a cursor has still to read.
    pub(crate) fn backlog(&self, cursor: u64) -> u64 {
        self.inner.lock().end().saturating_sub(cursor)
    }

    /// Wakes every reader, to notice that something other than its events has changed.
    pub(crate) fn wake_all(&self) {
        let sleepers = self.rouse(&mut self.inner.lock());
        sleepers.wake();
    }
}
