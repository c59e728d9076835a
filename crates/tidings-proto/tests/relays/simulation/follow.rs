//! Following, serving, asking and answering.

use std::collections::BTreeSet;
use std::time::Duration;

use tidings_proto::follower::{Attempt, Rejected};
use tidings_proto::id::{FIRST, Sequence};
use tidings_proto::relay::{Asked, Lacking, Relayed};

use super::{Cluster, Event, Following, Frame, PROBE_EVERY, Served, WRITE_EVERY, lane};

impl Cluster {
    pub(super) fn write(&mut self, origin: usize) {
        self.network.at(self.now + WRITE_EVERY, Event::Write(origin));
        self.written[origin].push(self.now);
        self.serve(origin, origin);
    }

    /// Asks the path's source, from where the follower stands.
    pub(super) fn follow(&mut self, node: usize, origin: usize) {
        let following = self.nodes[node].following[origin].as_mut().expect("everybody is followed");
        let former = following.source;
        following.source = self.numbers[following.path.source()];
        // Here an origin answers as relays do, too.
        following.follower.redirected(true);
        let (attempt, follow) = following.follower.follow(lane());
        following.attempt = attempt;
        let source = following.source;
        if former != source {
            self.figures.redirected += u64::from(self.measures());
            self.send(node, former, Frame::Unfollow(origin));
        }
        self.send(node, source, Frame::Follow(origin, attempt, follow.from));
    }

    /// What a node holds of an origin: the first sequence that it has not, and how far that has come.
    fn stands(&self, node: usize, origin: usize) -> (Sequence, usize) {
        match &self.nodes[node].following[origin] {
            None => (self.written[origin].len() as Sequence + 1, 0),
            Some(Following { follower, hops, .. }) => (follower.applied_in(lane()) + 1, *hops),
        }
    }

    /// Hands on what a node has of an origin and its followers have not been sent.
    fn serve(&mut self, node: usize, origin: usize) {
        let (next, hops) = self.stands(node, origin);
        let mut sent = 0;
        for index in 0..self.nodes[node].served[origin].len() {
            let Served { node: to, attempt, next: from } = self.nodes[node].served[origin][index];
            if from < next {
                self.nodes[node].served[origin][index].next = next;
                self.send(node, to, Frame::Events(origin, attempt, [from, next - 1], hops + 1));
                // To one that has gone for as long as nobody has noticed: that is no follower.
                sent += usize::from(self.nodes[to].alive);
            }
        }
        if self.measures() {
            self.figures.largest_fanout = self.figures.largest_fanout.max(sent);
        }
    }

    pub(super) fn tick(&mut self, node: usize) {
        self.network.at(self.now + PROBE_EVERY, Event::Tick(node));
        let now = self.clock(node);
        for origin in 0..self.written.len() {
            let Some(following) = &mut self.nodes[node].following[origin] else { continue };
            if following.path.passed(now) {
                self.follow(node, origin);
            }
        }
        let asking = &mut self.nodes[node];
        let sources = asking.following.iter().flatten().map(|following| following.source);
        let sources: BTreeSet<usize> = sources.collect();
        asking.probes += 1;
        let number = asking.probes;
        for source in sources {
            let asked = self.nodes[node].asked.entry(source).or_insert_with(|| Asked::new(0));
            asked.sent(number, now);
            self.send(node, source, Frame::Probe(number));
        }
    }

    pub(super) fn receive(&mut self, from: usize, to: usize, frame: Frame) {
        match frame {
            Frame::Follow(origin, attempt, next) => self.asked_to_serve(to, origin, (from, attempt, next)),
            Frame::Unfollow(origin) => self.nodes[to].served[origin].retain(|served| served.node != from),
            Frame::Resume(origin, attempt, next) => {
                let following = self.nodes[to].following[origin].as_mut().expect("it asked");
                let judged = following.follower.on_resume(lane(), attempt, next);
                assert!(matches!(judged, Ok(()) | Err(Rejected::Stale)), "{judged:?}");
            }
            Frame::Lacking(origin, attempt, oldest) => self.lacking(to, origin, (attempt, oldest)),
            Frame::Events(origin, attempt, events, hops) => self.events(to, origin, (attempt, events, hops)),
            Frame::Probe(number) => {
                let said = self.said_to(from, to);
                self.send(to, from, Frame::Answer(number, said));
            }
            Frame::Answer(number, said) => self.answered(from, to, (number, said)),
        }
    }

    /// A newcomer goes on from here, and who lacks what is not held here from where it is, if they do not ask elsewhere.
    fn asked_to_serve(
        &mut self,
        node: usize,
        origin: usize,
        (follower, attempt, from): (usize, Attempt, Sequence),
    ) {
        let (here, _) = self.stands(node, origin);
        let oldest = self.nodes[node].following[origin].as_ref().map_or(FIRST, |following| following.oldest);
        let next = match from {
            FIRST => here,
            _ => from.max(oldest),
        };
        let frame = match next {
            next if next == from => Frame::Resume(origin, attempt, from),
            next => Frame::Lacking(origin, attempt, next),
        };
        self.send(node, follower, frame);
        let served = &mut self.nodes[node].served[origin];
        served.retain(|served| served.node != follower);
        served.push(Served { node: follower, attempt, next });
        self.serve(node, origin);
    }

    fn lacking(&mut self, node: usize, origin: usize, (attempt, oldest): (Attempt, Sequence)) {
        let now = self.clock(node);
        let following = self.nodes[node].following[origin].as_mut().expect("it asked");
        if following.attempt != attempt {
            return;
        }
        match following.path.lacking(following.follower.applied_in(lane()) + 1, now) {
            Lacking::AskElsewhere => self.follow(node, origin),
            Lacking::Reset => {
                let fence = following.follower.on_reset(lane(), attempt, oldest).unwrap();
                following.follower.fenced(fence);
                following.oldest = oldest;
            }
        }
    }

    fn events(
        &mut self,
        node: usize,
        origin: usize,
        (attempt, [first, last], hops): (Attempt, [Sequence; 2], usize),
    ) {
        let (now, measures) = (self.now, self.measures());
        self.figures.copies += if measures { last + 1 - first } else { 0 };
        let following = self.nodes[node].following[origin].as_mut().expect("it asked");
        let count = (last + 1 - first) as u32;
        let accepted = match following.follower.on_events(lane(), attempt, first, count) {
            Ok(accepted) => accepted.from,
            Err(Rejected::Stale) => return,
            Err(error) => panic!("n{node} of n{origin}: {error}"),
        };
        following.follower.applied(lane(), attempt, last + 1);
        following.hops = hops;
        self.note_progress(node, origin);
        for sequence in accepted..=last {
            let written = self.written[origin][(sequence - FIRST) as usize];
            if measures {
                self.figures.applied += 1;
                self.figures.hops.push(hops);
                self.figures.latencies.push(Duration::from_nanos(now - written));
            }
        }
        self.serve(node, origin);
    }

    /// What a relay says of those whom this node follows by way of it.
    fn said_to(&self, follower: usize, relay: usize) -> Vec<(usize, Relayed)> {
        let now = self.clock(relay);
        let follows =
            |origin: &usize| self.nodes[relay].served[*origin].iter().any(|served| served.node == follower);
        let said = |origin: usize| {
            let relayed = match &self.nodes[relay].following[origin] {
                None => Some(Relayed::Confirmed {
                    heads: vec![self.written[origin].len() as Sequence],
                    age_us: 0,
                }),
                Some(following) => Relayed::of(&following.follower, now),
            };
            Some((origin, relayed?))
        };
        (0..self.written.len()).filter(follows).filter_map(said).collect()
    }

    fn answered(&mut self, relay: usize, node: usize, (number, said): (u64, Vec<(usize, Relayed)>)) {
        let Some(asked) = self.nodes[node].asked.get_mut(&relay) else { return };
        let Ok(sent) = asked.answered(number, 0) else { return };
        for (origin, relayed) in said {
            let following = self.nodes[node].following[origin].as_mut().expect("it asked");
            // What a former source says is as true, and not waited for.
            if following.source == relay {
                relayed.tell(&mut following.follower, sent).unwrap();
                self.note_progress(node, origin);
            }
        }
    }

    fn note_progress(&mut self, node: usize, origin: usize) {
        let now = self.clock(node);
        if let Some(Following { follower, path, .. }) = &mut self.nodes[node].following[origin]
            && let Some(confirmed) = follower.confirmed()
        {
            path.confirmed(confirmed, now);
        }
    }
}
