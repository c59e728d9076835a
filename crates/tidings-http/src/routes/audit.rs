//! Whether the answering node holds what others hold.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde_json::{Value, json};
use tidings::{AuditCounts, AuditError, AuditProgress, AuditReport, Audited, AuditedPeer, Inconsistency};

use crate::app::App;
use crate::problem::{Answer, Problem};
use crate::quantity::milliseconds;

/// `POST /v1/coherence/audit`: a sweep at full rate, whose progress and report `GET /v1/coherence` shows.
pub(crate) async fn begin(State(app): State<App>) -> Answer {
    let before = app.node().audited().requested.map(|report| report.began_ms);
    match app.node().begin_audit() {
        // Whoever asks looks at the report where everybody does.
        Ok(run) => drop(run),
        Err(AuditError::UnderWay) => {
            let detail =
                "a sweep that somebody asked for is under way: GET /v1/coherence shows how far it is";
            return Err(Problem::new(StatusCode::CONFLICT, "audit_under_way", detail));
        }
        Err(error) => {
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "leaving", error.to_string()));
        }
    }
    Ok((StatusCode::ACCEPTED, Json(json!({ "former_began_ms": before }))).into_response())
}

/// What the auditor does and has found.
pub(super) fn document(audited: &Audited) -> Value {
    let Audited { keys_per_second, counts, answered, progress, last, requested, inconsistencies, .. } =
        audited;
    json!({
        "keys_per_second": keys_per_second,
        "counts": counts_of(counts),
        "answered_entries": answered,
        "progress": progress.as_ref().map(progress_of),
        "last": last.as_deref().map(report_of),
        "requested": requested.as_deref().map(report_of),
        "inconsistencies": inconsistencies.iter().map(inconsistency).collect::<Vec<_>>(),
    })
}

fn counts_of(counts: &AuditCounts) -> Value {
    json!({
        "entries": counts.entries,
        "compared": counts.compared,
        "held": counts.held,
        "lag": counts.lag,
        "inconsistent": counts.inconsistent,
        "unsettled": counts.unsettled,
        "unexamined": counts.unexamined,
        "bytes_sent": counts.sent,
        "bytes_received": counts.received,
    })
}

fn progress_of(progress: &AuditProgress) -> Value {
    json!({
        "began_ms": progress.began_ms,
        "requested": progress.requested,
        "entries": progress.entries,
        "of": progress.of,
        "suspects": progress.suspects,
    })
}

fn report_of(report: &AuditReport) -> Value {
    let peer = |peer: &AuditedPeer| json!({ "node": peer.node.as_str(), "compared": peer.compared, "gap": peer.gap });
    json!({
        "began_ms": report.began_ms,
        "requested": report.requested,
        "duration_ms": milliseconds(report.took),
        "complete": report.is_complete(),
        "of": report.of,
        "counts": counts_of(&report.counts),
        "peers": report.peers.iter().map(peer).collect::<Vec<_>>(),
        "inconsistencies": report.inconsistencies.iter().map(inconsistency).collect::<Vec<_>>(),
    })
}

fn inconsistency(found: &Inconsistency) -> Value {
    json!({
        "cache": &*found.cache,
        "key": found.key_text,
        "peer": found.peer.as_str(),
        "age_ms": milliseconds(found.own_age),
        "peer_age_ms": milliseconds(found.peer_age),
        "first_seen_ms": found.first_seen_ms,
        "last_seen_ms": found.last_seen_ms,
    })
}
