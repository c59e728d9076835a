//! The following half of a node, as the transport's session does it.

use std::sync::Arc;

use tidings_proto::follower::{Attempt, Rejected};
use tidings_proto::frame::Heartbeat;
use tidings_proto::id::{LaneId, Origin, Sequence};
use tidings_proto::record::BatchRef;

use crate::history::History;
use crate::node::{Node, lane_of, lanes};
use crate::wire::{Answered, Frame};
use crate::{KEYS, Micros, Planted};

/// What becomes of a request that is not answered, and of a lane that stands still: it is asked for again.
const PATIENCE_US: Micros = 400_000;

/// How much too late the planted fence comes.
const LATE_FENCE_US: Micros = 900_000;

/// The newest request for a lane.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asked {
    at: Option<Micros>,
    answered: bool,
}

impl Node {
    pub(crate) fn follow_all(&mut self, origin: &Origin) {
        for lane in lanes().ids() {
            self.follow(origin, lane);
        }
    }

    fn follow(&mut self, origin: &Origin, lane: LaneId) {
        let now = self.now();
        let peer = self.peer(origin);
        let (attempt, follow) = peer.follower.follow(lane);
        peer.asked[lane.index()] = Asked { at: Some(now), answered: false };
        self.send(origin, Frame::Follow(attempt, follow));
    }

    /// Asks again where nothing comes.
    pub(crate) fn follow_stuck(&mut self, origin: &Origin) {
        let now = self.now();
        let peer = self.peer(origin);
        let applied = lanes().ids().map(|lane| peer.follower.applied_in(lane)).sum();
        if peer.progress.0 != applied || peer.follower.lag() == 0 {
            peer.progress = (applied, now);
        }
        let stuck = now - peer.progress.1 > PATIENCE_US;
        let again = |asked: &Asked| match asked.at {
            None => true,
            Some(at) => now - at > PATIENCE_US && (stuck || !asked.answered),
        };
        let again: Vec<LaneId> = lanes().ids().filter(|lane| again(&peer.asked[lane.index()])).collect();
        for lane in again {
            self.follow(origin, lane);
        }
    }

    pub(crate) fn take_heartbeat(&mut self, from: &Origin, heartbeat: &Heartbeat) {
        match self.peer(from).follower.on_heartbeat(heartbeat) {
            Ok(_) | Err(Rejected::Stale) => self.progressed(from),
            Err(error) => self.complain(format!("a heartbeat of {from}: {error}")),
        }
    }

    /// A frame of a lane that is followed.
    pub(crate) fn take(
        &mut self,
        from: &Origin,
        (lane, attempt): (LaneId, Attempt),
        answered: Answered,
        history: &mut History,
    ) {
        let judged = match answered {
            Answered::Resume(position) => {
                let judged = self.peer(from).follower.on_resume(lane, attempt, position);
                if judged.is_ok() {
                    self.peer(from).asked[lane.index()].answered = true;
                }
                judged
            }
            Answered::Reset(position) => self.reset(from, (lane, attempt), position, history),
            Answered::Events(body) => self.apply(from, (lane, attempt), &body, history),
        };
        match judged {
            Ok(()) | Err(Rejected::Stale) => {}
            Err(Rejected::Gap { .. }) => {
                self.tally.gaps += 1;
                self.follow(from, lane);
            }
            // Overtaken frames: a connection would have ended here, and another one begun.
            Err(Rejected::Violation(_)) => self.follow(from, lane),
        }
    }

    /// The order is part of the protocol: fence, and only then expect what comes.
    fn reset(
        &mut self,
        from: &Origin,
        (lane, attempt): (LaneId, Attempt),
        position: Sequence,
        history: &mut History,
    ) -> Result<(), Rejected> {
        let fence = self.peer(from).follower.on_reset(lane, attempt, position)?;
        self.tally.resets += 1;
        let slots = lanes().slots_of(lane);
        match self.planted {
            Planted::NoFence => {}
            Planted::LateFence => self.late_fences.push((self.now() + LATE_FENCE_US, slots)),
            _ => {
                self.domain.fence(slots);
                for key in (0..KEYS).filter(|key| lane_of(*key) == lane) {
                    self.settle(key, history.read(key));
                }
            }
        }
        let peer = self.peer(from);
        peer.follower.fenced(fence);
        peer.asked[lane.index()].answered = true;
        self.progressed(from);
        Ok(())
    }

    fn apply(
        &mut self,
        from: &Origin,
        (lane, attempt): (LaneId, Attempt),
        body: &[u8],
        history: &mut History,
    ) -> Result<(), Rejected> {
        let batch = BatchRef::parse(body, lanes()).expect("what the log wrote");
        let lost = batch.first % 16 == 5;
        if lost && self.planted == Planted::EarlyAck {
            self.send(from, Frame::Ack(lane, batch.next() - 1));
            return Ok(());
        }
        let accepted = self.peer(from).follower.on_events(lane, attempt, batch.first, batch.count)?;
        self.tally.duplicates += accepted.duplicates;
        if accepted.from < batch.next() {
            if !(lost && self.planted == Planted::SilentDrop) {
                let applied = self.domain.apply(&Arc::new(from.clone()), &batch, accepted.from).unwrap();
                assert_eq!(applied.next, batch.next());
                for sequence in accepted.from..batch.next() {
                    self.tally.applied += 1;
                    for (key, version) in history.said(&(from.clone(), lane, sequence)) {
                        self.settle(*key, *version);
                    }
                }
            }
            self.peer(from).follower.applied(lane, attempt, batch.next());
            self.progressed(from);
        }
        let applied = self.peer(from).follower.applied_in(lane);
        self.send(from, Frame::Ack(lane, applied));
        Ok(())
    }

    pub(crate) fn settle(&mut self, key: u8, version: u64) {
        let settled = &mut self.settled[usize::from(key)];
        *settled = version.max(*settled);
    }

    /// The follower has moved on, or the origin has ended.
    pub(crate) fn progressed(&mut self, origin: &Origin) {
        let tick = self.tick();
        let Some(peer) = self.peers.get(origin) else { return };
        let (confirmed, ended) = (peer.follower.confirmed(), peer.follower.ended());
        if ended {
            self.freshness.left(origin);
        } else if let Some(confirmed) = confirmed {
            if !self.freshness.is_relevant(origin) {
                self.freshness.met(origin, tick);
            }
            let known = self.freshness.relevant().find(|(known, _)| *known == origin);
            let is_news = known.and_then(|(_, known)| known) < Some(confirmed);
            let at_receipt = self.planted == Planted::ConfirmedAtReceipt && is_news;
            self.freshness.confirmed(origin, if at_receipt { tick } else { confirmed });
        }
        self.publish();
    }

    pub(crate) fn complain(&mut self, what: String) {
        let me = &self.me;
        self.complaint.get_or_insert_with(|| format!("{me}: {what}"));
    }
}
