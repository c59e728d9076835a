//! Lives that begin and end: of origins, and of the reader.

use tidings_proto::follower::Follower;
use tidings_proto::freshness::Freshness;

use super::home::{Home, life};
use super::{BOUNDS, Seen, World, lanes};
use crate::Planted;

impl Seen {
    /// Nothing is known of it.
    pub(super) fn new(origin: usize, number: u64) -> Self {
        let follower = Follower::new(life(origin, number), lanes());
        Self { follower, attempts: [None; 2], fences: [None, None], version: 0, met: false }
    }
}

impl World {
    /// The reader and an origin exchange hellos, and each names whom it knows.
    pub(super) fn meet(&mut self, origin: usize) {
        let me = self.homes[origin].me.clone();
        self.freshness.contacted();
        self.freshness.met(&me, self.now);
        let seen = &mut self.seen[origin];
        if *seen.follower.origin() != me {
            *seen = Seen::new(origin, me.incarnation.0);
            self.homes[origin].wire = Default::default();
        }
        self.seen[origin].met = true;
        self.homes[origin].counts = true;
        self.name_other(origin);
        self.admit(origin);
        self.learn(origin);
    }

    /// An origin tells of the other one's newest life that it knows. Who joins by another one is told of by itself.
    fn name_other(&mut self, origin: usize) {
        if self.scope.joins || self.scope.origins < 2 {
            return;
        }
        let (by, other) = (life(origin, 1).node, &self.homes[1 - origin]);
        let (known, died) = match &other.former {
            Some((former, died)) if !other.counts => (former, Some(*died)),
            _ => (&other.me, other.died),
        };
        match died {
            None => drop(self.freshness.named(&by, [known])),
            Some(died) if self.now < died.after(BOUNDS.lost_grace) => {
                self.freshness.named(&by, [known]);
                self.freshness.lost(known, self.now);
            }
            Some(_) => drop(self.freshness.told_ended(&by, [known], self.now)),
        }
    }

    /// Everybody whom an origin knows is known from it.
    pub(super) fn learn(&mut self, origin: usize) {
        let (seen, version) = (&mut self.seen[origin], self.homes[origin].version);
        seen.version = version;
        let said = if self.planted == Planted::UnknownMember { u64::MAX } else { version };
        seen.follower.on_members(said);
    }

    pub(super) fn crash(&mut self, origin: usize) {
        let counts = self.counts(origin);
        for key in 0..2 {
            if let Some(version) = self.homes[origin].open[key].take()
                && counts
            {
                self.announce(key, version);
            }
        }
        self.homes[origin].die(self.now);
        let me = self.homes[origin].me.clone();
        self.freshness.lost(&me, self.now);
    }

    pub(super) fn restart(&mut self, origin: usize) {
        self.lives += 1;
        let home = &mut self.homes[origin];
        let died = home.died.unwrap_or(self.now);
        let former = if home.counts { Some((home.me.clone(), died)) } else { home.former.take() };
        *home = Home { former, counts: false, ..Home::new(life(origin, self.lives)) };
        self.seen[origin].met = false;
    }

    /// The reader is killed, and its next life begins: it has nothing, has met nobody, and has seeds. Nothing that
    /// happens between the two would be any different after both.
    pub(super) fn renew(&mut self) {
        self.reader_lives += 1;
        for origin in 0..self.scope.origins {
            self.homes[origin].cut_off();
            self.seen[origin] = Seen::new(origin, self.homes[origin].me.incarnation.0);
        }
        self.freshness = Freshness::new(BOUNDS, true, self.now);
        self.entries = [None; 2];
        self.flights = [None; 2];
        self.reading = [None, None];
        self.publish();
    }
}
