//! What a relay keeps of others' logs to serve from.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::batch::Batch;
use crate::id::{LaneId, Origin, Sequence};
use crate::log::{Cursor, Read};

/// Most bytes of all origins' changes together: as much as a node keeps of its own by default. What is older is with the
/// origin, if anywhere.
pub const HELD_BYTES_MAX: usize = 16 << 20;

/// What a batch costs beside its records, in bytes: its entries in two queues that grow by doubling.
const BATCH_OVERHEAD_BYTES: usize = 2 * (size_of::<Batch>() + size_of::<(Arc<Origin>, LaneId)>());

/// Where a follower's position is, to a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// It can be served from there, once there is something: a follower may be ahead of its relay.
    Held(Cursor),
    /// What follows it is not held. The relay can serve from here on.
    Gone(Sequence),
}

#[derive(Debug)]
struct Lane {
    batches: VecDeque<Batch>,
    next: Sequence,
}

/// The newest changes of all origins that are followed, oldest forgotten first. Batches share the bytes that came:
/// readers copy nothing.
#[derive(Debug)]
pub struct Held {
    bytes_max: usize,
    bytes: usize,
    /// Of each lane of each origin that is followed, as many as members can be; the caller forgets who is not.
    lanes: BTreeMap<(Arc<Origin>, LaneId), Lane>,
    /// Of each batch, in the order in which they came, whose it is.
    order: VecDeque<(Arc<Origin>, LaneId)>,
}

impl Held {
    /// Holds nothing, and at most so many bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, lanes: BTreeMap::new(), order: VecDeque::new() }
    }

    /// Bytes held, overhead included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A batch was applied here: every record of it is sound. What was held of its lane and does not reach up to it,
    /// because a fence covers what lies between, is forgotten. Its bytes should be an allocation of their own, or most
    /// of one.
    pub fn push(&mut self, origin: &Arc<Origin>, batch: Batch) {
        let key = (origin.clone(), batch.lane);
        let lane = self.lanes.entry(key.clone()).or_insert(Lane { batches: VecDeque::new(), next: 0 });
        if batch.next() <= lane.next {
            return;
        }
        if batch.first > lane.next && !lane.batches.is_empty() {
            self.bytes -= lane.batches.drain(..).map(|batch| cost(&batch)).sum::<usize>();
            self.order.retain(|of| *of != key);
        }
        lane.next = batch.next();
        self.bytes += cost(&batch);
        lane.batches.push_back(batch);
        self.order.push_back(key);
        while self.bytes > self.bytes_max
            && let Some(oldest) = self.order.pop_front()
        {
            let batches = self.lanes.get_mut(&oldest).map(|lane| &mut lane.batches);
            self.bytes -= batches.and_then(VecDeque::pop_front).map_or(0, |batch| cost(&batch));
        }
    }

    /// Nobody follows an origin by way of this node any more, or needs to.
    pub fn forget(&mut self, origin: &Origin) {
        self.order.retain(|(of, _)| **of != *origin);
        let bytes = &mut self.bytes;
        self.lanes.retain(|(of, _), lane| {
            let kept = **of != *origin;
            if !kept {
                *bytes -= lane.batches.iter().map(cost).sum::<usize>();
            }
            kept
        });
    }

    /// Judges a follower's position. `next` is the first sequence that this node has not applied.
    #[must_use]
    pub fn position(&self, origin: &Arc<Origin>, lane: LaneId, from: Sequence, next: Sequence) -> Position {
        let lane = self.lanes.get(&(origin.clone(), lane)).filter(|lane| lane.next == next);
        let oldest = lane.and_then(|lane| lane.batches.front()).map_or(next, |oldest| oldest.first);
        if from >= oldest { Position::Held(Cursor { next: from }) } else { Position::Gone(oldest) }
    }

    /// Hands out what follows the cursor, at most about `bytes_max` bytes in whole batches (at least one). What has been
    /// forgotten is [`Read::Overrun`], with the first sequence that is held; the cursor stays.
    pub fn read(
        &self,
        (origin, lane): (&Arc<Origin>, LaneId),
        cursor: &mut Cursor,
        bytes_max: usize,
        out: &mut Vec<Batch>,
    ) -> Read {
        let Some(lane) = self.lanes.get(&(origin.clone(), lane)) else { return Read::Empty };
        if cursor.next >= lane.next {
            return Read::Empty;
        }
        let oldest = lane.batches.front().map_or(lane.next, |oldest| oldest.first);
        if cursor.next < oldest {
            return Read::Overrun(oldest);
        }
        let start = lane.batches.partition_point(|batch| batch.next() <= cursor.next);
        let mut bytes = 0;
        for batch in lane.batches.range(start..) {
            if bytes > 0 && bytes + batch.records.len() > bytes_max {
                break;
            }
            let batch = batch.clone().starting_at(cursor.next.max(batch.first));
            bytes += batch.records.len();
            cursor.next = batch.next();
            out.push(batch);
        }
        Read::Some
    }
}

fn cost(batch: &Batch) -> usize {
    batch.records.len() + BATCH_OVERHEAD_BYTES
}

#[cfg(test)]
#[path = "held_tests.rs"]
mod tests;
