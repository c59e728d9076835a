//! Probes.

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use serde_json::json;

use crate::app::App;
use crate::problem::{Answer, Problem};

/// Whether the process can do anything at all. A node that is cut off from all others is alive.
pub(crate) async fn live(State(app): State<App>) -> Answer {
    let running = app.node().is_running();
    judge("live", "not_live", if running { Vec::new() } else { vec!["the node has ended".to_owned()] })
}

/// Whether it should get requests.
pub(crate) async fn ready(State(app): State<App>) -> Answer {
    let reasons = app.readiness().unready();
    if reasons.is_empty() {
        return Ok(Json(json!({ "status": "ready", "warnings": app.readiness().warnings() })).into_response());
    }
    judge("ready", "not_ready", reasons)
}

/// Whether it has been ready since it was started.
pub(crate) async fn started(State(app): State<App>) -> Answer {
    judge("started", "not_started", app.readiness().unstarted())
}

fn judge(good: &'static str, bad: &'static str, reasons: Vec<String>) -> Answer {
    if reasons.is_empty() {
        return Ok(Json(json!({ "status": good })).into_response());
    }
    Err(Problem::unavailable(bad, reasons))
}
