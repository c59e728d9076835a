//! How soon what a node writes is applied by every live member: the measure of coherence.
//!
//! Writes are followed by marks: all records of a lane that came to be known within [`RESOLUTION`] share one, which dates
//! from the first and is done when the last live member has applied the last of them. So no write is said to be coherent
//! sooner than it was, but for what [`Coverage::applied`] says. A member that is lost counts until it leaves; what is
//! written meanwhile is not coherent.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::histogram::{Histogram, Snapshot};
use crate::id::{LaneId, Lanes, Origin, Sequence};
use crate::time::Tick;

/// The times within which shares of writes are told.
pub const WITHIN: [Duration; 4] = [
    Duration::from_millis(1),
    Duration::from_millis(10),
    Duration::from_millis(100),
    Duration::from_millis(1_000),
];

/// Records that come to be known within this time share a mark: a quarter of the shortest time that is told.
pub const RESOLUTION: Duration = Duration::from_micros(250);

/// Marks of a lane, of 40 bytes each: of the last second, as long as nobody is quicker than [`RESOLUTION`]. Of more the
/// oldest is given up: it counts as coherent in none of the times, for some live member has not applied it.
const MARKS_MAX: usize = 4_096;

/// What a mark that is given up took at least, for all that is said of it: more than every time that is told.
const GIVEN_UP: Duration = Duration::from_millis(1_001);

/// The last minute is kept by seconds.
const SECONDS: usize = 60;

/// How long the word that a write was applied may take: acknowledgements are gathered for 5 ms, and travel. Until a time
/// and this have passed, a write that nobody has spoken of is undecided.
const WORD_TIME: Duration = Duration::from_millis(50);

/// Writes of one lane that are followed together.
#[derive(Debug)]
struct Mark {
    head: Sequence,
    count: u64,
    at: Tick,
    /// Members that have not applied it.
    open: usize,
    /// When the last of the others had.
    applied: Tick,
}

#[derive(Debug, Default)]
struct Lane {
    head: Sequence,
    /// When the last mark was made, or something was written alone.
    noted: Tick,
    marks: VecDeque<Mark>,
}

/// Writes whose fate is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    writes: u64,
    within: [u64; WITHIN.len()],
}

const _: () = assert!(GIVEN_UP.as_nanos() > WITHIN[WITHIN.len() - 1].as_nanos());

impl Tally {
    fn count(&mut self, count: u64, took: Duration) {
        self.writes += count;
        for (counted, within) in self.within.iter_mut().zip(WITHIN) {
            *counted += if took <= within { count } else { 0 };
        }
    }

    fn add(&mut self, other: &Self) {
        self.writes += other.writes;
        self.within.iter_mut().zip(other.within).for_each(|(counted, more)| *counted += more);
    }
}

/// Of the writes that can be judged by a time, those that were coherent within it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Writes that every live member had applied within the time.
    pub coherent: u64,
    /// Writes that are older than the time, or were coherent sooner.
    pub judged: u64,
}

impl Share {
    /// The share, `None` of nothing.
    #[must_use]
    pub fn ratio(self) -> Option<f64> {
        (self.judged > 0).then(|| self.coherent as f64 / self.judged as f64)
    }
}

/// What can be said of a node's writes. A write is a record of its log: a change of one key is one, a change of
/// everything one in every lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coherent {
    /// For each time of [`WITHIN`], of the last minute.
    pub last_minute: [Share; WITHIN.len()],
    /// The same since the start.
    pub since_start: [Share; WITHIN.len()],
    /// Writes that some live member has not applied, as far as is known.
    pub pending: u64,
    /// Writes that were made while there was no other member, which are in no share.
    pub alone: u64,
    /// How long it took until the last live member had applied a write.
    pub times: Snapshot,
}

/// Follows what is written until every member has applied it.
#[derive(Debug)]
pub struct Coverage {
    ids: Lanes,
    lanes: Vec<Lane>,
    /// What each member has applied of each lane. What was there before it was a member counts as applied.
    members: BTreeMap<Origin, Vec<Sequence>>,
    total: Tally,
    minute: [(u64, Tally); SECONDS],
    alone: u64,
    times: Histogram,
}

impl Coverage {
    /// Nothing is written, and nobody is there.
    #[must_use]
    pub fn new(lanes: Lanes) -> Self {
        Self {
            ids: lanes,
            lanes: lanes.ids().map(|_| Lane::default()).collect(),
            members: BTreeMap::new(),
            total: Tally::default(),
            minute: [(0, Tally::default()); SECONDS],
            alone: 0,
            times: Histogram::default(),
        }
    }

    /// Everything of a lane up to `head` is known since this time at the latest.
    pub fn noted(&mut self, lane: LaneId, head: Sequence, at: Tick) {
        let members = self.members.len();
        let Some(lane) = self.lanes.get_mut(lane.index()).filter(|lane| head > lane.head) else { return };
        let count = head - lane.head;
        lane.head = head;
        if members == 0 {
            lane.noted = lane.noted.max(at);
            self.alone += count;
            return;
        }
        match lane.marks.back_mut() {
            // Only if it is for all who are there, and none of them has applied it.
            Some(last) if last.open == members && at.since(last.at) < RESOLUTION => {
                last.head = head;
                last.count += count;
            }
            _ => {
                lane.noted = lane.noted.max(at);
                lane.marks.push_back(Mark { head, count, at, open: members, applied: Tick::NEVER });
            }
        }
        if lane.marks.len() > MARKS_MAX
            && let Some(oldest) = lane.marks.pop_front()
        {
            self.settle(&oldest, at.since(oldest.at).max(GIVEN_UP));
        }
    }

    /// A life is a member from these heads on.
    pub fn joined(&mut self, member: &Origin, heads: &[Sequence], now: Tick) {
        if self.members.contains_key(member) {
            return;
        }
        self.note_all(heads, now);
        let applied = self.lanes.iter().map(|lane| lane.head).collect();
        self.members.insert(member.clone(), applied);
    }

    /// A life is a member no more, after these heads: what it has not applied is not waited for any longer.
    pub fn left(&mut self, member: &Origin, heads: &[Sequence], now: Tick) {
        if !self.members.contains_key(member) {
            return;
        }
        self.note_all(heads, now);
        let Some(applied) = self.members.remove(member) else { return };
        for (index, applied) in applied.into_iter().enumerate() {
            self.apply(index, applied, (Sequence::MAX, now));
        }
    }

    fn note_all(&mut self, heads: &[Sequence], now: Tick) {
        self.ids.ids().zip(heads).for_each(|(lane, head)| self.noted(lane, *head, now));
    }

    /// A member has applied a lane up to each of these positions at the times beside them, as far as is known. `head`: the
    /// lane's head now, beyond which nobody can have applied anything.
    ///
    /// Its word may come before the node itself took note of a write, up to the linger of a telling, 200 µs, after it was
    /// made. The write dates from that word then: as much too late at most, and never before what was noted last, however
    /// old the peer says that it is.
    pub fn applied(
        &mut self,
        member: &Origin,
        (lane, head): (LaneId, Sequence),
        steps: impl IntoIterator<Item = (Sequence, Tick)>,
    ) {
        for (sequence, at) in steps {
            let sequence = sequence.min(head);
            // It may have been sent before the node itself took note.
            let noted = self.lanes.get(lane.index()).map_or(at, |lane| at.max(lane.noted));
            self.noted(lane, sequence, noted);
            let Some(applied) = self.members.get_mut(member).and_then(|lanes| lanes.get_mut(lane.index()))
            else {
                return;
            };
            if sequence > *applied {
                let before = std::mem::replace(applied, sequence);
                self.apply(lane.index(), before, (sequence, at));
            }
        }
    }

    /// One member less is waited for by the marks behind `before` up to a position.
    fn apply(&mut self, lane: usize, before: Sequence, (to, at): (Sequence, Tick)) {
        let marks = &mut self.lanes[lane].marks;
        let first = marks.partition_point(|mark| mark.head <= before);
        for mark in marks.range_mut(first..).take_while(|mark| mark.head <= to) {
            mark.open = mark.open.saturating_sub(1);
            mark.applied = mark.applied.max(at);
        }
        // Whoever has applied a mark has applied those before it, so they are done in order.
        while let Some(mark) = self.lanes[lane].marks.pop_front_if(|mark| mark.open == 0) {
            self.settle(&mark, mark.applied.since(mark.at));
        }
    }

    fn settle(&mut self, mark: &Mark, took: Duration) {
        self.times.record_many(took, mark.count);
        self.total.count(mark.count, took);
        let second = second_of(mark.at);
        let (kept, tally) = &mut self.minute[second as usize % SECONDS];
        if *kept < second {
            (*kept, *tally) = (second, Tally::default());
        }
        if *kept == second {
            tally.count(mark.count, took);
        }
    }

    /// What can be said now.
    #[must_use]
    pub fn coherent(&self, now: Tick) -> Coherent {
        let from = second_of(now).saturating_sub(SECONDS as u64 - 1);
        let mut minute = Tally::default();
        self.minute.iter().filter(|(second, _)| *second >= from).for_each(|(_, tally)| minute.add(tally));
        let shares = |tally: &Tally| {
            std::array::from_fn(|index| Share { coherent: tally.within[index], judged: tally.writes })
        };
        let (mut last_minute, mut since_start): ([Share; WITHIN.len()], [Share; WITHIN.len()]) =
            (shares(&minute), shares(&self.total));
        let mut pending = 0;
        for mark in self.lanes.iter().flat_map(|lane| &lane.marks) {
            pending += mark.count;
            for (index, within) in WITHIN.into_iter().enumerate() {
                if now.since(mark.at) > within + WORD_TIME {
                    since_start[index].judged += mark.count;
                    last_minute[index].judged += if second_of(mark.at) >= from { mark.count } else { 0 };
                }
            }
        }
        Coherent { last_minute, since_start, pending, alone: self.alone, times: self.times.snapshot() }
    }
}

fn second_of(at: Tick) -> u64 {
    at.0 / 1_000_000_000
}

#[cfg(test)]
#[path = "coverage_tests.rs"]
mod tests;
