//! Groups: what operators do with them.

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tidings::streams::{Group, GroupError, Start};

use super::{answer, cursor, group, known, limit, shape, start, streams, taken};
use crate::access::Caller;
use crate::app::App;
use crate::extract::{InTopic, Params, document};
use crate::guard::Noted;
use crate::problem::{Answer, Problem};

/// `GET /v1/streams/{topic}/groups`
pub(crate) async fn list(State(app): State<App>, named: InTopic) -> Answer {
    let groups = known(&app, &named.topic).await?.groups().await?;
    let groups: Vec<Json> = groups.iter().map(shape::group).collect();
    Ok(answer(&app, json!({ "groups": groups })).into_response())
}

/// `GET /v1/streams/{topic}/groups/{group}`
pub(crate) async fn show(State(app): State<App>, named: InTopic) -> Answer {
    let group = group(&app, &named.topic, &named.group).await?;
    Ok(answer(&app, shown(&group).await?).into_response())
}

async fn shown(group: &Group) -> Result<Json, Problem> {
    let info = group.info().await?.ok_or(GroupError::Unknown)?;
    Ok(shape::group(&info))
}

/// Where a group begins. Without a word: with the oldest event.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Begin {
    start: Option<String>,
}

/// `PUT /v1/streams/{topic}/groups/{group}`: 201, or 200 if it is there already and stays where it is.
pub(crate) async fn make(State(app): State<App>, named: InTopic, headers: HeaderMap, body: Body) -> Answer {
    let begin: Begin = document(&headers, body).await?;
    let start = begin.start.map_or(Ok(Start::Earliest), |text| start("start", &text))?;
    let stream = taken(&app, &named.topic)?;
    let group = stream.existing(&named.group)?;
    let is_made = streams(&app)?.driver().create_group(stream.topic(), group.name(), start).await?;
    let status = if is_made { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, answer(&app, shown(&group).await?)).into_response())
}

/// `DELETE /v1/streams/{topic}/groups/{group}`
pub(crate) async fn remove(State(app): State<App>, named: InTopic) -> Answer {
    let group = group(&app, &named.topic, &named.group).await?;
    if !group.remove().await? {
        return Err(GroupError::Unknown.into());
    }
    tracing::info!(topic = named.topic, group = named.group, "an operator removes a group");
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Which deliveries to list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Which {
    after: Option<String>,
    limit: Option<String>,
}

/// `GET /v1/streams/{topic}/groups/{group}/pending`: what consumers say of failures may have something of
/// what failed, as in dead letters.
pub(crate) async fn pending(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    named: InTopic,
    Params(which): Params<Which>,
) -> Answer {
    let (after, limit) = (cursor("after", which.after)?, limit(which.limit)?);
    let group = group(&app, &named.topic, &named.group).await?;
    let pending = group.pending(after, limit).await?;
    let next = pending.last().filter(|_| pending.len() == limit).map(|last| last.id.to_string());
    let shows = app.access().shows_payloads(&caller);
    let pending: Vec<Json> = pending.iter().map(|pending| shape::pending(pending, shows)).collect();
    Ok(answer(&app, json!({ "pending": pending, "next": next })).into_response())
}

/// From where on the group delivers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seek {
    to: String,
    #[serde(default)]
    dry_run: bool,
}

/// `POST /v1/streams/{topic}/groups/{group}/seek`
pub(crate) async fn seek(State(app): State<App>, named: InTopic, headers: HeaderMap, body: Body) -> Answer {
    let Seek { to, dry_run } = document(&headers, body).await?;
    let group = group(&app, &named.topic, &named.group).await?;
    let sought = group.seek(start("to", &to)?, dry_run).await?;
    if !dry_run {
        tracing::info!(topic = named.topic, group = named.group, %to, "an operator makes a group go on from elsewhere");
    }
    let document = json!({
        "from": sought.from.to_string(),
        "to": sought.to.to_string(),
        "again": sought.again,
        "skipped": sought.skipped,
        "dry_run": dry_run,
    });
    let named = if dry_run { format!("{to}, tried") } else { to };
    Ok(Noted::detail(&named, answer(&app, document)))
}

/// `POST /v1/streams/{topic}/groups/{group}/pause`
pub(crate) async fn pause(State(app): State<App>, named: InTopic) -> Answer {
    let group = group(&app, &named.topic, &named.group).await?;
    group.pause().await?;
    tracing::info!(topic = named.topic, group = named.group, "an operator pauses a group");
    Ok(answer(&app, shown(&group).await?).into_response())
}

/// `POST /v1/streams/{topic}/groups/{group}/resume`
pub(crate) async fn resume(State(app): State<App>, named: InTopic) -> Answer {
    let group = group(&app, &named.topic, &named.group).await?;
    group.resume().await?;
    tracing::info!(topic = named.topic, group = named.group, "an operator lets a group go on");
    Ok(answer(&app, shown(&group).await?).into_response())
}
