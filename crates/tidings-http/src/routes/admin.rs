//! What operators do to a node.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::{Value, json};
use tidings::{MemberInfo, Node, State as Life};
use tokio::time::{Instant, sleep};

use crate::app::App;
use crate::extract::document;
use crate::guard::Noted;
use crate::limits::{DRAIN_POLL, DRAIN_TIME};
use crate::options::LogLevel;
use crate::problem::{Answer, Problem};

/// `POST /v1/drain`: not ready from now on. Answers when every peer has applied what this node did, or after
/// [`DRAIN_TIME`].
pub(crate) async fn drain(State(app): State<App>) -> Answer {
    if !app.options().drains {
        return Err(Problem::not_configured());
    }
    tracing::info!("an operator drains the node");
    app.readiness().drain();
    let deadline = Instant::now() + DRAIN_TIME;
    let mut missing = behind(app.node());
    while !missing.is_empty() && Instant::now() < deadline {
        sleep(DRAIN_POLL).await;
        missing = behind(app.node());
    }
    let status = if missing.is_empty() { StatusCode::OK } else { StatusCode::MULTI_STATUS };
    Ok((status, Json(json!({ "draining": true, "missing": missing }))).into_response())
}

/// The peers that have not acknowledged everything and have not left.
fn behind(node: &Node) -> Vec<Value> {
    let members = node.members();
    let behind = members
        .iter()
        .filter(|member| !member.this_node && member.state != Life::Left && member.lag_events > 0);
    let told = |member: &MemberInfo| json!({ "node": member.node.as_str(), "reason": format!("{} events behind", member.lag_events) });
    behind.map(told).collect()
}

fn handle(app: &App) -> Result<&LogLevel, Problem> {
    app.options().log_level.as_deref().ok_or_else(Problem::not_configured)
}

/// `GET /v1/log-level`
pub(crate) async fn log_level(State(app): State<App>) -> Answer {
    let level = (handle(&app)?.read)();
    Ok(Json(json!({ "level": level })).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Level {
    level: String,
}

/// `PUT /v1/log-level`
pub(crate) async fn set_log_level(State(app): State<App>, headers: HeaderMap, body: Body) -> Answer {
    let handle = handle(&app)?;
    let Level { level } = document(&headers, body).await?;
    let invalid = |reason: String| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_level", reason);
    (handle.change)(&level).map_err(invalid)?;
    tracing::info!(%level, "an operator sets the log level");
    Ok(Noted::detail(&level, log_level(State(app.clone())).await?))
}

/// `GET /v1/configuration`
pub(crate) async fn configuration(State(app): State<App>) -> Answer {
    let configuration = app.options().configuration.as_ref().ok_or_else(Problem::not_configured)?;
    Ok(Json(configuration).into_response())
}
