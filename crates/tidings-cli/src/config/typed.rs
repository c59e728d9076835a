//! The configuration as the rest of the program uses it.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidings_http::TlsFiles;
use tidings_proto::id::{Lanes, NodeId};

use super::source::Values;
use super::streams::{self, Streams};
use super::value::Value;
use crate::secrets::SecretUrl;

/// A configuration that can be used.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Who and where.
    pub(crate) cluster: Cluster,
    /// Who says so.
    pub(crate) identity: Identity,
    /// Node ids or certificate serials that are refused.
    pub(crate) denied: Vec<String>,
    /// The HTTP API, if there is one.
    pub(crate) http: Option<Http>,
    /// What a hit may be.
    pub(crate) coherence: Coherence,
    /// The caches, in the order of the file.
    pub(crate) caches: Vec<Cache>,
    /// Durable streams, if there are any.
    pub(crate) streams: Option<Streams>,
    /// Log level or directives.
    pub(crate) log: String,
}

/// Who this node is, and where it finds the others.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is the setting of its name")]
pub(crate) struct Cluster {
    pub(crate) name: String,
    pub(crate) node_id: NodeId,
    pub(crate) listen: String,
    pub(crate) advertise: Option<String>,
    pub(crate) seeds: Vec<String>,
    pub(crate) gossip_interval: Duration,
    pub(crate) ready_timeout: Duration,
}

/// Where the node's identity comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// Made at the start; loopback only.
    Development,
    /// PEM files.
    Files {
        /// Certificate of the authority.
        ca: PathBuf,
        /// Certificate of the node.
        cert: PathBuf,
        /// Its private key.
        key: PathBuf,
    },
}

/// The HTTP API.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is the setting of its name")]
pub(crate) struct Http {
    pub(crate) listen: String,
    pub(crate) token_file: Option<PathBuf>,
    /// Certificate and key.
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) allowed_hosts: Vec<String>,
    pub(crate) open_health_and_metrics: bool,
    pub(crate) allow_destructive_actions: bool,
    pub(crate) allow_payloads: bool,
    pub(crate) audit_file: Option<PathBuf>,
}

/// What a hit may be.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is the setting of its name")]
pub(crate) struct Coherence {
    pub(crate) max_staleness: Duration,
    /// `None`: never given up.
    pub(crate) lost_grace: Option<Duration>,
    pub(crate) write_horizon: Duration,
    pub(crate) unclean_end: String,
    pub(crate) before_known: String,
    pub(crate) unready_when_isolated: bool,
    pub(crate) max_clock_offset: Duration,
    pub(crate) unready_when_clock_off: bool,
    pub(crate) relay_above: u64,
    pub(crate) audit_keys_per_second: u64,
    pub(crate) copy_bytes_per_second: NonZeroU64,
    pub(crate) lanes: Lanes,
    pub(crate) log_events: u64,
    pub(crate) log_bytes: u64,
    pub(crate) log_dir: Option<PathBuf>,
}

/// A cache.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is the setting of its name")]
pub(crate) struct Cache {
    pub(crate) name: String,
    pub(crate) mode: String,
    pub(crate) invalidator: String,
    pub(crate) max_capacity: Capacity,
    pub(crate) time_to_live: Option<Duration>,
    pub(crate) time_to_idle: Option<Duration>,
    pub(crate) partitions: u64,
    pub(crate) eviction_events: bool,
    pub(crate) replica_lag: Duration,
    pub(crate) when_isolated: String,
    pub(crate) schema: u32,
    pub(crate) one_loader: String,
    pub(crate) lease_time: Duration,
    pub(crate) audit: bool,
    pub(crate) ttl_jitter: Option<f64>,
    pub(crate) tee_to_stream: Option<String>,
}

/// How much a cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Capacity {
    /// Bytes of keys and values.
    Bytes(u64),
    /// Entries.
    Entries(u64),
}

impl Config {
    /// The configuration, if every value it needs is there.
    pub(crate) fn of(values: &Values, directory: &Path) -> Option<Self> {
        let get = Getter(values);
        let path = |key: &str| Some(directory.join(get.text(key)?));
        let identity = if get.flag("tls.development")? {
            Identity::Development
        } else {
            Identity::Files { ca: path("tls.ca")?, cert: path("tls.cert")?, key: path("tls.key")? }
        };
        let http = match get.text("http.listen") {
            Some(listen) => Some(http(&get, listen, directory)?),
            None => None,
        };
        Some(Self {
            cluster: Cluster {
                name: get.text("cluster.name")?,
                node_id: NodeId::new(&get.text("cluster.node_id")?).ok()?,
                listen: get.text("cluster.listen")?,
                advertise: get.text("cluster.advertise"),
                seeds: get.list("cluster.seeds")?,
                gossip_interval: get.duration("cluster.gossip_interval")?,
                ready_timeout: get.duration("cluster.ready_timeout")?,
            },
            identity,
            denied: get.list("tls.denied")?,
            http,
            coherence: coherence(&get, directory)?,
            caches: (0..values.count("cache")).map(|index| cache(values, index)).collect::<Option<_>>()?,
            streams: match streams::is_wanted(values) {
                true => Some(streams::of(values, directory)?),
                false => None,
            },
            log: get.text("telemetry.log")?,
        })
    }
}

fn http(get: &Getter<'_>, listen: String, directory: &Path) -> Option<Http> {
    let path = |key: &str| get.text(key).map(|name| directory.join(name));
    Some(Http {
        listen,
        token_file: path("http.token_file"),
        tls: path("http.tls_cert").zip(path("http.tls_key")).map(|(cert, key)| TlsFiles { cert, key }),
        allowed_hosts: get.list("http.allowed_hosts")?,
        open_health_and_metrics: get.flag("http.open_health_and_metrics")?,
        allow_destructive_actions: get.flag("http.allow_destructive_actions")?,
        allow_payloads: get.flag("http.allow_payloads")?,
        audit_file: path("http.audit_file"),
    })
}

fn coherence(get: &Getter<'_>, directory: &Path) -> Option<Coherence> {
    Some(Coherence {
        max_staleness: get.duration("coherence.max_staleness")?,
        lost_grace: get.duration("coherence.lost_grace"),
        write_horizon: get.duration("coherence.write_horizon")?,
        unclean_end: get.text("coherence.unclean_end")?,
        before_known: get.text("coherence.before_known")?,
        unready_when_isolated: get.flag("coherence.unready_when_isolated")?,
        max_clock_offset: get.duration("coherence.max_clock_offset")?,
        unready_when_clock_off: get.flag("coherence.unready_when_clock_off")?,
        relay_above: get.count("coherence.relay_above")?,
        audit_keys_per_second: get.count("coherence.audit_keys_per_second")?,
        copy_bytes_per_second: NonZeroU64::new(get.bytes("coherence.copy_bytes_per_second")?)?,
        lanes: Lanes::new(u8::try_from(get.count("coherence.lanes")?).ok()?)?,
        log_events: get.count("coherence.log_events")?,
        log_bytes: get.bytes("coherence.log_bytes")?,
        log_dir: get.text("coherence.log_dir").map(|name| directory.join(name)),
    })
}

/// One of the caches, if every value that it needs is there.
pub(super) fn cache(values: &Values, index: usize) -> Option<Cache> {
    let get = Getter(values);
    let at = |key: &str| format!("cache[{index}].{key}");
    let max_capacity = match get.0.get(&at("max_capacity"))? {
        Value::Bytes(bytes) => Capacity::Bytes(*bytes),
        Value::Count(entries) => Capacity::Entries(*entries),
        _ => return None,
    };
    Some(Cache {
        name: get.text(&at("name"))?,
        mode: get.text(&at("mode"))?,
        invalidator: get.text(&at("invalidator"))?,
        max_capacity,
        time_to_live: get.duration(&at("time_to_live")),
        time_to_idle: get.duration(&at("time_to_idle")),
        partitions: get.count(&at("partitions"))?,
        eviction_events: get.flag(&at("eviction_events"))?,
        replica_lag: get.duration(&at("replica_lag"))?,
        // Unless it says otherwise, a cache does what all do.
        when_isolated: get.text(&at("when_isolated")).or_else(|| get.text("coherence.when_isolated"))?,
        schema: u32::try_from(get.count(&at("schema"))?).ok()?,
        one_loader: get.text(&at("one_loader"))?,
        lease_time: get.duration(&at("lease_time"))?,
        audit: get.flag(&at("audit"))?,
        ttl_jitter: get.share(&at("ttl_jitter")),
        tee_to_stream: get.text(&at("tee_to_stream")),
    })
}

/// Values by path and type.
pub(super) struct Getter<'a>(pub(super) &'a Values);

impl Getter<'_> {
    pub(super) fn text(&self, path: &str) -> Option<String> {
        if let Value::Text(text) = self.0.get(path)? { Some(text.clone()) } else { None }
    }

    pub(super) fn url(&self, path: &str) -> Option<SecretUrl> {
        if let Value::Url(url) = self.0.get(path)? { Some(url.clone()) } else { None }
    }

    pub(super) fn list(&self, path: &str) -> Option<Vec<String>> {
        if let Value::List(items) = self.0.get(path)? { Some(items.clone()) } else { None }
    }

    pub(super) fn duration(&self, path: &str) -> Option<Duration> {
        if let Value::Duration(duration) = self.0.get(path)? { Some(*duration) } else { None }
    }

    pub(super) fn count(&self, path: &str) -> Option<u64> {
        if let Value::Count(count) = self.0.get(path)? { Some(*count) } else { None }
    }

    pub(super) fn share(&self, path: &str) -> Option<f64> {
        if let Value::Share(share) = self.0.get(path)? { Some(*share) } else { None }
    }

    pub(super) fn bytes(&self, path: &str) -> Option<u64> {
        if let Value::Bytes(bytes) = self.0.get(path)? { Some(*bytes) } else { None }
    }

    pub(super) fn flag(&self, path: &str) -> Option<bool> {
        if let Value::Flag(flag) = self.0.get(path)? { Some(*flag) } else { None }
    }
}
