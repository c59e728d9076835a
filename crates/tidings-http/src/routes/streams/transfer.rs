//! All events of a topic as lines, lines into a topic, and the look at everything.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::{BoxError, Extension};
use futures_util::stream::try_unfold;
use serde_json::json;
use tidings::streams::{ImportError, LineError, Page, Stream, to_line};
use tokio::sync::OwnedSemaphorePermit;

use super::{answer, known, streams, taken, unprocessable};
use crate::access::Caller;
use crate::app::App;
use crate::documents;
use crate::extract::{InTopic, read};
use crate::limits::IMPORT_BYTES_MAX;
use crate::problem::{Answer, Problem};

/// Events of one part of an export. Memory holds one part.
const STEP_EVENTS: usize = 500;

/// `GET /v1/streams/{topic}/export`: every event that is there, a line each, oldest first. An answer that breaks off,
/// as it does once its caller counts no more, is not whole.
pub(crate) async fn export(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    named: InTopic,
) -> Answer {
    let stream = known(&app, &named.topic).await?;
    let place = app.room().stream_reads.take("too many pages of events are read")?;
    // What is published meanwhile is not waited for, or it might never end.
    let last = stream.info().await?.and_then(|info| info.last);
    let first = last.map(|_| Page { limit: STEP_EVENTS, ..Page::default() });
    let parts = try_unfold(first, move |page: Option<Page>| {
        let (app, caller, stream) = (app.clone(), caller.clone(), stream.clone());
        async move {
            if app.access().counts(&caller) {
                part(stream, page, last).await
            } else {
                Err("the caller counts no more".into())
            }
        }
    });
    let body = Body::from_stream(Held { parts: Box::pin(parts), _place: place });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

async fn part(
    stream: Stream,
    page: Option<Page>,
    last: Option<tidings::streams::EventId>,
) -> Result<Option<(Bytes, Option<Page>)>, BoxError> {
    let Some(page) = page else { return Ok(None) };
    let found = stream.read(&page).await?;
    let mut lines = String::new();
    for event in found.events.iter().filter(|event| Some(event.id) <= last) {
        lines.push_str(&to_line(event));
        lines.push('\n');
    }
    let next = found.next.filter(|next| Some(*next) < last);
    let next = next.map(|next| Page { after: Some(next), limit: STEP_EVENTS, ..Page::default() });
    Ok(Some((lines.into(), next)))
}

/// A body that has its place until it was read.
struct Held<S> {
    parts: S,
    _place: OwnedSemaphorePermit,
}

impl<S: futures_util::Stream + Unpin> futures_util::Stream for Held<S> {
    type Item = S::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        std::pin::Pin::new(&mut self.parts).poll_next(context)
    }
}

/// `POST /v1/streams/{topic}/import`: an event for every line, in their order.
pub(crate) async fn import(State(app): State<App>, named: InTopic, headers: HeaderMap, body: Body) -> Answer {
    let stream = taken(&app, &named.topic)?;
    let _place = app.room().stream_reads.take("too many pages of events are read or imported")?;
    let body = read(&headers, body, IMPORT_BYTES_MAX).await?;
    let text = std::str::from_utf8(&body)
        .map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "invalid_lines", "lines are UTF-8"))?;
    // All lines are judged before any is published.
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        if let Err(error) = tidings::streams::from_line(line) {
            return Err(wrong_line(number as u64 + 1, &error));
        }
    }
    let lines: Vec<Result<String, Infallible>> = text.lines().map(|line| Ok(line.to_owned())).collect();
    let imported = stream.import(lines).await.map_err(|error| match error {
        ImportError::Read { error, .. } => match error {},
        ImportError::Line { number, error } => wrong_line(number, &error),
        ImportError::Publish { error, .. } => error.into(),
    })?;
    Ok(answer(&app, json!({ "imported": imported })).into_response())
}

fn wrong_line(number: u64, error: &LineError) -> Problem {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    unprocessable("invalid_line", format!("line {number}: {error}{cause}"))
}

/// `POST /v1/stream-store/verify`: looks at all that is stored, which takes as long as reading it.
pub(crate) async fn verify(State(app): State<App>) -> Answer {
    let streams = streams(&app)?;
    let _place = app.room().verifies.take("the store is looked at already")?;
    let report = streams.verify().await?;
    Ok(answer(&app, documents::verified(&report)).into_response())
}
