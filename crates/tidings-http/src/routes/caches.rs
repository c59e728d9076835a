//! Caches: listed, opened and closed at run time.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use bytes::Bytes;
use serde_json::{Value, json, to_value};
use tidings::{AnyCache, CacheCounts, MemberInfo, OpenError};

use crate::app::App;
use crate::extract::{Named, document};
use crate::limits::CACHES_MAX;
use crate::problem::{Answer, Problem};
use crate::settings::{CacheSettings, Capacity, InvalidSettings};

/// `GET /v1/caches`
pub(crate) async fn list(State(app): State<App>) -> Answer {
    let members = app.node().members();
    let caches = app.node().caches();
    let caches: Vec<Value> = caches.iter().map(|cache| describe(&app, &members, &**cache)).collect();
    Ok(Json(json!({ "caches": caches })).into_response())
}

/// `GET /v1/caches/{cache}`
pub(crate) async fn show(State(app): State<App>, named: Named) -> Answer {
    let cache = app.cache(&named.cache)?;
    Ok(Json(describe_one(&app, &*cache)).into_response())
}

/// `PUT /v1/caches/{cache}`: opening a cache again with the settings that it has changes nothing.
pub(crate) async fn open(State(app): State<App>, named: Named, headers: HeaderMap, body: Body) -> Answer {
    let settings: CacheSettings = document(&headers, body).await?;
    let name = named.cache;
    // Of two that open one new cache at once, the second finds it open.
    let _opening = app.opening();
    if app.cache(&name).is_ok() {
        let cache = app.bytes_cache(&name)?.erased();
        if CacheSettings::of(cache.settings()) != settings {
            let detail = format!("cache {name:?} is open with other settings");
            return Err(Problem::new(StatusCode::CONFLICT, "cache_open", detail));
        }
        return Ok(Json(describe_one(&app, &*cache)).into_response());
    }
    if app.node().caches().len() >= CACHES_MAX {
        let detail = format!("{CACHES_MAX} caches are open: close some first");
        return Err(Problem::new(StatusCode::CONFLICT, "too_many_caches", detail));
    }
    let cache = crate::settings::open(app.node().domain(), &name, &settings).map_err(unopened)?;
    tracing::info!(cache = %cache.name(), "cache opened over HTTP");
    Ok((StatusCode::CREATED, Json(describe_one(&app, &*cache.erased()))).into_response())
}

/// `DELETE /v1/caches/{cache}`: on this node only.
pub(crate) async fn close(State(app): State<App>, named: Named) -> Answer {
    let cache = app.bytes_cache(&named.cache)?;
    cache.close();
    tracing::info!(cache = %cache.name(), "cache closed over HTTP");
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn unopened(error: InvalidSettings) -> Problem {
    let (status, code) = match &error {
        InvalidSettings::NeedsLoader(_) => (StatusCode::UNPROCESSABLE_ENTITY, "needs_loader"),
        InvalidSettings::Open(OpenError::Name(_)) => (StatusCode::BAD_REQUEST, "invalid_name"),
        InvalidSettings::Open(OpenError::Open(_)) => (StatusCode::CONFLICT, "cache_open"),
        InvalidSettings::Open(OpenError::Collision(_)) => (StatusCode::CONFLICT, "name_collision"),
        _ => (StatusCode::UNPROCESSABLE_ENTITY, "invalid_settings"),
    };
    let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
    Problem::new(status, code, format!("{error}{cause}"))
}

fn describe_one(app: &App, cache: &dyn AnyCache) -> Value {
    describe(app, &app.node().members(), cache)
}

/// The schemas of other nodes that host a cache with another one, by node.
fn other_schemas(members: &[MemberInfo], cache: &dyn AnyCache) -> BTreeMap<String, u32> {
    let name: &str = cache.name();
    let hosts =
        members.iter().filter(|member| !member.this_node && member.caches.iter().any(|it| it == name));
    let schemas =
        hosts.map(|member| (member.node.to_string(), member.schemas.get(name).copied().unwrap_or(0)));
    schemas.filter(|(_, schema)| *schema != cache.settings().schema).collect()
}

fn describe(app: &App, members: &[MemberInfo], cache: &dyn AnyCache) -> Value {
    let holds_bytes = app.node().lookup::<String, Bytes>(cache.name()).is_some();
    let mut settings = CacheSettings::of(cache.settings());
    if !holds_bytes {
        // Whatever its weigher says is no number of bytes for certain.
        settings.max_capacity = Capacity::Entries(cache.settings().max_capacity);
    }
    let mut document = to_value(settings).unwrap_or_default();
    document["name"] = cache.name().to_string().into();
    document["holds"] = if holds_bytes { "bytes" } else { "other" }.into();
    document["other_schemas"] = to_value(other_schemas(members, cache)).unwrap_or_default();
    document["statistics"] = statistics(cache);
    document
}

fn statistics(cache: &dyn AnyCache) -> Value {
    let counts: CacheCounts = cache.counts();
    let told = cache.settings().eviction_events;
    let answered = counts.hits + counts.coalesced;
    let asked = answered + counts.misses + counts.limited + counts.stale;
    json!({
        "entries": cache.entries(),
        "weight": cache.weight(),
        "flights": cache.flights(),
        "subscribers": cache.subscribers(),
        "hit_ratio": if asked == 0 { Value::Null } else { (answered as f64 / asked as f64).into() },
        "hits": counts.hits,
        "misses": counts.misses,
        "shared": counts.shared,
        "coalesced": counts.coalesced,
        "limited": counts.limited,
        "stale": counts.stale,
        "loads": counts.loads,
        "load_failures": counts.load_failures,
        "fence_rejects": counts.fence_rejects,
        "uncertain": counts.uncertain,
        "bypassed": counts.bypassed,
        "flushed": counts.flushed,
        "mutations": counts.mutations,
        "merged": counts.merged,
        "outdated": counts.outdated,
        "future": counts.future,
        "copied": counts.copied,
        "tombstones": cache.tombstones(),
        "doubted_slots": cache.doubted().iter().count(),
        "applied": counts.applied(),
        "invalidated": counts.invalidated(),
        "evicted": told.then_some(counts.evicted),
        "expired": told.then_some(counts.expired),
        "delivered": counts.delivered,
        "lagged": counts.lagged,
        "local_events_dropped": counts.local_events_dropped,
        "panics": counts.panics,
        "unpartitioned": counts.unpartitioned,
    })
}
