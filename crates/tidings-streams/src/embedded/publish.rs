//! Publishing, and the idempotency keys of what was published lately.

use super::keys::Keys;
use super::log::Item;
use super::record::{self, EventHeader};
use super::store::{Store, Stored};
use crate::error::{PublishError, StoreError};
use crate::event::{Event, NewEvent, Published, validate_batch};
use crate::id::{EventId, Timestamp};
use crate::name::Name;
use crate::settings::Topic;

/// Most events that retention looks at behind one publish: what is left over comes next time, so that nobody waits for
/// long.
const TRIMMED_BY_PUBLISH: u64 = 2_000;

/// What is read in one go for the idempotency keys of a topic's window, in bytes: others wait for so long.
const KEYS_READ_BYTES: u64 = 8 << 20;

/// What became of a batch.
#[derive(Debug)]
pub(super) enum Batch {
    Published(Vec<Published>),
    /// The idempotency keys of the topic's window are still being read: it is to be published again.
    Wait(Vec<NewEvent>),
}

/// A topic's idempotency keys.
#[derive(Debug, Default)]
pub(super) enum KnownKeys {
    /// Nobody has asked about one since the store was opened.
    #[default]
    Unread,
    /// Those of the events before a number.
    Reading(Keys, u64),
    /// All of the window.
    Read(Keys),
}

impl KnownKeys {
    fn find(&self, key: &str) -> Option<u64> {
        if let Self::Read(keys) = self { keys.find(key) } else { None }
    }

    fn insert(&mut self, key: &str, id: u64, time: Timestamp) {
        if let Self::Read(keys) = self {
            keys.insert(key, id, time);
        }
    }
}

/// What a batch holds, in bytes.
pub(super) fn bytes_of(events: &[NewEvent]) -> usize {
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let headers =
        |event: &NewEvent| event.headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
    events.iter().map(|event| event.payload.len() + text(&event.key) + headers(event)).sum()
}

impl Store {
    pub(super) fn publish(&mut self, topic: &Topic, events: Vec<NewEvent>) -> Result<Batch, PublishError> {
        validate_batch(&events)?;
        let now = self.now();
        if !self.load_keys(topic, now, &events)? {
            return Ok(Batch::Wait(events));
        }
        let stored = self.topic_or_new(&topic.name)?;
        let time = now.max(stored.last_time);
        stored.last_time = time;
        let (mut published, mut bytes) = (Vec::with_capacity(events.len()), 0);
        for event in events {
            let key = event.idempotency_key.clone();
            let known = key.as_ref().and_then(|key| stored.keys.find(key));
            if let Some(id) = known {
                published.push(Published { id: EventId::new(id), duplicate: true });
                continue;
            }
            let (header, payload) = EventHeader::of_new(event);
            let (id, size) = stored.append(time, &header, &payload);
            bytes += size;
            if let Some(key) = key {
                stored.keys.insert(&key, id, time);
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
        Ok(Batch::Published(published))
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

    /// Has the keys of the topic's window at hand, if any of the events has one, and room for theirs. `false`: more is to
    /// be read first.
    fn load_keys(
        &mut self,
        topic: &Topic,
        now: Timestamp,
        events: &[NewEvent],
    ) -> Result<bool, PublishError> {
        let more = events.iter().filter(|event| event.idempotency_key.is_some()).count();
        if more == 0 {
            return Ok(true);
        }
        let begin = now.before(topic.settings.idempotency_window);
        let stored = self.topic_or_new(&topic.name)?;
        if !matches!(stored.keys, KnownKeys::Read(_)) {
            stored.read_keys(begin)?;
        }
        let KnownKeys::Read(keys) = &mut stored.keys else { return Ok(false) };
        keys.forget(begin);
        if keys.is_full_with(more) { Err(PublishError::TooManyKeys) } else { Ok(true) }
    }

    /// Forgets idempotency keys whose window is over.
    pub(super) fn forget_keys(&mut self, topic: &Topic) {
        let begin = self.now().before(topic.settings.idempotency_window);
        if let Some(KnownKeys::Read(keys)) = self.topics.get_mut(&topic.name).map(|stored| &mut stored.keys) {
            keys.forget(begin);
        }
    }
}

impl Stored {
    fn append(&mut self, time: Timestamp, header: &EventHeader, payload: &[u8]) -> (u64, u64) {
        let (id, size) = self.log.append(time.0, |out| record::write(header, payload, out));
        self.bytes += size;
        (id, size)
    }

    /// Reads some more of the keys that are remembered from a moment on.
    fn read_keys(&mut self, begin: Timestamp) -> Result<(), StoreError> {
        let (mut keys, from) = match std::mem::take(&mut self.keys) {
            KnownKeys::Reading(keys, next) => (keys, next.max(self.floor)),
            _ => (Keys::default(), self.log.first_at(begin.0, self.floor)?),
        };
        let (mut walk, mut bytes) = (self.log.walk(from)?, 0);
        while bytes < KEYS_READ_BYTES {
            let found = match walk.next()? {
                Some(Item::Record(found)) => found,
                Some(Item::Gap { bytes: gap, .. }) => {
                    bytes += gap;
                    continue;
                }
                None => {
                    self.keys = KnownKeys::Read(keys);
                    return Ok(());
                }
            };
            bytes += found.size;
            if let Some(key) = record::event_header(&found)?.idempotency_key {
                keys.insert(&key, found.id, Timestamp(found.time));
            }
        }
        let next = walk.expected();
        walk.pause();
        self.keys = KnownKeys::Reading(keys, next);
        Ok(())
    }
}
