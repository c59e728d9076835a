//! Reads several partitions' rings as one stream.
//!
//! Events of one partition keep their order. An event of the whole cache stands in every ring; it is handed out once,
//! after everything that precedes it in any of the rings that are read, and before anything that follows it there. Of
//! what was displaced unread, every event is counted once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use crate::event::{RawEvent, WriterId};
use crate::ring::{Caller, Position};
use crate::topic::Topic;

#[derive(Clone, Copy, Debug)]
struct Cursor {
    partition: usize,
    position: Position,
}

/// What a reader found.
pub(crate) enum Found {
    Event(Arc<RawEvent>),
    /// So many were lost before the next one.
    Missed(u64),
    /// Nothing now: the waker is left.
    Nothing,
}

#[derive(Debug)]
pub(crate) struct Reader {
    id: WriterId,
    cursors: Vec<Cursor>,
    ready: VecDeque<Arc<RawEvent>>,
    turn: usize,
    /// Number of the last event of the whole cache that was handed out or counted as missed. A cursor that is beyond
    /// it waits for the others.
    whole: u64,
    /// The event of the next number, once a cursor has found it.
    next_whole: Option<Arc<RawEvent>>,
    /// What the cursors left in their rings.
    waker: Waker,
}

impl Reader {
    /// Starts after what was told so far; nothing if the cache is closed.
    pub(crate) fn start(topic: &Topic, id: WriterId, partitions: &[usize]) -> Option<Self> {
        let (positions, whole) = topic.join(partitions)?;
        let cursor = |(partition, position): (&usize, _)| Cursor { partition: *partition, position };
        let cursors = partitions.iter().zip(positions).map(cursor).collect();
        let (ready, waker) = (VecDeque::new(), Waker::noop().clone());
        Some(Self { id, cursors, ready, turn: 0, whole, next_whole: None, waker })
    }

    /// Ends it.
    pub(crate) fn leave(&self, topic: &Topic) {
        topic.leave(self.id, self.cursors.iter().map(|cursor| (cursor.partition, cursor.position)));
    }

    /// How many events wait.
    pub(crate) fn backlog(&self, topic: &Topic) -> u64 {
        let waiting = |cursor: &Cursor| topic.ring(cursor.partition).backlog(cursor.position.at);
        self.ready.len() as u64 + self.cursors.iter().map(waiting).sum::<u64>()
    }

    /// The next event, if it was taken out of its ring before.
    #[inline]
    pub(crate) fn at_hand(&mut self) -> Option<Arc<RawEvent>> {
        self.ready.pop_front()
    }

    /// Whether there is certainly nothing to read, and each ring has this waker: asked after every event, for a
    /// subscriber that keeps up.
    #[inline]
    pub(crate) fn is_idle(&self, topic: &Topic, waker: &Waker) -> bool {
        let quiet = |cursor: &Cursor| topic.ring(cursor.partition).is_quiet(cursor.position);
        let held = !self.ready.is_empty() || self.next_whole.is_some();
        !held && !self.cursors.is_empty() && self.cursors.iter().all(quiet) && self.waker.will_wake(waker)
    }

    /// The next event, or how many were lost before it.
    pub(crate) fn next(&mut self, topic: &Topic, waker: &Waker) -> Found {
        if !self.waker.will_wake(waker) {
            self.waker.clone_from(waker);
            self.cursors.iter_mut().for_each(|cursor| cursor.position.forget_waker());
        }
        loop {
            if let Some(event) = self.at_hand().or_else(|| self.settle_whole()) {
                return Found::Event(event);
            }
            let missed = self.refill(topic);
            if missed > 0 {
                return Found::Missed(missed);
            }
            if self.ready.is_empty() && !self.whole_is_due() {
                return Found::Nothing;
            }
        }
    }

    fn whole_is_due(&self) -> bool {
        self.next_whole.is_some() && self.cursors.iter().all(|cursor| cursor.position.whole > self.whole)
    }

    /// Hands out the next event of the whole cache once every cursor has reached it.
    fn settle_whole(&mut self) -> Option<Arc<RawEvent>> {
        if !self.whole_is_due() {
            return None;
        }
        self.whole += 1;
        self.next_whole.take()
    }

    /// Reads one ring that has something, taking turns. Returns how many events were lost.
    fn refill(&mut self, topic: &Topic) -> u64 {
        let count = self.cursors.len();
        if count == 0 {
            topic.ring(0).wait(Caller { id: self.id, waker: &self.waker });
        }
        let turn = self.turn;
        for index in (turn..count).chain(0..turn) {
            while self.may_find(index, topic) {
                let missed = self.read(index, topic);
                if missed > 0 || !self.ready.is_empty() {
                    self.turn = if index + 1 < count { index + 1 } else { 0 };
                    return missed;
                }
            }
        }
        0
    }

    /// Whether a cursor's ring may have something that is to be read now.
    fn may_find(&self, index: usize, topic: &Topic) -> bool {
        let Cursor { partition, position } = self.cursors[index];
        position.whole <= self.whole && !topic.ring(partition).is_quiet(position)
    }

    /// Reads one ring. Returns how many events were lost.
    fn read(&mut self, index: usize, topic: &Topic) -> u64 {
        let cursor = &mut self.cursors[index];
        let caller = Caller { id: self.id, waker: &self.waker };
        let mut missed = topic.ring(cursor.partition).read(&mut cursor.position, &mut self.ready, caller);
        let last = self.ready.pop_back_if(|event| event.whole > 0);
        // Those of the whole cache that this ring has lost are lost, wherever else they may still stand: what came
        // after them here is told now.
        let lost = cursor.position.whole - u64::from(last.is_some());
        if lost > self.whole {
            missed += lost - self.whole;
            self.whole = lost;
            self.next_whole = None;
        }
        if let Some(last) = last
            && last.whole > self.whole
        {
            self.next_whole = Some(last);
        }
        missed
    }
}
