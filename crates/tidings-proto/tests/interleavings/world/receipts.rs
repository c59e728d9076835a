//! Who has applied a change, as its writer is told, and that a receipt holds what it says.

use std::time::Duration;

use tidings_proto::id::Sequence;
use tidings_proto::receipt::{Pending, Positions, Said, Tenure};
use tidings_proto::time::Tick;

use super::home::life;
use super::{World, lane, lanes};
use crate::Planted;

/// A step longer than what readers allow themselves, who take off their bound by how much their clock may lag.
const BOUND: Duration = Duration::from_nanos(2);

/// A receipt that is waited for.
#[derive(Clone, Debug, Hash)]
pub(super) struct Asked {
    sequence: Sequence,
    version: usize,
    pending: Pending,
    /// What the life that is waited for has said, if that has ended.
    last: Option<Said>,
}

impl Asked {
    /// Another life of the reader's follows, which this does not wait for.
    fn last_word(&mut self, acked: Sequence, heard: Tick) {
        let last = Said { reached: acked >= self.sequence, heard, reachable: false };
        self.last.get_or_insert(last);
    }

    fn said(&self, acked: Sequence, heard: Tick) -> Said {
        self.last.unwrap_or(Said { reached: acked >= self.sequence, heard, reachable: true })
    }
}

impl World {
    /// An origin makes the reader a member, before its hello is answered.
    pub(super) fn admit(&mut self, origin: usize) {
        if self.scope.receipts > 0 {
            let home = &mut self.homes[origin];
            for (asked, acked) in home.asked.iter_mut().zip(&home.acked) {
                asked.iter_mut().for_each(|asked| asked.last_word(*acked, home.heard));
            }
            home.tenure = Some(Tenure { since: home.log.heads(), until: None });
            home.acked = vec![0; lanes().count().into()];
            home.heard = Tick::NEVER;
        }
    }

    /// The reader's probe is read.
    pub(super) fn hear(&mut self, origin: usize) {
        if self.scope.receipts > 0 {
            self.homes[origin].heard = self.now;
        }
    }

    pub(super) fn may_ask(&self, origin: usize, key: usize) -> bool {
        let home = &self.homes[origin];
        let last = Positions::one(lane(key), home.log.head(lane(key)));
        let covers = home.tenure.as_ref().is_some_and(|tenure| tenure.covers(&last));
        home.alive && home.asked[key].is_none() && covers
    }

    pub(super) fn ask(&mut self, origin: usize, key: usize) {
        let asked = if self.planted == Planted::ExpiresByProbes { Tick::NEVER } else { self.now };
        let pending = Pending::new(asked, BOUND, [life(2, self.reader_lives)]);
        let home = &mut self.homes[origin];
        let Some(change) = home.said[key].last() else { return };
        home.asked[key] =
            Some(Asked { sequence: home.log.head(lane(key)), version: change.version, pending, last: None });
    }

    /// What the reader would acknowledge.
    fn acknowledged(&self, origin: usize) -> Vec<Sequence> {
        let follower = &self.seen[origin].follower;
        match self.planted {
            Planted::AcksBeforeFence => lanes().ids().map(|lane| follower.begun_in(lane)).collect(),
            _ => follower.applied_heads(),
        }
    }

    pub(super) fn may_ack(&self, origin: usize) -> bool {
        let home = &self.homes[origin];
        let met = home.alive && self.seen[origin].met && home.tenure.is_some();
        met && self.acknowledged(origin) != home.acked
    }

    pub(super) fn ack(&mut self, origin: usize) {
        self.homes[origin].acked = self.acknowledged(origin);
    }

    /// Whether it may be that nobody is waited for any longer.
    pub(super) fn may_look(&self, origin: usize, key: usize) -> bool {
        let home = &self.homes[origin];
        let Some(asked) = &home.asked[key] else { return false };
        let due = asked.pending.due().is_some_and(|due| due <= self.now);
        home.alive && (due || asked.said(home.acked[key], home.heard).reached)
    }

    pub(super) fn look(&mut self, origin: usize, key: usize) {
        let (home, now) = (&mut self.homes[origin], self.now);
        let Some(asked) = &mut home.asked[key] else { return };
        let said = asked.said(home.acked[key], home.heard);
        asked.pending.said(0, said, now);
        if asked.pending.receipt().is_complete() {
            self.least[key] = self.least[key].max(asked.version);
            home.asked[key] = None;
        }
    }
}
