//! A node as a follower: it dials, follows, probes, applies, fences.

use tidings_proto::follower::{Attempt, MustFence, Rejected};
use tidings_proto::frame::{Control, Heartbeat, Hello, MemberSet};
use tidings_proto::id::{FIRST, LaneId, NodeId, Origin, Sequence};
use tidings_proto::record::{BatchRef, Target};

use super::cache::decoded;
use super::net::{Channel, Envelope};
use super::process::{Process, node_id, origin_of};
use super::world::{Event, Task, World};
use super::{Bug, Ms, PROBE_EVERY, SILENT_AFTER, SUSPECT_AFTER};

/// Ticks between two mentions of an unchanged member set.
const MENTION_EVERY: u64 = 6;

/// Member sets that are lost while there are faults.
const MEMBERS_LOST_PERCENT: u64 = 60;

/// A request for a lane, or a lane with news, that does not get on for this long is followed anew.
const STUCK_AFTER: Ms = 200;

impl World {
    /// What a node does every now and then.
    pub(crate) fn beat(&mut self, node: usize) {
        let delay = PROBE_EVERY + self.rng.range(0, 5);
        self.task(node, delay, Task::Tick);
        self.process(node).ticks += 1;
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            self.dial(node, other);
        }
        let mention = self.process(node).ticks.is_multiple_of(MENTION_EVERY);
        let peers: Vec<Origin> = self.process(node).peers.keys().cloned().collect();
        for origin in peers {
            let heard = self.anyone_hears(node, &origin);
            let (tick, bug) = (self.tick(node), self.bug);
            let process = self.process(node);
            if heard {
                process.found(&origin, tick, bug);
            } else {
                process.freshness.lost(&origin, tick);
            }
            if process.peers[&origin].connected && process.newest(&origin.node) == Some(&origin) {
                let probe = process.peers.get_mut(&origin).expect("known").follower.probe(tick);
                self.send(node, &origin, Channel::Control, &Control::Probe(probe));
                if mention {
                    self.send_members(node, &origin);
                }
                self.nudge(node, &origin);
            }
        }
        let process = self.process(node);
        process.old_heads = process.log.heads();
        self.leave_if_done(node);
    }

    fn dial(&mut self, node: usize, other: usize) {
        let now = self.now;
        let process = self.process(node);
        let peer = process.newest(&node_id(other)).map(|origin| &process.peers[origin]);
        if process.goodbye_said {
            return;
        }
        let silent = peer.is_none_or(|peer| !peer.connected || now > peer.heard + SILENT_AFTER);
        let dialled = process.dialled.entry(other).or_insert(0);
        if silent && now >= *dialled + 2 * PROBE_EVERY {
            *dialled = now;
            let hello = Control::Hello(process.hello());
            self.transmit(node, other, None, Channel::Dial, hello.encode().into(), None);
        }
    }

    /// Whether this node, or one that it hears, hears an origin.
    pub(crate) fn anyone_hears(&self, node: usize, origin: &Origin) -> bool {
        let recently = |process: &Process, origin: &Origin| {
            process.peers.get(origin).is_some_and(|peer| self.now <= peer.heard + SUSPECT_AFTER)
        };
        let Some(own) = &self.nodes[node].process else { return false };
        recently(own, origin)
            || (0..self.nodes.len()).filter(|other| *other != node && !self.paused(*other)).any(|other| {
                let process = self.nodes[other].process.as_ref();
                process.is_some_and(|process| recently(own, &process.me) && recently(process, origin))
            })
    }

    /// Acknowledges, and follows anew what does not get on: what QUIC's retransmission or a second dial would do.
    fn nudge(&mut self, node: usize, origin: &Origin) {
        let now = self.now;
        for lane in self.lanes.ids() {
            let peer = self.process(node).peers.get_mut(origin).expect("known");
            let behind = peer.follower.lag() > 0 && now > peer.progressed + STUCK_AFTER;
            let applied = peer.follower.applied_in(lane);
            let link = &mut peer.links[lane.index()];
            if now > link.asked + STUCK_AFTER && now > link.fencing_until && (behind || !link.answered) {
                self.follow(node, origin, lane);
            } else if link.acked < applied {
                link.acked = applied;
                let tag = link.attempts.len() - 1;
                self.send(node, origin, Channel::Lane { lane: lane.number(), tag }, &Control::Ack(applied));
            }
        }
    }

    fn follow(&mut self, node: usize, origin: &Origin, lane: LaneId) {
        let now = self.now;
        let peer = self.process(node).peers.get_mut(origin).expect("known");
        let (attempt, follow) = peer.follower.follow(lane);
        let link = &mut peer.links[lane.index()];
        link.attempts.push(attempt);
        (link.asked, link.answered, link.acked) = (now, false, 0);
        let tag = link.attempts.len() - 1;
        self.send(node, origin, Channel::Lane { lane: lane.number(), tag }, &Control::Follow(follow));
    }

    pub(crate) fn on_hello(&mut self, envelope: &Envelope, hello: &Hello) {
        let node = envelope.to;
        if self.process(node).goodbye_said {
            return;
        }
        let origin = origin_of(envelope.from);
        if hello.node != origin.node || hello.incarnation != origin.incarnation {
            return;
        }
        self.name(node, &origin, &origin.node);
        self.take_members(node, &origin, &hello.members);
        let process = self.process(node);
        if process.newest(&origin.node) != Some(&origin) {
            return;
        }
        if envelope.channel == Channel::Dial {
            let reply = Control::Hello(process.hello());
            self.send(node, &origin, Channel::Answer, &reply);
            return;
        }
        if envelope.settled {
            let process = self.process(node);
            process.freshness.contacted();
            if !std::mem::replace(&mut process.settled, true) {
                self.cut_newcomer(node);
            }
        }
        let now = self.now;
        let peer = self.process(node).peers.get_mut(&origin).expect("known");
        peer.connected = true;
        peer.heard = peer.heard.max(now.saturating_sub(SILENT_AFTER / 2));
        for lane in self.lanes.ids() {
            self.follow(node, &origin, lane);
        }
    }

    pub(crate) fn on_members(&mut self, envelope: &Envelope, members: &MemberSet) {
        self.take_members(envelope.to, &origin_of(envelope.from), members);
    }

    /// Takes note of whom an origin names, and only then that it has named them.
    fn take_members(&mut self, node: usize, by: &Origin, members: &MemberSet) {
        for member in members.members.iter().filter(|member| member.origin.node != by.node) {
            self.name(node, &member.origin, &by.node);
        }
        let (tick, bug) = (self.tick(node), self.bug);
        let process = self.process(node);
        if let Some(peer) = process.peers.get_mut(by) {
            peer.follower.on_members(members.version);
            process.confirm(by, tick, bug);
        }
    }

    /// Takes note of an origin, and tells everyone of news.
    fn name(&mut self, node: usize, origin: &Origin, by: &NodeId) {
        let (tick, now, bug) = (self.tick(node), self.now, self.bug);
        if !self.process(node).name(origin, by, tick, now, bug) {
            return;
        }
        self.note(|| format!("n{node} hears of {origin}"));
        let peers: Vec<Origin> = self.process(node).peers.keys().cloned().collect();
        for peer in peers {
            self.send_members(node, &peer);
        }
    }

    /// Says whom a node knows. Often that is lost where heartbeats get through, as on a link of its own.
    fn send_members(&mut self, node: usize, to: &Origin) {
        let lost =
            !self.quiet() && (self.now < self.members_lost_until || self.rng.percent(MEMBERS_LOST_PERCENT));
        if !lost {
            let members = Control::Members(self.process(node).members());
            self.send(node, to, Channel::Control, &members);
        }
    }

    /// The lane and the request that a frame belongs to, if it is of an origin that is followed.
    fn request(&mut self, envelope: &Envelope) -> Option<(Origin, LaneId, Attempt)> {
        let Channel::Lane { lane, tag } = envelope.channel else { panic!("a lane's frame elsewhere") };
        let origin = origin_of(envelope.from);
        let lane = self.lanes.lane(lane).expect("a lane");
        let link = &self.process(envelope.to).peers.get(&origin)?.links[lane.index()];
        let attempt = *link.attempts.get(tag)?;
        Some((origin, lane, attempt))
    }

    /// Until when a frame has to wait for its lane's fence: a receiver handles one frame of a lane at a time.
    pub(crate) fn fencing(&self, envelope: &Envelope) -> Option<Ms> {
        let Channel::Lane { lane, tag } = envelope.channel else { return None };
        let process = self.nodes[envelope.to].process.as_ref()?;
        let link = &process.peers.get(&origin_of(envelope.from))?.links[usize::from(lane)];
        (link.fencing_until > self.now && link.attempts.len() == tag + 1).then_some(link.fencing_until)
    }

    pub(crate) fn on_resume(&mut self, envelope: &Envelope, from: Sequence) {
        let Some((origin, lane, attempt)) = self.request(envelope) else { return };
        let peer = self.process(envelope.to).peers.get_mut(&origin).expect("known");
        let judged = peer.follower.on_resume(lane, attempt, from);
        peer.links[lane.index()].answered |= judged.is_ok();
        self.settle(envelope.to, &origin, lane, judged);
    }

    pub(crate) fn on_reset(&mut self, envelope: &Envelope, from: Sequence) {
        let node = envelope.to;
        let Some((origin, lane, attempt)) = self.request(envelope) else { return };
        let (delay, now, bug) = (self.rng.range(0, 60), self.now, self.bug);
        let peer = self.process(node).peers.get_mut(&origin).expect("known");
        let fence = match peer.follower.on_reset(lane, attempt, from) {
            Ok(fence) => fence,
            Err(rejected) => return self.settle(node, &origin, lane, Err(rejected)),
        };
        let link = &mut peer.links[lane.index()];
        link.answered = true;
        if !matches!(bug, Some(Bug::NoFence | Bug::ExpectedBeforeFence)) && delay > 0 {
            link.fencing_until = now + delay;
        }
        self.stats.resets += 1;
        match bug {
            Some(Bug::NoFence) => self.finish_fence(node, &origin, fence),
            Some(Bug::ExpectedBeforeFence) => {
                self.finish_fence(node, &origin, fence);
                self.task(node, delay, Task::LateFence(lane));
            }
            _ if delay == 0 => self.fence(node, &origin, fence),
            _ => self.task(node, delay, Task::Fence { origin, fence }),
        }
    }

    pub(crate) fn fence(&mut self, node: usize, origin: &Origin, fence: MustFence) {
        let slots = self.lanes.slots_of(fence.lane);
        self.process(node).cache.fence(slots);
        self.finish_fence(node, origin, fence);
    }

    fn finish_fence(&mut self, node: usize, origin: &Origin, fence: MustFence) {
        let (now, tick, bug) = (self.now, self.tick(node), self.bug);
        self.note(|| format!("n{node} has fenced {:?} of {origin}", fence.lane));
        let process = self.process(node);
        if let Some(peer) = process.peers.get_mut(origin) {
            peer.follower.fenced(fence);
            peer.progressed = now;
            process.confirm(origin, tick, bug);
        }
    }

    pub(crate) fn on_events(&mut self, envelope: &Envelope, body: &[u8]) {
        let node = envelope.to;
        let Some((origin, lane, attempt)) = self.request(envelope) else { return };
        let batch = BatchRef::parse(body, self.lanes).expect("a sound batch");
        assert_eq!(batch.lane, lane);
        let (now, tick, bug) = (self.now, self.tick(node), self.bug);
        let process = self.process(node);
        let peer = process.peers.get_mut(&origin).expect("known");
        let judged = peer.follower.on_events(lane, attempt, batch.first, batch.count);
        let Ok(accept) = judged else { return self.settle(node, &origin, lane, judged.map(|_| ())) };
        let mut next = accept.from.max(batch.first);
        for (at, record) in batch.records(accept.from) {
            assert_eq!(at, next, "a hole in a lane");
            next += 1;
            let Target::Key(key) = record.expect("sound").expect("clear").target else { panic!("a key") };
            process.cache.invalidate(decoded(key), bug != Some(Bug::LoadSurvives));
        }
        assert_eq!(next.max(accept.from), batch.next().max(accept.from));
        peer.follower.applied(lane, attempt, batch.next());
        peer.progressed = now;
        process.confirm(&origin, tick, bug);
        self.stats.applied += next.saturating_sub(accept.from.max(FIRST));
        self.stats.duplicates += accept.duplicates;
    }

    pub(crate) fn on_heartbeat(&mut self, envelope: &Envelope, heartbeat: &Heartbeat) {
        let node = envelope.to;
        let origin = origin_of(envelope.from);
        let (tick, bug) = (self.tick(node), self.bug);
        let Some(peer) = self.process(node).peers.get_mut(&origin) else { return };
        if bug == Some(Bug::UnknownMembers) {
            peer.follower.on_members(heartbeat.members);
        }
        match peer.follower.on_heartbeat(heartbeat) {
            Ok(probed) => {
                let probed = self.ms_of(node, probed);
                self.stats.late_heartbeats += u64::from(self.now > probed + SUSPECT_AFTER);
                let process = self.process(node);
                let peer = process.peers.get_mut(&origin).expect("known");
                peer.heard = peer.heard.max(probed);
                process.confirm(&origin, tick, bug);
            }
            Err(Rejected::Stale) => self.stats.stale += 1,
            Err(rejected) => panic!("an honest heartbeat is a {rejected}"),
        }
    }

    pub(crate) fn on_goodbye(&mut self, envelope: &Envelope, heads: Vec<Sequence>) {
        let origin = origin_of(envelope.from);
        let (tick, bug) = (self.tick(envelope.to), self.bug);
        let process = self.process(envelope.to);
        if let Some(peer) = process.peers.get_mut(&origin) {
            peer.follower.on_goodbye(heads).expect("as many heads as lanes");
            process.confirm(&origin, tick, bug);
            self.stats.goodbyes += 1;
        }
    }

    /// Counts what a follower did not accept, and follows anew where that is called for.
    fn settle(&mut self, node: usize, origin: &Origin, lane: LaneId, judged: Result<(), Rejected>) {
        let Err(rejected) = judged else { return };
        self.note(|| format!("n{node} rejects a frame of {origin} {lane:?}: {rejected}"));
        match rejected {
            Rejected::Stale => self.stats.stale += 1,
            Rejected::Gap { .. } => self.stats.gaps += 1,
            Rejected::Violation(_) => self.stats.violations += 1,
        }
        if rejected != Rejected::Stale {
            self.follow(node, origin, lane);
        }
    }

    /// While somebody may not know of a node, its writes wait.
    pub(crate) fn waits_to_be_known(&self, node: usize) -> bool {
        let Some(process) = &self.nodes[node].process else { return true };
        let freshness = &process.freshness;
        let known = match self.bug {
            // A life that nobody has let in waits, which leaves few chances to confirm past one.
            Some(Bug::UnknownMembers) => {
                !freshness.is_out_of_contact() && freshness.unaware().next().is_none()
            }
            _ => freshness.is_known(),
        };
        !process.settled || !known
    }

    pub(crate) fn is_settled(&self, node: usize) -> bool {
        self.nodes[node].process.as_ref().is_some_and(|process| process.settled)
    }

    /// Fails the run.
    pub(crate) fn fail(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    pub(crate) fn push_of(&mut self, node: usize, at: Ms, task: Task) {
        let life = self.nodes[node].life;
        self.push(at, Event::Of((node, life), task));
    }
}
