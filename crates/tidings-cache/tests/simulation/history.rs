//! The system of record, what was announced of it and when, and the judgement of every read.

use std::collections::BTreeMap;

use tidings_proto::id::{LaneId, Origin, Sequence};

use crate::{BOUND_US, KEYS, Micros};

/// One key's value in the system of record: a version that only rises.
struct Truth {
    /// By version: when the change to it, or to a later one, was announced by a node whose changes count.
    announced: Vec<Option<Micros>>,
}

/// What a position of a log says: each key's version that must be seen once it is applied.
type Said = Vec<(u8, u64)>;

/// Everything that happened, as nobody in the cluster knows it.
pub(crate) struct History {
    keys: Vec<Truth>,
    logs: BTreeMap<(Origin, LaneId, Sequence), Said>,
}

impl History {
    pub(crate) fn new() -> Self {
        let keys = (0..KEYS).map(|_| Truth { announced: vec![Some(0)] }).collect();
        Self { keys, logs: BTreeMap::new() }
    }

    /// What a loader that reads now gets.
    pub(crate) fn read(&self, key: u8) -> u64 {
        self.keys[usize::from(key)].announced.len() as u64 - 1
    }

    /// A write commits. Returns its version.
    pub(crate) fn commit(&mut self, key: u8) -> u64 {
        self.keys[usize::from(key)].announced.push(None);
        self.read(key)
    }

    /// From `at` on, `max_staleness` counts for every older version.
    pub(crate) fn announce(&mut self, key: u8, version: u64, at: Micros) {
        for announced in self.keys[usize::from(key)].announced[..=version as usize].iter_mut().rev() {
            match announced {
                Some(earlier) if *earlier <= at => break,
                later => *later = Some(at),
            }
        }
    }

    /// When this version, or a later one, was announced whose bound is over at `at`; `None` if a read may return it.
    pub(crate) fn overdue(&self, key: u8, version: u64, at: Micros) -> Option<(u64, Micros)> {
        let announced = &self.keys[usize::from(key)].announced;
        (version + 1..announced.len() as u64).find_map(|newer| {
            let said = announced[newer as usize]?;
            (said + BOUND_US < at).then_some((newer, said))
        })
    }

    pub(crate) fn log(&mut self, at: (Origin, LaneId, Sequence), said: Said) {
        self.logs.insert(at, said);
    }

    pub(crate) fn said(&self, at: &(Origin, LaneId, Sequence)) -> &[(u8, u64)] {
        self.logs.get(at).map(Vec::as_slice).unwrap_or_default()
    }
}
