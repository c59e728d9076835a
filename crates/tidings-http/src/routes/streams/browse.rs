//! Topics and their events.

use std::collections::{BTreeMap, BTreeSet};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tidings::streams::{
    EventId, GroupInfo, Name, NewEvent, Order, Page, Retention, TopicInfo, TrimMode, figures,
};

use super::{Moment, answer, cursor, known, limit, moment, parameter, shape, streams, taken, unprocessable};
use crate::app::App;
use crate::extract::{InTopic, Params, document, document_within};
use crate::limits::{EVENT_BYTES_MAX, LIFETIME_MAX};
use crate::problem::{Answer, Problem};
use crate::quantity;

/// Names what is published, so that it is stored once though it is published again.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// `GET /v1/streams`
pub(crate) async fn list(State(app): State<App>) -> Answer {
    let streams = streams(&app)?;
    let figures = figures(streams).await?;
    let configured: BTreeSet<&Name> = streams.settings().topics.keys().collect();
    let mut topics = BTreeMap::<Name, Json>::new();
    for name in &configured {
        topics.insert((*name).clone(), with_groups(&nothing_in(name), true, &[]));
    }
    for topic in figures.topics {
        let is_configured = configured.contains(&topic.info.name);
        let shown = with_groups(&topic.info, is_configured, &topic.groups);
        topics.insert(topic.info.name, shown);
    }
    let topics: Vec<Json> = topics.into_values().collect();
    let (strict, dead) = (streams.settings().strict, figures.dead_letters);
    Ok(answer(&app, json!({ "streams": topics, "strict": strict, "dead_letters": dead })).into_response())
}

fn with_groups(info: &TopicInfo, is_configured: bool, groups: &[GroupInfo]) -> Json {
    let mut shown = shape::topic(info, is_configured);
    shown["groups"] = groups.len().into();
    shown["lag"] = groups.iter().map(|group| group.lag).max().unwrap_or_default().into();
    shown["pending"] = groups.iter().map(|group| group.pending).sum::<u64>().into();
    shown
}

fn nothing_in(name: &Name) -> TopicInfo {
    let (events, bytes, groups) = (0, 0, 0);
    TopicInfo { name: name.clone(), events, bytes, first: None, last: None, last_time: None, groups }
}

/// `GET /v1/streams/{topic}`
pub(crate) async fn show(State(app): State<App>, named: InTopic) -> Answer {
    let stream = known(&app, &named.topic).await?;
    let topic = stream.topic();
    let is_configured = streams(&app)?.settings().topics.contains_key(&topic.name);
    let info = stream.info().await?.unwrap_or_else(|| nothing_in(&topic.name));
    let mut shown = shape::topic(&info, is_configured);
    shown["settings"] = shape::settings(&topic.settings);
    shown["groups"] = stream.groups().await?.iter().map(shape::group).collect();
    Ok(answer(&app, shown).into_response())
}

/// What an event is published as.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Draft {
    payload: Option<String>,
    payload_base64: Option<String>,
    content_type: Option<String>,
    key: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    not_before: Option<Moment>,
}

impl Draft {
    fn judge(self, idempotency_key: Option<String>) -> Result<NewEvent, Problem> {
        let payload = match (self.payload, self.payload_base64) {
            (Some(text), None) => Bytes::from(text),
            (None, Some(base64)) => {
                let decoded = STANDARD.decode(base64);
                let wrong = |error| unprocessable("invalid_document", format!("payload_base64: {error}"));
                Bytes::from(decoded.map_err(wrong)?)
            }
            _ => {
                let detail = "an event has one of payload (text) and payload_base64";
                return Err(unprocessable("invalid_document", detail));
            }
        };
        let not_before = self.not_before.map(|moment| moment.judge("not_before")).transpose()?;
        Ok(NewEvent {
            payload,
            key: self.key,
            headers: self.headers,
            content_type: self.content_type,
            idempotency_key,
            not_before,
        })
    }
}

/// `POST /v1/streams/{topic}/events`: 201 once it is stored, or 200 if it was stored with its idempotency key before.
pub(crate) async fn publish(
    State(app): State<App>,
    named: InTopic,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let stream = taken(&app, &named.topic)?;
    let key = idempotency_key(&headers)?;
    let draft: Draft = document_within(&headers, body, EVENT_BYTES_MAX).await?;
    let published = stream.publish(draft.judge(key)?).await?;
    let status = if published.duplicate { StatusCode::OK } else { StatusCode::CREATED };
    let document = json!({ "id": published.id.to_string(), "duplicate": published.duplicate });
    Ok((status, answer(&app, document)).into_response())
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut all = headers.get_all(IDEMPOTENCY_KEY).iter();
    let (Some(first), more) = (all.next(), all.next()) else { return Ok(None) };
    match std::str::from_utf8(first.as_bytes()) {
        Ok(text) if more.is_none() => Ok(Some(text.to_owned())),
        _ => {
            let detail = "idempotency-key is one text in UTF-8";
            Err(Problem::new(StatusCode::BAD_REQUEST, "malformed_idempotency_key", detail))
        }
    }
}

/// Which events to list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Which {
    after: Option<String>,
    limit: Option<String>,
    order: Option<String>,
    from: Option<String>,
    until: Option<String>,
}

impl Which {
    fn judge(self) -> Result<Page, Problem> {
        let order = parameter("order", self.order, "asc or desc", |text| match text {
            "asc" | "ascending" | "oldest" => Some(Order::Ascending),
            "desc" | "descending" | "newest" => Some(Order::Descending),
            _ => None,
        })?;
        Ok(Page {
            after: cursor("after", self.after)?,
            from: moment("from", self.from)?,
            until: moment("until", self.until)?,
            limit: limit(self.limit)?,
            order: order.unwrap_or_default(),
        })
    }
}

/// `GET /v1/streams/{topic}/events`
pub(crate) async fn events(State(app): State<App>, named: InTopic, Params(which): Params<Which>) -> Answer {
    let page = which.judge()?;
    let stream = known(&app, &named.topic).await?;
    let _place = app.room().stream_reads.take("too many pages of events are read")?;
    let found = stream.read(&page).await?;
    let events: Vec<Json> = found.events.iter().map(shape::event).collect();
    let next = found.next.map(|id| id.to_string());
    Ok(answer(&app, json!({ "events": events, "next": next })).into_response())
}

/// `GET /v1/streams/{topic}/events/{id}`
pub(crate) async fn event(State(app): State<App>, named: InTopic) -> Answer {
    let stream = known(&app, &named.topic).await?;
    let event = match named.id.parse::<EventId>() {
        Ok(id) => stream.event(id).await?,
        Err(_) => None,
    };
    let Some(event) = event else {
        let detail = format!("{} has no event {:?}, or has it no more", named.topic, named.id);
        return Err(Problem::new(StatusCode::NOT_FOUND, "unknown_event", detail));
    };
    Ok(answer(&app, shape::event(&event)).into_response())
}

/// How much to keep. Without any limit: what is configured.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Limits {
    max_events: Option<u64>,
    max_age: Option<String>,
    max_bytes: Option<Bytesize>,
    dry_run: bool,
    force: bool,
}

/// A number of bytes, with or without a unit.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Bytesize {
    Number(u64),
    Text(String),
}

impl Bytesize {
    fn judge(self) -> Result<u64, Problem> {
        match self {
            Self::Number(bytes) => Ok(bytes),
            Self::Text(text) => quantity::bytes(&text).ok_or_else(|| {
                unprocessable("invalid_document", format!("max_bytes: {text:?} is not a size such as 64MiB"))
            }),
        }
    }
}

/// `POST /v1/streams/{topic}/trim`
pub(crate) async fn trim(State(app): State<App>, named: InTopic, headers: HeaderMap, body: Body) -> Answer {
    let limits: Limits = document(&headers, body).await?;
    let stream = known(&app, &named.topic).await?;
    let mode = TrimMode { dry_run: limits.dry_run, force: limits.force };
    let max_age = limits.max_age.as_deref().map(|age| super::duration("max_age", age, LIFETIME_MAX));
    let retention = Retention {
        max_events: limits.max_events,
        max_age: max_age.transpose()?,
        max_bytes: limits.max_bytes.map(Bytesize::judge).transpose()?,
    };
    let trimmed = stream.trim(&retention, mode).await?;
    if !mode.dry_run && trimmed.removed > 0 {
        tracing::info!(topic = %stream.topic().name, removed = trimmed.removed, "an operator trims a topic");
    }
    let document = json!({
        "removed": trimmed.removed,
        "bytes": trimmed.bytes,
        "kept_for_groups": trimmed.kept_for_groups,
        "dry_run": mode.dry_run,
    });
    Ok(answer(&app, document).into_response())
}
