//! Dead letters.

use std::num::NonZeroU32;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tidings::streams::{DeadLetterError, DeadLetterFilter, DeadLetterId, DeadLetterPage, Name};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{answer, cursor, limit, shape, streams, unprocessable};
use crate::app::App;
use crate::extract::{InTopic, Params, document};
use crate::limits::{DEAD_LETTERS_TIME, RETRIES_PER_SECOND};
use crate::problem::{Answer, Problem};

/// Dead letters that one step of something done to many takes.
const STEP: usize = 100;

const TOO_MANY: &str = "too many pages of events are read";

/// Which dead letters to list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Which {
    topic: Option<String>,
    group: Option<String>,
    stream: Option<String>,
    after: Option<String>,
    limit: Option<String>,
    all: Option<bool>,
}

fn filter(
    topic: Option<String>,
    group: Option<String>,
    stream: Option<String>,
) -> Result<DeadLetterFilter, Problem> {
    let name =
        |text: Option<String>| text.filter(|text| !text.is_empty()).map(|text| Name::new(&text)).transpose();
    Ok(DeadLetterFilter { topic: name(topic)?, group: name(group)?, stream: name(stream)? })
}

/// `GET /v1/dead-letters`: newest first.
pub(crate) async fn list(State(app): State<App>, Params(which): Params<Which>) -> Answer {
    let streams = streams(&app)?;
    let (after, limit) = (cursor("after", which.after)?, limit(which.limit)?);
    let filter = filter(which.topic, which.group, which.stream)?;
    let _place = app.room().stream_reads.take(TOO_MANY)?;
    let found = streams.dead_letters(&DeadLetterPage { filter, after, limit }).await?;
    let letters: Vec<Json> = found.letters.iter().map(shape::dead_letter).collect();
    let next = found.next.map(|id| id.to_string());
    Ok(answer(&app, json!({ "events": letters, "next": next })).into_response())
}

fn id(named: &InTopic) -> Result<DeadLetterId, Problem> {
    named.id.parse().map_err(|_| DeadLetterError::Unknown.into())
}

/// `GET /v1/dead-letters/{id}`
pub(crate) async fn show(State(app): State<App>, named: InTopic) -> Answer {
    let letter = streams(&app)?.dead_letter(id(&named)?).await?.ok_or(DeadLetterError::Unknown)?;
    Ok(answer(&app, shape::dead_letter(&letter)).into_response())
}

/// `POST /v1/dead-letters/{id}/retry`: it is published to its topic again, for its group alone.
pub(crate) async fn retry(State(app): State<App>, named: InTopic) -> Answer {
    let event = streams(&app)?.retry(id(&named)?).await?;
    Ok(answer(&app, json!({ "id": event.to_string() })).into_response())
}

/// `DELETE /v1/dead-letters/{id}`
pub(crate) async fn remove(State(app): State<App>, named: InTopic) -> Answer {
    if streams(&app)?.purge(&[id(&named)?]).await? == 0 {
        return Err(DeadLetterError::Unknown.into());
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Many are meant only by a filter, or by saying so.
fn named(filter: &DeadLetterFilter, all: bool) -> Result<(), Problem> {
    if all != (*filter == DeadLetterFilter::default()) {
        let detail = "name a topic, a group or a stream, or else say all";
        return Err(unprocessable("empty_filter", detail));
    }
    Ok(())
}

/// `DELETE /v1/dead-letters`: those of a filter, newest first, for as long as a request goes on.
pub(crate) async fn purge(State(app): State<App>, Params(which): Params<Which>) -> Answer {
    let streams = streams(&app)?;
    let after = cursor("after", which.after)?;
    let filter = filter(which.topic, which.group, which.stream)?;
    named(&filter, which.all.unwrap_or_default())?;
    let _place = app.room().stream_reads.take(TOO_MANY)?;
    let mut page = DeadLetterPage { filter, after, limit: STEP };
    let (end, mut purged) = (Instant::now() + DEAD_LETTERS_TIME, 0);
    loop {
        let found = streams.dead_letters(&page).await?;
        let ids: Vec<DeadLetterId> = found.letters.iter().map(|letter| letter.id).collect();
        purged += streams.purge(&ids).await?;
        page.after = found.next;
        if found.next.is_none() || Instant::now() > end {
            break;
        }
    }
    tracing::info!(purged, "an operator removes dead letters");
    let next = page.after.map(|id| id.to_string());
    Ok(answer(&app, json!({ "purged": purged, "next": next })).into_response())
}

/// Which dead letters to retry, and how many a second.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Retries {
    topic: Option<String>,
    group: Option<String>,
    stream: Option<String>,
    after: Option<String>,
    per_second: Option<NonZeroU32>,
    all: bool,
}

/// `POST /v1/dead-letters/retry`: those of a filter that are there when it begins, newest first, for as long as a request
/// goes on.
pub(crate) async fn retry_many(State(app): State<App>, headers: HeaderMap, body: Body) -> Answer {
    let which: Retries = document(&headers, body).await?;
    let streams = streams(&app)?;
    let after = cursor("after", which.after)?;
    let filter = filter(which.topic, which.group, which.stream)?;
    named(&filter, which.all)?;
    let _place = app.room().stream_reads.take(TOO_MANY)?;
    let rate = which.per_second.map_or(RETRIES_PER_SECOND, NonZeroU32::get);
    // A rate beyond one a nanosecond would be no interval.
    let mut times = interval((Duration::from_secs(1) / rate).max(Duration::from_nanos(1)));
    times.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut page = DeadLetterPage { filter, after, limit: STEP };
    let (end, mut retried, mut stayed) = (Instant::now() + DEAD_LETTERS_TIME, 0_u64, 0_u64);
    'pages: loop {
        // What fails once more meanwhile is newer than all of these.
        let found = streams.dead_letters(&page).await?;
        for letter in &found.letters {
            times.tick().await;
            match streams.retry(letter.id).await {
                Ok(_) => retried += 1,
                Err(DeadLetterError::NoGroup) => stayed += 1,
                // Somebody else was faster.
                Err(DeadLetterError::Unknown) => {}
                Err(error) => return Err(error.into()),
            }
            page.after = Some(letter.id);
            // Behind the first: however slow the store is, whoever goes on from there gets further.
            if Instant::now() > end || app.closing().is_cancelled() {
                break 'pages;
            }
        }
        page.after = found.next;
        if found.next.is_none() {
            break;
        }
    }
    let next = page.after.map(|id| id.to_string());
    Ok(answer(&app, json!({ "retried": retried, "stayed": stayed, "next": next })).into_response())
}
