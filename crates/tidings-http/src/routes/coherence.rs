//! How coherent the answering node's caches are with those of its peers.

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use serde_json::{Value, json};
use tidings::{Following, Measured, Share, WITHIN};

use super::audit;
use crate::app::App;
use crate::doubt;
use crate::problem::Answer;
use crate::quantity::milliseconds;

/// `GET /v1/coherence`
pub(crate) async fn show(State(app): State<App>) -> Answer {
    let node = app.node();
    let Measured { writes, isolated, doubted, repairs, over_invalidated } = node.measured();
    let quantile = |q| writes.times.quantile(q).map(milliseconds);
    let sum = |counter: fn(&Following) -> u64| node.following().iter().map(counter).sum::<u64>();
    let remote = node.domain().remote_stats();
    let document = json!({
        "node": node.origin().node.as_str(),
        "writes": {
            "within": within(&writes.last_minute, &writes.since_start),
            "pending": writes.pending,
            "alone": writes.alone,
        },
        "duration_ms": { "p50": quantile(0.5), "p99": quantile(0.99), "p999": quantile(0.999) },
        "repairs": { "resumed": repairs.resumed, "gap": repairs.gaps, "reset": repairs.resets },
        "duplicates": sum(|following| following.duplicates),
        "fences": { "reset": repairs.resets, "opaque": remote.opaque.get() },
        "over_invalidated_entries": over_invalidated,
        "isolated_s": isolated.as_secs_f64(),
        "doubted_s": doubted.as_secs_f64(),
        "doubts": node.doubts().iter().map(doubt::document).collect::<Vec<_>>(),
        "audit": audit::document(&node.audited()),
    });
    Ok(Json(document).into_response())
}

/// The share of writes that were coherent within each time; null of nothing.
fn within(last_minute: &[Share], since_start: &[Share]) -> Vec<Value> {
    let shares = WITHIN.iter().zip(last_minute.iter().zip(since_start));
    let row = |(within, (minute, start)): (&std::time::Duration, (&Share, &Share))| {
        json!({
            "ms": within.as_millis() as u64,
            "last_minute": minute.ratio(),
            "since_start": start.ratio(),
        })
    };
    shares.map(row).collect()
}
