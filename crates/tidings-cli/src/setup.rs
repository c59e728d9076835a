//! From a configuration to a node with its caches.

use std::time::Duration;

use tidings::streams::{OpenStreamsError, StreamsConfig, embedded, nats, redis};
use tidings::{
    BeforeKnown, Domain, Invalidator, LogFileError, Node, NodeBuilder, OneLoader, StartError, WhenIsolated,
};
use tidings_http::{CacheMode, CacheSettings};
use tidings_transport::{BindError, Identity as Certificates};

use crate::api::resolve;
use crate::config::{Cache as CacheConfig, Capacity, Config, Identity, Store, Streams};
use crate::exit::{Exit, Failure, chain};
use crate::secrets::SecretUrl;

/// A grace that never ends: a century.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Describes the node that a configuration asks for.
///
/// # Errors
/// The address to listen on does not resolve, or the certificates cannot be used.
pub(crate) async fn builder(config: &Config) -> Result<NodeBuilder, Failure> {
    let identity = match &config.identity {
        Identity::Development => Certificates::development(),
        Identity::Files { ca, cert, key } => Certificates::from_pem_files(ca, cert, key)
            .map_err(|error| Failure::new(Exit::Configuration, format!("tls: {}", chain(&error))))?,
    };
    let (cluster, coherence) = (&config.cluster, &config.coherence);
    let builder = Node::builder(&cluster.name)
        .node_id(cluster.node_id.as_str())
        .listen(resolve("cluster.listen", &cluster.listen).await?)
        .seeds(cluster.seeds.iter().cloned())
        .identity(identity)
        .denied(config.denied.iter().cloned())
        .gossip_interval(cluster.gossip_interval)
        .max_staleness(coherence.max_staleness)
        .lost_grace(coherence.lost_grace.unwrap_or(NEVER))
        .write_horizon(coherence.write_horizon)
        .before_known(match coherence.before_known.as_str() {
            "refuse" => BeforeKnown::Refuse,
            _ => BeforeKnown::Uncovered,
        })
        .doubt_unclean_ends(coherence.unclean_end == "doubt")
        .max_clock_offset(coherence.max_clock_offset)
        .unready_when_clock_off(coherence.unready_when_clock_off)
        .relay_above(usize::try_from(coherence.relay_above).unwrap_or(usize::MAX))
        .audit(coherence.audit_keys_per_second)
        .copy_rate(coherence.copy_bytes_per_second)
        .lanes(coherence.lanes)
        .retention(tidings_proto::log::Retention {
            events: coherence.log_events,
            bytes: usize::try_from(coherence.log_bytes).unwrap_or(usize::MAX),
        });
    let builder = match &coherence.log_dir {
        Some(directory) => builder.log_dir(directory),
        None => builder,
    };
    let builder = match &config.streams {
        Some(Streams { store, settings }) => builder.streams(of_store(store).settings(settings.clone())),
        None => builder,
    };
    Ok(match &cluster.advertise {
        Some(advertise) => builder.advertise(advertise.clone()),
        None => builder,
    })
}

/// Where streams are.
fn of_store(store: &Store) -> StreamsConfig {
    match store {
        Store::Embedded { path, durability } => StreamsConfig::embedded(path).durability(*durability),
        Store::Redis { url: SecretUrl(url), prefix } => {
            StreamsConfig::redis(url, redis::Config { prefix: prefix.clone(), ..redis::Config::default() })
        }
        Store::Nats { url: SecretUrl(url), config } => StreamsConfig::nats(url, config.clone()),
    }
}

/// Opens a cache as the configuration describes it.
///
/// # Errors
/// Its name collides with another one's, or a bound is out of range.
pub(crate) fn open(domain: &Domain, config: &CacheConfig) -> Result<(), Failure> {
    tidings_http::open(domain, &config.name, &settings(config)).map(drop).map_err(|error| {
        Failure::new(Exit::Configuration, format!("cache {:?}: {}", config.name, chain(&error)))
    })
}

/// The settings of a cache that the configuration describes.
pub(crate) fn settings(config: &CacheConfig) -> CacheSettings {
    CacheSettings {
        mode: match config.mode.as_str() {
            "local" => CacheMode::Local,
            "replicate" => CacheMode::Replicate,
            _ => CacheMode::Invalidate,
        },
        invalidator: match config.invalidator.as_str() {
            "local" => Invalidator::Local,
            "all" => Invalidator::All,
            "off" => Invalidator::Off,
            _ => Invalidator::Remote,
        },
        max_capacity: match config.max_capacity {
            Capacity::Bytes(bytes) => tidings_http::Capacity::Bytes(bytes),
            Capacity::Entries(entries) => tidings_http::Capacity::Entries(entries),
        },
        time_to_live: config.time_to_live,
        time_to_idle: config.time_to_idle,
        partitions: usize::try_from(config.partitions).unwrap_or(usize::MAX),
        eviction_events: config.eviction_events,
        replica_lag: config.replica_lag,
        when_isolated: WhenIsolated::ALL
            .into_iter()
            .find(|choice| choice.as_str() == config.when_isolated)
            .unwrap_or_default(),
        schema: config.schema,
        one_loader: if config.one_loader == "cluster" { OneLoader::Cluster } else { OneLoader::Node },
        lease_time: config.lease_time,
        audit: config.audit,
        ttl_jitter: config.ttl_jitter,
        // What needs a loader was refused.
        ..CacheSettings::default()
    }
}

/// Captures the changes of the caches for which the configuration asks for it.
///
/// # Errors
/// There are no streams, or they do not take the topic: what checking the configuration would have found.
pub(crate) fn capture(node: &Node, caches: &[CacheConfig]) -> Result<(), Failure> {
    for cache in caches {
        let Some(topic) = &cache.tee_to_stream else { continue };
        node.capture(&cache.name, topic).map_err(|error| {
            let message = format!("cache {:?}: tee_to_stream: {}", cache.name, chain(&error));
            Failure::new(Exit::Configuration, message)
        })?;
    }
    Ok(())
}

/// Why a node did not start, and what to do about it.
pub(crate) fn cannot_start(error: &StartError) -> Failure {
    if let StartError::Streams(error) = error {
        return cannot_open(error);
    }
    let failure = Failure::new(Exit::Failed, format!("cannot start the node: {}", chain(error)));
    match error {
        StartError::Bind(BindError::Socket { source, .. })
            if source.kind() == std::io::ErrorKind::AddrInUse =>
        {
            failure.hint("another process has this port: stop it, or set cluster.listen to another one")
        }
        StartError::Bind(BindError::Socket { .. }) => failure.hint("cluster.listen names the address"),
        StartError::LogFiles(LogFileError::InUse(_)) => {
            failure.hint("stop it, or set coherence.log_dir to another directory")
        }
        StartError::LogFiles(_) => failure.hint("coherence.log_dir names the directory"),
        StartError::Unspecified(_) | StartError::Advertise { .. } => {
            failure.hint("cluster.advertise names the address")
        }
        _ => failure,
    }
}

/// Why a store of streams cannot be opened, and what to do about it.
pub(crate) fn cannot_open(error: &OpenStreamsError) -> Failure {
    let message = format!("cannot open the store of streams: {}", chain(error));
    match error {
        OpenStreamsError::Store(embedded::OpenError::InUse(_)) => {
            Failure::new(Exit::Conflict, message).hint("stop the process that has it, or set streams.path")
        }
        OpenStreamsError::Settings(_) => Failure::new(Exit::Configuration, message),
        // What to do is in what it says.
        OpenStreamsError::Redis(error) => Failure::new(
            match error {
                redis::ConnectError::Url(_) | redis::ConnectError::Prefix(_) => Exit::Configuration,
                redis::ConnectError::Unreachable { .. } => Exit::Unreachable,
                redis::ConnectError::Refused { .. } => Exit::Refused,
                redis::ConnectError::TooOld { .. } | redis::ConnectError::Replica { .. } => Exit::Conflict,
            },
            message,
        ),
        OpenStreamsError::Nats(error) => Failure::new(
            match error {
                nats::ConnectError::Url(_)
                | nats::ConnectError::Prefix(_)
                | nats::ConnectError::Replicas(_) => Exit::Configuration,
                nats::ConnectError::Unreachable { .. } => Exit::Unreachable,
                nats::ConnectError::Refused { .. } => Exit::Refused,
                nats::ConnectError::TooOld { .. } | nats::ConnectError::NoJetStream { .. } => Exit::Conflict,
            },
            message,
        ),
        _ => Failure::new(Exit::Failed, message).hint("streams.path names the directory"),
    }
}
