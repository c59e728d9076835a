//! What every route works with.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;
use bytes::Bytes;
use prometheus_client::registry::Registry;
use tidings::{AnyCache, Cache, Node};
use tokio_util::sync::CancellationToken;

use crate::guard::Hosts;
use crate::metrics::{self, StreamsSeen};
use crate::options::Options;
use crate::problem::Problem;
use crate::readiness::Readiness;
use crate::room::Room;

/// Shared by all requests. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct App(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    node: Node,
    options: Options,
    hosts: Hosts,
    metrics: Registry,
    streams_seen: Arc<StreamsSeen>,
    room: Arc<Room>,
    closing: CancellationToken,
    readiness: Arc<Readiness>,
    /// Held while a cache is opened over HTTP.
    opening: Mutex<()>,
}

impl App {
    /// `options.listen` is where the server really listens.
    pub(crate) fn new(node: Node, options: Options) -> Self {
        let readiness = Arc::new(Readiness::new(node.clone(), options.unready_when_isolated));
        let room = Arc::new(Room::default());
        let streams_seen = Arc::<StreamsSeen>::default();
        Self(Arc::new(Shared {
            hosts: Hosts::new(options.listen.ip(), &options.allowed_hosts),
            metrics: metrics::registry(node.clone(), readiness.clone(), room.clone(), streams_seen.clone()),
            streams_seen,
            room,
            closing: CancellationToken::new(),
            readiness,
            opening: Mutex::new(()),
            node,
            options,
        }))
    }

    pub(crate) fn node(&self) -> &Node {
        &self.0.node
    }

    pub(crate) fn options(&self) -> &Options {
        &self.0.options
    }

    pub(crate) fn hosts(&self) -> &Hosts {
        &self.0.hosts
    }

    pub(crate) fn metrics(&self) -> &Registry {
        &self.0.metrics
    }

    /// How streams stood at the last scrape.
    pub(crate) fn streams_seen(&self) -> &StreamsSeen {
        &self.0.streams_seen
    }

    /// Places for what waits.
    pub(crate) fn room(&self) -> &Arc<Room> {
        &self.0.room
    }

    /// Cancelled when the server ends: what is endless has to end.
    pub(crate) fn closing(&self) -> &CancellationToken {
        &self.0.closing
    }

    /// Whether the node should get requests.
    pub(crate) fn readiness(&self) -> &Readiness {
        &self.0.readiness
    }

    /// The right to open a cache: whoever has it decides and opens without another one between.
    pub(crate) fn opening(&self) -> MutexGuard<'_, ()> {
        self.0.opening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An open cache of any types.
    pub(crate) fn cache(&self, name: &str) -> Result<Arc<dyn AnyCache>, Problem> {
        self.0.node.domain().cache(name).ok_or_else(|| Problem::unknown_cache(name))
    }

    /// An open cache of bytes under text keys.
    pub(crate) fn bytes_cache(&self, name: &str) -> Result<Cache<String, Bytes>, Problem> {
        if let Some(cache) = self.0.node.lookup(name) {
            return Ok(cache);
        }
        self.cache(name)?;
        let detail =
            format!("cache {name:?} holds its service's own types: no entry of it can be named here");
        Err(Problem::new(StatusCode::CONFLICT, "other_type", detail))
    }
}
