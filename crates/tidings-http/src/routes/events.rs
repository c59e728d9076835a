//! Change events as they happen, as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::header::{HeaderName, HeaderValue};
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::json;
use tidings::streams::change_document;
use tidings::{AnyCache, EventKind, Item, RawEvent, RawSubscribe, Scope};

use crate::access::Caller;
use crate::app::App;
use crate::extract::{Named, Params};
use crate::limits::KEEP_ALIVE_TIME;
use crate::problem::{Answer, Problem};

/// Which events; an empty parameter counts as absent.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Filter {
    kinds: Option<String>,
    partition: Option<String>,
    prefix: Option<String>,
    scope: Option<String>,
}

impl Filter {
    fn put_on(self, mut subscribe: RawSubscribe) -> Result<RawSubscribe, Problem> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        if let Some(kinds) = given(self.kinds) {
            subscribe = subscribe.kinds(kinds.split(',').map(kind).collect::<Result<Vec<_>, _>>()?);
        }
        if let Some(partition) = given(self.partition) {
            let wrong = |_| Problem::query(format!("partition={partition}: expected a number"));
            subscribe = subscribe.partition(partition.parse().map_err(wrong)?);
        }
        if let Some(prefix) = given(self.prefix) {
            subscribe = subscribe.prefix(prefix);
        }
        if let Some(scopes) = given(self.scope) {
            subscribe = subscribe.scope(scope(&scopes)?);
        }
        Ok(subscribe)
    }
}

fn kind(name: &str) -> Result<EventKind, Problem> {
    EventKind::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
        let names = EventKind::ALL.map(EventKind::name).join(", ");
        Problem::query(format!("kinds={name}: expected some of {names}"))
    })
}

fn scope(names: &str) -> Result<Scope, Problem> {
    let mut scope = None;
    for name in names.split(',') {
        let named = match name {
            "local" => Scope::Local,
            "remote" => Scope::Remote,
            "all" => Scope::All,
            _ => return Err(Problem::query(format!("scope={name}: expected local, remote or all"))),
        };
        scope = Some(if scope.is_some_and(|scope| scope != named) { Scope::All } else { named });
    }
    Ok(scope.unwrap_or_default())
}

/// `GET /v1/caches/{cache}/events`: what happens from the answer on. A client that is too slow is told how many
/// events it missed; the stream ends when the cache is closed, its caller counts no more, or the server ends.
pub(crate) async fn events(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    named: Named,
    Params(filter): Params<Filter>,
) -> Answer {
    let cache = app.cache(&named.cache)?;
    let permit = app.room().subscriptions.take("too many subscriptions are open")?;
    let subscribe = filter.put_on(cache.clone().subscribe_raw())?;
    let subscription = subscribe.start().map_err(|error| Problem::query(error.to_string()))?;
    let over = {
        let app = app.clone();
        async move {
            tokio::select! {
                () = app.closing().cancelled() => {}
                () = app.access().revoked(&caller) => {}
            }
        }
    };
    let told = subscription
        .map(move |item| {
            let _ = &permit;
            Ok::<_, Infallible>(told(&*cache, &item))
        })
        .take_until(over);
    let mut response = Sse::new(told)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE_TIME).text("keep-alive"))
        .into_response();
    // A reverse proxy that gathers answers would hold events back.
    response
        .headers_mut()
        .insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(response)
}

/// An item as the stream carries it.
fn told(cache: &dyn AnyCache, item: &Item<Arc<RawEvent>>) -> Event {
    match item {
        Item::Lagged { missed } => {
            Event::default().event("lagged").data(json!({ "missed": missed }).to_string())
        }
        Item::Fenced { slots } => {
            Event::default().event("fenced").data(json!({ "slots": slots.iter().count() }).to_string())
        }
        Item::Event(event) => Event::default()
            .event(event.kind.name())
            .id(id(event))
            .data(change_document(cache, event).to_string()),
    }
}

/// Tells events of one stream apart: by the position in the origin's log, or for what is not logged by its time.
fn id(event: &RawEvent) -> String {
    let kind = event.kind.name();
    match event.position {
        Some((lane, sequence)) => format!("{}/{}/{sequence}/{kind}", event.origin, lane.number()),
        None => format!("{}/{}/{kind}", event.origin, event.stamp.0),
    }
}
