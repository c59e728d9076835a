//! What the records of the two kinds of logs hold, behind their number and moment: the format's version, the length of a
//! header, the header, and the payload as it is. What the frames of a journal hold: the version, and a change.

use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tidings_proto::codec;

use super::log::Record;
use crate::error::StoreError;
use crate::event::{DeadLetter, Event, NewEvent, Retried};
use crate::id::{DeadLetterId, EventId, Timestamp};
use crate::ledger::Burial;
use crate::name::Name;

/// What everything begins with that is stored. Whoever changes what is encoded raises it, and still reads the others.
const VERSION: u8 = 1;

/// What proves itself and is not what this release writes: a later one did. No group may pass over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unknown;

impl From<Unknown> for StoreError {
    fn from(Unknown: Unknown) -> Self {
        Self::Unsupported { driver: "embedded", what: "something that a later release has stored" }
    }
}

/// Everything of an event but its number, moment and payload. Its fields and their order are on disk.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct EventHeader {
    pub(super) key: Option<String>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) content_type: Option<String>,
    pub(super) idempotency_key: Option<String>,
    pub(super) not_before: Option<Timestamp>,
    pub(super) retried: Option<Retried>,
}

impl EventHeader {
    pub(super) fn of_new(event: NewEvent) -> (Self, Bytes) {
        let header = Self {
            key: event.key,
            headers: event.headers.into_iter().collect(),
            content_type: event.content_type,
            idempotency_key: event.idempotency_key,
            not_before: event.not_before,
            retried: None,
        };
        (header, event.payload)
    }

    pub(super) fn of(event: Event) -> (Self, Bytes) {
        let header = Self {
            key: event.key,
            headers: event.headers.into_iter().collect(),
            content_type: event.content_type,
            idempotency_key: event.idempotency_key,
            not_before: event.not_before,
            retried: event.retried,
        };
        (header, event.payload)
    }

    fn event(self, id: EventId, time: Timestamp, payload: Bytes) -> Event {
        Event {
            id,
            time,
            payload,
            key: self.key,
            headers: self.headers.into_iter().collect(),
            content_type: self.content_type,
            idempotency_key: self.idempotency_key,
            not_before: self.not_before,
            retried: self.retried,
        }
    }
}

/// Everything of a dead letter but its number, moment and payload. Once it is written the group is done with the
/// event, whether or not the journal says so already.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct DeadHeader {
    pub(super) stream: Name,
    pub(super) topic: Name,
    pub(super) group: Name,
    /// Of the group, when it gave the event up.
    pub(super) epoch: u64,
    pub(super) event: u64,
    event_time: Timestamp,
    consumer: Name,
    attempts: u32,
    first_failed: Timestamp,
    last_failed: Timestamp,
    error: Arc<str>,
    header: EventHeader,
}

/// Whose event was given up.
#[derive(Debug)]
pub(super) struct Grave<'a> {
    pub(super) stream: &'a Name,
    pub(super) topic: &'a Name,
    pub(super) group: &'a Name,
    pub(super) epoch: u64,
}

impl DeadHeader {
    pub(super) fn new(grave: &Grave<'_>, event: Event, burial: Burial) -> (Self, Bytes) {
        let (number, event_time) = (event.id.major(), event.time);
        let (header, payload) = EventHeader::of(event);
        let header = Self {
            stream: grave.stream.clone(),
            topic: grave.topic.clone(),
            group: grave.group.clone(),
            epoch: grave.epoch,
            event: number,
            event_time,
            consumer: burial.consumer,
            attempts: burial.attempts,
            first_failed: burial.failure.first,
            last_failed: burial.failure.last,
            error: burial.failure.error,
            header,
        };
        (header, payload)
    }
}

/// Writes a header and a payload.
pub(super) fn write(header: &impl Serialize, payload: &[u8], out: &mut Vec<u8>) {
    let start = out.len() + 1;
    out.extend_from_slice(&[VERSION, 0, 0, 0, 0]);
    codec::encode_into(header, out).expect("headers hold nothing that cannot be encoded");
    let length = u32::try_from(out.len() - start - 4).expect("a header was judged to fit");
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out.extend_from_slice(payload);
}

fn read<T: DeserializeOwned>(rest: &[u8]) -> Result<(T, &[u8]), Unknown> {
    let Some((&VERSION, rest)) = rest.split_first() else { return Err(Unknown) };
    let (length, rest) = rest.split_at_checked(4).ok_or(Unknown)?;
    let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
    let (header, payload) = rest.split_at_checked(length).ok_or(Unknown)?;
    Ok((codec::decode(header).map_err(|_| Unknown)?, payload))
}

/// Writes what has no payload.
pub(super) fn encode(what: &impl Serialize, out: &mut Vec<u8>) {
    out.push(VERSION);
    codec::encode_into(what, out).expect("changes hold nothing that cannot be encoded");
}

/// Reads what has no payload.
pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Unknown> {
    let Some((&VERSION, rest)) = body.split_first() else { return Err(Unknown) };
    codec::decode(rest).map_err(|_| Unknown)
}

/// An event's header alone.
pub(super) fn event_header(record: &Record<'_>) -> Result<EventHeader, Unknown> {
    read(record.rest).map(|(header, _)| header)
}

/// A dead letter's header alone.
pub(super) fn dead_header(record: &Record<'_>) -> Result<DeadHeader, Unknown> {
    read(record.rest).map(|(header, _)| header)
}

/// An event.
pub(super) fn event(record: &Record<'_>) -> Result<Event, Unknown> {
    let (header, payload): (EventHeader, _) = read(record.rest)?;
    Ok(header.event(EventId::new(record.id), Timestamp(record.time), Bytes::copy_from_slice(payload)))
}

/// A dead letter.
pub(super) fn dead_letter(record: &Record<'_>) -> Result<DeadLetter, Unknown> {
    let (header, payload): (DeadHeader, _) = read(record.rest)?;
    let payload = Bytes::copy_from_slice(payload);
    Ok(DeadLetter {
        id: DeadLetterId(EventId::new(record.id)),
        stream: header.stream,
        topic: header.topic,
        event: header.header.event(EventId::new(header.event), header.event_time, payload),
        group: header.group,
        consumer: header.consumer,
        attempts: header.attempts,
        first_failed: header.first_failed,
        last_failed: header.last_failed,
        error: header.error.as_ref().to_owned(),
    })
}
