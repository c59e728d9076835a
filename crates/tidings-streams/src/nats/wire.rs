//! How events and dead letters are written as messages.
//!
//! A payload is a message's payload, as it came. All else that is known of an event is one header, as JSON: names and
//! values of headers there may hold what those of a message cannot.

use std::collections::BTreeMap;

use async_nats::HeaderMap;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::error::unreadable;
use super::link::Stored;
use crate::error::StoreError;
use crate::event::{DeadLetter, Event, NewEvent, Retried};
use crate::id::{DeadLetterId, EventId, Timestamp};
use crate::ledger::Burial;
use crate::name::Name;

/// What is known of an event besides its payload.
pub(super) const EVENT: &str = "Tidings-Event";

/// Why an event is a dead letter.
pub(super) const LETTER: &str = "Tidings-Letter";

/// What makes an event be stored once.
const MESSAGE_ID: &str = "Nats-Msg-Id";

/// What a dead letter says besides its event, in bytes at most: names, the failure's text as JSON, numbers.
pub(super) const LETTER_BYTES_MAX: usize = 8 << 10;

/// Headers of a message that a stream takes, in bytes: their length is written in sixteen bits.
pub(super) const HEADERS_BYTES_MAX: usize = (64 << 10) - 1;

/// What comes before, between and behind headers, in bytes.
const HEADER_BEGINS: usize = "NATS/1.0\r\n\r\n".len();
const HEADER_ENDS: usize = ": \r\n".len();

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Meta {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    not_before: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retried: Option<Retried>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Letter {
    stream: Name,
    topic: Name,
    group: Name,
    consumer: Name,
    id: EventId,
    time: Timestamp,
    attempts: u32,
    first_failed: Timestamp,
    last_failed: Timestamp,
    error: String,
}

/// A message to be stored.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) headers: HeaderMap,
    pub(super) payload: Bytes,
}

impl Message {
    /// Its bytes, as a server counts them against its `max_payload`.
    pub(super) fn bytes(&self) -> usize {
        self.header_bytes() + self.payload.len()
    }

    /// Those of its headers.
    pub(super) fn header_bytes(&self) -> usize {
        headers_bytes(&self.headers)
    }
}

/// What headers take of a message.
fn headers_bytes(headers: &HeaderMap) -> usize {
    if headers.is_empty() {
        return 0;
    }
    let each = headers.iter().flat_map(|(name, values)| {
        values.iter().map(|value| {
            let name: &str = name.as_ref();
            name.len() + HEADER_ENDS + value.as_str().len()
        })
    });
    HEADER_BEGINS + each.sum::<usize>()
}

/// A new event. Whether its idempotency key counts is up to the topic.
pub(super) fn message(event: &NewEvent, is_once: bool) -> Message {
    let mut headers = HeaderMap::new();
    let meta = Meta {
        key: event.key.clone(),
        headers: event.headers.clone(),
        content_type: event.content_type.clone(),
        idempotency_key: event.idempotency_key.clone(),
        not_before: event.not_before,
        retried: None,
    };
    put_meta(&mut headers, &meta);
    if let Some(key) = event.idempotency_key.as_deref().filter(|_| is_once) {
        headers.insert(MESSAGE_ID, message_id(key));
    }
    Message { headers, payload: event.payload.clone() }
}

/// An event that was a dead letter.
pub(super) fn retry(letter: &DeadLetter) -> Message {
    let mut headers = HeaderMap::new();
    let event = &letter.event;
    let retried = Retried { dead_letter: letter.id, group: letter.group.clone(), original: event.id };
    put_meta(&mut headers, &Meta { retried: Some(retried), ..meta_of(event) });
    Message { headers, payload: event.payload.clone() }
}

/// A dead letter.
pub(super) fn letter(topic: &Name, group: &Name, stream: &Name, burial: &Burial, event: &Event) -> Message {
    let mut headers = HeaderMap::new();
    put_meta(&mut headers, &meta_of(event));
    let letter = Letter {
        stream: stream.clone(),
        topic: topic.clone(),
        group: group.clone(),
        consumer: burial.consumer.clone(),
        id: event.id,
        time: event.time,
        attempts: burial.attempts,
        first_failed: burial.failure.first,
        last_failed: burial.failure.last,
        error: burial.failure.error.as_ref().to_owned(),
    };
    headers.insert(LETTER, json(&letter));
    Message { headers, payload: event.payload.clone() }
}

fn meta_of(event: &Event) -> Meta {
    Meta {
        key: event.key.clone(),
        headers: event.headers.clone(),
        content_type: event.content_type.clone(),
        idempotency_key: event.idempotency_key.clone(),
        not_before: event.not_before,
        retried: event.retried.clone(),
    }
}

fn put_meta(headers: &mut HeaderMap, meta: &Meta) {
    if *meta != Meta::default() {
        headers.insert(EVENT, json(meta));
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("it has text keys only")
}

/// An idempotency key as a header has it: as it is if it can be, else in another alphabet behind a mark.
fn message_id(key: &str) -> String {
    let is_plain = key.bytes().all(|byte| byte.is_ascii_graphic()) && !key.starts_with('=');
    if is_plain { key.to_owned() } else { format!("={}", URL_SAFE_NO_PAD.encode(key)) }
}

/// An event that was stored.
pub(super) fn event(stored: Stored) -> Result<Event, StoreError> {
    let meta = meta(&stored.headers)?;
    Ok(of_meta(meta, EventId::new(stored.sequence), stored.time, stored.payload))
}

fn of_meta(meta: Meta, id: EventId, time: Timestamp, payload: Bytes) -> Event {
    Event {
        id,
        time,
        payload,
        key: meta.key,
        headers: meta.headers,
        content_type: meta.content_type,
        idempotency_key: meta.idempotency_key,
        not_before: meta.not_before,
        retried: meta.retried,
    }
}

fn meta(headers: &HeaderMap) -> Result<Meta, StoreError> {
    match headers.get(EVENT) {
        Some(text) => serde_json::from_str(text.as_str()).map_err(|error| unreadable("event", &error)),
        None => Ok(Meta::default()),
    }
}

/// A dead letter that was stored.
pub(super) fn dead_letter(stored: Stored) -> Result<DeadLetter, StoreError> {
    let meta = meta(&stored.headers)?;
    let text = stored.headers.get(LETTER).map(|text| text.as_str()).unwrap_or_default();
    let letter: Letter = serde_json::from_str(text).map_err(|error| unreadable("dead letter", &error))?;
    Ok(DeadLetter {
        id: DeadLetterId(EventId::new(stored.sequence)),
        stream: letter.stream,
        topic: letter.topic,
        event: of_meta(meta, letter.id, letter.time, stored.payload),
        group: letter.group,
        consumer: letter.consumer,
        attempts: letter.attempts,
        first_failed: letter.first_failed,
        last_failed: letter.last_failed,
        error: letter.error,
    })
}

/// The bytes that a message takes in a stream's files, as the server counts them: a record has lengths, sequence,
/// moment and checksum, a subject, headers with their length if there are any, and the payload.
pub(super) fn stored_bytes(stored: &Stored) -> u64 {
    const RECORD: usize = 22 + 8;
    const HEADERS: usize = 4;
    /// What an answer adds to the headers of a message.
    const ADDED: [&str; 5] =
        ["Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Last-Sequence"];
    let mut headers = stored.headers.clone();
    if ADDED.iter().any(|name| headers.get(*name).is_some()) {
        headers = HeaderMap::new();
        let kept = stored.headers.iter().filter(|(name, _)| !ADDED.contains(&AsRef::<str>::as_ref(name)));
        for (name, values) in kept {
            values.iter().for_each(|value| headers.append(name.clone(), value.clone()));
        }
    }
    let headers = match headers_bytes(&headers) {
        0 => 0,
        bytes => bytes + HEADERS,
    };
    (RECORD + stored.subject.len() + headers + stored.payload.len()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(message: Message) -> Stored {
        Stored {
            sequence: 7,
            subject: "s".to_owned(),
            headers: message.headers,
            payload: message.payload,
            time: Timestamp(1_000),
        }
    }

    #[test]
    fn an_event_comes_back_whatever_its_headers_hold() {
        let new = NewEvent::new(vec![0, 255]).key("k\r\nk").header("größe", "\n\0").idempotency_key("a\nb");
        let message = message(&new, true);
        assert_eq!(message.headers.get(MESSAGE_ID).unwrap().as_str(), format!("={}", "YQpi"));
        let event = event(stored(message)).unwrap();
        assert_eq!((event.id, event.payload), (EventId::new(7), new.payload));
        assert_eq!((event.key, event.headers), (new.key, new.headers));
    }

    #[test]
    fn an_event_of_nothing_but_a_payload_has_no_headers() {
        let message = message(&NewEvent::new("a"), true);
        assert_eq!(message.bytes(), 1);
        assert_eq!(event(stored(message)).unwrap().headers, BTreeMap::new());
    }

    #[test]
    fn keys_of_different_alphabets_stay_different() {
        assert_eq!(message_id("order-7"), "order-7");
        assert_ne!(message_id("=YQ"), message_id("a"));
        assert_ne!(message_id("=YQ"), "=YQ");
        assert!(message_id("a b").is_ascii() && !message_id("ключ").contains('к'));
    }

    #[test]
    fn a_header_that_is_none_of_ours_is_named() {
        let mut message = message(&NewEvent::new("a"), false);
        message.headers.insert(EVENT, "7");
        assert!(event(stored(message)).is_err());
    }
}
