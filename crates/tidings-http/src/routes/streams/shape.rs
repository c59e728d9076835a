//! How things of streams look as JSON. Ids are texts, moments RFC 3339; a payload is text, or else base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value as Json, json};
use tidings::streams::{
    DeadLetter, Delivered, Event, GroupInfo, Outcome, Pending, PendingState, Tag, Timestamp, TopicInfo,
    TopicSettings,
};

use crate::quantity::{milliseconds, show_duration, show_time};

pub(super) fn time(moment: Timestamp) -> Json {
    show_time(moment.0).into()
}

/// An event as it was published.
pub(super) fn event(event: &Event) -> Json {
    let text = std::str::from_utf8(&event.payload).ok();
    let base64 = text.is_none().then(|| STANDARD.encode(&event.payload));
    let retried = event.retried.as_ref().map(|retried| {
        json!({ "dead_letter": retried.dead_letter.to_string(), "group": retried.group.as_str(),
            "original_id": retried.original.to_string() })
    });
    json!({
        "id": event.id.to_string(),
        "time": time(event.time),
        "payload": text,
        "payload_base64": base64,
        "content_type": event.content_type,
        "key": event.key,
        "headers": event.headers,
        "idempotency_key": event.idempotency_key,
        "not_before": event.not_before.map(time),
        "retried": retried,
    })
}

/// An event that was handed out: with what has to be said to settle this delivery and no other.
pub(super) fn delivered(delivered: &Delivered) -> Json {
    let mut document = event(&delivered.event);
    document["attempts"] = delivered.tag.attempt.into();
    document["delivery"] = tag(delivered.tag).into();
    document["until"] = time(delivered.until);
    document
}

/// Which delivery it is, as a text.
fn tag(tag: Tag) -> String {
    format!("{}.{}", tag.epoch, tag.attempt)
}

/// Which delivery a text of [`tag`] is.
pub(super) fn parse_tag(text: &str) -> Option<Tag> {
    let (epoch, attempt) = text.split_once('.')?;
    Some(Tag { epoch: epoch.parse().ok()?, attempt: attempt.parse().ok()? })
}

pub(super) fn topic(info: &TopicInfo, is_configured: bool) -> Json {
    json!({
        "name": info.name.as_str(),
        "configured": is_configured,
        "events": info.events,
        "bytes": info.bytes,
        "first": info.first.map(|id| id.to_string()),
        "last": info.last.map(|id| id.to_string()),
        "last_time": info.last_time.map(time),
    })
}

pub(super) fn settings(settings: &TopicSettings) -> Json {
    let retention = &settings.retention;
    json!({
        "max_deliveries": settings.max_deliveries,
        "dead_letter": settings.dead_letter.as_str(),
        "retention": {
            "max_events": retention.max_events,
            "max_age": retention.max_age.map(show_duration),
            "max_bytes": retention.max_bytes,
        },
        "min_idle_time": show_duration(settings.min_idle_time),
        "ordered": settings.ordered,
        "backoff": {
            "initial": show_duration(settings.backoff.initial),
            "max": show_duration(settings.backoff.max),
            "jitter": settings.backoff.jitter,
        },
        "idempotency_window": show_duration(settings.idempotency_window),
    })
}

pub(super) fn group(group: &GroupInfo) -> Json {
    json!({
        "name": group.name.as_str(),
        "paused": group.paused,
        "lag": group.lag,
        "lag_age_ms": milliseconds(group.lag_age),
        "pending": group.pending,
        "redeliveries": group.redeliveries,
        "next": group.next.to_string(),
    })
}

pub(super) fn pending(pending: &Pending, shows_payloads: bool) -> Json {
    let (state, until) = match pending.state {
        PendingState::Taken(until) => ("taken", until),
        PendingState::Waiting(until) => ("waiting", until),
    };
    json!({
        "id": pending.id.to_string(),
        "attempts": pending.attempts,
        "consumer": pending.consumer.as_ref().map(|name| name.as_str()),
        "idle_ms": milliseconds(pending.idle),
        "state": state,
        "until": time(until),
        "error": pending.error.as_ref().filter(|_| shows_payloads),
    })
}

/// What became of a word about an event.
pub(super) fn outcome(id: &str, outcome: Outcome) -> Json {
    let (name, at, dead_letter) = match outcome {
        Outcome::Acked => ("acked", None, None),
        Outcome::RetryAt(at) => ("retry", Some(at), None),
        Outcome::Buried(id) => ("dead", None, Some(id.to_string())),
        Outcome::Extended(until) => ("extended", Some(until), None),
        Outcome::Stale => ("stale", None, None),
        Outcome::Unknown => ("unknown", None, None),
    };
    json!({ "id": id, "outcome": name, "at": at.map(time), "dead_letter": dead_letter })
}

pub(super) fn dead_letter(letter: &DeadLetter) -> Json {
    let mut document = event(&letter.event);
    document["id"] = letter.id.to_string().into();
    document["original_id"] = letter.event.id.to_string().into();
    document["topic"] = letter.topic.as_str().into();
    document["stream"] = letter.stream.as_str().into();
    document["group"] = letter.group.as_str().into();
    document["consumer"] = letter.consumer.as_str().into();
    document["attempts"] = letter.attempts.into();
    document["first_failed"] = time(letter.first_failed);
    document["last_failed"] = time(letter.last_failed);
    document["error"] = letter.error.as_str().into();
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_read_as_it_is_written() {
        let one = Tag { epoch: 3, attempt: 17 };
        assert_eq!(parse_tag(&tag(one)), Some(one));
        for text in ["", "3", "3.", ".17", "3.17.1", "a.b"] {
            assert_eq!(parse_tag(text), None, "{text}");
        }
    }
}
