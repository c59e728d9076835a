//! An event as a row of the table, and back.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidings_streams::{EventId, InvalidEvent, NewEvent, Timestamp};

/// Largest payload and attributes of a row together that are read, in bytes: what events are allowed, twice. A row that
/// somebody else wrote may hold more, and is not taken into memory.
pub(crate) const ROW_BYTES_MAX: i64 = 2 << 20;

/// What of an event is neither its payload nor its idempotency key. It is text, for who looks at the table, and JSON,
/// for a text of PostgreSQL cannot hold every character.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Attributes {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    /// Milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    not_before: Option<u64>,
}

/// What is written for an event.
#[derive(Debug)]
pub struct NewRow {
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
    pub(crate) attributes: String,
    pub(crate) idempotency_key: String,
    /// Whether the key is the event's own, and is remembered.
    pub(crate) is_keyed: bool,
}

impl NewRow {
    /// `random` makes a key where the event has none.
    pub(crate) fn new(topic: String, event: NewEvent, random: u128) -> Self {
        let attributes = Attributes {
            key: event.key,
            headers: event.headers,
            content_type: event.content_type,
            not_before: event.not_before.map(|moment| moment.0),
        };
        let is_keyed = event.idempotency_key.is_some();
        Self {
            topic,
            payload: event.payload,
            attributes: serde_json::to_string(&attributes).expect("texts and numbers are JSON"),
            idempotency_key: event.idempotency_key.unwrap_or_else(|| format!("outbox-{random:032x}")),
            is_keyed,
        }
    }
}

/// What is read of a row that waits.
#[derive(Debug)]
pub struct Row {
    pub(crate) id: i64,
    pub(crate) topic: String,
    /// `None`: larger than [`ROW_BYTES_MAX`].
    pub(crate) payload: Option<Vec<u8>>,
    /// `None`: larger than [`ROW_BYTES_MAX`].
    pub(crate) attributes: Option<String>,
    pub(crate) idempotency_key: Vec<u8>,
    pub(crate) is_keyed: bool,
    /// Where its topic ended before somebody tried to publish it. `None`: nobody has.
    pub(crate) after: Option<String>,
}

/// Of an event that is to be published.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) id: i64,
    pub(crate) is_keyed: bool,
    pub(crate) after: Option<EventId>,
    pub(crate) event: NewEvent,
}

/// A row that is no event.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidRow {
    #[error("the row has more than {ROW_BYTES_MAX} bytes")]
    TooLarge,
    #[error("its attributes cannot be read: {0}")]
    Attributes(#[from] serde_json::Error),
    #[error("its idempotency key is no UTF-8")]
    Key,
    #[error(transparent)]
    Event(#[from] InvalidEvent),
}

impl Row {
    pub(crate) fn waiting(self) -> Result<Waiting, InvalidRow> {
        let (Some(payload), Some(attributes)) = (self.payload, self.attributes) else {
            return Err(InvalidRow::TooLarge);
        };
        let attributes: Attributes = serde_json::from_str(&attributes)?;
        let event = NewEvent {
            payload: payload.into(),
            key: attributes.key,
            headers: attributes.headers,
            content_type: attributes.content_type,
            idempotency_key: Some(String::from_utf8(self.idempotency_key).map_err(|_| InvalidRow::Key)?),
            not_before: attributes.not_before.map(Timestamp),
        };
        event.validate()?;
        // What cannot be read was noted by nobody here: it is looked for in all of the topic.
        let after = self.after.map(|after| after.parse().unwrap_or(EventId::ZERO));
        Ok(Waiting { id: self.id, is_keyed: self.is_keyed, after, event })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(new: NewRow) -> Row {
        Row {
            id: 1,
            topic: new.topic,
            payload: Some(new.payload.to_vec()),
            attributes: Some(new.attributes),
            idempotency_key: new.idempotency_key.into_bytes(),
            is_keyed: new.is_keyed,
            after: None,
        }
    }

    #[test]
    fn an_event_comes_back_as_it_went_in() {
        let event = NewEvent::new(vec![0, 255, 10])
            .key("k\0\"é")
            .header("h", "\0\u{1f600}")
            .content_type("text/plain")
            .idempotency_key("i\0")
            .not_before(Timestamp(u64::MAX));
        let back = row(NewRow::new("t".to_owned(), event.clone(), 7)).waiting().unwrap();
        assert_eq!((back.event, back.is_keyed), (event, true));
        let bare = row(NewRow::new("t".to_owned(), NewEvent::default(), 7)).waiting().unwrap();
        let key = "outbox-00000000000000000000000000000007".to_owned();
        assert_eq!(bare.event, NewEvent { idempotency_key: Some(key), ..NewEvent::default() });
        assert!(!bare.is_keyed);
    }

    #[test]
    fn a_row_that_is_no_event_says_why() {
        let refused = |change: fn(&mut Row)| {
            let mut row = row(NewRow::new("t".to_owned(), NewEvent::new("x"), 7));
            change(&mut row);
            row.waiting().unwrap_err().to_string()
        };
        assert!(refused(|row| row.payload = None).contains("2097152 bytes"));
        assert!(refused(|row| row.attributes = Some("no".to_owned())).contains("attributes"));
        assert!(refused(|row| row.idempotency_key = vec![0xff]).contains("UTF-8"));
        assert!(refused(|row| row.payload = Some(vec![0; 1_100_000])).contains("at most 1048576 bytes"));
    }
}
