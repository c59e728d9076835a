//! Who did what on the answering node.

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::{Value, json};

use super::streams::{limit, parameter};
use crate::app::App;
use crate::extract::Params;
use crate::problem::Answer;
use crate::trail::{Entry, Page};

/// Which entries to list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Which {
    after: Option<String>,
    limit: Option<String>,
    order: Option<String>,
}

/// `GET /v1/audit`
pub(crate) async fn list(State(app): State<App>, Params(which): Params<Which>) -> Answer {
    let after = parameter("after", which.after, "an id of an entry", |text| text.parse().ok())?;
    let newest_first = parameter("order", which.order, "asc or desc", |text| match text {
        "asc" => Some(false),
        "desc" => Some(true),
        _ => None,
    })?;
    let page = Page { after, limit: limit(which.limit)?, newest_first: newest_first.unwrap_or(true) };
    let listed = app.trail().page(page);
    let entries: Vec<Value> = listed.entries.iter().map(Entry::document).collect();
    let next = listed.next.map(|id| id.to_string());
    let node = app.node().origin().node;
    Ok(Json(json!({ "node": node.as_str(), "entries": entries, "next": next })).into_response())
}
