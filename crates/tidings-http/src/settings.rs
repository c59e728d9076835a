//! Settings of a cache of bytes, in the words that the configuration file and the HTTP API share.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tidings::{
    Cache, CacheBuilder, Domain, Invalidator, LoadPolicy, Mode, OneLoader, OpenError, Settings, WhenIsolated,
};
use tidings_proto::hash::value_digest;

use crate::limits::LIFETIME_MAX;
use crate::quantity;

/// Default capacity, in bytes of keys and values.
const CAPACITY_BYTES: u64 = 64 << 20;

/// Default number of partitions.
const PARTITIONS: usize = 4;

/// What travels, and what a peer's change does here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// A change evicts the peers' copies.
    #[default]
    Invalidate,
    /// Values travel, and the last write of a key counts.
    Replicate,
    /// Nothing travels.
    Local,
}

/// How much a cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// Bytes of keys and values, written with a unit: `"64MiB"`. What the table itself takes comes on top.
    Bytes(u64),
    /// Entries, written as a plain number.
    Entries(u64),
}

/// Settings of a cache of bytes. In documents every field may be left out, and an unknown one is an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheSettings {
    /// What travels. Default: `invalidate`.
    pub mode: CacheMode,
    /// Which changes evict the local copy: `remote`, `local`, `all` or `off`. Default: `remote`.
    #[serde(with = "invalidator")]
    pub invalidator: Invalidator,
    /// How much it holds. Default: `64MiB`.
    pub max_capacity: Capacity,
    /// How long an entry lives after it was stored. Default: until it is displaced.
    #[serde(with = "lifetime")]
    pub time_to_live: Option<Duration>,
    /// How long it lives after it was last read. Default: until it is displaced.
    #[serde(with = "lifetime")]
    pub time_to_idle: Option<Duration>,
    /// Among how many partitions events are divided for subscribers on this node. Default: 4.
    pub partitions: usize,
    /// Whether expiries and evictions are reported to subscribers and counted. Default: `true`.
    pub eviction_events: bool,
    /// How far the replica that loads read may be behind: no fill that began within this time of a change of its key
    /// is stored. Default: `0s`; at most a day.
    #[serde(with = "duration")]
    pub replica_lag: Duration,
    /// What is done while the node is in doubt: `limit`, `bypass`, `serve` or `flush`. Default: `limit`.
    pub when_isolated: WhenIsolated,
    /// Which layout its values have: changes by nodes with another one evict, whatever their version. Default: 0.
    pub schema: u32,
    /// How far one fill of a key serves those who ask for it meanwhile: `node` or `cluster`. Default: `node`.
    pub one_loader: OneLoader,
    /// How long who fills a key for the cluster is waited for. Default: `5s`; at most five minutes.
    #[serde(with = "duration")]
    pub lease_time: Duration,
    /// Whether its values are compared with those of other nodes, if a node audits. Default: `true`.
    pub audit: bool,
    /// By which share of it, between 0 and 1, each entry's life is shortened at most. Default: none.
    pub ttl_jitter: Option<f64>,
    /// How long an expired value is served if its loader fails. Only of a library's own caches: those of bytes have no
    /// loader.
    #[serde(with = "lifetime")]
    pub fail_safe: Option<Duration>,
    /// After which share of an entry's life it is reloaded. Only of a library's own caches.
    pub eager_refresh: Option<f64>,
    /// How long it is remembered that a key has no value. Only of a library's own caches.
    #[serde(with = "lifetime")]
    pub negative_ttl: Option<Duration>,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self {
            mode: CacheMode::default(),
            invalidator: Invalidator::default(),
            max_capacity: Capacity::Bytes(CAPACITY_BYTES),
            time_to_live: None,
            time_to_idle: None,
            partitions: PARTITIONS,
            eviction_events: true,
            replica_lag: Duration::ZERO,
            when_isolated: WhenIsolated::Limit,
            schema: 0,
            one_loader: OneLoader::Node,
            lease_time: LoadPolicy::default().lease_time,
            audit: true,
            ttl_jitter: None,
            fail_safe: None,
            eager_refresh: None,
            negative_ttl: None,
        }
    }
}

impl CacheSettings {
    /// How an open cache of bytes was set.
    pub(crate) fn of(settings: &Settings) -> Self {
        let mode = match settings.mode {
            Mode::Invalidate => CacheMode::Invalidate,
            Mode::Replicate => CacheMode::Replicate,
            Mode::Local => CacheMode::Local,
        };
        let capacity = if settings.weighed { Capacity::Bytes } else { Capacity::Entries };
        Self {
            mode,
            invalidator: settings.invalidator,
            max_capacity: capacity(settings.max_capacity),
            time_to_live: settings.time_to_live,
            time_to_idle: settings.time_to_idle,
            partitions: settings.partitions,
            eviction_events: settings.eviction_events,
            replica_lag: settings.replica_lag,
            when_isolated: settings.when_isolated,
            schema: settings.schema,
            one_loader: settings.loads.one_loader,
            lease_time: settings.loads.lease_time,
            audit: settings.audited,
            ttl_jitter: settings.loads.ttl_jitter,
            fail_safe: settings.loads.fail_safe,
            eager_refresh: settings.loads.eager_refresh,
            negative_ttl: settings.loads.negative_ttl,
        }
    }

    /// Names of those that are set and need a loader.
    #[must_use]
    pub fn of_loaders(&self) -> Vec<&'static str> {
        let set = [
            ("fail_safe", self.fail_safe.is_some()),
            ("eager_refresh", self.eager_refresh.is_some()),
            ("negative_ttl", self.negative_ttl.is_some()),
        ];
        set.into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect()
    }
}

/// Why a cache of bytes cannot have what only loaders bring about.
pub const NEEDS_LOADER: &str = "is for caches with loaders, which a service opens that embeds a node: over HTTP, clients load by themselves";

/// A cache cannot be opened with these settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSettings {
    /// A time to live or to idle is zero or longer than [`LIFETIME_MAX`].
    #[error("{0} must be longer than zero and shorter than 100 years")]
    Lifetime(&'static str),
    /// What is asked for is about loaders, and a cache of bytes has none.
    #[error("{0} {NEEDS_LOADER}")]
    NeedsLoader(&'static str),
    /// The name, the capacity or the number of partitions cannot be used, or the name is taken.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Opens a cache of bytes under text keys: on a node, or by [`Domain::standalone`] on none.
///
/// # Errors
/// [`InvalidSettings`]; nothing was opened.
pub fn open(
    domain: &Domain,
    name: &str,
    settings: &CacheSettings,
) -> Result<Cache<String, Bytes>, InvalidSettings> {
    if let Some(name) = settings.of_loaders().first() {
        return Err(InvalidSettings::NeedsLoader(name));
    }
    let builder = CacheBuilder::<String, Bytes>::new(domain, name);
    let builder = match settings.mode {
        CacheMode::Invalidate => builder.mode(Mode::Invalidate),
        CacheMode::Local => builder.mode(Mode::Local),
        CacheMode::Replicate => {
            builder.replicate_with(|value| value.to_vec(), |bytes| Some(Bytes::copy_from_slice(bytes)))
        }
    };
    let mut builder = builder
        .invalidator(settings.invalidator)
        .partitions(settings.partitions)
        .replica_lag(settings.replica_lag)
        .when_isolated(settings.when_isolated)
        .schema(settings.schema)
        // Whoever puts or fills an entry says which tags it has.
        .explicit_tags()
        .lease_time(settings.lease_time)
        .eviction_events(settings.eviction_events);
    if settings.one_loader == OneLoader::Cluster {
        let encode = |value: &Bytes| Some(value.to_vec());
        builder = builder.one_loader_per_cluster_by(encode, |bytes| Some(Bytes::copy_from_slice(bytes)));
    }
    builder = match settings.max_capacity {
        Capacity::Entries(entries) => builder.max_capacity(entries),
        Capacity::Bytes(bytes) => builder.max_capacity(bytes).weigher(weight),
    };
    if let Some(time) = checked("time_to_live", settings.time_to_live)? {
        builder = builder.time_to_live(time);
    }
    if let Some(time) = checked("time_to_idle", settings.time_to_idle)? {
        builder = builder.time_to_idle(time);
    }
    if settings.audit {
        builder = builder.audited_by(|value| Some(value_digest(value)));
    }
    if let Some(share) = settings.ttl_jitter {
        builder = builder.ttl_jitter(share);
    }
    Ok(builder.open()?)
}

fn weight(key: &[u8], value: &Bytes) -> u32 {
    u32::try_from(key.len() + value.len()).unwrap_or(u32::MAX)
}

fn checked(name: &'static str, time: Option<Duration>) -> Result<Option<Duration>, InvalidSettings> {
    match time {
        Some(time) if time.is_zero() || time > LIFETIME_MAX => Err(InvalidSettings::Lifetime(name)),
        time => Ok(time),
    }
}

/// Neither bytes with a unit nor a number of entries.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected bytes such as \"64MiB\", or a plain number of entries")]
pub struct InvalidCapacity;

impl FromStr for Capacity {
    type Err = InvalidCapacity;

    fn from_str(text: &str) -> Result<Self, InvalidCapacity> {
        let entries = text.parse().ok().map(Self::Entries);
        entries.or_else(|| quantity::bytes(text).map(Self::Bytes)).ok_or(InvalidCapacity)
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => f.write_str(&quantity::show_bytes(*bytes)),
            Self::Entries(entries) => write!(f, "{entries}"),
        }
    }
}

impl Serialize for Capacity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bytes(_) => serializer.collect_str(self),
            Self::Entries(entries) => serializer.serialize_u64(*entries),
        }
    }
}

impl<'de> Deserialize<'de> for Capacity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Capacity;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes such as \"64MiB\", or a plain number of entries")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Capacity, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: Error>(self, entries: u64) -> Result<Capacity, E> {
                Ok(Capacity::Entries(entries))
            }

            fn visit_i64<E: Error>(self, entries: i64) -> Result<Capacity, E> {
                u64::try_from(entries).map(Capacity::Entries).map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Text)
    }
}

/// Invalidators by their names.
mod invalidator {
    use super::*;

    const NAMES: [(&str, Invalidator); 4] = [
        ("remote", Invalidator::Remote),
        ("local", Invalidator::Local),
        ("all", Invalidator::All),
        ("off", Invalidator::Off),
    ];

    pub(super) fn serialize<S: Serializer>(
        invalidator: &Invalidator,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let name = NAMES.iter().find(|(_, named)| named == invalidator).map_or("remote", |(name, _)| name);
        serializer.serialize_str(name)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Invalidator, D::Error> {
        let text = String::deserialize(deserializer)?;
        let named = NAMES.iter().find(|(name, _)| *name == text).map(|(_, invalidator)| *invalidator);
        named.ok_or_else(|| D::Error::custom("expected remote, local, all or off"))
    }
}

/// Durations as people write them.
mod duration {
    use super::*;

    pub(super) fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&quantity::show_duration(*time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        quantity::duration(&text).ok_or_else(|| D::Error::custom("expected a duration such as \"5m\""))
    }
}

/// Durations that may be absent.
mod lifetime {
    use super::*;

    pub(super) fn serialize<S: Serializer>(
        time: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        time.map(quantity::show_duration).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
        let time = quantity::duration(&text);
        time.map(Some).ok_or_else(|| D::Error::custom("expected a duration such as \"5m\""))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json, to_value};

    use super::*;

    #[test]
    fn settings_are_read_in_the_words_of_the_configuration() {
        let document = json!({ "mode": "local", "invalidator": "all", "max_capacity": "1MiB", "time_to_live": "5m",
            "time_to_idle": "1m30s", "partitions": 2, "eviction_events": false, "replica_lag": "0s",
            "when_isolated": "serve", "schema": 3, "audit": false, "one_loader": "cluster", "lease_time": "2s", "ttl_jitter": 0.1, "fail_safe": "1h", "eager_refresh": 0.9, "negative_ttl": "10s" });
        let expected = CacheSettings {
            mode: CacheMode::Local,
            invalidator: Invalidator::All,
            max_capacity: Capacity::Bytes(1 << 20),
            time_to_live: Some(Duration::from_secs(300)),
            time_to_idle: Some(Duration::from_secs(90)),
            partitions: 2,
            eviction_events: false,
            replica_lag: Duration::ZERO,
            when_isolated: WhenIsolated::Serve,
            schema: 3,
            one_loader: OneLoader::Cluster,
            lease_time: Duration::from_secs(2),
            audit: false,
            ttl_jitter: Some(0.1),
            fail_safe: Some(Duration::from_secs(3_600)),
            eager_refresh: Some(0.9),
            negative_ttl: Some(Duration::from_secs(10)),
        };
        assert_eq!(expected.of_loaders(), ["fail_safe", "eager_refresh", "negative_ttl"]);
        assert_eq!(from_value::<CacheSettings>(document.clone()).unwrap(), expected);
        assert_eq!(to_value(expected).unwrap(), document);
        assert_eq!(from_value::<CacheSettings>(json!({})).unwrap(), CacheSettings::default());
        let entries: CacheSettings = from_value(json!({ "max_capacity": 100 })).unwrap();
        assert_eq!(entries.max_capacity, Capacity::Entries(100));
    }

    #[test]
    fn settings_without_meaning_are_refused() {
        for document in [
            json!({ "max_capacty": 1 }),
            json!({ "max_capacity": "64" , "mode": "x" }),
            json!({ "max_capacity": -1 }),
            json!({ "max_capacity": "many" }),
            json!({ "invalidator": "none" }),
            json!({ "time_to_live": "5" }),
            json!({ "time_to_live": 5 }),
            json!({ "partitions": "4" }),
            json!({ "when_isolated": "ignore" }),
            json!({ "one_loader": "none" }),
            json!({ "schema": -1 }),
            json!({ "schema": 4_294_967_296_u64 }),
        ] {
            assert!(from_value::<CacheSettings>(document.clone()).is_err(), "{document}");
        }
    }
}
