//! Reads several partitions' rings as one stream.
//!
//! Events of one partition keep their order. An event of the whole cache stands in every ring; it is handed out once,
//! after everything that precedes it in any of the rings that are read, and before anything that follows it there. Of
//! what was displaced unread, every event is counted once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use crate::event::RawEvent;
use crate::ring::Position;
use crate::topic::Topic;

/// Events taken out of a ring under one hold of its lock.
const READ_BATCH: usize = 64;

#[derive(Debug)]
struct Cursor {
    partition: usize,
    position: Position,
}

/// What a reader found.
pub(crate) enum Found {
    Event(Arc<RawEvent>),
    /// So many were lost before the next one.
    Missed(u64),
    /// Nothing now: the waker is registered.
    Nothing,
}

#[derive(Debug)]
pub(crate) struct Reader {
    cursors: Vec<Cursor>,
    ready: VecDeque<Arc<RawEvent>>,
    turn: usize,
    /// Number of the last event of the whole cache that was handed out or counted as missed. A cursor that is beyond
    /// it waits for the others.
    whole: u64,
    /// The event of the next number, once a cursor has found it.
    next_whole: Option<Arc<RawEvent>>,
}

impl Reader {
    /// Starts after what was told so far; nothing if the cache is closed.
    pub(crate) fn start(topic: &Topic, partitions: &[usize]) -> Option<Self> {
        let (positions, whole) = topic.join(partitions)?;
        let cursor = |(partition, position): (&usize, _)| Cursor { partition: *partition, position };
        let cursors = partitions.iter().zip(positions).map(cursor).collect();
        Some(Self { cursors, ready: VecDeque::new(), turn: 0, whole, next_whole: None })
    }

    /// The partitions in whose rings its waker may be: those it reads, or the first one to hear of the close.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = usize> {
        let first = self.cursors.is_empty().then_some(0);
        self.cursors.iter().map(|cursor| cursor.partition).chain(first)
    }

    /// How many events wait.
    pub(crate) fn backlog(&self, topic: &Topic) -> u64 {
        let waiting = |cursor: &Cursor| topic.ring(cursor.partition).backlog(cursor.position.at);
        self.ready.len() as u64 + self.cursors.iter().map(waiting).sum::<u64>()
    }

    /// The next event, or how many were lost before it.
    pub(crate) fn next(&mut self, topic: &Topic, waker: &Waker) -> Found {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Found::Event(event);
            }
            if let Some(event) = self.settle_whole() {
                return Found::Event(event);
            }
            let missed = self.refill(topic, waker);
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
    fn refill(&mut self, topic: &Topic, waker: &Waker) -> u64 {
        let count = self.cursors.len();
        if count == 0 {
            topic.ring(0).wait(waker);
        }
        for step in 0..count {
            let index = (self.turn + step) % count;
            while self.cursors[index].position.whole <= self.whole {
                let stood_at = self.cursors[index].position.at;
                let missed = self.read(index, topic, waker);
                if missed > 0 || !self.ready.is_empty() {
                    self.turn = index + 1;
                    return missed;
                }
                if self.cursors[index].position.at == stood_at {
                    break;
                }
            }
        }
        0
    }

    /// Reads one ring. Returns how many events were lost.
    fn read(&mut self, index: usize, topic: &Topic, waker: &Waker) -> u64 {
        let cursor = &mut self.cursors[index];
        let ring = topic.ring(cursor.partition);
        let mut missed = ring.read(&mut cursor.position, READ_BATCH, &mut self.ready, waker);
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
