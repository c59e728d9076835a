//! What a group's journal says, and the state that follows from it: a state machine that every process has a replica
//! of.
//!
//! A record is stored only behind the one that its writer has read last, so all replicas apply the same records in the
//! same order. From time to time a writer stores the whole state, in parts where it is large, and then removes what
//! came before. Parts count only where nothing came between them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ledger::{Burial, Ledger, OPEN_MAX, Open, Step};
use crate::name::Name;

/// Bytes of a record, about: what is larger is stored as several. A server takes a megabyte by default.
pub(super) const RECORD_BYTES_MAX: usize = 128 << 10;

/// Records behind the last whole state, beyond which another is stored: whoever comes new reads them one by one.
pub(super) const RECORDS_MAX: usize = 256;

/// One thing that a record says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Entry {
    /// The group was made, and begins with this event.
    Made {
        /// Which one.
        next: u64,
    },
    /// A change of its ledger. The epoch of a step says nothing: it is the record's sequence.
    Step(Step),
    /// An event is given up. It is a dead letter from now on, stored as one or not yet.
    Bury(Grave),
    /// The dead letter is stored.
    Buried {
        /// Of which epoch of the group.
        epoch: u64,
        /// Of which event.
        id: u64,
    },
    /// The whole state, or a part of it.
    State(Box<Part>),
    /// The group was removed.
    Removed,
}

/// An event that is given up, and where its dead letter goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Grave {
    /// The dead-letter stream that the topic named.
    pub(super) stream: Name,
    /// What the group knows of it.
    pub(super) burial: Burial,
}

/// A part of a group's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    number: usize,
    of: usize,
    next: u64,
    epoch: u64,
    paused: bool,
    again: u64,
    open: Vec<(u64, Open)>,
    burying: Vec<(u64, Grave)>,
}

/// A group's state.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) ledger: Ledger,
    /// What was given up and may not be stored as a dead letter yet, by epoch and event.
    pub(super) burying: BTreeMap<(u64, u64), Grave>,
    /// Deliveries beyond the first of an event.
    pub(super) again: u64,
}

impl State {
    /// The lowest event that the group still needs.
    pub(super) fn lowest(&self) -> u64 {
        let burying = self.burying.keys().map(|(_, id)| *id).min().unwrap_or(u64::MAX);
        self.ledger.lowest().min(burying)
    }

    /// How many events it may look at and leave open.
    pub(super) fn room(&self) -> usize {
        OPEN_MAX.saturating_sub(self.ledger.open().len() + self.burying.len())
    }

    /// Itself as parts of about so many bytes.
    pub(super) fn parts(&self, bytes_max: usize) -> Vec<Part> {
        let ledger = &self.ledger;
        let empty = || Part {
            number: 0,
            of: 0,
            next: ledger.next(),
            epoch: ledger.epoch(),
            paused: ledger.paused(),
            again: self.again,
            open: Vec::new(),
            burying: Vec::new(),
        };
        let (mut parts, mut part, mut bytes) = (Vec::new(), empty(), 0);
        for (id, open) in ledger.open() {
            let failed = open.failure.as_ref().map_or(0, |failure| failure.error.len());
            bytes += OPEN_BYTES + failed;
            part.open.push((*id, open.clone()));
            if bytes >= bytes_max {
                parts.push(std::mem::replace(&mut part, empty()));
                bytes = 0;
            }
        }
        for ((epoch, _), grave) in &self.burying {
            bytes += OPEN_BYTES + grave.burial.failure.error.len();
            part.burying.push((*epoch, grave.clone()));
            if bytes >= bytes_max {
                parts.push(std::mem::replace(&mut part, empty()));
                bytes = 0;
            }
        }
        parts.push(part);
        let of = parts.len();
        for (number, part) in parts.iter_mut().enumerate() {
            (part.number, part.of) = (number, of);
        }
        parts
    }

    fn add(&mut self, part: &Part) {
        for (id, open) in &part.open {
            self.ledger.restore(*id, open.clone());
        }
        for (epoch, grave) in &part.burying {
            self.burying.insert((*epoch, grave.burial.id), grave.clone());
        }
    }

    fn step(&mut self, step: &Step, sequence: u64) {
        match step {
            Step::Taken { ids, .. } => {
                let open = self.ledger.open();
                let again = ids.iter().filter(|id| open.get(id).is_some_and(|open| open.attempts > 0));
                self.again += again.count() as u64;
                self.ledger.apply(step);
            }
            Step::Sought { next, .. } => {
                self.ledger.apply(&Step::Sought { next: *next, epoch: sequence });
            }
            step => self.ledger.apply(step),
        }
    }
}

/// An open event without the text of its failure, in bytes of a record, about.
const OPEN_BYTES: usize = 200;

/// A group as its journal has it, up to a record.
#[derive(Debug, Default)]
pub(super) struct Replica {
    /// The sequence of the last record that was applied; 0: none.
    pub(super) last: u64,
    /// `None`: there is no such group.
    pub(super) state: Option<State>,
    /// A state that is being read in parts, and which part comes next.
    partial: Option<(State, usize)>,
    /// The record that the last whole state began with, and records behind it.
    whole: u64,
    records: usize,
}

impl Replica {
    /// Applies a record.
    pub(super) fn apply(&mut self, sequence: u64, entries: &[Entry]) {
        self.last = sequence;
        self.records += 1;
        if !matches!(entries, [Entry::State(_)]) {
            self.partial = None;
        }
        for entry in entries {
            self.apply_entry(sequence, entry);
        }
    }

    fn apply_entry(&mut self, sequence: u64, entry: &Entry) {
        match (entry, &mut self.state) {
            (Entry::Made { next }, _) => {
                let ledger = Ledger::new(*next, sequence, false);
                self.state = Some(State { ledger, ..State::default() });
            }
            (Entry::State(part), _) => self.apply_part(sequence, part),
            (Entry::Removed, _) => self.state = None,
            (Entry::Step(step), Some(state)) => state.step(step, sequence),
            (Entry::Bury(grave), Some(state)) => {
                let id = grave.burial.id;
                state.burying.insert((state.ledger.epoch(), id), grave.clone());
                state.ledger.apply(&Step::Settled { id });
            }
            (Entry::Buried { epoch, id }, Some(state)) => drop(state.burying.remove(&(*epoch, *id))),
            // What came before a state that is still to come was removed in part.
            (Entry::Step(_) | Entry::Bury(_) | Entry::Buried { .. }, None) => {}
        }
    }

    fn apply_part(&mut self, sequence: u64, part: &Part) {
        if part.number == 0 {
            let ledger = Ledger::new(part.next, part.epoch, part.paused);
            self.partial = Some((State { ledger, again: part.again, ..State::default() }, 0));
            (self.whole, self.records) = (sequence, 0);
        }
        let Some((mut state, expected)) = self.partial.take().filter(|(_, next)| *next == part.number) else {
            return;
        };
        state.add(part);
        if expected + 1 == part.of {
            self.state = Some(state);
        } else {
            self.partial = Some((state, expected + 1));
        }
    }

    /// Whether it is time to store the whole state.
    pub(super) fn is_long(&self) -> bool {
        self.state.is_some() && self.records >= RECORDS_MAX
    }

    /// Puts that off, for others come between.
    pub(super) fn put_off(&mut self) {
        self.records /= 2;
    }

    /// The record that the last whole state began with.
    pub(super) fn whole(&self) -> u64 {
        self.whole
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
