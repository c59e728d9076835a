//! Durable streams over HTTP: topics, groups, deliveries, dead letters.
//!
//! Every answer names the store. The embedded one is the answering node's own; one on a server is what all nodes that
//! name it speak of.

pub(super) mod browse;
pub(super) mod dead_letters;
pub(super) mod deliveries;
pub(super) mod groups;
mod problems;
mod shape;
pub(super) mod transfer;

use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tidings::streams::{
    Durability, EventId, Group, Name, PAGE_EVENTS_MAX, Start, Stream, Streams, Timestamp, TopicError,
    WAIT_MAX,
};

pub(super) use self::problems::chain;
use crate::app::App;
use crate::limits::PAGE_ITEMS;
use crate::problem::Problem;
use crate::quantity;

/// The node's streams.
fn streams(app: &App) -> Result<&Streams, Problem> {
    app.node().streams().ok_or_else(Problem::not_configured)
}

/// An answer, with the store that it speaks of.
fn answer(app: &App, mut document: Json) -> axum::Json<Json> {
    if let Some(streams) = app.node().streams() {
        let driver = streams.driver();
        let durability = match driver.durability() {
            Durability::Sync => "sync",
            Durability::Relaxed => "relaxed",
            Durability::Server => "server",
        };
        let node = app.node().origin().node;
        document["store"] =
            json!({ "driver": driver.name(), "node": node.as_str(), "durability": durability });
    }
    axum::Json(document)
}

/// A topic that streams take: to publish and to consume.
fn taken(app: &App, topic: &str) -> Result<Stream, Problem> {
    Ok(streams(app)?.stream(topic)?)
}

/// A topic that is configured or that the store has: to look at it and to settle what is under way.
async fn known(app: &App, topic: &str) -> Result<Stream, Problem> {
    let streams = streams(app)?;
    let is_configured = |name: &Name| streams.settings().topics.contains_key(name);
    let stream = match streams.stream(topic) {
        Ok(stream) => stream,
        Err(TopicError::NotConfigured(name)) => streams.stored(name),
        Err(error) => return Err(error.into()),
    };
    if is_configured(&stream.topic().name) || stream.info().await?.is_some() {
        return Ok(stream);
    }
    let detail = format!("there is no topic {topic:?} in this node's store");
    Err(Problem::new(StatusCode::NOT_FOUND, "unknown_topic", detail))
}

/// A group of a topic that is known. If there is none, what is asked of it says so.
async fn group(app: &App, topic: &str, group: &str) -> Result<Group, Problem> {
    Ok(known(app, topic).await?.existing(group)?)
}

fn unprocessable(code: &'static str, detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail)
}

/// How many of a list a query asks for.
pub(super) fn limit(text: Option<String>) -> Result<usize, Problem> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(PAGE_ITEMS) };
    let number = text.parse().ok().filter(|number| (1..=PAGE_EVENTS_MAX).contains(number));
    number
        .ok_or_else(|| Problem::query(format!("limit={text}: expected a number from 1 to {PAGE_EVENTS_MAX}")))
}

/// A parameter of a query that is read as something.
pub(super) fn parameter<T>(
    name: &str,
    text: Option<String>,
    expected: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, Problem> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let wrong = || Problem::query(format!("{name}={text}: expected {expected}"));
    read(&text).map(Some).ok_or_else(wrong)
}

/// An id of a query.
fn cursor<T: std::str::FromStr>(name: &str, text: Option<String>) -> Result<Option<T>, Problem> {
    parameter(name, text, "an id", |text| text.parse().ok())
}

/// A moment of a query.
fn moment(name: &str, text: Option<String>) -> Result<Option<Timestamp>, Problem> {
    parameter(name, text, TIME, |text| quantity::time(text).map(Timestamp))
}

const TIME: &str = "a time such as 2026-01-31T12:00:00Z";

/// A moment in a document: RFC 3339, or milliseconds since 1970.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Moment {
    Milliseconds(u64),
    Text(String),
}

impl Moment {
    fn judge(&self, field: &str) -> Result<Timestamp, Problem> {
        match self {
            Self::Milliseconds(since) => Ok(Timestamp(*since)),
            Self::Text(text) => quantity::time(text)
                .map(Timestamp)
                .ok_or_else(|| unprocessable("invalid_document", format!("{field}: {text:?} is not {TIME}"))),
        }
    }
}

/// A duration in a document, bounded.
fn duration(field: &str, text: &str, most: std::time::Duration) -> Result<std::time::Duration, Problem> {
    quantity::duration(text).filter(|time| *time <= most).ok_or_else(|| {
        let most = quantity::show_duration(most);
        let detail = format!("{field}: {text:?} is not a duration such as 250ms or 5m, of at most {most}");
        unprocessable("invalid_document", detail)
    })
}

/// A duration in a document that may be as long as any wait of streams.
fn wait(field: &str, text: &str) -> Result<std::time::Duration, Problem> {
    duration(field, text, WAIT_MAX)
}

/// Where a group begins, or goes on.
fn start(field: &str, text: &str) -> Result<Start, Problem> {
    match text {
        "earliest" => Ok(Start::Earliest),
        "latest" => Ok(Start::Latest),
        _ => {
            let id = text.parse::<EventId>().ok().map(Start::Id);
            let time = || quantity::time(text).map(|time| Start::Time(Timestamp(time)));
            id.or_else(time).ok_or_else(|| {
                let detail = format!("{field}: {text:?} is neither earliest, latest, an id nor {TIME}");
                unprocessable("invalid_document", detail)
            })
        }
    }
}
