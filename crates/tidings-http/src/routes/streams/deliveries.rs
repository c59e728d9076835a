//! Deliveries: taking events for a group, and what is said about them.

use std::pin::pin;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tidings::streams::{
    Action, ClaimRequest, Delivery, EventId, Name, Outcome, RECEIVE_EVENTS_MAX, ReceiveRequest, Settlement,
    Tag,
};

use super::{answer, duration, group, shape, taken, unprocessable, wait};
use crate::access::{Caller, Needs};
use crate::app::App;
use crate::extract::{InTopic, document};
use crate::limits::RECEIVE_TIME_MAX;
use crate::problem::{Answer, Problem};

/// As whom events are taken by a client that does not say.
const CONSUMER: &str = "http";

const TOO_MANY: &str = "too many requests wait for events";

/// What to take.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Take {
    max: usize,
    wait: Option<String>,
    consumer: String,
}

impl Default for Take {
    fn default() -> Self {
        Self { max: 1, wait: None, consumer: CONSUMER.to_owned() }
    }
}

fn at_most(max: usize) -> Result<usize, Problem> {
    if (1..=RECEIVE_EVENTS_MAX).contains(&max) {
        return Ok(max);
    }
    let detail = format!("max: {max} is not a number from 1 to {RECEIVE_EVENTS_MAX}");
    Err(unprocessable("invalid_document", detail))
}

/// `POST /v1/streams/{topic}/groups/{group}/receive`: waits for the first event only, and no longer than its caller
/// counts.
pub(crate) async fn receive(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Extension(needs): Extension<Needs>,
    named: InTopic,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let take: Take = document(&headers, body).await?;
    let wait = take.wait.map(|text| duration("wait", &text, RECEIVE_TIME_MAX)).transpose()?;
    let (consumer, max) = (Name::new(&take.consumer)?, at_most(take.max)?);
    let group = taken(&app, &named.topic)?.existing(&named.group)?;
    let _place = app.room().receives.take(TOO_MANY)?;
    // A server that ends waits for nobody: what is taken by then is answered, and nothing is lost.
    let stop = app.closing().child_token();
    let request = ReceiveRequest { consumer, max, wait: wait.unwrap_or_default(), stop: stop.clone() };
    let mut receiving = pin!(group.receive_until(request));
    let received = tokio::select! {
        received = &mut receiving => received,
        () = app.access().revoked(&caller) => {
            // Dropped, it might have taken what nobody gets.
            stop.cancel();
            receiving.await
        }
    };
    // What was taken all the same comes back as that of a client that has gone.
    app.access().again(&caller, needs)?;
    let deliveries = received?;
    Ok(answer(&app, json!({ "events": shown(&deliveries) })).into_response())
}

fn shown(deliveries: &[Delivery]) -> Vec<Json> {
    deliveries.iter().map(|delivery| shape::delivered(delivery.delivered())).collect()
}

/// What to take over.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TakeOver {
    consumer: String,
    min_idle: String,
    #[serde(default = "one")]
    max: usize,
}

fn one() -> usize {
    1
}

/// `POST /v1/streams/{topic}/groups/{group}/claim`
pub(crate) async fn claim(State(app): State<App>, named: InTopic, headers: HeaderMap, body: Body) -> Answer {
    let TakeOver { consumer, min_idle, max } = document(&headers, body).await?;
    let (consumer, max) = (Name::new(&consumer)?, at_most(max)?);
    let min_idle = wait("min_idle", &min_idle)?;
    let _place = app.room().receives.take(TOO_MANY)?;
    let group = group(&app, &named.topic, &named.group).await?;
    let deliveries = group.claim(ClaimRequest { consumer, min_idle, max }).await?;
    Ok(answer(&app, json!({ "events": shown(&deliveries) })).into_response())
}

/// Which delivery: of a text that came with the event. Without it, whichever is current.
fn tag(delivery: Option<&str>) -> Result<Option<Tag>, Problem> {
    let read = |text: &str| {
        shape::parse_tag(text).ok_or_else(|| {
            unprocessable("invalid_document", format!("delivery: {text:?} is none that an event came with"))
        })
    };
    delivery.map(read).transpose()
}

fn id(text: &str) -> Result<EventId, Problem> {
    text.parse().map_err(|_| unprocessable("invalid_document", format!("{text:?} is no id of an event")))
}

/// What is done: events by their ids, or deliveries of them.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Done {
    ids: Vec<String>,
    deliveries: Vec<OneDone>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OneDone {
    id: String,
    delivery: String,
}

/// `POST /v1/streams/{topic}/groups/{group}/ack`: each by itself; 207 if some were not acknowledged.
pub(crate) async fn ack(State(app): State<App>, named: InTopic, headers: HeaderMap, body: Body) -> Answer {
    let Done { ids, deliveries } = document(&headers, body).await?;
    let by_id = ids.iter().map(|text| Ok((id(text)?, None)));
    let by_delivery = deliveries.iter().map(|one| Ok((id(&one.id)?, tag(Some(&one.delivery))?)));
    let named_ones = by_id.chain(by_delivery).collect::<Result<Vec<_>, Problem>>()?;
    if named_ones.is_empty() || named_ones.len() > RECEIVE_EVENTS_MAX {
        let detail = format!("ids: name from 1 to {RECEIVE_EVENTS_MAX} events");
        return Err(unprocessable("invalid_document", detail));
    }
    let group = group(&app, &named.topic, &named.group).await?;
    let settlements =
        named_ones.iter().map(|(id, tag)| Settlement { id: *id, tag: *tag, action: Action::Ack });
    let outcomes = group.settle(settlements.collect()).await?;
    let all = outcomes.iter().all(|outcome| *outcome == Outcome::Acked);
    let results: Vec<Json> = named_ones
        .iter()
        .zip(&outcomes)
        .map(|((id, _), outcome)| shape::outcome(&id.to_string(), *outcome))
        .collect();
    let status = if all { StatusCode::OK } else { StatusCode::MULTI_STATUS };
    Ok((status, answer(&app, json!({ "results": results }))).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NotDone {
    id: String,
    #[serde(default)]
    error: String,
    delivery: Option<String>,
}

/// `POST /v1/streams/{topic}/groups/{group}/fail`: the event is delivered again after a wait, or is a dead letter.
pub(crate) async fn fail(State(app): State<App>, named: InTopic, headers: HeaderMap, body: Body) -> Answer {
    let NotDone { id, error, delivery } = document(&headers, body).await?;
    settle(&app, &named, (&id, delivery.as_deref()), Action::Fail { reason: error }).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Longer {
    id: String,
    by: String,
    delivery: Option<String>,
}

/// `POST /v1/streams/{topic}/groups/{group}/extend`: it takes longer.
pub(crate) async fn extend(State(app): State<App>, named: InTopic, headers: HeaderMap, body: Body) -> Answer {
    let Longer { id, by, delivery } = document(&headers, body).await?;
    let by = wait("by", &by)?;
    settle(&app, &named, (&id, delivery.as_deref()), Action::Extend { by }).await
}

/// Settles one delivery.
async fn settle(
    app: &App,
    named: &InTopic,
    (event, delivery): (&str, Option<&str>),
    action: Action,
) -> Answer {
    let settlement = Settlement { id: id(event)?, tag: tag(delivery)?, action };
    let group = group(app, &named.topic, &named.group).await?;
    let outcomes = group.settle(vec![settlement]).await?;
    match outcomes.first() {
        Some(Outcome::Stale) => {
            let detail = "the event was delivered again since, or failed: nothing was done";
            Err(Problem::new(StatusCode::CONFLICT, "stale_delivery", detail))
        }
        None | Some(Outcome::Unknown) => {
            let detail = "the group has no such delivery: it was settled, or there was none";
            Err(Problem::new(StatusCode::NOT_FOUND, "unknown_delivery", detail))
        }
        Some(done) => Ok(answer(app, shape::outcome(event, *done)).into_response()),
    }
}
