//! The cluster as this node sees it.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::{Value, json};
use tidings::{MemberInfo, NodeId, Origin, Refused};

use crate::app::App;
use crate::extract::document;
use crate::guard::Noted;
use crate::problem::{Answer, Problem};
use crate::quantity::milliseconds;

/// `GET /v1/cluster`
pub(crate) async fn show(State(app): State<App>) -> Answer {
    let node = app.node();
    let Origin { node: id, incarnation } = node.origin();
    let members: Vec<Value> = node.members().iter().map(member).collect();
    let now = node.clock().now();
    let refusals: Vec<Value> = node.refusals().iter().map(|it| refused(it, now.since(it.last))).collect();
    let document = json!({
        "cluster": node.cluster(),
        "node": id.as_str(),
        "incarnation": incarnation.0,
        "ready": app.readiness().unready().is_empty(),
        "known": node.is_known(),
        "expelled_ms": node.expelled().map(milliseconds),
        "relays": node.relayed().on,
        "members": members,
        "refused": refusals,
    });
    Ok(Json(document).into_response())
}

fn member(member: &MemberInfo) -> Value {
    json!({
        "node": member.node.as_str(),
        "self": member.this_node,
        "incarnation": member.incarnation.0,
        "state": member.state.name(),
        "address": member.address.to_string(),
        "zone": member.zone,
        "version": member.release,
        "via": member.via.as_ref().map(NodeId::as_str),
        "rtt_ms": member.rtt.map(milliseconds),
        "synced": member.synced(),
        "lag_events": member.lag_events,
        "confirmed_ms": member.confirmed.map(milliseconds),
        "lanes": member.lanes,
        "clock_ahead_ms": member.clock.map(|clock| clock.ahead * 1e3),
        "clock_uncertain_ms": member.clock.map(|clock| clock.uncertainty * 1e3),
        "clock_off": member.clock.is_some_and(|clock| clock.exceeded),
        "caches": member.caches,
        "schemas": member.schemas,
    })
}

fn refused(refused: &Refused, ago: Duration) -> Value {
    json!({
        "node": refused.node.as_ref().map(NodeId::as_str),
        "address": refused.address.to_string(),
        "by_peer": refused.by_peer,
        "reason": refused.reason.as_str(),
        "detail": refused.detail,
        "remedy": refused.reason.remedy(),
        "times": refused.times,
        "ago_ms": milliseconds(ago),
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Forget {
    node: String,
}

/// `POST /v1/cluster/forget`: a live member is not forgotten, for it would go on writing uncovered.
pub(crate) async fn forget(State(app): State<App>, headers: HeaderMap, body: Body) -> Answer {
    let Forget { node } = document(&headers, body).await?;
    let unknown =
        || Problem::new(StatusCode::NOT_FOUND, "unknown_node", format!("no node {node:?} is known here"));
    let id = NodeId::new(&node).map_err(|_| unknown())?;
    let live = |member: &MemberInfo| member.node == id && member.state == tidings::State::Live;
    if app.node().members().iter().any(live) {
        let detail = format!("{node} is live: stop it first");
        return Err(Problem::new(StatusCode::CONFLICT, "node_is_live", detail));
    }
    if !app.node().forget(&id) {
        return Err(unknown());
    }
    tracing::info!(node = %id, "an operator declares a node ended");
    Ok(Noted::detail(&node, Json(json!({ "forgotten": node }))))
}
