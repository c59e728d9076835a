//! What is under way, and when it arrives.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use super::{Event, MS};
use crate::rng::mix;

/// What handing one frame to one peer costs its sender, one after another: as measured of the real transport.
const SEND: u64 = 30_000;
/// The shortest way within a zone, and how much longer another pair's may be.
const NEAR: [u64; 2] = [MS / 5, MS / 5];
/// The same between zones.
const FAR: [u64; 2] = [MS, MS];

#[derive(Debug, Default)]
pub(super) struct Network {
    /// By time, then in the order in which they were said.
    events: BTreeMap<Reverse<(u64, u64)>, Event>,
    said: u64,
    /// Until when each node is busy with sending.
    busy: HashMap<usize, u64>,
    /// When the last frame between two nodes arrives: none overtakes another.
    last: HashMap<[usize; 2], u64>,
}

impl Network {
    pub(super) fn at(&mut self, time: u64, event: Event) {
        self.said += 1;
        self.events.insert(Reverse((time, self.said)), event);
    }

    pub(super) fn next(&mut self) -> Option<(u64, Event)> {
        self.events.pop_last().map(|(Reverse((time, _)), event)| (time, event))
    }

    /// When a frame that is handed over now will be there.
    pub(super) fn arrival(&mut self, now: u64, pair: [usize; 2], near: bool) -> u64 {
        let busy = self.busy.entry(pair[0]).or_default();
        *busy = now.max(*busy) + SEND;
        let [least, spread] = if near { NEAR } else { FAR };
        let arrives = *busy + least + mix((pair[0] << 32 | pair[1]) as u64) % spread;
        let last = self.last.entry(pair).or_default();
        *last = arrives.max(*last + 1);
        *last
    }
}
