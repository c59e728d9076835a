//! Dead letters: a log of their own, of which some are no more.

use super::log::Item;
use super::record;
use super::store::Store;
use crate::call::{DeadLetterPage, DeadLetters, PAGE_EVENTS_MAX};
use crate::error::{DeadLetterError, StoreError};
use crate::event::{DeadLetter, Event, Retried};
use crate::id::{DeadLetterId, EventId};

/// Dead letters that are looked through for one page; a filter that takes few yields short pages.
const LOOKED_MAX: u64 = 10_000;

/// So many are read at a time and turned around.
const BACKWARD_LETTERS: u64 = 32;

/// Bytes that are looked through for one page, about: others wait for so long.
const LOOKED_BYTES_MAX: u64 = 32 << 20;

/// Payloads of a page, in bytes; one letter more may come.
const PAGE_BYTES_MAX: usize = 8 << 20;

impl Store {
    pub(super) fn dead_letters(&mut self, page: &DeadLetterPage) -> Result<DeadLetters, StoreError> {
        let listed = self.list_dead(page)?;
        self.waiting += listed.letters.iter().map(|letter| letter.event.payload.len()).sum::<usize>();
        Ok(listed)
    }

    fn list_dead(&mut self, page: &DeadLetterPage) -> Result<DeadLetters, StoreError> {
        let limit = page.limit.min(PAGE_EVENTS_MAX);
        let mut end = page.after.map_or(u64::MAX, |after| after.0.major()).min(self.dead.written() + 1);
        let first = self.removed.first_missing(self.dead.first());
        let lowest = end.saturating_sub(LOOKED_MAX).max(first);
        let (mut listed, mut bytes, mut looked) = (DeadLetters::default(), 0, 0);
        while end > lowest && looked < LOOKED_BYTES_MAX {
            let from = end.saturating_sub(BACKWARD_LETTERS).max(lowest);
            let (letters, read) = self.dead_between(from, end, page)?;
            looked += read;
            for letter in letters.into_iter().rev() {
                if listed.letters.len() >= limit || bytes >= PAGE_BYTES_MAX {
                    listed.next = listed.letters.last().map(|letter| letter.id);
                    return Ok(listed);
                }
                bytes += letter.event.payload.len();
                listed.letters.push(letter);
            }
            end = from;
        }
        if end > first {
            listed.next = Some(DeadLetterId(EventId::new(end)));
        }
        Ok(listed)
    }

    fn dead_between(
        &mut self,
        from: u64,
        end: u64,
        page: &DeadLetterPage,
    ) -> Result<(Vec<DeadLetter>, u64), StoreError> {
        let (mut letters, mut bytes) = (Vec::new(), 0);
        let mut walk = self.dead.walk(from)?;
        while walk.expected() < end {
            match walk.next()? {
                Some(Item::Record(found)) if found.id < end => {
                    bytes += found.size;
                    let wanted = record::dead_header(&found)
                        .is_ok_and(|header| page.filter.takes(&header.stream, &header.topic, &header.group));
                    if wanted && !self.removed.contains(found.id) {
                        letters.extend(record::dead_letter(&found));
                    }
                }
                Some(Item::Gap { .. }) => {}
                _ => break,
            }
        }
        Ok((letters, bytes))
    }

    pub(super) fn dead_letter_count(&self) -> u64 {
        let first = self.dead.first();
        (self.dead.last() + 1 - first).saturating_sub(self.removed.count_from(first))
    }

    pub(super) fn dead_letter(&mut self, id: DeadLetterId) -> Result<Option<DeadLetter>, StoreError> {
        let number = id.0.major();
        let known = id.0.minor() == 0 && (1..=self.dead.written()).contains(&number);
        if !known || self.removed.contains(number) {
            return Ok(None);
        }
        let mut walk = self.dead.walk(number)?;
        match walk.next()? {
            Some(Item::Record(found)) => Ok(Some(record::dead_letter(&found)?)),
            _ => Ok(None),
        }
    }

    /// The event is written before the removal is: what a crash leaves between the two says whose retry it is.
    pub(super) fn retry(&mut self, id: DeadLetterId) -> Result<EventId, DeadLetterError> {
        let letter = self.dead_letter(id)?.ok_or(DeadLetterError::Unknown)?;
        let groups = self.topics.get(&letter.topic).map(|stored| &stored.groups);
        if !groups.is_some_and(|groups| groups.contains_key(&letter.group)) {
            return Err(DeadLetterError::NoGroup);
        }
        let original = letter.event.retried.as_ref().map_or(letter.event.id, |retried| retried.original);
        let retried = Retried { dead_letter: id, group: letter.group, original };
        // Its idempotency key stands for the event that was published, its moment has come.
        let event = Event { retried: Some(retried), idempotency_key: None, not_before: None, ..letter.event };
        let new = self.republish(&letter.topic, event)?;
        self.remove_dead(id.0.major());
        Ok(new)
    }

    pub(super) fn purge(&mut self, ids: &[DeadLetterId]) -> u64 {
        ids.iter().filter(|id| id.0.minor() == 0 && self.remove_dead(id.0.major())).count() as u64
    }
}
