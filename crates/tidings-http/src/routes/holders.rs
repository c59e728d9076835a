//! Where a key is held, and what the members that were asked have applied.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use tidings::{Holder, HoldersError, Untold};

use crate::access::Caller;
use crate::app::App;
use crate::extract::{Named, Params};
use crate::limits::{WHERE_TIME, WHERE_TIME_MAX};
use crate::problem::{Answer, Problem};
use crate::quantity::{self, milliseconds};

/// Parameters of a look.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WhereQuery {
    wait: Option<String>,
}

impl WhereQuery {
    /// How long members are waited for.
    fn judge(self) -> Result<Duration, Problem> {
        let Some(text) = self.wait.filter(|text| !text.is_empty()) else { return Ok(WHERE_TIME) };
        let time = quantity::duration(&text).filter(|time| !time.is_zero() && *time <= WHERE_TIME_MAX);
        time.ok_or_else(|| {
            let most = quantity::show_duration(WHERE_TIME_MAX);
            Problem::query(format!("wait={text}: expected a duration such as 500ms, of at most {most}"))
        })
    }
}

/// `GET /v1/caches/{cache}/entries/{key}/where`: 207 if some member has not said what it holds. By the hash of a value
/// who may not see it could try out what it is.
pub(crate) async fn show(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    named: Named,
    Params(query): Params<WhereQuery>,
) -> Answer {
    let cache = app.bytes_cache(&named.cache)?;
    let wait = query.judge()?;
    let _place = app.room().looks.take("too many keys are looked for")?;
    let holders = tokio::select! {
        holders = app.node().holders(&cache, &named.key, wait) => holders?,
        // A server that ends waits for nobody.
        () = app.closing().cancelled() => return Err(Problem::leaving("the server is ending")),
    };
    // Where the cache is not open nothing is held: that is an answer.
    let open = |holder: &Holder| matches!(holder.told, Err(why) if why != Untold::NotHosted);
    let status = if holders.iter().any(open) { StatusCode::MULTI_STATUS } else { StatusCode::OK };
    let shows = app.access().shows_payloads(&caller);
    let nodes: Vec<Value> = holders.iter().map(|holder| document(holder, shows)).collect();
    Ok((status, Json(json!({ "cache": named.cache, "nodes": nodes }))).into_response())
}

fn document(Holder { node, this_node, told }: &Holder, shows_payloads: bool) -> Value {
    let entry = told.ok().and_then(|holding| holding.entry);
    let holds = match told {
        Ok(holding) => Some(holding.entry.is_some()),
        Err(Untold::NotHosted) => Some(false),
        Err(_) => None,
    };
    json!({
        "node": node.as_str(),
        "self": this_node,
        "holds": holds,
        "age_ms": entry.map(|entry| milliseconds(entry.age)),
        "digest": entry.filter(|_| shows_payloads).map(|entry| format!("{:016x}", entry.digest)),
        "applied_ms": told.ok().and_then(|holding| holding.applied).map(milliseconds),
        "reason": told.err().map(Untold::as_str),
        "detail": told.err().map(|why| why.to_string()),
    })
}

impl From<HoldersError> for Problem {
    fn from(error: HoldersError) -> Self {
        match error {
            HoldersError::Key(error) => error.into(),
            _ => Self::new(StatusCode::CONFLICT, "not_audited", error.to_string()),
        }
    }
}
