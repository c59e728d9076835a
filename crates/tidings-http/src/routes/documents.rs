//! Documents for programs.

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use prometheus_client::encoding::text::encode;

use crate::app::App;
use crate::problem::{Answer, Problem};

/// The description of this API. A test compares it with the routes.
pub(crate) const OPENAPI: &str = include_str!("openapi.json");

/// `GET /openapi.json`
pub(crate) async fn openapi() -> Answer {
    Ok(([(CONTENT_TYPE, "application/json")], OPENAPI).into_response())
}

/// `GET /metrics`
pub(crate) async fn metrics(State(app): State<App>) -> Answer {
    app.streams_seen().look(app.node()).await;
    let mut text = String::new();
    encode(&mut text, app.metrics()).map_err(|_| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the metrics could not be written")
    })?;
    Ok(([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response())
}
