//! Reading a log: from a number, from a moment, and over what cannot be read.
//!
//! A record is found by its number where it should lie if all were of one size, and by bisecting where they are not: any
//! frame found on the way says its number. Whoever goes through a log in its order goes on where it was.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;

use super::frame::{Found, READ_BYTES, Walker};
use super::log::{Item, Log, record};

/// Bisecting a segment ends with so many bytes, which are read through.
const BISECTED_BYTES: u64 = 64 << 10;

/// Places of a log that are remembered, some 60 bytes each: about one for each reader that goes through it in its order.
/// More readers than that find their places by bisecting.
const HINTS_MAX: usize = 1_024;

/// Where readers stopped: the place of the number that each comes back for.
#[derive(Debug, Default)]
pub(super) struct Hints {
    places: HashMap<u64, Place>,
    /// By when they were noted.
    order: VecDeque<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    segment: u64,
    offset: u64,
}

impl Hints {
    fn remember(&mut self, id: u64, place: Place) {
        if self.places.insert(id, place).is_some() {
            return;
        }
        self.order.push_back(id);
        if self.order.len() > HINTS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.places.remove(&oldest);
        }
    }

    /// Forgets places in a segment that is no more.
    pub(super) fn forget(&mut self, segment: u64) {
        self.places.retain(|_, place| place.segment != segment);
        self.order.retain(|id| self.places.contains_key(id));
    }
}

impl Log {
    /// Goes through what can be read from a number on.
    pub(super) fn walk(&mut self, from: u64) -> io::Result<Walk<'_>> {
        let (segment, walker) = match self.hints.places.get(&from) {
            Some(Place { segment, offset }) => (*segment, self.walker(*segment, *offset)),
            None => self.find(from)?,
        };
        Ok(Walk { log: self, segment, walker, expected: from, gap_bytes: 0, held: None })
    }

    /// The first number whose moment is the given one or later; the next number if there is none.
    pub(super) fn first_at(&mut self, time: u64, floor: u64) -> io::Result<u64> {
        let firsts: Vec<u64> = self.segments.keys().copied().collect();
        // Of the segments that begin earlier the last one may hold it.
        let (mut low, mut high) = (0, firsts.len());
        while low + 1 < high {
            let middle = usize::midpoint(low, high);
            let mut walker = self.walker(firsts[middle], 0);
            match next_record(&mut walker)? {
                Some((_, at)) if at < time => low = middle,
                _ => high = middle,
            }
        }
        let from = firsts.get(low).copied().unwrap_or(floor);
        let offset = self.bisect(from, |_, at| at < time)?;
        let mut walker = self.walker(from, offset);
        while let Some((id, at)) = next_record(&mut walker)? {
            if at >= time {
                return Ok(id.max(floor));
            }
        }
        Ok(firsts.get(low + 1).copied().unwrap_or_else(|| self.last() + 1).max(floor))
    }

    /// A segment, and a place in it to begin to read so as not to miss a number.
    fn find(&self, id: u64) -> io::Result<(u64, Walker)> {
        let first = self.segments.range(..=id).next_back().map_or_else(|| self.first(), |(first, _)| *first);
        let mut walker = self.walker(first, 0);
        let behind =
            self.segments.range(first + 1..).next().map_or_else(|| self.written() + 1, |(next, _)| *next);
        let (mut low, mut high) = ((first, 0), (behind, walker.end()));
        let mut guesses = true;
        while low.0 < id && low.1 < high.1 {
            let away = distance(low, high, id);
            if away <= READ_BYTES as u64 {
                break;
            }
            // A guess that is wrong costs no more than one step of a bisection that would have been done without.
            let probe =
                if guesses { low.1 + away - READ_BYTES as u64 / 2 } else { u64::midpoint(low.1, high.1) };
            guesses = !guesses;
            walker.jump(probe.min(high.1));
            match next_frame(&mut walker)? {
                Some((offset, found, _)) if offset < high.1 && found <= id => low = (found, offset),
                Some((offset, found, _)) if offset < high.1 => high = (found, probe.min(offset)),
                _ => high.1 = probe.min(high.1 - 1),
            }
        }
        walker.jump(low.1);
        Ok((first, walker))
    }

    /// The offset of a frame that is not beyond a place: `before` says of a record that it is not.
    fn bisect(&self, segment: u64, before: impl Fn(u64, u64) -> bool) -> io::Result<u64> {
        let mut high = self.segments.get(&segment).map_or(0, |segment| segment.length);
        let mut low = 0;
        if high <= BISECTED_BYTES {
            return Ok(low);
        }
        let mut walker = self.walker(segment, 0);
        while high - low > BISECTED_BYTES {
            let middle = u64::midpoint(low, high);
            walker.jump(middle);
            match next_frame(&mut walker)? {
                Some((offset, id, time)) if offset < high && before(id, time) => low = offset.max(low + 1),
                _ => high = middle,
            }
        }
        Ok(low)
    }

    fn walker(&self, segment: u64, offset: u64) -> Walker {
        let segment = self.segments.get(&segment).expect("its number was found among them");
        Walker::new(Arc::clone(&segment.file), segment.salt, offset, segment.length)
    }
}

/// A way through a log.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    log: &'a mut Log,
    segment: u64,
    walker: Walker,
    expected: u64,
    gap_bytes: u64,
    /// A record that was met behind a gap: its offset.
    held: Option<u64>,
}

impl Walk<'_> {
    /// The number that would come next.
    pub(super) fn expected(&self) -> u64 {
        self.expected
    }

    /// Remembers where this way ended, for whoever goes on from there.
    pub(super) fn pause(self) {
        if self.held.is_none() && self.gap_bytes == 0 {
            let place = Place { segment: self.segment, offset: self.walker.offset() };
            self.log.hints.remember(self.expected, place);
        }
    }

    pub(super) fn next(&mut self) -> io::Result<Option<Item<'_>>> {
        if let Some(offset) = self.held.take() {
            self.walker.jump(offset);
        }
        loop {
            let expected = self.expected;
            let (offset, length) = match self.walker.next()? {
                Some(Found::Damage { bytes, .. }) => {
                    self.gap_bytes += bytes;
                    continue;
                }
                Some(Found::Frame { offset, length }) => (offset, length),
                None => match self.log.segments.range(self.segment + 1..).next().map(|(first, _)| *first) {
                    Some(next) => {
                        self.segment = next;
                        self.walker = self.log.walker(next, 0);
                        if next > expected {
                            return Ok(Some(self.gap(next - 1)));
                        }
                        continue;
                    }
                    // What was written and cannot be read any more: nothing behind it says so.
                    None if expected <= self.log.written() => {
                        return Ok(Some(self.gap(self.log.written())));
                    }
                    None => return Ok(None),
                },
            };
            // Before what was asked for: damage there is nobody's here.
            let found = record(self.walker.body(offset, length)).map(|record| record.id);
            let Some(id) = found.filter(|id| *id >= expected) else {
                self.gap_bytes = 0;
                continue;
            };
            if id > expected {
                self.held = Some(offset);
                return Ok(Some(self.gap(id - 1)));
            }
            (self.gap_bytes, self.expected) = (0, id + 1);
            return Ok(record(self.walker.body(offset, length)).map(Item::Record));
        }
    }

    fn gap(&mut self, last: u64) -> Item<'static> {
        let first = std::mem::replace(&mut self.expected, last + 1);
        Item::Gap { first, last, bytes: std::mem::take(&mut self.gap_bytes) }
    }
}

/// How far a number lies behind the lower of two places, in bytes, if what lies between them is of one size.
fn distance(low: (u64, u64), high: (u64, u64), id: u64) -> u64 {
    let (numbers, bytes) = (high.0.saturating_sub(low.0).max(1), high.1 - low.1);
    let share = u128::from(bytes) * u128::from(id - low.0) / u128::from(numbers);
    u64::try_from(share).unwrap_or(u64::MAX).min(bytes)
}

fn next_frame(walker: &mut Walker) -> io::Result<Option<(u64, u64, u64)>> {
    while let Some(found) = walker.next()? {
        if let Found::Frame { offset, length } = found
            && let Some(record) = record(walker.body(offset, length))
        {
            return Ok(Some((offset, record.id, record.time)));
        }
    }
    Ok(None)
}

fn next_record(walker: &mut Walker) -> io::Result<Option<(u64, u64)>> {
    Ok(next_frame(walker)?.map(|(_, id, time)| (id, time)))
}
