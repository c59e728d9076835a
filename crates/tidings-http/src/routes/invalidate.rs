//! Invalidation of exactly what is named.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::json;
use tidings::{KeyError, Positions};
use tidings_proto::codec;
use tidings_proto::record::KEY_BYTES_MAX;

use super::acked;
use crate::app::App;
use crate::extract::{Named, Params, document};
use crate::guard::Noted;
use crate::problem::{Answer, Problem};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Targets {
    keys: Option<Vec<String>>,
    tags: Option<Vec<String>>,
    prefix: Option<String>,
    all: Option<bool>,
}

/// Parameters of an invalidation.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InvalidateQuery {
    acked: Option<String>,
}

/// What one request names.
#[derive(Debug)]
enum Target {
    Keys(Vec<String>),
    Tags(Vec<String>),
    Prefix(String),
    All,
}

impl Targets {
    fn judge(self) -> Result<Target, Problem> {
        match self {
            Self { keys: Some(keys), tags: None, prefix: None, all: None } if !keys.is_empty() => {
                Ok(Target::Keys(keys))
            }
            Self { keys: None, tags: None, prefix: None, all: Some(true) } => Ok(Target::All),
            // An empty one is refused by the cache.
            Self { keys: None, tags: None, prefix: Some(prefix), all: None } => Ok(Target::Prefix(prefix)),
            Self { keys: None, tags: Some(tags), prefix: None, all: None } if !tags.is_empty() => {
                Ok(Target::Tags(tags))
            }
            _ => {
                let detail = "name exactly one of keys, tags, prefix or \"all\": true, and not nothing";
                Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_target", detail))
            }
        }
    }
}

/// Whether a key can be used.
fn judge(key: &str) -> Result<(), Problem> {
    let length = codec::encode(key).map_err(KeyError::Encode)?.len();
    if length > KEY_BYTES_MAX { Err(KeyError::TooLong(length).into()) } else { Ok(()) }
}

/// `POST /v1/caches/{cache}/invalidate`
pub(crate) async fn invalidate(
    State(app): State<App>,
    named: Named,
    Params(query): Params<InvalidateQuery>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let cache = app.cache(&named.cache)?;
    let acked = acked::judge(query.acked, &*cache)?;
    let targets: Targets = document(&headers, body).await?;
    let (positions, change) = match targets.judge()? {
        Target::All => (cache.clear()?.positions, json!({ "invalidated": "all" })),
        Target::Prefix(prefix) => {
            let change = json!({ "invalidated": { "prefix": prefix } });
            let work = move || Ok::<_, Problem>(cache.invalidate_prefix(&prefix)?.positions);
            (blocking(work).await?, change)
        }
        Target::Tags(tags) => {
            let count = tags.len();
            let work = move || {
                let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
                Ok::<_, Problem>(cache.invalidate_tags(&tags)?.positions)
            };
            (blocking(work).await?, json!({ "invalidated": { "tags": count } }))
        }
        Target::Keys(keys) => {
            let count = keys.len();
            let cache = app.bytes_cache(&named.cache)?;
            let work = move || {
                // Every key is judged before any is changed.
                keys.iter().try_for_each(|key| judge(key))?;
                let mut positions = Positions::default();
                for key in &keys {
                    positions.merge(&cache.write().invalidate(key)?.positions);
                }
                Ok::<_, Problem>(positions)
            };
            (blocking(work).await?, json!({ "invalidated": { "keys": count } }))
        }
    };
    let named = change["invalidated"].to_string();
    let response = match acked {
        Some(time) => acked::answer(&app, &positions, time, change).await?,
        None => Json(change).into_response(),
    };
    Ok(Noted::detail(&named, response))
}

/// Does what may take a while: up to some hundred thousand keys, or for a prefix without peers a walk over all entries;
/// and a client that hangs up must not leave half of it.
async fn blocking(
    work: impl FnOnce() -> Result<Positions, Problem> + Send + 'static,
) -> Result<Positions, Problem> {
    let failed = |_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the work was cut off");
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}
