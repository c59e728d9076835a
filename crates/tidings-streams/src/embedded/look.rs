//! Reading without changing anything: pages, figures, and the look at everything.

use std::collections::BTreeMap;

use super::groups::bytes_of;
use super::log::{Item, Log};
use super::record;
use super::store::{Store, Stored};
use crate::call::{Damage, EventPage, Order, PAGE_EVENTS_MAX, Page, Place, Report, TopicInfo};
use crate::error::StoreError;
use crate::event::Event;
use crate::id::EventId;
use crate::name::Name;

/// Payloads of a page, in bytes; one event more may come.
const PAGE_BYTES_MAX: usize = 8 << 20;

/// Going back, so many events are read at a time and turned around.
const BACKWARD_EVENTS: u64 = 32;

/// What is looked at in one go of a look at everything, in bytes: others wait for so long.
const VERIFIED_BYTES: u64 = 8 << 20;

/// How far a look at everything has come.
#[derive(Debug, Default)]
pub(super) struct Verifying {
    pub(super) report: Report,
    /// The topic that is under way, and its next number; behind the last topic come the dead letters.
    topic: Option<Name>,
    next: u64,
    began: bool,
}

impl Store {
    pub(super) fn info(&self, name: &Name) -> Option<TopicInfo> {
        let stored = self.topics.get(name)?;
        let events = stored.events();
        let any = events > 0;
        Some(TopicInfo {
            name: name.clone(),
            events,
            bytes: stored.bytes,
            first: any.then(|| EventId::new(stored.floor)),
            last: any.then(|| EventId::new(stored.log.last())),
            last_time: any.then_some(stored.last_time),
            groups: stored.groups.len(),
        })
    }

    pub(super) fn read(&mut self, name: &Name, page: &Page) -> Result<EventPage, StoreError> {
        let Some(stored) = self.topics.get_mut(name) else { return Ok(EventPage::default()) };
        let limit = page.limit.min(PAGE_EVENTS_MAX);
        let first = match page.from {
            Some(from) => stored.log.first_at(from.0, stored.floor)?,
            None => stored.floor,
        };
        let end = match page.until {
            Some(until) => stored.log.first_at(until.0, stored.floor)?,
            None => stored.log.written() + 1,
        };
        let read = match page.order {
            Order::Ascending => {
                let after = page.after.map_or(0, |after| after.major().saturating_add(1));
                stored.forward(first.max(after), end, limit)
            }
            Order::Descending => {
                let before = page.after.map_or(u64::MAX, |after| {
                    // Whatever has the same first number and a second one comes after what counts from one.
                    after.major().saturating_add(u64::from(after.minor() > 0))
                });
                stored.backward(first, end.min(before), limit)
            }
        }?;
        self.waiting += bytes_of(&read.events);
        Ok(read)
    }

    /// Looks at a part of what is stored. Whether that was the last.
    pub(super) fn verify(&mut self, mut so_far: Verifying) -> Result<(Verifying, bool), StoreError> {
        if !so_far.began {
            so_far.began = true;
            so_far.report.damage.clone_from(&self.found);
            let bytes = self.journal.verify()?;
            if bytes > 0 && self.found.is_empty() {
                so_far.report.damage.push(Damage { place: Place::Groups, ids: None, bytes });
            }
            so_far.topic = self.topics.keys().next().cloned();
            so_far.next = 0;
        }
        let Some(name) = so_far.topic.clone() else {
            let removed = &self.removed;
            let from = so_far.next.max(removed.first_missing(1));
            let is_gone = |first, last| removed.covers(first, last);
            let part = look(&mut self.dead, from, is_gone, |record| record::dead_letter(record).is_ok())?;
            so_far.report.dead_letters +=
                part.sound.iter().filter(|id| !removed.contains(**id)).count() as u64;
            so_far.add(Place::DeadLetters, &part.gaps);
            so_far.next = part.next.unwrap_or(0);
            return Ok((so_far, part.next.is_none()));
        };
        if let Some(stored) = self.topics.get_mut(&name) {
            let from = so_far.next.max(stored.floor);
            let sound = |record: &super::log::Record<'_>| record::event_header(record).is_ok();
            let part = look(&mut stored.log, from, |_, _| false, sound)?;
            so_far.report.events += part.sound.len() as u64;
            so_far.add(Place::Topic(name.clone()), &part.gaps);
            if let Some(next) = part.next {
                so_far.next = next;
                return Ok((so_far, false));
            }
        }
        so_far.topic = after(&self.topics, &name);
        so_far.next = 0;
        Ok((so_far, false))
    }
}

impl Verifying {
    fn add(&mut self, place: Place, gaps: &[(u64, u64, u64)]) {
        for (first, last, bytes) in gaps {
            let ids = Some((EventId::new(*first), EventId::new(*last)));
            self.report.damage.push(Damage { place: place.clone(), ids, bytes: *bytes });
        }
    }
}

fn after(topics: &BTreeMap<Name, Stored>, name: &Name) -> Option<Name> {
    use std::ops::Bound::{Excluded, Unbounded};
    topics.range((Excluded(name.clone()), Unbounded)).next().map(|(name, _)| name.clone())
}

#[derive(Default)]
struct Part {
    sound: Vec<u64>,
    gaps: Vec<(u64, u64, u64)>,
    next: Option<u64>,
}

fn look(
    log: &mut Log,
    from: u64,
    is_gone: impl Fn(u64, u64) -> bool,
    is_sound: impl Fn(&super::log::Record<'_>) -> bool,
) -> Result<Part, StoreError> {
    let (mut part, mut bytes) = (Part::default(), 0);
    let mut walk = log.walk(from)?;
    loop {
        match walk.next()? {
            Some(Item::Record(record)) => {
                bytes += record.size;
                if is_sound(&record) {
                    part.sound.push(record.id);
                } else {
                    part.gaps.push((record.id, record.id, record.size));
                }
            }
            Some(Item::Gap { first, last, bytes }) => {
                if !is_gone(first, last) {
                    part.gaps.push((first, last, bytes));
                }
            }
            None => return Ok(part),
        }
        if bytes >= VERIFIED_BYTES {
            part.next = Some(walk.expected());
            walk.pause();
            return Ok(part);
        }
    }
}

impl Stored {
    fn forward(&mut self, from: u64, end: u64, limit: usize) -> Result<EventPage, StoreError> {
        let mut page = EventPage::default();
        let mut bytes = 0;
        let mut walk = self.log.walk(from)?;
        while walk.expected() < end {
            let full = page.events.len() >= limit || bytes >= PAGE_BYTES_MAX;
            match walk.next()? {
                Some(Item::Record(found)) if found.id < end => {
                    if full {
                        page.next = page.events.last().map(|event: &Event| event.id);
                        break;
                    }
                    let Ok(event) = record::event(&found) else { continue };
                    bytes += event.payload.len();
                    page.events.push(event);
                }
                Some(Item::Gap { .. }) => {}
                _ => break,
            }
        }
        Ok(page)
    }

    fn backward(&mut self, first: u64, mut end: u64, limit: usize) -> Result<EventPage, StoreError> {
        let mut page = EventPage::default();
        let mut bytes = 0;
        while end > first {
            let from = end.saturating_sub(BACKWARD_EVENTS).max(first);
            let mut part = self.forward(from, end, PAGE_EVENTS_MAX)?;
            // Large events end a page early: what it lacks is nearer.
            while let Some(next) = part.next {
                let rest = self.forward(next.major() + 1, end, PAGE_EVENTS_MAX)?;
                part.events.extend(rest.events);
                part.next = rest.next;
            }
            for event in part.events.into_iter().rev() {
                if page.events.len() >= limit || bytes >= PAGE_BYTES_MAX {
                    page.next = page.events.last().map(|event| event.id);
                    return Ok(page);
                }
                bytes += event.payload.len();
                page.events.push(event);
            }
            end = from;
        }
        Ok(page)
    }
}
