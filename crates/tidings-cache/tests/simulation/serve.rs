//! The serving half of a node: a cursor per lane and follower.

use tidings_proto::follower::Attempt;
use tidings_proto::frame::{Follow, Heartbeat};
use tidings_proto::id::{LaneId, Lanes, Origin, Sequence};
use tidings_proto::log::{Answer, Cursor, Read};
use tidings_proto::time::Tick;

use crate::Planted;
use crate::node::Node;
use crate::wire::{Answered, Frame};

/// Events that may be under way to a follower: as with a real connection, one that acknowledges nothing is sent nothing.
const WINDOW: u64 = 8;

/// What one follower has asked for and acknowledged.
pub(crate) struct Served {
    streams: Vec<Option<Stream>>,
    acknowledged: Vec<Sequence>,
    pub(crate) probed: Option<Tick>,
}

struct Stream {
    attempt: Attempt,
    cursor: Cursor,
    /// Everything up to here has arrived.
    base: Sequence,
}

impl Served {
    pub(crate) fn new(lanes: Lanes) -> Self {
        let streams = lanes.ids().map(|_| None).collect();
        Self { streams, acknowledged: lanes.ids().map(|_| 0).collect(), probed: None }
    }

    pub(crate) fn has_acknowledged(&self, heads: &[Sequence]) -> bool {
        self.acknowledged.iter().zip(heads).all(|(acknowledged, head)| acknowledged >= head)
    }

    pub(crate) fn acknowledged(&self, lane: LaneId) -> Sequence {
        self.acknowledged[lane.index()]
    }
}

impl Node {
    pub(crate) fn serve(&mut self, from: &Origin, attempt: Attempt, follow: &Follow) {
        if follow.incarnation != self.me.incarnation {
            return;
        }
        let lane = follow.lane;
        let served = &self.peer(from).served.streams[lane.index()];
        if served.as_ref().is_some_and(|stream| stream.attempt > attempt) {
            return;
        }
        let (answer, cursor) = match self.domain.log().resume(lane, follow.from) {
            Answer::Resume(cursor) => (Answered::Resume(cursor.next), cursor),
            Answer::Reset(cursor) => (Answered::Reset(cursor.next), cursor),
        };
        let stream = Stream { attempt, cursor, base: cursor.next - 1 };
        self.peer(from).served.streams[lane.index()] = Some(stream);
        self.send(from, Frame::Answer(lane, attempt, answer));
        self.feed(from);
    }

    /// Sends what the log has, as far as the window reaches.
    pub(crate) fn feed(&mut self, to: &Origin) {
        let log = self.domain.log().clone();
        for lane in log.lanes().ids() {
            let Some(stream) = &mut self.peer(to).served.streams[lane.index()] else { continue };
            let attempt = stream.attempt;
            let mut frames = Vec::new();
            let mut batches = Vec::new();
            while stream.cursor.next.saturating_sub(stream.base + 1) < WINDOW {
                match log.read(lane, &mut stream.cursor, 1, &mut batches) {
                    Read::Some => frames.extend(
                        batches
                            .drain(..)
                            .map(|batch| Answered::Events([&batch.head()[..], &batch.records[..]].concat())),
                    ),
                    Read::Overrun(head) => {
                        stream.base = head - 1;
                        frames.push(Answered::Reset(head));
                    }
                    Read::Empty | Read::End => break,
                }
            }
            for frame in frames {
                self.send(to, Frame::Answer(lane, attempt, frame));
            }
        }
    }

    pub(crate) fn feed_all(&mut self) {
        let met: Vec<Origin> = self.met().cloned().collect();
        for origin in met {
            self.feed(&origin);
        }
    }

    pub(crate) fn take_ack(&mut self, from: &Origin, lane: LaneId, sequence: Sequence) {
        let served = &mut self.peer(from).served;
        let acknowledged = &mut served.acknowledged[lane.index()];
        *acknowledged = sequence.max(*acknowledged);
        if let Some(stream) = &mut served.streams[lane.index()] {
            stream.base = sequence.max(stream.base);
        }
        self.feed(from);
        self.ask();
    }

    /// The order is part of the protocol: the probe, the version of the member set, the heads.
    pub(crate) fn answer(&mut self, from: &Origin, echo: u64) {
        let tick = self.tick();
        self.peer(from).served.probed = Some(tick);
        let members = self.freshness.changes();
        let heads = match self.planted {
            Planted::OldHeads => self.old_heads.1.clone(),
            _ => self.domain.log().heads(),
        };
        self.send(from, Frame::Heartbeat(Heartbeat { echo, members, heads }));
    }
}
