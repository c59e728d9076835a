//! What can happen next, and what comes of it.

use tidings_proto::follower::Rejected;
use tidings_proto::log::Read;

use super::{Action, BOUND, Frame, Node, Planted, World, lane};
use crate::search;

/// Frames to one node that may be under way.
const WIRE_MAX: usize = 2;

impl World {
    /// What the source has is put on the wire.
    fn send(&mut self, node: usize) {
        let Node { source, cursor, .. } = self.nodes[node];
        let Some(mut cursor) = cursor else { return };
        let mut batches = Vec::new();
        let read = match source {
            0 => self.log.read(lane(), &mut cursor, 1, &mut batches),
            _ => self.nodes[source].held.read((&self.origin, lane()), &mut cursor, 1, &mut batches),
        };
        let sent = &mut self.nodes[node];
        match read {
            Read::Overrun(from) => {
                sent.wire.push_back(Frame::Reset(from));
                cursor.next = from;
            }
            _ => sent.wire.extend(batches.into_iter().map(Frame::Events)),
        }
        sent.cursor = Some(cursor);
    }

    fn has_news(&self, node: usize) -> bool {
        let Node { source, cursor, .. } = &self.nodes[node];
        let Some(cursor) = cursor else { return false };
        let head = match source {
            0 => self.log.head(lane()),
            _ => self.nodes[*source].next() - 1,
        };
        cursor.next <= head
    }

    pub(super) fn take(&mut self, node: usize) {
        let origin = self.origin.clone();
        let planted = self.planted;
        let Node { follower, held, wire, attempt, skipped, .. } = &mut self.nodes[node];
        let (Some(frame), Some(current)) = (wire.pop_front(), *attempt) else { return };
        let judged = match frame {
            Frame::Resume(from) => follower.on_resume(lane(), current, from),
            Frame::Reset(from) => follower.on_reset(lane(), current, from).map(|fence| {
                if planted == Planted::NoFence {
                    skipped.extend(follower.applied_in(lane()) + 1..from);
                }
                follower.fenced(fence);
            }),
            Frame::Events(batch) => {
                follower.on_events(lane(), current, batch.first, batch.count).map(|accept| {
                    if accept.from < batch.next() {
                        follower.applied(lane(), current, batch.next());
                        held.push(&origin, batch);
                    }
                })
            }
        };
        if judged.is_err() {
            assert!(matches!(judged, Err(Rejected::Gap { .. } | Rejected::Violation(_))), "{judged:?}");
            *attempt = None;
        }
    }

    fn actions_of(&self, node: usize, out: &mut Vec<Action>) {
        let (asking, left) = (&self.nodes[node], &self.left);
        let mut add = |holds: bool, action| out.extend(holds.then_some(action));
        for link in &asking.links {
            let from = link.from;
            let answers = from > 0 || !left.cut;
            let waits = link.probe.is_some() || link.said.is_some();
            add(answers && !waits && left.asks > 0, Action::Ask(node, from));
            add(link.probe.is_some(), Action::Answer(node, from));
            add(link.said.is_some(), Action::Hear(node, from));
            add(link.said.is_some() && left.losses > 0, Action::LoseAnswer(node, from));
            add(left.follows > 0, Action::Follow(node, from));
        }
        add(asking.wire.len() < WIRE_MAX && self.has_news(node), Action::Send(node));
        add(!asking.wire.is_empty(), Action::Take(node));
        add(!asking.wire.is_empty() && left.losses > 0, Action::Lose(node));
    }

    /// Takes what an action costs off what is left.
    fn pay(&mut self, action: Action) {
        let left = &mut self.left;
        let cost = match action {
            Action::Write => &mut left.writes,
            Action::Ask(..) => &mut left.asks,
            Action::LoseAnswer(..) | Action::Lose(_) => &mut left.losses,
            Action::Follow(..) => &mut left.follows,
            Action::Pass => &mut left.passes,
            _ => return,
        };
        *cost -= 1;
    }
}

impl search::World for World {
    type Action = Action;

    fn actions(&self) -> Vec<Action> {
        let mut out = Vec::new();
        out.extend((self.left.writes > 0).then_some(Action::Write));
        out.extend((self.left.passes > 0).then_some(Action::Pass));
        (1..self.nodes.len()).for_each(|node| self.actions_of(node, &mut out));
        out
    }

    fn act(&mut self, action: Action) {
        self.pay(action);
        match action {
            Action::Write => self.write(),
            Action::Ask(node, from) => self.ask(node, from),
            Action::Answer(node, from) => self.answer(node, from),
            Action::Hear(node, from) => self.hear(node, from),
            Action::LoseAnswer(node, from) => self.nodes[node].link(from).said = None,
            Action::Follow(node, from) => self.follow(node, from),
            Action::Send(node) => self.send(node),
            Action::Take(node) => self.take(node),
            Action::Lose(node) => drop(self.nodes[node].wire.pop_front()),
            Action::Pass => self.now = self.now.after(BOUND),
        }
    }

    fn broken(&self) -> Option<String> {
        self.stale()
    }
}
