//! One partition's recent events: a bounded ring that every subscriber reads with a cursor of its own.
//!
//! A push costs one short lock and no allocation once the ring is warm, however many subscribers there are. When the
//! ring is full the oldest event goes; a subscriber that had not read it is told exactly how many it missed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use parking_lot::Mutex;
use tidings_proto::wake::Waiters;

use crate::event::RawEvent;

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

/// Where a reader of one ring stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    /// Position of the next event.
    pub(crate) at: u64,
    /// Number of the newest event of the whole cache before that.
    pub(crate) whole: u64,
}

#[derive(Debug)]
struct Inner {
    events: VecDeque<Arc<RawEvent>>,
    /// Position of the oldest event held.
    first: u64,
    /// Number of the newest event of the whole cache that is not held any more.
    whole_gone: u64,
    bytes: usize,
    waiters: Waiters,
}

impl Inner {
    fn forget_oldest(&mut self) {
        let Some(oldest) = self.events.pop_front() else { return };
        self.bytes -= oldest.bytes();
        self.first += 1;
        self.whole_gone = self.whole_gone.max(oldest.whole);
    }
}

#[derive(Debug)]
pub(crate) struct Ring {
    bounds: RingBounds,
    inner: Mutex<Inner>,
}

impl Ring {
    pub(crate) fn new(bounds: RingBounds) -> Self {
        let inner =
            Inner { events: VecDeque::new(), first: 0, whole_gone: 0, bytes: 0, waiters: Waiters::default() };
        Self { bounds, inner: Mutex::new(inner) }
    }

    /// Appends an event; wake the returned readers after releasing every other lock.
    pub(crate) fn push(&self, event: Arc<RawEvent>) -> Waiters {
        let mut inner = self.inner.lock();
        inner.bytes += event.bytes();
        inner.events.push_back(event);
        while inner.events.len() > self.bounds.events
            || inner.bytes > self.bounds.bytes && inner.events.len() > 1
        {
            inner.forget_oldest();
        }
        inner.waiters.take()
    }

    /// The position after the newest event, where a new subscriber starts. `whole` is the number of the newest event
    /// of the whole cache, all of which this ring has got.
    pub(crate) fn end(&self, whole: u64) -> Position {
        let inner = self.inner.lock();
        Position { at: inner.first + inner.events.len() as u64, whole }
    }

    /// Hands out at most `max` events, and none after one of the whole cache, so that the reader can put that in
    /// order with other partitions. Returns how many events of this partition alone are lost before them. Registers
    /// the waker when there is nothing.
    pub(crate) fn read(
        &self,
        position: &mut Position,
        max: usize,
        out: &mut VecDeque<Arc<RawEvent>>,
        waker: &Waker,
    ) -> u64 {
        let mut inner = self.inner.lock();
        let gone = inner.first.saturating_sub(position.at);
        let whole_gone = inner.whole_gone.saturating_sub(position.whole);
        position.at += gone;
        position.whole += whole_gone;
        let from = (position.at - inner.first) as usize;
        let before = out.len();
        for event in inner.events.range(from..).take(max) {
            out.push_back(event.clone());
            if event.whole > 0 {
                position.whole = event.whole;
                break;
            }
        }
        let read = (out.len() - before) as u64;
        position.at += read;
        if read == 0 {
            inner.waiters.register(waker);
        }
        gone - whole_gone
    }

    /// Remembers a reader that reads no partition, to be woken when the cache is closed.
    pub(crate) fn wait(&self, waker: &Waker) {
        self.inner.lock().waiters.register(waker);
    }

    /// Events that a cursor has still to read.
    pub(crate) fn backlog(&self, cursor: u64) -> u64 {
        let inner = self.inner.lock();
        (inner.first + inner.events.len() as u64).saturating_sub(cursor)
    }

    /// Forgets what it holds: nobody reads it.
    pub(crate) fn clear(&self) {
        let mut inner = self.inner.lock();
        while !inner.events.is_empty() {
            inner.forget_oldest();
        }
        inner.events = VecDeque::new();
    }

    /// Wakes every reader, to notice that something other than its events has changed.
    pub(crate) fn wake_all(&self) {
        let waiters = self.inner.lock().waiters.take();
        waiters.wake();
    }
}
