//! A change of a cache as a document.

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tidings_cache::{AnyCache, RawEvent, RawTarget};

/// The last millisecond of the year 9999: a peer's clock may say anything, and RFC 3339 ends there.
const TIME_MAX_MS: u64 = 253_402_300_799_999;

/// What has happened, as it is told over HTTP and captured into streams. The metadata are the writer's own words.
#[must_use]
pub fn document(cache: &dyn AnyCache, event: &RawEvent) -> Value {
    of_target(event, target(cache, &event.target))
}

/// The same, of some of its keys.
pub(super) fn of_keys(cache: &dyn AnyCache, event: &RawEvent, keys: &[Bytes]) -> Value {
    of_target(event, keys_of(cache, keys))
}

fn of_target(event: &RawEvent, target: Value) -> Value {
    let metadata: Map<String, Value> =
        event.metadata.iter().map(|(name, text)| (name.clone(), text.clone().into())).collect();
    let time = UNIX_EPOCH + Duration::from_millis(event.stamp.wall_ms().min(TIME_MAX_MS));
    json!({
        "kind": event.kind.name(),
        "operation": event.operation.name(),
        "cache": &*event.cache,
        "target": target,
        "origin": { "node": event.origin.node.as_str(), "incarnation": event.origin.incarnation.0 },
        "sequence": event.position.map(|(_, sequence)| sequence),
        "lane": event.position.map(|(lane, _)| lane.number()),
        "partition": event.partition,
        "local": event.local,
        "time": humantime::format_rfc3339_millis(time).to_string(),
        "metadata": metadata,
    })
}

fn target(cache: &dyn AnyCache, target: &RawTarget) -> Value {
    match target {
        RawTarget::Key(key) => json!({ "key": cache.key_text(key) }),
        RawTarget::Keys(keys) => keys_of(cache, keys),
        RawTarget::Tag(tag) => json!({ "tag": &**tag }),
        RawTarget::Prefix(prefix) => json!({ "prefix": &**prefix }),
        RawTarget::All => "all".into(),
    }
}

fn keys_of(cache: &dyn AnyCache, keys: &[Bytes]) -> Value {
    json!({ "keys": keys.iter().map(|key| cache.key_text(key)).collect::<Vec<_>>() })
}
