//! Entries of a cache of bytes.

use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use tidings::{AnyCache, Cache, Fetched, Loaded, OneLoader, Positions, ReadOrFill};

use super::acked;
use crate::access::{Caller, Needs, Role};
use crate::app::App;
use crate::extract::{Named, Params, read};
use crate::limits::{FILL_TIME, LIFETIME_MAX, VALUE_BYTES_MAX, WAIT_TIME_MAX};
use crate::problem::{Answer, Problem};
use crate::quantity;
use crate::token::TokenText;

const AGE: HeaderName = HeaderName::from_static("tidings-age");
const STALE: HeaderName = HeaderName::from_static("tidings-stale");
const FILL_TOKEN: HeaderName = HeaderName::from_static("tidings-fill-token");
const VERSION: HeaderName = HeaderName::from_static("tidings-version");

/// Headers that begin so carry metadata for subscribers; the rest of the name is its name, in lower case.
const METADATA: &str = "tidings-meta-";

/// Parameters of a read.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReadQuery {
    wait: Option<String>,
}

impl ReadQuery {
    /// How long what another load of the key brings is waited for: as long as the cache says unless the client does.
    fn judge(self, cache: &dyn AnyCache) -> Result<Duration, Problem> {
        let Some(text) = self.wait.filter(|text| !text.is_empty()) else {
            return Ok(cache.settings().loads.lease_time);
        };
        quantity::duration(&text).filter(|time| *time <= WAIT_TIME_MAX).ok_or_else(|| {
            let most = quantity::show_duration(WAIT_TIME_MAX);
            Problem::query(format!("wait={text}: expected a duration such as 500ms, of at most {most}"))
        })
    }
}

/// `GET /v1/caches/{cache}/entries/{key}`: where one load serves the cluster, the token is the key's lease. Who may not
/// fill gets none, for others would wait for it.
pub(crate) async fn get(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Extension(needs): Extension<Needs>,
    named: Named,
    Params(query): Params<ReadQuery>,
) -> Answer {
    let cache = app.bytes_cache(&named.cache)?;
    let erased = cache.erased();
    let wait = query.judge(&*erased)?;
    if !may_fill(&caller) {
        return held(&cache, &named.key);
    }
    // Where one load serves one node nothing is waited for.
    let may_wait = erased.settings().loads.one_loader == OneLoader::Cluster;
    let waiting = &app.room().waiting_reads;
    let place = if may_wait { waiting.try_take() } else { None };
    if may_wait && place.is_none() {
        let Some(value) = cache.try_get_marked(&named.key)? else {
            waiting.refuse();
            return Err(Problem::overloaded("too many reads wait for other loads"));
        };
        return Ok(hit(&cache, &named.key, value));
    }
    let found = tokio::select! {
        found = cache.get_marked_or_lease(&named.key, FILL_TIME, wait) => found?,
        // A server that ends waits for nobody.
        () = app.closing().cancelled() => cache.get_marked_or_token(&named.key, FILL_TIME)?,
        () = app.access().revoked(&caller) => {
            let caller = app.access().again(&caller, needs)?;
            if !caller.as_ref().is_some_and(may_fill) {
                return held(&cache, &named.key);
            }
            cache.get_marked_or_token(&named.key, FILL_TIME)?
        }
    };
    match found {
        ReadOrFill::Hit(value) => Ok(hit(&cache, &named.key, value)),
        ReadOrFill::Miss(token) => {
            let token = TokenText { origin: app.node().origin(), cache: named.cache, token };
            // Names have nothing that a header could not carry.
            Err(match HeaderValue::try_from(token.encode()) {
                Ok(token) => not_cached().with_header(FILL_TOKEN, token),
                Err(_) => not_cached(),
            })
        }
    }
}

fn may_fill(caller: &Caller) -> bool {
    caller.role >= Role::Operator
}

/// The answer to who may not fill.
fn held(cache: &Cache<String, Bytes>, key: &String) -> Answer {
    let value = cache.try_get_marked(key)?.ok_or_else(not_cached)?;
    Ok(hit(cache, key, value))
}

fn not_cached() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_cached", "this node does not hold the key")
}

fn hit(cache: &Cache<String, Bytes>, key: &String, read: Fetched<Bytes>) -> Response {
    // Value, mark, age and version have to be one entry's. If it has gone since, its value was still good when it was read.
    let (read, age, version) = match cache.peek_marked_versioned(key) {
        Some((read, age, version)) => (read, Some(age), version),
        None => (read, None, None),
    };
    let mut response = read.value.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if let Some(age) = age.and_then(|age| HeaderValue::try_from(format!("{:.3}", age.as_secs_f64())).ok()) {
        headers.insert(AGE, age);
    }
    if read.stale {
        headers.insert(STALE, HeaderValue::from_static("true"));
    }
    if let Some(version) = version {
        headers.insert(VERSION, HeaderValue::from(version));
    }
    response
}

/// Parameters of a change.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChangeQuery {
    ttl: Option<String>,
    tags: Option<String>,
    acked: Option<String>,
}

/// What they ask for.
struct ChangeOptions {
    ttl: Option<Duration>,
    tags: Vec<String>,
    /// How long the peers are waited for.
    acked: Option<Duration>,
}

impl ChangeQuery {
    /// What is asked for of a change of this cache.
    fn judge(self, cache: &dyn AnyCache) -> Result<ChangeOptions, Problem> {
        let acked = acked::judge(self.acked, cache)?;
        let tags = self.tags.filter(|tags| !tags.is_empty());
        let tags = tags.map(|tags| tags.split(',').map(ToOwned::to_owned).collect()).unwrap_or_default();
        let Some(text) = self.ttl.filter(|text| !text.is_empty()) else {
            return Ok(ChangeOptions { ttl: None, tags, acked });
        };
        match quantity::duration(&text) {
            Some(time) if !time.is_zero() && time <= LIFETIME_MAX => {
                Ok(ChangeOptions { ttl: Some(time), tags, acked })
            }
            _ => Err(Problem::query(format!("ttl={text}: expected a duration such as 250ms or 5m"))),
        }
    }
}

/// `PUT /v1/caches/{cache}/entries/{key}`: a change, or with a fill token a silent fill.
pub(crate) async fn put(
    State(app): State<App>,
    named: Named,
    Params(query): Params<ChangeQuery>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let cache = app.bytes_cache(&named.cache)?;
    let ChangeOptions { ttl, tags, acked } = query.judge(&*cache.erased())?;
    let metadata = metadata(&headers)?;
    let version = version(&headers)?;
    let value = read(&headers, body, VALUE_BYTES_MAX).await?;
    // A slice of a connection's buffer would keep all of it.
    let value = Bytes::from(value.to_vec().into_boxed_slice());
    if headers.contains_key(FILL_TOKEN) {
        if !metadata.is_empty() {
            let detail = "metadata goes with changes: nobody is told of a fill";
            return Err(Problem::new(StatusCode::BAD_REQUEST, "metadata_on_fill", detail));
        }
        if acked.is_some() {
            let detail = "a fill is no change: no peer is told of it";
            return Err(Problem::new(StatusCode::BAD_REQUEST, "acked_on_fill", detail));
        }
        let token = token(&app, &named.cache, &headers)?;
        if !cache.fill_tagged(&named.key, Loaded { value, tags, version }, token.token, ttl)? {
            return Err(ended(
                "it was used, its time is over, the key has changed meanwhile, a newer version is cached, or nothing is stored in doubt",
            ));
        }
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    if version.is_some() {
        let detail =
            "a version has to come from a load under a fill token: nobody knows what came before this one";
        return Err(Problem::new(StatusCode::BAD_REQUEST, "version_without_token", detail));
    }
    let mut write = cache.write().tags(tags);
    for (name, text) in metadata {
        write = write.metadata(name, text);
    }
    if let Some(ttl) = ttl {
        write = write.ttl(ttl);
    }
    let positions = write.insert(named.key, value)?.positions;
    made(&app, &positions, acked).await
}

/// `DELETE /v1/caches/{cache}/entries/{key}`: told to every peer, also if the key is absent here. With a version, what is
/// as new or newer is left.
pub(crate) async fn delete(
    State(app): State<App>,
    named: Named,
    Params(query): Params<ChangeQuery>,
    headers: HeaderMap,
) -> Answer {
    let cache = app.bytes_cache(&named.cache)?;
    let ChangeOptions { ttl, tags, acked } = query.judge(&*cache.erased())?;
    if ttl.is_some() || !tags.is_empty() {
        return Err(Problem::query("ttl, tags: a removal has none"));
    }
    let mut write = cache.write();
    for (name, text) in metadata(&headers)? {
        write = write.metadata(name, text);
    }
    let written = match version(&headers)? {
        Some(version) => write.remove_versioned(&named.key, version)?,
        None => write.remove(&named.key)?,
    };
    let positions = written.positions;
    made(&app, &positions, acked).await
}

/// The answer to a change that was made.
async fn made(app: &App, positions: &Positions, acked: Option<Duration>) -> Answer {
    match acked {
        Some(time) => acked::answer(app, positions, time, json!({})).await,
        None => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

fn ended(why: &str) -> Problem {
    let detail = format!("the fill token is good no more: {why}");
    Problem::new(StatusCode::CONFLICT, "fill_ended", detail)
}

/// The token of a fill. One of another node, or of another life of this one, was given for a flight that this node
/// does not have: it has ended.
fn token(app: &App, cache: &str, headers: &HeaderMap) -> Result<TokenText, Problem> {
    let mut all = headers.get_all(FILL_TOKEN).iter();
    let (first, more) = (all.next(), all.next());
    let text = first.filter(|_| more.is_none()).and_then(|token| token.to_str().ok());
    let malformed = || {
        Problem::new(StatusCode::BAD_REQUEST, "malformed_token", "the header is not a token that a node gave")
    };
    let token = text.and_then(TokenText::parse).ok_or_else(malformed)?;
    if token.origin != app.node().origin() {
        return Err(ended("it was given by another node, or before this one was started"));
    }
    if token.cache != cache {
        return Err(ended("it was given for another cache"));
    }
    Ok(token)
}

/// The version that a request names.
fn version(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let mut all = headers.get_all(VERSION).iter();
    let (Some(first), more) = (all.next(), all.next()) else { return Ok(None) };
    let number = first.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    match number.filter(|_| more.is_none()).and_then(|text| text.parse().ok()) {
        Some(version) => Ok(Some(version)),
        None => {
            let detail = "tidings-version is a number from 0 to 18446744073709551615";
            Err(Problem::new(StatusCode::BAD_REQUEST, "malformed_version", detail))
        }
    }
}

fn metadata(headers: &HeaderMap) -> Result<Vec<(String, String)>, Problem> {
    let named =
        headers.iter().filter_map(|(name, value)| Some((name.as_str().strip_prefix(METADATA)?, value)));
    named
        .map(|(name, value)| match std::str::from_utf8(value.as_bytes()) {
            Ok(text) if !name.is_empty() => Ok((name.to_owned(), text.to_owned())),
            _ => {
                let detail = "metadata needs a name, and text in UTF-8";
                Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_metadata", detail))
            }
        })
        .collect()
}
