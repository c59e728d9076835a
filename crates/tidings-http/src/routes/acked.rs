//! Receipts: who has applied a change, for those who ask with `acked`.

use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde_json::{Value, json};
use tidings::{AnyCache, Missing, Mode, NodeId, Positions, Receipt, ReceiptError};

use crate::app::App;
use crate::limits::ACKED_TIME_MAX;
use crate::problem::{Answer, Problem};
use crate::quantity;

/// How long a change's peers are waited for. To be judged before the change is made.
pub(super) fn judge(acked: Option<String>, cache: &dyn AnyCache) -> Result<Option<Duration>, Problem> {
    let Some(text) = acked.filter(|text| !text.is_empty()) else { return Ok(None) };
    let time = quantity::duration(&text).filter(|time| *time <= ACKED_TIME_MAX).ok_or_else(|| {
        let most = quantity::show_duration(ACKED_TIME_MAX);
        Problem::query(format!("acked={text}: expected a duration such as 50ms, of at most {most}"))
    })?;
    if cache.settings().mode == Mode::Local {
        let detail = "acked: the cache is local, no peer is told of its changes";
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "local_cache", detail));
    }
    Ok(Some(time))
}

/// The answer to a change that was made: what `change` says of it, and who has applied it.
pub(super) async fn answer(app: &App, positions: &Positions, time: Duration, change: Value) -> Answer {
    let domain = app.node().domain();
    let receipt = tokio::select! {
        receipt = domain.acked(positions, time) => receipt?,
        // A server that ends waits for nobody: it says what is known.
        () = app.closing().cancelled() => domain.acked(positions, Duration::ZERO).await?,
    };
    let status = if receipt.is_complete() { StatusCode::OK } else { StatusCode::MULTI_STATUS };
    Ok((status, Json(document(&receipt, change))).into_response())
}

fn document(receipt: &Receipt, mut change: Value) -> Value {
    let nodes = |nodes: &[NodeId]| nodes.iter().map(NodeId::as_str).map(Value::from).collect::<Value>();
    let missing = receipt
        .missing
        .iter()
        .map(|Missing { node, reason }| json!({ "node": node.as_str(), "reason": reason.as_str() }));
    change["applied"] = nodes(&receipt.applied);
    change["missing"] = missing.collect();
    change["expired"] = nodes(&receipt.expired);
    change
}

impl From<ReceiptError> for Problem {
    fn from(error: ReceiptError) -> Self {
        let detail = format!("the change is made, but there is no receipt: {error}");
        match error {
            ReceiptError::Local => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "local_cache", detail),
            ReceiptError::TooMany => Self::overloaded(detail),
            ReceiptError::NoContact => Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_contact", detail),
            ReceiptError::Ended => Self::new(StatusCode::SERVICE_UNAVAILABLE, "leaving", detail),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail),
        }
    }
}
