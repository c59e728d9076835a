//! What is published, and what comes back.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::id::{DeadLetterId, EventId, Timestamp};
use crate::name::Name;

/// Largest payload, in bytes: what caches hold by default, so that a value fits into an event.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// Longest key, in bytes: as of caches.
pub const KEY_BYTES_MAX: usize = 4 << 10;

/// Most headers of an event.
pub const HEADERS_MAX: usize = 64;

/// Names and values of an event's headers together, in bytes.
pub const HEADER_BYTES_MAX: usize = 16 << 10;

/// Longest content type, in bytes: twice what RFC 6838 allows a type and its subtype.
pub const CONTENT_TYPE_BYTES_MAX: usize = 255;

/// Longest idempotency key, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// Most events of a batch. A store holds a batch in memory until it is written.
pub const BATCH_EVENTS_MAX: usize = 1_000;

/// Payloads of a batch together, in bytes.
pub const BATCH_BYTES_MAX: usize = 16 << 20;

/// An event that no topic takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEvent {
    /// Beyond [`PAYLOAD_BYTES_MAX`].
    #[error("a payload has at most {PAYLOAD_BYTES_MAX} bytes, this one {0}")]
    Payload(usize),
    /// Beyond [`KEY_BYTES_MAX`].
    #[error("a key has at most {KEY_BYTES_MAX} bytes, this one {0}")]
    Key(usize),
    /// Beyond [`HEADERS_MAX`] or [`HEADER_BYTES_MAX`].
    #[error("an event has at most {HEADERS_MAX} headers of {HEADER_BYTES_MAX} bytes together")]
    Headers,
    /// A header without a name.
    #[error("a header's name must not be empty")]
    HeaderName,
    /// Beyond [`CONTENT_TYPE_BYTES_MAX`].
    #[error("a content type has at most {CONTENT_TYPE_BYTES_MAX} bytes, this one {0}")]
    ContentType(usize),
    /// Empty, or beyond [`IDEMPOTENCY_KEY_BYTES_MAX`].
    #[error("an idempotency key has one to {IDEMPOTENCY_KEY_BYTES_MAX} bytes, this one {0}")]
    IdempotencyKey(usize),
    /// Beyond [`BATCH_EVENTS_MAX`].
    #[error("a batch has at most {BATCH_EVENTS_MAX} events, this one {0}")]
    BatchEvents(usize),
    /// Beyond [`BATCH_BYTES_MAX`].
    #[error("a batch has at most {BATCH_BYTES_MAX} bytes, this one {0}")]
    BatchBytes(usize),
    /// Larger than the store's server takes, with all that goes with it.
    #[error(
        "the server takes events of {most} bytes at most, this one has {bytes} with key and headers: raise its \
         max_payload"
    )]
    Message {
        /// Its bytes.
        bytes: usize,
        /// As many as fit.
        most: usize,
    },
    /// All that goes with the payload is longer than the store's server takes, as it is written: control characters,
    /// quotes and backslashes take more than a byte each.
    #[error(
        "the server takes key and headers of {most} bytes at most as they are written, these have {bytes}"
    )]
    Written {
        /// Their bytes.
        bytes: usize,
        /// As many as fit.
        most: usize,
    },
}

/// An event to publish. Payloads are bytes, and come back as they went in, empty ones too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewEvent {
    /// What it says.
    pub payload: Bytes,
    /// Events of one key are delivered one after the other where the topic is ordered.
    pub key: Option<String>,
    /// What goes with it.
    pub headers: BTreeMap<String, String>,
    /// What the payload is.
    pub content_type: Option<String>,
    /// Published again with this key within the topic's window, an event is stored once: the first id comes back.
    pub idempotency_key: Option<String>,
    /// Not delivered to any group before this moment, or a week after it was published ([`crate::WAIT_MAX`]), whichever
    /// comes first. It counts among what each group has open meanwhile, of which there is a bound
    /// ([`crate::ledger::OPEN_MAX`] in the embedded store): a topic is no calendar.
    pub not_before: Option<Timestamp>,
}

impl NewEvent {
    /// An event of nothing but a payload.
    #[must_use]
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self { payload: payload.into(), ..Self::default() }
    }

    /// With a key.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// With a content type.
    #[must_use]
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = Some(content_type.into());
        self
    }

    /// With an idempotency key.
    #[must_use]
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// Delivered from a moment on.
    #[must_use]
    pub fn not_before(mut self, moment: Timestamp) -> Self {
        self.not_before = Some(moment);
        self
    }

    /// Judges sizes.
    ///
    /// # Errors
    /// [`InvalidEvent`].
    pub fn validate(&self) -> Result<(), InvalidEvent> {
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        if self.payload.len() > PAYLOAD_BYTES_MAX {
            return Err(InvalidEvent::Payload(self.payload.len()));
        }
        if length(&self.key) > KEY_BYTES_MAX {
            return Err(InvalidEvent::Key(length(&self.key)));
        }
        if self.headers.keys().any(String::is_empty) {
            return Err(InvalidEvent::HeaderName);
        }
        let bytes: usize = self.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        if self.headers.len() > HEADERS_MAX || bytes > HEADER_BYTES_MAX {
            return Err(InvalidEvent::Headers);
        }
        if length(&self.content_type) > CONTENT_TYPE_BYTES_MAX {
            return Err(InvalidEvent::ContentType(length(&self.content_type)));
        }
        match self.idempotency_key.as_ref().map(String::len) {
            Some(length) if !(1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&length) => {
                Err(InvalidEvent::IdempotencyKey(length))
            }
            _ => Ok(()),
        }
    }
}

/// Judges a batch as a whole, and each event of it.
///
/// # Errors
/// [`InvalidEvent`]: of the first event that no topic takes. Nothing of the batch is stored then.
pub fn validate_batch(events: &[NewEvent]) -> Result<(), InvalidEvent> {
    if events.len() > BATCH_EVENTS_MAX {
        return Err(InvalidEvent::BatchEvents(events.len()));
    }
    let bytes = events.iter().map(|event| event.payload.len()).sum();
    if bytes > BATCH_BYTES_MAX {
        return Err(InvalidEvent::BatchBytes(bytes));
    }
    events.iter().try_for_each(NewEvent::validate)
}

/// What became of a published event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Where it stands.
    pub id: EventId,
    /// It had been published with its idempotency key before, and was not stored again.
    pub duplicate: bool,
}

/// An event of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Where it stands.
    pub id: EventId,
    /// When it was published. Never earlier than of the event before it.
    pub time: Timestamp,
    /// As it was published.
    pub payload: Bytes,
    /// As it was published.
    pub key: Option<String>,
    /// As they were published.
    pub headers: BTreeMap<String, String>,
    /// As it was published.
    pub content_type: Option<String>,
    /// As it was published.
    pub idempotency_key: Option<String>,
    /// As it was published.
    pub not_before: Option<Timestamp>,
    /// It was a dead letter, and is delivered to the group that had failed it.
    pub retried: Option<Retried>,
}

impl Event {
    /// The moment from which on groups are offered it: no wait is longer than [`crate::WAIT_MAX`].
    #[must_use]
    pub fn due(&self) -> Timestamp {
        self.not_before.unwrap_or_default().min(self.time.after(crate::WAIT_MAX))
    }
}

/// Of which dead letter an event is a retry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retried {
    /// The dead letter, which is no more.
    pub dead_letter: DeadLetterId,
    /// The only group that the event is delivered to.
    pub group: Name,
    /// The id that the event had.
    pub original: EventId,
}

/// An event that a group could not settle, with all that is known of why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Where it stands among dead letters.
    pub id: DeadLetterId,
    /// The dead-letter stream that the topic named.
    pub stream: Name,
    /// The event's topic.
    pub topic: Name,
    /// The event as it was published, which may be trimmed from its topic.
    pub event: Event,
    /// Which group gave it up.
    pub group: Name,
    /// Who had it last.
    pub consumer: Name,
    /// How often it was delivered.
    pub attempts: u32,
    /// When it failed for the first time, or was not settled in time.
    pub first_failed: Timestamp,
    /// When it failed for the last time.
    pub last_failed: Timestamp,
    /// What the last failure said, cut at [`ERROR_BYTES_MAX`].
    pub error: String,
}

/// Longest text of a failure that is kept, in bytes; what is longer is cut there.
pub const ERROR_BYTES_MAX: usize = 1_024;

/// A failure's text, cut at [`ERROR_BYTES_MAX`] between two characters.
#[must_use]
pub fn cut_error(text: &str) -> &str {
    &text[..text.floor_char_boundary(ERROR_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_just_within_the_limits_is_valid() {
        let event = NewEvent::new(vec![0; PAYLOAD_BYTES_MAX])
            .key("k".repeat(KEY_BYTES_MAX))
            .header("h", "v".repeat(HEADER_BYTES_MAX - 1))
            .content_type("c".repeat(CONTENT_TYPE_BYTES_MAX))
            .idempotency_key("i".repeat(IDEMPOTENCY_KEY_BYTES_MAX));
        assert_eq!(event.validate(), Ok(()));
    }

    #[test]
    fn what_is_beyond_a_limit_is_refused() {
        let refused = |event: NewEvent| event.validate().unwrap_err();
        let size = PAYLOAD_BYTES_MAX + 1;
        assert_eq!(refused(NewEvent::new(vec![0; size])), InvalidEvent::Payload(size));
        assert_eq!(refused(NewEvent::new("").header("", "v")), InvalidEvent::HeaderName);
        let wide = NewEvent::new("").header("h", "v".repeat(HEADER_BYTES_MAX));
        assert_eq!(refused(wide), InvalidEvent::Headers);
        assert_eq!(refused(NewEvent::new("").idempotency_key("")), InvalidEvent::IdempotencyKey(0));
        let batch = vec![NewEvent::new(vec![0; PAYLOAD_BYTES_MAX]); 17];
        assert_eq!(validate_batch(&batch), Err(InvalidEvent::BatchBytes(17 << 20)));
    }

    #[test]
    fn a_long_error_is_cut_between_characters() {
        let text = format!("{}é", "x".repeat(ERROR_BYTES_MAX - 1));
        assert_eq!(cut_error(&text).len(), ERROR_BYTES_MAX - 1);
    }
}
