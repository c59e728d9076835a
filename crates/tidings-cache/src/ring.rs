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

#[derive(Debug)]
struct Inner {
    events: VecDeque<Arc<RawEvent>>,
    /// Position of the oldest event held.
    first: u64,
    bytes: usize,
    waiters: Waiters,
}

#[derive(Debug)]
pub(crate) struct Ring {
    bounds: RingBounds,
    inner: Mutex<Inner>,
}

impl Ring {
    pub(crate) fn new(bounds: RingBounds) -> Self {
        let inner = Inner { events: VecDeque::new(), first: 0, bytes: 0, waiters: Waiters::default() };
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
            let oldest = inner.events.pop_front().expect("the ring holds more than one event");
            inner.bytes -= oldest.bytes();
            inner.first += 1;
        }
        inner.waiters.take()
    }

    /// The position after the newest event: where a new subscriber starts.
    pub(crate) fn end(&self) -> u64 {
        let inner = self.inner.lock();
        inner.first + inner.events.len() as u64
    }

    /// Hands out at most `max` events from `cursor` on, and how many before them are lost. Registers the waker when
    /// there is nothing.
    pub(crate) fn read(
        &self,
        cursor: &mut u64,
        max: usize,
        out: &mut VecDeque<Arc<RawEvent>>,
        waker: &Waker,
    ) -> u64 {
        let mut inner = self.inner.lock();
        let missed = inner.first.saturating_sub(*cursor);
        *cursor += missed;
        let from = (*cursor - inner.first) as usize;
        let before = out.len();
        out.extend(inner.events.iter().skip(from).take(max).cloned());
        let read = (out.len() - before) as u64;
        *cursor += read;
        if read == 0 {
            inner.waiters.register(waker);
        }
        missed
    }

    /// Events that a cursor has still to read.
    pub(crate) fn backlog(&self, cursor: u64) -> u64 {
        let inner = self.inner.lock();
        (inner.first + inner.events.len() as u64).saturating_sub(cursor)
    }

    /// Forgets what it holds: nobody reads it.
    pub(crate) fn clear(&self) {
        let mut inner = self.inner.lock();
        inner.first += inner.events.len() as u64;
        inner.events = VecDeque::new();
        inner.bytes = 0;
    }

    /// Wakes every reader, to notice that the cache was closed.
    pub(crate) fn wake_all(&self) {
        let waiters = self.inner.lock().waiters.take();
        waiters.wake();
    }
}
