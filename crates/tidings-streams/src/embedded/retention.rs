//! What retention and trimming remove.

use std::io;

use super::log::Item;
use super::store::{Store, Stored};
use crate::call::{TrimMode, Trimmed};
use crate::decide::{Held, is_surplus};
use crate::error::StoreError;
use crate::id::Timestamp;
use crate::ledger::Step;
use crate::name::Name;
use crate::settings::{Retention, Topic};

/// Most events that are removed, or looked at, in one go: others wait for so long.
pub(super) const TRIMMED_AT_ONCE: u64 = 50_000;

/// Their bytes, about.
const TRIMMED_BYTES_AT_ONCE: u64 = 8 << 20;

/// How far a look for what is to go has come.
#[derive(Clone, Copy, Debug)]
struct Look {
    /// Everything below it is to go.
    floor: u64,
    /// What is left from there on.
    held: Held,
    trimmed: Trimmed,
}

/// By what is judged, and up to where.
#[derive(Clone, Copy, Debug)]
struct Limits<'a> {
    retention: &'a Retention,
    now: Timestamp,
    end: u64,
}

/// How far trimming has come.
#[derive(Debug)]
pub(super) struct Trimming {
    limits: Retention,
    mode: TrimMode,
    begun: Option<Begun>,
    pub(super) trimmed: Trimmed,
}

#[derive(Debug)]
struct Begun {
    now: Timestamp,
    /// What is published meanwhile stays.
    end: u64,
    /// Of what is only looked at. What is removed is looked at anew each time.
    look: Option<Look>,
    /// All is removed that groups do not need: what is looked for is what would go but for them.
    counts: bool,
}

impl Trimming {
    pub(super) fn new(limits: Retention, mode: TrimMode) -> Self {
        Self { limits, mode, begun: None, trimmed: Trimmed::default() }
    }
}

impl Store {
    /// Applies a topic's retention to so many events. Whether some are left to look at.
    pub(super) fn retain(&mut self, topic: &Topic, most: u64) -> Result<(Trimmed, bool), StoreError> {
        let retention = &topic.settings.retention;
        if retention.is_unlimited() {
            return Ok((Trimmed::default(), false));
        }
        let now = self.now();
        let Some(stored) = self.topics.get_mut(&topic.name) else {
            return Ok((Trimmed::default(), false));
        };
        let end = stored.lowest().min(stored.log.written() + 1);
        let mut look = stored.look();
        let done = stored.surplus(&mut look, Limits { retention, now, end }, most)?;
        self.raise_floor(&topic.name, &look);
        Ok((look.trimmed, !done))
    }

    /// Trims some of a topic. Whether that was all.
    pub(super) fn trim(
        &mut self,
        topic: &Topic,
        mut so_far: Trimming,
    ) -> Result<(Trimming, bool), StoreError> {
        let now = self.now();
        let Some(stored) = self.topics.get_mut(&topic.name) else { return Ok((so_far, true)) };
        let mode = so_far.mode;
        let end = stored.log.written() + 1;
        let begun = so_far.begun.get_or_insert(Begun { now, end, look: None, counts: false });
        let reach = if mode.force || begun.counts { begun.end } else { stored.lowest().min(begun.end) };
        let limits = Limits { retention: &so_far.limits, now: begun.now, end: reach };
        if begun.counts || mode.dry_run {
            let mut look = begun.look.take().filter(|look| look.floor >= stored.floor);
            let look = look.get_or_insert_with(|| stored.look());
            let done = stored.surplus(look, limits, TRIMMED_AT_ONCE)?;
            if done && begun.counts {
                so_far.trimmed.kept_for_groups = look.trimmed.removed;
                return Ok((so_far, true));
            }
            begun.look = Some(*look);
            if done {
                so_far.trimmed = look.trimmed;
                begun.look = Some(Look { trimmed: Trimmed::default(), ..*look });
                begun.counts = true;
            }
            return Ok((so_far, done && mode.force));
        }
        let mut look = stored.look();
        let done = stored.surplus(&mut look, limits, TRIMMED_AT_ONCE)?;
        begun.counts = done;
        so_far.trimmed.removed += look.trimmed.removed;
        so_far.trimmed.bytes += look.trimmed.bytes;
        self.raise_floor(&topic.name, &look);
        self.note_floor(&topic.name);
        if mode.force {
            self.lose(&topic.name, look.floor);
        }
        Ok((so_far, done && mode.force))
    }

    /// Removes what is below a number. The journal is told where a file is freed by that, and else by maintenance: a
    /// publish should not have two files synced. After a crash some that retention had removed may be there again,
    /// until the next publish.
    fn raise_floor(&mut self, name: &Name, look: &Look) {
        let Some(stored) = self.topics.get_mut(name) else { return };
        stored.floor = stored.floor.max(look.floor);
        stored.bytes = stored.bytes.saturating_sub(look.trimmed.bytes);
        if stored.log.frees(stored.floor) {
            self.note_floor(name);
        }
    }

    /// Tells the groups of a topic what they have lost.
    fn lose(&mut self, name: &Name, below: u64) {
        let groups = self.topics.get(name).map(|stored| &stored.groups);
        let losers: Vec<Name> = groups
            .into_iter()
            .flatten()
            .filter(|(_, group)| group.ledger.lowest() < below)
            .map(|(group, _)| group.clone())
            .collect();
        for group in losers {
            self.step(name, &group, Step::Lost { below });
            // What waited for one of these, or for room, may be due.
            self.wake(name);
        }
    }
}

impl Stored {
    fn look(&self) -> Look {
        let held = Held { events: self.events(), bytes: self.bytes };
        Look { floor: self.floor, held, trimmed: Trimmed::default() }
    }

    /// Looks for what is to go, at so many events at most. Whether nothing more is.
    fn surplus(&mut self, look: &mut Look, limits: Limits<'_>, most: u64) -> io::Result<bool> {
        let Limits { retention, now, end } = limits;
        // Looking at the oldest event takes a read: not where nothing can follow from it.
        let by_age = retention.max_age.is_some();
        let oldest = match self.oldest {
            Some((at, time)) if at == look.floor => Some(time),
            _ => (!by_age).then_some(now),
        };
        let is_kept = |oldest| !is_surplus(retention, look.held, oldest, now);
        if look.floor >= end || oldest.is_some_and(is_kept) {
            return Ok(true);
        }
        // What cannot be read and is not surplus by itself: it goes once something behind it does, and is named till then.
        let mut passed = Held::default();
        let (most, most_bytes) = (look.trimmed.removed + most, look.trimmed.bytes + TRIMMED_BYTES_AT_ONCE);
        let mut walk = self.log.walk(look.floor)?;
        while look.floor < end {
            if look.trimmed.removed >= most || look.trimmed.bytes >= most_bytes {
                walk.pause();
                return Ok(false);
            }
            match walk.next()? {
                Some(Item::Record(record)) => {
                    let without = Held {
                        events: look.held.events.saturating_sub(passed.events),
                        bytes: look.held.bytes.saturating_sub(passed.bytes),
                    };
                    if record.id >= end || !is_surplus(retention, without, Timestamp(record.time), now) {
                        self.oldest = Some((look.floor, Timestamp(record.time)));
                        walk.pause();
                        return Ok(true);
                    }
                    look.floor = record.id + 1;
                    look.trimmed.removed += 1;
                    look.trimmed.bytes += record.size + std::mem::take(&mut passed).bytes;
                    look.held.events = without.events.saturating_sub(1);
                    look.held.bytes = without.bytes.saturating_sub(record.size);
                }
                Some(Item::Gap { last, first, bytes }) => {
                    let gap = Held { events: last - first + 1, bytes };
                    // Its age is not known: that of what comes behind it decides.
                    if !is_surplus(retention, look.held, now, now) {
                        passed = Held { events: passed.events + gap.events, bytes: passed.bytes + gap.bytes };
                        continue;
                    }
                    look.floor = (last + 1).min(end);
                    look.held.events = look.held.events.saturating_sub(gap.events);
                    look.held.bytes = look.held.bytes.saturating_sub(gap.bytes);
                    look.trimmed.bytes += gap.bytes;
                }
                None => return Ok(true),
            }
        }
        Ok(true)
    }
}
