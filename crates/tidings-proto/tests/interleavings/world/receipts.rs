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
}

impl World {
    /// An origin makes the reader a member, before its hello is answered.
    pub(super) fn admit(&mut self, origin: usize) {
        if self.scope.receipts > 0 {
            let home = &mut self.homes[origin];
            home.tenure = Some(Tenure { since: home.log.heads(), until: None });
            home.acked = vec![0; lanes().count().into()];
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
        let pending = Pending::new(asked, BOUND, [life(2, 1)]);
        let home = &mut self.homes[origin];
        let Some(change) = home.said[key].last() else { return };
        home.asked[key] =
            Some(Asked { sequence: home.log.head(lane(key)), version: change.version, pending });
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
        let Some(Asked { sequence, pending, .. }) = &home.asked[key] else { return false };
        let due = pending.due().is_some_and(|due| due <= self.now);
        home.alive && (due || home.acked[key] >= *sequence)
    }

    pub(super) fn look(&mut self, origin: usize, key: usize) {
        let (home, now) = (&mut self.homes[origin], self.now);
        let Some(Asked { sequence, version, pending }) = &mut home.asked[key] else { return };
        let said = Said { reached: home.acked[key] >= *sequence, heard: home.heard, reachable: true };
        pending.said(0, said, now);
        if pending.receipt().is_complete() {
            self.least[key] = self.least[key].max(*version);
            home.asked[key] = None;
        }
    }
}
