//! How events and dead letters are written as fields of stream entries, and how answers are read.
//!
//! Fields have names that tools can show, and values that are bytes as they came. The first says how many events and
//! bytes of its topic came before; those that decide when and for whom an event is come next, for scripts look there;
//! the payload is last.

use std::collections::BTreeMap;

use bytes::Bytes;
use redis::{Cmd, Value};

use super::error::unexpected;
use crate::error::StoreError;
use crate::event::{DeadLetter, Event, NewEvent, Retried};
use crate::id::{DeadLetterId, EventId, Timestamp};
use crate::name::Name;

/// What the name of an event's header begins with as a field.
const HEADER: &str = "h:";

/// An id as the server writes it.
pub(super) fn id_text(id: EventId) -> String {
    format!("{}-{}", id.major(), id.minor())
}

/// The id behind one.
pub(super) fn id_after(id: EventId) -> EventId {
    match (id.major(), id.minor()) {
        (major, u64::MAX) => EventId::pair(major.saturating_add(1), 0),
        (major, minor) => EventId::pair(major, minor + 1),
    }
}

/// Adds what new events are to the arguments of the script that publishes. `window` is that of idempotency keys, in
/// milliseconds.
pub(super) fn write_all(events: &[NewEvent], window: u64, command: &mut Cmd) {
    let sizes: Vec<Size> = events.iter().map(Size::of).collect();
    let values = sizes.first().map_or(0, |size| size.values);
    let are_plain = events.iter().all(|event| event.idempotency_key.is_none());
    if !are_plain || sizes.iter().any(|size| size.values != values) {
        command.arg(window);
        for (event, size) in events.iter().zip(sizes) {
            let key = event.idempotency_key.as_deref().unwrap_or_default();
            write(event, command.arg(key).arg(size.bytes).arg(size.values));
        }
        return;
    }
    let has_payload_only = values == 2;
    let values = if has_payload_only { 0 } else { values };
    command.arg("").arg(sizes.iter().map(|size| size.bytes).sum::<usize>()).arg(values);
    let mut before = 0;
    for (number, (event, size)) in (1..).zip(events.iter().zip(sizes)) {
        command.arg(format!("{number} {before}"));
        if has_payload_only {
            command.arg(event.payload.as_ref());
        } else {
            write(event, command);
        }
        before += size.bytes;
    }
}

/// How much an event's fields are.
struct Size {
    values: usize,
    bytes: usize,
}

impl Size {
    fn of(event: &NewEvent) -> Self {
        let mut size = Self { values: 0, bytes: 0 };
        each_field(event, |name, value| {
            size.values += 2;
            size.bytes += name.len() + value.len();
        });
        size
    }
}

fn write(event: &NewEvent, command: &mut Cmd) {
    each_field(event, |name, value| {
        command.arg(name).arg(value);
    });
}

fn each_field(event: &NewEvent, mut field: impl FnMut(&str, &[u8])) {
    if let Some(moment) = event.not_before {
        field("not-before", moment.0.to_string().as_bytes());
    }
    if let Some(key) = &event.key {
        field("key", key.as_bytes());
    }
    if let Some(content_type) = &event.content_type {
        field("content-type", content_type.as_bytes());
    }
    if let Some(key) = &event.idempotency_key {
        field("idempotency-key", key.as_bytes());
    }
    for (name, value) in &event.headers {
        field(&format!("{HEADER}{name}"), value.as_bytes());
    }
    field("payload", &event.payload);
}

/// A list.
pub(super) fn list(value: Value) -> Result<Vec<Value>, StoreError> {
    match value {
        Value::Array(values) => Ok(values),
        _ => Err(unexpected("list")),
    }
}

/// A list of so many values.
pub(super) fn tuple<const N: usize>(value: Value) -> Result<[Value; N], StoreError> {
    list(value)?.try_into().map_err(|_| unexpected("list of the wanted length"))
}

/// Bytes.
pub(super) fn bytes(value: Value) -> Result<Vec<u8>, StoreError> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        Value::SimpleString(text) => Ok(text.into_bytes()),
        _ => Err(unexpected("text")),
    }
}

/// A text.
pub(super) fn text(value: Value) -> Result<String, StoreError> {
    String::from_utf8(bytes(value)?).map_err(|_| unexpected("text"))
}

/// A number, as such or as a text.
pub(super) fn number(value: Value) -> Result<u64, StoreError> {
    match value {
        Value::Int(number) => u64::try_from(number).map_err(|_| unexpected("number")),
        other => text(other)?.parse().map_err(|_| unexpected("number")),
    }
}

/// A number, or nothing where the text is empty.
pub(super) fn number_if_any(value: Value) -> Result<Option<u64>, StoreError> {
    match value {
        Value::BulkString(bytes) if bytes.is_empty() => Ok(None),
        other => number(other).map(Some),
    }
}

/// An id.
pub(super) fn id(value: Value) -> Result<EventId, StoreError> {
    text(value)?.parse().map_err(|_| unexpected("id"))
}

/// An id, or nothing where the text is empty.
pub(super) fn id_if_any(value: Value) -> Result<Option<EventId>, StoreError> {
    match value {
        Value::BulkString(bytes) if bytes.is_empty() => Ok(None),
        other => id(other).map(Some),
    }
}

/// A name.
pub(super) fn name(value: Value) -> Result<Name, StoreError> {
    Name::new(&text(value)?).map_err(|_| unexpected("name"))
}

/// The entries of a range: ids and fields.
pub(super) fn entries(value: Value) -> Result<Vec<(EventId, Value)>, StoreError> {
    let entry = |value| {
        let [at, fields] = tuple(value)?;
        Ok((id(at)?, fields))
    };
    list(value)?.into_iter().map(entry).collect()
}

/// An event of these fields. Its moment is that of its id, which never goes back.
pub(super) fn event(id: EventId, fields: Value) -> Result<Event, StoreError> {
    let mut event = Event {
        id,
        time: Timestamp(id.major()),
        payload: Bytes::new(),
        key: None,
        headers: BTreeMap::new(),
        content_type: None,
        idempotency_key: None,
        not_before: None,
        retried: None,
    };
    let mut fields = list(fields)?.into_iter();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        take_field(&mut event, &text(name)?, value)?;
    }
    Ok(event)
}

fn take_field(event: &mut Event, name: &str, value: Value) -> Result<(), StoreError> {
    match name {
        "payload" => event.payload = bytes(value)?.into(),
        "key" => event.key = Some(text(value)?),
        "content-type" => event.content_type = Some(text(value)?),
        "idempotency-key" => event.idempotency_key = Some(text(value)?),
        "not-before" => event.not_before = Some(Timestamp(number(value)?)),
        "retried" => event.retried = Some(retried(&text(value)?)?),
        other => {
            // What a later release writes besides is left aside.
            if let Some(header) = other.strip_prefix(HEADER) {
                event.headers.insert(header.to_owned(), text(value)?);
            }
        }
    }
    Ok(())
}

fn retried(text: &str) -> Result<Retried, StoreError> {
    let read = || {
        let mut parts = text.splitn(3, ' ');
        let dead_letter = parts.next()?.parse().ok()?;
        let original = parts.next()?.parse().ok()?;
        Some(Retried { dead_letter, original, group: Name::new(parts.next()?).ok()? })
    };
    read().ok_or_else(|| unexpected("origin of a retry"))
}

/// A dead letter of these fields: its story comes before the event's own fields.
pub(super) fn dead_letter(at: EventId, fields: Value) -> Result<DeadLetter, StoreError> {
    let mut fields = list(fields)?;
    let story: Vec<Value> = fields.drain(..fields.len().min(18)).collect();
    let values: Vec<Value> = story.into_iter().skip(1).step_by(2).collect();
    let [stream, topic, group, consumer, attempts, first, last, error, original] =
        values.try_into().map_err(|_| unexpected("story of a dead letter"))?;
    Ok(DeadLetter {
        id: DeadLetterId(at),
        stream: name(stream)?,
        topic: name(topic)?,
        event: event(id(original)?, Value::Array(fields))?,
        group: name(group)?,
        consumer: consumer_name(consumer).unwrap_or_else(|| Name::new("unknown").expect("it is a name")),
        attempts: u32::try_from(number(attempts)?).map_err(|_| unexpected("number of attempts"))?,
        first_failed: Timestamp(number(first)?),
        last_failed: Timestamp(number(last)?),
        error: text(error)?,
    })
}

/// A consumer. `None`: none has the event, or somebody who is none of ours and may be called anything.
pub(super) fn consumer_name(value: Value) -> Option<Name> {
    name(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn ids_are_written_with_both_numbers_and_followed_by_the_next() {
        assert_eq!(id_text(EventId::new(7)), "7-0");
        assert_eq!(id_after(EventId::pair(7, 1)), EventId::pair(7, 2));
        assert_eq!(id_after(EventId::pair(7, u64::MAX)), EventId::pair(8, 0));
    }

    #[test]
    fn what_was_written_is_read_again_and_what_is_unknown_left_aside() {
        let new = NewEvent::new(vec![0, 159]).key("payload").header("payload", "h:").not_before(Timestamp(5));
        let mut fields = vec![bulk("at"), bulk("1 0"), bulk("later"), bulk("x")];
        each_field(&new, |name, value| fields.extend([bulk(name), Value::BulkString(value.to_vec())]));
        let event = event(EventId::pair(9, 3), Value::Array(fields)).unwrap();
        assert_eq!((event.payload, event.key.as_deref()), (new.payload, Some("payload")));
        assert_eq!(
            (event.headers, event.not_before, event.time),
            (new.headers, new.not_before, Timestamp(9))
        );
    }

    #[test]
    fn an_answer_of_another_kind_is_an_error() {
        assert!(list(Value::Nil).is_err() && number(bulk("-1")).is_err() && id(bulk("x")).is_err());
        assert!(dead_letter(EventId::ZERO, Value::Array(vec![bulk("stream"), bulk("s")])).is_err());
    }
}
