//! What operators do to a node.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::json;

use crate::app::App;
use crate::extract::document;
use crate::options::LogLevel;
use crate::problem::{Answer, Problem};

/// `POST /v1/drain`: not ready from now on; what else happens is up to the process.
pub(crate) async fn drain(State(app): State<App>) -> Answer {
    let drain = app.options().drain.as_ref().ok_or_else(Problem::not_configured)?;
    tracing::info!("an operator drains the node");
    app.drain();
    drain();
    Ok((StatusCode::ACCEPTED, Json(json!({ "draining": true }))).into_response())
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
    log_level(State(app.clone())).await
}

/// `GET /v1/configuration`
pub(crate) async fn configuration(State(app): State<App>) -> Answer {
    let configuration = app.options().configuration.as_ref().ok_or_else(Problem::not_configured)?;
    Ok(Json(configuration).into_response())
}
