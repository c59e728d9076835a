//! Events as lines of JSON, out of a topic and into one.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::call::Page;
use crate::error::{PublishError, StoreError};
use crate::event::{BATCH_BYTES_MAX, Event, InvalidEvent, NewEvent};
use crate::id::{EventId, Timestamp};
use crate::streams::Stream;

/// Events of one page of an export, and of one batch of an import.
const STEP_EVENTS: usize = 500;

/// An event as a line. What the payload is decides how it is written: as text if it is text, else as base64.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<EventId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time: Option<Timestamp>,
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
    payload: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

/// A line is no event.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// It is not JSON, or has fields that an event has not.
    #[error("not an event")]
    Json(#[from] serde_json::Error),
    /// Its payload is not base64.
    #[error("payload_base64 is not base64")]
    Base64(#[from] base64::DecodeError),
    /// It says neither `payload` nor `payload_base64`, or both.
    #[error("an event has one of payload and payload_base64")]
    Payload,
    /// No topic takes it.
    #[error("the event is not valid")]
    Invalid(#[from] InvalidEvent),
}

/// An event as one line of JSON, without the end of the line.
#[must_use]
#[allow(clippy::missing_panics_doc, reason = "there is nothing in it that is not JSON")]
pub fn to_line(event: &Event) -> String {
    let text = std::str::from_utf8(&event.payload).ok().map(str::to_owned);
    let base64 = text.is_none().then(|| STANDARD.encode(&event.payload));
    let line = Line {
        id: Some(event.id),
        time: Some(event.time),
        key: event.key.clone(),
        headers: event.headers.clone(),
        content_type: event.content_type.clone(),
        idempotency_key: event.idempotency_key.clone(),
        not_before: event.not_before,
        payload: text,
        payload_base64: base64,
    };
    serde_json::to_string(&line).expect("texts and numbers are JSON")
}

/// The event that a line says. Its id and moment are not taken over: it gets new ones where it is published.
///
/// # Errors
/// [`LineError`].
pub fn from_line(line: &str) -> Result<NewEvent, LineError> {
    let line: Line = serde_json::from_str(line)?;
    let payload = match (line.payload, line.payload_base64) {
        (Some(text), None) => Bytes::from(text),
        (None, Some(base64)) => Bytes::from(STANDARD.decode(base64)?),
        _ => return Err(LineError::Payload),
    };
    let event = NewEvent {
        payload,
        key: line.key,
        headers: line.headers,
        content_type: line.content_type,
        idempotency_key: line.idempotency_key,
        not_before: line.not_before,
    };
    event.validate()?;
    Ok(event)
}

/// Lines were not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError<E: std::error::Error + 'static> {
    /// A line cannot be had.
    #[error("line {number} cannot be read")]
    Read {
        /// Which, from 1.
        number: u64,
        /// Why.
        #[source]
        error: E,
    },
    /// A line is no event.
    #[error("line {number}")]
    Line {
        /// Which, from 1.
        number: u64,
        /// Why.
        #[source]
        error: LineError,
    },
    /// The events before this line's batch were published.
    #[error("cannot publish the events up to line {number}")]
    Publish {
        /// The batch's last line, from 1.
        number: u64,
        /// Why.
        #[source]
        error: PublishError,
    },
}

impl Stream {
    /// Hands every event that the topic holds to a writer, a line each, oldest first. How many there were. Memory holds
    /// one page.
    ///
    /// # Errors
    /// The writer's, or a [`StoreError`].
    pub async fn export<E: From<StoreError>>(
        &self,
        mut write: impl FnMut(&str) -> Result<(), E>,
    ) -> Result<u64, E> {
        let (mut page, mut exported) = (Page { limit: STEP_EVENTS, ..Page::default() }, 0);
        loop {
            let found = self.read(&page).await?;
            for event in &found.events {
                write(&to_line(event))?;
            }
            exported += found.events.len() as u64;
            let Some(next) = found.next else { return Ok(exported) };
            page.after = Some(next);
        }
    }

    /// Publishes an event for every line that is not empty, in their order. How many there were. Memory holds one
    /// batch. Lines with idempotency keys may be imported again.
    ///
    /// # Errors
    /// [`ImportError`], with the line. Batches before it were published.
    pub async fn import<E: std::error::Error + 'static>(
        &self,
        lines: impl IntoIterator<Item = Result<String, E>>,
    ) -> Result<u64, ImportError<E>> {
        let (mut batch, mut bytes, mut imported, mut number) = (Vec::new(), 0, 0, 0);
        for line in lines {
            number += 1;
            let line = line.map_err(|error| ImportError::Read { number, error })?;
            if line.trim().is_empty() {
                continue;
            }
            let event = from_line(&line).map_err(|error| ImportError::Line { number, error })?;
            if batch.len() >= STEP_EVENTS || bytes + event.payload.len() > BATCH_BYTES_MAX {
                imported += self.import_batch(&mut batch, number - 1).await?;
                bytes = 0;
            }
            bytes += event.payload.len();
            batch.push(event);
        }
        Ok(imported + self.import_batch(&mut batch, number).await?)
    }

    async fn import_batch<E: std::error::Error + 'static>(
        &self,
        batch: &mut Vec<NewEvent>,
        number: u64,
    ) -> Result<u64, ImportError<E>> {
        let published = self.publish_batch(std::mem::take(batch)).await;
        let published = published.map_err(|error| ImportError::Publish { number, error })?;
        Ok(published.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(new: NewEvent) -> Event {
        Event {
            id: EventId::new(7),
            time: Timestamp(1_700_000_000_000),
            payload: new.payload,
            key: new.key,
            headers: new.headers,
            content_type: new.content_type,
            idempotency_key: new.idempotency_key,
            not_before: new.not_before,
            retried: None,
        }
    }

    proptest! {
        #[test]
        fn an_event_survives_being_a_line(payload: Vec<u8>, key: Option<String>, value: String, due: Option<u64>) {
            let new = NewEvent { key, not_before: due.map(Timestamp), ..NewEvent::new(payload) };
            let new = new.header("h", value).content_type("text/plain").idempotency_key("once");
            let line = to_line(&event(new.clone()));
            prop_assert!(!line.contains('\n'));
            prop_assert_eq!(from_line(&line).unwrap(), new);
        }
    }

    #[test]
    fn marks_in_texts_and_large_numbers_stay_what_they_are() {
        for text in ["__int:5", "__null", "{\"n\":12345678901234567890.12345678901234567890}", ""] {
            let line = to_line(&event(NewEvent::new(text.to_owned())));
            assert_eq!(from_line(&line).unwrap().payload, text.as_bytes());
        }
    }

    #[test]
    fn what_is_no_event_is_refused() {
        assert!(matches!(from_line("{}"), Err(LineError::Payload)));
        assert!(matches!(from_line(r#"{"payload":"a","payload_base64":"YQ=="}"#), Err(LineError::Payload)));
        assert!(matches!(from_line(r#"{"payload":"a","colour":1}"#), Err(LineError::Json(_))));
        assert!(matches!(from_line(r#"{"payload_base64":"?"}"#), Err(LineError::Base64(_))));
    }
}
