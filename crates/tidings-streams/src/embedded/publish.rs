//! Publishing, and what retention removes.

use std::io;

use super::keys::Keys;
use super::log::Item;
use super::record::{self, EventHeader};
use super::store::{Store, Stored};
use crate::call::{TrimMode, Trimmed};
use crate::decide::{Held, is_surplus};
use crate::error::{PublishError, StoreError};
use crate::event::{Event, NewEvent, Published, validate_batch};
use crate::id::{EventId, Timestamp};
use crate::ledger::Step;
use crate::name::Name;
use crate::settings::{Retention, Topic};

/// Most events that retention looks at behind one publish, and behind one maintenance: what is left over comes next
/// time, so that nobody waits for long.
const TRIMMED_BY_PUBLISH: u64 = 2_000;
pub(super) const TRIMMED_BY_MAINTENANCE: u64 = 50_000;

impl Store {
    pub(super) fn publish(
        &mut self,
        topic: &Topic,
        events: Vec<NewEvent>,
    ) -> Result<Vec<Published>, PublishError> {
        validate_batch(&events)?;
        let now = self.now();
        self.load_keys(topic, now, &events)?;
        let stored = self.topic_or_new(&topic.name)?;
        let time = now.max(stored.last_time);
        stored.last_time = time;
        let (mut published, mut bytes) = (Vec::with_capacity(events.len()), 0);
        for event in events {
            let key = event.idempotency_key.clone();
            let known = key.as_ref().and_then(|key| stored.keys.as_ref()?.find(key));
            if let Some(id) = known {
                published.push(Published { id: EventId::new(id), duplicate: true });
                continue;
            }
            let (header, payload) = EventHeader::of_new(event);
            let (id, size) = stored.append(time, &header, &payload);
            bytes += size;
            if let (Some(key), Some(keys)) = (key, &mut stored.keys) {
                keys.insert(&key, id, time);
            }
            published.push(Published { id: EventId::new(id), duplicate: false });
        }
        self.wake(&topic.name);
        self.touch(&topic.name);
        self.waiting += usize::try_from(bytes).unwrap_or(usize::MAX);
        // The events are stored, whatever becomes of older ones: maintenance says so too.
        if let Err(error) = self.retain(topic, TRIMMED_BY_PUBLISH) {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                topic = %topic.name,
                "a topic's retention could not be applied"
            );
        }
        Ok(published)
    }

    /// Publishes an event that was a dead letter.
    pub(super) fn republish(&mut self, topic: &Name, event: Event) -> Result<EventId, StoreError> {
        let now = self.now();
        let stored = self.topic_or_new(topic)?;
        let time = now.max(stored.last_time);
        stored.last_time = time;
        let (header, payload) = EventHeader::of(event);
        let (id, size) = stored.append(time, &header, &payload);
        // The journal forgets the dead letter in the same flush, and may reach the disk by itself.
        stored.log.sync_with_next_flush();
        self.waiting += usize::try_from(size).unwrap_or(usize::MAX);
        self.wake(topic);
        self.touch(topic);
        Ok(EventId::new(id))
    }

    /// Has the keys of the topic's window at hand, if any of the events has one, and room for theirs.
    fn load_keys(&mut self, topic: &Topic, now: Timestamp, events: &[NewEvent]) -> Result<(), PublishError> {
        let more = events.iter().filter(|event| event.idempotency_key.is_some()).count();
        if more == 0 {
            return Ok(());
        }
        let begin = now.before(topic.settings.idempotency_window);
        let stored = self.topic_or_new(&topic.name)?;
        if stored.keys.is_none() {
            stored.keys = Some(stored.read_keys(begin).map_err(StoreError::from)?);
        }
        let keys = stored.keys.as_mut().expect("they were put there");
        keys.forget(begin);
        if keys.is_full_with(more) { Err(PublishError::TooManyKeys) } else { Ok(()) }
    }

    /// Applies a topic's retention.
    pub(super) fn retain(&mut self, topic: &Topic, most: u64) -> Result<Trimmed, StoreError> {
        let limits = &topic.settings.retention;
        if limits.is_unlimited() {
            return Ok(Trimmed::default());
        }
        let now = self.now();
        let Some(stored) = self.topics.get_mut(&topic.name) else { return Ok(Trimmed::default()) };
        let end = stored.lowest().min(stored.log.written() + 1);
        let (floor, trimmed) = stored.surplus(limits, now, end, most)?;
        self.raise_floor(&topic.name, floor, trimmed);
        Ok(trimmed)
    }

    pub(super) fn trim(
        &mut self,
        topic: &Topic,
        limits: &Retention,
        mode: TrimMode,
    ) -> Result<Trimmed, StoreError> {
        let now = self.now();
        let Some(stored) = self.topics.get_mut(&topic.name) else { return Ok(Trimmed::default()) };
        let end = stored.log.written() + 1;
        let lowest = stored.lowest().min(end);
        let (wanted, all) = stored.surplus(limits, now, end, u64::MAX)?;
        let (floor, mut trimmed) = if mode.force || wanted <= lowest {
            (wanted, all)
        } else {
            let (floor, within) = stored.surplus(limits, now, lowest, u64::MAX)?;
            (floor, Trimmed { kept_for_groups: all.removed - within.removed, ..within })
        };
        if mode.dry_run {
            return Ok(trimmed);
        }
        self.raise_floor(&topic.name, floor, trimmed);
        self.note_floor(&topic.name);
        if mode.force {
            self.lose(&topic.name, floor);
            trimmed.kept_for_groups = 0;
        }
        Ok(trimmed)
    }

    /// Forgets idempotency keys whose window is over.
    pub(super) fn forget_keys(&mut self, topic: &Topic) {
        let begin = self.now().before(topic.settings.idempotency_window);
        if let Some(keys) = self.topics.get_mut(&topic.name).and_then(|stored| stored.keys.as_mut()) {
            keys.forget(begin);
        }
    }

    /// Removes what is below a number. The journal is told where a file is freed by that, and else by maintenance: a
    /// publish should not have two files synced. After a crash some that retention had removed may be there again,
    /// until the next publish.
    fn raise_floor(&mut self, name: &Name, floor: u64, trimmed: Trimmed) {
        let Some(stored) = self.topics.get_mut(name) else { return };
        stored.floor = stored.floor.max(floor);
        stored.bytes = stored.bytes.saturating_sub(trimmed.bytes);
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
    fn append(&mut self, time: Timestamp, header: &EventHeader, payload: &[u8]) -> (u64, u64) {
        let (id, size) = self.log.append(time.0, |out| record::write(header, payload, out));
        self.bytes += size;
        (id, size)
    }

    fn read_keys(&mut self, begin: Timestamp) -> io::Result<Keys> {
        let mut keys = Keys::default();
        let first = self.log.first_at(begin.0, self.floor)?;
        let mut walk = self.log.walk(first)?;
        while let Some(item) = walk.next()? {
            let Item::Record(found) = item else { continue };
            if let Some(key) = record::event_header(&found).and_then(|header| header.idempotency_key) {
                keys.insert(&key, found.id, Timestamp(found.time));
            }
        }
        Ok(keys)
    }

    /// Where the floor would be by these limits, and what would go: below `end`, and of `most` events at most.
    fn surplus(
        &mut self,
        limits: &Retention,
        now: Timestamp,
        end: u64,
        most: u64,
    ) -> io::Result<(u64, Trimmed)> {
        let mut held = Held { events: self.events(), bytes: self.bytes };
        let (mut floor, mut trimmed) = (self.floor, Trimmed::default());
        // Looking at the oldest event takes a read: not where nothing can follow from it.
        let by_age = limits.max_age.is_some();
        let oldest = match self.oldest {
            Some((at, time)) if at == floor => Some(time),
            _ => (!by_age).then_some(now),
        };
        if floor >= end || oldest.is_some_and(|oldest| !is_surplus(limits, held, oldest, now)) {
            return Ok((floor, trimmed));
        }
        // What cannot be read and is not surplus by itself: it goes once something behind it does, and is named till then.
        let mut passed = Held::default();
        let mut walk = self.log.walk(floor)?;
        while floor < end && trimmed.removed < most {
            match walk.next()? {
                Some(Item::Record(record)) => {
                    let without = Held {
                        events: held.events.saturating_sub(passed.events),
                        bytes: held.bytes.saturating_sub(passed.bytes),
                    };
                    if record.id >= end || !is_surplus(limits, without, Timestamp(record.time), now) {
                        self.oldest = Some((floor, Timestamp(record.time)));
                        walk.pause();
                        return Ok((floor, trimmed));
                    }
                    floor = record.id + 1;
                    trimmed.removed += 1;
                    trimmed.bytes += record.size + std::mem::take(&mut passed).bytes;
                    held.events = without.events.saturating_sub(1);
                    held.bytes = without.bytes.saturating_sub(record.size);
                }
                Some(Item::Gap { last, first, bytes }) => {
                    let gap = Held { events: last - first + 1, bytes };
                    // Its age is not known: that of what comes behind it decides.
                    if !is_surplus(limits, held, now, now) {
                        passed = Held { events: passed.events + gap.events, bytes: passed.bytes + gap.bytes };
                        continue;
                    }
                    floor = (last + 1).min(end);
                    held.events = held.events.saturating_sub(gap.events);
                    held.bytes = held.bytes.saturating_sub(gap.bytes);
                    trimmed.bytes += gap.bytes;
                }
                None => break,
            }
        }
        if floor < end || trimmed.removed >= most {
            walk.pause();
        }
        Ok((floor, trimmed))
    }
}
